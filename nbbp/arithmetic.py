"""Arithmetic of numbers that remember how they came about: operators, methods, functions and NumPy's functions.

Whatever is done to an `Arithmetic` number ends in its ``_apply(code, *arguments)``, with the code of a primitive
operation (see `nbbp.scalars.operations`): a node of a graph, a dual number or a line of a formula is made there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from nbbp.cpu.graph import evaluate
from nbbp.operators import Operators
from nbbp.scalars import operations as op

__all__ = [
    "Arithmetic",
    "absolute",
    "clip",
    "cos",
    "equal",
    "erf",
    "exp",
    "expm1",
    "is_number",
    "log",
    "log1p",
    "maximum",
    "minimum",
    "relu",
    "sigmoid",
    "sign",
    "sin",
    "softplus",
    "sqrt",
    "square",
    "tanh",
    "where",
]


def is_number(x: Any) -> bool:
    """Whether x is a plain real number, of Python or NumPy."""
    return isinstance(x, (Real, np.bool_))


def _call(code: int, *arguments: Any) -> Any:
    """Apply an operation to plain numbers, to numbers of one class of `Arithmetic`, or to arrays of such."""
    if any(isinstance(x, np.ndarray) for x in arguments):
        function = np.frompyfunc(lambda *numbers: _call(code, *numbers), len(arguments), 1)
        return function(*(_boxed(x) for x in arguments))
    for x in arguments:
        if isinstance(x, Operators):
            result = x._apply(code, *arguments)
            break
    else:
        result = NotImplemented
        if all(is_number(x) for x in arguments):
            numbers = [float(x) for x in arguments]
            result = evaluate(code, *numbers, *[0.0] * (3 - len(numbers)))
    if result is NotImplemented:
        name = list(op.OPERATIONS)[code]
        raise TypeError(f"{name} does not take {' and '.join(type(x).__name__ for x in arguments)}")
    return result


def _boxed(x: Any) -> np.ndarray:
    """An array that holds x, which NumPy then does not ask how to add or multiply."""
    if isinstance(x, np.ndarray):
        return x
    box = np.empty((), object)
    box[()] = x
    return box


def exp(x: Any) -> Any:
    """Return e**x."""
    return _call(op.EXP, x)


def log(x: Any) -> Any:
    """Return the natural logarithm of x: -inf for 0, NaN for negative x."""
    return _call(op.LOG, x)


def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of x."""
    return _call(op.TANH, x)


def relu(x: Any) -> Any:
    """Return max(x, 0)."""
    return _call(op.RELU, x)


def sigmoid(x: Any) -> Any:
    """Return 1/(1 + e**-x)."""
    return _call(op.SIGMOID, x)


def sqrt(x: Any) -> Any:
    """Return the square root of x, NaN for negative x."""
    return _call(op.SQRT, x)


def sin(x: Any) -> Any:
    """Return the sine of x, in radians."""
    return _call(op.SIN, x)


def cos(x: Any) -> Any:
    """Return the cosine of x, in radians."""
    return _call(op.COS, x)


def absolute(x: Any) -> Any:
    """Return |x|."""
    return _call(op.ABSOLUTE, x)


def expm1(x: Any) -> Any:
    """Return e**x - 1, accurate near 0."""
    return _call(op.EXPM1, x)


def log1p(x: Any) -> Any:
    """Return log(1 + x), accurate near 0."""
    return _call(op.LOG1P, x)


def erf(x: Any) -> Any:
    """Return the error function of x."""
    return _call(op.ERF, x)


def softplus(x: Any) -> Any:
    """Return log(1 + e**x), without overflow."""
    return _call(op.SOFTPLUS, x)


def sign(x: Any) -> Any:
    """Return 1, 0 or -1 as x is positive, zero or negative; its derivative is 0."""
    return _call(op.SIGN, x)


def maximum(a: Any, b: Any) -> Any:
    """Return the greater of a and b, NaN if either is; of equal numbers each has half of the derivative."""
    return _call(op.MAXIMUM, a, b)


def minimum(a: Any, b: Any) -> Any:
    """Return the smaller of a and b, NaN if either is; of equal numbers each has half of the derivative."""
    return _call(op.MINIMUM, a, b)


def equal(a: Any, b: Any) -> Any:
    """Return the condition a == b: 1 where the numbers are equal, else 0."""
    return _call(op.EQUAL, a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """Return a where the condition holds (is not 0), else b."""
    return _call(op.WHERE, condition, a, b)


def clip(x: Any, low: Any, high: Any) -> Any:
    """Return x, at least low and at most high; None for no such limit. On a limit the derivative is that of x."""
    if low is not None:
        if is_number(low) and low == low:
            x = where(_call(op.LESS, x, low), low, x)
        else:  # a limit that is NaN goes through
            x = where(_call(op.LESS_EQUAL, low, x), x, maximum(x, low))
    if high is not None:
        if is_number(high) and high == high:
            x = where(_call(op.LESS, high, x), high, x)
        else:
            x = where(_call(op.LESS_EQUAL, x, high), x, minimum(x, high))
    return x


def square(x: Any) -> Any:
    """Return x times x."""
    return x * x


def _clip_of_numpy(a: Any, a_min: Any = None, a_max: Any = None, **limits: Any) -> Any:
    """np.clip, which has two names for each limit."""
    if limits and (a_min is not None or a_max is not None):
        raise TypeError("np.clip takes its limits either as a_min and a_max or as min and max")
    return clip(a, limits.get("min", a_min), limits.get("max", a_max))


def _sinh(x: Any) -> Any:
    return _call(op.MULTIPLY, expm1(x) - expm1(-x), 0.5)


def _cosh(x: Any) -> Any:
    return _call(op.MULTIPLY, exp(x) + exp(-x), 0.5)


def _arctanh(x: Any) -> Any:
    return _call(op.MULTIPLY, log1p(x) - log1p(-x), 0.5)


def _logaddexp(a: Any, b: Any) -> Any:
    apart = maximum(a, b) + softplus(-absolute(a - b))
    return where(equal(a, b), (a + b) * 0.5 + math.log(2.0), apart)  # infinities have no difference


def _logaddexp2(a: Any, b: Any) -> Any:
    return _logaddexp(a * math.log(2.0), b * math.log(2.0)) * (1.0 / math.log(2.0))


def _hypot(a: Any, b: Any) -> Any:
    a, b = absolute(a), absolute(b)
    greater, smaller = maximum(a, b), minimum(a, b)
    apart = greater * sqrt(square(smaller / greater) + 1.0)  # nothing overflows
    return where(equal(a, b), (a + b) * math.sqrt(0.5), apart)


def _heaviside(x: Any, at_zero: Any) -> Any:
    return where(equal(x, 0.0), at_zero, (sign(x) + 1.0) * 0.5)


def _not(condition: Any) -> Any:
    return _call(op.EQUAL, condition, 0.0)


_OF_NUMPY: dict[str, Callable] = {
    "add": lambda a, b: _call(op.ADD, a, b),
    "subtract": lambda a, b: _call(op.SUBTRACT, a, b),
    "multiply": lambda a, b: _call(op.MULTIPLY, a, b),
    "divide": lambda a, b: _call(op.DIVIDE, a, b),
    "power": lambda a, b: _call(op.POWER, a, b),
    "float_power": lambda a, b: _call(op.POWER, a, b),
    "negative": lambda x: _call(op.NEGATIVE, x),
    "positive": lambda x: x,
    "reciprocal": lambda x: _call(op.DIVIDE, 1.0, x),
    "square": square,
    "sqrt": sqrt,
    "exp": exp,
    "hypot": _hypot,
    "exp2": lambda x: _call(op.POWER, 2.0, x),
    "expm1": expm1,
    "log": log,
    "log2": lambda x: _call(op.MULTIPLY, log(x), 1.0 / math.log(2.0)),
    "log10": lambda x: _call(op.MULTIPLY, log(x), 1.0 / math.log(10.0)),
    "log1p": log1p,
    "sin": sin,
    "cos": cos,
    "tan": lambda x: _call(op.DIVIDE, sin(x), cos(x)),
    "sinh": _sinh,
    "cosh": _cosh,
    "tanh": tanh,
    "arctanh": _arctanh,
    "logaddexp": _logaddexp,
    "logaddexp2": _logaddexp2,
    "degrees": lambda x: _call(op.MULTIPLY, x, 180.0 / math.pi),
    "radians": lambda x: _call(op.MULTIPLY, x, math.pi / 180.0),
    "rad2deg": lambda x: _call(op.MULTIPLY, x, 180.0 / math.pi),
    "deg2rad": lambda x: _call(op.MULTIPLY, x, math.pi / 180.0),
    "absolute": absolute,
    "fabs": absolute,
    "sign": sign,
    "heaviside": _heaviside,
    "maximum": maximum,
    "minimum": minimum,
    "clip": _clip_of_numpy,
    "where": where,
    "less": lambda a, b: _call(op.LESS, a, b),
    "less_equal": lambda a, b: _call(op.LESS_EQUAL, a, b),
    "greater": lambda a, b: _call(op.LESS, b, a),
    "greater_equal": lambda a, b: _call(op.LESS_EQUAL, b, a),
    "equal": equal,
    "not_equal": lambda a, b: _not(equal(a, b)),
    "logical_and": lambda a, b: _call(op.MULTIPLY, _not(_not(a)), _not(_not(b))),
    "logical_or": lambda a, b: _call(op.MAXIMUM, _not(_not(a)), _not(_not(b))),
    "logical_not": _not,
}
#: Functions that are asked as functions and not as ufuncs, with the keywords that they take here.
_KEYWORDS = {"where": frozenset(), "clip": frozenset({"a", "a_min", "a_max", "min", "max"})}
#: What some of scipy.special is called in nbbp.autodiff.
_OF_SCIPY = {"erf": "erf", "expit": "sigmoid"}


class Arithmetic(Operators):
    """A number under operators, methods and functions, those of NumPy too; what they do is `_apply`."""

    __slots__ = ()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        function = _OF_NUMPY.get(ufunc.__name__)
        out = options.pop("out", None)
        if ufunc.__name__ in _OF_SCIPY:
            raise TypeError(
                f"SciPy's {ufunc.__name__} does not work on a {type(self).__name__}: "
                f"use nbbp.autodiff.{_OF_SCIPY[ufunc.__name__]}"
            )
        if function is None or method != "__call__" or options:
            asked = f"np.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}")
            raise _unsupported(asked + _with(options), type(self))
        result = function(*inputs)
        if out is None:
            return result
        if out[0].dtype != object:
            raise TypeError(f"an array of {out[0].dtype} cannot hold a {type(self).__name__}; make it one of objects")
        out[0][...] = result
        return out[0]

    def __array_function__(self, function: Callable, kinds: Any, arguments: tuple, options: dict) -> Any:
        name = function.__name__
        if name not in _KEYWORDS or not _KEYWORDS[name].issuperset(options):
            raise _unsupported(f"np.{name}" + _with(options), type(self))
        return _OF_NUMPY[name](*arguments, **options)


def _with(options: dict) -> str:
    return f" with {', '.join(options)}" if options else ""


def _unsupported(asked: str, kind: type) -> TypeError:
    return TypeError(
        f"{asked} does not work on a {kind.__name__}; of NumPy's functions these do: {', '.join(_OF_NUMPY)}"
    )
