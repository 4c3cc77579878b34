"""Products that would leave registers empty: forward and weight gradient of few outputs, input gradient of few rows.

Legend: C is m × n, A and B as each says; `lanes` numbers fill a register.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nbbp.compiling import jit
from nbbp.cpu import simd, tile

#: Columns of C up to which it is quicker to compute the transpose of a weight gradient (as in nbbp/tiling.py).
FEW_OUTPUTS = 4
#: Rows of a batch up to which it is quicker to read a weight row by row than to turn it round.
FEW_ROWS = 4


@jit()
def turn_round(c, c_stride, x, x_stride, m, n):
    """c[i, j] = x[j, i], c (m, n): the weight gradient of few outputs, from its transpose. Writes c."""
    for j in range(n):
        row = simd.advance(x, j * x_stride)
        for i in range(m):
            c[i * c_stride + j] = row[i]


@jit()
def forward(c, c_stride, a, a_stride, b, b_stride, bias, has_bias, m, n, k, floor, free, lanes):
    """C = max(floor, bias + A·B) for few columns n: scalar products of the rows of A with the columns of B.

    c (m, n), a (m, k), b (k, n), with these row strides; bias (n,) if has_bias is 1. Writes c, and lanes + n·k numbers
    of scratch at `free`, none of which may overlap anything.
    """
    columns = simd.advance(free, lanes)
    for i in range(k):
        for j in range(n):
            columns[j * k + i] = b[i * b_stride + j]
    for first in range(0, m, lanes):
        n_rows = min(lanes, m - first)
        for j in range(n):
            start, column = bias[j] if has_bias else type(floor)(0), simd.advance(c, first * c_stride + j)
            rows = simd.advance(a, first * a_stride)
            dot_rows(free, rows, a_stride, simd.advance(columns, j * k), n_rows, k, start, floor)
            for r in range(n_rows):
                column[r * c_stride] = free[r]


@jit()
def input_gradient(c, c_stride, a, a_stride, b, b_stride, m, n, k, gate, gate_stride, has_gate, lanes):
    """C = A·Bᵀ for m <= FEW_ROWS, but 0 where gate <= 0: scalar products of rows, without turning B round.

    c (m, n), a (m, k), b (n, k), gate (m, n) if has_gate is 1, with these row strides. Writes c, and up to the end of
    the register behind each of its rows, which must not overlap anything.
    """
    nothing, lowest = type(a[0])(0), type(a[0])(-np.inf)
    for first in range(0, n, lanes):
        rows, n_rows = simd.advance(b, first * b_stride), min(lanes, n - first)
        for r in range(m):
            out, x = simd.advance(c, r * c_stride + first), simd.advance(a, r * a_stride)
            dot_rows(out, rows, b_stride, x, n_rows, k, nothing, lowest)
    if has_gate:
        for r in range(m):
            y, opens = simd.advance(c, r * c_stride), simd.advance(gate, r * gate_stride)
            zero = type(opens[0])(0)
            for j in range(n):
                y[j] = zero if opens[j] <= zero else y[j]


@intrinsic
def dot_rows(typing_context, out, a, a_stride, b, n_rows, k, start, floor):
    """out[i] = max(floor, start + <a[i, :], b>) for as many rows i as a register has lanes; from n_rows on the last one
    again.

    a (n_rows, k) with row stride a_stride, n_rows >= 1, b (k,), out (lanes,). The sums of all rows are added up in one
    tree: in each round, half of the registers take over halves of the others'.
    """
    number = types.int64

    def codegen(context, builder, signature, arguments):
        out, a, a_stride, b, n_rows, k, start, floor = arguments
        vector = simd.vector_type(signature.args[0].dtype)
        lanes, last = vector.count, builder.sub(n_rows, simd.INT64(1))
        rows = []
        for i in range(lanes):
            exists = builder.icmp_signed("<", simd.INT64(i), n_rows)
            rows.append(builder.gep(a, [builder.mul(builder.select(exists, simd.INT64(i), last), a_stride)]))
        zeros = ir.Constant(vector, [0.0] * lanes)
        sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(lanes)]
        with cgutils.for_range_slice(builder, simd.INT64(0), k, simd.INT64(lanes)) as (index, _):
            mask = simd.lane_mask(builder, builder.sub(k, index), lanes)
            of_b = simd.load_vector(builder, builder.gep(b, [index]), vector, mask)
            for row, total in zip(rows, sums, strict=True):
                of_a = simd.load_vector(builder, builder.gep(row, [index]), vector, mask)
                builder.store(simd.fused_multiply_add(builder, of_a, of_b, builder.load(total)), total)
        totals = [builder.load(total) for total in sums]
        while len(totals) > 1:
            half = len(totals) // 2
            pairs = [tile.exchanged_halves(builder, totals[i], totals[i + half], half) for i in range(half)]
            totals = [builder.fadd(*pair) for pair in pairs]
        start, floor = (simd.splat(builder, each, lanes) for each in (start, floor))
        value = builder.fadd(totals[0], start)
        simd.store_vector(builder, builder.select(builder.fcmp_ordered("<", value, floor), floor, value), out)
        return context.get_dummy_value()

    return types.void(out, a, number, b, number, number, start, floor), codegen
