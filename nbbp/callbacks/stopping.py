"""Callbacks that end a run: when nothing becomes better, and when the loss is no number any more."""

from __future__ import annotations

import warnings

from nbbp.callbacks.base import Callback, Run
from nbbp.callbacks.watching import Watching
from nbbp.layers import positive_integer
from nbbp.snapshot import Snapshot

__all__ = ["EarlyStopping", "TerminateOnNaN"]


class EarlyStopping(Watching):
    """End the run when a quantity has not become better for a while, and go back to when it was best.

    Parameters
    ----------
    monitor : str
        A name of the report, or "auto": "val_loss" where there is validation, else "loss".
    patience : int
        Epochs in a row without a new best after which the run ends, at least 1.
    min_delta : float
        How much better a new best must be, at least 0.
    mode : {"auto", "min", "max"}
        What is better; "auto": "max" for accuracies and their like, "min" for everything else.
    restore_best : bool
        Whether the end of the run, whatever ends it, puts back parameters, layers' states and the optimizer's state
        as they were after the best epoch. They are kept in memory. A run that is resumed has them only from where it
        was resumed on: if the best epoch was before, the model stays as it is, and a warning says so. (Resume from the
        file of a ``ModelCheckpoint(…, save_best_only=True)``, which begins at the best.)
    start_from : int
        Epochs at the beginning that are not watched, at least 0.

    Attributes
    ----------
    best : float or None
        The best value of the last run.
    best_epoch, stopped_epoch : int
        When it was reached and when the run was stopped; 0 if neither happened.

    Warns
    -----
    RuntimeWarning
        The best epoch was before the run was resumed.
    """

    def __init__(
        self,
        monitor: str = "auto",
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
        start_from: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = positive_integer("patience of EarlyStopping", patience)
        if type(start_from) is not int or start_from != 0:
            start_from = positive_integer("start_from of EarlyStopping", start_from)
        if not isinstance(restore_best, bool):
            raise TypeError(f"restore_best of EarlyStopping must be True or False; got {restore_best!r}")
        self.start_from, self.restore_best = start_from, restore_best
        self.stopped_epoch = 0
        self._waited = self._resumed_after = 0
        self._snapshot: Snapshot | None = None

    def on_train_begin(self, run: Run) -> None:
        self.stopped_epoch = self._waited = 0
        self.begin(run)
        self._resumed_after = run.history.epochs[-1] if run.history.epochs else 0
        # memory for it is taken before the first step
        self._snapshot = Snapshot(run.model._built) if self.restore_best else None
        if self._snapshot is not None and 0 < self.best_epoch == self._resumed_after:
            self._snapshot.take()
        self._stop_if_due(run)

    def observe(self, epoch: int, value: float) -> bool:
        if epoch <= self.start_from:
            return False
        is_better = super().observe(epoch, value)
        self._waited = 0 if is_better else self._waited + 1
        return is_better

    def on_epoch_end(self, run: Run) -> None:
        session = run.model._built
        # parameters that the last update broke had no loss yet to show it
        is_better = self.observe(run.epoch, self.value(run))
        if is_better and self._snapshot is not None and session.network.first_not_finite(session.parameters) is None:
            self._snapshot.take()
        self._stop_if_due(run)

    def _stop_if_due(self, run: Run) -> None:
        if self._waited >= self.patience:
            self.stopped_epoch = run.epoch
            run.stop(f"{self.name(run)} has not become better for {self._waited} epochs")

    def on_train_end(self, run: Run) -> None:
        was_kept = self._snapshot is None or self._snapshot.put_back()
        if not was_kept and 0 < self.best_epoch < self._resumed_after:
            warnings.warn(
                f"EarlyStopping cannot go back to epoch {self.best_epoch}, the best: the run was resumed behind it. "
                "The model stays as it is; a ModelCheckpoint with save_best_only=True would have kept that epoch",
                RuntimeWarning,
                stacklevel=2,
            )
        self._snapshot = None


class TerminateOnNaN(Callback):
    """A loss that turns NaN or infinite ends the run quietly, where `fit` raises `nbbp.TrainingDiverged` without this.

    `model.history` holds the epochs before, and the model the last good parameters.

    Attributes
    ----------
    reason : str or None
        What turned NaN and where, if the last run ended for it.
    """

    ends_quietly = True

    def __init__(self) -> None:
        self.reason: str | None = None

    def on_train_begin(self, run: Run) -> None:
        self.reason = None

    def on_train_end(self, run: Run) -> None:
        if run.has_diverged:
            self.reason = run.stop_reason
