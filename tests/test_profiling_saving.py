"""The measurement of saving in its smallest setting: it validates, and its table holds what it measured."""

import json

import pytest

from profiling import saving


def test_smallest_setting(tmp_path, capsys):
    saving.main(["--quick", "--folder", str(tmp_path), "--output", str(tmp_path / "results")])
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    text = (tmp_path / "results" / "saving.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    results = json.loads((tmp_path / "results" / "saving.json").read_text(encoding="utf-8"))
    assert results["parameters"] == 400
    assert results["bytes"] > 3 * 400 * 4
    least, median = results["minimum"], results["median"]
    assert all(0.0 < least[name] <= median[name] for name in ("save", "write", "load", "read"))
    assert f"| {least['save'] / least['write']:.2f}× | {median['save'] / median['write']:.2f}× |" in text


def test_a_file_of_another_model_does_not_pass(tmp_path, monkeypatch):
    model, other = saving.trained(5), saving.trained(5)
    other._session.slots[1][3] += 1.0
    monkeypatch.setattr(model, "save", other.save)
    with pytest.raises(AssertionError):
        saving.validate(model, tmp_path / "m")
