"""Plain data from a file: JSON read with nothing taken on trust, and the form of what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

__all__ = ["check_keys", "check_list", "parsed"]


def parsed(text: str) -> Any:
    """JSON, but with no key twice, no number that is not finite and no integer of more than 64 bits.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_not_finite, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"the description is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("the description is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError(f"the description has a key twice among {sorted({key for key, _ in pairs})}")
    return data


def _not_finite(constant: str) -> None:
    raise ValueError(f"the description holds {constant}; expected finite numbers")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"the description holds an integer of {len(digits):,} digits")
    return int(digits)


def check_keys(data: Any, keys: Iterable[str], what: str) -> None:
    """Refuse what is no object with exactly these keys."""
    keys = list(keys)
    if not isinstance(data, dict) or set(data) != set(keys):
        came = f"one with {', '.join(map(repr, data)) or 'no keys'}" if isinstance(data, dict) else repr(data)
        raise ValueError(f"{what} must be an object with {', '.join(map(repr, keys)) or 'no keys'}; got {came}")


def check_list(data: Any, most: int, what: str) -> None:
    """Refuse what is no list of at most so many entries."""
    if not isinstance(data, list) or len(data) > most:
        came = f"{len(data):,}" if isinstance(data, list) else repr(data)
        raise ValueError(f"{what} must be a list of at most {most:,}; got {came}")
