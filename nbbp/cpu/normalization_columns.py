"""Explicit SIMD for normalization along columns: the statistics of a column over all rows, and passes that use them.

Legend: matrices are n_rows × n with a row stride in numbers. A group is up to ``_WIDE`` registers of columns, whose
statistics stay in registers from the first row to the last. Columns from n on are neither read nor written: they may be
another thread's. How sums are rounded: nbbp/cpu/normalization_simd.py.

Plain loops over typed pointers, vectorized by LLVM, keep the sums in memory and take two to three times as long.
"""

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
    minus,
    plus,
    shift_and_variance,
    sums,
    times,
    times_plus,
)
from nbbp.cpu.simd import INT64

#: Registers of columns in a group, and sums in flight that hide the latency of an addition.
_WIDE = 4 if simd.VECTOR_REGISTERS >= 32 else 2
_IN_FLIGHT = 2 * _WIDE


class Group:
    """A group of columns of all rows, while the LLVM IR of its passes is written; a list has an entry per register."""

    def __init__(self, builder, vector, first, width, mask, n_rows):
        self.builder, self.vector, self.first, self.n_rows = builder, vector, first, n_rows
        self.width, self.mask = width, mask

    def _places(self, start):
        start = self.builder.gep(start, [self.first])
        return [self.builder.gep(start, [INT64(j * self.vector.count)]) for j in range(self.width)]

    def load(self, start):
        """The group's numbers of the row at `start`."""
        return [simd.load_vector(self.builder, place, self.vector, self.mask) for place in self._places(start)]

    def load_if(self, exists, start, otherwise):
        """The same where `exists`, else the number `otherwise`."""
        exists = simd.splat(self.builder, exists, self.vector.count)
        mask = exists if self.mask is None else self.builder.and_(exists, self.mask)
        values = [simd.load_vector(self.builder, place, self.vector, mask) for place in self._places(start)]
        return [self.builder.select(exists, value, constant(self.vector, otherwise)) for value in values]

    def store(self, values, start):
        """Write them there."""
        for value, place in zip(values, self._places(start), strict=True):
            simd.store_vector(self.builder, value, place, self.mask)

    def row(self, matrix, r):
        """Where row r of `matrix`, a pointer and a stride, starts."""
        return self.builder.gep(matrix[0], [self.builder.mul(matrix[1], r)])

    def all(self, register):
        """A list of the same register only."""
        return [register] * self.width

    def sums(self, n_sums, add):
        """`n_sums` lists of sums over the rows; add(r, lists) gives the lists with row r added."""
        zeros = self.all(constant(self.vector, 0.0)) * n_sums
        unroll = max(1, _IN_FLIGHT // len(zeros))
        found = sums(self.builder, self.n_rows, unroll, zeros, lambda r, values: joined(add(r, cut(values, n_sums))))
        return cut(found, n_sums)

    def each_row(self):
        """A loop over the rows."""
        return cgutils.for_range_slice(self.builder, INT64(0), self.n_rows, INT64(1))


def groups(builder, vector, n_rows, n, write):
    """write(group) for each group of n columns: wide ones, then single registers."""
    wide = INT64(_WIDE * vector.count)
    whole = builder.sub(n, builder.urem(n, wide))
    with cgutils.for_range_slice(builder, INT64(0), whole, wide) as (first, _):
        write(Group(builder, vector, first, _WIDE, None, n_rows))
    with cgutils.for_range_slice(builder, whole, n, INT64(vector.count)) as (first, _):
        mask = simd.lane_mask(builder, builder.sub(n, first), vector.count)
        write(Group(builder, vector, first, 1, mask, n_rows))


@intrinsic
def column_moments(typing_context, mean, variance, x, x_stride, n_rows, n):
    """mean[j], variance[j] = those of x[:, j], the variance divided by n_rows, which is at least 1.

    x (n_rows, n), mean and variance (n,). Writes mean and variance, which must not overlap x.
    """

    def codegen(context, builder, signature, arguments):
        mean, variance, x, x_stride, n_rows, n = arguments
        vector = simd.vector_type(signature.args[0].dtype)
        inverse_n = inverse_of(builder, n_rows, vector)

        def write(group):
            def row(r):
                return group.load(group.row((x, x_stride), r))

            total = group.sums(1, lambda r, lists: [plus(builder, lists[0], row(r))])[0]
            first = times(builder, total, group.all(inverse_n))

            def add_rest(r, lists):
                rest = minus(builder, row(r), first)
                return [times_plus(builder, rest, rest, lists[0]), plus(builder, lists[1], rest)]

            squares, rest = group.sums(2, add_rest)
            both = [shift_and_variance(builder, s, d, inverse_n) for s, d in zip(squares, rest, strict=True)]
            group.store(plus(builder, first, [shift for shift, _ in both]), mean)
            group.store([of_column for _, of_column in both], variance)

        groups(builder, vector, n_rows, n, write)
        return context.get_dummy_value()

    number = types.int64
    return types.void(mean, variance, x, number, number, number), codegen


def _normalize(builder, signature, arguments, inverses_of):
    """The code of the two intrinsics below; `inverses_of` turns the list of what `spread` holds into 1 / deviation."""
    y, y_stride, x, x_stride, n_rows, n, mean, spread, gamma, beta, has_scale = arguments
    has_scale = is_set(builder, has_scale)

    def write(group):
        means, shifts = group.load(mean), group.load_if(has_scale, beta, 0.0)
        scales = times(builder, inverses_of(group.load(spread)), group.load_if(has_scale, gamma, 1.0))
        with group.each_row() as (r, _):
            values = minus(builder, group.load(group.row((x, x_stride), r)), means)
            group.store(times_plus(builder, values, scales, shifts), group.row((y, y_stride), r))

    groups(builder, simd.vector_type(signature.args[0].dtype), n_rows, n, write)


@intrinsic
def normalize_columns(typing_context, y, y_stride, x, x_stride, n_rows, n, mean, inverse, gamma, beta, has_scale):
    """y[:, j] = (x[:, j] - mean[j]) · inverse[j] · gamma[j] + beta[j], without gamma and beta if has_scale is 0.

    y, x (n_rows, n), the rest (n,). Writes y, which may be x and otherwise must not overlap it.
    """

    def codegen(context, builder, signature, arguments):
        _normalize(builder, signature, arguments, lambda inverses: inverses)
        return context.get_dummy_value()

    number = types.int64
    return types.void(y, number, x, number, number, number, mean, inverse, gamma, beta, number), codegen


@intrinsic
def standardize_columns(
    typing_context, y, y_stride, x, x_stride, n_rows, n, mean, variance, gamma, beta, has_scale, eps
):
    """The same where `inverse` is 1 / sqrt(variance + eps)."""

    def codegen(context, builder, signature, arguments):
        eps = simd.splat(builder, arguments[-1], simd.vector_type(signature.args[0].dtype).count)
        _normalize(builder, signature, arguments[:-1], lambda vs: [inverse_root(builder, v, eps) for v in vs])
        return context.get_dummy_value()

    number = types.int64
    return types.void(y, number, x, number, number, number, mean, variance, gamma, beta, number, eps), codegen


@intrinsic
def scale_columns(typing_context, y, y_stride, n_rows, n, variance, gamma, has_scale, eps):
    """y[:, j] *= gamma[j] / sqrt(variance[j] + eps), without gamma if has_scale is 0; y (n_rows, n), the rest (n,)."""

    def codegen(context, builder, signature, arguments):
        y, y_stride, n_rows, n, variance, gamma, has_scale, eps = arguments
        vector = simd.vector_type(signature.args[0].dtype)
        has_scale, eps = is_set(builder, has_scale), simd.splat(builder, eps, vector.count)

        def write(group):
            inverses = [inverse_root(builder, v, eps) for v in group.load(variance)]
            factors = times(builder, inverses, group.load_if(has_scale, gamma, 1.0))
            with group.each_row() as (r, _):
                place = group.row((y, y_stride), r)
                group.store(times(builder, group.load(place), factors), place)

        groups(builder, vector, n_rows, n, write)
        return context.get_dummy_value()

    number = types.int64
    return types.void(y, number, number, number, variance, gamma, number, eps), codegen


@intrinsic
def column_derivatives(
    typing_context, d_gamma, d_beta, has_gradient, d, d_stride, x, x_stride, n_rows, n, mean, inverse, gamma, has_scale
):
    """The derivative of normalized columns, in place of the output gradient d; x^ = (x - mean) · inverse:

        d_beta = Σ d,   d_gamma = Σ d · x^,   d = gamma · inverse · (d - d_beta / n_rows - x^ · d_gamma / n_rows)

    d, x (n_rows, n), the rest (n,). Writes d, and d_gamma and d_beta unless has_gradient is 0; none may overlap x.
    """

    def codegen(context, builder, signature, arguments):
        d_gamma, d_beta, has_gradient, d, d_stride, x, x_stride, n_rows, n, *of_columns = arguments
        mean, inverse, gamma, has_scale = of_columns
        vector = simd.vector_type(signature.args[0].dtype)
        has_scale, has_gradient = is_set(builder, has_scale), is_set(builder, has_gradient)
        inverse_n = inverse_of(builder, n_rows, vector)

        def write(group):
            means, inverses = group.load(mean), group.load(inverse)

            def centered(r):
                return minus(builder, group.load(group.row((x, x_stride), r)), means)

            def add(r, lists):
                slopes = group.load(group.row((d, d_stride), r))
                return [times_plus(builder, slopes, centered(r), lists[0]), plus(builder, lists[1], slopes)]

            inner, shifts = group.sums(2, add)
            inner = times(builder, inner, inverses)
            with builder.if_then(has_gradient):
                group.store(inner, d_gamma)
                group.store(shifts, d_beta)
            inner, shifts = (times(builder, values, group.all(inverse_n)) for values in (inner, shifts))
            scales = times(builder, inverses, group.load_if(has_scale, gamma, 1.0))
            bends = times(builder, times(builder, scales, inverses), [builder.fneg(value) for value in inner])
            with group.each_row() as (r, _):
                place = group.row((d, d_stride), r)
                # d - mean first: of a single row it is zero, and stays so
                slopes = times(builder, minus(builder, group.load(place), shifts), scales)
                group.store(times_plus(builder, centered(r), bends, slopes), place)

        groups(builder, vector, n_rows, n, write)
        return context.get_dummy_value()

    number = types.int64
    return types.void(
        d_gamma, d_beta, number, d, number, x, number, number, number, mean, inverse, gamma, number
    ), codegen


@intrinsic
def scale_and_shift_gradients(typing_context, d_gamma, d_beta, d, d_stride, x, x_stride, kept, kept_stride, n_rows, n):
    """d_gamma = Σ over rows r of d · (x - m) · i, d_beta = Σ d, where kept[r] = m, i; all sums are written.

    d, x (n_rows, n), kept (n_rows, 2), d_gamma and d_beta (n,), which must overlap nothing.
    """

    def codegen(context, builder, signature, arguments):
        d_gamma, d_beta, d, d_stride, x, x_stride, kept, kept_stride, n_rows, n = arguments
        vector = simd.vector_type(signature.args[0].dtype)

        def write(group):
            def add(r, lists):
                place = group.row((kept, kept_stride), r)
                mean, inverse = (
                    group.all(simd.splat(builder, builder.load(builder.gep(place, [INT64(k)])), vector.count))
                    for k in (0, 1)
                )
                values = minus(builder, group.load(group.row((x, x_stride), r)), mean)
                slopes = group.load(group.row((d, d_stride), r))
                inner = times_plus(builder, slopes, times(builder, values, inverse), lists[0])
                return [inner, plus(builder, lists[1], slopes)]

            scales, shifts = group.sums(2, add)
            group.store(scales, d_gamma)
            group.store(shifts, d_beta)

        groups(builder, vector, n_rows, n, write)
        return context.get_dummy_value()

    number = types.int64
    return types.void(d_gamma, d_beta, d, number, x, number, kept, number, number, number), codegen


@intrinsic
def scale_gradients(typing_context, d_gamma, d, d_stride, x, x_stride, kept, kept_stride, n_rows, n):
    """d_gamma = Σ over rows r of d · x · kept[r], which is written.

    d, x (n_rows, n), kept (n_rows, 1), d_gamma (n,), which must overlap nothing.
    """

    def codegen(context, builder, signature, arguments):
        d_gamma, d, d_stride, x, x_stride, kept, kept_stride, n_rows, n = arguments
        vector = simd.vector_type(signature.args[0].dtype)

        def write(group):
            def add(r, lists):
                inverse = simd.splat(builder, builder.load(group.row((kept, kept_stride), r)), vector.count)
                values = times(builder, group.load(group.row((x, x_stride), r)), group.all(inverse))
                return [times_plus(builder, group.load(group.row((d, d_stride), r)), values, lists[0])]

            group.store(group.sums(1, add)[0], d_gamma)

        groups(builder, vector, n_rows, n, write)
        return context.get_dummy_value()

    number = types.int64
    return types.void(d_gamma, d, number, x, number, kept, number, number, number), codegen
