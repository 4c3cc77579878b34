"""A schedule that watches the training: it lowers the rate when a quantity stops becoming better."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from nbbp.schedules.base import Schedule

__all__ = ["Plateau", "ReduceOnPlateau"]


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """A drop whenever a monitored quantity has not become better for a while (ReduceLROnPlateau).

    After more than `patience` epochs in a row without a new best, the rate is multiplied by `factor`; then `cooldown`
    epochs pass before it waits again. `fit` tells it of every epoch.

    Settings that all schedules share: `Schedule`.

    Parameters
    ----------
    monitor : str
        A name of the history, or "auto": "val_loss" where `fit` has validation data, "loss" where not.
    mode : {"min", "max"}
        What is better.
    factor : float
        In (0, 1).
    patience, cooldown : int
        Epochs, at least 0.
    threshold : float
        What is too little to be better: a share of the best so far, or with ``threshold_mode="abs"`` a difference.
    threshold_mode : {"rel", "abs"}
    end : float
        The rate falls no further; at least 0.
    eps : float
        A smaller drop than this is none.
    """

    _: KW_ONLY
    unit: str = "epoch"
    monitor: str = "auto"
    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    end: float = 0.0
    eps: float = 1e-8

    name: ClassVar[str] = "reduce_on_plateau"
    ranges: ClassVar[Mapping[str, tuple]] = {
        **Schedule.ranges,
        "factor": (0.0, 1.0, True),
        "threshold": (0.0, math.inf),
        "eps": (0.0, math.inf),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit != "epoch":
            raise ValueError(f"unit of ReduceOnPlateau can only be 'epoch'; got {self.unit!r}")
        if not isinstance(self.monitor, str) or not self.monitor:
            raise TypeError(f"monitor of ReduceOnPlateau must be a name such as 'val_loss'; got {self.monitor!r}")
        for setting, allowed in (("mode", ("min", "max")), ("threshold_mode", ("rel", "abs"))):
            if getattr(self, setting) not in allowed:
                words = " or ".join(map(repr, allowed))
                raise ValueError(f"{setting} of ReduceOnPlateau must be {words}; got {getattr(self, setting)!r}")
        for setting in ("patience", "cooldown"):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"{setting} of ReduceOnPlateau must be an integer; got {value!r}")
            if value < 0:
                raise ValueError(f"{setting} of ReduceOnPlateau must be at least 0; got {value}")
            object.__setattr__(self, setting, int(value))

    def rates(self, counts: Any, learning_rate: float | None = None) -> np.ndarray:
        """The learning rates after so many reductions."""
        counts = np.asarray(counts, np.int64)
        rates = [self.learning_rate if learning_rate is None else learning_rate]
        for _ in range(int(counts.max(initial=0))):
            lower = max(rates[-1] * self.factor, self.end)
            if rates[-1] - lower <= self.eps:  # and so from here on
                break
            rates.append(lower)
        return np.array(rates)[np.minimum(counts, len(rates) - 1)]

    def observe(self, state: Plateau, value: float) -> Plateau:
        """The state after an epoch in which the monitored quantity was `value`."""
        is_better = self._is_better(value, state.best)
        best, bad, cooldown = (value if is_better else state.best), (0 if is_better else state.bad + 1), state.cooldown
        if cooldown > 0:
            bad, cooldown = 0, cooldown - 1
        if bad > self.patience:
            return Plateau(best, 0, self.cooldown, state.reductions + 1)
        return Plateau(best, bad, cooldown, state.reductions)

    def _is_better(self, value: float, best: float | None) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        if best is None:
            return sign * value < math.inf  # the worst there is, and NaN, are no beginning
        if self.threshold_mode == "abs":
            return sign * value < sign * best - self.threshold
        return sign * value < sign * best * (1.0 - sign * self.threshold)


@dataclass(frozen=True)
class Plateau:
    """Where a `ReduceOnPlateau` stands.

    Attributes
    ----------
    best : float or None
        Of what it monitors, so far.
    bad, cooldown : int
        Epochs in a row without a new best, and epochs before it counts them again.
    reductions : int
        How often it has lowered the rate.
    """

    best: float | None = None
    bad: int = 0
    cooldown: int = 0
    reductions: int = 0
