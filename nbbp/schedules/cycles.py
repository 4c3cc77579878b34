"""Schedules along a curve: cosine, with restarts, one cycle, and a rise in front of another schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from nbbp.schedules.base import Constant, Schedule
from nbbp.schedules.plateau import ReduceOnPlateau

__all__ = ["Cosine", "CosineRestarts", "OneCycle", "WarmUp"]


def _cosine(start: float, end: float, share: np.ndarray) -> np.ndarray:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * (1.0 + np.cos(np.pi * share)) / 2.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """``end + (base - end) · (1 + cos(pi t / steps)) / 2``, then ``end`` (CosineAnnealingLR, which climbs again).

    Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.

    Settings that all schedules share: `Schedule`.

    Parameters
    ----------
    steps : int
    end : float
        At least 0.
    """

    _: KW_ONLY
    steps: int
    end: float = 0.0

    name: ClassVar[str] = "cosine"

    def _rates(self, t: np.ndarray, base: float) -> np.ndarray:
        return _cosine(base, self.end, np.minimum(t, self.steps) / self.steps)


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """`Cosine` again and again, each round `growth` times as long as the one before (CosineAnnealingWarmRestarts).

    Loshchilov and Hutter, "SGDR", ICLR 2017.

    Settings that all schedules share: `Schedule`.

    Parameters
    ----------
    steps : int
        Length of the first round.
    growth : int
        At least 1.
    end : float
        At least 0.
    """

    _: KW_ONLY
    steps: int
    growth: int = 1
    end: float = 0.0

    name: ClassVar[str] = "cosine_restarts"
    counts: ClassVar[tuple[str, ...]] = ("steps", "growth")

    def _rates(self, t: np.ndarray, base: float) -> np.ndarray:
        if self.growth == 1:
            return _cosine(base, self.end, np.mod(t, self.steps) / self.steps)
        starts, lengths = [0], [self.steps]  # of the rounds, as exact integers: a logarithm would round
        while starts[-1] + lengths[-1] <= t.max(initial=0.0):
            starts.append(starts[-1] + lengths[-1])
            lengths.append(lengths[-1] * self.growth)
        rounds = np.searchsorted(starts, t, side="right") - 1
        return _cosine(base, self.end, (t - np.array(starts)[rounds]) / np.array(lengths)[rounds])


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to `learning_rate` and down to nearly nothing, in `steps` counts (OneCycleLR).

    Smith and Topin, "Super-convergence", 2018. Afterwards the rate stays at the lowest.

    Settings that all schedules share: `Schedule`.

    Parameters
    ----------
    learning_rate : float
        The highest.
    steps : int
        At least 2.
    rise : float
        Share of the steps on the way up, in (0, 1).
    divisor, final_divisor : float
        The first rate is the highest over `divisor`, the last one the first over `final_divisor`; at least 1.
    curve : {"cosine", "linear"}
    three_phases : bool
        Whether it comes down to the first rate as fast as it rose, and then on to the last.
    """

    _: KW_ONLY
    steps: int
    rise: float = 0.3
    divisor: float = 25.0
    final_divisor: float = 1e4
    curve: str = "cosine"
    three_phases: bool = False

    name: ClassVar[str] = "one_cycle"
    ranges: ClassVar[Mapping[str, tuple]] = {
        "learning_rate": (0.0, math.inf, True),
        "rise": (0.0, 1.0, True),
        "divisor": (1.0, math.inf),
        "final_divisor": (1.0, math.inf),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curve not in ("cosine", "linear"):
            raise ValueError(f"curve of OneCycle must be 'cosine' or 'linear'; got {self.curve!r}")
        if self.rise * self.steps <= 1.0 or (self.three_phases and 2.0 * self.rise * self.steps - 1.0 >= self.steps):
            raise ValueError(
                f"rise of OneCycle leaves no way up or down in so few steps; got rise={self.rise}, steps={self.steps}"
            )

    def _rates(self, t: np.ndarray, base: float) -> np.ndarray:
        first = base / self.divisor
        top, last = self.rise * self.steps - 1.0, self.steps - 1.0
        phases = [(0.0, top, first, base)]
        if self.three_phases:
            phases += [(top, 2.0 * top, base, first), (2.0 * top, last, first, first / self.final_divisor)]
        else:
            phases += [(top, last, base, first / self.final_divisor)]
        rates = np.full(t.shape, phases[-1][3])
        for start, stop, before, after in reversed(phases):
            share = np.minimum(t - start, stop - start) / (stop - start)
            moved = before + (after - before) * share
            if self.curve == "cosine":
                moved = _cosine(before, after, share)
            rates = np.where(t <= stop, moved, rates)
        return rates


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A linear rise in front of another schedule, which begins when it is over (LinearLR and SequentialLR).

    ``base · (start + (1 - start) · t / steps)``, base being the schedule's rate at its own beginning.

    Parameters
    ----------
    learning_rate : Schedule or float
        What follows; a number is a constant rate. The unit is this schedule's.
    steps : int
        Length of the rise.
    start : float
        Share of the rate at the beginning, in [0, 1).
    """

    learning_rate: Any
    _: KW_ONLY
    unit: str = ""
    steps: int
    start: float = 0.01

    name: ClassVar[str] = "warm_up"
    ranges: ClassVar[Mapping[str, tuple]] = {"start": (0.0, 1.0)}

    def __post_init__(self) -> None:
        following = self.learning_rate
        if not isinstance(following, Schedule):
            following = Constant(following, unit=self.unit or "step")
            object.__setattr__(self, "learning_rate", following)
        if isinstance(following, (WarmUp, ReduceOnPlateau)):
            raise TypeError(f"WarmUp stands before a schedule of its count alone; got {type(following).__name__}")
        if self.unit not in ("", following.unit):
            expected = f"unit of WarmUp must be that of the schedule behind it, {following.unit!r}"
            raise ValueError(f"{expected}; got {self.unit!r}")
        object.__setattr__(self, "unit", following.unit)
        super().__post_init__()

    @property
    def base(self) -> float:
        return self.learning_rate.base

    def rates(self, counts: Any, learning_rate: float | None = None) -> np.ndarray:
        t, following = np.asarray(counts, np.float64), self.learning_rate
        top = following.rates(0, learning_rate)
        rising = top * (self.start + (1.0 - self.start) * t / self.steps)
        return np.where(t < self.steps, rising, following.rates(np.maximum(t - self.steps, 0.0), learning_rate))
