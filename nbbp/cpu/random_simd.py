"""Philox4x32-10 in vector registers, and what random layers do with the bits.

Legend: a group is sixteen consecutive blocks of four words; LANES of them, as many as a register has 32-bit words, go
through the rounds together. Which number takes which bits is told in scalars/draws.py.

A round needs the whole 64-bit products of 32-bit words, which processors have for every second word of a register. So
the even and the odd blocks have registers of their own, of 64-bit lanes, whose upper halves hold what is left over.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nbbp.cpu import simd
from nbbp.cpu.simd import INT32, INT64
from nbbp.scalars import philox

BLOCKS = 16
LANES = simd.VECTOR_BYTES // 4
#: Lanes beside loops of LLVM's own, which take half the registers of AVX-512: whole ones among them would close one of
#: the ports that work on halves, and the loads of what half registers wrote would wait until it is in the cache.
LOOP_LANES = min(LANES, 8)
#: Numbers of a matrix that are looked at together: every row begins with a new chunk.
CHUNK = 16

_COUNTER = (types.uint64,) * 6


def _words(lanes: int) -> ir.VectorType:
    return ir.VectorType(INT32, lanes)


def _longs(lanes: int) -> ir.VectorType:
    return ir.VectorType(INT64, lanes // 2)


def _shuffle(builder, x, y, lanes):
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(INT32, len(lanes)), lanes))


def _product(builder, x, multiplier):
    """Upper and lower words of the product; above the lower ones something is left over."""
    n = x.type.count
    lower_half, multipliers = (ir.Constant(x.type, [int(word)] * n) for word in (0xFFFFFFFF, multiplier))
    product = builder.mul(builder.and_(x, lower_half), multipliers)
    # both halves of a lane become the upper one: a shuffle, as the multiplications occupy the unit that shifts
    words = builder.bitcast(product, _words(2 * n))
    upper = _shuffle(builder, words, words, [lane | 1 for lane in range(2 * n)])
    return builder.bitcast(upper, x.type), product


def _rounds(builder, counter, keys):
    """The ten rounds, of counters in 64-bit lanes."""
    c0, c1, c2, c3 = counter
    for key_0, key_1 in keys:
        high_0, low_0 = _product(builder, c0, philox.MULTIPLIER_0)
        high_1, low_1 = _product(builder, c2, philox.MULTIPLIER_1)
        c0 = builder.xor(builder.xor(high_1, c1), key_0)
        c2 = builder.xor(builder.xor(high_0, c3), key_1)
        c1, c3 = low_1, low_0
    return c0, c1, c2, c3


def _words_of_group(builder, arguments, lanes):
    """For each `lanes` blocks of a group their four registers of words; arguments: group, layer, step, stream, key."""
    group, layer, step, stream, *key = arguments
    pairs, weyl = lanes // 2, (int(philox.WEYL_0), int(philox.WEYL_1))
    keys = [
        [simd.splat(builder, builder.add(k, INT64(number * w)), pairs) for k, w in zip(key, weyl, strict=True)]
        for number in range(10)
    ]
    first = simd.splat(builder, builder.mul(group, INT64(BLOCKS)), pairs)
    rest = [simd.splat(builder, word, pairs) for word in (layer, step, stream)]
    alternating = [lane // 2 * 2 + lane % 2 * lanes for lane in range(lanes)]
    for start in range(0, BLOCKS, lanes):
        halves = []
        for parity in (0, 1):
            blocks = ir.Constant(_longs(lanes), [start + parity + 2 * pair for pair in range(pairs)])
            words = _rounds(builder, [builder.add(first, blocks), *rest], keys)
            halves.append([builder.bitcast(word, _words(lanes)) for word in words])
        yield start, [_shuffle(builder, even, odd, alternating) for even, odd in zip(*halves, strict=True)]


@intrinsic
def compare_group(typing_context, group, layer, step, stream, key_low, key_high, limit):
    """Compare the 128 halves of a group's words with the 16-bit `limit`.

    Four uint64: bits of the numbers 0 to 63 and 64 to 127 whose half is at least the limit, and of those whose is it.
    """

    def codegen(context, builder, signature, arguments):
        limits = simd.splat(builder, builder.trunc(arguments[-1], ir.IntType(16)), 2 * LANES)
        bits = [INT64(0)] * 4
        for block, words in _words_of_group(builder, arguments[:-1], LANES):
            for k, word in enumerate(words):
                halves = builder.bitcast(word, limits.type)
                shift = INT64(32 * (k % 2) + 2 * block)
                for which, comparison in ((k // 2, ">="), (2 + k // 2, "==")):
                    mask = builder.icmp_unsigned(comparison, halves, limits)
                    mask = builder.zext(builder.bitcast(mask, ir.IntType(2 * LANES)), INT64)
                    bits[which] = builder.or_(bits[which], builder.shl(mask, shift))
        return context.make_tuple(builder, signature.return_type, bits)

    return types.UniTuple(types.uint64, 4)(*_COUNTER, types.uint64), codegen


@intrinsic
def words_of_group(typing_context, out, group, layer, step, stream, key_low, key_high):
    """out[16 k + b] = word k of block b of a group: 64 int32 numbers."""

    def codegen(context, builder, signature, arguments):
        out, *counter = arguments
        for block, words in _words_of_group(builder, counter, LOOP_LANES):
            for k, word in enumerate(words):
                where = builder.gep(out, [INT64(BLOCKS * k + block)])
                builder.store(word, builder.bitcast(where, word.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.CPointer(types.int32), *_COUNTER), codegen


@intrinsic
def stack_of_group(typing_context, like):
    """A pointer to 64 numbers of the type of `like` on the stack of the function that is being compiled."""
    result = types.CPointer(like)

    def codegen(context, builder, signature, arguments):
        return cgutils.alloca_once(builder, context.get_value_type(like), size=64)

    return result(like), codegen


def _registers(builder, vector):
    """The first lane of each register of a chunk."""
    return range(0, CHUNK, vector.count)


@intrinsic
def keep_row(typing_context, out, x, kept, factor, n):
    """out[i] = x[i] · factor where bit i is set, else 0; n numbers up to the end of a chunk, out and x may be one.

    `kept` points to 16 bits per chunk.
    """

    def codegen(context, builder, signature, arguments):
        vector = simd.vector_type(signature.args[0].dtype)
        out, x, kept, factor, n = arguments
        factors = simd.splat(builder, factor, vector.count)
        zeros = ir.Constant(vector, [0.0] * vector.count)
        every = ir.VectorType(ir.IntType(1), CHUNK)

        def keep_chunk(index):
            bits = builder.load(builder.gep(kept, [builder.lshr(index, INT64(4))]), align=2)
            mask = builder.bitcast(bits, every)
            for lane in _registers(builder, vector):
                here = builder.add(index, INT64(lane))
                some = _shuffle(builder, mask, mask, list(range(lane, lane + vector.count)))
                values = simd.load_vector(builder, builder.gep(x, [here]), vector)
                values = builder.select(some, builder.fmul(values, factors), zeros)
                simd.store_vector(builder, values, builder.gep(out, [here]))

        # four chunks at a time: a row is too short for a loop around each
        four = 4 * CHUNK
        whole = builder.and_(n, INT64(-four))
        with cgutils.for_range_slice(builder, INT64(0), whole, INT64(four)) as (index, _):
            for start in range(0, four, CHUNK):
                keep_chunk(builder.add(index, INT64(start)))
        with cgutils.for_range_slice(builder, whole, n, INT64(CHUNK)) as (index, _):
            keep_chunk(index)
        return context.get_dummy_value()

    return types.void(out, x, types.CPointer(types.uint16), x.dtype, types.int64), codegen


@intrinsic
def add_to_chunk(typing_context, out, x, z, factor, start, stop):
    """out[i] = x[i] + factor · z[i] for the i of a chunk that are in [start, stop); out and x may be one."""

    def codegen(context, builder, signature, arguments):
        element = context.get_value_type(signature.args[0].dtype)
        vector = ir.VectorType(element, LOOP_LANES if signature.args[0].dtype == types.float32 else LOOP_LANES // 2)
        out, x, z, factor, start, stop = arguments
        factors = simd.splat(builder, factor, vector.count)
        starts, stops = simd.splat(builder, start, vector.count), simd.splat(builder, stop, vector.count)

        def add(lane, mask):
            here = [INT64(lane)]
            values = simd.load_vector(builder, builder.gep(x, here), vector, mask)
            noise = simd.load_vector(builder, builder.gep(z, here), vector)
            values = simd.fused_multiply_add(builder, noise, factors, values)
            simd.store_vector(builder, values, builder.gep(out, here), mask)

        is_whole = builder.and_(
            builder.icmp_signed("<=", start, INT64(0)), builder.icmp_signed(">=", stop, INT64(CHUNK))
        )
        with builder.if_else(is_whole) as (whole, part):
            with whole:
                for lane in _registers(builder, vector):
                    add(lane, None)
            with part:
                for lane in _registers(builder, vector):
                    lanes = ir.Constant(ir.VectorType(INT64, vector.count), list(range(lane, lane + vector.count)))
                    is_in = builder.and_(
                        builder.icmp_signed(">=", lanes, starts), builder.icmp_signed("<", lanes, stops)
                    )
                    add(lane, is_in)
        return context.get_dummy_value()

    return types.void(out, x, z, x.dtype, types.int64, types.int64), codegen
