"""Sequential: layers with sizes, and what follows from them: names, shapes and places of the parameters.

A network is data. It holds no arrays: `Sequential.initial_parameters` makes them from a seed, and a model
owns them.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from nbbp.form import Form
from nbbp.layers import (
    Activation,
    Custom,
    Dense,
    Embedding,
    Flatten,
    Layer,
    Reshape,
    positive_integer,
)
from nbbp.layers.structure import chain_n_out, checked_layers
from nbbp.nodes import Node, Parameter, nodes_of, parameters_of, walk

__all__ = ["Parameter", "Sequential"]


@dataclass(frozen=True)
class Sequential:
    """Layers one after the other.

    Parameters
    ----------
    layers : iterable of layers
        At least one with parameters; kept as a tuple. See `nbbp.layers`.
    n_in : int or tuple of int, optional
        Features per sample, or the shape of one where the first layer is `Flatten`. Without it the network has no sizes
        yet: `build` gives one that has.
    checkpoint_every : int, optional
        Keep only the output of every so many layers while a batch goes forward, and compute the others again as the
        gradient comes back: less memory for deep networks, the same bits, up to a third more arithmetic. About the
        square root of the number of layers is best (Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear
        memory cost", 2016).

    Attributes
    ----------
    layers : tuple of layers
    n_in : int or None
    checkpoint_every : int or None

    Raises
    ------
    TypeError
        If `layers` is no collection of layers, or a number no integer.
    ValueError
        If there are no layers, two have the same name, a number is below 1, or a layer does not take what comes in.

    Examples
    --------
    >>> net = Sequential([Dense(128, activation="relu"), Dense(10)], n_in=784)
    >>> [parameter.name for parameter in net.parameters]
    ['0.weight', '0.bias', '1.weight', '1.bias']
    >>> net.n_parameters
    101770
    """

    layers: tuple[Layer, ...]
    n_in: int | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _checked(self.layers))
        n_in = self.n_in
        if isinstance(n_in, (tuple, list)):
            n_in = math.prod(positive_integer("a size in n_in of Sequential", size) for size in n_in)
        if n_in is not None:
            object.__setattr__(self, "n_in", positive_integer("n_in of Sequential", n_in))
            self.output_shape  # noqa: B018 - raises where a layer does not take what comes in
        if self.checkpoint_every is not None:
            every = positive_integer("checkpoint_every of Sequential", self.checkpoint_every)
            object.__setattr__(self, "checkpoint_every", every)

    def __repr__(self) -> str:
        more = "" if self.checkpoint_every is None else f", checkpoint_every={self.checkpoint_every}"
        return f"Sequential([{', '.join(map(repr, self.layers))}], n_in={self.n_in}{more})"

    def build(self, n_in: int) -> Sequential:
        """The same layers with `n_in` features per sample; this network stays as it is.

        Raises
        ------
        TypeError
            If `n_in` is no integer.
        ValueError
            If it is below 1, or this network already takes another number.
        """
        n_in = positive_integer("n_in of Sequential", n_in)
        if self.n_in is not None and self.n_in != n_in:
            raise ValueError(f"this network takes {self.n_in} features per sample; build was given {n_in}")
        return self if self.n_in == n_in else replace(self, n_in=n_in)

    @property
    def n_out(self) -> int:
        """Outputs per sample."""
        known = chain_n_out(self.layers) if self.n_in is None else None
        return self.widths[-1] if known is None else known

    @property
    def _known_n_in(self) -> int:
        if self.n_in is None:
            raise ValueError(
                "this network has no parameters yet, because the features per sample are not known: "
                "give n_in to Sequential, or call build(n_in)"
            )
        return self.n_in

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The layers in their places, with sizes.

        Raises
        ------
        ValueError
            If `n_in` is not known yet.
        """
        return nodes_of(self.layers, self._known_n_in)

    @property
    def widths(self) -> tuple[int, ...]:
        """Outputs per sample of every layer.

        Raises
        ------
        ValueError
            If `n_in` is not known yet.
        """
        return tuple(node.n_out for node in self.nodes)

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of what every layer gives for one sample: (n_out,) but behind a `Reshape`.

        Raises
        ------
        ValueError
            If `n_in` is not known yet.
        """
        shapes = [(self._known_n_in,)]
        for node in self.nodes:
            try:
                shapes.append(node.layer.output_shape(shapes[-1]))
            except ValueError as error:
                raise ValueError(f"layer {node.path}: {error}") from None
        return tuple(shapes[1:])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what the last layer gives for one sample."""
        return self.shapes[-1]

    @property
    def last_layer(self) -> Layer:
        """The last one that is no `Flatten` or `Reshape`, which pass everything."""
        return next(layer for layer in reversed(self.layers) if not isinstance(layer, (Flatten, Reshape)))

    @cached_property
    def form(self) -> Form:
        """What the ends take and give; while `n_in` is not known, only whether samples may have any shape."""
        any_shape = isinstance(self.layers[0], (Flatten, Reshape))
        if self.n_in is None:
            return Form(any_shape)
        looked_up = {
            (column, n_categories)
            for node in walk(self.nodes)
            if isinstance(node.layer, Embedding)
            for column, n_categories, *_ in node.layer.columns(node.n_in)[1]
        }
        shape = self.output_shape
        return Form(any_shape, tuple(sorted(looked_up)), shape if len(shape) > 1 else ())

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter in the order of the flat buffer, one directly after the other without padding.

        Raises
        ------
        ValueError
            If `n_in` is not known yet, or there are none.
        """
        parameters = parameters_of(self.nodes)
        if not parameters:
            raise ValueError("this network has no parameters: there is nothing to train")
        return parameters

    @cached_property
    def states(self) -> tuple[Parameter, ...]:
        """What layers keep from step to step beside their parameters, in the order of its flat buffer.

        Raises
        ------
        ValueError
            If `n_in` is not known yet.
        """
        return parameters_of(self.nodes, states=True)

    def initial_state(self, dtype: DTypeLike = "float32") -> np.ndarray:
        """The flat buffer of the states before training."""
        flat = np.zeros(self.states[-1].stop if self.states else 0, checked_dtype(dtype))
        for state in self.states:
            state.view(flat)[...] = state.initializer(state.shape, 0, state.stream, flat.dtype)
        return flat

    def first_not_finite(self, flat: np.ndarray) -> str | None:
        """Name of the first parameter in a flat buffer (n_parameters,) that holds NaN or infinity."""
        for parameter in self.parameters:
            if not np.isfinite(parameter.view(flat)).all():
                return parameter.name
        return None

    @property
    def n_parameters(self) -> int:
        """How many numbers all parameters hold together: the length of the flat buffer."""
        return self.parameters[-1].stop

    def initial_parameters(self, seed: int, dtype: DTypeLike = "float32") -> np.ndarray:
        """The flat buffer (n_parameters,) before training: the same seed gives the same bits.

        Parameters
        ----------
        seed : int
            Key of the random numbers, an int64; each parameter draws from a stream of its own.
        dtype : {"float32", "float64"}

        Raises
        ------
        TypeError
            If `seed` is no integer.
        ValueError
            If `seed` is out of range or `dtype` another, or an initializer gives an array of another shape or
            with NaN or infinity.
        """
        dtype = checked_dtype(dtype)
        seed = _checked_seed(seed)
        flat = np.empty(self.n_parameters, dtype)
        for parameter in self.parameters:
            values = np.asarray(parameter.initializer(parameter.shape, seed, parameter.stream, dtype))
            came_from = f"the initializer of {parameter.name} ({parameter.initializer!r})"
            if values.shape != parameter.shape:
                raise ValueError(f"{came_from} gave shape {values.shape}; expected {parameter.shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"{came_from} gave values that are not finite")
            parameter.view(flat)[...] = values
        return flat

    def _lines(self) -> Iterator[tuple[str, Layer, int | None, tuple[int | str, ...]]]:
        """Label, layer, inputs and shape of each line of the summary; None and "?" where they are not known yet."""
        if self.n_in is not None:
            shapes = {node.path: shape for node, shape in zip(self.nodes, self.shapes, strict=True)}
            for node in walk(self.nodes):
                indent = "  " * node.path.count(".")
                frozen = "" if node.trainable or not node.layer.has_parameters else ", frozen"
                yield (
                    f"{indent}{node.path} {_kind(node.layer)}{frozen}",
                    node.layer,
                    node.n_in,
                    shapes.get(node.path, (node.n_out,)),
                )
            return
        n_in = None
        for index, layer in enumerate(self.layers):
            n_out = layer.n_out if n_in is None else layer.width(n_in)
            yield f"{index} {_kind(layer)}", layer, n_in, ("?" if n_out is None else n_out,)
            n_in = n_out

    def summary(self, dtype: DTypeLike = "float32") -> str:
        """A plain-text table of the layers with output shapes, numbers of parameters and their bytes.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            Of the parameters; it only sets the bytes.
        """
        dtype = checked_dtype(dtype)
        rows = [("Layer", "Activation", "Output shape", "Parameters", f"Bytes ({dtype.name})")]
        total = 0
        for label, layer, n_in, shape in self._lines():
            count = None
            if n_in is not None or not layer.has_parameters:
                count = sum(map(math.prod, layer.parameter_shapes(n_in or 1).values()))
                total += count
            counts = ("?", "?") if count is None else (f"{count:,}", f"{count * dtype.itemsize:,}")
            rows.append((label, _ending(layer), f"(batch, {', '.join(map(str, shape))})", *counts))
        totals = ("?", "?") if self.n_in is None else (f"{total:,}", f"{total * dtype.itemsize:,}")
        rows.append(("Total", "", "", *totals))

        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                # Text to the left, numbers to the right.
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        rule = "-" * max(map(len, lines))
        n_in = "not known yet" if self.n_in is None else f"{self.n_in}"
        return "\n".join([f"Sequential, n_in = {n_in}", rule, lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _checked(layers: Any) -> tuple[Layer, ...]:
    """`layers` as a tuple with something to train and no name twice."""
    layers = checked_layers(layers, "Sequential")
    seen: dict[str, int] = {}
    for index, layer in enumerate(layers):
        if not isinstance(layer, Activation) and layer.name is not None and seen.setdefault(layer.name, index) != index:
            raise ValueError(f"layers {seen[layer.name]} and {index} are both named {layer.name!r}")
    if not any(layer.has_parameters for layer in layers):
        came = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        raise ValueError(f"Sequential takes at least one layer with parameters, such as Dense(2); got only: {came}")
    return layers


def _kind(layer: Layer) -> str:
    """What a table calls a layer."""
    return "Activation" if isinstance(layer, Activation) else layer.name or type(layer).__name__


def _ending(layer: Layer) -> str:
    """The activation in a table; a column of its own for layers that have one."""
    return str(layer.activation) if isinstance(layer, (Activation, Dense, Custom)) else ""


def _checked_seed(seed: Any) -> int:
    """`seed` as an int that fits an int64."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be an integer; got {seed!r} ({type(seed).__name__})") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"seed must fit a signed 64-bit integer; got {number}")
    return number


def checked_dtype(dtype: DTypeLike) -> np.dtype:
    """`dtype` as float32 or float64 of this machine's byte order."""
    # NumPy takes None for float64, and even calls them equal.
    if dtype is not None:
        with contextlib.suppress(TypeError, ValueError):
            given = np.dtype(dtype)
            if given in (np.dtype(np.float32), np.dtype(np.float64)):
                return given
    raise ValueError(f"dtype must be 'float32' or 'float64'; got {dtype!r}")
