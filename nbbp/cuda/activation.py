"""Elementwise activations, forward and backward.

Legend: batch rows, `width` units. The variant is the activation's code, or the key of one that was made at run time.
"""

from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, INTEGER, INTEGERS, N_SAMPLES, NUMBER, STEP, kernel
from nbbp.cuda.launch import Binding, binds, matrix
from nbbp.scalars.activations import ACTIVATIONS, activation_derivative, activation_value

ELEMENTWISE = tuple(formula.code for formula in ACTIVATIONS.values() if not formula.row_wise)
_RELU = ACTIVATIONS["relu"].code
_KINDS = (INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, NUMBER)


@kernel(*_KINDS, variants=ELEMENTWISE)
def activation_forward(number, variant):
    """y = f(x); x, y (batch, width), which are the same or do not overlap. Writes y."""

    def activation_forward(clock, batch, y, y_stride, x, x_stride, width, alpha):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                y[r * y_stride + j] = activation_value(variant, x[r * x_stride + j], alpha)

    return activation_forward


@kernel(*_KINDS, variants=ELEMENTWISE)
def activation_backward(number, variant):
    """y *= f'(x); y the output gradient, x what f' is written in (f's input or its output), both (batch, width).

    Writes y, which must not overlap x.
    """
    zero = number(0)

    def activation_backward(clock, batch, y, y_stride, x, x_stride, width, alpha):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                if variant == _RELU:  # not 0 · y, which an overflow makes NaN: as a product does it on the way
                    if x[r * x_stride + j] <= zero:
                        y[r * y_stride + j] = zero
                else:
                    y[r * y_stride + j] *= activation_derivative(variant, x[r * x_stride + j], alpha)

    return activation_backward


@binds("activation_forward", "activation_backward")
def bind_activation(op: Binding) -> None:
    """One elementwise function."""
    op.launch(
        op.kernel, matrix(op.batch, op[ops.N_OUT]), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE],
        op.array(ops.X), op[ops.X_STRIDE], op[ops.N_OUT], op.setting(0), variant=op.variant,
    )  # fmt: skip
