"""Exponential, logarithm and their relatives in plain arithmetic, which LLVM turns into vector instructions.

Calls of the C library do not vectorise; a loop over these does. Each function is written once per dtype
(``exp_float32``, ``exp_float64``) and has one generic name (``exp``) that goes by the dtype of its argument,
in jitted code and on NumPy scalars alike. There are no branches, only selects; no tables; and no float64
arithmetic in the float32 versions, whose constants are therefore ``np.float32`` globals.

How they work: x = n ln 2 + r with |r| <= ln(2)/2 for the exponentials, x = 2**k (1 + f) with f near 0 for the
logarithms; a minimax polynomial in r or f; and integer arithmetic on the exponent bits for 2**n and k. Adding
1.5 * 2**23 (float32; 2**52 for float64) to a small number rounds it to an integer, which then stands in the
low bits of the sum. Polynomials are summed in pairs and fours of terms, hence the powers p2, p4 and p8: one
long chain of dependent operations would keep the CPU waiting.

NaN gives NaN, and infinities give what the C library gives. An e**x below the smallest normal number is
flushed to 0, because denormal numbers are slow on many CPUs. The sign of a zero is not kept.

The errors stated are the largest seen, in units in the last place (ulp) of results that are normal numbers:
every float32 from 2**-10 to 2**7 and many millions of others. They hold with fused multiply-adds; without,
up to half an ulp comes on top. tests/test_functions.py holds the functions to them.
"""

import numpy as np

from nbbp.scalars.dispatch import by_dtype, exactly, formula

__all__ = ["erf", "exp", "expm1", "log", "log1p", "log1p_of_exp", "sigmoid", "softplus", "tanh"]


def _float32(*constants: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(constant) for constant in constants)


F32, F64, I32, I64 = np.float32, np.float64, np.int32, np.int64

NAN32, INF32, ZERO32, QUARTER32, HALF32, ONE32, TWO32 = _float32(np.nan, np.inf, 0.0, 0.25, 0.5, 1.0, 2.0)
MINUS_TWO32 = F32(-2.0)
NAN64, INF64, ZERO64 = F64(np.nan), F64(np.inf), F64(0.0)

ROUND32 = F32(1.5 * 2.0**23)
ROUND64 = 1.5 * 2.0**52
ROUND_BITS64 = I64(0x4338000000000000)
# ln 2 in two parts: n times the first is exact even without fused multiply-adds, as its last bits are 0.
LOG2_E32, LN2_HIGH32, LN2_LOW32 = _float32(1.4426950408889634, 0.693145751953125, 1.4286068203094173e-06)
LN2_32 = F32(0.6931471805599453)
LOG2_E64, LN2_HIGH64, LN2_LOW64 = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10

# exp is infinite above EXP_MAX, and denormal (so: 0) below EXP_MIN. expm1 is infinite from EXPM1_MAX up, and
# -1 to the last bit from EXPM1_MIN down; tanh and erf are 1 to the last bit from their limits up.
EXP_MIN32, EXP_MAX32, EXPM1_MIN32, EXPM1_MAX32 = _float32(-87.33654, 88.72283, -18.0, 89.0)
EXP_MIN64, EXP_MAX64, EXPM1_MIN64, EXPM1_MAX64 = -708.3964185322641, 709.782712893384, -38.0, 710.0
TANH_LIMIT32, ERF_LIMIT32 = _float32(10.0, 3.93)
TANH_LIMIT64, ERF_LIMIT64 = 22.0, 5.93

SMALLEST_NORMAL32, TWO_23, TWO_MINUS_23, MINUS_23 = _float32(2.0**-126, 2.0**23, 2.0**-23, -23.0)
TWO_THIRDS_BITS32, FOUR_BITS32, EXPONENT_MASK32 = I32(0x3F2AAAAB), I32(0x40800000), I32(-0x800000)
SMALLEST_NORMAL64, TWO_52 = 2.0**-1022, 2.0**52
SQRT_HALF_BITS64, FOUR_BITS64 = I64(0x3FE6A09E667F3BCD), I64(0x4010000000000000)
EXPONENT_MASK64 = I64(-0x10000000000000)

# e**r - 1 = r + r**2 (A0 + A1 r + ...) for |r| <= ln(2)/2; relative error 2**-29 and 2**-58.
A0, A1, A2, A3, A4, A5 = _float32(0.5, 0.16666666, 0.041666485, 0.008333575, 0.0013929768, 0.00019722107)
B0, B1, B2, B3 = 0.5, 0.16666666666666666, 0.04166666666666667, 0.00833333333333438
B4, B5, B6 = 0.001388888888888416, 0.0001984126983746331, 2.4801587321826185e-05
B7, B8, B9 = 2.7557325263003818e-06, 2.7557278962342237e-07, 2.5047767526024228e-08
B10, B11 = 2.0915842404866926e-09, 1.7243831981095766e-10

# log(1 + f) = f + f**2 (-1/2 + C0 f + C1 f**2 + ...) for |f| <= 1/3; relative error 2**-27.6.
C0, C1, C2, C3 = _float32(0.33333212, -0.249998, 0.2001063, -0.16680495)
C4, C5, C6, C7 = _float32(0.14002001, -0.121828966, 0.14004755, -0.12901866)

# log(1 + f) = f - f**2/2 + s (f**2/2 + z (D0 + D1 z + ...)), s = f/(2 + f), z = s**2, as in fdlibm's e_log.c;
# for sqrt(1/2) <= 1 + f <= sqrt(2); relative error 2**-59.
D0, D1, D2, D3 = 0.666666666666671, 0.3999999999954186, 0.2857142871875225, 0.22222200689861532
D4, D5, D6 = 0.18183465663551263, 0.15316357040569575, 0.14774577786077953

# log(1 + y) = y - s (y - z (E0 + E1 z + ...)), s = y/(2 + y), z = s**2, for 0 <= y <= 1; so too G0, G1, ...;
# relative error 2**-27.7 and 2**-58.
E0, E1, E2, E3 = _float32(0.6666641, 0.40021744, 0.27998433, 0.28027758)
G0, G1, G2, G3 = 0.666666666666665, 0.40000000000103036, 0.2857142855304335, 0.22222223733443358
G4, G5, G6 = 0.18181749701718525, 0.15386482512354807, 0.13301484184660545
G7, G8, G9 = 0.12105435674278413, 0.08330352773154558, 0.1705657451333757

# erf(x) = 1 - e**-(x + x (H0 + H1 x + ...)) for 0 <= x <= 3.93, with K0, K1, ... for 0 <= x <= 5.93;
# relative error 2**-27.8 and 2**-54.9.
H0, H1, H2 = _float32(0.12837917, 0.63661957, 0.102776304)
H3, H4, H5 = _float32(-0.019147823, -0.00016950468, 0.0016756777)
H6, H7, H8 = _float32(-0.0006373648, 0.000118861906, -9.38805e-06)
K0, K1, K2, K3 = 0.12837916709551256, 0.6366197723675909, 0.10277260330131505, -0.019128446993087963
K4, K5, K6 = -0.00020919485398819456, 0.0016962076702587313, -0.0005901324317084555
K7, K8, K9 = 2.5904503982084033e-05, 6.442046403794648e-05, -2.9575656900441714e-05
K10, K11, K12 = 3.169661399236009e-06, 3.132969460013458e-06, -2.037191878320127e-06
K13, K14, K15 = 5.706330597964471e-07, -1.1707595635473584e-08, -6.573424492163959e-08
K16, K17, K18 = 3.4585249221839496e-08, -1.0773502797684261e-08, 2.3605562180235207e-09
K19, K20, K21 = -3.760792541328605e-10, 4.3018978895472775e-11, -3.3644539035416325e-12
K22, K23 = 1.614929466094414e-13, -3.592345208653343e-15


@exactly
def _expm1_of_remainder_float32(r):
    """Return e**r - 1 for |r| <= ln(2)/2."""
    p2 = r * r
    p = (A0 + A1 * r) + p2 * ((A2 + A3 * r) + p2 * (A4 + A5 * r))
    return r + p2 * p


@exactly
def _expm1_of_remainder_float64(r):
    """Return e**r - 1 for |r| <= ln(2)/2."""
    p2 = r * r
    p4 = p2 * p2
    low = (B0 + B1 * r) + p2 * (B2 + B3 * r)
    middle = (B4 + B5 * r) + p2 * (B6 + B7 * r)
    high = (B8 + B9 * r) + p2 * (B10 + B11 * r)
    return r + p2 * (low + p4 * (middle + p4 * high))


@exactly
def exp_float32(x):
    """Return e**x; see `exp`."""
    rounded = x * LOG2_E32 + ROUND32
    n = rounded - ROUND32
    y = ONE32 + _expm1_of_remainder_float32((x - n * LN2_HIGH32) - n * LN2_LOW32)
    # Add n to the exponent of y. For an x too large, too small or NaN the bits are nonsense, and not used.
    y = I32(F32(y).view(I32) + (F32(rounded).view(I32) << 23)).view(F32)
    y = y if x <= EXP_MAX32 else x + INF32
    return ZERO32 if x < EXP_MIN32 else y


@exactly
def exp_float64(x):
    """Return e**x; see `exp`."""
    rounded = x * LOG2_E64 + ROUND64
    n = rounded - ROUND64
    y = 1.0 + _expm1_of_remainder_float64((x - n * LN2_HIGH64) - n * LN2_LOW64)
    y = I64(F64(y).view(I64) + (F64(rounded).view(I64) << 52)).view(F64)
    y = y if x <= EXP_MAX64 else x + INF64
    return ZERO64 if x < EXP_MIN64 else y


@exactly
def _half_expm1_float32(x):
    """Return (e**x - 1)/2 for EXPM1_MIN <= x <= EXPM1_MAX, and a little beyond."""
    rounded = x * LOG2_E32 + ROUND32
    n = rounded - ROUND32
    y = _expm1_of_remainder_float32((x - n * LN2_HIGH32) - n * LN2_LOW32)
    # 2**(n - 1) rather than 2**n, which is infinite for n = 128 while the result may not be.
    half_power = I32((F32(rounded).view(I32) << 23) + 0x3F000000).view(F32)
    return half_power * y + (half_power - HALF32)


@exactly
def _half_expm1_float64(x):
    """Return (e**x - 1)/2 for EXPM1_MIN <= x <= EXPM1_MAX, and a little beyond."""
    rounded = x * LOG2_E64 + ROUND64
    n = rounded - ROUND64
    y = _expm1_of_remainder_float64((x - n * LN2_HIGH64) - n * LN2_LOW64)
    half_power = I64((F64(rounded).view(I64) << 52) + 0x3FE0000000000000).view(F64)
    return half_power * y + (half_power - 0.5)


@exactly
def expm1_float32(x):
    """Return e**x - 1; see `expm1`."""
    x = EXPM1_MIN32 if x < EXPM1_MIN32 else x
    y = _half_expm1_float32(EXPM1_MAX32 if x > EXPM1_MAX32 else x)
    return y + y


@exactly
def expm1_float64(x):
    """Return e**x - 1; see `expm1`."""
    x = EXPM1_MIN64 if x < EXPM1_MIN64 else x
    y = _half_expm1_float64(EXPM1_MAX64 if x > EXPM1_MAX64 else x)
    return y + y


@exactly
def _log_of_parts_float32(k, f):
    """Return k ln 2 + log(1 + f) for |f| <= 1/3."""
    p2 = f * f
    p4 = p2 * p2
    p = ((C0 + C1 * f) + p2 * (C2 + C3 * f)) + p4 * ((C4 + C5 * f) + p2 * (C6 + C7 * f))
    return k * LN2_32 + (f + p2 * (p * f - HALF32))


@exactly
def _log_of_parts_float64(k, f):
    """Return k ln 2 + log(1 + f) for sqrt(1/2) <= 1 + f <= sqrt(2)."""
    s = f / (2.0 + f)
    z = s * s
    p2 = z * z
    p = (D0 + D1 * z) + p2 * ((D2 + D3 * z) + p2 * ((D4 + D5 * z) + p2 * D6))
    half_square = 0.5 * f * f
    return k * LN2_HIGH64 - ((half_square - (s * (half_square + z * p) + k * LN2_LOW64)) - f)


@exactly
def log_float32(x):
    """Return the natural logarithm of x; see `log`."""
    denormal = x < SMALLEST_NORMAL32
    bits = F32(x * TWO_23 if denormal else x).view(I32)
    exponent = I32((bits - TWO_THIRDS_BITS32) & EXPONENT_MASK32)
    k = F32(exponent) * TWO_MINUS_23 + (MINUS_23 if denormal else ZERO32)
    y = _log_of_parts_float32(k, I32(bits - exponent).view(F32) - ONE32)
    y = y if x < INF32 else x
    return y if x > ZERO32 else (-INF32 if x == ZERO32 else NAN32)


@exactly
def log_float64(x):
    """Return the natural logarithm of x; see `log`."""
    denormal = x < SMALLEST_NORMAL64
    bits = F64(x * TWO_52 if denormal else x).view(I64)
    exponent = (bits - SQRT_HALF_BITS64) & EXPONENT_MASK64
    # An int64 to float64 conversion has no vector instruction before AVX-512; this has.
    k = (I64((exponent >> 52) + ROUND_BITS64).view(F64) - ROUND64) - (52.0 if denormal else 0.0)
    y = _log_of_parts_float64(k, I64(bits - exponent).view(F64) - 1.0)
    y = y if x < INF64 else x
    return y if x > 0.0 else (-INF64 if x == 0.0 else NAN64)


@exactly
def log1p_float32(x):
    """Return the natural logarithm of 1 + x; see `log1p`."""
    exponent = I32((F32(x + ONE32).view(I32) - TWO_THIRDS_BITS32) & EXPONENT_MASK32)
    # f = (1 + x) 2**-k - 1 as x 2**-k + (2**-k - 1): what 1 + x rounds away is not lost.
    f = I32(F32(x).view(I32) - exponent).view(F32)
    f = f + (I32(FOUR_BITS32 - exponent).view(F32) * QUARTER32 - ONE32)
    y = _log_of_parts_float32(F32(exponent) * TWO_MINUS_23, f)
    y = y if x < INF32 else x
    return y if x > -ONE32 else (-INF32 if x == -ONE32 else NAN32)


@exactly
def log1p_float64(x):
    """Return the natural logarithm of 1 + x; see `log1p`."""
    exponent = (F64(x + 1.0).view(I64) - SQRT_HALF_BITS64) & EXPONENT_MASK64
    f = I64(F64(x).view(I64) - exponent).view(F64)
    f = f + (I64(FOUR_BITS64 - exponent).view(F64) * 0.25 - 1.0)
    y = _log_of_parts_float64(I64((exponent >> 52) + ROUND_BITS64).view(F64) - ROUND64, f)
    y = y if x < INF64 else x
    return y if x > -1.0 else (-INF64 if x == -1.0 else NAN64)


@exactly
def tanh_float32(x):
    """Return the hyperbolic tangent of x; see `tanh`."""
    size = abs(x)
    size = TANH_LIMIT32 if size > TANH_LIMIT32 else size
    half = _half_expm1_float32(size * MINUS_TWO32)
    # with e = 2 half, -e/(e + 2); the rounding errors of the quotient are scaled down where e is small
    y = half * (half / (half + ONE32)) - half
    return -y if x < ZERO32 else y


@exactly
def tanh_float64(x):
    """Return the hyperbolic tangent of x; see `tanh`."""
    size = abs(x)
    size = TANH_LIMIT64 if size > TANH_LIMIT64 else size
    half = _half_expm1_float64(size * -2.0)
    y = half * (half / (half + 1.0)) - half
    return -y if x < 0.0 else y


@exactly
def erf_float32(x):
    """Return the error function of x; see `erf`."""
    size = abs(x)
    size = ERF_LIMIT32 if size > ERF_LIMIT32 else size
    p2 = size * size
    p4 = p2 * p2
    p = (H0 + H1 * size) + p2 * (H2 + H3 * size)
    p = p + p4 * (((H4 + H5 * size) + p2 * (H6 + H7 * size)) + p4 * H8)
    y = expm1_float32(-(size + size * p))
    return y if x < ZERO32 else -y


@exactly
def erf_float64(x):
    """Return the error function of x; see `erf`."""
    size = abs(x)
    size = ERF_LIMIT64 if size > ERF_LIMIT64 else size
    p2 = size * size
    p4 = p2 * p2
    p8 = p4 * p4
    low = (K0 + K1 * size) + p2 * (K2 + K3 * size) + p4 * ((K4 + K5 * size) + p2 * (K6 + K7 * size))
    middle = (K8 + K9 * size) + p2 * (K10 + K11 * size)
    middle = middle + p4 * ((K12 + K13 * size) + p2 * (K14 + K15 * size))
    high = (K16 + K17 * size) + p2 * (K18 + K19 * size)
    high = high + p4 * ((K20 + K21 * size) + p2 * (K22 + K23 * size))
    p = low + p8 * (middle + p8 * high)
    y = expm1_float64(-(size + size * p))
    return y if x < 0.0 else -y


@exactly
def log1p_of_exp_float32(x):
    """Return log(1 + e**x) for x <= 0; see `log1p_of_exp`."""
    y = exp_float32(x)
    s = y / (TWO32 + y)
    z = s * s
    return y - s * (y - z * ((E0 + E1 * z) + (z * z) * (E2 + E3 * z)))


@exactly
def log1p_of_exp_float64(x):
    """Return log(1 + e**x) for x <= 0; see `log1p_of_exp`."""
    y = exp_float64(x)
    s = y / (2.0 + y)
    z = s * s
    p2 = z * z
    p4 = p2 * p2
    p = (G0 + G1 * z) + p2 * (G2 + G3 * z)
    p = p + p4 * (((G4 + G5 * z) + p2 * (G6 + G7 * z)) + p4 * (G8 + G9 * z))
    return y - s * (y - z * p)


@by_dtype(exp_float32, exp_float64)
def exp(x: float) -> float:
    """Return e**x.

    Largest error: 1.1 ulp in float32, 1.1 ulp in float64.
    Above 88.72283 (float32) or 709.782712893384 (float64) the result is inf; below -87.33654 or
    -708.3964185322641 it is 0.
    """


@by_dtype(expm1_float32, expm1_float64)
def expm1(x: float) -> float:
    """Return e**x - 1, accurate near 0.

    Largest error: 1.5 ulp in float32, 2.1 ulp in float64.
    """


@by_dtype(log_float32, log_float64)
def log(x: float) -> float:
    """Return the natural logarithm of x: -inf for 0, NaN for negative x.

    Largest error: 1.0 ulp in float32, 1.0 ulp in float64.
    """


@by_dtype(log1p_float32, log1p_float64)
def log1p(x: float) -> float:
    """Return log(1 + x), accurate near 0: -inf for -1, NaN for x below -1.

    Largest error: 1.6 ulp in float32, 1.3 ulp in float64.
    """


@by_dtype(log1p_of_exp_float32, log1p_of_exp_float64)
def log1p_of_exp(x: float) -> float:
    """Return log(1 + e**x) for x <= 0, which is not checked.

    Largest error: 1.9 ulp in float32, 1.9 ulp in float64.
    """


@by_dtype(tanh_float32, tanh_float64)
def tanh(x: float) -> float:
    """Return the hyperbolic tangent of x.

    Largest error: 2.1 ulp in float32, 2.3 ulp in float64.
    """


@by_dtype(erf_float32, erf_float64)
def erf(x: float) -> float:
    """Return the error function: 2/sqrt(pi) times the integral of e**-t**2 for t from 0 to x.

    Largest error: 1.9 ulp in float32, 1.7 ulp in float64.
    """


@formula
def sigmoid(x: float) -> float:
    """Return the logistic function 1/(1 + e**-x).

    Largest error: 2.5 ulp in float32, 2.3 ulp in float64.
    """
    one = type(x)(1.0)
    return one / (one + exp(-x))


@formula
def softplus(x: float) -> float:
    """Return log(1 + e**x), as max(x, 0) + log(1 + e**-|x|): no overflow.

    Largest error: 1.9 ulp in float32, 1.9 ulp in float64.
    """
    zero = type(x)(0.0)
    return (zero if x < zero else x) + log1p_of_exp(-abs(x))
