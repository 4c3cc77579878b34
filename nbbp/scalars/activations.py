"""Activations: each is one entry with its value and its derivative, written once for every dtype and target.

A value is ``value(x, alpha)``, where x is the input of the activation (the logits of its layer). A
derivative is ``derivative(s, alpha)``, where s is the activation's *output* where that suffices (the input
then needs no storage) and its *input* otherwise; `Formula.derivative_of` says which. alpha has the dtype of
x and is ignored by activations without a parameter. At a kink the derivative is PyTorch's.

Every function here is plain scalar Python: constants are made by ``type(x)(...)``, so that float32 stays
float32, and branches are selects, so that loops vectorise. A value of NaN is NaN. gelu, gelu_tanh, silu and
mish of -inf are NaN, as in PyTorch; of any finite number they are finite.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from nbbp.scalars.dispatch import by_code
from nbbp.scalars.functions import erf, exp, expm1, sigmoid, softplus, tanh

__all__ = ["ACTIVATIONS", "LIMITS", "Formula", "activation_derivative", "activation_value"]


@dataclass(frozen=True)
class Formula:
    """One activation.

    Attributes
    ----------
    name : str
        Its public name, and its key in `ACTIVATIONS` if it is built in.
    code : int or str
        Its position in `ACTIVATIONS`, or the key of one that was made at run time; what `activation_value` and
        `activation_derivative` take.
    value : callable or None
        ``value(x, alpha)``; None for row-wise activations.
    derivative : callable or None
        ``derivative(s, alpha)``; None for row-wise activations.
    derivative_of : str
        What s is: "output" or "input".
    parameter : str or None
        Public name of alpha.
    default : float
        Default of alpha; 0.0 where there is no parameter.
    row_wise : bool
        Whether an output depends on the whole row of inputs (softmax): then the formula is a kernel.
    """

    name: str
    code: int | str
    value: Callable | None
    derivative: Callable | None
    derivative_of: str = "output"
    parameter: str | None = None
    default: float = 0.0
    row_wise: bool = False


SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717
SQRT_HALF = math.sqrt(0.5)
ONE_OVER_SQRT_TWO_PI = 1.0 / math.sqrt(2.0 * math.pi)
GELU_TANH_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
GELU_TANH_CUBIC = 0.044715
# From here on x/(1 + |x|) is 1 to the last bit; inf/inf would be NaN.
SOFTSIGN_LIMIT = 1e30
# From here on the second term of gelu_tanh's derivative is 0; its x**2 would overflow later.
GELU_TANH_LIMIT = 30.0
# From here on tanh(softplus(x)) is 1 to the last bit; e**(2x) would overflow later.
MISH_LIMIT = 20.0


def linear(x, alpha):
    """Return x."""
    return x


def linear_derivative(a, alpha):
    """Return 1."""
    return type(a)(1.0)


def relu(x, alpha):
    """Return max(x, 0)."""
    zero = type(x)(0.0)
    return zero if x < zero else x


def relu_derivative(a, alpha):
    """Return 1 where a > 0, else 0."""
    zero = type(a)(0.0)
    return zero if a <= zero else type(a)(1.0)


def leaky_relu(x, alpha):
    """Return x where x > 0, else alpha x (alpha >= 0)."""
    return x if x > type(x)(0.0) else alpha * x


def leaky_relu_derivative(a, alpha):
    """Return 1 where a > 0, else alpha."""
    return type(a)(1.0) if a > type(a)(0.0) else alpha


def elu(x, alpha):
    """Return x where x > 0, else alpha (e**x - 1) (alpha >= 0; Clevert et al. 2015)."""
    below = alpha * expm1(x)  # computed in any case: a branch around it may stay a branch
    return x if x > type(x)(0.0) else below


def elu_derivative(a, alpha):
    """Return 1 where a > 0, else a + alpha."""
    return type(a)(1.0) if a > type(a)(0.0) else a + alpha


def selu(x, alpha):
    """Return the self-normalising ELU, scale times elu(x, 1.67326...) (Klambauer et al. 2017)."""
    kind = type(x)
    below = kind(SELU_SCALE * SELU_ALPHA) * expm1(x)
    return kind(SELU_SCALE) * x if x > kind(0.0) else below


def selu_derivative(a, alpha):
    """Return scale where a > 0, else a + scale * 1.67326..."""
    kind = type(a)
    return kind(SELU_SCALE) if a > kind(0.0) else a + kind(SELU_SCALE * SELU_ALPHA)


def sigmoid_value(x, alpha):
    """Return 1/(1 + e**-x)."""
    return sigmoid(x)


def sigmoid_derivative(a, alpha):
    """Return a (1 - a)."""
    return a * (type(a)(1.0) - a)


def tanh_value(x, alpha):
    """Return tanh(x)."""
    return tanh(x)


def tanh_derivative(a, alpha):
    """Return 1 - a**2."""
    return type(a)(1.0) - a * a


def softplus_value(x, alpha):
    """Return log(1 + e**x)."""
    return softplus(x)


def softplus_derivative(a, alpha):
    """Return 1 - e**-a, which is sigmoid(x)."""
    return -expm1(-a)


def hard_tanh(x, alpha):
    """Return x clipped to [-1, 1]."""
    one = type(x)(1.0)
    y = -one if x < -one else x
    return one if y > one else y


def hard_tanh_derivative(a, alpha):
    """Return 0 where |a| >= 1, else 1."""
    one = type(a)(1.0)
    return type(a)(0.0) if abs(a) >= one else one


def hard_sigmoid(x, alpha):
    """Return (x + 3)/6 clipped to [0, 1]."""
    kind = type(x)
    y = (x + kind(3.0)) * kind(1.0 / 6.0)  # in this order it is 0 and 1 at the kinks
    y = kind(0.0) if y < kind(0.0) else y
    return kind(1.0) if y > kind(1.0) else y


def hard_sigmoid_derivative(a, alpha):
    """Return 1/6 where 0 < a < 1, else 0."""
    kind = type(a)
    y = kind(0.0) if a <= kind(0.0) else kind(1.0 / 6.0)
    return kind(0.0) if a >= kind(1.0) else y


def softsign(x, alpha):
    """Return x/(1 + |x|)."""
    kind = type(x)
    limit = kind(SOFTSIGN_LIMIT)
    x = -limit if x < -limit else x
    x = limit if x > limit else x
    return x / (kind(1.0) + abs(x))


def softsign_derivative(a, alpha):
    """Return (1 - |a|)**2."""
    root = type(a)(1.0) - abs(a)
    return root * root


def gelu(x, alpha):
    """Return x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016)."""
    kind = type(x)
    return kind(0.5) * x * (kind(1.0) + erf(x * kind(SQRT_HALF)))


def gelu_derivative(x, alpha):
    """Return Phi(x) + x phi(x), phi the normal density."""
    kind = type(x)
    distribution = kind(0.5) * (kind(1.0) + erf(x * kind(SQRT_HALF)))
    return distribution + x * kind(ONE_OVER_SQRT_TWO_PI) * exp(kind(-0.5) * x * x)


def gelu_tanh(x, alpha):
    """Return x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))), written as x sigmoid(twice that argument)."""
    kind = type(x)
    return x * sigmoid(x * kind(GELU_TANH_SLOPE) * (kind(1.0) + kind(GELU_TANH_CUBIC) * x * x))


def gelu_tanh_derivative(x, alpha):
    """Return s + x s (1 - s) u', where gelu_tanh(x) = x s, s = sigmoid(u)."""
    kind = type(x)
    limit = kind(GELU_TANH_LIMIT)
    x = -limit if x < -limit else x
    x = limit if x > limit else x
    square = x * x
    u = x * kind(GELU_TANH_SLOPE) * (kind(1.0) + kind(GELU_TANH_CUBIC) * square)
    slope = kind(GELU_TANH_SLOPE) * (kind(1.0) + kind(3.0 * GELU_TANH_CUBIC) * square)
    # s (1 - s) as e/(1 + e)**2: where s is near 1, 1 - s would have lost its digits.
    e = exp(-abs(u))
    reciprocal = kind(1.0) / (kind(1.0) + e)
    s = e * reciprocal if u < kind(0.0) else reciprocal
    return s + x * slope * (e * reciprocal * reciprocal)


def silu(x, alpha):
    """Return x sigmoid(x) (Elfwing et al. 2017)."""
    return x * sigmoid(x)


def silu_derivative(x, alpha):
    """Return s + x s (1 - s), s = sigmoid(x)."""
    kind = type(x)
    e = exp(-abs(x))
    reciprocal = kind(1.0) / (kind(1.0) + e)
    s = e * reciprocal if x < kind(0.0) else reciprocal
    return s + x * (e * reciprocal * reciprocal)


def mish(x, alpha):
    """Return x tanh(softplus(x)) = x n/(n + 2), n = e**x (e**x + 2) (Misra 2019)."""
    kind = type(x)
    limit = kind(MISH_LIMIT)
    e = exp(limit if x > limit else x)
    n = e * (e + kind(2.0))
    return x * (n / (n + kind(2.0)))


def mish_derivative(x, alpha):
    """Return t + x (1 - t**2) sigmoid(x), t = tanh(softplus(x)), all from one exponential."""
    kind = type(x)
    limit = kind(MISH_LIMIT)
    x = limit if x > limit else x
    e = exp(x)
    n = e * (e + kind(2.0))
    reciprocal = kind(1.0) / (n + kind(2.0))
    # (1 - t**2) sigmoid(x) is 4 e (e + 1)/(n + 2)**2
    return n * reciprocal + x * (kind(4.0) * (e * reciprocal) * ((e + kind(1.0)) * reciprocal))


_ENTRIES = (
    ("linear", linear, linear_derivative),
    ("relu", relu, relu_derivative),
    ("leaky_relu", leaky_relu, leaky_relu_derivative, "output", "negative_slope", 0.01),
    ("elu", elu, elu_derivative, "output", "alpha", 1.0),
    ("selu", selu, selu_derivative),
    ("sigmoid", sigmoid_value, sigmoid_derivative),
    ("tanh", tanh_value, tanh_derivative),
    ("softplus", softplus_value, softplus_derivative),
    ("hard_tanh", hard_tanh, hard_tanh_derivative),
    ("hard_sigmoid", hard_sigmoid, hard_sigmoid_derivative),
    ("softsign", softsign, softsign_derivative),
    ("gelu", gelu, gelu_derivative, "input"),
    ("gelu_tanh", gelu_tanh, gelu_tanh_derivative, "input"),
    ("silu", silu, silu_derivative, "input"),
    ("mish", mish, mish_derivative, "input"),
    ("softmax", None, None, "output", None, 0.0, True),
    ("log_softmax", None, None, "output", None, 0.0, True),
)

ACTIVATIONS: dict[str, Formula] = {name: Formula(name, code, *rest) for code, (name, *rest) in enumerate(_ENTRIES)}
"""Every activation by name, in the order of their codes."""

LIMITS: dict[str, tuple[float, float]] = {
    "relu": (0.0, math.inf),
    "elu": (-1.0, math.inf),
    "selu": (-SELU_SCALE * SELU_ALPHA, math.inf),
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "softsign": (-1.0, 1.0),
}
"""Between which values an activation lies that is flat near them, and only there; elu's are multiples of alpha."""


@by_code([entry.value for entry in ACTIVATIONS.values()], custom=0)
def activation_value(code: int | str, x: float, alpha: float) -> float:
    """Return the activation's value; see `Formula.value`.

    Parameters
    ----------
    code : int or str
        `Formula.code`; in jitted code a compile-time constant.
    x : float
        The input, float32 or float64.
    alpha : float
        The activation's parameter, of x's dtype; ignored where `Formula.parameter` is None.
    """


@by_code([entry.derivative for entry in ACTIVATIONS.values()], custom=1)
def activation_derivative(code: int | str, s: float, alpha: float) -> float:
    """Return the activation's derivative with respect to its input; see `Formula.derivative`.

    Parameters
    ----------
    code : int or str
        `Formula.code`; in jitted code a compile-time constant.
    s : float
        The activation's output or input, as `Formula.derivative_of` says, float32 or float64.
    alpha : float
        The activation's parameter, of s's dtype; ignored where `Formula.parameter` is None.
    """
