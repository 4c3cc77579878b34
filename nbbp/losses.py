"""What a loss is: frozen descriptions; the formulas are in ``nbbp.scalars.losses``.

Let l_i be the loss of sample i: for an elementwise loss the mean over the outputs ("mean") or their sum
("sum") of the formula, for a row-wise one (crossentropy, nll) a single number. With sample weights w_i (1
where none are given) the loss of a batch is ``scale * sum(w_i * l_i) / batch`` for "mean" and
``scale * sum(w_i * l_i)`` for "sum". "mean" divides by the number of samples and not by the sum of the
weights, as Keras does: weights set how hard a sample pulls, and doubling all of them doubles the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from nbbp.layers import Activation, unknown_name
from nbbp.scalars.losses import LOSSES, LossFormula

__all__ = [
    "MAE",
    "MSE",
    "NLL",
    "BinaryCrossentropy",
    "Crossentropy",
    "Hinge",
    "Huber",
    "LogCosh",
    "Loss",
    "Poisson",
    "get",
]

REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class Loss:
    """What all losses share; the losses themselves are the subclasses.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        "mean": over the samples and, for an elementwise loss, over the outputs; "sum": over everything.
    scale : float, default 1.0
        Multiplies the loss and with it every gradient.

    Attributes
    ----------
    name : str
        Key of ``nbbp.scalars.losses.LOSSES``, and what `get` takes.
    is_classification : bool
        Whether targets are class labels.
    takes_soft_targets : bool
        Whether a target between two targets is one too, such as probabilities between labels.
    fused_with : tuple of str
        Activations of a last layer that this loss takes in: with one of them it is computed from the value
        before that activation, so that nothing is lost to rounding and the gradient stays ``p - y``.
    """

    reduction: str = field(default="mean", kw_only=True)
    scale: float = field(default=1.0, kw_only=True)

    name: ClassVar[str] = ""
    is_classification: ClassVar[bool] = False
    takes_soft_targets: ClassVar[bool] = True
    fused_with: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if type(self) is Loss:
            raise TypeError(f"Loss is only what losses share; take one of: {', '.join(BY_NAME)}")
        if self.reduction not in REDUCTIONS:
            expected = " or ".join(map(repr, REDUCTIONS))
            raise ValueError(f"reduction of {self.name} must be {expected}; got {self.reduction!r}")
        self._normalise("scale", math.isfinite, "finite")

    def _normalise(self, attribute: str, accepts, expected: str) -> None:
        """Replace a number by a float after checking it; frozen fields allow no plain assignment."""
        value = getattr(self, attribute)
        try:
            number = None if isinstance(value, (bool, str)) else float(value)
        except (TypeError, ValueError):
            number = None
        except OverflowError:  # an integer beyond every float
            number = math.inf
        if number is None:
            kind = type(value).__name__
            raise TypeError(f"{attribute} of {self.name} must be a number; got {value!r} ({kind})")
        if not accepts(number):
            raise ValueError(f"{attribute} of {self.name} must be {expected}; got {value!r}")
        object.__setattr__(self, attribute, number)

    @property
    def formula(self) -> LossFormula:
        """The registry entry: code, value and derivative."""
        return LOSSES[self.name]

    @property
    def row_wise(self) -> bool:
        """Whether a sample has one loss (crossentropy, nll) instead of one for each output."""
        return self.formula.row_wise

    @property
    def parameter(self) -> float:
        """The number that the kernel needs beside predictions and targets; 0.0 where there is none."""
        return 0.0

    def fuses(self, activation: Activation) -> bool:
        """Whether the loss, after a last layer with this activation, takes the value before it."""
        return activation.name in self.fused_with


@dataclass(frozen=True)
class MSE(Loss):
    """Mean squared error, ``(p - t)^2``; there is no factor 1/2.

    Settings that all losses share: `Loss`.
    """

    name: ClassVar[str] = "mse"


@dataclass(frozen=True)
class MAE(Loss):
    """Mean absolute error, ``|p - t|``; the derivative at 0 is 0.

    Settings that all losses share: `Loss`.
    """

    name: ClassVar[str] = "mae"


@dataclass(frozen=True)
class Huber(Loss):
    """Huber's loss: ``d^2 / 2`` for ``|d| <= delta``, else ``delta * (|d| - delta / 2)``, with ``d = p - t``.

    Settings that all losses share: `Loss`.

    Parameters
    ----------
    delta : float, default 1.0
        Where the parabola becomes a line, in the unit of the targets; above 0.
    """

    delta: float = 1.0
    name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._normalise("delta", lambda delta: math.isfinite(delta) and delta > 0.0, "above 0 and finite")

    @property
    def parameter(self) -> float:
        """`delta`."""
        return self.delta


@dataclass(frozen=True)
class LogCosh(Loss):
    """``log(cosh(p - t))``: a parabola near 0, ``|p - t| - log 2`` far out.

    Settings that all losses share: `Loss`.
    """

    name: ClassVar[str] = "log_cosh"


class _Smoothed(Loss):
    """What the two crossentropies share: targets moved towards the uniform distribution."""

    label_smoothing: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._normalise("label_smoothing", lambda share: 0.0 <= share < 1.0, "in [0, 1)")

    @property
    def parameter(self) -> float:
        """`label_smoothing`."""
        return self.label_smoothing


@dataclass(frozen=True)
class BinaryCrossentropy(_Smoothed):
    """Crossentropy of independent yes-or-no outputs, from logits: ``softplus(z) - t z``, t in [0, 1].

    After a last layer with "sigmoid" the loss takes the logits before it (see `Loss.fused_with`).

    Settings that all losses share: `Loss`.

    Parameters
    ----------
    label_smoothing : float, default 0.0
        e in [0, 1): a target t becomes ``(1 - e) t + e / 2``.
    """

    label_smoothing: float = 0.0
    name: ClassVar[str] = "binary_crossentropy"
    is_classification: ClassVar[bool] = True
    fused_with: ClassVar[tuple[str, ...]] = ("sigmoid",)


@dataclass(frozen=True)
class Crossentropy(_Smoothed):
    """Crossentropy of one class out of n_out, from logits: ``-sum_k t_k log softmax(z)_k``.

    Targets are class numbers (batch,), or rows (batch, n_out) of one-hot or soft probabilities that sum to 1.
    After a last layer with "softmax" or "log_softmax" the loss takes the logits before it.

    Settings that all losses share: `Loss`.

    Parameters
    ----------
    label_smoothing : float, default 0.0
        e in [0, 1): a target row t becomes ``(1 - e) t + e / n_out``.
    """

    label_smoothing: float = 0.0
    name: ClassVar[str] = "crossentropy"
    is_classification: ClassVar[bool] = True
    fused_with: ClassVar[tuple[str, ...]] = ("softmax", "log_softmax")


@dataclass(frozen=True)
class NLL(Loss):
    """Negative log-likelihood from log-probabilities: ``-sum_k t_k p_k``; targets as for `Crossentropy`.

    After a last layer with "log_softmax" the loss takes the logits before it, as `Crossentropy` would.

    Settings that all losses share: `Loss`.
    """

    name: ClassVar[str] = "nll"
    is_classification: ClassVar[bool] = True
    fused_with: ClassVar[tuple[str, ...]] = ("log_softmax",)


@dataclass(frozen=True)
class Hinge(Loss):
    """``max(0, 1 - t p)`` with targets -1 and +1; it gives margins, no probabilities.

    Settings that all losses share: `Loss`.
    """

    name: ClassVar[str] = "hinge"
    is_classification: ClassVar[bool] = True
    takes_soft_targets: ClassVar[bool] = False


@dataclass(frozen=True)
class Poisson(Loss):
    """Negative log-likelihood of counts t >= 0, without the term ``log(t!)`` that no weight changes.

    Settings that all losses share: `Loss`.

    Parameters
    ----------
    log_input : bool, default True
        True: the network gives the log of the rate, ``exp(p) - t p``. False: it gives the rate itself,
        ``p - t log(p + 1e-8)``.
    """

    log_input: bool = True
    name: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.log_input, bool):
            raise TypeError(f"log_input of poisson must be True or False; got {self.log_input!r}")

    @property
    def parameter(self) -> float:
        """1.0 for `log_input`, else 0.0."""
        return 1.0 if self.log_input else 0.0


#: Every loss by its name.
BY_NAME: Mapping[str, type[Loss]] = MappingProxyType(
    {loss.name: loss for loss in (MSE, MAE, Huber, LogCosh, BinaryCrossentropy, Crossentropy, NLL, Hinge, Poisson)}
)


def get(loss: str | Loss) -> Loss:
    """A loss from its name, with default settings, or the loss that was given.

    Raises
    ------
    TypeError
        If `loss` is neither a name nor a loss.
    ValueError
        If there is no loss of that name; the message lists those that exist.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in BY_NAME:
            raise unknown_name("loss", loss, BY_NAME)
        return BY_NAME[loss]()
    if isinstance(loss, type) and issubclass(loss, Loss):
        name = loss.__name__
        raise TypeError(f"loss must be a name or a loss such as {name}(); got the class {name}")
    hint = "; make a loss of a function with nbbp.loss(function)" if callable(loss) else ""
    raise TypeError(f"loss must be a name such as 'mse' or a loss; got {loss!r} ({type(loss).__name__}){hint}")
