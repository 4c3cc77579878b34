"""Activations and losses from plain Python formulas: traced, differentiated and compiled like built-in ones.

>>> import numpy as np
>>> import nbbp
>>> swish = nbbp.activation(lambda z: z / (1 + np.exp(-2 * z)), name="swish")
>>> print(swish.source)
def swish(z):
    return z * sigmoid(z * 2.0)
>>> print(swish.derivative_source)
def swish_derivative(z):
    v1 = sigmoid(z * 2.0)
    return v1 + z * (v1 * (1.0 - v1)) * 2.0

Such a formula is data from here on. It is compared by its content, pickled and saved as a list of operations, and
compiled in a process that loads it without running anybody's code.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nbbp import formula_data
from nbbp.layers import Activation
from nbbp.losses import BY_NAME, Loss
from nbbp.scalars.activations import ACTIVATIONS, Formula
from nbbp.scalars.custom import ACTIVATION, LOSS, activation_formula, loss_formula
from nbbp.scalars.differentiation import derivative as derivative_of
from nbbp.scalars.losses import LossFormula
from nbbp.scalars.operations import Node
from nbbp.scalars.simplification import simplify
from nbbp.scalars.writing import source_of
from nbbp.tracing import trace

__all__ = ["CustomActivation", "CustomLoss", "activation", "loss"]

#: Characters of a name, at most: it stands in tables.
_LONGEST_NAME = 60


def activation(value: Callable, derivative: Callable | None = None, *, name: str | None = None) -> CustomActivation:
    """An activation from a formula of one number.

    Parameters
    ----------
    value : callable
        ``value(z)``, of Python's operators and functions of NumPy or `nbbp.autodiff`: ``lambda z: z * np.tanh(z)``. It
        is called once, with a symbol in place of a number; so it cannot decide by ``if``: use ``np.where``.
    derivative : callable, optional
        ``derivative(z)``, a formula too. Without it the derivative is found by reverse mode; at a kink it is
        PyTorch's.
    name : str, optional
        For tables and messages; by default the function's own.

    Returns
    -------
    CustomActivation
        To be used wherever an `nbbp.Activation` is. Its kernels are compiled at first use and cached on disk.

    Raises
    ------
    TypeError
        If it is no function of one number, or decides by numbers.
    ValueError
        If the name is that of a built-in activation, or the formula has too many operations.

    Examples
    --------
    >>> import numpy as np
    >>> bump = activation(lambda z: np.exp(-z**2), name="bump")
    >>> bump
    activation(lambda z: exp(-(z * z)), name='bump')
    >>> print(bump.derivative_source)
    def bump_derivative(z):
        v1 = z * exp(-(z * z))
        return -(v1 + v1)
    """
    name = _name("activation", value, name, ACTIVATIONS)
    nodes = _formula("activation", value, ACTIVATION[:1])
    slope = derivative_of(nodes) if derivative is None else _formula("activation's derivative", derivative, ("z",))
    return CustomActivation(name, nodes, slope)


def loss(
    value: Callable,
    derivative: Callable | None = None,
    *,
    name: str | None = None,
    reduction: str = "mean",
    scale: float = 1.0,
) -> CustomLoss:
    """A loss from a formula of one prediction and its target; it is averaged over outputs and samples.

    Parameters
    ----------
    value : callable
        ``value(prediction, target)``, as for `activation`.
    derivative : callable, optional
        ``derivative(prediction, target)``, with respect to the prediction.
    name : str, optional
    reduction : {"mean", "sum"}
    scale : float
        As every loss (`nbbp.losses.Loss`).

    Returns
    -------
    CustomLoss
        For ``nbbp.Model(loss=...)``. Targets may be any finite numbers.

    Raises
    ------
    TypeError, ValueError
        As `activation`.

    Examples
    --------
    >>> import numpy as np
    >>> pinball = loss(lambda p, t: np.maximum(0.9 * (t - p), 0.1 * (p - t)), name="pinball")
    >>> pinball.name, pinball.reduction
    ('pinball', 'mean')
    """
    name = _name("loss", value, name, BY_NAME)
    nodes = _formula("loss", value, LOSS[:2])
    slope = derivative_of(nodes) if derivative is None else _formula("loss's derivative", derivative, LOSS[:2])
    return CustomLoss(name, nodes, slope, reduction=reduction, scale=scale)


class _Described:
    """What activations and losses from formulas share: their formulas as source and as data."""

    value: tuple[Node, ...]
    derivative: tuple[Node, ...]
    _arguments: tuple[str, ...]

    @property
    def source(self) -> str:
        """The formula as Python, simplified; functions are those of `nbbp.autodiff`."""
        return source_of(self.value, self._arguments, _identifier(self.name))

    @property
    def derivative_source(self) -> str:
        """Its derivative with respect to the first argument, as Python."""
        return source_of(self.derivative, self._arguments, f"{_identifier(self.name)}_derivative")

    def _as_lambda(self) -> str:
        """The formula in one line."""
        _, *body = self.source.splitlines()
        if len(body) > 1:
            return f"<{len(self.value)} operations>"
        return f"lambda {', '.join(self._arguments)}: {body[0].strip().removeprefix('return ')}"

    def to_data(self) -> dict[str, Any]:
        """All there is to it, in lists, strings and numbers; see `nbbp.formula_data`."""
        formulas = {"value": formula_data.to_data(self.value), "derivative": formula_data.to_data(self.derivative)}
        return {"name": self.name, **formulas}

    def __reduce__(self) -> tuple:
        return type(self).from_data, (self.to_data(),)


@dataclass(frozen=True, init=False, repr=False)
class CustomActivation(_Described, Activation):
    """An activation from formulas; `activation` makes it.

    Parameters
    ----------
    name : str
    value, derivative : tuple of Node
        Formulas of one input.

    Attributes
    ----------
    code : str
        A digest of the formulas.
    """

    code: str

    _arguments = ACTIVATION[:1]

    def __init__(self, name: str, value: tuple[Node, ...], derivative: tuple[Node, ...]) -> None:
        formula = activation_formula(name, value, derivative)
        fields = {"name": name, "parameter": 0.0, "code": formula.code}
        for attribute, content in {**fields, "value": value, "derivative": derivative, "_formula": formula}.items():
            object.__setattr__(self, attribute, content)

    def __repr__(self) -> str:
        return f"activation({self._as_lambda()}, name={self.name!r})"

    @property
    def formula(self) -> Formula:
        return self._formula

    @classmethod
    def from_data(cls, data: Any) -> CustomActivation:
        """The activation that gave `to_data`; a ValueError says what is wrong with the data."""
        _check_keys(data, ("name", "value", "derivative"), "an activation")
        with _value_errors():
            return cls(_checked_name(data["name"], "activation", ACTIVATIONS), *_formulas(data, "activation", 1))


@dataclass(frozen=True, init=False, repr=False)
class CustomLoss(_Described, Loss):
    """A loss from formulas; `loss` makes it.

    Parameters
    ----------
    name : str
    value, derivative : tuple of Node
        Formulas of two inputs, prediction and target; the derivative is with respect to the prediction.
    reduction : {"mean", "sum"}
    scale : float

    Attributes
    ----------
    code : str
        A digest of the formulas.
    """

    name: str
    code: str

    _arguments = LOSS[:2]

    def __init__(
        self,
        name: str,
        value: tuple[Node, ...],
        derivative: tuple[Node, ...],
        *,
        reduction: str = "mean",
        scale: float = 1.0,
    ) -> None:
        formula = loss_formula(name, value, derivative)
        fields = {"name": name, "code": formula.code, "reduction": reduction, "scale": scale}
        for attribute, content in {**fields, "value": value, "derivative": derivative, "_formula": formula}.items():
            object.__setattr__(self, attribute, content)
        self.__post_init__()

    def __repr__(self) -> str:
        settings = "".join(f", {k}={getattr(self, k)!r}" for k in ("name", "reduction", "scale"))
        return f"loss({self._as_lambda()}{settings})"

    @property
    def formula(self) -> LossFormula:
        return self._formula

    def to_data(self) -> dict[str, Any]:
        return {**super().to_data(), "reduction": self.reduction, "scale": self.scale}

    @classmethod
    def from_data(cls, data: Any) -> CustomLoss:
        """The loss that gave `to_data`; a ValueError says what is wrong with the data."""
        _check_keys(data, ("name", "value", "derivative", "reduction", "scale"), "a loss")
        with _value_errors():
            name = _checked_name(data["name"], "loss", BY_NAME)
            return cls(name, *_formulas(data, "loss", 2), reduction=data["reduction"], scale=data["scale"])


def _formula(what: str, function: Any, arguments: Sequence[str]) -> tuple[Node, ...]:
    """The simplified formula of a function of so many numbers."""
    if not callable(function):
        raise TypeError(f"the {what} must be a function of {', '.join(arguments)}; got {function!r}")
    try:
        signature = inspect.signature(getattr(function, "py_func", function))
    except ValueError:  # NumPy's own functions have none
        signature = None
    if signature is not None:
        try:
            signature.bind(*arguments)
        except TypeError:
            takes = f"the {what} is called with {', '.join(arguments)}"
            raise TypeError(f"{takes}; {_name_of(function)} takes {signature}") from None
    nodes = simplify(trace(function, len(arguments)))
    if len(nodes) > formula_data.LARGEST:
        raise ValueError(f"the {what} has {len(nodes):,} operations; expected at most {formula_data.LARGEST:,}")
    return nodes


def _name_of(function: Callable) -> str:
    return getattr(function, "__name__", repr(function))


def _name(what: str, function: Any, name: Any, taken: Any) -> str:
    """The name that was given, or the function's own, which may be that of something built in."""
    if name is not None:
        return _checked_name(name, what, taken)
    own = getattr(function, "__name__", "<lambda>")[:_LONGEST_NAME]
    own = "custom" if own == "<lambda>" else own
    return f"custom_{own}" if own in taken else own


def _checked_name(name: Any, what: str, taken: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name of the {what} must be a str; got {name!r} ({type(name).__name__})")
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or not name.strip():
        raise ValueError(f"name of the {what} must be 1 to {_LONGEST_NAME} printable characters; got {name[:80]!r}")
    if name in taken:
        raise ValueError(f"{name!r} is the name of a built-in {what}; expected another one")
    return name


def _identifier(name: str) -> str:
    """The name as Python allows it."""
    name = re.sub(r"\W", "_", name)
    return f"_{name}" if name[:1].isdigit() or keyword.iskeyword(name) else name


@contextmanager
def _value_errors() -> Iterator[None]:
    """Whatever is wrong with data is a ValueError, a wrong type as well."""
    try:
        yield
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _check_keys(data: Any, keys: tuple[str, ...], what: str) -> None:
    if not isinstance(data, dict) or set(data) != set(keys):
        came = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"the data of {what} must be a dict with {', '.join(keys)}; got {came}")


def _formulas(data: dict, what: str, n_inputs: int) -> list[tuple[Node, ...]]:
    return [
        formula_data.from_data(data[part], n_inputs, f"{part} of the {what} {data['name']!r}")
        for part in ("value", "derivative")
    ]
