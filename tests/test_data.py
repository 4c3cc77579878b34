"""nbbp.data: features are counted, a validation part is cut off, and whatever comes is taken or refused."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, strategies
from hypothesis.extra import numpy as hnp

import nbbp
from nbbp import data, losses


def samples(n, dtype=np.float64):
    """n samples of 3 features, of which the first is the number of the sample; 4 classes."""
    X = np.random.default_rng(0).normal(size=(n, 3)).astype(dtype)
    X[:, 0] = np.arange(n)
    return X, np.arange(n) % 4


def batches(sizes=(4, 4, 2), weighted=False):
    X, y = samples(sum(sizes))
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        yield (X[rows], y[rows], np.full(size, 2.0)) if weighted else (X[rows], y[rows])
        start += size


class Loader:
    """A data loader: gone through anew each epoch, and it knows how many batches there are."""

    def __len__(self):
        return 3

    def __iter__(self):
        return batches()


def test_n_in_is_read_off_the_data():
    X, _ = samples(4)
    for passed in (X, X.tolist(), batches, Loader(), list(batches())):
        assert data.infer_n_in(passed) == 3
    with pytest.raises(ValueError, match="would use up its first batch"):
        data.infer_n_in(batches())
    with pytest.raises(ValueError, match="X has one dimension"):
        data.infer_n_in(X[0])
    with pytest.raises(ValueError, match="X gave no batch"):
        data.infer_n_in(list)


def test_split_takes_the_last_fraction():
    X, y = samples(10)
    (X_train, y_train, w_train), (X_val, y_val, w_val) = data.split(X, y, None, 0.25)
    assert len(X_train) == len(y_train) == 7
    assert len(X_val) == len(y_val) == 3
    assert w_train is None
    assert w_val is None
    np.testing.assert_array_equal(np.vstack((X_train, X_val)), X)
    assert np.shares_memory(X_val, X)
    _, (_, _, w_val) = data.split(X.tolist(), y.tolist(), list(range(10)), 0.2)
    assert w_val == [8, 9]


def test_split_of_a_dataframe_goes_by_position():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(5)}, index=[40.0, 30.0, 20.0, 10.0, 0.0])
    (train, _, _), (last, y_last, _) = data.split(frame, pandas.Series(range(5), index=frame.index), None, 0.4)
    assert train["a"].tolist() == [0, 1, 2]
    assert last["a"].tolist() == [3, 4]
    assert y_last.tolist() == [3, 4]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, np.nan, "half", None])
def test_split_refuses_other_fractions(fraction):
    with pytest.raises(ValueError, match="expected a fraction between 0 and 1"):
        data.split(*samples(10), None, fraction)


def test_split_refuses_an_empty_part():
    with pytest.raises(ValueError, match=r"0\.5 of 1 samples leaves 0 for training and 1"):
        data.split(*samples(1), None, 0.5)
    with pytest.raises(ValueError, match="X has 10 samples, y has 4"):
        data.split(samples(10)[0], samples(4)[1], None, 0.5)
    with pytest.raises(TypeError, match="pass validation_data instead"):
        data.split(batches, None, None, 0.5)


def trained(X, y, **settings):
    """Parameters of a small network after two epochs on these data."""
    network = nbbp.Sequential([nbbp.Dense(5, "relu"), nbbp.Dense(4)], n_in=3)
    model = nbbp.Model(network, "crossentropy", seed=1)
    model.fit(X, y, **{"epochs": 2, "batch_size": 8, "verbose": 0} | settings)
    return model.parameter_vector


def test_the_same_data_in_any_form_train_to_the_same_bits(tmp_path):
    X, y = samples(45)
    X = X.astype(np.float32)
    expected = trained(X, y)
    file = np.memmap(tmp_path / "X", np.float32, "w+", shape=X.shape)
    file[:] = X
    forms = {
        "lists": (X.tolist(), y.tolist()),
        "float64, Fortran order": (np.asfortranarray(X, np.float64), y.astype(np.uint8)),
        "one-hot": (X, np.eye(4)[y]),
        "file": (file, y),
    }
    with contextlib.suppress(ImportError):
        import pandas

        forms["DataFrame"] = (pandas.DataFrame(X), pandas.Series(y))
    for name, (X_form, y_form) in forms.items():
        np.testing.assert_array_equal(trained(X_form, y_form), expected, err_msg=name)

    def in_batches():
        for start in range(0, 45, 8):
            yield X[start : start + 8], y[start : start + 8]

    in_order = trained(X, y, shuffle=False)
    np.testing.assert_array_equal(trained(in_batches, None), in_order)
    np.testing.assert_array_equal(trained(list(in_batches()), None), in_order)


ANY_ARRAY = hnp.arrays(
    strategies.one_of(hnp.scalar_dtypes(), hnp.unicode_string_dtypes(max_len=3)),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(
    ANY_ARRAY,
    ANY_ARRAY,
    strategies.sampled_from(list(losses.BY_NAME)),
    strategies.integers(1, 4),
    strategies.integers(1, 4),
)
def test_anything_is_taken_or_refused_clearly(X, y, loss, n_in, n_out):
    X_before, y_before = X.copy(), y.copy()
    try:
        source = data.source(X, y, n_in=n_in, n_out=n_out, loss=losses.get(loss), dtype="float32")
        (chunk,) = source.chunks(None, None)
        assert chunk.X.dtype == np.float32
        assert chunk.X.shape == (len(X), n_in)
        assert chunk.X.flags.carray
        assert np.isfinite(chunk.X).all()
        assert len(chunk.y) == len(X)
    except (TypeError, ValueError):
        pass
    for now, before in ((X, X_before), (y, y_before)):
        assert now.tobytes() == before.tobytes()
