"""Formulas as plain data, which a file can hold: written out, and read back with nothing taken on trust.

A formula is a list of nodes ``[operation, arguments, number]``: the name of an operation, the positions of earlier
nodes that it takes, and the value of a constant or the index of an input (else 0). A number is a float, or "inf",
"-inf" or "nan", which JSON has no numbers for. The inputs come first, the result last.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from nbbp.scalars.operations import OPERATIONS, Node

__all__ = ["LARGEST", "from_data", "to_data"]

#: Nodes of a formula, at most: one of so many takes a compiler minutes.
LARGEST = 2000

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def to_data(nodes: Sequence[Node]) -> list[list]:
    """The formula as lists, strings and numbers."""
    return [[node.operation, list(node.arguments), _written(node.number)] for node in nodes]


def _written(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def from_data(data: Any, n_inputs: int, what: str) -> tuple[Node, ...]:
    """The formula of what `to_data` gave.

    Parameters
    ----------
    data : list of [str, list of int, float]
    n_inputs : int
        How many inputs it has to have.
    what : str
        What the formula is, for the message.

    Raises
    ------
    ValueError
        If `data` is anything else; the message says what is wrong.
    """
    if not isinstance(data, (list, tuple)):
        raise ValueError(f"{what} must be a list of nodes; got {type(data).__name__}")
    if not n_inputs <= len(data) <= LARGEST:
        raise ValueError(f"{what} has {len(data):,} nodes; expected {n_inputs} to {LARGEST:,}")
    nodes = tuple(_node(entry, position, f"{what}: node {position}") for position, entry in enumerate(data))
    for position, node in enumerate(nodes):
        if (node.operation == "input") != (position < n_inputs) or (
            node.operation == "input" and node.number != position
        ):
            names = "input 0" if n_inputs == 1 else f"inputs 0 to {n_inputs - 1}"
            raise ValueError(f"{what}: node {position} is {data[position]!r}; a formula has its {names} first, once")
    return nodes


def _node(entry: Any, position: int, what: str) -> Node:
    if not isinstance(entry, (list, tuple)) or len(entry) != 3:
        raise ValueError(f"{what} is {entry!r}; expected [operation, arguments, number]")
    operation, arguments, number = entry
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise ValueError(f"{what} has the unknown operation {operation!r}; there are: {', '.join(OPERATIONS)}")
    wanted = OPERATIONS[operation].n_arguments
    if not isinstance(arguments, (list, tuple)) or len(arguments) != wanted:
        raise ValueError(f"{what}: {operation} takes {wanted} arguments; got {arguments!r}")
    for argument in arguments:
        if type(argument) is not int or not 0 <= argument < position:
            raise ValueError(f"{what} takes {argument!r}; expected the position of an earlier node")
    if isinstance(number, str) and number in _NOT_FINITE:
        number = _NOT_FINITE[number]
    elif type(number) not in (int, float) or not abs(number) <= sys.float_info.max:
        raise ValueError(f"{what} has the number {number!r}; expected a finite one, 'inf', '-inf' or 'nan'")
    if operation not in ("input", "constant") and number != 0:
        raise ValueError(f"{what} has the number {number!r}; only inputs and constants have one")
    return Node(operation, tuple(arguments), float(number))
