"""From ops to launches: how an op of a program finds its arrays, and what a bound program is a list of.

Each kind of op has one function, registered with `binds`, that adds the launches which do it. Most ops are one launch;
a sum over the batch that is divided among blocks is two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda import kernels
from nbbp.cuda.kernels import (
    COLUMN_LANES,
    COLUMNS,
    FORWARD,
    MOST_BLOCKS,
    OVER_ROWS,
    ROW_LANES,
    ROWS,
    THREADS,
    TRANSPOSED,
)
from nbbp.cuda.memory import address
from nbbp.cuda.vectors import BYTES as VECTOR_BYTES

#: Threads side by side at most in kernels over rows and columns: a warp.
_WARP = 2 if kernels.SIMULATED else 32
#: Place of the number of steps among the arguments of kernels that take many.
N_STEPS = 2
#: As in nbbp/lowering/dense.py: the layout of a product whose second operand is transposed. Others are ways of the CPU
#: to read it as it is.
_LAYOUT_TRANSPOSED = 2

_binders: dict[str, Callable[[Binding], None]] = {}


def binds(*names: str) -> Callable:
    """Register the function that adds the launches of ops of these kernels."""

    def register(bind: Callable[[Binding], None]) -> Callable:
        for name in names:
            _binders[name] = bind
        return bind

    return register


def blocks_for(n: int, size: int) -> int:
    """Blocks that cover `n` in steps of `size`, as far as a grid goes."""
    return max(1, min(-(-n // size), MOST_BLOCKS))


def flat(n: int) -> tuple[tuple, tuple]:
    """Grid and block for `n` numbers one after the other."""
    return (blocks_for(n, THREADS),), (THREADS,)


def matrix(n_rows: int, width: int) -> tuple[tuple, tuple]:
    """Grid and block for every number of a matrix: x counts columns, y rows."""
    across = 1
    while across < min(width, _WARP):
        across *= 2
    down = THREADS // across
    return (blocks_for(width, across), blocks_for(n_rows, down)), (across, down)


def row_sums(n_rows: int) -> tuple[tuple, tuple]:
    """Grid and block for kernels that take sums over rows."""
    return (1, blocks_for(n_rows, ROWS)), (ROW_LANES, ROWS)


def column_sums(width: int) -> tuple[tuple, tuple]:
    """Grid and block for kernels that take sums over columns."""
    return (blocks_for(width, COLUMNS), 1), (COLUMNS, COLUMN_LANES)


def layout_of(op: Any) -> int:
    """Which of the three products of a dense layer an op of a program is: FORWARD, TRANSPOSED or OVER_ROWS."""
    if op.columns.get(ops.CONTRACTS_ROWS):
        return OVER_ROWS
    return TRANSPOSED if op.columns.get(ops.LAYOUT) == _LAYOUT_TRANSPOSED else FORWARD


@dataclass(frozen=True)
class Attached:
    """Stands for an array of the caller's, which is there while a run is."""

    name: str


def is_aligned(array: Any, stride: int) -> bool:
    """Whether every row of a matrix, `stride` numbers apart, begins where vectors may (nbbp/cuda/vectors.py)."""
    if isinstance(array, Attached):  # it may lie anywhere
        return False
    return address(array) % VECTOR_BYTES == 0 and stride * array.dtype.itemsize % VECTOR_BYTES == 0


class Launch:
    """A kernel with its grid, its block and its arguments, of which some change from run to run.

    Parameters
    ----------
    kernel : dispatcher
    shape : (grid, block) or (grid, block, bytes)
        With bytes of shared memory that the kernel leaves to its launch.
    arguments : list
        Device arrays and numbers; `Attached` where the caller's arrays come.
    stream : stream
    name : str
        The kernel's, in the registry.
    """

    def __init__(self, kernel: Any, shape: tuple, arguments: list, stream: Any, name: str) -> None:
        grid, block, *shared = shape
        self.name = name
        self._configured, self.arguments = kernels.configured(kernel, grid, block, stream, *shared), arguments
        self.attached = [(place, value.name) for place, value in enumerate(arguments) if isinstance(value, Attached)]

    def take(self, arrays: Mapping[str, Any]) -> None:
        """Let the next launches go to these arrays of the caller's, by name."""
        for place, name in self.attached:
            self.arguments[place] = arrays[name]

    def __call__(self) -> None:
        self._configured(*self.arguments)


def launch_of(bound: Any, name: str, shape: tuple, arguments: list, variant: Any = 0) -> Launch:
    """A launch of a kernel of the registry, for a bound program."""
    return Launch(kernels.compiled(name, bound.dtype, variant), shape, arguments, bound.stream, name)


class Binding:
    """One op of a program that is being bound: its columns as numbers and arrays, and where its launches go.

    Parameters
    ----------
    bound : nbbp.cuda.engine.BoundProgram
    op : nbbp.program.Op
    rounds : bool
        Whether a product rounds what it gives (nbbp/cuda/mixed.py).
    """

    def __init__(self, bound: Any, op: Any, rounds: bool = False) -> None:
        self.bound, self.op, self.rounds = bound, op, rounds
        self.kernel, self.variant = op.kernel, op.variant
        self.batch, self.clock = bound.program.batch, bound.clock

    def bind(self) -> None:
        """Add the op's launches.

        Raises
        ------
        NotImplementedError
            If there is no kernel for it.
        """
        if self.kernel not in _binders:
            raise NotImplementedError(f"{self.kernel} is not on CUDA yet; expected device='cpu' for it")
        _binders[self.kernel](self)

    def __getitem__(self, column: int) -> int:
        """A column that is a number; 0 where the op has none."""
        return int(self.op.columns.get(column, 0))

    def has(self, column: int) -> bool:
        """Whether a column is a place in a buffer."""
        return not isinstance(self.op.columns.get(column, 0), (int, np.integer))

    def array(self, column: int, dtype: Any = None) -> Any:
        """What is at a column's place, from there to the end of the buffer; an empty array where there is none.

        `dtype` where a buffer of the workspace holds numbers of another one.
        """
        place = self.op.columns.get(column, 0)
        if isinstance(place, (int, np.integer)):
            return self.bound.nothing(dtype)
        if place.buffer not in self.bound.buffers:
            return self.bound.attached(place.buffer, place.offset)
        found = self.bound.buffers[place.buffer][place.offset :]
        return found if dtype is None else found.view(dtype)

    def aligned(self, y: tuple[Any, int]) -> list[int]:
        """1 where vectors may be moved: for a product's result, an array and its row stride, and both operands."""
        x, w = (self.array(ops.X), self[ops.X_STRIDE]), (self.array(ops.W), self[ops.W_STRIDE])
        return [int(is_aligned(*matrix)) for matrix in (y, x, w)]

    def is_ours(self, column: int) -> bool:
        """Whether what is at a column's place lies in the model's or the program's memory, and stays where it is."""
        return self.has(column) and self.op.columns[column].buffer in self.bound.buffers

    def setting(self, number: int) -> Any:
        """One of the op's settings, of the model's dtype."""
        place = self.op.columns[ops.SETTINGS]
        return self.bound.settings[place.offset + number]

    def scratch(self, n: int, dtype: Any = None) -> Any:
        """New memory of the GPU for `n` numbers, the op's own."""
        return cuda.device_array(n, self.bound.dtype if dtype is None else dtype)

    def launch(self, name: str, shape: tuple[tuple, tuple], *arguments: Any, variant: Any = 0) -> None:
        """Add a launch of a kernel."""
        self.add(launch_of(self.bound, name, shape, list(arguments), variant))

    def add(self, launch: Any) -> None:
        """Add a launch that was made elsewhere."""
        self.bound.launches.append(launch)
