"""The comparison with other libraries in its smallest setting; outputs are held against the reference first."""

import importlib
import json

import numpy as np
import pytest

from nbbp.cpu import engine
from profiling import cases, report
from profiling.cases import Case, initial_parameters, reference_log_probabilities, reference_losses, training_data
from profiling.peers import PEERS, SLOW_TO_START, WITHOUT_INFERENCE, __main__
from profiling.peers.worker import PeerError, Worker

SMALL = Case((3, 7, 5, 2), 8, 6, 1.0)


def test_numpy_trains_as_the_reference():
    served = importlib.import_module("profiling.peers.numpy_peer").NumPy(1)
    data = initial_parameters(SMALL), *training_data(SMALL)
    served.load(SMALL, *data)
    np.testing.assert_allclose(served.losses(6), reference_losses(SMALL, *data, 6), rtol=1e-5)
    np.testing.assert_allclose(served.losses(2), reference_losses(SMALL, *data, 2), rtol=1e-5)
    assert served.run(3) > 0


@pytest.mark.parametrize("peer", ["nbbp", "numpy", "pytorch", "scikit-learn"])
def test_outputs_are_those_of_the_reference(peer, monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", None)
    module, name = PEERS[peer]
    try:
        served = getattr(importlib.import_module(module), name)(1)
    except ImportError:
        pytest.skip(f"{peer} is not installed")
    case = Case((3, 7, 5, 4), 8, 6, 1.0)
    parameters, (x, y) = initial_parameters(case), training_data(case)
    served.load(case, parameters, x, y)
    given = cases.log_softmax(np.array(served.outputs(5), np.float64))
    np.testing.assert_allclose(given, reference_log_probabilities(case, parameters, x[:5]), rtol=1e-5, atol=1e-6)
    assert served.infer(3, 2) > 0


def test_reference_outputs_are_log_probabilities_and_explain_the_loss():
    parameters, (x, y) = initial_parameters(SMALL), training_data(SMALL)
    given = reference_log_probabilities(SMALL, parameters, x[:8])
    np.testing.assert_allclose(np.exp(given).sum(axis=1), 1.0)
    loss = -given[np.arange(8), y[:8]].mean()
    np.testing.assert_allclose(loss, reference_losses(SMALL, parameters, x, y, 1)[0])


def test_wrong_outputs_are_not_timed():
    parameters, (x, _) = initial_parameters(SMALL), training_data(SMALL)
    right = reference_log_probabilities(SMALL, parameters, x[: __main__.N_COMPARED])

    class Given:
        peer = "given"

        def __init__(self, outputs):
            self.outputs = outputs

        def __call__(self, method, n):
            assert (method, n) == ("outputs", __main__.N_COMPARED)
            return self.outputs.tolist()

    __main__.validate_outputs(SMALL, Given(right + 3.0), parameters, x)  # logits may be moved
    with pytest.raises(PeerError, match="given"):
        __main__.validate_outputs(SMALL, Given(1.01 * right), parameters, x)
    with pytest.raises(PeerError):
        __main__.validate_outputs(SMALL, Given(np.nan * right), parameters, x)


@pytest.mark.slow
@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer not in (*WITHOUT_INFERENCE, *SLOW_TO_START)])
def test_every_installed_peer_predicts(peer, tmp_path):
    with Worker(peer, 1) as worker:
        if worker("start") is None:
            pytest.skip(f"{peer} is not installed")
        timed = __main__.time_inference(SMALL, {peer: worker}, tmp_path, (1, 17), repeats=1, seconds=0.001)
    assert list(timed) == ["3-7-5-2, 1 row", "3-7-5-2, 17 rows"]
    assert all(row[peer]["minimum"] > 0 for row in timed.values())


@pytest.mark.slow
def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(__main__, "PEERS", {name: PEERS[name] for name in ("nbbp", "numpy")})
    monkeypatch.setattr(__main__, "QUICK_TRAINED", cases.CASES[:1])
    monkeypatch.setattr(__main__, "QUICK_PREDICTING", (SMALL,))
    monkeypatch.setattr(__main__.machine, "sgemm_rates", lambda n_threads: {"SciPy": 100.0})
    assert __main__.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    (measured,) = results["measured"].values()
    assert set(measured["rows"][cases.CASES[0].name]) == {"nbbp", "numpy"}
    assert set(measured["inference"]["3-7-5-2, 32 rows"]) == {"nbbp", "numpy"}
    text = capsys.readouterr().out
    assert "Training, µs per step, 1 thread" in text
    assert "| 3-7-5-2, 1 row |" in text
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_tables_without_a_peer():
    timed = {"minimum": 2.0, "median": 3.0}
    rows = {cases.CASES[0].name: {"numpy": timed}}
    measured = {"sgemm": {"SciPy": 100.0}, "rows": rows, "inference": {"a network": {"nbbp": timed, "numpy": timed}}}
    text = __main__.table({"measured": {"2": measured}})
    assert "2 threads" in text
    assert "| a network | 2.00 | 2.00 (1.00×) |" in text
    assert report.threads_in_words("1") == "1 thread"
