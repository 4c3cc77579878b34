"""Properties of files, over anything that could be in them: data that are memory-mapped, and models that were saved."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nbbp
from nbbp import data, losses

FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the folder: every file is written anew

#: Dtypes of files: any byte order and size that holds real numbers.
NUMBERS = st.one_of(
    hnp.floating_dtypes(sizes=(16, 32, 64)), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.boolean_dtypes()
)


@st.composite
def matrices(draw):
    """Small numbers of any dtype, (n, n_in)."""
    n, n_in = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    return (random.normal(0.0, 20.0, (n, n_in)) % 100.0).astype(draw(NUMBERS))


def mapped(draw, folder, array):
    """The array as rows of a file, of any layout, opened in any way; and the file."""
    path, order, mode = folder / "X.npy", draw(st.sampled_from("CF")), draw(st.sampled_from(["r", "r+", "c"]))
    step, before, sign = draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.sampled_from([1, -1]))
    whole = np.zeros((before + step * len(array), array.shape[1] + before), array.dtype, order)
    rows = slice(before, None, step) if sign > 0 else slice(None, before - 1 if before else None, -step)
    whole[rows, before:] = array
    if draw(st.booleans()):
        np.save(path, whole)
        opened = np.load(path, mmap_mode=mode)
    else:
        whole.ravel(order).tofile(path)
        opened = np.memmap(path, array.dtype, mode, shape=whole.shape, order=order)
    return opened[rows, before:], path


@FILES
@given(st.data(), matrices(), st.sampled_from(["float32", "float64"]), st.integers(1, 400), st.booleans())
def test_a_file_is_read_as_the_array_in_it(tmp_path, monkeypatch, draw, array, dtype, chunk_bytes, is_checked):
    """Every chunk, in every order, whatever the layout; and the file stays as it was."""
    file, path = mapped(draw.draw, tmp_path, array)
    np.testing.assert_array_equal(file, array)
    content = path.read_bytes()
    monkeypatch.setattr("nbbp.sources.CHUNK_BYTES", chunk_bytes)
    y, order = np.arange(len(array)) % 3, np.random.default_rng(0).permutation(len(array))
    about = {"n_in": array.shape[1], "n_out": 3, "loss": losses.Crossentropy(), "dtype": np.dtype(dtype)}
    limit = {"copy_limit": data.COPY_LIMIT if is_checked else 0}
    sources = data.source(file, y, **about, **limit), data.source(array, y, **about)
    assert [type(source).__name__ for source in sources] == ["MemmapSource", "ArraySource"]
    for wanted in (None, order, order[: len(order) // 2 + 1]):
        rows = draw.draw(st.one_of(st.none(), st.integers(1, 40)))
        seen = [
            [np.concatenate(part) for part in zip(*((c.X[c.order], c.y[c.order]) for c in chunks), strict=True)]
            for chunks in (source.chunks(wanted, rows) for source in sources)
        ]
        for ours, expected in zip(*seen, strict=True):
            np.testing.assert_array_equal(ours, expected)
            assert ours.dtype == expected.dtype
    assert path.read_bytes() == content


@settings(FILES, max_examples=15)
@given(st.data(), matrices(), st.integers(1, 400))
def test_training_on_a_file_gives_the_bits_of_the_array(tmp_path, monkeypatch, draw, array, chunk_bytes):
    file, path = mapped(draw.draw, tmp_path, array)
    content, y = path.read_bytes(), np.arange(len(array)) % 3
    monkeypatch.setattr("nbbp.sources.CHUNK_BYTES", chunk_bytes)
    models = []
    for X in (file, array):
        models.append(nbbp.Model(nbbp.Sequential([nbbp.Standardize(), nbbp.Dense(3)]), "crossentropy", seed=2))
        models[-1].fit(X, y, epochs=2, batch_size=7, verbose=0)
        models[-1].predict(X)
    assert_same_numbers(*models)
    np.testing.assert_array_equal(models[0].predict(file), models[1].predict(array))
    assert path.read_bytes() == content


# models -----------------------------------------------------------------------------------------------------

WIDTHS = st.integers(1, 9)
LAYERS = st.one_of(
    st.builds(nbbp.Dense, WIDTHS, st.sampled_from(["linear", "relu", "gelu"]), use_bias=st.booleans()),
    st.sampled_from([nbbp.BatchNorm(), nbbp.LayerNorm(), nbbp.RMSNorm(), nbbp.Dropout(0.3), nbbp.Activation("tanh")]),
    st.builds(lambda width: nbbp.Residual([nbbp.Dense(width, "tanh")]), WIDTHS),
    st.builds(lambda width: nbbp.Concat([nbbp.Dense(width), nbbp.BatchNorm()], []), WIDTHS),
)
OPTIMIZERS = st.sampled_from([nbbp.SGD(0.01, momentum=0.9), nbbp.Adam(0.01), nbbp.Adafactor(), nbbp.Lion(), "rmsprop"])


@st.composite
def trained(draw):
    """A model of any layers after some training, and data for more."""
    first = [nbbp.Standardize()] if draw(st.booleans()) else []
    layers = [*first, *draw(st.lists(LAYERS, max_size=3)), nbbp.Dense(3)]
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    X, y = random.normal(size=(draw(st.integers(2, 20)), draw(st.integers(1, 5)))), random.integers(0, 3, 20)
    dtype, seed, epochs = draw(st.sampled_from(["float32", "float64"])), draw(st.integers(0, 1 << 62)), draw(WIDTHS) % 3
    network = nbbp.Sequential(layers, X.shape[1], draw(st.sampled_from([None, 2])))
    model = nbbp.Model(network, "crossentropy", draw(OPTIMIZERS), ["accuracy"], dtype=dtype, seed=seed)
    if epochs:
        model.fit(X, y[: len(X)], epochs=epochs, batch_size=5, verbose=0)
    return model, X, y[: len(X)]


def assert_same_numbers(*models):
    one, other = (model._session for model in models)
    for mine, theirs in zip(
        (one.parameters, one.state, *one.slots), (other.parameters, other.state, *other.slots), strict=True
    ):
        assert mine.tobytes() == theirs.tobytes()
    assert (one.step, one.epoch) == (other.step, other.epoch)
    assert models[0].history.to_array().tobytes() == models[1].history.to_array().tobytes()


@settings(FILES, max_examples=30)
@given(trained())
def test_a_saved_model_goes_on_to_the_same_bits(tmp_path, given_):
    model, X, y = given_
    model.save(tmp_path / "m")
    loaded = nbbp.load_model(tmp_path / "m")
    assert_same_numbers(model, loaded)
    assert loaded.network == model.network
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()
    for one in (model, loaded):
        one.fit(X, y, batch_size=5, verbose=0)
    assert_same_numbers(model, loaded)
    np.testing.assert_array_equal(model.predict(X), loaded.predict(X))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m"
    model = nbbp.Model(nbbp.Sequential([nbbp.Standardize(), nbbp.Dense(3), nbbp.BatchNorm()]), "crossentropy")
    model.fit(np.random.default_rng(0).normal(size=(9, 2)), np.arange(9) % 3, verbose=0)
    model.save(path)
    return model, path.read_bytes()


@FILES
@given(st.data())
def test_a_byte_that_changed_is_noticed(tmp_path, saved, draw):
    """Or stands where it means nothing: a file that loads is the model."""
    model, content = saved
    changed = bytearray(content)
    for place in draw.draw(st.sets(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        changed[place] = draw.draw(st.integers(0, 255))
    assert_refused_or_the_same(tmp_path, bytes(changed), model)


@FILES
@given(st.data())
def test_a_part_of_a_file_is_noticed(tmp_path, saved, draw):
    _, content = saved
    cut, more = draw.draw(st.integers(0, len(content) - 1)), draw.draw(st.binary(min_size=1, max_size=20))
    for part in (content[:cut], content[cut + 1 :], content + more, content[:cut] + more + content[cut:]):
        (tmp_path / "m").write_bytes(part)
        with pytest.raises(ValueError, match="cannot be loaded"):
            nbbp.load_model(tmp_path / "m")


def assert_refused_or_the_same(folder, content, model):
    (folder / "m").write_bytes(content)
    try:
        loaded = nbbp.load_model(folder / "m")
    except ValueError:
        return
    assert_same_numbers(model, loaded)
    assert loaded.network == model.network
