"""The engine's loop with the processor's counter read behind every op: where the time of a step goes.

It is a loop of its own beside that of cpu/run.py, which stays as it is: who does not ask pays nothing. The kernels are
the same machine code, called in the same order on the same numbers, so the bits are the same too.

Legend: as in cpu/run.py; ``counts`` (n_ops, 2), ticks of each op and how often it was called, of which the engine adds
to what is there. A tick is what `read_counter` counts, some 0.3 to 40 ns.
"""

import os
import platform
import sys

import numpy as np
from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from nbbp import ops
from nbbp.compiling import jit
from nbbp.cpu import simd

#: Set NBBP_CYCLE_COUNTER=0 to take the plain fallback that processors other than x86-64 and ARM64 take.
_WANTS_CYCLES = os.environ.get("NBBP_CYCLE_COUNTER", "1") != "0"
_MACHINE = platform.machine().lower()
_HAS_X86_COUNTER = _WANTS_CYCLES and _MACHINE in ("x86_64", "amd64")
_HAS_ARM_COUNTER = _WANTS_CYCLES and _MACHINE in ("arm64", "aarch64")
#: Readings whose mean is what one costs, and how often that is measured for the least.
_READINGS, _REPEATS = 1000, 20
#: The system clock that only ever goes on, by its number there.
_CLOCK_MONOTONIC = 6 if sys.platform == "darwin" else 1


@intrinsic
def read_counter(typing_context):
    """A counter of the processor's that goes on at one rate, as int64.

    x86-64: the time stamp counter. ARM64: the virtual counter. Others, or by switch: the system's clock in ns.
    """

    def codegen(context, builder, signature, arguments):
        if _HAS_X86_COUNTER:
            return simd.call_llvm(builder, "llvm.readcyclecounter", simd.INT64, [])
        if _HAS_ARM_COUNTER:
            read = ir.InlineAsm(ir.FunctionType(simd.INT64, []), "mrs $0, cntvct_el0", "=r", side_effect=True)
            return builder.call(read, [])
        return _system_clock(builder)

    return types.int64(), codegen


def _system_clock(builder):
    """Nanoseconds of the system's monotonic clock, or ticks of Windows's performance counter."""
    place = cgutils.alloca_once(builder, ir.ArrayType(simd.INT64, 2))
    where = builder.bitcast(place, simd.INT64.as_pointer())
    if sys.platform == "win32":
        simd.call_llvm(builder, "QueryPerformanceCounter", simd.INT32, [where])
        return builder.load(where)
    simd.call_llvm(builder, "clock_gettime", simd.INT32, [simd.INT32(_CLOCK_MONOTONIC), where])
    seconds, nanoseconds = builder.load(where), builder.load(builder.gep(where, [simd.INT64(1)]))
    return builder.add(builder.mul(seconds, simd.INT64(10**9)), nanoseconds)


@jit()
def now():
    """The counter, for who is in Python."""
    return read_counter()


@jit()
def run_counted(table, tiles, phases, due_tiles, due_phases, due, period, n_samples, batch, scratch, counts):
    """`run.run_alone_monitored`, each op with its time: from the end of the op before it to its own."""
    state = simd.flush_denormals()
    rows_of_table = simd.pointer(simd.address_of(table), int64(0))
    before = read_counter()
    for step in range((n_samples + batch - 1) // batch):
        n_rows = min(batch, n_samples - step * batch)
        its_tiles, its_phases = tiles, phases
        if step == due:
            its_tiles, its_phases = due_tiles, due_phases
            due += period
        for tile in range(its_phases[len(its_phases) - 1]):
            row_start, row_stop = its_tiles[tile, 2], min(its_tiles[tile, 3], n_rows)
            if row_start < row_stop:
                for op in range(its_tiles[tile, 0], its_tiles[tile, 1]):
                    row = simd.advance(rows_of_table, op * ops.N_COLUMNS)
                    simd.call_kernel(
                        row, ops.KERNEL, step, row_start, row_stop, its_tiles[tile, 4], its_tiles[tile, 5], scratch
                    )
                    before = _count(counts, op, before)
    simd.restore_denormals(state)


@jit()
def _count(counts, op, before):
    """Add the ticks since `before` to those of an op; what the counter says now."""
    after = read_counter()
    counts[op, 0] += after - before
    counts[op, 1] += 1
    return after


@jit()
def _count_nothing(counts, n):
    """Ticks that `n` readings take, one after the other, with nothing between them."""
    first = before = read_counter()
    for _ in range(n):
        before = _count(counts, 0, before)
    return before - first


def ticks_per_reading() -> float:
    """What reading and adding up costs for one op, at best, which is part of every op's time."""
    counts = np.zeros((1, 2), np.int64)
    return min(_count_nothing(counts, _READINGS) for _ in range(_REPEATS)) / _READINGS


def compile_counting() -> None:
    """Compile (or load from the cache) the counted loop, on nothing."""
    nothing = np.zeros((0, ops.N_TILE_COLUMNS), np.int64), np.zeros(1, np.int64)
    run_counted(np.zeros((0, ops.N_COLUMNS), np.int64), *nothing, *nothing, 0, 1, 0, 1, 0, np.zeros((0, 2), np.int64))
    ticks_per_reading()
    now()
