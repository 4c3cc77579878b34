"""The register tile: the innermost loop of every dense product.

Legend: a panel is m rows by up to ``MAX_VECTORS`` registers of columns; it is cut into tiles of ``rows`` × ``vectors``
registers that hold their sums from the first to the last k, so that C is written once (once for every block of k, where
there are blocks).

``C[i, j] = max(floor, bias[j] + sum_k A[i, k] · B[k, j])``: per k, one load of each vector of B's row, one broadcast of
each A[i, k], ``rows · vectors`` fused multiply-adds (the register blocking of Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", ACM TOMS 34 (2008), section 6; here the compiler's own registers instead of
assembly).
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nbbp.cpu import simd

#: Vectors of columns in the widest tile; two where there are only 16 registers.
MAX_VECTORS = 4 if simd.VECTOR_REGISTERS >= 32 else 2
#: Sums in flight that hide the latency of a fused multiply-add (4 cycles × 2 per cycle).
_SUMS_IN_FLIGHT = 8


def max_rows(vectors: int) -> int:
    """Most rows of a tile of `vectors` columns of registers that leave room for B's vectors and the broadcast."""
    return min(14, (simd.VECTOR_REGISTERS - vectors - 2) // vectors)


class _Panel:
    """The operands of one panel while its LLVM IR is written."""

    def __init__(self, builder, vector, operands, mask, goes_on):
        self.builder, self.vector, self.mask, self.goes_on = builder, vector, mask, goes_on
        self.c, self.c_stride, self.a, self.a_row, self.a_column = operands[:5]
        self.b, self.b_stride, self.k = operands[5:8]
        if not goes_on:
            self.bias, self.has_bias, self.floor, self.gate, self.gate_stride, self.has_gate = operands[8:]

    def first_sums(self, first_row, rows, vectors):
        """The registers that the sums start from: what C holds where they go on, or the bias, or zeros."""
        if not self.goes_on:
            return [self.row_of_bias(vectors)] * rows
        at = [self.builder.add(first_row, simd.INT64(i)) for i in range(rows)]
        return [self.row_at(self.builder.gep(self.c, [self.builder.mul(i, self.c_stride)]), vectors) for i in at]

    def row_of_bias(self, vectors):
        """The registers of the bias, or zeros."""
        builder, lanes = self.builder, self.vector.count
        whole = simd.splat(builder, self.has_bias, lanes)
        last = whole if self.mask is None else builder.and_(whole, self.mask)
        masks = [whole] * (vectors - 1) + [last]
        starts = [builder.gep(self.bias, [simd.INT64(j * lanes)]) for j in range(vectors)]
        return [simd.load_vector(builder, s, self.vector, m) for s, m in zip(starts, masks, strict=True)]

    def row_at(self, start, vectors):
        """The registers of a row of B or C; the last of them masked."""
        builder, lanes = self.builder, self.vector.count
        starts = [builder.gep(start, [simd.INT64(j * lanes)]) for j in range(vectors)]
        masks = [None] * (vectors - 1) + [self.mask]
        return [simd.load_vector(builder, s, self.vector, m) for s, m in zip(starts, masks, strict=True)]

    def accumulate(self, sums, rows_of_a, a_offset, b):
        """sums[i][j] + A[i, k] · B[k, j] for one k."""
        builder, vectors = self.builder, len(sums[0])
        b_row = self.row_at(b, vectors)
        result = []
        for row, start in zip(sums, rows_of_a, strict=True):
            a = simd.splat(builder, builder.load(builder.gep(start, [a_offset])), self.vector.count)
            result.append([simd.fused_multiply_add(builder, a, x, s) for x, s in zip(b_row, row, strict=True)])
        return result

    def loop_over_k(self, sums, first, stop, rows_of_a, unroll):
        """Run k from `first` to below `stop` in strides of `unroll` partial sums; the sums and where k stands."""
        builder, rows, vectors = self.builder, len(sums), len(sums[0])
        before = builder.block
        head, body, after = (builder.append_basic_block(n) for n in ("k_head", "k_body", "k_after"))
        builder.branch(head)

        builder.position_at_end(head)
        k = builder.phi(simd.INT64, "k")
        k.add_incoming(first, before)
        zero = ir.Constant(self.vector, [0.0] * self.vector.count)
        parts = []
        for part in range(unroll):
            block = [[builder.phi(self.vector) for _ in range(vectors)] for _ in range(rows)]
            for phi_row, sum_row in zip(block, sums, strict=True):
                for phi, start in zip(phi_row, sum_row, strict=True):
                    phi.add_incoming(start if part == 0 else zero, before)
            parts.append(block)
        beyond = builder.add(k, simd.INT64(unroll))
        builder.cbranch(builder.icmp_signed("<=", beyond, stop), body, after)

        builder.position_at_end(body)
        for part, block in enumerate(parts):
            at = builder.add(k, simd.INT64(part))
            b = builder.gep(self.b, [builder.mul(at, self.b_stride)])
            new = self.accumulate(block, rows_of_a, builder.mul(at, self.a_column), b)
            for phi_row, sum_row in zip(block, new, strict=True):
                for phi, value in zip(phi_row, sum_row, strict=True):
                    phi.add_incoming(value, builder.block)
        k.add_incoming(beyond, builder.block)
        builder.branch(head)

        builder.position_at_end(after)
        total = parts[0]
        for block in parts[1:]:
            total = [[builder.fadd(x, y) for x, y in zip(p, q, strict=True)] for p, q in zip(total, block, strict=True)]
        return total, k

    def tile(self, first_row, rows, vectors):
        """Write rows × vectors of C from `first_row` on."""
        builder = self.builder
        a = builder.gep(self.a, [builder.mul(first_row, self.a_row)])
        rows_of_a = [builder.gep(a, [builder.mul(self.a_row, simd.INT64(i))]) for i in range(rows)]
        sums = self.first_sums(first_row, rows, vectors)
        k = simd.INT64(0)
        unroll = max(1, _SUMS_IN_FLIGHT // (rows * vectors))
        if unroll > 1:
            sums, k = self.loop_over_k(sums, k, self.k, rows_of_a, unroll)
        sums, _ = self.loop_over_k(sums, k, self.k, rows_of_a, 1)
        if self.goes_on:
            self.store(first_row, sums, is_floored=False, is_gated=False)
            return
        with builder.if_else(self.has_gate) as (gated, plain):
            with gated:
                self.store(first_row, sums, is_floored=False, is_gated=True)
            with plain:
                self.store(first_row, sums, is_floored=True, is_gated=False)

    def store(self, first_row, sums, is_floored, is_gated):
        """Write the sums of a tile; no smaller than the floor, or 0 where a gate is closed."""
        builder, lanes = self.builder, self.vector.count
        zero = ir.Constant(self.vector, [0.0] * lanes)
        for i, row in enumerate(sums):
            at = builder.add(first_row, simd.INT64(i))
            c = builder.gep(self.c, [builder.mul(at, self.c_stride)])
            gate = builder.gep(self.gate, [builder.mul(at, self.gate_stride)]) if is_gated else None
            for j, value in enumerate(row):
                mask, here = self.mask if j == len(row) - 1 else None, simd.INT64(j * lanes)
                if is_floored:  # "floor if value < floor" keeps NaN, which a plain maximum would hide
                    floor = simd.splat(builder, self.floor, lanes)
                    value = builder.select(builder.fcmp_ordered("<", value, floor), floor, value)
                if is_gated:
                    opens = simd.load_vector(builder, builder.gep(gate, [here]), self.vector, mask)
                    value = builder.select(builder.fcmp_ordered("<=", opens, zero), zero, value)
                simd.store_vector(builder, value, builder.gep(c, [here]), mask)

    def all_tiles(self, m, vectors, done):
        """Cut m rows into tiles as equal as can be, and go to `done`."""
        builder, most = self.builder, max_rows(vectors)
        n_tiles = builder.udiv(builder.add(m, simd.INT64(most - 1)), simd.INT64(most))
        height = builder.udiv(builder.sub(builder.add(m, n_tiles), simd.INT64(1)), n_tiles)
        before = builder.block
        head, body = builder.append_basic_block("rows_head"), builder.append_basic_block("rows_body")
        builder.branch(head)
        builder.position_at_end(head)
        first_row = builder.phi(simd.INT64, "first_row")
        first_row.add_incoming(simd.INT64(0), before)
        builder.cbranch(builder.icmp_signed("<", first_row, m), body, done)
        builder.position_at_end(body)
        left = builder.sub(m, first_row)
        height_here = builder.select(builder.icmp_signed("<", left, height), left, height)
        cases = {rows: builder.append_basic_block(f"rows_{rows}x{vectors}") for rows in range(1, most + 1)}
        switch = builder.switch(height_here, cases[most])
        for rows, block in cases.items():
            switch.add_case(simd.INT64(rows), block)
            builder.position_at_end(block)
            self.tile(first_row, rows, vectors)
            first_row.add_incoming(builder.add(first_row, simd.INT64(rows)), builder.block)
            builder.branch(head)


@intrinsic
def multiply_panel(
    typing_context, c, c_stride, a, a_row, a_column, b, b_stride, m, n, k, bias, has_bias, floor, gate, gate_stride,
    has_gate,
):  # fmt: skip
    """C = max(floor, bias + A·B) for one panel of at most ``MAX_VECTORS`` registers of columns.

    Where has_gate is 1 there is no floor: C = bias + A·B, but 0 where gate <= 0.
    c (m, n) with row stride c_stride; a (m, k) with any strides; b (k, n) with row stride b_stride, columns contiguous;
    bias (n,), which must be an address that can be read, used only if has_bias is 1.
    m >= 1, 1 <= n <= MAX_VECTORS·lanes, k >= 0. Strides count numbers, not bytes. `floor` is -inf for none, 0 for a
    rectifier; gate (m, n), row stride gate_stride. Writes c alone, which must not overlap a, b or gate.
    """
    number = types.int64
    signature = types.void(
        c, number, a, number, number, b, number, number, number, number, bias, number, floor, gate, number, number
    )

    def codegen(context, builder, signature, arguments):
        c, c_stride, a, a_row, a_column, b, b_stride, m, n, k, bias, has_bias, floor = arguments[:13]
        gate, gate_stride, has_gate = arguments[13:]
        has_bias, has_gate = (builder.icmp_signed("!=", flag, simd.INT64(0)) for flag in (has_bias, has_gate))
        operands = (c, c_stride, a, a_row, a_column, b, b_stride, k, bias, has_bias, floor, gate, gate_stride, has_gate)
        _cut(builder, simd.vector_type(signature.args[0].dtype), m, n, operands, goes_on=False)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def continue_panel(typing_context, c, c_stride, a, a_row, a_column, b, b_stride, m, n, k):
    """C += A·B, otherwise as `multiply_panel`."""
    number = types.int64

    def codegen(context, builder, signature, arguments):
        c, c_stride, a, a_row, a_column, b, b_stride, m, n, k = arguments
        operands = (c, c_stride, a, a_row, a_column, b, b_stride, k)
        _cut(builder, simd.vector_type(signature.args[0].dtype), m, n, operands, goes_on=True)
        return context.get_dummy_value()

    return types.void(c, number, a, number, number, b, number, number, number, number), codegen


def _cut(builder, vector, m, n, operands, goes_on):
    """Cut a panel of m × n into tiles: as many registers wide as it is."""
    lanes = simd.INT64(vector.count)
    n_vectors = builder.udiv(builder.sub(builder.add(n, lanes), simd.INT64(1)), lanes)
    in_last = builder.sub(n, builder.mul(builder.sub(n_vectors, simd.INT64(1)), lanes))
    mask = simd.lane_mask(builder, in_last, vector.count)
    done = builder.append_basic_block("panel_done")
    is_full = builder.icmp_signed("==", in_last, lanes)
    widths = [(vectors, masked) for vectors in range(1, MAX_VECTORS + 1) for masked in _mask_variants()]
    for vectors, masked in widths:
        here, following = builder.append_basic_block("width"), builder.append_basic_block("next_width")
        fits = builder.icmp_signed("==", n_vectors, simd.INT64(vectors))
        fits = fits if masked else builder.and_(fits, is_full)
        builder.cbranch(fits, here, following)
        builder.position_at_end(here)
        _Panel(builder, vector, operands, mask if masked else None, goes_on).all_tiles(m, vectors, done)
        builder.position_at_end(following)
    builder.branch(done)
    builder.position_at_end(done)


def _mask_variants() -> tuple[bool, ...]:
    """Where masks cost something, full registers get a tile of their own, tried first."""
    return (True,) if simd.HAS_FREE_MASKS else (False, True)


@intrinsic
def transpose_block(typing_context, out, out_stride, x, x_stride, n_rows, n_columns):
    """out[j, i] = x[i, j] for one square block of `lanes` × `lanes`; what lies outside n_rows × n_columns comes as
    zero.

    Reads x[0:n_rows, 0:n_columns]; writes out[0:min(n_columns, lanes), 0:lanes], which must not overlap x. Butterfly:
    log2(lanes) rounds exchange ever smaller halves between pairs of registers.
    """
    number = types.int64

    def codegen(context, builder, signature, arguments):
        out, out_stride, x, x_stride, n_rows, n_columns = arguments
        vector = simd.vector_type(signature.args[0].dtype)
        lanes = vector.count
        column_mask = simd.lane_mask(builder, n_columns, lanes)
        nothing = simd.lane_mask(builder, simd.INT64(0), lanes)
        rows = []
        for i in range(lanes):
            exists = builder.icmp_signed(">", n_rows, simd.INT64(i))
            start = builder.gep(x, [builder.mul(builder.select(exists, simd.INT64(i), simd.INT64(0)), x_stride)])
            mask = builder.select(exists, column_mask, nothing)
            rows.append(simd.load_vector(builder, start, vector, mask))
        distance = lanes // 2
        while distance:
            rows = _exchange(builder, rows, distance)
            distance //= 2
        for j, row in enumerate(rows):
            with builder.if_then(builder.icmp_signed(">", n_columns, simd.INT64(j))):
                simd.store_vector(builder, row, builder.gep(out, [builder.mul(out_stride, simd.INT64(j))]))
        return context.get_dummy_value()

    return types.void(out, number, x, number, number, number), codegen


def _exchange(builder, rows, distance):
    """One round of the butterfly: swap the off-diagonal `distance` × `distance` blocks of each pair of rows."""
    result = list(rows)
    for i in range(len(rows)):
        if not i & distance:
            result[i], result[i + distance] = exchanged_halves(builder, rows[i], rows[i + distance], distance)
    return result


def exchanged_halves(builder, x, y, distance):
    """x with y[l - distance] in the lanes l that have the bit `distance`, y with x[l + distance] in those that have
    not.
    """
    lanes = x.type.count
    low = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
    high = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
    index = ir.VectorType(simd.INT32, lanes)
    return [builder.shuffle_vector(x, y, ir.Constant(index, places)) for places in (low, high)]
