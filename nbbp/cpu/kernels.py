"""The registry of op kernels: a name, a dtype and a variant give the address of machine code.

Every kernel has one C signature: ``kernel(op, step, row_start, row_stop, column_start, column_stop, scratch)``. `op`
points to its row of the op table (nbbp/ops.py); `step` counts the batches of the run; the ranges cut the batch's rows
and the op's own columns; `scratch` is the address of memory of the calling thread. A kernel is compiled when a program
first needs it and cached on disk, so that a new network with known ops compiles nothing.
"""

import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import NumbaError

from nbbp.compiling import cfunc
from nbbp.ops import UserFunction

SIGNATURE = types.void(types.CPointer(types.int64), *(types.int64,) * 6)

#: Modules whose import fills the registry.
_MODULES = (
    "rows",
    "dense",
    "deep",
    "activation",
    "softmax",
    "normalization",
    "mixed",
    "loss",
    "crossentropy",
    "metric",
    "update",
    "adafactor",
    "gradient",
    "snapshot",
    "custom",
    "dropout",
    "noise",
    "embedding",
    "monitoring",
    "augmentation",
)

_factories: dict[str, tuple[Callable, tuple[int, ...], tuple[int, ...]]] = {}
_compiled: dict[tuple[str, str, Any], Any] = {}
#: Held while a kernel is made: of two threads' copies one would be dropped, whose address may be in use.
_making = threading.RLock()


def kernel(name: str, variants: tuple[int, ...] = (0,), of_float32: tuple[int, ...] = (), **options) -> Callable:
    """Register a factory `make(zero, variant)` of a kernel function.

    `zero` is a NumPy scalar whose type is the model's dtype; `variant` one of `variants`, or the key of a custom
    formula; those `of_float32` are for that dtype alone. The factory closes over these and other plain numbers only:
    closures over functions would never be found in the cache, so a factory that has one, of an `ops.UserFunction`, is
    registered with ``cached=False``.
    """

    def register(make: Callable) -> Callable:
        def compile_one(zero: Any, variant: Any) -> Any:
            return cfunc(SIGNATURE, **options)(make(zero, variant))

        _factories[name] = compile_one, variants, of_float32
        return make

    return register


@functools.cache
def _load() -> None:
    for module in _MODULES:
        importlib.import_module(f"nbbp.cpu.{module}")


def compiled(name: str, dtype: str, variant: Any = 0):
    """The compiled kernel, for this process.

    Raises
    ------
    TypeError
        If a function of the user's own does not compile.
    """
    key = name, dtype, variant
    if key not in _compiled:
        with _making:
            _load()
            if key not in _compiled:
                try:
                    _compiled[key] = _factories[name][0](np.dtype(dtype).type(0), variant)
                except NumbaError as error:
                    if not isinstance(variant, UserFunction):
                        raise
                    raise TypeError(f"{variant.label} does not compile for {dtype}:\n{error}") from error
    return _compiled[key]


def everything(dtype: str) -> Iterator[tuple[str, str, int]]:
    """The arguments of `compiled` for every kernel there is."""
    _load()
    for name, (_, variants, of_float32) in _factories.items():
        for variant in variants + (of_float32 if dtype == "float32" else ()):
            yield name, dtype, variant
