"""A fleet: the sessions of many models that are run over the same data, one model per thread at a time.

Here are the members' memory, what they share, and the runs that change nothing; nbbp/fleet_training.py trains them. The
loop over the members is nbbp/cpu/population.py, which each thread calls once.

Legend: members are numbered as the models; a shape is a network and an optimizer whose learning rate is left open,
because only step coefficients depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nbbp import programs
from nbbp.cpu import population as jitted
from nbbp.cpu.population import FIRST_COEFFICIENTS, Stand
from nbbp.crew import Crew
from nbbp.lowering.parameters import coefficients_buffer
from nbbp.metrics import Metric
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.program import Program
from nbbp.session import FORWARD_BATCH, Session
from nbbp.sources import Chunk, Source
from nbbp.standardization import check_known
from nbbp.training import rows_of_a_run


@dataclass
class Shape:
    """What members share a program for.

    Attributes
    ----------
    number : int
    network : Sequential
    optimizer : Optimizer
        With a learning rate of 1 where it is left open.
    """

    number: int
    network: Sequential
    optimizer: Optimizer

    def __post_init__(self) -> None:
        named = {self.optimizer.settings(p.name): p.name for p in reversed(self.network.parameters)}
        #: Names of the buffers of coefficients, and a parameter of each.
        self.coefficients = {coefficients_buffer(settings): name for settings, name in named.items()}


class Fleet:
    """Sessions with one loss, the same metrics, one dtype, and networks with ends of one form.

    Parameters
    ----------
    sessions : sequence of Session
        Those of equal networks should share the network object: one program then serves them all.

    Attributes
    ----------
    first : Session
        To ask for what they have in common.
    n_values : int
        Loss and metrics.
    shapes : list of Shape
    shape_of : list of Shape
        Of each member.
    turns : ndarray of int64 (size,)
        The members in the order in which threads should take them.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.sessions = tuple(sessions)
        self.first = first = self.sessions[0]
        self.n_values, self._dtype = 1 + len(first.metrics), first.dtype
        shapes: dict[tuple, Shape] = {}
        self.shape_of = []
        for session in self.sessions:
            check_known(session.network, session.state)
            optimizer = _without_rate(session.optimizer)
            key = id(session.network), optimizer
            if key not in shapes:
                shapes[key] = Shape(len(shapes), session.network, optimizer)
            self.shape_of.append(shapes[key])
        self.shapes = list(shapes.values())
        # the longest first, so that no thread has one left when the others are done; those of a shape together
        size = [len(session.parameters) for session in self.sessions]
        self.turns = np.lexsort(([shape.number for shape in self.shape_of], np.negative(size)))

    @property
    def names(self) -> list[str]:
        """What is measured."""
        return ["loss", *(metric.name for metric in self.first.metrics)]

    def report(self, sums: np.ndarray, n_samples: int) -> dict[str, np.ndarray]:
        """Loss and metrics by name, each (…), from sums (…, n_values) over `n_samples` rows."""
        with np.errstate(all="ignore"):
            means = sums / n_samples
        report = {"loss": means[..., 0] if self.first.loss.reduction == "mean" else sums[..., 0]}
        for number, metric in enumerate(self.first.metrics, start=1):
            values = means[..., number]
            if type(metric).finalise is not Metric.finalise:
                values = np.array([metric.finalise(mean) for mean in values.ravel().tolist()]).reshape(values.shape)
            report[metric.name] = values
        return report

    # forward ----------------------------------------------------------------------------------------------

    def evaluate(self, source: Source) -> tuple[np.ndarray, int]:
        """Sums over all samples of the rows' losses and metrics, (size, n_values); and how many samples there are."""
        sums, n_samples = np.zeros((len(self.sessions), self.n_values)), 0
        for chunk in source.chunks(None, None):
            n = len(chunk.order)
            self._forward(self.evaluation(chunk.has_labels), chunk, np.empty((self.n_values, n)), None, sums)
            n_samples += n
        return sums, n_samples

    def predict(self, source: Source) -> np.ndarray:
        """What the last layers give for every sample, (size, n, n_out)."""
        parts, nothing = [], np.empty((0, 0))
        for chunk in source.chunks(None, None):
            parts.append(np.empty((len(self.sessions), len(chunk.order), self.first.n_out), self._dtype))
            self._forward(_prediction, chunk, nothing, parts[-1], nothing)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _forward(
        self, make: Callable[[Shape], Program], chunk: Chunk, values: np.ndarray, out: np.ndarray | None,
        sums: np.ndarray,
    ) -> None:  # fmt: skip
        lines = self.lines()
        lines[:, jitted.ORDER] = chunk.order.ctypes.data
        made = [make(shape) for shape in self.shapes]
        where = (0, 0) if out is None else (out.ctypes.data, out.strides[0])
        crew = Crew(len(self.sessions))
        jobs, kept = [], []
        for _ in range(crew.n_threads):
            mine = np.empty_like(values)
            stands, table = self.stands(made, chunk, mine)
            kept.append((stands, table, mine))
            jobs.append((lines, self.turns, table, len(chunk.order), *where, mine, sums, crew.counters))
        with crew:
            crew.run(jitted.run_members, jobs)

    def evaluation(self, has_labels: bool) -> Callable[[Shape], Program]:
        """What makes the program that evaluates the networks of a shape."""
        first = self.first
        return lambda shape: programs.evaluation_program(
            shape.network, first.loss, first.metrics, FORWARD_BATCH, has_labels
        )

    def stands(self, made: Sequence[Program], chunk: Chunk, values: np.ndarray) -> tuple[list[Stand], np.ndarray]:
        """A thread's stands for the programs of all shapes, and their lines."""
        brought = {"X": chunk.X, "target": chunk.y, "sample weight": chunk.weight}
        for number, row in enumerate(values):
            brought["loss values" if number == 0 else f"metric values {number - 1}"] = row
        stands = [
            Stand(program, self._dtype, tuple(shape.coefficients), brought)
            for program, shape in zip(made, self.shapes, strict=True)
        ]
        return stands, np.array([stand.line for stand in stands])

    def lines(self, batch: int = 1) -> np.ndarray:
        """The members' lines as jitted code takes them, as far as they are known before a run."""
        n = FIRST_COEFFICIENTS + max(len(shape.coefficients) for shape in self.shapes)
        lines = np.zeros((len(self.sessions), n), np.int64)
        for line, session, shape in zip(lines, self.sessions, self.shape_of, strict=True):
            rows = rows_of_a_run(batch, len(session.parameters))
            good = session.good_parameters
            memory = (session.parameters, session.state, session.parameters if good is None else good, *session.slots)
            numbers = shape.number, session.seed, session.step, session.epoch, rows, 0
            line[: len(numbers)] = numbers
            line[jitted.PARAMETERS : jitted.PARAMETERS + len(memory)] = [array.ctypes.data for array in memory]
        return lines


def _without_rate(optimizer: Optimizer) -> Optimizer:
    """The optimizer with its learning rate left open, unless something else depends on it."""
    if optimizer.groups or optimizer.schedule is not None:
        return optimizer
    return replace(optimizer, learning_rate=1.0)


def _prediction(shape: Shape) -> Program:
    return programs.prediction_program(shape.network, FORWARD_BATCH)
