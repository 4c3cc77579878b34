"""The epoch loop: shuffles, feeds chunks to the engine, keeps the history, calls callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nbbp import augmentation
from nbbp.callbacks import LearningRateScheduler, ProgressBar
from nbbp.callbacks.base import Callback, Hooks, Run
from nbbp.cpu.augmentation import prepare
from nbbp.divergence import TrainingDiverged, first_layer_gone
from nbbp.lowering.augmentation import user_function
from nbbp.network import Sequential
from nbbp.scalars.philox import permutation
from nbbp.scheduling import Clock
from nbbp.session import Session, sum_of
from nbbp.sources import Chunk, Source
from nbbp.standardization import measure
from nbbp.validation import LARGEST, first_outside

if TYPE_CHECKING:
    from nbbp.model import Model

#: Rows, steps (whose coefficients lie ready in the cache) and floating-point operations (a second of one core) after
#: which the bar moves and Ctrl-C is heard; batches are never cut.
CHUNK_ROWS = 1 << 16
CHUNK_STEPS = 1 << 14
CHUNK_WORK = 1e11


def check_options(verbose: Any, shuffle: Any) -> None:
    """Refuse what `fit` does not take for these."""
    if not isinstance(verbose, (str, int)) or verbose not in ("auto", 0, 1):
        raise ValueError(f"verbose must be 'auto', 0 or 1; got {verbose!r}")
    if not isinstance(shuffle, (bool, np.bool_)):
        raise TypeError(f"shuffle must be True or False; got {shuffle!r} ({type(shuffle).__name__})")


def checked_augmentation(model: Model, network: Sequential, augment: Any) -> tuple[augmentation.Augmentation, ...]:
    """What `fit` takes as `augment`, for a model that may not be built yet; functions of the user's own are compiled.

    Raises
    ------
    TypeError, ValueError
        If it does not fit the network or the loss, or a function does not compile or leaves its row.
    """
    descriptions = augmentation.checked(augment, network.n_in, network.form.categories, model.loss)
    for number, description in enumerate(descriptions):
        if isinstance(description, augmentation.Custom):
            prepare(user_function(description, number), model.dtype, network.n_in)
    return descriptions


def checked_hooks(
    model: Model, callbacks: list[Callback], shows_bar: bool, epochs: int, source: Source, is_validated: bool
) -> Hooks:
    """What a run of a model, which may not be built yet, calls.

    Raises
    ------
    TypeError, ValueError, ImportError
        If a callback or a schedule refuses the run.
    """
    if shows_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks = [*callbacks, ProgressBar()]
    names = ["loss", *(metric.name for metric in model.metrics)]
    names += [f"val_{name}" for name in names] if is_validated else []
    has_rate = model.optimizer.schedule is not None
    if has_rate or any(isinstance(callback, LearningRateScheduler) for callback in callbacks):
        names.append("learning_rate")
    hooks = Hooks(callbacks, Run(model, epochs, source.n_samples, names))
    Clock(model.optimizer).check(names)
    hooks.check()
    return hooks


def rows_of_a_run(batch: int, n_parameters: int, row_limit: int | None = None) -> int:
    """Rows, in whole batches, that go to the engine at a time."""
    limit = min(CHUNK_ROWS, CHUNK_STEPS * batch, int(CHUNK_WORK / (6 * n_parameters)), row_limit or CHUNK_ROWS)
    return max(batch, limit // batch * batch)


class Training:
    """One call of `fit`.

    Parameters
    ----------
    session : Session
    source : Source
    validation : Source or None
    batch_size : int
    shuffle : bool
    hooks : Hooks
        Of the run, whose history grows by one entry per epoch, so that it holds what was reached if the run is cut
        short; the run goes on behind the epochs that are there.
    augment : tuple of Augmentation
        What is done to the rows of a batch first.
    """

    def __init__(
        self,
        session: Session,
        source: Source,
        validation: Source | None,
        batch_size: int,
        shuffle: bool,
        hooks: Hooks,
        augment: tuple[augmentation.Augmentation, ...] = (),
    ) -> None:
        self.augment = augment
        self.session, self.source, self.validation = session, source, validation
        self.batch_size, self.shuffle = batch_size, shuffle
        self.hooks, self.progress = hooks, hooks.run

    def run(self) -> None:
        """Train up to the last epoch.

        Raises
        ------
        TrainingDiverged
            A loss or, in the end, a parameter was not finite; the last good parameters are back.
        """
        session, hooks, run = self.session, self.hooks, self.progress
        measure(self.source, [session])
        session.begin_fit()
        if not run.history.epochs:
            self._set_no_rate()
        try:
            with hooks.running():
                try:
                    self._train()
                except TrainingDiverged as error:
                    if not hooks.ends_quietly:
                        raise
                    run.has_diverged = True
                    run.stop(str(error))
        finally:
            session.end_fit()
            self._set_no_rate()

    def _set_no_rate(self) -> None:
        """Go by the optimizer's learning rate: another one is of a run."""
        self.session.clock.override, self.session.steps_ahead = None, 0

    def _train(self) -> None:
        """The epochs that are left."""
        session, run = self.session, self.progress
        is_trained = False
        while run.epoch < run.epochs and run.stop_reason is None:
            run.epoch, run.report = run.epoch + 1, {}
            self.hooks.call(self.hooks.epoch_begin)
            if run.stop_reason is not None:
                break
            is_trained = True
            if not self._epoch():
                break
            self._end_epoch()
        # the last update has had no loss to show what it did
        largest = LARGEST[session.dtype.char]
        if is_trained and first_outside(session.parameters[None], -largest, largest) >= 0:
            raise self._diverged(f"a parameter turned infinite or NaN in the last update of epoch {run.epoch}")

    def _end_epoch(self) -> None:
        """Validate, and put the epoch into the history."""
        session, run = self.session, self.progress
        session.steps_ahead = 0  # quick steps must not go on with the rates of an epoch that is over
        if session.clock.schedule is not None or session.clock.override is not None:
            run.report["learning_rate"] = session.clock.rate(session.step)
        if self.validation is not None:
            measured = session.evaluate(self.validation)
            run.report.update({f"val_{name}": value for name, value in measured.items()})
        session.clock.end_epoch(run.report)
        run.history.record(run.epoch, run.report)
        self.hooks.end_epoch()

    def _chunk_rows(self, batch: int) -> int:
        """Rows of a chunk: whole batches."""
        rows = rows_of_a_run(batch, len(self.session.parameters), self.source.row_limit)
        every = self.hooks.every_batches
        return rows if every is None else min(rows, every * batch)

    def _epoch(self) -> bool:
        """Train on everything once; whether nobody stopped it before the end."""
        session, hooks, run, batch = self.session, self.hooks, self.progress, self.batch_size
        order = None
        if self.source.n_samples is not None:
            batch = min(batch, self.source.n_samples)
            if self.shuffle:
                order = permutation(self.source.n_samples, session.seed, session.epoch)
        total, n_samples, n_batches, sums = 0.0, 0, 0, np.zeros(len(session.metrics))
        run.samples = 0
        for chunk in session.chunks(self.source, order, self._chunk_rows(batch), batch):
            n = len(chunk.order)
            if self.source.n_samples is None:
                batch = n
            run.first_batch, run.last_batch = n_batches + 1, n_batches - (-n // batch)
            hooks.call(hooks.batch_begin)
            if run.stop_reason is not None:
                return False
            losses, metrics = session.train_chunk(chunk, batch, self.augment)
            if n_batches == 0:
                session.epoch += 1  # here, so that data which cannot be read change nothing
            total = sum_of(losses, total)
            if not np.isfinite(total):
                row = int(np.argmin(np.isfinite(losses)))
                value = total if np.isfinite(losses[row]) else losses[row]
                where = f"batch {n_batches + row // batch + 1} of epoch {run.epoch}"
                raise self._diverged(f"the loss turned {value} in {where}", chunk, row)
            n_samples, n_batches = n_samples + n, run.last_batch
            sums[:] = [sum_of(values, before) for values, before in zip(metrics, sums, strict=True)]
            if hooks.batch_end:
                run.samples = n_samples
                run.report.update(session.report(total, sums, n_samples))
                hooks.call(hooks.batch_end)
                if run.stop_reason is not None and n_samples != self.source.n_samples:
                    return False
        run.samples = n_samples
        run.report.update(session.report(total, sums, n_samples))
        return True

    def _diverged(self, what: str, chunk: Chunk | None = None, row: int = 0) -> TrainingDiverged:
        """The error to raise: where the numbers went, with the last good parameters back in place."""
        where = first_layer_gone(self.session, chunk, row, bool(self.augment))
        self.session.restore()
        error = TrainingDiverged(
            f"{what}; {where}. The last parameters kept while the loss was finite are back in place and the "
            "optimizer's moments are reset. A smaller learning_rate or scaled inputs usually help"
        )
        error.history = self.progress.history
        return error
