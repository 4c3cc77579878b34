"""What a loss learns from: labels, dense targets and weights, checked and converted at the boundary.

As in `nbbp.validation`, nothing of a model has changed yet when these raise, and the caller's arrays are only
read.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from nbbp.validation import (
    LARGEST,
    as_array,
    first_outside,
    first_row_not_summing_to_one,
    presented_to_numba,
    refuse_number,
    to_dtype,
)

# Soft targets may come from a float16 softmax, whose rows sum to 1 within 5e-4.
_SUM_TOLERANCE = 1e-3

_INT64 = np.dtype(np.int64)

_CLASS_WEIGHT_FORMS = "a mapping {label: weight} or 'balanced'"


def targets(
    y: Any,
    loss: Any,
    n_out: int,
    n_samples: int | None,
    dtype: np.dtype,
    name: str = "y",
    *,
    partner: str = "X",
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Check the targets of a loss and convert them to what its kernels take.

    Parameters
    ----------
    y : array_like
        ``crossentropy`` and ``nll``: class labels 0 … n_out - 1 of shape (n,) or (n, 1), or probabilities
        (n, n_out) whose rows sum to 1. ``binary_crossentropy``: numbers in [0, 1]. ``hinge``: -1 and +1, or 0
        and 1. ``poisson``: numbers of at least 0. Every other loss: any finite numbers. The elementwise losses take (n,
        n_out), and (n,) where n_out is 1.
    loss : a loss of ``nbbp.losses``
        Read for its ``name`` and ``row_wise``.
    n_out : int
        Outputs of the network.
    n_samples : int or None
        Rows of the features; None does not compare.
    dtype : np.dtype
        float32 or float64.
    name, partner : str
        What the caller calls y and X, for the message.
    rows : ndarray of int64, shape (n,), optional
        The caller's row numbers, where y holds rows picked from a larger array.

    Returns
    -------
    ndarray
        int64 labels (n,), or dense targets (n, n_out) of dtype; C-contiguous and aligned. Hinge targets are
        -1 and +1.

    Raises
    ------
    TypeError
        y does not hold real numbers (text labels, for instance).
    ValueError
        y is empty, has the wrong shape or length, or a value that the loss does not know.
    """
    if loss.row_wise:
        ready = type(y) is np.ndarray and y.dtype == _INT64 and y.shape == (n_samples,) and y.flags.carray
        if ready and first_outside(y, 0, n_out - 1) < 0:
            return y
        return _class_targets(y, loss, n_out, n_samples, dtype, name, partner, rows)

    if type(y) is np.ndarray and y.dtype == dtype and y.shape == (n_samples, n_out) and y.flags.carray:
        values = y
    else:
        array = target_array(y, loss, n_out, n_samples, name, partner)
        values = to_dtype(array.reshape(-1, n_out), dtype, name, rows, y)
    largest = LARGEST[values.dtype.char]
    if loss.name == "binary_crossentropy":
        bad = first_outside(values, 0.0, 1.0)
        if bad >= 0:
            refuse_number(bad, values, y, name, rows, "binary_crossentropy takes targets in [0, 1]")
    elif loss.name == "poisson":
        bad = first_outside(values, 0.0, largest)
        if bad >= 0:
            refuse_number(bad, values, y, name, rows, "poisson takes counts, finite and not negative")
    elif (bad := first_outside(values, -largest, largest)) >= 0:
        refuse_number(bad, values, y, name, rows)
    if loss.name == "hinge":
        return _signs(values, name, rows, y)
    return values


def weights(
    sample_weight: Any,
    class_weight: Mapping[int, float] | str | None,
    y: np.ndarray | None,
    loss: Any,
    n_out: int,
    n_samples: int,
    dtype: np.dtype,
    name: str = "sample_weight",
    *,
    partner: str = "X",
) -> np.ndarray | None:
    """Combine sample and class weights into one weight per sample, their product.

    Parameters
    ----------
    sample_weight : array_like, shape (n,), or None
        Finite, not negative.
    class_weight : mapping {label: weight}, "balanced" or None
        A label without an entry weighs 1. "balanced" gives label k the weight
        n / (labels present × count of k), as scikit-learn does.
    y : ndarray or None
        What `targets` returned; needed for class_weight.
    loss : a loss of ``nbbp.losses``
    n_out, n_samples : int
        Outputs of the network; rows of the features.
    dtype : np.dtype
        float32 or float64.
    name, partner : str
        What the caller calls the weights and the features, for the message.

    Returns
    -------
    ndarray, shape (n,), or None
        Of dtype; None if neither weight is given.

    Raises
    ------
    TypeError, ValueError
        A weight is no number, negative, NaN or infinite; the length differs; a class that the network does
        not have; class_weight for a loss without classes.
    """
    combined = None
    if sample_weight is not None:
        array = as_array(sample_weight, name)
        check_length(array, n_samples, name, partner)
        if array.ndim != 1 and array.shape != (n_samples, 1):
            raise ValueError(f"{name} has shape {array.shape}; expected one per sample, shape ({n_samples},)")
        combined = to_dtype(array.reshape(-1), dtype, name, None, sample_weight)
        bad = first_outside(combined, 0.0, LARGEST[combined.dtype.char])
        if bad >= 0:
            refuse_number(bad, combined, sample_weight, name, None, "weights must be finite and not negative")
    if class_weight is not None:
        labels = class_labels(y, loss, n_out)
        combined = times_class_weights(combined, class_weight, labels, loss, n_out, dtype)
    return combined


def times_class_weights(
    weight: np.ndarray | None,
    class_weight: Mapping[int, float] | str,
    labels: np.ndarray,
    loss: Any,
    n_out: int,
    dtype: np.dtype,
) -> np.ndarray:
    """Sample weights (n,) or None times the weights of the samples' classes: (n,) of dtype. See `weights`."""
    with np.errstate(all="ignore"):
        combined = class_weights(class_weight, labels, loss, n_out).astype(dtype)[labels]
        if weight is not None:
            combined = combined * weight
    largest = LARGEST[combined.dtype.char]
    bad = first_outside(combined, 0.0, largest)
    if bad >= 0:
        raise ValueError(
            f"class_weight gives row {bad}, of class {labels[bad]}, a weight too large for {combined.dtype} (at most "
            f"{largest:.3g})"
        )
    return combined


def class_labels(y: np.ndarray | None, loss: Any, n_out: int) -> np.ndarray:
    """Class of each sample, int64 (n,), from what `targets` returned (rows of probabilities: the largest).

    Raises ValueError where the loss has no classes or a sample belongs to several.
    """
    if y is None:
        raise ValueError("class_weight needs the targets, which were not given")
    if loss.row_wise:
        return y if y.ndim == 1 else y.argmax(axis=1)
    if loss.name not in ("binary_crossentropy", "hinge") or n_out != 1:
        raise ValueError(
            f"class_weight needs one class label per sample; the loss {loss.name!r} on {_outputs(n_out)} has "
            "none: use sample_weight"
        )
    values = y.reshape(-1)
    if loss.name == "hinge":
        return (values > 0).astype(np.int64)
    soft = np.flatnonzero((values != 0) & (values != 1))
    if soft.size:
        raise ValueError(
            f"class_weight needs targets that are 0 or 1; row {soft[0]} of y is {values[soft[0]]:g}: use sample_weight"
        )
    return values.astype(np.int64)


def class_weights(class_weight: Mapping[int, float] | str, labels: np.ndarray, loss: Any, n_out: int) -> np.ndarray:
    """Weight of each class, float64 (n_classes,), for a data set with these labels (n,). See `weights`."""
    n_classes = n_out if loss.row_wise else 2
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight is {class_weight!r}; expected {_CLASS_WEIGHT_FORMS}")
        counts = np.bincount(labels, minlength=n_classes)
        present = np.count_nonzero(counts)
        return np.where(counts > 0, len(labels) / (present * np.maximum(counts, 1)), 1.0)
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            f"class_weight is of type {type(class_weight).__name__}; expected {_CLASS_WEIGHT_FORMS} "
            "(for one weight per class in order: dict(enumerate(class_weight)))"
        )
    per_class = np.ones(n_classes)
    for label, weight in class_weight.items():
        # Hinge targets may be written -1/+1 or 0/1: both name the same two classes.
        index = 0 if loss.name == "hinge" and label == -1 else label
        if not isinstance(index, numbers.Real) or index not in range(n_classes):
            raise ValueError(f"class_weight names the label {label!r}; the labels are 0 to {n_classes - 1}")
        if not isinstance(weight, numbers.Real) or not 0 <= weight < math.inf:
            raise ValueError(f"class_weight[{label!r}] is {weight!r}; expected a finite number, not negative")
        per_class[int(index)] = float(weight)
    return per_class


def target_array(y: Any, loss: Any, n_out: int, n_samples: int | None, name: str, partner: str = "X") -> np.ndarray:
    """View or gather targets as an array of whatever dtype, of a length and shape that the loss takes."""
    array = as_array(y, name)
    if array.size == 0:
        raise ValueError(f"{name} is empty; expected one row per sample ({name}.shape = {array.shape})")
    _refuse_text(array, name, n_out if loss.is_classification else None)
    check_length(array, n_samples, name, partner)
    one_column = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    if (one_column and (loss.row_wise or n_out == 1)) or array.shape == (len(array), n_out):
        return array
    takes = f"targets of shape (n, {n_out})"
    if loss.row_wise:
        takes = f"labels of shape (n,) or probabilities of shape (n, {n_out})"
    elif n_out == 1:
        takes = "targets of shape (n,) or (n, 1)"
    hint = "; for class labels use loss='crossentropy'" if array.ndim == 1 else ""
    raise ValueError(
        f"{name} has shape {array.shape}; the loss {loss.name!r} on a network with {_outputs(n_out)} takes "
        f"{takes}{hint}"
    )


def _class_targets(
    y: Any,
    loss: Any,
    n_out: int,
    n_samples: int | None,
    dtype: np.dtype,
    name: str,
    partner: str,
    rows: np.ndarray | None,
) -> np.ndarray:
    """Targets of crossentropy and nll: labels (n,) or rows of probabilities (n, n_out)."""
    array = target_array(y, loss, n_out, n_samples, name, partner)
    if array.ndim == 1 or array.shape[1] == 1:
        return _labels(array.reshape(-1), loss, n_out, name, rows, y)
    values = to_dtype(array, dtype, name, rows, y)
    bad = first_outside(values, 0.0, 1.0 + _SUM_TOLERANCE)
    if bad >= 0:
        refuse_number(bad, values, y, name, rows, f"{loss.name} takes rows of probabilities")
    bad = first_row_not_summing_to_one(values, _SUM_TOLERANCE)
    if bad >= 0:
        row = bad if rows is None else rows[bad]
        raise ValueError(
            f"row {row} of {name} sums to {values[bad].sum(dtype=np.float64):g}; {loss.name} takes rows of "
            "probabilities that sum to 1 (for several labels per sample use loss='binary_crossentropy')"
        )
    return values


def _labels(array: np.ndarray, loss: Any, n_out: int, name: str, rows: np.ndarray | None, original: Any) -> np.ndarray:
    """Check labels (n,) of any real dtype against 0 … n_out - 1 before anything is rounded or wrapped."""
    if array.dtype.kind not in "biu":
        array = to_dtype(array, np.float64, name, rows, original)
        fractional = np.flatnonzero(np.floor(array) != array)
        if fractional.size:
            row = fractional[0] if rows is None else rows[fractional[0]]
            raise ValueError(
                f"row {row} of {name} is {array[fractional[0]]:g}; {loss.name} takes whole-number labels "
                f"0 to {n_out - 1}, or probabilities of shape (n, {n_out})"
            )
    bad = np.flatnonzero((array < 0) | (array >= n_out))
    if bad.size:
        row = bad[0] if rows is None else rows[bad[0]]
        label = array[bad[0]]
        shown = f"{label:g}" if array.dtype.kind == "f" else str(label)
        hint = ""
        if n_out == 1:
            hint = "; for two classes use loss='binary_crossentropy' or two outputs"
        elif array.min() == 1 and array.max() == n_out:
            hint = f"; labels count from 0: pass {name} - 1"
        raise ValueError(
            f"row {row} of {name} has the label {shown}; a network with {_outputs(n_out)} takes "
            f"labels 0 to {n_out - 1}{hint}"
        )
    labels = np.require(array, np.int64, ("C", "A"))
    return presented_to_numba(labels)


def _signs(values: np.ndarray, name: str, rows: np.ndarray | None, original: Any) -> np.ndarray:
    """Hinge targets as -1 and +1, from those or from 0 and 1."""
    negative, zero, positive = values == -1, values == 0, values == 1
    low = zero if zero.any() else negative
    neither = np.flatnonzero(~(low | positive))
    if neither.size:
        rule = "hinge takes targets -1 and +1, or 0 and 1 throughout"
        refuse_number(int(neither[0]), values, original, name, rows, rule)
    return values if low is negative else np.where(positive, values, -np.ones_like(values))


def check_length(array: np.ndarray, n_samples: int | None, name: str, partner: str) -> None:
    """Refuse an array whose length is not n_samples (None: any)."""
    if n_samples is not None and len(array) != n_samples:
        raise ValueError(
            f"{partner} has {n_samples} samples, {name} has {len(array)}; expected as many "
            f"({name}.shape = {array.shape})"
        )


def _refuse_text(array: np.ndarray, name: str, n_classes: int | None) -> None:
    """Text labels get a hint of their own: they are what people try first."""
    if array.size and isinstance(array.flat[0], (str, bytes)):
        labels = f"labels 0 to {max(1, n_classes - 1)}" if n_classes else "numbers"
        raise TypeError(
            f"{name} holds text ({str(array.flat[0])!r} in row 0); expected {labels}: "
            f"classes, {name} = np.unique({name}, return_inverse=True)"
        )


def _outputs(n_out: int) -> str:
    return "1 output" if n_out == 1 else f"{n_out} outputs"
