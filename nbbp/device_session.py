"""DeviceSession: the memory of one model on a GPU, and its programs bound there.

What callers see stays on the host: `parameters`, `state` and the optimizer's slots are host arrays, of which the GPU
has a copy that programs run on. They are brought into step at these points, and no others:

- to the GPU, before anything runs there: what has been written on the host since they were last the same;
- to the host, whenever the session (or the model, for its `parameters`, `parameter_vector` and `state`) is asked for
  them, and at the end of `fit`.

So a view that was taken before a `train_step` shows that step's numbers as soon as the model is asked for any of them;
to write into it before would lose numbers, and the next call refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nbbp import tiling
from nbbp.cuda import memory
from nbbp.cuda.engine import BoundProgram
from nbbp.lowering.parameters import LOSS_SCALE
from nbbp.program import Program
from nbbp.session import Session
from nbbp.sources import Chunk, Source
from nbbp.standardization import check_known

__all__ = ["DeviceSession"]

#: Rows that go forward at a time, and rows of data that go to the GPU with them where not all are to.
_FORWARD_BATCH = 4096
_FORWARD_ROWS = 1 << 18


def _mirrored(name: str) -> property:
    """An array of the session's that the GPU has a copy of; None while there is none."""

    def get(session: DeviceSession) -> np.ndarray | None:
        return session.memory.host(name) if name in session.memory.buffers else None

    def set_to(session: DeviceSession, host: np.ndarray | None) -> None:
        if host is not None:
            session.memory.add(name, host)

    return property(get, set_to)


class DeviceSession(Session):
    """A session on a GPU; parameters and attributes as `Session`, and

    Attributes
    ----------
    memory : nbbp.cuda.memory.Memory
    """

    plan = tiling.WHOLE
    forward_batch = _FORWARD_BATCH
    takes_quick_steps = False

    parameters = _mirrored("parameters")
    state = _mirrored("state")
    good_parameters = _mirrored("good parameters")
    loss_scale = _mirrored(LOSS_SCALE)

    def __init__(self, *parts: Any) -> None:
        self.memory = memory.Memory()
        super().__init__(*parts)

    @property
    def slots(self) -> list[np.ndarray]:
        """What the optimizer keeps, each a host array in step with the GPU."""
        return [self.memory.host(name) for name in sorted(self.memory.buffers) if name.startswith("slot ")]

    @slots.setter
    def slots(self, slots: list[np.ndarray]) -> None:
        for number, slot in enumerate(slots):
            self.memory.add(f"slot {number}", slot)

    def bind(self, program: Program) -> BoundProgram:
        """A program with the model's own buffers, on the GPU."""
        check_known(self.network, self.state)
        return BoundProgram(program, self.dtype, self.memory, self.seed, self.precision)

    def fetch(self) -> None:
        """Bring the parameters and the state that callers see up to date."""
        for name in ("parameters", "state"):
            self.memory.host(name)

    def begin_fit(self) -> None:
        """Start keeping the last good parameters, and the data on the GPU."""
        super().begin_fit()
        self.memory.keep_data(True)

    def end_fit(self) -> None:
        """Give the data's memory back; the parameters are up to date."""
        self.memory.keep_data(False)
        self.fetch()

    def chunks_of(self, source: Source) -> Iterator[Chunk]:
        """The chunks of data that go forward, none larger than fits."""
        return map(_resident, source.chunks(None, _FORWARD_ROWS))

    def _attach(self, bound: BoundProgram, chunk: Chunk, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Attach a chunk's data, without the rows that are not its own where all would not fit."""
        return super()._attach(bound, _resident(chunk), n)

    def train_quickly(self, x: Any, y: Any) -> None:
        """No short way: arrays have to go to the GPU."""

    def predict_quickly(self, x: np.ndarray) -> None:
        """No short way, likewise."""


def _resident(chunk: Chunk) -> Chunk:
    """The chunk, or one of its own rows alone if the arrays that they lie in are too large for the GPU."""
    if not isinstance(chunk.X, np.ndarray) or memory.fits(chunk.X.nbytes):
        return chunk
    order = chunk.order
    own = Chunk(
        chunk.X[order],
        None if chunk.y is None else chunk.y[order],
        None if chunk.weight is None else chunk.weight[order],
        np.arange(len(order), dtype=np.int64),
    )
    return own
