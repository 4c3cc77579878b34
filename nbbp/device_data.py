"""Data that lie on the GPU already: arrays with `__cuda_array_interface__`, as of CuPy, PyTorch and Numba, or with
`__dlpack__`.

Features are taken as they are, without a copy; so are labels of int64 and dense targets of the model's dtype. Their
numbers are checked where they lie. Other targets, and weights, are brought to the host and checked there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nbbp.form import Form
from nbbp.sources import ArraySource, Chunk
from nbbp.targets import targets, weights
from nbbp.validation import LARGEST

__all__ = ["batch_on_device", "device_source", "is_on_device", "shape_of"]

#: Kinds of memory, as `__dlpack_device__` names them, that a GPU of NVIDIA's reads: its own, and managed memory.
_ON_GPU = (2, 13)

#: As in nbbp/targets.py: how far from 1 the sum of probabilities may be.
_SUM_TOLERANCE = 1e-3


def is_on_device(x: Any) -> bool:
    """Whether x is an array on a GPU."""
    if isinstance(x, np.ndarray):
        return False
    try:
        if hasattr(x, "__cuda_array_interface__"):
            return True
        return hasattr(x, "__dlpack__") and x.__dlpack_device__()[0] in _ON_GPU
    except RuntimeError:  # a tensor of PyTorch's that requires a gradient
        return True
    except (AttributeError, BufferError, ValueError):  # half a protocol, or memory that cannot be handed on
        return False


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of an array on a GPU; what has `__dlpack__` alone need not say it."""
    if hasattr(x, "shape"):
        return tuple(x.shape)
    from nbbp.cuda.memory import device_array

    return tuple(device_array(x).shape)


def device_source(
    X: Any,
    y: Any,
    sample_weight: Any,
    class_weight: Any,
    *,
    n_in: int,
    n_out: int,
    loss: Any,
    dtype: np.dtype,
    names: tuple[str, str, str],
    form: Form,
    on_device: bool,
) -> ArraySource:
    """Check data of a call whose features lie on the GPU; the arguments as `nbbp.data.source`.

    Raises
    ------
    TypeError
        If X is of another dtype than the model, or the model is on the CPU.
    ValueError
        If X is not C-contiguous, has another shape, or holds a number that is not finite or no category.
    """
    name = names[0]
    if not on_device:
        raise TypeError(f"{name} lies on a GPU and this model on the CPU: move the model there, model.to('cuda')")
    values = _features(X, n_in, np.dtype(dtype), name, form)
    n = values.shape[0]
    wanted = None if y is None else _targets(y, loss, n_out, n, np.dtype(dtype), names[1], name)
    on_host = wanted
    if class_weight is not None and not isinstance(wanted, np.ndarray):
        on_host = wanted.copy_to_host()
    weight = weights(_on_host(sample_weight), class_weight, on_host, loss, n_out, n, dtype, names[2], partner=name)
    return ArraySource(values, wanted, weight)


def batch_on_device(
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: Any = None,
    names: tuple[str, str, str] = ("x", "y", "sample_weight"),
    **describe: Any,
) -> Chunk:
    """One batch whose features lie on the GPU; `describe` as in `device_source`."""
    source = device_source(x, y, sample_weight, class_weight, names=names, **describe)
    (chunk,) = source.chunks()
    return chunk


def _array(x: Any, name: str) -> Any:
    """Numba's view of the memory of an array on the GPU, which has to be C-contiguous."""
    from nbbp.cuda.memory import device_array

    array = device_array(x)
    if not array.is_c_contiguous():
        raise ValueError(f"{name} on the GPU is not C-contiguous, which it has to be there: make a copy of it first")
    return array


def _on_host(x: Any) -> Any:
    """An array of the host's, whichever it was."""
    if not is_on_device(x):
        return x
    from nbbp.cuda.memory import device_array

    return device_array(x).copy_to_host()


def _features(X: Any, n_in: int, dtype: np.dtype, name: str, form: Form) -> Any:
    from nbbp.cuda import scan

    array = _array(X, name)
    shape = tuple(array.shape)
    if array.dtype != dtype:
        raise TypeError(f"{name} on the GPU is of {array.dtype}; expected the model's dtype, {dtype}: convert it there")
    n_features = math.prod(shape[1:]) if form.any_shape else shape[-1]
    if len(shape) < 2 or (len(shape) > 2 and not form.any_shape) or n_features != n_in or not array.size:
        raise ValueError(f"{name} has the shape {shape}; this network takes (n, {n_in})")
    flat, largest = array.reshape(array.size), dtype.type(LARGEST[dtype.char])
    bad = scan.first("first_number_outside", dtype, array.size, flat, array.size, -largest, largest)
    if bad >= 0:
        row, column = divmod(bad, n_in)
        _refuse(flat[bad : bad + 1], f"row {row}, column {column}", name, "finite numbers")
    for column, n_categories in form.categories:
        row = scan.first(
            "first_no_category", dtype, shape[0], flat, shape[0], n_in, column, n_categories
        )  # fmt: skip
        if row >= 0:
            at = row * n_in + column
            _refuse(flat[at : at + 1], f"row {row}, column {column}", name, f"a category 0 … {n_categories - 1}")
    return array.reshape(shape[0], n_in)


def _targets(y: Any, loss: Any, n_out: int, n: int, dtype: np.dtype, name: str, partner: str) -> Any:
    """Targets as a loss takes them, where they lie if they are ready."""
    if not is_on_device(y):
        return targets(y, loss, n_out, n, dtype, name, partner=partner)
    from nbbp.cuda import scan

    array = _array(y, name)
    if loss.row_wise and array.dtype == np.int64 and tuple(array.shape) == (n,):
        bad = scan.first("first_label_outside", dtype, n, array, n, n_out)
        if bad >= 0:
            _refuse(array[bad : bad + 1], f"row {bad}", name, f"labels 0 … {n_out - 1}")
        return array
    limits = _limits(loss, dtype)
    if array.dtype != dtype or tuple(array.shape) != (n, n_out) or limits is None:
        return targets(array.copy_to_host(), loss, n_out, n, dtype, name, partner=partner)
    flat = array.reshape(array.size)
    bad = scan.first("first_number_outside", dtype, array.size, flat, array.size, *map(dtype.type, limits))
    if bad < 0 and loss.row_wise:
        row = scan.first("first_row_not_summing_to_one", dtype, n, flat, n, n_out, dtype.type(_SUM_TOLERANCE))
        bad = row * n_out if row >= 0 else -1
    if bad >= 0:  # the host's check says what is wrong
        targets(array.copy_to_host(), loss, n_out, n, dtype, name, partner=partner)
    return array


def _limits(loss: Any, dtype: np.dtype) -> tuple[float, float] | None:
    """The least and the largest target of a loss; None where it asks for more than a range."""
    largest = LARGEST[dtype.char]
    if loss.row_wise or loss.name == "binary_crossentropy":
        return 0.0, 1.0
    if loss.name == "hinge":
        return None
    return (0.0 if loss.name == "poisson" else -largest), largest


def _refuse(one: Any, place: str, name: str, expected: str) -> None:
    value = float(one.copy_to_host()[0])
    raise ValueError(f"{name} holds {'NaN' if math.isnan(value) else f'{value:g}'} at {place}; expected {expected}")
