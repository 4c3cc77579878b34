"""From what a caller passes as data to the source that the epoch loop reads.

`source` checks the data and picks how to read it, `sources_to_fit` all data of a fit; `split` cuts off a validation
part; `infer_n_in` looks up the number of features. The sources themselves are in `nbbp.sources`, the checks in
`nbbp.validation` and `nbbp.targets`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nbbp.device_data import batch_on_device, device_source, is_on_device, shape_of
from nbbp.form import PLAIN, Form
from nbbp.sources import (
    COPY_LIMIT,
    ArraySource,
    Chunk,
    IterableSource,
    MemmapSource,
    Source,
    begin_pass,
    is_mapped,
    is_one_shot,
)
from nbbp.targets import targets, weights
from nbbp.validation import as_array, features

__all__ = [
    "ArraySource",
    "Chunk",
    "IterableSource",
    "MemmapSource",
    "Source",
    "infer_n_in",
    "source",
    "sources_to_fit",
    "split",
]


def source(
    X: Any,
    y: Any = None,
    *,
    n_in: int,
    n_out: int,
    loss: Any,
    dtype: np.dtype,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | str | None = None,
    epochs: int = 1,
    labelled: bool = True,
    names: tuple[str, str, str] = ("X", "y", "sample_weight"),
    copy_limit: int = COPY_LIMIT,
    form: Form = PLAIN,
    on_device: bool = False,
) -> Source:
    """Check the data of a call and choose how to read it.

    Parameters
    ----------
    X : array_like, iterable of batches, or callable that returns one
        With an iterable, y and sample_weight are None: they come with the batches.
    y : array_like or None
        Targets (see `nbbp.targets.targets`); None where labelled is False.
    n_in, n_out : int
        Sizes of the network.
    loss : a loss of ``nbbp.losses``
    dtype : np.dtype
        float32 or float64.
    sample_weight, class_weight
        See `nbbp.targets.weights`.
    epochs : int
        How often the data will be gone through.
    labelled : bool
        Whether targets are needed (`fit`, `evaluate`) or not (`predict`).
    names : tuple of str
        What the caller calls X, y and sample_weight, for messages.
    copy_limit : int
        Bytes above which an array is converted chunk by chunk instead of whole.
    form : Form
        What the network's ends take.
    on_device : bool
        Whether the model is on a GPU, and takes arrays that lie there.

    Returns
    -------
    ArraySource, MemmapSource or IterableSource

    Raises
    ------
    TypeError, ValueError
        As `features`, `targets` and `weights` do, before anything is trained.
    """
    dtype = np.dtype(dtype)
    describe = {"n_in": n_in, "n_out": n_out, "loss": loss, "dtype": dtype, "form": form, "on_device": on_device}
    if is_on_device(X):
        if labelled and y is None:
            raise TypeError(f"{names[1]} is None; {names[0]} is an array, so its targets must be given")
        return device_source(X, y, sample_weight, class_weight, names=names, **describe)
    if is_iterable_of_batches(X, y, labelled):
        if y is not None or sample_weight is not None:
            extra = names[1] if y is not None else names[2]
            raise TypeError(
                f"{names[0]} gives batches (it is of type {type(X).__name__}), so {extra} must come with "
                f"them as (x, y) or (x, y, sample_weight); expected {extra}=None"
            )
        return IterableSource(
            X,
            n_in=n_in,
            n_out=n_out,
            loss=loss,
            dtype=dtype,
            class_weight=class_weight,
            epochs=epochs,
            labelled=labelled,
            name=names[0],
            form=form,
            on_device=functools.partial(_batch_on_device, **describe),
        )
    array = form.samples(as_array(X, names[0]), n_in, names[0])
    y = form.targets(y, names[1])
    if labelled and y is None:
        raise TypeError(f"{names[1]} is None; {names[0]} is an array, so its targets must be given")
    copied = array.size * dtype.itemsize
    converts = array.dtype != dtype or not (array.flags.c_contiguous and array.flags.aligned)
    if is_mapped(array) or (converts and copied > copy_limit and array.dtype.kind != "O"):
        return MemmapSource(
            array,
            y,
            n_in=n_in,
            n_out=n_out,
            loss=loss,
            dtype=dtype,
            sample_weight=sample_weight,
            class_weight=class_weight,
            names=names,
            copy_limit=copy_limit,
            categories=form.categories,
        )
    checked = features(array, n_in, dtype, names[0], original=X, categories=form.categories)
    converted = None
    if y is not None:
        converted = targets(y, loss, n_out, len(checked), dtype, names[1], partner=names[0])
    weight = weights(
        sample_weight, class_weight, converted, loss, n_out, len(checked), dtype, names[2], partner=names[0]
    )
    return ArraySource(checked, converted, weight)


def _batch_on_device(x: Any, *others: Any, **describe: Any) -> Chunk | None:
    """A batch of an iterable as `batch_on_device` gives it; None where its features lie on the host."""
    return batch_on_device(x, *others, **describe) if is_on_device(x) else None


def sources_to_fit(
    X: Any,
    y: Any,
    sample_weight: Any,
    class_weight: Mapping[int, float] | str | None,
    validation_data: tuple | None,
    describe: Mapping[str, Any],
) -> tuple[Source, Source | None]:
    """The sources that `fit` trains on and validates on, the second None without `validation_data`.

    Parameters
    ----------
    X, y, sample_weight, class_weight
        As `source`.
    validation_data : (X, y) or (X, y, sample_weight), or None
    describe : mapping
        What `source` is told of the network and the run: n_in, n_out, form, loss, dtype, epochs.
    """
    training = source(X, y, sample_weight=sample_weight, class_weight=class_weight, **describe)
    if validation_data is None:
        return training, None
    if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
        raise TypeError(
            f"validation_data must be (X, y) or (X, y, sample_weight); got {type(validation_data).__name__}"
        )
    names = ("validation X", "validation y", "validation sample_weight")
    Xv, yv, *wv = validation_data
    return training, source(Xv, yv, sample_weight=wv[0] if wv else None, names=names, **describe)


def is_iterable_of_batches(X: Any, y: Any = None, labelled: bool = True) -> bool:
    """Whether X is to be gone through batch by batch rather than read as one array.

    True for iterables and callables that are no arrays. A list is an array of rows, unless y is missing and
    its entries are tuples or lists ``(x, y[, sample_weight])`` of arrays.
    """
    if isinstance(X, (str, bytes, Mapping, set, frozenset)) or X is None or is_on_device(X):
        return False
    if isinstance(X, (list, tuple)):
        return labelled and y is None and len(X) > 0 and all(_looks_like_batch(entry) for entry in X)
    if any(hasattr(X, attribute) for attribute in ("__array__", "to_numpy", "__array_interface__", "toarray")):
        return False
    if _is_buffer(X):
        return False
    return callable(X) or hasattr(X, "__iter__")


def infer_n_in(X: Any, y: Any = None, name: str = "X", form: Form = PLAIN) -> int:
    """Features per sample of data for a network that was described without n_in.

    Looks at the shape of an array or at the first batch of an iterable.

    Raises ValueError for a generator, whose first batch would be lost, and for data that is no matrix.
    """
    if is_on_device(X):
        return math.prod(shape_of(X)[1:])
    if is_iterable_of_batches(X, y):
        if is_one_shot(X):
            raise ValueError(
                f"the network was described without n_in, and looking into {name} (a {type(X).__name__}) "
                "would use up its first batch; expected Sequential(..., n_in=...)"
            )
        for batch in begin_pass(X, name):
            x = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
            return infer_n_in(x, x, f"x of batch 0 of {name}", form)
        raise ValueError(f"{name} gave no batch")
    array = form.samples(as_array(X, name), None, name)
    if array.ndim != 2 or array.size == 0:
        features(array, None, np.dtype(np.float64), name)
    return array.shape[1]


def split(X: Any, y: Any, sample_weight: Any, validation_split: float) -> tuple[tuple, tuple]:
    """Divide arrays into a training part and a validation part, which is the last fraction, as Keras does.

    Parameters
    ----------
    X, y : array_like
        As many rows each; views are returned where the type allows.
    sample_weight : array_like or None
    validation_split : float
        Fraction for validation, 0 < validation_split < 1.

    Returns
    -------
    (X, y, sample_weight), (X, y, sample_weight)
        Training and validation.

    Raises
    ------
    ValueError
        The fraction is outside (0, 1), a part would be empty, lengths differ.
    TypeError
        X is an iterable of batches.
    """
    if not isinstance(validation_split, (int, float, np.number)) or not 0.0 < validation_split < 1.0:
        raise ValueError(f"validation_split is {validation_split!r}; expected a fraction between 0 and 1")
    if is_iterable_of_batches(X, y):
        raise TypeError("validation_split needs arrays; with batches from an iterable pass validation_data instead")
    named = {"X": X, "y": y, "sample_weight": sample_weight}
    n = common_length(named)
    n_train = math.floor(n * (1.0 - validation_split))
    if n_train == 0 or n_train == n:
        raise ValueError(
            f"validation_split={validation_split} of {n} samples leaves {n_train} for training and "
            f"{n - n_train} for validation; both need at least one"
        )
    first = tuple(_rows(value, slice(0, n_train)) for value in named.values())
    last = tuple(_rows(value, slice(n_train, n)) for value in named.values())
    return first, last


def common_length(named: Mapping[str, Any]) -> int:
    """Samples in each of these, X first; those that are None do not count.

    Raises ValueError where they differ.
    """
    lengths = {name: _length(value, name) for name, value in named.items() if value is not None}
    n = lengths["X"]
    for name, length in lengths.items():
        if length != n:
            raise ValueError(f"X has {n} samples, {name} has {length}; expected as many")
    return n


def _length(value: Any, name: str) -> int:
    if is_on_device(value):
        return shape_of(value)[0]
    return value.shape[0] if getattr(value, "shape", ()) else len(as_array(value, name))


def _rows(value: Any, rows: slice) -> Any:
    if value is None:
        return None
    # A DataFrame's plain [] may go by label.
    return value.iloc[rows] if hasattr(value, "iloc") else value[rows]


def _is_buffer(X: Any) -> bool:
    """Whether X is memory that NumPy can read, such as a memoryview or an ``array.array``."""
    try:
        memoryview(X)
    except (TypeError, ValueError, BufferError):
        return False
    return True


def _looks_like_batch(entry: Any) -> bool:
    """Whether an entry of a list is a batch (x, y[, weight]) rather than a row of numbers."""
    return (
        isinstance(entry, (tuple, list))
        and len(entry) in (2, 3)
        and all(is_on_device(part) or getattr(part, "ndim", isinstance(part, (list, tuple))) for part in entry)
    )
