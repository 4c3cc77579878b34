"""Functions that only formulas call: sine, cosine, square root and power."""

import re

import numpy as np
import pytest
from numba import float64, types
from test_functions import (
    ALLOWANCE,
    EDGES,
    LONG_DOUBLE,
    assert_float32_vectors,
    elementwise,
    errors_in_ulp,
    evaluate,
    inlined,
    machine_independent_code,
)

from nbbp.scalars import circular, powers

FUNCTIONS = {"sin": circular.sin, "cos": circular.cos, "sqrt": powers.sqrt}
REFERENCES = {"sin": np.sin, "cos": np.cos, "sqrt": np.sqrt}
LOOPS = {name: elementwise(function, 1) for name, function in FUNCTIONS.items()}
POWER = elementwise(inlined(lambda x, y: powers.power(x, y)), 2)
#: Where the errors that sine and cosine state hold.
RANGES = {np.float32: 1e4, np.float64: 1e7}


def stated_error(name, dtype):
    [errors] = re.findall(r"Largest error: ([\d.]+) ulp in float32, ([\d.]+) ulp", FUNCTIONS[name].__doc__)
    return float(errors[np.dtype(dtype).itemsize // 8])


def samples(name, dtype, n):
    random = np.random.default_rng(7)
    if name == "sqrt":
        return np.abs(random.standard_normal(n) * 10.0 ** random.uniform(-30, 30, n)).astype(dtype)
    limit = RANGES[dtype]
    near_zeros = np.arange(0, limit / np.pi, max(1, limit / np.pi / n)).round() * np.pi / 2
    small = 10 ** random.uniform(-30, 0, n)
    parts = [random.uniform(-limit, limit, n), random.uniform(-7, 7, n), small, -small, near_zeros[near_zeros <= limit]]
    return np.concatenate(parts).astype(dtype)


@pytest.fixture(autouse=True)
def _silent_numpy():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=LONG_DOUBLE)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_largest_error(name, dtype):
    x = samples(name, dtype, 1_000_000 if dtype is np.float32 else 200_000)
    exact = REFERENCES[name](x.astype(np.float64 if dtype is np.float32 else np.longdouble))
    errors = errors_in_ulp(evaluate(LOOPS[name], x), exact, dtype)
    worst = int(np.argmax(errors))
    assert errors[worst] <= stated_error(name, dtype) + ALLOWANCE, (x[worst], errors[worst])
    assert errors[worst] >= 0.8 * stated_error(name, dtype), "a smaller error can be stated"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("sin", [0.0, -0.0, np.inf, -np.inf, np.nan], [0.0, 0.0, np.nan, np.nan, np.nan]),
        ("cos", [0.0, -0.0, np.inf, -np.inf, np.nan], [1.0, 1.0, np.nan, np.nan, np.nan]),
        ("sqrt", [0.0, -0.0, 4.0, np.inf, -np.inf, -1.0, np.nan], [0.0, 0.0, 2.0, np.inf, np.nan, np.nan, np.nan]),
    ],
)
def test_special_cases(name, x, expected, dtype):
    expected = np.array(expected, dtype)
    np.testing.assert_array_equal(evaluate(LOOPS[name], np.array(x, dtype)), expected)
    np.testing.assert_array_equal([FUNCTIONS[name](dtype(value)) for value in x], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_waves_stay_between_their_bounds(name, dtype):
    random = np.random.default_rng(8)
    huge = 10 ** random.uniform(0, 38, 100_000)
    x = np.concatenate([huge, -huge, np.arange(-3000, 3000) * np.pi / 2, [np.finfo(dtype).max]]).astype(dtype)
    y = evaluate(LOOPS[name], x)
    assert np.abs(y).max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power(dtype):
    x = np.array([*np.linspace(-5, 5, 41), *EDGES], dtype)
    y = np.array([-3, -2.5, -2, -1, -0.5, 0, 0.3, 1, 2, 2.5, 3, 7], dtype)
    x, y = (np.ascontiguousarray(a.ravel()) for a in np.meshgrid(x, y))
    expected = np.power(x.astype(np.float64), y.astype(np.float64))
    expected[(x == -np.inf) & (y % 1 != 0)] = np.nan
    expected = expected.astype(dtype).astype(np.float64)
    got = evaluate(POWER, x, y)
    tiny = np.finfo(dtype).tiny
    flushed = (np.abs(expected) < 2 * tiny) | ((np.abs(x) < tiny) & (x != 0))
    # the sign of a zero is not kept, so neither is that of its reciprocal
    got, expected = (np.where(x == 0, np.abs(a), a) for a in (got, expected))
    got, expected, size = got[~flushed], expected[~flushed], np.abs(y * np.log(np.abs(x)))[~flushed]
    places = (got - expected) / expected / np.finfo(dtype).eps / (1 + size)
    assert np.abs(places[np.isfinite(places)]).max() < 3
    ordinary = np.isfinite(expected) & (expected != 0)
    np.testing.assert_array_equal(got[~ordinary], expected[~ordinary])
    assert np.isfinite(got[ordinary]).all()
    assert np.isnan(got).any()
    from_python = [powers.power(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(from_python, evaluate(POWER, x, y), rtol=400 * np.finfo(dtype).eps)


def test_loops_are_vectors_without_float64():
    for name in ("sin", "cos"):
        assert_float32_vectors(LOOPS[name], 1)
    # the numbers that are left over at the end of the loop take sqrtf
    code = machine_independent_code(LOOPS["sqrt"], 1)
    assert "double" not in code
    assert re.search(r"call [^\n]*<\d+ x float> @llvm.sqrt", code)
    assert_float32_vectors(POWER, 2)


@pytest.mark.skipif(ALLOWANCE > 0, reason="on a CPU this old, vectors of two float64 do not always pay")
def test_float64_loops_are_vectors_too():
    for name, loop in LOOPS.items():
        signature = (types.Array(float64, 1, "C"),) * 2
        loop.compile(signature)
        assert re.search(r"store <\d+ x double>", loop.inspect_llvm(signature)), name
