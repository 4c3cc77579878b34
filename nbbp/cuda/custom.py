"""Layers of the user's own: a jitted function for one sample, called for each row by one thread.

Legend: batch rows, n_in inputs and n_out outputs per row, n parameters. The variant is an `ops.UserFunction`, which
Numba compiles for the GPU as it stands; so must be what it calls.
"""

import math

from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, INTEGER, INTEGERS, N_SAMPLES, SIMULATED, STEP, THREADS, kernel
from nbbp.cuda.launch import Binding, binds, blocks_for, flat

NAN = math.nan
#: Threads that take the rows of a batch, each with a gradient of its own.
_GROUPS = 8 if SIMULATED else 1024


def _function_of(variant: ops.UserFunction) -> object:
    """What a kernel can call: the simulator runs Python."""
    return variant.function.py_func if SIMULATED else variant.function


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, INTEGER, variants=())
def custom_forward(number, variant):
    """y = forward(parameters, x) row by row; x (batch, n_in), y (batch, n_out), apart. Writes y.

    Where the function raises, y stays NaN.
    """
    forward = _function_of(variant)

    def custom_forward(clock, batch, y, y_stride, x, x_stride, parameters, n, n_in, n_out):
        for r in range(cuda.grid(1), min(batch, clock[N_SAMPLES] - clock[STEP] * batch), cuda.gridsize(1)):
            out, start = r * y_stride, r * x_stride
            for j in range(n_out):
                y[out + j] = NAN
            forward(parameters[:n], x[start : start + n_in], y[out : out + n_out])

    return custom_forward


@kernel(
    INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER,
    INTEGER, variants=(),
)  # fmt: skip
def custom_backward(number, variant):
    """d_x, gradients = backward(parameters, x, y, d_y) row by row; gradients (threads, n), a thread's sum each.

    x, d_x (batch, n_in), y, d_y (batch, n_out), apart. Writes d_x and gradients: where the function raises, d_x stays
    NaN.
    """
    backward, zero = _function_of(variant), number(0)

    def custom_backward(
        clock, batch, d_x, d_x_stride, gradients, x, x_stride, y, y_stride, d_y, d_y_stride, parameters, n, n_in, n_out
    ):
        mine = cuda.grid(1) * n
        for i in range(n):
            gradients[mine + i] = zero
        for r in range(cuda.grid(1), min(batch, clock[N_SAMPLES] - clock[STEP] * batch), cuda.gridsize(1)):
            out, start, given, wanted = r * d_x_stride, r * x_stride, r * y_stride, r * d_y_stride
            for j in range(n_in):
                d_x[out + j] = NAN
            backward(
                parameters[:n], x[start : start + n_in], y[given : given + n_out], d_y[wanted : wanted + n_out],
                d_x[out : out + n_in], gradients[mine : mine + n],
            )  # fmt: skip

    return custom_backward


@binds("custom_forward")
def bind_forward(op: Binding) -> None:
    """One thread for each row."""
    op.launch(
        "custom_forward", flat(op.batch), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE], op.array(ops.X),
        op[ops.X_STRIDE], op.array(ops.PARAMETERS), op[ops.N_PARAMETERS], op[ops.N_IN], op[ops.N_OUT],
        variant=op.variant,
    )  # fmt: skip


@binds("custom_backward")
def bind_backward(op: Binding) -> None:
    """One thread for some rows, and then the sum of the threads' gradients in their order."""
    n = op[ops.N_PARAMETERS]
    blocks = blocks_for(min(op.batch, _GROUPS), THREADS)
    n_threads = blocks * THREADS
    gradients = op.scratch(n_threads * n)
    op.launch(
        "custom_backward", ((blocks,), (THREADS,)), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE], gradients,
        op.array(ops.X), op[ops.X_STRIDE], op.array(ops.KEPT), op[ops.KEPT_STRIDE], op.array(ops.D_Y),
        op[ops.D_Y_STRIDE], op.array(ops.PARAMETERS), n, op[ops.N_IN], op[ops.N_OUT], variant=op.variant,
    )  # fmt: skip
    if op.has(ops.GRADIENT):
        op.launch("sum_of_parts", flat(n), op.array(ops.GRADIENT), n, gradients, n, n_threads, 1, n)
