"""nbbp.targets: labels, dense targets and weights."""

import numpy as np
import pytest

from nbbp import losses
from nbbp.targets import targets, weights

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
BOTH = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
CROSSENTROPY = losses.get("crossentropy")
BINARY = losses.get("binary_crossentropy")
HINGE = losses.get("hinge")
MSE = losses.get("mse")


def assert_ready(array, dtype, shape):
    """What an engine needs: plain, native, C-contiguous, aligned, of one type to Numba."""
    assert type(array) is np.ndarray
    assert array.dtype == dtype
    assert array.dtype.isnative
    assert array.shape == shape
    assert array.flags.carray


# --- targets ----------------------------------------------------------------------------------------------


def test_labels_come_in_many_forms():
    for y in (
        [0, 2, 1],
        np.array([0, 2, 1], np.uint8),
        np.array([0, 2, 1], ">i8"),
        np.array([[0], [2], [1]]),
        np.array([0.0, 2.0, 1.0]),
        np.array([0, 9, 2, 9, 1])[::2],
        np.array([0, 2, 1], object),
    ):
        labels = targets(y, CROSSENTROPY, 3, 3, FLOAT32)
        assert_ready(labels, np.int64, (3,))
        assert labels.tolist() == [0, 2, 1]
    assert targets([True, False], CROSSENTROPY, 2, 2, FLOAT32).tolist() == [1, 0]


def test_labels_that_are_ready_are_not_copied():
    y = np.array([0, 1, 2])
    assert targets(y, CROSSENTROPY, 3, 3, FLOAT32) is y
    y.flags.writeable = False
    assert np.shares_memory(targets(y, CROSSENTROPY, 3, 3, FLOAT32), y)


@BOTH
@pytest.mark.parametrize("name", ["crossentropy", "nll"])
def test_rows_of_probabilities(dtype, name):
    for y in (np.eye(3, dtype=int), [[0.2, 0.3, 0.5]] * 3, np.full((3, 3), 1 / 3, np.float16)):
        dense = targets(y, losses.get(name), 3, 3, dtype)
        assert_ready(dense, dtype, (3, 3))
        np.testing.assert_array_equal(dense, np.asarray(y, dtype))


WRONG_LABELS = {
    "too large": (
        [0, 1, 3, 4],
        ValueError,
        "row 2 of y has the label 3; a network with 3 outputs takes labels 0 to 2",
    ),
    "negative": ([0, -1], ValueError, "row 1 of y has the label -1"),
    "from one": ([1, 2, 3], ValueError, "row 2 of y has the label 3; .* labels count from 0: pass y - 1"),
    "huge": (np.array([2**63], np.uint64), ValueError, "row 0 of y has the label 9223372036854775808"),
    "huge float": ([0.0, 1e300], ValueError, "row 1 of y has the label 1e\\+300"),
    "fraction": ([0.0, 0.5], ValueError, "row 1 of y is 0.5; crossentropy takes whole-number labels 0 to 2"),
    "NaN": ([0.0, np.nan], ValueError, "row 1 of y is nan"),
    "infinite": ([0.0, np.inf], ValueError, "row 1 of y has the label inf"),
    "text": (
        ["cat", "dog"],
        TypeError,
        r"y holds text \('cat' in row 0\); expected labels 0 to 2: .*np\.unique",
    ),
    "text objects": (np.array(["cat", 1], object), TypeError, "y holds text"),
    "complex": ([1j, 2], TypeError, "y is complex"),
    "None": (None, TypeError, "y is None"),
    "empty": ([], ValueError, "y is empty"),
    "columns": (np.ones((2, 5)), ValueError, r"shape \(2, 5\); .*labels of shape \(n,\) or .*\(n, 3\)"),
    "cube": (np.ones((2, 3, 1)), ValueError, r"y has shape \(2, 3, 1\)"),
    "several labels": ([[1, 1, 0]], ValueError, "row 0 of y sums to 2; .*binary_crossentropy"),
    "no label": ([[1, 0, 0], [0, 0, 0]], ValueError, "row 1 of y sums to 0"),
    "negative probability": ([[1.5, -0.5, 0.0]], ValueError, "y holds 1.5 at row 0, column 0"),
    "NaN probability": ([[1, 0, 0], [np.nan, 1, 0]], ValueError, "y holds NaN at row 1, column 0"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_wrong_labels_name_their_row(name):
    y, error, message = WRONG_LABELS[name]
    with pytest.raises(error, match=message):
        targets(y, CROSSENTROPY, 3, None, FLOAT32)


def test_labels_for_a_network_with_one_output():
    with pytest.raises(ValueError, match="1 output takes labels 0 to 0; for two classes use loss='binary_cross"):
        targets([0, 1], CROSSENTROPY, 1, 2, FLOAT32)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"X has 4 samples, y has 3; expected as many \(y.shape = \(3,\)\)"):
        targets([0, 1, 2], CROSSENTROPY, 3, 4, FLOAT32)
    with pytest.raises(ValueError, match="validation X has 4 samples, validation y has 2"):
        targets([[0.0], [1.0]], MSE, 1, 4, FLOAT32, "validation y", partner="validation X")


@BOTH
def test_binary_targets(dtype):
    for y in ([0, 1, 1], [[0], [1], [1]], [False, True, True], [0.0, 1.0, 1.0]):
        assert_ready(targets(y, BINARY, 1, 3, dtype), dtype, (3, 1))
    assert_ready(targets([[0, 1], [0.5, 1]], BINARY, 2, 2, dtype), dtype, (2, 2))
    with pytest.raises(ValueError, match=r"y holds 2 at row 1.*takes targets in \[0, 1\]"):
        targets([0, 2], BINARY, 1, 2, dtype)
    with pytest.raises(ValueError, match="y holds NaN at row 0"):
        targets([np.nan, 1], BINARY, 1, 2, dtype)
    with pytest.raises(ValueError, match=r"y has shape \(3,\); .* takes targets of shape \(n, 2\)"):
        targets([0, 1, 1], BINARY, 2, 3, dtype)
    with pytest.raises(TypeError, match="y holds text"):
        targets(["no", "yes"], BINARY, 1, 2, dtype)


@BOTH
def test_hinge_targets_are_signs(dtype):
    for y in ([0, 1, 1], [-1, 1, 1], [[-1], [1], [1]], [False, True, True]):
        signs = targets(y, HINGE, 1, 3, dtype)
        assert_ready(signs, dtype, (3, 1))
        assert signs.ravel().tolist() == [-1, 1, 1]
    assert targets([1, 1], HINGE, 1, 2, dtype).ravel().tolist() == [1, 1]
    y = np.array([[0.0], [1.0]], dtype)
    targets(y, HINGE, 1, 2, dtype)
    assert y.ravel().tolist() == [0, 1], "the caller's labels were changed"
    for wrong in ([-1, 0, 1], [0.5, 1], [2, 1]):
        with pytest.raises(ValueError, match=r"y holds .* at row 0.*hinge takes targets -1 and \+1, or 0 and 1"):
            targets(wrong, HINGE, 1, len(wrong), dtype)


@BOTH
def test_regression_targets(dtype):
    assert_ready(targets([1, 2, 3], MSE, 1, 3, dtype), dtype, (3, 1))
    assert_ready(targets(np.ones((3, 2)), MSE, 2, 3, dtype), dtype, (3, 2))
    ready = np.ones((3, 2), dtype)
    assert targets(ready, MSE, 2, 3, dtype) is ready
    with pytest.raises(ValueError, match=r"shape \(3,\); the loss 'mse' .*\(n, 4\); for class labels use loss='cross"):
        targets([0, 1, 2], MSE, 4, 3, dtype)
    with pytest.raises(ValueError, match=r"shape \(3, 2\).*\(n,\) or \(n, 1\)"):
        targets(np.ones((3, 2)), MSE, 1, 3, dtype)
    with pytest.raises(ValueError, match="y holds inf at row 1"):
        targets([1, np.inf], MSE, 1, 2, dtype)
    with pytest.raises(TypeError, match=r"y holds text .*expected numbers"):
        targets(["a", "b"], MSE, 1, 2, dtype)


# --- weights ----------------------------------------------------------------------------------------------


@BOTH
def test_weights_multiply(dtype):
    y = np.array([0, 1, 2, 1])
    assert weights(None, None, y, CROSSENTROPY, 3, 4, dtype) is None
    only_samples = weights([1, 2, 3, 4], None, y, CROSSENTROPY, 3, 4, dtype)
    assert_ready(only_samples, dtype, (4,))
    both = weights([1, 2, 3, 4], {1: 10.0, 2: 0}, y, CROSSENTROPY, 3, 4, dtype)
    assert_ready(both, dtype, (4,))
    assert both.tolist() == [1, 20, 0, 40]
    assert_ready(weights(np.ones((4, 1)), None, y, CROSSENTROPY, 3, 4, dtype), dtype, (4,))


def test_balanced_weights_are_scikit_learns():
    y = np.array([0, 0, 0, 0, 2, 2, 3])
    weight = weights(None, "balanced", y, CROSSENTROPY, 5, 7, FLOAT64)
    np.testing.assert_allclose(weight, [7 / 12] * 4 + [7 / 6] * 2 + [7 / 3])
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    np.testing.assert_allclose(weight, class_weight.compute_sample_weight("balanced", y))


def test_class_weights_reach_every_kind_of_label():
    expected = [3.0, 1.0, 3.0]
    for loss, y, n_out in (
        (CROSSENTROPY, np.array([[0.1, 0.9], [1.0, 0.0], [0.0, 1.0]]), 2),
        (BINARY, np.array([[1.0], [0.0], [1.0]]), 1),
        (HINGE, np.array([[1.0], [-1.0], [1.0]]), 1),
    ):
        assert weights(None, {1: 3.0}, y, loss, n_out, 3, FLOAT64).tolist() == expected
    signs = np.array([[1.0], [-1.0]])
    assert weights(None, {-1: 2.0, 1: 5.0}, signs, HINGE, 1, 2, FLOAT64).tolist() == [5.0, 2.0]


WRONG_WEIGHTS = {
    "negative": (
        [1, -1],
        None,
        ValueError,
        "sample_weight holds -1 at row 1; weights must be finite and not neg",
    ),
    "NaN": ([np.nan, 1], None, ValueError, "sample_weight holds NaN at row 0"),
    "length": ([1, 1, 1], None, ValueError, "X has 2 samples, sample_weight has 3"),
    "matrix": (
        np.ones((2, 2)),
        None,
        ValueError,
        r"sample_weight has shape \(2, 2\); expected one per sample",
    ),
    "text": (["a", "b"], None, TypeError, "sample_weight has dtype"),
    "string": (None, "equal", ValueError, "class_weight is 'equal'; expected a mapping .* or 'balanced'"),
    "list": (
        None,
        [1.0, 2.0],
        TypeError,
        r"class_weight is of type list; .*dict\(enumerate\(class_weight\)\)",
    ),
    "label": (None, {3: 1.0}, ValueError, "class_weight names the label 3; the labels are 0 to 2"),
    "text label": (None, {"cat": 1.0}, ValueError, "class_weight names the label 'cat'"),
    "negative class": (None, {1: -1.0}, ValueError, r"class_weight\[1\] is -1.0; expected a finite number"),
    "NaN class": (None, {1: np.nan}, ValueError, r"class_weight\[1\] is nan"),
    "text weight": (None, {1: "2"}, ValueError, r"class_weight\[1\] is '2'"),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_wrong_weights(name):
    sample_weight, class_weight, error, message = WRONG_WEIGHTS[name]
    with pytest.raises(error, match=message):
        weights(sample_weight, class_weight, np.array([0, 1]), CROSSENTROPY, 3, 2, FLOAT32)


def test_class_weights_need_one_label_per_sample():
    for loss, y, n_out in ((MSE, np.ones((2, 1)), 1), (BINARY, np.ones((2, 3)), 3)):
        with pytest.raises(ValueError, match="class_weight needs one class label per sample"):
            weights(None, "balanced", y, loss, n_out, 2, FLOAT32)
    with pytest.raises(ValueError, match=r"row 1 of y is 0.5: use sample_weight"):
        weights(None, {1: 2.0}, np.array([[1.0], [0.5]]), BINARY, 1, 2, FLOAT32)
