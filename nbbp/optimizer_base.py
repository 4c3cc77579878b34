"""What all optimizers share: learning rate, penalties, groups, and the layout of the coefficient table."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from nbbp.scalars.coefficients import COEFFICIENTS
from nbbp.scalars.updates import N_COEFFICIENTS, UPDATES
from nbbp.schedules import Schedule

__all__ = ["COUPLED_L2", "DECOUPLED", "L1", "N_COLUMNS", "RULE", "Optimizer", "Range", "Settings"]

#: Columns of the coefficient table; the rule's c[0] is column `RULE`, its c[1] the next one.
COUPLED_L2, L1, DECOUPLED, RULE = 0, 1, 2, 3
N_COLUMNS = RULE + N_COEFFICIENTS


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may take, in words and as a test."""

    words: str
    contains: Callable[[float], bool]
    or_none: bool = False


POSITIVE = Range("above 0 and finite", lambda x: 0 < x < math.inf)
POSITIVE_OR_NONE = Range("above 0 and finite, or None", lambda x: 0 < x < math.inf, or_none=True)
NOT_NEGATIVE = Range("at least 0 and finite", lambda x: 0 <= x < math.inf)
NOT_POSITIVE = Range("at most 0 and finite", lambda x: -math.inf < x <= 0)
FRACTION = Range("in [0, 1)", lambda x: 0 <= x < 1)
AT_LEAST_ONE = Range("at least 1 and finite", lambda x: 1 <= x < math.inf)
UP_TO_ONE = Range("in [0, 1]", lambda x: 0 <= x <= 1)
COUNT = Range("from 1 to 2**31 - 1", lambda x: 1 <= x < 1 << 31)

# In a group a learning rate of 0 is of use: it freezes the parameters.
_GROUP_RANGES = {"learning_rate": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE, "l1": NOT_NEGATIVE}


@dataclass(frozen=True)
class Settings:
    """What holds for one parameter: the optimizer's own numbers after `groups` and `decay_bias`."""

    learning_rate: float
    weight_decay: float
    l1: float


@dataclass(frozen=True)
class Optimizer:
    """What all optimizers share; the optimizers themselves are the subclasses.

    Parameters
    ----------
    learning_rate : float or nbbp.schedules.Schedule
        Step size, above 0, or how it changes from step to step.
    weight_decay : float
        L2 factor, at least 0. Coupled, it adds ``weight_decay * w`` to the gradient before the rule;
        decoupled, it multiplies w by ``1 - learning_rate * weight_decay`` before the rule (Loshchilov and
        Hutter, 2019).
    decoupled : bool
        Which of the two.
    l1 : float
        Adds ``l1 * sign(w)`` to the gradient before the rule, decoupled or not; at least 0.
    decay_bias : bool
        Whether weight_decay and l1 also hold for parameters that are not called "weight", such as biases. A
        group that says otherwise comes first.
    groups : mapping of str to mapping
        Other numbers for some parameters: a pattern of their names ("0.weight", "*.bias"; as `fnmatch`, upper
        and lower case differ) to any of learning_rate, weight_decay and l1. Of several patterns that match,
        the last one holds. A learning_rate of 0 freezes the parameters.
    clip_value : float or None
        Each number of the gradient is brought into [-clip_value, clip_value], above 0.
    clip_norm : float or None
        The gradient of all trainable parameters together is multiplied by ``min(1, clip_norm / (norm + 1e-6))``, norm
        being its Euclidean norm (Pascanu, Mikolov and Bengio, 2013); above 0. A norm that is not finite updates
        nothing.
    gradient_noise : float
        Variance of the normal noise that is added to each number of the first update's gradient; that of update t,
        counted from 0, is ``gradient_noise / (1 + t)**0.55`` (Neelakantan et al., 2015). At least 0.
    accumulation_steps : int
        Gradients of so many training batches make one update, the gradient of the one batch of all of their rows.

    Notes
    -----
    In this order: accumulation, clip_value, clip_norm, gradient_noise, weight_decay (if coupled) and l1, the rule.
    Bias corrections count updates.

    Attributes
    ----------
    name : str
        What `get` takes.

    Raises
    ------
    TypeError, ValueError
        If a setting has the wrong type or is out of its range; the message says which range and what came.
    """

    learning_rate: float | Schedule = 0.01
    _: KW_ONLY
    weight_decay: float = 0.0
    decoupled: bool = False
    l1: float = 0.0
    decay_bias: bool = False
    # A dict has no hash; equality still compares it.
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    clip_value: float | None = None
    clip_norm: float | None = None
    gradient_noise: float = 0.0
    accumulation_steps: int = 1

    name: ClassVar[str] = ""
    #: What each setting may be; one that is not here is a switch.
    ranges: ClassVar[Mapping[str, Range | tuple[Range, Range]]] = {
        "learning_rate": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
        "l1": NOT_NEGATIVE,
        "momentum": FRACTION,
        "dampening": UP_TO_ONE,
        "learning_rate_decay": NOT_NEGATIVE,
        "initial_accumulator": NOT_NEGATIVE,
        "rho": FRACTION,
        "alpha": FRACTION,
        "betas": (FRACTION, FRACTION),
        "momentum_decay": NOT_NEGATIVE,
        "beta2_decay": NOT_POSITIVE,
        "d": AT_LEAST_ONE,
        "eps": POSITIVE,
        "clip_value": POSITIVE_OR_NONE,
        "clip_norm": POSITIVE_OR_NONE,
        "gradient_noise": NOT_NEGATIVE,
    }

    def __post_init__(self) -> None:
        if not self.name:
            shared = type(self).__name__
            raise TypeError(f"{shared} is only what optimizers share; take one of nbbp.optimizers.BY_NAME")
        for setting in fields(self):
            value = getattr(self, setting.name)
            allowed = self.ranges.get(setting.name)
            if setting.name == "learning_rate" and isinstance(value, Schedule):
                continue
            if setting.name == "groups":
                value = self._checked_groups(value)
            elif setting.name == "accumulation_steps":
                value = self._checked_count(setting.name, value, COUNT)
            elif isinstance(allowed, tuple):
                value = self._checked_pair(setting.name, value, allowed)
            elif allowed is not None:
                value = self._checked_number(setting.name, value, allowed)
            elif not isinstance(value, bool):
                owner = f"{setting.name} of {type(self).__name__}"
                raise TypeError(f"{owner} must be True or False; got {value!r}")
            # Frozen fields allow no plain assignment.
            object.__setattr__(self, setting.name, value)

    def _checked_number(self, setting: str, value: Any, allowed: Range) -> Any:
        if value is None and allowed.or_none:
            return None
        owner = f"{setting} of {type(self).__name__}"
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{owner} must be a number; got {value!r} ({type(value).__name__})")
        if not allowed.contains(value):
            raise ValueError(f"{owner} must be {allowed.words}; got {value!r}")
        return float(value)

    def _checked_count(self, setting: str, value: Any, allowed: Range) -> int:
        owner = f"{setting} of {type(self).__name__}"
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{owner} must be an integer; got {value!r} ({type(value).__name__})")
        if not allowed.contains(value):
            raise ValueError(f"{owner} must be {allowed.words}; got {value!r}")
        return int(value)

    def _checked_pair(self, setting: str, value: Any, allowed: tuple[Range, Range]) -> tuple:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"{setting} of {type(self).__name__} must be two numbers; got {value!r}")
        first, second = (self._checked_number(f"{setting}[{i}]", value[i], allowed[i]) for i in range(2))
        return first, second

    def _checked_groups(self, value: Any) -> dict[str, dict[str, float]]:
        owner = f"groups of {type(self).__name__}"
        expected = "a mapping such as {'*.bias': {'learning_rate': 0.02}}"
        if not isinstance(value, Mapping):
            raise TypeError(f"{owner} must be {expected}; got {value!r}")
        groups = {}
        for pattern, overrides in value.items():
            if not isinstance(pattern, str) or not isinstance(overrides, Mapping):
                raise TypeError(f"{owner} must be {expected}; got {pattern!r}: {overrides!r}")
            unknown = [setting for setting in overrides if setting not in _GROUP_RANGES]
            if unknown:
                possible = ", ".join(_GROUP_RANGES)
                raise ValueError(f"{owner}: {pattern!r} sets {unknown[0]!r}; a group can set {possible}")
            groups[pattern] = {
                setting: self._checked_number(f"groups[{pattern!r}][{setting!r}]", number, _GROUP_RANGES[setting])
                for setting, number in overrides.items()
            }
        return groups

    @property
    def rule(self) -> str:
        """Name of the update rule, a key of ``nbbp.scalars.updates.UPDATES``."""
        raise NotImplementedError

    @property
    def n_slots(self) -> int:
        """How many numbers it keeps for each parameter, 0 to 3."""
        return UPDATES[self.rule].n_slots

    @property
    def prepares_gradient(self) -> bool:
        """Whether anything happens to the gradient between backpropagation and the update."""
        return self.gradient_settings != ()

    @property
    def gradient_settings(self) -> tuple[str, ...]:
        """Names of the settings that ask for it."""
        values = {
            "clip_value": self.clip_value is not None,
            "clip_norm": self.clip_norm is not None,
            "gradient_noise": self.gradient_noise > 0.0,
            "accumulation_steps": self.accumulation_steps > 1,
        }
        return tuple(name for name, is_set in values.items() if is_set)

    def settings(self, parameter_name: str) -> Settings:
        """The numbers that hold for one parameter.

        Parameters
        ----------
        parameter_name : str
            Such as "0.weight".
        """
        decays = self.decay_bias or parameter_name.rpartition(".")[2] == "weight"
        values = {
            "learning_rate": self.learning_rate if self.schedule is None else self.schedule.base,
            "weight_decay": self.weight_decay if decays else 0.0,
            "l1": self.l1 if decays else 0.0,
        }
        for pattern, overrides in self.groups.items():
            if fnmatchcase(parameter_name, pattern):
                values.update(overrides)
        return Settings(**values)

    @property
    def schedule(self) -> Schedule | None:
        """How the learning rate changes, where it does."""
        return self.learning_rate if isinstance(self.learning_rate, Schedule) else None

    def coefficients(self, first_step: int, n_steps: int, settings: Settings, count: int | None = None) -> np.ndarray:
        """The numbers of some steps in a row; tables of several blocks make up the table in one piece.

        Parameters
        ----------
        first_step : int
            The first of these steps; the very first update is step 1.
        n_steps : int
            How many, at least 0.
        settings : Settings
            Of the parameter; see `settings`.
        count : int, optional
            Where the schedule stands in all of these steps, if it does not count updates.

        Returns
        -------
        ndarray of float64, shape (n_steps, 11)
            Columns: coupled L2 factor, L1 factor, multiplier of w for decoupled decay (else 1), then the
            rule's c[0] to c[7] as its docstring lists them, zero where it has fewer.

        Raises
        ------
        ValueError
            If `first_step` is below 1 or `n_steps` below 0.
        """
        if first_step < 1 or n_steps < 0:
            came = f"first_step={first_step}, n_steps={n_steps}"
            raise ValueError(f"steps count from 1 and their number from 0; got {came}")
        steps = np.arange(first_step, first_step + n_steps, dtype=np.float64)
        rates = np.full(n_steps, settings.learning_rate)
        if self.schedule is not None and settings.learning_rate > 0.0:  # 0 freezes a group, whatever the schedule
            counts = steps - 1.0 if count is None else np.full(n_steps, count)
            rates = self.schedule.rates(counts, settings.learning_rate)
        table = np.zeros((n_steps, N_COLUMNS))
        table[:, COUPLED_L2], table[:, L1], table[:, DECOUPLED] = self.penalties(settings, rates)
        values_of_steps = COEFFICIENTS[self.rule](steps, rates, self.rule_settings)
        for column, values in enumerate(values_of_steps, start=RULE):
            table[:, column] = values
        return table

    def penalties(self, settings: Settings, rate: Any) -> tuple:
        """The first three columns of that table, at this learning rate: a number, or one for each step."""
        if self.decoupled:
            return 0.0, settings.l1, 1.0 - rate * settings.weight_decay
        return settings.weight_decay, settings.l1, 1.0

    @property
    def rule_settings(self) -> tuple[float, ...]:
        """What the rule's entry in ``nbbp.scalars.coefficients.COEFFICIENTS`` takes as s."""
        raise NotImplementedError
