"""Host data on their way to the GPU and results on their way back, while the GPU computes.

Data that do not stay on the GPU go there chunk by chunk through two pieces of pinned memory, each with its memory on
the GPU: while a chunk's steps run, the next one is gathered into the other piece and copied from there, on a stream of
its own. Results come back likewise.

What must not happen, and why it does not:

- Pinned memory is written while a copy still reads it: `Upload.send` first waits for the copy before.
- The GPU's memory is written while steps still read it: an upload is filled again two chunks later, and every run ends
  with the host waiting for it (`nbbp.cuda.engine.BoundProgram.run`).
- Steps read what has not arrived: a chunk is handed over when its copy has ended.
- Steps write results that have not been fetched, or these are read before they have come: `Download` waits likewise.

Copies only ever wait for the host and the host for them, so that the stream of copies need not, and does not, wait for
the default stream.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numba import cuda

from nbbp.cuda import graph

#: Bytes of features that a chunk should hold: long copies, little beside what computes with them.
CHUNK_BYTES = 64 << 20


def copy_stream() -> Any:
    """A stream that does not wait for the default stream, nor that for it, where the driver can be asked for one."""
    functions = graph.driver()
    if functions is None:
        return cuda.stream()
    cuda.current_context()
    error, stream = functions.cuStreamCreate(functions.CUstream_flags.CU_STREAM_NON_BLOCKING)
    if int(error) != 0:
        return cuda.stream()
    found = cuda.external_stream(int(stream))
    weakref.finalize(found, functions.cuStreamDestroy, stream).atexit = False
    return found


class _Pieces:
    """Pinned memory and memory of the GPU by name, side by side, each as large as it ever was asked for."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[np.ndarray, Any]] = {}

    def of(self, name: str, n: int, dtype: Any) -> tuple[np.ndarray, Any]:
        """Both, flat, for `n` numbers."""
        pinned, device = self._held.get(name, (np.empty(0), None))
        if device is None or pinned.size < n or pinned.dtype != dtype:
            pinned, device = self._held[name] = cuda.pinned_array(n, dtype), cuda.device_array(n, dtype)
        return pinned[:n], device[:n]


class Upload:
    """One of the two pieces of memory that chunks go through.

    Parameters
    ----------
    stream : stream
        Of the copies.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._pieces, self._arrived = stream, _Pieces(), cuda.event()

    def send(self, array: np.ndarray, rows: np.ndarray, name: str) -> Any:
        """Begin to copy rows of an array; the device array (len(rows), …) that will hold them.

        `wait` must have been called since the copy before under that name.
        """
        shape = (len(rows), *array.shape[1:])
        pinned, device = self._pieces.of(name, math.prod(shape), array.dtype)
        np.take(array, rows, axis=0, out=pinned.reshape(shape), mode="clip")  # other modes copy twice
        device.copy_to_device(pinned, stream=self._stream)
        self._arrived.record(self._stream)
        return device.reshape(shape)

    def wait(self) -> None:
        """Until everything that was sent has arrived."""
        self._arrived.synchronize()


class Download:
    """One of the two pieces of memory that results come back through.

    Parameters
    ----------
    stream : stream
        Of the copies.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._pieces, self._arrived = stream, _Pieces(), cuda.event()
        self._target: np.ndarray | None = None

    def place(self, n: int, dtype: Any) -> Any:
        """Memory of the GPU for `n` results, whose run the host waits for before `begin`."""
        self.finish()
        self._pinned, self._device = self._pieces.of("results", n, dtype)
        return self._device

    def begin(self, target: np.ndarray) -> None:
        """Begin to copy what is at the place back, in the end to `target` (n numbers, C-contiguous)."""
        self._device.copy_to_host(self._pinned, stream=self._stream)
        self._arrived.record(self._stream)
        self._target = target

    def finish(self) -> None:
        """Wait for what was begun, and put it where it belongs."""
        if self._target is not None:
            target, self._target = self._target, None
            self._arrived.synchronize()
            target.reshape(-1)[:] = self._pinned


class Staging:
    """The memory of a session that data go through.

    Whoever is on the way (several threads may predict at a time) has two pieces for himself.
    """

    def __init__(self) -> None:
        self._free: dict[type, list[tuple[Any, Any]]] = {Upload: [], Download: []}

    @contextmanager
    def two(self, kind: type) -> Iterator[tuple[Any, Any]]:
        """Two uploads or two downloads, to be given back with nothing on its way."""
        try:
            pair = self._free[kind].pop()
        except IndexError:
            stream = copy_stream()
            pair = kind(stream), kind(stream)
        try:
            yield pair
        finally:
            for piece in pair:
                piece.wait() if kind is Upload else piece.finish()
            if not self._free[kind]:
                self._free[kind].append(pair)

    def ahead(self, items: Iterator, send: Callable[[Any, Upload], Any]) -> Iterator[tuple[Any, Callable[[], None]]]:
        """What `send(item, upload)` gives for each item, when it has arrived; and what sends the next one.

        The latter is to be called while the GPU computes, and is done anyhow when the next one is asked for. Where
        `items` or `send` raises, the error is raised then, in its turn.
        """
        items = iter(items)
        with self.two(Upload) as uploads:
            number, coming = 0, _Once(partial(_next_sent, items, send, uploads[0]))
            while True:
                found = coming.result()
                if found is None:
                    return
                uploads[number % 2].wait()
                number += 1
                coming = _Once(partial(_next_sent, items, send, uploads[number % 2]))
                yield *found, coming


def _next_sent(items: Iterator, send: Callable[[Any, Upload], Any], upload: Upload) -> tuple[Any] | None:
    """The next item, sent; None behind the last."""
    for item in items:
        return (send(item, upload),)
    return None


class _Once:
    """A function that is called once, early or when its result is wanted.

    An error waits until the result is wanted; Ctrl-C does not.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self._result, self._error = function, None, None

    def __call__(self) -> None:
        if self._function is None:
            return
        function, self._function = self._function, None
        try:
            self._result = function()
        except Exception as error:
            self._error = error

    def result(self) -> Any:
        """What the function gives."""
        self()
        if self._error is not None:
            raise self._error
        return self._result
