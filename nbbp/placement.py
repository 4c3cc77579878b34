"""Where a model's numbers are: on the host, or on a GPU; which of them can be, and what a session does there.

A session on the host is `nbbp.session.Session`; `nbbp.device_session.DeviceSession` is one on a GPU. Only that one, and
only when a model asks for it, imports nbbp.cuda.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numba

from nbbp.precision import OF_GPUS

if TYPE_CHECKING:
    import numpy as np

    from nbbp.session import Session
    from nbbp.sources import Chunk, Source

__all__ = ["FORWARD_BATCH", "OnHost", "checked_device", "session_on", "why_no_cuda"]

#: Rows that prediction and evaluation take at a time on the host.
FORWARD_BATCH = 256
DEVICES = ("cpu", "cuda", "auto")
#: The compute capability from which on tensor cores take tf32 and bf16.
TENSOR_CORES = (8, 0)
_INSTALL = 'pip install "nbbp[cu12]" for a driver of CUDA 12, or "nbbp[cu13]" for one of CUDA 13'


class OnHost:
    """What a session does in the host's memory, and one on a GPU does otherwise.

    Attributes
    ----------
    plan : str or None
        How training programs are cut (`nbbp.tiling`); None: as it suits the CPU.
    forward_batch : int
        Rows that prediction and evaluation take at a time.
    takes_quick_steps : bool
        Whether short calls from Python have ways of their own (nbbp/quick.py).
    """

    plan: str | None = None
    forward_batch = FORWARD_BATCH
    takes_quick_steps = True

    def fetch(self) -> None:
        """Bring the parameters and the state that callers see up to date: they always are."""

    def end_fit(self) -> None:
        """A run of `fit` is over, however it ended."""

    def chunks(self, source: Source, order: np.ndarray | None, rows: int | None, batch: int) -> Iterator[Chunk]:
        """The chunks of data that are trained on: in that order, of so many rows, whole batches."""
        return source.chunks(order, rows)

    def chunks_of(self, source: Source) -> Iterator[Chunk]:
        """The chunks of data that go forward."""
        return source.chunks(None, None)


def checked_device(device: Any, precision: str = "float32") -> str:
    """The device's name, "cpu" or "cuda"; "auto" is the latter where there is a GPU that has the precision.

    Raises
    ------
    ValueError
        If it is none of these, or the precision is none of the device's.
    RuntimeError
        If there is no CUDA; the message says what is missing and how to install it.
    """
    if not isinstance(device, str) or device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(map(repr, DEVICES))}; got {device!r}")
    if device == "auto":
        device = "cuda" if why_no_cuda() is None and _why_not_in(precision) is None else "cpu"
    if device == "cuda":
        missing = why_no_cuda()
        if missing is not None:
            raise RuntimeError(f"device 'cuda' cannot be used: {missing}")
        if (old := _why_not_in(precision)) is not None:
            raise ValueError(old)
    elif precision in OF_GPUS:
        raise ValueError(
            f"precision {precision!r} is one of CUDA's tensor cores; the CPU has 'float32', 'bf16' and 'fp16'"
        )
    return device


def _why_not_in(precision: str) -> str | None:
    """Why the GPU does not have that precision; None if it does."""
    if precision == "float32" or numba.config.ENABLE_CUDASIM:
        return None
    from numba import cuda

    capability = cuda.get_current_device().compute_capability
    if capability >= TENSOR_CORES:
        return None
    needed, there = (".".join(map(str, numbers)) for numbers in (TENSOR_CORES, capability))
    return f"precision {precision!r} needs a GPU of compute capability {needed} or newer; this one has {there}"


def why_no_cuda() -> str | None:
    """What is missing for CUDA; None if nothing is. The simulator of Numba counts as a GPU."""
    if numba.config.ENABLE_CUDASIM:
        return None
    if importlib.util.find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed. {_INSTALL} (nvidia-smi prints which)"
    try:
        from numba import cuda

        if cuda.is_available():
            return None
        error = cuda.cuda_error()
    except Exception as failure:  # drivers fail in ways of their own
        error = f"{type(failure).__name__}: {failure}"
    reason = f" ({error})" if error else ""
    return f"numba-cuda is installed but finds no GPU and driver that it can use{reason}. nvidia-smi should list a GPU"


def session_on(device: str) -> type[Session]:
    """The class of sessions on that device."""
    if device == "cuda":
        from nbbp.device_session import DeviceSession

        return DeviceSession
    from nbbp.session import Session

    return Session
