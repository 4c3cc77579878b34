"""Ops of the engine run by themselves: a program written op by op, or chosen ops of a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nbbp import tiling
from nbbp.cpu.engine import BoundProgram
from nbbp.program import Program


def bind(
    program: Program, buffers: dict[str, np.ndarray] | None = None, tiles: Sequence[tuple] | None = None
) -> BoundProgram:
    """A program of float32, written op by op, ready to run on one thread: all ops as one tile, or as `tiles`."""
    tiles = tiles or [(0, len(program.ops), 0, program.batch, 0, tiling.ALL)]
    program.tiles, program.phases = np.array(tiles, np.int64), np.array([0, len(tiles)], np.int64)
    program.is_shared = False
    return BoundProgram(program, "float32", buffers or {})


def inside(bound: BoundProgram, name: str, width: int) -> np.ndarray:
    """The matrix (batch, width) in a workspace buffer, without its padding."""
    return bound.buffer(name).reshape(bound.program.batch, -1)[:, :width]


def only(bound: BoundProgram, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tiles and phases of these ops alone, as they are cut in the whole step, to be given to the bound program."""
    tiles, ends = [], [0]
    for start, stop in zip(bound.program.phases[:-1], bound.program.phases[1:], strict=True):
        for first, last, *ranges in bound.program.tiles[start:stop]:
            tiles += [(row, row + 1, *ranges) for row in rows if first <= row < last]
        if len(tiles) > ends[-1]:
            ends.append(len(tiles))
    return np.array(tiles, np.int64), np.array(ends, np.int64)


def nothing(bound: BoundProgram) -> tuple[np.ndarray, np.ndarray]:
    """One tile of no ops, and its phase: what is left of a run is what it costs to enter it."""
    return np.array([(0, 0, 0, bound.program.batch, 0, tiling.ALL)], np.int64), np.array([0, 1], np.int64)


def steps(bound: BoundProgram, n_steps: int) -> Callable[[], None]:
    """A run of so many whole batches; Python is entered once for all of them."""
    n_samples = n_steps * bound.program.batch
    return lambda: bound.run(n_samples)
