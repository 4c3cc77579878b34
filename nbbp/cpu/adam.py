"""Adam's rule in whole registers, where the processor estimates reciprocals.

A square root and a division of a register take the processor 20 cycles, in which nothing else is divided; an estimate
to 14 bits and one step of Newton's method take 5, and are as good: each is off by less than 1 unit in the last place.

Legend: ``n`` parameters from the pointers w, g (gradient), m, v (both moments) on, float32; c as in
`nbbp.scalars.updates.adam`.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nbbp.cpu import simd

#: The least float32 that is no denormal, and the largest that is finite.
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def _estimate(builder, name, x):
    """AVX-512's estimate of every lane, relative error below 2**-14."""
    every = ir.Constant(ir.IntType(x.type.count), -1)
    return simd.call_llvm(builder, f"llvm.x86.avx512.{name}14.ps.512", x.type, [x, x, every])


def square_root(builder, x):
    """The square root of x >= 0, by Goldschmidt's step; of the largest float32 where x is infinite; NaN of NaN."""
    number = x.type
    one, half = ir.Constant(number, [1.0] * number.count), ir.Constant(number, [0.5] * number.count)
    smallest, largest = (ir.Constant(number, [limit] * number.count) for limit in (_SMALLEST, _LARGEST))
    x = builder.select(builder.fcmp_ordered(">", x, largest), largest, x)
    above_zero = builder.select(builder.fcmp_ordered(">", x, smallest), x, smallest)
    inverse = _estimate(builder, "rsqrt", above_zero)
    root = builder.fmul(x, inverse)
    error = simd.fused_multiply_add(builder, builder.fneg(root), inverse, one)
    return simd.fused_multiply_add(builder, builder.fmul(root, half), error, root)


def quotient(builder, x, y):
    """x / y, y > 0: the estimate and what it leaves of x."""
    inverse = _estimate(builder, "rcp", y)
    found = builder.fmul(x, inverse)
    left = simd.fused_multiply_add(builder, builder.fneg(found), y, x)
    return simd.fused_multiply_add(builder, left, inverse, found)


@intrinsic
def adam(typing_context, w, g, m, v, n, l2, kept, c):
    """One step: m, v and w, as `nbbp.scalars.updates.adam` of g + l2·w and of kept·w. Writes w, m and v.

    None of the four may overlap another.
    """

    def codegen(context, builder, signature, arguments):
        vector = simd.vector_type(signature.args[0].dtype)
        w, g, m, v, n, l2, kept, c = arguments
        l2, kept = (simd.splat(builder, each, vector.count) for each in (l2, kept))
        c = [simd.splat(builder, builder.extract_value(c, i), vector.count) for i in range(7)]

        def step(index, mask):
            places = [builder.gep(start, [index]) for start in (w, g, m, v)]
            old, slope, first, second = (simd.load_vector(builder, place, vector, mask) for place in places)
            slope = simd.fused_multiply_add(builder, l2, old, slope)
            first = simd.fused_multiply_add(builder, c[2], slope, builder.fmul(c[1], first))
            square = builder.fmul(builder.fmul(c[4], slope), slope)
            second = simd.fused_multiply_add(builder, c[3], second, square)
            scale = simd.fused_multiply_add(builder, square_root(builder, second), c[5], c[6])
            change = quotient(builder, builder.fmul(c[0], first), scale)
            new = builder.fsub(builder.fmul(kept, old), change)
            for value, place in zip((new, first, second), (places[0], *places[2:]), strict=True):
                simd.store_vector(builder, value, place, mask)

        simd.over_registers(builder, n, vector, step)
        return context.get_dummy_value()

    return types.void(w, g, m, v, types.int64, l2, kept, c), codegen
