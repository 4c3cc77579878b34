"""checkpoint_every: the same bits as without, in less memory, and nothing that is read after its memory went on."""

import numpy as np
import pytest
from engine_cases import copies
from structure_cases import LOSS, PLANS, TWIST, bits_of_steps, data_for, plan_of, take_plan

import nbbp
from nbbp import programs
from nbbp.cpu.engine import BoundProgram
from nbbp.layers import Activation, Concat, Dense, Embedding, Flatten, Residual

#: Of 5 inputs and 3 outputs; widths differ and repeat, so that memory is handed on.
NETWORKS = {
    "dense": [Dense(8, "tanh"), Dense(8, "relu"), Dense(5, "gelu"), Dense(8), Dense(8, "softmax"), Dense(5), Dense(3)],
    "activations apart": [
        Activation("tanh"), Dense(5), Activation("gelu"), Activation("tanh"), Dense(5, "relu"), Activation("mish"),
        Activation("log_softmax"), Dense(5), Dense(3), Activation("sigmoid"),
    ],
    "residual": [
        Residual([Dense(8, "tanh"), Dense(5)]), Residual([Activation("gelu"), Dense(5)]), Residual([Dense(5, "tanh")]),
        Residual([Dense(8)]), Flatten(), Residual([Residual([Dense(8, "relu")]), Dense(5)]), Dense(5), Dense(3),
    ],
    "concat": [
        Concat([Dense(3, "tanh")], [], [Activation("gelu"), Dense(2)]), Dense(5, "relu"),
        Concat([Dense(2)], [Dense(3, "tanh")]), Concat([], [Residual([Dense(5)])]), Dense(5), Activation("mish"),
        Dense(3),
    ],
    "views": [
        Dense(8, "tanh"), Dense(8, "tanh"), Flatten(), Activation("linear"), Dense(8, "tanh"), Dense(8, "tanh"),
        Flatten(), Flatten(), Dense(3),
    ],
    "wide activations apart": [
        Dense(300), Activation("tanh"), Dense(300, "tanh"), Activation("tanh"), Dense(300), Activation("gelu"),
        Activation("tanh"), Dense(300, "gelu"), Activation("mish"), Dense(3),
    ],
    "frozen": [
        Dense(8, trainable=False), Dense(8, "tanh"), Dense(8, "tanh", trainable=False), Residual([Dense(8)]),
        Dense(8, "gelu", trainable=False), Dense(3),
    ],
    "frozen at the end": [Dense(8, "tanh"), Dense(8), Dense(8, "gelu", trainable=False), Dense(3, trainable=False)],
    "custom": [
        TWIST, Dense(5, "tanh"), TWIST, Residual([TWIST, Dense(5)]), TWIST, Dense(5), Concat([TWIST], []), Dense(3),
    ],
}  # fmt: skip


def model_of(layers, plan="alone", every=None, n_in=5):
    """With the network's own initial parameters, which `checkpoint_every` does not change."""
    network = nbbp.Sequential([*PLANS[plan][2], *layers], n_in=n_in, checkpoint_every=every)
    return nbbp.Model(network, LOSS, nbbp.Adam(0.01), seed=3)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NETWORKS)
def test_same_bits_as_without(monkeypatch, name, plan):
    take_plan(monkeypatch, plan)
    x, y = data_for(plan)
    plain = model_of(NETWORKS[name], plan)
    expected = bits_of_steps(plain, x, y)
    if name not in ("custom", "wide activations apart"):
        assert plan_of(plain, len(x)) == plan
    for every in (1, 2, 3, 7, 100):
        assert bits_of_steps(model_of(NETWORKS[name], plan, every), x, y) == expected, every


@pytest.mark.parametrize("plan", PLANS)
def test_same_bits_behind_an_embedding_and_on_three_threads(monkeypatch, plan):
    x, y = data_for(plan)
    x[:, 1] = np.arange(len(x)) % 4
    layers = [Embedding({1: 4}, 3), *PLANS[plan][2], *NETWORKS["residual"]]
    runs = []
    for every, n_threads in ((None, 1), (2, 1), (2, 3), (1, 3)):
        take_plan(monkeypatch, plan, n_threads)
        model = nbbp.Model(nbbp.Sequential(layers, 5, every), LOSS, nbbp.Adam(0.01), seed=3)
        runs.append(bits_of_steps(model, x, y))
    assert all(run == runs[0] for run in runs)


def poison(bound: BoundProgram) -> None:
    """NaN wherever a step must write before it reads: everywhere but where gradients of frozen layers stay zero."""
    for name in bound.program.buffers:
        if name != "gradient":
            bound.buffer(name)[:] = np.nan
    for name, column, stride in bound.program.ones:
        bound.buffer(name).reshape(-1, stride)[:, column] = 1


@pytest.mark.parametrize("every", [None, 1, 2, 3])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_read_before_it_is_written(monkeypatch, name, plan, every):
    take_plan(monkeypatch, plan)
    x, y = data_for(plan)
    model = model_of(NETWORKS[name], plan, every)
    expected = [model.train_step(x, y) for _ in range(3)], copies(model.parameters)
    again = model_of(NETWORKS[name], plan, every)
    bound = again._session.training(len(x), False, False)
    losses = []
    for _ in range(3):
        poison(bound)
        losses.append(again.train_step(x, y))
    assert losses == expected[0]
    for parameter, values in again.parameters.items():
        assert values.astype(np.float64).tobytes() == expected[1][parameter].tobytes(), parameter


def bound_step(layers, n_in, batch, every):
    network = nbbp.Sequential(layers, n_in, every)
    program = programs.training_program(network, LOSS, nbbp.Adam(), (), batch, False)
    parameters = np.zeros(network.n_parameters, np.float32)
    return BoundProgram(program, "float32", {"parameters": parameters, "slot 0": parameters, "slot 1": parameters})


DEEP = {
    "256 wide": ([*[Dense(256, "tanh")] * 63, Dense(3)], 256, 256),
    "256 wide, linear": ([*[Dense(256)] * 63, Dense(3)], 256, 256),
    "activations apart": ([*[Dense(256), Activation("gelu")] * 63, Dense(3)], 256, 256),
    "residual": ([*[Residual([Dense(256, "tanh"), Dense(256)])] * 63, Dense(3)], 256, 256),
    "concat": ([*[Concat([Dense(128, "tanh")], [Dense(128)])] * 63, Dense(3)], 256, 256),
    "512 wide": ([*[Dense(512, "gelu")] * 63, Dense(3)], 512, 64),
    "64 wide": ([*[Dense(64, "tanh")] * 63, Dense(3)], 64, 128),
    "blocks of rows": ([*[Dense(64, "tanh")] * 63, Dense(3)], 64, 4096),
}


@pytest.mark.parametrize("name", DEEP)
def test_workspace_of_64_layers(name):
    layers, n_in, batch = DEEP[name]
    plain, saved = (bound_step(layers, n_in, batch, every) for every in (None, 8))
    assert saved.workspace.nbytes <= 0.3 * plain.workspace.nbytes


def test_errors():
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="checkpoint_every of Sequential must be at least 1"):
            nbbp.Sequential([Dense(3)], 5, wrong)
    for wrong in (True, 1.5, "2"):
        with pytest.raises(TypeError, match="checkpoint_every of Sequential must be an integer"):
            nbbp.Sequential([Dense(3)], 5, wrong)
    within = nbbp.Sequential([Dense(5)], checkpoint_every=2)
    for container in (Residual, lambda part: Concat(part, [Dense(2)]), nbbp.Sequential):
        with pytest.raises(ValueError, match=r"only the outermost Sequential can .* got one with checkpoint_every=2"):
            container(within)
    assert nbbp.Sequential([Dense(3)], checkpoint_every=np.int64(2)).build(5).checkpoint_every == 2
    assert "checkpoint_every=2" in repr(nbbp.Sequential([Dense(3)], 5, 2))
