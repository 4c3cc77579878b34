"""Losses, gradients and updates on the GPU against the CPU engine: every activation, loss, metric and optimizer."""

import dataclasses

import numpy as np
import pytest
from cuda_cases import BATCHES, assert_same_gradients, assert_same_standing, assert_same_steps, batch_of, twins
from engine_cases import ALL_ACTIVATIONS, ALL_LOSSES, ALL_OPTIMIZERS, DTYPES, assert_near, label
from gradient_cases import SETTINGS

import nbbp
from nbbp import losses, optimizers
from nbbp.layers import Dense
from nbbp.metrics import TopKAccuracy
from nbbp.schedules import Exponential


@pytest.fixture(autouse=True)
def _op_by_op(op_by_op):
    """Chains have paths of their own, which test_cuda_chain.py and test_cuda_fused.py test."""


LAYERS = [Dense(7, "tanh"), Dense(4, "relu"), Dense(3)]
LOSS = losses.Crossentropy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_activations(activation, dtype):
    models = twins([Dense(7, activation), Dense(3, activation)], 5, losses.MSE(), dtype)
    assert_same_gradients(*models, *batch_of(models[0], 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_losses(loss, dtype):
    kinds = ("hard", "one-hot", "soft") if loss.row_wise else ("hard",)
    last = "log_softmax" if loss.name == "nll" else "linear"
    for number, kind in enumerate(kinds):
        models = twins([Dense(4, "tanh"), Dense(3, last)], 5, loss, dtype)
        n = BATCHES[number]
        x, y = batch_of(models[0], n, kind=kind)
        assert_same_gradients(*models, x, y)
        weight = np.random.default_rng(2).uniform(0.0, 2.0, n)
        assert_same_gradients(*models, x, y, weight)


@pytest.mark.parametrize("loss", [losses.Crossentropy(reduction="sum"), losses.MSE(reduction="sum")], ids=label)
def test_sums_of_losses(loss):
    models = twins(LAYERS, 5, loss)
    assert_same_gradients(*models, *batch_of(models[0], 17))


@pytest.mark.parametrize("last", ["softmax", "sigmoid"])
def test_losses_behind_the_activation_that_they_take_in(last):
    loss = losses.Crossentropy() if last == "softmax" else losses.BinaryCrossentropy()
    models = twins([Dense(4, "tanh"), Dense(3, last)], 5, loss, metrics=("accuracy", "mae"))
    x, y = batch_of(models[0], 17)
    assert_same_gradients(*models, x, y)
    expected, actual = (model.evaluate(x, y) for model in models)
    assert actual == pytest.approx(expected, rel=1e-10)
    assert_near(models[1].predict_proba(x), models[0].predict_proba(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS, ids=label)
def test_optimizers(optimizer, dtype):
    """Three steps, one of them on a single row, with penalties and a rate of their own for the biases."""
    groups = {"*.bias": {"learning_rate": 0.05}}
    optimizer = dataclasses.replace(optimizer, weight_decay=0.03, l1=0.02, groups=groups)
    models = twins(LAYERS, 5, LOSS, dtype, optimizer)
    batches = [batch_of(models[0], n, seed) for seed, n in enumerate(BATCHES)]
    assert_same_steps(*models, batches)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", [optimizers.Adam, optimizers.Adafactor])
def test_gradients_between_backpropagation_and_update(kind, settings):
    models = twins(LAYERS, 5, LOSS, optimizer=kind(0.01, **settings))
    batches = [batch_of(models[0], n, seed) for seed, n in enumerate((3, 1, 17, 5))]
    assert_same_steps(*models, batches)


def test_an_update_that_is_not_finite_is_none():
    """A loss that is infinite, and a norm that is: no parameter moves, and sums begin anew."""
    for settings in ({}, {"clip_norm": 1.0}, {"accumulation_steps": 2}):
        models = twins([Dense(3)], 5, losses.MSE(), optimizer=optimizers.SGD(0.1, **settings))
        x, y = batch_of(models[0], 3)
        before = np.array(models[1].parameter_vector)
        assert models[1].train_step(x, y * 1e200) == np.inf
        np.testing.assert_array_equal(models[1].parameter_vector, before)
        models[0].train_step(x, y * 1e200)
        assert_same_steps(*models, [(x, y), (x, y)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_fit_with_everything(dtype):
    """Shuffles, a short last batch, weights, a schedule, metrics and validation over epochs: the same history."""
    optimizer = optimizers.Adam(Exponential(0.01, factor=0.5))
    metrics = ("accuracy", TopKAccuracy(k=2), "mae", "mse")
    models = twins(LAYERS, 5, LOSS, dtype, optimizer, metrics=metrics)
    X, y = batch_of(models[0], 45)
    weight = np.random.default_rng(3).uniform(0.5, 2.0, len(X))
    settings = {"epochs": 3, "batch_size": 17, "sample_weight": weight, "validation_split": 0.2, "verbose": 0}
    histories = [model.fit(X, y, **settings) for model in models]
    assert list(histories[1]) == list(histories[0])
    for name in histories[0]:
        assert_near(histories[1][name], histories[0][name], dtype, name=name)
    assert_same_standing(*models)


def test_the_same_seed_gives_the_same_bits():
    layers = [Dense(9, "tanh"), nbbp.Dropout(0.3), nbbp.BatchNorm(), nbbp.GaussianNoise(0.1), Dense(3)]

    def trained():
        model = twins(layers, 5, LOSS, "float32", "adam")[1]
        model.fit(*batch_of(model, 45), epochs=2, batch_size=16, verbose=0)
        return model.parameter_vector.tobytes()

    assert trained() == trained()


def test_a_run_that_diverges_gets_its_last_good_parameters_back():
    models = twins([Dense(4), Dense(3)], 5, losses.MSE(), "float32", optimizers.SGD(1e8))
    X, y = batch_of(models[0], 40)
    messages = []
    for model in models:
        with pytest.raises(nbbp.TrainingDiverged) as caught:
            model.fit(X, y, epochs=5, batch_size=8, verbose=0)
        messages.append(str(caught.value).replace("nan", "inf"))  # which of them, is the order of a sum
    assert messages[1] == messages[0]
    assert np.isfinite(models[1].parameter_vector).all()
    assert_same_standing(*models)


def test_weights_whose_gradient_is_cut_into_parts_of_the_batch():
    models = twins([Dense(3, "tanh"), Dense(2)], 3, losses.MSE())
    assert_same_gradients(*models, *batch_of(models[0], 70))


def test_formulas_of_the_users_own():
    swish = nbbp.activation(lambda z: z / (1 + np.exp(-1.5 * z)), name="swish_1_5")
    smooth = nbbp.loss(lambda prediction, target: np.sqrt((prediction - target) ** 2 + 1) - 1, name="charbonnier")
    models = twins([Dense(7, swish), Dense(3)], 5, smooth, optimizer="adam")
    batches = [batch_of(models[0], n, n) for n in BATCHES]
    assert_same_gradients(*models, *batches[1])
    assert_same_steps(*models, batches)
