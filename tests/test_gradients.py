"""Gradients against central differences in float64, to 1e-7 of the largest of each parameter.

Kinks have no derivative to compare with: where a function has one, the data are drawn anew until every unit and every
prediction keeps a distance of 1e-3 from it, far more than a difference of 6e-6 can move them.
"""

import numpy as np
import pytest
import reference
from engine_cases import (
    ALL_ACTIVATIONS,
    ALL_LOSSES,
    LAST_AND_LOSS,
    copies,
    features_for,
    label,
    model_of,
    replaced,
    targets_for,
)

from nbbp import losses, optimizers, tiling
from nbbp.gradcheck import check_gradients
from nbbp.layers import Activation, Dense

TOLERANCE = 1e-7
KINKS = {
    "relu": (0.0,),
    "leaky_relu": (0.0,),
    "elu": (0.0,),
    "selu": (0.0,),
    "hard_tanh": (-1.0, 1.0),
    "hard_sigmoid": (-3.0, 3.0),
    "softsign": (0.0,),  # of its second derivative
}
DISTANCE = 1e-3


def distance_to_kinks(model, x, y) -> float:
    """Of the nearest unit or prediction."""
    passed = reference.forward(model.network, copies(model.parameters), x)
    distances = [np.inf]
    for layer, (z, _) in zip(model.network.layers, passed, strict=True):
        for kink in KINKS.get(reference.activation_of(layer).name, ()):
            distances.append(np.abs(z - kink).min())
    loss, predicted = model.loss, passed[-1][1]
    if loss.name == "mae":
        distances.append(np.abs(predicted - y).min())
    elif loss.name == "huber":
        distances.append(np.abs(np.abs(predicted - y) - loss.delta).min())
    elif loss.name == "hinge":
        distances.append(np.abs(y * predicted - 1.0).min())
    return min(distances)


def smooth_data(model, batch):
    """Data at which nothing of the model is near a kink."""
    for seed in range(1000):
        x = features_for(batch, model.network.n_in, seed=seed)
        y = targets_for(model.loss, batch, model.network.n_out, seed=seed)
        if distance_to_kinks(model, x, y) > DISTANCE:
            return x, y
    raise AssertionError("no data away from kinks")


def assert_gradients(model, batch=5, x=None, y=None):
    x, y = smooth_data(model, batch) if x is None else (x, y)
    result = model.check_gradients(x, y)
    assert list(result) == [parameter.name for parameter in model.network.parameters]
    # Where terms cancel to less than a thousandth of the largest gradient there is, the difference's own rounding
    # shows (1e-11 of the loss): such a parameter is held to that thousandth.
    least = 1e-3 * max(np.abs(slopes).max() for slopes in result.numeric.values())
    for name in result:
        scale = max(np.abs(result.numeric[name]).max(), least)
        assert np.abs(result.analytic[name] - result.numeric[name]).max() <= TOLERANCE * scale, result


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_hidden_activation_and_loss(activation, loss):
    assert_gradients(model_of([Dense(4, activation), Dense(3, activation), Dense(2)], 3, loss))


@pytest.mark.parametrize(("last", "loss"), LAST_AND_LOSS, ids=label)
def test_last_activation_and_loss(last, loss):
    assert_gradients(model_of([Dense(4, "tanh"), Dense(2, last)], 3, loss))


@pytest.mark.parametrize("last", ["softplus", "sigmoid", "softmax"])
def test_poisson_of_rates(last):
    assert_gradients(model_of([Dense(4, "tanh"), Dense(2, last)], 3, losses.Poisson(log_input=False)))


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_batch_of_one(activation, loss):
    assert_gradients(model_of([Dense(4, activation), Dense(2)], 3, loss), batch=1)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_width_of_one(activation, loss, batch):
    """One feature, one unit in each layer, one output (of one class alone the loss is constant: there two)."""
    layers = [Dense(1, activation), Dense(1, activation), Dense(1 + loss.row_wise)]
    assert_gradients(model_of(layers, 1, loss), batch)


@pytest.mark.parametrize("settings", [{"reduction": "sum"}, {"scale": -2.0}], ids=str)
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_reduction_and_scale(loss, settings):
    assert_gradients(model_of([Dense(4, "gelu"), Dense(2)], 3, replaced(loss, **settings)))


@pytest.mark.parametrize("kind", ["one-hot", "soft"])
@pytest.mark.parametrize("loss", [loss for loss in ALL_LOSSES if loss.row_wise], ids=label)
def test_targets_that_are_no_labels(loss, kind):
    model = model_of([Dense(4, "silu"), Dense(3)], 3, loss)
    assert_gradients(model, x=features_for(6, 3), y=targets_for(loss, 6, 3, kind=kind))


@pytest.mark.parametrize(
    "layers",
    [
        [Activation("tanh"), Dense(4, use_bias=False), Activation("mish"), Dense(2)],
        [Dense(4, "softplus", use_bias=False), Activation("softmax"), Dense(2, use_bias=False)],
        [Dense(3, "log_softmax"), Dense(3), Activation("softmax")],
        [*(Dense(3, "tanh") for _ in range(8)), Dense(2)],
    ],
    ids=["alone", "softmax alone", "fused alone", "deep"],
)
def test_other_networks(layers):
    assert_gradients(model_of(layers, 3, losses.Crossentropy()))


def test_weights_of_samples():
    """check_gradients takes none, so the differences are made here."""
    model = model_of([Dense(4, "gelu"), Dense(3)], 3, losses.Crossentropy(label_smoothing=0.1))
    x, y = smooth_data(model, 6)
    weight = np.array([0.0, 1.0, 2.5, 0.3, 1.0, 4.0])
    assert_slopes(model, model.loss_and_gradients(x, y, weight)[1], x, y, weight)


def assert_slopes(model, gradients, x, y, weight=None):
    """`gradients` are the slopes of what `evaluate` gives for x and y."""
    for name, values in model.parameters.items():

        def loss_at(moved, values=values):
            kept = values.copy()
            values[:] = moved
            loss = model.evaluate(x, y, sample_weight=weight)["loss"]
            values[:] = kept
            return loss

        slopes = reference.central_differences(loss_at, values)
        error = np.abs(gradients[name] - slopes).max() / max(np.abs(slopes).max(), 1e-6)
        assert error <= TOLERANCE, name


@pytest.mark.parametrize("plan", ["alone", "partial", "wide"])
@pytest.mark.parametrize("loss", [loss for loss in ALL_LOSSES if loss.name not in ("mae", "huber", "hinge")], ids=label)
def test_short_last_batch(loss, plan, monkeypatch):
    """Of 43 rows in batches of 40 the last 3: the step of plain gradient descent is their gradient.

    Only smooth losses: the difference of 2e-3 that reaches 1e-7 would cross the kinks of the others.
    """
    monkeypatch.setattr(tiling, "plan", lambda shapes, batch, by_rows=False: plan)
    monkeypatch.setattr(tiling, "_PARTIAL_ROWS", 1)
    monkeypatch.setattr(tiling, "_PARTIAL_WORK", 1)
    layers = [Dense(4, "tanh"), Dense(3)]
    stepping, fitting = (model_of(layers, 3, loss, optimizer=optimizers.SGD(0.5)) for _ in range(2))
    x, y = features_for(43, 3), targets_for(loss, 43, 3)
    stepping.train_step(x[:40], y[:40])
    fitting.fit(x, y, batch_size=40, shuffle=False, verbose=0)
    gradients = {name: (stepping.parameters[name] - fitting.parameters[name]) / 0.5 for name in stepping.parameters}
    assert_slopes(stepping, gradients, x[40:], y[40:])


def test_the_check_itself_finds_an_error_of_one_part_in_a_million():
    model = model_of([Dense(4, "tanh"), Dense(2)], 3, losses.MSE())
    x, y = smooth_data(model, 5)
    right = model.loss_and_gradients

    class Wrong:
        parameters, seed, network = model.parameters, model.seed, model.network

        @staticmethod
        def loss_and_gradients(x, y):
            loss, gradients = right(x, y)
            wrong = dict(gradients)
            wrong["0.weight"] = gradients["0.weight"] * (1.0 + 1e-6)
            return loss, wrong

    result = check_gradients(Wrong, x, y, 100)
    assert result.max_error == result["0.weight"] == pytest.approx(1e-6, rel=0.1)
    assert result["1.weight"] <= TOLERANCE


def test_check_of_a_float32_model_leaves_it_as_it_is():
    model = model_of([Dense(4, "tanh"), Dense(2)], 3, losses.MSE(), "float32")
    before = model.parameter_vector.copy()
    x, y = smooth_data(model, 5)
    assert model.check_gradients(x, y, max_per_parameter=3).max_error <= TOLERANCE
    assert model.parameter_vector.tobytes() == before.tobytes()
    assert "largest relative error" in repr(model.check_gradients(x, y))
