"""Flatten and Reshape: samples and outputs of any shape, wherever data come in and predictions go out."""

import numpy as np
import pytest
import reference
from engine_cases import DTYPES, assert_gradients_near_oracle, assert_near, copies, features_for, targets_for

import nbbp
from nbbp import losses
from nbbp.layers import Activation, Concat, Dense, Flatten, Reshape, Residual

SHAPE, OUT = (4, 3, 2), (2, 5)
BEHIND = [Dense(8, "tanh"), Residual([Dense(8)]), Dense(10), Reshape(OUT)]
N = 7


def model_of(*layers, loss="mse", n_in=24, **settings):
    return nbbp.Model(nbbp.Sequential(layers, n_in=n_in), loss, **{"seed": 3, "dtype": "float64"} | settings)


def data(dtype="float64", n=N):
    X = features_for(n, 24, dtype).reshape(n, *SHAPE)
    return X, targets_for(losses.MSE(), n, 10).astype(dtype).reshape(n, *OUT)


def flat(array):
    return array.reshape(len(array), -1)


FIRST = {"flatten": Flatten(), "reshape": Reshape((6, -1)), "reshape to a row": Reshape((24,))}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_everywhere(first, dtype):
    """As the same network on rows of numbers, bit by bit."""
    first = [first] if len(first.output_shape((24,))) == 1 else [first, Activation("tanh"), Flatten()]
    model, plain = (model_of(*first, *BEHIND, dtype=dtype) for _ in range(2))
    X, y = data(dtype)
    assert_gradients_near_oracle(plain, flat(X), flat(y))
    assert_near(model.predict(X), reference.predict(model.network, model.parameters, X).reshape(N, *OUT), dtype)
    for call in (
        lambda model, X, y: model.loss_and_gradients(X, y)[1]["1.weight" if len(first) == 1 else "3.weight"],
        lambda model, X, y: model.train_step(X, y),
        lambda model, X, y: model.fit(X, y, epochs=2, batch_size=3, validation_data=(X, y), verbose=0)["val_loss"],
        lambda model, X, y: model.fit(X, y, validation_split=0.3, verbose=0)["val_loss"],
        lambda model, X, y: model.fit([(X, y), (X[:2], y[:2])], verbose=0)["loss"],
        lambda model, X, y: model.fit(lambda: iter([(X, y)]), epochs=2, verbose=0)["loss"],
        lambda model, X, y: model.fit(X.tolist(), y.tolist(), verbose=0)["loss"],
        lambda model, X, y: model.partial_fit(X, y),
        lambda model, X, y: model.evaluate(X, y)["loss"],
        lambda model, X, y: model.evaluate(iter([(X, y)]))["loss"],
        lambda model, X, y: model.check_gradients(X, y, max_per_parameter=2).max_error,
        lambda model, X, y: model.predict(X),
        lambda model, X, y: model.predict(X[:1]),
        lambda model, X, y: model.predict([X[0].tolist()]),
        lambda model, X, y: model.predict(iter([X, X])),
        lambda model, X, y: model.parameter_vector,
    ):
        one, other = call(model, X, y), call(plain, flat(X), flat(y))
        assert np.array_equal(one, other)
    assert model.predict(X).shape == (N, *OUT)


def test_one_sample_of_a_stream():
    one, several, rows = (model_of(Flatten(), *BEHIND) for _ in range(3))
    X, y = data()
    for x, wanted in zip(X, y, strict=True):
        one.partial_fit(x, wanted)
    several.partial_fit(X, y)
    rows.partial_fit(flat(X), flat(y))
    assert one.parameter_vector.tobytes() == several.parameter_vector.tobytes() == rows.parameter_vector.tobytes()


def test_sizes_that_wait_for_the_data():
    X, y = data()
    for call in (
        lambda model: model.fit(X, y, verbose=0),
        lambda model: model.fit([(X, y)], verbose=0),
        lambda model: model.train_step(X, y),
        lambda model: model.train_step(X.tolist(), y),
    ):
        model = model_of(Flatten(), *BEHIND, n_in=None)
        call(model)
        assert model.network.n_in == 24
    assert nbbp.Sequential([Flatten(), Dense(3)], n_in=(28, 28)).n_in == 784
    assert nbbp.Sequential([Reshape((4, -1)), Flatten(), Dense(3)], n_in=[4, 5]).n_in == 20


@pytest.mark.parametrize("order", ["C", "F"])
def test_files(tmp_path, order):
    X, y = data("float32")
    files = []
    for name, values in (("X", X), ("y", y)):
        files.append(np.memmap(tmp_path / name, np.float32, "w+", shape=values.shape, order=order))
        files[-1][:] = values
    model, plain = (model_of(Flatten(), *BEHIND, dtype="float32") for _ in range(2))
    model.fit(*files, epochs=2, batch_size=3, verbose=0)
    plain.fit(flat(X), flat(y), epochs=2, batch_size=3, verbose=0)
    assert model.parameter_vector.tobytes() == plain.parameter_vector.tobytes()
    assert model.predict(files[0]).tobytes() == plain.predict(flat(X)).tobytes()
    assert model.evaluate(*files) == plain.evaluate(flat(X), flat(y))


def test_contiguous_data_are_not_copied():
    model = model_of(Flatten(), *BEHIND)
    X, y = data()
    source = nbbp.data.source(X, y, **model._describe(model.network))
    assert np.shares_memory(source.X, X)
    assert np.shares_memory(source.y, y)
    chunk = model._one_batch(X, y, None)
    assert np.shares_memory(chunk.X, X)
    assert np.shares_memory(chunk.y, y)


@pytest.mark.parametrize(
    ("loss", "last"), [("binary_crossentropy", "sigmoid"), ("crossentropy", "softmax"), ("nll", "log_softmax")]
)
@pytest.mark.parametrize("views", [[Flatten()], [Reshape((10,))], [Reshape((5, 2)), Flatten()]], ids=str)
def test_a_loss_takes_in_the_last_activation_through_views(loss, last, views):
    """Far out, where probabilities would have no digits left; `checkpoint_every` puts them in a part of their own."""
    models = [model_of(Dense(6, "tanh"), Dense(10, last), *more, loss=loss) for more in ([], views)]
    network = nbbp.Sequential(models[1].network.layers, 24, checkpoint_every=1)
    models.append(nbbp.Model(network, loss, dtype="float64", seed=3))
    X = flat(data()[0])
    y = np.arange(N) % 10 if models[0].loss.row_wise else np.eye(10)[np.arange(N)]
    results = []
    for model in models:
        model.parameters["1.weight"][:] *= 1e4
        assert_gradients_near_oracle(model, X, y)
        results.append((model.loss_and_gradients(X, y)[0], model.evaluate(X, y), model.predict_proba(X).tobytes()))
    assert results[0] == results[1] == results[2]


def test_images_out_of_a_sigmoid():
    """binary_crossentropy is a loss of each number for itself."""
    model = model_of(Flatten(), Dense(6, "tanh"), Dense(24, "sigmoid"), Reshape(SHAPE), loss="binary_crossentropy")
    X = (data()[0] > 0).astype(np.float64)
    assert_gradients_near_oracle(model, flat(X), flat(X))
    first = model.train_step(X, X)
    model.fit(X, X, epochs=50, verbose=0)
    assert model.evaluate(X, X)["loss"] < first
    assert model.predict(X).shape == model.predict_proba(X).shape == X.shape
    assert np.array_equal(model.predict(X), model.predict_proba(X))
    assert 0 <= model.predict(X).min() < model.predict(X).max() <= 1


def test_activations_behind_a_reshape_take_any_shape():
    model = model_of(Dense(10), Reshape(OUT), Activation("tanh"), Reshape((5, 2)))
    expected = reference.predict(model.network, copies(model.parameters), flat(data()[0]))
    assert_near(model.predict(flat(data()[0])), expected.reshape(N, 5, 2))


def test_summary_shows_the_shapes():
    summary = model_of(Flatten(), Dense(10), Reshape(OUT), Activation("tanh"), Flatten()).summary()
    shapes = [line[line.index("(") : line.index(")") + 1] for line in summary.splitlines() if "(batch" in line]
    assert shapes == ["(batch, 24)", "(batch, 10)", "(batch, 2, 5)", "(batch, 2, 5)", "(batch, 10)"]


# errors -----------------------------------------------------------------------------------------------------


def test_samples_that_do_not_fit():
    model = model_of(Flatten(), *BEHIND)
    X, y = data()
    refused = r"X has samples of shape \(4, 3\), 12 numbers; this network takes 24 \(X.shape = \(7, 4, 3\)\)"
    for call in (lambda x: model.fit(x, y, verbose=0), lambda x: model.predict(x), lambda x: model.evaluate(x, y)):
        with pytest.raises(ValueError, match=refused):
            call(X[..., 0])
    with pytest.raises(ValueError, match="x has samples of shape"):
        model.train_step(X[..., 0], y)
    with pytest.raises(ValueError, match="x of batch 0 of X has samples of shape"):
        model.fit([(X[..., 0], y)], verbose=0)
    with pytest.raises(ValueError, match="X is empty"):
        model.predict(X[:0])
    X[2, 1, 0, 1] = np.nan
    with pytest.raises(ValueError, match="X holds NaN at row 2, column 7"):
        model.fit(X, y, verbose=0)


def test_targets_that_do_not_fit():
    model = model_of(Flatten(), *BEHIND)
    X, y = data()
    with pytest.raises(ValueError, match=r"y has shape \(7, 5, 2\); the loss 'mse' on a network with 10 outputs takes"):
        model.fit(X, y.reshape(N, 5, 2), verbose=0)
    with pytest.raises(ValueError, match="X has 7 samples, y has 6"):
        model.fit(X, y[1:], verbose=0)


def test_other_networks_still_take_rows():
    X, y = data()
    message = r"has 3 dimensions; this network takes 24 features.*which gives 24 features, or put Flatten\(\) first"
    for layers in ([Dense(10)], [Residual([Flatten(), Dense(10)]), Dense(10)], [Dense(8), Flatten(), Dense(10)]):
        model = model_of(*layers)
        for call in (lambda: model.predict(X[..., 0].repeat(2, 1)), lambda: model.train_step(X.reshape(N, 4, 6), y)):  # noqa: B023
            with pytest.raises(ValueError, match=message):
                call()


@pytest.mark.parametrize("n_in", [24, None])
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"loss": "crossentropy"}, "crossentropy"),
        ({"loss": "nll"}, "nll"),
        ({"metrics": ["accuracy"]}, "accuracy"),
        ({"metrics": ["mse", "top_k_accuracy"]}, "top_k_accuracy"),
    ],
)
def test_classes_of_outputs_that_are_no_row(settings, name, n_in):
    targets = np.full((N, 10), 0.1)
    message = rf"'{name}' takes one output per class.*samples of shape \(2, 5\): put Flatten\(\) behind it"
    with pytest.raises(ValueError, match=message):
        model_of(Dense(10), Reshape(OUT), Activation("tanh"), n_in=n_in, **settings).train_step(
            flat(data()[0]), targets
        )
    model_of(Dense(10), Reshape(OUT), Flatten(), n_in=n_in, **settings)
    model_of(Dense(10), Reshape((10,)), n_in=n_in, **settings)


def test_outputs_without_sizes():
    """Known before the inputs are only where the last layer that sets them says so."""
    assert nbbp.Sequential([Dense(4), Activation("tanh"), Reshape((2, 2))]).n_out == 4
    assert nbbp.Sequential([Concat([Dense(4)], [Dense(3)])]).n_out == 7
    for layers in ([Dense(4), Concat([], [Dense(2)])], [Dense(4), Residual([Concat([], [Dense(2)])])]):
        assert nbbp.Sequential(layers, n_in=3).n_out == 6
        with pytest.raises(ValueError, match="the features per sample are not known"):
            nbbp.Sequential(layers).n_out  # noqa: B018
        nbbp.Model(nbbp.Sequential(layers), "crossentropy", metrics=("accuracy", "top_k_accuracy"))
