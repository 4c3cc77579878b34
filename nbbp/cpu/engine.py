"""The CPU engine: gives a program memory and addresses, and runs it on one thread or a team.

Legend: a bound program owns its workspace; the parameters and slots are the model's; everything that a caller brings
(data, order, results) is attached before a run.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from nbbp import ops
from nbbp.cpu import kernels
from nbbp.cpu.run import run_alone, run_alone_monitored, run_in_team
from nbbp.cpu.team import LINE
from nbbp.cpu.trial import check_bounds

#: Bytes: a cache line, and the widest vector register.
_ALIGNMENT = 64

#: Of a program whose steps are not monitored: no tiles, and a step that no run has.
_NO_TILES, _NO_PHASES, _NEVER = np.zeros((0, ops.N_TILE_COLUMNS), np.int64), np.zeros(1, np.int64), 1 << 62

_n_threads: int | None = None
_pool: tuple[int, ThreadPoolExecutor] | None = None


def aligned(n: int, dtype: Any) -> np.ndarray:
    """`n` zeros that begin at a cache line."""
    dtype = np.dtype(dtype)
    raw = np.zeros(n * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + n * dtype.itemsize].view(dtype)


def set_num_threads(n: int) -> None:
    """Let networks train on `n` threads, at least 1; results do not depend on it.

    Short steps run on one thread whatever is set here, because sharing them would cost more than it saves.

    Raises
    ------
    ValueError
        If `n` is no integer of at least 1.
    """
    global _n_threads
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"the number of threads must be an integer of at least 1; got {n!r}")
    _n_threads = int(n)


def get_num_threads() -> int:
    """Threads that networks train on: what was set, or the processors this process may use."""
    if _n_threads is not None:
        return _n_threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads_beside(n: int) -> ThreadPoolExecutor:
    """A pool of at least `n` threads beside the calling one, kept from run to run.

    A smaller one is dropped, not shut down: another thread of the caller's may be about to give it work. Its threads
    end when it is collected.
    """
    global _pool
    pool = _pool
    if pool is None or pool[0] < n:
        pool = _pool = n, ThreadPoolExecutor(n, thread_name_prefix="nbbp")
    return pool[1]


def _forget_threads() -> None:
    """After a fork the child has none of the parent's threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


class BoundProgram:
    """A program with memory: ready to run on data.

    Parameters
    ----------
    program : nbbp.program.Program
    dtype : dtype
    buffers : dict of str to ndarray
        The model's own buffers ("parameters", "slot 0", …); their memory is used, not copied.
    seed : int
        Key of the layers' random numbers.
    watchers : list
        While it holds somebody, runs are theirs: ``watchers[0].run(…)`` (see nbbp/profiler.py).

    Attributes
    ----------
    workspace : ndarray
        Outputs, output gradients and, where the program keeps it whole, the gradient.
    lock : Lock
        To be held from `attach` to the end of what the run leaves behind.
    """

    def __init__(
        self, program: Any, dtype: Any, buffers: dict[str, np.ndarray], seed: int = 0, watchers: Sequence[Any] = ()
    ) -> None:
        self.program, self.dtype, self.lock = program, np.dtype(dtype), threading.Lock()
        self.watchers = watchers
        self.tiles, self.phases = program.tiles, program.phases
        self.due_tiles, self.due_phases = program.monitored or (_NO_TILES, _NO_PHASES)
        self._due = _NEVER, 1
        with np.errstate(over="ignore"):  # what is beyond the dtype is infinite, as a limit is that nothing reaches
            self.settings = np.array(program.settings, self.dtype)
        self._buffers = dict(buffers)
        places, total = {}, 0
        for name, length in program.buffers.items():
            places[name] = total
            total += -(-length // 16) * 16
        self.workspace = aligned(total, self.dtype)
        for name, length in program.buffers.items():
            self._buffers[name] = self.workspace[places[name] : places[name] + length]
        self._buffers["settings"] = self.settings
        for name, column, stride in program.ones:
            self._buffers[name].reshape(-1, stride)[:, column] = 1
        self.scratch = aligned(program.scratch, self.dtype)
        self._team_scratch: list[np.ndarray] = []
        self.table = np.zeros((len(program.ops), ops.N_COLUMNS), np.int64)
        self._attached: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._fill_table()
        self.table[:, ops.SEED] = seed

    def _fill_table(self) -> None:
        itemsize = self.dtype.itemsize
        waiting: dict[str, list[tuple[int, int]]] = {}
        for row, op in enumerate(self.program.ops):
            self.table[row, ops.KERNEL] = kernels.compiled(op.kernel, self.dtype.name, op.variant).address
            if op.kernel == "deep_product":
                self.table[row, ops.OTHERWISE] = kernels.compiled("product", self.dtype.name).address
            if isinstance(op.variant, ops.UserFunction):
                check_bounds(op.variant, op.kernel, self.dtype, op.columns)
            self.table[row, ops.BATCH] = self.program.batch
            for column, value in op.columns.items():
                if isinstance(value, (int, np.integer)):
                    self.table[row, column] = value
                elif value.buffer in self._buffers:
                    self.table[row, column] = self._buffers[value.buffer].ctypes.data + value.offset * itemsize
                else:
                    waiting.setdefault(value.buffer, []).append((row * ops.N_COLUMNS + column, value.offset * itemsize))
        for name, places in waiting.items():
            index, offset = np.array(places, np.int64).T
            self._attached[name] = (np.ascontiguousarray(index), np.ascontiguousarray(offset))

    def buffer(self, name: str) -> np.ndarray:
        """The memory of a workspace buffer."""
        return self._buffers[name]

    def attach(self, name: str, array: np.ndarray | None) -> None:
        """Let the program read or write the caller's `array` (C-contiguous) under `name`; None for none."""
        if name in self._attached:
            index, offset = self._attached[name]
            self.table.ravel()[index] = 0 if array is None else array.ctypes.data + offset
            self._buffers[name] = array  # keeps it alive

    def links(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The flat places in the table that hold addresses within an attached buffer, and how many bytes into it."""
        nothing = np.zeros(0, np.int64)
        return self._attached.get(name, (nothing, nothing))

    def cells(self, names: set[str]) -> np.ndarray:
        """The flat places in the table that hold addresses of these attached buffers."""
        nothing = np.zeros(0, np.int64)  # nothing else, where all parameters are frozen
        return np.concatenate([nothing, *(self._attached[name][0] for name in sorted(names & set(self._attached)))])

    def count_from(self, first_step: int) -> None:
        """Let the next run's steps be these, for the layers' random numbers."""
        self.table[:, ops.FIRST_STEP] = first_step

    def monitor(self, due: int, period: int) -> None:
        """Let the step `due` of the next run, counted from 0, and every `period`-th after it be monitored."""
        self._due = due, period
        self.table[:, ops.PERIOD] = period

    def n_threads(self) -> int:
        """Threads that a run takes: as many as are set, if the steps are worth it and every one can have a tile."""
        if not self.program.is_shared:
            return 1
        return min(get_num_threads(), int(np.diff(self.phases).max()))

    def run(self, n_samples: int) -> None:
        """Run every step of `n_samples` rows of what is attached; it is then the caller's alone again."""
        try:
            self._run(n_samples)
        finally:
            for name in self._attached:
                self._buffers[name] = None

    def _run(self, n_samples: int) -> None:
        self.table[:, ops.N_SAMPLES] = n_samples
        plans = self.table, self.tiles, self.phases, self.due_tiles, self.due_phases, *self._due
        if self.watchers:
            self.watchers[0].run(self.program, plans, n_samples, self.scratch.ctypes.data)
            return
        batch = self.program.batch
        n_threads = self.n_threads()
        if n_threads == 1:
            address = self.scratch.ctypes.data
            if self.program.monitored is None:
                run_alone(self.table, self.tiles, self.phases, n_samples, batch, address)
            else:
                run_alone_monitored(*plans, n_samples, batch, address)
            return
        while len(self._team_scratch) < n_threads - 1:
            self._team_scratch.append(aligned(self.program.scratch, self.dtype))
        counters = aligned((1 + n_threads) * LINE, np.int64)
        scratches = [self.scratch, *self._team_scratch[: n_threads - 1]]
        members = [
            (*plans, n_samples, batch, scratch.ctypes.data, counters, thread, n_threads)
            for thread, scratch in enumerate(scratches)
        ]
        pool = _threads_beside(n_threads - 1)
        others = []
        try:
            with contextlib.suppress(RuntimeError):  # the interpreter is ending and starts no threads: one does it all
                for member in members[1:]:
                    others.append(pool.submit(run_in_team, *member))
            run_in_team(*members[0])
        finally:  # also after Ctrl-C: nobody may write on when this returns
            wait(others)

    @staticmethod
    def compile_team() -> None:
        """Compile (or load from the cache) what a team of threads runs, on nothing."""
        table = np.zeros((0, ops.N_COLUMNS), np.int64)
        nothing = _NO_TILES, _NO_PHASES
        run_in_team(table, *nothing, *nothing, _NEVER, 1, 0, 1, 0, aligned(3 * LINE, np.int64), 0, 2)
