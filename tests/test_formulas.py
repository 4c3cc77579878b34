"""Formulas as nodes: simplified, differentiated and written as Python."""

import numpy as np
import pytest
from formula_cases import IllConditionedError, interpret
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numba import njit
from reference import central_differences

from nbbp.autodiff import trace
from nbbp.scalars.differentiation import derivative
from nbbp.scalars.operations import OPERATIONS, Node
from nbbp.scalars.simplification import simplify
from nbbp.scalars.writing import evaluate, function_of, source_of

DTYPES = [np.float32, np.float64]
COMPUTED = [name for name, operation in OPERATIONS.items() if operation.n_arguments]
SPECIAL = [0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 3.7, -3.7, np.inf, -np.inf, np.nan]


@pytest.fixture(autouse=True)
def _silent_numpy():
    with np.errstate(all="ignore"):
        yield


def of_inputs(operation):
    """The formula that is one operation on as many inputs as it takes."""
    n = OPERATIONS[operation].n_arguments
    return (*(Node("input", (), float(k)) for k in range(n)), Node(operation, tuple(range(n))))


def body(nodes, arguments="xyz"):
    """What the formula's function returns, in one line."""
    return "; ".join(line.strip() for line in source_of(nodes, arguments, "f").splitlines()[1:]).removeprefix("return ")


def call(nodes, *inputs):
    """The value of a formula for numbers."""
    names = [f"x{k}" for k in range(len(inputs))]
    return function_of(nodes, names)(*inputs)


# single operations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", COMPUTED)
def test_every_operation_in_python_and_compiled(operation, dtype):
    nodes = of_inputs(operation)
    n = len(nodes) - 1
    compiled = njit(error_model="numpy")(function_of(nodes, "xyz"[:n]))
    for inputs in np.stack(np.meshgrid(*[np.array(SPECIAL, dtype)] * n), -1).reshape(-1, n):
        expected = interpret(nodes, inputs)
        if operation == "power" and inputs[0] < 0 and (inputs[0] == -np.inf or np.isinf(inputs[1])):
            continue  # NaN, where the C library says what an infinite power of -1 is
        if operation == "power" and inputs[0] in (1.0, -1.0) and not np.isfinite(inputs[1]):
            continue
        if operation in ("sin", "cos") and abs(inputs[0]) > 1e4:
            expected = np.nan
        for result in (call(nodes, *inputs), compiled(*inputs)):
            np.testing.assert_allclose(result, expected, rtol=30 * np.finfo(dtype).eps, err_msg=str(inputs))
        assert type(call(nodes, *inputs)) is dtype


@pytest.mark.parametrize("operation", COMPUTED)
def test_constants_are_computed(operation):
    numbers = (0.7, 1.3, -0.4)[: OPERATIONS[operation].n_arguments]
    constants = tuple(Node("constant", (), number) for number in numbers)
    [result] = simplify((*constants, Node(operation, tuple(range(len(numbers))))))
    assert result.operation == "constant"
    assert result.number == pytest.approx(interpret(of_inputs(operation), numbers), rel=1e-14)
    assert evaluate(operation, *numbers) == result.number


@pytest.mark.parametrize("operation", COMPUTED)
def test_derivative_of_every_operation_by_every_argument(operation):
    nodes = of_inputs(operation)
    n = len(nodes) - 1
    for point in ([0.6, 1.4, -0.3], [1.9, 0.8, 2.1], [0.3, 2.5, 0.1]):
        point = np.array(point[:n])
        slopes = central_differences(lambda x: interpret(nodes, x), point)
        for k in range(n):
            slope = call(derivative(nodes, k), *point)
            np.testing.assert_allclose(slope, slopes[k], rtol=1e-9, atol=1e-11, err_msg=f"{operation} by {k}")


KINKS = {
    "relu": [(0.0, 0.0)],
    "absolute": [(0.0, 0.0), (-2.0, -1.0)],
    "maximum": [(1.0, 1.0, 0.5), (1.0, 2.0, 0.0), (2.0, 1.0, 1.0)],
    "minimum": [(1.0, 1.0, 0.5), (1.0, 2.0, 1.0), (2.0, 1.0, 0.0)],
    "sign": [(0.0, 0.0), (3.0, 0.0)],
}


@pytest.mark.parametrize("operation", KINKS)
def test_derivatives_at_kinks_are_pytorchs(operation):
    torch = pytest.importorskip("torch")
    function = {"relu": torch.relu, "absolute": torch.abs}.get(operation) or getattr(torch, operation)
    for *inputs, expected in KINKS[operation]:
        tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs]
        function(*tensors).backward()
        assert tensors[0].grad.item() == expected
        assert call(derivative(of_inputs(operation)), *np.array(inputs)) == expected


# simplification ------------------------------------------------------------------------------------------------------

SIMPLER = [
    (lambda x: x * 1 + 0 - 0, "x"),
    (lambda x: 2 - (2 - x) * 1, "2.0 - (2.0 - x)"),
    (lambda x: -(x * -1), "x"),
    (lambda x: (2 * x) * 3, "x * 6.0"),
    (lambda x: -(2 * x), "x * -2.0"),
    (lambda x: (-x) * (-x), "x * x"),
    (lambda x: x / 4, "x * 0.25"),
    (lambda x: x**2, "x * x"),
    (lambda x: x**5, "v1 = x * x; return x * (v1 * v1)"),
    (lambda x: x**0, "1.0"),
    (lambda x: x**0.5 + x**-0.5, "v1 = sqrt(x); return v1 + 1.0 / v1"),
    (lambda x: x**-2, "1.0 / (x * x)"),
    (lambda x: x**1.5, "x ** 1.5"),
    (lambda x: x**x + x**40, "x ** x + x ** 40.0"),
    (lambda x: 2.0**x, "exp(x * 0.6931471805599453)"),
    (lambda x: 3 * 2.0 + x, "x + 6.0"),
    (lambda x: (x + 1) * (1 + x), "v1 = x + 1.0; return v1 * v1"),
    (lambda x: 1 / (1 + np.exp(-x)), "sigmoid(x)"),
    (lambda x: 1 / (np.exp(x) + 1), "sigmoid(-x)"),
    (lambda x: np.exp(x) / (1 + np.exp(x)), "sigmoid(x)"),
    (lambda x: x / (1 + np.exp(-3 * x)), "x * sigmoid(x * 3.0)"),
    (lambda x: np.log(1 + np.exp(x)), "softplus(x)"),
    (lambda x: np.log1p(np.exp(-x)), "softplus(-x)"),
    (lambda x: np.log(1 + x), "log1p(x)"),
    (lambda x: np.exp(x) - 1, "expm1(x)"),
    (lambda x: 1 - np.exp(x), "-expm1(x)"),
    (lambda x: np.exp(x) - 1 + 1, "exp(x)"),
    (lambda x: np.expm1(x) - -1, "exp(x)"),
    (lambda x: np.log(1 / (1 + np.exp(-x))), "-softplus(-x)"),
    (lambda x: np.log(1 + np.tanh(x)), "0.6931471805599453 - softplus(x * -2.0)"),
    (lambda x: np.log(1 - 1 / (1 + np.exp(-x))), "-softplus(x)"),
    (lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)), "tanh(x)"),
    (lambda x: (np.exp(-x) - np.exp(x)) / (np.exp(x) + np.exp(-x)), "tanh(-x)"),
    (lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1), "tanh(x)"),
    (lambda x: (1 - np.exp(-2 * x)) / (1 + np.exp(-2 * x)), "tanh(x)"),
    (
        lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(2 * x) + np.exp(-x)),
        "v1 = exp(-x); return (exp(x) - v1) / (v1 + exp(x * 2.0))",
    ),
    (lambda x: 1 + np.tanh(x), "sigmoid(x * 2.0) * 2.0"),
    (lambda x: 1 - np.tanh(x), "sigmoid(x * -2.0) * 2.0"),
    (lambda x: 0.5 * x * (np.tanh(x / 2) + 1), "x * sigmoid(x)"),
    (lambda x: np.where(x > 0, x, x), "x"),
    (lambda x: np.where(x > 0, 1, 0), "1.0 if 0.0 < x else 0.0"),
    (lambda x: np.maximum(x, x), "x"),
    (lambda x: abs(-x), "abs(x)"),
    (lambda x: x * 0, "x * 0.0"),
    (lambda x: x - x, "x - x"),
    (lambda x: x / x, "x / x"),
    (lambda x: x * float("nan"), "x * nan"),
    (lambda x: np.minimum(x, -float("inf")), "-inf if x > -inf else x"),
    (lambda x: (x + 1) / (x * x) + 3 / (x * x), "v1 = 1.0 / (x * x); return (x + 1.0) * v1 + v1 * 3.0"),
    (lambda x: 7.5, "7.5"),
]


@pytest.mark.parametrize(("function", "expected"), SIMPLER, ids=[expected for _, expected in SIMPLER])
def test_simplify(function, expected):
    nodes = simplify(trace(function, 1))
    assert body(nodes) == expected
    assert repr(simplify(nodes)) == repr(nodes)  # NaN is not equal to itself


def test_what_is_dead_is_left_out_and_inputs_stay():
    x, y = (Node("input", (), float(k)) for k in range(2))
    dead = Node("exp", (1,))
    assert simplify((x, y, dead, Node("sin", (0,)))) == (x, y, Node("sin", (0,)))
    first = simplify((x, y, Node("negative", (0,)), Node("negative", (2,))))
    assert first[-1].operation != "input"
    assert call(first, 3.0, 4.0) == 3.0
    assert call(derivative(first), 3.0, 4.0) == 1.0
    assert call(derivative(first, 1), 3.0, 4.0) == 0.0


def test_formulas_of_a_thousand_operations_can_be_compiled():
    def chain(x):
        for _ in range(300):
            x = np.sin(x) * 0.9 + 0.1 / (1.5 + x)
        return x

    nodes = simplify(trace(chain, 1))
    x = np.float64(0.3)
    assert call(nodes, x) == pytest.approx(float(chain(x)), rel=1e-9)
    slope = (chain(x + 1e-6) - chain(x - 1e-6)) / 2e-6
    assert call(derivative(nodes), x) == pytest.approx(float(slope), abs=1e-7)


# derivatives ---------------------------------------------------------------------------------------------------------

HIDDEN = [
    (lambda x: np.where(x > 0, np.sqrt(x), 0), [-1.0, 0.0]),
    (lambda x: np.where(x > 0, np.log(x), x) * 3, [0.0]),
    (lambda x: np.exp(np.where(x > 0, x * np.log(x), 0.0)), [-2.0, 0.0]),
    (lambda x: np.where(x > 0, x**1.5, 0) + np.where(x > 0, 1 / x, 2), [0.0]),
    (lambda x: np.where(x < 0, 0, np.where(x > 1, np.log(x - 1), 5)), [1.0, 0.5]),
    (lambda x: np.maximum(-1, np.log(x)), [0.0]),
    (lambda x: (np.where(x > 0, np.sqrt(x), 0) - 1) / np.where(x > 0, x, 2), [0.0]),
]


@pytest.mark.parametrize("case", range(len(HIDDEN)))
def test_what_is_not_selected_does_not_turn_the_derivative_into_nan(case):
    function, points = HIDDEN[case]
    slope = derivative(simplify(trace(function, 1)))
    for x in map(np.float64, points):
        assert call(slope, x) == (3.0 if case == 1 else 0.0), x
    assert np.isfinite(call(slope, np.float64(2.3)))


@pytest.mark.parametrize("x", [1e4, -1e4, 300.0, -300.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stable_far_out(x, dtype):
    for function, value, slope in [
        (lambda z: z / (1 + np.exp(-z)), max(x, 0.0), float(x > 0)),
        (lambda z: 1 / (1 + np.exp(-z)), float(x > 0), 0.0),
        (lambda z: np.log(1 + np.exp(z)), max(x, 0.0), float(x > 0)),
        (lambda z: -np.log(1 / (1 + np.exp(-z))), max(-x, 0.0), -float(x < 0)),
        (lambda z: z * np.tanh(np.log(1 + np.exp(z))), max(x, 0.0), float(x > 0)),
    ]:
        nodes = simplify(trace(function, 1))
        assert call(nodes, dtype(x)) == pytest.approx(value, abs=1e-30)
        assert call(derivative(nodes), dtype(x)) == pytest.approx(slope, abs=1e-30)


NUMBERS = st.floats(-4, 4).map(lambda x: round(x, 2))


@st.composite
def formulas(draw, n_inputs=2, largest=14):
    """Random formulas of any operation."""
    nodes = [Node("input", (), float(k)) for k in range(n_inputs)]
    for _ in range(draw(st.integers(1, largest))):
        operation = draw(st.sampled_from(["constant", *COMPUTED]))
        if operation == "constant":
            nodes.append(Node("constant", (), draw(st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, 3.0]) | NUMBERS)))
        else:
            places = st.integers(max(0, len(nodes) - 5), len(nodes) - 1)
            arguments = tuple(draw(places) for _ in range(OPERATIONS[operation].n_arguments))
            nodes.append(Node(operation, arguments))
    return tuple(nodes)


def settled(nodes, inputs):
    """The formula's value, if it does not hang on rounding."""
    try:
        value = interpret(nodes, inputs, strict=True)
    except IllConditionedError:
        value = np.nan
    assume(np.isfinite(value))
    return value


@given(formulas(), NUMBERS, NUMBERS)
def test_a_simpler_formula_has_the_same_value(nodes, x, y):
    expected = settled(nodes, (x, y))
    simple = simplify(nodes)
    assert len(simple) <= len(nodes) + 2  # the last may have to be repeated
    np.testing.assert_allclose(call(simple, np.float64(x), np.float64(y)), expected, rtol=1e-8)
    np.testing.assert_allclose(call(nodes, np.float64(x), np.float64(y)), expected, rtol=1e-8)


@given(formulas())
def test_simplifying_twice_changes_nothing(nodes):
    simple = simplify(nodes)
    assert repr(simplify(simple)) == repr(simple)


def in_torch(torch, nodes, inputs):
    """The formula in PyTorch."""
    functions = {
        "negative": torch.neg,
        "less": lambda a, b: (a < b).double(),
        "less_equal": lambda a, b: (a <= b).double(),
        "equal": lambda a, b: (a == b).double(),
        "where": lambda c, a, b: torch.where(c != 0, a, b),
        "power": torch.pow,
        "softplus": lambda a: torch.nn.functional.softplus(a, threshold=1e9),
    }
    values = []
    for node in nodes:
        if node.operation == "input":
            values.append(inputs[int(node.number)])
        elif node.operation == "constant":
            values.append(torch.tensor(node.number, dtype=torch.float64))
        else:
            function = functions.get(node.operation) or getattr(torch, node.operation)
            values.append(function(*(values[argument] for argument in node.arguments)))
    return values[-1]


@given(formulas(), NUMBERS, NUMBERS)
@example((*of_inputs("power")[:2], Node("power", (0, 1))), 2.0, 3.0)
def test_derivatives_are_those_of_pytorch(nodes, x, y):
    torch = pytest.importorskip("torch")
    settled(nodes, (x, y))
    inputs = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (x, y)]
    result = in_torch(torch, nodes, inputs)
    assume(result.requires_grad)
    result.backward()
    for k, tensor in enumerate(inputs):
        expected = 0.0 if tensor.grad is None else tensor.grad.item()
        slope = call(derivative(nodes, k), np.float64(x), np.float64(y))
        if np.isfinite(expected):  # 0 times infinity is NaN there
            np.testing.assert_allclose(slope, expected, rtol=1e-8, atol=1e-12)
