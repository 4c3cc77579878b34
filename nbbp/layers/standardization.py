"""Standardize: every feature of the data less its mean, over its standard deviation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbbp.layers.base import Layer, check_name, number_in

__all__ = ["Standardize"]


@dataclass(frozen=True)
class Standardize(Layer):
    """Standardisation of the data: ``output = (x - mean) / sqrt(variance)``, feature by feature.

    Mean and variance (the biased one, over n) are those of the data that the model is trained on. The first `Model.fit`
    measures them, of the part that it trains on alone, or `Model.adapt` does; from then on they stay, and are copied
    and saved with the model. (An iterable of batches is gone through once more for it.) A feature that never changes
    has the variance 1. Sample weights do not count. They can also be given.

    It takes the data themselves: it is the first layer of the network, or of a chain within a first `Residual` or
    `Concat`, and only `Flatten` and `Reshape` may come before it. In mixed precision it takes the data in float32,
    before anything is rounded.

    Shapes: x, output (batch, n); state mean, variance (n,), NaN before they are measured.

    Parameters
    ----------
    mean, variance : float or sequence of float (n,), optional
        Both, to give the statistics; one number is for all features. A variance of 0 becomes 1.
    name : str, optional
        For the summary only.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.

    Examples
    --------
    >>> Standardize(mean=0.1307, variance=0.3081**2)
    Standardize(mean=0.1307, variance=0.09492561, name=None)
    """

    mean: tuple[float, ...] | float | None = None
    variance: tuple[float, ...] | float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.variance is None):
            raise ValueError(
                f"Standardize takes both mean and variance, or neither; got mean={self.mean!r}, "
                f"variance={self.variance!r}"
            )
        if self.mean is not None:
            object.__setattr__(self, "mean", _statistic("mean", self.mean, -np.inf))
            object.__setattr__(self, "variance", _statistic("variance", self.variance, 0.0))
            lengths = {len(values) for values in (self.mean, self.variance) if isinstance(values, tuple)}
            if len(lengths) > 1:
                came = f"{len(self.mean)} and {len(self.variance)} numbers"
                raise ValueError(f"mean and variance of Standardize must be of as many features; got {came}")
        check_name(self)

    @property
    def is_given(self) -> bool:
        """Whether the statistics are settings, not measured."""
        return self.mean is not None

    def width(self, n_in: int) -> int:
        for values in (self.mean, self.variance):
            if isinstance(values, tuple) and len(values) != n_in:
                raise ValueError(f"Standardize has statistics of {len(values)} features; got {n_in}")
        return n_in

    def state_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        return {"mean": (n_in,), "variance": (n_in,)}

    def initializer(self, kind: str, shape: tuple[int, ...]) -> Any:
        given = self.mean if kind == "mean" else self.variance
        return Statistic(kind, np.nan if given is None else given)


@dataclass(frozen=True)
class Statistic:
    """A state that begins as these numbers, or as this one everywhere; called as initializers are."""

    kind: str
    values: tuple[float, ...] | float

    def __call__(self, shape: tuple[int, ...], seed: int, stream: int, dtype: np.dtype) -> np.ndarray:
        values = np.broadcast_to(np.asarray(self.values, np.float64), shape)
        return as_statistic(self.kind, values, dtype, "Standardize")


def as_statistic(kind: str, values: np.ndarray, dtype: np.dtype, owner: str) -> np.ndarray:
    """Means or variances (n,), float64, in a dtype; a variance of 0 becomes 1.

    Raises
    ------
    ValueError
        If the dtype does not hold one of them; `owner` begins the message. NaN passes.
    """
    if kind == "variance":
        values = np.where(values == 0.0, 1.0, values)
    with np.errstate(over="ignore", under="ignore"):
        converted = values.astype(dtype)
    too_small = (kind == "variance") & (converted < np.finfo(dtype).tiny)
    bad = np.flatnonzero(np.isinf(converted) | too_small)
    if bad.size:
        raise ValueError(
            f"{owner}: feature {bad[0]} has the {kind} {values[bad[0]]:.3g}, which {np.dtype(dtype).name} does not "
            "hold: scale the data" + (" or use dtype='float64'" if dtype == np.float32 else "")
        )
    return converted


def _statistic(kind: str, values: Any, low: float) -> tuple[float, ...] | float:
    """Finite numbers, none below `low`: a float, or a tuple of floats."""
    what = f"{kind} of Standardize"
    if isinstance(values, Iterable) and np.ndim(values) != 0 and not isinstance(values, (str, bytes, Mapping)):
        if np.ndim(values) != 1 or len(values) == 0:
            raise ValueError(f"{what} must be one number, or one for each feature; got {values!r}")
        return tuple(_finite(f"number {place} of {what}", value, low) for place, value in enumerate(values))
    return _finite(what, values, low)


def _finite(what: str, value: Any, low: float) -> float:
    """A finite number, not below `low`."""
    return number_in(what, value, low, above=low == -np.inf)
