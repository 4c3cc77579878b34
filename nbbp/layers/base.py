"""What all layers share: the questions that a network asks them, and how their settings are checked."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

__all__ = ["Layer", "positive_integer", "unknown_name"]


class Layer:
    """What a network asks of a layer, with the answers of one that has nothing of its own.

    Dimensions: ``n_in`` features come in, ``n_out`` go out; a batch is (batch, n_in), row-major.

    Attributes
    ----------
    name : str or None
        For tables and messages; parameters are named by the layer's position.
    trainable : bool
        Whether training changes its parameters, and those of layers within it.
    n_out : int or None
        Outputs per sample, None where that depends on what comes in.
    """

    name: str | None = None
    trainable: bool = True
    n_out: int | None = None

    @property
    def activation(self) -> Any:
        """The `Activation` that the layer ends with."""
        from nbbp.layers.activation import Activation

        return Activation("linear")

    @property
    def has_parameters(self) -> bool:
        """Whether there is anything to train, here or in a layer within."""
        return False

    def width(self, n_in: int) -> int:
        """Outputs per sample.

        Raises
        ------
        ValueError
            If the layer takes no `n_in` features.
        """
        return n_in

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one sample behind the layer; (n_out,) but for layers that reshape.

        Raises
        ------
        ValueError
            If the layer takes no sample of this shape.
        """
        if len(shape) != 1:
            raise ValueError(
                f"{type(self).__name__} takes samples of one dimension; got samples of shape {shape}: "
                "put Flatten() in front"
            )
        return (self.width(shape[0]),)

    def parameter_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of this layer, in the order they lie in the flat buffer."""
        return {}

    def state_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        """Shape of what the layer keeps from step to step beside its parameters."""
        return {}

    def initializer(self, kind: str, shape: tuple[int, ...]) -> Any:
        """What a parameter of that name and shape, or a state, starts from."""
        raise KeyError(kind)

    def branches(self, n_in: int) -> tuple[tuple[tuple[str, Layer], ...], ...]:
        """Chains of layers within this one, all of which take what it takes; each layer with its name in here."""
        return ()


def check_name(layer: Layer) -> None:
    """Refuse a name that is none."""
    if layer.name is not None and not (isinstance(layer.name, str) and layer.name):
        kind = type(layer).__name__
        raise TypeError(f"name of {kind} must be a str with something in it, or None; got {layer.name!r}")


def check_switches(layer: Layer, *names: str) -> None:
    """Refuse settings that are neither True nor False."""
    for name in names:
        value = getattr(layer, name)
        if not isinstance(value, bool):
            raise TypeError(f"{name} of {type(layer).__name__} must be True or False; got {value!r}")


def number_in(what: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> float:
    """`value` as a float in [low, high), or in (low, high) with `above`.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is outside.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} must be a number; got {value!r} ({type(value).__name__})")
    if not (low < value < high if above else low <= value < high):
        ends = f"above {low:g}" if above else f"at least {low:g}"
        ends += " and finite" if high == math.inf else f" and below {high:g}"
        raise ValueError(f"{what} must be {ends}; got {value!r}")
    return float(value)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in a registry: what came, the closest match, and all that exists.

    Parameters
    ----------
    kind : str
        What the name was meant to be, with no article ("activation", "loss").
    name : str
        The name that came.
    known : iterable of str
        The names that exist, in the order they should be listed.

    Returns
    -------
    ValueError
        To be raised by the caller, so that the traceback ends where the name was given.
    """
    known = list(known)
    close = difflib.get_close_matches(name.strip().lower().replace("-", "_").replace(" ", "_"), known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(f"unknown {kind} {name!r}.{guess} There are: {', '.join(known)}.")


def positive_integer(what: str, value: Any) -> int:
    """`value` as an int of at least 1.

    Raises
    ------
    TypeError
        If `value` is no integer. True and False are none either: they are always a slip here.
    ValueError
        If it is smaller than 1.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{what} must be an integer; got {value!r} ({type(value).__name__})")
    if number < 1:
        raise ValueError(f"{what} must be at least 1; got {number}")
    return number
