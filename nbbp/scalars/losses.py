"""Loss terms: each is one entry with its value and its derivative for one output, for every dtype.

A value is ``value(p, t, parameter)``: p is what the network gives, t the target. The derivative is with
respect to p. parameter has the dtype of p and is ignored by losses without one. Sums, means, weights and
scales belong to the kernels; so do the row-wise losses (crossentropy, nll), whose entries have no formula.

The functions are plain scalar Python under the rules of `nbbp.scalars.activations`. A value of NaN is NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nbbp.scalars.dispatch import by_code
from nbbp.scalars.functions import exp, expm1, log, log1p, log1p_of_exp, sigmoid, tanh

__all__ = ["LOSSES", "LossFormula", "loss_derivative", "loss_value"]


@dataclass(frozen=True)
class LossFormula:
    """One loss.

    Attributes
    ----------
    name : str
        Its public name, and its key in `LOSSES` if it is built in.
    code : int or str
        Its position in `LOSSES`, or the key of one that was made at run time; what `loss_value` and
        `loss_derivative` take.
    value : callable or None
        ``value(p, t, parameter)``; None for row-wise losses.
    derivative : callable or None
        ``derivative(p, t, parameter)``, with respect to p; None for row-wise losses.
    parameter : str or None
        Public name of the parameter.
    default : float
        Default of the parameter; 0.0 where there is none.
    row_wise : bool
        Whether a term depends on the whole row of outputs: then the formula is a kernel.
    """

    name: str
    code: int | str
    value: Callable | None
    derivative: Callable | None
    parameter: str | None = None
    default: float = 0.0
    row_wise: bool = False


POISSON_EPSILON = 1e-8
# From here on log(cosh(d)) is |d| - ln 2 to the last bit; e**|d| would overflow later.
LOG_COSH_LIMIT = 20.0


def mse(p, t, parameter):
    """Return (p - t)**2."""
    d = p - t
    return d * d


def mse_derivative(p, t, parameter):
    """Return 2 (p - t)."""
    d = p - t
    return d + d


def mae(p, t, parameter):
    """Return |p - t|."""
    return abs(p - t)


def mae_derivative(p, t, parameter):
    """Return the sign of p - t; 0 where they are equal."""
    kind = type(p)
    d = p - t
    sign = kind(1.0) if d > kind(0.0) else d  # 0, or NaN
    return kind(-1.0) if d < kind(0.0) else sign


def huber(p, t, delta):
    """Return d**2/2 where |d| <= delta, else delta (|d| - delta/2), d = p - t (Huber 1964)."""
    half = type(p)(0.5)
    d = abs(p - t)
    return half * d * d if d <= delta else delta * (d - half * delta)


def huber_derivative(p, t, delta):
    """Return p - t clipped to [-delta, delta]."""
    d = p - t
    d = -delta if d < -delta else d
    return delta if d > delta else d


def log_cosh(p, t, parameter):
    """Return log(cosh(p - t)), as log1p(m**2/(2 (m + 1))) with m = e**|p - t| - 1: accurate near 0."""
    kind = type(p)
    limit = kind(LOG_COSH_LIMIT)
    size = abs(p - t)
    inner = limit if size > limit else size
    m = expm1(inner)
    return log1p(m * m / (kind(2.0) * (m + kind(1.0)))) + (size - inner)


def log_cosh_derivative(p, t, parameter):
    """Return tanh(p - t)."""
    return tanh(p - t)


def binary_crossentropy(p, t, parameter):
    """Return -t log(s) - (1 - t) log(1 - s), s = sigmoid(p), for the logit p and t in [0, 1]."""
    zero = type(p)(0.0)
    return ((zero if p < zero else p) - p * t) + log1p_of_exp(-abs(p))


def binary_crossentropy_derivative(p, t, parameter):
    """Return sigmoid(p) - t."""
    return sigmoid(p) - t


def hinge(p, t, parameter):
    """Return max(0, 1 - t p), t being -1 or +1."""
    kind = type(p)
    margin = kind(1.0) - t * p
    return kind(0.0) if margin < kind(0.0) else margin


def hinge_derivative(p, t, parameter):
    """Return -t where t p < 1, else 0."""
    kind = type(p)
    margin = kind(1.0) - t * p
    return kind(0.0) if margin <= kind(0.0) else -t


def poisson(p, t, log_input):
    """Return e**p - t p, or p - t log(p + 1e-8) if log_input is 0: -log of the likelihood, less log(t!)."""
    kind = type(p)
    return exp(p) - t * p if log_input != kind(0.0) else p - t * log(p + kind(POISSON_EPSILON))


def poisson_derivative(p, t, log_input):
    """Return e**p - t, or 1 - t/(p + 1e-8) if log_input is 0."""
    kind = type(p)
    return exp(p) - t if log_input != kind(0.0) else kind(1.0) - t / (p + kind(POISSON_EPSILON))


_ENTRIES = (
    ("mse", mse, mse_derivative),
    ("mae", mae, mae_derivative),
    ("huber", huber, huber_derivative, "delta", 1.0),
    ("log_cosh", log_cosh, log_cosh_derivative),
    ("binary_crossentropy", binary_crossentropy, binary_crossentropy_derivative),
    ("hinge", hinge, hinge_derivative),
    ("poisson", poisson, poisson_derivative, "log_input", 1.0),
    ("crossentropy", None, None, None, 0.0, True),
    ("nll", None, None, None, 0.0, True),
)

LOSSES: dict[str, LossFormula] = {name: LossFormula(name, code, *rest) for code, (name, *rest) in enumerate(_ENTRIES)}
"""Every loss by name, in the order of their codes."""


@by_code([entry.value for entry in LOSSES.values()], custom=0)
def loss_value(code: int | str, p: float, t: float, parameter: float) -> float:
    """Return one term of the loss; see `LossFormula.value`.

    Parameters
    ----------
    code : int or str
        `LossFormula.code`; in jitted code a compile-time constant.
    p, t : float
        Output of the network and target, of one dtype.
    parameter : float
        The loss's parameter, of the same dtype; ignored where `LossFormula.parameter` is None.
    """


@by_code([entry.derivative for entry in LOSSES.values()], custom=1)
def loss_derivative(code: int | str, p: float, t: float, parameter: float) -> float:
    """Return the derivative of one term with respect to p; see `LossFormula.derivative`.

    Parameters
    ----------
    code : int or str
        `LossFormula.code`; in jitted code a compile-time constant.
    p, t : float
        Output of the network and target, of one dtype.
    parameter : float
        The loss's parameter, of the same dtype; ignored where `LossFormula.parameter` is None.
    """
