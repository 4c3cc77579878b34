"""The boundary: what a caller hands in becomes plain arrays of one dtype, or a clear error.

Every array passes here once, before any buffer of a model changes. A function returns a C-contiguous,
aligned array in native byte order, which *is* the caller's memory where nothing had to change, and never
writes to it. Errors say what is wrong, what was expected and what came; a bad number is named by its row and
column.

The scans are compiled because they are the price of every call: ``predict`` of one sample takes a few
microseconds, and a NumPy reduction alone would take as long.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np

from nbbp.compiling import jit

# Numbers examined between two looks at the result: long enough to vectorise, short enough to stop early.
_SCAN_BLOCK = 4096

LARGEST = {"f": float(np.finfo(np.float32).max), "d": float(np.finfo(np.float64).max)}


@jit()
def first_outside(values, low, high):
    """Find the first number that is not in [low, high]; NaN never is.

    values (any C-contiguous shape), low and high (numbers of any type); reads only.
    Returns the flat index, or -1 if all are inside.
    """
    lowest = values.dtype.type(low)
    highest = values.dtype.type(high)
    flat = values.reshape(values.size)
    for start in range(0, flat.size, _SCAN_BLOCK):
        # LLVM vectorises this form: a block that starts at 0, and a count rather than a truth value.
        block = flat[start : min(start + _SCAN_BLOCK, flat.size)]
        outside = np.int32(0)
        for i in range(block.size):
            outside |= np.int32(not ((block[i] >= lowest) & (block[i] <= highest)))
        if outside:
            for i in range(block.size):
                if not (block[i] >= lowest and block[i] <= highest):
                    return start + i
    return -1


@jit()
def first_no_category(values, column, n_categories):
    """Find the first row of values (n, n_in) whose number in that column is none of 0 … n_categories - 1.

    Reads only. Returns the row, or -1 if all are categories.
    """
    for row in range(values.shape[0]):
        value = values[row, column]
        if not (value >= 0 and value < n_categories and value == np.floor(value)):
            return row
    return -1


@jit()
def first_row_not_summing_to_one(values, tolerance):
    """Find the first row of values (n, n_out) whose sum is not 1 within the tolerance.

    Reads only. Returns the row, or -1 if every row sums to 1; a sum of NaN does not.
    """
    for row in range(values.shape[0]):
        total = 0.0
        for column in range(values.shape[1]):
            total += values[row, column]
        if not abs(total - 1.0) <= tolerance:
            return row
    return -1


def compile_scans() -> None:
    """Compile (or load from the cache) the scans for both dtypes, as ``python -m nbbp warmup`` does."""
    first_outside(np.zeros(1, np.int64), 0, 1)
    for dtype in (np.float32, np.float64):
        values = np.ones((1, 1), dtype)
        first_outside(values, 0.0, 1.0)
        first_outside(values[0], 0.0, 1.0)  # weights
        first_row_not_summing_to_one(values, 1e-3)
        first_no_category(values, 0, 1)


def features(
    X: Any,
    n_in: int | None,
    dtype: np.dtype,
    name: str = "X",
    *,
    rows: np.ndarray | None = None,
    original: Any = None,
    categories: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Check the input features of a network and convert them to one dtype.

    Parameters
    ----------
    X : array_like, shape (n, n_in), or (n,) where n_in is 1
        Numbers of any dtype, order, strides and byte order: arrays, lists, DataFrames, tensors on the CPU.
    n_in : int or None
        Features per sample that the network takes; None accepts any number of them.
    dtype : np.dtype
        float32 or float64.
    name : str
        What the caller calls X, for the message.
    rows : ndarray of int64, shape (n,), optional
        The caller's row numbers, where X holds rows picked from a larger array.
    original : array_like, optional
        What X was read from, such as a DataFrame, which knows its column names for a message.
    categories : sequence of (int, int)
        Columns that hold categories, and how many of these there are.

    Returns
    -------
    ndarray, shape (n, n_in)
        C-contiguous and aligned; the caller's own memory if it was so already.

    Raises
    ------
    TypeError
        X does not hold real numbers.
    ValueError
        X is empty, has the wrong shape, or holds NaN, infinity, a number too large for dtype or no category where
        one is expected.
    """
    if not (
        type(X) is np.ndarray
        and X.ndim == 2
        and X.dtype == dtype
        and X.shape[1] == n_in
        and X.shape[0] > 0
        and X.flags.carray
    ):
        original = X if original is None else original
        array = feature_matrix(as_array(X, name), n_in, name)
        values = to_dtype(array, dtype, name, rows, original)
    else:
        values = X
    largest = LARGEST[values.dtype.char]
    bad = first_outside(values, -largest, largest)
    if bad >= 0:
        refuse_number(bad, values, X if original is None else original, name, rows)
    check_categories(values, categories, name, rows, X if original is None else original)
    return values


def check_categories(
    values: np.ndarray, categories: Sequence[tuple[int, int]], name: str, rows: np.ndarray | None, original: Any
) -> None:
    """Refuse a number that is no category of its column; the arguments as in `features`.

    Raises ValueError.
    """
    for column, n_categories in categories:
        row = first_no_category(values, column, n_categories)
        if row >= 0:
            value = float(values[row, column])
            shown = f"{value:.0f}" if value.is_integer() else f"{value:g}"
            place = _place((row, column), original, rows)
            expected = f"a category 0 … {n_categories - 1}" if n_categories > 1 else "the one category 0"
            raise ValueError(f"{name} holds {shown} in {place}; expected {expected}")


def as_array(data: Any, name: str) -> np.ndarray:
    """View or gather anything array-like as a plain ndarray of whatever dtype it has.

    Raises TypeError for what is no array of numbers, ValueError for ragged lists and masked entries.
    """
    if type(data) is np.ndarray and data.ndim > 0:
        return data
    if data is None or isinstance(data, (str, bytes, Mapping, set, frozenset)):
        raise TypeError(f"{name} is {_kind(data)}; expected an array of numbers")
    if isinstance(data, np.ma.MaskedArray):
        masked = np.argwhere(np.ma.getmaskarray(data))
        if len(masked):
            place = _place(masked[0], data, None)
            raise ValueError(f"{name} is masked at {place}; fill it first: {name}.filled(value)")
        return np.asarray(data.data)
    if hasattr(data, "toarray") and not hasattr(data, "__array__"):
        kind = type(data).__name__
        raise TypeError(f"{name} is a sparse {kind}; expected a dense array: pass {name}.toarray()")
    try:
        source = data if hasattr(data, "__array__") or not hasattr(data, "to_numpy") else data.to_numpy()
        array = np.asarray(source)
    except Exception as error:
        if isinstance(data, (list, tuple)):
            raise ValueError(f"{name} is ragged: {_ragged(data)}") from error
        raise TypeError(f"{name} ({_kind(data)}) cannot be read as an array: {error}") from error
    if array.ndim == 0:
        raise TypeError(f"{name} is {_kind(data)}; expected an array with one row per sample")
    return array


def feature_matrix(array: np.ndarray, n_in: int | None, name: str) -> np.ndarray:
    """Return the array as (n, n_in), or say why it cannot be."""
    if array.size == 0:
        raise ValueError(f"{name} is empty; expected at least one sample ({name}.shape = {array.shape})")
    if array.ndim == 1 and n_in == 1:
        return array.reshape(-1, 1)
    takes = "a network takes a matrix (n, n_in)" if n_in is None else f"this network takes {n_in} features per sample"
    if array.ndim == 1:
        hint = ""
        if n_in is None:
            hint = f"; use {name}.reshape(-1, 1), or {name}.reshape(1, -1) for one sample"
        elif n_in == array.size:
            hint = f"; use {name}.reshape(1, -1) for one sample"
        came = f"{name}.shape = {array.shape}{hint}"
        raise ValueError(f"{name} has one dimension; {takes} ({came})")
    if array.ndim > 2:
        hint = f"use {name}.reshape(len({name}), -1), which gives {math.prod(array.shape[1:])} features"
        hint += ", or put Flatten() first in the network"
        came = f"{name}.shape = {array.shape}; {hint}"
        raise ValueError(f"{name} has {array.ndim} dimensions; {takes} ({came})")
    if n_in is not None and array.shape[1] != n_in:
        came = f"{array.shape[1]} features per sample"
        raise ValueError(f"{name} has {came}; this network takes {n_in} ({name}.shape = {array.shape})")
    return array


def to_dtype(array: np.ndarray, dtype: Any, name: str, rows: np.ndarray | None, original: Any) -> np.ndarray:
    """Convert to a C-contiguous, aligned array that Numba sees as writable; an overflow becomes inf."""
    kind = array.dtype.kind
    if kind == "O":
        array = _numbers_from_objects(array, name, rows, original)
    elif kind == "c":
        raise TypeError(f"{name} is complex ({array.dtype}); expected real numbers, such as {name}.real")
    elif kind not in "biuf" and not (kind == "V" and np.can_cast(array.dtype, np.float64)):
        # (bfloat16 and its kind come as "V", with a cast to float64.)
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers")
    with np.errstate(all="ignore"):
        values = np.require(np.asarray(array), dtype, ("C", "A"))
    return presented_to_numba(values)


def presented_to_numba(array: np.ndarray) -> np.ndarray:
    """Return the array such that Numba sees its one ordinary type, without a copy.

    To Numba a read-only array is another type, for which every kernel would be compiled once more. The
    engines never write to features, targets or weights.
    """
    return array if array.flags.writeable else np.asarray(_ReadOnlyMemory(array))


class _ReadOnlyMemory:
    """Shows a read-only array's memory as that of an ordinary array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _numbers_from_objects(array: np.ndarray, name: str, rows: np.ndarray | None, original: Any) -> np.ndarray:
    """Convert an array of Python objects to float64 (same shape), one by one: NumPy would also parse text."""
    values = np.empty(array.shape, np.float64)
    for index, item in np.ndenumerate(array):
        refused = isinstance(item, (str, bytes)) or (
            isinstance(item, numbers.Complex) and not isinstance(item, numbers.Real)
        )
        try:
            if refused:
                raise TypeError
            values[index] = float(item)
        except OverflowError:
            values[index] = math.inf
        except (TypeError, ValueError):
            place = _place(index, original, rows)
            raise TypeError(f"{name} holds no number at {place}: {item!r} ({type(item).__name__})") from None
    return values


def refuse_number(
    flat_index: int, values: np.ndarray, original: Any, name: str, rows: np.ndarray | None, rule: str = ""
) -> None:
    """Raise the ValueError that names the number at this flat index of values, as the caller wrote it."""
    index = np.unravel_index(flat_index, values.shape)
    value = float(values[index])
    place = _place(index, original, rows)
    if math.isinf(value):
        # Did the caller write infinity, or did the conversion make it?
        written = as_array(original, name).reshape(values.shape)[index]
        if not (isinstance(written, (float, np.floating)) and np.isinf(written)):
            # (str, because a long double may be too large for a format of its own.)
            shown = str(written) if isinstance(written, (float, np.floating)) else "an integer"
            raise ValueError(
                f"{name} holds {shown} at {place}, too large for {values.dtype} (at most "
                f"{LARGEST[values.dtype.char]:.3g}): scale the data"
                + (" or use dtype='float64'" if values.dtype == np.float32 else "")
            )
    shown = "NaN" if math.isnan(value) else f"{value:g}"
    raise ValueError(f"{name} holds {shown} at {place}; {rule or 'expected finite numbers'}")


def _place(index: Any, original: Any, rows: np.ndarray | None) -> str:
    """'row 3, column 2', with the column's label if there is one; the row alone for one-dimensional data."""
    row = int(index[0]) if rows is None else int(rows[int(index[0])])
    if len(index) < 2 or getattr(original, "ndim", 2) < 2:
        return f"row {row}"
    column = int(index[1])
    labels = getattr(original, "columns", None)
    label = "" if labels is None else f" ({labels[column]!r})"
    return f"row {row}, column {column}{label}"


def _ragged(data: list | tuple) -> str:
    """Name the first row of a nested list whose length differs from the first row's."""
    lengths = [len(row) if isinstance(row, Sized) and getattr(row, "shape", None) != () else None for row in data]
    for row, length in enumerate(lengths):
        if length != lengths[0]:
            shown = "one number" if length is None else f"{length} values"
            first = "one number" if lengths[0] is None else f"{lengths[0]} values"
            return f"row {row} has {shown}, row 0 has {first}"
    return "its rows differ in shape"


def _kind(data: Any) -> str:
    return "None" if data is None else f"of type {type(data).__name__}"
