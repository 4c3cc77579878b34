"""The measurement of a dense layer in its smallest setting, and that every way of it is the same computation."""

import json
import math

import numpy as np
import pytest

from profiling import dense_layer, dense_layer_picture, loop_vs_vectorized


@pytest.mark.parametrize("shape", [(1, 3), (17, 17), (600, 20), (40, 260)])
@pytest.mark.parametrize("way", dense_layer.WAYS)
def test_every_way_is_the_same_computation(way, shape, monkeypatch):
    monkeypatch.setattr(dense_layer, "CALL", 0.0)  # one step
    arrays = dense_layer.operands(*shape)
    made = dense_layer.WAYS[way](*arrays)
    made.run()
    for came, right in zip(made.results(), dense_layer.reference(*arrays), strict=True):
        np.testing.assert_allclose(came, right, rtol=1e-4, atol=2e-5 * math.sqrt(max(shape)))


def test_a_wrong_way_is_not_timed(monkeypatch):
    class Wrong(dense_layer.NumPy):
        def results(self):
            out, *gradients = super().results()
            return out + np.float32(0.01), *gradients

    monkeypatch.setitem(dense_layer.WAYS, "NumPy", Wrong)
    with pytest.raises(AssertionError, match="NumPy, 2 × 3"):
        dense_layer.time_shapes([(2, 3)], ["NumPy", "engine"], 1.0, 0.0, 1)


def test_slow_ways_are_left_out_where_they_would_take_too_long():
    small, large = dense_layer.time_shapes([(2, 4), (64, 16)], ["loops", "Python loops", "engine"], 1e-4, 0.0, 1)
    assert tuple(small["ways"]) == ("loops", "Python loops", "engine")
    assert tuple(large["ways"]) == ("loops", "engine")
    assert 0 < large["ways"]["engine"]["minimum"] <= large["ways"]["engine"]["median"]


def shape(engine, fused, batch=64, width=16, plan="alone", threads=1):
    ways = {
        name: {"minimum": 1e-6 * us, "median": 1e-6 * us, "repeats": 1}
        for name, us in (("vectorized", 3.0), ("fused", fused), ("engine", engine))
    }
    return {"batch": batch, "width": width, "plan": plan, "threads": threads, "ways": ways}


def test_what_a_wrong_choice_costs():
    good, bad = shape(1.0, 2.0), shape(2.5, 2.0, batch=1)
    assert dense_layer_picture.fastest(good) == "fused"
    assert dense_layer_picture.loss(good) == pytest.approx(-0.5)
    assert dense_layer_picture.loss(bad) == pytest.approx(0.25)
    assert dense_layer_picture.over_floor(good, 100.0) == pytest.approx(1e-6 / (6 * 64 * 16**2 / 1e11))
    assert "at most 0 %" in loop_vs_vectorized.verdict([good])
    assert "1 of 2 shapes: width 16, batch 1: 25 % (fused)" in loop_vs_vectorized.verdict([good, bad])


def test_the_best_of_a_row_is_bold(tmp_path):
    shapes = [shape(1.0, 2.0), shape(2.5, 2.0, width=64, plan="wide", threads=2)]
    results = {"by_threads": {"2": {"sgemm": {"SciPy": 100.0, "JAX": 50.0}, "shapes": shapes}}}
    text = loop_vs_vectorized.table(results)
    assert "| 16, 64 | – | 3.00 | 2.00 | – | **1.00** | alone, 1 thread | -50 % |" in text
    assert "| 64, 64 | – | 3.00 | **2.00** | – | 2.50 | wide, 2 threads | +25 % |" in text
    assert "2 threads: 100." in text
    loop_vs_vectorized.draw(results, tmp_path / "maps.png")
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop_vs_vectorized.machine, "sgemm_rates", lambda n_threads: {"SciPy": 100.0})
    monkeypatch.setattr(loop_vs_vectorized, "QUICK_BATCHES", (1, 8))
    monkeypatch.setattr(loop_vs_vectorized, "QUICK_WIDTHS", (4, 20))
    assert loop_vs_vectorized.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "loop_vs_vectorized.json").read_text(encoding="utf-8"))
    shapes = results["by_threads"]["1"]["shapes"]
    assert [(each["width"], each["batch"]) for each in shapes] == [(4, 1), (4, 8), (20, 1), (20, 8)]
    assert all(tuple(each["ways"]) == loop_vs_vectorized.ALONE for each in shapes)
    assert all(each["threads"] == 1 for each in shapes)
    assert "| 20, 8 |" in capsys.readouterr().out
    assert (tmp_path / "loop_vs_vectorized.png").read_bytes().startswith(b"\x89PNG")
