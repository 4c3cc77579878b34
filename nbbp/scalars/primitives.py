"""Values and derivatives of the primitive operations, written once for reverse mode, forward mode and plain numbers.

All in float64 with the functions of the C library: here accuracy comes before vectorisation. NaN and infinity stay
visible. At a kink the derivative is PyTorch's: 0 for relu, absolute and sign at 0, halves for the maximum and minimum
of equal numbers.
"""

import math

from nbbp.scalars.dispatch import exactly
from nbbp.scalars.operations import (
    ABSOLUTE,
    ADD,
    COS,
    DIVIDE,
    EQUAL,
    ERF,
    EXP,
    EXPM1,
    LESS,
    LESS_EQUAL,
    LOG,
    LOG1P,
    MAXIMUM,
    MINIMUM,
    MULTIPLY,
    NEGATIVE,
    POWER,
    RELU,
    SIGMOID,
    SIGN,
    SIN,
    SOFTPLUS,
    SQRT,
    SUBTRACT,
    TANH,
    WHERE,
)

__all__ = ["chain", "partials", "value"]

TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)


@exactly
def value(code, a, b, c):
    """Return the operation's value for the arguments a, b and c, as many of them as it takes."""
    if code == ADD:
        return a + b
    if code == SUBTRACT:
        return a - b
    if code == MULTIPLY:
        return a * b
    if code == DIVIDE:
        return a / b
    if code == POWER:
        return a**b
    if code == NEGATIVE:
        return -a
    if code == EXP:
        return math.exp(a)
    if code == LOG:
        return math.log(a)
    if code == TANH:
        return math.tanh(a)
    if code == RELU:
        return 0.0 if a < 0.0 else a
    if code == SIGMOID:
        return _sigmoid(a)
    if code == SQRT:
        return math.sqrt(a)
    if code == SIN:
        return math.sin(a)
    if code == COS:
        return math.cos(a)
    if code == ABSOLUTE:
        return abs(a)
    if code == MAXIMUM:
        return a if a > b or a != a else b
    if code == MINIMUM:
        return a if a < b or a != a else b
    if code == LESS:
        return 1.0 if a < b else 0.0
    if code == LESS_EQUAL:
        return 1.0 if a <= b else 0.0
    if code == EQUAL:
        return 1.0 if a == b else 0.0
    if code == WHERE:
        return b if a != 0.0 else c
    if code == EXPM1:
        return math.expm1(a)
    if code == LOG1P:
        return math.log1p(a)
    if code == ERF:
        return math.erf(a)
    if code == SOFTPLUS:
        return (0.0 if a < 0.0 else a) + math.log1p(math.exp(-abs(a)))
    if code == SIGN:
        return 1.0 if a > 0.0 else (-1.0 if a < 0.0 else a)
    return math.nan


@exactly
def partials(code, a, b, c, y):
    """Return the derivatives of y = value(code, a, b, c) with respect to a, b and c; 0 for what it does not take."""
    if code == ADD:
        return 1.0, 1.0, 0.0
    if code == SUBTRACT:
        return 1.0, -1.0, 0.0
    if code == MULTIPLY:
        return b, a, 0.0
    if code == DIVIDE:
        return 1.0 / b, -y / b, 0.0
    if code == POWER:
        by_base = 0.0 if b == 0.0 else b * a ** (b - 1.0)
        by_exponent = 0.0 if a == 0.0 and b >= 0.0 else y * math.log(a)
        return by_base, by_exponent, 0.0
    if code == NEGATIVE:
        return -1.0, 0.0, 0.0
    if code == EXP:
        return y, 0.0, 0.0
    if code == LOG:
        return 1.0 / a, 0.0, 0.0
    if code == TANH:
        return 1.0 - y * y, 0.0, 0.0
    if code == RELU:
        return 0.0 if a <= 0.0 else 1.0, 0.0, 0.0
    if code == SIGMOID:
        return y * (1.0 - y), 0.0, 0.0
    if code == SQRT:
        return 0.5 / y, 0.0, 0.0
    if code == SIN:
        return math.cos(a), 0.0, 0.0
    if code == COS:
        return -math.sin(a), 0.0, 0.0
    if code == ABSOLUTE:
        return 1.0 if a > 0.0 else (-1.0 if a < 0.0 else a), 0.0, 0.0
    if code == MAXIMUM:
        return _share_of_greater(a, b), _share_of_greater(b, a), 0.0
    if code == MINIMUM:
        return _share_of_greater(b, a), _share_of_greater(a, b), 0.0
    if code == WHERE:
        return 0.0, 1.0 if a != 0.0 else 0.0, 0.0 if a != 0.0 else 1.0
    if code == EXPM1:
        return y + 1.0, 0.0, 0.0
    if code == LOG1P:
        return 1.0 / (1.0 + a), 0.0, 0.0
    if code == ERF:
        return TWO_OVER_SQRT_PI * math.exp(-a * a), 0.0, 0.0
    if code == SOFTPLUS:
        return _sigmoid(a), 0.0, 0.0
    return 0.0, 0.0, 0.0  # comparisons and signs are constant but for jumps


@exactly
def chain(code, partial, derivative):
    """Return one term of the chain rule, partial times derivative.

    A derivative of 0 says that nothing depends on this way: then an infinite partial must not turn it into NaN, as
    in ``where(x > 0, log(x), 0)`` at 0. The same holds for the partial 0 of an argument that was not selected.
    """
    if derivative == 0.0:
        return 0.0
    if partial == 0.0 and (code == WHERE or code == RELU or code == MAXIMUM or code == MINIMUM):
        return 0.0
    return partial * derivative


@exactly
def _sigmoid(a):
    return 1.0 / (1.0 + math.exp(-a))


@exactly
def _share_of_greater(a, b):
    """The share of a in the derivative of the maximum of a and b."""
    return 0.0 if a < b else (0.5 if a == b else 1.0)
