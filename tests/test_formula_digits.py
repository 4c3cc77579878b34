"""Rewritten formulas and their derivatives keep their digits in float32, over a wide range, far out too."""

import numpy as np
import pytest

from nbbp.autodiff import trace
from nbbp.scalars.differentiation import derivative, in_terms_of_output
from nbbp.scalars.simplification import simplify
from nbbp.scalars.writing import function_of

SIZES = np.array([*np.geomspace(1e-8, 1e-2, 19), *np.linspace(0.02, 20, 300), *np.linspace(20, 80, 61)], np.float32)
POINTS = np.concatenate([-SIZES[::-1], SIZES])


def sigmoid(z):
    return np.exp(-np.logaddexp(0, -z))


def bell(z):
    """The derivative of sigmoid."""
    return sigmoid(z) * sigmoid(-z)


def softplus(z):
    return np.logaddexp(0, z)


#: What y(1 - y) and 1 - y**2 lose where y is near 1: of the derivatives of sigmoid and tanh, as those of the built-in
#: ones, some digits after the seventh.
NEAR_ONE = 2.5e-7

#: A formula as written, then its value and derivative in float64 without cancellation; what may be lost of either.
REWRITTEN = {
    "exp(z) - 1": (lambda z: np.exp(z) - 1, np.expm1, np.exp, 0, 0),
    "-1 + exp(-z)": (lambda z: -1 + np.exp(-z), lambda z: np.expm1(-z), lambda z: -np.exp(-z), 0, 0),
    "1 - exp(-z)": (lambda z: 1 - np.exp(-z), lambda z: -np.expm1(-z), lambda z: np.exp(-z), 0, 0),
    "3 (1 - exp(-z))": (lambda z: 3 * (1 - np.exp(-z)), lambda z: -3 * np.expm1(-z), lambda z: 3 * np.exp(-z), 0, 0),
    "1 - exp(-z/2)": (lambda z: 1 - np.exp(-z / 2), lambda z: -np.expm1(-z / 2), lambda z: np.exp(-z / 2) / 2, 0, 0),
    "(1 - exp(-|z|))**2": (
        lambda z: (1 - np.exp(-abs(z))) ** 2,
        lambda z: np.expm1(-abs(z)) ** 2,
        lambda z: -2 * np.expm1(-abs(z)) * np.exp(-abs(z)) * np.sign(z),
        0,
        0,
    ),
    "z (exp(-|z|) - 1)": (
        lambda z: z * (np.exp(-abs(z)) - 1),
        lambda z: z * np.expm1(-abs(z)),
        lambda z: np.expm1(-abs(z)) - abs(z) * np.exp(-abs(z)),
        0,
        0,
    ),
    "elu": (
        lambda z: np.where(z > 0, z, np.exp(z) - 1),
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda z: np.exp(np.minimum(z, 0)),
        0,
        0,
    ),
    "expm1": (lambda z: np.expm1(z), np.expm1, np.exp, 0, 0),
    "expm1 + 1": (lambda z: np.expm1(z) + 1, np.exp, np.exp, 0, 0),
    "log(1 + |z|)": (
        lambda z: np.log(1 + abs(z)),
        lambda z: np.log1p(abs(z)),
        lambda z: np.sign(z) / (1 + abs(z)),
        0,
        0,
    ),
    "log(1 + z**2)": (
        lambda z: np.log(1 + z**2),
        lambda z: np.log1p(z * z),
        lambda z: 2 * z / (1 + z * z),
        0,
        0,
    ),
    "log(1 - exp(-|z|))": (
        lambda z: np.log(1 - np.exp(-abs(z))),
        lambda z: np.where(abs(z) < 0.7, np.log(-np.expm1(-abs(z))), np.log1p(-np.exp(-abs(z)))),
        lambda z: np.sign(z) * np.exp(-abs(z)) / -np.expm1(-abs(z)),
        1.2e-7,
        0,
    ),
    "softplus": (lambda z: np.log(1 + np.exp(z)), softplus, sigmoid, 0, 0),
    "softplus(-z)": (lambda z: np.log1p(np.exp(-z)), lambda z: softplus(-z), lambda z: -sigmoid(-z), 0, 0),
    "softplus(2z)/2": (
        lambda z: np.log(1 + np.exp(2 * z)) / 2,
        lambda z: softplus(2 * z) / 2,
        lambda z: sigmoid(2 * z),
        1e-30,
        1e-30,
    ),
    "log(sigmoid)": (lambda z: np.log(1 / (1 + np.exp(-z))), lambda z: -softplus(-z), lambda z: sigmoid(-z), 0, 0),
    "log(1 - sigmoid)": (
        lambda z: np.log(1 - 1 / (1 + np.exp(-z))),
        lambda z: -softplus(z),
        lambda z: -sigmoid(z),
        0,
        0,
    ),
    "log(3 sigmoid)": (
        lambda z: np.log(3 / (1 + np.exp(-z))),
        lambda z: np.log(3) - softplus(-z),
        lambda z: sigmoid(-z),
        1.2e-7,
        0,
    ),
    "log(1 + tanh)": (
        lambda z: np.log(1 + np.tanh(z)),
        lambda z: np.log(2) - softplus(-2 * z),
        lambda z: 2 * sigmoid(-2 * z),
        1.2e-7,
        1e-30,
    ),
    "log(1 - tanh)": (
        lambda z: np.log(1 - np.tanh(z)),
        lambda z: np.log(2) - softplus(2 * z),
        lambda z: -2 * sigmoid(2 * z),
        1.2e-7,
        1e-30,
    ),
    "1 + tanh": (
        lambda z: 1 + np.tanh(z),
        lambda z: 2 * sigmoid(2 * z),
        lambda z: 4 * bell(2 * z),
        1e-30,
        4 * NEAR_ONE,
    ),
    "1 - tanh": (
        lambda z: 1 - np.tanh(z),
        lambda z: 2 * sigmoid(-2 * z),
        lambda z: -4 * bell(2 * z),
        1e-30,
        4 * NEAR_ONE,
    ),
    "tanh in exponentials": (
        lambda z: (np.exp(z) - np.exp(-z)) / (np.exp(z) + np.exp(-z)),
        np.tanh,
        lambda z: 4 * bell(2 * z),
        0,
        4 * NEAR_ONE,
    ),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), sigmoid, bell, 0, NEAR_ONE),
    "sigmoid(-z)": (lambda z: 1 / (1 + np.exp(z)), lambda z: sigmoid(-z), lambda z: -bell(z), 0, NEAR_ONE),
    "exp/(1 + exp)": (lambda z: np.exp(z) / (1 + np.exp(z)), sigmoid, bell, 0, NEAR_ONE),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_digits(name):
    written, value, slope, lost, lost_of_slope = REWRITTEN[name]
    nodes = simplify(trace(written, 1))
    found = derivative(nodes)
    exact = POINTS.astype(np.float64)
    with np.errstate(all="ignore"):
        values = [function_of(nodes, "z")(z) for z in POINTS]
        slopes = [function_of(found, "z")(z) for z in POINTS]
    assert {type(number) for number in values + slopes} == {np.float32}
    np.testing.assert_allclose(values, value(exact), rtol=3e-6, atol=lost)
    np.testing.assert_allclose(slopes, slope(exact), rtol=3e-6, atol=lost_of_slope)
    of_output = in_terms_of_output(nodes, found)
    if of_output is not None:
        slopes = [function_of(of_output, "y")(y) for y in values]
        np.testing.assert_allclose(slopes, slope(exact), rtol=3e-6, atol=lost_of_slope)
