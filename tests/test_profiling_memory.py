"""The measurement of memory in its smallest setting, and what it says of workspaces."""

import json

import pytest

from profiling import memory
from profiling.cases import CASES, Case


@pytest.mark.slow
def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "WATCHED", ((CASES[0], 640),))
    monkeypatch.setattr(memory, "QUICK_DEEP", (8, 128, 256))
    monkeypatch.setattr(memory, "SECONDS", 0.2)
    assert memory.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert len(results["over_steps"][CASES[0].name]["resident"]) == memory.QUICK_LOOKS
    assert abs(memory.growth(results["over_steps"][CASES[0].name])) < 1024
    without, with_checkpoints = results["checkpointing"]
    assert (without["every"], with_checkpoints["every"]) == memory.QUICK_EVERY
    assert with_checkpoints["bytes"] < 0.8 * without["bytes"], "measured 0.6"
    assert with_checkpoints["digest"] == without["digest"]
    assert min(row["seconds"] for row in results["checkpointing"]) > 0
    assert "8 layers of 128 at batch 256" in capsys.readouterr().out
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("case", memory.PLAIN, ids=lambda case: case.name)
def test_parts_of_a_workspace_add_up(case):
    row = memory.workspace(case)
    parts = ("activations", "gradients on the way back", "gradient of the parameters", "padding")
    assert sum(row[part] for part in parts) == row["all"]
    assert all(row[part] >= 0 for part in parts)
    assert row["least"] <= row["all"]


def test_least_of_a_deep_network():
    assert memory.least_of((64, 1, 1), None) == 4 * (65 + 2)
    assert memory.least_of((64, 1, 1), 8) == 4 * (8 + 8 + 2)
    assert memory.least_of((10, 3, 5), 4) == 4 * 15 * (3 + 4 + 2)


def test_wrong_losses_are_not_measured(monkeypatch):
    case = Case((3, 5, 2), 4, 2, 1.0)
    memory.validated(case, 1)
    monkeypatch.setattr(memory, "reference_losses", lambda *arguments: [1.0, 1.0])
    with pytest.raises(AssertionError):
        memory.validated(case)
