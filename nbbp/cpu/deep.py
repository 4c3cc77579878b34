"""The weight gradient over many rows that lie far apart, which must be copied to stay in the caches.

Legend: C is m × n, A is k × m, B is k × n; blocks of DEPTH k, ROWS rows of C and PANELS panels of columns. (As in Goto
and van de Geijn's paper, section 4; see cpu/tile.py.)
"""

from numba import int64

from nbbp import ops
from nbbp.compiling import jit
from nbbp.cpu import simd, tile
from nbbp.cpu.gemm import pack_side_by_side, panel_width
from nbbp.cpu.kernels import kernel

#: What is copied at a time; and more rows than MANY are many (all as in nbbp/tiling.py).
DEPTH, ROWS, PANELS, MANY = 128, 128, 2, 192


@jit()
def _multiply(c, c_stride, a, a_stride, b, b_stride, m, n, k, zero, scratch, panel):
    """C = Aᵀ·B, all with these row strides. Takes DEPTH · (ROWS + PANELS · panel) numbers of scratch. Writes both."""
    packed_a = simd.advance(scratch, DEPTH * PANELS * panel)
    for i in range(m):
        for j in range(n):
            c[i * c_stride + j] = zero
    for left in range(0, n, PANELS * panel):
        right = min(left + PANELS * panel, n)
        for first in range(0, k, DEPTH):
            depth = min(k - first, DEPTH)
            for j in range(left, right, panel):
                packed_b, of_b = simd.advance(scratch, DEPTH * (j - left)), simd.advance(b, first * b_stride + j)
                pack_side_by_side(packed_b, panel, of_b, b_stride, depth, min(right - j, panel))
            for i in range(0, m, ROWS):
                height = min(m - i, ROWS)
                pack_side_by_side(packed_a, ROWS, simd.advance(a, first * a_stride + i), a_stride, depth, height)
                for j in range(left, right, panel):
                    packed_b, of_c = simd.advance(scratch, DEPTH * (j - left)), simd.advance(c, i * c_stride + j)
                    tile.continue_panel(
                        of_c, c_stride, packed_a, 1, ROWS, packed_b, panel, height, min(right - j, panel), depth
                    )


@kernel("deep_product")
def deep_product(zero, variant):
    """Y (N_IN, N_OUT) = Xᵀ·W over the tile's rows, as "product" with CONTRACTS_ROWS (cpu/dense.py), whose columns it
    has; in column OTHERWISE the address of that, for batches that have not so many rows.
    """
    panel = panel_width(zero.dtype)

    def deep_product(op, step, row_start, row_stop, column_start, column_stop, scratch):
        k = row_stop - row_start
        if k <= MANY:
            simd.call_kernel(op, ops.OTHERWISE, step, row_start, row_stop, column_start, column_stop, scratch)
            return
        x_stride, w_stride, y_stride, n = op[ops.X_STRIDE], op[ops.W_STRIDE], op[ops.Y_STRIDE], op[ops.N_OUT]
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * x_stride + column_start)
        w = simd.advance(simd.pointer(op[ops.W], zero), row_start * w_stride)
        m, free = min(column_stop, op[ops.N_IN]) - column_start, simd.pointer(scratch, zero)
        y = free
        if op[ops.Y] == 0:  # then the gradient itself lies in the scratch
            free = simd.advance(free, (m * n + 15) // 16 * 16)
        else:
            slot = row_start // op[ops.SLOT_ROWS] * op[ops.SLOT_STRIDE]
            y = simd.advance(simd.pointer(op[ops.Y], zero), slot + column_start * y_stride)
        _multiply(y, y_stride, x, x_stride, w, w_stride, m, n, int64(k), zero, free, panel)

    return deep_product
