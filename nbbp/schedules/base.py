"""What all schedules share, and the constant one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from nbbp.layers.base import number_in, positive_integer

__all__ = ["Constant", "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """What all schedules share; the schedules themselves are the subclasses.

    Parameters
    ----------
    learning_rate : float
        The rate that it starts from, above 0 (the highest, of `OneCycle`).
    unit : {"step", "epoch"}
        What it counts: updates, or epochs of `fit`. Updates outside `fit` are in no epoch.

    Attributes
    ----------
    name : str
        What files call it.

    Raises
    ------
    TypeError, ValueError
        If a setting has the wrong type or is out of its range; the message says which range and what came.
    """

    learning_rate: float
    _: KW_ONLY
    unit: str = "step"

    name: ClassVar[str] = ""
    #: The range [low, high) of each setting that is a number, or (low, high) with True behind.
    ranges: ClassVar[Mapping[str, tuple]] = {
        "learning_rate": (0.0, math.inf, True),
        "factor": (0.0, math.inf, True),
        "decay": (0.0, math.inf),
        "power": (0.0, math.inf, True),
        "end": (0.0, math.inf),
        "start": (0.0, 1.0),
    }
    #: Settings that are counts, at least 1.
    counts: ClassVar[tuple[str, ...]] = ("steps", "every")

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if not self.name:
            raise TypeError(f"{kind} is only what schedules share; take one of nbbp.schedules.BY_NAME")
        for setting in fields(self):
            value, what = getattr(self, setting.name), f"{setting.name} of {kind}"
            if setting.name in self.counts:
                object.__setattr__(self, setting.name, positive_integer(what, value))
            elif setting.name in self.ranges:
                low, high, *above = self.ranges[setting.name]
                object.__setattr__(self, setting.name, number_in(what, value, low, high, above=bool(above)))
            elif setting.type == "bool" and not isinstance(value, bool):
                raise TypeError(f"{what} must be True or False; got {value!r}")
        if self.unit not in ("step", "epoch"):
            raise ValueError(f"unit of {kind} must be 'step' or 'epoch'; got {self.unit!r}")

    @property
    def base(self) -> float:
        """The rate that it starts from, as a number."""
        return self.learning_rate

    def rates(self, counts: Any, learning_rate: float | None = None) -> np.ndarray:
        """The learning rates at these counts.

        Parameters
        ----------
        counts : array_like of int, any shape
            Updates or epochs before, from 0 on.
        learning_rate : float, optional
            To start from instead of the schedule's own, as a parameter group may.

        Returns
        -------
        ndarray of float64, of that shape
        """
        t = np.asarray(counts, np.float64)
        return np.broadcast_to(self._rates(t, self.learning_rate if learning_rate is None else learning_rate), t.shape)

    def _rates(self, t: np.ndarray, base: float) -> np.ndarray | float:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate always: ``base``. Settings: `Schedule`."""

    name: ClassVar[str] = "constant"

    def _rates(self, t: np.ndarray, base: float) -> float:
        return base
