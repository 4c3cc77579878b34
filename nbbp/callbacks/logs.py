"""Callbacks that show and write down what a run reports: a bar, a table in a file, TensorBoard."""

from __future__ import annotations

import csv
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from nbbp.callbacks.base import Callback, Run

__all__ = ["CSVLogger", "ProgressBar", "TensorBoard"]


class CSVLogger(Callback):
    """A row for every epoch in a file of comma-separated values: the epoch and everything in its report.

    Each row is in the file when its epoch ends, with all digits of its numbers.

    Parameters
    ----------
    path : str or os.PathLike
    append : bool
        Go on with a file that exists, where False replaces it. Of a run that is resumed, rows of epochs behind the one
        that it was saved after, which are trained again, are taken out, and rows that are missing before it are those
        of its history.

    Raises
    ------
    ValueError
        By `fit`: a name in a report that the header, which the first epoch writes, does not have; before it trains, a
        file to go on with that is none of these.
    OSError
        By `fit`, before it trains: the file cannot be written there.
    """

    def __init__(self, path: str | os.PathLike, append: bool = False) -> None:
        self.path = os.fsdecode(path)
        if not isinstance(append, bool):
            raise TypeError(f"append of CSVLogger must be True or False; got {append!r}")
        self.append = append
        self._file: Any = None
        self._columns: list[str] | None = None

    def check(self, run: Run) -> None:
        if self.append:
            self._rows_before()
        folder = os.path.dirname(self.path) or os.curdir
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"path of CSVLogger is {self.path!r}, but there is no folder {folder!r}")
        if os.path.isdir(self.path):
            raise IsADirectoryError(f"path of CSVLogger is {self.path!r}, which is a folder; expected that of a file")

    def on_train_begin(self, run: Run) -> None:
        rows, is_cut = self._rows_before() if self.append else ([], False)
        self._columns = rows[0] if rows else None
        is_resumed = self._columns is not None and bool(run.history.epochs)
        if is_resumed:
            last = run.history.epochs[-1]
            while len(rows) > 1:
                epoch, *values = rows[-1]
                if not is_cut and len(values) == len(rows[0]) - 1 and epoch.isdecimal() and int(epoch) <= last:
                    break
                rows.pop()  # trained again; or cut short, where the process was killed while it wrote
                is_cut = False
            # killed after the file was saved that the run goes on from, and before the row was written
            there = int(rows[-1][0]) if len(rows) > 1 else 0
            for number, epoch in enumerate(run.history.epochs):
                if epoch > there:
                    of_epoch = {name: series[number] for name, series in run.history.items()}
                    rows.append(self._row(epoch, of_epoch))
        elif is_cut and len(rows[-1]) < len(rows[0]):
            rows.pop()
        is_rewritten = is_resumed or is_cut or not rows
        self._file = open(self.path, "w" if is_rewritten else "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._write(rows if is_rewritten else [])

    def _rows_before(self) -> tuple[list[list[str]], bool]:
        """The rows of the file, if there is one, and whether the last was cut short."""
        if not os.path.exists(self.path):
            return [], False
        with open(self.path, newline="", encoding="utf-8") as file:
            lines = file.readlines()
        is_cut = bool(lines) and not lines[-1].endswith("\n")
        rows = [row for row in csv.reader(lines) if row]
        if rows and rows[0][0] != "epoch":
            raise ValueError(f"{self.path} is no file of CSVLogger; expected a header that begins with 'epoch'")
        return ([], False) if is_cut and len(rows) == 1 else (rows, is_cut)

    def on_epoch_end(self, run: Run) -> None:
        if self._columns is None:
            self._columns = ["epoch", *run.report]
            self._write([self._columns])
        new = [name for name in run.report if name not in self._columns]
        if new:
            header = ", ".join(self._columns)
            raise ValueError(f"the report of epoch {run.epoch} has {new[0]!r}; the header of {self.path} has {header}")
        self._write([self._row(run.epoch, run.report)])

    def _row(self, epoch: int, report: Mapping[str, float]) -> list[str]:
        values = [report.get(name) for name in self._columns[1:]]
        return [str(epoch), *("" if value is None else repr(float(value)) for value in values)]

    def _write(self, rows: Iterable[list]) -> None:
        csv.writer(self._file).writerows(rows)
        self._file.flush()

    def on_train_end(self, run: Run) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


class TensorBoard(Callback):
    """Everything in the reports as curves for TensorBoard, a point for every epoch.

    Written by ``torch.utils.tensorboard``, ``tensorboardX`` or ``tensorflow``, whichever there is first.

    Parameters
    ----------
    folder : str or os.PathLike
        Such as "runs/adam": TensorBoard shows the folders within one beside each other.

    Raises
    ------
    ImportError
        By `fit`, before it trains: there is none of the three.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = os.fsdecode(folder)
        self._writer: Any = None

    def check(self, run: Run) -> None:
        _writer_class()

    def on_train_begin(self, run: Run) -> None:
        self._writer = _writer_class()(self.folder)

    def on_epoch_end(self, run: Run) -> None:
        for name, value in run.report.items():
            self._writer.add_scalar(name, float(value), run.epoch)
        self._writer.flush()

    def on_train_end(self, run: Run) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class _OfTensorFlow:
    """A writer with the methods of the other two's."""

    def __init__(self, folder: str) -> None:
        self._summary = importlib.import_module("tensorflow").summary
        self._writer = self._summary.create_file_writer(folder)
        self.flush, self.close = self._writer.flush, self._writer.close

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one point."""
        with self._writer.as_default():
            self._summary.scalar(name, value, step=step)


def _writer_class() -> Any:
    """What writes for TensorBoard; by their names, because none of them is asked for on installation."""
    for name in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            return importlib.import_module(name).SummaryWriter
        except ImportError:
            continue
    try:
        importlib.import_module("tensorflow")
    except ImportError:
        hint = "pip install tensorboardX, or tensorboard beside torch"
        message = f"TensorBoard needs torch.utils.tensorboard, tensorboardX or tensorflow: {hint}"
        raise ImportError(message) from None
    return _OfTensorFlow


class ProgressBar(Callback):
    """A bar on stderr for every epoch, with loss and metrics: what ``fit(verbose=1)`` shows."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_epoch_begin(self, run: Run) -> None:
        if sys.stderr is None:  # as in a process without a console
            return
        from tqdm import tqdm

        name = f"epoch {run.epoch}/{run.epochs}"
        self._bar = tqdm(total=run.n_samples, desc=name, unit="sample", unit_scale=True)

    def on_batch_end(self, run: Run) -> None:
        if self._bar is not None:
            self._bar.set_postfix(_short(run.report), refresh=False)
            self._bar.update(run.samples - self._bar.n)

    def on_epoch_end(self, run: Run) -> None:
        if self._bar is not None:
            self._bar.set_postfix(_short(run.report))
        self._close()

    def on_train_end(self, run: Run) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def _short(report: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in report.items()}
