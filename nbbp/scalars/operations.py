"""The operations of formulas as data: what a node of a formula may be.

A formula is a tuple of nodes; the first ones are its inputs, the last one is its result, and every node names the
earlier nodes that it takes by their positions.
"""

from dataclasses import dataclass

__all__ = ["OPERATIONS", "Node", "Operation"]


@dataclass(frozen=True)
class Operation:
    """One operation: its name, its code and how many arguments it takes."""

    name: str
    code: int
    n_arguments: int


@dataclass(frozen=True)
class Node:
    """One node of a formula.

    Attributes
    ----------
    operation : str
        A key of `OPERATIONS`.
    arguments : tuple of int
        Positions of earlier nodes.
    number : float
        The value of a "constant", the index of an "input".
    """

    operation: str
    arguments: tuple[int, ...] = ()
    number: float = 0.0


_ARGUMENTS = {
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
    name: Operation(name, code, n_arguments) for code, (name, n_arguments) in enumerate(_ARGUMENTS.items())
}
"""Every operation by name, in the order of their codes."""
