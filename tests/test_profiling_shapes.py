"""The map of shapes in its smallest setting: libraries are validated, and shapes left out or lost are named."""

import json

import numpy as np
import pytest

from profiling import shapes
from profiling.cases import initial_parameters, reference_losses, training_data
from profiling.peers.worker import PeerError


def shape(width, batch, nbbp, **others):
    seconds = {"nbbp": nbbp, **{peer.replace("_", "-"): time for peer, time in others.items()}}
    return {"width": width, "batch": batch, "peers": {peer: {"minimum": time} for peer, time in seconds.items()}}


AHEAD = shape(4, 1, 3e-7, pytorch=2e-4, jax_scan=1.2e-6)
CLOSE = shape(64, 256, 1.00e-4, pytorch=3e-4, jax_scan=0.96e-4)
BEHIND = shape(1024, 16, 6e-3, pytorch=4.5e-3, jax_scan=7e-3)
WORST = shape(4096, 1, 0.15, pytorch=0.06, jax_scan=0.1)


class Fake:
    """A worker that gives these losses and takes this long for a step."""

    def __init__(self, peer, losses=(), step=0.01):
        self.peer, self.given, self.step, self.asked = peer, list(losses), step, []

    def load(self, case, file):
        self.asked.append("load")

    def __call__(self, method, n):
        self.asked.append((method, n))
        return {"losses": self.given[:n], "run": n * self.step, "step_from_python": self.step / 2}.get(method)


def test_width_1_has_two_classes_and_every_case_enough_batches():
    assert shapes.case_of(1, 16).sizes == (1, 1, 2)
    assert shapes.case_of(64, 16).sizes == (64, 64, 64)
    for width in shapes.WIDTHS:
        for batch in shapes.BATCHES:
            case = shapes.case_of(width, batch)
            assert case.n_steps >= shapes.n_compared(case) >= 2, "an update is compared"
            most = max(shapes.MOST_NUMBERS, shapes.n_compared(case) * batch * (width + 1))
            assert case.n_steps * batch * (width + 1) <= most


def test_a_library_that_computes_something_else_is_left_out_and_nbbp_must_not(tmp_path, capsys):
    case = shapes.case_of(3, 2)
    right = reference_losses(case, initial_parameters(case), *training_data(case), 5)
    wrong = [1.002 * loss for loss in right]
    steps = shapes.prepare(
        case, {"nbbp": Fake("nbbp", right), "pytorch": Fake("pytorch", wrong)}, tmp_path / "case.npz", right
    )
    assert steps == {"nbbp": int(shapes.RUN / 0.01)}
    assert "pytorch: losses" in capsys.readouterr().err
    with pytest.raises(PeerError, match="nbbp"):
        shapes.prepare(case, {"nbbp": Fake("nbbp", wrong)}, tmp_path / "case.npz", right)
    shapes.validate(case, Fake("nbbp", [0.5e-5]), [1e-6])  # a loss near 0
    with pytest.raises(PeerError):
        shapes.validate(case, Fake("nbbp", [np.nan]), [1e-6])


def test_the_scan_is_compiled_once_for_as_many_steps_as_nbbp_makes(tmp_path):
    case, losses = shapes.case_of(3, 2), [0.5] * 5
    workers = {"nbbp": Fake("nbbp", losses, step=0.01), "jax-scan": Fake("jax-scan", losses)}
    steps = shapes.prepare(case, workers, tmp_path / "case.npz", losses)
    assert steps["jax-scan"] == steps["nbbp"] == 4
    assert workers["jax-scan"].asked == ["load", ("compile", 4), ("losses", 5)]


def test_runs_take_turns_and_the_least_is_kept():
    nbbp, other = Fake("nbbp", step=0.2), Fake("pytorch", step=0.1)
    case, steps = shapes.case_of(3, 2), {"nbbp": 2, "pytorch": 1}
    timed = shapes.time_runs(case, {"nbbp": nbbp, "pytorch": other}, steps, seconds=0.6, settling=0.0)
    assert timed["nbbp"] == {"minimum": 0.2, "median": 0.2, "steps": 2, "repeats": shapes.LEAST_TURNS}
    assert other.asked == [("run", 1)] * shapes.LEAST_TURNS
    often = shapes.time_runs(case, {"nbbp": nbbp}, {"nbbp": 1}, seconds=0.95, settling=0.0)
    assert often["nbbp"]["repeats"] == 5


def test_the_start_of_a_fit_does_not_count_as_a_step_of_a_large_network():
    large, small = shapes.case_of(1024, 4), shapes.case_of(256, 4096)
    nbbp, other = Fake("nbbp", step=0.2), Fake("pytorch", step=0.1)
    assert shapes.seconds_per_step(large, nbbp, 3) == 0.1
    assert shapes.seconds_per_step(small, nbbp, 3) == pytest.approx(0.2)
    assert shapes.seconds_per_step(large, other, 3) == pytest.approx(0.1)
    assert nbbp.asked == [("step_from_python", 3), ("run", 3)]


def test_times_are_expected_from_the_batches_before():
    timed = [shape(64, 4, 1.0), shape(256, 1, 0.5), shape(256, 4, 0.8)]
    assert shapes.expected_seconds(timed, 256, 16) == pytest.approx(2.0)
    assert shapes.expected_seconds(timed, 64, 16) == shapes.expected_seconds(timed, 4096, 1) == 0.0


def test_ratio_is_that_of_the_fastest_other():
    assert shapes.fastest_other(BEHIND) == "pytorch"
    assert shapes.ratio(BEHIND) == pytest.approx(0.75)
    assert shapes.ratio(AHEAD) == pytest.approx(4.0)
    assert shapes.fastest_other(shape(4, 1, 1.0)) is None
    assert np.isnan(shapes.ratio(shape(4, 1, 1.0)))


def test_the_verdict_names_the_slower_shapes_the_worst_first_and_noise_apart():
    assert shapes.verdict([AHEAD, CLOSE, BEHIND, WORST]) == (
        "nbbp is slower than another library on 3 of 4 shapes. By more than 5 %, ratio and library: "
        "width 4096, batch 1: 0.40 (pytorch); width 1024, batch 16: 0.75 (pytorch). "
        "By no more than noise: width 64, batch 256: 0.96 (jax-scan)."
    )
    assert shapes.verdict([AHEAD, CLOSE]) == (
        "nbbp is slower than another library on 1 of 2 shapes. By no more than noise: "
        "width 64, batch 256: 0.96 (jax-scan)."
    )
    assert shapes.verdict([AHEAD, shape(1, 1, 1.0)]) == (
        "nbbp is the fastest on all 1 shapes, least so on width 4, batch 1: 4.00 (jax-scan)."
    )
    assert shapes.verdict([shape(1, 1, 1.0)]) == "no other library was there to compare with."


def test_table_and_map_hold_the_figures_and_what_is_left_out(tmp_path):
    long = {"width": 4096, "batch": 4096, "why": shapes.TOO_LONG, "seconds": 4.81}
    single = {"shapes": [AHEAD, CLOSE, BEHIND, WORST], "left_out": [long]}
    short = shapes.too_short(single["shapes"])
    assert [(each["width"], each["batch"]) for each in short] == [(4, 1)]
    several = {"shapes": [BEHIND, shape(4096, 1, 0.15)], "left_out": [*short, long]}
    results = {"by_threads": {"1": single, "2": several}}
    text = shapes.table(results)
    assert "| 1 thread: width, batch | nbbp | pytorch | jax-scan | fastest other ÷ nbbp |" in text
    assert "| 4, 1 | 0.300 | 200 | 1.20 | 4.00× |" in text
    assert "| 1,024, 16 | 6,000 | 4,500 | 7,000 | **0.75×** |" in text
    assert "| 4,096, 1 | 150,000 | – | – | – |" in text
    assert "1 thread: nbbp is slower than another library on 3 of 4 shapes." in text
    assert "2 threads: nbbp is slower than another library on 1 of 1 shapes." in text
    assert text.count("Left out, since a step would take more than 2 s: width 4096, batch 4096: some 4.8 s.") == 2
    assert "Left out: 1 shape of less than 50 µs on one thread, too short to share." in text
    pytest.importorskip("matplotlib")
    shapes.draw(results, tmp_path / "maps.png")
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shapes, "COMPARED", ("nbbp", "jax-scan"))
    monkeypatch.setattr(shapes, "WIDTHS", (1, 3))
    monkeypatch.setattr(shapes, "BATCHES", (1, 2))
    monkeypatch.setattr(shapes, "SECONDS", 0.0)
    monkeypatch.setattr(shapes, "RUN", 0.001)
    monkeypatch.setattr(shapes.question, "n_cores", lambda: 2)
    expected = shapes.expected_seconds
    monkeypatch.setattr(shapes, "expected_seconds", lambda t, w, b: 9.0 if (w, b) == (3, 2) else expected(t, w, b))
    monkeypatch.setattr(
        shapes, "too_short", lambda timed: [{**timed[0], "why": shapes.TOO_SHORT, "seconds": 1e-6, "peers": None}]
    )
    assert shapes.main(["--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "shapes.json").read_text(encoding="utf-8"))
    single, several = (results["by_threads"][n] for n in ("1", "2"))
    assert [(s["width"], s["batch"]) for s in single["shapes"]] == [(1, 1), (1, 2), (3, 1)]
    assert [(s["width"], s["batch"]) for s in several["shapes"]] == [(1, 2), (3, 1)]
    assert [each["why"] for each in several["left_out"]] == [shapes.TOO_SHORT, shapes.TOO_LONG]
    for each in (*single["shapes"], *several["shapes"]):
        assert {"nbbp"} <= set(each["peers"]) <= set(shapes.COMPARED)
        assert all(0 < t["minimum"] <= t["median"] and t["repeats"] == 3 for t in each["peers"].values())
    text = capsys.readouterr().out
    assert "| 3, 1 |" in text
    assert "width 3, batch 2: some 9.0 s" in text
    assert (tmp_path / "shapes.png").read_bytes().startswith(b"\x89PNG")
