"""The primitive operations that a scalar computational graph is made of: their names, codes and arguments.

A code is what arrays of nodes hold and machine code branches on; a name is what people and descriptions read. The
formulas of values and derivatives are in `nbbp.scalars.primitives`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["OPERATIONS", "Node", "Operation", "needed"]


@dataclass(frozen=True)
class Operation:
    """One primitive operation.

    Attributes
    ----------
    name : str
        Its key in `OPERATIONS`.
    code : int
        Its position in `OPERATIONS`.
    n_arguments : int
        How many numbers it takes; 0 for inputs and constants.
    """

    name: str
    code: int
    n_arguments: int


@dataclass(frozen=True)
class Node:
    """One node of a graph that is written out as a tuple of nodes, each after those it takes.

    Attributes
    ----------
    operation : str
        A name in `OPERATIONS`.
    arguments : tuple of int
        Positions of the nodes that it takes, in order; all smaller than its own.
    number : float
        The value of a "constant", the index of an "input"; 0 otherwise.
    """

    operation: str
    arguments: tuple[int, ...] = ()
    number: float = 0.0


def needed(nodes: Sequence[Node], n_inputs: int, result: int) -> tuple[Node, ...]:
    """The inputs, which are the first nodes, and what the result depends on, with positions among themselves."""
    kept = {*range(n_inputs), result}
    for position in range(result, -1, -1):
        if position in kept:
            kept.update(nodes[position].arguments)
    new = {position: k for k, position in enumerate(sorted(kept))}
    return tuple(
        Node(nodes[position].operation, tuple(new[p] for p in nodes[position].arguments), nodes[position].number)
        for position in new
    )


_N_ARGUMENTS = {
    "input": 0,
    "constant": 0,
    "add": 2,
    "subtract": 2,
    "multiply": 2,
    "divide": 2,
    "power": 2,
    "negative": 1,
    "exp": 1,
    "log": 1,
    "tanh": 1,
    "relu": 1,
    "sigmoid": 1,
    "sqrt": 1,
    "sin": 1,
    "cos": 1,
    "absolute": 1,
    "maximum": 2,
    "minimum": 2,
    "less": 2,
    "less_equal": 2,
    "equal": 2,
    "where": 3,
    "expm1": 1,
    "log1p": 1,
    "erf": 1,
    "softplus": 1,
    "sign": 1,
}

OPERATIONS: dict[str, Operation] = {
    name: Operation(name, code, n_arguments) for code, (name, n_arguments) in enumerate(_N_ARGUMENTS.items())
}
"""Every operation by name, in the order of their codes. Comparisons give 1 or 0; ``where`` takes (condition, a, b)."""

# The codes under names of their own, which jitted code takes as constants.
INPUT, CONSTANT, ADD, SUBTRACT, MULTIPLY, DIVIDE, POWER, NEGATIVE = range(8)
EXP, LOG, TANH, RELU, SIGMOID, SQRT, SIN, COS = range(8, 16)
ABSOLUTE, MAXIMUM, MINIMUM, LESS, LESS_EQUAL, EQUAL, WHERE = range(16, 23)
EXPM1, LOG1P, ERF, SOFTPLUS, SIGN = range(23, 28)
