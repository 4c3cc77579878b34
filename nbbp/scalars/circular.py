"""Sine and cosine in plain arithmetic, under the rules of `nbbp.scalars.functions`.

x = n pi/2 + r with |r| <= pi/4; then the sine of x is sin(r), cos(r), -sin(r) or -cos(r), as n is 0, 1, 2 or 3 but for
multiples of 4; so is the cosine, with n + 1. n pi/2 is subtracted in parts: n times each of the first ones is exact
even without fused multiply-adds, as long as n has few enough bits, which sets the range in which the errors hold.
Beyond it r is wrong by more and more, so that the result means nothing; it stays within [-1, 1].
"""

from nbbp.scalars.dispatch import by_dtype, exactly
from nbbp.scalars.functions import F32, F64, HALF32, I32, I64, ONE32, ROUND32, ROUND64, ZERO32, _float32

__all__ = ["cos", "sin"]

# More than |r| can be, and than the low part of r can be.
TWO_OVER_PI32, LIMIT32, LOW_LIMIT32 = _float32(0.6366197723675814, 0.79, 1e-6)
TWO_OVER_PI64, LIMIT64, LOW_LIMIT64 = 0.6366197723675814, 0.79, 1e-14
# pi/2 in parts of 11, 11, 11 and 24 bits, and of 29, 29, 29 and 53 bits.
P0, P1, P2, P3 = _float32(1.5703125, 0.0004837512969970703, 7.549533620476723e-08, 2.5633440682570896e-12)
Q0, Q1, Q2, Q3 = 1.570796325802803, 9.920935774287987e-10, 2.2517417706346578e-18, 3.5215598651832e-27

# sin(r) = r + r**3 (A0 + A1 r**2 + ...); relative error 2**-28 and 2**-57.9.
A0, A1, A2 = _float32(-0.16666654, 0.008332151, -0.0001951398)
B0, B1, B2 = -0.1666666666666663, 0.008333333333321891, -0.00019841269829400785
B3, B4, B5 = 2.7557313553683603e-06, -2.5050736836761563e-08, 1.5895579017897896e-10

# cos(r) = 1 - r**2/2 + r**4 (C0 + C1 r**2 + ...); relative error 2**-33 and 2**-63.9.
C0, C1, C2 = _float32(0.041666646, -0.0013887304, 2.4431669e-05)
D0, D1, D2 = 0.04166666666666659, -0.0013888888888872733, 2.4801587288643896e-05
D3, D4, D5 = -2.755731411778564e-07, 2.087569228912724e-09, -1.1358084178939262e-11


@exactly
def _wave_float32(x, rounded, quarter):
    """Return the wave of x in the quarter that the last two bits of quarter say; rounded is n in such bits."""
    n = rounded - ROUND32
    high = (x - n * P0) - n * P1
    r = high - n * P2
    low = ((high - r) - n * P2) - n * P3  # what r has rounded away
    r = -LIMIT32 if r < -LIMIT32 else r
    r = LIMIT32 if r > LIMIT32 else r
    low = ZERO32 if abs(low) > LOW_LIMIT32 else low
    p2 = r * r
    sine = r + ((r * p2) * (A0 + p2 * (A1 + p2 * A2)) + low)
    cosine = ONE32 - (HALF32 * p2 - ((p2 * p2) * (C0 + p2 * (C1 + p2 * C2)) - r * low))
    bits = F32(quarter).view(I32)
    y = sine if bits & 1 == 0 else cosine
    return y if bits & 2 == 0 else -y


@exactly
def _wave_float64(x, rounded, quarter):
    """Return the wave of x in the quarter that the last two bits of quarter say; rounded is n in such bits."""
    n = rounded - ROUND64
    high = (x - n * Q0) - n * Q1
    r = high - n * Q2
    low = ((high - r) - n * Q2) - n * Q3
    r = -LIMIT64 if r < -LIMIT64 else r
    r = LIMIT64 if r > LIMIT64 else r
    low = 0.0 if abs(low) > LOW_LIMIT64 else low
    p2 = r * r
    p4 = p2 * p2
    sine = (B0 + B1 * p2) + p4 * ((B2 + B3 * p2) + p4 * (B4 + B5 * p2))
    sine = r + ((r * p2) * sine + low)
    cosine = (D0 + D1 * p2) + p4 * ((D2 + D3 * p2) + p4 * (D4 + D5 * p2))
    cosine = 1.0 - (0.5 * p2 - (p4 * cosine - r * low))
    bits = F64(quarter).view(I64)
    y = sine if bits & 1 == 0 else cosine
    return y if bits & 2 == 0 else -y


@exactly
def sin_float32(x):
    """Return the sine of x; see `sin`."""
    rounded = x * TWO_OVER_PI32 + ROUND32
    return _wave_float32(x, rounded, rounded)


@exactly
def sin_float64(x):
    """Return the sine of x; see `sin`."""
    rounded = x * TWO_OVER_PI64 + ROUND64
    return _wave_float64(x, rounded, rounded)


@exactly
def cos_float32(x):
    """Return the cosine of x; see `cos`."""
    rounded = x * TWO_OVER_PI32 + ROUND32
    return _wave_float32(x, rounded, rounded + ONE32)


@exactly
def cos_float64(x):
    """Return the cosine of x; see `cos`."""
    rounded = x * TWO_OVER_PI64 + ROUND64
    return _wave_float64(x, rounded, rounded + 1.0)


@by_dtype(sin_float32, sin_float64)
def sin(x: float) -> float:
    """Return the sine of x in radians: NaN for an infinite x.

    Largest error: 1.1 ulp in float32, 1.6 ulp in float64.
    For |x| <= 1e4 in float32 and |x| <= 1e7 in float64; beyond, a number in [-1, 1] that means less and less.
    """


@by_dtype(cos_float32, cos_float64)
def cos(x: float) -> float:
    """Return the cosine of x in radians: NaN for an infinite x.

    Largest error: 1.1 ulp in float32, 1.6 ulp in float64.
    For |x| <= 1e4 in float32 and |x| <= 1e7 in float64; beyond, a number in [-1, 1] that means less and less.
    """
