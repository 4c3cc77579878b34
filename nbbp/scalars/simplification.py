"""Formulas in their simplest form: constants computed, what is common made once, what is dead left out.

Nothing turns NaN or infinity into a number, so ``x * 0`` stays, but for some patterns that become functions which do
not overflow and lose no digits: ``1/(1 + exp(-x))`` is sigmoid(x), ``log(1 + exp(x))`` softplus(x), ``exp(x) - 1``
expm1(x), ``log(1 + x)`` log1p(x), ``log(sigmoid(x))`` -softplus(-x), ``1 + tanh(x)`` 2 sigmoid(2x), and what is a tanh
in exponentials is one. ``expm1(x) + 1``, as in the derivative of expm1, is exp(x), which does not cancel. Divisions by
a constant, and several by the same number, become multiplications by its reciprocal, which may cost the last bit. The
sign of a zero is not kept.
"""

import math
from collections.abc import Callable, Sequence

from nbbp.scalars.operations import Node, needed
from nbbp.scalars.writing import COMPARISONS, evaluate

__all__ = ["Builder", "count_inputs", "simplify"]

_COMMUTATIVE = ("add", "multiply", "maximum", "minimum", "equal")
#: Whole exponents up to this become products.
_LARGEST_EXPONENT = 32
#: Constants whose products and reciprocals are far from overflow, in float32 too.
_SMALLEST, _LARGEST = 1e-18, 1e18


def simplify(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The same formula in its simplest form: its inputs, then what the result needs, the result last."""
    builder = Builder(count_inputs(nodes))
    return builder.finish(builder.extend(nodes)[-1])


def count_inputs(nodes: Sequence[Node]) -> int:
    """How many inputs a formula has."""
    return sum(node.operation == "input" for node in nodes)


class Builder:
    """Makes nodes, each once and in its simplest form; a node is named by its position in `nodes`."""

    def __init__(self, n_inputs: int) -> None:
        self.nodes = [Node("input", (), float(index)) for index in range(n_inputs)]
        self._n_inputs = n_inputs
        self._positions: dict[tuple, int] = {}

    def extend(self, nodes: Sequence[Node], replace_division: Sequence[int] = ()) -> list[int]:
        """Make every node of a formula; where each is now. Divisions by those of `replace_division` by reciprocals."""
        new: list[int] = []
        for node in nodes:
            taken = [new[argument] for argument in node.arguments]
            if node.operation == "input":
                new.append(int(node.number))
            elif node.operation == "constant":
                new.append(self.constant(node.number))
            elif node.operation == "divide" and node.arguments[1] in replace_division:
                reciprocal = self.make("divide", self.constant(1.0), taken[1])
                new.append(self.make("multiply", taken[0], reciprocal))
            else:
                new.append(self.make(node.operation, *taken))
        return new

    def finish(self, result: int) -> tuple[Node, ...]:
        """The formula of that result."""
        nodes = self._needed(result)
        denominators = [node.arguments[1] for node in nodes if node.operation == "divide"]
        shared = {denominator for denominator in denominators if denominators.count(denominator) > 1}
        if not shared:
            return nodes
        builder = Builder(self._n_inputs)
        return builder._needed(builder.extend(nodes, tuple(shared))[-1])

    def _needed(self, result: int) -> tuple[Node, ...]:
        if result < self._n_inputs - 1:  # the result has to be last
            result = self._place(Node("multiply", (result, self.constant(1.0))))
        return needed(self.nodes, self._n_inputs, result)

    def constant(self, number: float) -> int:
        """The position of a constant."""
        return self._place(Node("constant", (), float(number) + 0.0))

    def make(self, operation: str, *arguments: int) -> int:
        """The position of what the operation gives for these arguments."""
        numbers = [self.number(argument) for argument in arguments]
        if None not in numbers:
            return self.constant(evaluate(operation, *numbers))
        if operation in _COMMUTATIVE:  # constants last
            arguments = tuple(sorted(arguments, key=lambda position: (self.number(position) is not None, position)))
        found = _RULES[operation](self, *arguments) if operation in _RULES else None
        return self._place(Node(operation, tuple(arguments))) if found is None else found

    def _place(self, node: Node) -> int:
        key = node.operation, node.arguments, node.number.hex()
        if key not in self._positions:
            self.nodes.append(node)
            self._positions[key] = len(self.nodes) - 1
        return self._positions[key]

    def number(self, position: int) -> float | None:
        """The value of a constant; None for anything else."""
        node = self.nodes[position]
        return node.number if node.operation == "constant" else None

    def argument(self, operation: str, position: int) -> int | None:
        """What this node takes, if it is this operation."""
        node = self.nodes[position]
        return node.arguments[0] if node.operation == operation else None

    def exponent(self, position: int) -> int | None:
        """x, if this node is 1 + exp(x)."""
        node = self.nodes[position]
        if node.operation == "add" and self.number(node.arguments[1]) == 1.0:
            return self.argument("exp", node.arguments[0])
        return None


def _is_moderate(number: float | None) -> bool:
    return number is not None and _SMALLEST <= abs(number) <= _LARGEST


def _add(builder: Builder, a: int, b: int) -> int | None:
    number = builder.number(b)
    if number == 0.0:
        return a
    if number == -1.0 and (x := builder.argument("exp", a)) is not None:
        return builder.make("expm1", x)
    if number == 1.0 and (x := builder.argument("expm1", a)) is not None:
        return builder.make("exp", x)
    if number == 1.0 and (x := builder.argument("tanh", a)) is not None:
        return _twice(builder, builder.make("sigmoid", _twice(builder, x)))
    if (x := builder.argument("negative", b)) is not None:
        return builder.make("subtract", a, x)
    if (x := builder.argument("negative", a)) is not None:
        return builder.make("subtract", b, x)
    return None


def _subtract(builder: Builder, a: int, b: int) -> int | None:
    if builder.number(b) == 0.0:
        return a
    if builder.number(a) == 0.0:
        return builder.make("negative", b)
    if builder.number(b) == 1.0 and (x := builder.argument("exp", a)) is not None:
        return builder.make("expm1", x)
    if builder.number(b) == -1.0 and (x := builder.argument("expm1", a)) is not None:
        return builder.make("exp", x)
    if builder.number(a) == 1.0 and (x := builder.argument("exp", b)) is not None:
        return builder.make("negative", builder.make("expm1", x))
    if builder.number(a) == 1.0 and (x := builder.argument("tanh", b)) is not None:
        return _twice(builder, builder.make("sigmoid", builder.make("negative", _twice(builder, x))))
    if (x := builder.argument("negative", b)) is not None:
        return builder.make("add", a, x)
    if (x := builder.argument("negative", a)) is not None:
        return builder.make("negative", builder.make("add", x, b))
    return None


def _twice(builder: Builder, a: int) -> int:
    return builder.make("multiply", a, builder.constant(2.0))


def _multiply(builder: Builder, a: int, b: int) -> int | None:
    number = builder.number(b)
    if number == 1.0:
        return a
    if number == -1.0:
        return builder.make("negative", a)
    if (x := builder.argument("negative", a)) is not None:
        if number is not None:
            return builder.make("multiply", x, builder.constant(-number))
        return builder.make("negative", builder.make("multiply", x, b))
    if (x := builder.argument("negative", b)) is not None:
        return builder.make("negative", builder.make("multiply", a, x))
    if _is_moderate(number) and builder.nodes[a].operation == "multiply":
        x, inner = builder.nodes[a].arguments
        inner = builder.number(inner)
        if _is_moderate(inner) and _is_moderate(number * inner):
            return builder.make("multiply", x, builder.constant(number * inner))
    if builder.nodes[a].operation == builder.nodes[b].operation == "multiply":  # factors that cancel
        (x, first), (y, second) = builder.nodes[a].arguments, builder.nodes[b].arguments
        if None not in (numbers := (builder.number(first), builder.number(second))) and numbers[0] * numbers[1] == 1.0:
            return builder.make("multiply", x, y)
    return None


def _divide(builder: Builder, a: int, b: int) -> int | None:
    number = builder.number(b)
    if _is_moderate(number):
        return builder.make("multiply", a, builder.constant(1.0 / number))
    if (x := _tanh_of(builder, a, b)) is not None:
        return builder.make("tanh", x)
    if (x := builder.exponent(b)) is not None:
        if builder.argument("exp", a) == x:
            return builder.make("sigmoid", x)
        return builder.make("multiply", a, builder.make("sigmoid", builder.make("negative", x)))
    if (x := builder.argument("negative", a)) is not None:
        return builder.make("negative", builder.make("divide", x, b))
    if (x := builder.argument("negative", b)) is not None:
        return builder.make("negative", builder.make("divide", a, x))
    return None


def _tanh_of(builder: Builder, a: int, b: int) -> int | None:
    """x, if a / b is a way to write tanh(x) with exponentials."""
    half = builder.constant(0.5)
    if (y := builder.exponent(b)) is not None:  # (exp(y) - 1)/(exp(y) + 1)
        if builder.argument("expm1", a) == y:
            return builder.make("multiply", y, half)
        negated = builder.argument("negative", a)
        if negated is not None and builder.argument("expm1", negated) == y:
            return builder.make("multiply", builder.make("negative", y), half)
    difference, total = builder.nodes[a], builder.nodes[b]
    if difference.operation == "subtract" and total.operation == "add":  # (exp(x) - exp(-x))/(exp(x) + exp(-x))
        x, minus_x = (builder.argument("exp", argument) for argument in difference.arguments)
        if set(difference.arguments) == set(total.arguments) and None not in (x, minus_x):
            return x if builder.make("negative", x) == minus_x else None
    return None


def _negative(builder: Builder, a: int) -> int | None:
    node = builder.nodes[a]
    if node.operation == "negative":
        return node.arguments[0]
    if node.operation == "subtract":
        return builder.make("subtract", *reversed(node.arguments))
    if node.operation == "multiply" and (number := builder.number(node.arguments[1])) is not None:
        return builder.make("multiply", node.arguments[0], builder.constant(-number))
    return None


def _power(builder: Builder, a: int, b: int) -> int | None:
    base, exponent = builder.number(a), builder.number(b)
    if base is not None and 0.0 < base < math.inf:
        return builder.make("exp", builder.make("multiply", b, builder.constant(math.log(base))))
    if exponent is None:
        return None
    if abs(exponent) == 0.5:
        root = builder.make("sqrt", a)
        return root if exponent > 0 else builder.make("divide", builder.constant(1.0), root)
    if exponent % 1 != 0 or abs(exponent) > _LARGEST_EXPONENT:
        return None
    product, square, rest = builder.constant(1.0), a, int(abs(exponent))
    while rest:
        product = builder.make("multiply", square, product) if rest & 1 else product
        rest >>= 1
        square = builder.make("multiply", square, square) if rest else square
    return product if exponent >= 0 else builder.make("divide", builder.constant(1.0), product)


def _log(builder: Builder, a: int) -> int | None:
    if (x := builder.argument("sigmoid", a)) is not None:
        return builder.make("negative", builder.make("softplus", builder.make("negative", x)))
    node = builder.nodes[a]
    if node.operation == "multiply" and (x := builder.argument("sigmoid", node.arguments[0])) is not None:
        number = builder.number(node.arguments[1])
        if _is_moderate(number) and number > 0.0:  # as in log(1 + tanh(x))
            rest = builder.make("softplus", builder.make("negative", x))
            return builder.make("subtract", builder.constant(math.log(number)), rest)
    if node.operation == "add" and builder.number(node.arguments[1]) == 1.0:
        return builder.make("log1p", node.arguments[0])
    if node.operation == "subtract" and builder.number(node.arguments[0]) == 1.0:
        return builder.make("log1p", builder.make("negative", node.arguments[1]))
    return None


def _log1p(builder: Builder, a: int) -> int | None:
    if (x := builder.argument("exp", a)) is not None:
        return builder.make("softplus", x)
    negated = builder.argument("negative", a)
    if negated is not None and (x := builder.argument("sigmoid", negated)) is not None:
        return builder.make("negative", builder.make("softplus", x))
    return None


def _absolute(builder: Builder, a: int) -> int | None:
    if builder.nodes[a].operation in ("absolute", "relu", "exp", "sigmoid", "softplus"):
        return a
    x = builder.argument("negative", a)
    return None if x is None else builder.make("absolute", x)


def _same(builder: Builder, a: int, b: int) -> int | None:
    return a if a == b else None


def _where(builder: Builder, condition: int, a: int, b: int) -> int | None:
    number = builder.number(condition)
    if number is not None:
        return b if number == 0.0 else a
    if builder.nodes[condition].operation in COMPARISONS and builder.number(a) == 1.0 and builder.number(b) == 0.0:
        return condition
    return _same(builder, a, b)


_RULES: dict[str, Callable[..., int | None]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "negative": _negative,
    "power": _power,
    "log": _log,
    "log1p": _log1p,
    "absolute": _absolute,
    "maximum": _same,
    "minimum": _same,
    "where": _where,
}
