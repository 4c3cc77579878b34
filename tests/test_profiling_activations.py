"""The measurement of activations in its smallest setting, and that it holds what it times to its reference."""

import json

import numpy as np
import pytest
import reference_functions

from profiling import activation_formulas, activations
from profiling.activation_formulas import NAMES


def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(activations, "QUICK", ("relu", "tanh"))
    assert activations.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "activations.json").read_text(encoding="utf-8"))
    assert set(results["rows"]) == set(activations.WHATS)
    for rows in results["rows"].values():
        assert set(rows) == {"relu", "tanh"}
        for row in rows.values():
            assert tuple(row) == activations.VARIANTS
            assert all(0 < each["ns"] <= each["ns_median"] for each in row.values())
        assert all(each["ulp"] == 0 for each in rows["relu"].values())
    tanh = results["rows"]["value"]["tanh"]
    assert 0.3 < tanh["nbbp, vectorised"]["ulp"] < 2.6
    printed = capsys.readouterr().out
    assert f"{tanh['libm']['ns'] / tanh['nbbp, vectorised']['ns']:.1f}× as fast" in printed
    assert (tmp_path / "activations.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_its_reference_is_that_of_the_tests(name):
    z = np.linspace(-10, 10, 2001) + 1e-3
    value = activation_formulas.reference(name, "value", z)
    parameter = reference_functions.default_parameter(name, None)
    np.testing.assert_allclose(value, reference_functions.VALUES[name](z, parameter), rtol=1e-12, atol=1e-15)
    kept = value if activations.ACTIVATIONS[name].derivative_of == "output" else z
    derivative = activation_formulas.reference(name, "derivative", kept)
    np.testing.assert_allclose(derivative, reference_functions.DERIVATIVES[name](z, parameter), rtol=1e-7, atol=1e-12)


def test_numpy_formulas_keep_float32():
    z = np.linspace(-3, 3, 7, dtype=np.float32)
    for name in NAMES:
        for what in activations.WHATS:
            assert activation_formulas.in_numpy(name, what)(z).dtype == np.float32, (name, what)


def test_a_wrong_variant_is_not_timed(monkeypatch):
    monkeypatch.setitem(activation_formulas.VALUES, "relu", lambda z: np.maximum(z, 0) + z.dtype.type(1e-4))
    monkeypatch.setitem(activation_formulas.EXACT, ("relu", "value"), lambda z: np.maximum(z, 0))
    with pytest.raises(AssertionError, match="NumPy: value of relu"):
        activations.measure_one("relu", "value", 0.001, 100)


def test_errors_are_counted_in_the_last_place():
    exact = np.array([1.0, 4.0, 1e-6])
    assert activations.error(np.array([1.0 + 2.0**-23, 4.0, 1e-6]), exact) == 1.0
    assert activations.error(np.array([1.0, 4.0 - 2.0**-20, 1e-6]), exact) == 2.0
    assert activations.error(np.array([1.0, 4.0, 0.0]), exact) == pytest.approx(1e-6 / 2.0**-33)


def test_numbers_are_taken_one_by_one():
    loop = activations.one_by_one(activations.nbbp_formula("tanh", "value"))
    x, y = np.linspace(-1, 1, 5, dtype=np.float32), np.zeros(5, np.float32)
    x[3] = np.nan
    loop(x, y, np.float32(0))
    np.testing.assert_allclose(y[:3], np.tanh(x[:3]), rtol=1e-6)
    assert np.isnan(y[3])
    assert y[4] == 0, "the loop goes on behind the number that ends it"
    code = next(iter(loop.inspect_llvm().values()))
    assert "x float> @llvm.fma" not in code
    assert "x float> %" not in code
