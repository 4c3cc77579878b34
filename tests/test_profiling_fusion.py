"""The measurement of what fusing saves in its smallest setting; both sides of every pair compute the same."""

import json

import numpy as np
import pytest

from profiling import fusion
from profiling.fusion import FUSED, UNFUSED

SIZES = [(1, 3, 17), (17, 16, 5), (70, 20, 300)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_both_sides_compute_the_same(size):
    layer = fusion.Layer(*size)
    outputs = {
        how: fusion.single_ops.inside(fusion.forward(layer, how, how), "y", layer.n_out).copy()
        for how in (FUSED, UNFUSED)
    }
    np.testing.assert_allclose(outputs[FUSED], outputs[UNFUSED], rtol=1e-5, atol=1e-6)
    assert (outputs[FUSED] == 0).any()
    gradients = [fusion.single_ops.inside(fusion.loss(layer, how), "d_x", layer.n_out) for how in (FUSED, UNFUSED)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)
    parameters = [fusion.update(layer, how).buffer("parameters") for how in (FUSED, UNFUSED)]
    np.testing.assert_allclose(*parameters, rtol=1e-6)
    fusion.input_gradient(layer)


@pytest.mark.parametrize("part", [lambda layer: fusion.forward(layer, FUSED, None), fusion.input_gradient])
def test_a_wrong_kernel_is_not_timed(part, monkeypatch):
    layer = fusion.Layer(4, 3, 5)
    wide = layer.wide
    monkeypatch.setattr(layer, "wide", lambda: [1.001 * each for each in wide()])
    with pytest.raises(AssertionError):
        part(layer)


def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fusion, "SHAPES", SIZES[:2])
    assert fusion.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "fusion.json").read_text(encoding="utf-8"))
    assert [tuple(shape[key] for key in ("batch", "n_in", "n_out")) for shape in results["shapes"]] == SIZES[:2]
    for shape in results["shapes"]:
        assert tuple(shape["parts"]) == fusion.PARTS
        assert all(value > 0 for part in shape["parts"].values() for value in part.values())
        assert not shape["engine_fuses_update"]
        assert shape["step"] > shape["parts"]["update"][FUSED]
    assert "| 3 → 17, batch 1 |" in capsys.readouterr().out
    assert (tmp_path / "fusion.png").read_bytes().startswith(b"\x89PNG")


def test_shares_are_of_the_step_with_nothing_fused():
    parts = {part: {FUSED: 2.0, UNFUSED: 2.5} for part in fusion.PARTS}
    parts["bias"] = {FUSED: 1.0, UNFUSED: 0.5}
    shape = {"batch": 1, "n_in": 2, "n_out": 3, "parts": parts, "step": 9.0, "engine_fuses_update": False}
    assert fusion.shares(shape) == {"bias": -5.0, "activation": 5.0, "loss": 5.0, "update": 5.0}
    text = fusion.table({"shapes": [shape]})
    assert "| 2 → 3, batch 1 | 0.500 → 1.00 (-5.0 %) |" in text
    assert "2.50 → 2.00* (+5.0 %) | 9.00 (+10.0 %) |" in text
