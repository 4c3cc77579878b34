"""Formulas that are data, written as Python: for people to read, and for Numba to compile.

A formula is a tuple of nodes (`nbbp.scalars.operations.Node`): its inputs first, its result last. What is written is a
syntax tree, never text, so that nothing in a formula can be anything but arithmetic. It follows the rules of
`nbbp.scalars.activations`: constants are made by ``type(x)(...)``, so that float32 stays float32; branches are selects
whose sides are computed before, so that loops vectorise; NaN stays NaN.
"""

import ast
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from nbbp.scalars import circular, functions, powers
from nbbp.scalars.operations import OPERATIONS, Node

__all__ = ["COMPARISONS", "evaluate", "function_of", "source_of"]

COMPARISONS = {"less": ast.Lt, "less_equal": ast.LtE, "equal": ast.Eq}
_OPERATORS = {"add": ast.Add, "subtract": ast.Sub, "multiply": ast.Mult, "divide": ast.Div}
_CALLS = {name: getattr(functions, name) for name in functions.__all__ if name in OPERATIONS}
_CALLS |= {name: getattr(module, name) for module in (circular, powers) for name in module.__all__}
_NAMESPACE = {**_CALLS, "inf": math.inf, "nan": math.nan}
#: Operations that are written as selects, or compare: what they take has to be at hand.
_SELECTS = {*COMPARISONS, "relu", "maximum", "minimum", "where", "sign"}
#: Operations within one expression, at most: Python's compiler, and readers, go only so deep.
_DEPTH = 12


def function_of(nodes: Sequence[Node], arguments: Sequence[str]) -> Callable:
    """A function of scalars of one dtype, for Python and for jitted code.

    Parameters
    ----------
    nodes : sequence of Node
    arguments : sequence of str
        Names of the inputs; more names are arguments that are ignored.
    """
    tree = ast.Module([_Writer(nodes, arguments, typed=True).definition("formula")], [])
    made: dict[str, Callable] = {}
    exec(compile(ast.fix_missing_locations(tree), "<formula>", "exec"), dict(_NAMESPACE), made)
    return made["formula"]


def source_of(nodes: Sequence[Node], arguments: Sequence[str], name: str) -> str:
    """The formula as a Python function of that name, for people: plain numbers, functions by their usual names."""
    name = f"{name}_value" if name in _NAMESPACE else name
    definition = _Writer(nodes, arguments, typed=False).definition(name)
    return ast.unparse(ast.fix_missing_locations(definition))


def evaluate(operation: str, *numbers: float) -> float:
    """The value of one operation on plain numbers, in float64."""
    with np.errstate(all="ignore"):
        return float(_of_one_operation(operation)(*map(np.float64, numbers)))


@functools.cache
def _of_one_operation(operation: str) -> Callable:
    n = OPERATIONS[operation].n_arguments
    inputs = [Node("input", (), float(k)) for k in range(n)]
    return function_of([*inputs, Node(operation, tuple(range(n)))], [f"x{k}" for k in range(n)])


class _Writer:
    """Writes the nodes of one formula as statements and expressions."""

    def __init__(self, nodes: Sequence[Node], arguments: Sequence[str], typed: bool) -> None:
        self.nodes, self.arguments, self.typed = nodes, arguments, typed
        self.statements: list[ast.stmt] = []
        self.uses = [0] * len(nodes)
        self.at_hand = [False] * len(nodes)
        for node in nodes:
            for place, argument in enumerate(node.arguments):
                if node.operation == "where" and place == 0 and nodes[argument].operation in COMPARISONS:
                    continue  # written within the select
                self.uses[argument] += 1
                self.at_hand[argument] |= node.operation in _SELECTS
        self.written: list[ast.expr] = []
        self.depths: list[int] = []

    def definition(self, name: str) -> ast.FunctionDef:
        """The function."""
        n_variables = 0
        last = len(self.nodes) - 1
        for position, node in enumerate(self.nodes):
            expression = self.expression(node)
            depth = 1 + max((self.depths[argument] for argument in node.arguments), default=-1)
            is_leaf = node.operation in ("input", "constant")
            is_shared = self.uses[position] > 1 or (self.at_hand[position] and self.uses[position] > 0)
            if position != last and not is_leaf and (is_shared or depth >= _DEPTH):
                n_variables += 1
                variable = f"v{n_variables}"
                self.statements.append(ast.Assign([ast.Name(variable, ast.Store())], expression))
                expression, depth = _name(variable), 0
            self.written.append(expression)
            self.depths.append(depth)
        statements = [*self.statements, ast.Return(self.written[-1])]
        if self.typed:
            kind = ast.Call(_name("type"), [_name(self.arguments[0])], [])
            statements.insert(0, ast.Assign([ast.Name("kind", ast.Store())], kind))
        arguments = ast.arguments([], [ast.arg(argument) for argument in self.arguments], None, [], [], None, [])
        return ast.FunctionDef(name, arguments, statements, [], type_params=[])

    def expression(self, node: Node) -> ast.expr:
        """One node, of what is already written."""
        operation = node.operation
        if operation == "input":
            return _name(self.arguments[int(node.number)])
        if operation == "constant":
            return self.constant(node.number)
        if operation == "where":
            return self.select(node)
        taken = [self.written[argument] for argument in node.arguments]
        if operation in COMPARISONS:
            test = _compare(taken[0], COMPARISONS[operation], taken[1])
            return ast.IfExp(test, self.constant(1.0), self.constant(0.0))
        if operation in _OPERATORS:
            return ast.BinOp(taken[0], _OPERATORS[operation](), taken[1])
        if operation == "power":
            return self.power(node, *taken)
        if operation in ("maximum", "minimum"):
            return self.extreme(node, *taken)
        if operation in _CALLS:
            return _call(operation, *taken)
        return getattr(self, operation)(*taken)

    def constant(self, number: float) -> ast.expr:
        if math.isnan(number):
            written = _name("nan")
        elif math.isinf(number):
            written = _name("inf") if number > 0 else ast.UnaryOp(ast.USub(), _name("inf"))
        else:
            written = ast.Constant(number)
        return _call("kind", written) if self.typed else written

    def negative(self, x: ast.expr) -> ast.expr:
        return ast.UnaryOp(ast.USub(), x)

    def absolute(self, x: ast.expr) -> ast.expr:
        return _call("abs", x)

    def relu(self, x: ast.expr) -> ast.expr:
        return ast.IfExp(_compare(x, ast.Lt, self.constant(0.0)), self.constant(0.0), x)

    def sign(self, x: ast.expr) -> ast.expr:
        not_below = ast.IfExp(_compare(x, ast.Gt, self.constant(0.0)), self.constant(1.0), x)
        return ast.IfExp(_compare(x, ast.Lt, self.constant(0.0)), self.constant(-1.0), not_below)

    def extreme(self, node: Node, x: ast.expr, y: ast.expr) -> ast.expr:
        """A comparison with NaN is false: x's NaN stays by the order, y's by asking, unless y is a constant.

        (x is the one that is not, as `nbbp.scalars.simplification` puts constants last.)
        """
        found = ast.IfExp(_compare(x, ast.Lt if node.operation == "maximum" else ast.Gt, y), y, x)
        constant = self.nodes[node.arguments[1]]
        is_number = constant.operation == "constant" and not math.isnan(constant.number)
        return found if is_number else ast.IfExp(_compare(y, ast.NotEq, y), y, found)

    def power(self, node: Node, x: ast.expr, y: ast.expr) -> ast.expr:
        """A constant exponent that is not whole needs no thought of signs: the logarithm of what is negative is NaN."""
        if not self.typed:
            return ast.BinOp(x, ast.Pow(), y)
        exponent = self.nodes[node.arguments[1]]
        if exponent.operation == "constant" and math.isfinite(exponent.number) and exponent.number % 1 != 0:
            return _call("exp", ast.BinOp(y, ast.Mult(), _call("log", x)))
        return _call("power", x, y)

    def select(self, node: Node) -> ast.expr:
        condition, *sides = node.arguments
        comparison = self.nodes[condition]
        if comparison.operation in COMPARISONS:
            x, y = (self.written[argument] for argument in comparison.arguments)
            test = _compare(x, COMPARISONS[comparison.operation], y)
        else:
            test = _compare(self.written[condition], ast.NotEq, self.constant(0.0))
        return ast.IfExp(test, *(self.written[side] for side in sides))


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(_name(name), list(arguments), [])


def _compare(x: ast.expr, comparison: type, y: ast.expr) -> ast.Compare:
    return ast.Compare(x, [comparison()], [y])
