"""Dense products on one core: C = max(floor, bias + A·B), with B plain or transposed.

Legend: C is m × n, A is m × k with any strides, B is k × n. A panel is ``panel_width`` columns of C; its k × panel of B
is packed side by side where B is transposed or its rows lie so far apart that they fight for the same cache sets.
"""

import numpy as np

from nbbp.compiling import jit
from nbbp.cpu import half, simd, tile

#: Rows of C from which on copying B pays, where it need not be turned round.
PACKED_ROWS = 12
#: Rows of B that `flat_product` takes at a time: runs that a processor reads ahead side by side.
FLAT_DEPTH = 16
#: B may be read in place, copied side by side panel by panel, transposed while it is copied, or read in place from end
#: to end.
IN_PLACE, PACKED, TRANSPOSED, FLAT = 0, 1, 2, 3


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
def pack_side_by_side(packed, packed_stride, b, b_stride, k, n):
    """packed[i, j] = b[i, j]: k rows of n numbers."""
    for i in range(k):
        simd.copy(simd.advance(packed, i * packed_stride), simd.advance(b, i * b_stride), n)


@jit()
def gated_product(
    c, c_stride, a, a_row, a_column, b, b_stride, bias, has_bias, m, n, k, floor, layout, scratch, lanes, panel,
    gate, gate_stride, has_gate,
):  # fmt: skip
    """C = max(floor, bias + A·B); with a gate bias + A·B, but 0 where gate <= 0: back through a rectifier that gave it.

    c (m, n), row stride c_stride; a (m, k), strides a_row and a_column; b (k, n) with row stride b_stride, or (n, k)
    where `layout` is TRANSPOSED; bias (n,), which must be an address that can be read, used only if has_bias is 1; gate
    (m, n), row stride gate_stride, only if has_gate is 1. All are pointers; `layout` is not FLAT; `scratch` holds
    `scratch_size` numbers unless it is IN_PLACE. Writes c and scratch, which must overlap nothing. `lanes` and `panel`
    are LANES and panel_width of the dtype.
    """
    if m <= 0:
        return
    is_copied = layout == PACKED and m >= PACKED_ROWS
    for j in range(0, n, panel):
        width = min(n - j, panel)
        panel_b, panel_stride = simd.advance(b, j), b_stride
        if layout == TRANSPOSED or is_copied:
            panel_b, panel_stride = scratch, (width + lanes - 1) // lanes * lanes
            if is_copied:
                pack_side_by_side(scratch, panel_stride, simd.advance(b, j), b_stride, k, width)
            else:
                _pack_transposed(scratch, panel_stride, simd.advance(b, j * b_stride), b_stride, k, width, lanes)
        tile.multiply_panel(
            simd.advance(c, j), c_stride, a, a_row, a_column, panel_b, panel_stride, m, width, k,
            simd.advance(bias, j), has_bias, floor, simd.advance(gate, j), gate_stride, has_gate,
        )  # fmt: skip


@jit()
def flat_product(c, c_stride, a, a_stride, b, b_stride, bias, has_bias, m, n, k, floor, panel):
    """C = max(floor, bias + A·B) for few rows m and a B that no cache holds: FLAT_DEPTH of its rows at a time.

    So memory is read in a few long runs; panel by panel, each row of B would be a run of its own. Shapes and strides as
    in `gated_product`, A's rows without gaps. Writes c, which must overlap nothing.
    """
    lowest = type(floor)(-np.inf)
    for first in range(0, k, FLAT_DEPTH):
        depth, of_a = min(k - first, FLAT_DEPTH), simd.advance(a, first)
        for j in range(0, n, panel):
            width, of_b, of_c = min(n - j, panel), simd.advance(b, first * b_stride + j), simd.advance(c, j)
            if first == 0:
                tile.multiply_panel(
                    of_c, c_stride, of_a, a_stride, 1, of_b, b_stride, m, width, depth, simd.advance(bias, j), has_bias,
                    lowest, of_c, c_stride, 0,
                )  # fmt: skip
            else:
                tile.continue_panel(of_c, c_stride, of_a, a_stride, 1, of_b, b_stride, m, width, depth)
    if floor > lowest:
        for i in range(m):
            row = simd.advance(c, i * c_stride)
            for j in range(n):
                row[j] = floor if row[j] < floor else row[j]


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
