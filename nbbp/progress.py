"""Where a run of `fit` stands, as plain data for a file: its clock, and what its history holds.

``{"clock": {"epoch": 4, "learning_rate": null, "plateau": {"best": 0.1, "bad": 2, "cooldown": 0, "reductions": 1}},
"history": ["loss", "val_loss"]}``; the history's numbers are an array of the file. Nothing is taken on trust.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from nbbp.plain_data import check_keys
from nbbp.schedules import Plateau

__all__ = ["LARGEST_COUNT", "NOWHERE", "Progress", "from_data", "to_data"]

#: Steps or epochs, reductions of a plateau (each costs a multiplication) and names of a history, at most.
LARGEST_COUNT = 1 << 48
_MOST_REDUCTIONS = 1 << 14
_MOST_NAMES = 4096

_CLOCK = ("epoch", "learning_rate", "plateau")
_PLATEAU = tuple(one.name for one in fields(Plateau))
#: The best of a plateau may be infinite, for which JSON has no number.
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class Progress:
    """Where a run stands beside its arrays.

    Attributes
    ----------
    epoch : int
        What a schedule of epochs counts.
    learning_rate : float or None
        In place of the optimizer's, if a callback set it.
    plateau : Plateau
        Of a `ReduceOnPlateau`.
    names : tuple of str
        Of the history.
    """

    epoch: int = 0
    learning_rate: float | None = None
    plateau: Plateau = field(default_factory=Plateau)
    names: tuple[str, ...] = ()


#: Of a model that no `fit` has trained.
NOWHERE = Progress()


def to_data(progress: Progress) -> dict[str, Any]:
    """The progress as data for JSON."""
    plateau = {name: getattr(progress.plateau, name) for name in _PLATEAU}
    if plateau["best"] is not None and math.isinf(plateau["best"]):
        plateau["best"] = str(plateau["best"])
    clock = {"epoch": progress.epoch, "learning_rate": progress.learning_rate, "plateau": plateau}
    return {"clock": clock, "history": list(progress.names)}


def from_data(clock: Any, history: Any) -> Progress:
    """The progress from what `to_data` gave under these keys.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    check_keys(clock, _CLOCK, "the clock")
    epoch = _count(clock["epoch"], LARGEST_COUNT, "epoch of the clock")
    rate = clock["learning_rate"]
    if rate is not None and (type(rate) not in (int, float) or not 0.0 <= rate < math.inf):
        raise ValueError(f"learning_rate of the clock must be null or a number that is at least 0; got {rate!r}")
    plateau = clock["plateau"]
    check_keys(plateau, _PLATEAU, "the plateau")
    best = plateau["best"]
    best = _INFINITE.get(best, best) if isinstance(best, str) else best
    if best is not None and type(best) not in (int, float):
        raise ValueError(f"best of the plateau must be null or a number; got {best!r}")
    bad, cooldown = (_count(plateau[name], LARGEST_COUNT, f"{name} of the plateau") for name in ("bad", "cooldown"))
    reductions = _count(plateau["reductions"], _MOST_REDUCTIONS, "reductions of the plateau")
    if not isinstance(history, list) or len(history) > _MOST_NAMES:
        raise ValueError(f"history must be a list of at most {_MOST_NAMES:,} names; got {history!r}")
    if not all(isinstance(name, str) for name in history) or len(set(history)) < len(history):
        raise ValueError(f"history must be names that differ; got {history!r}")
    return Progress(
        epoch,
        None if rate is None else float(rate),
        Plateau(None if best is None else float(best), bad, cooldown, reductions),
        tuple(history),
    )


def _count(value: Any, stop: int, what: str) -> int:
    if type(value) is not int or not 0 <= value < stop:
        raise ValueError(f"{what} must be an integer from 0 to {stop - 1}; got {value!r}")
    return value
