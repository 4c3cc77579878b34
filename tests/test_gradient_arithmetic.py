"""Between backpropagation and the update: clipping and noise, against an oracle and PyTorch; bits, programs, memory."""

import numpy as np
import pytest
from engine_cases import DTYPES, assert_all_near, assert_near, copies, model_of, one_sample, small_model
from gradient_cases import ALL, LOSS, PLANS, SETTINGS, batches_for, cut_as, joined, network_model, oracle_updates, train
from test_memory import LINUX, in_a_process_of_its_own

import nbbp
from nbbp import losses, ops, optimizers, programs
from nbbp.cpu import engine, kernels
from nbbp.layers import Dense


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    """Every way of cutting a step; its name."""
    cut_as(request.param, monkeypatch)
    return request.param


# --- against the oracle and PyTorch --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["momentum", "adam", "adafactor"])
def test_steps_are_those_of_the_oracle(plan, kind, setting, dtype):
    """With a frozen layer in the middle, whose parameters keep their bits."""
    make = {
        "momentum": lambda **s: optimizers.SGD(0.1, momentum=0.9, **s),
        "adam": lambda **s: optimizers.Adam(0.01, eps=1e-4, **s),
        "adafactor": lambda **s: optimizers.Adafactor(0.1, eps=(1e-3, 1e-3), **s),
    }[kind]
    model, plain = network_model(make(**SETTINGS[setting]), dtype, frozen=1), network_model(make(), dtype, frozen=1)
    batches = batches_for(model, [50, 17, 50, 50, 50, 50, 30])
    expected, before = oracle_updates(model, batches), copies(model.parameters)
    without = oracle_updates(plain, batches)
    train(model, batches)
    assert_all_near(model.parameters, expected, dtype)
    assert np.array_equal(model.parameters["1.weight"], before["1.weight"])
    assert np.abs(expected["0.weight"] - without["0.weight"]).max() > 1e-4, "the setting matters"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", ["value", "norm"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_clipping_is_that_of_pytorch(name, setting, dtype):
    torch = pytest.importorskip("torch")
    ours, theirs = {
        "SGD": (optimizers.SGD(0.1, momentum=0.9, **SETTINGS[setting]), {"lr": 0.1, "momentum": 0.9}),
        "Adam": (optimizers.Adam(0.01, **SETTINGS[setting]), {"lr": 0.01}),
    }[name]
    model = small_model("tanh", LOSS, dtype, ours)
    tensors = [torch.nn.Parameter(torch.from_numpy(values.copy())) for values in model.parameters.values()]
    optimizer = getattr(torch.optim, name)(tensors, **theirs)
    n_clipped = 0
    for x, y in batches_for(model, [16] * 8):
        out = torch.from_numpy(x)
        for index in range(0, 6, 2):
            out = out @ tensors[index] + tensors[index + 1]
            out = torch.tanh(out) if index < 4 else out
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(out, torch.from_numpy(y)).backward()
        if setting == "norm":
            n_clipped += int(torch.nn.utils.clip_grad_norm_(tensors, 0.1) > 0.1)
        else:
            n_clipped += max(float(tensor.grad.abs().max()) for tensor in tensors) > 0.01
            torch.nn.utils.clip_grad_value_(tensors, 0.01)
        optimizer.step()
        model.train_step(x, y)
    assert n_clipped == 8
    for tensor, (parameter, values) in zip(tensors, model.parameters.items(), strict=True):
        assert_near(values, tensor.detach().numpy(), dtype, name=parameter)


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_that_nothing_reaches_change_no_bit(plan, dtype):
    """The gradient lies whole in memory, and is otherwise what it was."""
    plain = network_model("adam", dtype)
    clipped = network_model(optimizers.Adam(clip_norm=1e300, clip_value=1e300), dtype)
    batches = batches_for(plain, [50, 50, 17])
    train(plain, batches)
    train(clipped, batches)
    assert plain.parameter_vector.tobytes() == clipped.parameter_vector.tobytes()


def test_a_norm_that_is_not_finite_updates_nothing():
    model = model_of([Dense(1)], 2, losses.MSE(), "float32", optimizers.Adam(0.1, clip_norm=1.0))
    model.parameter_vector[:] = 0.0
    ordinary = np.array([[1.0, 2.0]], "f4"), np.array([[1.0]], "f4")
    train(model, [ordinary])
    after, slots = model.parameter_vector.copy(), model._session.slot_buffer.copy()
    model.parameter_vector[:2] = 0.0
    assert np.isfinite(model.train_step(np.array([[3e38, 1.0]], "f4"), np.array([[10.0]], "f4")))
    assert np.array_equal(model.parameter_vector, [0.0, 0.0, after[2]])
    assert np.array_equal(model._session.slot_buffer, slots)


# --- noise ---------------------------------------------------------------------------------------------------------


def noise_of_updates(dtype="float64", seed=3, n_updates=20):
    """The noise in each update (n_updates, n_parameters): what moves a model whose samples weigh nothing."""
    model = nbbp.Model(
        nbbp.Sequential([Dense(101), Dense(50)], n_in=99), "mse", optimizers.SGD(1.0, gradient_noise=0.04),
        dtype=dtype, seed=seed,
    )  # fmt: skip
    moved = []
    for _ in range(n_updates):
        model.parameter_vector[:] = 0.0
        model.train_step(np.zeros((2, 99)), np.zeros((2, 50)), np.zeros(2))
        moved.append(-model.parameter_vector.astype("float64"))
    return np.array(moved)


def test_noise_is_normal_and_decays():
    noise = noise_of_updates()
    n = noise.shape[1]
    scaled = noise / np.sqrt(0.04 / (1.0 + np.arange(20)) ** 0.55)[:, None]
    assert np.abs(scaled.mean(axis=1)).max() < 4.5 / np.sqrt(n)
    assert np.abs(scaled.var(axis=1) - 1.0).max() < 4.5 * np.sqrt(2.0 / n)
    assert abs((scaled**4).mean() - 3.0) < 0.1
    assert np.abs(np.corrcoef(scaled) - np.eye(20)).max() < 5.0 / np.sqrt(n)
    assert_near(noise_of_updates("float32", n_updates=2), noise[:2], "float32")
    assert np.abs(np.corrcoef(noise_of_updates(seed=4, n_updates=1)[0], noise[0])[0, 1]) < 5.0 / np.sqrt(n)


# --- bits, programs, memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [optimizers.Adam, optimizers.Adafactor])
def test_same_bits_for_any_number_of_threads(plan, kind, dtype, monkeypatch):
    settings = ALL | {"accumulation_steps": 2}
    found = []
    for n_threads in (1, 2, 3):
        monkeypatch.setattr(engine, "_n_threads", n_threads)
        model = network_model(kind(0.01, **settings), dtype, frozen=0)
        X, y = joined(batches_for(model, [230]))
        model.fit(X, y, batch_size=100, epochs=3, verbose=0)
        train(model, [(X, y)] * 3)
        found.append(model.parameter_vector.tobytes())
        assert any(bound.n_threads() == n_threads or plan == "alone" for bound in model._session._bound.values())
    assert found[0] == found[1] == found[2]


def test_ops_are_there_only_where_a_setting_asks_for_them(plan):
    def kernels_of(optimizer):
        network = network_model(optimizer).network
        program = programs.training_program(network, LOSS, optimizer, (), 50, True, True)
        found = [op.kernel for op in program.ops]
        asked = [column for op in program.ops for column in (ops.ACCUMULATION, ops.SQUARES) if column in op.columns]
        return found.count("prepare_gradient") > 0, found.count("finish_gradient") > 0, len(asked) > 0

    assert kernels_of(optimizers.Adam()) == (False, False, False)
    assert kernels_of(optimizers.Adam(clip_value=1.0)) == (True, False, False)
    assert kernels_of(optimizers.Adam(gradient_noise=1.0)) == (False, True, False)
    assert kernels_of(optimizers.Adam(clip_norm=1.0)) == (True, True, True)
    assert kernels_of(optimizers.Adam(accumulation_steps=2)) == (True, True, True)


def test_another_model_compiles_nothing():
    first = small_model("tanh", LOSS, "float32", optimizers.Adam(clip_norm=1.0))
    first.fit(*joined(batches_for(first, [8])), verbose=0)
    known = set(kernels._compiled)
    other = network_model(optimizers.Adam(**ALL), "float32", frozen=0)
    X, y = joined(batches_for(other, [300]))
    other.fit(X, y, batch_size=150, verbose=0)
    other.train_step(X[:7], y[:7])
    assert {name for name, *_ in set(kernels._compiled) - known} <= {"reduce_gradient"}


@LINUX
def test_no_step_allocates():
    growth = in_a_process_of_its_own(
        """
settings = dict(clip_value=0.1, clip_norm=0.1, gradient_noise=0.1, accumulation_steps=3)
net = nbbp.Sequential([nbbp.Dense(16, activation="relu"), nbbp.Dense(2)], n_in=4)
model = nbbp.Model(net, "crossentropy", nbbp.Adam(**settings))
x, y = random.standard_normal((32, 4)).astype("f4"), random.integers(0, 2, 32)
X, Y = random.standard_normal((16_000, 4)).astype("f4"), random.integers(0, 2, 16_000)
counts = []
for n in (100, 100, 16_000, 100):
    before = rtsys.get_allocation_stats()
    model.fit(X[:n], Y[:n], batch_size=1, verbose=0)
    counts.append([now - then for now, then in zip(rtsys.get_allocation_stats(), before)])
assert counts[1] == counts[2] == counts[3]
for _ in range(4000):
    model.train_step(x, y)
start = resident()
for _ in range(20_000):
    model.train_step(x, y)
print(json.dumps(resident() - start))
""",
        NUMBA_NRT_STATS="1",
    )
    assert growth <= 256 << 10


# --- what the sample engine leaves to this one, and refusals ---------------------------------------------------------


@pytest.mark.parametrize("setting", ["value", "norm", "noise", "accumulation"])
def test_the_sample_engine_leaves_it_to_the_batch_engine(setting):
    optimizer = optimizers.Adam(0.01, eps=1e-4, **SETTINGS[setting])
    model, twin = (small_model("tanh", LOSS, "float64", optimizer) for _ in range(2))
    functions = model.as_njit()
    (name,) = SETTINGS[setting]
    with pytest.raises(ValueError, match=rf"the optimizer has {name}=.*: train with the model itself"):
        functions.train_step  # noqa: B018
    for seed in range(5):
        x, y, batch_x, batch_y = one_sample(model, seed)
        assert model.partial_fit(x, y) == twin.train_step(batch_x, batch_y)
    assert model.parameter_vector.tobytes() == twin.parameter_vector.tobytes()


def test_the_sample_engine_trains_no_frozen_layer():
    model = model_of([Dense(4, "tanh", trainable=False), Dense(3)], 5, LOSS, "float64", "adam")
    before = copies(model.parameters)
    with pytest.raises(ValueError, match="layer 0 is frozen: train with the model itself"):
        model.as_njit().train_step  # noqa: B018
    x, y, *_ = one_sample(model)
    model.partial_fit(x, y)
    assert np.array_equal(model.parameters["0.weight"], before["0.weight"])
    assert not np.array_equal(model.parameters["1.weight"], before["1.weight"])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"clip_value": 0.0}, ValueError, "clip_value of Adam must be above 0 and finite, or None; got 0.0"),
        ({"clip_norm": float("inf")}, ValueError, "clip_norm of Adam must be above 0 and finite, or None; got inf"),
        ({"clip_norm": "1"}, TypeError, "clip_norm of Adam must be a number; got '1'"),
        ({"gradient_noise": -1.0}, ValueError, "gradient_noise of Adam must be at least 0 and finite; got -1.0"),
        ({"gradient_noise": None}, TypeError, "gradient_noise of Adam must be a number; got None"),
        ({"accumulation_steps": 0}, ValueError, "accumulation_steps of Adam must be from 1 to .*; got 0"),
        ({"accumulation_steps": 2**31}, ValueError, "accumulation_steps of Adam must be from 1 to"),
        ({"accumulation_steps": 2.0}, TypeError, "accumulation_steps of Adam must be an integer; got 2.0"),
        ({"accumulation_steps": True}, TypeError, "accumulation_steps of Adam must be an integer; got True"),
    ],
)
def test_refused(settings, error, message):
    with pytest.raises(error, match=message):
        optimizers.Adam(**settings)
