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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbbp import tiling
from nbbp.cuda import memory, staging
from nbbp.cuda.engine import BoundProgram
from nbbp.layers import Activation
from nbbp.lowering.parameters import LOSS_SCALE
from nbbp.program import Program
from nbbp.session import Session
from nbbp.sources import ArraySource, Chunk, Source
from nbbp.standardization import check_known

__all__ = ["DeviceSession"]

#: Rows that go forward at a time.
_FORWARD_BATCH = 4096


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
    staging : nbbp.cuda.staging.Staging
    """

    plan = tiling.WHOLE
    forward_batch = _FORWARD_BATCH
    takes_quick_steps = False

    parameters = _mirrored("parameters")
    state = _mirrored("state")
    good_parameters = _mirrored("good parameters")
    loss_scale = _mirrored(LOSS_SCALE)

    def __init__(self, *parts: Any) -> None:
        self.memory, self.staging = memory.Memory(), staging.Staging()
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

    def chunks(self, source: Source, order: np.ndarray | None, rows: int | None, batch: int) -> Iterator[Chunk]:
        """The chunks of data that are trained on: on the GPU as a whole, or on their way there one by one."""
        if self._stays(source):
            return source.chunks(order, rows)
        return self._sent(source.chunks(order, None if rows is None else min(rows, self._rows(batch))))

    def chunks_of(self, source: Source) -> Iterator[Chunk]:
        """The chunks of data that go forward, likewise."""
        chunks = source.chunks(None, self._rows(self.forward_batch))
        return chunks if self._stays(source) or self._is_one_chunk(source) else self._sent(chunks)

    def _rows(self, batch: int) -> int:
        """Rows of a chunk that is sent: whole batches."""
        rows = staging.CHUNK_BYTES // (self.network.n_in * self.dtype.itemsize)
        return max(batch, rows // batch * batch)

    def _is_one_chunk(self, source: Source) -> bool:
        """Whether there is nothing to overlap copies with when the data go forward."""
        return isinstance(source, ArraySource) and source.n_samples <= self._rows(self.forward_batch)

    def _stays(self, source: Source) -> bool:
        """Whether the data lie on the GPU, or are to be kept there whole."""
        if not isinstance(source, ArraySource):
            return False
        return not isinstance(source.X, np.ndarray) or self.memory.stays(source.X)

    def _sent(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Chunks in memory of the GPU that is theirs until the next but one is asked for.

        Batches of the caller's that lie there already are used where they are: the next one is asked for when they
        have been, because it may come in the same place.
        """
        for (chunk, is_sent), meanwhile in self.staging.ahead(chunks, _send):
            yield ChunkInTurn(chunk.X, chunk.y, chunk.weight, chunk.order, meanwhile if is_sent else _nothing)

    def _attach(self, bound: BoundProgram, chunk: Chunk, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Attach a chunk's data, and what is to be done while it is computed with."""
        bound.meanwhile = getattr(chunk, "meanwhile", None)
        return super()._attach(bound, chunk, n)

    def predict(self, source: Source, also: Activation | None) -> np.ndarray:
        """As `Session.predict`; what one chunk gives comes back while the next is computed."""
        if self._is_one_chunk(source):
            return super().predict(source, also)
        n, n_out = source.n_samples, self.network.n_out
        bound = self._program(("predict", also), lambda: self.prediction(self.forward_batch, also))
        out = None if n is None else np.empty((n, n_out), self.dtype)
        parts, start = [], 0
        with self.staging.two(staging.Download) as downloads:
            for number, chunk in enumerate(self.chunks_of(source)):
                n = len(chunk.order)
                parts.append(np.empty((n, n_out), self.dtype) if out is None else out[start : start + n])
                self._predict_chunk(bound, chunk, *(downloads[(number + k) % 2] for k in range(2)), parts[-1])
                start += n
        return self.form.outputs(np.concatenate(parts) if out is None else out)

    def _predict_chunk(
        self, bound: BoundProgram, chunk: Chunk, mine: staging.Download, other: staging.Download, out: np.ndarray
    ) -> None:
        """Outputs of a chunk, which begin to come back in the end; what the chunk before gave comes meanwhile."""

        def meanwhile() -> None:
            getattr(chunk, "meanwhile", _nothing)()
            other.finish()

        with bound.lock:
            for name, array in (("X", chunk.X), ("order", chunk.order), ("output", mine.place(out.size, self.dtype))):
                bound.attach(name, array)
            bound.meanwhile = meanwhile
            bound.run(len(chunk.order))
        mine.begin(out)

    def train_quickly(self, x: Any, y: Any) -> None:
        """No short way: arrays have to go to the GPU."""

    def predict_quickly(self, x: np.ndarray) -> None:
        """No short way, likewise."""


@dataclass(frozen=True, slots=True)
class ChunkInTurn(Chunk):
    """A chunk on the GPU; `meanwhile` sends the next one there."""

    meanwhile: Callable[[], None]


def _send(chunk: Chunk, upload: staging.Upload) -> tuple[Chunk, bool]:
    """Begin to send the rows of a chunk, in their order; nothing of one that lies on the GPU. Says whether it did."""
    if not isinstance(chunk.X, np.ndarray):
        return chunk, False
    arrays = {name: getattr(chunk, name) for name in ("X", "y", "weight")}
    sent = [None if array is None else upload.send(array, chunk.order, name) for name, array in arrays.items()]
    return Chunk(*sent, np.arange(len(chunk.order), dtype=np.int64)), True


def _nothing() -> None:
    """What there is to do meanwhile where the next chunk has to wait, or there is none."""
