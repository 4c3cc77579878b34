"""Populations: each network gets the bits of a model trained alone; one that diverges stops alone; errors say why."""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from engine_cases import features_for, targets_for

import nbbp
from nbbp import fleet_training, losses, optimizers, schedules, training
from nbbp.cpu import engine

ROOT = Path(__file__).resolve().parents[1]
N, N_IN, BATCH = 70, 5, 32  # the last batch is short


def of_many_kinds(n_hidden=6, rate=0.3):
    layers = [
        nbbp.Dense(n_hidden, "tanh"),
        nbbp.BatchNorm(),
        nbbp.Dropout(rate),
        nbbp.Residual([nbbp.Dense(n_hidden), nbbp.LayerNorm()]),
        nbbp.GaussianNoise(0.1),
        nbbp.Dense(3),
    ]
    return nbbp.Sequential(layers, n_in=N_IN)


def plain(n_hidden=4, n_in=N_IN):
    return nbbp.Sequential([nbbp.Dense(n_hidden, "tanh"), nbbp.Dense(3)], n_in=n_in)


#: A network or what makes one, what the loss and the optimizer are, and the settings that vary.
CASES = {
    "widths and rates": (
        plain(), "mse", "adam", {"n_hidden": [1, 17, 40, 17], "learning_rate": [0.1, 1e-3, 0.01, 0.02]},
    ),
    "layers of many kinds": (
        of_many_kinds, "crossentropy", optimizers.AdamW(0.01, weight_decay=0.1),
        {"n_hidden": [6, 9, 6], "rate": [0.0, 0.3, 0.5], "learning_rate": [0.1, 0.01, 0.001], "seed": [3, 3, 2**40]},
    ),
    "what happens to the gradient": (
        plain(), "mse",
        optimizers.SGD(0.1, momentum=0.9, clip_norm=1.0, gradient_noise=0.01, accumulation_steps=2),
        {"learning_rate": [0.1, 0.05, 0.2]},
    ),
    "an optimizer each": (
        plain(), "mse",
        [
            optimizers.Adafactor(0.1), optimizers.NAdam(), optimizers.RAdam(0.01), optimizers.RAdam(0.01),
            optimizers.Adam(0.01, groups={"*.bias": {"learning_rate": 0.05}}),
            optimizers.Adam(0.01, groups={"*.bias": {"learning_rate": 1.0}}),
        ],
        {},
    ),
    "schedules": (
        plain(), losses.MSE(reduction="sum"), optimizers.SGD(momentum=0.9),
        {
            "learning_rate": [
                0.001,
                schedules.Cosine(0.01, steps=20),
                schedules.Step(0.002, every=2, unit="epoch"),
                schedules.ReduceOnPlateau(0.01, patience=1, factor=0.1),
            ]
        },
    ),
}  # fmt: skip


def data_of(loss, dtype):
    loss = losses.get(loss)
    return features_for(N, N_IN, dtype), targets_for(loss, N, 3)


def alone(population, number, loss, dtype, metrics):
    """A model made as a user would make it."""
    member = population[number]
    network = nbbp.Sequential(member.network.layers, n_in=N_IN)
    return nbbp.Model(network, loss, member.optimizer, metrics, dtype=dtype, seed=population.settings["seed"][number])


def assert_same_bits(member, model):
    """Everything that training changes."""
    mine, other = member._session, model._session
    assert mine.parameters.tobytes() == other.parameters.tobytes()
    assert mine.state.tobytes() == other.state.tobytes()
    assert [slot.tobytes() for slot in mine.slots] == [slot.tobytes() for slot in other.slots]
    assert (mine.step, mine.epoch, mine.clock.epoch) == (other.step, other.epoch, other.clock.epoch)
    assert mine.clock.plateau == other.clock.plateau


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float32") for case in CASES), ("widths and rates", "float64")]
)  # other kernels of float64 would take most of the time to compile
def test_same_bits_as_models_alone(case, dtype, n_threads, monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", n_threads)
    # runs of two batches, and coefficients of one epoch or two at a time
    monkeypatch.setattr(training, "CHUNK_ROWS", 2 * BATCH)
    monkeypatch.setattr(fleet_training, "COEFFICIENT_BYTES", 4000)
    network, loss, optimizer, settings = CASES[case]
    metrics = ("accuracy",) if losses.get(loss).row_wise else ("rmse", "mae")
    size = len(optimizer) if isinstance(optimizer, list) else None
    population = nbbp.Population(network, loss, optimizer, metrics, dtype=dtype, size=size, **settings)
    X, y = data_of(loss, dtype)
    options = {"validation_data": (X[:40], y[:40]), "sample_weight": np.linspace(0, 2, N), "batch_size": BATCH}
    histories = [population.fit(X, y, epochs=epochs, verbose=0, **options) for epochs in (3, 2)]
    evaluated, predicted = population.evaluate(X, y), population.predict(X)
    assert predicted.shape == (len(population), N, 3)
    for number, member in enumerate(population):
        model = alone(population, number, loss, dtype, metrics)
        for history, epochs in zip(histories, (3, 2), strict=True):
            expected = model.fit(X, y, epochs=epochs, verbose=0, **options)
            for name in expected:
                assert history[name][:, number].tolist() == expected[name]
        assert_same_bits(member, model)
        assert {name: values[number] for name, values in evaluated.items()} == model.evaluate(X, y)
        assert predicted[number].tobytes() == model.predict(X).tobytes()
        # and both go on as the same model
        for one in (member, model):
            one.fit(X, y, shuffle=False, verbose=0)
            one.train_step(X, y)
        assert_same_bits(member, model)


def test_order_of_samples_and_steps_without_shuffle():
    X, y = data_of("mse", "float32")
    population = nbbp.Population(plain(), "mse", size=2, seed=5)
    population.fit(X, y, shuffle=False, epochs=2, verbose=0)
    model = alone(population, 0, "mse", "float32", ())
    model.fit(X, y, shuffle=False, epochs=2, verbose=0)
    assert_same_bits(population[0], model)
    assert_same_bits(population[1], model)


def test_a_network_that_diverges_stops_alone():
    X, y = data_of("mse", "float32")
    rates = [0.01, 1e30, schedules.Step(0.02, every=2, unit="epoch"), 30.0]
    population = nbbp.Population(plain(), "mse", optimizers.SGD(), learning_rate=rates)
    with pytest.warns(RuntimeWarning, match=r"2 of 4 networks turned NaN .*: 1 \(epoch 1\), 3 \(epoch \d+\)\."):
        history = population.fit(X, y, epochs=30, validation_data=(X, y), verbose=0)
    assert list(history.stopped) == [1, 3]
    for number, member in enumerate(population):
        model = alone(population, number, "mse", "float32", ())
        if number in history.stopped:
            with pytest.raises(nbbp.TrainingDiverged) as caught:
                model.fit(X, y, epochs=30, validation_data=(X, y), verbose=0)
            expected = caught.value.history
        else:
            expected = model.fit(X, y, epochs=30, validation_data=(X, y), verbose=0)
        n = len(expected.epochs)
        assert history.stopped.get(number, 31) == n + 1
        for name in ("loss", "val_loss"):
            assert history[name][:n, number].tolist() == (expected[name] if n else [])
            assert np.isnan(history[name][n:, number]).all()
        assert_same_bits(member, model)
    assert population.best("val_loss") in (0, 2)
    with pytest.warns(RuntimeWarning):
        assert 1 in population.fit(X, y, verbose=0).stopped


def test_a_last_update_without_a_loss_is_looked_at():
    X, y = data_of("mse", "float32")
    population = nbbp.Population(plain(), "mse", optimizers.SGD(), learning_rate=[0.1, 3e38])
    with pytest.warns(RuntimeWarning, match=r"1 of 2 networks"):
        history = population.fit(X, 1e3 * y, batch_size=N, verbose=0)
    assert history.stopped == {1: 1}
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(population[1].parameter_vector).all()


def test_ctrl_c_leaves_whole_epochs(monkeypatch):
    """Every network is then where a model is after as many epochs."""
    X, y = data_of("mse", "float32")
    population = nbbp.Population(plain(), "mse", size=40)
    population.fit(X, y, verbose=0)
    waited = []

    def interrupted(futures, timeout=None):
        if not waited:
            waited.append(timeout)
            raise KeyboardInterrupt
        return plainly(futures, timeout)

    plainly = nbbp.crew.wait
    monkeypatch.setattr(nbbp.crew, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        population.fit(X, y, epochs=3000, verbose=0)
    reached = [member._session.epoch for member in population]
    assert min(reached) < 3001
    for number in (0, int(np.argmax(reached)), 39):
        losses_of_it = population.history["loss"][:, number]
        assert np.isfinite(losses_of_it).sum() == reached[number] - 1
        model = alone(population, number, "mse", "float32", ())
        model.fit(X, y, epochs=reached[number], verbose=0)
        assert_same_bits(population[number], model)


def test_networks_that_learn_from_the_data_what_they_take():
    X, y = data_of("mse", "float32")
    population = nbbp.Population(plain(n_in=None), "mse", size=3)
    with pytest.raises(ValueError, match="no parameters yet"):
        population.predict(X)
    assert set(population.fit(X, y, epochs=2, verbose=0)) == {"loss"}
    assert population[0].network is population[2].network
    assert population[0].network.n_in == N_IN


def test_members_share_their_memory_and_copies_do_not():
    X, y = data_of("mse", "float32")
    population = nbbp.Population(plain(), "mse", size=3)
    population.fit(X, y, verbose=0)
    copies = [copy.deepcopy(population), pickle.loads(pickle.dumps(population))]
    population[1].parameter_vector[:] = 0.0
    assert np.all(population.predict(X)[1] == 0.0)
    assert all(np.any(one.predict(X)[1] != 0.0) for one in copies)
    for one in (*copies, population):
        one.fit(X, y, verbose=0)
    assert_same_bits(copies[0][0], population[0])
    assert_same_bits(copies[1][2], population[2])
    assert len(population) == 3
    assert population[-1] is population[2]


def test_mean_of_the_networks_and_outputs_of_a_shape():
    X = features_for(300, 4, "float32")
    layers = [nbbp.Dense(6), nbbp.Reshape((3, 2))]
    population = nbbp.Population(nbbp.Sequential(layers, n_in=4), "mse", size=5)
    each = population.predict(X)
    assert each.shape == (5, 300, 3, 2)
    np.testing.assert_allclose(population.predict(X, mean=True), each.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_best_looks_the_right_way():
    population = nbbp.Population(plain(), "mse", size=3)
    values = {"val_accuracy": np.array([[0.1, 0.9, np.nan]]), "loss": np.array([[0.3, 0.2, np.nan]])}
    population.history = nbbp.PopulationHistory(values, {2: 1})
    assert population.best("val_accuracy") == population.best("loss") == 1
    with pytest.raises(KeyError, match="no 'rmse' in this history; recorded: 'val_accuracy', 'loss'"):
        population.best("rmse")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "size is missing"),
        ({"size": 0}, ValueError, "size of Population must be at least 1; got 0"),
        ({"learning_rate": []}, ValueError, "at least 1"),
        ({"size": 3, "learning_rate": [1.0, 2.0]}, ValueError, "learning_rate has 2 values, but size says 3 networks"),
        ({"seed": [1, 2, 3], "n_hidden": [4]}, ValueError, "n_hidden has 1 values, but seed says 3 networks"),
        ({"learning_rate": [0.1, -1.0]}, ValueError, "learning_rate of Adam must be above 0"),
        ({"n_hidden": [4, 0]}, ValueError, "n_hidden must be at least 1; got 0"),
        ({"seed": [0, -1]}, ValueError, "seed must be an integer from 0"),
        ({"size": 2, "depth": [1, 2]}, TypeError, "no setting 'depth', only n_hidden"),
        ({"size": 2, "network": 3}, TypeError, "network must be a Sequential, or a function that returns one; got 3"),
        ({"network": lambda n: None, "n": [1, 2]}, TypeError, r"network\(n=1\) must return a Sequential; got None"),
        ({"network": lambda n: plain(n_in=n), "n": [4, 5]}, ValueError, "features per sample of network 0 are 4"),
        ({"network": nbbp.Sequential([nbbp.Dense(3)], n_in=4), "n_hidden": [4]}, ValueError, "a hidden Dense layer"),
        ({"size": 2, "loss": "squares"}, ValueError, "unknown loss 'squares'"),
    ],
)
def test_what_cannot_be_a_population(arguments, error, message):
    with pytest.raises(error, match=message):
        nbbp.Population(**{"network": plain(), "loss": "mse"} | arguments)


def test_what_cannot_be_trained_on_changes_nothing(tmp_path):
    X, y = data_of("mse", "float32")
    population = nbbp.Population(plain(), "mse", size=2)
    before = [member.parameter_vector.tobytes() for member in population]
    mapped = np.memmap(tmp_path / "X", np.float32, "w+", shape=X.shape)
    for call, error, message in (
        (lambda: population.fit([(X, y)], verbose=0), TypeError, "X must be an array in memory"),
        (lambda: population.fit(mapped, y, verbose=0), TypeError, "X must be an array in memory"),
        (lambda: population.fit(X[:, 1:], y, verbose=0), ValueError, "X has 4 features per sample"),
        (lambda: population.fit(X, y, epochs=0), ValueError, "epochs must be at least 1"),
        (lambda: population.fit(X, y, verbose=2), ValueError, "verbose must be 'auto', 0 or 1"),
        (lambda: population.fit(X, y, shuffle="yes"), TypeError, "shuffle must be True or False"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    assert before == [member.parameter_vector.tobytes() for member in population]
    population[1].parameter_vector[0] = np.nan
    with pytest.raises(ValueError, match=r"parameter 0\.weight"):
        population.fit(X, y, verbose=0)
    assert population[0]._session.step == 0


def test_a_bar_counts_the_epochs_of_all(capsys):
    X, y = data_of("mse", "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nbbp.Population(plain(), "mse", size=5).fit(X, y, epochs=4, verbose=1)
    assert "20.0/20.0" in capsys.readouterr().err


MEMORY = """
import json, os
import numpy as np
from numba.core.runtime import rtsys
import nbbp

nbbp.set_num_threads(2)
net = nbbp.Sequential([nbbp.Dense(16, activation="tanh"), nbbp.Dense(1)], n_in=8)
X = np.random.default_rng(0).standard_normal((256, 8)).astype("f4")
population = nbbp.Population(net, "mse", learning_rate=np.logspace(-4, -2, 20))

def allocations(epochs):
    before = rtsys.get_allocation_stats().alloc
    population.fit(X, X[:, :1], epochs=epochs, validation_data=(X, X[:, :1]), verbose=0)
    return rtsys.get_allocation_stats().alloc - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

for _ in range(2):
    allocations(500)
begin = resident()
counts = [allocations(epochs) for epochs in (2, 500, 500, 500)]
print(json.dumps([counts, resident() - begin]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_epoch_allocates_and_memory_is_flat():
    variables = {**os.environ, "NUMBA_NRT_STATS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], env=variables, capture_output=True, text=True, check=True, timeout=120
    )
    counts, growth = json.loads(done.stdout)
    assert len(set(counts)) == 1
    assert growth < 1 << 20
