"""Small chains of dense layers, whose steps one block does: against the CPU engine, and which programs are such."""

import dataclasses

import numpy as np
import pytest
from cuda_cases import BATCHES, assert_same_standing, assert_same_steps, batch_of, twins
from engine_cases import ALL_ACTIVATIONS, ALL_LOSSES, ALL_OPTIMIZERS, DTYPES, label

import nbbp
from nbbp import losses, optimizers
from nbbp.cuda import chain
from nbbp.layers import Activation, Concat, Dense, Dropout, Residual

LAYERS = [Dense(7, "tanh"), Dense(4, "gelu"), Dense(3)]
LOSS = losses.Crossentropy()
ELEMENTWISE = [activation for activation in ALL_ACTIVATIONS if not activation.formula.row_wise]
RULES = [optimizer for optimizer in ALL_OPTIMIZERS if optimizer.rule != "adafactor"]


def bound_of(model, batch=3, labels=True):
    return model._session.training(batch, labels, False)


def assert_chain_steps(models, batches):
    """The same steps, which were a chain's."""
    assert bound_of(models[1], len(batches[0][0]), batches[0][1].ndim == 1)._whole_run is not None
    assert_same_steps(*models, batches)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", RULES, ids=label)
def test_rules(optimizer, dtype):
    optimizer = dataclasses.replace(optimizer, weight_decay=0.03, l1=0.02, groups={"*.bias": {"learning_rate": 0.05}})
    models = twins(LAYERS, 5, LOSS, dtype, optimizer)
    batches = [batch_of(models[0], n, seed) for seed, n in enumerate(BATCHES)]
    assert_chain_steps(models, batches)


@pytest.mark.parametrize("activation", ELEMENTWISE, ids=label)
def test_activations(activation):
    models = twins([Dense(4, activation), Dense(3, activation)], 5, losses.MSE(), optimizer="adam")
    assert_chain_steps(models, [batch_of(models[0], n, n) for n in (17, 3)])


@pytest.mark.parametrize(
    "loss", [*ALL_LOSSES, losses.Crossentropy(reduction="sum"), losses.MSE(reduction="sum")], ids=label
)
def test_losses(loss):
    last = "log_softmax" if loss.name == "nll" else "linear"
    for kind in ("hard", "soft") if loss.row_wise else ("hard",):
        models = twins([Dense(4, "tanh"), Dense(3, last)], 5, loss)
        x, y = batch_of(models[0], 5, kind=kind)
        assert_chain_steps(models, [(x, y), (x[:1], y[:1])])
        weight = np.linspace(0.0, 2.0, 5)
        assert models[1].train_step(x, y, weight) == pytest.approx(models[0].train_step(x, y, weight))
        assert_same_standing(*models)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_fit(batch_size):
    """Shuffled epochs with a short last batch, kept parameters and all."""
    models = twins(LAYERS, 5, LOSS, "float64", optimizers.Adam(nbbp.schedules.Cosine(0.02, steps=20)))
    X, y = batch_of(models[0], 13)
    histories = [model.fit(X, y, epochs=2, batch_size=batch_size, verbose=0) for model in models]
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-10)
    assert_same_standing(*models)
    assert bound_of(models[1], batch_size)._whole_run is not None
    models[1]._session.good_parameters[:] = 0
    np.testing.assert_array_equal(models[1]._session.good_parameters, 0)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1)])
def test_frozen_layers_and_layers_without_bias(frozen):
    layers = [
        Dense(width, "tanh", trainable=number not in frozen, use_bias=number != 1)
        for number, width in enumerate((6, 4, 3))
    ]
    models = twins(layers, 5, LOSS, optimizer="adam")
    assert_chain_steps(models, [batch_of(models[0], n, n) for n in (3, 5)])


def test_formulas_of_the_users_own():
    swish = nbbp.activation(lambda z: z / (1 + np.exp(-1.5 * z)), name="swish_chain")
    smooth = nbbp.loss(lambda p, t: np.sqrt((p - t) ** 2 + 1) - 1, name="charbonnier_chain")
    models = twins([Dense(7, swish), Activation("linear"), Dense(3)], 5, smooth, optimizer="adam")
    assert_chain_steps(models, [batch_of(models[0], n, n) for n in (3, 5)])


def test_a_loss_that_is_not_finite_updates_nothing():
    models = twins([Dense(4, "tanh"), Dense(3)], 5, losses.MSE(), "float64", "adam")
    x, y = batch_of(models[0], 4)
    before = np.array(models[1].parameter_vector)
    assert models[1].train_step(x, y * 1e200) == np.inf
    np.testing.assert_array_equal(models[1].parameter_vector, before)
    models[0].train_step(x, y * 1e200)
    assert_chain_steps(models, [(x, y)])


def test_a_run_that_diverges_gets_its_last_good_parameters_back():
    models = twins([Dense(4), Dense(3)], 5, losses.MSE(), "float64", optimizers.SGD(1e30))
    X, y = batch_of(models[0], 12)
    for model in models:
        with pytest.raises(nbbp.TrainingDiverged):
            model.fit(X, y, epochs=9, batch_size=4, verbose=0)
    assert_same_standing(*models)


OTHERS = {
    "dropout": ([Dense(4), Dropout(0.5), Dense(3)], {}),
    "residual": ([Dense(4), Residual([Dense(4)]), Dense(3)], {}),
    "concat": ([Concat([Dense(4)], [Dense(2)]), Dense(3)], {}),
    "activation first": ([Activation("tanh"), Dense(3)], {}),
    "activations of two kinds": ([Dense(4, "tanh"), Activation("gelu"), Dense(3)], {}),
    "softmax within": ([Dense(4, "softmax"), Dense(3)], {}),
    "three activations": ([Dense(4, "tanh"), Dense(4, "gelu"), Dense(4, "silu"), Dense(3)], {}),
    "clipping": ([Dense(3)], {"clip_norm": 1.0}),
    "sums": ([Dense(3)], {"accumulation_steps": 2}),
    "three groups": (LAYERS, {"groups": {"0.*": {"learning_rate": 0.3}, "1.*": {"learning_rate": 0.2}}}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_programs_take_the_general_path(case):
    layers, settings = OTHERS[case]
    models = twins(layers, 5, LOSS, optimizer=optimizers.SGD(0.1, **settings))
    assert bound_of(models[1])._whole_run is None
    assert_same_steps(*models, [batch_of(models[0], 3)])


def test_checkpoints_metrics_adafactor_and_large_steps_take_the_general_path(monkeypatch):
    network = nbbp.Sequential(LAYERS, n_in=5, checkpoint_every=1)
    assert bound_of(nbbp.Model(network, LOSS, device="cuda"))._whole_run is None
    assert bound_of(twins(LAYERS, 5, LOSS, optimizer="adafactor")[1])._whole_run is None
    with_metrics = twins(LAYERS, 5, LOSS, metrics=("accuracy",))[1]
    with_metrics._session.begin_fit()
    assert with_metrics._session.training(3, True, True)._whole_run is None
    model = twins(LAYERS, 5, LOSS)[1]
    monkeypatch.setattr(chain, "MOST_WORK", 3 * (35 + 28 + 12))
    assert bound_of(model, 3)._whole_run is not None
    assert bound_of(model, 4)._whole_run is None
