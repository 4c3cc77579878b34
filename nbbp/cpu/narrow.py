"""The weight gradient of a layer with few outputs, of which a register of a row would hold a lane or two.

Legend: C is m × n with n <= FEW_OUTPUTS, A is k × m, B is k × n.
"""

from nbbp.compiling import jit
from nbbp.cpu import simd, tile

#: Columns of C up to which it is quicker to compute its transpose (as in nbbp/tiling.py).
FEW_OUTPUTS = 4


@jit()
def weight_gradient(c, c_stride, a, a_stride, b, b_stride, m, n, k, no_floor, scratch, panel):
    """C = Aᵀ·B as the transpose of Bᵀ·A, whose rows fill registers.

    c (m, n), a (k, m), b (k, n) with these row strides. Takes n · panel numbers of scratch; `panel` and `no_floor` as
    gemm.panel_width and minus infinity. Writes c, which must not overlap a, b or scratch.
    """
    for first in range(0, m, panel):
        width = min(m - first, panel)
        part = simd.advance(a, first)
        tile.multiply_panel(
            scratch, panel, b, 1, b_stride, part, a_stride, n, width, k, b, 0, no_floor, scratch, panel, 0
        )
        for j in range(n):
            row = simd.advance(scratch, j * panel)
            for i in range(width):
                c[(first + i) * c_stride + j] = row[i]
