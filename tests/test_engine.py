"""Losses and gradients of the CPU engine against the float64 oracle."""

import numpy as np
import pytest
from engine_cases import (
    ALL_ACTIVATIONS,
    ALL_LOSSES,
    DTYPES,
    LAST_AND_LOSS,
    assert_all_near,
    assert_gradients_near_oracle,
    assert_near,
    copies,
    features_for,
    label,
    model_of,
    replaced,
    small_model,
    targets_for,
)

from nbbp import losses
from nbbp.layers import Activation, Dense

BATCH = 6
OVER_CLASSES = [loss for loss in ALL_LOSSES if loss.row_wise]
#: Activations whose outputs are above 0, which a rate must be.
POSITIVE = ["softplus", "sigmoid", "softmax"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_hidden_activation_and_loss(activation, loss, dtype):
    model = small_model(activation, loss, dtype)
    x = features_for(BATCH, 5, dtype)
    assert_gradients_near_oracle(model, x, targets_for(loss, BATCH, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("last", "loss"), LAST_AND_LOSS, ids=label)
def test_last_activation_and_loss(last, loss, dtype):
    """Every pair, the fused ones among them."""
    model = small_model("tanh", loss, dtype, last=last)
    x = features_for(BATCH, 5, dtype)
    assert_gradients_near_oracle(model, x, targets_for(loss, BATCH, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", POSITIVE)
def test_poisson_of_rates(last, dtype):
    loss = losses.Poisson(log_input=False)
    assert_gradients_near_oracle(
        small_model("tanh", loss, dtype, last=last), features_for(BATCH, 5, dtype), targets_for(loss, BATCH, 3)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "settings", [{"reduction": "sum"}, {"scale": -2.5}, {"reduction": "sum", "scale": 0.5}], ids=str
)
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_reduction_and_scale(loss, settings, dtype):
    loss = replaced(loss, **settings)
    assert_gradients_near_oracle(
        small_model("tanh", loss, dtype), features_for(BATCH, 5, dtype), targets_for(loss, BATCH, 3)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_sample_weight(loss, reduction, dtype):
    model = small_model("tanh", replaced(loss, reduction=reduction), dtype)
    weight = np.array([1.0, 0.0, 2.5, 0.5, 1.0, 3.0])
    assert_gradients_near_oracle(model, features_for(BATCH, 5, dtype), targets_for(loss, BATCH, 3), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["hard", "one-hot", "soft"])
@pytest.mark.parametrize("last", ["linear", "softmax", "log_softmax"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_targets_of_crossentropy(last, kind, smoothing, dtype):
    loss = losses.Crossentropy(label_smoothing=smoothing)
    model = small_model("tanh", loss, dtype, last=last)
    assert_gradients_near_oracle(model, features_for(BATCH, 5, dtype), targets_for(loss, BATCH, 3, kind=kind))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["hard", "one-hot", "soft"])
@pytest.mark.parametrize("last", ["linear", "log_softmax"])
def test_targets_of_nll(last, kind, dtype):
    loss = losses.NLL()
    model = small_model("tanh", loss, dtype, last=last)
    assert_gradients_near_oracle(model, features_for(BATCH, 5, dtype), targets_for(loss, BATCH, 3, kind=kind))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("last", ["linear", "sigmoid"])
def test_soft_targets_of_binary_crossentropy(last, smoothing, dtype):
    loss = losses.BinaryCrossentropy(label_smoothing=smoothing)
    model = small_model("tanh", loss, dtype, last=last)
    assert_gradients_near_oracle(model, features_for(BATCH, 5, dtype), targets_for(loss, BATCH, 3, kind="soft"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "fused", [(losses.Crossentropy, "softmax"), (losses.NLL, "log_softmax"), (losses.BinaryCrossentropy, "sigmoid")]
)
def test_fused_loss_keeps_its_digits_far_out(fused, dtype):
    """Logits of ±1e4: the loss is about 1e4 and not inf, and the gradient is exactly p - t."""
    kind, last = fused
    loss = kind(reduction="sum")
    model = model_of([Dense(3, last)], 2, loss, dtype)
    model.parameters["0.weight"][:] = [[1e4, -1e4, 0.0], [-1e4, 0.0, 1e4]]
    model.parameters["0.bias"][:] = 0.0
    x = np.eye(2, dtype=dtype)
    y = np.array([1, 0]) if loss.row_wise else np.array([[0, 1, 1], [1, 1, 0]])
    assert_gradients_near_oracle(model, x, y)
    assert np.isfinite(model.predict(x)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, 63, 64, 65, 200])
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_batch_sizes(loss, batch, dtype):
    """Around the vector registers, the rows that crossentropy takes at a time, and the tiles of the plans."""
    model = small_model("tanh", loss, dtype)
    weight = np.random.default_rng(3).uniform(0.0, 2.0, batch)
    assert_gradients_near_oracle(model, features_for(batch, 5, dtype), targets_for(loss, batch, 3), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 65])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh", "gelu", "softmax", "log_softmax"])
def test_hidden_widths(activation, width, dtype):
    """Around the vector registers, where the 1 behind the last unit opens a register of its own."""
    loss = losses.MSE()
    model = model_of([Dense(width, activation), Dense(width, activation), Dense(2)], width, loss, dtype)
    assert_gradients_near_oracle(model, features_for(BATCH, width, dtype), targets_for(loss, BATCH, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_out", [1, 2, 15, 16, 17, 33, 300])
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_output_widths(loss, n_out, dtype):
    model = model_of([Dense(4, "tanh"), Dense(n_out)], 3, loss, dtype)
    assert_gradients_near_oracle(model, features_for(BATCH, 3, dtype), targets_for(loss, BATCH, n_out))


ALONE = {
    "first": [Activation("tanh"), Dense(4, "relu"), Dense(3)],
    "between": [Dense(4), Activation("gelu"), Dense(3)],
    "after another": [Dense(4, "softplus"), Activation("tanh"), Activation("mish"), Dense(3)],
    "after relu": [Dense(4, "relu"), Activation("relu"), Activation("sigmoid"), Dense(3)],
    "softmax twice": [Dense(4, "softmax"), Activation("log_softmax"), Dense(3)],
    "linear": [Dense(4, "tanh"), Activation("linear"), Dense(3)],
    "last": [Dense(4, "tanh"), Dense(3), Activation("softsign")],
    "last after one": [Dense(4, "tanh"), Dense(3, "relu"), Activation("elu")],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
@pytest.mark.parametrize("layers", ALONE.values(), ids=ALONE)
def test_activations_that_stand_alone(layers, loss, dtype):
    model = model_of(layers, 5, loss, dtype)
    x = features_for(BATCH, 5, dtype)
    assert_gradients_near_oracle(model, x, targets_for(loss, BATCH, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("loss", "last"),
    [(losses.Crossentropy(), "softmax"), (losses.NLL(), "log_softmax"), (losses.BinaryCrossentropy(), "sigmoid")],
    ids=label,
)
@pytest.mark.parametrize("before", ["linear", "relu"])
def test_fused_activation_that_stands_alone(loss, last, before, dtype):
    model = model_of([Dense(4, "tanh"), Dense(3, before), Activation(last)], 5, loss, dtype)
    assert_gradients_near_oracle(model, features_for(BATCH, 5, dtype), targets_for(loss, BATCH, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("without", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu", "softmax"])
def test_layers_without_bias(activation, without, dtype):
    loss = losses.Crossentropy()
    layers = [
        Dense(n, a, use_bias=i not in without)
        for i, (n, a) in enumerate([(7, activation), (16, activation), (3, "linear")])
    ]
    model = model_of(layers, 5, loss, dtype)
    assert_gradients_near_oracle(model, features_for(BATCH, 5, dtype), targets_for(loss, BATCH, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_deep_network(dtype):
    """Twelve layers: each finds its own buffers."""
    loss = losses.MSE()
    model = model_of([Dense(4 + i % 3, "tanh") for i in range(12)], 3, loss, dtype)
    assert_gradients_near_oracle(model, features_for(BATCH, 3, dtype), targets_for(loss, BATCH, 6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_layers", [1, 2])
def test_network_of_activations_behind_one_weight(n_layers, dtype):
    """The gradient of the data is asked for by nobody, and its operations are left out."""
    loss = losses.MSE()
    model = model_of([*[Activation("sigmoid")] * n_layers, Dense(3)], 5, loss, dtype)
    assert_gradients_near_oracle(model, features_for(BATCH, 5, dtype), targets_for(loss, BATCH, 3))


@pytest.mark.parametrize("loss", OVER_CLASSES, ids=label)
def test_labels_and_one_hot_rows_are_the_same(loss):
    model = small_model("tanh", loss, last="log_softmax")
    x = features_for(BATCH, 5)
    by_label = model.loss_and_gradients(x, targets_for(loss, BATCH, 3))
    one_hot = model.loss_and_gradients(x, targets_for(loss, BATCH, 3, kind="one-hot"))
    assert_near(by_label[0], one_hot[0], tolerance=1e-14)
    assert_all_near(by_label[1], one_hot[1], tolerance=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("n_out", [2, 3, 4, 5, 17])
def test_labels_and_one_hot_rows_give_the_same_bits(n_out, smoothing, dtype):
    loss, n = losses.Crossentropy(label_smoothing=smoothing), 70
    model = model_of([Dense(n_out)], 7, loss, dtype)
    for seed in range(6):
        x, weight = features_for(n, 7, dtype, seed), np.random.default_rng(seed).uniform(0.0, 2.0, n)
        labels, one_hot = (targets_for(loss, n, n_out, seed, kind) for kind in ("hard", "one-hot"))
        for of_rows in (None, weight):
            value, gradients = model.loss_and_gradients(x, labels, of_rows)
            same_value, same = model.loss_and_gradients(x, one_hot, of_rows)
            assert value == same_value
            assert all(gradients[name].tobytes() == same[name].tobytes() for name in gradients)


def test_gradients_are_new_arrays():
    loss = losses.MSE()
    model = small_model("tanh", loss)
    x, y = features_for(BATCH, 5), targets_for(loss, BATCH, 3)
    _, first = model.loss_and_gradients(x, y)
    kept = copies(first)
    model.loss_and_gradients(-x, y)
    assert_all_near(first, kept, tolerance=0.0)
    for values in first.values():
        assert not np.shares_memory(values, model.parameter_vector)
