"""When a loss is no longer a number: the error, and which layer's numbers went first."""

from __future__ import annotations

import numpy as np

from nbbp.history import History
from nbbp.session import Session
from nbbp.sources import Chunk

__all__ = ["TrainingDiverged"]


class TrainingDiverged(FloatingPointError):
    """The loss turned NaN or infinite during `fit`; the model holds the last good parameters.

    Attributes
    ----------
    history : History or None
        The epochs that ended before.
    """

    history: History | None = None


def first_layer_gone(session: Session, chunk: Chunk | None, row: int) -> str:
    """Which layer's numbers went first, from the parameters as the run left them and one row of its data."""
    for parameter in session.network.parameters:
        values = parameter.view(session.parameters)
        if not np.isfinite(values).all():
            bad = "NaN" if np.isnan(values).any() else "infinity"
            return f"the first numbers to go were in layer {parameter.layer}: {parameter.name} holds {bad}"
    outputs = session.layer_outputs(chunk.X[chunk.order[row]][None])
    for path, values in outputs.items():
        if not np.isfinite(values).all():
            return f"the first numbers to go were the outputs of layer {path}"
    return "the layers' outputs are finite, the loss of them is not"
