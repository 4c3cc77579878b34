"""Residual and Concat: against the oracle, central differences, PyTorch, in every plan."""

import numpy as np
import pytest
import reference
from engine_cases import (
    DTYPES,
    assert_all_near,
    assert_gradients_near_oracle,
    assert_near,
    copies,
    features_for,
    model_of,
    oracle_steps,
    targets_for,
)
from structure_cases import (
    LOSS,
    NETWORKS,
    PLANS,
    TWIST,
    WITH_CUSTOM,
    bits_of_steps,
    data_for,
    plan_of,
    planned_model,
    take_plan,
)

import nbbp
from nbbp import losses, optimizers
from nbbp.layers import Activation, Concat, Dense, Residual

EVERY = NETWORKS | WITH_CUSTOM
BATCH = 6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EVERY)
def test_gradients_predictions_and_evaluation(name, dtype):
    model = model_of(EVERY[name], 5, LOSS, dtype)
    x, y = features_for(BATCH, 5, dtype), targets_for(LOSS, BATCH, 3)
    assert_gradients_near_oracle(model, x, y, np.array([1.0, 0.0, 2.5, 0.5, 1.0, 3.0]))
    expected = reference.predict(model.network, copies(model.parameters), x)
    assert_near(model.predict(x), expected, dtype)
    assert_near(model.evaluate(x, y)["loss"], reference.loss_value(model.network, model.parameters, x, y, LOSS), dtype)


@pytest.mark.parametrize("name", EVERY)
def test_central_differences(name):
    model = model_of(EVERY[name], 5, LOSS)
    x, y = features_for(BATCH, 5), targets_for(LOSS, BATCH, 3)
    check = model.check_gradients(x, y, max_per_parameter=5)
    assert check.max_error < 1e-6
    assert list(check) == list(model.parameters)


@pytest.mark.parametrize("name", ["projection", "concat of other widths", "concat within", "nested"])
@pytest.mark.parametrize("loss", [losses.Crossentropy(), losses.BinaryCrossentropy()], ids=lambda loss: loss.name)
def test_other_losses(loss, name):
    """Among them those that take in the last activation, which is none of a layer within."""
    last = "softmax" if loss.row_wise else "sigmoid"
    for end in ([Activation(last)], [], [Residual([Dense(3, last)])]):
        model = model_of([*EVERY[name], *end], 5, loss)
        assert_gradients_near_oracle(model, features_for(BATCH, 5), targets_for(loss, BATCH, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["nested", "activations around", "concat of other widths", "concat within"])
def test_gradients_in_every_plan(monkeypatch, name, plan, dtype):
    take_plan(monkeypatch, plan)
    model = planned_model(plan, NETWORKS[name], dtype=dtype)
    x, y = data_for(plan, dtype)
    assert plan_of(model, len(x)) == plan
    assert_gradients_near_oracle(model, x, y, tolerance=3e-5 if dtype == "float32" else None)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["nested", "activations around", "concat of other widths", "custom around"])
def test_same_bits_for_any_number_of_threads(monkeypatch, name, plan):
    x, y = data_for(plan)
    runs = []
    for n_threads in (1, 2, 3):
        take_plan(monkeypatch, plan, n_threads)
        runs.append(bits_of_steps(planned_model(plan, EVERY[name]), x, y))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("optimizer", [optimizers.AdamW(0.01, weight_decay=0.1), optimizers.Adafactor(0.1)])
def test_steps(monkeypatch, plan, optimizer):
    take_plan(monkeypatch, plan)
    model = planned_model(plan, NETWORKS["concat within"], dtype="float64", optimizer=optimizer)
    batches = [(*data_for(plan, "float64", seed=seed), None) for seed in range(3)]
    expected = oracle_steps(model, batches)
    for x, y, _ in batches:
        model.train_step(x, y)
    assert_all_near(model.parameters, expected)


def test_pytorch_trains_the_same_network():
    torch = pytest.importorskip("torch")
    model = model_of([Dense(8, "tanh"), Residual([Dense(9, "tanh"), Dense(8)]), Residual([Dense(4)])], 5, LOSS)
    model = nbbp.Model(model.network, LOSS, nbbp.Adam(0.01), dtype="float64")
    own = {name: torch.tensor(values, requires_grad=True) for name, values in copies(model.parameters).items()}

    def dense(x, path):
        return x @ own[f"{path}.weight"] + own[f"{path}.bias"]

    adam = torch.optim.Adam(own.values(), lr=0.01, eps=model.optimizer.eps)
    for seed in range(20):
        x, y = features_for(16, 5, seed=seed), targets_for(LOSS, 16, 4, seed)
        h = torch.tanh(dense(torch.tensor(x), 0))
        h = h + dense(torch.tanh(dense(h, "1.0")), "1.1")
        loss = torch.mean((h @ own["2.projection.weight"] + dense(h, "2.0") - torch.tensor(y)) ** 2)
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert_near(model.train_step(x, y), loss.item())
    assert_all_near(model.parameters, {name: values.detach().numpy() for name, values in own.items()})


def test_parameters_are_named_by_their_paths():
    model = model_of([Residual([Dense(4), TWIST]), Concat([Dense(2)], [TWIST, Dense(1)])], 5, LOSS)
    assert list(model.parameters) == [
        "0.0.weight", "0.0.bias", "0.1.a", "0.1.b", "0.projection.weight",
        "1.0.0.weight", "1.0.0.bias", "1.1.0.a", "1.1.0.b", "1.1.1.weight", "1.1.1.bias",
    ]  # fmt: skip
