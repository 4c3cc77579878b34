"""Parts of a model as plain data: those that have a name and settings, and the optimizer with its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from nbbp import optimizers, schedules
from nbbp.layers import unknown_name
from nbbp.optimizers import Optimizer
from nbbp.schedules import Plateau, Schedule

__all__ = [
    "LARGEST_COUNT",
    "check_keys",
    "check_list",
    "clock_from_data",
    "clock_to_data",
    "from_data",
    "no_data",
    "optimizer_from_data",
    "optimizer_to_data",
    "to_data",
]

#: Steps or epochs, at most.
LARGEST_COUNT = 1 << 48


def to_data(part: Any, kinds: Mapping[str, type], what: str) -> dict[str, Any]:
    """A frozen description of one of these kinds: its name there, and its fields."""
    for name, kind in kinds.items():
        if type(part) is kind:
            return {"name": name, "settings": {field.name: getattr(part, field.name) for field in fields(part)}}
    raise no_data(what, part, f"expected one of nbbp's own: {', '.join(kinds)}")


def no_data(what: str, part: Any, hint: str) -> TypeError:
    """The error for a part that is code."""
    came = f"{what} is {part!r} ({type(part).__name__})"
    return TypeError(f"{came}, whose code a file cannot hold; {hint}")


def check_keys(data: Any, keys: Iterable[str], what: str) -> None:
    """Refuse what is no object with exactly these keys."""
    keys = list(keys)
    if not isinstance(data, dict) or set(data) != set(keys):
        came = f"one with {', '.join(map(repr, data)) or 'no keys'}" if isinstance(data, dict) else repr(data)
        raise ValueError(f"{what} must be an object with {', '.join(map(repr, keys)) or 'no keys'}; got {came}")


def check_list(data: Any, most: int, what: str) -> None:
    """Refuse what is no list of at most so many."""
    if not isinstance(data, list) or len(data) > most:
        came = f"{len(data):,}" if isinstance(data, list) else repr(data)
        raise ValueError(f"{what} must be a list of at most {most:,}; got {came}")


def from_data(data: Any, kinds: Mapping[str, type], what: str) -> Any:
    """What `to_data` was given."""
    check_keys(data, ("name", "settings"), f"the {what}")
    name, settings = data["name"], data["settings"]
    if not isinstance(name, str):
        raise ValueError(f"name of the {what} must be a string; got {name!r}")
    if name not in kinds:
        raise unknown_name(what, name, kinds)
    check_keys(settings, [field.name for field in fields(kinds[name])], f"settings of the {what} {name!r}")
    return kinds[name](**settings)


def optimizer_to_data(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer, its learning rate a number or a schedule."""
    return _with_rate_as_data(to_data(optimizer, optimizers.BY_NAME, "the optimizer"))


def _with_rate_as_data(data: dict[str, Any]) -> dict[str, Any]:
    rate = data["settings"]["learning_rate"]
    if isinstance(rate, Schedule):  # which may stand before another one
        rate = _with_rate_as_data(to_data(rate, schedules.BY_NAME, "the schedule"))
        data["settings"]["learning_rate"] = rate
    return data


def optimizer_from_data(data: Any) -> Optimizer:
    """What `optimizer_to_data` was given."""
    return from_data(_with_rate_from_data(data), optimizers.BY_NAME, "optimizer")


def _with_rate_from_data(data: Any) -> Any:
    settings = data.get("settings") if isinstance(data, dict) else None
    if isinstance(settings, dict) and isinstance(settings.get("learning_rate"), dict):
        rate = from_data(_with_rate_from_data(settings["learning_rate"]), schedules.BY_NAME, "schedule")
        data = {**data, "settings": {**settings, "learning_rate": rate}}
    return data


def clock_to_data(clock: tuple[int, Plateau]) -> dict[str, Any]:
    """Where a schedule stands: epochs, and what a plateau has been told."""
    epoch, plateau = clock
    return {"epoch": epoch, "plateau": asdict(plateau)}


def clock_from_data(data: Any) -> tuple[int, Plateau]:
    """What `clock_to_data` was given."""
    check_keys(data, ("epoch", "plateau"), "the clock")
    plateau = data["plateau"]
    check_keys(plateau, [field.name for field in fields(Plateau)], "the plateau")
    counts = {"epoch": data["epoch"], **{key: plateau[key] for key in ("bad", "cooldown", "reductions")}}
    for key, count in counts.items():
        if type(count) is not int or not 0 <= count < LARGEST_COUNT:
            raise ValueError(f"{key} of the clock must be an integer from 0 to {LARGEST_COUNT - 1}; got {count!r}")
    best = plateau["best"]
    if best is not None and not (type(best) is float and math.isfinite(best)):
        raise ValueError(f"best of the plateau must be null or a finite number; got {best!r}")
    return data["epoch"], Plateau(**plateau)
