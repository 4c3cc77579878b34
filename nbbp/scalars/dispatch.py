"""How one name in jitted code becomes one of several formulas, chosen while Numba compiles.

A formula is a plain Python function of scalars. It is never compiled on its own but into whatever calls it,
so that LLVM sees one loop body to vectorise. Two things can choose the formula:

- the dtype of the argument (`by_dtype`): ``exp`` is ``exp_float32`` or ``exp_float64``;
- a code that is constant where the caller is compiled (`by_code`): ``activation_value(CODE, x, alpha)``. It is
  an integer for what is built in, and for a formula that was made at run time a string, its key in `CUSTOM`.

A kernel made by a factory that closes over such a code can be cached on disk, because Numba's cache goes by the
values of closed-over integers and strings, and a key is a digest of all that makes the formula; a kernel that
closes over a jitted function cannot. The same names called from plain Python take NumPy scalars.
"""

from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np
from numba import types
from numba.core.errors import NumbaTypeError, NumbaValueError, RequireLiteralValue
from numba.extending import overload, register_jitable

__all__ = ["CUSTOM", "by_code", "by_dtype", "exactly", "formula"]

#: Formulas that were made at run time, by their keys: value and derivative, both marked with `formula`.
CUSTOM: dict[str, tuple[Callable, Callable]] = {}

# With error_model="numpy" a division by 0 gives inf or NaN; by default it raises, and a raise in a loop stops
# vectorisation. So does a call, and the float64 polynomials are past LLVM's threshold for inlining.
_OPTIONS = {"error_model": "numpy", "forceinline": True}

# A range reduction needs every operation as it is written, except that a fused multiply-add does no harm.
_EXACTLY = _OPTIONS | {"fastmath": {"contract"}}

# Not reassoc: stable forms like (max(x, 0) - x t) + log1p(...) live from their order. Not arcp: x * (1/y)
# with an estimated reciprocal is NaN for an infinite y. Sums over formulas belong to the kernels.
_FORMULA = _OPTIONS | {"fastmath": {"contract", "nsz"}}


def formula(function: Callable) -> Callable:
    """Let jitted code call a plain function of scalars: inlined, with fused multiply-adds.

    Parameters
    ----------
    function : callable
        A pure function of scalars of one dtype. It is returned unchanged and stays callable from Python.
    """
    return register_jitable(**_FORMULA)(function)


def exactly(function: Callable) -> Callable:
    """Like `formula`, for range reductions: even the signs of zeros are as written."""
    return register_jitable(**_EXACTLY)(function)


def by_dtype(float32: Callable, float64: Callable) -> Callable[[Callable], Callable]:
    """Decorate an empty function ``stub(x)``: a call goes to the version for the dtype of its argument.

    Parameters
    ----------
    float32, float64 : callable
        Functions of one scalar, named x, marked with `exactly` or `formula`.

    Returns
    -------
    callable
        A decorator. The decorated name works in jitted code of either dtype, and in Python on ``np.float32``,
        ``np.float64`` and ``float``. Other types are a TypeError.
    """

    def decorate(stub: Callable) -> Callable:
        versions = {types.float32: float32, types.float64: float64}

        @wraps(stub)
        def generic(x):
            if not isinstance(x, (np.float32, float)):  # np.float64 is a float
                raise TypeError(f"{stub.__name__} takes a float32 or float64 scalar, got {type(x).__name__}")
            with np.errstate(all="ignore"):  # NumPy's scalars warn where machine code is silent
                return float32(x) if isinstance(x, np.float32) else float64(np.float64(x))

        @overload(generic, jit_options=_EXACTLY)
        def choose(x):
            if x not in versions:
                raise NumbaTypeError(f"{stub.__name__} takes a float32 or float64 scalar, got {x}")
            return versions[x]

        return generic

    return decorate


def by_code(formulas: Sequence[Callable | None], custom: int | None = None) -> Callable[[Callable], Callable]:
    """Decorate an empty function ``stub(code, ...)``: a call goes to ``formulas[code](...)``.

    Parameters
    ----------
    formulas : sequence of callable or None
        Plain functions of scalars, by code. None stands for a code that has no formula.
    custom : {0, 1} or None
        For a code that is a string: which of the two that it stands for in `CUSTOM`. None: there are no such codes.

    Returns
    -------
    callable
        A decorator. In jitted code the decorated name's first argument has to be constant when Numba compiles
        it: a literal, or an integer or string that the jitted function closes over or finds in its module. A
        code without a formula is an error that lists those that have one.
    """
    compilable = tuple(None if function is None else formula(function) for function in formulas)

    def decorate(stub: Callable) -> Callable:
        def find(code: int | str) -> Callable:
            if isinstance(code, str) and custom is not None:
                if code not in CUSTOM:
                    raise ValueError(
                        f"{stub.__name__} has no formula {code!r} in this process: make it first, with nbbp.activation "
                        "or nbbp.loss, or by loading what uses it"
                    )
                return CUSTOM[code][custom]
            if isinstance(code, str) or not 0 <= code < len(compilable) or compilable[code] is None:
                codes = [number for number, function in enumerate(compilable) if function is not None]
                raise ValueError(f"{stub.__name__} has no formula for code {code}; it has formulas for {codes}")
            return compilable[code]

        @wraps(stub)
        def generic(code, *arguments):
            with np.errstate(all="ignore"):
                return find(code)(*arguments)

        @overload(generic, prefer_literal=True, jit_options=_FORMULA)
        def choose(code, *arguments):
            if not isinstance(code, (types.IntegerLiteral, types.StringLiteral)):
                raise RequireLiteralValue(f"{stub.__name__} needs a constant code to compile for, got {code}")
            try:
                function = find(code.literal_value)
            except ValueError as error:
                raise NumbaValueError(str(error)) from None

            def call(code, *arguments):
                return function(*arguments)

            return call

        return generic

    return decorate
