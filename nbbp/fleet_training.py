"""Training a fleet: the books of a run of many members at once; nbbp/cpu/population.py runs their epochs.

Step coefficients are computed for as many epochs of all members as some megabytes hold; then every thread takes members
and runs these epochs. Nothing is done in Python for a member and an epoch, but where a schedule asks for it.

Legend: as nbbp/fleet.py; ``sums`` (1 or 2, size, epochs, n_values) are those of the rows' losses and metrics, in
training and, where there is one, in validation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nbbp import programs
from nbbp.cpu import population as jitted
from nbbp.cpu.population import FIRST_COEFFICIENTS
from nbbp.crew import Crew
from nbbp.fleet import Fleet
from nbbp.lowering.gradients import coefficients_of_batches, coefficients_of_rates
from nbbp.ops import N_COEFFICIENTS
from nbbp.optimizers import Optimizer, Settings
from nbbp.scalars.philox import room_for_words
from nbbp.scheduling import Clock
from nbbp.sources import ArraySource
from nbbp.validation import LARGEST, first_outside

#: Bytes of step coefficients that lie ready for all members together, unless one epoch takes more.
COEFFICIENT_BYTES = 64 << 20


@dataclass
class Rates:
    """Members whose step coefficients are computed at once: those of one optimizer, in the same step."""

    optimizer: Optimizer
    settings: Settings
    column: int
    first: int
    clock: Clock | None
    members: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def settle(self) -> None:
        """Find out which rates are the same."""
        self._rates, self._row = np.unique(self.rates, return_inverse=True)

    @property
    def n_lines(self) -> int:
        """Lines of coefficients for each step."""
        return len(self._rates)

    def attach(self, lines: np.ndarray, done: int, n: int) -> np.ndarray:
        """Compute the next `n` steps, `done` being over, and write where they lie; the array to keep meanwhile."""
        first = self.first + done
        with np.errstate(all="ignore"):  # a growing rate may overflow in steps that never come
            if self.clock is None:
                table = coefficients_of_rates(self.optimizer, self.settings, self._rates, first, n)
            else:
                table = coefficients_of_batches(self.optimizer, self.settings, first, n, self.clock.count)[None]
        lines[self.members, self.column] = table.ctypes.data + self._row * table.strides[0]
        return table


@dataclass
class Outcome:
    """What a run of training gave.

    Attributes
    ----------
    sums : ndarray (1 or 2, size, epochs, n_values)
        NaN from where a member stopped.
    rates : ndarray (epochs, size)
        Learning rates of the last updates, NaN where no schedule sets them.
    stopped : dict of int to int
        The epoch in which a member's loss or parameters were no longer finite.
    """

    sums: np.ndarray
    rates: np.ndarray
    stopped: dict[int, int] = field(default_factory=dict)


class Run:
    """Some epochs of training of every member, as `nbbp.training.Training` does for one.

    Parameters
    ----------
    fleet : Fleet
    source, validation : ArraySource
        The second may be None.
    epochs, batch_size : int
    shuffle : bool

    Attributes
    ----------
    crew : Crew
        The threads.
    turns : ndarray of int64
        Members that have not stopped.
    outcome : Outcome
    """

    def __init__(
        self, fleet: Fleet, source: ArraySource, validation: ArraySource | None, epochs: int, batch_size: int,
        shuffle: bool,
    ) -> None:  # fmt: skip
        names = [*fleet.names, *(f"val_{name}" for name in fleet.names if validation is not None)]
        for session in fleet.sessions:
            session.clock.check(names)
        for session in fleet.sessions:
            session.begin_fit()
        batch = min(batch_size, source.n_samples)
        self._n_validation = 0 if validation is None else validation.n_samples
        self._fleet, self._epochs, self.turns = fleet, epochs, fleet.turns
        self._n, self._steps = source.n_samples, -(-source.n_samples // batch)
        size, self._before = len(fleet.sessions), [session.epoch for session in fleet.sessions]
        self._lines, self._rates = fleet.lines(batch), rates_of(fleet)
        self._tables: list[np.ndarray] = []
        self.crew = Crew(size)
        self.outcome = Outcome(
            np.full((1 + (validation is not None), size, epochs, fleet.n_values), np.nan),
            np.full((epochs, size), np.nan),
        )
        self._scheduled = {i for i, s in enumerate(fleet.sessions) if s.optimizer.schedule is not None}
        self._bind(source, validation, batch, shuffle)

    def _bind(self, source: ArraySource, validation: ArraySource | None, batch: int, shuffle: bool) -> None:
        """Stands and memory of every thread."""
        fleet, first = self._fleet, self._fleet.first
        (chunk,) = source.chunks()
        made = [
            programs.training_program(
                shape.network, first.loss, shape.optimizer, first.metrics, batch, chunk.has_labels, True
            )
            for shape in fleet.shapes
        ]
        evaluated = None
        if validation is not None:
            (evaluated,) = validation.chunks()
            make = fleet.evaluation(evaluated.has_labels)
            tests = [make(shape) for shape in fleet.shapes]
        rows = max(self._n_validation, min(self._n, int(self._lines[:, jitted.ROWS].max())))
        self._kept, self._threads = [], []
        for _ in range(self.crew.n_threads):
            order, words, values = np.arange(self._n), room_for_words(self._n), np.empty((fleet.n_values, rows))
            stands, table = fleet.stands(made, chunk, values)
            others, table_of_others = (stands, table) if evaluated is None else fleet.stands(tests, evaluated, values)
            self._kept.append((stands, others))
            numbers = self._n, self._n_validation, shuffle
            self._threads.append((table, table_of_others, *numbers, order, words, values))

    def run(self, shows_bar: bool) -> None:
        """Train. One whose loss is no longer finite stops there, with its last good parameters.

        After Ctrl-C each has run some number of whole epochs.
        """
        done = 0
        with self.crew, _bar(shows_bar, self._epochs * len(self.turns)) as moved:
            while done < self._epochs and len(self.turns):
                done = self._go_on(done, moved)
        largest = LARGEST[self._fleet.first.dtype.char]
        for number in self.turns:  # the last update has had no loss to show what it did
            session = self._fleet.sessions[number]
            if first_outside(session.parameters[None], -largest, largest) >= 0:
                self.outcome.stopped[int(number)] = self._epochs
                session.restore()

    def _go_on(self, done: int, moved: Callable[[int], object]) -> int:
        """Run the next epochs, `done` being over; how many then are."""
        lines, sessions = self._lines, self._fleet.sessions
        if any(sessions[i].clock.count is not None for i in self._scheduled):
            n = 1  # what the schedule counts is known for one epoch only
        else:
            line_bytes = 8 * N_COEFFICIENTS * sum(group.n_lines for group in self._rates)
            n = max(1, COEFFICIENT_BYTES // max(1, line_bytes * self._steps))
        stop = min(done + n, self._epochs)
        self._tables = []  # lets the last ones go before there are new ones, whose addresses the members' lines hold
        self._tables = [group.attach(lines, done * self._steps, (stop - done) * self._steps) for group in self._rates]
        jobs = [
            (lines, self.turns, stands, tests, done, stop, *more, self.outcome.sums, self.crew.counters)
            for stands, tests, *more in self._threads
        ]
        try:
            self.crew.run(jitted.train_members, jobs, moved)
        finally:
            self._record(done, stop)
        return stop

    def _record(self, done: int, stop: int) -> None:
        """Bring the sessions to where their members are, and take those out that have stopped."""
        lines, sessions = self._lines, self._fleet.sessions
        has_stopped = lines[self.turns, jitted.HAS_STOPPED] > 0
        for number in self.turns:
            session = sessions[number]
            session.step, session.epoch = int(lines[number, jitted.STEP]), int(lines[number, jitted.EPOCH])
            session.steps_ahead = 0
            if session.clock.schedule is None:
                session.clock.epoch = session.epoch - int(lines[number, jitted.HAS_STOPPED])
        for number in self.turns[has_stopped].tolist():
            epoch = sessions[number].epoch - self._before[number]
            self.outcome.stopped[number] = epoch
            self.outcome.sums[:, number, epoch - 1 :] = np.nan
            sessions[number].restore()
        self.turns = self.turns[~has_stopped]
        for number in set(self.turns.tolist()) & self._scheduled:
            self._follow_schedule(number, done, stop)

    def _follow_schedule(self, number: int, done: int, stop: int) -> None:
        """Note the learning rates of a member's epochs, and tell its schedule how they ended."""
        session = self._fleet.sessions[number]
        over = min(stop, session.epoch - self._before[number])
        for epoch in range(done, over):
            self.outcome.rates[epoch, number] = session.clock.rate(session.step - (over - 1 - epoch) * self._steps)
            report = {name: float(values) for name, values in self.report((number, epoch)).items()}
            session.clock.end_epoch(report)

    def report(self, which: Any = Ellipsis) -> dict[str, np.ndarray]:
        """Loss and metrics by name, those of validation with "val_" before it, of sums[k, which]."""
        report = self._fleet.report(self.outcome.sums[0][which], self._n)
        if self._n_validation:
            tests = self._fleet.report(self.outcome.sums[1][which], self._n_validation)
            report |= {f"val_{name}": values for name, values in tests.items()}
        return report


def rates_of(fleet: Fleet) -> list[Rates]:
    """Members by what their coefficients are computed from."""
    groups: dict[tuple, Rates] = {}
    for number, (session, shape) in enumerate(zip(fleet.sessions, fleet.shape_of, strict=True)):
        clock = session.clock if session.optimizer.schedule is not None else None
        for k, name in enumerate(shape.coefficients.values()):
            settings = session.optimizer.settings(name)
            # of one with a schedule the member's own clock decides
            alone = number if clock is not None else -1
            key = shape.optimizer, shape.optimizer.settings(name), k, session.step, alone
            if key not in groups:
                groups[key] = Rates(session.optimizer, settings, FIRST_COEFFICIENTS + k, session.step + 1, clock)
            groups[key].members.append(number)
            groups[key].rates.append(settings.learning_rate)
    for group in groups.values():
        group.settle()
    return list(groups.values())


@contextmanager
def _bar(is_shown: bool, total: int) -> Iterator[Callable[[int], object] | None]:
    """A progress bar over the epochs of all networks, as what moves it; None where none is wanted."""
    if not is_shown or sys.stderr is None:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="training", unit="epoch", unit_scale=True) as bar:
        yield bar.update
