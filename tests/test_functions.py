"""Functions of one number: their largest errors, their special cases, and that loops over them are vectors."""

import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from numba import float32, float64, njit, types
from numba.core.errors import TypingError
from scipy import special

from nbbp.scalars import functions

NAMES = functions.__all__

# float64 formulas that NumPy and SciPy compute without loss; for float64 results they run in long double.
REFERENCES = {
    "erf": special.erf,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log1p_of_exp": lambda x: np.log1p(np.exp(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "tanh": np.tanh,
}

EDGES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-40, -1e-40, 2.0**-126, 1e-8, 3.4e38, -3.4e38]
EDGES += [88.7228, 88.7229, 88.73, -87.3365, -87.3366, -104.0, 104.0, np.inf, -np.inf, np.nan]

LONG_DOUBLE = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than double")


def elementwise(call, arguments):
    """Compile ``for i: out[i] = call(arguments[0][i], ...)`` for arrays of one dtype; the code is in `source`."""
    names = [f"a{number}" for number in range(arguments)]
    lines = [
        f"def loop({', '.join(names)}, out):",
        "    for i in range(out.size):",
        f"        out[i] = call({', '.join(name + '[i]' for name in names)})",
    ]
    namespace = {"call": call}
    exec("\n".join(lines), namespace)
    return njit(namespace["loop"])


def inlined(function):
    """Compile a function of scalars that disappears into its caller."""
    return njit(error_model="numpy", forceinline=True)(function)


def evaluate(loop, *arguments):
    """Return what the loop writes, in the dtype of its arguments."""
    out = np.empty_like(arguments[0])
    loop(*arguments, out)
    return out


def machine_independent_code(loop, arguments):
    """Return LLVM's optimised code of the loop itself for float32 arrays, without its wrapper for Python."""
    signature = (types.Array(float32, 1, "C"),) * (arguments + 1)
    loop.compile(signature)
    [code] = re.findall(r"^define [^\n]*@_ZN(?!7cpython)[^\n]*\{\n.*?^\}", loop.inspect_llvm(signature), re.M | re.S)
    return code


def assert_float32_vectors(loop, arguments):
    """No float64 anywhere, no function called, and the loop stores vectors of float32."""
    code = machine_independent_code(loop, arguments)
    assert "double" not in code
    assert re.search(r"store <\d+ x float>", code)
    called = set(re.findall(r"call [^\n]*@([\w.]+)\(", code))
    assert all(name.startswith("llvm.") for name in called), called
    assert not any(re.match(r"llvm\.(exp|log|tanh|pow|sin|cos)", name) for name in called), called


LOOPS = {name: elementwise(getattr(functions, name), 1) for name in NAMES}


def stated_error(name, dtype):
    text = getattr(functions, name).__doc__
    [errors] = re.findall(r"Largest error: ([\d.]+) ulp in float32, ([\d.]+) ulp in float64", text)
    return float(errors[np.dtype(dtype).itemsize // 8])


@njit(fastmath={"contract"})
def rounding_error_of_square(x, square):
    """Return x**2 - square: 0 if x**2 is rounded first, and not where the CPU has fused multiply-adds."""
    return x * x - square


# Without fused multiply-adds errors may be larger by half a unit in the last place.
ALLOWANCE = 0.0 if rounding_error_of_square(1 + 2.0**-30, 1 + 2.0**-29) else 0.5


def errors_in_ulp(y, exact, dtype):
    """Errors of y, in the last place of the exact results that are normal numbers; 0 elsewhere."""
    information = np.finfo(dtype)
    normal = (np.abs(exact) >= information.tiny) & (np.abs(exact) <= information.max)
    exact = np.where(normal, exact, 1)
    place = np.spacing(np.abs(exact).astype(dtype)).astype(exact.dtype)
    return np.where(normal, np.abs(np.where(normal, y, 1) - exact) / place, 0)


def assert_results(name, x, exact):
    """The largest error is the stated one; beyond the normal numbers come 0, inf and NaN as they should."""
    dtype = x.dtype
    information = np.finfo(dtype)
    y = evaluate(LOOPS[name], x)
    errors = errors_in_ulp(y, exact, dtype)
    worst = int(np.argmax(errors))
    assert errors[worst] <= stated_error(name, dtype) + ALLOWANCE, f"{name}({x[worst]!r}) = {y[worst]!r}"
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    tiny = np.abs(exact) < information.tiny
    assert np.all(np.abs(y[tiny] - exact[tiny]) <= information.tiny)
    past = np.abs(exact) > information.max * (1 + information.eps)
    np.testing.assert_array_equal(y[past], np.sign(exact[past]) * np.inf)


def samples(name, dtype, random, n):
    """Random bit patterns (so: all magnitudes), and more of the numbers where something happens."""
    integers = {np.float32: np.int32, np.float64: np.int64}[dtype]
    limits = np.iinfo(integers)
    parts = [
        random.integers(limits.min, limits.max, n, integers, endpoint=True).view(dtype),
        random.uniform(-20, 20, n).astype(dtype),
        random.uniform(-1, 1, n).astype(dtype),
        random.uniform(-105, 90, n // 2).astype(dtype),
        random.normal(1.0, 1e-3, n // 2).astype(dtype),
        np.array(EDGES, dtype),
    ]
    x = np.concatenate(parts)
    return -np.abs(x) if name == "log1p_of_exp" else x


@pytest.fixture(autouse=True)
def _silent_numpy():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_largest_error_float32(name):
    x = samples(name, np.float32, np.random.default_rng(1), 1_000_000)
    assert_results(name, x, REFERENCES[name](x.astype(np.float64)))


@LONG_DOUBLE
@pytest.mark.parametrize("name", [name for name in NAMES if name != "erf"])
def test_largest_error_float64(name):
    random = np.random.default_rng(2)
    x = np.concatenate([samples(name, np.float64, random, 200_000), random.uniform(-745, 0, 100_000)])
    assert_results(name, x, REFERENCES[name](x.astype(np.longdouble)))


@LONG_DOUBLE
def test_largest_error_erf_float64():
    mpmath = pytest.importorskip("mpmath")
    random = np.random.default_rng(3)
    x = np.concatenate(
        [random.uniform(-6.5, 6.5, 10_000), random.uniform(-1, 1, 5_000), 10 ** random.uniform(-300, 1, 500)]
    )
    with mpmath.workprec(80):
        exact = np.array([np.longdouble(mpmath.nstr(mpmath.erf(mpmath.mpf(float(value))), 25)) for value in x])
    assert_results("erf", x, exact)
    np.testing.assert_array_equal(evaluate(LOOPS["erf"], np.array(EDGES))[-3:], [1.0, -1.0, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        (
            "exp",
            [0.0, -0.0, np.inf, -np.inf, np.nan, 1e4, -1e4],
            [1.0, 1.0, np.inf, 0.0, np.nan, np.inf, 0.0],
        ),
        (
            "expm1",
            [0.0, -0.0, np.inf, -np.inf, np.nan, 1e4, -1e4],
            [0.0, 0.0, np.inf, -1.0, np.nan, np.inf, -1.0],
        ),
        (
            "log",
            [1.0, 0.0, -0.0, np.inf, -np.inf, np.nan, -1e-30],
            [0.0, -np.inf, -np.inf, np.inf] + 3 * [np.nan],
        ),
        (
            "log1p",
            [0.0, -0.0, -1.0, np.inf, -np.inf, np.nan, -1.5],
            [0.0, 0.0, -np.inf, np.inf] + 3 * [np.nan],
        ),
        ("log1p_of_exp", [-np.inf, np.nan, -1e4], [0.0, np.nan, 0.0]),
        ("tanh", [0.0, -0.0, np.inf, -np.inf, np.nan, 1e4, -1e4], [0.0, 0.0, 1.0, -1.0, np.nan, 1.0, -1.0]),
        ("erf", [0.0, -0.0, np.inf, -np.inf, np.nan, 1e4, -1e4], [0.0, 0.0, 1.0, -1.0, np.nan, 1.0, -1.0]),
        ("sigmoid", [0.0, np.inf, -np.inf, np.nan, 1e4, -1e4], [0.5, 1.0, 0.0, np.nan, 1.0, 0.0]),
        ("softplus", [np.inf, -np.inf, np.nan, 1e4, -1e4], [np.inf, 0.0, np.nan, 1e4, 0.0]),
    ],
)
def test_special_cases(name, x, expected, dtype):
    np.testing.assert_array_equal(evaluate(LOOPS[name], np.array(x, dtype)), np.array(expected, dtype))
    from_python = [getattr(functions, name)(dtype(value)) for value in x]
    np.testing.assert_array_equal(from_python, np.array(expected, dtype))


def test_no_result_is_denormal():
    x = np.linspace(-105, -85, 100_001)
    for dtype, values in ((np.float32, x), (np.float64, 8 * x - 20)):
        for name in ("exp", "softplus"):
            y = evaluate(LOOPS[name], values.astype(dtype))
            assert np.all((y == 0) | (y >= np.finfo(dtype).tiny))
            assert np.any(y == 0)
            assert np.any(y > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranges(dtype):
    x = np.linspace(-30, 30, 200_001).astype(dtype)
    for name, lowest in (("tanh", -1), ("erf", -1), ("sigmoid", 0)):
        y = evaluate(LOOPS[name], x)
        assert y.min() >= lowest
        assert y.max() <= 1
    for name in ("tanh", "erf"):
        np.testing.assert_array_equal(evaluate(LOOPS[name], -x), -evaluate(LOOPS[name], x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_python_and_compiled_agree(name, dtype):
    x = np.concatenate([np.linspace(-9.7, 9.3, 301), EDGES]).astype(dtype)
    x = -np.abs(x) if name == "log1p_of_exp" else x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_python = [getattr(functions, name)(value) for value in x]
    assert all(type(value) is dtype for value in from_python)
    compiled = evaluate(LOOPS[name], x)
    # not the same bits: Python has no fused multiply-add
    np.testing.assert_allclose(from_python, compiled, rtol=6 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)


def test_python_floats_are_float64():
    assert functions.exp(1.0) == functions.exp(np.float64(1.0))
    assert type(functions.sigmoid(0.3)) is np.float64


@pytest.mark.parametrize("name", NAMES)
def test_loop_is_vectors_without_float64(name):
    assert_float32_vectors(LOOPS[name], 1)


@pytest.mark.skipif(ALLOWANCE > 0, reason="on a CPU this old, vectors of two float64 do not always pay")
def test_float64_loops_are_vectors_too():
    for name in NAMES:
        signature = (types.Array(float64, 1, "C"),) * 2
        LOOPS[name].compile(signature)
        assert re.search(r"store <\d+ x double>", LOOPS[name].inspect_llvm(signature)), name


@pytest.mark.parametrize("value", [1, np.int64(1), np.float16(1), "1", None])
def test_other_types_are_refused(value):
    with pytest.raises(TypeError, match="exp takes a float32 or float64 scalar"):
        functions.exp(value)


def test_other_types_are_refused_in_jitted_code():
    with pytest.raises(TypingError, match="exp takes a float32 or float64 scalar, got int64"):
        njit(lambda x: functions.exp(x))(1)


CACHED = """
import sys
import numpy as np
from numba import carray, cfunc, njit, types
from nbbp.scalars.activations import ACTIVATIONS, activation_derivative, activation_value
from nbbp.scalars.functions import exp
from nbbp.scalars.losses import LOSSES, loss_derivative

POINTER = types.CPointer(types.float32)

def activation_kernel(code):
    @njit(cache=True)
    def kernel(x, out):
        for i in range(x.size):
            out[i] = activation_value(code, x[i], x[i]) + activation_derivative(code, x[i], x[i])
    return kernel

def loss_kernel(code):
    @njit(cache=True)
    def kernel(x, out):
        for i in range(x.size):
            out[i] = loss_derivative(code, x[i], exp(x[i]), x[i])
    return kernel

def addressed_kernel(code):
    @cfunc(types.void(POINTER, POINTER, types.intp), cache=True)
    def kernel(x, out, n):
        for i in range(n):
            out[i] = activation_value(code, x[i], x[i])
    return kernel

hits = misses = 0
digest = 0.0
x = np.linspace(-2, 2, 9).astype(np.float32)
out = np.empty_like(x)
for make, table in ((activation_kernel, ACTIVATIONS), (loss_kernel, LOSSES)):
    for entry in table.values():
        if not entry.row_wise:
            kernel = make(entry.code)
            kernel(x, out)
            digest += out.sum(dtype=np.float64)
            hits += sum(kernel.stats.cache_hits.values())
            misses += sum(kernel.stats.cache_misses.values())
for name in ("tanh", "gelu"):
    kernel = addressed_kernel(ACTIVATIONS[name].code)
    kernel.ctypes(*(array.ctypes.data_as(kernel.ctypes.argtypes[0]) for array in (x, out)), x.size)
    digest += out.sum(dtype=np.float64)
    hits += kernel.cache_hits
    misses += 1 - kernel.cache_hits
print(hits, misses, digest)
"""


def test_kernels_that_close_over_codes_are_cached_for_the_next_process(tmp_path, monkeypatch):
    script = tmp_path / "kernels.py"
    script.write_text(CACHED)
    cache = tmp_path / "cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    answers, files = [], []
    for _ in range(2):
        finished = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
        answers.append(finished.stdout.split())
        files.append(sorted(path.name for path in cache.rglob("kernels.*")))
    (first_hits, first_misses, first), (second_hits, second_misses, second) = answers
    assert first_hits == "0"
    assert second_misses == "0"
    assert int(second_hits) == int(first_misses) > 20
    assert first == second
    assert files[0] == files[1]
