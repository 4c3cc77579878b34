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
from nbbp.scalars.operations import ADD, INPUT

__all__ = ["Arena", "compile_sweeps"]

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
    codes, first, second, third, values, gradients : array, length capacity
        The columns; see nbbp/cpu/graph.py.
    labels : dict of int to str
        What nodes are called, by position.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._adopt(_columns(_SMALLEST), 0, [], {})

    def append(self, code: int, first: int, second: int, third: int, number: float, handle: Any = None) -> int:
        """Write a node, for a handle or for none; returns its position, which holds until the next `make_room`.

        Its gradient is 0 already, as those of all free positions are.
        """
        p = self.n_nodes
        self.n_nodes = p + 1
        self.codes[p] = code
        self.first[p] = first
        self.second[p] = second
        self.third[p] = third
        self.values[p] = number
        if handle is not None:
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
        marks = np.array([handle is not None for handle in alive], np.uint8)
        graph.mark_arguments(*self._tree, marks)
        kept = np.flatnonzero(marks)
        moved = np.cumsum(marks, dtype=np.int32) - np.int32(1)
        capacity = _SMALLEST
        while capacity < 2 * len(kept):
            capacity *= 2
        columns = _columns(capacity)
        codes, *arguments, values, gradients, _ = (np.frombuffer(column, column.typecode) for column in columns)
        for new, old in ((codes, self._tree[0]), (values, self._values), (gradients, self._gradients)):
            new[: len(kept)] = old[kept]
        for new, old in zip(arguments, self._tree[1:], strict=True):
            new[: len(kept)] = moved[old[kept]]
        held = [(handle, p) for handle, p in zip(alive, moved.tolist(), strict=True) if handle is not None]
        labels = {int(moved[p]): label for p, label in self.labels.items() if marks[p]}
        try:
            self._adopt(columns, len(kept), held, labels)
        except BaseException:  # Ctrl-C must not leave some handles with new positions and some with old ones
            self._adopt(columns, len(kept), held, labels)
            raise

    def _adopt(self, columns: list[array], n_nodes: int, held: list[tuple[Any, int]], labels: dict[int, str]) -> None:
        """Take columns that hold so many nodes, with their handles and labels. May be called twice with the same."""
        views = [np.frombuffer(column, column.typecode) for column in columns]
        self.codes, self.first, self.second, self.third, self.values, self.gradients, _ = columns
        *self._tree, self._values, self._gradients, self._marks = views
        self.n_nodes = n_nodes
        self.capacity = len(columns[0])
        self.limit = self.capacity - _OPERATION
        self.labels = labels
        self._handles: list[weakref.ref | None] = [None] * self.capacity
        for handle, position in held:
            self.hold(handle, position)


def _columns(capacity: int) -> list[array]:
    """Columns of zeros: arrays, whose items Python reads and writes fastest, and whose memory NumPy shares."""
    return [array(kind, bytes(capacity * array(kind).itemsize)) for kind in _COLUMNS]


def compile_sweeps() -> None:
    """Compile, or load from the cache, all that runs over graphs."""
    arena = Arena()
    arena.append(INPUT, 0, 0, 0, 1.0)
    arena.forward(0)
    arena.backward(0)
    arena.reachable(0)
    arena.make_room()
    graph.evaluate(ADD, 1.0, 1.0, 1.0)
    graph.evaluate_dual(ADD, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
