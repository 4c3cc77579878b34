"""A trial of functions of the user's own: do they stay within their arrays?

In a kernel nothing checks indices, and a row's neighbours are other rows. So before a program with custom layers runs,
each function is called once for its sizes: by a copy that checks its indices, on a made-up sample between guards, which
show what the functions called by it write. What has passed is not tried again.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
from numba.core.errors import NumbaError

from nbbp import ops
from nbbp.compiling import interrupts_wait

__all__ = ["check_bounds"]

_passed: set[tuple] = set()


def check_bounds(variant: ops.UserFunction, is_forward: bool, dtype: Any, columns: Mapping[int, Any]) -> None:
    """Call a custom layer's function once, on numbers between 0 and 1.

    A function that is compiled with ``boundscheck=True`` checks itself, and is not tried. Exceptions other than
    IndexError are passed over: they may be due to the numbers, and come again in a run, which reports them.

    Parameters
    ----------
    variant : ops.UserFunction
    is_forward : bool
        Whether it takes (parameters, x, y), and not (parameters, x, y, d_y, d_x, gradient).
    dtype : dtype
    columns : mapping
        The op's, with the sizes.

    Raises
    ------
    ValueError
        If it reads or writes beyond its arrays.
    """
    n_in, n_out, n = (int(columns[column]) for column in (ops.N_IN, ops.N_OUT, ops.N_PARAMETERS))
    sizes = {"parameters": n, "x": n_in, "y": n_out}
    if not is_forward:
        sizes |= {"d_y": n_out, "d_x": n_in, "gradient": n}
    key = variant.function, is_forward, np.dtype(dtype), *sizes.values()
    if key in _passed or variant.function.targetoptions.get("boundscheck"):
        return
    if not _stays_within(variant.function, sizes, np.dtype(dtype)):
        arrays = ", ".join(f"{name} ({size},)" for name, size in sizes.items())
        named = f"{variant.label}, {variant.function.py_func.__name__}"
        raise ValueError(
            f"{named}, reads or writes beyond its arrays, which are {arrays}: are its loops, n_out and "
            "parameter_shapes right?"
        )
    _passed.add(key)


def _stays_within(function: Any, sizes: Mapping[str, int], dtype: np.dtype) -> bool:
    guard = 64 + sizes["x"] + sizes["y"]
    random = np.random.default_rng(0)
    memory = random.uniform(0.25, 0.75, guard + sum(size + guard for size in sizes.values())).astype(dtype)
    is_guard = np.ones(len(memory), bool)
    arrays, start = [], guard
    for name, size in sizes.items():
        arrays.append(memory[start : start + size])
        is_guard[start : start + size] = False
        start += size + guard
        if name in ("d_x", "gradient") or (name == "y" and len(sizes) == 3):
            arrays[-1][:] = 0 if name == "gradient" else np.nan  # as in a kernel
    before = memory[is_guard].tobytes()
    checked = _with_checks(function)
    try:
        with interrupts_wait():
            checked.compile(tuple(map(numba.typeof, arrays)))
    except NumbaError:  # as it is, it does compile
        return True
    try:
        checked(*arrays)
    except IndexError:
        return False
    except Exception:  # its own business
        pass
    return memory[is_guard].tobytes() == before


@functools.lru_cache(maxsize=256)
def _with_checks(function: Any) -> Any:
    """A copy of a jitted function that raises IndexError where an index is out of bounds."""
    return numba.njit(boundscheck=True, error_model="numpy")(function.py_func)
