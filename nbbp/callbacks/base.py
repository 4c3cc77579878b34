"""What a callback is, what it sees of a run, and how `fit` calls a list of them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from nbbp.history import History
from nbbp.layers import positive_integer

if TYPE_CHECKING:
    from nbbp.model import Model

__all__ = ["Callback", "Hooks", "Run", "checked"]


class Run:
    """A run of `fit`, as its callbacks see it.

    Attributes
    ----------
    model : nbbp.Model
        Which may be looked at, saved and changed; its parameters are those of the last batch.
    epoch, epochs : int
        The number of the epoch, counted from 1 (0 before the first), and of the last one that was asked for.
    history : nbbp.History
        In `on_epoch_end` with the epoch that ends.
    report : dict of str to float
        The epoch's loss and metrics: in batch hooks so far, in `on_epoch_end` whole, with what was measured on the
        validation data. What a callback adds goes into the history.
    first_batch, last_batch : int
        For batch hooks: the numbers, from 1, of the batches that are about to be trained on, or just were.
    samples : int
        Trained on in this epoch so far.
    n_samples : int or None
        Samples of an epoch; None where only reading the data would tell.
    names : tuple of str
        What a report holds without what callbacks add.
    stop_reason : str or None
        Why the run ends before its last epoch, if it does.
    has_diverged : bool
        Whether it ended because the loss turned NaN or infinite.
    """

    def __init__(self, model: Model, epochs: int, n_samples: int | None, names: Sequence[str]) -> None:
        self.model, self.epochs, self.epoch = model, epochs, 0
        self.history = History()
        self.report: dict[str, float] = {}
        self.first_batch = self.last_batch = self.samples = 0
        self.n_samples, self.names = n_samples, tuple(names)
        self.stop_reason: str | None = None
        self.has_diverged = False
        #: Whether a callback of the user's own may add to the report what nobody knows before.
        self.may_report_more = False

    def stop(self, reason: str = "a callback asked for it") -> None:
        """End the run: in a batch hook at once, in an epoch hook with that epoch.

        An epoch that is cut short is not in the history, and `on_epoch_end` is not called for it.
        """
        self.stop_reason = str(reason)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update. Set, it holds from then on, to the end of the run.

        Groups of the optimizer with a rate of their own keep their ratio to it.

        Raises
        ------
        TypeError, ValueError
            When set to anything but a finite number that is at least 0, or for an optimizer with a schedule.
        """
        session = self.model._built
        return session.clock.rate(session.step + 1)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        session = self.model._built
        if session.clock.schedule is not None:
            raise ValueError(f"the learning rate is that of the optimizer's schedule, {session.clock.schedule!r}")
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
            raise TypeError(f"learning_rate must be a number; got {rate!r} ({type(rate).__name__})")
        if not 0.0 <= rate < math.inf:
            raise ValueError(f"learning_rate must be at least 0 and finite; got {rate!r}")
        session.clock.override = float(rate)
        session.steps_ahead = 0  # quick steps have the coefficients of the rate before


class Callback:
    """What `fit` calls around the training; a callback overrides the hooks that it needs.

    Attributes
    ----------
    every_batches : int or None
        How many batches lie between two calls of the batch hooks, at most: the batches between are one call of machine
        code. None leaves it to `fit`, which calls about once a second or after 65,536 samples.

    Examples
    --------
    >>> class Largest(Callback):                                                # doctest: +SKIP
    ...     def on_epoch_end(self, run):
    ...         run.report["largest"] = abs(run.model.parameter_vector).max()
    >>> model.fit(X, y, epochs=5, callbacks=[Largest()])["largest"]             # doctest: +SKIP
    """

    every_batches: int | None = None
    #: Whether a loss that turns NaN ends the run without an error.
    ends_quietly = False
    #: Whether a run takes one callback of this class only.
    is_only_one = False

    def check(self, run: Run) -> None:
        """Refuse, before anything changes, a run that this callback is not for.

        The model may not be built yet. Raises TypeError or ValueError.
        """

    def on_train_begin(self, run: Run) -> None:
        """Before the first epoch."""

    def on_train_end(self, run: Run) -> None:
        """However the run ends: an error and Ctrl-C too, which are raised on afterwards."""

    def on_epoch_begin(self, run: Run) -> None:
        """Before an epoch."""

    def on_epoch_end(self, run: Run) -> None:
        """After an epoch and its validation."""

    def on_batch_begin(self, run: Run) -> None:
        """Before the batches `run.first_batch` to `run.last_batch`."""

    def on_batch_end(self, run: Run) -> None:
        """After these batches."""


def checked(callbacks: Any) -> list[Callback]:
    """The callbacks that `fit` was given.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(callbacks, Callback):
        raise TypeError(f"callbacks must be a list; got {callbacks!r} alone: write callbacks=[…]")
    if not isinstance(callbacks, (list, tuple)):
        raise TypeError(f"callbacks must be a list of callbacks; got {callbacks!r} ({type(callbacks).__name__})")
    for number, callback in enumerate(callbacks):
        if isinstance(callback, type) and issubclass(callback, Callback):
            name = callback.__name__
            raise TypeError(f"callbacks[{number}] is the class {name}; expected an instance, such as {name}(…)")
        if not isinstance(callback, Callback):
            came = f"{callback!r} ({type(callback).__name__})"
            raise TypeError(f"callbacks[{number}] must be a nbbp.callbacks.Callback; got {came}")
        if any(callback is other for other in callbacks[:number]):
            raise ValueError(f"callbacks[{number}] is in the list twice")
        if callback.is_only_one and any(type(callback) is type(other) for other in callbacks[:number]):
            name = type(callback).__name__
            raise ValueError(f"callbacks[{number}] is another {name}; one {name} at a time can look at a model")
        if callback.every_batches is not None:
            positive_integer(f"every_batches of {type(callback).__name__}", callback.every_batches)
    return list(callbacks)


class Hooks:
    """The hooks of a list of callbacks that do anything.

    Parameters
    ----------
    callbacks : list of Callback
    run : Run

    Attributes
    ----------
    batch_begin, epoch_begin : list of callable
    every_batches : int or None
        Batches of a chunk, at most.
    ends_quietly : bool
    """

    def __init__(self, callbacks: Sequence[Callback], run: Run) -> None:
        self.callbacks, self.run = callbacks, run
        self.epoch_begin, self.epoch_end, self.batch_begin, self.batch_end = (
            [getattr(callback, name) for callback in callbacks if _overrides(callback, name)]
            for name in ("on_epoch_begin", "on_epoch_end", "on_batch_begin", "on_batch_end")
        )
        of_batches = {id(hook.__self__) for hook in (*self.batch_begin, *self.batch_end) if hasattr(hook, "__self__")}
        limits = [one.every_batches for one in callbacks if one.every_batches is not None and id(one) in of_batches]
        self.every_batches = min(limits, default=None)
        self.ends_quietly = any(callback.ends_quietly for callback in callbacks)
        run.may_report_more = not all(type(one).__module__.startswith("nbbp.callbacks.") for one in callbacks)

    def check(self) -> None:
        """Every callback's `check`."""
        for callback in self.callbacks:
            callback.check(self.run)

    @contextmanager
    def running(self) -> Iterator[None]:
        """`on_train_begin`, what is inside, and however that ends `on_train_end` of whichever had begun."""
        with ExitStack() as ends:
            order: list[Callback] = []
            ends.callback(self._end, order)
            for callback in self.callbacks:
                order.append(callback)
                callback.on_train_begin(self.run)
            yield

    def _end(self, order: list[Callback]) -> None:
        with ExitStack() as ends:  # which calls the last first, and all of them, whatever one raises
            for callback in reversed(order):
                ends.callback(callback.on_train_end, self.run)

    def call(self, hooks: Sequence[Callable[[Run], None]]) -> None:
        """Call these."""
        for hook in hooks:
            hook(self.run)

    def end_epoch(self) -> None:
        """`on_epoch_end` of each, with the additions of those before it in the history."""
        run = self.run
        for hook in self.epoch_end:
            hook(run)
            run.history.amend(run.report)


def _overrides(callback: Callback, name: str) -> bool:
    method = getattr(callback, name)
    return getattr(method, "__func__", method) is not getattr(Callback, name)
