"""Layers that are frozen: they stay as they are to the bit, the others do not notice, and nothing waits for them."""

import numpy as np
import pytest
from engine_cases import features_for, model_of, targets_for
from structure_cases import FROZEN_TWIST, LOSS, PLANS, TWIST, data_for, take_plan

import nbbp
from nbbp.layers import Activation, Concat, Custom, Dense, Residual

BATCH = 6

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
