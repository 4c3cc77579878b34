"""nbbp.sources and the choice between them: arrays, files and iterables of batches become chunks."""

import tracemalloc

import numpy as np
import pytest

from nbbp import data, losses
from nbbp.targets import weights

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
BOTH = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
CROSSENTROPY = losses.get("crossentropy")
MSE = losses.get("mse")


def assert_ready(array, dtype, shape):
    """What an engine needs: plain, native, C-contiguous, aligned, of one type to Numba."""
    assert type(array) is np.ndarray
    assert array.dtype == dtype
    assert array.dtype.isnative
    assert array.shape == shape
    assert array.flags.carray


def make_source(X, y=None, *, n_in=3, n_out=4, loss=CROSSENTROPY, dtype=FLOAT32, **others):
    return data.source(X, y, n_in=n_in, n_out=n_out, loss=loss, dtype=dtype, **others)


def visited(chunk):
    """The samples of a chunk in the order the engine sees them."""
    return [part[chunk.order] if part is not None else None for part in (chunk.X, chunk.y, chunk.weight)]


def samples(n, dtype=np.float64):
    """n samples of 3 features, of which the first is the number of the sample; 4 classes."""
    X = np.random.default_rng(0).normal(size=(n, 3)).astype(dtype)
    X[:, 0] = np.arange(n)
    return X, np.arange(n) % 4


@BOTH
@pytest.mark.parametrize("rows", [None, 1, 7, 10, 100])
@pytest.mark.parametrize("kind", ["array", "memmap"])
def test_chunks_visit_every_sample_in_order(kind, rows, dtype, tmp_path):
    X, y = samples(20)
    weight = np.arange(20.0)
    passed = X
    if kind == "memmap":
        passed = np.memmap(tmp_path / "X", X.dtype, "w+", shape=X.shape)
        passed[:] = X
    source = make_source(passed, y, dtype=dtype, sample_weight=weight)
    assert type(source).__name__ == {"array": "ArraySource", "memmap": "MemmapSource"}[kind]
    assert source.n_samples == 20
    assert source.n_batches is None
    assert source.row_limit == (None if kind == "array" else (64 << 20) // (3 * dtype.itemsize))
    for order in (None, np.random.default_rng(1).permutation(20), np.array([3, 3, 0, 19])):
        chunks = list(source.chunks(order, rows))
        expected = np.arange(20) if order is None else order
        assert [len(chunk.order) for chunk in chunks] == [
            len(expected[k : k + (rows or 100)]) for k in range(0, len(expected), rows or 100)
        ]
        for chunk in chunks:
            assert_ready(chunk.X, dtype, chunk.X.shape)
            assert chunk.order.dtype == np.int64
            assert chunk.order.flags.c_contiguous
        X_seen, y_seen, weight_seen = (np.concatenate(parts) for parts in zip(*map(visited, chunks), strict=True))
        np.testing.assert_array_equal(X_seen, X[expected].astype(dtype))
        np.testing.assert_array_equal(y_seen, y[expected])
        np.testing.assert_array_equal(weight_seen, weight[expected])


def test_an_array_that_is_ready_is_used_where_it_lies():
    X, y = samples(20, np.float32)
    (chunk,) = make_source(X, y).chunks(None, None)
    assert chunk.X is X
    assert chunk.y is y
    assert chunk.weight is None


def test_what_predict_reads_has_no_targets():
    X, _ = samples(5)
    (chunk,) = make_source(X, labelled=False).chunks(None, None)
    assert chunk.y is None
    assert len(chunk.order) == 5
    with pytest.raises(TypeError, match="y is None; X is an array, so its targets must be given"):
        make_source(X)


def test_a_large_conversion_goes_chunk_by_chunk():
    X, y = samples(50)
    assert isinstance(make_source(X, y, copy_limit=50 * 3 * 4), data.ArraySource)
    source = make_source(X, y, copy_limit=50 * 3 * 4 - 1)
    assert isinstance(source, data.MemmapSource)
    (chunk,) = source.chunks(None, None)
    np.testing.assert_array_equal(chunk.X, X.astype(np.float32))
    ready = X.astype(np.float32)
    assert isinstance(make_source(ready, y, copy_limit=1), data.ArraySource), "no conversion, no copy"


def test_a_view_of_a_memmap_is_still_a_file(tmp_path):
    X, y = samples(10)
    file = np.memmap(tmp_path / "X", X.dtype, "w+", shape=X.shape)
    file[:] = X
    for view in (file[2:8], np.asarray(file), file.T.T, file[::2, :]):
        assert isinstance(make_source(view, y[: len(view)]), data.MemmapSource)


def test_a_memmap_in_any_form(tmp_path):
    X, y = samples(12)
    bytes_per_pixel = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(12, 3), order="F")
    bytes_per_pixel[:] = X.astype(np.uint8)
    bytes_per_pixel.flush()
    read_only = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=(12, 3), order="F")
    source = make_source(read_only, y)
    (chunk,) = source.chunks(np.arange(12)[::-1].copy(), None)
    np.testing.assert_array_equal(visited(chunk)[0], X.astype(np.uint8)[::-1])
    column = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=(36,))
    (chunk,) = make_source(column, np.zeros(36, int), n_in=1).chunks(None, None)
    assert chunk.X.shape == (36, 1)


def test_dense_targets_in_a_file(tmp_path):
    X, _ = samples(9)
    y = np.memmap(tmp_path / "y", np.float64, "w+", shape=(9, 3))
    y[:] = X
    for copy_limit in (1, 1 << 30):
        source = make_source(X, y, n_out=3, loss=MSE, copy_limit=copy_limit)
        chunks = list(source.chunks(np.arange(9)[::-1].copy(), 4))
        seen = np.concatenate([visited(chunk)[1] for chunk in chunks])
        np.testing.assert_array_equal(seen, X[::-1].astype(np.float32))
    y[7, 1] = np.inf
    late = make_source(X, y, n_out=3, loss=MSE, copy_limit=1)
    with pytest.raises(ValueError, match="y holds inf at row 7, column 1"):
        list(late.chunks(np.array([8, 7, 2]), None))


def test_a_bad_number_in_a_file_is_named_by_its_own_row(tmp_path):
    X, y = samples(40)
    file = np.memmap(tmp_path / "X", X.dtype, "w+", shape=X.shape)
    file[:] = X
    file[33, 2] = np.nan
    with pytest.raises(ValueError, match="X holds NaN at row 33, column 2"):
        make_source(file, y)
    too_large_to_look_at_first = make_source(file, y, copy_limit=1)
    chunks = too_large_to_look_at_first.chunks(np.arange(40)[::-1].copy(), 5)
    next(chunks)
    with pytest.raises(ValueError, match="X holds NaN at row 33, column 2"):
        next(chunks)


def test_a_file_of_the_wrong_shape_is_refused_at_once(tmp_path):
    file = np.memmap(tmp_path / "X", np.float32, "w+", shape=(10, 4))
    with pytest.raises(ValueError, match=r"X has 4 features per sample; this network takes 3 \(X.shape = \(10, 4\)"):
        make_source(file, np.zeros(10, int), copy_limit=1)
    with pytest.raises(ValueError, match="X has 10 samples, y has 9"):
        make_source(file, np.zeros(9, int), n_in=4, copy_limit=1)
    with pytest.raises(ValueError, match=r"y has shape \(10, 2\)"):
        make_source(file, np.zeros((10, 2)), n_in=4, n_out=3, loss=MSE, copy_limit=1)


@pytest.mark.parametrize("copy_limit", [1, 1 << 30])
def test_class_weights_of_a_file(copy_limit, tmp_path):
    X, y = samples(10)
    expected = weights([2.0] * 10, "balanced", y, CROSSENTROPY, 4, 10, FLOAT32)
    file = np.memmap(tmp_path / "X", X.dtype, "w+", shape=X.shape)
    file[:] = X
    one_hot = np.memmap(tmp_path / "y", np.uint8, "w+", shape=(10, 4))
    one_hot[:] = np.eye(4)[y]
    source = make_source(file, one_hot, sample_weight=[2.0] * 10, class_weight="balanced", copy_limit=copy_limit)
    weight = np.concatenate([visited(chunk)[2] for chunk in source.chunks(None, 3)])
    np.testing.assert_allclose(weight, expected)


def test_memory_holds_one_chunk_of_a_file(tmp_path):
    file = np.memmap(tmp_path / "X", np.uint8, "w+", shape=(200_000, 64))
    source = make_source(file, np.zeros(200_000, int), n_in=64, copy_limit=1)
    order = np.random.default_rng(0).permutation(200_000)
    tracemalloc.start()
    try:
        for _chunk in source.chunks(order, 1000):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000, f"{peak} bytes for chunks of {1000 * 64 * 4}; the whole is {200_000 * 64 * 4}"


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


@pytest.mark.parametrize(
    ("passed", "n_batches"),
    [(batches, None), (Loader(), 3), (list(batches()), 3), ([list(b) for b in batches()], 3)],
)
def test_an_iterable_gives_its_batches_again_each_epoch(passed, n_batches):
    source = make_source(passed, epochs=2)
    assert source.n_samples is None
    assert source.n_batches == n_batches
    for _epoch in range(2):
        chunks = list(source.chunks(None, None))
        assert [len(chunk.order) for chunk in chunks] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate([chunk.X for chunk in chunks])[:, 0], np.arange(10))
        assert chunks[0].y.tolist() == [0, 1, 2, 3]
        assert chunks[0].weight is None
        assert_ready(chunks[0].X, FLOAT32, (4, 3))


def test_a_generator_lasts_for_one_epoch():
    source = make_source(batches())
    assert len(list(source.chunks())) == 3
    with pytest.raises(ValueError, match=r"X gave no batch \(a generator can be gone through once\)"):
        list(source.chunks())
    with pytest.raises(ValueError, match=r"X is a generator, which can be gone through once, not 5 times .*function"):
        make_source(batches(), epochs=5)


def test_batches_bring_their_weights():
    chunks = list(make_source(lambda: batches(weighted=True), class_weight={0: 3.0}).chunks())
    assert chunks[0].weight.tolist() == [6, 2, 2, 2]


def test_batches_without_labels():
    X, _ = samples(6)
    for passed in (lambda: iter([X[:4], X[4:]]), lambda: [(X[:4], "ignored"), (X[4:], "ignored")]):
        chunks = list(make_source(passed, labelled=False).chunks())
        assert [len(chunk.X) for chunk in chunks] == [4, 2]
        assert chunks[0].y is None


WRONG_BATCHES = {
    "no pair": (
        [np.ones((2, 3))],
        TypeError,
        r"batch 0 of X is a ndarray; expected \(x, y\) or \(x, y, sample_w",
    ),
    "four": ([(1, 2, 3, 4)], TypeError, "batch 0 of X is a tuple of length 4"),
    "features": (
        [*batches(), (np.ones((2, 5)), [0, 1])],
        ValueError,
        "x of batch 3 of X has 5 features per sample",
    ),
    "label": ([(np.ones((2, 3)), [0, 9])], ValueError, "row 1 of y of batch 0 of X has the label 9"),
    "length": (
        [(np.ones((2, 3)), [0])],
        ValueError,
        "x of batch 0 of X has 2 samples, y of batch 0 of X has 1",
    ),
    "weight": ([(np.ones((1, 3)), [0], [-1])], ValueError, "sample_weight of batch 0 of X holds -1"),
    "empty": ([(np.ones((0, 3)), [])], ValueError, "x of batch 0 of X is empty"),
    "none": ([], ValueError, "X gave no batch"),
}


@pytest.mark.parametrize("name", WRONG_BATCHES)
def test_wrong_batches_are_named_by_number(name):
    passed, error, message = WRONG_BATCHES[name]
    with pytest.raises(error, match=message):
        list(make_source(lambda: iter(passed)).chunks())


def test_iterables_refuse_what_needs_all_data():
    with pytest.raises(TypeError, match=r"X gives batches .*so y must come with them"):
        make_source(batches, [0, 1])
    with pytest.raises(TypeError, match="so sample_weight must come with them"):
        make_source(batches, sample_weight=[1.0])
    with pytest.raises(ValueError, match="class_weight='balanced' needs all labels at once"):
        make_source(batches, class_weight="balanced")
    with pytest.raises(ValueError, match="cannot be shuffled"):
        list(make_source(batches).chunks(np.arange(3)))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'size'"):
        list(make_source(lambda size: batches()).chunks())
    with pytest.raises(TypeError, match="X returned int; expected an iterable"):
        list(make_source(lambda: 5).chunks())


def test_a_list_of_rows_is_an_array():
    X, y = samples(4)
    assert isinstance(make_source(X.tolist(), y.tolist()), data.ArraySource)
    assert isinstance(make_source([(1, 2, 3), (4, 5, 6)], [0, 1]), data.ArraySource)
    assert isinstance(make_source([(1, 2, 3)], labelled=False), data.ArraySource)


def test_column_names_survive_to_the_message():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [1.0, np.nan], "c": [0, 0]})
    with pytest.raises(ValueError, match=r"row 1, column 1 \('b'\)"):
        make_source(frame, [0, 1])


def test_names_of_the_arguments_appear_in_messages():
    names = ("validation_data[0]", "validation_data[1]", "validation_data[2]")
    X, y = samples(4)
    with pytest.raises(ValueError, match=r"validation_data\[0\] has 3 features"):
        make_source(X, y, n_in=5, names=names)
    with pytest.raises(ValueError, match=r"validation_data\[0\] has 4 samples, validation_data\[1\] has 3"):
        make_source(X, y[:3], names=names)
    with pytest.raises(ValueError, match=r"validation_data\[2\] holds -1"):
        make_source(X, y, sample_weight=[-1] * 4, names=names)
