"""Elementwise activations over a tile of the batch, forward and backward.

Legend: batch rows, N_OUT units; rows are padded to whole registers, so that loops run over registers without a tail. The
number behind the last unit is kept: it may be the one that stands for the bias.
"""

from nbbp import ops
from nbbp.compiling import FASTMATH
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel
from nbbp.scalars.activations import ACTIVATIONS, activation_derivative, activation_value

ELEMENTWISE = tuple(formula.code for formula in ACTIVATIONS.values() if not formula.row_wise)


@kernel("activation_forward", ELEMENTWISE, fastmath=FASTMATH)
def activation_forward(zero, variant):
    """Y = f(X); X, Y (batch, N_OUT), which are the same or do not overlap. Writes Y."""
    lanes = simd.LANES[zero.dtype]

    def activation_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        alpha = simd.pointer(op[ops.SETTINGS], zero)[0]
        width = op[ops.N_OUT]
        in_place = op[ops.X] == op[ops.Y]
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            behind = y[width]
            for block in range(column_start, min(column_stop, width), lanes):
                # two loops: were x and y two names for one place, LLVM would take its path for overlapping arrays
                if in_place:
                    for j in range(block, block + lanes):
                        y[j] = activation_value(variant, y[j], alpha)
                else:
                    for j in range(block, block + lanes):
                        y[j] = activation_value(variant, x[j], alpha)
            if column_stop >= width:
                y[width] = behind

    return activation_forward


@kernel("activation_backward", ELEMENTWISE, fastmath=FASTMATH)
def activation_backward(zero, variant):
    """Y *= f'(X); Y the output gradient, X what f' is written in (f's input or its output), both (batch, N_OUT).

    Writes Y, which must not overlap X.
    """
    lanes = simd.LANES[zero.dtype]

    def activation_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        alpha = simd.pointer(op[ops.SETTINGS], zero)[0]
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            for block in range(column_start, min(column_stop, op[ops.N_OUT]), lanes):
                for j in range(block, block + lanes):
                    y[j] *= activation_derivative(variant, x[j], alpha)

    return activation_backward
