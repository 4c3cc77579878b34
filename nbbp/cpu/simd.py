"""Explicit SIMD: typed pointers, vectors, atomics and processor state for the CPU kernels.

Everything here is an ``@intrinsic``: a Python function that writes LLVM IR while Numba compiles its caller. It is the
one file that knows about vector registers; kernels above it speak of tiles and rows.

Legend: ``LANES[dtype]`` numbers fit one vector register (16 float32 with AVX-512, 8 with AVX2, 4 with NEON and SSE).
Addresses are plain int64, so that an op table can hold them; ``pointer`` gives one a type.
"""

import math
import os
import platform
import sys

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INT64 = ir.IntType(64)
INT32 = ir.IntType(32)


def _host_features() -> dict[str, bool]:
    try:
        return dict(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell on a few processors: take the baseline
        return {}


def _widest_vector() -> int:
    """Bytes of the processor's vector registers, or what NBBP_VECTOR_BITS asks for below that."""
    has_512_bits = _FEATURES.get("avx512f", False) and _FEATURES.get("avx512vl", False)
    widest = 64 if has_512_bits else 32 if _FEATURES.get("avx2", False) else 16
    asked = os.environ.get("NBBP_VECTOR_BITS", "512")
    if asked not in ("128", "256", "512"):
        raise ValueError(f"NBBP_VECTOR_BITS must be 128, 256 or 512; got {asked!r}")
    return min(widest, int(asked) // 8)


_FEATURES = _host_features()
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
#: Bytes of one vector register; set NBBP_VECTOR_BITS=256 or 128 to take the paths of other processors.
VECTOR_BYTES = _widest_vector()
#: True where a masked load or store costs what a plain one does, and reciprocals are estimated to 14 bits.
HAS_FREE_MASKS = HAS_ESTIMATES = VECTOR_BYTES == 64
#: Architectural vector registers: what the accumulators of a tile must fit into.
VECTOR_REGISTERS = 32 if HAS_FREE_MASKS or not _IS_X86 else 16
_HAS_FUSED_MULTIPLY_ADD = not _IS_X86 or _FEATURES.get("fma", False)
#: Whether there are instructions for float16 (every ARM64 has them).
HAS_HALF_CONVERSION = _FEATURES.get("f16c", False) if _IS_X86 else platform.machine().lower() in ("arm64", "aarch64")
#: Set NBBP_FLUSH_TO_ZERO=0 to take the plain fallback that processors other than x86-64 take.
FLUSHES_TO_ZERO = _IS_X86 and os.environ.get("NBBP_FLUSH_TO_ZERO", "1") != "0"
LANES = {np.dtype("float32"): VECTOR_BYTES // 4, np.dtype("float64"): VECTOR_BYTES // 8}

_LINE_BYTES = 64
#: Lines after which the processor's own prefetcher has seen where a row goes.
_PREFETCHED_LINES = 4

#: The x86-64 control register's flush-to-zero and denormals-are-zero bits.
_FLUSH_BITS = 0x8040


def vector_type(scalar: types.Float) -> ir.VectorType:
    """The LLVM vector of one register of `scalar`."""
    if scalar == types.float32:
        return ir.VectorType(ir.FloatType(), VECTOR_BYTES // 4)
    return ir.VectorType(ir.DoubleType(), VECTOR_BYTES // 8)


def _suffix(vector: ir.VectorType) -> str:
    return f"v{vector.count}f{32 if isinstance(vector.element, ir.FloatType) else 64}"


def call_llvm(builder, name: str, result, arguments):
    """Call the LLVM intrinsic `name` (with its type suffix) on `arguments`."""
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def splat(builder, scalar, count: int):
    """A vector of `count` copies of `scalar`."""
    vector = ir.VectorType(scalar.type, count)
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, scalar, INT32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(INT32, count), [0] * count))


def fused_multiply_add(builder, x, y, z):
    """x·y + z, rounded once where the processor can."""
    if not _HAS_FUSED_MULTIPLY_ADD:
        return builder.fadd(builder.fmul(x, y), z)
    return call_llvm(builder, f"llvm.fma.{_suffix(x.type)}", x.type, [x, y, z])


def lane_mask(builder, n_active, count: int):
    """True in the first `n_active` (an i64) of `count` lanes."""
    lanes = ir.Constant(ir.VectorType(INT64, count), list(range(count)))
    return builder.icmp_signed("<", lanes, splat(builder, n_active, count))


def load_vector(builder, address, vector: ir.VectorType, mask=None):
    """One vector from the typed `address`; lanes outside `mask` are not read and come as zero."""
    where = builder.bitcast(address, vector.as_pointer())
    alignment = 4 if isinstance(vector.element, ir.FloatType) else 8
    if mask is None:
        return builder.load(where, align=alignment)
    zeros = ir.Constant(vector, [0.0] * vector.count)
    name = f"llvm.masked.load.{_suffix(vector)}.p0{_suffix(vector)}"
    return call_llvm(builder, name, vector, [where, INT32(alignment), mask, zeros])


def store_vector(builder, value, address, mask=None):
    """Write `value` at the typed `address`; lanes outside `mask` are not touched."""
    vector = value.type
    where = builder.bitcast(address, vector.as_pointer())
    alignment = 4 if isinstance(vector.element, ir.FloatType) else 8
    if mask is None:
        builder.store(value, where, align=alignment)
        return
    name = f"llvm.masked.store.{_suffix(vector)}.p0{_suffix(vector)}"
    call_llvm(builder, name, ir.VoidType(), [value, where, INT32(alignment), mask])


@intrinsic
def pointer(typing_context, address, like):
    """The int64 `address` as a pointer to numbers of the type of `like`; index it as an array without a length."""
    result = types.CPointer(like)

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(result))

    return result(types.int64, like), codegen


@intrinsic
def advance(typing_context, start, n_elements):
    """The pointer `n_elements` further on."""

    def codegen(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return start(start, types.int64), codegen


@intrinsic
def address_of(typing_context, array):
    """The address of an array's first element, as int64."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, INT64)

    return types.int64(array), codegen


@intrinsic
def prefetch(typing_context, start, n_elements):
    """Ask for the cache lines of start[0:n_elements], the first few of them, without waiting."""
    element_bytes = start.dtype.bitwidth // 8

    def codegen(context, builder, signature, arguments):
        start, n = arguments
        byte = ir.IntType(8).as_pointer()
        read, keep, data = INT32(0), INT32(3), INT32(1)
        for line in range(_PREFETCHED_LINES):
            first = INT64(line * _LINE_BYTES // element_bytes)
            with builder.if_then(builder.icmp_signed("<", first, n)):
                where = builder.bitcast(builder.gep(start, [first]), byte)
                call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), [where, read, keep, data])
        return context.get_dummy_value()

    return types.void(start, types.int64), codegen


@intrinsic
def call_kernel(typing_context, op, column, step, row_start, row_stop, column_start, column_stop, scratch):
    """Call the machine code whose address is in the `column` of the row `op`, with `op` and the other arguments."""

    def codegen(context, builder, signature, arguments):
        op, column, *others = arguments
        kernel_type = ir.FunctionType(ir.VoidType(), [op.type, *(other.type for other in others)])
        address = builder.load(builder.gep(op, [column]))
        builder.call(builder.inttoptr(address, kernel_type.as_pointer()), [op, *others])
        return context.get_dummy_value()

    return types.void(types.CPointer(types.int64), *(types.int64,) * 7), codegen


@intrinsic
def row_maximum(typing_context, x, n):
    """max over x[0:n] of the pointer `x`, n >= 1; NaN where any is NaN."""

    def codegen(context, builder, signature, arguments):
        vector, (start, count) = vector_type(signature.args[0].dtype), arguments
        lanes = vector.count
        lowest = ir.Constant(vector, [-math.inf] * lanes)
        best = cgutils.alloca_once_value(builder, lowest)
        with cgutils.for_range_slice(builder, INT64(0), count, INT64(lanes)) as (index, _):
            mask = lane_mask(builder, builder.sub(count, index), lanes)
            values = load_vector(builder, builder.gep(start, [index]), vector, mask)
            values = builder.select(mask, values, lowest)
            so_far = builder.load(best)
            # keep `values` unless it is below: a NaN on either side wins
            keep = builder.fcmp_ordered("<", values, so_far)
            keep = builder.or_(keep, builder.fcmp_unordered("uno", so_far, so_far))
            builder.store(builder.select(keep, so_far, values), best)
        final = builder.load(best)
        return call_llvm(builder, f"llvm.vector.reduce.fmaximum.{_suffix(vector)}", vector.element, [final])

    return x.dtype(x, types.int64), codegen


@intrinsic
def scale_row(typing_context, out, x, factor, shift, n):
    """out[0:n] = x[0:n] · factor + shift, in whole registers: what lies up to the next register is written too."""

    def codegen(context, builder, signature, arguments):
        vector = vector_type(signature.args[0].dtype)
        out, x, factor, shift, n = arguments
        factors, shifts = splat(builder, factor, vector.count), splat(builder, shift, vector.count)
        with cgutils.for_range_slice(builder, INT64(0), n, INT64(vector.count)) as (index, _):
            values = load_vector(builder, builder.gep(x, [index]), vector)
            values = fused_multiply_add(builder, values, factors, shifts)
            store_vector(builder, values, builder.gep(out, [index]))
        return context.get_dummy_value()

    return types.void(out, x, x.dtype, x.dtype, types.int64), codegen


@intrinsic
def row_sum(typing_context, x, n):
    """sum over x[0:n] of the pointer `x`: one register of partial sums, added pairwise."""

    def codegen(context, builder, signature, arguments):
        vector, (start, count) = vector_type(signature.args[0].dtype), arguments
        lanes = vector.count
        partial = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * lanes))
        with cgutils.for_range_slice(builder, INT64(0), count, INT64(lanes)) as (index, _):
            mask = lane_mask(builder, builder.sub(count, index), lanes)
            values = load_vector(builder, builder.gep(start, [index]), vector, mask)
            builder.store(builder.fadd(builder.load(partial), values), partial)
        # "reassoc" on this one call lets LLVM add halves instead of one lane after another
        name = f"llvm.vector.reduce.fadd.{_suffix(vector)}"
        function_type = ir.FunctionType(vector.element, [vector.element, vector])
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        zero = ir.Constant(vector.element, 0.0)
        return builder.call(function, [zero, builder.load(partial)], fastmath=("reassoc",))

    return x.dtype(x, types.int64), codegen


@intrinsic
def atomic_load(typing_context, where):
    """The int64 that the pointer `where` holds, acquired."""

    def codegen(context, builder, signature, arguments):
        return builder.load_atomic(arguments[0], "acquire", 8)

    return types.int64(where), codegen


@intrinsic
def atomic_add(typing_context, where, value):
    """Add `value` to the int64 at `where`; what it held before."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", arguments[0], arguments[1], "acq_rel")

    return types.int64(where, types.int64), codegen


@intrinsic
def compare_and_swap(typing_context, where, expected, value):
    """Put `value` at `where` if that holds `expected`; whether it did."""

    def codegen(context, builder, signature, arguments):
        pair = builder.cmpxchg(*arguments, "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(where, types.int64, types.int64), codegen


@intrinsic
def spin_pause(typing_context):
    """Tell the processor that this is a waiting loop."""

    def codegen(context, builder, signature, arguments):
        if _IS_X86:
            call_llvm(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_processor(typing_context):
    """Give the rest of the time slice to another thread."""

    def codegen(context, builder, signature, arguments):
        call_llvm(builder, "SwitchToThread" if sys.platform == "win32" else "sched_yield", INT32, [])
        return context.get_dummy_value()

    return types.void(), codegen


def flush_on(builder):
    """Make this thread's denormals zero; the state to hand to `flush_off`."""
    if not FLUSHES_TO_ZERO:
        return INT32(0)
    slot = cgutils.alloca_once(builder, INT32)
    where = builder.bitcast(slot, ir.IntType(8).as_pointer())
    call_llvm(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [where])
    before = builder.load(slot)
    builder.store(builder.or_(before, INT32(_FLUSH_BITS)), slot)
    call_llvm(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [where])
    return before


def flush_off(builder, state) -> None:
    """Put back what `flush_on` gave."""
    if FLUSHES_TO_ZERO:
        slot = cgutils.alloca_once_value(builder, state)
        where = builder.bitcast(slot, ir.IntType(8).as_pointer())
        call_llvm(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [where])


@intrinsic
def flush_denormals(typing_context):
    """Make this thread's denormals zero; gives the state to hand to `restore_denormals`.

    Denormal moments of converged or dead units slow a small network two- to fivefold. Processors other than x86-64 keep
    gradual underflow: the same code, slower there, with results that differ below 1.2e-38.
    """

    def codegen(context, builder, signature, arguments):
        return flush_on(builder)

    return types.int32(), codegen


@intrinsic
def restore_denormals(typing_context, state):
    """Put back what `flush_denormals` gave."""

    def codegen(context, builder, signature, arguments):
        flush_off(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int32), codegen


def over_registers(builder, n, vector, work):
    """Do work(index, mask) for n numbers: whole registers, whose mask is None, and then what remains."""
    lanes = INT64(vector.count)
    whole = builder.mul(builder.udiv(n, lanes), lanes)
    with cgutils.for_range_slice(builder, INT64(0), whole, lanes) as (index, _):
        work(index, None)
    with builder.if_then(builder.icmp_signed("<", whole, n)):
        work(whole, lane_mask(builder, builder.sub(n, whole), vector.count))


def _by_registers(builder, out, n, vector, value_at):
    """Write value_at(index, mask) over out[0:n]."""

    def store(index, mask):
        store_vector(builder, value_at(index, mask), builder.gep(out, [index]), mask)

    over_registers(builder, n, vector, store)


@intrinsic
def copy(typing_context, out, x, n):
    """out[0:n] = x[0:n], which must not overlap: register by register, without a call."""

    def codegen(context, builder, signature, arguments):
        vector = vector_type(signature.args[0].dtype)
        out, x, n = arguments
        _by_registers(builder, out, n, vector, lambda i, mask: load_vector(builder, builder.gep(x, [i]), vector, mask))
        return context.get_dummy_value()

    return types.void(out, x, types.int64), codegen


@intrinsic
def add(typing_context, out, x, y, n):
    """out[0:n] = x[0:n] + y[0:n]; each may be the same as another, or else apart."""

    def codegen(context, builder, signature, arguments):
        vector = vector_type(signature.args[0].dtype)
        out, *operands, n = arguments

        def total(index, mask):
            return builder.fadd(*(load_vector(builder, builder.gep(o, [index]), vector, mask) for o in operands))

        _by_registers(builder, out, n, vector, total)
        return context.get_dummy_value()

    return types.void(out, x, y, types.int64), codegen
