"""Sequential: layers with sizes, and what follows from them: names, shapes and places of the parameters.

A network is data. It holds no arrays: `Sequential.initial_parameters` makes them from a seed, and a model
owns them.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from nbbp.custom_layer import Custom
from nbbp.layers import Activation, Dense, positive_integer

__all__ = ["Parameter", "Sequential"]

# Numbers in a random stream's name that one layer may use, so that a bias more or less in one layer changes
# the initial numbers of no other.
STREAMS_PER_LAYER = 16


@dataclass(frozen=True)
class Parameter:
    """One named array within the flat parameter buffer.

    Attributes
    ----------
    name : str
        Position of the layer and kind, "0.weight".
    shape : tuple of int
        (n_in, n_out) of a weight, (n_out,) of a bias; row-major in the buffer.
    offset : int
        Where it begins, counted in numbers (not bytes) from the start of the buffer.
    initializer : object
        Called as ``initializer(shape, seed, stream, dtype)``.
    layer_index : int
        Position of its layer in `Sequential.layers`.
    stream : int
        The random stream that its initial numbers come from.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    initializer: Any
    layer_index: int
    stream: int

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """Where it ends: the offset of what comes next."""
        return self.offset + self.size

    def view(self, flat: np.ndarray) -> np.ndarray:
        """The parameter's array within a flat buffer (n_parameters,): the same memory, not a copy."""
        return flat[self.offset : self.stop].reshape(self.shape)


@dataclass(frozen=True)
class Sequential:
    """Layers one after the other.

    Parameters
    ----------
    layers : iterable of Dense, Activation and Custom
        At least one with parameters; kept as a tuple.
    n_in : int, optional
        Features per sample. Without it the network has no sizes yet: `build` gives one that has.

    Attributes
    ----------
    layers : tuple of Dense, Activation and Custom
    n_in : int or None

    Raises
    ------
    TypeError
        If `layers` is no collection of layers, or `n_in` no integer.
    ValueError
        If there are no layers, two have the same name, or `n_in` is below 1.

    Examples
    --------
    >>> net = Sequential([Dense(128, activation="relu"), Dense(10)], n_in=784)
    >>> [parameter.name for parameter in net.parameters]
    ['0.weight', '0.bias', '1.weight', '1.bias']
    >>> net.n_parameters
    101770
    """

    layers: tuple[Dense | Activation | Custom, ...]
    n_in: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        if self.n_in is not None:
            object.__setattr__(self, "n_in", positive_integer("n_in of Sequential", self.n_in))

    def __repr__(self) -> str:
        return f"Sequential([{', '.join(map(repr, self.layers))}], n_in={self.n_in})"

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
        return self if self.n_in == n_in else Sequential(self.layers, n_in)

    @property
    def n_out(self) -> int:
        """Outputs per sample."""
        for layer in reversed(self.layers):
            if not isinstance(layer, Activation) and layer.n_out is not None:
                return layer.n_out
        return self._known_n_in

    @property
    def _known_n_in(self) -> int:
        if self.n_in is None:
            raise ValueError(
                "this network has no parameters yet, because the features per sample are not known: "
                "give n_in to Sequential, or call build(n_in)"
            )
        return self.n_in

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Outputs per sample of every layer.

        Raises
        ------
        ValueError
            If `n_in` is not known yet.
        """
        widths, n_in = [], self._known_n_in
        for layer in self.layers:
            n_in = layer.width(n_in)
            widths.append(n_in)
        return tuple(widths)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter in the order of the flat buffer, one directly after the other without padding.

        Raises
        ------
        ValueError
            If `n_in` is not known yet.
        """
        parameters = []
        offset = 0
        for index, (layer, n_in) in enumerate(zip(self.layers, (self._known_n_in, *self.widths), strict=False)):
            if isinstance(layer, Activation):
                continue
            for place, (kind, shape) in enumerate(layer.parameter_shapes(n_in).items()):
                initializer = layer.initializer(kind, shape)
                stream = index * STREAMS_PER_LAYER + place
                parameters.append(Parameter(f"{index}.{kind}", shape, offset, initializer, index, stream))
                offset = parameters[-1].stop
        if not parameters:
            raise ValueError("this network has no parameters: there is nothing to train")
        return tuple(parameters)

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

    def summary(self, dtype: DTypeLike = "float32") -> str:
        """A plain-text table of the layers with output shapes, numbers of parameters and their bytes.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            Of the parameters; it only sets the bytes.
        """
        dtype = checked_dtype(dtype)
        rows = [("Layer", "Activation", "Output shape", "Parameters", f"Bytes ({dtype.name})")]
        total, n_in = 0, self.n_in
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Activation):
                shape = "(batch, ?)" if n_in is None else f"(batch, {n_in})"
                rows.append((f"{index} Activation", str(layer), shape, "0", "0"))
                continue
            label = f"{index} {layer.name or type(layer).__name__}"
            counts = ("?", "?")
            if n_in is not None:
                count = sum(map(math.prod, layer.parameter_shapes(n_in).values()))
                total += count
                counts = (f"{count:,}", f"{count * dtype.itemsize:,}")
            n_in = layer.n_out if n_in is None else layer.width(n_in)
            rows.append((label, str(layer.activation), f"(batch, {'?' if n_in is None else n_in})", *counts))
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


def _checked_layers(layers: Any) -> tuple[Dense | Activation | Custom, ...]:
    """`layers` as a tuple, or an error that says which element is none and what it should have been."""
    expected = "Sequential takes a list of layers, such as [Dense(16, activation='relu'), Dense(2)]"
    if isinstance(layers, (str, bytes, Mapping)) or not isinstance(layers, Iterable):
        raise TypeError(f"{expected}; got {layers!r} ({type(layers).__name__})")
    layers = tuple(layers)
    if not layers:
        raise ValueError(f"{expected}; got no layers")
    seen: dict[str, int] = {}
    for index, layer in enumerate(layers):
        if not isinstance(layer, (Dense, Activation, Custom)):
            hint = ""
            if isinstance(layer, str):
                hint = f"; did you mean Activation({layer!r}), or Dense(n_out, activation={layer!r})?"
            elif isinstance(layer, type):
                hint = f"; {layer.__name__} is a class: call it"
            elif isinstance(layer, int) and not isinstance(layer, bool):
                hint = f"; did you mean Dense({layer})?"
            raise TypeError(f"{expected}; element {index} is {layer!r} ({type(layer).__name__}){hint}")
        if not isinstance(layer, Activation) and layer.name is not None and seen.setdefault(layer.name, index) != index:
            raise ValueError(f"layers {seen[layer.name]} and {index} are both named {layer.name!r}")
    if not any(isinstance(layer, Dense) or (isinstance(layer, Custom) and layer.has_parameters) for layer in layers):
        raise ValueError(f"{expected}; got activations only, and no Dense")
    return layers


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
