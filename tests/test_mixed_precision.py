"""Mixed precision: the whole step against an oracle that rounds where it is said, the same bits on any threads, memory,
files, and what is refused. (Loss scaling: test_loss_scaling.py.)
"""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import reference_mixed
from mixed_cases import LOSS, PLANS, data_for, distance, flat, model_in, take_plan
from test_custom_layer import scale

import nbbp
from nbbp import losses, ops, optimizers, programs
from nbbp.cpu import engine
from nbbp.layers import (
    Activation,
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

PRECISIONS = ("bf16", "fp16")


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    """Every way of cutting a step."""
    take_plan(request.param, monkeypatch)
    return request.param


def plain():
    return [Dense(70, "relu"), Dense(70, "gelu"), Dense(70), Activation("tanh"), Dense(70, "tanh"), Dense(3)]


def residual():
    """Matrices that are read again when others are in their place, and one that is projected."""
    inner = Residual([Dense(70, "relu"), Dense(70)])
    return [Dense(70, "tanh"), Residual([Dense(70, "gelu"), inner]), Residual([Dense(40, "relu")]), Dense(3)]


def every_layer():
    """Of one width, so that matrices make room for each other."""
    norms = [BatchNorm(), Dense(64, "relu"), LayerNorm(), Dense(64, "gelu"), RMSNorm()]
    branches = Concat([Dense(32, "tanh"), Dropout(0.2)], [], [Dense(32), StochasticDepth(0.3)])
    more = [GaussianNoise(0.1), branches, Reshape((16, 8)), Flatten(), Activation("softplus"), Residual([Dense(128)])]
    return [Dense(64), *norms, *more, Dense(3)]


# --- arithmetic ------------------------------------------------------------------------------------------------------

#: A number may be rounded the other way where float32 sums fall beside a tie; were a rounding left out, numbers of a
#: whole matrix would be off by some 1e-3 (bf16) or 1e-4.
TOLERANCES = {"bf16": 1e-4, "fp16": 8e-5}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layers", [plain, residual])
def test_step_is_the_oracles(plan, layers, precision):
    """Loss, gradients, the update that follows, predictions and evaluation."""
    model = model_in(precision, layers(), optimizers.SGD(0.1))
    x, y = data_for(130)
    weight = np.random.default_rng(0).uniform(0.0, 2.0, 130).astype("float32")
    loss, gradients, _ = reference_mixed.loss_and_gradients(model, x, y, weight)
    tolerance = TOLERANCES[precision]
    came = model.loss_and_gradients(x, y, weight)
    assert came[0] == pytest.approx(loss, rel=1e-5)
    assert list(came[1]) == list(gradients)
    assert distance(flat(came[1]), flat(gradients)) < tolerance
    unweighted, _, out = reference_mixed.loss_and_gradients(model, x, y)
    assert model.evaluate(x, y)["loss"] == pytest.approx(unweighted, rel=1e-5)
    assert distance(model.predict(x), out) < tolerance
    before = model.parameter_vector.copy()
    assert model.train_step(x, y, weight) == came[0]
    np.testing.assert_allclose(model.parameter_vector, before - 0.1 * flat(came[1]), rtol=0.0, atol=1e-6)
    assert model.parameter_vector.dtype == np.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_layer_is_near_float32(plan, precision):
    """The same masters, the same masks; numbers differ by roundings alone."""
    mixed, exact = (model_in(one, every_layer()) for one in (precision, "float32"))
    x, y = data_for(130)
    came, expected = mixed.loss_and_gradients(x, y), exact.loss_and_gradients(x, y)
    assert came[0] == pytest.approx(expected[0], rel=1e-2)
    assert distance(flat(came[1]), flat(expected[1])) < {"bf16": 4e-2, "fp16": 1e-2}[precision]
    assert distance(mixed.predict(x), exact.predict(x)) < 2e-2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_near_those_of_float32(precision):
    mixed, exact = (model_in(one, [Dense(64, "tanh"), Dense(64, "gelu"), Dense(3)]) for one in (precision, "float32"))
    came, expected = (flat(model.loss_and_gradients(*data_for(64))[1]) for model in (mixed, exact))
    assert 0.0 < distance(came, expected) < 1e-2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layers", [residual, every_layer])
def test_same_bits_on_any_number_of_threads(plan, layers, precision, monkeypatch):
    x, y = data_for(230)
    runs = []
    for n_threads in (1, 2, 3):
        monkeypatch.setattr(engine, "_n_threads", n_threads)
        model = model_in(precision, layers(), optimizers.Adam(0.01))
        model.fit(x, y, batch_size=100, epochs=2, verbose=0)
        loss, gradients = model.loss_and_gradients(x, y)
        runs.append([model.parameter_vector, model.predict(x), np.array(loss), flat(gradients)])
        assert all(np.isfinite(array).all() for array in runs[-1])
    for other in runs[1:]:
        assert [array.tobytes() for array in other] == [array.tobytes() for array in runs[0]]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_custom_layers_get_rounded_numbers(precision):
    """As those of a float32 model whose parameters and data are rounded beforehand."""
    mixed, exact = (model_in(one, [scale(), Dense(3)], n_in=6) for one in (precision, "float32"))
    x, y = data_for(200, 6)
    exact.parameter_vector[:] = reference_mixed.rounded(mixed.parameter_vector, precision)
    expected = exact.loss_and_gradients(reference_mixed.rounded(x, precision), y)[1]
    assert distance(mixed.predict(x), exact.predict(reference_mixed.rounded(x, precision))) < 5e-3
    assert distance(flat(mixed.loss_and_gradients(x, y)[1]), flat(expected)) < 5e-3
    before = mixed.parameter_vector.copy()
    for _ in range(3):
        mixed.train_step(x, y)
    assert (mixed.parameter_vector != before).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_category_numbers_are_not_rounded(plan, precision):
    """Of 5,000 categories most are beyond what 16 bits count."""
    layers = [Embedding({0: 5000}, 8), Dense(16, "tanh"), Dense(3)]
    mixed, exact = (model_in(one, layers, n_in=3) for one in (precision, "float32"))
    x, y = data_for(130, 3)
    x[:, 0] = np.random.default_rng(0).permutation(5000)[:130]
    came, expected = mixed.loss_and_gradients(x, y)[1], exact.loss_and_gradients(x, y)[1]
    assert distance(mixed.predict(x), exact.predict(x)) < 1e-2
    name = "0.weight_0"
    assert distance(came[name].ravel(), expected[name].ravel()) < 2e-2
    assert set(np.flatnonzero(came[name].any(axis=1))) == set(x[:, 0].astype(int))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_that_are_frozen_or_go_forward_twice(precision):
    """Checkpoints save memory and change no bit; what is frozen stays."""
    x, y = data_for(100)
    layers = [Dense(70, "tanh", trainable=False), *[Dense(70, "gelu")] * 8, Dense(3)]
    vectors, sizes = [], []
    for every in (None, 3):
        network = nbbp.Sequential(layers, n_in=20, checkpoint_every=every)
        model = nbbp.Model(network, LOSS, "adam", precision=precision, seed=1)
        first = model.parameters["0.weight"].copy()
        for _ in range(3):
            model.train_step(x, y)
        np.testing.assert_array_equal(model.parameters["0.weight"], first)
        vectors.append(model.parameter_vector.tobytes())
        (bound,) = model._session._bound.values()
        sizes.append(bound.workspace.nbytes - 4 * bound.program.buffers["gradient"])
    assert vectors[0] == vectors[1]
    assert sizes[1] < 0.85 * sizes[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_digits_are_learnt_as_well(precision):
    X, y = nbbp.datasets.load_digits()
    accuracy = {}
    for one in ("float32", precision):
        network = nbbp.Sequential([Dense(64, "relu"), Dense(64, "relu"), Dense(10)], n_in=64)
        model = nbbp.Model(network, LOSS, "adam", metrics=("accuracy",), precision=one, seed=3)
        model.fit(X[:1400], y[:1400], epochs=30, batch_size=32, verbose=0)
        accuracy[one] = model.evaluate(X[1400:], y[1400:])["accuracy"]
    assert accuracy["float32"] > 0.9
    assert accuracy[precision] == pytest.approx(accuracy["float32"], abs=0.01)


# --- memory ----------------------------------------------------------------------------------------------------------


def program_of(precision, layers, n_in, batch, optimizer):
    network = nbbp.Sequential(layers, n_in=n_in)
    return programs.training_program(network, losses.MSE(), optimizer, (), batch, False, precision=precision)


def workspace(program):
    return sum(program.buffers.values())


def test_workspace_of_a_deep_network_falls():
    """fp16 keeps the whole gradient, to see whether it overflowed before it is applied, as clipping by norm does."""
    layers, adam = [Dense(256, "relu")] * 16, optimizers.Adam()
    sizes = {one: workspace(program_of(one, layers, 256, 256, adam)) for one in ("float32", "bf16", "fp16")}
    assert sizes["bf16"] <= 0.65 * sizes["float32"]
    clipped = workspace(program_of("float32", layers, 256, 256, optimizers.Adam(clip_norm=1.0)))
    assert sizes["fp16"] <= 0.8 * clipped


def test_shallow_networks_keep_nothing_twice():
    """No room is needed, so nothing is written in 16 bits and widened again."""
    program = program_of("bf16", [Dense(256, "relu"), Dense(10)], 784, 64, optimizers.Adam())
    assert not program.find("widen")
    assert all(ops.KEPT not in program.ops[row].columns for row in program.find("narrow"))
    exact = program_of("float32", [Dense(256, "relu"), Dense(10)], 784, 64, optimizers.Adam())
    assert workspace(program) <= workspace(exact)


def test_programs_of_float32_know_nothing_of_it():
    for optimizer in (None, optimizers.Adam(clip_norm=1.0)):
        program = program_of("float32", every_layer(), 20, 130, optimizer)
        kernels = {op.kernel for op in program.ops}
        assert not kernels & {"narrow", "widen", "round_parameters", "update_loss_scale"}
        assert all(op.variant == 0 for op in program.ops if op.kernel == "product")
        assert not any(ops.LOSS_SCALE in op.columns for op in program.ops)


# --- the ends of 16 bits ---------------------------------------------------------------------------------------------


def test_data_beyond_fp16_are_named():
    x, y = data_for(30)
    with pytest.raises(nbbp.TrainingDiverged, match="the first numbers to go were the outputs of layer 0"):
        model_in("fp16", [Dense(8), Dense(3)]).fit(x * 1e6, y, verbose=0)
    assert np.isfinite(model_in("bf16", [Dense(8), Dense(3)]).loss_and_gradients(x * 1e6, y)[0])


# --- copies and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_copies_go_on_to_the_same_bits(precision, tmp_path):
    scaling = {"loss_scaling": nbbp.LossScaling(2.0**30, growth_interval=5)} if precision == "fp16" else {}
    model = model_in(precision, [Dense(16, "tanh"), Dense(3)], "adam", **scaling)
    x, y = data_for(100)
    model.fit(x, y, epochs=3, batch_size=16, verbose=0)
    model.save(tmp_path / "m.safetensors")
    others = [nbbp.load_model(tmp_path / "m.safetensors"), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    for one in (model, *others):
        one.fit(x, y, epochs=2, batch_size=16, verbose=0)
        one.train_step(x, y)
        one.partial_fit(x[0], y[0])
    for other in others:
        assert (other.precision, other.loss_scaling) == (model.precision, model.loss_scaling)
        assert other.loss_scale == model.loss_scale
        assert other.parameter_vector.tobytes() == model.parameter_vector.tobytes()
        assert other.predict(x).tobytes() == model.predict(x).tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_range_test_trains_in_the_same_precision(precision):
    model = model_in(precision, plain(), "adam")
    x, y = data_for(100)
    found = nbbp.find_learning_rate(model, x, y, steps=4, batch_size=100)
    assert found.losses[0] == pytest.approx(model.loss_and_gradients(x, y)[0], rel=1e-9)


# --- the interface ---------------------------------------------------------------------------------------------------


def test_precision_is_part_of_the_model():
    model = model_in("bf16", [Dense(3)])
    assert "precision='bf16'" in repr(model)
    assert "precision" not in repr(model_in("float32", [Dense(3)]))
    with pytest.raises(AttributeError, match="precision cannot be changed"):
        model.precision = "fp16"
    with pytest.raises(ValueError, match="as_njit computes in the dtype itself; this model has precision='bf16'"):
        model.as_njit()
    x, y = data_for(30)
    assert model.check_gradients(x, y).max_error < 1e-6
    # one layer, whose weights are rounded and whose outputs are: nothing of what comes out needs more than 16 bits
    out = model.predict(x)
    np.testing.assert_array_equal(reference_mixed.rounded(out, "bf16"), out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "tf32"}, "precision 'tf32' is one of CUDA's tensor cores; the CPU has 'float32', 'bf16' and"),
        ({"precision": "float16"}, "precision must be one of 'float32', 'tf32', 'bf16', 'fp16'; got 'float16'"),
        ({"precision": None}, "precision must be one of"),
        (
            {"precision": "bf16", "dtype": "float64"},
            "precision 'bf16' needs dtype='float32', of which it keeps 16 bits; got 'float64'",
        ),
        ({"precision": "bf16", "loss_scaling": 2.0}, "loss_scaling is for precision='fp16'; got 2.0 with 'bf16'"),
        ({"loss_scaling": nbbp.LossScaling()}, "loss_scaling is for precision='fp16'"),
        ({"precision": "fp16", "loss_scaling": "dynamic"}, "loss_scaling must be a LossScaling or a number"),
        ({"precision": "fp16", "loss_scaling": -1.0}, "initial of LossScaling must be from"),
        ({"precision": "fp16", "loss_scaling": float("nan")}, "loss_scaling must be finite; got nan"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nbbp.Model(nbbp.Sequential([Dense(3)], n_in=2), LOSS, **settings)


STEPS = """
import sys, numpy as np, nbbp
random = np.random.default_rng(0)
x, y = random.standard_normal((64, 8)).astype("float32"), random.integers(0, 3, 64)
model = nbbp.Model(nbbp.Sequential([nbbp.Dense(8, "tanh"), nbbp.Dense(8), nbbp.Dense(3)], n_in=8), "crossentropy",
                   precision="fp16")
for _ in range(5):
    model.train_step(x, y)
np.save(sys.argv[1], model.parameter_vector)
"""


@pytest.mark.slow
def test_processors_without_instructions_for_fp16_get_the_same_bits(tmp_path):
    """The fallback, taken by switch, with a cache of its own."""
    for name, switch in (("with", "1"), ("without", "0")):
        cache = {"NUMBA_CACHE_DIR": str(tmp_path / name)} if switch == "0" else {}
        environment = {**os.environ, **cache, "NBBP_HALF_INSTRUCTIONS": switch}
        command = [sys.executable, "-c", STEPS, str(tmp_path / f"{name}.npy")]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    assert np.load(tmp_path / "with.npy").tobytes() == np.load(tmp_path / "without.npy").tobytes()
