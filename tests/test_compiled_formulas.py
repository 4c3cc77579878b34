"""Formulas in jitted code: found by their keys, as vectors on the CPU, and on CUDA."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError
from test_functions import assert_float32_vectors, elementwise, inlined

from nbbp.autodiff import trace
from nbbp.scalars.activations import activation_derivative, activation_value
from nbbp.scalars.custom import activation_formula, loss_formula
from nbbp.scalars.differentiation import derivative
from nbbp.scalars.losses import loss_derivative, loss_value
from nbbp.scalars.simplification import simplify

VECTORS = {
    "silu": lambda z: z / (1 + np.exp(-z)),
    "waves": lambda z: np.sin(3 * z) + np.cos(z) ** 2,
    "powers": lambda z: abs(z) ** 2.5 + z**3 - 1 / (1 + z**2),
    "selects": lambda z: np.where(z > 1, np.log(z), np.minimum(np.maximum(z - 1, -z), 3)),
    "everything": lambda z: np.tanh(z) * np.log(1 + np.exp(z)) + np.sqrt(1 + z * z) / (2 + np.sign(z)),
}


@pytest.mark.parametrize("name", VECTORS)
def test_loops_over_formulas_are_vectors_without_float64(name):
    value = simplify(trace(VECTORS[name], 1))
    code = activation_formula(name, value, derivative(value)).code
    assert_vectors(elementwise(inlined(lambda x, alpha: activation_value(code, x, alpha)), 2), name)
    assert_vectors(elementwise(inlined(lambda x, alpha: activation_derivative(code, x, alpha)), 2), name)


def assert_vectors(loop, name):
    if name == "everything":  # its square root is a call for the numbers left over
        loop.compile("f4[::1], f4[::1], f4[::1]")
        assert re.search(r"store <\d+ x float>", next(iter(loop.inspect_llvm().values())))
    else:
        assert_float32_vectors(loop, 2)


def test_codes_are_keys_in_jitted_code_and_in_python():
    value = simplify(trace(lambda z: z * np.sin(z), 1))
    formula = activation_formula("wavy", value, derivative(value))
    code = formula.code
    x = np.float64(0.7)
    expected = x * np.sin(x), np.sin(x) + x * np.cos(x)
    compiled = njit(lambda x: (activation_value(code, x, x), activation_derivative(code, x, x)))
    np.testing.assert_allclose(compiled(x), expected, rtol=1e-15)
    in_python = activation_value(code, x, x), activation_derivative(code, x, x)
    np.testing.assert_allclose(in_python, expected, rtol=1e-15)
    assert formula.derivative_of == "input"

    value = simplify(trace(lambda p, t: (p - t) ** 4, 2))
    code = loss_formula("quartic", value, derivative(value)).code
    compiled = njit(lambda p, t: (loss_value(code, p, t, p), loss_derivative(code, p, t, p)))
    np.testing.assert_allclose(compiled(3.0, 1.0), (16.0, 32.0))
    assert (loss_value(code, 3.0, 1.0, 0.0), loss_derivative(code, 3.0, 1.0, 0.0)) == (16.0, 32.0)


def test_a_key_is_that_of_the_content():
    value = simplify(trace(lambda z: z * 2.5, 1))
    slope = derivative(value)
    first, second = activation_formula("a", value, slope), activation_formula("b", value, slope)
    assert first.code == second.code
    assert first.value is second.value
    other = simplify(trace(lambda z: z * 2.5000000000000004, 1))
    assert activation_formula("a", other, slope).code != first.code
    assert activation_formula("a", value, value).code != first.code
    assert re.fullmatch("[0-9a-f]{32}-(input|output)", first.code)


def test_an_unknown_key_is_an_error_that_explains():
    with pytest.raises(ValueError, match=r"no formula 'nothing' in this process: make it first, with nbbp.activation"):
        activation_value("nothing", 1.0, 0.0)
    with pytest.raises(TypingError, match="no formula 'nothing' in this process"):
        njit(lambda x: activation_value("nothing", x, x))(1.0)


@pytest.mark.parametrize("by", ["function", "code"])
def test_formulas_compile_for_cuda(by, monkeypatch):
    """To PTX, which needs no GPU: in float32 throughout, with no calls."""
    pytest.importorskip("numba_cuda")
    from numba import cuda, types
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv.error import NvvmSupportError

    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
    value = simplify(trace(lambda z: np.where(z > 0, z / (1 + np.exp(-z)), np.sin(z) * np.sqrt(1 + z * z)), 1))
    formula = activation_formula("on the GPU", value, derivative(value))
    code = formula.code
    if by == "function":
        f, g = (cuda.jit(device=True, inline="always")(part) for part in (formula.value, formula.derivative))

        def kernel(x, out):
            i = cuda.grid(1)
            if i < out.size:
                out[i] = f(x[i], x[i]) + g(x[i], x[i])
    else:

        def kernel(x, out):
            i = cuda.grid(1)
            if i < out.size:
                out[i] = activation_value(code, x[i], x[i]) + activation_derivative(code, x[i], x[i])

    try:
        ptx, _ = cuda.compile_ptx(kernel, (types.float32[::1], types.float32[::1]), cc=(9, 0))
    except NvvmSupportError:
        pytest.skip("NVIDIA's compiler is not installed")
    assert ".f32" in ptx
    assert ".f64" not in ptx
    assert "call.uni" not in ptx
