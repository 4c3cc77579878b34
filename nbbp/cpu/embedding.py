"""Rows of a table in place of category numbers, and the gradient of the table.

Legend: X (batch, N_LOOKUPS) holds categories, in neighbouring columns of the data that share the table W (N_IN, N_OUT);
Y (batch, N_LOOKUPS · N_OUT) the rows that they name, side by side. The data are checked before they come here; a number
that is no category all the same reads or changes another row of the table, never other memory.
"""

from numba import int64

from nbbp import ops
from nbbp.compiling import jit
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel


@jit()
def category(value, n_categories):
    """`value` as one of 0 … n_categories - 1, of which each is exact in its dtype; NaN is 0."""
    number = type(value)
    if not value > number(0):
        return int64(0)
    return int64(value) if value < number(n_categories) else n_categories - 1


@kernel("embedding_forward")
def embedding_forward(zero, variant):
    """Y[r, k · N_OUT + j] = W[X[r, k], j]; shapes in the legend. Writes Y, which must not overlap X and W."""

    def embedding_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n_categories, width = op[ops.N_IN], op[ops.N_OUT]
        table = simd.pointer(op[ops.W], zero)
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            for k in range(op[ops.N_LOOKUPS]):
                row = simd.advance(table, category(x[k], n_categories) * width)
                simd.copy(simd.advance(y, k * width), row, width)

    return embedding_forward


@kernel("embedding_backward")
def embedding_backward(zero, variant):
    """GRADIENT[c, j] = the sum of D_Y[r, k · N_OUT + j] over the r and k with X[r, k] = c, in their order.

    GRADIENT (N_IN, N_OUT), of which a tile has the columns [column_start, column_stop) and all rows of the batch; D_Y
    (batch, N_LOOKUPS · N_OUT). Writes GRADIENT, which must not overlap the others.
    """

    def embedding_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n_categories, width = op[ops.N_IN], op[ops.N_OUT]
        n = min(column_stop, width) - column_start
        gradient = simd.advance(simd.pointer(op[ops.GRADIENT], zero), column_start)
        for c in range(n_categories):
            row = simd.advance(gradient, c * width)
            for j in range(n):
                row[j] = 0
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            d_y = simd.advance(simd.pointer(op[ops.D_Y], zero), r * op[ops.D_Y_STRIDE] + column_start)
            for k in range(op[ops.N_LOOKUPS]):
                row = simd.advance(gradient, category(x[k], n_categories) * width)
                simd.add(row, row, simd.advance(d_y, k * width), n)

    return embedding_backward
