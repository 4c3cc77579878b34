"""The epoch loop: shuffles, feeds chunks to the engine, keeps the history, shows a bar."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from nbbp.divergence import TrainingDiverged, first_layer_gone
from nbbp.history import History
from nbbp.scalars.philox import permutation
from nbbp.session import Session, sum_of
from nbbp.sources import Chunk, Source
from nbbp.validation import LARGEST, first_outside

#: Rows, steps (whose coefficients lie ready in the cache) and floating-point operations (a second of one core) after
#: which the bar moves and Ctrl-C is heard; batches are never cut.
CHUNK_ROWS = 1 << 16
CHUNK_STEPS = 1 << 14
CHUNK_WORK = 1e11


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
    shows_bar : bool

    Attributes
    ----------
    history : History
        Grows by one entry per epoch, so that it holds what was reached if the run is cut short.
    """

    def __init__(
        self,
        session: Session,
        source: Source,
        validation: Source | None,
        batch_size: int,
        shuffle: bool,
        shows_bar: bool,
    ) -> None:
        self.session, self.source, self.validation = session, source, validation
        self.batch_size = batch_size
        # (A process without a console has no stderr.)
        self.shuffle, self.shows_bar = shuffle, shows_bar and sys.stderr is not None
        self.history = History()

    def run(self, epochs: int) -> None:
        """Train for `epochs` epochs.

        Raises
        ------
        TrainingDiverged
            A loss or, in the end, a parameter was not finite; the last good parameters are back.
        """
        session = self.session
        names = ["loss", *(metric.name for metric in session.metrics)]
        session.clock.check(names if self.validation is None else [*names, *(f"val_{name}" for name in names)])
        session.begin_fit()
        for epoch in range(1, epochs + 1):
            with self._bar(epoch, epochs) as bar:
                report = self._epoch(epoch, bar)
                session.steps_ahead = 0  # quick steps must not go on with the rates of an epoch that is over
                if session.clock.schedule is not None:
                    report["learning_rate"] = session.clock.rate(session.step)
                if self.validation is not None:
                    measured = session.evaluate(self.validation)
                    report |= {f"val_{name}": value for name, value in measured.items()}
                session.clock.end_epoch(session.epoch, report)
                if bar is not None:
                    bar.set_postfix(_short(report))
            self.history.record(epoch, report)
        # the last update has had no loss to show what it did
        largest = LARGEST[session.dtype.char]
        if first_outside(session.parameters[None], -largest, largest) >= 0:
            raise self._diverged(f"a parameter turned infinite or NaN in the last update of epoch {epochs}")

    def _bar(self, epoch: int, epochs: int) -> AbstractContextManager:
        """A progress bar, or None where none is wanted."""
        if not self.shows_bar:
            return nullcontext()
        from tqdm import tqdm

        return tqdm(total=self.source.n_samples, desc=f"epoch {epoch}/{epochs}", unit="sample", unit_scale=True)

    def _epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        session, batch = self.session, self.batch_size
        order = None
        if self.source.n_samples is not None:
            batch = min(batch, self.source.n_samples)
            if self.shuffle:
                order = permutation(self.source.n_samples, session.seed, session.epoch)
        rows = rows_of_a_run(batch, len(session.parameters), self.source.row_limit)
        total, n_samples, n_batches, sums = 0.0, 0, 0, np.zeros(len(session.metrics))
        for chunk in self.source.chunks(order, rows):
            n = len(chunk.order)
            if self.source.n_samples is None:
                batch = n
            losses, metrics = session.train_chunk(chunk, batch)
            if n_batches == 0:
                session.epoch += 1  # here, so that data which cannot be read change nothing
            chunk_total = sum_of(losses)
            if not np.isfinite(chunk_total):
                row = int(np.argmin(np.isfinite(losses)))
                value = chunk_total if np.isfinite(losses[row]) else losses[row]
                where = f"batch {n_batches + row // batch + 1} of epoch {epoch}"
                raise self._diverged(f"the loss turned {value} in {where}", chunk, row)
            total, n_samples, n_batches = total + chunk_total, n_samples + n, n_batches - (-n // batch)
            sums += [sum_of(values) for values in metrics]
            if bar is not None:
                bar.set_postfix(_short(session.report(total, sums, n_samples)), refresh=False)
                bar.update(n)
        return session.report(total, sums, n_samples)

    def _diverged(self, what: str, chunk: Chunk | None = None, row: int = 0) -> TrainingDiverged:
        """The error to raise: where the numbers went, with the last good parameters back in place."""
        where = first_layer_gone(self.session, chunk, row)
        self.session.restore()
        error = TrainingDiverged(
            f"{what}; {where}. The last parameters kept while the loss was finite are back in place and the "
            "optimizer's moments are reset. A smaller learning_rate or scaled inputs usually help"
        )
        error.history = self.history
        return error


def _short(report: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in report.items()}
