"""The kinds of sources: arrays in memory, memory-mapped files, iterables of batches.

A source hands its samples to the epoch loop as a few chunks, each a set of whole arrays of the model's
dtype and the order in which to visit their rows. What fits in memory is converted and checked once and is
then one array, of which a chunk is merely a slice of the order. What does not is read chunk by chunk, so
that memory holds one chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nbbp.form import PLAIN, Form
from nbbp.targets import class_labels, target_array, targets, times_class_weights, weights
from nbbp.validation import feature_matrix, features

#: An array whose converted copy would be larger than this (bytes) is converted chunk by chunk instead.
COPY_LIMIT = 1 << 30

#: What a chunk read from a file should hold at most (bytes): long sorted reads, yet little beside the model.
CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """Samples in memory, ready for the engine.

    Attributes
    ----------
    X : ndarray of the model's dtype, shape (rows, n_in)
    y : ndarray or None
        int64 labels (rows,) or dense targets (rows, n_out); None without targets.
    weight : ndarray of the model's dtype, shape (rows,), or None
    order : ndarray of int64
        Rows of X, y and weight in the order of the samples. Only these belong to the chunk.
    """

    X: np.ndarray
    y: np.ndarray | None
    weight: np.ndarray | None
    order: np.ndarray

    @property
    def has_labels(self) -> bool:
        """Whether y holds labels rather than dense targets."""
        return self.y.ndim == 1


class Source(Protocol):
    """What the epoch loop sees of the data.

    Attributes
    ----------
    n_samples : int or None
        None where only reading the data would tell.
    n_batches : int or None
        Batches of an epoch where the source decides their boundaries, else None.
    row_limit : int or None
        Samples that a chunk may hold without taking much memory; None where a chunk takes none of its own.
    is_one_shot : bool
        Whether the samples can be gone through only once.
    """

    n_samples: int | None
    n_batches: int | None
    row_limit: int | None
    is_one_shot: bool

    def chunks(self, order: np.ndarray | None, rows: int | None) -> Iterator[Chunk]:
        """Yield every sample of one epoch.

        Parameters
        ----------
        order : ndarray of int64, or None
            Sample numbers in the order to visit; None from first to last.
        rows : int or None
            Samples per chunk (the last may hold fewer): a multiple of the batch size keeps batches whole.
            None leaves it to the source, as does a source whose batches come ready made.
        """
        ...


class ArraySource:
    """Samples that are wholly in memory, checked and converted. See `Source`.

    X : (n, n_in); y : (n,), (n, n_out) or None; weight : (n,) or None, all as `nbbp.validation` returns them.
    """

    n_batches = None
    row_limit = None
    is_one_shot = False

    def __init__(self, X: np.ndarray, y: np.ndarray | None = None, weight: np.ndarray | None = None) -> None:
        self.X, self.y, self.weight = X, y, weight
        self.n_samples = len(X)

    def chunks(self, order: np.ndarray | None = None, rows: int | None = None) -> Iterator[Chunk]:
        order = np.arange(self.n_samples, dtype=np.int64) if order is None else order
        for part in row_ranges(len(order), rows or len(order)):
            yield Chunk(self.X, self.y, self.weight, order[part])


class MemmapSource:
    """Samples gathered chunk by chunk from arrays too large to convert whole, such as memory-mapped files.

    The rows of a chunk are read in ascending order, which is how a disk likes it; the chunk's order then
    visits them in the order asked for. Numbers are checked as they are read: if everything fits the copy
    limit then once and before anything is trained, otherwise chunk by chunk, so that a bad number far down
    a large file ends the run when it is reached.

    Parameters
    ----------
    X : ndarray, shape (n, n_in), of any dtype, order and strides
    y : ndarray or None
        Kept as it is where it is a file or larger than the limit, else converted at once.
    n_in, n_out, loss, dtype
        As in `source`.
    sample_weight, class_weight
        As in `nbbp.targets.weights`.
    copy_limit : int
        Bytes above which nothing is converted whole.
    categories
        As in `features`.
    """

    n_batches = None
    is_one_shot = False

    def __init__(
        self,
        X: np.ndarray,
        y: Any = None,
        *,
        n_in: int,
        n_out: int,
        loss: Any,
        dtype: np.dtype,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | str | None = None,
        names: tuple[str, str, str] = ("X", "y", "sample_weight"),
        copy_limit: int = COPY_LIMIT,
        categories: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._categories = categories
        self._n_in, self._n_out, self._loss, self._dtype = n_in, n_out, loss, np.dtype(dtype)
        self._names = names
        self._X = feature_matrix(X, n_in, names[0])
        self.n_samples = len(X)
        self.row_limit = max(1, CHUNK_BYTES // (n_in * self._dtype.itemsize))
        features(self._X[:1], n_in, self._dtype, names[0], categories=categories)
        self._y, self._y_is_ready = None, True
        if y is not None:
            y = target_array(y, loss, n_out, self.n_samples, names[1], names[0])
            in_memory = y.ndim == 1 or not is_mapped(y)
            self._y_is_ready = in_memory and y.size * self._dtype.itemsize <= copy_limit
            ready = targets(y if self._y_is_ready else y[:1], loss, n_out, None, self._dtype, names[1])
            self._y = ready if self._y_is_ready else y
        self._weight = weights(
            sample_weight, None, None, loss, n_out, self.n_samples, self._dtype, names[2], partner=names[0]
        )
        if class_weight is not None:
            labels = np.concatenate([class_labels(chunk.y, loss, n_out) for chunk in self.chunks()])
            self._weight = times_class_weights(self._weight, class_weight, labels, loss, n_out, self._dtype)
        elif X.size * self._dtype.itemsize <= copy_limit:
            for _ in self.chunks():
                pass

    def chunks(self, order: np.ndarray | None = None, rows: int | None = None) -> Iterator[Chunk]:
        for part in row_ranges(self.n_samples if order is None else len(order), rows or self.row_limit):
            if order is None:
                picked = np.arange(part.start, part.stop, dtype=np.int64)
                visit = picked - part.start
            else:
                ranks = np.argsort(order[part], kind="stable")
                picked = order[part][ranks]
                visit = np.empty(len(ranks), np.int64)
                visit[ranks] = np.arange(len(ranks))
            yield self._gather(picked, visit)

    def _gather(self, picked: np.ndarray, visit: np.ndarray) -> Chunk:
        """Read and convert the rows picked (ascending)."""
        # A run of neighbours is a slice, which needs no copy of its own before the conversion.
        run = picked[-1] - picked[0] + 1 == len(picked) and bool((np.diff(picked) == 1).all())
        rows = slice(int(picked[0]), int(picked[-1]) + 1) if run else picked
        name = self._names[0]
        X = features(self._X[rows], self._n_in, self._dtype, name, rows=picked, categories=self._categories)
        y = None if self._y is None else self._y[rows]
        if not self._y_is_ready:
            y = targets(y, self._loss, self._n_out, len(picked), self._dtype, self._names[1], rows=picked)
        return Chunk(X, y, None if self._weight is None else self._weight[rows], visit)


class IterableSource:
    """Batches ``(x, y)`` or ``(x, y, sample_weight)`` from an iterable; each is a chunk. See `Source`.

    Parameters
    ----------
    batches : iterable, or callable without arguments that returns one
        Gone through once per epoch: a list, a data loader, a function that makes a new generator. It
        must end.
    epochs : int
        How often it will be gone through. A generator lasts for one.
    labelled : bool
        False for batches that are x alone (or start with x), as `predict` takes them.
    n_in, n_out, loss, dtype, class_weight, form
        As in `source`; "balanced" class weights need all labels at once and are refused.
    name : str
        What the caller calls the batches, for the message.
    on_device : callable, optional
        ``on_device(x, y, sample_weight, class_weight, names)`` gives a batch whose x lies on a GPU as a chunk, and None
        where it does not.
    """

    n_samples = None
    row_limit = None

    def __init__(
        self,
        batches: Iterable | Callable[[], Iterable],
        *,
        n_in: int | None,
        n_out: int,
        loss: Any,
        dtype: np.dtype,
        class_weight: Mapping[int, float] | None = None,
        epochs: int = 1,
        labelled: bool = True,
        name: str = "X",
        form: Form = PLAIN,
        on_device: Callable[..., Chunk | None] = lambda *batch: None,
    ) -> None:
        self.is_one_shot = is_one_shot(batches)
        if epochs > 1 and self.is_one_shot:
            raise ValueError(
                f"{name} is a {type(batches).__name__}, which can be gone through once, not {epochs} times "
                "(once per epoch); pass a list of batches, or a function that returns a new generator"
            )
        if isinstance(class_weight, str):
            raise ValueError(
                f"class_weight={class_weight!r} needs all labels at once, {name} gives them batch by batch; "
                "pass a mapping {label: weight}"
            )
        self._batches, self._n_in, self._n_out, self._loss, self._dtype = batches, n_in, n_out, loss, dtype
        self._class_weight, self._labelled, self._name = class_weight, labelled, name
        self._form, self._on_device = form, on_device
        self.n_batches = len(batches) if hasattr(type(batches), "__len__") else None
        if isinstance(batches, (list, tuple)):
            for _ in self.chunks():
                pass  # what lies ready is checked before anything is trained; what is made batch by batch cannot be

    def chunks(self, order: None = None, rows: int | None = None) -> Iterator[Chunk]:
        if order is not None:
            raise ValueError(f"{self._name} gives its batches in its own order; it cannot be shuffled")
        number = -1
        for number, batch in enumerate(begin_pass(self._batches, self._name)):
            yield self._convert(batch, f"batch {number} of {self._name}")
        if number < 0:
            hint = " (a generator can be gone through once)" if self.is_one_shot else ""
            raise ValueError(f"{self._name} gave no batch{hint}")

    def _features(self, x: Any, name: str) -> np.ndarray:
        samples = self._form.samples(x, self._n_in, name)
        return features(samples, self._n_in, self._dtype, name, original=x, categories=self._form.categories)

    def _convert(self, batch: Any, where: str) -> Chunk:
        if not self._labelled:
            x = batch[0] if isinstance(batch, tuple) else batch
            chunk = self._on_device(x, None, None, None, (where, "", ""))
            if chunk is not None:
                return chunk
            X = self._features(x, where)
            return Chunk(X, None, None, np.arange(len(X), dtype=np.int64))
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            came = f"of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise TypeError(
                f"{where} is a {type(batch).__name__} {came}".rstrip() + "; expected (x, y) or (x, y, sample_weight)"
            )
        names = f"x of {where}", f"y of {where}", f"sample_weight of {where}"
        weight = batch[2] if len(batch) == 3 else None
        chunk = self._on_device(*batch[:2], weight, self._class_weight, names)
        if chunk is not None:
            return chunk
        X = self._features(batch[0], names[0])
        wanted = self._form.targets(batch[1], names[1])
        y = targets(wanted, self._loss, self._n_out, len(X), self._dtype, names[1], partner=names[0])
        weight = weights(
            weight, self._class_weight, y, self._loss, self._n_out, len(X), self._dtype, names[2], partner=names[0]
        )
        return Chunk(X, y, weight, np.arange(len(X), dtype=np.int64))


def is_mapped(array: np.ndarray) -> bool:
    """Whether the array's memory is a memory-mapped file (views of one included)."""
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


def is_one_shot(batches: Any) -> bool:
    """Whether this is an iterator, such as a generator, which ends after one pass."""
    return hasattr(batches, "__next__")


def begin_pass(batches: Any, name: str) -> Iterator:
    """Start going through the batches, after calling what makes them."""
    if callable(batches) and not hasattr(type(batches), "__iter__"):
        batches = batches()
    if not hasattr(batches, "__iter__"):
        raise TypeError(f"{name} returned {type(batches).__name__}; expected an iterable of batches")
    return iter(batches)


def row_ranges(n: int, step: int) -> Iterator[slice]:
    """Slices of at most step rows that together cover n."""
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
