"""Residual and Concat, and layers that are frozen: against the oracle, central differences, PyTorch, in every plan."""

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
    FROZEN_TWIST,
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
from nbbp.layers import Activation, Concat, Custom, Dense, Residual

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


# frozen layers ----------------------------------------------------------------------------------------------

FROZEN = {
    "first": [Dense(6, "tanh", trainable=False), Dense(4, "relu"), Dense(3)],
    "between": [Dense(6, "tanh"), Dense(4, "relu", trainable=False), Dense(3)],
    "last": [Dense(6, "tanh"), Dense(4), Dense(3, trainable=False)],
    "within": [Dense(6), Residual([Dense(6, "tanh", trainable=False), Dense(4)]), Dense(3)],
    "residual": [Dense(6), Residual([Dense(6, "tanh"), Dense(4)], trainable=False), Dense(3)],
    "first residual": [Residual([Dense(6, "tanh"), Residual([Dense(4)])], trainable=False), Dense(3)],
    "branch": [Dense(6), Concat([Dense(2, trainable=False)], [Dense(3, "relu")], []), Dense(3)],
    "first branch": [Concat([Dense(2, trainable=False)], [Dense(3, "relu")], []), Concat([Dense(3)], []), Dense(3)],
    "custom": [Dense(6), FROZEN_TWIST, Residual([FROZEN_TWIST, Dense(6)]), Dense(3)],
    "first custom": [FROZEN_TWIST, Dense(6), TWIST, Dense(3)],
    "all": [Dense(6, "tanh", trainable=False), Residual([Dense(6)], trainable=False), Dense(3, trainable=False)],
}


def thawed(layers):
    """The same layers, all trainable."""
    made = []
    for layer in layers:
        if isinstance(layer, Dense):
            made.append(Dense(layer.n_out, layer.activation))
        elif isinstance(layer, Custom):
            made.append(TWIST)
        elif isinstance(layer, Residual):
            made.append(Residual(thawed(layer.layers)))
        else:
            made.append(Concat(*map(thawed, layer.chains)))
    return made


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_layers_stay_and_the_others_do_not_notice(monkeypatch, name, plan):
    take_plan(monkeypatch, plan)
    optimizer = nbbp.AdamW(0.01, weight_decay=0.1, decay_bias=True)
    first = [] if plan != "wide" else [Dense(300), Dense(300, trainable=name != "all")]
    first = [Dense(300, trainable=name != "all"), *first[1:]] if first else first
    model = model_of([*first, *FROZEN[name]], 5, LOSS, "float32", optimizer)
    whole = model_of([*thawed(first), *thawed(FROZEN[name])], 5, LOSS, "float32", optimizer)
    x, y = data_for(plan)
    loss, gradients = model.loss_and_gradients(x, y)
    expected = whole.loss_and_gradients(x, y)
    assert loss == expected[0]
    trainable = {parameter.name: parameter.trainable for parameter in model.network.parameters}
    assert not all(trainable.values())
    for parameter, values in gradients.items():
        right = expected[1][parameter] if trainable[parameter] else np.zeros_like(values)
        assert values.tobytes() == right.tobytes(), parameter
    before = {parameter: values.tobytes() for parameter, values in model.parameters.items()}
    for _ in range(3):
        model.train_step(x, y)
    model.fit(x, y, epochs=2, batch_size=len(x) * 2 // 3, verbose=0)
    for parameter, values in model.parameters.items():
        assert (values.tobytes() == before[parameter]) is not trainable[parameter], parameter


@pytest.mark.parametrize("kind", ["batch", "one sample"])
def test_frozen_layers_stay_in_a_stream(kind):
    model = model_of([Dense(6, "tanh", trainable=False), Dense(3)], 5, LOSS, "float32", "adam")
    x, y = features_for(BATCH, 5, "float32"), targets_for(LOSS, BATCH, 3).astype(np.float32)
    before = {name: values.tobytes() for name, values in model.parameters.items()}
    for _ in range(2):
        model.partial_fit(*((x, y) if kind == "batch" else (x[0], y[0])))
    assert [values.tobytes() == before[name] for name, values in model.parameters.items()] == [True, True, False, False]
    with pytest.raises(ValueError, match=r"as_njit trains every layer; layer 0 is frozen \(trainable=False\)"):
        model.as_njit()


def kernels_of(model, batch=4):
    return [op.kernel for op in model._session.training(batch, False, False).program.ops]


def test_what_is_below_the_last_trained_layer_costs_nothing():
    """Ops of the way back: a weight gradient for each trained layer, an input gradient only where somebody waits."""

    def products(layers):
        return kernels_of(model_of(layers, 5, LOSS)).count("product")

    frozen = {"trainable": False}
    assert products([Dense(5), Dense(5), Dense(3)]) == 3 + 3 + 2
    assert products([Dense(5, **frozen), Dense(5), Dense(3)]) == 3 + 2 + 1
    assert products([Dense(5, **frozen), Dense(5, **frozen), Dense(3)]) == 3 + 1 + 0
    assert products([Dense(5), Dense(5), Dense(3, **frozen)]) == 3 + 2 + 2
    assert products([Residual([Dense(5, "tanh"), Dense(5)], **frozen), Dense(3)]) == 3 + 1 + 0
    assert products([Residual([Dense(5, **frozen), Dense(5)]), Dense(3)]) == 3 + 2 + 1
    assert (
        products([Dense(5, **frozen), Concat([Dense(2, **frozen), Dense(2)], [Dense(2, **frozen)]), Dense(3)]) == 8 + 0
    )
    kernels = kernels_of(model_of([Dense(5, "tanh", **frozen), Activation("gelu"), Dense(3)], 5, LOSS))
    assert "activation_backward" not in kernels


def test_parameters_are_named_by_their_paths():
    model = model_of([Residual([Dense(4), TWIST]), Concat([Dense(2)], [TWIST, Dense(1)])], 5, LOSS)
    assert list(model.parameters) == [
        "0.0.weight", "0.0.bias", "0.1.a", "0.1.b", "0.projection.weight",
        "1.0.0.weight", "1.0.0.bias", "1.1.0.a", "1.1.0.b", "1.1.1.weight", "1.1.1.bias",
    ]  # fmt: skip
