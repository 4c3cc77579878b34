"""The derivative of a formula as a formula, by reverse mode: the chain rule from the result back to the input.

At a kink the derivative is PyTorch's: 0 for relu, absolute and sign at 0, halves for the maximum and minimum of equal
numbers. What ``where``, relu, maximum and minimum do not select has no part in the derivative, even where its own is
infinite or NaN, as that of ``where(x > 0, log(x), 0)`` is at 0. (In PyTorch 0 times infinity is NaN there.) Only a mask
that is written as a product, ``(x > 0) * log(x)``, hides nothing; its value is NaN at 0 already.
"""

import math
from collections.abc import Callable, Sequence

from nbbp.scalars.operations import Node
from nbbp.scalars.simplification import Builder, count_inputs
from nbbp.scalars.writing import COMPARISONS

__all__ = ["derivative"]


def derivative(nodes: Sequence[Node], with_respect_to: int = 0) -> tuple[Node, ...]:
    """The derivative of a formula by one of its inputs, in its simplest form.

    Parameters
    ----------
    nodes : sequence of Node
    with_respect_to : int
        Index of the input.

    Returns
    -------
    tuple of Node
        A formula of the same inputs.
    """
    builder = _Adjoints(count_inputs(nodes))
    result = builder.extend(nodes)[-1]
    depends = [position == with_respect_to for position in range(count_inputs(nodes))]
    for node in builder.nodes[len(depends) : result + 1]:
        depends.append(any(depends[argument] for argument in node.arguments))
    adjoints = {result: builder.constant(1.0)}
    for position in range(result, -1, -1):
        node = builder.nodes[position]
        if position not in adjoints or not depends[position] or node.operation not in _RULES:
            continue
        back = _RULES[node.operation](builder, adjoints[position], position, *node.arguments)
        for argument, adjoint in zip(node.arguments[-len(back) :], back, strict=True):
            if depends[argument]:
                adjoints[argument] = builder.sum(adjoints[argument], adjoint) if argument in adjoints else adjoint
    return builder.finish(adjoints.get(with_respect_to, builder.constant(0.0)))


class _Adjoints(Builder):
    """Makes nodes, and adjoints: the derivatives of the result by each node."""

    def through(self, adjoint: int, function: Callable[[int], int]) -> int:
        """`function` of an adjoint, which is linear in it: where no adjoint comes through, none goes on."""
        masks = []
        while True:
            node = self.nodes[adjoint]
            if node.operation in COMPARISONS:
                masks.append((adjoint, True))
                adjoint = self.constant(1.0)
            elif node.operation == "where" and 0.0 in (sides := [self.number(side) for side in node.arguments[1:]]):
                masks.append((node.arguments[0], sides[1] == 0.0))
                adjoint = node.arguments[1 if sides[1] == 0.0 else 2]
            else:
                break
        adjoint = adjoint if self.number(adjoint) == 0.0 else function(adjoint)
        for condition, selects in reversed(masks):
            adjoint = self.masked(condition, adjoint, selects)
        return adjoint

    def masked(self, condition: int, adjoint: int, selects: bool = True) -> int:
        """The adjoint where the condition holds (or does not), else 0."""
        zero = self.constant(0.0)
        return self.make("where", condition, *((adjoint, zero) if selects else (zero, adjoint)))

    def sum(self, a: int, b: int) -> int:
        """The sum of two adjoints, side by side where both depend on the same condition."""
        first, second = self.nodes[a], self.nodes[b]
        if first.operation == second.operation == "where" and first.arguments[0] == second.arguments[0]:
            sides = (self.make("add", x, y) for x, y in zip(first.arguments[1:], second.arguments[1:], strict=True))
            return self.make("where", first.arguments[0], *sides)
        return self.make("add", a, b)

    def times(self, adjoint: int, factor: int) -> int:
        return self.through(adjoint, lambda g: self.make("multiply", g, factor))

    def over(self, adjoint: int, divisor: int) -> int:
        return self.through(adjoint, lambda g: self.make("divide", g, divisor))

    def minus(self, adjoint: int) -> int:
        return self.through(adjoint, lambda g: self.make("negative", g))


def _multiply(adjoints: _Adjoints, g: int, y: int, a: int, b: int) -> tuple[int, ...]:
    return adjoints.times(g, b), adjoints.times(g, a)


def _divide(adjoints: _Adjoints, g: int, y: int, a: int, b: int) -> tuple[int, ...]:
    by_b = adjoints.minus(adjoints.over(adjoints.times(g, y), b))
    return adjoints.over(g, b), by_b


def _power(adjoints: _Adjoints, g: int, y: int, a: int, b: int) -> tuple[int, ...]:
    zero, one = adjoints.constant(0.0), adjoints.constant(1.0)
    slope = adjoints.make("multiply", b, adjoints.make("power", a, adjoints.make("subtract", b, one)))
    if adjoints.number(b) is None:
        slope = adjoints.masked(adjoints.make("equal", b, zero), slope, selects=False)
    by_exponent = adjoints.make("multiply", y, adjoints.make("log", a))
    by_exponent = adjoints.masked(adjoints.make("equal", a, zero), by_exponent, selects=False)
    return adjoints.times(g, slope), adjoints.times(g, by_exponent)


def _tanh(adjoints: _Adjoints, g: int, y: int, a: int) -> tuple[int, ...]:
    return (adjoints.times(g, adjoints.make("subtract", adjoints.constant(1.0), adjoints.make("multiply", y, y))),)


def _sigmoid(adjoints: _Adjoints, g: int, y: int, a: int) -> tuple[int, ...]:
    rest = adjoints.make("subtract", adjoints.constant(1.0), y)
    return (adjoints.times(g, adjoints.make("multiply", y, rest)),)


def _erf(adjoints: _Adjoints, g: int, y: int, a: int) -> tuple[int, ...]:
    bell = adjoints.make("exp", adjoints.make("negative", adjoints.make("multiply", a, a)))
    scale = adjoints.constant(2.0 / math.sqrt(math.pi))
    return (adjoints.times(g, adjoints.make("multiply", bell, scale)),)


def _where(adjoints: _Adjoints, g: int, y: int, condition: int, a: int, b: int) -> tuple[int, ...]:
    return adjoints.masked(condition, g), adjoints.masked(condition, g, selects=False)


def _relu(adjoints: _Adjoints, g: int, y: int, a: int) -> tuple[int, ...]:
    return (adjoints.masked(adjoints.make("less_equal", a, adjoints.constant(0.0)), g, selects=False),)


def _extreme(operation: str) -> Callable[..., tuple[int, ...]]:
    def back(adjoints: _Adjoints, g: int, y: int, a: int, b: int) -> tuple[int, ...]:
        half = adjoints.times(g, adjoints.constant(0.5))
        share = adjoints.make("where", adjoints.make("equal", a, b), half, g)
        losing = [adjoints.make("less", a, b), adjoints.make("less", b, a)]
        losing = losing if operation == "maximum" else losing[::-1]
        return tuple(adjoints.masked(loses, share, selects=False) for loses in losing)

    return back


_RULES: dict[str, Callable[..., tuple[int, ...]]] = {
    "add": lambda adjoints, g, y, a, b: (g, g),
    "subtract": lambda adjoints, g, y, a, b: (g, adjoints.minus(g)),
    "multiply": _multiply,
    "divide": _divide,
    "power": _power,
    "negative": lambda adjoints, g, y, a: (adjoints.minus(g),),
    "exp": lambda adjoints, g, y, a: (adjoints.times(g, y),),
    "log": lambda adjoints, g, y, a: (adjoints.over(g, a),),
    "tanh": _tanh,
    "relu": _relu,
    "sigmoid": _sigmoid,
    "sqrt": lambda adjoints, g, y, a: (adjoints.over(adjoints.times(g, adjoints.constant(0.5)), y),),
    "sin": lambda adjoints, g, y, a: (adjoints.times(g, adjoints.make("cos", a)),),
    "cos": lambda adjoints, g, y, a: (adjoints.minus(adjoints.times(g, adjoints.make("sin", a))),),
    "absolute": lambda adjoints, g, y, a: (adjoints.times(g, adjoints.make("sign", a)),),
    "maximum": _extreme("maximum"),
    "minimum": _extreme("minimum"),
    "where": _where,
    "expm1": lambda adjoints, g, y, a: (adjoints.times(g, adjoints.make("add", y, adjoints.constant(1.0))),),
    "log1p": lambda adjoints, g, y, a: (adjoints.over(g, adjoints.make("add", a, adjoints.constant(1.0))),),
    "erf": _erf,
    "softplus": lambda adjoints, g, y, a: (adjoints.times(g, adjoints.make("sigmoid", a)),),
}
