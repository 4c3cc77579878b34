"""Models in files: they come back whole, go on to the same bits, and replace a file only by a whole one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from formula_cases import quartic, swish
from safetensors import safe_open

import nbbp
from nbbp import initializers, losses, metrics, optimizers, persistence
from nbbp.network import Sequential
from nbbp.scalars.activations import ACTIVATIONS

X = np.random.default_rng(0).standard_normal((40, 3))
LABELS = np.random.default_rng(1).integers(0, 2, 40)


def kind_of(part):
    return type(part).__name__


def model_of(*layers, loss="mse", n_in=3, **settings):
    return nbbp.Model(nbbp.Sequential(layers or [nbbp.Dense(2)], n_in=n_in), loss, **settings)


def assert_same(a, b):
    """The same parts, the same bits, the same place in training."""
    for part in ("network", "loss", "optimizer", "metrics", "device", "dtype", "seed"):
        assert getattr(a, part) == getattr(b, part), part
    assert (a._session.step, a._session.epoch) == (b._session.step, b._session.epoch)
    arrays = [(a.parameter_vector, b.parameter_vector), *zip(a._session.slots, b._session.slots, strict=True)]
    for one, other in arrays:
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


def assert_comes_back(model, folder):
    """Saved with other numbers than the initial ones everywhere, and loaded."""
    random = np.random.default_rng(2)
    for values in (model.parameter_vector, *model._session.slots):
        values[:] = random.standard_normal(len(values))
    model._session.step, model._session.epoch = 12, 3
    model.save(folder / "m.safetensors")
    assert_same(nbbp.load_model(folder / "m.safetensors"), model)
    assert os.listdir(folder) == ["m.safetensors"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(tmp_path, name, dtype):
    keyword = ACTIVATIONS[name].parameter
    activation = nbbp.Activation(name, **({keyword: 0.1} if keyword else {}))
    assert_comes_back(model_of(nbbp.Dense(4, name), activation, nbbp.Dense(2, activation), dtype=dtype), tmp_path)


LOSSES = [
    *(kind() for kind in losses.BY_NAME.values()),
    losses.MSE(reduction="sum", scale=1 / 3),
    losses.Huber(delta=0.1),
    losses.Crossentropy(label_smoothing=0.1),
    losses.Poisson(log_input=False),
    nbbp.loss(quartic, reduction="sum", scale=1e-300),
]


@pytest.mark.parametrize("loss", LOSSES, ids=kind_of)
def test_losses(tmp_path, loss):
    assert_comes_back(model_of(loss=loss), tmp_path)


OPTIMIZERS = [
    *(kind() for kind in optimizers.BY_NAME.values()),
    nbbp.SGD(0.1, momentum=0.9, nesterov=True),
    nbbp.Adam(1 / 3, betas=(0.1, 0.2), amsgrad=True, weight_decay=5e-324, decay_bias=True),
    nbbp.RMSprop(centered=True, momentum=0.5, l1=1e-5),
    nbbp.Adafactor(eps=(1e-30, 1e-3)),
    nbbp.AdamW(groups={"*.bias": {"learning_rate": 0.0}, "0.*": {"l1": 0.1, "weight_decay": 0.2}}),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=kind_of)
def test_optimizers(tmp_path, optimizer, dtype):
    model = model_of(nbbp.Dense(4), nbbp.Dense(2, use_bias=False), optimizer=optimizer, dtype=dtype)
    assert_comes_back(model, tmp_path)


INITIALIZERS = [
    *initializers.BY_NAME.values(),
    initializers.Uniform(-0.1, 1 / 3),
    initializers.TruncatedNormal(1.0, 0.5),
    initializers.VarianceScaling(0.3, "out", "truncated_normal"),
]


@pytest.mark.parametrize("initializer", INITIALIZERS, ids=kind_of)
def test_initializers(tmp_path, initializer):
    bias = "zeros" if initializer == initializers.Orthogonal() else initializer
    layer = nbbp.Dense(2, weight_initializer=initializer, bias_initializer=bias, name="the “last” one")
    assert_comes_back(model_of(layer, seed=2**63 - 1), tmp_path)


def test_metrics(tmp_path):
    every = [replace(kind(), k=2) if name == "top_k_accuracy" else kind() for name, kind in metrics.BY_NAME.items()]
    assert_comes_back(model_of(loss="crossentropy", metrics=every), tmp_path)
    assert_comes_back(model_of(metrics=[metrics.BinaryAccuracy(threshold=0.3)]), tmp_path)


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [(nbbp.Adam(0.01), "float32"), (nbbp.Adafactor(), "float64"), (nbbp.SGD(0.1, momentum=0.9), "float64")],
)
def test_training_goes_on_as_if_uninterrupted(tmp_path, optimizer, dtype):
    settings = {"loss": "crossentropy", "metrics": ["accuracy"], "optimizer": optimizer, "dtype": dtype, "seed": 5}
    model = model_of(nbbp.Dense(5, "tanh"), nbbp.Dense(2), **settings)
    model.fit(X, LABELS, epochs=3, batch_size=16, verbose=0)
    model.save(tmp_path / "m.safetensors")
    loaded = nbbp.load_model(tmp_path / "m.safetensors")
    assert loaded.predict(X).tobytes() == model.predict(X).tobytes()
    histories = []
    for one in (model, loaded):
        histories.append(one.fit(X, LABELS, epochs=2, batch_size=16, verbose=0))
        one.train_step(X[:8], LABELS[:8])
        one.partial_fit(X[0], LABELS[0])
    assert histories[0]["loss"] == histories[1]["loss"]
    assert_same(loaded, model)


IN_ANOTHER_PROCESS = """
import json, sys
import numpy as np, nbbp
model = nbbp.load_model(sys.argv[1])
x = np.linspace(-1, 1, 12).reshape(4, 3)
print(json.dumps([model.predict(x).tolist(), model.train_step(x, x[:, :2]), model.predict(x).tolist()]))
"""


def test_formulas_come_from_the_file_alone(tmp_path):
    model = model_of(
        nbbp.Dense(4, nbbp.activation(lambda z: np.sin(z) * 3, name="wave")), nbbp.activation(swish), nbbp.Dense(2),
        loss=nbbp.loss(quartic), dtype="float64",
    )  # fmt: skip
    model.save(tmp_path / "m.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, tmp_path / "m.safetensors"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    x = np.linspace(-1, 1, 12).reshape(4, 3)
    expected = [model.predict(x).tolist(), model.train_step(x, x[:, :2]), model.predict(x).tolist()]
    assert json.loads(done.stdout) == expected


def test_a_file_is_what_other_readers_of_the_format_expect(tmp_path):
    model = model_of(optimizer="adam")
    model.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        assert set(file.keys()) == {"0.weight", "0.bias", "optimizer.slot 0", "optimizer.slot 1"}
        assert np.array_equal(file.get_tensor("0.weight"), model.parameters["0.weight"])
        assert file.metadata()["nbbp.format"] == persistence.FORMAT == "2"
        described = json.loads(file.metadata()["nbbp.model"])
    assert described["network"]["layers"][0]["activation"] == {"name": "linear", "settings": {}}
    assert described["loss"] == {"name": "mse", "settings": {"reduction": "mean", "scale": 1.0}}


def test_a_loaded_model_has_memory_of_its_own_and_draws_nothing(tmp_path, monkeypatch):
    model = model_of()
    model.save(tmp_path / "m.safetensors")
    monkeypatch.setattr(Sequential, "initial_parameters", None)
    loaded = nbbp.load_model(str(tmp_path / "m.safetensors"))
    loaded.parameters["0.weight"][0, 0] = 7
    assert loaded.parameter_vector[0] == 7
    assert loaded.parameter_vector.ctypes.data % 64 == 0
    model.save(tmp_path / "m.safetensors")
    assert loaded.parameters["0.weight"][0, 0] == 7
    assert_same(nbbp.load_model(tmp_path / "m.safetensors"), model)


def test_a_slot_may_hold_infinity(tmp_path):
    model = model_of(optimizer="adam")
    model._session.slots[1][0] = np.inf
    model.save(tmp_path / "m.safetensors")
    assert_same(nbbp.load_model(tmp_path / "m.safetensors"), model)


# what cannot be saved ---------------------------------------------------------------------------------------


class OwnLoss(losses.MSE):
    pass


class OwnSGD(nbbp.SGD):
    pass


class OwnMetric(metrics.MeanSquaredError):
    pass


class OwnDense(nbbp.Dense):
    pass


class OwnActivation(nbbp.Activation):
    pass


def ones(shape, seed, stream, dtype):
    return np.ones(shape, dtype)


def forward(parameters, x, y):
    y[:] = x


def backward(parameters, x, y, d_y, d_x, gradient):
    d_x[:] = d_y


@pytest.mark.parametrize(
    ("layers", "settings", "message"),
    [
        ([nbbp.Dense(2), nbbp.Custom(forward, backward)], {}, r"layer 1 is Custom\(forward.*expected only layers that"),
        ([nbbp.Dense(2, weight_initializer=ones)], {}, "weight_initializer of layer 0 is <function ones"),
        ([nbbp.Dense(2), nbbp.Dense(2, bias_initializer=ones)], {}, "bias_initializer of layer 1 is"),
        ([nbbp.Dense(2, OwnActivation("relu"))], {}, r"activation of layer 0 is Activation\('relu'\) \(OwnActivation"),
        ([nbbp.Dense(2), OwnActivation("relu")], {}, "layer 1 is .*OwnActivation"),
        ([OwnDense(2)], {}, "layer 0 is OwnDense"),
        ([nbbp.Dense(2)], {"loss": OwnLoss()}, r"the loss is OwnLoss\(.*expected one of nbbp's own: mse, mae"),
        ([nbbp.Dense(2)], {"optimizer": OwnSGD()}, r"the optimizer is OwnSGD\("),
        ([nbbp.Dense(2)], {"metrics": [OwnMetric()]}, r"a metric is OwnMetric\("),
    ],
)
def test_what_is_no_data_is_named(tmp_path, layers, settings, message):
    model = model_of(*layers, **settings)
    (tmp_path / "m.safetensors").write_bytes(b"old")
    with pytest.raises(TypeError, match=message):
        model.save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 1


def test_values_that_cannot_be_saved(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="no parameters yet"):
        model_of(n_in=None).save(path)
    model = model_of()
    model.parameters["0.bias"][1] = np.nan
    with pytest.raises(ValueError, match=r"parameter 0\.bias holds NaN or infinity"):
        model.save(path)
    with pytest.raises(TypeError, match="PathLike"):
        model_of().save(3)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        model_of().save(tmp_path / "none" / "m.safetensors")
    assert os.listdir(tmp_path) == []


def chain(z):
    for _ in range(400):
        z = np.sin(z) * np.exp(z)
    return z


def test_a_formula_too_long_to_be_read_back_is_refused(tmp_path):
    model = model_of(nbbp.Dense(2, nbbp.activation(chain)))
    with pytest.raises(ValueError, match=r"derivative of the activation 'chain' has .* nodes; expected 1 to"):
        model.save(tmp_path / "m.safetensors")


# writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, function, error):
    path = tmp_path / "m.safetensors"
    old = model_of()
    old.save(path)

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(type(error)):
            model_of(nbbp.Dense(5)).save(path)
    assert_same(nbbp.load_model(path), old)
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_contents_are_on_the_disk_before_the_file_is_replaced(tmp_path, monkeypatch):
    calls = []
    fsync, move = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), move(*paths)))
    model_of().save(tmp_path / "m.safetensors")
    assert calls == ["fsync", "replace", *["fsync"] * (os.name == "posix")]


@pytest.mark.skipif(os.name != "posix", reason="links and modes of files are those of POSIX")
def test_links_and_modes_are_as_of_any_file(tmp_path):
    (tmp_path / "last").symlink_to(tmp_path / "m.safetensors")
    model = model_of()
    model.save(tmp_path / "last")
    assert (tmp_path / "last").is_symlink()
    Path(tmp_path / "other").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert_same(nbbp.load_model(tmp_path / "last"), model)


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = model_of()
    for path in ("m", "größe 1.safetensors", Path("a.b")):
        model.save(path)
        assert_same(nbbp.load_model(path), model)
    with pytest.raises(FileNotFoundError):
        nbbp.load_model("none.safetensors")
    os.mkdir("folder")
    with pytest.raises(OSError, match="folder"):
        model.save("folder")
    assert sorted(os.listdir()) == ["a.b", "folder", "größe 1.safetensors", "m"]
