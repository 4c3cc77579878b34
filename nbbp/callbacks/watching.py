"""Watching one quantity of the history: which, and when it is better than before."""

from __future__ import annotations

import math
import numbers
from typing import Any

from nbbp.callbacks.base import Callback, Run
from nbbp.metrics import more_is_better

__all__ = ["Watching"]


class Watching(Callback):
    """A callback that watches one quantity.

    Parameters
    ----------
    monitor : str
        A name of the report, or "auto": "val_loss" where there is validation, else "loss".
    mode : {"auto", "min", "max"}
        What is better; "auto": "max" for accuracies and their like, "min" for everything else.
    min_delta : float
        By how much more, at least 0.

    Attributes
    ----------
    best : float or None
        The best value so far, in the last run.
    best_epoch : int
        When it was reached; 0 before.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0) -> None:
        kind = type(self).__name__
        if not isinstance(monitor, str) or not monitor:
            raise TypeError(f"monitor of {kind} must be a name such as 'val_loss'; got {monitor!r}")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode of {kind} must be 'auto', 'min' or 'max'; got {mode!r}")
        if isinstance(min_delta, bool) or not isinstance(min_delta, numbers.Real):
            raise TypeError(f"min_delta of {kind} must be a number; got {min_delta!r} ({type(min_delta).__name__})")
        if not 0.0 <= min_delta < math.inf:
            raise ValueError(f"min_delta of {kind} must be at least 0 and finite; got {min_delta!r}")
        self.monitor, self.mode, self.min_delta = monitor, mode, float(min_delta)
        self.best: float | None = None
        self.best_epoch = 0

    def check(self, run: Run) -> None:
        if self.monitor != "auto" and self.monitor not in run.names and not run.may_report_more:
            raise self._unknown("this fit does not report", run.names)

    def _unknown(self, what: str, names: Any) -> ValueError:
        there = ", ".join(names)
        return ValueError(f"{type(self).__name__} monitors {self.monitor!r}, which {what}; there are: {there}")

    def begin(self, run: Run) -> None:
        """Forget the run before; of a run that is resumed, go through the epochs that its history holds."""
        self.best, self.best_epoch = None, 0
        for number, epoch in enumerate(run.history.epochs):
            name = self.name(run)
            self.observe(epoch, run.history[name][number] if name in run.history else math.nan)

    def name(self, run: Run) -> str:
        """The name of what it watches."""
        if self.monitor != "auto":
            return self.monitor
        return "val_loss" if "val_loss" in run.names else "loss"

    def value(self, run: Run) -> float:
        """The watched value of the epoch that ends."""
        name = self.name(run)
        if name not in run.report:
            raise self._unknown(f"the report of epoch {run.epoch} does not hold", run.report)
        return float(run.report[name])

    def observe(self, epoch: int, value: float) -> bool:
        """Whether the value of that epoch, which may be NaN, is better than the best before, and keep it if so."""
        name = "" if self.monitor == "auto" else self.monitor
        is_large_good = self.mode == "max" or (self.mode == "auto" and more_is_better(name))
        sign = -1.0 if is_large_good else 1.0
        is_better = not math.isnan(value) and (self.best is None or sign * value < sign * self.best - self.min_delta)
        if is_better:
            self.best, self.best_epoch = value, epoch
        return is_better
