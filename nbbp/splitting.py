"""Dividing data into a part to train on and one to test on, with every class in both by its share."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from nbbp.data import common_length, is_iterable_of_batches
from nbbp.scalars.philox import permutation
from nbbp.sources import CHUNK_BYTES, is_mapped, row_ranges
from nbbp.validation import as_array

__all__ = ["train_test_split"]

#: The counter of the split's random numbers: an epoch that no training reaches, so that none has the same order.
_EPOCH = (1 << 32) - 1


def train_test_split(
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    test_size: float = 0.2,
    stratify: bool = True,
    seed: int = 0,
) -> tuple:
    """Divide samples at random into a part to train on and a part to test on.

    With `stratify`, every class has its share of both parts: as exactly as whole samples allow (largest remainder), and
    at least one sample of each. Both parts come in random order. The same seed gives the same parts on any machine.

    Parameters
    ----------
    X : array_like (n, …)
        Of any dtype. DataFrames and lists stay what they are; of a memory-mapped file both parts are read into memory
        (where that is too much, split ``numpy.arange(n)``, or let `fit` take the end of the file by
        ``validation_split``, which reads nothing).
    y : array_like (n,) or (n, …)
        With `stratify`, class labels (n,) or (n, 1), or one-hot rows (n, n_classes).
    sample_weight : array_like (n,), optional
    test_size : float or int
        Share of the samples to test on, rounded up to whole ones; or how many.
    stratify : bool
        False for targets that are no classes.
    seed : int
        An int64, not negative.

    Returns
    -------
    X_train, X_test, y_train, y_test
        And, where there are sample weights, weight_train, weight_test.

    Raises
    ------
    TypeError
        X is an iterable of batches, or an argument of another type than above.
    ValueError
        A part would be empty, lengths differ, and with `stratify`: y holds no classes, a class has one sample only, a
        part is smaller than the number of classes.

    Examples
    --------
    >>> X, y = nbbp.datasets.load_digits()                                      # doctest: +SKIP
    >>> X_train, X_test, y_train, y_test = nbbp.train_test_split(X, y)          # doctest: +SKIP
    >>> model.fit(X_train, y_train, validation_data=(X_test, y_test))           # doctest: +SKIP
    """
    if not isinstance(stratify, (bool, np.bool_)):
        raise TypeError(f"stratify must be True or False; got {stratify!r} ({type(stratify).__name__})")
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1; got {seed!r}")
    if is_iterable_of_batches(X, y):
        raise TypeError(f"train_test_split needs arrays; X gives batches (it is of type {type(X).__name__})")
    named = {"X": X, "y": y, "sample_weight": sample_weight}
    if y is None:
        raise TypeError("y is None; expected the targets that go with X")
    n = common_length(named)
    n_test = _n_test(test_size, n)
    order = permutation(n, int(seed), _EPOCH)
    if stratify:
        is_test = _stratified(classes_of(y), n_test, order)
    else:
        is_test = np.arange(n) < n_test
    parts = order[~is_test], order[is_test]
    return tuple(_picked(value, rows, name) for name, value in named.items() if value is not None for rows in parts)


def _n_test(test_size: Any, n: int) -> int:
    """How many of n samples to test on."""
    if isinstance(test_size, (bool, np.bool_)) or not isinstance(test_size, numbers.Real):
        raise TypeError(f"test_size must be a number; got {test_size!r} ({type(test_size).__name__})")
    if isinstance(test_size, numbers.Integral):
        n_test, fits = int(test_size), 0 < test_size < n
    else:
        fits = 0.0 < test_size < 1.0
        n_test = math.ceil(test_size * n) if fits else 0
    if not fits:
        raise ValueError(
            f"test_size is {test_size!r}; expected a fraction between 0 and 1, or an integer from 1 to {n - 1}, one "
            f"less than the {n} samples"
        )
    if n_test == n:
        raise ValueError(f"test_size={test_size!r} of {n} samples leaves none to train on")
    return n_test


def classes_of(y: Any) -> np.ndarray:
    """The class of each sample as a number 0 … n_classes - 1, int64 (n,), from labels of any kind or one-hot rows.

    Raises
    ------
    ValueError
        If they are anything else.
    """
    labels = as_array(y, "y")
    hint = "stratify=True takes class labels or one-hot rows; pass stratify=False for other targets"
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf":
        is_one = labels == 1
        is_one_hot = (is_one | (labels == 0)).all(axis=1) & (is_one.sum(axis=1) == 1)
        if not is_one_hot.all():
            raise ValueError(f"row {int(np.argmin(is_one_hot))} of y is not one-hot; {hint}")
        labels = is_one.argmax(axis=1)
    elif labels.ndim > 2 or labels.size != len(labels):
        raise ValueError(f"y has shape {labels.shape}; {hint}")
    labels = labels.reshape(-1)
    if labels.dtype.kind == "f":
        is_whole = np.isfinite(labels) & (np.floor(labels) == labels)
        if not is_whole.all():
            row = int(np.argmin(is_whole))
            raise ValueError(f"row {row} of y is {labels[row]:g}, no label; {hint}")
    try:
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)
    except TypeError as error:
        raise ValueError(f"y holds labels that cannot be told apart ({error}); {hint}") from None


def _stratified(classes: np.ndarray, n_test: int, order: np.ndarray) -> np.ndarray:
    """Which places of a random order of the samples (n,) go to the test part: as many of each class as `shares` says.

    classes : int64 (n,), 0 … n_classes - 1.
    """
    counts = np.bincount(classes)
    if counts.min() < 2:
        row = int(np.flatnonzero(classes == counts.argmin())[0])
        raise ValueError(
            f"a class has one sample only (row {row} of y), which cannot be in both parts; expected at least 2 of each "
            "class, or stratify=False"
        )
    for what, size in (("test", n_test), ("training", len(classes) - n_test)):
        if size < len(counts):
            raise ValueError(
                f"the {what} part has {size} samples, fewer than the {len(counts)} classes; expected at least one of "
                "each: choose another test_size, or stratify=False"
            )
    shuffled = classes[order]
    by_class = np.argsort(shuffled, kind="stable")  # places of the first class, then of the second, …
    first = np.cumsum(counts) - counts
    place_in_class = np.empty(len(classes), np.int64)
    place_in_class[by_class] = np.arange(len(classes)) - np.repeat(first, counts)
    return place_in_class < shares(counts, n_test)[shuffled]


def shares(counts: np.ndarray, n_test: int) -> np.ndarray:
    """How many samples of each class to test on, (n_classes,): ``n_test`` in all, in proportion to the counts.

    Rounded by largest remainder, ties to the lower class, but at least one of a class and never all. Of integers
    throughout, so that every machine rounds alike.

    Parameters
    ----------
    counts : ndarray of int64 (n_classes,)
        At least 2 each.
    n_test : int
        From n_classes to sum(counts) - n_classes.
    """
    n = int(counts.sum())
    wanted = counts * n_test  # n times what is due to each class
    given = np.clip(wanted // n, 1, counts - 1)
    while (left := n_test - int(given.sum())) != 0:
        sign = 1 if left > 0 else -1
        may_change = np.flatnonzero(given < counts - 1 if sign > 0 else given > 1)
        due = sign * (wanted - n * given)[may_change]
        changed = may_change[np.argsort(-due, kind="stable")[: abs(left)]]
        given[changed] += sign
    return given


def _picked(value: Any, rows: np.ndarray, name: str) -> Any:
    """These rows of an array, DataFrame, list or tuple, as what it is."""
    if hasattr(value, "iloc"):  # a DataFrame's plain [] may go by label
        return value.iloc[rows]
    if isinstance(value, (list, tuple)):
        kind = tuple if isinstance(value, tuple) else list
        return kind(value[row] for row in rows.tolist())
    array = value if hasattr(value, "shape") and hasattr(type(value), "__getitem__") else as_array(value, name)
    return _read(array, rows) if isinstance(array, np.ndarray) and is_mapped(array) else array[rows]


def _read(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a file, into memory: read in ascending order, which is how a disk likes it, and a part at a time."""
    ranks = np.argsort(rows, kind="stable")
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    row_bytes = max(1, out.nbytes // len(rows))
    for part in row_ranges(len(rows), max(1, CHUNK_BYTES // row_bytes)):
        out[ranks[part]] = array[rows[ranks[part]]]
    return out
