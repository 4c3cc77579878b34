"""nbbp.train_test_split: both parts together are the data, every class has its share, and the seed decides."""

import numpy as np
import pytest
from hypothesis import given, strategies

import nbbp
from nbbp.splitting import shares


def samples(counts, dtype=np.float64):
    """Samples of 3 features, of which the first is the number of the sample, and their classes, one after the other."""
    y = np.repeat(np.arange(len(counts)), counts)
    X = np.random.default_rng(0).normal(size=(len(y), 3))
    X[:, 0] = np.arange(len(y))
    return X.astype(dtype), y


COUNTS = strategies.lists(strategies.integers(2, 40), min_size=1, max_size=8)


@given(COUNTS, strategies.data())
def test_shares_are_exact_and_as_close_as_can_be(counts, data):
    counts = np.array(counts)
    n, k = counts.sum(), len(counts)
    n_test = data.draw(strategies.integers(k, n - k))
    given_ = shares(counts, n_test)
    assert given_.sum() == n_test
    assert (given_ >= 1).all()
    assert (given_ < counts).all()
    exact = counts * n_test / n
    if (exact >= 1).all() and (exact <= counts - 1).all():
        assert (np.abs(given_ - exact) < 1).all()
        floor = counts * n_test // n
        up = (counts * n_test - floor * n)[given_ > floor]
        down = (counts * n_test - floor * n)[given_ == floor]
        assert not up.size or not down.size or up.min() >= down.max()


def test_shares_of_few_samples():
    assert shares(np.array([97, 3]), 20).tolist() == [19, 1]
    assert shares(np.array([98, 2]), 20).tolist() == [19, 1]  # 0.4 samples would be due
    assert shares(np.array([2, 2, 96]), 97).tolist() == [1, 1, 95]
    assert shares(np.array([10, 10, 10]), 4).tolist() == [2, 1, 1]


@given(COUNTS, strategies.floats(0.05, 0.95), strategies.integers(0, 2**63 - 1), strategies.booleans())
def test_both_parts_are_the_data(counts, test_size, seed, stratify):
    X, y = samples(counts)
    weight = X[:, 0] + 0.5
    settings = {"test_size": test_size, "seed": seed, "stratify": stratify}
    n_test = int(np.ceil(test_size * len(y)))
    if n_test == len(y) or (stratify and min(n_test, len(y) - n_test) < len(counts)):
        with pytest.raises(ValueError, match=r"fewer than|leaves none"):
            nbbp.train_test_split(X, y, weight, **settings)
        return
    X_train, X_test, y_train, y_test, w_train, w_test = nbbp.train_test_split(X, y, weight, **settings)
    assert len(X_test) == len(y_test) == len(w_test) == n_test
    for part_X, part_y, part_w in ((X_train, y_train, w_train), (X_test, y_test, w_test)):
        rows = part_X[:, 0].astype(int)
        np.testing.assert_array_equal(part_X, X[rows])
        np.testing.assert_array_equal(part_y, y[rows])
        np.testing.assert_array_equal(part_w, weight[rows])
    assert sorted([*X_train[:, 0], *X_test[:, 0]]) == list(range(len(y)))
    if stratify:
        np.testing.assert_array_equal(np.bincount(y_test), shares(np.array(counts), len(y_test)))
    again = nbbp.train_test_split(X, y, weight, **settings)
    for one, other in zip(again, (X_train, X_test, y_train, y_test, w_train, w_test), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_seed_decides():
    """The numbers of the rows of one split, so that a change of the order on any machine is noticed."""
    X, y = samples([6, 6])
    _, X_test, _, _ = nbbp.train_test_split(X, y, test_size=4, seed=3)
    assert X_test[:, 0].tolist() == [3, 10, 11, 2]
    others = [nbbp.train_test_split(X, y, test_size=4, seed=seed)[1][:, 0].tolist() for seed in range(20)]
    assert len(set(map(tuple, others))) > 15


def test_shares_are_those_of_scikit_learn():
    model_selection = pytest.importorskip("sklearn.model_selection")
    X, y = nbbp.datasets.load_digits()
    for test_size in (0.1, 0.25, 100, 0.3):
        ours = nbbp.train_test_split(X, y, test_size=test_size)
        theirs = model_selection.train_test_split(X, y, test_size=test_size, stratify=y, random_state=0)
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape
        assert (np.abs(np.bincount(ours[3]) - np.bincount(theirs[3])) <= 1).all()  # ties are drawn there


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y.astype(np.uint8),
        lambda y: y.astype(np.float32),
        lambda y: y[:, None],
        lambda y: np.eye(3)[y],
        lambda y: np.eye(3, dtype=bool)[y],
        lambda y: np.array(["ape", "bee", "cat"])[y],
        lambda y: y.tolist(),
        lambda y: [["a", "b", "c"][k] for k in y],
        lambda y: tuple(y.tolist()),
    ],
)
def test_labels_of_any_form(form):
    X, y = samples([10, 5, 20])
    labels = form(y)
    _, X_test, y_train, y_test = nbbp.train_test_split(X, labels, seed=5)
    rows = nbbp.train_test_split(X, y, seed=5)
    np.testing.assert_array_equal(X_test, rows[1])
    assert type(y_train) is type(y_test) is type(labels)
    for part, expected in ((y_train, rows[2]), (y_test, rows[3])):
        np.testing.assert_array_equal(np.asarray(part), np.asarray(form(expected)))


def test_dataframes_go_by_position_and_stay_dataframes():
    pandas = pytest.importorskip("pandas")
    X, y = samples([10, 5])
    frame = pandas.DataFrame(X, columns=list("abc"), index=np.arange(15.0)[::-1])
    parts = nbbp.train_test_split(frame, pandas.Series(y, index=frame.index), seed=1)
    assert [type(part).__name__ for part in parts] == ["DataFrame", "DataFrame", "Series", "Series"]
    for part, expected in zip(parts, nbbp.train_test_split(X, y, seed=1), strict=True):
        np.testing.assert_array_equal(part.to_numpy(), expected)


def test_files_are_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("nbbp.splitting.CHUNK_BYTES", 100)
    X, y = samples([10, 25], np.float32)
    np.save(tmp_path / "X.npy", X)
    file = np.load(tmp_path / "X.npy", mmap_mode="r")
    for passed in (file, file[:, ::-1][:, ::-1]):
        parts = nbbp.train_test_split(passed, y)
        for part, expected in zip(parts, nbbp.train_test_split(X, y), strict=True):
            assert type(part) is np.ndarray
            np.testing.assert_array_equal(part, expected)


def test_targets_that_are_no_classes():
    X, _ = samples([10])
    y = np.random.default_rng(0).normal(size=(10, 2))
    X_train, X_test, y_train, _ = nbbp.train_test_split(X, y, test_size=0.25, stratify=False)
    assert (len(X_train), len(X_test)) == (7, 3)
    np.testing.assert_array_equal(y_train, y[X_train[:, 0].astype(int)])
    for wrong, message in (
        (y, "row 0 of y is not one-hot"),
        (y[:, 0], r"row 0 of y is 0\.12573, no label; .* pass stratify=False"),
        (np.full(10, np.nan), "row 0 of y is nan"),
        (np.full(10, np.inf), "row 0 of y is inf"),
        (y[:, :, None], r"y has shape \(10, 2, 1\)"),
        (np.array([1, "a"] * 5, object), "cannot be told apart"),
    ):
        with pytest.raises(ValueError, match=message):
            nbbp.train_test_split(X, wrong)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"test_size": 0.0}, ValueError, "test_size is 0.0; expected a fraction"),
        ({"test_size": 1.0}, ValueError, "test_size is 1.0; expected a fraction"),
        ({"test_size": -0.5}, ValueError, "expected a fraction"),
        ({"test_size": float("nan")}, ValueError, "expected a fraction"),
        ({"test_size": 0}, ValueError, "an integer from 1 to 14"),
        ({"test_size": 15}, ValueError, "an integer from 1 to 14"),
        ({"test_size": 0.99}, ValueError, "leaves none to train on"),
        ({"test_size": True}, TypeError, "test_size must be a number"),
        ({"test_size": "half"}, TypeError, "test_size must be a number"),
        ({"test_size": 1}, ValueError, "test part has 1 samples, fewer than the 2 classes"),
        ({"test_size": 14}, ValueError, "training part has 1 samples, fewer than the 2 classes"),
        ({"seed": -1}, ValueError, "seed must be an integer"),
        ({"seed": 1.5}, ValueError, "seed must be an integer"),
        ({"stratify": "yes"}, TypeError, "stratify must be True or False"),
        ({"sample_weight": [1.0]}, ValueError, "X has 15 samples, sample_weight has 1"),
    ],
)
def test_what_cannot_be_is_refused(settings, error, message):
    X, y = samples([10, 5])
    with pytest.raises(error, match=message):
        nbbp.train_test_split(X, y, **settings)


def test_what_cannot_be_divided_is_refused():
    X, y = samples([10, 5])
    with pytest.raises(ValueError, match="X has 15 samples, y has 4"):
        nbbp.train_test_split(X, y[:4])
    with pytest.raises(ValueError, match=r"a class has one sample only \(row 14 of y\)"):
        nbbp.train_test_split(X, [*y[:-1], 7])
    with pytest.raises(TypeError, match="train_test_split needs arrays"):
        nbbp.train_test_split(iter([(X, y)]), y)
    with pytest.raises(TypeError, match="y is None"):
        nbbp.train_test_split(X, None)
