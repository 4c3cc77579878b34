"""The last good parameters: a copy that a run keeps for the case that its loss turns NaN.

Legend: as in cpu/update.py; the copy is taken in the first step of a run, between the loss and the update, and only if
every loss of that batch is finite. So the copy holds parameters at which the loss was a number, or the
finite ones that training began with.
"""

import math

from numba import float64

from nbbp import ops
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel


@kernel("snapshot")
def snapshot(zero, variant):
    """Y = X for rows [column_start, column_stop), below N_IN, if ROW_VALUES of the batch are finite. Writes Y.

    X, Y: rows of N_OUT numbers, W_STRIDE apart.
    """

    def snapshot(op, step, row_start, row_stop, column_start, column_stop, scratch):
        if step > 0:
            return
        values = simd.pointer(op[ops.ROW_VALUES], float64(0))
        for r in range(row_start, row_stop):
            if not math.isfinite(values[r]):
                return
        for r in range(column_start, min(column_stop, op[ops.N_IN])):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.W_STRIDE])
            simd.copy(simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.W_STRIDE]), x, op[ops.N_OUT])

    return snapshot
