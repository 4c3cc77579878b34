"""Where a model stands in its optimizer's schedule: what counts, and what a plateau has been told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nbbp.optimizers import Optimizer
from nbbp.schedules import Plateau, ReduceOnPlateau

__all__ = ["Clock"]


class Clock:
    """The count at which a schedule stands.

    Parameters
    ----------
    optimizer : Optimizer

    Attributes
    ----------
    epoch : int
        Epochs of `fit` that are over: what a schedule of epochs counts.
    plateau : Plateau
        Of a `ReduceOnPlateau`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.schedule, self.per_update = optimizer.schedule, optimizer.accumulation_steps
        self.epoch, self.plateau = 0, Plateau()

    @property
    def count(self) -> int | None:
        """What the schedule counts now; None where that is the updates, or where there is no schedule."""
        if self.schedule is None or self.schedule.unit == "step":
            return None
        return self.plateau.reductions if isinstance(self.schedule, ReduceOnPlateau) else self.epoch

    def rate(self, n_batches: int) -> float:
        """The learning rate of the last update after so many training batches, at least 1."""
        last = (n_batches - 1) // self.per_update
        return float(self.schedule.rates(last if self.count is None else self.count))

    def check(self, names: Iterable[str]) -> None:
        """Refuse to watch a quantity that is not among these.

        Raises
        ------
        ValueError
        """
        if isinstance(self.schedule, ReduceOnPlateau):
            names, monitor = list(names), self.schedule.monitor
            if monitor not in ("auto", *names):
                there = f"there are: {', '.join(names)}"
                raise ValueError(f"ReduceOnPlateau monitors {monitor!r}, which this fit does not report; {there}")

    def end_epoch(self, epoch: int, report: Mapping[str, float]) -> None:
        """Go on to the next epoch, of which `epoch` are over, with what the history says of the last."""
        self.epoch = epoch
        if isinstance(self.schedule, ReduceOnPlateau):
            monitor = self.schedule.monitor
            if monitor == "auto":
                monitor = "val_loss" if "val_loss" in report else "loss"
            self.plateau = self.schedule.observe(self.plateau, report[monitor])
