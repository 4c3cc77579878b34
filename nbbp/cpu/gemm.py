"""Dense products on one core: C = max(floor, bias + A·B), with B plain or transposed.

Legend: C is m × n, A is m × k with any strides, B is k × n. A panel is ``panel_width`` columns of C; its k × panel of B
is packed side by side where B is transposed or its rows lie so far apart that they fight for the same cache sets.
"""

import numpy as np

from nbbp.compiling import jit
from nbbp.cpu import half, simd, tile

#: Of `deep_product`: k, rows of C and panels that it takes at a time (as in nbbp/tiling.py).
DEPTH, ROWS, PANELS = 128, 128, 2
#: More k than this are many, where rows lie further apart than so many numbers.
MANY, FAR = 192, 256

#: Rows of C from which on copying B pays, where it need not be turned round.
PACKED_ROWS = 12
#: B may be read in place, copied side by side panel by panel, or transposed while it is copied.
IN_PLACE, PACKED, TRANSPOSED = 0, 1, 2


def panel_width(dtype) -> int:
    """Columns of the widest panel."""
    return tile.MAX_VECTORS * simd.LANES[np.dtype(dtype)]


def scratch_size(dtype, k: int) -> int:
    """Numbers of scratch that `product` needs for k."""
    lanes = simd.LANES[np.dtype(dtype)]
    return panel_width(dtype) * ((k + lanes - 1) // lanes * lanes)


@jit()
def _pack_transposed(packed, packed_stride, b, b_stride, k, n, lanes):
    """packed[i, j] = b[j, i]: k rows of n numbers from a b of n rows of k."""
    for j in range(0, n, lanes):
        for i in range(0, k, lanes):
            tile.transpose_block(
                simd.advance(packed, i * packed_stride + j),
                packed_stride,
                simd.advance(b, j * b_stride + i),
                b_stride,
                min(n - j, lanes),
                min(k - i, lanes),
            )


@jit()
def product(
    c, c_stride, a, a_row, a_column, b, b_stride, bias, has_bias, m, n, k, floor, layout, scratch, lanes, panel
):
    """`gated_product` without a gate."""
    gated_product(
        c, c_stride, a, a_row, a_column, b, b_stride, bias, has_bias, m, n, k, floor, layout, scratch, lanes, panel,
        c, c_stride, 0,
    )  # fmt: skip


@jit()
def gated_product(
    c, c_stride, a, a_row, a_column, b, b_stride, bias, has_bias, m, n, k, floor, layout, scratch, lanes, panel,
    gate, gate_stride, has_gate,
):  # fmt: skip
    """C = max(floor, bias + A·B), but 0 where gate <= 0: what goes back through a rectifier that gave `gate`.

    c (m, n), row stride c_stride; a (m, k), strides a_row and a_column; b (k, n) with row stride b_stride, or (n, k)
    where `layout` is TRANSPOSED; bias (n,), which must be an address
    that can be read, used only if has_bias is 1; gate (m, n), row stride gate_stride, only if has_gate is 1. All are
    pointers; `scratch` holds `scratch_size` numbers unless `layout` is IN_PLACE. Writes c and scratch, which must
    overlap nothing. `lanes` and `panel` are LANES and panel_width of the dtype.
    """
    if m <= 0:
        return
    is_read_in_place = layout == IN_PLACE or (layout == PACKED and m < PACKED_ROWS)
    for j in range(0, n, panel):
        width = min(n - j, panel)
        panel_b, panel_stride = simd.advance(b, j), b_stride
        if not is_read_in_place:
            panel_b, panel_stride = scratch, (width + lanes - 1) // lanes * lanes
            if layout == TRANSPOSED:
                _pack_transposed(scratch, panel_stride, simd.advance(b, j * b_stride), b_stride, k, width, lanes)
            else:
                for i in range(k):
                    simd.copy(simd.advance(scratch, i * panel_stride), simd.advance(b, i * b_stride + j), width)
        panel_c = simd.advance(c, j)
        panel_bias = simd.advance(bias, j)
        tile.multiply_panel(
            panel_c, c_stride, a, a_row, a_column, panel_b, panel_stride, m, width, k, panel_bias, has_bias, floor,
            simd.advance(gate, j), gate_stride, has_gate,
        )  # fmt: skip


@jit()
def rounded_product(
    c, c_stride, a, a_row, a_column, b, b_stride, bias, has_bias, m, n, k, floor, layout, scratch, lanes, panel, code
):
    """`product` with B and bias rounded to the 16-bit format `code` (cpu/half.py) while they are packed, in any layout.

    `scratch` holds `scratch_size` numbers and a panel more for the bias, as float32.
    """
    if m <= 0:
        return
    for j in range(0, n, panel):
        width = min(n - j, panel)
        stride = (width + lanes - 1) // lanes * lanes
        if layout == TRANSPOSED:
            _pack_transposed(scratch, stride, simd.advance(b, j * b_stride), b_stride, k, width, lanes)
            half.round_row(scratch, scratch, k * stride, code)
        else:
            for i in range(k):
                row = simd.advance(scratch, i * stride)
                simd.copy(row, simd.advance(b, i * b_stride + j), width)
                half.round_row(row, row, stride, code)
        rounded_bias = simd.advance(scratch, k * stride)
        if has_bias:
            simd.copy(rounded_bias, simd.advance(bias, j), width)
            half.round_row(rounded_bias, rounded_bias, stride, code)
        panel_c = simd.advance(c, j)
        tile.multiply_panel(
            panel_c, c_stride, a, a_row, a_column, scratch, stride, m, width, k, rounded_bias, has_bias, floor,
            panel_c, c_stride, 0,
        )  # fmt: skip


@jit()
def deep_product(c, c_stride, a, a_stride, b, b_stride, m, n, k, no_floor, scratch, panel):
    """C = Aᵀ·B over many k: pieces of A and B are copied side by side, block by block of k, to stay in the caches.

    c (m, n), a (k, m), b (k, n) with these row strides. Takes DEPTH · (ROWS + PANELS · panel) numbers of scratch;
    `panel` and `no_floor` as `panel_width` and minus infinity. Writes c and scratch, which must overlap nothing.
    """
    packed_a = simd.advance(scratch, DEPTH * PANELS * panel)
    for left in range(0, n, PANELS * panel):
        right = min(left + PANELS * panel, n)
        for first in range(0, k, DEPTH):
            depth = min(k - first, DEPTH)
            for j in range(left, right, panel):
                packed_b = simd.advance(scratch, DEPTH * (j - left))
                for p in range(depth):
                    row = simd.advance(b, (first + p) * b_stride + j)
                    simd.copy(simd.advance(packed_b, p * panel), row, min(right - j, panel))
            for i in range(0, m, ROWS):
                height = min(m - i, ROWS)
                for p in range(depth):
                    simd.copy(simd.advance(packed_a, p * ROWS), simd.advance(a, (first + p) * a_stride + i), height)
                for j in range(left, right, panel):
                    part = simd.advance(c, i * c_stride + j)
                    tile.multiply_panel(
                        part, c_stride, packed_a, 1, ROWS, simd.advance(scratch, DEPTH * (j - left)), panel, height,
                        min(right - j, panel), depth, part, tile.GOES_ON if first > 0 else 0, no_floor, part, c_stride,
                        0,
                    )  # fmt: skip
