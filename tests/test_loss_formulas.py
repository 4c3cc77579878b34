"""Loss terms: values and derivatives against SciPy, PyTorch and differences, in both dtypes."""

import numpy as np
import pytest
import reference
from numba import njit
from numba.core.errors import TypingError
from test_functions import assert_float32_vectors, elementwise, evaluate, inlined

from nbbp.scalars.losses import LOSSES, loss_derivative, loss_value

DTYPES = [np.float32, np.float64]
CASES = [
    ("mse", 0.0),
    ("mae", 0.0),
    ("huber", 1.0),
    ("huber", 0.25),
    ("log_cosh", 0.0),
    ("binary_crossentropy", 0.0),
    ("hinge", 0.0),
    ("poisson", 1.0),
    ("poisson", 0.0),
]
NAMES = [name for name, entry in LOSSES.items() if not entry.row_wise]


def value_loop(name):
    code = LOSSES[name].code
    return elementwise(inlined(lambda p, t, parameter: loss_value(code, p, t, parameter)), 3)


def derivative_loop(name):
    code = LOSSES[name].code
    return elementwise(inlined(lambda p, t, parameter: loss_derivative(code, p, t, parameter)), 3)


LOOPS = {name: (value_loop(name), derivative_loop(name)) for name in NAMES}


def run(name, p, t, parameter):
    arguments = (p, t, np.full_like(p, parameter))
    return tuple(evaluate(loop, *arguments) for loop in LOOPS[name])


def data(name, parameter, dtype, n=4000):
    """Outputs and targets that suit the loss."""
    random = np.random.default_rng(5)
    p = random.normal(size=n) * 4
    t = random.normal(size=n) * 4
    if name == "binary_crossentropy":
        t = random.choice([0.0, 1.0, 0.3, 0.95], n)
    elif name == "hinge":
        t = random.choice([-1.0, 1.0], n)
    elif name == "poisson":
        t = random.poisson(3.0, n).astype(np.float64)
        p = p if parameter else np.abs(p) + 0.1
    if name != "poisson":
        p[: n // 20] = t[: n // 20]
    return p.astype(dtype), t.astype(dtype)


def oracle(name, p, t, parameter):
    settings = {"huber": {"delta": parameter}, "poisson": {"log_input": bool(parameter)}}.get(name, {})
    return reference.loss_terms(name, p.astype(np.float64), t.astype(np.float64), **settings)


def test_codes_are_positions():
    assert list(LOSSES) == [entry.name for entry in LOSSES.values()]
    assert [entry.code for entry in LOSSES.values()] == list(range(len(LOSSES)))
    assert [name for name, entry in LOSSES.items() if entry.row_wise] == ["crossentropy", "nll"]
    for entry in LOSSES.values():
        assert (entry.value is None) == (entry.derivative is None) == entry.row_wise


def test_parameters():
    parameters = {name: (entry.parameter, entry.default) for name, entry in LOSSES.items() if entry.parameter}
    assert parameters == {"huber": ("delta", 1.0), "poisson": ("log_input", 1.0)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_oracle(name, parameter, dtype):
    p, t = data(name, parameter, dtype)
    value, derivative = run(name, p, t, parameter)
    expected, expected_derivative = oracle(name, p, t, parameter)
    eps = np.finfo(dtype).eps
    # differences of two numbers: the rounding errors are those of the numbers
    scale = np.maximum(1, np.abs(p) * np.maximum(1, np.abs(t))) + (np.exp(p) if name == "poisson" and parameter else 0)
    assert np.all(np.abs(value - expected) <= 8 * eps * np.maximum(scale, expected))
    assert np.all(np.abs(derivative - expected_derivative) <= 8 * eps * np.maximum(scale, np.abs(expected_derivative)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_pytorch(name, parameter, dtype):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    losses = {
        "mse": lambda p, t: f.mse_loss(p, t, reduction="none"),
        "mae": lambda p, t: f.l1_loss(p, t, reduction="none"),
        "huber": lambda p, t: f.huber_loss(p, t, reduction="none", delta=parameter),
        "binary_crossentropy": lambda p, t: f.binary_cross_entropy_with_logits(p, t, reduction="none"),
        "hinge": lambda p, t: torch.relu(1 - t * p),
        "poisson": lambda p, t: f.poisson_nll_loss(p, t, log_input=bool(parameter), reduction="none"),
        "log_cosh": lambda p, t: torch.log(torch.cosh(p - t)),
    }
    p, t = data(name, parameter, dtype)
    tensor = torch.tensor(p, requires_grad=True)
    expected = losses[name](tensor, torch.tensor(t))
    expected.sum().backward()
    value, derivative = run(name, p, t, parameter)
    tolerance = 64 * np.finfo(dtype).eps
    scale = np.exp(np.abs(p).max()) if name == "poisson" else 1
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=tolerance, atol=tolerance * scale)
    np.testing.assert_allclose(derivative, tensor.grad.numpy(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_derivative_is_the_slope_of_the_value(name, parameter):
    p, t = data(name, parameter, np.float64, 800)
    step = 1e-3
    far = np.ones(p.size, bool)
    for kink in {"mae": (0.0,), "huber": (-parameter, parameter)}.get(name, ()):
        far &= np.abs(p - t - kink) > 3 * step
    if name == "hinge":
        far &= np.abs(1 - t * p) > 3 * step
    p, t = p[far], t[far]

    def at(shift):
        return run(name, p + shift, t, parameter)[0]

    slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    np.testing.assert_allclose(run(name, p, t, parameter)[1], slope, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_cosh_near_zero_and_far_out(dtype):
    d = np.array([0.0, 1e-10, -1e-6, 1e-4, 1e-3, 0.02, -0.3, 1.0, 19.99, 20.01, -50.0, 1e4, 1e30], dtype)
    exact = d.astype(np.float64)
    small = np.log1p(2 * np.sinh(np.clip(exact, -1, 1) / 2) ** 2)
    large = np.abs(exact) + np.log1p(np.exp(-2 * np.abs(exact))) - np.log(2)
    value, _ = run("log_cosh", d, np.zeros_like(d), 0.0)
    np.testing.assert_allclose(value, np.where(np.abs(d) < 0.5, small, large), rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_crossentropy_is_stable(dtype):
    p = np.array([1e4, -1e4, 1e4, -1e4, 30.0, -30.0, 80.0], dtype)
    t = np.array([1, 0, 0, 1, 1, 0, 1], dtype)
    value, derivative = run("binary_crossentropy", p, t, 0.0)
    expected = [0.0, 0.0, 1e4, 1e4, np.log1p(np.exp(-30.0)), np.log1p(np.exp(-30.0)), np.exp(-80.0)]
    np.testing.assert_allclose(value, expected, rtol=8 * np.finfo(dtype).eps)
    expected = [0.0, 0.0, 1.0, -1.0, -np.exp(-30.0), np.exp(-30.0), 0.0]
    np.testing.assert_allclose(derivative, expected, atol=np.finfo(dtype).eps)


def test_kinks():
    one, zero = np.ones(1), np.zeros(1)
    assert run("mae", one, one, 0.0)[1] == 0.0
    assert run("hinge", one, one, 0.0)[1] == 0.0
    assert run("huber", one, zero, 1.0)[1] == 1.0
    assert run("huber", -one, zero, 1.0)[1] == -1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_nan_is_seen(name, parameter, dtype):
    nan, one = np.full(1, np.nan, dtype), np.ones(1, dtype)
    assert np.isnan(run(name, nan, one, parameter)[0])
    assert np.isnan(run(name, one, nan, parameter)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_python_and_compiled_agree(name, parameter, dtype):
    entry = LOSSES[name]
    p, t = data(name, parameter, dtype, 40)
    value, derivative = run(name, p, t, parameter)
    tolerance = 16 * float(np.finfo(dtype).eps) * max(1.0, float(np.exp(p.max())))
    for i in range(p.size):
        for stub, formula, compiled in (
            (loss_value, entry.value, value[i]),
            (loss_derivative, entry.derivative, derivative[i]),
        ):
            result = stub(entry.code, p[i], t[i], dtype(parameter))
            assert type(result) is dtype
            assert result == formula(p[i], t[i], dtype(parameter))
            assert result == pytest.approx(compiled, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_loops_are_vectors_without_float64(name):
    for loop in LOOPS[name]:
        assert_float32_vectors(loop, 3)


def test_codes_without_a_formula_are_errors():
    code = LOSSES["crossentropy"].code
    with pytest.raises(ValueError, match="loss_value has no formula for code"):
        loss_value(code, 1.0, 1.0, 0.0)
    with pytest.raises(TypingError, match="loss_derivative has no formula for code"):
        njit(lambda p: loss_derivative(code, p, p, p))(1.0)
