"""What a metric is: a quantity of one row, whose mean over the samples is finished by `Metric.finalise`.

A metric sees what the last layer gives and the targets. `Metric.code` names the quantity for the kernel that
computes it; a metric keeps no numbers of its own, so the mean over an epoch is exact whatever the batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from nbbp.layers import positive_integer, unknown_name

__all__ = [
    "Accuracy",
    "BinaryAccuracy",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "RootMeanSquaredError",
    "TopKAccuracy",
    "get",
]

# The quantities of a row, the codes that kernels branch on.
RIGHT_CLASS = 0
RIGHT_SIDES = 1
IN_TOP_K = 2
ABSOLUTE_ERROR = 3
SQUARED_ERROR = 4


@dataclass(frozen=True)
class Metric:
    """What all metrics share; the metrics themselves are the subclasses.

    Attributes
    ----------
    name : str
        What `get` takes and the key in a history.
    code : int
        The quantity of a row: `RIGHT_CLASS`, `RIGHT_SIDES`, `IN_TOP_K`, `ABSOLUTE_ERROR`, `SQUARED_ERROR`.
    needs_labels : bool
        Whether it asks for class labels rather than values.
    """

    name: ClassVar[str] = ""
    code: ClassVar[int] = -1
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self) is Metric:
            raise TypeError(f"Metric is only what metrics share; take one of: {', '.join(BY_NAME)}")

    @property
    def parameter(self) -> float:
        """The number that the kernel needs beside outputs and targets; 0.0 where there is none."""
        return 0.0

    def code_for(self, n_out: int) -> int:
        """The quantity of a row of `n_out` outputs: `code`, but for `Accuracy` of a single output."""
        return self.code

    def finalise(self, mean: float) -> float:
        """The metric's value from the mean of its quantity over all samples."""
        return mean


@dataclass(frozen=True)
class Accuracy(Metric):
    """Share of samples whose largest output (the first of equals) is that of the target class.

    That is, the outputs before the target's are smaller and those after it not larger; so a row with NaN,
    which has no largest output, is never right.

    A single output has no largest one: there it is the same as `BinaryAccuracy`, under its own name.
    """

    name: ClassVar[str] = "accuracy"
    code: ClassVar[int] = RIGHT_CLASS
    needs_labels: ClassVar[bool] = True

    @property
    def parameter(self) -> float:
        """0.5, the threshold for a single output."""
        return 0.5

    def code_for(self, n_out: int) -> int:
        """`RIGHT_SIDES` for a single output, else `RIGHT_CLASS`."""
        return RIGHT_SIDES if n_out == 1 else RIGHT_CLASS


@dataclass(frozen=True)
class BinaryAccuracy(Metric):
    """Share of outputs on the right side of the threshold, each output for itself.

    An output says yes where its probability is above `threshold`; a target does where it is above 0.5, so
    that targets 0/1 and -1/+1 both work. NaN is on neither side, hence wrong. For outputs that are logits or
    margins see `threshold_of_logits`.

    Parameters
    ----------
    threshold : float, default 0.5
        A probability, between 0 and 1.
    """

    threshold: float = 0.5
    name: ClassVar[str] = "binary_accuracy"
    code: ClassVar[int] = RIGHT_SIDES
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.threshold, (bool, str)):
            raise TypeError(f"threshold of binary_accuracy must be a number; got {self.threshold!r}")
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"threshold of binary_accuracy must lie between 0 and 1; got {self.threshold!r}")
        object.__setattr__(self, "threshold", float(self.threshold))

    @property
    def parameter(self) -> float:
        """`threshold`."""
        return self.threshold


@dataclass(frozen=True)
class TopKAccuracy(Metric):
    """Share of samples with fewer than k outputs above that of the target class.

    Classes that tie with the target's do not push it out. Above is whatever is not smaller or equal, so that
    NaN counts as above, and a target output of NaN is not among the top.

    Parameters
    ----------
    k : int, default 5
        At least 1.
    """

    k: int = 5
    name: ClassVar[str] = "top_k_accuracy"
    code: ClassVar[int] = IN_TOP_K
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "k", positive_integer("k of top_k_accuracy", self.k))

    @property
    def parameter(self) -> float:
        """`k`."""
        return float(self.k)


@dataclass(frozen=True)
class MeanAbsoluteError(Metric):
    """Mean of ``|output - target|`` over samples and outputs, in the unit of the targets."""

    name: ClassVar[str] = "mae"
    code: ClassVar[int] = ABSOLUTE_ERROR


@dataclass(frozen=True)
class MeanSquaredError(Metric):
    """Mean of ``(output - target)^2`` over samples and outputs, in the targets' unit squared."""

    name: ClassVar[str] = "mse"
    code: ClassVar[int] = SQUARED_ERROR


@dataclass(frozen=True)
class RootMeanSquaredError(Metric):
    """Root of the mean of ``(output - target)^2`` over samples and outputs, in the unit of the targets."""

    name: ClassVar[str] = "rmse"
    code: ClassVar[int] = SQUARED_ERROR

    def finalise(self, mean: float) -> float:
        """The square root, once over all samples: a mean of roots of batches would be another number."""
        return math.sqrt(mean)


#: Every metric by its name.
BY_NAME: Mapping[str, type[Metric]] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Accuracy,
            BinaryAccuracy,
            TopKAccuracy,
            MeanAbsoluteError,
            MeanSquaredError,
            RootMeanSquaredError,
        )
    }
)


def more_is_better(name: str) -> bool:
    """Whether the quantity of that name in a history, "val_" before it or not, wants to be large; a loss does not."""
    return name.endswith(("accuracy", "auc", "f1", "precision", "recall", "r2"))


def threshold_of_logits(threshold: float) -> float:
    """The logit whose sigmoid is `threshold`: where to cut outputs that are logits (0.0 for 0.5)."""
    return math.log(threshold / (1.0 - threshold))


def get(metric: str | Metric) -> Metric:
    """A metric from its name, with default settings, or the metric that was given.

    Raises
    ------
    TypeError
        If `metric` is neither a name nor a metric.
    ValueError
        If there is no metric of that name; the message lists those that exist.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in BY_NAME:
            raise unknown_name("metric", metric, BY_NAME)
        return BY_NAME[metric]()
    if isinstance(metric, type) and issubclass(metric, Metric):
        name = metric.__name__
        raise TypeError(f"metric must be a name or a metric such as {name}(); got the class {name}")
    kind = type(metric).__name__
    raise TypeError(f"metric must be a name such as 'accuracy' or a metric; got {metric!r} ({kind})")
