"""The learning-rate range test: what it trains, when it stops, what it suggests, that the model stays as it is."""

import copy
import pickle

import numpy as np
import pytest
from engine_cases import features_for, model_of, small_model

import nbbp
from nbbp import LearningRateCurve, datasets, find_learning_rate, losses
from nbbp.layers import BatchNorm, Dense, Dropout, Embedding, Flatten, Reshape
from nbbp.optimizers import SGD, Adam, AdamW
from nbbp.schedules import Cosine, Exponential, Plateau, ReduceOnPlateau
from nbbp.session import Session

LOSS = losses.Crossentropy()


def data_for(n=200, dtype="float32"):
    return features_for(n, 5, dtype), np.random.default_rng(0).integers(0, 3, n)


def digits():
    X, y = datasets.load_digits()
    return (X - X.mean(axis=0)) / X.std(), y


def fresh(optimizer="adam", n_in=64, **settings):
    return nbbp.Model(nbbp.Sequential([Dense(32, "relu"), Dense(10)], n_in=n_in), "crossentropy", optimizer, **settings)


@pytest.mark.parametrize(("optimizer", "low", "high"), [(SGD(0.01), 1e-3, 3.0), (Adam(), 1e-5, 0.3)])
def test_a_good_rate_is_suggested_for_the_digits(optimizer, low, high):
    X, y = digits()
    found = find_learning_rate(fresh(optimizer), X, y, stop=1e3)
    assert low < found.suggestion < high
    assert len(found.rates) < 100  # it went up in the end
    assert found.smoothed[-1] > 4 * found.smoothed.min()
    model = fresh(type(optimizer)(found.suggestion))
    model.fit(X, y, epochs=5, verbose=0)
    assert model.evaluate(X, y)["loss"] < 0.5


@pytest.mark.parametrize(
    "optimizer", [AdamW(0.02, weight_decay=0.1), Adam(Cosine(0.02, steps=9), accumulation_steps=2)]
)
def test_losses_are_those_of_fit_with_a_growing_rate(optimizer):
    X, y = data_for(50)
    rates = np.geomspace(1e-4, 0.1, 8)
    optimizer = copy.deepcopy(optimizer)
    groups = {"*.bias": {"learning_rate": 0.04}, "1.*": {"learning_rate": 0.0}}
    model = small_model("tanh", LOSS, "float32", type(optimizer)(**{**vars(optimizer), "groups": groups}))
    found = find_learning_rate(model, X, y, start=1e-4, stop=0.1, steps=8, batch_size=16, smoothing=0.5)
    np.testing.assert_allclose(found.rates, rates, rtol=1e-12)
    growing = Exponential(1e-4, factor=rates[1] / rates[0])
    groups = {"*.bias": {"learning_rate": 2e-4}, "1.*": {"learning_rate": 0.0}}
    changed = {**vars(optimizer), "learning_rate": growing, "groups": groups}
    twin = small_model("tanh", LOSS, "float32", type(optimizer)(**changed))
    k = optimizer.accumulation_steps
    seen = []
    train_chunk = Session.train_chunk

    def watched(session, chunk, batch, *more):
        values, metrics = train_chunk(session, chunk, batch, *more)
        seen.extend(np.mean(values[first : first + batch]) for first in range(0, len(values), batch))
        return values, metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "train_chunk", watched)
        twin.fit(X, y, batch_size=16, epochs=4, verbose=0)
    np.testing.assert_allclose(found.losses, np.reshape(seen[: 8 * k], (8, k)).mean(axis=1), rtol=1e-6)
    for t in range(8):
        weights = 0.5 ** np.arange(t, -1, -1)
        assert found.smoothed[t] == pytest.approx(np.average(found.losses[: t + 1], weights=weights), rel=1e-12)
        centre = np.exp(np.average(np.log(rates[: t + 1]), weights=weights))
        assert found.smoothed_rates[t] == pytest.approx(centre, rel=1e-12)


def test_the_model_stays_as_it_is_bit_for_bit():
    layers = [Dense(7, "tanh"), BatchNorm(), Dropout(0.2), Dense(3)]
    model = model_of(layers, 5, LOSS, "float32", Adam(ReduceOnPlateau(0.01, patience=0, threshold=0.9)))
    X, y = data_for()
    history = model.fit(X, y, epochs=3, verbose=0)
    twin, before = copy.deepcopy(model), pickle.dumps(model._session)
    find_learning_rate(model, X, y, steps=30)
    assert pickle.dumps(model._session) == before
    assert model.history is history
    assert model._session.clock.plateau != Plateau()
    for m in (model, twin):
        m.fit(X, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, twin.parameter_vector)


def test_data_come_as_fit_takes_them(tmp_path):
    X, y = data_for()
    expected = find_learning_rate(small_model("tanh", LOSS, "float32"), X, y, steps=20)
    mapped = np.memmap(tmp_path / "X", np.float32, "w+", shape=X.shape)
    mapped[:] = X
    for other in (X.astype(np.float64).tolist(), np.asfortranarray(X), mapped):
        found = find_learning_rate(small_model("tanh", LOSS, "float32"), other, y, steps=20)
        np.testing.assert_array_equal(found.losses, expected.losses)
    del mapped
    batches = [(X[:30], y[:30]), (X[30:], y[30:], np.ones(170))]
    found = find_learning_rate(small_model("tanh", LOSS, "float32"), batches, steps=5)
    endless = (batches[t % 2] for t in range(1000))
    again = find_learning_rate(small_model("tanh", LOSS, "float32"), endless, steps=5)
    np.testing.assert_array_equal(found.losses, again.losses)
    with pytest.raises(ValueError, match="a generator can be gone through once"):
        find_learning_rate(small_model("tanh", LOSS, "float32"), iter(batches), steps=5)


def test_data_have_the_form_that_the_network_takes():
    X, y = data_for()
    layers = [Flatten(), Dense(4, "tanh"), Reshape((2, 2))]
    images, targets = np.ones((20, 2, 3), np.float32), np.zeros((20, 2, 2), np.float32)
    for n_in in (6, None):
        model = nbbp.Model(nbbp.Sequential(layers, n_in=n_in), "mse")
        assert len(find_learning_rate(model, images, targets, steps=5).losses) == 5
    model = nbbp.Model(nbbp.Sequential([Embedding(4, 3), Dense(3)], n_in=5), LOSS)
    with pytest.raises(ValueError, match="expected a category 0 … 3"):
        find_learning_rate(model, np.full_like(X, 4), y, steps=5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_copy_computes_in_the_precision_of_the_model(precision):
    X, y = data_for(32)
    model = fresh(n_in=5, precision=precision)
    found = find_learning_rate(model, X, y, steps=2, start=1e-3)
    expected = fresh(n_in=5, precision=precision).train_step(X, y)
    assert found.losses[0] == pytest.approx(expected, rel=1e-6)
    assert found.losses[0] != pytest.approx(fresh(n_in=5).train_step(X, y), rel=1e-6)


def test_a_model_without_sizes_learns_them_and_stays_without():
    X, y = digits()
    model = fresh(n_in=None)
    found = find_learning_rate(model, X, y, steps=20)
    np.testing.assert_array_equal(found.losses, find_learning_rate(fresh(), X, y, steps=20).losses)
    assert model.network.n_in is None
    assert model._session is None


def test_it_stops_when_the_loss_is_gone():
    X = features_for(64, 5, "float32")
    values = X @ np.ones((5, 1), np.float32)
    model = model_of([Dense(1)], 5, losses.MSE(), "float32", SGD(0.1))
    found = find_learning_rate(model, X, values, start=1e30, stop=1e35, steps=50)
    assert 1 <= len(found.rates) < 10  # infinite
    assert np.isfinite(found.losses).all()
    with pytest.raises(ValueError, match=r"the loss never falls between the rates 1e\+30 and .*look at plot\(\)"):
        _ = found.suggestion
    found = find_learning_rate(model, X, values, start=1e-3, stop=1e3, steps=60)
    assert len(found.rates) < 60
    is_gone = found.smoothed[6:] > 4 * np.minimum.accumulate(found.smoothed[6:])
    assert is_gone[-1]
    assert not is_gone[:-1].any()
    model.parameters["0.bias"][:] = np.inf
    with pytest.raises(ValueError, match="the loss of the first batch is"):
        find_learning_rate(model, X, values)


def test_the_suggestion_is_the_steepest_fall_before_the_least():
    rates = np.geomspace(1e-4, 1.0, 20)
    smoothed = np.array([9, 5, 5, 5, 4.9, 4.7, 4.3, 3.5, 3.0, 2.8, 2.7, 2.9, 3.5, 9, 5, 4, 4, 4, 4, 4.0])
    curve = LearningRateCurve(2 * rates, smoothed, smoothed, rates)
    assert curve.suggestion == rates[6]  # not 9 to 5, where the mean begins, nor where it falls from 9 again
    assert "20 updates from 0.0002 to 2; suggestion: 0.00183" in repr(curve)
    rising = LearningRateCurve(rates, smoothed, np.arange(1.0, 21.0), rates)
    assert "suggestion: none" in repr(rising)
    with pytest.raises(ValueError, match="never falls"):
        _ = rising.suggestion


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    rates = np.geomspace(1e-4, 1.0, 20)
    falls = np.concatenate([np.linspace(2.0, 0.5, 15), [0.6, 0.9, 2.0, 9.0, 40.0]])
    for smoothed in (falls, falls[::-1] + np.arange(20) * 100.0, np.full(20, 0.0), falls[:1]):
        curve = LearningRateCurve(rates[: len(smoothed)], smoothed, smoothed, rates[: len(smoothed)])
        figure = curve.plot(tmp_path / "new" / "curve.png")
        assert (tmp_path / "new" / "curve.png").read_bytes().startswith(b"\x89PNG")
        labels = figure.axes[0].get_legend_handles_labels()[1]
        assert ("suggestion" in labels[-1]) == (smoothed is falls)
        pyplot.close(figure)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"start": 0.0}, ValueError, "start must be above 0"),
        ({"start": "1"}, TypeError, "start must be a number"),
        ({"stop": 1e-8}, ValueError, "stop must be above 1e-07 and finite; got 1e-08"),
        ({"steps": 1}, ValueError, "steps must be at least 2; got 1"),
        ({"steps": 2.0}, TypeError, "steps must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"smoothing": 1.0}, ValueError, "smoothing must be at least 0 and below 1"),
        ({"y": None}, TypeError, "y is None"),
        ({"model": "adam"}, TypeError, "model must be a Model; got 'adam'"),
    ],
)
def test_refused(settings, error, message):
    X, y = data_for(20)
    arguments = {"model": fresh(n_in=5), "X": X, "y": y, **settings}
    with pytest.raises(error, match=message):
        find_learning_rate(**arguments)
