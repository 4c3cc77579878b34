"""Rows in and out: gather a batch from the data, copy results to the caller's array.

Legend: rows r of the batch; row ``step · BATCH + r`` of the run; its number in the data is ``ORDER`` of that.
"""

from numba import int64

from nbbp import ops
from nbbp.compiling import jit
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel

#: Rows that what comes next is asked for ahead, at most.
_MOST_AHEAD = 256


@jit()
def rows_of_batch(op, step):
    """How many rows the batch has; what goes by it is the same however the batch is cut, and whatever was planned."""
    return min(op[ops.BATCH], op[ops.N_SAMPLES] - step * op[ops.BATCH])


@jit()
def rows_ahead(op):
    """How many rows ahead data are asked for: those of the next batch, or of the same where it is long, for what was
    asked for must not have left the caches when its turn comes.
    """
    return min(op[ops.BATCH], _MOST_AHEAD)


@kernel("gather")
def gather(zero, variant):
    """Y[r, :] = X[order[r], :]; X (n, N_OUT), Y (batch, N_OUT). Writes Y.

    Asks for rows to come meanwhile: they lie anywhere in memory, but their numbers are known.
    """

    def gather(op, step, row_start, row_stop, column_start, column_stop, scratch):
        x = simd.pointer(op[ops.X], zero)
        y = simd.pointer(op[ops.Y], zero)
        order = simd.pointer(op[ops.ORDER], int64(0))
        first = step * op[ops.BATCH]
        has_order = op[ops.ORDER] != 0
        width = op[ops.N_OUT]
        ahead = rows_ahead(op)
        last = op[ops.N_SAMPLES] - ahead if has_order else 0
        for r in range(row_start, row_stop):
            source = order[first + r] if has_order else first + r
            if first + r < last:
                simd.prefetch(simd.advance(x, order[first + ahead + r] * op[ops.X_STRIDE]), width)
            simd.copy(simd.advance(y, r * op[ops.Y_STRIDE]), simd.advance(x, source * op[ops.X_STRIDE]), width)

    return gather


@kernel("copy_out")
def copy_out(zero, variant):
    """Y[row of the run, :] = X[r, :]; X (batch, N_OUT), Y (n, N_OUT). Writes Y."""

    def copy_out(op, step, row_start, row_stop, column_start, column_stop, scratch):
        x = simd.pointer(op[ops.X], zero)
        y = simd.pointer(op[ops.Y], zero)
        first = step * op[ops.BATCH]
        for r in range(row_start, row_stop):
            target = simd.advance(y, (first + r) * op[ops.Y_STRIDE])
            simd.copy(target, simd.advance(x, r * op[ops.X_STRIDE]), op[ops.N_OUT])

    return copy_out


@kernel("copy_rows")
def copy_rows(zero, variant):
    """Y = X; X, Y (batch, N_OUT), apart. Writes Y."""

    def copy_rows(op, step, row_start, row_stop, column_start, column_stop, scratch):
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            simd.copy(simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE]), x, op[ops.N_OUT])

    return copy_rows


@kernel("add_rows")
def add_rows(zero, variant):
    """Y = X + W; X, W, Y (batch, N_OUT), of which any may be the same, or else apart. Writes Y."""

    def add_rows(op, step, row_start, row_stop, column_start, column_stop, scratch):
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            w = simd.advance(simd.pointer(op[ops.W], zero), r * op[ops.W_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            simd.add(y, x, w, op[ops.N_OUT])

    return add_rows
