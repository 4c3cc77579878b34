"""Writing LLVM IR for one sample: stack buffers, vectors with a tail, loops, and calls of plain Python formulas.

Legend: a buffer is a pointer to numbers of one dtype. Buffers on the stack begin at a cache line and are padded to
whole vector registers, so that they are read and written in whole registers; arrays of the caller are read and written
to their last number and no further, the last register masked.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir
from numba import types
from numba.core import cgutils, compiler
from numba.core.cpu_options import FastMathOptions
from numba.core.typing import signature as signature_of

from nbbp.compiling import FASTMATH
from nbbp.cpu import simd

_LINE_BYTES = 64
#: Lanes of registers so short that LLVM may find nothing to gain: where it was told otherwise it says so on stderr.
_FEW_LANES = 2


class Emitter:
    """Writes instructions on numbers of one dtype into the function that Numba is compiling.

    Attributes
    ----------
    scalar : numba type
        float32 or float64.
    vector : ir.VectorType
        One register of them.
    lanes : int
        How many it holds.
    """

    def __init__(self, context, builder, scalar: types.Float) -> None:
        self.context, self.builder, self.scalar = context, builder, scalar
        self.vector = simd.vector_type(scalar)
        self.lanes = self.vector.count
        self.element = self.vector.element
        self.pointer = types.CPointer(scalar)

    # numbers ---------------------------------------------------------------------------------------------------------

    def index(self, i: int | ir.Value) -> ir.Value:
        """An int64, constant or not."""
        return simd.INT64(i) if isinstance(i, int) else i

    def times(self, i: int | ir.Value, factor: int) -> int | ir.Value:
        """i · factor, a Python int where i is one."""
        return i * factor if isinstance(i, int) else self.builder.mul(i, self.index(factor))

    def plus(self, i: int | ir.Value, j: int | ir.Value) -> int | ir.Value:
        """i + j, a Python int where both are."""
        if isinstance(i, int) and isinstance(j, int):
            return i + j
        return self.builder.add(self.index(i), self.index(j))

    def number(self, value: float) -> ir.Constant:
        """A constant of the dtype."""
        return ir.Constant(self.element, value)

    def converted(self, value: ir.Value) -> ir.Value:
        """A float64 in the dtype."""
        return value if self.scalar == types.float64 else self.builder.fptrunc(value, self.element)

    def padded(self, n: int) -> int:
        """`n` rounded up to whole registers."""
        return -(-n // self.lanes) * self.lanes

    # memory ----------------------------------------------------------------------------------------------------------

    def buffer(self, n: int) -> ir.Value:
        """Room for `n` numbers on the stack, with padding; what it holds is not set."""
        with self.builder.goto_entry_block():
            block = self.builder.alloca(ir.ArrayType(self.element, max(self.padded(n), self.lanes)))
            block.align = _LINE_BYTES
            return self.builder.bitcast(block, self.element.as_pointer())

    def at(self, start: ir.Value, i: int | ir.Value) -> ir.Value:
        """The address of start[i]."""
        return self.builder.gep(start, [self.index(i)])

    def settle(self, buffer: ir.Value) -> ir.Value:
        """The same buffer, as memory that LLVM cannot see into: it stays memory.

        Else LLVM keeps a small buffer in a register and shuffles that for each number to be broadcast, where a load
        would broadcast it for free.
        """
        kind = ir.FunctionType(buffer.type, [buffer.type])
        return self.builder.asm(kind, "", "=r,0,~{memory}", [buffer], side_effect=True)

    def _mask(self, n_active: int) -> ir.Constant | None:
        if n_active >= self.lanes:
            return None
        kind = ir.VectorType(ir.IntType(1), self.lanes)
        return ir.Constant(kind, [lane < n_active for lane in range(self.lanes)])

    def load(self, start: ir.Value, i: int | ir.Value = 0, n: int | None = None) -> ir.Value:
        """The register start[i : i + lanes], of which only the first `n` numbers are read; the others are 0."""
        return simd.load_vector(
            self.builder, self.at(start, i), self.vector, self._mask(self.lanes if n is None else n)
        )

    def store(self, value: ir.Value, start: ir.Value, i: int | ir.Value = 0, n: int | None = None) -> None:
        """Write the first `n` numbers of the register (all without `n`) to start[i:]."""
        simd.store_vector(self.builder, value, self.at(start, i), self._mask(self.lanes if n is None else n))

    def broadcast(self, start: ir.Value, i: int | ir.Value) -> ir.Value:
        """A register of copies of start[i]."""
        return self.splat(self.builder.load(self.at(start, i)))

    def splat(self, value: ir.Value) -> ir.Value:
        """A register of copies of a number."""
        return simd.splat(self.builder, value, self.lanes)

    def shuffle(self, x: ir.Value, lanes: Sequence[int], y: ir.Value | None = None) -> ir.Value:
        """The lanes of x, and behind them those of y, in this order."""
        index = ir.Constant(ir.VectorType(simd.INT32, self.lanes), list(lanes))
        return self.builder.shuffle_vector(x, x if y is None else y, index)

    def first(self, value: ir.Value, n: int) -> ir.Value:
        """The first `n` lanes of a register, and zeros."""
        mask = self._mask(n)
        return value if mask is None else self.builder.select(mask, value, self.zeros())

    def total(self, values: Sequence[ir.Value]) -> ir.Value:
        """The sum of registers, added in pairs."""
        values = list(values)
        while len(values) > 1:
            pairs = [values[k : k + 2] for k in range(0, len(values), 2)]
            values = [self.builder.fadd(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        return values[0]

    def zeros(self) -> ir.Constant:
        """A register of zeros."""
        return ir.Constant(self.vector, [0.0] * self.lanes)

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """x·y + z of registers."""
        return simd.fused_multiply_add(self.builder, x, y, z)

    def copy(self, out: ir.Value, x: ir.Value, n: int, adds: bool = False) -> None:
        """out[0:n] = x[0:n] (or +=), apart from each other, both read and written exactly so far."""

        def move(i: int | ir.Value, active: int) -> None:
            value = self.load(x, i, active)
            self.store(self.builder.fadd(self.load(out, i, active), value) if adds else value, out, i, active)

        self.by_register(n, move)

    def store_product(self, x: ir.Value, y: ir.Value, start: ir.Value, i: int | ir.Value, n: int, adds: bool) -> None:
        """start[i : i + n] = x·y of registers, or +=."""
        product = self.multiply_add(x, y, self.load(start, i, n)) if adds else self.builder.fmul(x, y)
        self.store(product, start, i, n)

    def clear_padding(self, buffer: ir.Value, n: int) -> None:
        """Zero what a buffer on the stack holds behind its first `n` numbers."""
        whole = n // self.lanes * self.lanes
        if whole < n:
            self.store(self.first(self.load(buffer, whole), n - whole), buffer, whole)

    # loops -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, stop: int) -> Iterator[ir.Value]:
        """``for i in range(stop)``."""
        with cgutils.for_range(self.builder, simd.INT64(stop)) as turn:
            yield turn.index

    def accumulate(
        self, n: int, sums: list[ir.Value], body: Callable[[int | ir.Value, list[ir.Value]], list[ir.Value]],
        most_unrolled: int,
    ) -> list[ir.Value]:  # fmt: skip
        """``for i in range(n): sums = body(i, sums)`` with registers that stay registers; what they end as."""
        if n <= most_unrolled:
            for i in range(n):
                sums = body(i, sums)
            return sums
        builder, before = self.builder, self.builder.block
        turn, after = builder.append_basic_block("accumulate"), builder.append_basic_block("after_accumulate")
        builder.branch(turn)
        builder.position_at_end(turn)
        i = builder.phi(simd.INT64)
        phis = [builder.phi(value.type) for value in sums]
        new = body(i, list(phis))
        following = builder.add(i, simd.INT64(1))
        for phi, first, value in zip([i, *phis], [simd.INT64(0), *sums], [following, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, simd.INT64(n)), turn, after)
        builder.position_at_end(after)
        return new

    def repeat(self, n: int, body: Callable[[int | ir.Value], None], most_unrolled: int) -> None:
        """``for i in range(n): body(i)``, written out where `n` is at most `most_unrolled`."""
        if n <= most_unrolled:
            for i in range(n):
                body(i)
        else:
            with self.loop(n) as i:
                body(i)

    def by_register(self, n: int, body: Callable[[int | ir.Value, int], None], most_unrolled: int = 8) -> None:
        """``body(i, active)`` for each register of `n` numbers: where it begins, and how many it has."""
        whole = n // self.lanes
        self.repeat(whole, lambda r: body(self.times(r, self.lanes), self.lanes), most_unrolled)
        if n % self.lanes:
            body(whole * self.lanes, n % self.lanes)

    # formulas --------------------------------------------------------------------------------------------------------

    def call(
        self, function: Callable, result: types.Type, kinds: Sequence[types.Type], arguments: Sequence[ir.Value]
    ) -> ir.Value:
        """Compile a plain Python function of numbers and pointers into the caller, inlined, and call it."""
        flags = compiler.Flags()
        flags.fastmath = FastMathOptions(FASTMATH)
        flags.error_model = "numpy"
        flags.forceinline = True
        signature = signature_of(result, *kinds)
        compiled = self.context.compile_subroutine(self.builder, function, signature, flags=flags)
        _, value = self.context.call_internal_no_propagate(self.builder, compiled.fndesc, signature, arguments)
        return value

    def map(
        self,
        function: Callable,
        outputs: Sequence[ir.Value],
        inputs: Sequence[ir.Value],
        n: int,
        more: Sequence[ir.Value] = (),
        kinds: Sequence[types.Type] | None = None,
    ) -> None:
        """outputs[k][i] = function(inputs[0][i], inputs[1][i], …, *more)[k] for i < n.

        All are of the dtype, but that `kinds` says otherwise of `more`. A plain Python function of scalars becomes
        machine code on whole registers: LLVM is told their width, and that no turn of the loop waits for another. `n`
        counts whole registers; an output may be one of the inputs, else none may overlap.
        """
        builder = self.builder
        kinds = [self.scalar] * len(inputs) + list([self.scalar] * len(more) if kinds is None else kinds)
        result = self.scalar if len(outputs) == 1 else types.UniTuple(self.scalar, len(outputs))
        before = builder.block
        body, after = builder.append_basic_block("map"), builder.append_basic_block("after_map")
        builder.branch(body)
        builder.position_at_end(body)
        i = builder.phi(simd.INT64)
        i.add_incoming(simd.INT64(0), before)
        identity = self._parallel_loop()
        arguments = [builder.load(self.at(array, i)) for array in inputs]
        memory = list(arguments)
        value = self.call(function, result, kinds, [*arguments, *more])
        for k, array in enumerate(outputs):
            part = value if len(outputs) == 1 else builder.extract_value(value, k)
            memory.append(builder.store(part, self.at(array, i)))
        for access in memory:
            access.set_metadata("llvm.mem.parallel_loop_access", identity)
        following = builder.add(i, simd.INT64(1))
        i.add_incoming(following, builder.block)
        again = builder.cbranch(builder.icmp_signed("<", following, simd.INT64(n)), body, after)
        again.set_metadata("llvm.loop", identity)
        builder.position_at_end(after)

    def _parallel_loop(self) -> ir.MDValue:
        """The identity of a loop (a node that names itself first) whose turns may run side by side, L at once."""
        module = self.builder.module
        name = ir.MetaDataString(module, f"loop {len(module.metadata)}")
        settings = [
            ("vectorize.width", simd.INT32(self.lanes)),
            ("interleave.count", simd.INT32(1)),
            ("unroll.disable",),  # short loops would be written out, number by number, before they are vectorised
        ]
        if self.lanes <= _FEW_LANES:
            settings = []
        hints = [
            module.add_metadata([ir.MetaDataString(module, f"llvm.loop.{key}"), *value]) for key, *value in settings
        ]
        node = module.add_metadata([name, *hints])
        node.operands = (node, *hints)
        return node
