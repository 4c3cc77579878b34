"""Square roots and general powers, under the rules of `nbbp.scalars.functions`."""

import math

from nbbp.scalars.dispatch import by_dtype, exactly, formula
from nbbp.scalars.functions import F32, F64, NAN32, NAN64, ROUND32, ROUND64, ZERO32, exp, log

__all__ = ["power", "sqrt"]

NAN = math.nan


@exactly
def sqrt_float32(x):
    """Return the square root of x; see `sqrt`."""
    return F32(math.sqrt(x)) if x >= ZERO32 else NAN32


@exactly
def sqrt_float64(x):
    """Return the square root of x; see `sqrt`."""
    return F64(math.sqrt(x)) if x >= 0.0 else NAN64


@by_dtype(sqrt_float32, sqrt_float64)
def sqrt(x: float) -> float:
    """Return the square root of x: NaN for negative x.

    Largest error: 0.5 ulp in float32, 0.5 ulp in float64.
    """


@exactly
def _nearest_float32(x):
    return (x + ROUND32) - ROUND32


@exactly
def _nearest_float64(x):
    return (x + ROUND64) - ROUND64


@by_dtype(_nearest_float32, _nearest_float64)
def _nearest(x: float) -> float:
    """Return the whole number next to x, for |x| < 2**22 in float32 and 2**51 in float64."""


@formula
def power(x: float, y: float) -> float:
    """Return x**y, as e**(y log|x|): 1 for y = 0, NaN for a negative x (and for -inf) unless y
    is a whole number.

    The relative error is about 1 + |y log|x|| units in the last place: formulas that can do without (squares, whole
    exponents that are constant) should.
    """
    kind = type(x)
    size = exp(y * log(abs(x)))
    half = y * kind(0.5)
    signed = size if _nearest(half) == half else -size
    signed = signed if _nearest(y) == y else kind(NAN)
    signed = signed if x < kind(0.0) else size
    return kind(1.0) if y == kind(0.0) else signed
