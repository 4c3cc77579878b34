"""The elementwise activations as one writes them in NumPy, and with the C library's functions in jitted code.

In NumPy: ``value(z)``, and ``derivative(s)`` of what nbbp keeps for it (the output or the input of the activation, as
`nbbp.scalars.activations` says). They keep the dtype of what they get; those in `EXACT` replace formulas that lose
digits to cancellation, and in float64 all are the reference.

With the C library: nbbp's own formulas, in which `exp`, `tanh`, `erf` and their like are those of `math`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType

import numpy as np
from numba import njit
from scipy import special

from nbbp.scalars.activations import ACTIVATIONS, SELU_ALPHA, SELU_SCALE

#: All but "linear", for which the engine runs nothing.
NAMES = tuple(name for name, formula in ACTIVATIONS.items() if not formula.row_wise and name != "linear")
SLOPE, CUBIC = math.sqrt(2.0 / math.pi), 0.044715

VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, z.dtype.type(0.01) * z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "selu": lambda z: SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0))),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "softplus": lambda z: np.logaddexp(0, z),
    "hard_tanh": lambda z: np.clip(z, -1, 1),
    "hard_sigmoid": lambda z: np.clip((z + 3) / 6, 0, 1),
    "softsign": lambda z: z / (1 + np.abs(z)),
    "gelu": lambda z: 0.5 * z * (1 + special.erf(z * math.sqrt(0.5))),
    "gelu_tanh": lambda z: 0.5 * z * (1 + np.tanh(SLOPE * (z + CUBIC * z * z * z))),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "mish": lambda z: z * np.tanh(np.logaddexp(0, z)),
}


def _sigmoid_at(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _gelu_tanh_derivative(z: np.ndarray) -> np.ndarray:
    t = np.tanh(SLOPE * (z + CUBIC * z * z * z))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * SLOPE * (1 + 3 * CUBIC * z * z)


def _silu_derivative(z: np.ndarray) -> np.ndarray:
    s = _sigmoid_at(z)
    return s * (1 + z * (1 - s))


def _mish_derivative(z: np.ndarray) -> np.ndarray:
    t = np.tanh(np.logaddexp(0, z))
    return t + z * (1 - t * t) * _sigmoid_at(z)


DERIVATIVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda a: np.where(a > 0, a.dtype.type(1), a.dtype.type(0)),
    "leaky_relu": lambda a: np.where(a > 0, a.dtype.type(1), a.dtype.type(0.01)),
    "elu": lambda a: np.where(a > 0, a.dtype.type(1), a + 1),
    "selu": lambda a: np.where(a > 0, a.dtype.type(SELU_SCALE), a + SELU_SCALE * SELU_ALPHA),
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: 1 - a * a,
    "softplus": lambda a: 1 - np.exp(-a),
    "hard_tanh": lambda a: np.where(np.abs(a) < 1, a.dtype.type(1), a.dtype.type(0)),
    "hard_sigmoid": lambda a: np.where((a > 0) & (a < 1), a.dtype.type(1 / 6), a.dtype.type(0)),
    "softsign": lambda a: (1 - np.abs(a)) ** 2,
    "gelu": lambda z: 0.5 * (1 + special.erf(z * math.sqrt(0.5))) + z * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi),
    "gelu_tanh": _gelu_tanh_derivative,
    "silu": _silu_derivative,
    "mish": _mish_derivative,
}

#: What replaces them where even float64 would lose digits that float32 has.
EXACT: dict[tuple[str, str], Callable[[np.ndarray], np.ndarray]] = {
    ("gelu", "value"): lambda z: z * special.ndtr(z),
    ("gelu", "derivative"): lambda z: special.ndtr(z) + z * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi),
    ("gelu_tanh", "value"): lambda z: z * special.expit(2 * SLOPE * (z + CUBIC * z**3)),
    ("softplus", "derivative"): lambda a: -np.expm1(-a),
}


def in_numpy(name: str, what: str) -> Callable[[np.ndarray], np.ndarray]:
    """The "value" or the "derivative" of an activation."""
    return (VALUES if what == "value" else DERIVATIVES)[name]


def reference(name: str, what: str, x: np.ndarray) -> np.ndarray:
    """The same in float64, of x in any dtype."""
    return EXACT.get((name, what), in_numpy(name, what))(x.astype(np.float64))


def _sigmoid_of_libm(x):
    one = type(x)(1.0)
    return one / (one + math.exp(-x))


def _softplus_of_libm(x):
    zero = type(x)(0.0)
    return (zero if x < zero else x) + math.log1p(math.exp(-abs(x)))


def with_libm(name: str, what: str) -> Callable:
    """nbbp's formula of x and alpha, jitted, with the functions of the C library in it."""
    formula = ACTIVATIONS[name]
    function = formula.value if what == "value" else formula.derivative
    names = {"exp": math.exp, "expm1": math.expm1, "tanh": math.tanh, "erf": math.erf}
    names |= {"sigmoid": njit(_sigmoid_of_libm), "softplus": njit(_softplus_of_libm)}
    return njit(error_model="numpy")(FunctionType(function.__code__, {**function.__globals__, **names}))
