"""Standardize: statistics of the data that is trained on, measured once, exact, and kept wherever the model goes."""

import copy
import math
import pickle

import numpy as np
import pytest
from engine_cases import features_for
from hypothesis import given, strategies
from hypothesis.extra import numpy as hnp

import nbbp
from nbbp import programs, standardization
from nbbp.callbacks import ModelCheckpoint
from nbbp.layers import Activation, Concat, Dense, Embedding, Flatten, Standardize

DTYPES = ("float32", "float64")


def samples(n=90, dtype="float64"):
    """Features far from zero, of different size, one of them constant; three classes, and the end unlike the rest."""
    X = np.random.default_rng(3).normal((1000.0, -3.0, 0.02), (7.0, 40.0, 1e-3), (n, 3))
    X = np.column_stack((X, np.full(n, 0.1))).astype(dtype)
    X[-n // 3 :, :3] += 5.0
    return X, np.arange(n) % 3


def model_of(*layers, n_in=None, **settings):
    layers = layers or (Standardize(), Dense(8, "tanh"), Dense(3))
    return nbbp.Model(nbbp.Sequential(layers, n_in), "crossentropy", nbbp.Adam(0.01), seed=5, **settings)


def assert_statistics(model, X, path="0"):
    """Those of X as the model sees it, to the rounding of its dtype and of sums in float64."""
    X = np.asarray(X, model.dtype)
    mean, variance = exact_moments(X)
    eps = np.finfo(model.dtype).eps
    error = np.abs(model.state[f"{path}.mean"] - mean)
    assert (error <= (eps + 1e-15) * np.abs(X).max(axis=0)).all()
    np.testing.assert_allclose(
        model.state[f"{path}.variance"], np.where(variance == 0.0, 1.0, variance), rtol=max(2 * eps, 1e-12)
    )


def exact_moments(X):
    """Mean and variance of every column, from sums that round once."""
    mean = np.array([math.fsum(column) / len(X) for column in X.T.tolist()])
    squares = [math.fsum((value - m) ** 2 for value in column) for column, m in zip(X.T.tolist(), mean, strict=True)]
    variance = np.array(squares) / len(X)
    return mean, np.where(np.ptp(X, axis=0) == 0.0, 0.0, variance)


def state_of(model):
    return [values.copy() for values in model.state.values()]


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


# the statistics ---------------------------------------------------------------------------------------------


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=strategies.floats(-1e6, 1e6)),
    strategies.sampled_from([1e-8, 1.0, 1e8]),
    strategies.floats(-1e9, 1e9),
    strategies.data(),
)
def test_moments_of_any_chunks(X, scale, offset, data):
    X = X * scale + offset
    cuts = sorted(data.draw(strategies.sets(strategies.integers(1, len(X)), max_size=4)) | {len(X)})
    moments, start = standardization.Moments(), 0
    for stop in cuts:
        moments.add(X, np.arange(start, stop))
        start = stop
    (mean, variance), spread = exact_moments(X), np.ptp(X, axis=0)
    assert (np.abs(moments.mean - mean) <= 4e-16 * np.abs(X).max(axis=0) + 1e-14 * spread).all()
    # what the mean of the comparison lacks by rounding counts squared
    assert (np.abs(moments.variance - variance) <= 1e-12 * variance + (4e-16 * np.abs(mean)) ** 2).all()
    assert (moments.variance[spread == 0.0] == 0.0).all()
    assert (moments.mean[spread == 0.0] == X[0, spread == 0.0]).all()


def test_moments_of_many_rows(monkeypatch):
    """Far from zero, where the mean of squares less the square of the mean has no digit left."""
    X = np.random.default_rng(0).normal(1e8, 1e-1, (50_000, 3))
    whole, blocks = standardization.Moments(), standardization.Moments()
    whole.add(X, np.arange(len(X)))
    monkeypatch.setattr(standardization, "_BLOCK", 100)
    blocks.add(X, np.arange(len(X)))
    for moments in (whole, blocks):
        np.testing.assert_allclose(moments.mean, exact_moments(X)[0], rtol=3e-16)
        np.testing.assert_allclose(moments.variance, exact_moments(X - 1e8)[1], rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_and_outputs_are_those_of_scikit_learn(dtype):
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    X, _ = samples(dtype=dtype)
    scaler = preprocessing.StandardScaler().fit(X.astype("float64"))
    eps = np.finfo(dtype).eps
    expected = scaler.transform(X.astype("float64"))
    rounding = 4 * eps + eps * np.abs(X).max(axis=0) / scaler.scale_  # the latter of the mean
    for layer in (Standardize(), Standardize(scaler.mean_, scaler.var_)):
        # what it gives is seen through a layer that passes it on
        model = nbbp.Model(nbbp.Sequential([layer, Dense(4, use_bias=False)], 4), "mse", dtype=dtype)
        model.parameters["1.weight"][:] = np.eye(4)
        if not layer.is_given:
            model.adapt(X)
        np.testing.assert_allclose(model.state["0.mean"], scaler.mean_, rtol=1e-12 + eps, atol=eps * 40)
        np.testing.assert_allclose(model.state["0.variance"], scaler.scale_**2, rtol=1e-12 + 2 * eps)
        assert (np.abs(model.predict(X) - expected) <= rounding).all()
        np.testing.assert_allclose(model.predict(X)[:, 3], 0.0, atol=eps)


# when they are measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_fit_measures_what_it_trains_on(dtype):
    X, y = samples(dtype=dtype)
    model = model_of(dtype=dtype)
    model.fit(X, y, validation_split=1 / 3, verbose=0)
    assert_statistics(model, X[:60])
    before = state_of(model)
    model.fit(2.0 * X, y, verbose=0)
    model.train_step(3.0 * X, y)
    assert_same(state_of(model), before)


def test_every_form_of_the_data_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("nbbp.sources.CHUNK_BYTES", 100)
    X, y = samples(dtype="float32")
    np.save(tmp_path / "X.npy", X)
    parts = [(X[rows : rows + 40], y[rows : rows + 40]) for rows in range(0, 90, 40)]
    passes = []

    def loader():
        passes.append(len(passes))
        return iter(parts)

    for data in ((X, y), (np.load(tmp_path / "X.npy", mmap_mode="r"), y), (X.tolist(), y), (parts,), (loader,)):
        model = model_of(n_in=4)
        model.fit(*data, verbose=0)
        assert_statistics(model, X)
    assert len(passes) == 2  # of which one measures
    for data in (X, np.load(tmp_path / "X.npy", mmap_mode="r"), X.tolist(), (x for x, _ in parts), iter(parts), loader):
        model = model_of(n_in=4)
        model.adapt(data)
        assert_statistics(model, X)


def test_adapt_takes_the_place_of_what_there_was():
    X, y = samples()
    model = model_of()
    model.adapt(X)
    quick = np.ascontiguousarray(X[:5], "float32")
    before = model.predict(quick), model.train_step(quick, y[:5])
    twin = model_of(n_in=4)
    twin.adapt(2.0 * X)
    twin.parameter_vector[:] = model.parameter_vector
    model.adapt(2.0 * X)  # programs that are there already go by the new ones
    np.testing.assert_array_equal(model.predict(quick), twin.predict(quick))
    assert not np.array_equal(model.predict(quick), before[0])


def test_nothing_runs_before_they_are_known():
    X, y = samples()
    x = X.astype("float32")
    model = model_of(n_in=4)
    before = copy.deepcopy(model)
    calls = (
        lambda: model.predict(X),
        lambda: model.predict(x[:3]),
        lambda: model.predict_proba(X),
        lambda: model.evaluate(X, y),
        lambda: model.train_step(X, y),
        lambda: model.train_step(x[:3], y[:3]),
        lambda: model.partial_fit(x[0], 1),
        lambda: model.loss_and_gradients(X, y),
        lambda: model.check_gradients(X, y),
        lambda: model.as_njit(),
        lambda: nbbp.Population(model.network, "crossentropy", size=2).predict(X),
        lambda: nbbp.Population(model.network, "crossentropy", size=2).evaluate(X, y),
    )
    for call in calls:
        with pytest.raises(ValueError, match="layer 0 has no mean and variance of the data yet: call fit or adapt"):
            call()
    with pytest.raises(ValueError, match="a generator can be gone through only once: call"):
        model.fit(iter([(X, y)]), verbose=0)
    assert_same([model.parameter_vector, *state_of(model)], [before.parameter_vector, *state_of(before)])
    assert model._session.step == 0
    model.adapt(X)
    model.fit(iter([(X, y)]), verbose=0)
    with pytest.raises(ValueError, match=r"nothing to adapt to data: it has no Standardize"):
        model_of(Dense(3), n_in=4).adapt(X)
    with pytest.raises(ValueError, match=r"nothing to adapt to data: its Standardize was given mean and variance"):
        model_of(Standardize(0, 1), Dense(3), n_in=4).adapt(X)
    with pytest.raises(ValueError, match="X has 3 features per sample; this network takes 4"):
        model.adapt(X[:, :3])


def test_what_the_dtype_does_not_hold():
    X, y = samples()
    for scale, exponent in ((1e-25, "-4"), (1e25, "[+]5")):
        wide = X[:, :2] * scale
        model = model_of()
        with pytest.raises(
            ValueError, match=f"the data: feature 0 has the variance .*e{exponent}.*, which float32 does"
        ):
            model.fit(wide, y, verbose=0)
        double = model_of(dtype="float64")
        double.fit(wide, y, verbose=0)
        assert_statistics(double, wide)
    for scale in (1e200, 1e304):
        with pytest.raises(ValueError, match=r"X: feature 0 has the (mean -|variance )inf, which float64 does"):
            double.adapt(np.vstack((X, -X))[:, :2] * scale)
    assert_statistics(double, X[:, :2] * 1e25)


def test_statistics_that_are_given():
    X, y = samples()
    one = model_of(Standardize(2, 0), Dense(3), n_in=4, dtype="float64")
    assert one.state["0.mean"].tolist() == [2.0] * 4
    assert one.state["0.variance"].tolist() == [1.0] * 4
    before = state_of(one)
    one.fit(X, y, verbose=0)
    assert_same(state_of(one), before)
    many = Standardize(np.float32([1, 2]), [3, 4])
    assert many == Standardize((1.0, 2.0), (3, 4))
    assert hash(many) == hash(Standardize((1.0, 2.0), (3, 4)))
    with pytest.raises(ValueError, match=r"Standardize: feature 0 has the mean 1e\+300, which float32 does not hold"):
        model_of(Standardize(1e300, 1), Dense(3), n_in=4)
    with pytest.raises(ValueError, match="feature 1 has the variance 1e-300, which float32 does not hold"):
        model_of(Standardize(0, [1, 1e-300]), Dense(3), n_in=2)
    assert repr(many) == "Standardize(mean=(1.0, 2.0), variance=(3.0, 4.0), name=None)"


# where they go ----------------------------------------------------------------------------------------------


def test_copies_and_files_keep_them(tmp_path):
    X, y = samples()
    model = model_of()
    model.fit(X, y, epochs=2, verbose=0)
    model.save(tmp_path / "m")
    expected = model.predict(X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nbbp.load_model(tmp_path / "m")):
        assert_same(state_of(twin), state_of(model))
        np.testing.assert_array_equal(twin.predict(X), expected)
        twin.fit(3.0 * X, y, verbose=0)
        assert_same(state_of(twin), state_of(model))


def test_a_file_without_statistics_gets_them_later(tmp_path):
    X, y = samples()
    model_of(n_in=4).save(tmp_path / "m")
    model = nbbp.load_model(tmp_path / "m")
    with pytest.raises(ValueError, match="no mean and variance of the data yet"):
        model.predict(X)
    model.fit(X, y, verbose=0)
    assert_statistics(model, X)


def test_a_run_that_is_resumed_keeps_those_of_its_beginning(tmp_path):
    X, y = samples()
    whole, first, second = model_of(), model_of(), model_of()
    whole.fit(X, y, epochs=4, verbose=0)
    first.fit(X, y, epochs=2, verbose=0, callbacks=[ModelCheckpoint(tmp_path / "m")])
    second.fit(X, y, epochs=4, verbose=0, resume_from=tmp_path / "m")
    assert_same([whole.parameter_vector, *state_of(whole)], [second.parameter_vector, *state_of(second)])
    third = model_of()
    third.fit(2.0 * X, y, epochs=3, verbose=0, resume_from=tmp_path / "m")
    assert_same(state_of(third), state_of(first))


def test_a_population_is_as_its_models():
    X, y = samples()
    network = nbbp.Sequential([Standardize(), Dense(5, "tanh"), Dense(3)])
    population = nbbp.Population(network, "crossentropy", size=3)
    population.fit(X[:60], y[:60], verbose=0, epochs=2, validation_data=(X[60:], y[60:]))
    for number, member in enumerate(population):
        alone = nbbp.Model(network, "crossentropy", seed=number)
        alone.fit(X[:60], y[:60], verbose=0, epochs=2)
        assert_same([alone.parameter_vector, *state_of(alone)], [member.parameter_vector, *state_of(member)])
    assert_statistics(population[0], X[:60])


def test_the_range_test_measures_a_copy():
    X, y = samples()
    model = model_of(n_in=4)
    curve = nbbp.find_learning_rate(model, X, y, steps=20)
    assert np.isfinite(curve.losses).all()
    assert all(np.isnan(values).all() for values in state_of(model))


def test_they_survive_a_run_that_diverges():
    X, y = samples()
    model = nbbp.Model(nbbp.Sequential([Standardize(), Dense(3)]), "mse", nbbp.SGD(1e30))
    with pytest.raises(nbbp.TrainingDiverged):
        model.fit(X, np.eye(3)[y], epochs=50, verbose=0)
    assert_statistics(model, X)


# in networks ------------------------------------------------------------------------------------------------


def test_samples_of_any_shape():
    X = features_for(20, 12).reshape(20, 3, 4) + 7.0
    y = np.arange(20) % 3
    model = model_of(Flatten(), Standardize(), Dense(3))
    model.fit(X, y, verbose=0)
    assert_statistics(model, X.reshape(20, 12), "1")


def test_beside_categories():
    X, y = samples()
    X = np.column_stack((np.arange(len(X)) % 5, X))
    model = model_of(Concat([Embedding({0: 5}, 2)], [Standardize(), Dense(4, "relu")]), Dense(3))
    model.fit(X, y, verbose=0)
    assert_statistics(model, X, "0.1.0")


def test_the_way_back_costs_nothing():
    network = nbbp.Sequential([Standardize(), Dense(4, "tanh"), Dense(3)], 5)
    program = programs.training_program(network, nbbp.losses.Crossentropy(), nbbp.SGD(), (), 8, True)
    assert len(program.find("batch_norm_inference")) == 1
    assert not program.find("batch_norm_inference_backward")
    plain = nbbp.Sequential(network.layers[1:], 5)
    without = programs.training_program(plain, nbbp.losses.Crossentropy(), nbbp.SGD(), (), 8, True)
    assert len(program.ops) == len(without.ops) + 1


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.parametrize("before", [[], [Flatten()]], ids=["first", "behind a view"])
def test_training_is_that_of_data_standardized_before(precision, every, before):
    """To the bit, where standardizing rounds nothing: small integers, shifted and scaled by a power of two."""
    x, y = np.round(8.0 * features_for(33, 5)).astype("float32"), np.arange(33) % 3
    far = np.float32(2.0**20) * (x + 1001.0)  # beyond fp16, whose data end at 65504, and the digits of bf16
    layers = [Dense(8, "tanh"), Dense(8, "relu"), Activation("tanh"), Dense(3)]
    given_ = Standardize(1001.0 * 2.0**20, 2.0**40)
    settings = {"precision": precision}
    models = [
        nbbp.Model(nbbp.Sequential(chain, 5, every), "crossentropy", seed=3, **settings)
        for chain in ([*before, Activation("linear"), *layers], [*before, given_, *layers])
    ]
    for model, data in zip(models, (x, far), strict=True):
        model.fit(data, y, epochs=3, batch_size=8, verbose=0)
    assert_same([models[0].parameter_vector], [models[1].parameter_vector])
    np.testing.assert_array_equal(models[0].predict(x), models[1].predict(far))
