"""Update rules: what an optimizer does to one parameter, given its gradient.

Each rule is one plain Python function of scalars, ``apply(w, g, s0, s1, s2, c) -> (w, s0, s1, s2)``: the
parameter, its gradient, up to three numbers that the optimizer keeps per parameter (its slots, zero before
the first step) and the step's eight coefficients, all of one dtype. A slot that a rule does not use comes
back unchanged. Whatever depends on the step alone (bias corrections, schedules) is in the coefficients, which
`nbbp.optimizers` computes in float64; each rule's docstring says what they are. There t is the step, counted
from 1.

The order of operations is PyTorch's. Rules have no branches, only selects, so that LLVM turns a loop over
them into vector instructions; they call nothing but ``math.sqrt``, so that each compiles for any target as it
stands; and none hides a NaN. Weight decay and L1 are not part of a rule: see `penalized_gradient`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from nbbp.scalars.dispatch import by_code, formula

#: Length of the coefficient tuple c, whatever the rule.
N_COEFFICIENTS = 8


@dataclass(frozen=True)
class Rule:
    """One update rule.

    Attributes
    ----------
    name : str
        Its key in `UPDATES`.
    code : int
        Its position in `UPDATES`; what `update_rule` takes.
    n_slots : int
        Number of slots it uses, the first ones.
    apply : callable
        The rule, a plain function of scalars; its docstring lists its slots and coefficients.
    """

    name: str
    code: int
    n_slots: int
    apply: Callable


@formula
def penalized_gradient(w, g, l2, l1):
    """Return the gradient of loss + l2/2 w**2 + l1 |w|: ``g + l2 w + l1 sign(w)``.

    This is how coupled weight decay and L1 enter: around the rule, before it. Decoupled decay is no
    gradient: there the kernel multiplies w by ``1 - learning_rate * weight_decay``, the coefficient table's
    third column, before the rule. Callable from Python and from jitted code.

    Parameters
    ----------
    w, g : float
        Parameter and its gradient.
    l2, l1 : float
        Factors of both penalties, of w's dtype.

    Returns
    -------
    float
        With sign(0) = 0; a NaN in w or g stays one.
    """
    zero = type(w)(0.0)
    l1_gradient = l1 if w > zero else (-l1 if w < zero else zero)
    return g + l2 * w + l1_gradient


def sgd(w, g, s0, s1, s2, c):
    """Gradient descent. No slot. c = (learning_rate,)."""
    return w - c[0] * g, s0, s1, s2


def sgd_momentum(w, g, s0, s1, s2, c):
    """Gradient descent with heavy-ball momentum (Polyak, 1964). Slot: velocity.

    c = (learning_rate, momentum, 1 - dampening), the last one 1 at t = 1, where PyTorch starts from the
    gradient.
    """
    s0 = c[1] * s0 + c[2] * g
    return w - c[0] * s0, s0, s1, s2


def sgd_nesterov(w, g, s0, s1, s2, c):
    """Gradient descent with Nesterov momentum (Sutskever et al., 2013). Slot and c as `sgd_momentum`."""
    s0 = c[1] * s0 + c[2] * g
    return w - c[0] * (g + c[1] * s0), s0, s1, s2


def adagrad(w, g, s0, s1, s2, c):
    """AdaGrad (Duchi, Hazan and Singer, 2011). Slot: sum of squared gradients, without its initial value.

    c = (learning_rate / (1 + (t - 1) learning_rate_decay), eps, initial_accumulator).
    """
    s0 = s0 + g * g
    return w - c[0] * g / (type(w)(math.sqrt(s0 + c[2])) + c[1]), s0, s1, s2


def adadelta(w, g, s0, s1, s2, c):
    """Adadelta (Zeiler, 2012). Slots: mean squared gradient, mean squared change.

    c = (learning_rate, rho, 1 - rho, eps).
    """
    s0 = c[1] * s0 + c[2] * g * g
    change = type(w)(math.sqrt(s1 + c[3])) / type(w)(math.sqrt(s0 + c[3])) * g
    s1 = c[1] * s1 + c[2] * change * change
    return w - c[0] * change, s0, s1, s2


def rmsprop(w, g, s0, s1, s2, c):
    """RMSprop (Tieleman and Hinton, 2012). Slot: mean squared gradient.

    c = (learning_rate, alpha, 1 - alpha, eps).
    """
    s0 = c[1] * s0 + c[2] * g * g
    return w - c[0] * g / (type(w)(math.sqrt(s0)) + c[3]), s0, s1, s2


def rmsprop_momentum(w, g, s0, s1, s2, c):
    """RMSprop with momentum. Slots: mean squared gradient, velocity.

    c = (learning_rate, alpha, 1 - alpha, eps, momentum).
    """
    s0 = c[1] * s0 + c[2] * g * g
    s1 = c[4] * s1 + g / (type(w)(math.sqrt(s0)) + c[3])
    return w - c[0] * s1, s0, s1, s2


def rmsprop_centered(w, g, s0, s1, s2, c):
    """RMSprop divided by the standard deviation (Graves, 2013). Slots: mean squared gradient, mean gradient.

    c = (learning_rate, alpha, 1 - alpha, eps). A variance that rounding made negative counts as zero
    (PyTorch: NaN).
    """
    s0 = c[1] * s0 + c[2] * g * g
    s1 = s1 + c[2] * (g - s1)
    variance = s0 - s1 * s1
    variance = type(w)(0.0) if variance < type(w)(0.0) else variance
    return w - c[0] * g / (type(w)(math.sqrt(variance)) + c[3]), s0, s1, s2


def rmsprop_centered_momentum(w, g, s0, s1, s2, c):
    """`rmsprop_centered` with momentum. Slots: mean squared gradient, mean gradient, velocity.

    c = (learning_rate, alpha, 1 - alpha, eps, momentum).
    """
    s0 = c[1] * s0 + c[2] * g * g
    s1 = s1 + c[2] * (g - s1)
    variance = s0 - s1 * s1
    variance = type(w)(0.0) if variance < type(w)(0.0) else variance
    s2 = c[4] * s2 + g / (type(w)(math.sqrt(variance)) + c[3])
    return w - c[0] * s2, s0, s1, s2


def adam(w, g, s0, s1, s2, c):
    """Adam (Kingma and Ba, 2015, algorithm 1). Slots: mean gradient m, mean squared gradient v.

    c = (learning_rate / (1 - beta1**t), beta1, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(1 - beta2**t), eps).
    """
    s0 = c[1] * s0 + c[2] * g
    s1 = c[3] * s1 + c[4] * g * g
    return w - c[0] * s0 / (type(w)(math.sqrt(s1)) * c[5] + c[6]), s0, s1, s2


def adam_amsgrad(w, g, s0, s1, s2, c):
    """AMSGrad (Reddi, Kale and Kumar, 2018). Slots: m, v, largest v so far. c as `adam`."""
    s0 = c[1] * s0 + c[2] * g
    s1 = c[3] * s1 + c[4] * g * g
    # The larger one, or NaN if either is.
    s2 = s1 if (s1 > s2) | (s1 != s1) else s2
    return w - c[0] * s0 / (type(w)(math.sqrt(s2)) * c[5] + c[6]), s0, s1, s2


def adamax(w, g, s0, s1, s2, c):
    """AdaMax (Kingma and Ba, 2015, algorithm 2). Slots: mean gradient, decaying largest magnitude u.

    c = (learning_rate / (1 - beta1**t), beta1, 1 - beta1, beta2, eps).
    """
    s0 = c[1] * s0 + c[2] * g
    magnitude = abs(g) + c[4]
    decayed = c[3] * s1
    s1 = magnitude if (magnitude > decayed) | (magnitude != magnitude) else decayed
    return w - c[0] * s0 / s1, s0, s1, s2


def nadam(w, g, s0, s1, s2, c):
    """Nadam (Dozat, 2016). Slots: m, v.

    With mu_t = beta1 (1 - 0.96**(t momentum_decay) / 2) and P_t the product of mu_1 .. mu_t, c =
    (learning_rate (1 - mu_t) / (1 - P_t), learning_rate mu_(t+1) / (1 - P_(t+1)), beta1, 1 - beta1, beta2, 1
    - beta2, 1 / sqrt(1 - beta2**t), eps).
    """
    s0 = c[2] * s0 + c[3] * g
    s1 = c[4] * s1 + c[5] * g * g
    return w - (c[0] * g + c[1] * s0) / (type(w)(math.sqrt(s1)) * c[6] + c[7]), s0, s1, s2


def radam(w, g, s0, s1, s2, c):
    """Rectified Adam (Liu et al., 2020). Slots: m, v.

    c = (factor, beta1, 1 - beta1, beta2, 1 - beta2, eps, rectified). With rho_t the length of the
    approximated moving average: while rho_t <= 5, rectified is 0 and the factor ``learning_rate / (1 -
    beta1**t)``; then rectified is 1 and the factor also holds the rectification and ``sqrt(1 - beta2**t)``.
    """
    s0 = c[1] * s0 + c[2] * g
    s1 = c[3] * s1 + c[4] * g * g
    scale = type(w)(math.sqrt(s1)) + c[5] if c[6] > type(w)(0.0) else type(w)(1.0)
    return w - c[0] * s0 / scale, s0, s1, s2


def lion(w, g, s0, s1, s2, c):
    """Lion (Chen et al., 2023): a step of the sign. Slot: mean gradient.

    c = (learning_rate, beta1, 1 - beta1, beta2, 1 - beta2).
    """
    direction = c[1] * s0 + c[2] * g
    s0 = c[3] * s0 + c[4] * g
    sign = type(w)(1.0) if direction > type(w)(0.0) else direction
    sign = type(w)(-1.0) if direction < type(w)(0.0) else sign
    # What is left is zero or NaN, which sign holds as it is.
    return w - c[0] * sign, s0, s1, s2


_SLOTS = {
    sgd: 0,
    sgd_momentum: 1,
    sgd_nesterov: 1,
    adagrad: 1,
    adadelta: 2,
    rmsprop: 1,
    rmsprop_momentum: 2,
    rmsprop_centered: 2,
    rmsprop_centered_momentum: 3,
    adam: 2,
    adam_amsgrad: 3,
    adamax: 2,
    nadam: 2,
    radam: 2,
    lion: 1,
}

#: Every rule by name, in the order of the codes.
UPDATES: dict[str, Rule] = {
    apply.__name__: Rule(apply.__name__, code, n_slots, apply) for code, (apply, n_slots) in enumerate(_SLOTS.items())
}


@by_code([rule.apply for rule in UPDATES.values()])
def update_rule(code, w, g, s0, s1, s2, c):
    """Apply the rule of that code; in jitted code the code is a compile-time constant, the rule compiled in.

    Parameters
    ----------
    code : int
        ``UPDATES[name].code``; in jitted code a literal, a global or a closure's int.
    w, g, s0, s1, s2 : float
        Parameter, gradient and slots, of one dtype.
    c : tuple of N_COEFFICIENTS floats
        The step's coefficients, of the same dtype.

    Returns
    -------
    tuple
        The new w, s0, s1, s2.
    """
