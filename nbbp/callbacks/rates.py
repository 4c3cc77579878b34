"""A callback that sets the learning rate of every epoch by a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from nbbp.callbacks.base import Callback, Run

__all__ = ["LearningRateScheduler"]


class LearningRateScheduler(Callback):
    """The learning rate of every epoch from a function of your own, for any optimizer.

    What a formula can say, `nbbp.schedules` says for every update, and a file keeps it.

    Parameters
    ----------
    function : callable
        ``function(epoch)`` or ``function(epoch, rate)``: the epoch counts from 0, as in Keras, `rate` is the rate so
        far; it returns the new one, at least 0. The rate holds to the end of the run. Groups of the optimizer with a
        learning rate of their own keep their ratio to it.

    Raises
    ------
    TypeError
        If that is no function of one or two arguments.
    ValueError
        By `fit`: if the optimizer has a schedule.
    """

    def __init__(self, function: Callable[..., float]) -> None:
        if not callable(function):
            raise TypeError(f"function of LearningRateScheduler must be callable; got {function!r}")
        self.function = function
        self._takes_rate = _n_arguments(function) == 2

    def check(self, run: Run) -> None:
        schedule = run.model.optimizer.schedule
        if schedule is not None:
            raise ValueError(
                f"LearningRateScheduler sets the learning rate, but that of the optimizer is a schedule already, "
                f"{schedule!r}; expected only one of the two"
            )

    def on_epoch_begin(self, run: Run) -> None:
        epoch = run.epoch - 1
        run.learning_rate = self.function(epoch, run.learning_rate) if self._takes_rate else self.function(epoch)


def _n_arguments(function: Callable) -> int:
    """How many positional arguments it needs: 1 or 2."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions that are not written in Python do not tell
        return 1
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    needed = [one for one in positional if one.default is one.empty]
    takes_any = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    if len(needed) > 2 or not (positional or takes_any):
        raise TypeError(
            f"function of LearningRateScheduler must take an epoch, or an epoch and a rate; got {function!r}"
        )
    return max(1, len(needed))
