"""The learning-rate range test: train a copy of a model at ever larger rates and watch the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nbbp import data
from nbbp.layers import positive_integer
from nbbp.layers.base import number_in
from nbbp.model import Model
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.placement import session_on
from nbbp.scalars.philox import permutation
from nbbp.schedules import Exponential
from nbbp.session import Session
from nbbp.sources import Chunk, Source
from nbbp.standardization import measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LearningRateCurve", "find_learning_rate"]

#: Training stops at a smoothed loss this many times the best.
_STOPS_AT = 4.0


def find_learning_rate(
    model: Model,
    X: Any,
    y: Any = None,
    *,
    start: float = 1e-7,
    stop: float = 10.0,
    steps: int = 100,
    batch_size: int = 32,
    smoothing: float = 0.9,
) -> LearningRateCurve:
    """Train a copy of a model at exponentially growing learning rates, and suggest one.

    The model itself stays as it is.

    Parameters
    ----------
    model : Model
        Any optimizer. Its learning rate, a schedule too, is replaced; where its groups have rates of their own, these
        keep their proportion to it. Its other settings stay, its moments begin anew.
    X, y, batch_size
        As `Model.fit`, which would go through the same batches.
    start, stop : float
        The first learning rate, above 0, and the last, above it.
    steps : int
        Updates from the one to the other, at least 2.
    smoothing : float
        How much of the smoothed loss is what it was before, in [0, 1).

    Returns
    -------
    LearningRateCurve
        Rates and losses up to where the loss was no longer finite or, after the first tenth of the steps, its
        exponential mean more than four times its least.

    Raises
    ------
    TypeError, ValueError
        As `Model.fit`; or if the loss is not finite even at `start`.

    Notes
    -----
    Smith, "Cyclical learning rates for training neural networks", WACV 2017. A short test forgives much: the
    suggestion is a rate to begin a falling schedule with; one that stays the same may have to be smaller.

    Examples
    --------
    >>> found = nbbp.find_learning_rate(model, X, y)                                     # doctest: +SKIP
    >>> optimizer = nbbp.Adam(nbbp.schedules.OneCycle(found.suggestion, steps=1000))     # doctest: +SKIP
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model; got {model!r} ({type(model).__name__})")
    start = number_in("start", start, 0.0, above=True)
    stop = number_in("stop", stop, start, above=True)
    steps, batch_size = positive_integer("steps", steps), positive_integer("batch_size", batch_size)
    if steps < 2:
        raise ValueError(f"steps must be at least 2; got {steps}")
    smoothing = number_in("smoothing", smoothing, 0.0, 1.0)
    network = model.network.build(model.network.n_in or data.infer_n_in(X, y, form=model.network.form))
    source, _ = data.sources_to_fit(X, y, None, None, None, {**model._describe(network), "epochs": 1})
    growing = Exponential(start, factor=math.exp((math.log(stop) - math.log(start)) / (steps - 1)))
    session = _copy_of(model, network, _at(model.optimizer, growing))
    measure(source, [session])
    batches = _batches(source, batch_size, session, steps)
    return _curve(session, batches, growing.rates(range(steps)), smoothing)


def _at(optimizer: Optimizer, growing: Exponential) -> Optimizer:
    """The optimizer with this schedule; rates of groups in their proportion to its own."""
    base = optimizer.learning_rate if optimizer.schedule is None else optimizer.schedule.base
    groups = {pattern: dict(overrides) for pattern, overrides in optimizer.groups.items()}
    for overrides in groups.values():
        if "learning_rate" in overrides:
            overrides["learning_rate"] *= growing.base / base
    return replace(optimizer, learning_rate=growing, groups=groups)


def _copy_of(model: Model, network: Sequential, optimizer: Optimizer) -> Session:
    """Memory of its own, with the model's parameters and what its layers keep, where it has them."""
    parts = network, model.loss, optimizer, (), model.dtype, model.seed
    session = session_on(model.device)(*parts, model.precision, model.loss_scaling)
    if model._session is not None:
        for name in ("parameters", "state", "loss_scale"):
            getattr(session, name)[:] = getattr(model._session, name)
        session.epoch = model._session.epoch
    return session


def _batches(source: Source, batch: int, session: Session, steps: int) -> Iterator[Chunk]:
    """The batches that `fit` would draw, epoch after epoch."""
    while True:
        order, rows = None, None
        if source.n_samples is not None:
            batch = min(batch, source.n_samples)
            order = permutation(source.n_samples, session.seed, session.epoch)
            n_batches = steps * session.optimizer.accumulation_steps
            rows = batch * max(1, min(n_batches, (source.row_limit or source.n_samples) // batch))
        for chunk in session.chunks(source, order, rows, batch):
            size = len(chunk.order) if order is None else batch
            for first in range(0, len(chunk.order), size):
                yield replace(chunk, order=chunk.order[first : first + size])
        session.epoch += 1


def _curve(session: Session, batches: Iterator[Chunk], rates: np.ndarray, smoothing: float) -> LearningRateCurve:
    """The loss before an update at each of these rates, until it has gone."""
    losses: list[float] = []
    means: list[np.ndarray] = []
    mean, best, per_update = np.zeros(2), math.inf, session.optimizer.accumulation_steps
    for step, rate in enumerate(rates):
        loss = sum(session.train_batch(next(batches)) for _ in range(per_update)) / per_update
        if not math.isfinite(loss):
            break
        mean = smoothing * mean + (1.0 - smoothing) * np.array([loss, math.log(rate)])
        losses.append(loss)
        means.append(mean / (1.0 - smoothing ** (step + 1)))
        if step >= len(rates) // 10:  # before, it is the mean of so few batches that a lucky one would end it
            best = min(best, means[-1][0])
            if means[-1][0] > best + (_STOPS_AT - 1.0) * abs(best):  # a loss may be below 0
                break
    if not losses:
        raise ValueError(
            f"the loss of the first batch is {loss}; expected a model whose loss is finite before training"
        )
    smoothed, log_rates = np.array(means).T
    return LearningRateCurve(rates[: len(losses)], np.array(losses), smoothed, np.exp(log_rates))


@dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """The loss at growing learning rates, as `find_learning_rate` returns it.

    Attributes
    ----------
    rates : ndarray (n,)
        Of each update.
    losses : ndarray (n,)
        Before each update.
    smoothed : ndarray (n,)
        Exponential mean of the losses up to each, corrected for its beginning.
    smoothed_rates : ndarray (n,)
        The same mean of the logarithm of the rates, as rates: where each smoothed loss belongs. (Over `rates`, it
        would lag behind, and suggest rates several times too high.)
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    smoothed_rates: np.ndarray

    @property
    def suggestion(self) -> float:
        """The rate where the smoothed loss falls steepest over the logarithm of the rate, before its minimum.

        The first tenth of the curve, where the mean is one of few losses, is left out.

        Raises
        ------
        ValueError
            If it never falls.
        """
        first = len(self.rates) // 10
        last = first + int(np.argmin(self.smoothed[first:]))
        slopes = np.diff(self.smoothed[first : last + 1]) / np.diff(np.log(self.smoothed_rates[first : last + 1]))
        if not len(slopes):
            raise ValueError(
                f"the loss never falls between the rates {self.rates[0]:.3g} and {self.rates[-1]:.3g}, so no rate can "
                "be suggested: look at plot(), and take more steps, larger batches or other ends"
            )
        return float(self.smoothed_rates[first + int(np.argmin(slopes))])

    def __repr__(self) -> str:
        try:
            suggested = f"{self.suggestion:.3g}"
        except ValueError:
            suggested = "none"
        ends = f"{self.rates[0]:.3g} to {self.rates[-1]:.3g}"
        return f"LearningRateCurve({len(self.rates)} updates from {ends}; suggestion: {suggested})"

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the losses over the rates, and mark the suggestion.

        Parameters
        ----------
        path : str or path-like, optional
            Also save the picture there; the ending says in which format.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Matplotlib is missing; the message says how to install it.
        """
        from nbbp import plotting

        return plotting.plot_learning_rates(self, path)
