"""Of the oracle: activations and losses in plain float64 NumPy; see ``reference``.

Shapes: z and a (batch, n_out) before and after an activation, p (batch, n_out) what a loss takes; d_q is the gradient
of the loss with respect to q and has q's shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special, stats

# --- activations --------------------------------------------------------------------------------------------

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946

#: Of the activations that have one, the keyword and the default of their parameter.
ACTIVATION_PARAMETERS = {"leaky_relu": ("negative_slope", 0.01), "elu": ("alpha", 1.0)}


def sech_squared(z: np.ndarray) -> np.ndarray:
    """1 / cosh(z)^2, the derivative of tanh, without overflow."""
    return 4.0 * special.expit(2.0 * z) * special.expit(-2.0 * z)


def gelu_tanh_inner(z: np.ndarray) -> np.ndarray:
    return np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)


#: Values of the elementwise activations: name -> f(z, parameter).
VALUES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "linear": lambda z, _: z,
    "relu": lambda z, _: np.maximum(z, 0.0),
    "leaky_relu": lambda z, slope: np.where(z > 0.0, z, slope * z),
    "elu": lambda z, alpha: np.where(z > 0.0, z, alpha * np.expm1(np.minimum(z, 0.0))),
    "selu": lambda z, _: SELU_SCALE * np.where(z > 0.0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0.0))),
    "sigmoid": lambda z, _: special.expit(z),
    "tanh": lambda z, _: np.tanh(z),
    "softplus": lambda z, _: np.logaddexp(0.0, z),
    "hard_tanh": lambda z, _: np.clip(z, -1.0, 1.0),
    "hard_sigmoid": lambda z, _: np.clip(z / 6.0 + 0.5, 0.0, 1.0),
    "softsign": lambda z, _: z / (1.0 + np.abs(z)),
    "gelu": lambda z, _: z * special.ndtr(z),
    "gelu_tanh": lambda z, _: 0.5 * z * (1.0 + np.tanh(gelu_tanh_inner(z))),
    "silu": lambda z, _: z * special.expit(z),
    "mish": lambda z, _: z * np.tanh(np.logaddexp(0.0, z)),
}

#: Their derivatives with respect to z, all from z; at a kink the one that PyTorch takes.
DERIVATIVES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "linear": lambda z, _: np.ones_like(z),
    "relu": lambda z, _: np.where(z > 0.0, 1.0, 0.0),
    "leaky_relu": lambda z, slope: np.where(z > 0.0, 1.0, slope),
    "elu": lambda z, alpha: np.where(z > 0.0, 1.0, alpha * np.exp(np.minimum(z, 0.0))),
    "selu": lambda z, _: SELU_SCALE * np.where(z > 0.0, 1.0, SELU_ALPHA * np.exp(np.minimum(z, 0.0))),
    "sigmoid": lambda z, _: special.expit(z) * special.expit(-z),
    "tanh": lambda z, _: sech_squared(z),
    "softplus": lambda z, _: special.expit(z),
    "hard_tanh": lambda z, _: np.where(np.abs(z) < 1.0, 1.0, 0.0),
    "hard_sigmoid": lambda z, _: np.where(np.abs(z) < 3.0, 1.0 / 6.0, 0.0),
    "softsign": lambda z, _: (1.0 + np.abs(z)) ** -2.0,
    "gelu": lambda z, _: special.ndtr(z) + z * stats.norm.pdf(z),
    "gelu_tanh": lambda z, _: (
        0.5 * (1.0 + np.tanh(gelu_tanh_inner(z)))
        + 0.5 * z * sech_squared(gelu_tanh_inner(z)) * np.sqrt(2.0 / np.pi) * (1.0 + 3.0 * 0.044715 * z**2)
    ),
    "silu": lambda z, _: special.expit(z) * (1.0 + z * special.expit(-z)),
    "mish": lambda z, _: np.tanh(np.logaddexp(0.0, z)) + z * sech_squared(np.logaddexp(0.0, z)) * special.expit(z),
}


def activation_value(name: str, z: np.ndarray, parameter: float | None = None) -> np.ndarray:
    """a = f(z); softmax and log_softmax go over the last axis."""
    z = np.asarray(z, np.float64)
    if name == "softmax":
        return special.softmax(z, axis=-1)
    if name == "log_softmax":
        return special.log_softmax(z, axis=-1)
    return VALUES[name](z, default_parameter(name, parameter))


def activation_derivative(name: str, z: np.ndarray, parameter: float | None = None) -> np.ndarray:
    """f'(z) of an elementwise activation."""
    return DERIVATIVES[name](np.asarray(z, np.float64), default_parameter(name, parameter))


def activation_jacobian(name: str, z: np.ndarray, parameter: float | None = None) -> np.ndarray:
    """The Jacobian d a_j / d z_k of one row z (n,), as an array (n, n) indexed [j, k]."""
    z = np.asarray(z, np.float64)
    if name == "softmax":
        a = special.softmax(z)
        return np.diag(a) - np.outer(a, a)
    if name == "log_softmax":
        return np.eye(len(z)) - special.softmax(z)[None, :]
    return np.diag(activation_derivative(name, z, parameter))


def activation_backward(name: str, z: np.ndarray, d_a: np.ndarray, parameter: float | None = None) -> np.ndarray:
    """d_z from d_a: each row of d_a times the Jacobian of its row of z, both (batch, n_out)."""
    z = np.asarray(z, np.float64)
    if name == "softmax":
        a = special.softmax(z, axis=-1)
        return a * (d_a - np.sum(d_a * a, axis=-1, keepdims=True))
    if name == "log_softmax":
        return d_a - special.softmax(z, axis=-1) * np.sum(d_a, axis=-1, keepdims=True)
    return d_a * activation_derivative(name, z, parameter)


def default_parameter(name: str, parameter: float | None) -> float:
    return ACTIVATION_PARAMETERS.get(name, (None, 0.0))[1] if parameter is None else parameter


# --- losses -------------------------------------------------------------------------------------------------

ROW_WISE_LOSSES = ("crossentropy", "nll")

#: Losses of logits, and the last activation that turns their logits into probabilities: after it they take
#: the value before it. (log_softmax needs no entry: nll of it, and crossentropy of it, are the same number
#: and have the same gradient either way.)
FUSED = {"crossentropy": "softmax", "binary_crossentropy": "sigmoid"}


def loss_terms(
    name: str,
    p: np.ndarray,
    t: np.ndarray,
    delta: float = 1.0,
    label_smoothing: float = 0.0,
    log_input: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The terms of a loss and their derivatives with respect to p.

    p and t are (batch, n_out), t one-hot or soft for the row-wise losses. Terms are (batch, n_out), or
    (batch,) for the row-wise losses; derivatives are always (batch, n_out).
    """
    d = p - t
    if name == "mse":
        return d**2, 2.0 * d
    if name == "mae":
        return np.abs(d), np.sign(d)
    if name == "huber":
        near = np.abs(d) <= delta
        return np.where(near, 0.5 * d**2, delta * (np.abs(d) - 0.5 * delta)), np.clip(d, -delta, delta)
    if name == "log_cosh":
        return np.logaddexp(d, -d) - np.log(2.0), np.tanh(d)
    if name == "binary_crossentropy":
        t = (1.0 - label_smoothing) * t + 0.5 * label_smoothing
        return np.logaddexp(0.0, p) - t * p, special.expit(p) - t
    if name == "crossentropy":
        t = (1.0 - label_smoothing) * t + label_smoothing / t.shape[1]
        terms = -np.sum(t * special.log_softmax(p, axis=1), axis=1)
        return terms, special.softmax(p, axis=1) * np.sum(t, axis=1, keepdims=True) - t
    if name == "nll":
        return -np.sum(t * p, axis=1), -t
    if name == "hinge":
        return np.maximum(0.0, 1.0 - t * p), np.where(t * p < 1.0, -t, 0.0)
    if name == "poisson" and log_input:
        return np.exp(p) - t * p, np.exp(p) - t
    if name == "poisson":
        return p - t * np.log(p + 1e-8), 1.0 - t / (p + 1e-8)
    raise KeyError(name)


def loss_value_and_gradient(
    loss: str | Any, p: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """A loss and its gradient with respect to its input p (batch, n_out).

    `loss` is a name or a description, whose fields are its settings. `y` is (batch, n_out), or (batch,) where
    n_out is 1 or where it holds class numbers. `sample_weight` (batch,) multiplies the loss of each sample;
    the mean still divides by the number of samples.
    """
    name, settings = (loss, {}) if isinstance(loss, str) else (loss.name, dataclasses.asdict(loss))
    reduction, scale = settings.pop("reduction", "mean"), settings.pop("scale", 1.0)
    p = np.asarray(p, np.float64)
    terms, derivatives = loss_terms(name, p, target_rows(name, y, p.shape), **settings)
    weight = np.ones(len(p)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    weight = weight.reshape([-1] + [1] * (terms.ndim - 1))
    count = terms.size if reduction == "mean" else 1
    return scale * np.sum(weight * terms) / count, scale * weight.reshape(-1, 1) * derivatives / count


def target_rows(loss_name: str, y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Targets as float64 (batch, n_out): class numbers become one-hot rows, and 0 becomes -1 for hinge."""
    y = np.asarray(y)
    if loss_name in ROW_WISE_LOSSES and y.shape != shape:
        return np.eye(shape[1])[y.reshape(-1).astype(np.int64)]
    y = y.astype(np.float64).reshape(shape)
    return np.where(y == 0.0, -1.0, y) if loss_name == "hinge" else y
