"""Explicit SIMD for normalization layers whose statistics are those of a row: layer norm and RMS norm.

Legend: matrices are n_rows × n with a row stride in numbers; `kept` holds what a row's backward pass needs again: its
mean and 1 / deviation, or 1 / (root of its mean square) alone. ``_TOGETHER`` rows are taken at a time, one register of
columns of each after the other and then, masked, what is left: so one load of gamma and beta, one reduction over lanes
and one root serve them all, and while a row waits for its sum there is other work. Where fewer rows are left, the last
one stands in for those that are missing: it is computed more than once and written with the same numbers.

How sums are rounded: nbbp/cpu/normalization_simd.py.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nbbp.cpu import simd
from nbbp.cpu.normalization_simd import (
    constant,
    cut,
    inverse_of,
    inverse_root,
    is_set,
    joined,
    loaded,
    minus,
    plus,
    replace,
    shift_and_variance,
    sums,
    times,
    times_plus,
)
from nbbp.cpu.simd import INT32, INT64

#: Rows that are taken at a time, a power of two that no vector has fewer lanes than. One by one, a layer norm of
#: (128, 64) takes half as long again, waiting for its sums over lanes; by eight the registers run out.
_TOGETHER = 2 if simd.VECTOR_BYTES == 16 else 4


class _Rows:
    """The columns of a few rows, while the LLVM IR of their passes is written; a list has an entry for each row."""

    def __init__(self, builder, vector, n):
        self.builder, self.vector, self.n = builder, vector, n
        self.lanes = INT64(vector.count)
        self.n_whole = builder.udiv(n, self.lanes)
        self.whole = builder.mul(self.n_whole, self.lanes)
        self.mask = simd.lane_mask(builder, builder.sub(n, self.whole), vector.count)
        self.has_rest = builder.icmp_signed("<", self.whole, n)

    def at(self, r, n_rows):
        """Take row r and those behind it."""
        last = self.builder.sub(n_rows, INT64(1))
        rows = [self.builder.add(r, INT64(k)) for k in range(_TOGETHER)]
        self.rows = [self.builder.select(self.builder.icmp_signed("<", i, last), i, last) for i in rows]

    def starts(self, matrix, stride):
        """Where these rows of a matrix start."""
        return [self.builder.gep(matrix, [self.builder.mul(stride, r)]) for r in self.rows]

    def load(self, starts, at, mask):
        """A register of each row; lanes outside the mask come as zero."""
        return [simd.load_vector(self.builder, self.builder.gep(s, [at]), self.vector, mask) for s in starts]

    def load_if(self, exists, start, at, mask, otherwise):
        """The register at a place of its own where `exists`, else the number `otherwise`."""
        exists = simd.splat(self.builder, exists, self.vector.count)
        mask = exists if mask is None else self.builder.and_(exists, mask)
        value = simd.load_vector(self.builder, self.builder.gep(start, [at]), self.vector, mask)
        return self.builder.select(exists, value, constant(self.vector, otherwise))

    def store(self, values, starts, at, mask):
        for value, start in zip(values, starts, strict=True):
            simd.store_vector(self.builder, value, self.builder.gep(start, [at]), mask)

    def splat(self, number):
        return simd.splat(self.builder, number, self.vector.count)

    def kept(self, starts, place):
        """The numbers kept at `place` of each row, in all lanes."""
        return [self.splat(self.builder.load(self.builder.gep(s, [INT64(place)]))) for s in starts]

    def keep(self, register, starts, place):
        """Write the number of each row, from a register of `sums`."""
        for lane, start in zip(self._lanes_of_rows(), starts, strict=True):
            number = self.builder.extract_element(register, INT32(lane))
            self.builder.store(number, self.builder.gep(start, [INT64(place)]))

    def spread(self, register):
        """The number of each row in all lanes, from a register of `sums`."""
        index = ir.VectorType(INT32, self.vector.count)
        lanes = [ir.Constant(index, [lane] * self.vector.count) for lane in self._lanes_of_rows()]
        return [self.builder.shuffle_vector(register, register, lane) for lane in lanes]

    def sums(self, n_sums, add):
        """`n_sums` sums over each row's columns, those of all rows in one register.

        add(at, mask, lists) gives the `n_sums` lists with the numbers from column `at` on added. Lanes outside the mask
        must add nothing.
        """
        builder = self.builder

        def add_all(at, mask, values):
            return joined(add(at, mask, cut(values, n_sums)))

        zeros = [constant(self.vector, 0.0)] * (n_sums * _TOGETHER)
        found = sums(
            builder, self.n_whole, 1, zeros, lambda i, values: add_all(builder.mul(i, self.lanes), None, values)
        )
        slots = [cgutils.alloca_once_value(builder, value) for value in found]
        with builder.if_then(self.has_rest):
            replace(builder, slots, add_all(self.whole, self.mask, loaded(builder, slots)))
        return [self._over_lanes(values) for values in cut(loaded(builder, slots), n_sums)]

    def _over_lanes(self, registers):
        """One register whose lanes hold the sum over the lanes of a row's register, see `_lanes_of_rows`.

        Halves of two registers are put side by side and added, until one is left; then its halves are exchanged.
        """
        builder, lanes = self.builder, self.vector.count
        index, distance = ir.VectorType(INT32, lanes), lanes // 2
        while len(registers) > 1:
            low = [i for i in range(2 * lanes) if not i & distance]
            high = [i + distance for i in low]
            pairs = zip(registers[::2], registers[1::2], strict=True)
            registers = [
                builder.fadd(*(builder.shuffle_vector(a, b, ir.Constant(index, half)) for half in (low, high)))
                for a, b in pairs
            ]
            distance //= 2
        while distance:
            across = ir.Constant(index, [i ^ distance for i in range(lanes)])
            registers = [builder.fadd(r, builder.shuffle_vector(r, r, across)) for r in registers]
            distance //= 2
        return registers[0]

    def _lanes_of_rows(self):
        """A lane of what `_over_lanes` gives, for each row: it has as many neighbouring lanes as the others."""
        return [k * self.vector.count // _TOGETHER for k in range(_TOGETHER)]

    def each(self, write):
        """write(at, mask) for every register of columns. It must load from all rows before it stores to any."""
        with cgutils.for_range_slice(self.builder, INT64(0), self.whole, self.lanes) as (at, _):
            write(at, None)
        with self.builder.if_then(self.has_rest):
            write(self.whole, self.mask)


def _each_few_rows(builder, n_rows):
    return cgutils.for_range_slice(builder, INT64(0), n_rows, INT64(_TOGETHER))


def _moments(rows, x, inverse_n):
    """The means and the variances of rows, each in one register."""
    builder = rows.builder
    total = rows.sums(1, lambda at, mask, lists: [plus(builder, lists[0], rows.load(x, at, mask))])[0]
    first = builder.fmul(total, inverse_n)
    firsts = rows.spread(first)

    def add(at, mask, lists):
        rest = minus(builder, rows.load(x, at, mask), firsts)
        if mask is not None:
            rest = [builder.select(mask, value, constant(rows.vector, 0.0)) for value in rest]
        squares = times_plus(builder, rest, rest, lists[0])
        return [squares, plus(builder, lists[1], rest)]

    shift, variance = shift_and_variance(builder, *rows.sums(2, add), inverse_n)
    return builder.fadd(first, shift), variance


@intrinsic
def normalize_rows(typing_context, y, y_stride, x, x_stride, kept, kept_stride, n_rows, n, gamma, beta, has_scale, eps):
    """y[r] = (x[r] - m) / sqrt(v + eps) · gamma + beta, without gamma and beta if has_scale is 0; m, v mean and
    variance of x[r]; kept[r] = m, 1 / sqrt(v + eps).

    y, x (n_rows, n), kept (n_rows, 2), gamma and beta (n,). Writes y and kept, which must overlap nothing.
    """

    def codegen(context, builder, signature, arguments):
        y, y_stride, x, x_stride, kept, kept_stride, n_rows, n, gamma, beta, has_scale, eps = arguments
        rows = _Rows(builder, simd.vector_type(signature.args[0].dtype), n)
        inverse_n, eps = inverse_of(builder, n, rows.vector), rows.splat(eps)
        has_scale = is_set(builder, has_scale)
        with _each_few_rows(builder, n_rows) as (r, _):
            rows.at(r, n_rows)
            x_rows, y_rows, kept_rows = (
                rows.starts(x, x_stride),
                rows.starts(y, y_stride),
                rows.starts(kept, kept_stride),
            )
            mean, variance = _moments(rows, x_rows, inverse_n)
            inverse = inverse_root(builder, variance, eps)
            rows.keep(mean, kept_rows, 0)
            rows.keep(inverse, kept_rows, 1)
            means, inverses = rows.spread(mean), rows.spread(inverse)

            def write(at, mask):
                values = times(builder, minus(builder, rows.load(x_rows, at, mask), means), inverses)
                scale = [rows.load_if(has_scale, gamma, at, mask, 1.0)] * _TOGETHER
                shift = [rows.load_if(has_scale, beta, at, mask, 0.0)] * _TOGETHER
                rows.store(times_plus(builder, values, scale, shift), y_rows, at, mask)

            rows.each(write)
        return context.get_dummy_value()

    number = types.int64
    return types.void(y, number, x, number, kept, number, number, number, gamma, beta, number, eps), codegen


@intrinsic
def scale_rows(typing_context, y, y_stride, x, x_stride, kept, kept_stride, n_rows, n, gamma, has_scale, eps):
    """y[r] = x[r] / sqrt(mean x[r]² + eps) · gamma, without gamma if has_scale is 0; kept[r] = 1 / the root.

    y, x (n_rows, n), kept (n_rows, 1), gamma (n,). Writes y and kept, which must overlap nothing.
    """

    def codegen(context, builder, signature, arguments):
        y, y_stride, x, x_stride, kept, kept_stride, n_rows, n, gamma, has_scale, eps = arguments
        rows = _Rows(builder, simd.vector_type(signature.args[0].dtype), n)
        inverse_n, eps = inverse_of(builder, n, rows.vector), rows.splat(eps)
        has_scale = is_set(builder, has_scale)
        with _each_few_rows(builder, n_rows) as (r, _):
            rows.at(r, n_rows)
            x_rows, y_rows = rows.starts(x, x_stride), rows.starts(y, y_stride)

            def add(at, mask, lists):
                values = rows.load(x_rows, at, mask)
                return [times_plus(builder, values, values, lists[0])]

            inverse = inverse_root(builder, builder.fmul(rows.sums(1, add)[0], inverse_n), eps)
            rows.keep(inverse, rows.starts(kept, kept_stride), 0)
            inverses = rows.spread(inverse)

            def write(at, mask):
                scale = [rows.load_if(has_scale, gamma, at, mask, 1.0)] * _TOGETHER
                values = times(builder, rows.load(x_rows, at, mask), inverses)
                rows.store(times(builder, values, scale), y_rows, at, mask)

            rows.each(write)
        return context.get_dummy_value()

    number = types.int64
    return types.void(y, number, x, number, kept, number, number, number, gamma, number, eps), codegen


def _row_derivatives(builder, signature, arguments, is_centered):
    """The code of the two intrinsics below."""
    d, d_stride, x, x_stride, kept, kept_stride, n_rows, n, gamma, has_scale = arguments
    rows = _Rows(builder, simd.vector_type(signature.args[0].dtype), n)
    inverse_n = inverse_of(builder, n, rows.vector)
    has_scale = is_set(builder, has_scale)
    with _each_few_rows(builder, n_rows) as (r, _):
        rows.at(r, n_rows)
        x_rows, d_rows, kept_rows = rows.starts(x, x_stride), rows.starts(d, d_stride), rows.starts(kept, kept_stride)
        means = rows.kept(kept_rows, 0) if is_centered else None
        inverses = rows.kept(kept_rows, 1 if is_centered else 0)

        def values(at, mask):
            found = rows.load(x_rows, at, mask)
            return minus(builder, found, means) if is_centered else found

        def slopes(at, mask):
            scale = [rows.load_if(has_scale, gamma, at, mask, 1.0)] * _TOGETHER
            return times(builder, rows.load(d_rows, at, mask), scale)

        def add(at, mask, lists):
            of_rows = slopes(at, mask)
            inner = times_plus(builder, of_rows, values(at, mask), lists[0])
            return [inner, plus(builder, lists[1], of_rows)] if is_centered else [inner]

        found = [rows.spread(builder.fmul(total, inverse_n)) for total in rows.sums(2 if is_centered else 1, add)]
        cubes = times(builder, inverses, times(builder, inverses, inverses))
        bends = [builder.fneg(bend) for bend in times(builder, cubes, found[0])]

        def write(at, mask):
            of_rows = slopes(at, mask)
            if is_centered:
                of_rows = minus(builder, of_rows, found[1])
            bent = times(builder, values(at, mask), bends)
            rows.store(times_plus(builder, of_rows, inverses, bent), d_rows, at, mask)

        rows.each(write)


@intrinsic
def normalized_row_derivatives(
    typing_context, d, d_stride, x, x_stride, kept, kept_stride, n_rows, n, gamma, has_scale
):
    """The derivative of `normalize_rows`, in place of the output gradient d; g = d · gamma, x^ = (x - m) / deviation:

        d[r] = (g - mean g - x^ · mean(g · x^)) / deviation

    d, x (n_rows, n), kept (n_rows, 2), gamma (n,). Writes d, which must overlap nothing.
    """

    def codegen(context, builder, signature, arguments):
        _row_derivatives(builder, signature, arguments, is_centered=True)
        return context.get_dummy_value()

    number = types.int64
    return types.void(d, number, x, number, kept, number, number, number, gamma, number), codegen


@intrinsic
def scaled_row_derivatives(typing_context, d, d_stride, x, x_stride, kept, kept_stride, n_rows, n, gamma, has_scale):
    """The derivative of `scale_rows`, likewise; x^ = x / root: d[r] = (g - x^ · mean(g · x^)) / root."""

    def codegen(context, builder, signature, arguments):
        _row_derivatives(builder, signature, arguments, is_centered=False)
        return context.get_dummy_value()

    number = types.int64
    return types.void(d, number, x, number, kept, number, number, number, gamma, number), codegen
