"""A model takes data in any form, with the same bits as result: arrays, lists, tables, files and batches."""

import array
import contextlib

import numpy as np
import pytest

import nbbp
from nbbp import sources, training

N = 45
#: Exact in float16, so that a form's dtype changes no number.
X = (np.random.default_rng(0).integers(-64, 64, (N, 4)) / 32).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, N)


def model_of(dtype="float32", loss="crossentropy", n_out=3, **settings):
    layers = [nbbp.Dense(5, activation="relu"), nbbp.Dense(n_out)]
    return nbbp.Model(nbbp.Sequential(layers, n_in=4), loss=loss, dtype=dtype, seed=1, **settings)


def unaligned(values):
    """The same numbers one byte off."""
    memory = bytearray(values.nbytes + 1)
    view = np.frombuffer(memory, values.dtype, values.size, 1).reshape(values.shape)
    view[...] = values
    assert not view.flags.aligned
    return view


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


class Labelled(np.ndarray):
    """A subclass, as units and labels come with."""


class HasToNumpy:
    def __init__(self, values):
        self.to_numpy = lambda: values


class HasInterface:
    def __init__(self, values):
        self.kept, self.__array_interface__ = values, values.__array_interface__


FORMS = {
    "itself": lambda values: values,
    "list of lists": lambda values: values.tolist(),
    "tuple of arrays": tuple,
    "list of arrays": list,
    "float16": lambda values: values.astype(np.float16),
    "float64": lambda values: values.astype(np.float64),
    "long double": lambda values: values.astype(np.longdouble),
    "big-endian": lambda values: values.astype(">f4"),
    "objects": lambda values: values.astype(object),
    "Fortran order": np.asfortranarray,
    "float64 in Fortran order": lambda values: np.asfortranarray(values, np.float64),
    "every second row": lambda values: np.repeat(values, 2, axis=0)[::2],
    "backwards": lambda values: values[::-1].copy()[::-1],
    "columns backwards": lambda values: values[:, ::-1].copy()[:, ::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "subclass": lambda values: values.view(Labelled),
    "matrix": np.asmatrix,
    "masked, with nothing masked": np.ma.masked_array,
    "memoryview": lambda values: memoryview(values),
    "something with to_numpy": HasToNumpy,
    "something with an array interface": HasInterface,
}
with contextlib.suppress(ImportError):
    import pandas

    FORMS["DataFrame"] = lambda values: pandas.DataFrame(values, index=range(100, 100 + len(values)))
    FORMS["DataFrame of mixed columns"] = lambda values: pandas.DataFrame(values).astype({0: "float64", 1: "Float32"})
with contextlib.suppress(ImportError):
    import torch

    FORMS["tensor"] = torch.tensor


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_features_in_any_form(form, dtype):
    given, model, expected = FORMS[form](X), model_of(dtype), model_of(dtype)
    plain = X.astype(dtype)
    np.testing.assert_array_equal(model.predict(given), expected.predict(plain))
    np.testing.assert_array_equal(model.predict_proba(given), expected.predict_proba(plain))
    assert model.evaluate(given, Y) == expected.evaluate(plain, Y)
    for _ in range(2):
        assert model.train_step(given, Y) == expected.train_step(plain, Y)
    for name, gradient in model.loss_and_gradients(given, Y)[1].items():
        np.testing.assert_array_equal(gradient, expected.loss_and_gradients(plain, Y)[1][name])
    model.fit(given, Y, batch_size=8, verbose=0)
    expected.fit(plain, Y, batch_size=8, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, expected.parameter_vector)


LABEL_FORMS = {
    "list": lambda labels: labels.tolist(),
    "uint8": lambda labels: labels.astype(np.uint8),
    "int32, big-endian": lambda labels: labels.astype(">i4"),
    "uint64": lambda labels: labels.astype(np.uint64),
    "float32": lambda labels: labels.astype(np.float32),
    "column": lambda labels: labels[:, None],
    "backwards": lambda labels: labels[::-1].copy()[::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "one-hot": lambda labels: np.eye(3)[labels],
    "one-hot booleans": lambda labels: np.eye(3, dtype=bool)[labels],
    "one-hot list": lambda labels: np.eye(3)[labels].tolist(),
    "array.array": lambda labels: array.array("l", labels.tolist()),
}


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_labels_in_any_form(form):
    given, model, expected = LABEL_FORMS[form](Y), model_of(metrics=["accuracy"]), model_of(metrics=["accuracy"])
    assert model.evaluate(X, given) == expected.evaluate(X, Y)
    for _ in range(2):
        assert model.train_step(X, given) == expected.train_step(X, Y)
    history = model.fit(X, given, batch_size=8, epochs=2, verbose=0)
    assert dict(history) == dict(expected.fit(X, Y, batch_size=8, epochs=2, verbose=0))
    np.testing.assert_array_equal(model.parameter_vector, expected.parameter_vector)


@pytest.mark.parametrize("loss", ["mse", "binary_crossentropy", "hinge"])
def test_one_target_per_sample_needs_no_column(loss):
    y = (Y > 0).astype(np.float32)
    column, flat = model_of(loss=loss, n_out=1), model_of(loss=loss, n_out=1)
    for _ in range(2):
        assert column.train_step(X, y[:, None]) == flat.train_step(X, y)
    column.fit(X, y[:, None].tolist(), verbose=0)
    flat.fit(X, y.tolist(), verbose=0)
    np.testing.assert_array_equal(column.parameter_vector, flat.parameter_vector)


def test_data_are_only_read():
    kept = [X.copy(), Y.copy(), np.eye(3)[Y].astype(np.float32), np.linspace(0, 1, N).astype(np.float32)]
    given = [array.copy() for array in kept]
    model = model_of()
    model.fit(given[0], given[1], sample_weight=given[3], epochs=3, validation_data=(given[0], given[2]), verbose=0)
    model.train_step(given[0], given[1], given[3])
    model.evaluate(given[0], given[2], sample_weight=given[3])
    model.check_gradients(given[0], given[1], max_per_parameter=2)
    for now, before in zip(given, kept, strict=True):
        np.testing.assert_array_equal(now, before)


def test_data_may_change_between_steps():
    """Nothing of a batch is kept: the next call reads its arrays anew."""
    one, other = model_of(), model_of()
    x, y = X.copy(), Y.copy()
    for k in range(4):
        x[:], y[:] = np.roll(X, k, axis=0), np.roll(Y, k)
        assert one.train_step(x, y) == other.train_step(np.roll(X, k, axis=0).tolist(), np.roll(Y, k).tolist())
        np.testing.assert_array_equal(one.predict(x), other.predict(np.roll(X, k, axis=0)))


SIZES = (8, 8, 1, 13, 2, 8, 5)


def batches(*parts):
    """The samples in batches of changing sizes."""
    start = 0
    for size in SIZES:
        yield tuple(part[start : start + size] for part in parts)
        start += size
    assert start == N


class Loader:
    """As data loaders are: an object that can be gone through again and again, and knows no length."""

    def __iter__(self):
        return batches(X, Y)


@pytest.mark.parametrize("form", ["list", "tuple", "generator", "function", "loader", "list of lists"])
def test_batches_in_any_form(form):
    epochs = 1 if form == "generator" else 2
    given = {
        "list": list(batches(X, Y)),
        "tuple": tuple(batches(X, Y)),
        "generator": batches(X, Y),
        "function": lambda: batches(X, Y),
        "loader": Loader(),
        "list of lists": [[x.tolist(), y.tolist()] for x, y in batches(X, Y)],
    }[form]
    model, expected = model_of(metrics=("accuracy",)), model_of()
    history = model.fit(given, epochs=epochs, verbose=0)
    losses = [expected.train_step(x, y) * len(x) for _ in range(epochs) for x, y in batches(X, Y)]
    np.testing.assert_array_equal(model.parameter_vector, expected.parameter_vector)
    assert history["loss"] == pytest.approx([sum(part) / N for part in np.split(np.array(losses), epochs)])
    again = given if form != "generator" else batches(X, Y)
    assert model.evaluate(again)["loss"] == pytest.approx(expected.evaluate(X, Y)["loss"])


def test_batches_with_weights_and_for_validation():
    weight = np.linspace(0, 2, N)
    model, expected = model_of(), model_of()
    history = model.fit(list(batches(X, Y, weight)), validation_data=(lambda: batches(X, Y), None), verbose=0)
    for x, y, w in batches(X, Y, weight):
        expected.train_step(x, y, w)
    np.testing.assert_array_equal(model.parameter_vector, expected.parameter_vector)
    assert history["val_loss"][0] == pytest.approx(expected.evaluate(X, Y)["loss"])


def test_batches_to_predict():
    model = model_of()
    expected = model.predict(X)
    for given in ((x for (x,) in batches(X)), lambda: batches(X), lambda: batches(X, Y)):
        np.testing.assert_allclose(model.predict(given), expected, rtol=1e-5, atol=1e-6)


def test_the_first_batch_of_a_list_tells_n_in():
    network = nbbp.Sequential([nbbp.Dense(5, activation="relu"), nbbp.Dense(3)])
    waiting, ready = nbbp.Model(network, loss="crossentropy", seed=1), model_of()
    for model in (waiting, ready):
        model.fit(list(batches(X, Y)), verbose=0)
    np.testing.assert_array_equal(waiting.parameter_vector, ready.parameter_vector)


def test_a_bar_for_batches_of_unknown_number(capfd):
    model_of(metrics=("accuracy",)).fit(Loader(), epochs=2, verbose=1)
    err = capfd.readouterr().err
    for part in ("epoch 2/2", "45", "loss=", "accuracy="):
        assert part in err


@pytest.fixture
def small_chunks(monkeypatch):
    """What is read from a file at a time: 10 rows of 4 float32."""
    monkeypatch.setattr(sources, "CHUNK_BYTES", 160)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
@pytest.mark.parametrize("file_dtype", ["float32", "float64", ">f4"])
def test_a_file_is_trained_on_batch_by_batch(tmp_path, small_chunks, file_dtype, batch_size, shuffle):
    file = np.memmap(tmp_path / "X", file_dtype, "w+", shape=X.shape)
    file[:] = X
    file.flush()
    labels = np.memmap(tmp_path / "y", np.uint8, "w+", shape=Y.shape)
    labels[:] = Y
    mapped = np.memmap(tmp_path / "X", file_dtype, "r", shape=X.shape)
    settings = {"epochs": 3, "batch_size": batch_size, "shuffle": shuffle, "verbose": 0}
    one, other = model_of(metrics=("accuracy",)), model_of(metrics=("accuracy",))
    history = one.fit(mapped, labels, sample_weight=np.linspace(1, 2, N), **settings)
    expected = other.fit(X, Y, sample_weight=np.linspace(1, 2, N), **settings)
    np.testing.assert_array_equal(one.parameter_vector, other.parameter_vector)
    assert dict(history) == dict(expected)
    np.testing.assert_array_equal(one.predict(mapped), other.predict(X))
    assert one.evaluate(mapped, labels) == other.evaluate(X, Y)
    one.train_step(mapped, labels)
    other.train_step(X, Y)
    np.testing.assert_array_equal(one.parameter_vector, other.parameter_vector)


def test_chunks_change_nothing(monkeypatch):
    results = []
    for rows, work in ((1 << 16, 1e11), (8, 1e11), (1 << 16, 1), (20, 1e4)):
        monkeypatch.setattr(training, "CHUNK_ROWS", rows)
        monkeypatch.setattr(training, "CHUNK_WORK", work)
        model = model_of(metrics=("accuracy",))
        history = model.fit(X, Y, epochs=3, batch_size=4, verbose=0)
        results.append((model.parameter_vector, history))
    for parameters, history in results[1:]:
        np.testing.assert_array_equal(parameters, results[0][0])
        assert dict(history) == dict(results[0][1])
