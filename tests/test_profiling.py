"""The measurements themselves: their arithmetic, reference and tables, and one small run of the whole."""

import importlib
import json
import sys

import numpy as np
import pytest

import nbbp
from nbbp.cpu import engine
from profiling import cases, custom_formulas, machine, report, sample_engine, scalar_graph, train_step
from profiling.cases import CASES, Case, initial_parameters, reference_losses, training_data
from profiling.peers import PEERS
from profiling.peers.worker import PeerError, Worker

SMALL = Case((3, 5, 2), 4, 8, 1.0)
TANH = Case((3, 7, 5, 4), 8, 6, 1.0, activation="tanh")


def results(peers=("nbbp", "pytorch"), threads=("1", "2")):
    timed = {
        peer: {"minimum": 2.0 * 10**i, "median": 3.0 * 10**i, "steps": 5, "runs": [2.0 * 10**i]}
        for i, peer in enumerate(peers)
    }
    return {
        "machine": {
            "cpu": "a processor",
            "cores": 2,
            "system": "a system",
            "git_revision": "abc",
            "versions": {"python": "3"},
        },
        "threads": {n: {"sgemm": {"SciPy": 100.0}, "rows": {CASES[0].name: timed}} for n in threads},
        "calls": {"nbbp": {"step_from_python": 3.5, "run": 2.0, "predict_one": 1.0}},
        "digits": {
            "nbbp": {"minimum": 0.01, "median": 0.02, "accuracy": 0.98},
            "scikit-learn": {"minimum": 0.2, "median": 0.3, "accuracy": 0.97},
        },
    }


def test_flops_counts_two_products_in_the_first_layer_and_three_in_the_others():
    assert SMALL.flops == 4 * 4 * 15 + 6 * 4 * 10
    assert SMALL.n_parameters == 15 + 5 + 10 + 2


def test_data_and_parameters_are_the_same_in_every_process():
    for first, second in zip(initial_parameters(SMALL), initial_parameters(SMALL), strict=True):
        np.testing.assert_array_equal(first, second)
    (x, y), (x_again, y_again) = training_data(SMALL), training_data(SMALL)
    np.testing.assert_array_equal(x, x_again)
    np.testing.assert_array_equal(y, y_again)
    assert x.dtype == np.float32
    assert x.shape == (32, 3)
    assert set(y) == {0, 1}


def test_a_case_is_named_by_all_that_it_is():
    assert SMALL.name == SMALL.plain_name == "3-5-2 b4"
    assert TANH.name == "3-7-5-4 b8 tanh"
    layered = Case((3, 5, 2), 4, 8, 1.0, cases.LAYER_NORM, "tanh")
    assert (layered.plain_name, layered.name) == ("3-5-2 b4 tanh", "3-5-2 b4 tanh layer norm")
    assert len({case.name for case in CASES}) == len(CASES)


def test_reference_learns():
    losses = reference_losses(SMALL, initial_parameters(SMALL), *training_data(SMALL, 400), 400)
    assert np.mean(losses[-50:]) < 0.9 * np.mean(losses[:50])


def test_reference_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    parameters = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in initial_parameters(SMALL)]
    optimizer = torch.optim.Adam(parameters, lr=cases.LEARNING_RATE)
    x, y = training_data(SMALL)
    losses = []
    for i in range(SMALL.n_steps):
        rows = slice(i * SMALL.batch, (i + 1) * SMALL.batch)
        hidden = torch.relu(torch.tensor(x[rows], dtype=torch.float64) @ parameters[0] + parameters[1])
        loss = torch.nn.functional.cross_entropy(hidden @ parameters[2] + parameters[3], torch.tensor(y[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(
        reference_losses(SMALL, initial_parameters(SMALL), x, y, SMALL.n_steps), losses, rtol=1e-12
    )


def peer_of(name):
    module, class_name = PEERS[name]
    try:
        return getattr(importlib.import_module(module), class_name)(1)
    except ImportError:
        pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("peer", ["nbbp", "numpy", "pytorch", "scikit-learn"])
def test_reference_with_tanh_agrees_with_peers(peer, monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", None)
    data = initial_parameters(TANH), *training_data(TANH)
    served = peer_of(peer)
    served.load(TANH, *data)
    losses = served.losses(6)
    np.testing.assert_allclose(losses, reference_losses(TANH, *data, 6), rtol=1e-5)
    log_probabilities = cases.reference_log_probabilities(TANH, data[0], data[1][:8])
    np.testing.assert_allclose(-log_probabilities[np.arange(8), data[2][:8]].mean(), losses[0], rtol=1e-5)
    assert served.run(3) > 0.0


@pytest.mark.parametrize("layer", [cases.DROPOUT, cases.BATCH_NORM, cases.LAYER_NORM])
@pytest.mark.parametrize("peer", ["nbbp", "pytorch"])
def test_reference_with_layers_agrees_with_peers(peer, layer, monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", None)
    case = Case((3, 7, 5, 2), 8, 6, 1.0, layer)
    data = initial_parameters(case), *training_data(case)
    served = peer_of(peer)
    served.load(case, *data)
    np.testing.assert_allclose(served.losses(6), reference_losses(case, *data, 6), rtol=1e-5)
    assert served.run(3) > 0.0


def test_a_peer_that_computes_something_else_is_not_timed():
    class Wrong:
        peer = "wrong"

        def __call__(self, method, n):
            assert method == "losses"
            return [1.0] * n

    train_step.validate(SMALL, Wrong(), [1.0005, 0.9995])
    with pytest.raises(PeerError, match="wrong"):
        train_step.validate(SMALL, Wrong(), [1.0, 1.002])

    class Diverged(Wrong):
        def __call__(self, method, n):
            return [float("nan")] * n

    with pytest.raises(PeerError):
        train_step.validate(SMALL, Diverged(), [1.0])


@pytest.mark.parametrize(
    ("n_steps", "least", "seconds", "expected"), [(100, 4, 0.5, 64), (100, 4, 0.0, 4), (100, 1, 0.0, 1), (3, 4, 9.0, 3)]
)
def test_a_run_has_as_many_steps_as_fit_but_never_more_than_batches(n_steps, least, seconds, expected):
    asked = []

    def worker(method, n):  # a step of 1/128 s
        asked.append((method, n))
        return n / 128

    case = Case((3, 5, 2), 4, n_steps, 1.0)
    assert train_step.steps_within(worker, case, seconds, least) == expected
    assert all(1 <= n <= n_steps for _, n in asked)
    assert [n for method, n in asked if method == "compile"] == [n for method, n in asked if method == "run"]


def test_tables_hold_the_figures(tmp_path):
    text = report.text(results())
    assert "0.0198" in text  # 1,984 operations at 100 GFLOP/s
    assert "20.0 (10.0×)" in text
    assert "10.00 times as fast as pytorch; wanted 2.20: reached" in text
    assert "two threads 1.00 times as fast as one" in text
    assert "3.50 µs, 1.50 µs over the step" in text
    assert "15.0 times as fast as scikit-learn" in text
    table = report.markdown(results())
    assert f"| {CASES[0].name} |" in table
    pytest.importorskip("matplotlib")
    files = report.write(results(), tmp_path / "new")
    assert [file.name for file in files] == ["train_step.json", "train_step.md", "train_step.png"]
    assert json.loads(files[0].read_text(encoding="utf-8")) == results()
    assert all(file.stat().st_size for file in files)


def test_a_row_with_two_goals_has_two_verdicts():
    case = next(case for case in CASES if case.rate_goal)
    assert case.name == "4-32-16-4 b10000 tanh"
    floor = case.flops / 100e3  # µs at 100 GFLOP/s
    times = {"nbbp": floor / 0.295, "pytorch": floor, "jax-scan": 3.5 * floor / 0.295}
    measured = {peer: {"minimum": time, "median": time} for peer, time in times.items()}
    threads = {"1": {"sgemm": {"SciPy": 100.0}, "rows": {case.name: measured}}}
    assert report.goals({"threads": threads}) == [
        f"{case.name}: 3.50 times as fast as jax-scan; wanted 3.00: reached",
        f"{case.name}: 29.5 % of the best sgemm rate in its matrix products; wanted 30 %: missed",
    ]
    measured["nbbp"]["minimum"], measured["jax-scan"] = floor / 0.31, measured["nbbp"]
    missed, reached = report.goals({"threads": threads})
    assert missed.endswith("1.00 times as fast as jax-scan; wanted 3.00: missed")
    assert reached.endswith("31.0 % of the best sgemm rate in its matrix products; wanted 30 %: reached")
    del measured["jax-scan"]
    assert report.goals({"threads": threads}) == [reached]


def test_a_busy_second_core_is_reported():
    assert "2 threads: the cores were not free" in report.text(results())
    free = results()
    free["threads"]["2"]["sgemm"]["SciPy"] = 190.0
    assert "were not free" not in report.markdown(free)


def test_tables_without_nbbp_or_without_anyone(tmp_path):
    bare = results(peers=("jax-scan",), threads=("1",))
    del bare["calls"], bare["digits"]
    assert "jax-scan" in report.text(bare)
    assert report.noise(results(peers=())) == (0.0, 0.0)
    assert report.text(results(peers=()))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.4123, "0.412"),
        (0.0105, "0.0105"),
        (65.31, "65.3"),
        (200.4, "200"),
        (999.7, "1,000"),
        (28_512, "28,500"),
    ],
)
def test_microseconds_have_three_digits(value, expected):
    assert report.microseconds(value) == expected


@pytest.mark.parametrize("arguments", [["--rows", str(len(CASES) + 1)], ["--peers", "abacus"], ["--threads", "0"]])
def test_wrong_arguments_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        train_step.parse(arguments)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_machine_is_described():
    description = machine.describe()
    assert description["cpu"]
    assert description["cores"] >= 1
    assert {"python", "numba", "numpy", "scipy"} <= description["versions"].keys()
    assert description["git_revision"]


def test_caches_grow_with_their_level():
    caches = machine.caches()
    assert list(caches) == sorted(caches)
    assert list(caches.values()) == sorted(caches.values())
    assert all(1 << 12 <= size < 1 << 31 for size in caches.values())


def test_an_error_in_a_peer_comes_back_with_its_traceback():
    with Worker("nbbp", 1) as worker:
        assert worker("start").startswith("nbbp ")
        with pytest.raises(PeerError, match="no_such_method"):
            worker("no_such_method")


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_every_installed_peer_passes_validation(peer, tmp_path):
    with Worker(peer, 1) as worker:
        if worker("start") is None:
            pytest.skip(f"{peer} is not installed")
        for case in (SMALL, TANH):
            row = train_step.time_case(case, {peer: worker}, tmp_path, repeats=1, seconds=0.001)
            assert row[peer]["minimum"] > 0


@pytest.mark.slow
def test_losses_of_the_scan_that_is_timed_are_those_of_one_compiled_for_them(tmp_path):
    train_step.save_case(tmp_path / "case.npz", initial_parameters(TANH), *training_data(TANH))
    with Worker("jax-scan", 1) as worker:
        if worker("start") is None:
            pytest.skip("JAX is not installed")
        worker.load(TANH, tmp_path / "case.npz")
        alone = worker("losses", 3)
        worker("compile", 6)
        worker("run", 6)
        assert worker("losses", 3) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_the_whole_script(tmp_path, capsys):
    arguments = ["--quick", "--rows", "1", "--threads", "1", "--peers", "nbbp", "--output", str(tmp_path)]
    assert train_step.main(arguments) == 0
    assert CASES[0].name in capsys.readouterr().out
    measured = json.loads((tmp_path / "train_step.json").read_text(encoding="utf-8"))
    assert measured["threads"]["1"]["rows"][CASES[0].name]["nbbp"]["minimum"] > 0
    assert measured["calls"]["nbbp"]["predict_one"] > 0


@pytest.mark.slow
def test_the_script_of_the_sample_engine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample_engine.py", "--quick", "--output", str(tmp_path)])
    monkeypatch.setattr(sample_engine, "keep_to_cores", lambda n_threads: None)
    monkeypatch.setattr(sample_engine, "ROWS", dict(list(sample_engine.ROWS.items())[:4]))
    sample_engine.main()
    assert "4-16-16-2: forward, backward, Adam" in capsys.readouterr().out
    measured = json.loads((tmp_path / "sample_engine.json").read_text(encoding="utf-8"))
    assert all(row["nanoseconds"] > 0 for row in measured["rows"].values())
    assert measured["compile_seconds"]["cached"] < measured["compile_seconds"]["cold"]
    assert (tmp_path / "sample_engine.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_function_of_the_sample_engine_is_not_timed(monkeypatch):
    model = sample_engine.make_model((3, 4, 2), False, "SGD")
    sample_engine.validate(model)
    monkeypatch.setattr(sample_engine, "reference", lambda model, x, y: (np.zeros(2), np.zeros(26)))
    with pytest.raises(AssertionError):
        sample_engine.validate(model)


@pytest.mark.slow
def test_custom_formulas_are_validated_and_timed(capsys, monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", engine._n_threads)  # set anew in there, and put back
    results = custom_formulas.main(["--quick"])
    assert set(results) == {"silu, forward", "silu, backward", "squared error", "training step"}
    for row in results.values():
        assert 0 < row["built in"] < 1e5
        assert row["custom"] / row["built in"] < 2 * custom_formulas.WANTED, "measured 0.9 to 1.0"
    assert "ratio" in capsys.readouterr().out


def test_a_custom_formula_that_computes_something_else_is_not_timed():
    wrong = nbbp.activation(lambda z: z / (1 + np.exp(-1.01 * z)))
    with pytest.raises(AssertionError):
        custom_formulas.activation_run(wrong, "forward")
    wrong_loss = nbbp.loss(lambda p, t: 1.01 * (p - t) ** 2)
    with pytest.raises(AssertionError):
        custom_formulas.loss_run(wrong_loss)


def test_scalar_graphs_are_validated_and_timed(capsys):
    results = scalar_graph.main(["--nodes", "20000", "--quick"])
    assert set(results) == set(scalar_graph.GRAPHS)
    for row in results.values():
        assert row["nodes"] >= 200
        assert min(row["build"], row["forward"], row["backward"]) > 0
    assert "both ms" in capsys.readouterr().out
