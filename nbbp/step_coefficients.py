"""The coefficients of an optimizer's steps, ready before they are taken."""

from __future__ import annotations

import numpy as np

from nbbp.lowering.gradients import coefficients_of_batches
from nbbp.lowering.parameters import coefficients_buffer
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.scheduling import Clock

__all__ = ["StepCoefficients"]

#: Steps that are computed at a time, at least: a call for one step costs more than a short step.
_STEPS_AHEAD = 1024


class StepCoefficients:
    """A table for each group of the optimizer's settings, one line per training batch.

    Parameters
    ----------
    network : Sequential
        With sizes.
    optimizer : Optimizer

    Attributes
    ----------
    settings : dict of str to nbbp.optimizers.Settings
        The groups, by the name of their buffer of coefficients.
    """

    def __init__(self, network: Sequential, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        settings = {optimizer.settings(parameter.name) for parameter in network.parameters}
        self.settings = {coefficients_buffer(s): s for s in settings}
        self._first, self._last, self._standing = 0, -1, ()
        self._tables: dict[str, np.ndarray] = {}

    def after(self, step: int, n_steps: int, clock: Clock) -> tuple[dict[str, np.ndarray], int]:
        """The lines of at least the `n_steps` batches after the first `step`, by buffer; for how many they last."""
        first = step + 1
        is_there = self._standing == clock.standing and self._first <= first <= step + n_steps <= self._last
        if not is_there:
            n = max(n_steps, _STEPS_AHEAD)
            with np.errstate(all="ignore"):  # a growing rate may overflow in steps that never come
                self._tables = {
                    name: coefficients_of_batches(self.optimizer, clock.settings(s), first, n, clock.count)
                    for name, s in self.settings.items()
                }
            self._first, self._last, self._standing = first, step + n, clock.standing
        tables = {name: table[first - self._first :] for name, table in self._tables.items()}
        return tables, self._last - step
