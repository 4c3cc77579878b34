"""Where a model stands in its optimizer's schedule: what counts, and what a plateau has been told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from nbbp.optimizers import Optimizer, Settings
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
    override : float or None
        The learning rate in place of the optimizer's, which has no schedule then.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.base = optimizer.learning_rate
        self.schedule, self.per_update = optimizer.schedule, optimizer.accumulation_steps
        self.epoch, self.plateau = 0, Plateau()
        self.override: float | None = None

    @property
    def count(self) -> int | None:
        """What the schedule counts now; None where that is the updates, or where there is no schedule."""
        if self.schedule is None or self.schedule.unit == "step":
            return None
        return self.plateau.reductions if isinstance(self.schedule, ReduceOnPlateau) else self.epoch

    @property
    def standing(self) -> tuple:
        """What the coefficients of a step depend on beside its number."""
        return self.count, self.override

    def settings(self, settings: Settings) -> Settings:
        """The optimizer's settings for a parameter, at the rate that holds now; its own rate keeps the ratio."""
        if self.override is None:
            return settings
        is_own = settings.learning_rate != self.base
        rate = self.override * (settings.learning_rate / self.base) if is_own else self.override
        return replace(settings, learning_rate=rate)

    def rate(self, n_batches: int) -> float:
        """The learning rate of the last update after so many training batches, at least 1."""
        if self.schedule is None:
            return self.base if self.override is None else self.override
        last = (n_batches - 1) // self.per_update
        with np.errstate(all="ignore"):  # a growing rate may overflow: the loss will tell
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

    def end_epoch(self, report: Mapping[str, float]) -> None:
        """Go on to the next epoch, with what the history says of the last."""
        self.epoch += 1
        if isinstance(self.schedule, ReduceOnPlateau):
            monitor = self.schedule.monitor
            if monitor == "auto":
                monitor = "val_loss" if "val_loss" in report else "loss"
            self.plateau = self.schedule.observe(self.plateau, report[monitor])
