"""How functions of this package are compiled: cached on disk where the machine lets us, and never silently slow.

Numba's global settings belong to the user's own functions and are not touched. Numba keys the machine code of a
function by that function's own file, so it would outlive a change of what the function calls in another file, which is
what an upgrade brings: old code would read a new op table. Here the key holds every file that machine code comes from.
"""

import functools
import hashlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, NullCache
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

#: Arithmetic may be reordered; NaN and infinity stay visible.
FASTMATH = {"contract", "reassoc", "nsz", "arcp", "afn"}

_PACKAGE = Path(__file__).resolve().parent
#: Files and folders with code that is compiled, or that shapes it, and the switches that do.
_COMPILED = ("cpu", "sample", "scalars", "compiling.py", "metrics.py", "ops.py", "validation.py")
_SWITCHES = ("NBBP_CYCLE_COUNTER", "NBBP_FLUSH_TO_ZERO", "NBBP_HALF_INSTRUCTIONS", "NBBP_VECTOR_BITS")

_said = set()


def jit(**options: Any) -> Callable:
    """`numba.njit` that releases the GIL, divides as NumPy does and caches its machine code on disk."""

    def decorate(function: Callable) -> Callable:
        dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
        dispatcher._cache = _cache_of(function)
        dispatcher.compile = _uninterrupted(dispatcher.compile)
        return dispatcher

    return decorate


def cfunc(signature, cached: bool = True, **options: Any) -> Callable:
    """`numba.cfunc`, a function with an address, under the same rules as `jit`; without a cache if so wished."""

    def decorate(function: Callable) -> CFunc:
        settings = {"error_model": "numpy", **options}
        compiled = CFunc(function, normalize_signature(signature), locals={}, options=settings)
        if cached:
            compiled._cache = _cache_of(function)
        _uninterrupted(compiled.compile)()
        return compiled

    return decorate


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait until machine code is made or loaded.

    Inside LLVM's callbacks Python drops a KeyboardInterrupt, and what was to be handed over is garbage that is run.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield  # signals are heard elsewhere, or by something else than Python
        return
    heard = []
    signal.signal(signal.SIGINT, lambda *arguments: heard.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def _uninterrupted(compile_it: Callable) -> Callable:
    @functools.wraps(compile_it)
    def whole(*arguments: Any) -> Any:
        with interrupts_wait():
            return compile_it(*arguments)

    return whole


def fingerprint(compiled: Sequence[str] = _COMPILED) -> str:
    """A digest of the source of these files and folders, and of the switches that change what comes out."""
    digest = hashlib.sha256(repr([os.environ.get(name) for name in _SWITCHES]).encode())
    for name in compiled:
        path = _PACKAGE / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            # (A frozen application has no sources: there Numba keys by the application.)
            digest.update(file.name.encode() + b"\0" + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()


class _Cache(FunctionCache):
    """Machine code of one function on disk; a cache that cannot be read or written costs time, not the result."""

    _fingerprint: str | None = None

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        if _Cache._fingerprint is None:
            _Cache._fingerprint = fingerprint()
        file = self._cache_file
        file._source_stamp = (file._source_stamp, _Cache._fingerprint)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = None
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # whatever unpickling a damaged file raises
            self._discard()
        if found is None:
            _announce_compiling()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:  # the disk is full, the folder is gone or was closed to us
            _warn_uncached(error)

    def _discard(self) -> None:
        """Empty a damaged index, so that what is compiled now can be saved."""
        try:
            self.flush()
        except OSError as error:
            _warn_uncached(error)


class _NoCache(NullCache):
    """Where no folder takes the cache."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        _announce_compiling()


def _cache_of(function: Callable) -> FunctionCache | NullCache:
    try:
        return _Cache(function)
    except (RuntimeError, OSError) as error:
        if not isinstance(error, OSError) and "cannot cache" not in str(error):
            raise
        _warn_uncached(error)
        return _NoCache()


def _announce_compiling() -> None:
    """Say on stderr, once per process, that machine code is being made."""
    if "compiling" not in _said and sys.stderr is not None:
        _said.add("compiling")
        kept = "in every process, for want of a cache" if "uncached" in _said else "once; they are cached"
        print(f"nbbp: compiling kernels for this processor ({kept})", file=sys.stderr, flush=True)


def _warn_uncached(error: Exception) -> None:
    """Warn, once per process, that machine code is not kept."""
    if "uncached" not in _said:
        _said.add("uncached")
        warnings.warn(
            f"nbbp cannot cache its machine code ({error}); it is compiled anew in every process. "
            "Set NUMBA_CACHE_DIR to a folder that can be written to.",
            RuntimeWarning,
            stacklevel=3,
        )
