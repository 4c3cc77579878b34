"""The measurement of where time goes in its smallest setting; what is profiled is validated first."""

import json

import pytest

from nbbp.cpu import engine
from profiling import where_time_goes
from profiling.cases import CASES, Case

SMALL = Case((3, 5, 2), 4, 8, 1.0)


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", engine._n_threads)


def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(where_time_goes, "SHAPES", (SMALL, Case((2, 3), 1, 8, 1.0)))
    monkeypatch.setattr(where_time_goes, "SECONDS", 0.1)
    assert where_time_goes.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "where_time_goes.json").read_text(encoding="utf-8"))
    assert list(results["shapes"]) == [SMALL.name, "2-3 b1"]
    row = results["shapes"][SMALL.name]
    assert sum(op["share"] for op in row["ops"]) == pytest.approx(1.0)
    per_step = 1e6 * sum(op["seconds"] for op in row["ops"]) / row["steps"]
    assert row["microseconds"] == pytest.approx(per_step)
    assert {"gather", "forward", "loss", "backward", "weight gradients", "update"} == {op["phase"] for op in row["ops"]}
    text = capsys.readouterr().out
    assert "| 3-5-2 b4 |" in text
    assert "- 3-5-2 b4: " in text
    assert (tmp_path / "where_time_goes.png").read_bytes().startswith(b"\x89PNG")


def test_five_shapes_of_the_peers():
    assert len(where_time_goes.SHAPES) == 5
    assert set(where_time_goes.SHAPES) < set(CASES)


def test_wrong_losses_are_not_profiled(monkeypatch):
    where_time_goes.validate(SMALL)
    monkeypatch.setattr(where_time_goes, "reference_losses", lambda *arguments: [1.0] * 5)
    with pytest.raises(AssertionError):
        where_time_goes.validate(SMALL)
