"""NumPy's functions, scalars and arrays with values and duals; functions traced into nodes."""

import math
from functools import partial

import numpy as np
import pytest

from nbbp import autodiff
from nbbp.arithmetic import _OF_NUMPY
from nbbp.autodiff import Dual, Node, Value, trace
from nbbp.scalars.differentiation import derivative as differentiate
from nbbp.scalars.operations import OPERATIONS

POINTS = {1: ((0.7,), (1.3,)), 2: ((0.7, 1.3), (1.3, 0.7), (1.0, 1.0)), 3: ((0.0, 2.0, 3.0), (1.0, 2.0, 3.0))}


def evaluate(nodes, *inputs):
    """What traced nodes compute, by Python's own functions."""
    functions = {
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
        "divide": lambda a, b: a / b,
        "power": lambda a, b: a**b,
        "negative": lambda a: -a,
        "absolute": abs,
        "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
        "softplus": lambda a: math.log1p(math.exp(a)),
        "relu": lambda a: max(a, 0.0),
        "sign": lambda a: math.copysign(1.0, a) if a else 0.0,
        "maximum": max,
        "minimum": min,
        "less": lambda a, b: float(a < b),
        "less_equal": lambda a, b: float(a <= b),
        "equal": lambda a, b: float(a == b),
        "where": lambda condition, a, b: a if condition else b,
    }
    values = []
    for position, node in enumerate(nodes):
        assert len(node.arguments) == OPERATIONS[node.operation].n_arguments
        assert all(0 <= p < position for p in node.arguments)
        if node.operation == "input":
            values.append(inputs[int(node.number)])
        elif node.operation == "constant":
            values.append(node.number)
        else:
            function = functions.get(node.operation) or getattr(math, node.operation)
            values.append(function(*(values[p] for p in node.arguments)))
    return values[-1]


@pytest.mark.parametrize("name", _OF_NUMPY)
def test_functions_of_numpy(name):
    function = getattr(np, name)
    n = {"where": 3, "clip": 3}.get(name, getattr(function, "nin", None))
    for point in POINTS[n]:
        if name == "clip":
            point = (2.5, point[1], point[2])
        if name == "arctanh":
            point = (point[0] / 2,)
        expected = function(*point)
        values = [Value(x) for x in point]
        results = [
            function(*values).data,
            function(values[0], *point[1:]).data,
            function(*point[:-1], values[-1]).data,
            function(*(Dual(x) for x in point)).value,
            evaluate(trace(function, n), *point),
        ]
        np.testing.assert_allclose(np.array(results), float(expected), rtol=1e-14, err_msg=f"{name}{point}")


def test_numbers_of_numpy():
    x = Value(3.0)
    for result in (np.float64(2) * x, x * np.float64(2), np.float32(2) * x, np.int64(2) * x, np.array(2.0) * x):
        assert type(result) is Value
        assert result.data == 6.0
    assert type(np.float64(2) < x) is Value
    assert (np.float64(2) ** x).data == 8.0
    assert type(np.float64(2) - Dual(1.0, 1.0)) is Dual
    assert (np.float64(2) - Dual(1.0, 1.0)).derivative == -1.0


def test_arrays_of_values():
    a, b = Value(1.0), Value(2.0)
    pair = np.array([a, b])
    assert pair.dtype == object
    assert [v.data for v in pair * 3] == [3.0, 6.0]
    assert [v.data for v in pair * a] == [1.0, 2.0]
    assert [v.data for v in b - np.array([5.0, 6.0])] == [-3.0, -4.0]
    assert [v.data for v in np.array([5.0, 6.0]) / b] == [2.5, 3.0]
    assert [v.data for v in np.exp(pair)] == [math.exp(1.0), math.exp(2.0)]
    assert [v.data for v in autodiff.relu(pair - 1.5)] == [0.0, 0.5]
    assert [v.data for v in np.maximum(pair, Value(1.5))] == [1.5, 2.0]
    assert [v.data for v in np.where(np.array([True, False]), a, pair)] == [1.0, 2.0]
    pair += a
    assert [v.data for v in pair] == [2.0, 3.0]
    loss = (np.array([[1.0, 2.0], [3.0, 4.0]]) @ pair).sum() + np.dot(pair, pair)
    loss.backward()
    # sum is 4 p0 + 6 p1, then p0**2 + p1**2; p0 = 2 a, p1 = a + b
    assert (a.grad, b.grad) == (2 * (4 + 4) + (6 + 6), 6 + 6)
    floats = np.zeros(2)
    with pytest.raises(TypeError, match="float64 cannot hold a Value"):
        floats += a


def test_plain_numbers_give_plain_numbers():
    assert autodiff.exp(1) == math.exp(1.0)
    assert type(autodiff.relu(np.float32(-2.0))) is float
    assert autodiff.where(False, 1.0, 2.0) == 2.0
    assert autodiff.log(0) == -math.inf
    np.testing.assert_array_equal(autodiff.relu(np.array([-1.0, 2.0])), [0.0, 2.0])


def test_clip_without_a_limit():
    assert np.clip(Value(3.0), None, 1.0).data == 1.0
    assert autodiff.clip(-3.0, 1.0, None) == 1.0
    assert autodiff.derivative(lambda x: np.clip(x, 0.0, 2.0) * 3.0, 1.5) == (4.5, 3.0)


@pytest.mark.parametrize(("x", "slope"), [(-1.0, 0.0), (0.0, 1.0), (3.0, 1.0), (6.0, 1.0), (7.0, 0.0)])
def test_clip_has_the_derivative_of_pytorch_on_its_limits(x, slope):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(x, requires_grad=True)
    torch.clamp(tensor, 0.0, 6.0).backward()
    assert tensor.grad.item() == slope
    value = Value(x)
    np.clip(value, 0.0, 6.0).backward()
    assert value.grad == slope
    assert autodiff.derivative(lambda z: np.clip(z, 0.0, 6.0), x) == (min(max(x, 0.0), 6.0), slope)
    assert evaluate(differentiate(trace(lambda z: np.clip(z, 0.0, 6.0), 1)), x) == slope
    limits = Value(0.0), Value(6.0)
    value.grad = 0.0
    np.clip(value, *limits).backward()
    assert (value.grad, limits[0].grad, limits[1].grad) == (slope, float(x < 0), float(x > 6))
    assert evaluate(differentiate(trace(np.clip, 3)), x, 0.0, 6.0) == slope


def test_clip_lets_nan_through():
    for point in ((math.nan, 0.0, 6.0), (3.0, math.nan, 6.0), (3.0, 0.0, math.nan)):
        assert math.isnan(autodiff.clip(Value(point[0]), *point[1:]).data)
        assert math.isnan(autodiff.clip(*point))
        assert math.isnan(np.clip(*(Value(x) for x in point)).data)
    assert np.clip(Value(3.0), 5.0, 1.0).data == np.clip(3.0, 5.0, 1.0) == 1.0


def test_clip_takes_the_keywords_of_numpy():
    assert np.clip(Value(3.0), a_min=0.0, a_max=2.0).data == 2.0
    assert np.clip(a=Value(3.0), a_min=4.0, a_max=None).data == 4.0
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        assert np.clip(Value(3.0), max=2.0).data == 2.0
        assert np.clip(Value(3.0), min=4.0, max=5.0).data == 4.0
        with pytest.raises(TypeError, match="either as a_min and a_max or as min and max"):
            np.clip(Value(3.0), 0.0, 1.0, max=2.0)
    with pytest.raises(TypeError, match=r"np.clip with out does not work"):
        np.clip(Value(3.0), 0.0, 1.0, out=np.zeros(()))


@pytest.mark.parametrize(
    ("function", "point", "gradient"),
    [
        (np.sinh, (0.7,), [math.cosh(0.7)]),
        (np.sinh, (1e-12,), [1.0]),
        (np.cosh, (0.7,), [math.sinh(0.7)]),
        (np.arctanh, (0.5,), [4 / 3]),
        (np.logaddexp, (2.0, 2.0), [0.5, 0.5]),
        (np.logaddexp, (-1e20, 1.0), [0.0, 1.0]),
        (np.logaddexp, (1.0, -math.inf), [1.0, 0.0]),
        (np.logaddexp, (-math.inf, -math.inf), [0.5, 0.5]),
        (np.logaddexp2, (1.0, 1.0), [0.5, 0.5]),
        (np.hypot, (-3.0, 4.0), [-0.6, 0.8]),
        (np.hypot, (3e200, 4e200), [0.6, 0.8]),
        (np.hypot, (2.0, 2.0), [math.sqrt(0.5), math.sqrt(0.5)]),
        (np.hypot, (0.0, 0.0), [0.0, 0.0]),
        (np.hypot, (math.inf, 1.0), [math.nan, math.nan]),
        (np.heaviside, (0.0, 0.25), [0.0, 1.0]),
        (np.heaviside, (-2.0, 0.25), [0.0, 0.0]),
    ],
)
def test_derivatives_of_what_is_made_of_other_operations(function, point, gradient):
    values = [Value(x) for x in point]
    result = function(*values)
    result.backward()
    np.testing.assert_allclose(result.data, function(*point), rtol=1e-15)
    np.testing.assert_allclose([value.grad for value in values], gradient, rtol=1e-14, atol=1e-15)


def test_functions_of_scipy_are_told_what_they_are_called_here():
    special = pytest.importorskip("scipy.special")
    for x in (Value(0.5), Dual(0.5)):
        with pytest.raises(TypeError, match=r"SciPy's erf does not work on a (Value|Dual): use nbbp.autodiff.erf"):
            special.erf(x)
        with pytest.raises(TypeError, match=r"use nbbp\.autodiff\.sigmoid"):
            special.expit(x)


def softsign_or_swish(x, beta):
    return np.where((x > 0) & (x < 2), x / (1 + np.exp(-beta * x)), x / (1 + abs(x)))


def test_trace_writes_nodes():
    assert trace(lambda x, y: np.exp(y) * 2, 2) == (
        Node("input", (), 0.0),
        Node("input", (), 1.0),
        Node("exp", (1,)),
        Node("constant", (), 2.0),
        Node("multiply", (2, 3)),
    )


@pytest.mark.parametrize("point", [(-1.5, 0.5), (1.5, 0.5), (3.0, 2.0)])
def test_trace_computes_what_values_compute(point):
    expected = softsign_or_swish(Value(point[0]), Value(point[1])).data
    np.testing.assert_allclose(evaluate(trace(softsign_or_swish, 2), *point), expected, rtol=1e-15)


def test_trace_drops_what_is_not_needed():
    def wasteful(x, y):
        np.exp(x) + 17.0
        return y - x

    assert [node.operation for node in trace(wasteful, 2)] == ["input", "input", "subtract"]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_trace_of_an_argument_ends_with_it(index):
    nodes = trace(lambda *inputs: inputs[index], 3)
    assert [node.number for node in nodes[:3]] == [0.0, 1.0, 2.0]
    assert evaluate(nodes, 5.0, -6.0, 7.0) == (5.0, -6.0, 7.0)[index]
    assert len(nodes) == (3 if index == 2 else 5)


def test_trace_of_a_constant():
    assert trace(lambda x: 3, 1) == (Node("input", (), 0.0), Node("constant", (), 3.0))
    assert trace(lambda: np.float32(0.5), 0) == (Node("constant", (), 0.5),)


def test_trace_reads_comparisons_by_number():
    nodes = trace(lambda x: np.where(x == 1, 2.0, np.where(x != 2, 3.0, ~(x <= 0))), 1)
    assert [evaluate(nodes, x) for x in (1.0, 2.0, 5.0)] == [2.0, 1.0, 3.0]


def decides(x):
    return x if x > 0 else -x


def chained(x):
    return np.where(0 < x < 1, x, 0.0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (decides, r"np.where\(condition, a, b\), np.maximum"),
        (chained, r"& \| ~ between conditions"),
        (lambda x: max(x, 0), "np.maximum"),
        (lambda x: math.exp(x), "use np.exp"),
        (lambda x: x * float(x), r"use np.exp .* np.where or np.maximum instead of `if`"),
        (lambda x: int(x), "instead of `if`"),
        (lambda x: (x, x), "this one returned a tuple of 2"),
        (lambda x: None, "this one returned NoneType"),
        (lambda x: [x], "this one returned list"),
        (lambda x: Value(1.0), "this one returned Value"),
        (lambda x: x + Value(1.0), "unsupported operand"),
        (lambda x: np.arctan(x), "np.arctan does not work on a Symbol"),
    ],
)
def test_what_cannot_be_traced(function, message):
    with pytest.raises(TypeError, match=message):
        trace(function, 1)


def test_numbers_of_another_trace_are_refused():
    leaked = []
    trace(lambda x: leaked.append(x) or x, 1)
    with pytest.raises(TypeError, match="another formula"):
        trace(lambda x: x + leaked[0], 1)
    with pytest.raises(TypeError, match="this one returned Symbol"):
        trace(lambda x: leaked[0], 1)


@pytest.mark.parametrize("n_inputs", [-1, 1.0, True])
def test_trace_counts_inputs(n_inputs):
    with pytest.raises(ValueError, match="n_inputs"):
        trace(partial(max, 0), n_inputs)
