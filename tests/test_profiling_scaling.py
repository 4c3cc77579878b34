"""The measurement of threads in its smallest setting: bits are compared, and Amdahl's law is fitted."""

import json

import pytest

from nbbp import tiling
from nbbp.cpu import engine
from profiling import scaling


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", engine._n_threads)


def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tiling, "_SHARED_WORK", 100_000)
    monkeypatch.setattr(scaling, "QUICK_BATCHES", (3, 300))
    monkeypatch.setattr(scaling, "QUICK_WIDTHS", (8, 9))
    monkeypatch.setattr(scaling, "SECONDS", 0.01)
    monkeypatch.setattr(scaling, "RUN", 0.001)
    monkeypatch.setattr(scaling, "_SPINS", 1000)
    monkeypatch.setattr(scaling, "numbers_of_threads", lambda: [1, 2])
    assert scaling.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))
    assert [(s["width"], s["batch"], s["is_shared"]) for s in results["shapes"]] == [
        (8, 3, False), (8, 300, True), (9, 3, False), (9, 300, True),
    ]  # fmt: skip
    for shape in results["shapes"]:
        assert set(shape["seconds"]) == {"1", "2"}
        assert 0 <= shape["parallel_share"] <= 1
    assert results["free_cores"]["1"] == 1
    text = capsys.readouterr().out
    assert "too short to share" in text
    assert "The bits were the same for every number of threads" in text
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_amdahls_share_is_found(share):
    seconds = {n: 2.5 * (1 - share + share / n) for n in (1, 2, 3, 8)}
    assert scaling.parallel_share(seconds) == pytest.approx(share, abs=1e-3)


def test_without_a_second_thread_there_is_nothing_to_fit():
    assert scaling.parallel_share({1: 3.0}) == 0.0
    assert scaling.parallel_share({1: 1.0, 2: 1.2}) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, [1]), (3, [1, 2, 3]), (12, [*range(1, 9), 12]), (64, [*range(1, 9), 16, 32, 64])]
)
def test_numbers_of_threads(cores, expected, monkeypatch):
    monkeypatch.setattr(scaling.question, "n_cores", lambda: cores)
    assert scaling.numbers_of_threads() == expected


def test_other_bits_are_not_timed(monkeypatch):
    case, model_of = scaling.case_of(4, 5), scaling.model_of
    scaling.validate(case, [1, 2])

    moves = iter([0.0, 1e-6])

    def moved(case):
        model = model_of(case)
        model.parameter_vector[0] += next(moves)
        return model

    monkeypatch.setattr(scaling, "model_of", moved)
    with pytest.raises(AssertionError, match="other bits"):
        scaling.validate(case, [1, 2])
