"""Schedules that fall: in steps, exponentially, with the inverse of time, as a power."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from nbbp.layers.base import positive_integer
from nbbp.schedules.base import Schedule

__all__ = ["Exponential", "InverseTime", "MultiStep", "Polynomial", "Step"]


@dataclass(frozen=True)
class Step(Schedule):
    """A drop every so often: ``base · factor**floor(t / every)`` (StepLR).

    Settings that all schedules share: `Schedule`.

    Parameters
    ----------
    every : int
    factor : float
        Above 0.
    """

    _: KW_ONLY
    every: int
    factor: float = 0.1

    name: ClassVar[str] = "step"

    def _rates(self, t: np.ndarray, base: float) -> np.ndarray:
        return base * self.factor ** np.floor(t / self.every)


@dataclass(frozen=True)
class MultiStep(Schedule):
    """A drop at each milestone: ``base · factor**(milestones at or before t)`` (MultiStepLR).

    Settings that all schedules share: `Schedule`.

    Parameters
    ----------
    milestones : sequence of int
        Counts from 1 on, rising.
    factor : float
        Above 0.
    """

    _: KW_ONLY
    milestones: tuple[int, ...]
    factor: float = 0.1

    name: ClassVar[str] = "multi_step"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.milestones, (tuple, list)) or not self.milestones:
            raise TypeError(f"milestones of MultiStep must be a sequence such as (30, 60); got {self.milestones!r}")
        milestones = tuple(positive_integer("a milestone of MultiStep", milestone) for milestone in self.milestones)
        if sorted(milestones) != list(milestones):
            raise ValueError(f"milestones of MultiStep must rise; got {milestones}")
        object.__setattr__(self, "milestones", milestones)

    def _rates(self, t: np.ndarray, base: float) -> np.ndarray:
        return base * self.factor ** np.searchsorted(self.milestones, t, side="right")


@dataclass(frozen=True)
class Exponential(Schedule):
    """``base · factor**t`` (ExponentialLR).

    Settings that all schedules share: `Schedule`.

    Parameters
    ----------
    factor : float
        Above 0.
    """

    _: KW_ONLY
    factor: float

    name: ClassVar[str] = "exponential"

    def _rates(self, t: np.ndarray, base: float) -> np.ndarray:
        return base * self.factor**t


@dataclass(frozen=True)
class InverseTime(Schedule):
    """``base / (1 + decay · t / every)`` (Keras' InverseTimeDecay).

    Settings that all schedules share: `Schedule`.

    Parameters
    ----------
    decay : float
        At least 0.
    every : int
    staircase : bool
        Whether t / every is rounded down, so that the rate falls in steps.
    """

    _: KW_ONLY
    decay: float
    every: int = 1
    staircase: bool = False

    name: ClassVar[str] = "inverse_time"

    def _rates(self, t: np.ndarray, base: float) -> np.ndarray:
        passed = np.floor(t / self.every) if self.staircase else t / self.every
        return base / (1.0 + self.decay * passed)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """``end + (base - end) · (1 - t / steps)**power``, then ``end`` (PolynomialLR).

    Settings that all schedules share: `Schedule`.

    Parameters
    ----------
    steps : int
    power : float
        Above 0.
    end : float
        At least 0.
    """

    _: KW_ONLY
    steps: int
    power: float = 1.0
    end: float = 0.0

    name: ClassVar[str] = "polynomial"

    def _rates(self, t: np.ndarray, base: float) -> np.ndarray:
        return self.end + (base - self.end) * (1.0 - np.minimum(t, self.steps) / self.steps) ** self.power
