"""Writing a function of numbers out as nodes, by calling it with symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbbp.arithmetic import Arithmetic, is_number
from nbbp.scalars.operations import CONSTANT, INPUT, MULTIPLY, OPERATIONS, Node, needed

__all__ = ["Symbol", "trace"]

_NAMES = tuple(OPERATIONS)


class Symbol(Arithmetic):
    """A number without a value: a node of a formula that is being traced."""

    __slots__ = ("_nodes", "_position")

    def __init__(self, nodes: list[Node], node: Node) -> None:
        self._nodes = nodes
        self._position = len(nodes)
        nodes.append(node)

    def _apply(self, code: int, *arguments: Any) -> Any:
        if not all(isinstance(x, Symbol) or is_number(x) for x in arguments):
            return NotImplemented
        positions = []
        for x in arguments:
            if not isinstance(x, Symbol):
                x = Symbol(self._nodes, Node(_NAMES[CONSTANT], (), float(x)))
            elif x._nodes is not self._nodes:
                raise TypeError("this formula uses a number of another formula, which was traced before")
            positions.append(x._position)
        return Symbol(self._nodes, Node(_NAMES[code], tuple(positions)))

    def __bool__(self) -> bool:
        raise TypeError(
            "a formula that is traced has no numbers yet, so `if`, `and`, `or`, `not`, min and max cannot decide: "
            "use np.where(condition, a, b), np.maximum or np.minimum, and & | ~ between conditions"
        )

    def __float__(self) -> float:
        raise TypeError(
            "a formula that is traced has no numbers yet, so float() has nothing to return; math.exp and its like "
            "call it: use np.exp and its like, and np.where or np.maximum instead of `if`"
        )

    __int__ = __float__

    def __repr__(self) -> str:
        return f"<Symbol: {self._nodes[self._position].operation}>"


def trace(function: Callable, n_inputs: int) -> tuple[Node, ...]:
    """Write a function out as nodes, by calling it once with symbols in place of numbers.

    Parameters
    ----------
    function : callable
        Takes ``n_inputs`` numbers and returns one, by operators and by functions of NumPy or `nbbp.autodiff`. Of a
        jitted function the Python source is called.
    n_inputs : int

    Returns
    -------
    tuple of Node
        The inputs in order, used or not; then what the result depends on, each node after its arguments; the result
        last. For a function that returns a plain number that is a constant.

    Raises
    ------
    TypeError
        The function decides by a number (``if``, ``float``), or does not return a number.
    """
    if isinstance(n_inputs, bool) or not isinstance(n_inputs, int) or n_inputs < 0:
        raise ValueError(f"n_inputs counts the inputs of the function; got {n_inputs!r}")
    nodes: list[Node] = []
    inputs = [Symbol(nodes, Node(_NAMES[INPUT], (), float(index))) for index in range(n_inputs)]
    result = getattr(function, "py_func", function)(*inputs)
    if is_number(result):
        return (*nodes[:n_inputs], Node(_NAMES[CONSTANT], (), float(result)))
    if not isinstance(result, Symbol) or result._nodes is not nodes:
        came = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"{type(result).__name__}: {result!r}"
        raise TypeError(f"a formula returns one number, made of its arguments; this one returned {came}")
    if result._position < n_inputs - 1:
        result = result._apply(MULTIPLY, result, 1.0)  # the result has to be last
    return needed(nodes, n_inputs, result._position)
