"""Where the nodes of scalar graphs lie: one arena of typed arrays, and who still holds which node.

Nodes are appended in the order in which they are made, which is a topological order. A handle is an object with a
``_position`` that stands for a node; the arena holds it weakly. When its arrays are full it drops the nodes that no
living handle depends on, moves the others together, and tells their handles.

A signal handler or a finalizer may use the arena while the same thread is in the midst of it, between any two calls of
Python functions; no lock keeps that out. So whoever uses positions for longer than one line counts himself in `depth`,
and who finds somebody there calls `make_room_inside`, after which all positions are what they were.
"""

import threading
import weakref
from array import array
from collections.abc import Sequence
from itertools import repeat
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
#: Sweeps that are compiled.
_tried: set[str] = set()


class Arena:
    """Nodes in arrays, with the handles that keep them.

    Every method is called with `lock` held, which also covers what a caller does with a position.

    Attributes
    ----------
    n_nodes : int
        Positions in use; those of dropped nodes count until the next compaction.
    capacity, limit : int
        Positions there are, and how many may be in use before an operation for which there is room.
    depth : int
        Operations that have begun and not ended, each inside the one before; the lock's holder counts.
    lock : RLock
    codes, first, second, third, values, gradients : array, length capacity
        The columns; see nbbp/cpu/graph.py.
    labels : dict of int to str
        What nodes are called, by position.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.depth = 0
        self._values = None
        self._adopt(None, _columns(_SMALLEST), [None] * _SMALLEST, {})

    def append(self, code: int, first: int, second: int, third: int, number: float, handle: Any = None) -> int:
        """Write a node, for a handle or for none; returns its position, which holds until the next `make_room`.

        Its gradient is 0 already, as those of all free positions are.
        """
        reference = None if handle is None else weakref.ref(handle)
        p = self.n_nodes
        self.n_nodes = p + 1
        self.codes[p] = code
        self.first[p] = first
        self.second[p] = second
        self.third[p] = third
        self.values[p] = number
        self._handles[p] = reference
        if handle is not None:
            handle._position = p
        return p

    def hold(self, handle: Any, position: int) -> None:
        """Let a handle stand for the node at a position, which it keeps from now on."""
        reference = weakref.ref(handle)
        handle._position = position
        self._handles[position] = reference

    def holder(self, position: int) -> Any:
        """The living handle of a node, or None."""
        reference = self._handles[position]
        return None if reference is None else reference()

    def forward(self, root: int) -> None:
        """Evaluate again all that the node at this position depends on, and itself."""
        if "forward" not in _tried:
            _try("forward")
        graph.forward(*self._tree, self._values, self._marks, root)

    def backward(self, root: int) -> None:
        """Differentiate the node at this position by all that it depends on."""
        if "backward" not in _tried:
            _try("backward")
        graph.backward(*self._tree, self._values, self._gradients, self._marks, root)

    def reachable(self, root: int) -> list[int]:
        """Positions of all that the node at this position depends on, in order, itself last."""
        if "reachable" not in _tried:
            _try("reachable")
        return graph.reachable(*self._tree, self._marks, root).tolist()

    def make_room(self) -> None:
        """Drop what no handle depends on; positions change. At least half of the arrays is free afterwards."""
        # All of one moment, which stays as it is: what is made meanwhile makes `_adopt` decline.
        n_nodes, tree, values, gradients = self.n_nodes, self._tree, self._values, self._gradients
        held, labelled = self._handles, self.labels
        self._is_compacting = True
        try:
            # The handles stay alive until they have moved.
            alive = [None if reference is None else reference() for reference in held[:n_nodes]]
            marks = np.array([handle is not None for handle in alive], np.uint8)
            graph.mark_arguments(*tree, marks)
            kept = np.flatnonzero(marks)
            moved = np.cumsum(marks, dtype=np.int32) - np.int32(1)
            capacity = _SMALLEST
            while capacity < 2 * len(kept):
                capacity *= 2
            columns = _copy(tree, values, gradients, capacity, kept, moved)
            references = [held[p] for p in kept.tolist()]
            references.extend([None] * (capacity - len(kept)))
            labels = {int(moved[p]): label for p, label in labelled.copy().items() if marks[p]}
            positions = [p for handle, p in zip(alive, moved.tolist(), strict=True) if handle is not None]
            handles = [handle for handle in alive if handle is not None]
            self._adopt(values, columns, references, labels, len(kept), handles, positions)
        finally:
            self._is_compacting = False

    def make_room_inside(self) -> None:
        """Make room for one more operation inside those that have begun, all of which keep their room and positions.

        Also to be called before anything else is written inside an operation: `make_room` may be copying what it is.
        """
        if self._is_compacting:  # nobody has taken a position yet: so finish it, lest it never ends
            self.make_room()
        if not self._is_growing and self.n_nodes + _OPERATION * (self.depth + 1) <= self.capacity:
            return
        n_nodes, tree, values, gradients = self.n_nodes, self._tree, self._values, self._gradients
        held, capacity = self._handles, 2 * self.capacity
        self._is_growing = True
        kept = np.arange(n_nodes, dtype=np.int32)
        while capacity < n_nodes + 2 * _OPERATION * (self.depth + 1):
            capacity *= 2
        columns = _copy(tree, values, gradients, capacity, kept, kept)
        references = held[:n_nodes]
        references.extend([None] * (capacity - n_nodes))
        self._adopt(values, columns, references, self.labels, n_nodes)

    def _adopt(
        self,
        replaced: np.ndarray | None,
        columns: list[array],
        references: list[weakref.ref | None],
        labels: dict[int, str],
        n_nodes: int = 0,
        handles: Sequence[Any] = (),
        positions: Sequence[int] = (),
    ) -> None:
        """Take columns that hold so many nodes, with references to their handles, whose positions are new.

        Declines where the columns whose values were `replaced` are no longer those of the arena: somebody inside made
        room meanwhile, enough for all.
        """
        *tree, numbers, gradients, marks = [np.frombuffer(column, column.typecode) for column in columns]
        tree = tuple(tree)
        capacity = len(references)
        move = map(setattr, handles, repeat("_position"), positions)
        if self._values is not replaced:
            return
        # From here on no Python code can come in between: no call but the last, which stays in C.
        self.codes, self.first, self.second, self.third, self.values, self.gradients, _ = columns
        self._tree = tree
        self._values = numbers
        self._gradients = gradients
        self._marks = marks
        self._handles = references
        self._is_compacting = self._is_growing = False
        self.n_nodes = n_nodes
        self.capacity = capacity
        self.limit = capacity - _OPERATION
        self.labels = labels
        any(move)


def _columns(capacity: int) -> list[array]:
    """Columns of zeros: arrays, whose items Python reads and writes fastest, and whose memory NumPy shares."""
    return [array(kind, bytes(capacity * array(kind).itemsize)) for kind in _COLUMNS]


def _copy(
    tree: tuple[np.ndarray, ...],
    values: np.ndarray,
    gradients: np.ndarray,
    capacity: int,
    kept: np.ndarray,
    moved: np.ndarray,
) -> list[array]:
    """New columns with the nodes at positions `kept`, whose arguments are now at ``moved[argument]``."""
    columns = _columns(capacity)
    codes, *arguments, new_values, new_gradients, _ = (np.frombuffer(column, column.typecode) for column in columns)
    for new, old in ((codes, tree[0]), (new_values, values), (new_gradients, gradients)):
        new[: len(kept)] = old[kept]
    for new, old in zip(arguments, tree[1:], strict=True):
        new[: len(kept)] = moved[old[kept]]
    return columns


def _try(name: str) -> None:
    """Run a sweep on a single node: one that is not compiled yet would take arrays that are replaced meanwhile."""
    _tried.add(name)
    getattr(Arena(), name)(0)


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
