"""A program: a network, its loss and its optimizer as a table of ops over named buffers.

A program is data that any engine can run: rows of ops (columns in nbbp/ops.py), tiles that say which ops run on which
part of the batch, phases that say which tiles may run at the same time, and the sizes of the buffers. It holds no
addresses and no arrays of the caller; an engine binds it. nbbp/lowering.py writes programs.

Legend: a buffer is a name and a length in numbers. "parameters", "slot 0" … "slot 2" belong to the model; "X",
"target", "sample weight", "order", "loss values", "metric values 0" … and "output" to the caller; the others are the
workspace. Rows of workspace buffers are padded to whole vector registers, with room behind the last unit for the 1 that
makes a bias the last row of its weight.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from nbbp import ops
from nbbp.ops import UserFunction

#: Rows are padded to this many numbers: a vector register of any processor.
PADDING = 16
#: A row stride that is a multiple of this many numbers sends every row to the same few cache sets.
_ALIASING = 256


@dataclass(frozen=True)
class Place:
    """A place in a buffer: its name and how many numbers into it."""

    buffer: str
    offset: int = 0


@dataclass(frozen=True)
class Values:
    """A matrix (batch, width) in the workspace.

    Attributes
    ----------
    buffer : str
    width, stride : int
        Numbers of a row, and from one row to the next.
    is_free : bool
        Whether nobody reads the numbers later but who comes next, which may then overwrite them.
    """

    buffer: str
    width: int
    stride: int
    is_free: bool = False


@dataclass
class Op:
    """One row: which kernel, of which variant, with which columns; and what it is a part of.

    Attributes
    ----------
    phase : str
        Of the step: "gather", "forward", "loss", "backward", "weight gradients", "update" …
    layer : str
        Path of the layer that it works for; "" for the network as a whole.
    """

    kernel: str
    variant: int | str | UserFunction = 0
    columns: dict[int, int | Place] = field(default_factory=dict)
    phase: str = "forward"
    layer: str = ""

    def places(self) -> list[Place]:
        """The columns that are places in buffers."""
        return [value for value in self.columns.values() if isinstance(value, Place)]


@dataclass
class Program:
    """Ops, tiles, phases and buffers; see the module's docstring.

    Attributes
    ----------
    batch : int
        Rows of a whole batch.
    ops : list of Op
    tiles : ndarray of int64, (n_tiles, ops.N_TILE_COLUMNS)
    phases : ndarray of int64, (n_phases + 1,)
        Where each phase's tiles begin.
    buffers : dict of str to int
        Workspace buffers and their lengths.
    ones : list of (str, int, int)
        Buffer, column and stride of the constant 1 of every row that feeds a bias.
    settings : list of float
        What `SETTINGS` columns point into.
    scratch : int
        Numbers of scratch that each thread needs.
    is_shared : bool
        Whether a step is long enough for more than one thread.
    outputs : dict of str to Values
        What the outermost layers give, by path.
    keeps_outputs : bool
        Whether somebody reads that when a step is done.
    taken : list of Values
        Every matrix that was asked for, in this order.
    monitored : (tiles, phases) or None
        Of the steps that are monitored, where there are such.
    task : str
        What it is for: "training", "gradients", "evaluation" or "prediction".
    """

    batch: int
    ops: list[Op] = field(default_factory=list)
    tiles: np.ndarray = field(default_factory=lambda: np.empty((0, ops.N_TILE_COLUMNS), np.int64))
    phases: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    buffers: dict[str, int] = field(default_factory=dict)
    ones: list[tuple[str, int, int]] = field(default_factory=list)
    settings: list[float] = field(default_factory=list)
    scratch: int = PADDING
    is_shared: bool = True
    outputs: dict[str, Values] = field(default_factory=dict)
    keeps_outputs: bool = False
    taken: list[Values] = field(default_factory=list)
    monitored: tuple[np.ndarray, np.ndarray] | None = None
    task: str = "prediction"
    _phase: str = "forward"
    _layer: str = ""
    _released: dict[tuple, list[str]] = field(default_factory=dict)

    def find(self, kernel: str) -> list[int]:
        """The rows of every op of this kernel."""
        return [row for row, op in enumerate(self.ops) if op.kernel == kernel]

    def loss_rows(self) -> list[int]:
        """The row of the loss."""
        return [
            row
            for row, op in enumerate(self.ops)
            if op.columns.get(ops.ROW_VALUES) == Place("loss values") and ops.TARGET in op.columns
        ]

    def matrix(self, name: str, width: int, with_one: bool = False) -> Values:
        """A workspace buffer of (batch, width) with padded rows: a released one of this form, or a new one."""
        stride = -(-(width + 1) // PADDING) * PADDING
        if stride % _ALIASING == 0:
            stride += PADDING
        reused = self._released.get((width, with_one))
        if reused:
            name = reused.pop()
        else:
            while name in self.buffers:  # its namesake's memory is somebody else's by now
                name += " again"
            self.buffers[name] = self.batch * stride
            if with_one:
                self.ones.append((name, width, stride))
        self.taken.append(Values(name, width, stride))
        return self.taken[-1]

    def release(self, first: int, keep: Sequence[Values], also: Sequence[Values] = ()) -> None:
        """Let later ops have the memory of matrices that no later op reads: those from the `first` on, but `keep`."""
        kept = {values.buffer for values in keep}
        for values in {values.buffer: values for values in (*self.taken[first:], *also)}.values():
            if values.buffer not in kept:
                with_one = any(name == values.buffer for name, *_ in self.ones)
                released = self._released.setdefault((values.width, with_one), [])
                if values.buffer not in released:  # what came in is what went out where layers only pass it
                    released.append(values.buffer)

    def setting(self, *values: float) -> Place:
        """The place of these numbers among the settings."""
        self.settings.extend(values)
        return Place("settings", len(self.settings) - len(values))

    def add(self, kernel: str, variant: int | str | UserFunction = 0, **columns: int | Place) -> int:
        """Append an op; columns by their names in nbbp/ops.py, in lower case. Gives its row."""
        numbered = {getattr(ops, k.upper()): v for k, v in columns.items()}
        self.ops.append(Op(kernel, variant, numbered, self._phase, self._layer))
        return len(self.ops) - 1

    def monitor_by(self, other: "Program") -> None:
        """Let monitored steps be those of another program, which computes the same and looks on.

        Its ops go behind this one's, and share the memory of the buffers that both have.
        """
        n_ops, n_settings = len(self.ops), len(self.settings)
        for op in other.ops:
            moved = {
                column: replace(value, offset=value.offset + n_settings)
                for column, value in op.columns.items()
                if isinstance(value, Place) and value.buffer == "settings"
            }
            self.ops.append(replace(op, columns=op.columns | moved))
        self.settings += other.settings
        if {name: other.buffers.get(name) for name in self.buffers} != self.buffers or self.ones != other.ones:
            raise AssertionError("a monitored step must use the memory of an ordinary one as that does")
        self.buffers, self.scratch = dict(other.buffers), max(self.scratch, other.scratch)
        self.monitored = other.tiles + np.array([n_ops, n_ops, 0, 0, 0, 0]), other.phases

    @contextmanager
    def labelled(self, phase: str | None = None, layer: str | None = None) -> Iterator[None]:
        """Ops that are added within belong to this phase and this layer; None for those of the block around it."""
        around = self._phase, self._layer
        self._phase = around[0] if phase is None else phase
        self._layer = around[1] if layer is None else layer
        try:
            yield
        finally:
            self._phase, self._layer = around
