"""Elementwise activations over a tile of the batch, forward and backward.

Legend: batch rows, N_OUT units. A tile of whole rows is one stretch of memory, its padding included, so that there is
one long loop; what the padding holds is never read, but for the number behind the last unit, which may be the 1 that
stands for the bias and is put back.
"""

from nbbp import ops
from nbbp.compiling import FASTMATH
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel
from nbbp.scalars.activations import ACTIVATIONS, activation_derivative, activation_value

_RELU = ACTIVATIONS["relu"].code
#: Registers of a row from which on derivatives, which are cheap, are worth a loop for each row.
_WIDE = 4
ELEMENTWISE = tuple(formula.code for formula in ACTIVATIONS.values() if not formula.row_wise)


@kernel("activation_forward", ELEMENTWISE, fastmath=FASTMATH)
def activation_forward(zero, variant):
    """Y = f(X); X, Y (batch, N_OUT), which are the same or do not overlap. Writes Y and its padding."""
    lanes = simd.LANES[zero.dtype]

    def activation_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        alpha = simd.pointer(op[ops.SETTINGS], zero)[0]
        width, stride = op[ops.N_OUT], op[ops.Y_STRIDE]
        in_place = op[ops.X] == op[ops.Y]
        behind = simd.pointer(op[ops.Y], zero)[row_start * stride + width]
        n_rows, n = row_stop - row_start, min(column_stop, width) - column_start
        is_flat = column_stop >= width and column_start == 0 and op[ops.X_STRIDE] == stride
        if is_flat and stride - width < lanes:  # otherwise a whole register of each row is padding
            n_rows, n = 1, n_rows * stride
        for r in range(row_start, row_start + n_rows):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE] + column_start)
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * stride + column_start)
            # two loops: were x and y two names for one place, LLVM would take its path for overlapping arrays
            if in_place:
                for j in range(n):
                    y[j] = activation_value(variant, y[j], alpha)
            else:
                for j in range(n):
                    y[j] = activation_value(variant, x[j], alpha)
        if column_stop >= width:
            for r in range(row_start, row_stop):
                simd.pointer(op[ops.Y], zero)[r * stride + width] = behind

    return activation_forward


@kernel("activation_backward", ELEMENTWISE, fastmath=FASTMATH)
def activation_backward(zero, variant):
    """Y *= f'(X); Y the output gradient, X what f' is written in (f's input or its output), both (batch, N_OUT).

    Writes Y and its padding, which must not overlap X.
    """
    lanes = simd.LANES[zero.dtype]

    def activation_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        alpha = simd.pointer(op[ops.SETTINGS], zero)[0]
        width, stride = op[ops.N_OUT], op[ops.Y_STRIDE]
        n_rows, n = row_stop - row_start, min(column_stop, width) - column_start
        is_flat = column_stop >= width and column_start == 0 and op[ops.X_STRIDE] == stride
        if is_flat and (stride - width < lanes or width < _WIDE * lanes):
            n_rows, n = 1, n_rows * stride
        for r in range(row_start, row_start + n_rows):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE] + column_start)
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * stride + column_start)
            for j in range(n):
                if variant == _RELU:  # not 0 · y[j]: as a product does it on the way (see cpu/dense.py), NaN and -0 too
                    y[j] = zero if x[j] <= zero else y[j]
                else:
                    y[j] *= activation_derivative(variant, x[j], alpha)

    return activation_backward
