"""What lies on the GPU and on the host: the two copies of a model's buffers, and data on their way.

Legend: a buffer of the model (parameters, optimizer slots, state) has a host array, which the model's owner reads and
writes, and a device array, which programs run on. They are brought into step where one of them is wanted and the other
is newer: from the host before a run, if its numbers have changed since they were last the same (found by comparing
them, because a view does not say that it was written); to the host when the model is asked for them. Who writes into an
old view while the GPU has newer numbers would lose one or the other, and is told so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import cuda

from nbbp.cuda.kernels import SIMULATED

if SIMULATED:
    from types import SimpleNamespace

    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

#: Share of the free memory of the GPU that data may take whole; larger data go there chunk by chunk.
_SHARE_OF_DATA = 0.5
#: The default stream, as DLPack calls it.
_DEFAULT_STREAM = 1
#: Arrays that stay on the GPU at most: features, targets and weights to train and to validate on, and what batches of
#: an iterable bring.
_MOST_KEPT = 8


class Mirrored:
    """A buffer with a copy on the host and one on the GPU.

    Parameters
    ----------
    host : ndarray (n,)
        Stays the host's copy.
    name : str
        What messages call it.

    Attributes
    ----------
    device : device array (n,)
    """

    def __init__(self, host: np.ndarray, name: str = "numbers") -> None:
        self.host, self.name = host, name
        self.device = cuda.to_device(host)
        self._same = host.copy()
        self._device_is_newer = False

    def to_host(self) -> np.ndarray:
        """The host's copy, in step."""
        if self._device_is_newer:
            self.device.copy_to_host(self.host)
            self._same[:] = self.host
            self._device_is_newer = False
        return self.host

    def to_device(self) -> None:
        """Bring the device's copy into step.

        Raises
        ------
        RuntimeError
            If both copies have changed since they were last the same.
        """
        if np.array_equal(self.host.view(np.uint8), self._same.view(np.uint8)):
            return
        if self._device_is_newer:
            raise RuntimeError(
                f"the {self.name} of this model were written on the host while the GPU had newer ones: ask the model "
                "for them (model.parameters, model.state) before you write into them"
            )
        self.device.copy_to_device(self.host)
        self._same[:] = self.host

    def was_written(self) -> None:
        """A run may have changed the device's copy."""
        self._device_is_newer = True


class Memory:
    """All buffers of one model by name, and data that stay on the GPU while a `fit` lasts."""

    def __init__(self) -> None:
        self.buffers: dict[str, Mirrored] = {}
        self._computing: list[Any] = []  # bound programs whose steps run while the host reads the caller's data
        self._kept: OrderedDict[int, tuple[np.ndarray, Any]] | None = None

    def add(self, name: str, host: np.ndarray) -> None:
        """Mirror a host array."""
        self.buffers[name] = Mirrored(host, name)

    def host(self, name: str) -> np.ndarray:
        """A buffer's host copy, in step."""
        return self.buffers[name].to_host()

    def to_device(self) -> None:
        """Bring everything on the GPU into step."""
        for buffer in self.buffers.values():
            buffer.to_device()

    @contextmanager
    def computing(self, bound: Any) -> Iterator[None]:
        """While a bound program's steps run and code of the caller's, which may use the model, does too."""
        self._computing.append(bound)
        try:
            yield
        finally:
            self._computing.remove(bound)

    def begin_run(self, bound: Any, changes: bool) -> None:
        """Let steps that run end before others begin, which find the model as the former leave it.

        Raises
        ------
        RuntimeError
            If the latter are of the same program, whose results would be lost, or change the model (`changes`), whose
            updates have not been counted yet.
        """
        for other in list(self._computing):
            if other is bound or changes:
                raise RuntimeError(
                    "the model was asked to do the same again, or to train, by the iterable that it takes its batches "
                    "from; expected batches that do not need that: on a GPU, the next one is asked for while the last "
                    "one is being computed"
                )
            other.stream.synchronize()

    def keep_data(self, keeps: bool) -> None:
        """Whether data stay on the GPU from one run to the next, because nobody changes them meanwhile."""
        self._kept = OrderedDict() if keeps else None

    def stays(self, array: np.ndarray) -> bool:
        """Whether an array of a run's data is kept whole, or may be."""
        return self._kept is not None and (id(array) in self._kept or fits(array.nbytes))

    def keeps(self, name: str) -> bool:
        """Whether data of this name are to be kept now; the order of rows is another one every time."""
        return self._kept is not None and name != "order"

    def data(self, array: np.ndarray) -> Any:
        """A flat device array with these numbers, which is kept."""
        if id(array) not in self._kept:
            while len(self._kept) >= _MOST_KEPT:
                self._kept.popitem(last=False)
            self._kept[id(array)] = array, cuda.to_device(array.reshape(-1))  # the array itself, so that its id stays
        self._kept.move_to_end(id(array))
        return self._kept[id(array)][1]


def fits(n_bytes: int) -> bool:
    """Whether data of that size may lie on the GPU whole."""
    return n_bytes <= _SHARE_OF_DATA * cuda.current_context().get_memory_info().free


def device_array(x: Any) -> Any:
    """An object with `__cuda_array_interface__` or `__dlpack__` as a device array of Numba, of the same memory.

    Raises
    ------
    ValueError
        If it lies on another GPU than the one that is used, and says so.
    """
    if not hasattr(x, "__cuda_array_interface__"):
        return _of_dlpack(x)
    if not SIMULATED:
        return cuda.as_cuda_array(x)
    interface = x.__cuda_array_interface__  # on the simulator, the host's memory is the GPU's
    return FakeCUDAArray(np.asarray(SimpleNamespace(__array_interface__=interface)))


def _of_dlpack(x: Any) -> Any:
    """An object with `__dlpack__`, whose owner makes it ready for the default stream, for which all others wait."""
    _, number = x.__dlpack_device__()
    present = 0 if SIMULATED else cuda.get_current_device().id
    if number != present:
        raise ValueError(f"an array lies on GPU {number}; expected it on GPU {present}, which this process uses")
    if SIMULATED:
        of_host = SimpleNamespace(
            __dlpack__=lambda **asked: x.__dlpack__(stream=_DEFAULT_STREAM), __dlpack_device__=lambda: (1, 0)
        )
        return FakeCUDAArray(np.from_dlpack(of_host))
    from cuda.core.utils import StridedMemoryView  # which numba-cuda needs itself

    view = StridedMemoryView.from_dlpack(x, stream_ptr=_DEFAULT_STREAM)
    return cuda.from_cuda_array_interface(interface_of(view), owner=view)


def interface_of(view: Any) -> dict[str, Any]:
    """What a `StridedMemoryView` of cuda.core's, whose strides are in numbers, is as `__cuda_array_interface__`."""
    strides = None if view.strides is None else tuple(step * view.dtype.itemsize for step in view.strides)
    data = view.ptr, view.readonly
    return {"shape": tuple(view.shape), "strides": strides, "typestr": view.dtype.str, "data": data, "version": 3}


def address(array: Any) -> int:
    """Where a device array lies; 0 for an empty one."""
    if SIMULATED:
        return array.ctypes.data if array.size else 0
    return array.__cuda_array_interface__["data"][0] or 0
