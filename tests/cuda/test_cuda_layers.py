"""Every kind of layer on the GPU against the CPU engine, alone and within each other."""

import numpy as np
import pytest
from cuda_cases import BATCHES, assert_same_gradients, assert_same_standing, assert_same_steps, batch_of, twins
from engine_cases import DTYPES, assert_near, features_for, targets_for
from structure_cases import FROZEN_TWIST, NETWORKS, TWIST

from nbbp import Model, Sequential, losses, optimizers
from nbbp.layers import (
    BatchNorm,
    Concat,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GaussianNoise,
    LayerNorm,
    Reshape,
    Residual,
    RMSNorm,
    StochasticDepth,
)

LOSS = losses.MSE()
LAYERS = {
    "batch norm": BatchNorm(),
    "batch norm, plain": BatchNorm(affine=False),
    "batch norm, frozen": BatchNorm(trainable=False),
    "layer norm": LayerNorm(),
    "layer norm, plain": LayerNorm(affine=False),
    "rms norm": RMSNorm(),
    "dropout": Dropout(0.3),
    "stochastic depth": StochasticDepth(0.4),
    "stochastic depth of batches": StochasticDepth(0.4, mode="batch"),
    "noise": GaussianNoise(0.2),
    "custom": TWIST,
    "custom, frozen": FROZEN_TWIST,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers_between_dense_ones(layer, dtype):
    """Gradients, two updates, and evaluation and prediction by what they left."""
    models = twins([Dense(19, "tanh"), layer, Dense(3)], 5, LOSS, dtype, "adam")
    batches = [batch_of(models[0], n, n) for n in BATCHES[1:]]
    assert_same_gradients(*models, *batches[1])
    assert_same_steps(*models, batches)
    x, y = batches[1]
    assert models[1].evaluate(x, y) == pytest.approx(models[0].evaluate(x, y), rel=1e-5)
    assert_near(models[1].predict(x), models[0].predict(x), dtype)


@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_layers_within_layers(layers):
    models = twins(layers, 5, LOSS)
    assert_same_gradients(*models, *batch_of(models[0], 5))


def test_batch_norm_of_one_row():
    models = twins([Dense(4), BatchNorm(), Dense(3)], 5, LOSS)
    assert_same_steps(*models, [batch_of(models[0], 1)])


@pytest.mark.parametrize("every", [1, 2])
def test_checkpoints(every):
    layers = [Dense(7, "tanh"), LayerNorm(), Dropout(0.2), BatchNorm(), Dense(5, "gelu"), Dense(3)]
    models = []
    for device in ("cpu", "cuda"):
        network = Sequential(layers, n_in=5, checkpoint_every=every)
        models.append(Model(network, LOSS, optimizers.SGD(0.1, momentum=0.9), dtype="float64", device=device))
    assert_same_steps(*models, [batch_of(models[0], n, n) for n in BATCHES[1:]])


@pytest.mark.parametrize("frozen", [(0,), (2,), (0, 1, 2)])
def test_frozen_layers(frozen):
    widths = [(7, "tanh"), (4, "relu"), (3, "linear")]
    layers = [Dense(width, f, trainable=number not in frozen) for number, (width, f) in enumerate(widths)]
    models = twins(layers, 5, LOSS, optimizer="adam")
    before = {name: values.copy() for name, values in models[1].parameters.items()}
    assert_same_steps(*models, [batch_of(models[0], n, n) for n in BATCHES[1:]])
    for number in frozen:
        np.testing.assert_array_equal(models[1].parameters[f"{number}.weight"], before[f"{number}.weight"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings(dtype):
    """Tables of their own beside numbers that pass."""
    layers = [Embedding({1: 6, 3: 4}, {1: 3, 3: 2}), Dense(5, "tanh"), Dense(3)]
    models = twins(layers, 4, LOSS, dtype, "adam")
    x = features_for(17, 4, dtype)
    x[:, 1], x[:, 3] = np.random.default_rng(4).integers(0, 5, 17), np.random.default_rng(5).integers(0, 4, 17)
    y = targets_for(LOSS, 17, 3)
    assert_same_gradients(*models, x, y)
    assert_same_steps(*models, [(x, y), (x[:3], y[:3])])


def test_samples_of_other_shapes():
    layers = [Flatten(), Dense(7, "tanh"), Concat([Dense(2)], [Residual([Dense(7)])]), Dense(6), Reshape((3, 2))]
    models = [Model(Sequential(layers), LOSS, dtype="float64", device=device) for device in ("cpu", "cuda")]
    x, y = features_for(9, 6).reshape(9, 2, 3), features_for(9, 6, seed=2).reshape(9, 3, 2)
    for model in models:
        model.fit(x, y, batch_size=4, verbose=0)
    assert_same_standing(*models)
    assert_near(models[1].predict(x), models[0].predict(x))


def test_an_embedding_that_all_columns_share():
    models = twins([Embedding(6, 2), Dense(3)], 4, LOSS)
    x, y = np.random.default_rng(6).integers(0, 5, (17, 4)), targets_for(LOSS, 17, 3)
    assert_same_gradients(*models, x, y)
    assert not models[1].loss_and_gradients(x, y)[1]["0.weight"][5].any()
