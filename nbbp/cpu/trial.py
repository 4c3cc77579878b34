"""A trial of functions of the user's own: do they stay within their arrays?

In a kernel nothing checks indices, and a row's neighbours are other rows. So before a program with custom layers or
augmentations runs, each function is called once for its sizes: by a copy that checks its indices, on a made-up sample
between guards, which show what the functions called by it write. What has passed is not tried again.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba.core.errors import NumbaError

from nbbp import ops
from nbbp.compiling import interrupts_wait
from nbbp.scalars.sampling import key_of_sample

__all__ = ["check_bounds"]


@dataclass(frozen=True)
class _Call:
    """How a kernel calls a function of the user's own.

    Attributes
    ----------
    arrays : dict of str to int
        What it takes, by the columns of the op that say how long each is.
    first : dict of str to float
        What the kernel writes into them before the call.
    more : tuple
        What it takes behind the arrays.
    question : str
        What to ask its author if it leaves them.
    """

    arrays: dict[str, int]
    first: dict[str, float]
    more: tuple = ()
    question: str = "are its loops, n_out and parameter_shapes right?"


_FORWARD = {"parameters": ops.N_PARAMETERS, "x": ops.N_IN, "y": ops.N_OUT}
_BACKWARD = _FORWARD | {"d_y": ops.N_OUT, "d_x": ops.N_IN, "gradient": ops.N_PARAMETERS}
_CALLS = {
    "custom_forward": _Call(_FORWARD, {"y": np.nan}),
    "custom_backward": _Call(_BACKWARD, {"d_x": np.nan, "gradient": 0.0}),
    "augment_row": _Call({"row": ops.N_OUT}, {}, (key_of_sample(0, 0, 0, 0),), "are its loops right?"),
}

_passed: set[tuple] = set()


def check_bounds(variant: ops.UserFunction, kernel: str, dtype: Any, columns: Mapping[int, Any]) -> None:
    """Call the function of an op once, on numbers between 0 and 1.

    A function that is compiled with ``boundscheck=True`` checks itself, and is not tried. Exceptions other than
    IndexError are passed over: they may be due to the numbers, and come again in a run, which reports them.

    Parameters
    ----------
    variant : ops.UserFunction
    kernel : str
        Which kernel calls it.
    dtype : dtype
    columns : mapping
        The op's, with the sizes.

    Raises
    ------
    ValueError
        If it reads or writes beyond its arrays.
    """
    sizes = {name: int(columns[column]) for name, column in _CALLS[kernel].arrays.items()}
    key = variant.function, kernel, np.dtype(dtype), *sizes.values()
    if key in _passed or variant.function.targetoptions.get("boundscheck"):
        return
    if not _stays_within(variant.function, _CALLS[kernel], sizes, np.dtype(dtype)):
        arrays = ", ".join(f"{name} ({size},)" for name, size in sizes.items())
        named = f"{variant.label}, {variant.function.py_func.__name__}"
        raise ValueError(f"{named}, reads or writes beyond its arrays, which are {arrays}: {_CALLS[kernel].question}")
    _passed.add(key)


def _stays_within(function: Any, call: _Call, sizes: Mapping[str, int], dtype: np.dtype) -> bool:
    guard = 64 + sum(sizes.get(name, 0) for name in ("x", "y", "row"))
    random = np.random.default_rng(0)
    memory = random.uniform(0.25, 0.75, guard + sum(size + guard for size in sizes.values())).astype(dtype)
    is_guard = np.ones(len(memory), bool)
    arrays, start = [], guard
    for name, size in sizes.items():
        arrays.append(memory[start : start + size])
        is_guard[start : start + size] = False
        start += size + guard
        if name in call.first:
            arrays[-1][:] = call.first[name]
    arguments = *arrays, *call.more
    before = memory[is_guard].tobytes()
    checked = _with_checks(function)
    try:
        with interrupts_wait():
            checked.compile(tuple(map(numba.typeof, arguments)))
    except NumbaError:  # as it is, it does compile
        return True
    try:
        checked(*arguments)
    except IndexError:
        return False
    except Exception:  # its own business
        pass
    return memory[is_guard].tobytes() == before


@functools.lru_cache(maxsize=256)
def _with_checks(function: Any) -> Any:
    """A copy of a jitted function that raises IndexError where an index is out of bounds."""
    return numba.njit(boundscheck=True, error_model="numpy")(function.py_func)
