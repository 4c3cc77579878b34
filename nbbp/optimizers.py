"""What an optimizer is: frozen descriptions, and the numbers that each step of theirs takes.

An optimizer names an update rule (``nbbp.scalars.updates``) and computes a table of coefficients in float64,
one line per step; the engines apply the rule with that line. Nothing here touches a parameter. Meanings,
defaults and order of operations are PyTorch's. `Optimizer` describes the settings that all of them take
beside their own: weight_decay, decoupled, l1, decay_bias and groups; clip_value, clip_norm, gradient_noise and
accumulation_steps, which say what happens to the gradient before the rule. Only learning_rate can be positional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import ClassVar

from nbbp.layers import unknown_name
from nbbp.optimizer_base import POSITIVE, POSITIVE_OR_NONE, Optimizer, Settings

__all__ = [
    "SGD",
    "AdaGrad",
    "Adadelta",
    "Adafactor",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Settings",
    "get",
]


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, plain or with momentum (Polyak, 1964; Nesterov: Sutskever et al., 2013).

    Settings that all optimizers share, learning_rate among them: `Optimizer`.

    Parameters
    ----------
    momentum : float
        Part of the velocity that a step keeps, in [0, 1).
    nesterov : bool
        Look ahead along the velocity; takes momentum above 0 and no dampening.
    dampening : float
        Part of the gradient that does not enter the velocity, in [0, 1]; in the first step all of it does.
    """

    learning_rate: float = 0.01
    _: KW_ONLY
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0

    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError(
                "nesterov of SGD takes momentum above 0 and dampening 0; "
                f"got momentum={self.momentum!r}, dampening={self.dampening!r}"
            )

    @property
    def rule(self) -> str:
        if self.momentum == 0.0:
            return "sgd"
        return "sgd_nesterov" if self.nesterov else "sgd_momentum"

    @property
    def rule_settings(self):
        return (self.momentum, self.dampening)


@dataclass(frozen=True)
class AdaGrad(Optimizer):
    """AdaGrad: the step shrinks with the squared gradients so far (Duchi, Hazan and Singer, 2011).

    Settings that all optimizers share, learning_rate among them: `Optimizer`.

    Parameters
    ----------
    learning_rate_decay : float
        Step t takes ``learning_rate / (1 + (t - 1) * learning_rate_decay)``.
    initial_accumulator : float
        What the sum of squares starts from; Keras takes 0.1.
    eps : float
        Added to the root of the sum.
    """

    learning_rate: float = 0.01
    _: KW_ONLY
    learning_rate_decay: float = 0.0
    initial_accumulator: float = 0.0
    eps: float = 1e-10

    name: ClassVar[str] = "adagrad"
    rule: ClassVar[str] = "adagrad"

    @property
    def rule_settings(self):
        return (self.learning_rate_decay, self.initial_accumulator, self.eps)


@dataclass(frozen=True)
class Adadelta(Optimizer):
    """Adadelta: AdaGrad with a window, in the unit of the parameters (Zeiler, 2012).

    Settings that all optimizers share, learning_rate among them: `Optimizer`.

    Parameters
    ----------
    rho : float
        Part of the running means that a step keeps, in [0, 1).
    eps : float
        Added to both means before the root.
    """

    learning_rate: float = 1.0
    _: KW_ONLY
    rho: float = 0.9
    eps: float = 1e-6

    name: ClassVar[str] = "adadelta"
    rule: ClassVar[str] = "adadelta"

    @property
    def rule_settings(self):
        return (self.rho, self.eps)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop: the gradient over its root mean square (Tieleman and Hinton, 2012).

    Settings that all optimizers share, learning_rate among them: `Optimizer`.

    Parameters
    ----------
    alpha : float
        Part of the running means that a step keeps, in [0, 1).
    momentum : float
        Part of the velocity that a step keeps, in [0, 1).
    centered : bool
        Divide by the standard deviation instead (Graves, 2013).
    eps : float
        Added to the root.
    """

    learning_rate: float = 0.01
    _: KW_ONLY
    alpha: float = 0.99
    momentum: float = 0.0
    centered: bool = False
    eps: float = 1e-8

    name: ClassVar[str] = "rmsprop"

    @property
    def rule(self) -> str:
        return "rmsprop" + "_centered" * self.centered + "_momentum" * (self.momentum > 0.0)

    @property
    def rule_settings(self):
        return (self.alpha, self.momentum, self.eps)


@dataclass(frozen=True)
class _TwoMoments(Optimizer):
    """What Adam's family shares: running means of the gradient and of its square (or magnitude)."""

    learning_rate: float = 1e-3
    _: KW_ONLY
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def rule_settings(self):
        return (*self.betas, self.eps)


@dataclass(frozen=True)
class Adam(_TwoMoments):
    """Adam (Kingma and Ba, 2015).

    Settings that all optimizers share, learning_rate among them: `Optimizer`.

    Parameters
    ----------
    betas : tuple of two floats
        Parts of the mean gradient and of the mean squared gradient that a step keeps, each in [0, 1).
    eps : float
        Added to the root of the mean squared gradient.
    amsgrad : bool
        Divide by the largest mean so far (Reddi, Kale and Kumar, 2018).
    """

    _: KW_ONLY
    amsgrad: bool = False

    name: ClassVar[str] = "adam"

    @property
    def rule(self) -> str:
        return "adam_amsgrad" if self.amsgrad else "adam"


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019); betas, eps and amsgrad as `Adam`.

    Settings that all optimizers share, learning_rate among them: `Optimizer`.
    """

    _: KW_ONLY
    weight_decay: float = 0.01
    decoupled: bool = True

    name: ClassVar[str] = "adamw"


@dataclass(frozen=True)
class Adamax(_TwoMoments):
    """AdaMax: Adam with the largest decaying magnitude for the root (Kingma and Ba, 2015, algorithm 2).

    Settings that all optimizers share, learning_rate among them: `Optimizer`.

    Parameters
    ----------
    betas : tuple of two floats
        Parts of the mean gradient and of the largest magnitude that a step keeps, each in [0, 1).
    eps : float
        Added to the magnitude of each gradient.
    """

    learning_rate: float = 2e-3

    name: ClassVar[str] = "adamax"
    rule: ClassVar[str] = "adamax"


@dataclass(frozen=True)
class NAdam(_TwoMoments):
    """Nadam: Adam with Nesterov momentum that sets in slowly (Dozat, 2016); betas and eps as `Adam`.

    Settings that all optimizers share, learning_rate among them: `Optimizer`.

    Parameters
    ----------
    momentum_decay : float
        How fast: ``mu_t = beta1 * (1 - 0.96**(t * momentum_decay) / 2)``.
    """

    learning_rate: float = 2e-3
    _: KW_ONLY
    momentum_decay: float = 4e-3

    name: ClassVar[str] = "nadam"
    rule: ClassVar[str] = "nadam"

    @property
    def rule_settings(self):
        return (*self.betas, self.eps, self.momentum_decay)


@dataclass(frozen=True)
class RAdam(_TwoMoments):
    """Rectified Adam: momentum alone until the mean square is reliable (Liu et al., 2020); betas and eps as `Adam`.

    Settings that all optimizers share, learning_rate among them: `Optimizer`.
    """

    name: ClassVar[str] = "radam"
    rule: ClassVar[str] = "radam"


@dataclass(frozen=True)
class Lion(Optimizer):
    """Lion: a step of the sign of a running mean (Chen et al., 2023); weight decay is decoupled.

    Settings that all optimizers share, learning_rate among them: `Optimizer`.

    Parameters
    ----------
    betas : tuple of two floats
        Parts of the mean gradient that count in the direction and that a step keeps, each in [0, 1).
    """

    learning_rate: float = 1e-4
    _: KW_ONLY
    decoupled: bool = True
    betas: tuple[float, float] = (0.9, 0.99)

    name: ClassVar[str] = "lion"
    rule: ClassVar[str] = "lion"

    @property
    def rule_settings(self):
        return self.betas


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor: a mean square per row and per column of a weight (Shazeer and Stern, 2018).

    Not elementwise, so that no entry of ``UPDATES`` applies: engines have a kernel of their own for it. Its
    c = (1 - beta2_t = t**beta2_decay, min(learning_rate, 1 / sqrt(t)), eps[0], eps[1], d), where eps[0] = 0
    stands for the machine epsilon of the parameters' dtype. Slot 0 begins with the n_in row means of a weight
    and slot 1 with its n_out column means; of a bias, slot 0 holds the mean squares.

    Settings that all optimizers share, learning_rate among them: `Optimizer`.

    Parameters
    ----------
    beta2_decay : float
        Exponent above, at most 0.
    eps : tuple of (float or None) and float
        Least root mean square of the gradient (None: machine epsilon), and of the parameter.
    d : float
        Largest root mean square of an update before its learning rate, at least 1.
    """

    learning_rate: float = 0.01
    _: KW_ONLY
    decoupled: bool = True
    beta2_decay: float = -0.8
    eps: tuple[float | None, float] = (None, 1e-3)
    d: float = 1.0

    name: ClassVar[str] = "adafactor"
    rule: ClassVar[str] = "adafactor"
    n_slots: ClassVar[int] = 2
    ranges: ClassVar = {**Optimizer.ranges, "eps": (POSITIVE_OR_NONE, POSITIVE)}

    @property
    def rule_settings(self):
        eps1 = 0.0 if self.eps[0] is None else self.eps[0]
        return (self.beta2_decay, eps1, self.eps[1], self.d)


#: Every optimizer by the name that `get` takes.
BY_NAME: Mapping[str, type[Optimizer]] = MappingProxyType(
    {
        optimizer.name: optimizer
        for optimizer in (SGD, AdaGrad, Adadelta, RMSprop, Adam, AdamW, Adamax, NAdam, RAdam, Lion, Adafactor)
    }
)


def get(optimizer: str | Optimizer) -> Optimizer:
    """An optimizer from its name, with default settings, or the optimizer that was given.

    Raises
    ------
    TypeError
        If `optimizer` is neither a name nor an optimizer.
    ValueError
        If there is no optimizer of that name; the message lists those that exist.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str):
        if optimizer not in BY_NAME:
            raise unknown_name("optimizer", optimizer, BY_NAME)
        return BY_NAME[optimizer]()
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        name = optimizer.__name__
        raise TypeError(f"optimizer must be a name or an optimizer such as {name}(); got the class {name}")
    came = f"{optimizer!r} ({type(optimizer).__name__})"
    raise TypeError(f"optimizer must be a name such as 'adam' or an optimizer; got {came}")
