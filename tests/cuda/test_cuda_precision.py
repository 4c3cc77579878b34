"""Models in tf32, bf16 and fp16 on the GPU against the CPU engine, loss scaling, and what the interface says of them.

(Kernels by themselves: test_cuda_tensor_cores.py.)
"""

import copy
import pickle

import numpy as np
import pytest
import reference_mixed
from engine_cases import features_for, targets_for
from mixed_cases import LOSS, data_for, distance, flat, model_in
from structure_cases import TWIST
from tensor_cases import TOLERANCES

import nbbp
from nbbp import losses, optimizers
from nbbp.cuda import chain, launch
from nbbp.layers import BatchNorm, Dense, Dropout, LayerNorm, Residual

PRECISIONS = ("tf32", "bf16", "fp16")
HALVES = PRECISIONS[1:]
LAYERS = [Dense(9, "relu"), Dense(9, "tanh"), Dense(3)]


@pytest.fixture(autouse=True)
def _op_by_op(op_by_op):
    """Small chains have paths of their own, in float32; tests below take them."""


def twins(precision, layers=LAYERS, optimizer="sgd", **settings):
    """On the CPU, which computes what is tf32 here in float32, and on the GPU."""
    on_cpu = "float32" if precision == "tf32" else precision
    return [
        model_in(one, layers, optimizer, n_in=5, device=device, **settings)
        for one, device in ((on_cpu, "cpu"), (precision, "cuda"))
    ]


def batch(n=13, seed=1, loss=LOSS):
    return data_for(n, 5, loss, seed)


def assert_near(actual, expected, precision):
    assert distance(actual, expected) < TOLERANCES[precision]


# numbers --------------------------------------------------------------------------------------------------------------

NETWORKS = {
    "dense": LAYERS,
    "residual": [Dense(9, "tanh"), Residual([Dense(9, "gelu"), Dense(9)]), Dense(3)],
    "norms": [Dense(9), LayerNorm(), Dense(9, "relu"), BatchNorm(), Dropout(0.3), Dense(3)],
    "custom": [Dense(9, "tanh"), TWIST, Dense(3)],
    "deep": [*[Dense(9, "tanh")] * 5, Dense(3)],
}


@pytest.mark.parametrize(
    ("network", "precision"),
    [
        *(("dense", precision) for precision in PRECISIONS),
        *(("norms", precision) for precision in ("tf32", "fp16")),
        *(("residual", precision) for precision in ("tf32", "bf16")),
        ("custom", "bf16"),
    ],
)
def test_gradients_steps_and_predictions(network, precision):
    """One step's gradient, its update, and what follows."""
    models = twins(precision, NETWORKS[network], optimizers.SGD(0.1))
    x, y = batch()
    expected, actual = (model.loss_and_gradients(x, y) for model in models)
    assert actual[0] == pytest.approx(expected[0], rel=TOLERANCES[precision])
    # norms divide by what spread there is, and roundings with it: those of units that are nearly dead grow
    spread = 2.0 if network == "norms" else 1.0
    assert distance(flat(actual[1]), flat(expected[1])) < spread * TOLERANCES[precision]
    for model in models:
        model.train_step(x, y)
    assert_near(models[1].parameter_vector, models[0].parameter_vector, precision)
    assert_near(models[1].predict(x), models[0].predict(x), precision)


@pytest.mark.parametrize("precision", HALVES)
def test_what_is_kept_in_16_bits_comes_back(precision):
    """Layers of one width make room for each other; the oracle knows nothing of that."""
    model = twins(precision, NETWORKS["deep"])[1]
    program = model._session.training(7, True, False).program
    assert program.find("widen")
    x, y = batch(7)
    loss, gradients, out = reference_mixed.loss_and_gradients(model, x, y)
    came = model.loss_and_gradients(x, y)
    assert came[0] == pytest.approx(loss, rel=1e-5)
    assert_near(flat(came[1]), flat(gradients), precision)
    assert distance(model.predict(x), out) < 1e-4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_comes_to_the_same(precision):
    """Shuffled epochs with a short last batch: losses, and accuracy where it was not there before."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 3
    X = (rng.standard_normal((40, 5)) + 3 * np.eye(3, 5)[y]).astype(np.float32)
    models = twins(precision, [Dense(8, "relu"), Dense(3)], optimizers.Adam(0.1), metrics=("accuracy",))
    histories = [model.fit(X, y, epochs=3, batch_size=16, verbose=0) for model in models]
    assert histories[1]["loss"][-1] < 0.6 * histories[1]["loss"][0]
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=2 * TOLERANCES[precision])
    expected, actual = (model.evaluate(X, y)["accuracy"] for model in models)
    assert actual == pytest.approx(expected, abs=0.03)
    assert actual > 0.8


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_whose_gradient_is_cut_into_parts_of_the_batch(precision):
    models = twins(precision, [Dense(3, "tanh"), Dense(3)], loss=losses.MSE())
    x, y = features_for(70, 5, "float32"), targets_for(losses.MSE(), 70, 3)
    expected, actual = (flat(model.loss_and_gradients(x, y)[1]) for model in models)
    assert_near(actual, expected, precision)


def test_the_same_seed_gives_the_same_bits():
    def trained():
        model = twins("bf16", LAYERS, "adam")[1]
        model.fit(*batch(12), batch_size=8, verbose=0)
        return model.parameter_vector.tobytes()

    assert trained() == trained()


# which kernels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that programs are bound to from here on."""
    names, compiled = [], launch.kernels.compiled

    def named(name, *arguments):
        names.append(name)
        return compiled(name, *arguments)

    monkeypatch.setattr(launch.kernels, "compiled", named)
    return names


def test_float32_is_float32(launched):
    for dtype in ("float32", "float64"):
        model = nbbp.Model(nbbp.Sequential(LAYERS, n_in=5), LOSS, dtype=dtype, device="cuda")
        model._session.training(4, True, False)
    assert launched.count("product") == 2 * 8
    assert not {"tensor_product", "narrow", "widen_rows", "update_loss_scale"} & set(launched)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_are_those_of_tensor_cores(launched, precision):
    twins(precision)[1]._session.training(4, True, False)
    assert launched.count("tensor_product") == 8
    assert "product" not in launched


def test_products_round_what_they_give_by_themselves(launched):
    """Of a chain of rectified layers the data, the gradient of the loss and nothing else is rounded apart."""
    twins("bf16", [Dense(9, "relu"), Dense(7, "relu"), Dense(3)])[1]._session.training(4, True, False)
    assert launched.count("narrow") == 2


def test_a_small_chain_in_tf32_needs_no_tensor_cores(monkeypatch, launched):
    """One block does its steps in float32, which is nearer to what was asked for than what was promised."""
    monkeypatch.setattr(chain, "MOST_WORK", 1 << 18)
    models = twins("tf32", LAYERS, "adam")
    for model in models:
        model.train_step(*batch())
    assert launched[0] == "train_chain"
    assert distance(models[1].parameter_vector, models[0].parameter_vector) < 1e-5


# loss scaling ---------------------------------------------------------------------------------------------------------


def scaled(loss_scaling, optimizer="adam"):
    return *twins("fp16", [Dense(8, "tanh"), Dense(3)], optimizer, loss_scaling=loss_scaling), *batch(9)


def test_scale_grows_after_the_interval():
    _, model, x, y = scaled(nbbp.LossScaling(4.0, growth_factor=8.0, growth_interval=2))
    scales = []
    for _ in range(5):
        model.train_step(x, y)
        scales.append(model.loss_scale)
    assert scales == [4.0, 32.0, 32.0, 256.0, 256.0]


@pytest.mark.parametrize("optimizer", [optimizers.Adam(0.01), optimizers.Adam(0.01, clip_value=0.1), "adafactor"])
def test_overflow_skips_the_step_and_halves_the_scale(optimizer):
    """As often as on the CPU; and then both go on alike."""
    on_cpu, model, x, y = scaled(nbbp.LossScaling(2.0**30, backoff_factor=2.0**-8), optimizer)
    skipped = 0
    while True:
        before = [np.array(values) for values in (model.parameter_vector, *model._session.slots)]
        last, loss = model.loss_scale, model.train_step(x, y)
        on_cpu.train_step(x, y)
        assert np.isfinite(loss)
        assert model.loss_scale == on_cpu.loss_scale
        if model.loss_scale == last:
            break
        skipped += 1
        for now, then in zip((model.parameter_vector, *model._session.slots), before, strict=True):
            assert now.tobytes() == then.tobytes()
    assert skipped == 2
    assert (model.parameter_vector != before[0]).any()
    assert_near(model.parameter_vector, on_cpu.parameter_vector, "fp16")


def test_scale_is_one_for_all_batches_of_an_update():
    _, model, x, y = scaled(nbbp.LossScaling(2.0**40), optimizers.SGD(0.1, accumulation_steps=2))
    before, scales = np.array(model.parameter_vector), []
    for _ in range(4):
        model.train_step(x, y)
        scales.append(model.loss_scale / 2.0**40)
    assert scales == [1.0, 0.5, 0.5, 0.25]
    np.testing.assert_array_equal(model.parameter_vector, before)


def test_scale_changes_no_gradient_that_fits():
    optimizer = optimizers.Adam(0.01, accumulation_steps=2, clip_norm=0.5)
    vectors = []
    for scale in (256.0, 1024.0):
        _, model, x, y = scaled(scale, optimizer)
        for _ in range(2):
            model.train_step(4 * x, y)
        vectors.append(np.array(model.parameter_vector))
    assert distance(*vectors) < 1e-6


def test_the_scale_is_that_of_the_last_good_parameters_after_a_loss_of_nan():
    _, model, x, y = scaled(nbbp.LossScaling(1024.0))

    class Breaks(nbbp.callbacks.Callback):
        def on_epoch_begin(self, run):
            if run.epoch == 2:
                run.model.parameter_vector[:] = np.nan

    with pytest.raises(nbbp.TrainingDiverged):
        model.fit(x, y, epochs=2, batch_size=5, verbose=0, callbacks=[Breaks()])
    assert model.loss_scale == 1024.0


# the interface --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", HALVES)
def test_a_model_moves_with_its_precision_and_scale(precision):
    scaling = {"loss_scaling": nbbp.LossScaling(2.0**40)} if precision == "fp16" else {}
    models = twins(precision, [Dense(3)], "adam", **scaling)
    x, y = batch()
    for _ in range(3):
        for model in models:
            model.train_step(x, y)
        models[1].to("cpu" if models[1].device == "cuda" else "cuda")
    assert models[1].loss_scale == models[0].loss_scale != 2.0**40
    assert_near(models[1].parameter_vector, models[0].parameter_vector, precision)
    assert models[1].to("auto").device == "cuda"


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "file"])
@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_copies_go_on(precision, way, tmp_path):
    model = twins(precision, LAYERS, "adam")[1]
    x, y = batch(5)
    model.train_step(x, y)
    if way == "file":
        model.save(tmp_path / "model.safetensors")
        twin = nbbp.load_model(tmp_path / "model.safetensors", device="cuda")
    else:
        twin = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert (twin.device, twin.precision, twin.loss_scale) == ("cuda", precision, model.loss_scale)
    for one in (model, twin):
        one.train_step(x, y)
    assert twin.parameter_vector.tobytes() == model.parameter_vector.tobytes()


def test_tf32_is_of_gpus(tmp_path):
    expected = "precision 'tf32' is one of CUDA's tensor cores; the CPU has 'float32', 'bf16' and 'fp16'"
    model = twins("tf32")[1]
    assert "precision='tf32', device='cuda'" in repr(model)
    with pytest.raises(ValueError, match=expected):
        model.to("cpu")
    assert model.device == "cuda"
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=expected):
        nbbp.load_model(tmp_path / "model.safetensors")
    assert nbbp.load_model(tmp_path / "model.safetensors", device="auto").device == "cuda"
    with pytest.raises(ValueError, match=r"as_cuda_device computes in the dtype itself; .* precision='tf32'"):
        model.as_cuda_device()


def test_the_range_test_trains_in_the_same_precision():
    models = twins("bf16", LAYERS, "adam")
    x, y = batch(8)
    curves = [nbbp.find_learning_rate(model, x, y, steps=2, batch_size=8) for model in models]
    assert_near(curves[1].losses, curves[0].losses, "bf16")
