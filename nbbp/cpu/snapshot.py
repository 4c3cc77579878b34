"""The last good parameters: a copy that a run keeps for the case that its loss turns NaN.

Legend: as in cpu/update.py; the copy is taken in the first step of a run, between the loss and the update, and only if
every loss of that batch is finite. So the copy always holds parameters at which the loss was a number.
"""

import math

from numba import float64

from nbbp import ops
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel


@kernel("snapshot")
def snapshot(zero, variant):
    """Y = X for numbers [column_start, column_stop) · SLOT_STRIDE, below N_OUT, if ROW_VALUES of the batch are
    finite.
    """

    def snapshot(op, step, row_start, row_stop, column_start, column_stop, scratch):
        if step > 0:
            return
        values = simd.pointer(op[ops.ROW_VALUES], float64(0))
        for r in range(row_start, row_stop):
            if not math.isfinite(values[r]):
                return
        first = column_start * op[ops.SLOT_STRIDE]
        last = min(column_stop * op[ops.SLOT_STRIDE], op[ops.N_OUT])
        x = simd.advance(simd.pointer(op[ops.X], zero), first)
        simd.copy(simd.advance(simd.pointer(op[ops.Y], zero), first), x, last - first)

    return snapshot
