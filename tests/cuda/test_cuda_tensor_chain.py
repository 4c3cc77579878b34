"""Prediction by narrow networks in one launch on tensor cores: against the CPU engine, and which programs go so."""

import numpy as np
import pytest
from engine_cases import ALL_ACTIVATIONS, features_for, label
from mixed_cases import distance, model_in

import nbbp
from nbbp import losses
from nbbp.cuda import tensor_chain
from nbbp.layers import Activation, Dense, Dropout, LayerNorm, Residual

HALVES = ("bf16", "fp16")
LOSS = losses.MSE()
#: Sums are taken in another order: what lies beside a tie of 16 bits may be rounded the other way, here and there.
TOLERANCE = {"bf16": 2e-3, "fp16": 3e-4}
ELEMENTWISE = [activation for activation in ALL_ACTIVATIONS if not activation.formula.row_wise]


def twins(layers, n_in, precision, **settings):
    models = [
        model_in(precision, layers, n_in=n_in, loss=LOSS, device=device, **settings) for device in ("cpu", "cuda")
    ]
    for model in models:
        for number, (name, values) in enumerate(model.parameters.items()):
            if name.endswith("bias"):  # which begin as zeros
                values[:] = np.random.default_rng(number).standard_normal(len(values))
    return models


def bound_of(model):
    model.predict(np.zeros((1, model.network.n_in), np.float32))
    return model._session._bound["predict", None]


def assert_predictions(models, n, goes_so=True):
    x = features_for(n, models[0].network.n_in, "float32")
    expected, actual = (model.predict(x) for model in models)
    assert actual.shape == expected.shape
    assert distance(actual, expected) < TOLERANCE[models[0].precision]
    assert (bound_of(models[1])._whole_run is not None) == goes_so


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize(("widths", "n"), [((5, 3), 1), ((17, 9, 1), 17), ((3, 24, 40, 7), 33), ((64, 64, 10), 5)])
def test_sizes(widths, n, precision):
    layers = [Dense(width, "relu") for width in widths[1:-1]] + [Dense(widths[-1])]
    assert_predictions(twins(layers, widths[0], precision), n)


@pytest.mark.parametrize("activation", ELEMENTWISE, ids=label)
def test_activations(activation):
    layers = [Dense(9, activation, use_bias=False), Dense(6, "relu"), Dense(3, activation)]
    assert_predictions(twins(layers, 5, "bf16"), 9)


def test_formulas_of_the_users_own_that_are_infinite_at_zero():
    """Columns that a layer does not have are none of its activation's."""
    reciprocal = nbbp.activation(lambda z: 1 / z, name="reciprocal_chain")
    models = twins([Dense(3, reciprocal), Dense(2)], 4, "fp16")
    for model in models:
        model.parameters["0.weight"][:] = np.linspace(0.5, 1.0, 12).reshape(4, 3)
        model.parameters["0.bias"][:] = 20.0
    assert_predictions(models, 6)


def test_rows_of_several_steps_go_in_one_launch(monkeypatch):
    from nbbp.device_session import DeviceSession

    monkeypatch.setattr(DeviceSession, "forward_batch", 4)
    models = twins([Dense(6, "tanh"), Dense(3)], 5, "bf16")
    assert_predictions(models, 70)
    x = features_for(10, 5, "float32")
    assert models[1].predict(x[::-1]).tobytes() == models[1].predict(x)[::-1].tobytes()


def test_parameters_that_change_count():
    models = twins([Dense(6, "tanh"), Dense(3)], 5, "bf16")
    assert_predictions(models, 3)
    for model in models:
        model.parameters["1.weight"][:] *= -2
    assert_predictions(models, 3)


def test_nan_and_infinity_go_through():
    model = twins([Dense(6, "relu"), Dense(3)], 5, "bf16")[1]
    model.parameters["1.bias"][:] = [np.nan, np.inf, 0]
    out = model.predict(features_for(3, 5, "float32"))
    assert np.isnan(out[:, 0]).all()
    assert (out[:, 1] == np.inf).all()
    assert np.isfinite(out[:, 2]).all()


OTHERS = {
    "wide": [Dense(65), Dense(3)],
    "six layers": [*[Dense(4, "relu")] * 5, Dense(3)],
    "activations of two kinds": [Dense(4, "tanh"), Dense(4, "gelu"), Dense(3)],
    "an activation apart": [Dense(4), Activation("tanh"), Dense(3)],
    "an activation first": [Activation("tanh"), Dense(3)],
    "softmax": [Dense(4, "relu"), Dense(3, "softmax")],
    "norm": [Dense(4), LayerNorm(), Dense(3)],
    "residual": [Dense(4), Residual([Dense(4)]), Dense(3)],
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_programs_take_the_general_path(case):
    assert_predictions(twins(OTHERS[case], 5, "bf16"), 3, goes_so=False)


def test_dropout_is_nothing_in_prediction():
    assert_predictions(twins([Dense(4, "relu"), Dropout(0.5), Dense(3)], 5, "bf16"), 3)


def test_probabilities_and_evaluation_take_the_general_path():
    models = [
        model_in("bf16", [Dense(6, "relu"), Dense(3)], n_in=5, loss=losses.Crossentropy(), device=device)
        for device in ("cpu", "cuda")
    ]
    x, y = features_for(7, 5, "float32"), np.arange(7) % 3
    assert distance(models[1].predict_proba(x), models[0].predict_proba(x)) < TOLERANCE["bf16"]
    assert models[1].evaluate(x, y)["loss"] == pytest.approx(models[0].evaluate(x, y)["loss"], rel=1e-3)


def test_weights_of_the_widest_chain_fit_into_static_shared_memory():
    assert 4 * tensor_chain.MOST_LAYERS * tensor_chain.WORDS <= 48 * 1024
    assert tensor_chain.WORDS == tensor_chain.WIDTH**2 // 2
