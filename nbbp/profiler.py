"""Where the time goes: every op of a model's steps, timed by counters inside the engine.

Legend: a task is what a program is for ("training", "evaluation", "prediction", "gradients"); a phase a part of a step
("forward", "backward", "update" …); an op one kernel working for one layer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nbbp.cpu import counting
from nbbp.model_base import ModelBase
from nbbp.nodes import walk
from nbbp.program import Program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nbbp.session import Session

__all__ = ["OpTime", "Profile", "profile"]

#: Nanoseconds over which the processor's counter is compared with the clock, at least: 1 in 10,000 is then known.
_CALIBRATION = 5_000_000


@dataclass(frozen=True)
class OpTime:
    """The time of one op: of one kernel that works for one layer in one phase of a task.

    Attributes
    ----------
    task : {"training", "gradients", "evaluation", "prediction"}
    phase : str
        "gather", "forward", "loss", "metrics", "backward", "weight gradients", "update", "output"; "forward again"
        where checkpointing computes activations once more, "monitoring" for what a `Monitor` looks at, "augmentation".
    layer : str
        Path and kind of the layer, "0 Dense"; "network" for what works for all layers at once.
    kernel : str
    calls : int
        How often the kernel was called: once for every tile of the op in every step.
    seconds : float
        In all calls, without what the counting costs.
    share : float
        Of the seconds of all ops of the task.
    """

    task: str
    phase: str
    layer: str
    kernel: str
    calls: int
    seconds: float
    share: float


class Profile:
    """What `nbbp.profile` gives: the time of every op, as a table when printed, or as a picture.

    Attributes
    ----------
    ops : tuple of OpTime
        In the order in which they run; empty until something has run.
    steps : dict of str to int
        Batches that went through, of each task.
    seconds : float
        In all ops together, without what the counting costs.
    elapsed : float
        Seconds that the runs took by the system's clock, with it.
    overhead : float
        Nanoseconds that counting costs for every call of a kernel, measured; taken off the ops' time.
    """

    def __init__(self, model: ModelBase) -> None:
        self._model, self._lock = model, threading.Lock()
        self._counts: dict[int, tuple[Program, np.ndarray]] = {}
        self._session: Session | None = None
        self._elapsed, self._seconds_per_tick = 0, None
        self.steps: dict[str, int] = {}
        counting.compile_counting()
        self._ticks_per_call = counting.ticks_per_reading()
        self._began = counting.now(), time.perf_counter_ns()

    # while it runs ----------------------------------------------------------------------------------------------------

    def watch(self, session: Session) -> None:
        """Count the runs of this session from now on."""
        self._session = session
        session.watchers.append(self)
        session.find_short_ways()

    def stop(self) -> None:
        """Count no more."""
        if self._session is not None:
            self._session.watchers.remove(self)
            self._session.find_short_ways()
        self._seconds_per_tick = self._calibrated()

    def run(self, program: Program, plans: tuple, n_samples: int, scratch: int) -> None:
        """Run a program, counting: its table and plans, `n_samples` rows, on scratch memory at that address."""
        with self._lock:
            _, counts = self._counts.setdefault(id(program), (program, np.zeros((len(program.ops), 2), np.int64)))
            self.steps[program.task] = self.steps.get(program.task, 0) + -(-n_samples // program.batch)
        begin = time.perf_counter_ns()
        try:
            counting.run_counted(*plans, n_samples, program.batch, scratch, counts)
        finally:
            with self._lock:
                self._elapsed += time.perf_counter_ns() - begin

    def _calibrated(self) -> float:
        """Seconds of a tick, from what clock and counter say since the beginning."""
        while time.perf_counter_ns() - self._began[1] < _CALIBRATION:
            pass
        ticks, nanoseconds = counting.now() - self._began[0], time.perf_counter_ns() - self._began[1]
        return 1e-9 * nanoseconds / ticks

    # afterwards -------------------------------------------------------------------------------------------------------

    @property
    def ops(self) -> tuple[OpTime, ...]:
        per_tick = self._seconds_per_tick or self._calibrated()
        sums: dict[tuple[str, str, str, str], tuple[float, int]] = {}
        of_task: dict[str, float] = {}
        names = {node.path: f"{node.path} {type(node.layer).__name__}" for node in walk(self._nodes())}
        for program, counts in self._counts.values():
            for op, (ticks, calls) in zip(program.ops, counts.tolist(), strict=True):
                key = program.task, op.phase, names.get(op.layer, op.layer or "network"), op.kernel
                ticks = max(0.0, ticks - calls * self._ticks_per_call)
                before = sums.get(key, (0.0, 0))
                sums[key] = before[0] + ticks, before[1] + calls
                of_task[program.task] = of_task.get(program.task, 0.0) + ticks
        return tuple(
            OpTime(*key, calls, ticks * per_tick, ticks / (of_task[key[0]] or 1.0))
            for key, (ticks, calls) in sums.items()
        )

    def _nodes(self) -> Sequence[Any]:
        return self._model.network.nodes if self._session is not None else ()

    @property
    def seconds(self) -> float:
        return sum(op.seconds for op in self.ops)

    @property
    def elapsed(self) -> float:
        return 1e-9 * self._elapsed

    @property
    def overhead(self) -> float:
        return 1e9 * self._ticks_per_call * (self._seconds_per_tick or self._calibrated())

    def shares(self, by: str, task: str = "training") -> dict[str, float]:
        """Shares of a task's time, added up by "phase", "layer" or "kernel", in the order in which they run.

        ``report.shares("phase")`` is ``{"gather": 0.02, "forward": 0.31, …}``; they sum to 1.

        Raises
        ------
        ValueError
            For other names, and for a task of which nothing has run.
        """
        if by not in ("phase", "layer", "kernel"):
            raise ValueError(f"shares go by 'phase', 'layer' or 'kernel'; got {by!r}")
        if task not in self.steps:
            ran = ", ".join(map(repr, self.steps)) or "nothing"
            raise ValueError(f"there is no time of {task!r} in this profile; what has run: {ran}")
        sums: dict[str, float] = {}
        for op in self.ops:
            if op.task == task:
                sums[getattr(op, by)] = sums.get(getattr(op, by), 0.0) + op.share
        return sums

    def __repr__(self) -> str:
        return f"Profile({sum(self.steps.values())} steps, {1e3 * self.seconds:.3g} ms in {len(self.ops)} ops)"

    def __str__(self) -> str:
        lines = []
        for task, n_steps in self.steps.items():
            lines += [*self._table(task, n_steps), ""]
        if not lines:
            return "nothing has run"
        lines.append(f"On one thread; {self.overhead:.1f} ns per call, which counting costs, are taken off.")
        return "\n".join(lines)

    def _table(self, task: str, n_steps: int) -> list[str]:
        """Lines of one task: phases with their sums, and their ops below."""
        chosen = [op for op in self.ops if op.task == task]
        per_step = 1e6 * sum(op.seconds for op in chosen) / n_steps
        lines = [
            f"{task}: {n_steps:,} {'step' if n_steps == 1 else 'steps'} of {microseconds(per_step)} µs",
            "",
            f"{'phase and layer':<26}{'kernel':<26}{'µs per step':>12}{'share':>9}{'calls':>8}",
        ]
        for phase, share, group in grouped(chosen):
            seconds = sum(op.seconds for op in group)
            lines.append(f"{phase:<52}{microseconds(1e6 * seconds / n_steps):>12}{share:>9.1%}")
            for op in group:
                cost, calls = microseconds(1e6 * op.seconds / n_steps), op.calls / n_steps
                lines.append(f"  {op.layer:<24}{op.kernel:<26}{cost:>12}{op.share:>9.1%}{calls:>8.4g}")
        return lines

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the steps as bars as long as they take: phases above, their ops below.

        Parameters
        ----------
        path : path-like, optional
            Also save the picture there.

        Raises
        ------
        ImportError
            Matplotlib is missing.
        ValueError
            Nothing has run.
        """
        from nbbp.profile_drawing import plot_profile

        return plot_profile(self, path)


def grouped(ops: Sequence[OpTime]) -> list[tuple[str, float, list[OpTime]]]:
    """Phases of one task in the order in which they begin: name, share, and ops."""
    phases: dict[str, list[OpTime]] = {}
    for op in ops:
        phases.setdefault(op.phase, []).append(op)
    return [(phase, sum(op.share for op in group), group) for phase, group in phases.items()]


def microseconds(value: float) -> str:
    """Three significant digits, with thousands separated."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


@contextmanager
def profile(model: ModelBase) -> Iterator[Profile]:
    """Time every op of what a model does in a ``with`` block.

    Counters inside the engine are read around every op: outside of such a block nothing is counted and nothing is paid.
    Numbers are the same to the bit. Whatever the number of threads, a model runs on one while it is profiled, so that
    an op's time is what it costs and not what it waits for.

    Parameters
    ----------
    model : nbbp.Model
        It may be one that its first data will give sizes.

    Yields
    ------
    Profile
        To be printed, plotted and read, during the block and after it.

    Raises
    ------
    TypeError
        For anything but a `Model`.
    RuntimeError
        If the model is being profiled already.
    NotImplementedError
        If it is on a GPU, whose kernels the host's counters do not see.

    Notes
    -----
    Counted are `fit`, `train_step`, `evaluate`, `predict` and `loss_and_gradients`, the ops without what Python does
    around them. `partial_fit` and `as_njit` have no ops: there a step is one piece of machine code. The processor goes
    on while its counter is read, so that some 20 ns at the border of two ops may count for either.

    Examples
    --------
    >>> with nbbp.profile(model) as report:              # doctest: +SKIP
    ...     model.fit(X, y)
    >>> print(report)                                    # doctest: +SKIP
    >>> report.plot("where_time_goes.png")               # doctest: +SKIP
    """
    if not isinstance(model, ModelBase):
        raise TypeError(f"profile takes a Model; got {model!r} ({type(model).__name__})")
    if model.device == "cuda":
        raise NotImplementedError(
            "the counters of nbbp.profile are the host's, and this model is on a GPU; expected device='cpu'. There, "
            "NVIDIA Nsight Systems (nsys profile python …) times every kernel, and profiling/cuda.py whole steps"
        )
    session = model._session
    if model._profile is not None or (session is not None and session.watchers):
        raise RuntimeError("this model is being profiled already")
    report = model._profile = Profile(model)
    try:
        if session is not None:
            report.watch(session)
        yield report
    finally:
        model._profile = None
        report.stop()
