"""Numbers of 16 bits: conversion of float32 to and from bfloat16 and IEEE binary16 (fp16), in whole vector registers.

Legend: a code is `ops.BF16` or `ops.FP16`; 16-bit numbers lie in memory as uint16. To 16 bits it is rounded to nearest,
ties to even; what is too large becomes infinite, subnormal numbers of fp16 are kept, NaN stays NaN (quiet, with the
upper bits of its payload). Back is exact. bfloat16 is the upper half of a float32; fp16 takes the processor's
instructions where it has them (F16C on x86-64, every ARM64), and otherwise integer arithmetic after F. Giesen, "Half to
float done quick" and "Float->half variants". Both ways are the same to the bit, whether or not subnormal float32 are
flushed to zero: those are far below the least of fp16.

Rows are processed up to the next whole register, which the padding of rows makes room for.
"""

import os
from functools import partial

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nbbp.cpu import simd
from nbbp.ops import BF16, FP16

_FLOAT, _INT16, _INT32, _INT64 = ir.FloatType(), ir.IntType(16), simd.INT32, simd.INT64
#: Set NBBP_HALF_INSTRUCTIONS=0 to take the fallback of processors without instructions for fp16.
HAS_INSTRUCTIONS = simd.HAS_HALF_CONVERSION and os.environ.get("NBBP_HALF_INSTRUCTIONS", "1") != "0"


def _constant(value: int, count: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT32, count), [value] * count)


def narrowed(builder, values, code: int):
    """A vector of float32 as 16-bit numbers in a vector of i16."""
    count = values.type.count
    halves = ir.VectorType(_INT16, count)
    if code == FP16 and HAS_INSTRUCTIONS:
        return builder.bitcast(builder.fptrunc(values, ir.VectorType(ir.HalfType(), count)), halves)
    bits = builder.bitcast(values, ir.VectorType(_INT32, count))
    narrow = _to_bf16 if code == BF16 else _to_fp16
    return builder.trunc(narrow(builder, bits, count), halves)


def widened(builder, halves, code: int):
    """A vector of i16 that holds 16-bit numbers as float32."""
    count = halves.type.count
    vector = ir.VectorType(_FLOAT, count)
    if code == FP16 and HAS_INSTRUCTIONS:
        return builder.fpext(builder.bitcast(halves, ir.VectorType(ir.HalfType(), count)), vector)
    bits = builder.zext(halves, ir.VectorType(_INT32, count))
    if code == BF16:
        return builder.bitcast(builder.shl(bits, _constant(16, count)), vector)
    return builder.bitcast(_from_fp16(builder, bits, count), vector)


def _to_bf16(builder, bits, count: int):
    """The upper half of float32 `bits`, rounded, in the lower half."""
    number = partial(_constant, count=count)
    odd = builder.and_(builder.lshr(bits, number(16)), number(1))
    rounded = builder.lshr(builder.add(builder.add(bits, number(0x7FFF)), odd), number(16))
    quiet = builder.or_(builder.lshr(bits, number(16)), number(0x40))
    magnitude = builder.and_(bits, number(0x7FFFFFFF))
    return builder.select(builder.icmp_unsigned(">", magnitude, number(0x7F800000)), quiet, rounded)


def _to_fp16(builder, bits, count: int):
    """fp16 of float32 `bits`, in the lower half."""
    number = partial(_constant, count=count)
    vector, integers = ir.VectorType(_FLOAT, count), ir.VectorType(_INT32, count)
    sign = builder.and_(builder.lshr(bits, number(16)), number(0x8000))
    a = builder.and_(bits, number(0x7FFFFFFF))
    # normal: the exponent's bias goes from 127 to 15, and a carry out of the fraction into it, up to infinity
    odd = builder.and_(builder.lshr(a, number(13)), number(1))
    normal = builder.lshr(builder.add(builder.add(a, number(0xC8000FFF)), odd), number(13))
    # subnormal: the unit of a float32 sum with 0.5 is that of a subnormal fp16, so the addition rounds
    half = ir.Constant(vector, [0.5] * count)
    total = builder.fadd(builder.bitcast(a, vector), half)
    subnormal = builder.sub(builder.bitcast(total, integers), number(0x3F000000))
    payload = builder.and_(builder.lshr(a, number(13)), number(0x3FF))
    is_nan = builder.icmp_unsigned(">", a, number(0x7F800000))
    large = builder.select(is_nan, builder.or_(payload, number(0x7E00)), number(0x7C00))
    result = builder.select(builder.icmp_unsigned("<", a, number(0x38800000)), subnormal, normal)
    result = builder.select(builder.icmp_unsigned(">=", a, number(0x47800000)), large, result)
    return builder.or_(result, sign)


def _from_fp16(builder, bits, count: int):
    """float32 bits of fp16 `bits` in the lower half."""
    number = partial(_constant, count=count)
    vector, integers = ir.VectorType(_FLOAT, count), ir.VectorType(_INT32, count)
    sign = builder.shl(builder.and_(bits, number(0x8000)), number(16))
    magnitude = builder.and_(bits, number(0x7FFF))
    shifted = builder.shl(magnitude, number(13))
    normal = builder.add(shifted, number((127 - 15) << 23))
    least = builder.bitcast(number(113 << 23), vector)  # the least normal fp16, whose fraction they are
    subnormal = builder.fsub(builder.bitcast(builder.add(shifted, number(113 << 23)), vector), least)
    subnormal = builder.bitcast(subnormal, integers)
    large = builder.or_(shifted, number(0x7F800000))
    large = builder.select(
        builder.icmp_unsigned(">", magnitude, number(0x7C00)), builder.or_(large, number(0x400000)), large
    )
    result = builder.select(builder.icmp_unsigned("<", magnitude, number(0x400)), subnormal, normal)
    result = builder.select(builder.icmp_unsigned(">=", magnitude, number(0x7C00)), large, result)
    return builder.or_(result, sign)


def _by_registers(builder, n, code, step) -> None:
    """Run step(index, code) for every register of n numbers, for the code that it is at run time."""
    lanes = simd.vector_type(types.float32).count
    for one in (BF16, FP16):
        with (
            builder.if_then(builder.icmp_signed("==", code, _INT64(one))),
            cgutils.for_range_slice(builder, _INT64(0), n, _INT64(lanes)) as (index, _),
        ):
            step(index, one)


def _load(builder, start, index):
    """16-bit numbers of a register."""
    halves = ir.VectorType(_INT16, simd.vector_type(types.float32).count)
    return builder.load(builder.bitcast(builder.gep(start, [index]), halves.as_pointer()), align=2)


def _store(builder, halves, start, index) -> None:
    builder.store(halves, builder.bitcast(builder.gep(start, [index]), halves.type.as_pointer()), align=2)


@intrinsic
def narrow_row(typing_context, out, x, n, code):
    """out[0:n] = x[0:n] in 16 bits, and x[0:n] what that is again; out and x must not overlap."""

    def codegen(context, builder, signature, arguments):
        vector = simd.vector_type(types.float32)
        out, x, n, code = arguments

        def step(index, one):
            where = builder.gep(x, [index])
            halves = narrowed(builder, simd.load_vector(builder, where, vector), one)
            _store(builder, halves, out, index)
            simd.store_vector(builder, widened(builder, halves, one), where)

        _by_registers(builder, n, code, step)
        return context.get_dummy_value()

    return types.void(out, x, types.int64, types.int64), codegen


@intrinsic
def round_row(typing_context, out, x, n, code):
    """out[0:n] = x[0:n] rounded to 16 bits, in float32; out and x are the same or do not overlap."""

    def codegen(context, builder, signature, arguments):
        vector = simd.vector_type(types.float32)
        out, x, n, code = arguments

        def step(index, one):
            halves = narrowed(builder, simd.load_vector(builder, builder.gep(x, [index]), vector), one)
            simd.store_vector(builder, widened(builder, halves, one), builder.gep(out, [index]))

        _by_registers(builder, n, code, step)
        return context.get_dummy_value()

    return types.void(out, x, types.int64, types.int64), codegen


@intrinsic
def widen_row(typing_context, out, x, n, code):
    """out[0:n] = the 16-bit numbers x[0:n] in float32; out and x must not overlap."""

    def codegen(context, builder, signature, arguments):
        out, x, n, code = arguments

        def step(index, one):
            values = widened(builder, _load(builder, x, index), one)
            simd.store_vector(builder, values, builder.gep(out, [index]))

        _by_registers(builder, n, code, step)
        return context.get_dummy_value()

    return types.void(out, x, types.int64, types.int64), codegen
