"""Of the oracle: networks of layers within layers, in plain float64 NumPy; see ``reference``.

A layer is a function that gives its output and a closure for the way back. One more kind is one more function::

    @oracle_of(nbbp.layers.Scale)
    def scale(place, x):
        gain = place.parameter("gain")
        return x * gain, lambda d_y: (d_y * gain, {"gain": np.sum(d_y * x, axis=0)})

What else a layer goes by in a step (a mask, its running statistics) is handed in through `context`, a mapping by
name: ``place.given("mask")`` is what it has under "3.1.mask" for the layer at "3.1", or None.

Shapes: x (batch, n_in), z and y (batch, n_out) before and after a layer's activation; d_q is the gradient of the loss
with respect to q and has q's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from reference_functions import FUSED, activation_backward, activation_value, loss_value_and_gradient

from nbbp import layers

Gradients = dict[str, np.ndarray]
#: From d_y to d_x and the gradients of the parameters.
Backward = Callable[[np.ndarray], tuple[np.ndarray, Gradients]]

_ORACLES: dict[type, Callable[[Place, np.ndarray], tuple[np.ndarray, Backward]]] = {}


@dataclass(frozen=True)
class Place:
    """A layer in its place: what it is called, whether it trains, and what belongs to it."""

    layer: Any
    path: str
    trains: bool
    parameters: Mapping[str, np.ndarray]
    context: Mapping[str, Any] = field(default_factory=dict)

    def parameter(self, kind: str) -> np.ndarray:
        return np.asarray(self.parameters[f"{self.path}.{kind}"], np.float64)

    def given(self, what: str) -> Any:
        """What `context` has of this layer under that name; None where it has nothing."""
        return self.context.get(f"{self.path}.{what}")

    def within(self, name: str, layer: Any) -> Place:
        """A layer within this one."""
        return Place(layer, f"{self.path}.{name}", self.trains and layer.trainable, self.parameters, self.context)


def oracle_of(kind: type) -> Callable:
    """Register ``f(place, x) -> (z, backward)`` for a kind of layer: what it does before its activation.

    The gradients that `backward` gives are named by kind ("weight"), or in full (with a dot) where they belong to
    layers within.
    """

    def register(function: Callable) -> Callable:
        _ORACLES[kind] = function
        return function

    return register


# --- layers -------------------------------------------------------------------------------------------------


@oracle_of(layers.Dense)
def dense(place: Place, x: np.ndarray) -> tuple[np.ndarray, Backward]:
    weight = place.parameter("weight")
    z = x @ weight + (place.parameter("bias") if place.layer.use_bias else 0.0)

    def backward(d_z: np.ndarray) -> tuple[np.ndarray, Gradients]:
        bias = {"bias": d_z.sum(axis=0)} if place.layer.use_bias else {}
        return d_z @ weight.T, {"weight": x.T @ d_z, **bias}

    return z, backward


@oracle_of(layers.Activation)
@oracle_of(layers.Flatten)
@oracle_of(layers.Reshape)
def identity(place: Place, x: np.ndarray) -> tuple[np.ndarray, Backward]:
    return x, lambda d_z: (d_z, {})


@oracle_of(layers.Custom)
def custom(place: Place, x: np.ndarray) -> tuple[np.ndarray, Backward]:
    """The functions as plain Python, sample by sample."""
    layer = place.layer
    kinds = list(layer.parameter_shapes(x.shape[1]))
    flat = np.concatenate([np.zeros(0), *(place.parameter(kind).ravel() for kind in kinds)])
    y = np.empty((len(x), layer.width(x.shape[1])))
    for row in range(len(x)):
        layer.forward.py_func(flat, x[row], y[row])

    def backward(d_y: np.ndarray) -> tuple[np.ndarray, Gradients]:
        d_x, gradient, gradients = np.empty_like(x), np.zeros_like(flat), {}
        for row in range(len(x)):
            layer.backward.py_func(flat, x[row], y[row], d_y[row], d_x[row], gradient)
        start = 0
        for kind in kinds:
            shape = place.parameter(kind).shape
            gradients[kind] = gradient[start : start + np.prod(shape)].reshape(shape)
            start += np.prod(shape)
        return d_x, gradients

    return y, backward


@oracle_of(layers.Embedding)
def embedding(place: Place, x: np.ndarray) -> tuple[np.ndarray, Backward]:
    """Each category as a row of ones and zeros times its table; nothing goes back to a category."""
    tables = {column: categories for column, categories, _ in place.layer.tables}
    shared = None in tables
    columns = range(x.shape[1]) if shared else sorted(tables)
    passed = [column for column in range(x.shape[1]) if column not in columns]
    parts, used = [x[:, passed]], []
    for column in columns:
        kind = "weight" if shared else f"weight_{column}"
        one_hot = np.eye(tables[None if shared else column])[x[:, column].astype(int)]
        parts.append(one_hot @ place.parameter(kind))
        used.append((kind, one_hot))

    def backward(d_y: np.ndarray) -> tuple[np.ndarray, Gradients]:
        d_x, start, gradients = np.zeros_like(x), len(passed), {}
        d_x[:, passed] = d_y[:, :start]
        for (kind, one_hot), part in zip(used, parts[1:], strict=True):
            gradient = one_hot.T @ d_y[:, start : start + part.shape[1]]
            gradients[kind] = gradients.get(kind, 0.0) + gradient
            start += part.shape[1]
        return d_x, gradients

    return np.concatenate(parts, axis=1), backward


@oracle_of(layers.Residual)
def residual(place: Place, x: np.ndarray) -> tuple[np.ndarray, Backward]:
    branch, branch_back = chain(_places(place, "", place.layer.layers), x)
    if branch.shape == x.shape:
        skip, skip_back = x, lambda d_y: (d_y, {})
    else:
        projection = f"{place.path}.projection.weight"
        weight = np.asarray(place.parameters[projection], np.float64)
        skip, skip_back = x @ weight, lambda d_y: (d_y @ weight.T, {projection: x.T @ d_y})

    def backward(d_y: np.ndarray) -> tuple[np.ndarray, Gradients]:
        (d_x, gradients), (d_skip, of_skip) = branch_back(d_y), skip_back(d_y)
        return d_x + d_skip, {**gradients, **of_skip}

    return skip + branch, backward


@oracle_of(layers.Concat)
def concat(place: Place, x: np.ndarray) -> tuple[np.ndarray, Backward]:
    branches = [chain(_places(place, f"{n}.", inner), x) for n, inner in enumerate(place.layer.chains)]
    ends = np.cumsum([y.shape[1] for y, _ in branches])[:-1]

    def backward(d_y: np.ndarray) -> tuple[np.ndarray, Gradients]:
        d_x, gradients = np.zeros_like(x), {}
        for (_, back), d_branch in zip(branches, np.split(d_y, ends, axis=1), strict=True):
            d_more, more = back(d_branch)
            d_x, gradients = d_x + d_more, {**gradients, **more}
        return d_x, gradients

    return np.concatenate([y for y, _ in branches], axis=1), backward


def _places(place: Place, prefix: str, inner: Sequence[Any]) -> list[Place]:
    return [place.within(f"{prefix}{index}", layer) for index, layer in enumerate(inner)]


# --- chains of layers ---------------------------------------------------------------------------------------


def layer_passes(place: Place, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, Backward, Backward]:
    """z and y of a layer, and the ways back from either: y = f(z), f the layer's activation."""
    z, before = _ORACLES[type(place.layer)](place, x)
    activation = activation_of(place.layer)
    y = activation_value(activation.name, z, activation.parameter)

    def from_z(d_z: np.ndarray) -> tuple[np.ndarray, Gradients]:
        d_x, gradients = before(d_z)
        return d_x, {k if k.startswith(f"{place.path}.") else f"{place.path}.{k}": v for k, v in gradients.items()}

    def from_y(d_y: np.ndarray) -> tuple[np.ndarray, Gradients]:
        return from_z(activation_backward(activation.name, z, d_y, activation.parameter))

    return z, y, from_z, from_y


def chain(places: Sequence[Place], x: np.ndarray) -> tuple[np.ndarray, Backward]:
    """What layers one after the other give, and the way back."""
    backs = []
    for place in places:
        _, x, _, back = layer_passes(place, x)
        backs.append(back)
    return x, lambda d_y: _back(backs, d_y)


def _back(backs: Sequence[Backward], d_y: np.ndarray) -> tuple[np.ndarray, Gradients]:
    gradients: Gradients = {}
    for back in reversed(backs):
        d_y, more = back(d_y)
        gradients.update(more)
    return d_y, gradients


def activation_of(layer: Any) -> Any:
    """The activation that a layer ends with, or the layer that is one."""
    return layer.activation


# --- the network --------------------------------------------------------------------------------------------


def _passes(net: Any, parameters: Mapping[str, np.ndarray], x: np.ndarray, context: Mapping[str, Any] | None) -> list:
    """`layer_passes` of every outermost layer."""
    passed, x = [], np.asarray(x, np.float64)
    x = x.reshape(len(x), -1)
    for index, layer in enumerate(net.layers):
        passed.append(layer_passes(Place(layer, str(index), layer.trainable, parameters, context or {}), x))
        x = passed[-1][1]
    return passed


def forward(
    net: Any, parameters: Mapping[str, np.ndarray], x: np.ndarray, context: Mapping[str, Any] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(z, y) of every outermost layer: before and after its activation.

    Of a layer that has none, z is y; of an activation that stands alone, z is what comes in.
    """
    return [(z, y) for z, y, *_ in _passes(net, parameters, x, context)]


def predict(
    net: Any, parameters: Mapping[str, np.ndarray], x: np.ndarray, context: Mapping[str, Any] | None = None
) -> np.ndarray:
    """What the last layer gives, (batch, n_out)."""
    return forward(net, parameters, x, context)[-1][1]


def backward(
    net: Any,
    parameters: Mapping[str, np.ndarray],
    x: np.ndarray,
    d_output: np.ndarray,
    *,
    before_last_activation: bool = False,
    context: Mapping[str, Any] | None = None,
) -> tuple[Gradients, np.ndarray]:
    """Gradients of every parameter, and d_x, from the gradient at the network's end.

    `d_output` (batch, n_out) belongs to the last layer's output, or to its z if `before_last_activation`. Those of
    parameters that are frozen are zeros.
    """
    passed = _passes(net, parameters, x, context)
    backs = [from_y for *_, from_y in passed]
    if before_last_activation:
        # (behind it there are only layers that pass everything)
        last = _last_of_its_own(net)
        backs[last] = passed[last][2]
    d_x, gradients = _back(backs, np.asarray(d_output, np.float64))
    frozen = _frozen(net.layers)
    return {name: 0.0 * g if _is_within(name, frozen) else g for name, g in gradients.items()}, d_x


def _last_of_its_own(net: Any) -> int:
    """The position of the last layer that is no mere view."""
    views = (layers.Flatten, layers.Reshape)
    return max(index for index, layer in enumerate(net.layers) if not isinstance(layer, views))


def _frozen(inner: Sequence[Any], prefix: str = "") -> list[str]:
    """The paths of layers that are not trainable."""
    paths = []
    for index, layer in enumerate(inner):
        path = f"{prefix}{index}"
        paths += [] if layer.trainable else [path]
        if isinstance(layer, layers.Residual):
            paths += _frozen(layer.layers, f"{path}.")
        elif isinstance(layer, layers.Concat):
            for number, branch in enumerate(layer.chains):
                paths += _frozen(branch, f"{path}.{number}.")
    return paths


def _is_within(name: str, paths: Sequence[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def loss_and_gradients(
    net: Any,
    parameters: Mapping[str, np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    loss: str | Any,
    sample_weight: np.ndarray | None = None,
    context: Mapping[str, Any] | None = None,
) -> tuple[float, Gradients]:
    """The loss of a batch and its gradient with respect to every parameter, named and shaped as they are."""
    value, d_output, fused = _loss_at_the_end(net, parameters, x, y, loss, sample_weight, context)
    gradients, _ = backward(net, parameters, x, d_output, before_last_activation=fused, context=context)
    return value, {name: gradients[name] for name in parameters}


def loss_value(
    net: Any,
    parameters: Mapping[str, np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    loss: str | Any,
    sample_weight: np.ndarray | None = None,
    context: Mapping[str, Any] | None = None,
) -> float:
    """The loss of a batch, by the forward pass alone."""
    return _loss_at_the_end(net, parameters, x, y, loss, sample_weight, context)[0]


def input_gradient(
    net: Any,
    parameters: Mapping[str, np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    loss: str | Any,
    sample_weight: np.ndarray | None = None,
    context: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """The gradient of the loss of a batch with respect to x, (batch, n_in)."""
    _, d_output, fused = _loss_at_the_end(net, parameters, x, y, loss, sample_weight, context)
    return backward(net, parameters, x, d_output, before_last_activation=fused, context=context)[1]


def _loss_at_the_end(net, parameters, x, y, loss, sample_weight, context) -> tuple[float, np.ndarray, bool]:
    """The loss, its gradient with respect to what it takes, and whether that is z of the last layer."""
    name = loss if isinstance(loss, str) else loss.name
    last = _last_of_its_own(net)
    fused = activation_of(net.layers[last]).name == FUSED.get(name)
    z, a = forward(net, parameters, x, context)[last]
    return *loss_value_and_gradient(loss, z if fused else a, y, sample_weight), fused
