"""The measurement of importing and compiling in its smallest setting."""

import json

import pytest

from profiling import compile_time


@pytest.mark.slow
def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compile_time, "QUICK_KERNELS", ("copy_out", "snapshot"))
    assert compile_time.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "compile_time.json").read_text(encoding="utf-8"))
    cold, cached = results["first_fit"]["cold"], results["first_fit"]["cached"]
    assert list(cold) == ["import", "first fit", "second fit"]
    assert cached["first fit"] < 0.5 * cold["first fit"], "measured 0.05"
    assert {name for name, *_ in results["kernels"]["cold"]} == {"copy_out", "snapshot"}
    assert set(results["import"]) == {*compile_time.PACKAGES, "Python"}
    assert all(seconds > 0 for seconds in results["import"].values())
    assert results["cache"]["files"] >= 4
    assert 0 < results["cache"]["bytes"] < results["cache"]["bytes_of_first_fit"]
    text = capsys.readouterr().out
    assert "| copy_out | 1 |" in text
    assert "| all | 2 |" in text
    assert (tmp_path / "compile_time.png").read_bytes().startswith(b"\x89PNG")


def test_kernels_are_added_up_over_their_variants():
    cold = [["one", "0", 1.0], ["two", "0", 3.0], ["one", "1", 1.5]]
    cached = [["one", "0", 0.1], ["two", "0", 0.3], ["one", "1", 0.1]]
    sums = compile_time.by_kernel({"kernels": {"cold": cold, "cached": cached}})
    assert list(sums.items()) == [("two", (1, 3.0, 0.3)), ("one", (2, 2.5, 0.2))]
