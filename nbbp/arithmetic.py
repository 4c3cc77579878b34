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


class Arithmetic:
    """A number under operators, methods and functions; what they do is `_apply`, which subclasses define.

    Comparisons give conditions: numbers that are 1 or 0, for `where`. ``&``, ``|`` and ``~`` combine conditions.
    """

    __slots__ = ()

    def _apply(self, code: int, *arguments: Any) -> Any:
        """The result of an operation on numbers of this class and plain ones; NotImplemented for anything else."""
        raise NotImplementedError

    def __add__(self, other: Any) -> Any:
        return self._apply(op.ADD, self, other)

    def __radd__(self, other: Any) -> Any:
        return self._apply(op.ADD, other, self)

    def __sub__(self, other: Any) -> Any:
        return self._apply(op.SUBTRACT, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._apply(op.SUBTRACT, other, self)

    def __mul__(self, other: Any) -> Any:
        return self._apply(op.MULTIPLY, self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._apply(op.MULTIPLY, other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._apply(op.DIVIDE, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._apply(op.DIVIDE, other, self)

    def __pow__(self, other: Any) -> Any:
        return self._apply(op.POWER, self, other)

    def __rpow__(self, other: Any) -> Any:
        return self._apply(op.POWER, other, self)

    def __neg__(self) -> Any:
        return self._apply(op.NEGATIVE, self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self._apply(op.ABSOLUTE, self)

    def __lt__(self, other: Any) -> Any:
        return self._apply(op.LESS, self, other)

    def __le__(self, other: Any) -> Any:
        return self._apply(op.LESS_EQUAL, self, other)

    def __gt__(self, other: Any) -> Any:
        return self._apply(op.LESS, other, self)

    def __ge__(self, other: Any) -> Any:
        return self._apply(op.LESS_EQUAL, other, self)

    def __eq__(self, other: object) -> Any:
        return self._apply(op.EQUAL, self, other)

    def __ne__(self, other: object) -> Any:
        same = self._apply(op.EQUAL, self, other)
        return same if same is NotImplemented else ~same

    __hash__ = None

    def __and__(self, other: Any) -> Any:
        return self._apply(op.MULTIPLY, self, other)

    def __or__(self, other: Any) -> Any:
        return self._apply(op.MAXIMUM, self, other)

    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> Any:
        return self._apply(op.EQUAL, self, 0.0)

    def __float__(self) -> float:
        raise TypeError(
            f"float() would lose how this {type(self).__name__} came about; math.exp and its like call it: "
            "use np.exp and its like"
        )

    __int__ = __float__

    def exp(self) -> Any:
        return self._apply(op.EXP, self)

    def log(self) -> Any:
        return self._apply(op.LOG, self)

    def tanh(self) -> Any:
        return self._apply(op.TANH, self)

    def relu(self) -> Any:
        return self._apply(op.RELU, self)

    def sigmoid(self) -> Any:
        return self._apply(op.SIGMOID, self)

    def sqrt(self) -> Any:
        return self._apply(op.SQRT, self)

    def sin(self) -> Any:
        return self._apply(op.SIN, self)

    def cos(self) -> Any:
        return self._apply(op.COS, self)

    def expm1(self) -> Any:
        return self._apply(op.EXPM1, self)

    def log1p(self) -> Any:
        return self._apply(op.LOG1P, self)

    def erf(self) -> Any:
        return self._apply(op.ERF, self)

    def softplus(self) -> Any:
        return self._apply(op.SOFTPLUS, self)

    def sign(self) -> Any:
        return self._apply(op.SIGN, self)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        function = _OF_NUMPY.get(ufunc.__name__)
        out = options.pop("out", None)
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
        if function.__name__ not in ("where", "clip") or options:
            raise _unsupported(f"np.{function.__name__}" + _with(options), type(self))
        return _OF_NUMPY[function.__name__](*arguments)


def _with(options: dict) -> str:
    return f" with {', '.join(options)}" if options else ""


def _unsupported(asked: str, kind: type) -> TypeError:
    return TypeError(
        f"{asked} does not work on a {kind.__name__}; of NumPy's functions these do: {', '.join(_OF_NUMPY)}"
    )


def _call(code: int, *arguments: Any) -> Any:
    """Apply an operation to plain numbers, to numbers of one class of `Arithmetic`, or to arrays of such."""
    if any(isinstance(x, np.ndarray) for x in arguments):
        function = np.frompyfunc(lambda *numbers: _call(code, *numbers), len(arguments), 1)
        return function(*(_boxed(x) for x in arguments))
    for x in arguments:
        if isinstance(x, Arithmetic):
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
    """Return x, at least low and at most high; None for no such limit."""
    if low is not None:
        x = maximum(x, low)
    return x if high is None else minimum(x, high)


def square(x: Any) -> Any:
    """Return x times x."""
    return x * x


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
    "exp2": lambda x: _call(op.POWER, 2.0, x),
    "expm1": expm1,
    "log": log,
    "log2": lambda x: _call(op.MULTIPLY, log(x), 1.0 / math.log(2.0)),
    "log10": lambda x: _call(op.MULTIPLY, log(x), 1.0 / math.log(10.0)),
    "log1p": log1p,
    "sin": sin,
    "cos": cos,
    "tan": lambda x: _call(op.DIVIDE, sin(x), cos(x)),
    "tanh": tanh,
    "absolute": absolute,
    "fabs": absolute,
    "sign": sign,
    "maximum": maximum,
    "minimum": minimum,
    "clip": clip,
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
