"""How functions of this package are compiled: cached on disk where the machine lets us, and never silently slow.

Numba's global settings belong to the user's own functions and are not touched.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numba

#: Arithmetic may be reordered; NaN and infinity stay visible.
FASTMATH = {"contract", "reassoc", "nsz", "arcp", "afn"}

_said = set()


def jit(**options: Any) -> Callable:
    """`numba.njit` that releases the GIL, divides as NumPy does and caches its machine code on disk."""

    def decorate(function: Callable) -> Callable:
        return _with_cache(lambda cache: numba.njit(nogil=True, error_model="numpy", cache=cache, **options)(function))

    return decorate


def cfunc(signature, **options: Any) -> Callable:
    """`numba.cfunc`, a function with an address, under the same rules as `jit`; announces a cold compile."""

    def decorate(function: Callable):
        compiled = _with_cache(
            lambda cache: numba.cfunc(signature, error_model="numpy", cache=cache, **options)(function)
        )
        if compiled.cache_hits == 0:
            announce_compiling()
        return compiled

    return decorate


def announce_compiling() -> None:
    """Say on stderr, once per process, that machine code is being made."""
    if "compiling" not in _said:
        _said.add("compiling")
        print("nbbp: compiling kernels for this processor (once; they are cached)", file=sys.stderr, flush=True)


def _with_cache(compile_with: Callable[[bool], Any]) -> Any:
    """`compile_with(True)`, or `compile_with(False)` where no folder takes the cache."""
    try:
        return compile_with(True)
    except (RuntimeError, OSError) as error:
        if not isinstance(error, OSError) and "cannot cache" not in str(error):
            raise
        if "uncached" not in _said:
            _said.add("uncached")
            warnings.warn(
                f"nbbp cannot cache its machine code ({error}); it is compiled anew in every process. "
                "Set NUMBA_CACHE_DIR to a folder that can be written to.",
                RuntimeWarning,
                stacklevel=3,
            )
        return compile_with(False)
