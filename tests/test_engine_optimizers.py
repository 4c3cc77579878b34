"""Optimizers as the engine runs them, by `train_step` and by `fit`, against the float64 oracle."""

import numpy as np
import pytest
from engine_cases import (
    ALL_LOSSES,
    ALL_OPTIMIZERS,
    DTYPES,
    assert_all_near,
    assert_near,
    copies,
    features_for,
    label,
    model_of,
    oracle_steps,
    replaced,
    small_model,
    targets_for,
)

from nbbp import losses, optimizers
from nbbp.layers import Activation, Dense

LOSS = losses.Crossentropy()
BATCH = 8
N_STEPS = 7

#: Penalties and groups, as settings of any optimizer.
PENALTIES = {
    "coupled": {"weight_decay": 0.05, "decoupled": False},
    "decoupled": {"weight_decay": 0.05, "decoupled": True},
    "l1": {"l1": 0.02},
    "all": {"weight_decay": 0.05, "decoupled": True, "l1": 0.02},
    "decay_bias": {"weight_decay": 0.05, "l1": 0.02, "decay_bias": True},
    "groups": {
        "weight_decay": 0.05,
        "groups": {
            "*.bias": {"learning_rate": 0.05, "weight_decay": 0.1},
            "1.weight": {"learning_rate": 0.0},
            "2.*": {"l1": 0.03, "weight_decay": 0.0},
        },
    },
}


def batches_for(model, n_steps=N_STEPS, batch=BATCH, weighted=False):
    """[(x, y, sample_weight or None), …], fresh data in each."""
    n_in, n_out = model.network.n_in, model.network.n_out
    result = []
    for step in range(n_steps):
        weight = np.random.default_rng(step).uniform(0.0, 2.0, batch) if weighted else None
        x = features_for(batch, n_in, model.dtype, seed=100 + step)
        result.append((x, targets_for(model.loss, batch, n_out, seed=200 + step), weight))
    return result


def joined(batches):
    """X, y and sample_weight of all batches, one behind the other."""
    return [None if parts[0] is None else np.concatenate(parts) for parts in zip(*batches, strict=True)]


def by_steps(model, batches):
    return [model.train_step(*batch) for batch in batches]


def by_fit(model, batches):
    X, y, weight = joined(batches)
    model.fit(X, y, sample_weight=weight, batch_size=len(batches[0][0]), shuffle=False, verbose=0)


WAYS = {"train_step": by_steps, "fit": by_fit}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS, ids=label)
def test_optimizer(optimizer, way, dtype):
    model = small_model("tanh", LOSS, dtype, optimizer)
    batches = batches_for(model)
    expected = oracle_steps(model, batches)
    WAYS[way](model, batches)
    assert_all_near(model.parameters, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS, ids=label)
def test_optimizer_with_penalty(optimizer, penalty, way, dtype):
    optimizer = replaced(optimizer, **PENALTIES[penalty])
    model = small_model("tanh", LOSS, dtype, optimizer)
    batches = batches_for(model)
    expected = oracle_steps(model, batches)
    WAYS[way](model, batches)
    assert_all_near(model.parameters, expected, dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS, ids=label)
def test_group_with_rate_zero_freezes(optimizer, way):
    model = small_model("tanh", LOSS, optimizer=replaced(optimizer, groups={"1.*": {"learning_rate": 0.0}}))
    before = copies(model.parameters)
    WAYS[way](model, batches_for(model))
    for name, values in model.parameters.items():
        assert (name[0] == "1") == np.array_equal(values, before[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_sample_weights_in_steps(way, dtype):
    model = small_model("tanh", LOSS, dtype, "adam")
    batches = batches_for(model, weighted=True)
    expected = oracle_steps(model, batches)
    WAYS[way](model, batches)
    assert_all_near(model.parameters, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", [losses.Crossentropy(), losses.MSE()], ids=label)
def test_steps_with_and_without_weights_and_conversions_by_turns(loss, dtype):
    """The short way for ready arrays forgets nothing of what the long way left behind, nor the other way round."""
    model = small_model("tanh", loss, dtype, optimizers.Adam(0.01))
    plain, weighted = batches_for(model, 9), batches_for(model, 9, weighted=True)
    batches = [weighted[i] if i in (2, 5, 6) else plain[i] for i in range(9)]
    expected = oracle_steps(model, batches)
    for i, (x, y, weight) in enumerate(batches):
        y = y if loss.row_wise else y.astype(dtype)
        if i in (4, 6):
            x, y = x.tolist(), y.tolist()
        if weight is None:
            model.train_step(x, y)
        else:
            model.train_step(x, y, weight)
    assert_all_near(model.parameters, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_of_changing_batch_sizes(dtype):
    model = small_model("tanh", LOSS, dtype, optimizers.Adam(0.01))
    batches = [batches_for(model, 1, batch)[0] for batch in (4, 1, 7, 4, 33, 4, 2, 3, 5, 6, 8, 9, 10, 11, 4)]
    expected = oracle_steps(model, batches)
    by_steps(model, batches)
    assert_all_near(model.parameters, expected, dtype)


@pytest.mark.parametrize("way", WAYS)
def test_more_steps_than_coefficients_are_computed_ahead(way):
    model = model_of([Dense(2)], 1, losses.MSE(), optimizer=optimizers.NAdam(1e-3))
    batches = batches_for(model, 1100, 1)
    batches = [(x, y.astype("float64"), None) for x, y, _ in batches]
    expected = oracle_steps(model, batches)
    WAYS[way](model, batches)
    assert_all_near(model.parameters, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fit_and_steps_by_turns_count_on(dtype):
    """Bias corrections go on from where the last call stopped."""
    model = small_model("tanh", LOSS, dtype, optimizers.Adam(0.01))
    batches = batches_for(model, 9)
    expected = oracle_steps(model, batches)
    by_steps(model, batches[:2])
    by_fit(model, batches[2:5])
    by_steps(model, batches[5:6])
    by_fit(model, batches[6:])
    assert_all_near(model.parameters, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "batch"), [(19, 8), (17, 16), (5, 8), (1, 1), (7, 1), (65, 64)])
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_fit_trains_on_a_short_last_batch(loss, n, batch, dtype):
    """With the mean over its own rows; the reported loss is the mean over all rows."""
    model, twin = (small_model("tanh", loss, dtype, optimizers.Adam(0.01)) for _ in range(2))
    X, y = features_for(n, 5, dtype), targets_for(loss, n, 3)
    parts = [slice(start, min(start + batch, n)) for start in range(0, n, batch)]
    batches = [(X[part], y[part], None) for part in parts]
    expected = oracle_steps(model, batches)
    losses_of_steps = by_steps(twin, batches)
    history = model.fit(X, y, batch_size=batch, shuffle=False, verbose=0)
    assert_all_near(model.parameters, expected, dtype)
    sizes = [part.stop - part.start for part in parts]
    assert_near(history["loss"][0], np.dot(losses_of_steps, sizes) / n, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_class_weight_in_fit(dtype):
    """Each sample weighs what its class does, times its own weight."""
    model = small_model("tanh", LOSS, dtype, optimizers.Adam(0.01))
    X, y, weight = joined(batches_for(model, weighted=True))
    by_class = np.array([0.5, 2.0, 3.0])
    batches = [
        (X[start : start + BATCH], y[start : start + BATCH], (by_class[y] * weight)[start : start + BATCH])
        for start in range(0, len(X), BATCH)
    ]
    expected = oracle_steps(model, batches)
    settings = {"sample_weight": weight, "class_weight": dict(enumerate(by_class))}
    model.fit(X, y, batch_size=BATCH, shuffle=False, verbose=0, **settings)
    assert_all_near(model.parameters, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [optimizers.Adam(0.01), optimizers.Adafactor(0.1)], ids=label)
@pytest.mark.parametrize("way", WAYS)
def test_layers_without_bias_and_alone(way, optimizer, dtype):
    layers = [Dense(7, use_bias=False), Activation("tanh"), Dense(4, "relu", use_bias=False), Dense(3)]
    model = model_of(layers, 5, LOSS, dtype, replaced(optimizer, weight_decay=0.01))
    batches = batches_for(model)
    expected = oracle_steps(model, batches)
    WAYS[way](model, batches)
    assert_all_near(model.parameters, expected, dtype)


def test_a_zero_learning_rate_of_every_group_changes_nothing():
    model = small_model("tanh", LOSS, optimizer=optimizers.Adam(groups={"*": {"learning_rate": 0.0}}))
    before = model.parameter_vector.copy()
    by_steps(model, batches_for(model))
    assert np.array_equal(model.parameter_vector, before)
