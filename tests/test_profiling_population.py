"""The measurement of populations in its smallest setting: it validates, and its table holds what it measured."""

import json

import nbbp
from nbbp.cpu import engine
from profiling import population


def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", 2)
    population.main(["--quick", "--output", str(tmp_path)])
    assert nbbp.get_num_threads() == 2
    text = (tmp_path / "population.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    results = json.loads((tmp_path / "population.json").read_text(encoding="utf-8"))
    assert set(results["epoch_seconds"]) == {"1", "2"}
    step, seconds = results["one_network_step_seconds"], results["epoch_seconds"]["2"]
    ratio, busy = seconds / (20 * 32 * step / 2), results["processor_seconds"]["2"] / (20 * 32 * step)
    assert f"| 2 threads | {seconds:.4f} | {ratio:.2f} | {busy:.2f} | ≤ 1.1 |" in text
