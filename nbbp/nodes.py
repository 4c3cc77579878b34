"""The layers of a network in their places: paths, sizes, parameters and states, those of nested layers included.

A node is a layer with its path ("2", or "2.0" for the first layer within the one at position 2) and its sizes. Nodes
are numbered in the order in which they are met, containers before what they contain; the number chooses a layer's
streams of random numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbbp.layers import Embedding, Flatten, Layer, Reshape, Standardize

__all__ = ["Node", "Parameter", "nodes_of", "parameters_of", "walk"]

# Numbers in a random stream's name that one layer may use, so that a bias more or less in one layer changes
# the initial numbers of no other.
STREAMS_PER_LAYER = 16


@dataclass(frozen=True)
class Node:
    """A layer in its place.

    Attributes
    ----------
    path : str
        Positions from the outermost network to the layer, joined by dots.
    layer : Layer
    number : int
        Of all layers, in the order of the forward pass.
    n_in, n_out : int
        Features per sample that come in and go out.
    trainable : bool
        Whether the layer and everything that it is within are.
    branches : tuple of tuple of Node
        The layers within; see `Layer.branches`.
    """

    path: str
    layer: Layer
    number: int
    n_in: int
    n_out: int
    trainable: bool
    branches: tuple[tuple[Node, ...], ...] = ()

    @property
    def trains(self) -> bool:
        """Whether training changes a parameter of the layer or of one within."""
        return (self.trainable and bool(self.layer.parameter_shapes(self.n_in))) or any(
            node.trains for chain in self.branches for node in chain
        )

    @property
    def label(self) -> str:
        """What messages call it."""
        name = None if self.layer.activation is self.layer else self.layer.name
        return f"layer {self.path}" + (f" ({name!r})" if name else "")


@dataclass(frozen=True)
class Parameter:
    """One named array within the flat buffer of the parameters, or of the states.

    Attributes
    ----------
    name : str
        Path of the layer and kind, "0.weight".
    shape : tuple of int
        (n_in, n_out) of a weight, (n_out,) of a bias; row-major in the buffer.
    offset : int
        Where it begins, counted in numbers (not bytes) from the start of the buffer.
    initializer : object
        Called as ``initializer(shape, seed, stream, dtype)``.
    layer : str
        Path of its layer.
    stream : int
        The random stream that its initial numbers come from.
    trainable : bool
        Whether training changes it by its gradient.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    initializer: Any
    layer: str
    stream: int
    trainable: bool = True

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


def nodes_of(layers: Iterable[Layer], n_in: int) -> tuple[Node, ...]:
    """The nodes of a network's layers.

    Raises
    ------
    ValueError
        If a layer does not take what the one before it gives; the message names it.
    """
    named = [(str(index), layer) for index, layer in enumerate(layers)]
    return _chain(named, n_in, "", itertools.count(), True, True)


def _chain(
    named: Sequence[tuple[str, Layer]], n_in: int, prefix: str, numbers: Iterator[int], trainable: bool, takes_X: bool
) -> tuple[Node, ...]:
    nodes = []
    for name, layer in named:
        path, number, trains = prefix + name, next(numbers), trainable and layer.trainable
        takes_X = takes_X and all(isinstance(node.layer, (Flatten, Reshape)) for node in nodes)
        if isinstance(layer, (Embedding, Standardize)) and not takes_X:
            does = "looks up columns of" if isinstance(layer, Embedding) else "standardizes"
            raise ValueError(
                f"layer {path}: {type(layer).__name__} {does} the data, so it must be the first layer (only Flatten "
                "and Reshape may come before it)"
            )
        try:
            n_out = layer.width(n_in)
            chains = layer.branches(n_in)
        except ValueError as error:
            raise ValueError(f"layer {path}: {error}") from None
        branches = tuple(_chain(chain, n_in, path + ".", numbers, trains, takes_X) for chain in chains)
        nodes.append(Node(path, layer, number, n_in, n_out, trains, branches))
        n_in = n_out
    return tuple(nodes)


def walk(nodes: Iterable[Node]) -> Iterator[Node]:
    """Every node, in the order of their numbers."""
    for node in nodes:
        yield node
        for chain in node.branches:
            yield from walk(chain)


def parameters_of(nodes: Iterable[Node], states: bool = False) -> tuple[Parameter, ...]:
    """Every parameter, or every state, in the order of its flat buffer, one directly after the other."""
    found: list[Parameter] = []
    for node in walk(nodes):
        shapes = node.layer.state_shapes(node.n_in) if states else node.layer.parameter_shapes(node.n_in)
        for place, (kind, shape) in enumerate(shapes.items()):
            offset = found[-1].stop if found else 0
            stream = node.number * STREAMS_PER_LAYER + place
            initializer = node.layer.initializer(kind, shape)
            name = f"{node.path}.{kind}"
            found.append(Parameter(name, shape, offset, initializer, node.path, stream, node.trainable))
    return tuple(found)
