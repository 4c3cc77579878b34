"""Every way of cutting a step, at small sizes: the same gradients, the same steps, the same bits on any threads.

The measured crossovers of nbbp/tiling.py are moved by the fixture `cut`, so that a small network takes each way.
"""

import numpy as np
import pytest
from engine_cases import (
    DTYPES,
    assert_all_near,
    assert_gradients_near_oracle,
    assert_near,
    copies,
    features_for,
    label,
    model_of,
    oracle_steps,
    replaced,
    targets_for,
)

from nbbp import losses, optimizers, tiling
from nbbp.cpu import engine
from nbbp.layers import Activation, Dense

HUGE, LOSS = 1 << 60, losses.Crossentropy()
#: Constants of nbbp/tiling.py that lead to a plan, with as many tiles as small sizes allow.
CUTS = {
    "alone": {"_WIDE_WEIGHTS": HUGE, "_PARTIAL_ROWS": HUGE},
    "partial": {"_WIDE_WEIGHTS": HUGE, "_PARTIAL_ROWS": 1, "_PARTIAL_WORK": 1, "PARAMETERS": 64},
    "wide": {"_WIDE_WEIGHTS": 0, "_TILE_WORK": 1e3, "PARAMETERS": 64},
    "wide, large tiles": {"_WIDE_WEIGHTS": 0},
    "wide, packed": {"_WIDE_WEIGHTS": 0, "_TILE_WORK": 1e3, "_PACKED_ROWS": 1, "_PACKED_COLUMNS": 1},
    "wide, flat": {"_WIDE_WEIGHTS": 0, "_TILE_WORK": 1e3, "_FLAT_WEIGHTS": 0, "_FLAT_ROWS": HUGE, "_FLAT_COLUMNS": 16},
    "alone, packed": {"_WIDE_WEIGHTS": HUGE, "_PARTIAL_ROWS": HUGE, "_PACKED_ROWS": 1, "_PACKED_COLUMNS": 1},
}
OPTIMIZERS = [
    optimizers.SGD(0.1),
    optimizers.SGD(0.1, momentum=0.9),
    optimizers.Adam(0.01),
    optimizers.Adam(0.01, amsgrad=True),
    optimizers.AdamW(0.01, weight_decay=0.1, l1=0.01, decay_bias=True),
    optimizers.Adam(0.01, groups={"*.bias": {"learning_rate": 0.05}, "1.weight": {"learning_rate": 0.0}}),
    optimizers.Adafactor(0.1, weight_decay=0.1),
]


@pytest.fixture(params=CUTS)
def cut(request, monkeypatch):
    """Every way of cutting, with sharing among threads whatever the step's size; its name."""
    for name, value in {"_SHARED_WORK": 0, **CUTS[request.param]}.items():
        monkeypatch.setattr(tiling, name, value)
    plan = request.param.split(",")[0]
    assert tiling.plan([(20, 150), (150, 70), (70, 3)], 50) == plan
    return request.param


def network(activation="tanh", use_bias=True):
    """Widths of two panels and a rest, of one panel and a rest, and of less than a register."""
    widths = [(150, activation), (70, activation), (3, "linear")]
    return [Dense(width, a, use_bias=use_bias) for width, a in widths]


def data_for(batch, dtype="float64", loss=LOSS, seed=0):
    return features_for(batch, 20, dtype, seed), targets_for(loss, batch, 3, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 15, 17, 50, 130, 300])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "softmax"])
def test_gradients(cut, activation, batch, dtype):
    x, y = data_for(batch, dtype)
    weight = np.random.default_rng(1).uniform(0.0, 2.0, batch)
    assert_gradients_near_oracle(model_of(network(activation), 20, LOSS, dtype), x, y, weight)


@pytest.mark.parametrize(
    "layers",
    [
        network(use_bias=False),
        [Activation("tanh"), *network("relu")],
        [Dense(150), Activation("gelu"), Activation("log_softmax"), Dense(70, "relu"), Activation("mish"), Dense(3)],
        [Dense(150, "tanh"), Dense(3), Activation("softmax")],
        [Dense(3)],
    ],
    ids=["no bias", "alone first", "alone between", "alone last", "one layer"],
)
def test_gradients_of_other_networks(cut, layers):
    assert_gradients_near_oracle(model_of(layers, 20, LOSS), *data_for(50))


@pytest.mark.parametrize("loss", [losses.MSE(), losses.NLL(), losses.BinaryCrossentropy(reduction="sum")], ids=label)
def test_gradients_of_other_losses(cut, loss):
    assert_gradients_near_oracle(model_of(network(), 20, loss), *data_for(50, loss=loss))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=label)
def test_steps(cut, optimizer, dtype):
    model = model_of(network(), 20, LOSS, dtype, optimizer)
    batches = [(*data_for(50, dtype, seed=seed), None) for seed in range(5)]
    expected = oracle_steps(model, batches)
    for x, y, _ in batches:
        model.train_step(x, y)
    assert_all_near(model.parameters, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=label)
def test_fit_with_a_short_last_batch(cut, optimizer, dtype):
    """Its rows end in the middle of a block, or leave blocks without rows."""
    model = model_of(network(), 20, LOSS, dtype, optimizer, metrics=("accuracy",))
    X, y = data_for(130, dtype)
    batches = [(X[start : start + 50], y[start : start + 50], None) for start in range(0, 130, 50)]
    expected = oracle_steps(model, batches)
    model.fit(X, y, batch_size=50, shuffle=False, verbose=0)
    assert_all_near(model.parameters, expected, dtype)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("optimizer", [optimizers.Adam(0.01, weight_decay=0.1), optimizers.Adafactor()], ids=label)
def test_steps_without_bias_and_with_activations_alone(cut, optimizer, use_bias):
    layers = [Dense(150, use_bias=use_bias), Activation("tanh"), Dense(70, "relu", use_bias=use_bias), Dense(3)]
    model = model_of(layers, 20, LOSS, optimizer=optimizer)
    batches = [(*data_for(33, seed=seed), None) for seed in range(5)]
    expected = oracle_steps(model, batches)
    for x, y, _ in batches:
        model.train_step(x, y)
    assert_all_near(model.parameters, expected)


def bits_of_a_run(n_threads, monkeypatch, optimizer="adam", activation="gelu", dtype="float32"):
    """Everything that a run gives: history, parameters, evaluation, predictions, gradients, losses of single steps."""
    monkeypatch.setattr(engine, "_n_threads", n_threads)
    model = model_of(network(activation), 20, LOSS, dtype, optimizer, metrics=("accuracy", "mse"))
    X, y = data_for(230, dtype)
    history = model.fit(X, y, batch_size=100, epochs=3, verbose=0, sample_weight=np.linspace(0.0, 2.0, 230))
    step = model.train_step(X, y)
    loss, gradients = model.loss_and_gradients(X, y)
    evaluated = model.evaluate(X, y)
    numbers = [step, loss, *evaluated.values(), *(v for name in evaluated for v in history[name])]
    return [np.array(numbers), model.parameter_vector, model.predict(X), *gradients.values()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ["adam", "adafactor"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "softmax"])
def test_same_bits_for_any_number_of_threads(cut, activation, optimizer, dtype, monkeypatch):
    alone = bits_of_a_run(1, monkeypatch, optimizer, activation, dtype)
    assert all(np.isfinite(array).all() for array in alone)
    for n_threads in (2, 3):
        for one, other in zip(alone, bits_of_a_run(n_threads, monkeypatch, optimizer, activation, dtype), strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_team_takes_part_where_there_is_something_to_share(cut, monkeypatch):
    """Otherwise the test before this one would compare a run with itself."""
    monkeypatch.setattr(engine, "_n_threads", 3)
    model = model_of(network(), 20, LOSS)
    model.loss_and_gradients(*data_for(100))
    model.evaluate(*data_for(200))
    training, evaluation = model._session._bound.values()
    assert training.n_threads() == (1 if cut.startswith("alone") else 3)
    assert evaluation.n_threads() == 3


def test_public_setting_of_threads(monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", None)
    assert engine.get_num_threads() >= 1
    for n_threads in (1, 2, np.int64(3)):
        engine.set_num_threads(n_threads)
        assert engine.get_num_threads() == n_threads
    for wrong in (0, -1, 1.5, True, "2", None):
        with pytest.raises(ValueError, match="integer of at least 1"):
            engine.set_num_threads(wrong)
    assert engine.get_num_threads() == 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=label)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_train_step_equals_fit_without_shuffle(cut, optimizer, n_threads, dtype, monkeypatch):
    """Bit by bit: whole batches take the same program."""
    monkeypatch.setattr(engine, "_n_threads", n_threads)
    by_fit, by_steps = (model_of(network(), 20, LOSS, dtype, optimizer) for _ in range(2))
    X, y = data_for(150, dtype)
    history = by_fit.fit(X, y, batch_size=50, epochs=2, shuffle=False, verbose=0)
    values = [by_steps.train_step(X[s : s + 50], y[s : s + 50]) for _ in range(2) for s in range(0, 150, 50)]
    assert by_fit.parameter_vector.tobytes() == by_steps.parameter_vector.tobytes()
    assert_near(history["loss"], np.mean(np.reshape(values, (2, 3)), axis=1), tolerance=1e-14)


def test_same_seed_same_bits_another_seed_other_bits(cut):
    X, y = data_for(130, "float32")
    vectors = []
    for seed in (7, 7, 8):
        model = model_of(network(), 20, LOSS, "float32", "adam", seed=seed)
        model.parameter_vector[:] = model_of(network(), 20, LOSS, "float32").parameter_vector
        model.fit(X, y, batch_size=50, epochs=2, verbose=0)
        vectors.append(model.parameter_vector.copy())
    # The parameters began as the same numbers, so the order of the samples alone differs.
    assert vectors[0].tobytes() == vectors[1].tobytes()
    assert (vectors[0] != vectors[2]).mean() > 0.5
    assert_near(vectors[0], vectors[2], tolerance=0.2)


def test_every_epoch_has_an_order_of_its_own_and_every_sample_once(cut):
    """With a linear model and the sum of errors, an epoch at batch 1 shows its order in the losses."""
    model = model_of([Dense(1)], 1, losses.MSE(), optimizer=optimizers.SGD(1e-12))
    X = np.arange(1.0, 66.0)[:, None]
    seen = []
    train_chunk = model._session.train_chunk

    def spy(chunk, batch, *more):
        seen.append(chunk.order.copy())
        return train_chunk(chunk, batch, *more)

    model._session.train_chunk = spy
    model.fit(X, X, epochs=3, batch_size=8, verbose=0)
    assert all(sorted(order) == list(range(65)) for order in seen)
    assert len({order.tobytes() for order in seen}) == 3


def test_nothing_moves_but_what_should(cut):
    """loss_and_gradients, evaluate and predict leave the parameters and the optimizer as they are."""
    x, y = data_for(50)
    models = [model_of(network(), 20, LOSS, optimizer=replaced(optimizers.Adam(0.01))) for _ in range(2)]
    for model, looks in zip(models, (True, False), strict=True):
        for _ in range(3):
            model.train_step(x, y)
            if looks:
                before = copies(model.parameters)
                model.loss_and_gradients(x, y)
                model.evaluate(x, y)
                model.predict(x)
                assert_all_near(model.parameters, before, tolerance=0.0)
    assert models[0].parameter_vector.tobytes() == models[1].parameter_vector.tobytes()
