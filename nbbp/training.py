"""The epoch loop: shuffles, feeds chunks to the engine, keeps the history, shows a bar."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from nbbp.divergence import TrainingDiverged, first_layer_gone
from nbbp.history import History
from nbbp.scalars.philox import permutation
from nbbp.session import Session
from nbbp.sources import Chunk, Source

#: Rows after which the bar moves and Ctrl-C is heard; batches are never cut.
CHUNK_ROWS = 1 << 16


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
        self.shuffle, self.shows_bar = shuffle, shows_bar
        self.history = History()

    def run(self, epochs: int) -> None:
        """Train for `epochs` epochs.

        Raises
        ------
        TrainingDiverged
            A loss was not finite; the last good parameters are back.
        """
        self.session.begin_fit()
        try:
            for epoch in range(1, epochs + 1):
                with self._bar(epoch, epochs) as bar:
                    report = self._epoch(bar)
                    if self.validation is not None:
                        measured = self.session.evaluate(self.validation)
                        report |= {f"val_{name}": value for name, value in measured.items()}
                    bar.set_postfix(_short(report))
                self.history.record(epoch, report)
        except TrainingDiverged as error:
            error.history = self.history
            raise

    def _bar(self, epoch: int, epochs: int) -> tqdm:
        return tqdm(
            total=self.source.n_samples,
            desc=f"epoch {epoch}/{epochs}",
            unit="sample",
            unit_scale=True,
            disable=not self.shows_bar,
        )

    def _epoch(self, bar: tqdm) -> dict[str, float]:
        session, batch = self.session, self.batch_size
        order = None
        if self.source.n_samples is not None:
            batch = min(batch, self.source.n_samples)
            if self.shuffle:
                order = permutation(self.source.n_samples, session.seed, session.epoch)
        session.epoch += 1
        limit = min(CHUNK_ROWS, self.source.row_limit or CHUNK_ROWS)
        rows = max(batch, limit // batch * batch)
        total, n_samples, sums = 0.0, 0, np.zeros(len(session.metrics))
        for chunk in self.source.chunks(order, rows):
            n = len(chunk.order)
            losses, metrics = session.train_chunk(chunk, n if self.source.n_samples is None else batch)
            chunk_total = float(losses.sum())
            if not np.isfinite(chunk_total):
                self._stop(chunk, losses, batch, n_samples)
            total, n_samples = total + chunk_total, n_samples + n
            sums += [values.sum() for values in metrics]
            if self.shows_bar:
                bar.set_postfix(_short(session.report(total, sums, n_samples)), refresh=False)
                bar.update(n)
        return session.report(total, sums, n_samples)

    def _stop(self, chunk: Chunk, losses: np.ndarray, batch: int, before: int) -> None:
        """Put the last good parameters back and say where the numbers went."""
        row = int(np.argmin(np.isfinite(losses)))
        where = first_layer_gone(self.session, chunk, row)
        self.session.restore()
        step = (before + row) // batch + 1
        raise TrainingDiverged(
            f"the loss turned {losses[row]} in batch {step} of epoch {self.session.epoch}; {where}. "
            "The last parameters with a finite loss are back in place and the optimizer's moments are reset. "
            "A smaller learning_rate or scaled inputs usually help"
        )


def _short(report: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in report.items()}
