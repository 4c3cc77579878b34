"""Short calls from Python: what makes a single update cost a microsecond or two beside its arithmetic.

A call whose arrays look like those of the call before needs no conversion and no program; what is left to check,
numbers and labels, is checked in the jitted call that makes the update. Whatever else comes takes the long way, which
converts and says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nbbp.cpu.engine import BoundProgram
from nbbp.losses import Loss
from nbbp.sample.functions import SampleFunctions, why_no_training

if TYPE_CHECKING:
    from nbbp.session import Session

__all__ = ["OnlineStep", "QuickStep", "quick_step"]


@dataclass(frozen=True)
class QuickStep:
    """A single training step on arrays of known shapes, ready to be called."""

    bound: BoundProgram
    shape_x: tuple[int, ...]
    shape_y: tuple[int, ...]
    dtype_y: np.dtype
    is_shaped: bool
    arguments: tuple
    more: tuple
    divisor: int


def _range_of_targets(loss: Loss, dtype: np.dtype) -> tuple[np.floating, np.floating] | None:
    """The least and the largest target value; None for a loss that asks for more than a range."""
    if loss.row_wise or loss.name == "hinge":
        return None
    largest = np.finfo(dtype).max
    low = dtype.type(0) if loss.name in ("binary_crossentropy", "poisson") else -largest
    high = dtype.type(1) if loss.name == "binary_crossentropy" else largest
    return low, high


def quick_step(session: Session, x: Any, y: Any) -> QuickStep | None:
    """What a step on batches like this one needs, or None if they must be converted or checked."""
    network, loss = session.network, session.loss
    if not (type(x) is np.ndarray and type(y) is np.ndarray and x.ndim == 2 and x.dtype == session.dtype):
        return None
    if not (x.flags.carray and y.flags.carray and len(x) and x.shape[1] == network.n_in) or session.form.categories:
        return None
    is_column = y.shape == x.shape[:1] and network.n_out == 1
    labels = y.shape == x.shape[:1] and y.dtype == np.int64 and loss.row_wise
    values = y.dtype == session.dtype and (y.shape == (len(x), network.n_out) or is_column)
    limits = _range_of_targets(loss, session.dtype)
    if not labels and not (values and limits is not None):
        return None
    bound = session.training(len(x), labels, False)
    if bound.n_threads() > 1 or session.watchers:
        return None
    losses = np.empty(len(x))
    for name, array in (("sample weight", None), ("order", None), ("loss values", losses)):
        bound.attach(name, array)
    (gather,), (loss_row,) = bound.program.find("gather"), bound.program.loss_rows()
    largest = np.finfo(session.dtype).max
    table = bound.table, bound.tiles, bound.phases, len(x), bound.scratch.ctypes.data, gather, loss_row
    return QuickStep(
        bound=bound,
        shape_x=x.shape,
        shape_y=y.shape,
        dtype_y=y.dtype,
        is_shaped=labels or not is_column or y.ndim == 2,
        arguments=table,
        more=(
            losses,
            network.n_out,
            bound.cells(set(session.coefficients.settings)),
            largest,
            *(limits or (-largest, largest)),
        ),
        divisor=len(x) if loss.reduction == "mean" else 1,
    )


class OnlineStep:
    """Updates on one sample at a time, by the sample engine.

    Parameters
    ----------
    session : Session
        Whose parameters, slots and count of steps the updates go on with.
    limits : (float, float) or None
        The least and the largest target value, where the loss takes values.
    """

    def __init__(self, session: Session, limits: tuple[float, float] | None) -> None:
        self.session, self.dtype = session, session.dtype
        self.shape_x, self.shape_y = (session.network.n_in,), (session.network.n_out,)
        self.takes_labels, self.n_out = limits is None, session.n_out
        functions = SampleFunctions(session.network, session.loss, session.optimizer, session.dtype, session.state)
        self.train_step = functions.checked_train_step(*(limits or (0.0, 0.0)))

    @classmethod
    def of(cls, session: Session) -> OnlineStep | Literal[False]:
        """One for this model, or False where the sample engine has none for it."""
        limits = _range_of_targets(session.loss, session.dtype)
        fits = session.loss.row_wise or limits is not None
        # the statistics of a Standardize would be compiled in, for one model alone
        fits = fits and session.takes_quick_steps and session.precision == "float32" and not session.network.states
        if not fits or session.optimizer.rule == "adafactor" or SampleFunctions.why_not(session.network) is not None:
            return False
        if why_no_training(session.network, session.optimizer) is not None:
            return False
        return cls(session, limits and (float(limits[0]), float(limits[1])))

    def learn(self, x: Any, y: Any) -> float | None:
        """The loss of a sample before the update; None where it must be converted or is not what it should be."""
        if type(x) is not np.ndarray or x.dtype != self.dtype or x.shape != self.shape_x or not x.flags.carray:
            return None
        if self.takes_labels:
            if type(y) is not int:
                if type(y) is not np.int64:
                    return None
                y = int(y)
            if not 0 <= y < self.n_out:
                return None
        elif type(y) is not np.ndarray or y.dtype != self.dtype or y.shape != self.shape_y or not y.flags.carray:
            return None
        session = self.session
        with session.lock:
            is_fine, loss = self.train_step(session.parameters, session.slot_buffer, session.step + 1, x, y)
            if not is_fine:
                return None
            session.step += 1
            session.steps_ahead = 0
        return loss
