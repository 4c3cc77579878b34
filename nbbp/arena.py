"""Where the nodes of scalar graphs lie: one arena of typed arrays, and who still holds which node.

Nodes are appended in the order in which they are made, which is a topological order. A handle is an object with a
``_position`` that stands for a node; the arena holds it weakly. When its arrays are full it drops the nodes that no
living handle depends on, moves the others together, and tells their handles.
"""

import threading
import weakref
from array import array
from typing import Any

import numpy as np

from nbbp.cpu import graph

__all__ = ["Arena"]

#: Typecodes of the columns: operation, three arguments, value, gradient, mark. See nbbp/cpu/graph.py.
_COLUMNS = ("B", "i", "i", "i", "d", "d", "B")
_SMALLEST = 1024
#: Nodes that one operation can take: itself and three constants.
_OPERATION = 4


class Arena:
    """Nodes in arrays, with the handles that keep them.

    Every method is called with `lock` held, which also covers what a caller does with a position.

    Attributes
    ----------
    n_nodes : int
        Positions in use; those of dropped nodes count until the next compaction.
    capacity, limit : int
        Positions there are, and how many may be in use before an operation for which there is room.
    lock : RLock
    values, gradients : array of float64, length capacity
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.n_nodes = 0
        self.labels: dict[int, str] = {}
        self._allocate(_SMALLEST)
        self._handles: list[weakref.ref | None] = [None] * _SMALLEST

    def append(self, code: int, first: int, second: int, third: int, number: float, handle: Any = None) -> int:
        """Write a node, for a handle or for none; returns its position, which holds until the next `make_room`."""
        p = self.n_nodes
        self.n_nodes = p + 1
        self.codes[p] = code
        self.first[p] = first
        self.second[p] = second
        self.third[p] = third
        self.values[p] = number
        self.gradients[p] = 0.0
        if handle is None:
            self._handles[p] = None
        else:
            handle._position = p
            self._handles[p] = weakref.ref(handle)
        return p

    def hold(self, handle: Any, position: int) -> None:
        """Let a handle stand for the node at a position, which it keeps from now on."""
        handle._position = position
        self._handles[position] = weakref.ref(handle)

    def holder(self, position: int) -> Any:
        """The living handle of a node, or None."""
        reference = self._handles[position]
        return None if reference is None else reference()

    def forward(self, root: int) -> None:
        """Evaluate again all that the node at this position depends on, and itself."""
        graph.forward(*self._tree, self._values, self._marks, root)

    def backward(self, root: int) -> None:
        """Differentiate the node at this position by all that it depends on."""
        graph.backward(*self._tree, self._values, self._gradients, self._marks, root)

    def reachable(self, root: int) -> list[int]:
        """Positions of all that the node at this position depends on, in order, itself last."""
        return graph.reachable(*self._tree, self._marks, root).tolist()

    def make_room(self) -> None:
        """Drop what no handle depends on; positions change. At least half of the arrays is free afterwards."""
        alive = [None if reference is None else reference() for reference in self._handles[: self.n_nodes]]
        self._marks[: self.n_nodes] = [handle is not None for handle in alive]
        moved = np.full(self.n_nodes, -1, np.int32)
        n_kept = graph.compact(*self._tree, self._values, self._gradients, self._marks, self.n_nodes, moved)
        capacity = _SMALLEST
        while capacity < 2 * n_kept:
            capacity *= 2
        handles: list[weakref.ref | None] = [None] * capacity
        new = moved.tolist()
        for position, handle in enumerate(alive):
            if handle is not None:
                handle._position = new[position]
                handles[new[position]] = self._handles[position]
        self.labels = {new[position]: label for position, label in self.labels.items() if new[position] >= 0}
        self.n_nodes = n_kept
        self._handles = handles
        if capacity != self.capacity:
            kept = (*self._tree, self._values, self._gradients)
            self._allocate(capacity)
            for column, before in zip((*self._tree, self._values, self._gradients), kept, strict=True):
                column[:n_kept] = before[:n_kept]

    def _allocate(self, capacity: int) -> None:
        """Make the columns: arrays, whose items Python reads and writes fastest, and NumPy's views of the same."""
        columns = [array(kind, bytes(capacity * array(kind).itemsize)) for kind in _COLUMNS]
        views = [np.frombuffer(column, dtype=column.typecode) for column in columns]
        self.codes, self.first, self.second, self.third, self.values, self.gradients, _ = columns
        *self._tree, self._values, self._gradients, self._marks = views
        self.capacity = capacity
        self.limit = capacity - _OPERATION
