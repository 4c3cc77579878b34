"""Tensor cores: every instruction in inline assembly, and which number of a matrix which lane of a warp holds.

Legend: a warp of 32 lanes computes D = A·B + C, A (16, k), B (k, 8), C and D (16, 8) in float32. k is 8 for tf32, of
which a word, a register of 32 bits, holds one number, and 16 for bf16 and fp16, of which it holds two: columns of A, or
rows of B, next to each other, the first in the lower half. So in words A is (16, 8) and B (8, 8) whichever it is, and
the maps below are for all: a lane holds four words of A, two of B and four numbers of C, its registers 0, 1, 2, …
(PTX ISA, "Matrix Fragments for mma.m16n8k8" and "… for mma.m16n8k16"). All of it needs compute capability 8.0.

A product of two rounded numbers is exact in float32, and sums are float32; infinity and NaN go through.

`wgmma` of compute capability 9.0 would let 128 threads multiply 64 rows at once and read both operands from shared
memory by itself, so that the loads of fragments, which take about as long as the multiplications that they feed, are
spared. Its layouts of shared memory and its waits only a GPU can show to be right; so it is not here.

On the simulator, which has no warps, Python functions take the place of all this (nbbp/cuda/simulated_warps.py).
"""

import numpy as np

from nbbp.cuda.kernels import SIMULATED
from nbbp.ops import BF16, FP16
from nbbp.scalars.dispatch import formula

#: Formats of what tensor cores take, by the name of the precision; beside them there are `ops.BF16` and `ops.FP16`.
TF32 = 3
FORMATS = {"tf32": TF32, "bf16": BF16, "fp16": FP16}
#: Lanes of a warp; rows of A, columns of B, and words of both along k, that one instruction multiplies.
WARP, ROWS, COLUMNS, WORDS = 32, 16, 8, 8


@formula
def row_of_a(lane, register):
    """The row of A that a lane's word is of."""
    return (lane >> 2) + 8 * (register & 1)


@formula
def word_of_a(lane, register):
    """Which word of its row of A that is."""
    return (lane & 3) + 4 * (register >> 1)


@formula
def word_of_b(lane, register):
    """Which word of its column of B a lane's word is."""
    return (lane & 3) + 4 * register


@formula
def column_of_b(lane):
    """The column of B that a lane's words are of."""
    return lane >> 2


@formula
def row_of_c(lane, register):
    """The row of C, and of D, that a lane's number is in."""
    return (lane >> 2) + 8 * (register >> 1)


@formula
def column_of_c(lane, register):
    """The column of C, and of D, that a lane's number is in."""
    return 2 * (lane & 3) + (register & 1)


if SIMULATED:
    from nbbp.cuda.simulated_warps import (
        as_tf32,
        load_matrices,
        multiply_bf16,
        multiply_fp16,
        multiply_tf32,
        pair_of_bf16,
        pair_of_fp16,
        widen_bf16,
        widen_fp16,
    )
else:
    from llvmlite import ir
    from numba.core import types
    from numba.cuda.extending import intrinsic

    _FLOAT, _WORD = ir.FloatType(), ir.IntType(32)
    _QUADS = types.UniTuple(types.float32, 4), types.UniTuple(types.uint32, 4)

    def _assembly(builder, text, constraints, given, arguments, by_warp=False):
        """Call an instruction; one `by_warp` stays where all lanes come, behind what was written before it."""
        function_type = ir.FunctionType(given, [argument.type for argument in arguments])
        call = builder.call(ir.InlineAsm(function_type, text, constraints, side_effect=by_warp), arguments)
        if by_warp:
            call.attributes.add("convergent")
        return call

    def _place(context, builder, array_type, array, index, type_of_index):
        """The address of ``array[index]``; rows follow each other without gaps."""
        index = context.cast(builder, index, type_of_index, types.int64)
        return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])

    def _tuple(context, builder, kind, given):
        return context.make_tuple(builder, kind, [builder.extract_value(given, i) for i in range(kind.count)])

    def _multiplies(shape_and_types: str):
        """An intrinsic ``(c0, …, c3, a0, …, a3, b0, b1) -> (d0, …, d3)``: a lane's numbers of D = A·B + C."""
        text = f"mma.sync.aligned.{shape_and_types} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
        constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

        def multiplied(typing_context, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1):
            def codegen(context, builder, signature, arguments):
                given, operands = ir.LiteralStructType([_FLOAT] * 4), [*arguments[4:], *arguments[:4]]
                d = _assembly(builder, text, constraints, given, operands, by_warp=True)
                return _tuple(context, builder, _QUADS[0], d)

            return _QUADS[0](*[types.float32] * 4, *[types.uint32] * 6), codegen

        return intrinsic(multiplied)

    def _converts(instruction: str, constraints: str, given, result, *taken):
        """An intrinsic of one register from one or two."""

        def codegen(context, builder, signature, arguments):
            places = ", ".join(f"${1 + i}" for i in range(len(arguments)))
            return _assembly(builder, f"{instruction} $0, {places};", constraints, given, arguments)

        if len(taken) == 1:
            return intrinsic(lambda typing_context, x: (result(*taken), codegen))
        return intrinsic(lambda typing_context, x, y: (result(*taken), codegen))

    multiply_tf32 = _multiplies("m16n8k8.row.col.f32.tf32.tf32.f32")
    multiply_bf16 = _multiplies("m16n8k16.row.col.f32.bf16.bf16.f32")
    multiply_fp16 = _multiplies("m16n8k16.row.col.f32.f16.f16.f32")
    as_tf32 = _converts("cvt.rna.tf32.f32", "=r,f", _WORD, types.uint32, types.float32)
    pair_of_bf16 = _converts("cvt.rn.bf16x2.f32", "=r,f,f", _WORD, types.uint32, types.float32, types.float32)
    pair_of_fp16 = _converts("cvt.rn.f16x2.f32", "=r,f,f", _WORD, types.uint32, types.float32, types.float32)
    widen_fp16 = _converts("cvt.f32.f16", "=f,h", _FLOAT, types.float32, types.uint16)
    widen_bf16 = _converts("mov.b32", "=f,r", _FLOAT, types.float32, types.uint32)

    @intrinsic
    def load_matrices(typing_context, words, index):
        """Four matrices of 8 rows of 4 words from shared memory, each lane's word of them; all lanes call it together.

        Lane l says where row l % 8 of matrix l // 8 begins, at a multiple of four words; it gets word l % 4 of row
        l // 4 of each.
        """
        kind, text = _QUADS[1], "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0,$1,$2,$3}, [$4];"

        def codegen(context, builder, signature, arguments):
            place = _place(context, builder, words, *arguments, index)
            place = builder.ptrtoint(builder.addrspacecast(place, ir.PointerType(_WORD, addrspace=3)), _WORD)
            given = ir.LiteralStructType([_WORD] * 4)
            constraints = "=r,=r,=r,=r,r,~{memory}"
            return _tuple(context, builder, kind, _assembly(builder, text, constraints, given, [place], by_warp=True))

        return kind(words, index), codegen


@formula
def multiply(code, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1):
    """A lane's four numbers of D = A·B + C, in a format; all lanes of a warp call it together."""
    if code == TF32:
        return multiply_tf32(c0, c1, c2, c3, a0, a1, a2, a3, b0, b1)
    if code == BF16:
        return multiply_bf16(c0, c1, c2, c3, a0, a1, a2, a3, b0, b1)
    return multiply_fp16(c0, c1, c2, c3, a0, a1, a2, a3, b0, b1)


@formula
def narrow_pair(code, low, high):
    """Two float32 as a word of bf16 or fp16: to nearest, ties to even; what is too large is infinite."""
    if code == BF16:
        return pair_of_bf16(high, low)
    return pair_of_fp16(high, low)


@formula
def widen(code, word):
    """The float32 that the lower half of a word of bf16 or fp16 is."""
    if code == BF16:
        return widen_bf16(np.uint32(word << 16))
    return widen_fp16(np.uint16(word & 0xFFFF))
