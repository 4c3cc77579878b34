"""An activation: a function of each number, or of a row, and its parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nbbp.layers.base import Layer, unknown_name
from nbbp.scalars.activations import ACTIVATIONS, LIMITS, Formula

__all__ = ["Activation"]


@dataclass(frozen=True, init=False, repr=False)
class Activation(Layer):
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
    >>> Activation("leaky_relu", negative_slope=0.1)
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

    @property
    def limits(self) -> tuple[float, float]:
        """The values near which it saturates: low, high; infinite where it does not."""
        low, high = LIMITS.get(self.formula.name, (-math.inf, math.inf))
        return (low * self.parameter, high) if self.formula.parameter and low > -math.inf else (low, high)

    @property
    def activation(self) -> Activation:
        """The layer itself."""
        return self

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As what comes in; softmax and log_softmax take rows."""
        return super().output_shape(shape) if self.row_wise else shape
