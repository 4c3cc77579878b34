"""Layers that arrange others, or the numbers of a sample: Residual, Concat, Flatten, Reshape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nbbp import initializers
from nbbp.layers.base import Layer, check_name, check_switches, positive_integer
from nbbp.layers.dense import Dense

__all__ = ["Concat", "Flatten", "Reshape", "Residual", "chain_n_out", "checked_layers"]


def checked_layers(layers: Any, owner: str) -> tuple[Layer, ...]:
    """`layers` as a tuple of at least one, or an error that says which element is none and what it should have been.

    Parameters
    ----------
    layers : iterable of Layer, or Sequential
    owner : str
        What takes them, for messages.
    """
    expected = f"{owner} takes a list of layers, such as [Dense(16, activation='relu'), Dense(2)]"
    if getattr(layers, "checkpoint_every", None) is not None:
        came = f"checkpoint_every={layers.checkpoint_every}"
        raise ValueError(f"only the outermost Sequential can have checkpoint_every; {owner} got one with {came}")
    if getattr(layers, "n_in", None) is not None:
        raise ValueError(f"what comes into {owner} says how many features; got a Sequential with n_in={layers.n_in}")
    layers = getattr(layers, "layers", layers)
    if isinstance(layers, (str, bytes, Mapping)) or not isinstance(layers, Iterable):
        raise TypeError(f"{expected}; got {layers!r} ({type(layers).__name__})")
    layers = tuple(layers)
    if not layers:
        raise ValueError(f"{expected}; got no layers")
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            hint = ""
            if isinstance(layer, str):
                hint = f"; did you mean Activation({layer!r}), or Dense(n_out, activation={layer!r})?"
            elif isinstance(layer, type):
                hint = f"; {layer.__name__} is a class: call it"
            elif isinstance(layer, int) and not isinstance(layer, bool):
                hint = f"; did you mean Dense({layer})?"
            raise TypeError(f"{expected}; element {index} is {layer!r} ({type(layer).__name__}){hint}")
    return layers


def _chain_width(layers: Iterable[Layer], n_in: int) -> int:
    for layer in layers:
        n_in = layer.width(n_in)
    return n_in


def chain_n_out(layers: tuple[Layer, ...]) -> int | None:
    """Outputs of a chain where they are known without its inputs."""
    for layer in reversed(layers):
        if layer.n_out is not None or isinstance(layer, (Concat, Residual)):  # the others give as many as they take
            return layer.n_out
    return None


@dataclass(frozen=True)
class Residual(Layer):
    """A residual connection: ``output = x + f(x)``, f the layers within.

    Where f gives another number of features than it takes, x is projected: ``output = x @ projection + f(x)``.
    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016.

    Shapes: x (batch, n_in), output (batch, n_out), projection weight (n_in, n_out). Parameters are called by position
    within: "3.0.weight" is the weight of the first layer in the Residual at position 3, "3.projection.weight" that of
    its projection.

    Parameters
    ----------
    layers : iterable of layers, or Sequential
        At least one.
    weight_initializer : str or initializer
        Of the projection.
    name : str, optional
        For tables and messages.
    trainable : bool, default True
        False freezes every layer within.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    layers: tuple[Layer, ...]
    weight_initializer: Any = "glorot_uniform"
    name: str | None = None
    trainable: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", checked_layers(self.layers, "Residual"))
        object.__setattr__(self, "weight_initializer", initializers.get(self.weight_initializer))
        check_switches(self, "trainable")
        check_name(self)

    @property
    def has_parameters(self) -> bool:
        return any(layer.has_parameters for layer in self.layers)

    @property
    def n_out(self) -> int | None:
        return chain_n_out(self.layers)

    def width(self, n_in: int) -> int:
        return _chain_width(self.layers, n_in)

    def branches(self, n_in: int) -> tuple[tuple[tuple[str, Layer], ...], ...]:
        """The layers within, and where sizes differ the projection."""
        chain = tuple((str(index), layer) for index, layer in enumerate(self.layers))
        n_out = self.width(n_in)
        if n_out == n_in:
            return (chain,)
        projection = Dense(n_out, use_bias=False, weight_initializer=self.weight_initializer)
        return chain, (("projection", projection),)


@dataclass(frozen=True)
class Concat(Layer):
    """What several branches make of the same input, side by side: ``output = [f(x), g(x), …]``.

    Parameters are called by branch and position: "3.1.0.weight" is the weight of the first layer in the second branch
    of the Concat at position 3. An empty branch passes x on.

    Parameters
    ----------
    *branches : iterable of layers, or Sequential
        At least two.
    name : str, optional
        For tables and messages.
    trainable : bool, default True
        False freezes every layer within.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.

    Examples
    --------
    >>> Concat([Dense(8, "relu")], [Dense(4, "tanh")]).width(3)
    12
    """

    chains: tuple[tuple[Layer, ...], ...]
    name: str | None = None
    trainable: bool = True

    def __init__(self, *branches: Any, name: str | None = None, trainable: bool = True) -> None:
        if len(branches) < 2:
            raise ValueError(f"Concat takes at least two branches, each a list of layers; got {len(branches)}")
        chains = tuple(
            () if isinstance(branch, (list, tuple)) and not branch else checked_layers(branch, "a branch of Concat")
            for branch in branches
        )
        for attribute, value in (("chains", chains), ("name", name), ("trainable", trainable)):
            object.__setattr__(self, attribute, value)
        check_switches(self, "trainable")
        check_name(self)

    @property
    def has_parameters(self) -> bool:
        return any(layer.has_parameters for chain in self.chains for layer in chain)

    @property
    def n_out(self) -> int | None:
        widths = [chain_n_out(chain) for chain in self.chains]
        return None if None in widths else sum(widths)

    def width(self, n_in: int) -> int:
        return sum(_chain_width(chain, n_in) for chain in self.chains)

    def branches(self, n_in: int) -> tuple[tuple[tuple[str, Layer], ...], ...]:
        return tuple(
            tuple((f"{number}.{index}", layer) for index, layer in enumerate(chain))
            for number, chain in enumerate(self.chains)
        )


@dataclass(frozen=True)
class Flatten(Layer):
    """The numbers of a sample in one row, in their order in memory: a view, nothing is copied.

    As a network's first layer, it lets samples of any shape come in, such as images (n, 28, 28).

    Parameters
    ----------
    name : str, optional
        For the summary only.
    """

    name: str | None = None

    def __post_init__(self) -> None:
        check_name(self)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)


@dataclass(frozen=True)
class Reshape(Layer):
    """The numbers of a sample in another shape: a view, nothing is copied.

    Behind it only layers of single numbers (activations, Dropout, GaussianNoise …), Flatten and Reshape can follow; as
    the last layer it gives predictions (n, *shape), and targets have that shape too.

    Parameters
    ----------
    shape : tuple of int
        Of one sample, without the batch; one of them may be -1, which follows from the others.
    name : str, optional
        For the summary only.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    shape: tuple[int, ...]
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shape, (tuple, list)) or not self.shape:
            raise TypeError(f"shape of Reshape must be a tuple such as (8, 8); got {self.shape!r}")
        if sum(size == -1 for size in self.shape) > 1:
            raise ValueError(f"shape of Reshape can have one -1, which follows from the others; got {self.shape!r}")
        shape = tuple(-1 if size == -1 else positive_integer("a size in shape of Reshape", size) for size in self.shape)
        object.__setattr__(self, "shape", shape)
        check_name(self)

    def width(self, n_in: int) -> int:
        return math.prod(self.output_shape((n_in,)))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        n, known = math.prod(shape), math.prod(size for size in self.shape if size != -1)
        if n % known or (-1 not in self.shape and n != known):
            raise ValueError(f"Reshape to {self.shape} takes samples of {known} numbers; got samples of shape {shape}")
        return tuple(n // known if size == -1 else size for size in self.shape)
