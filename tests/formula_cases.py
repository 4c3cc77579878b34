"""Formulas that tests share: built-in activations and losses written by hand, and an interpreter of nodes."""

import numpy as np
from scipy import special

from nbbp import autodiff


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def swish(z):
    return z / (1 + np.exp(-1.5 * z))


def quartic(prediction, target):
    return (prediction - target) ** 4


#: Built-in activations (without a parameter of their own) as one would write them.
ACTIVATIONS_BY_HAND = {
    "linear": lambda z: z,
    "relu": lambda z: np.where(z > 0, z, 0),
    "elu": lambda z: np.where(z > 0, z, np.exp(z) - 1),
    "sigmoid": sigmoid,
    "tanh": lambda z: np.tanh(z),
    "softplus": lambda z: np.log(1 + np.exp(z)),
    "hard_tanh": lambda z: np.where(z > 1, 1, np.where(z < -1, -1, z)),
    "hard_sigmoid": lambda z: np.clip((z + 3) / 6, 0, 1),
    "softsign": lambda z: z / (1 + abs(z)),
    "gelu": lambda z: 0.5 * z * (1 + autodiff.erf(z / 2**0.5)),
    "gelu_tanh": lambda z: 0.5 * z * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "mish": lambda z: z * np.tanh(np.log(1 + np.exp(z))),
}

#: Built-in losses, likewise.
LOSSES_BY_HAND = {
    "mse": lambda p, t: (p - t) ** 2,
    "mae": lambda p, t: abs(p - t),
    "huber": lambda p, t: np.where(abs(p - t) <= 1, 0.5 * (p - t) ** 2, abs(p - t) - 0.5),
    "binary_crossentropy": lambda p, t: -(t * np.log(sigmoid(p)) + (1 - t) * np.log(1 - sigmoid(p))),
    "poisson": lambda p, t: np.exp(p) - t * p,
}


def magnitudes_apart(a, b):
    """Whether a comparison of these does not hang on their last digits."""
    return a is b or abs(a - b) > 1e-6 * max(1.0, abs(a), abs(b))


class IllConditionedError(ArithmeticError):
    """What a formula gives here hangs on rounding."""


_ORDINARY = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "power": np.power,
    "negative": lambda a: -a,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0.0),
    "sigmoid": special.expit,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "absolute": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "less": lambda a, b: np.float64(a < b),
    "less_equal": lambda a, b: np.float64(a <= b),
    "equal": lambda a, b: np.float64(a == b),
    "where": lambda c, a, b: a if c != 0 else b,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "erf": special.erf,
    "softplus": lambda a: np.logaddexp(0.0, a),
    "sign": np.sign,
}
#: Operations with a jump or a kink, by what has to be apart from what.
KINKS = {
    **dict.fromkeys(("maximum", "minimum", "less", "less_equal", "equal"), lambda a, b: (a, b)),
    **dict.fromkeys(("relu", "absolute", "sign"), lambda a: (a, 0.0)),
}


def interpret(nodes, inputs, strict=False):
    """The formula's value in float64, by NumPy and SciPy, node by node.

    `strict` raises `IllConditionedError` where a number is not of ordinary size, or a kink is near.
    """
    values = []
    for node in nodes:
        if node.operation == "input":
            value = np.float64(inputs[int(node.number)])
        elif node.operation == "constant":
            value = np.float64(node.number)
        else:
            taken = [values[argument] for argument in node.arguments]
            if strict and node.operation in KINKS and not magnitudes_apart(*KINKS[node.operation](*taken)):
                raise IllConditionedError
            value = _ORDINARY[node.operation](*taken)
        if strict and not (value == 0 or 1e-3 <= abs(value) <= 1e3):
            raise IllConditionedError
        values.append(value)
    return values[-1]
