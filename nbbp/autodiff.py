"""Automatic differentiation of single numbers: graphs with `backward`, dual numbers, and traced formulas.

>>> from nbbp import autodiff
>>> x = autodiff.Value(2.0)
>>> y = x * x + autodiff.exp(x)
>>> y.backward()
>>> x.grad == 4.0 + autodiff.exp(2.0)
True

`Value` is a number in a graph that is defined by running it; its meaning follows micrograd, so that a script written
for that runs here. `Dual` carries a derivative along (forward mode). `trace` writes a function out as nodes. All three
take Python's operators, the functions of this module and NumPy's.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbbp.arena import Arena
from nbbp.arithmetic import (
    Arithmetic,
    absolute,
    clip,
    cos,
    equal,
    erf,
    exp,
    expm1,
    is_number,
    log,
    log1p,
    maximum,
    minimum,
    relu,
    sigmoid,
    sign,
    sin,
    softplus,
    sqrt,
    square,
    tanh,
    where,
)
from nbbp.cpu.graph import evaluate
from nbbp.duals import Dual, derivative
from nbbp.scalars.operations import CONSTANT, INPUT, OPERATIONS, Node
from nbbp.tracing import trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Dual",
    "Graph",
    "Node",
    "Value",
    "absolute",
    "clip",
    "cos",
    "derivative",
    "equal",
    "erf",
    "exp",
    "expm1",
    "log",
    "log1p",
    "maximum",
    "minimum",
    "relu",
    "sigmoid",
    "sign",
    "sin",
    "softplus",
    "sqrt",
    "square",
    "tanh",
    "trace",
    "where",
]

_NAMES = tuple(OPERATIONS)
#: What micrograd calls the operations; the others go by their names.
_SYMBOLS = {
    "input": "",
    "constant": "",
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "power": "**",
    "relu": "ReLU",
    "less": "<",
    "less_equal": "<=",
    "equal": "==",
}

_ARENA = Arena()
_LOCK = _ARENA.lock
#: Stands for an argument that an operation does not take.
_NONE = object()
#: Makes a `Value` for a node that is there, without another node of its own.
_new = object.__new__


def _keeping_positions(method: Callable) -> Callable:
    """A method that positions of the arena stay the same in, whatever signal handlers and finalizers do meanwhile."""

    @functools.wraps(method)
    def keeping(self: Any) -> Any:
        with _LOCK:
            depth = _ARENA.depth
            _ARENA.depth = depth + 1
            try:
                if depth:
                    _ARENA.make_room_inside()
                return method(self)
            finally:
                _ARENA.depth = depth

    return keeping


def _float(number: Any) -> float:
    """The number as an array takes it: without reading text."""
    return array("d", (number,))[0]


class Value(Arithmetic):
    """A number in a graph that is defined by running it.

    What is computed from values is a value; `backward` then gives the derivative by each value it depends on.
    Comparisons decide by the numbers, so ``if``, ``max`` and ``sorted`` work; ``==`` asks whether two are the same
    object (`equal` compares the numbers), so that values can be in sets. A copy of a value is a new input.

    Values of several threads may be mixed; threads may build graphs at the same time.

    Parameters
    ----------
    data : float
    _children : str or tuple
        In this place comes the label too; or, as in micrograd, an empty tuple. What is computed knows its children.
    _op : str
        Ignored, for the same reason.
    label : str
        What drawings call it.
    """

    __slots__ = ("__weakref__", "_position")

    def __init__(self, data: float, _children: str | tuple = (), _op: str = "", label: str = "") -> None:
        if not is_number(data):
            raise TypeError(f"a Value holds one real number, got {type(data).__name__}: {data!r}")
        if _children:
            if not isinstance(_children, str):
                raise TypeError("a Value that is made of a number has no children; compute it from them, by operators")
            label = label or _children
        number = float(data)
        with _LOCK:
            depth = _ARENA.depth
            _ARENA.depth = depth + 1
            try:
                if depth:
                    _ARENA.make_room_inside()
                elif _ARENA.n_nodes > _ARENA.limit:
                    _ARENA.make_room()
                _ARENA.append(INPUT, 0, 0, 0, number, self)
                if label:
                    self.label = label
            finally:
                _ARENA.depth = depth

    def _apply(self, code: int, a: Any, b: Any = _NONE, c: Any = _NONE) -> Any:
        # Written for speed: this is all that building a graph costs.
        with _LOCK:
            depth = _ARENA.depth
            _ARENA.depth = depth + 1
            try:
                if depth:
                    _ARENA.make_room_inside()
                elif _ARENA.n_nodes > _ARENA.limit:
                    _ARENA.make_room()
                first = a._position if type(a) is Value else _position_of(a)
                second = first if b is _NONE else (b._position if type(b) is Value else _position_of(b))
                third = first if c is _NONE else (c._position if type(c) is Value else _position_of(c))
                if first is None or second is None or third is None:
                    return NotImplemented
                values = _ARENA.values
                number = evaluate(code, values[first], values[second], values[third])
                result = _new(Value)
                _ARENA.append(code, first, second, third, number, result)
                return result
            finally:
                _ARENA.depth = depth

    @property
    def data(self) -> float:
        """The number. Assigning to an input changes what `forward` computes; an operation's is computed anew there."""
        with _LOCK:
            return _ARENA.values[self._position]

    @data.setter
    def data(self, number: float) -> None:
        if type(number) is not float:
            number = _float(number)
        with _LOCK:
            if _ARENA.depth:
                _ARENA.make_room_inside()
            _ARENA.values[self._position] = number

    @property
    def grad(self) -> float:
        """The derivative by this value of what `backward` was called on; inputs add up what the calls give."""
        with _LOCK:
            return _ARENA.gradients[self._position]

    @grad.setter
    def grad(self, number: float) -> None:
        if type(number) is not float:
            number = _float(number)
        with _LOCK:
            if _ARENA.depth:
                _ARENA.make_room_inside()
            _ARENA.gradients[self._position] = number

    @property
    def label(self) -> str:
        """What drawings call this value."""
        with _LOCK:
            return _ARENA.labels.get(self._position, "")

    @label.setter
    def label(self, text: str) -> None:
        text = str(text)
        with _LOCK:
            if _ARENA.depth:
                _ARENA.make_room_inside()
            _ARENA.labels[self._position] = text

    @_keeping_positions
    def backward(self) -> None:
        """Differentiate this value by all that it depends on, into their `grad`.

        An input's is added to what it holds, so set it to 0 between steps; those of operations are fresh. Values that
        this one does not depend on keep theirs.
        """
        _ARENA.backward(self._position)

    @_keeping_positions
    def forward(self) -> float:
        """Compute this value again, from inputs whose data were assigned to; returns it."""
        _ARENA.forward(self._position)
        return self.data

    @property
    def graph(self) -> Graph:
        """All that this value depends on."""
        return Graph(self)

    @property
    def _op(self) -> str:
        with _LOCK:
            name = _NAMES[_ARENA.codes[self._position]]
        return _SYMBOLS.get(name, name)

    @property
    @_keeping_positions
    def _prev(self) -> set[Value]:
        return {_value_at(position) for position in _arguments(self._position)}

    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return self.data != 0.0

    def __reduce__(self) -> tuple:
        return Value, (self.data, self.label)

    def __repr__(self) -> str:
        return f"Value(data={self.data}, grad={self.grad})"


def _position_of(x: Any) -> int | None:
    """The position of a value, or of a new constant for a plain number; None for anything else."""
    if isinstance(x, Value):
        return x._position
    if type(x) is float or type(x) is int or is_number(x):
        return _ARENA.append(CONSTANT, 0, 0, 0, float(x))
    return None


def _value_at(position: int) -> Value:
    """The value at a position of the arena: the one that there is, or a new one for the same node."""
    value = _ARENA.holder(position)
    if value is None:
        value = _new(Value)
        _ARENA.hold(value, position)
    return value


def _arguments(position: int) -> tuple[int, ...]:
    n_arguments = OPERATIONS[_NAMES[_ARENA.codes[position]]].n_arguments
    return (_ARENA.first[position], _ARENA.second[position], _ARENA.third[position])[:n_arguments]


class Graph:
    """All that a value depends on, itself last.

    Parameters
    ----------
    value : Value
    """

    def __init__(self, value: Value) -> None:
        if not isinstance(value, Value):
            raise TypeError(f"a graph is that of a Value, got {type(value).__name__}")
        self.value = value

    @_keeping_positions
    def __len__(self) -> int:
        return len(_ARENA.reachable(self.value._position))

    @property
    @_keeping_positions
    def nodes(self) -> tuple[Node, ...]:
        """The nodes in topological order; inputs are numbered in the order in which they were made."""
        positions = _ARENA.reachable(self.value._position)
        new = {position: k for k, position in enumerate(positions)}
        nodes = []
        n_inputs = 0
        for position in positions:
            code = _ARENA.codes[position]
            number = _ARENA.values[position] if code == CONSTANT else 0.0
            if code == INPUT:
                number = float(n_inputs)
                n_inputs += 1
            nodes.append(Node(_NAMES[code], tuple(new[p] for p in _arguments(position)), number))
        return tuple(nodes)

    @property
    @_keeping_positions
    def values(self) -> tuple[Value, ...]:
        """The values of the nodes, in the same order."""
        return tuple([_value_at(position) for position in _ARENA.reachable(self.value._position)])

    def forward(self) -> float:
        """Compute all again; see `Value.forward`."""
        return self.value.forward()

    def backward(self) -> None:
        """Differentiate the value; see `Value.backward`."""
        self.value.backward()

    def draw(self, path: str | Path | None = None, axes: Axes | None = None) -> Figure:
        """Draw the graph from left to right: a box per node with label, operation, data and gradient.

        Parameters
        ----------
        path : path-like, optional
            Also save the picture there.
        axes : matplotlib.axes.Axes, optional
            Draw there, and not in a figure of its own.

        Raises
        ------
        ImportError
            Matplotlib is missing.
        ValueError
            The graph has more than 300 nodes.
        """
        from nbbp import graph_drawing

        return graph_drawing.plot_graph(self, path, axes)
