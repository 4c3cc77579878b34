"""What a layer is: frozen descriptions, compared and hashed by value, with no arrays and no loops in them.

Dimensions: ``n_in`` features come into a layer, ``n_out`` go out; a batch is (batch, n_in), row-major.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nbbp import initializers
from nbbp.scalars.activations import ACTIVATIONS, Formula

__all__ = ["Activation", "Dense", "positive_integer", "unknown_name"]


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


@dataclass(frozen=True, init=False, repr=False)
class Activation:
    """An activation function and its parameter.

    Parameters
    ----------
    name : str
        A key of ``nbbp.scalars.activations.ACTIVATIONS``.
    **parameters : float
        The activation's own parameter, where it has one: ``negative_slope`` of leaky_relu, ``alpha`` of elu.
        Finite and not negative: the derivative is taken from the output, whose sign says on which side of
        zero the input was only as long as the function does not turn back.

    Attributes
    ----------
    name : str
    parameter : float
        The value of the parameter, 0.0 where the activation has none.

    Raises
    ------
    TypeError
        If the name is no string, or a keyword is none of this activation's.
    ValueError
        If the name is unknown, or the parameter is negative or not finite.

    Examples
    --------
    >>> Dense(32, activation=Activation("leaky_relu", negative_slope=0.1)).activation
    Activation('leaky_relu', negative_slope=0.1)
    """

    name: str
    parameter: float

    def __init__(self, name: str, **parameters: float) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of an activation must be a str; got {name!r} ({type(name).__name__})")
        if name not in ACTIVATIONS:
            raise unknown_name("activation", name, ACTIVATIONS)
        keyword = ACTIVATIONS[name].parameter
        for given in parameters:
            if given != keyword:
                takes = f"takes only {keyword!r}" if keyword else "takes no parameter"
                raise TypeError(f"activation {name!r} {takes}; got {given!r}")
        value = ACTIVATIONS[name].default if keyword else 0.0
        if keyword in parameters:
            value = parameters[keyword]
            if isinstance(value, bool):
                raise TypeError(f"{keyword} of {name!r} must be a number; got {value!r} (bool)")
            try:
                value = float(value)
            except (TypeError, ValueError):
                kind = type(value).__name__
                raise TypeError(f"{keyword} of {name!r} must be a number; got {value!r} ({kind})") from None
            if not math.isfinite(value) or value < 0.0:
                raise ValueError(f"{keyword} of {name!r} must be finite and not negative; got {value!r}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "parameter", float(value))

    def __repr__(self) -> str:
        keyword = self.formula.parameter
        return f"Activation({self.name!r}" + (f", {keyword}={self.parameter!r})" if keyword else ")")

    def __str__(self) -> str:
        """The name, and the parameter where it is not the default: what a table has room for."""
        if not self.formula.parameter or self.parameter == self.formula.default:
            return self.name
        return f"{self.name}({self.formula.parameter}={self.parameter:g})"

    @property
    def formula(self) -> Formula:
        """The registry entry: code, value, derivative and what the derivative is taken of."""
        return ACTIVATIONS[self.name]

    @property
    def row_wise(self) -> bool:
        """Whether an output depends on the whole row (softmax, log_softmax) and not on one number."""
        return self.formula.row_wise

    def width(self, n_in: int) -> int:
        """Outputs per sample: as many as inputs."""
        return n_in


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: ``output = activation(x @ weight + bias)``.

    Shapes: x (batch, n_in), weight (n_in, n_out), bias (n_out,), output (batch, n_out). ``n_in`` is not the
    layer's own: it comes from the layer before, or from the network.

    Parameters
    ----------
    n_out : int
        Number of outputs, at least 1.
    activation : str or Activation, default "linear"
        Kept as an `Activation`. "linear" is the identity.
    use_bias : bool, default True
    weight_initializer, bias_initializer : str or initializer
        A name or an object that ``nbbp.initializers.get`` knows; kept as the object.
    name : str, optional
        For the summary only; parameters are named by the layer's position.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    n_out: int
    activation: str | Activation = "linear"
    use_bias: bool = True
    weight_initializer: Any = "glorot_uniform"
    bias_initializer: Any = "zeros"
    name: str | None = None

    def __post_init__(self) -> None:
        activation = self.activation
        if isinstance(activation, str):
            activation = Activation(activation)
        elif not isinstance(activation, Activation):
            hint = "; make an activation of a function with nbbp.activation(function)" if callable(activation) else ""
            raise TypeError(
                "activation of Dense must be a name such as 'relu' or an Activation ('linear' is the "
                f"identity); got {activation!r} ({type(activation).__name__}){hint}"
            )
        if not isinstance(self.use_bias, bool):
            raise TypeError(f"use_bias of Dense must be True or False; got {self.use_bias!r}")
        if self.name is not None and not (isinstance(self.name, str) and self.name):
            raise TypeError(f"name of Dense must be a str with something in it, or None; got {self.name!r}")
        object.__setattr__(self, "n_out", positive_integer("n_out of Dense", self.n_out))
        object.__setattr__(self, "activation", activation)
        object.__setattr__(self, "weight_initializer", initializers.get(self.weight_initializer))
        object.__setattr__(self, "bias_initializer", initializers.get(self.bias_initializer))

    def parameter_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of this layer, in the order they lie in the flat buffer."""
        shapes: dict[str, tuple[int, ...]] = {"weight": (n_in, self.n_out)}
        if self.use_bias:
            shapes["bias"] = (self.n_out,)
        return shapes

    def width(self, n_in: int) -> int:
        """Outputs per sample, whatever comes in."""
        return self.n_out

    def initializer(self, kind: str, shape: tuple[int, ...]) -> Any:
        """What the weight or the bias starts from."""
        return getattr(self, f"{kind}_initializer")
