"""BLAS inside jitted code: SciPy's sgemm and dgemm, called by address, without the GIL and without a copy."""

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

from nbbp.cpu import simd

_NAMES = {types.float32: "sgemm", types.float64: "dgemm"}
for _name in _NAMES.values():
    binding.add_symbol(f"nbbp_{_name}", get_cython_function_address("scipy.linalg.cython_blas", _name))


@intrinsic
def gemm(typing_context, c, c_stride, a, a_stride, a_transposed, b, b_stride, b_transposed, m, n, k, beta):
    """C = A·B + beta·C of row-major pointers; a_transposed and b_transposed are 0 or 1.

    c (m, n); a (m, k), or (k, m) if a_transposed; b (k, n), or (n, k) if b_transposed; strides from row to row.
    Writes c, which must not overlap a or b. BLAS counts columns first, so it is given Cᵀ = Bᵀ·Aᵀ.
    """
    scalar = c.dtype
    number = types.int64

    def codegen(context, builder, signature, arguments):
        c, ldc, a, lda, transpose_a, b, ldb, transpose_b, m, n, k, beta = arguments
        element = context.get_value_type(scalar)

        def slot(value):
            return cgutils.alloca_once_value(builder, value)

        def flag(condition):
            is_set = builder.icmp_signed("!=", condition, simd.INT64(0))
            return slot(builder.select(is_set, ir.IntType(8)(ord("T")), ir.IntType(8)(ord("N"))))

        def size(value):
            return slot(builder.trunc(value, simd.INT32))

        one = slot(ir.Constant(element, 1.0))
        arguments = [
            flag(transpose_b),
            flag(transpose_a),
            size(n),
            size(m),
            size(k),
            one,
            b,
            size(ldb),
            a,
            size(lda),
        ]
        arguments += [slot(beta), c, size(ldc)]
        simd.call_llvm(builder, f"nbbp_{_NAMES[scalar]}", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(c, number, a, number, number, b, number, number, number, number, number, scalar), codegen
