"""When a loss is no longer a number: the error, and which layer's numbers went first."""

from __future__ import annotations

import numpy as np

from nbbp.history import History
from nbbp.layers import Activation
from nbbp.session import Session
from nbbp.sources import Chunk

__all__ = ["TrainingDiverged"]


class TrainingDiverged(FloatingPointError):
    """The loss turned NaN or infinite during `fit`; the model holds the last good parameters.

    The optimizer begins anew: its moments are zero, and so is its count of steps, which schedules by updates and the
    masks of dropout go by.

    Attributes
    ----------
    history : History or None
        The epochs that ended before.
    """

    history: History | None = None


def first_layer_gone(session: Session, chunk: Chunk | None, row: int, is_augmented: bool = False) -> str:
    """Which layer's numbers went first, from the parameters as the run left them and one row of its data.

    `is_augmented` says whether the run changed that row before it trained on it.
    """
    for parameter in session.network.parameters:
        values = parameter.view(session.parameters)
        if not np.isfinite(values).all():
            bad = "NaN" if np.isnan(values).any() else "infinity"
            return f"the first numbers to go were in layer {parameter.layer}: {parameter.name} holds {bad}"
    sample = chunk.X[int(chunk.order[row])]
    if not isinstance(sample, np.ndarray):  # it lies on a GPU
        sample = sample.copy_to_host()
    outputs = _layer_outputs(session, sample[None])
    for path, values in outputs.items():
        if not np.isfinite(values).all():
            return f"the first numbers to go were the outputs of layer {path}"
    if is_augmented:
        return "the layers' outputs are finite for the sample as it was given: look at what augmentation makes of it"
    return "the layers' outputs are finite, the loss of them is not"


def _layer_outputs(session: Session, x: np.ndarray) -> dict[str, np.ndarray]:
    """What every outermost layer that is no activation gives in prediction for one sample x (1, n_in), by path."""
    bound = session.bind(session.prediction(1, keeps_outputs=True))
    out = np.empty((1, session.network.n_out), session.dtype)
    for name, array in (("X", x), ("order", None), ("output", out)):
        bound.attach(name, array)
    bound.run(1)
    return {
        node.path: bound.buffer(bound.program.outputs[node.path].buffer)[: node.n_out].copy()
        for node in session.network.nodes
        if not isinstance(node.layer, Activation)
    }
