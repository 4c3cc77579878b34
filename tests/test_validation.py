"""nbbp.validation: which features may enter a model, and in which form they do."""

import decimal
import fractions

import numpy as np
import pytest
from hypothesis import given, strategies
from hypothesis.extra import numpy as hnp

from nbbp.validation import features, first_outside, first_row_not_summing_to_one

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
BOTH = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)


def assert_ready(array, dtype, shape):
    """What an engine needs: plain, native, C-contiguous, aligned, of one type to Numba."""
    assert type(array) is np.ndarray
    assert array.dtype == dtype
    assert array.dtype.isnative
    assert array.shape == shape
    assert array.flags.carray


def misaligned(values):
    """The same numbers, one byte off their alignment."""
    buffer = np.zeros(values.nbytes + 1, np.uint8)
    array = buffer[1:].view(values.dtype).reshape(values.shape)
    array[...] = values
    assert not array.flags.aligned
    return array


# --- features: what is accepted ---------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "source",
    ["bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"],
)
def test_features_take_every_real_dtype(source, dtype):
    X = (np.arange(12).reshape(4, 3) % 2).astype(source)
    values = features(X, 3, dtype)
    assert_ready(values, dtype, (4, 3))
    np.testing.assert_array_equal(values, np.arange(12).reshape(4, 3) % 2)


@BOTH
def test_features_take_every_layout(dtype):
    X = np.arange(24.0).reshape(4, 6)
    wide = np.arange(96.0).reshape(8, 12)
    read_only = X.astype(dtype)
    read_only.flags.writeable = False
    layouts = {
        "Fortran order": np.asfortranarray(X),
        "strided": wide[::2, ::2],
        "negative strides": X[::-1, ::-1],
        "broadcast": np.broadcast_to(np.arange(6.0), (4, 6)),
        "foreign byte order": X.astype(dtype.newbyteorder()),
        "misaligned": misaligned(X.astype(dtype)),
        "read-only": read_only,
        "transposed": np.arange(24.0).reshape(6, 4).T,
        "list": X.tolist(),
        "list of arrays": list(X),
        "tuple of tuples": tuple(map(tuple, X)),
        "long double": X.astype(np.longdouble),
    }
    for name, layout in layouts.items():
        values = features(layout, 6, dtype)
        assert_ready(values, dtype, (4, 6))
        np.testing.assert_array_equal(values, np.asarray(layout), err_msg=name)


@BOTH
def test_features_that_are_ready_are_not_copied(dtype):
    X = np.ones((5, 3), dtype)
    assert features(X, 3, dtype) is X
    X.flags.writeable = False
    seen = features(X, 3, dtype)
    assert seen.flags.writeable
    assert np.shares_memory(seen, X)


def test_a_read_only_array_outlives_its_name():
    X = np.full((1000, 64), 3.0)
    X.flags.writeable = False
    seen = features(X, 64, FLOAT64)
    del X
    assert (seen == 3.0).all()


def test_features_leave_the_callers_data_alone():
    X = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    before = X.copy()
    features(X, 3, FLOAT32)[:] = -1
    np.testing.assert_array_equal(X, before)


def test_features_take_objects_that_are_numbers():
    X = np.array([[1, 2.5], [fractions.Fraction(1, 4), decimal.Decimal("0.5")], [True, np.float32(3)]], object)
    np.testing.assert_array_equal(features(X, 2, FLOAT64), [[1, 2.5], [0.25, 0.5], [1, 3]])


def test_features_take_dataframes():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [1, 2, 3], "height": [0.5, 0.25, 1.0], "member": [True, False, True]})
    values = features(frame, 3, FLOAT32)
    assert_ready(values, FLOAT32, (3, 3))
    np.testing.assert_array_equal(values, [[1, 0.5, 1], [2, 0.25, 0], [3, 1.0, 1]])
    np.testing.assert_array_equal(features(frame["age"], 1, FLOAT32), [[1], [2], [3]])
    nullable = pandas.DataFrame({"a": pandas.array([1, 2], "Int64"), "b": pandas.array([1.5, 2.5], "Float64")})
    np.testing.assert_array_equal(features(nullable, 2, FLOAT32), [[1, 1.5], [2, 2.5]])


def test_features_take_what_only_has_to_numpy():
    class Table:
        def to_numpy(self):
            return np.ones((2, 3))

    assert_ready(features(Table(), 3, FLOAT32), FLOAT32, (2, 3))


def test_features_take_tensors():
    torch = pytest.importorskip("torch")
    assert_ready(features(torch.ones(2, 3), 3, FLOAT32), FLOAT32, (2, 3))
    with pytest.raises(TypeError, match=r"X \(of type Tensor\).*requires grad"):
        features(torch.ones(2, 3, requires_grad=True), 3, FLOAT32)


def test_features_take_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    X = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(features(X, 2, FLOAT32), [[1.5, -2.0]])


def test_features_take_masked_arrays_without_masked_entries():
    X = np.ma.masked_array(np.ones((2, 2)), mask=False)
    assert_ready(features(X, 2, FLOAT32), FLOAT32, (2, 2))
    X[1, 0] = np.ma.masked
    with pytest.raises(ValueError, match=r"X is masked at row 1, column 0; .*X\.filled"):
        features(X, 2, FLOAT32)


def test_one_dimension_is_enough_for_one_feature():
    assert_ready(features([1, 2, 3], 1, FLOAT32), FLOAT32, (3, 1))


def test_features_of_a_network_without_n_in():
    assert_ready(features(np.ones((2, 7)), None, FLOAT32), FLOAT32, (2, 7))


# --- features: what is refused ----------------------------------------------------------------------------

WRONG_SHAPES = {
    "too few features": (
        np.ones((6, 2)),
        r"X has 2 features per sample; this network takes 3 \(X.shape = \(6, 2\)\)",
    ),
    "one sample": (
        np.ones(3),
        r"one dimension; this network takes 3 .*use X\.reshape\(1, -1\) for one sample",
    ),
    "one dimension": (np.ones(5), r"X has one dimension; .*\(X.shape = \(5,\)\)$"),
    "images": (
        np.ones((2, 28, 28)),
        r"3 dimensions; .*use X\.reshape\(len\(X\), -1\), which gives 784 features",
    ),
    "no samples": (np.ones((0, 3)), r"X is empty; .*\(X.shape = \(0, 3\)\)"),
    "no features": (np.ones((3, 0)), "X is empty"),
    "empty list": ([], "X is empty"),
    "ragged list": ([[1, 2, 3], [1, 2]], "X is ragged: row 1 has 2 values, row 0 has 3 values"),
    "ragged with a number": ([[1, 2, 3], 4], "X is ragged: row 1 has one number"),
}


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_features_refuse_a_wrong_shape(name):
    X, message = WRONG_SHAPES[name]
    with pytest.raises(ValueError, match=message):
        features(X, 3, FLOAT32)


def test_features_refuse_one_dimension_when_n_in_is_unknown():
    with pytest.raises(ValueError, match=r"X\.reshape\(-1, 1\), or X\.reshape\(1, -1\)"):
        features(np.ones(3), None, FLOAT32)


NO_NUMBERS = {
    "None": (None, "X is None"),
    "a number": (5.0, "X is of type float; expected an array with one row per sample"),
    "text": ("abc", "X is of type str"),
    "a dict": ({"a": [1, 2]}, "X is of type dict"),
    "a set": ({1, 2}, "X is of type set"),
    "complex": (np.ones((2, 3), complex), r"X is complex \(complex128\)"),
    "words": ([["a", "b", "c"]], "X has dtype <U1; expected real numbers"),
    "bytes": (np.array([[b"a"]]), "X has dtype"),
    "dates": (np.zeros((2, 3), "M8[D]"), "datetime64"),
    "durations": (np.zeros((2, 3), "m8[s]"), "timedelta64"),
    "records": (np.zeros(2, [("a", "f4"), ("b", "f4")]).reshape(1, 2), "X has dtype"),
    "raw bytes": (np.zeros((2, 3), "V4"), "X has dtype"),
    "missing": (
        np.array([[1, 2, 3], [4, None, 6]], object),
        r"no number at row 1, column 1: None \(NoneType\)",
    ),
    "text among objects": (np.array([[1, 2, "3"]], object), "no number at row 0, column 2: '3'"),
    "complex among objects": (np.array([[1, 2j, 3]], object), "no number at row 0, column 1"),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_features_refuse_what_is_no_number(name):
    X, message = NO_NUMBERS[name]
    with pytest.raises(TypeError, match=message):
        features(X, None if name in ("bytes", "records") else 3, FLOAT32)


def test_features_refuse_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"X is a sparse csr_matrix; .*X\.toarray\(\)"):
        features(sparse.csr_matrix(np.eye(3)), 3, FLOAT32)


def test_a_missing_value_in_a_dataframe_names_its_column():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [1.0, 2.0], "height": [0.5, np.nan]})
    with pytest.raises(ValueError, match=r"NaN at row 1, column 1 \('height'\)"):
        features(frame, 2, FLOAT32)
    frame = pandas.DataFrame({"age": [1, 2], "name": ["Ada", "Emmy"]})
    with pytest.raises(TypeError, match=r"no number at row 0, column 1 \('name'\): 'Ada'"):
        features(frame, 2, FLOAT32)


@BOTH
@pytest.mark.parametrize(("bad", "shown"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("place", [(0, 0), (3, 1), (4999, 2)])
def test_features_name_the_first_bad_number(bad, shown, place, dtype):
    X = np.random.default_rng(0).normal(size=(5000, 3)).astype(dtype)
    X[place] = bad
    X[4999, 2] = np.nan if place != (4999, 2) else bad
    with pytest.raises(ValueError, match=f"X holds {shown} at row {place[0]}, column {place[1]}; expected finite"):
        features(X, 3, dtype)


@pytest.mark.parametrize("huge", [1e39, -1e300, np.longdouble("1e3000"), 10**400])
def test_features_name_a_number_that_float32_cannot_hold(huge):
    X = np.array([[0, 1], [2, huge]], object if isinstance(huge, int) else None)
    with pytest.raises(ValueError, match=r"at row 1, column 1, too large for float32 .* or use dtype='float64'"):
        features(X, 2, FLOAT32)


def test_an_overflow_warns_of_nothing_else(recwarn):
    with pytest.raises(ValueError, match="1e\\+300"):
        features([[1e300]], 1, FLOAT32)
    assert not recwarn


@given(
    hnp.arrays(
        strategies.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=70),
    )
)
def test_the_scan_agrees_with_numpy(values):
    largest = np.finfo(values.dtype).max
    bad = np.flatnonzero(~np.isfinite(values))
    assert first_outside(values, -float(largest), float(largest)) == (bad[0] if bad.size else -1)


def test_the_scan_finds_a_number_in_any_block():
    values = np.zeros((1, 20_000), np.float32)
    for place in (0, 1, 4095, 4096, 8191, 12_345, 19_999):
        values[0, place] = np.nan
        assert first_outside(values, -1.0, 1.0) == place
        values[0, place] = 0.0
    assert first_outside(values, -1.0, 1.0) == -1
    assert first_outside(np.array([0, 3, 10, -1]), 0, 9) == 2


def test_rows_that_do_not_sum_to_one_are_found():
    rows = np.full((4, 5), 0.2)
    assert first_row_not_summing_to_one(rows, 1e-3) == -1
    rows[2, 0] += 0.01
    assert first_row_not_summing_to_one(rows, 1e-3) == 2
    rows[1, 0] = np.nan
    assert first_row_not_summing_to_one(rows, 1e-3) == 1
