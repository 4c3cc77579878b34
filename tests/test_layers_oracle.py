"""Normalisations and layers of random numbers in networks, against the float64 oracle and central differences."""

import numpy as np
import pytest
import reference
from engine_cases import DTYPES, TOLERANCES, assert_near, copies, features_for, model_of, targets_for
from reference_layers import context_of

from nbbp import losses
from nbbp.layers import (
    Activation,
    BatchNorm,
    Concat,
    Dense,
    Dropout,
    GaussianNoise,
    LayerNorm,
    Residual,
    RMSNorm,
    Standardize,
    StochasticDepth,
)

LOSS = losses.Crossentropy()
NETWORKS = {
    "dropout": [Dropout(0.2), Dense(17, "relu"), Dropout(0.5), Dense(16, "tanh"), Dropout(0.3), Dense(3)],
    "batch norm": [BatchNorm(), Dense(17), BatchNorm(affine=False), Activation("relu"), Dense(3), BatchNorm(eps=1e-2)],
    "frozen batch norm": [Dense(17), BatchNorm(trainable=False), Activation("tanh"), Dense(3)],
    "layer norm": [LayerNorm(affine=False), Dense(17, "gelu"), LayerNorm(), Dense(1), LayerNorm(), Dense(3)],
    "rms norm": [RMSNorm(), Dense(17), RMSNorm(affine=False), Activation("silu"), Dense(3), RMSNorm(eps=1e-2)],
    "noise": [GaussianNoise(0.3), Dense(17, "softplus"), GaussianNoise(0.1), Dense(3)],
    "depth": [Residual([Dense(5, "relu"), StochasticDepth(0.4)]), StochasticDepth(0.2, "batch"), Dense(3)],
    "standardized": [Standardize(), Dense(17, "gelu"), Dense(3)],
    "standardized in a branch": [
        Concat([Standardize(), Dense(4, "tanh")], [Residual([Standardize(), Dense(5)])], [Dense(2)]),
        Dense(3),
    ],
    "within": [
        Residual([LayerNorm(), Dense(9, "relu"), Dropout(0.2), Dense(5), StochasticDepth(0.3)]),
        Concat([BatchNorm(), Dense(4, "tanh")], [RMSNorm()], [Dropout(0.5), Dense(2), LayerNorm()]),
        Dense(3),
    ],
}


def prepared(name, dtype):
    model = model_of(NETWORKS[name], 5, LOSS, dtype, seed=7)
    rng = np.random.default_rng(4)
    for kind, values in model.state.items():
        values[:] = rng.uniform(0.5, 2.0, values.shape) if kind.endswith("variance") else rng.normal(size=values.shape)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradients(name, dtype):
    model = prepared(name, dtype)
    for step, batch in enumerate((17, 3)):
        x, y = features_for(batch, 5, dtype, seed=step), targets_for(LOSS, batch, 3, seed=step)
        parameters = copies(model.parameters)
        loss, gradients = model.loss_and_gradients(x, y)
        context = context_of(model, batch, step)
        expected = reference.loss_and_gradients(model.network, parameters, x, y, LOSS, context=context)
        assert_near(loss, expected[0], dtype, name="loss")
        # a bias in front of a norm has a gradient of rounding alone: errors count against the largest of all gradients
        largest = max(np.abs(values).max() for values in expected[1].values())
        for parameter, values in expected[1].items():
            difference = np.abs(gradients[parameter] - values).max()
            assert difference <= TOLERANCES[dtype] * largest, parameter
        assert model.train_step(x, y) == loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_prediction(name, dtype):
    model = prepared(name, dtype)
    x, y = features_for(50, 5, dtype), targets_for(LOSS, 50, 3)
    predicted = reference.predict(model.network, model.parameters, x, model.state)
    assert_near(model.predict(x), predicted, dtype)
    expected, _ = reference.loss_value_and_gradient(LOSS, predicted, y)
    assert_near(model.evaluate(x, y)["loss"], expected, dtype)


@pytest.mark.parametrize("name", NETWORKS)
def test_central_differences(name):
    model = prepared(name, "float64")
    x, y = features_for(17, 5), targets_for(LOSS, 17, 3)
    assert model.check_gradients(x, y, max_per_parameter=20).max_error < 1e-6
