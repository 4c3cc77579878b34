"""A callback that saves the model after its epochs."""

from __future__ import annotations

import os
import string
from pathlib import Path

from nbbp.callbacks.base import Run
from nbbp.callbacks.watching import Watching
from nbbp.layers import positive_integer

__all__ = ["ModelCheckpoint"]


class ModelCheckpoint(Watching):
    """Save the model after an epoch, for `nbbp.load_model` and for ``fit(…, resume_from=path)``.

    Parameters
    ----------
    path : str or os.PathLike
        Such as "run.safetensors", where each file replaces the one before, or "run-{epoch:03d}-{val_loss:.3f}", with
        the epoch and any name of the report. Folders on the way are made.
    monitor, mode
        What `save_best_only` watches; as in `EarlyStopping`.
    save_best_only : bool
        Whether only an epoch that is better than all before is saved.
    every : int
        After how many epochs; others are not looked at.

    Attributes
    ----------
    best, best_epoch
        As in `EarlyStopping`.

    Raises
    ------
    TypeError, ValueError
        For a wrong setting; by `fit` before it trains, for a path with a name that it does not report, and for a model
        that no file can hold. Then also OSError where a file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        monitor: str = "auto",
        mode: str = "auto",
        save_best_only: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__(monitor, mode)
        self.path = os.fsdecode(path)
        self.every = positive_integer("every of ModelCheckpoint", every)
        if not isinstance(save_best_only, bool):
            raise TypeError(f"save_best_only of ModelCheckpoint must be True or False; got {save_best_only!r}")
        self.save_best_only = save_best_only
        self._names = [name for _, name, _, _ in string.Formatter().parse(self.path) if name is not None]
        for name in self._names:
            if not name.isidentifier():  # neither attributes nor places within
                raise ValueError(f"path of ModelCheckpoint may hold names such as {{epoch}}; got {{{name}}}")

    def check(self, run: Run) -> None:
        if self.save_best_only:
            super().check(run)
        for name in self._names:
            if name not in ("epoch", *run.names) and not run.may_report_more:
                raise self._no_such_name(name, run.names)
        try:
            self.path.format(**dict.fromkeys(self._names, 0.5) | {"epoch": 1})
        except (ValueError, LookupError) as error:
            raise ValueError(
                f"path of ModelCheckpoint is {self.path!r}, which cannot be filled in: {error}; expected formats as in "
                "{epoch:03d} and {val_loss:.3f}"
            ) from None

    def _no_such_name(self, name: str, names: object) -> ValueError:
        there = ", ".join(("epoch", *names))
        return ValueError(
            f"path of ModelCheckpoint holds {{{name}}}, which this fit does not report; there are: {there}"
        )

    def on_train_begin(self, run: Run) -> None:
        from nbbp.description import to_text
        from nbbp.persistence import describe

        to_text(describe(run.model))  # refuses what cannot be saved before hours have gone into it
        self.begin(run)

    def observe(self, epoch: int, value: float) -> bool:
        return epoch % self.every == 0 and super().observe(epoch, value)

    def on_epoch_end(self, run: Run) -> None:
        session = run.model._built
        if run.epoch % self.every != 0 or session.network.first_not_finite(session.parameters) is not None:
            return  # what the last update broke is no model to keep; the run is about to end for it
        if self.save_best_only and not self.observe(run.epoch, self.value(run)):
            return
        known = {**run.report, "epoch": run.epoch}
        for name in self._names:
            if name not in known:
                raise self._no_such_name(name, run.report)
        path = Path(self.path.format(**known))
        path.parent.mkdir(parents=True, exist_ok=True)
        run.model.save(path)
