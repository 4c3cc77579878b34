"""Going on with a run of `fit` from a file that was saved in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nbbp.description import to_data
from nbbp.network import Sequential
from nbbp.persistence import describe_parts, read

if TYPE_CHECKING:
    from nbbp.callbacks import Run
    from nbbp.model import Model

__all__ = ["Resumption"]

#: What may differ between a file and the model that goes on from it: where they stand, and what is only looked at.
_OF_THE_RUN = ("metrics", "step", "epoch", "clock", "history", "loss_scale")
_MOST_SHOWN = 3


class Resumption:
    """A file that a run of `fit` goes on from.

    Parameters
    ----------
    path : str or os.PathLike

    Attributes
    ----------
    n_in : int
        Of its network.
    n_epochs : int
        How many epochs of the run were over when it was saved.
    parameters : ndarray (n_parameters,)

    Raises
    ------
    ValueError, OSError
        As `nbbp.load_model`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._saved = read(path)
        self.n_in, self.parameters = self._saved.description.network.n_in, self._saved.parameters
        self.n_epochs = self._saved.history.epochs[-1] if self._saved.history.epochs else 0

    def check_same(self, model: Model, network: Sequential) -> None:
        """Refuse a model, which may not be built yet, with another network, loss, optimizer, dtype or seed.

        Parameters
        ----------
        model : Model
        network : Sequential
            Its network, with sizes.

        Raises
        ------
        TypeError
            If the model has a part that no file can hold.
        ValueError
            Says what differs.
        """
        of_file, of_model = to_data(self._saved.description), to_data(describe_parts(model, network))
        found: list[str] = []
        for key in of_model:
            if key not in _OF_THE_RUN:
                found += _differences(of_file[key], of_model[key], key)
        if found:
            shown = "; ".join(found[:_MOST_SHOWN])
            more = f"; and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
            raise ValueError(f"resume_from is a file of another model, with which this one cannot go on: {shown}{more}")

    def resume(self, run: Run) -> None:
        """Put a run's model, which is built, and its history to where the file stands."""
        session = run.model._built
        self._saved.put_into(session)
        session.clock.override = self._saved.description.progress.learning_rate
        run.history, run.epoch = self._saved.history, self.n_epochs


def _differences(of_file: Any, of_model: Any, place: str) -> Iterator[str]:
    """Where two pieces of data differ, with both values."""
    if isinstance(of_file, dict) and isinstance(of_model, dict) and set(of_file) == set(of_model):
        for key in of_model:
            yield from _differences(of_file[key], of_model[key], f"{place}.{key}")
    elif isinstance(of_file, list) and isinstance(of_model, list) and len(of_file) == len(of_model):
        for number, (one, other) in enumerate(zip(of_file, of_model, strict=True)):
            yield from _differences(one, other, f"{place}.{number}")
    elif of_file != of_model:
        yield f"{place} is {_short(of_file)} in the file and {_short(of_model)} in this model"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
