"""Explicit SIMD for normalization layers: what passes over columns and passes over rows share, as writers of LLVM IR.

Legend: a list holds registers that go through the same steps. Sums start anew every ``_BLOCK`` terms, so that rounding
errors do not grow with the number of terms. A mean m' is refined by the mean of what is left, m = m' + mean(x - m'),
which makes it exact for equal numbers; the variance mean((x - m')²) - mean(x - m')² does not suffer from what m' lacks
(Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 37 (1983)).
"""

from llvmlite import ir
from numba.core import cgutils

from nbbp.cpu import simd
from nbbp.cpu.simd import INT64

#: Terms after which a sum starts anew.
_BLOCK = 128


def constant(kind, number):
    """`number` as a constant of a type, in every lane of it if that is a vector's."""
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def plus(builder, xs, ys):
    """The list of x + y."""
    return [builder.fadd(x, y) for x, y in zip(xs, ys, strict=True)]


def minus(builder, xs, ys):
    """The list of x - y."""
    return [builder.fsub(x, y) for x, y in zip(xs, ys, strict=True)]


def times(builder, xs, ys):
    """The list of x · y."""
    return [builder.fmul(x, y) for x, y in zip(xs, ys, strict=True)]


def times_plus(builder, xs, ys, zs):
    """The list of x · y + z."""
    return [simd.fused_multiply_add(builder, x, y, z) for x, y, z in zip(xs, ys, zs, strict=True)]


def cut(values, n_lists):
    """A list in `n_lists` of equal length."""
    length = len(values) // n_lists
    return [values[k * length : (k + 1) * length] for k in range(n_lists)]


def joined(lists):
    """Those lists as one."""
    return [value for values in lists for value in values]


def sums(builder, n, unroll, zeros, add):
    """Sums over i in [0, n): add(i, sums) gives the list `sums` with the terms i added; it starts as `zeros`.

    `unroll`, a power of two, of them are in flight.
    """
    totals = [cgutils.alloca_once_value(builder, zero) for zero in zeros]
    with cgutils.for_range_slice(builder, INT64(0), n, INT64(_BLOCK)) as (first, _):
        left = builder.sub(n, first)
        count = builder.select(builder.icmp_signed("<", left, INT64(_BLOCK)), left, INT64(_BLOCK))
        stop = builder.add(first, count)
        whole = builder.sub(stop, builder.urem(count, INT64(unroll)))
        parts = [[cgutils.alloca_once_value(builder, zero) for zero in zeros] for _ in range(unroll)]
        with cgutils.for_range_slice(builder, first, whole, INT64(unroll)) as (i, _):
            for u, part in enumerate(parts):
                replace(builder, part, add(builder.add(i, INT64(u)), loaded(builder, part)))
        with cgutils.for_range_slice(builder, whole, stop, INT64(1)) as (i, _):
            replace(builder, parts[0], add(i, loaded(builder, parts[0])))
        found = [loaded(builder, part) for part in parts]
        while len(found) > 1:
            half = len(found) // 2
            found = [plus(builder, xs, ys) for xs, ys in zip(found[:half], found[half:], strict=True)]
        replace(builder, totals, plus(builder, loaded(builder, totals), found[0]))
    return loaded(builder, totals)


def loaded(builder, slots):
    """What variables hold."""
    return [builder.load(slot) for slot in slots]


def replace(builder, slots, values):
    """Give variables new values."""
    for slot, value in zip(slots, values, strict=True):
        builder.store(value, slot)


def shift_and_variance(builder, squares, rest, inverse_n):
    """(m - m', variance) from Σ(x - m')² and Σ(x - m'); rounding does not make the variance negative, NaN stays."""
    shift = builder.fmul(rest, inverse_n)
    variance = builder.fmul(builder.fsub(squares, builder.fmul(rest, shift)), inverse_n)
    zero = constant(variance.type, 0.0)
    return shift, builder.select(builder.fcmp_ordered("<", variance, zero), zero, variance)


def inverse_root(builder, register, eps):
    """1 / sqrt(register + eps), each lane rounded as IEEE 754 wants it: estimates would cost digits."""
    kind = register.type
    name = f"llvm.sqrt.v{kind.count}{kind.element.intrinsic_name}"
    root = simd.call_llvm(builder, name, kind, [builder.fadd(register, eps)])
    return builder.fdiv(constant(kind, 1.0), root)


def inverse_of(builder, n, vector):
    """1 / n of an integer, in all lanes."""
    one = constant(vector.element, 1.0)
    return simd.splat(builder, builder.fdiv(one, builder.sitofp(n, vector.element)), vector.count)


def is_set(builder, flag):
    """Whether an integer is not 0."""
    return builder.icmp_signed("!=", flag, INT64(0))
