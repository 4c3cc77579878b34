"""Mixed precision: matrices and parameters between float32, in which kernels compute, and 16 bits.

Legend: batch rows, N_OUT units, rows X_STRIDE (or Y_STRIDE) numbers apart, which are whole registers; what pads them is
converted like the rest. The variant is the 16-bit format (cpu/half.py).
LOSS_SCALE holds float32 numbers: the scale of the loss's gradient, updates without overflow since the scale changed,
its growth factor, its backoff factor, and how many updates without overflow it takes to grow.
"""

import math

from numba import uint16

from nbbp import ops
from nbbp.cpu import half, simd
from nbbp.cpu.kernels import kernel
from nbbp.cpu.update import gradient_is_finite, place_among


@kernel("narrow", (), of_float32=(ops.BF16, ops.FP16))
def narrow(zero, variant):
    """KEPT = X in 16 bits, unless that is 0, and X = what that is in float32; X, KEPT (batch, N_OUT) of equal strides.

    X is multiplied first by the scale at LOSS_SCALE, unless that is 0. Writes X and KEPT with the padding of their
    rows, apart. Cut by rows and by columns, from multiples of a register on.
    """

    def narrow(op, step, row_start, row_stop, column_start, column_stop, scratch):
        width, stride = op[ops.N_OUT], op[ops.X_STRIDE]
        stop = stride if column_stop >= width else column_stop
        n_rows, n = row_stop - row_start, stop - column_start
        if n == stride:
            n_rows, n = 1, n_rows * stride
        for r in range(n_rows):
            at = (row_start + r) * stride + column_start
            x = simd.advance(simd.pointer(op[ops.X], zero), at)
            if op[ops.LOSS_SCALE] != 0:
                simd.scale_row(x, x, simd.pointer(op[ops.LOSS_SCALE], zero)[0], zero, n)
            if op[ops.KEPT] != 0:
                half.narrow_row(simd.advance(simd.pointer(op[ops.KEPT], uint16(0)), at), x, n, variant)
            else:
                half.round_row(x, x, n, variant)

    return narrow


@kernel("widen", (), of_float32=(ops.BF16, ops.FP16))
def widen(zero, variant):
    """Y = KEPT in float32; Y, KEPT (batch, N_OUT) of equal strides, apart. Writes Y and its padding. Cut by rows."""

    def widen(op, step, row_start, row_stop, column_start, column_stop, scratch):
        at = row_start * op[ops.Y_STRIDE]
        kept = simd.advance(simd.pointer(op[ops.KEPT], uint16(0)), at)
        n = (row_stop - row_start) * op[ops.Y_STRIDE]
        half.widen_row(simd.advance(simd.pointer(op[ops.Y], zero), at), kept, n, variant)

    return widen


@kernel("round_parameters", (), of_float32=(ops.BF16, ops.FP16))
def round_parameters(zero, variant):
    """Y = X rounded to 16 bits, in float32; X, Y (N_OUT,), apart. Writes Y up to the next register. Not to be cut."""

    def round_parameters(op, step, row_start, row_stop, column_start, column_stop, scratch):
        y = simd.pointer(op[ops.Y], zero)
        simd.copy(y, simd.pointer(op[ops.X], zero), op[ops.N_OUT])
        half.round_row(y, y, op[ops.N_OUT], variant)

    return round_parameters


@kernel("update_loss_scale", (), of_float32=(ops.FP16,))
def update_loss_scale(zero, variant):
    """LOSS_SCALE after an update: smaller if the gradient overflowed (SQUARES), larger if none has for long enough.

    Once for every update, that is after the last of the ACCUMULATION batches; a scale beyond the normal numbers, or
    infinite, is not taken. Writes LOSS_SCALE, where the columns begin.
    """
    smallest = type(zero)(2.0**-126)
    one, infinity = type(zero)(1), type(zero)(math.inf)

    def update_loss_scale(op, step, row_start, row_stop, column_start, column_stop, scratch):
        if column_start != 0 or place_among(op, step) + 1 < op[ops.ACCUMULATION]:
            return
        state = simd.pointer(op[ops.LOSS_SCALE], zero)
        scale = state[0]
        state[1] += one
        if not gradient_is_finite(op):
            scale *= state[3]
            state[1] = zero
        elif state[1] >= state[4]:
            scale *= state[2]
            state[1] = zero
        if smallest <= scale < infinity:
            state[0] = scale

    return update_loss_scale
