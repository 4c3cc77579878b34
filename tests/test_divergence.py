"""A loss that is no longer a number stops the run: which layer went first, the last good parameters, the history."""

import re

import numpy as np
import pytest

import nbbp
from nbbp import optimizers

random = np.random.default_rng(0)
N = 200
X = random.standard_normal((N, 4)).astype(np.float32)
VALUES = random.standard_normal((N, 3)).astype(np.float32)
LABELS = random.integers(0, 3, N)
#: In float32, the step that no parameter survives.
HUGE = 3e38


def model_of(optimizer, loss="mse", widths=(16, 16), activation="relu", **settings):
    layers = [nbbp.Dense(width, activation=activation) for width in widths]
    return nbbp.Model(nbbp.Sequential([*layers, nbbp.Dense(3)], n_in=4), loss, optimizer, **settings)


def assert_stopped_and_usable(model, y, **settings):
    """`fit` raises; the model stands at parameters that give a number, and trains on with them. Gives the error."""
    start = model.parameter_vector.copy()
    with pytest.raises(nbbp.TrainingDiverged) as caught:
        model.fit(X, y, **{"verbose": 0, "batch_size": 32, "epochs": 5} | settings)
    error = caught.value
    assert isinstance(error, FloatingPointError)
    assert error.history is model.history
    assert np.isfinite(model.parameter_vector).all()
    assert np.isfinite(model.evaluate(X, y)["loss"])
    assert np.isfinite(model.predict(X)).all()
    if not error.history.epochs:
        np.testing.assert_array_equal(model.parameter_vector, start)
    session = model._session
    assert session.step == 0
    assert not any(slot.any() for slot in session.slots)
    # a model of the same parameters that never diverged does the same from here on
    twin = nbbp.Model(model.network, model.loss, model.optimizer, seed=model.seed)
    twin.parameter_vector[:] = model.parameter_vector
    for _ in range(2):
        np.testing.assert_equal(model.train_step(X, y), twin.train_step(X, y))
    np.testing.assert_array_equal(model.parameter_vector, twin.parameter_vector)
    return error


#: Where a huge step leads to a huge loss, and where it is clipped or squared away, is each rule's own affair.
DIVERGING = [
    optimizers.SGD, optimizers.AdaGrad, optimizers.RMSprop, optimizers.Adam, optimizers.AdamW, optimizers.Adamax,
    optimizers.NAdam, optimizers.RAdam, optimizers.Lion, optimizers.Adadelta,
]  # fmt: skip


@pytest.mark.parametrize("optimizer", DIVERGING, ids=lambda optimizer: optimizer.__name__)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_layer_that_went_first_is_named(optimizer, layer):
    """One layer with a huge learning rate: its parameters, its outputs or, from the last one, the loss goes first."""
    groups = {f"{layer}.*": {"learning_rate": HUGE}}
    model = model_of(optimizer(learning_rate=1e-6, groups=groups))
    message = str(assert_stopped_and_usable(model, VALUES))
    named = re.search(r"the first numbers to go were (?:in|the outputs of) layer (\d)", message)
    if named is None:
        assert "the layers' outputs are finite, the loss of them is not" in message
    else:
        assert int(named[1]) == layer
    assert re.match(r"the loss turned (nan|inf|-inf) in batch [2-7] of epoch 1; ", message)
    assert "smaller learning_rate" in message


@pytest.mark.parametrize("optimizer", DIVERGING, ids=lambda optimizer: optimizer.__name__)
@pytest.mark.parametrize("batch_size", [1, 7, 32, N], ids="batch {}".format)
def test_any_batch_size(optimizer, batch_size):
    error = assert_stopped_and_usable(model_of(optimizer(learning_rate=HUGE)), VALUES, batch_size=batch_size)
    epoch, batch = (2, 1) if batch_size == N else (1, 2)
    assert f"in batch {batch} of epoch {epoch}" in str(error)
    assert error.history.epochs == list(range(1, epoch))


@pytest.mark.parametrize("learning_rate", [1e2, 1e5, 1e10, 1e20, 1e30, HUGE, 1e39, 1e300])
@pytest.mark.parametrize("loss", ["mse", "crossentropy", "poisson"])
def test_any_learning_rate(learning_rate, loss):
    model = model_of(nbbp.SGD(learning_rate=learning_rate), loss)
    y = LABELS if loss == "crossentropy" else abs(VALUES)
    try:
        history = model.fit(X, y, epochs=3, batch_size=32, verbose=0)
        assert np.isfinite(history["loss"]).all()
    except nbbp.TrainingDiverged:
        assert np.isfinite(model.evaluate(X, y)["loss"])
    assert np.isfinite(model.parameter_vector).all()


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("widths", "batch_size"), [((300,), 64), ((300, 300), 64), ((16,), 8000)])
def test_any_way_of_cutting_a_step(widths, batch_size, n_threads, monkeypatch):
    monkeypatch.setattr("nbbp.cpu.engine._n_threads", n_threads)
    x, y = np.tile(X, (50, 1)), np.tile(VALUES, (50, 1))
    model = model_of(nbbp.Adam(learning_rate=HUGE), widths=widths)
    start = model.parameter_vector.copy()
    with pytest.raises(nbbp.TrainingDiverged, match="in batch 2 of epoch 1; the first numbers to go were in layer 0"):
        model.fit(x, y, batch_size=batch_size, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, start)


def test_the_epochs_before_are_kept():
    """Full batches: the loss grows epoch by epoch until it is no number."""
    model = model_of(nbbp.SGD(learning_rate=30.0), metrics=("mae",))
    error = assert_stopped_and_usable(model, VALUES, batch_size=N, epochs=100)
    history = error.history
    n = len(history.epochs)
    assert 1 <= n < 100
    assert list(history) == ["loss", "mae"]
    assert len(history["loss"]) == n
    assert np.isfinite(history["loss"]).all()
    assert f"of epoch {n + 1};" in str(error)
    expected = model_of(nbbp.SGD(learning_rate=30.0))
    expected.fit(X, VALUES, epochs=n - 1, batch_size=N, verbose=0) if n > 1 else None
    good = model_of(nbbp.SGD(learning_rate=30.0))
    with pytest.raises(nbbp.TrainingDiverged):
        good.fit(X, VALUES, epochs=100, batch_size=N, verbose=0)
    np.testing.assert_array_equal(good.parameter_vector, expected.parameter_vector)
    assert good.evaluate(X, VALUES)["loss"] == pytest.approx(history["loss"][-1])


def test_the_last_update_of_all():
    """One full batch: its loss is fine, and no loss ever sees what the update did."""
    model = model_of(nbbp.SGD(learning_rate=HUGE))
    error = assert_stopped_and_usable(model, 1e10 * VALUES, batch_size=N, epochs=1)
    assert re.match("a parameter turned infinite or NaN in the last update of epoch 1; the first numbers", str(error))
    assert error.history.epochs == [1]


def test_in_the_first_batch():
    model = model_of("sgd")
    start = model.parameter_vector.copy()
    with pytest.raises(
        nbbp.TrainingDiverged, match="loss turned inf in batch 1 of epoch 1; the layers' outputs are fin"
    ):
        model.fit(X, 1e30 * VALUES, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, start)
    with pytest.raises(
        nbbp.TrainingDiverged, match="in batch 1 of epoch 1; the first numbers to go were the outputs of"
    ):
        model.fit(np.full((N, 4), 3e38), VALUES, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, start)
    model.fit(X, VALUES, verbose=0)


def test_running_statistics_come_back_with_the_parameters():
    """Before numbers are infinite they are huge, and so are their statistics."""
    layers = [nbbp.Dense(16, activation="relu"), nbbp.layers.BatchNorm(), nbbp.Dense(16, activation="relu")]
    model = nbbp.Model(nbbp.Sequential([*layers, nbbp.Dense(3)], n_in=4), "mse", optimizers.SGD(0.01))
    model.fit(X, VALUES, epochs=3, verbose=0)
    diverging = nbbp.Model(model.network, "mse", optimizers.SGD(100.0))
    diverging.parameter_vector[:] = model.parameter_vector
    for name, values in model.state.items():
        diverging.state[name][:] = values
    with pytest.raises(nbbp.TrainingDiverged, match=r"batch ([2-9]|\d\d) of epoch 1"):
        diverging.fit(X, VALUES, epochs=3, batch_size=20, verbose=0)
    assert diverging.evaluate(X, VALUES) == model.evaluate(X, VALUES)


def test_in_a_later_fit_epochs_count_from_one():
    model = model_of("sgd")
    model.fit(X, VALUES, epochs=3, verbose=0)
    with pytest.raises(nbbp.TrainingDiverged, match="in batch 1 of epoch 1;"):
        model.fit(X, 1e30 * VALUES, verbose=0)


def test_a_chunk_that_begins_badly_keeps_what_the_chunk_before_kept(monkeypatch):
    """Every batch a chunk of its own, so that the first batch of a chunk is the one that fails."""
    monkeypatch.setattr("nbbp.training.CHUNK_ROWS", 1)
    assert_stopped_and_usable(model_of(nbbp.Adam(learning_rate=HUGE)), VALUES)
    y = VALUES.copy()
    y[160:] = 1e30
    model, expected = model_of("sgd"), model_of("sgd")
    with pytest.raises(nbbp.TrainingDiverged, match="in batch 6 of epoch 1;"):
        model.fit(X, y, batch_size=32, shuffle=False, verbose=0)
    # the parameters at which the fifth batch, the last good one, had its loss
    expected.fit(X[:128], y[:128], batch_size=32, shuffle=False, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, expected.parameter_vector)


def test_batches_of_changing_sizes():
    y = VALUES.copy()
    y[70] = 1e30
    batches = [(X[start:stop], y[start:stop]) for start, stop in ((0, 50), (50, 60), (60, 100), (100, 200))]
    model = model_of("sgd")
    with pytest.raises(nbbp.TrainingDiverged, match="the loss turned inf in batch 3 of epoch 1;"):
        model.fit(batches, verbose=0)
    assert np.isfinite(model.evaluate(X, VALUES)["loss"])


def test_parameters_that_were_nan_before():
    model = model_of("adam")
    for value in (np.nan, np.inf):
        model.parameters["1.weight"][0, 0] = value
        before = model.parameter_vector.copy()
        with pytest.raises(ValueError, match=r"parameter 1\.weight holds NaN or infinity; expected numbers before"):
            model.fit(X, VALUES, verbose=0)
        assert np.isnan(model.train_step(X, VALUES))
        np.testing.assert_array_equal(model.parameter_vector, before)
    model.parameters["1.weight"][0, 0] = 0
    model.fit(X, VALUES, verbose=0)


@pytest.mark.parametrize("optimizer", [*DIVERGING, optimizers.Adafactor], ids=lambda optimizer: optimizer.__name__)
@pytest.mark.parametrize("way", ["quick", "weighted"])
def test_a_single_step_without_a_loss_updates_nothing(optimizer, way):
    model = model_of(optimizer())
    weight = None if way == "quick" else np.ones(N)
    model.train_step(X, VALUES, weight)
    before = model.parameter_vector.tobytes(), [slot.tobytes() for slot in model._session.slots]
    assert model.train_step(X, 1e30 * VALUES, weight) == np.inf
    assert (model.parameter_vector.tobytes(), [slot.tobytes() for slot in model._session.slots]) == before
    assert np.isfinite(model.train_step(X, VALUES, weight))
    assert model.parameter_vector.tobytes() != before[0]


def test_the_bar_is_closed(capfd):
    with pytest.raises(nbbp.TrainingDiverged):
        model_of(nbbp.SGD(learning_rate=HUGE)).fit(X, VALUES, verbose=1)
    assert capfd.readouterr().err.endswith("\n")
