"""Values, duals and the operations under them, against closed forms, central differences and PyTorch."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbbp import autodiff
from nbbp.autodiff import Dual, Value
from nbbp.scalars import operations
from nbbp.scalars.operations import OPERATIONS

# name: (points to try, function of Values, name of PyTorch's function)
UNARY = {
    "negative": ((-1.5, 0.0, 2.0), lambda x: -x, "neg"),
    "exp": ((-3.0, 0.0, 1.5), autodiff.exp, "exp"),
    "log": ((0.1, 1.0, 7.0), autodiff.log, "log"),
    "tanh": ((-2.0, 0.0, 0.7), autodiff.tanh, "tanh"),
    "relu": ((-2.0, 0.5), autodiff.relu, "relu"),
    "sigmoid": ((-4.0, 0.0, 3.0), autodiff.sigmoid, "sigmoid"),
    "sqrt": ((0.25, 2.0), autodiff.sqrt, "sqrt"),
    "sin": ((-2.0, 0.0, 1.0), autodiff.sin, "sin"),
    "cos": ((-2.0, 0.0, 1.0), autodiff.cos, "cos"),
    "absolute": ((-2.0, 3.0), abs, "abs"),
    "expm1": ((-2.0, 1e-3, 1.0), autodiff.expm1, "expm1"),
    "log1p": ((-0.5, 1e-3, 3.0), autodiff.log1p, "log1p"),
    "erf": ((-1.0, 0.0, 0.8), autodiff.erf, "erf"),
    "softplus": ((-3.0, 0.0, 4.0), autodiff.softplus, "nn.functional.softplus"),
    "sign": ((-2.0, 3.0), autodiff.sign, "sign"),
}
BINARY = {
    "add": (((1.5, -2.0),), lambda a, b: a + b, "add"),
    "subtract": (((1.5, -2.0),), lambda a, b: a - b, "subtract"),
    "multiply": (((1.5, -2.0), (0.0, 3.0)), lambda a, b: a * b, "multiply"),
    "divide": (((1.5, -2.0), (0.0, 3.0)), lambda a, b: a / b, "divide"),
    "power": (((1.5, -2.0), (2.0, 3.0), (0.3, 0.5)), lambda a, b: a**b, "pow"),
    "maximum": (((1.5, -2.0), (-1.0, 3.0)), autodiff.maximum, "maximum"),
    "minimum": (((1.5, -2.0), (-1.0, 3.0)), autodiff.minimum, "minimum"),
}
CASES = [
    pytest.param(function, point if isinstance(point, tuple) else (point,), torch_name, id=f"{name}{point}")
    for name, (points, function, torch_name) in {**UNARY, **BINARY}.items()
    for point in points
]


def by_value(function, point):
    arguments = [Value(x) for x in point]
    result = function(*arguments)
    result.backward()
    return result.data, [x.grad for x in arguments]


def by_dual(function, point):
    derivatives = []
    for k in range(len(point)):
        result = function(*(Dual(x, float(k == j)) for j, x in enumerate(point)))
        derivatives.append(result.derivative)
    return result.value, derivatives


def by_differences(function, point, step=1e-6):
    def of_numbers(*numbers):
        return function(*(Value(x) for x in numbers)).data

    derivatives = []
    for k in range(len(point)):
        up, down = list(point), list(point)
        up[k] += step
        down[k] -= step
        derivatives.append((of_numbers(*up) - of_numbers(*down)) / (2 * step))
    return of_numbers(*point), derivatives


def by_torch(name, point):
    torch = pytest.importorskip("torch")
    function = torch
    for part in name.split("."):
        function = getattr(function, part)
    arguments = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in point]
    result = function(*arguments)
    if result.requires_grad:
        result.backward()
    return result.item(), [0.0 if x.grad is None else x.grad.item() for x in arguments]


def test_codes_are_the_names_in_order():
    for code, operation in enumerate(OPERATIONS.values()):
        assert operation.code == code
        assert getattr(operations, operation.name.upper()) == code


def test_every_operation_is_tried_here():
    others = {"input", "constant", "less", "less_equal", "equal", "where"}
    assert {*UNARY, *BINARY, *others} == set(OPERATIONS)


@pytest.mark.parametrize(("function", "point", "torch_name"), CASES)
def test_operation_against_differences(function, point, torch_name):
    value, gradient = by_value(function, point)
    _, differences = by_differences(function, point)
    np.testing.assert_allclose(gradient, differences, rtol=1e-8, atol=1e-8)
    assert by_dual(function, point) == (value, gradient)


@pytest.mark.parametrize(("function", "point", "torch_name"), CASES)
def test_operation_against_pytorch(function, point, torch_name):
    expected = by_torch(torch_name, point)
    value, gradient = by_value(function, point)
    np.testing.assert_allclose(value, expected[0], rtol=1e-14)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-13)


@pytest.mark.parametrize(
    ("function", "point", "value", "gradient"),
    [
        (lambda x: x * x, (3.0,), 9.0, [6.0]),
        (lambda x: x + x, (3.0,), 6.0, [2.0]),
        (lambda x: x**3, (-2.0,), -8.0, [12.0]),
        (lambda x: 2.0**x, (3.0,), 8.0, [8.0 * math.log(2.0)]),
        (lambda x: 1 - x, (3.0,), -2.0, [-1.0]),
        (lambda x: 6 / x, (2.0,), 3.0, [-1.5]),
        (lambda x: (x * x) * (x * x), (2.0,), 16.0, [32.0]),
        (lambda a, b: autodiff.where(a > b, a * a, b), (3.0, 1.0), 9.0, [6.0, 0.0]),
        (lambda a, b: autodiff.where(a > b, a * a, b), (1.0, 3.0), 3.0, [0.0, 1.0]),
        (lambda a, b: max(a, b) * min(a, b), (2.0, 5.0), 10.0, [5.0, 2.0]),
        (lambda a, b: sum([a, b, a]), (2.0, 5.0), 9.0, [2.0, 1.0]),
    ],
)
def test_composites(function, point, value, gradient):
    assert by_value(function, point) == (value, gradient)
    assert by_dual(function, point) == (value, gradient)


@pytest.mark.parametrize(
    ("function", "torch_name", "point", "gradient"),
    [
        (autodiff.relu, "relu", (0.0,), [0.0]),
        (abs, "abs", (0.0,), [0.0]),
        (autodiff.sign, "sign", (0.0,), [0.0]),
        (autodiff.sqrt, "sqrt", (0.0,), [math.inf]),
        (autodiff.log, "log", (0.0,), [math.inf]),
        (autodiff.maximum, "maximum", (2.0, 2.0), [0.5, 0.5]),
        (autodiff.minimum, "minimum", (2.0, 2.0), [0.5, 0.5]),
        (lambda a, b: a**b, "pow", (0.0, 0.0), [0.0, 0.0]),
        (lambda a, b: a**b, "pow", (0.0, 2.0), [0.0, 0.0]),
        (lambda a, b: a / b, "divide", (1.0, 0.0), [math.inf, -math.inf]),
        (autodiff.maximum, "maximum", (math.nan, 2.0), [1.0, 1.0]),
        (autodiff.relu, "relu", (math.nan,), [1.0]),
    ],
)
def test_kinks_and_poles_are_those_of_pytorch(function, torch_name, point, gradient):
    value, found = by_value(function, point)
    assert found == gradient
    assert by_dual(function, point)[1] == gradient
    np.testing.assert_equal((value, found), by_torch(torch_name, point))


def test_infinity_and_nan_stay_visible():
    assert autodiff.exp(Value(1000.0)).data == math.inf
    assert autodiff.log(Value(0.0)).data == -math.inf
    assert (1 / Value(0.0)).data == math.inf
    for bad in (autodiff.log(Value(-1.0)), autodiff.sqrt(Value(-1.0)), Value(-1.0) ** 0.5, Value(math.inf) * 0):
        assert math.isnan(bad.data)
    x = Value(math.nan)
    for name in ("exp", "log", "tanh", "relu", "sigmoid", "sqrt", "sin", "cos", "erf", "softplus", "sign", "expm1"):
        assert math.isnan(getattr(x, name)().data), name
    for pair in ((x, 1.0), (1.0, x)):
        assert math.isnan(autodiff.maximum(*pair).data)
        assert math.isnan(autodiff.minimum(*pair).data)


def test_stable_where_the_plain_formula_overflows():
    assert autodiff.softplus(Value(1e4)).data == 1e4
    assert autodiff.softplus(Value(-1e4)).data == 0.0
    assert autodiff.sigmoid(Value(-1e4)).data == 0.0
    assert by_value(autodiff.softplus, (-1e4,))[1] == [0.0]


def test_what_was_not_selected_passes_nothing_on():
    def guarded(x):
        return np.where(x > 0, np.log(x) * x, 1.0 + x)

    assert by_value(guarded, (0.0,)) == (1.0, [1.0])
    assert by_dual(guarded, (0.0,)) == (1.0, [1.0])


def test_power_by_a_number_has_no_derivative_by_that_number():
    assert autodiff.derivative(lambda x: x**2, -3.0) == (9.0, -6.0)
    assert autodiff.derivative(lambda x: 3.0, 1.0) == (3.0, 0.0)
    with pytest.raises(TypeError, match="returned str"):
        autodiff.derivative(lambda x: "x", 1.0)


def expressions():
    """Functions of (x, y), smooth and bounded enough for central differences."""
    leaves = st.sampled_from([lambda x, y: x, lambda x, y: y]) | st.floats(-2, 2).map(lambda c: lambda x, y: c + 0 * x)
    one = ("tanh", "sigmoid", "sin", "cos", "softplus", "erf")

    def extend(children):
        unary = st.tuples(st.sampled_from(one), children).map(
            lambda t: lambda x, y: getattr(autodiff, t[0])(t[1](x, y))
        )
        binary = st.tuples(st.sampled_from("+-*m/"), children, children).map(lambda t: combine(*t))
        return unary | binary

    return st.recursive(leaves, extend, max_leaves=12)


def combine(symbol, f, g):
    return {
        "+": lambda x, y: f(x, y) + g(x, y),
        "-": lambda x, y: f(x, y) - g(x, y),
        "*": lambda x, y: f(x, y) * autodiff.tanh(g(x, y)),
        "m": lambda x, y: autodiff.where(x < 10, f(x, y), g(x, y)),
        "/": lambda x, y: f(x, y) / (1.5 + g(x, y) * g(x, y)),
    }[symbol]


@given(expressions(), st.floats(-2, 2), st.floats(-2, 2))
def test_random_expressions(function, x, y):
    value, gradient = by_value(function, (x, y))
    dual_value, derivatives = by_dual(function, (x, y))
    assert dual_value == value
    np.testing.assert_allclose(derivatives, gradient, rtol=1e-10, atol=1e-12)
    _, differences = by_differences(function, (x, y))
    scale = 1.0 + abs(value) + np.abs(gradient).max()
    np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-6 * scale)
