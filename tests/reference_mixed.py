"""The oracle of mixed precision: conversions by themselves, and the whole step in float64, rounded where that is said.

Rounded to 16 bits are: the data, weights and biases, what a layer gives and what it keeps for its way back when it is
done, the gradient of the loss, and the gradient that a layer hands back. Nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import reference

#: Derivatives that are written in what the activation gave, a.
OF_OUTPUT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": np.ones_like,
    "relu": lambda a: np.where(a > 0.0, 1.0, 0.0),
    "tanh": lambda a: 1.0 - a**2,
    "sigmoid": lambda a: a * (1.0 - a),
}


def narrowed(x: np.ndarray, precision: str) -> np.ndarray:
    """The 16-bit codes (uint16) of float32 numbers: the nearer neighbour, and of equals the even one."""
    if precision == "fp16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint16)
    bits = x.view(np.uint32)
    low = bits & np.uint32(0xFFFF0000)
    rest = bits - low
    up = (rest > 0x8000) | ((rest == 0x8000) & (low & np.uint32(0x10000) != 0))
    upper = (low >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), upper | np.uint16(0x40), upper + up.astype(np.uint16))


def widened(codes: np.ndarray, precision: str) -> np.ndarray:
    """The float32 numbers of 16-bit codes."""
    if precision == "fp16":
        return codes.view(np.float16).astype(np.float32)
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(x: Any, precision: str) -> np.ndarray:
    """Numbers as 16 bits hold them, in float64."""
    return widened(narrowed(np.asarray(x, np.float32), precision), precision).astype(np.float64)


def loss_and_gradients(
    model: Any, x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None
) -> tuple[float, dict[str, np.ndarray], np.ndarray]:
    """Loss, gradients and what the last layer gives to the loss, of dense layers, activations and residual ones."""
    network, loss, q = model.network, model.loss, partial(rounded, precision=model.precision)
    masters = {name: np.array(values, np.float64) for name, values in model.parameters.items()}
    fused = network.layers[-1].activation.name == reference.FUSED.get(loss.name)
    gradients: dict[str, np.ndarray] = {}
    out, back = _chain(network.nodes, masters, gradients, q(x), q, not fused)
    value, d_out = reference.loss_value_and_gradient(loss, out, y, sample_weight)
    back(q(d_out * model.loss_scale))
    return value, {name: gradients[name] / model.loss_scale for name in masters}, out


def _chain(nodes, masters, gradients, x, q, ends=True):
    backs = []
    for node in nodes:
        lower = {"Residual": _residual, "Activation": _activation}.get(type(node.layer).__name__, _dense)
        x, back = lower(node, masters, gradients, x, q, ends or node is not nodes[-1])
        backs.append(back)

    def back_through(d):
        for back in reversed(backs):
            d = back(d)
        return d

    return x, back_through


def _derivative(activation, z, a):
    if activation.name in OF_OUTPUT:
        return OF_OUTPUT[activation.name](a)
    return reference.activation_derivative(activation.name, z, activation.parameter)


def _activation(node, masters, gradients, x, q, ends):
    if not ends:
        return x, lambda d: d
    a = q(reference.activation_value(node.layer.name, x, node.layer.parameter))
    return a, lambda d: q(d * _derivative(node.layer, x, a))


def _dense(node, masters, gradients, x, q, ends):
    weight, bias = f"{node.path}.weight", f"{node.path}.bias"
    z = x @ q(masters[weight]) + (q(masters[bias]) if node.layer.use_bias else 0.0)
    activation = node.layer.activation
    a = q(reference.activation_value(activation.name, z, activation.parameter)) if ends else q(z)

    def back(d):
        d_z = d * _derivative(activation, q(z), a) if ends else d
        gradients[weight] = x.T @ d_z
        if node.layer.use_bias:
            gradients[bias] = d_z.sum(axis=0)
        return q(d_z @ q(masters[weight]).T)

    return a, back


def _residual(node, masters, gradients, x, q, ends):
    branch, back_branch = _chain(node.branches[0], masters, gradients, x, q)
    skip, back_skip = x, lambda d: d
    if len(node.branches) > 1:
        skip, back_skip = _chain(node.branches[1], masters, gradients, x, q)
    return q(branch + skip), lambda d: q(back_branch(d) + back_skip(d))
