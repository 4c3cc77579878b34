"""What a Monitor sees: against float64 NumPy and PyTorch, without a bit changed in the training it looks at."""

import numpy as np
import pytest
from callback_cases import LABELS, X, numbers_of
from engine_cases import copies
from monitoring_cases import LAYERS, OPTIMIZERS, trained
from structure_cases import NETWORKS, PLANS

import nbbp
from nbbp import tiling
from nbbp.callbacks import Monitor
from nbbp.cpu import engine
from nbbp.layers import Activation, Dense, Embedding, Residual
from nbbp.lowering.monitoring import saturation
from nbbp.scalars.activations import ACTIVATIONS, LIMITS

random = np.random.default_rng(0)


def assert_no_bit_changes(layers, optimizer="adam", **settings):
    monitor = Monitor(every=2, vanishing=0.0, exploding=1e300)
    assert trained(layers, monitor, optimizer, **settings) == trained(layers, None, optimizer, **settings)
    assert len(monitor.updates)
    return monitor


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", LAYERS)
def test_no_bit_of_the_training_changes(name, optimizer):
    assert_no_bit_changes(LAYERS[name], optimizer)


@pytest.mark.parametrize("name", NETWORKS)
def test_nor_in_networks_within_networks(name):
    assert_no_bit_changes(NETWORKS[name], batch=17)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", LAYERS)
def test_nor_in_mixed_precision(name, precision):
    assert_no_bit_changes(LAYERS[name], precision=precision)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["norms", "random", "structure", "no bias"])
def test_nor_with_checkpoints(name, precision, every):
    assert_no_bit_changes(LAYERS[name], checkpoint_every=every, precision=precision)


def test_nor_with_an_embedding():
    network = nbbp.Sequential([Embedding(50, 8), Dense(3)], n_in=2)
    rows = random.integers(0, 50, (100, 2))
    seen = []
    for monitor in (None, Monitor(every=2)):
        model = nbbp.Model(network, "crossentropy")
        model.fit(rows, LABELS[:1].repeat(100), batch_size=16, verbose=0, callbacks=[monitor] if monitor else [])
        seen.append(numbers_of(model))
    assert seen[0] == seen[1]
    assert (monitor["gradient_norm"] > 0).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("plan", PLANS)
def test_threads_and_plans(plan, optimizer, monkeypatch):
    settings, batch, first = PLANS[plan]
    for name, value in settings.items():
        monkeypatch.setattr(tiling, name, value)
    monkeypatch.setattr(tiling, "_SHARED_WORK", 0)
    layers, seen = [*first, *LAYERS["norms"]], []
    before = engine._n_threads
    try:
        for n_threads in (1, 2, 3):
            nbbp.set_num_threads(n_threads)
            monitor = Monitor(every=2, vanishing=0.0, exploding=1e300)
            arguments = {"batch": batch, "rows": 5 * batch + 1, "epochs": 1}
            seen.append(trained(layers, monitor, optimizer, **arguments))
            seen[-1].append([monitor[quantity].tobytes() for quantity in monitor.quantities])
        assert seen[0] == seen[1] == seen[2]
        assert seen[0][:-1] == trained(layers, None, optimizer, **arguments)
    finally:
        engine._n_threads = before


# --- what is seen -------------------------------------------------------------------------------------------


def norm(*arrays):
    return np.sqrt(sum(np.sum(np.square(np.float64(array))) for array in arrays))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(5, 8, 7, 3), (5, 300, 300, 3)], ids=str)
def test_quantities_against_numpy(sizes, dtype):
    hidden = [
        Dense(sizes[1], "tanh", weight_initializer=nbbp.initializers.Normal(deviation=1.5)),
        Dense(sizes[2], "relu"),
    ]
    network = nbbp.Sequential([*hidden, Dense(sizes[3])], n_in=sizes[0])
    x = random.standard_normal((97, 5)).astype(dtype)
    t = random.standard_normal((97, 3)).astype(dtype)
    model, twin = (nbbp.Model(network, "mse", nbbp.Adam(0.01), dtype=dtype) for _ in range(2))
    monitor = Monitor(every=2)
    model.fit(x, t, batch_size=32, epochs=2, shuffle=False, verbose=0, callbacks=[monitor])
    assert monitor.updates.tolist() == [1, 3, 5, 7]
    assert monitor.epochs.tolist() == [1, 1, 2, 2]
    batches = [(x[start : start + 32], t[start : start + 32]) for start in range(0, 97, 32)] * 2
    for update, (rows, wanted) in enumerate(batches, start=1):
        before = copies(twin.parameters)
        gradients = twin.loss_and_gradients(rows, wanted)[1]
        twin.train_step(rows, wanted)
        if update % 2 == 0:
            continue
        outputs, back = [np.float64(rows)], [None, None, None]
        for layer, function in enumerate((np.tanh, lambda z: np.maximum(z, 0), lambda z: z)):
            outputs.append(function(outputs[-1] @ before[f"{layer}.weight"] + before[f"{layer}.bias"]))
        back[2] = 2 * (outputs[3] - wanted) / 3
        back[1] = back[2] @ before["2.weight"].T
        back[0] = (back[1] * (outputs[2] > 0)) @ before["1.weight"].T
        for layer in range(3):
            y, own = outputs[layer + 1], [f"{layer}.weight", f"{layer}.bias"]
            expected = {
                "mean": y.mean(),
                "spread": y.std(),
                "zeros": np.mean(y == 0),
                "saturated": (np.mean(y**2 >= 0.96), np.mean(y <= 0), np.nan)[layer],
                "output_gradient": np.sqrt(np.mean(back[layer] ** 2)),
                "weight_norm": norm(*(before[name] for name in own)),
                "gradient_norm": norm(*(gradients[name] for name in own)),
                "update_norm": norm(*(before[name] - twin.parameters[name] for name in own)),
            }
            tolerance = 2e-5 if dtype == "float32" else 1e-9
            for quantity, value in expected.items():
                came = monitor[quantity][(update - 1) // 2, layer]
                np.testing.assert_allclose(came, value, rtol=tolerance, atol=tolerance * 1e-2, err_msg=quantity)


def test_against_pytorch():
    torch = pytest.importorskip("torch")
    network = nbbp.Sequential([Dense(9, "sigmoid"), nbbp.LayerNorm(), Residual([Dense(9, "gelu")]), Dense(3)], n_in=4)
    model = nbbp.Model(network, "crossentropy", nbbp.SGD(0.1), dtype="float64")
    w = {name: torch.tensor(values.copy(), requires_grad=True) for name, values in model.parameters.items()}
    outputs = [torch.sigmoid(torch.tensor(X, dtype=torch.float64) @ w["0.weight"] + w["0.bias"])]
    outputs.append(torch.nn.functional.layer_norm(outputs[-1], (9,), w["1.gamma"], w["1.beta"]))
    inner = torch.nn.functional.gelu(outputs[-1] @ w["2.0.weight"] + w["2.0.bias"])
    outputs += [outputs[-1] + inner, inner]
    outputs.append(outputs[2] @ w["3.weight"] + w["3.bias"])
    for output in outputs:
        output.retain_grad()
    torch.nn.functional.cross_entropy(outputs[-1], torch.tensor(LABELS)).backward()
    monitor = Monitor()
    model.fit(X, LABELS, batch_size=len(X), shuffle=False, verbose=0, callbacks=[monitor])
    assert monitor.layers == ["0 Dense(sigmoid)", "1 LayerNorm", "2 Residual", "2.0 Dense(gelu)", "3 Dense"]
    for layer, output in enumerate(outputs):
        assert monitor["mean"][0, layer] == pytest.approx(output.mean().item(), rel=1e-9, abs=1e-12)
        assert monitor["spread"][0, layer] == pytest.approx(output.std(correction=0).item(), rel=1e-9)
        wanted = len(X) * output.grad.square().mean().sqrt().item()
        assert monitor["output_gradient"][0, layer] == pytest.approx(wanted, rel=1e-9)
    for layer, path in enumerate(["0", "1", None, "2.0", "3"]):
        own = [w[name] for name in w if path and name.rsplit(".", 1)[0] == path]
        if own:
            assert monitor["gradient_norm"][0, layer] == pytest.approx(norm(*(one.grad for one in own)), rel=1e-9)
            assert monitor["update_norm"][0, layer] == pytest.approx(0.1 * norm(*(one.grad for one in own)), rel=1e-9)
        else:
            assert np.isnan([monitor[f"{what}_norm"][0, layer] for what in ("weight", "gradient", "update")]).all()


def test_frozen_layers_have_a_norm_and_no_gradient():
    monitor = Monitor(every=1)
    trained(LAYERS["frozen"], monitor)
    network = nbbp.Sequential(LAYERS["frozen"], n_in=5).build(5)
    own = nbbp.Model(network, "crossentropy").parameters
    np.testing.assert_allclose(monitor["weight_norm"][:, 1], norm(own["1.weight"], own["1.bias"]), rtol=1e-6)
    assert np.isnan(monitor["gradient_norm"][:, [1, 3]]).all()
    assert (monitor["update_norm"][:, [1, 3]] == 0).all()
    assert (monitor["gradient_norm"][:, [0, 2]] > 0).all()
    assert (monitor["output_gradient"] > 0).all()


def test_a_shifted_layer_keeps_its_spread():
    """Numbers of 1e6 that differ by 1: squares of float32 would be off by all of it."""
    model = nbbp.Model(nbbp.Sequential([Dense(4), Dense(1)], n_in=2), "mse", nbbp.SGD(1e-30), dtype="float64")
    model.parameters["0.bias"][:] = 1e8
    x = random.standard_normal((64, 2))
    monitor = Monitor()
    model.fit(x, np.zeros(64), batch_size=64, verbose=0, callbacks=[monitor])
    y = x @ model.parameters["0.weight"]
    assert monitor["spread"][0, 0] == pytest.approx(y.std(), rel=1e-6)


def test_the_loss_scale_is_not_seen():
    seen = {}
    for precision in ("float32", "fp16"):
        seen[precision] = monitor = Monitor(every=1)
        trained(LAYERS["activations"], monitor, "clipped", precision=precision, epochs=1)
    for quantity in ("output_gradient", "gradient_norm", "update_norm", "spread"):
        np.testing.assert_allclose(seen["fp16"][quantity], seen["float32"][quantity], rtol=0.05, err_msg=quantity)


def test_what_clipping_leaves():
    monitor = Monitor(every=1)
    trained([Dense(6, "tanh"), Dense(3)], monitor, nbbp.SGD(1.0, clip_norm=1e-3))
    np.testing.assert_allclose(norm_of_rows(monitor["gradient_norm"]), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(monitor["update_norm"], monitor["gradient_norm"], rtol=1e-3)


def norm_of_rows(values):
    return np.sqrt(np.sum(np.square(values), axis=1))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if not ACTIVATIONS[name].row_wise])
def test_saturated_is_where_an_activation_is_flat(name):
    activation = Activation(name, alpha=0.5) if name == "elu" else Activation(name)
    formula, (low, high) = activation.formula, activation.limits
    z = np.linspace(-60, 60, 20001)
    y = np.array([formula.value(v, activation.parameter) for v in z])
    s = y if formula.derivative_of == "output" else z
    slopes = np.array([formula.derivative(v, activation.parameter) for v in s])
    assert y.min() >= low
    assert y.max() <= high
    least, largest = saturation(activation)
    is_saturated = (y <= least) | (y >= largest)
    assert is_saturated.any() == (name in LIMITS)
    if name in LIMITS:
        steep = 1.05070098 if name == "selu" else 1.0 if name == "elu" else slopes.max()
        np.testing.assert_array_equal(is_saturated, slopes <= 0.04 * steep)
