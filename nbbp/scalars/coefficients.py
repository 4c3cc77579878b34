"""Coefficients of the update rules: what a step's number and an optimizer's settings make of c.

One plain function per rule of `nbbp.scalars.updates`, ``coefficients(t, rate, s) -> c``: t is the step, a float
counted from 1, rate the learning rate, s the rule's settings; all float64. Each takes a single step in jitted code, and
an array of steps (n_steps,) in Python, so that a table of many and one at a time come from the same formula. What each
c means is said in the rule's docstring; it may be shorter than `N_COEFFICIENTS`, and numbers in it that depend on no
step stay plain numbers.
"""

import math
from collections.abc import Callable

import numpy as np

from nbbp.scalars.dispatch import formula

__all__ = ["COEFFICIENTS"]

# Terms of nadam's series: 0.5**m / m falls below the precision of float64.
_TERMS = 50
# A momentum_decay below this acts as none: the series' ratios would be 0/0.
_LEAST_DECAY = 1e-280


@formula
def correction(t, beta):
    """Return ``1 - beta**t``, the weight that a running mean has gathered by step t."""
    # expm1 because a power that underflows, as beta1**t soon does, takes ten times as long
    return -np.expm1(t * (math.log(beta) if beta > 0.0 else -math.inf))


@formula
def sgd(t, rate, s):
    """Nothing but the learning rate; s = ()."""
    return (rate,)


@formula
def sgd_momentum(t, rate, s):
    """s = (momentum, dampening); PyTorch's velocity starts as the first gradient, undampened."""
    return rate, s[0], 1.0 - s[1] * (t > 1.0)


@formula
def adagrad(t, rate, s):
    """s = (learning_rate_decay, initial_accumulator, eps)."""
    return rate / (1.0 + (t - 1.0) * s[0]), s[2], s[1]


@formula
def adadelta(t, rate, s):
    """s = (rho, eps)."""
    return rate, s[0], 1.0 - s[0], s[1]


@formula
def rmsprop(t, rate, s):
    """s = (alpha, momentum, eps)."""
    return rate, s[0], 1.0 - s[0], s[2], s[1]


@formula
def adam(t, rate, s):
    """s = (beta1, beta2, eps)."""
    root = 1.0 / np.sqrt(correction(t, s[1]))
    return rate / correction(t, s[0]), s[0], 1.0 - s[0], s[1], 1.0 - s[1], root, s[2]


@formula
def adamax(t, rate, s):
    """s = (beta1, beta2, eps)."""
    return rate / correction(t, s[0]), s[0], 1.0 - s[0], s[1], s[2]


@formula
def nadam_momentum(t, s):
    """``mu_t = beta1 (1 - 0.96**(t momentum_decay) / 2)``."""
    return s[0] * (1.0 - 0.5 * 0.96 ** (t * s[3]))


@formula
def nadam_product(t, s):
    """Product of mu_1 … mu_t.

    With q = 0.96**momentum_decay its logarithm is t log(beta1) + sum over s <= t of log(1 - q**s / 2), and that sum is,
    by the series of the logarithm, -sum over m of 0.5**m / m · (q**m + q**2m + … + q**tm): geometric sums.
    """
    decay = s[3] if s[3] > _LEAST_DECAY else _LEAST_DECAY
    log_q = decay * math.log(0.96)
    exponent = t * (math.log(s[0]) if s[0] > 0.0 else -math.inf)
    for m in range(1, _TERMS + 1):
        ratio = np.expm1(t * (m * log_q)) / np.expm1(m * log_q)
        exponent = exponent - 0.5**m / m * (math.exp(m * log_q) * ratio)
    return np.exp(exponent)


@formula
def nadam(t, rate, s):
    """s = (beta1, beta2, eps, momentum_decay)."""
    of_gradient = rate * (1.0 - nadam_momentum(t, s)) / (1.0 - nadam_product(t, s))
    of_mean = rate * nadam_momentum(t + 1.0, s) / (1.0 - nadam_product(t + 1.0, s))
    root = 1.0 / np.sqrt(correction(t, s[1]))
    return of_gradient, of_mean, s[0], 1.0 - s[0], s[1], 1.0 - s[1], root, s[2]


@formula
def radam(t, rate, s):
    """s = (beta1, beta2, eps)."""
    longest = 2.0 / (1.0 - s[1]) - 1.0
    gathered = correction(t, s[1])
    length = longest - 2.0 * t * s[1] ** t / gathered
    rectified = 1.0 * (length > 5.0)
    # What is not rectified must neither take the root of a negative number nor divide by zero.
    length, longest = np.maximum(length, 5.0), max(longest, 5.0)
    shape = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    root = np.sqrt(gathered * shape)
    factor = rate / correction(t, s[0]) * (rectified * root + (1.0 - rectified))
    return factor, s[0], 1.0 - s[0], s[1], 1.0 - s[1], s[2], rectified


@formula
def lion(t, rate, s):
    """s = (beta1, beta2)."""
    return rate, s[0], 1.0 - s[0], s[1], 1.0 - s[1]


@formula
def adafactor(t, rate, s):
    """s = (beta2_decay, eps1, eps2, d)."""
    return t ** s[0], np.minimum(rate, 1.0 / np.sqrt(t)), s[1], s[2], s[3]


#: The formula of every rule, by its name in ``UPDATES``, and Adafactor's.
COEFFICIENTS: dict[str, Callable] = {
    "sgd": sgd,
    "sgd_momentum": sgd_momentum,
    "sgd_nesterov": sgd_momentum,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "rmsprop": rmsprop,
    "rmsprop_momentum": rmsprop,
    "rmsprop_centered": rmsprop,
    "rmsprop_centered_momentum": rmsprop,
    "adam": adam,
    "adam_amsgrad": adam,
    "adamax": adamax,
    "nadam": nadam,
    "radam": radam,
    "lion": lion,
    "adafactor": adafactor,
}
