"""Layers that disturb training and let prediction pass: Dropout, StochasticDepth, GaussianNoise.

Their random numbers are counter-based (`nbbp.scalars.philox`): a pure function of the model's seed, the position of the
layer, the number of the training batch, the sample's place in the batch and the unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from nbbp.layers.base import Layer, check_name, number_in

__all__ = ["Dropout", "GaussianNoise", "StochasticDepth"]


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout: in training each number is zero with probability `rate`, the others are divided by ``1 - rate``.

    In prediction and evaluation the identity. Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout",
    JMLR 15 (2014).

    Parameters
    ----------
    rate : float, default 0.5
        In [0, 1).
    name : str, optional
        For the summary only.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    rate: float = 0.5
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", number_in("rate of Dropout", self.rate, 0.0, 1.0))
        check_name(self)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


@dataclass(frozen=True)
class StochasticDepth(Layer):
    """Stochastic depth: in training a sample is zero with probability `rate`, or divided by ``1 - rate``.

    At the end of a `Residual`, it skips the branch. In prediction and evaluation the identity. Huang, Sun, Liu, Sedra
    and Weinberger, "Deep networks with stochastic depth", ECCV 2016.

    Parameters
    ----------
    rate : float, default 0.5
        In [0, 1).
    mode : {"row", "batch"}, default "row"
        Whether each sample is drawn for, or all of a batch together.
    name : str, optional
        For the summary only.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    rate: float = 0.5
    mode: str = "row"
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", number_in("rate of StochasticDepth", self.rate, 0.0, 1.0))
        if not isinstance(self.mode, str) or self.mode not in ("row", "batch"):
            raise ValueError(f"mode of StochasticDepth must be 'row' or 'batch'; got {self.mode!r}")
        check_name(self)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


@dataclass(frozen=True)
class GaussianNoise(Layer):
    """Gaussian noise: in training ``output = x + stddev · n``, n standard normal.

    In prediction and evaluation the identity. Bishop, "Training with noise is equivalent to Tikhonov regularization",
    Neural Computation 7 (1995).

    Parameters
    ----------
    stddev : float, default 0.1
        Standard deviation, at least 0.
    name : str, optional
        For the summary only.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    stddev: float = 0.1
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stddev", number_in("stddev of GaussianNoise", self.stddev, 0.0))
        check_name(self)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape
