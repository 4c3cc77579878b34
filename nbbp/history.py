"""What a run of training leaves behind: the loss and every metric, epoch by epoch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: In a file, beyond what float64 counts exactly.
_LARGEST_EPOCH = 1 << 48


class History(Mapping):
    """Loss and metrics of each epoch; a mapping from a name to a list of floats, one per epoch.

    Attributes
    ----------
    epochs : list of int
        Numbers of the epochs that ended, counted from 1.

    Examples
    --------
    >>> history = model.fit(X, y, epochs=2, validation_data=(Xv, yv))     # doctest: +SKIP
    >>> history["loss"], history["val_accuracy"]                          # doctest: +SKIP
    ([1.92, 0.71], [0.83, 0.91])
    """

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self._values: dict[str, list[float]] = {}

    def record(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the values of an epoch that ended.

        A name without a value in some epoch has NaN there, so that every list is as long as `epochs`.
        """
        self._check(epoch, values)
        n = len(self.epochs)
        try:
            for name in values:
                self._values.setdefault(name, [math.nan] * n)
            for name, series in self._values.items():
                series.append(float(values.get(name, math.nan)))
            self.epochs.append(int(epoch))
        except BaseException:  # Ctrl-C is heard anywhere: an epoch is there as a whole or not at all
            for series in (self.epochs, *self._values.values()):
                del series[n:]
            raise

    def amend(self, values: Mapping[str, float]) -> None:
        """Add or replace values of the last epoch.

        Raises
        ------
        TypeError
            If one is no number, or a name no string.
        """
        self._check(self.epochs[-1], values)
        for name, value in values.items():
            if name not in self._values:
                self._values[name] = [math.nan] * len(self.epochs)
            self._values[name][-1] = float(value)

    @staticmethod
    def _check(epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not isinstance(name, str):
                raise TypeError(f"a name in the report of epoch {epoch} must be a string; got {name!r}")
            if not isinstance(value, numbers.Real):
                raise TypeError(f"{name!r} of epoch {epoch} must be a number; got {value!r}")

    def to_array(self) -> np.ndarray:
        """The epochs' numbers and, behind them, the values of each name: (1 + names, epochs)."""
        return np.array([self.epochs, *self._values.values()], np.float64)

    @classmethod
    def of_array(cls, names: Sequence[str], array: np.ndarray) -> History:
        """The history of what `to_array` gave.

        Raises
        ------
        ValueError
            If the numbers of the epochs are none.
        """
        history = cls()
        epochs = array[0]
        are_counts = np.isfinite(epochs).all() and (epochs == np.floor(epochs)).all() and (np.diff(epochs) > 0).all()
        if len(epochs) and not (are_counts and epochs[0] >= 1 and epochs[-1] < _LARGEST_EPOCH):
            raise ValueError("the epochs of the history must be integers from 1 on that rise")
        history.epochs = [int(epoch) for epoch in epochs]
        history._values = {name: row.tolist() for name, row in zip(names, array[1:], strict=True)}
        return history

    def __getitem__(self, name: str) -> list[float]:
        try:
            return self._values[name]
        except KeyError:
            recorded = ", ".join(map(repr, self._values)) or "nothing yet"
            raise KeyError(f"no {name!r} in this history; recorded: {recorded}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs)"
        last = ", ".join(f"{name}={series[-1]:.4g}" for name, series in self._values.items())
        count = "1 epoch" if len(self.epochs) == 1 else f"{len(self.epochs)} epochs"
        return f"History({count}; last: {last})"

    def plot(self, path: Any = None) -> Figure:
        """Draw every curve, training and validation together; one panel per quantity.

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
        ValueError
            No epoch has ended yet.
        """
        from nbbp import plotting

        return plotting.plot_history(self, path)
