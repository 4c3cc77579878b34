"""Chains of dense layers that go through the GPU by tiles of rows (nbbp/cuda/fused.py): which, and in which tiles.

What a step takes, in multiplications of float32 and in bytes, for w weights and biases, n outputs of all layers
together, a batch of b rows in t tiles, and at most p blocks at the same time, the numbers being 4 bytes each:

    launch                work                       memory of the chip                          from and to the GPU's
    forward               b · w                      activations, w per tile                     inputs, outputs
    gradient              3 b · w                    activations, w per tile twice               inputs; parts, 2 t · w
    update                –                          –                                           p · w, parameters
    op by op, in all      3 b · w                    tiles of products                           about 8 b · n

For 64-64-64-64-10, of which w is 13,130 and n 202, and 132 multiprocessors:

    batch     rows of a tile   tiles   blocks   10⁹ multiplications   MB of parts   MB op by op
    2^10      8                128     128      0.04                  13            7
    2^14      64               256     256      0.64                  27            106
    2^18      64               4096    264      10.2                  430           1690

So parts of a gradient are what fusing costs, and activations and launches (five for each layer, microseconds each) what
it saves; `_pays` weighs them. A block that has a tile to itself while others have none is slow where weights are many:
such steps stay with products whose blocks share out the outputs, too. These are estimates, not measured on a GPU yet.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda import chain, fused, fused_tile, fused_update, kernels
from nbbp.cuda.chain_programs import alphas, describe, loss_arguments, loss_variant, update_arguments
from nbbp.cuda.chains import LINEAR, RELU, Chain, forward_chain, training_chain
from nbbp.cuda.dense import Tile
from nbbp.cuda.kernels import MOST_BLOCKS, SIMULATED
from nbbp.cuda.launch import Binding, Launch, launch_of

#: Outputs of a layer at most; 0 lets all programs run op by op.
WIDEST = 256
#: Rows times weights of a tile at most, where there are fewer tiles than multiprocessors.
_MOST_OF_TILE = 1 << 19
#: Numbers that go through memory while a launch begins, and launches that a layer takes op by op.
_NUMBERS_OF_LAUNCH, _LAUNCHES_OF_LAYER = 1_500_000, 5
#: Blocks of a multiprocessor at most: their registers are as many as it has.
_RESIDENT = 2
#: Bytes of shared memory that a block has in any case, and that each costs besides its own.
_PLAIN_SHARED, _SHARED_OF_BLOCK = 48 << 10, 1 << 10
#: Rows of a run that a prediction's tiles are made for.
_MANY_ROWS = 1 << 18


@functools.cache
def _device() -> tuple[int, int, int]:
    """Multiprocessors; bytes of shared memory of a block at most, and of a multiprocessor."""
    if SIMULATED:
        return 2, _PLAIN_SHARED, 2 * _PLAIN_SHARED
    device = cuda.get_current_device()
    return (
        device.MULTIPROCESSOR_COUNT, device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        device.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
    )  # fmt: skip


def bind_step(bound: Any) -> bool:
    """Let a program's steps be two launches, with those of its metrics in between; False if it is not for that."""
    found = training_chain(bound.program, bound.settings)
    if found is None or not _is_narrow(found):
        return False
    table, n_units = _step_layout(found)
    batch, w = bound.program.batch, bound.buffers["parameters"]
    variant = loss_variant(found), *_functions(found)
    tile = _tile_for(bound, "fused_gradient", variant, n_units, batch, lambda tile: _pays(found, batch, w.size, tile))
    if tile is None:
        return False
    n_bytes = _bytes(tile, n_units, bound.dtype)
    n_blocks = _blocks(tile, n_bytes, batch)
    part_stride = -(-w.size // fused_update.COLUMNS) * fused_update.COLUMNS
    parts = cuda.device_array(n_blocks * part_stride, bound.dtype)
    notes = cuda.to_device(np.zeros(1 + n_blocks, np.int64))
    outputs = bound.nothing()
    if found.metrics:
        outputs = bound.buffers[found.last] = cuda.device_array(batch * found.stride, bound.dtype)
    bound.launches.append(
        launch_of(
            bound, "fused_gradient", ((n_blocks,), (tile.threads,), n_bytes),
            [
                bound.clock, notes, batch, cuda.to_device(table.ravel()), len(table), n_units, alphas(bound, found),
                *loss_arguments(bound, found), w, parts, part_stride, outputs, found.stride,
            ],
            (*variant, tile),
        )
    )  # fmt: skip
    for op in found.metrics:
        Binding(bound, op).bind()
    grid = min(-(-w.size // fused_update.COLUMNS), MOST_BLOCKS)
    groups = cuda.to_device(np.array([found.group_of(place) for place in range(w.size)], np.int64))
    bound.launches.append(
        launch_of(
            bound, "update_by_parts", ((grid,), (fused_update.COLUMNS, fused_update.LANES)),
            [
                bound.clock, notes, batch, tile.height, n_blocks, parts, part_stride, groups, w.size, w,
                *update_arguments(bound, found),
            ],
            found.updates[0].variant,
        )
    )  # fmt: skip
    return True


def prediction_launch(bound: Any) -> Launch | None:
    """The launch of a run that predicts, all of its steps, their number in the place `N_STEPS`; None if it is not one.

    A softmax behind the layers goes with them.
    """
    found = forward_chain(bound.program, bound.settings)
    if found is None or not found.rest or found.rest[-1].kernel != "copy_out" or len(found.rest) > 2:
        return None
    copy_out, kind = found.rest[-1], "linear"
    if len(found.rest) == 2:
        kind = found.rest[0].kernel.removesuffix("_forward")
    if kind not in fused.ROW_FUNCTIONS:
        return None
    output = bound.attached(copy_out.columns[ops.Y].buffer)
    return _forward_launch(bound, found, _MANY_ROWS, output, copy_out.columns[ops.Y_STRIDE], kind)


def bind_forward(bound: Any) -> Sequence[Any]:
    """Let the layers of a program that only goes forward be one launch, if they are a chain; the ops that are left."""
    found = forward_chain(bound.program, bound.settings)
    if found is None:
        return bound.program.ops
    launch = _forward_launch(bound, found, bound.program.batch, bound.buffers[found.last], found.stride, "linear")
    if launch is None:
        return bound.program.ops
    bound.launches.append(launch)
    return found.rest


def _forward_launch(bound: Any, found: Chain, n_rows: int, y: Any, y_stride: int, kind: str) -> Launch | None:
    """The launch of the layers, for about so many rows at a time; None if they are not for that."""
    if not _is_narrow(found):
        return None
    table, n_units = _forward_layout(found)
    variant = _functions(found)
    tile = _tile_for(bound, "fused_forward", variant, n_units, n_rows, lambda tile: _fills(found, n_rows, tile))
    if tile is None:
        return None
    n_bytes = _bytes(tile, n_units, bound.dtype)
    return launch_of(
        bound, "fused_forward", ((_blocks(tile, n_bytes, n_rows),), (tile.threads,), n_bytes),
        [
            bound.clock, bound.program.batch, 1, cuda.to_device(table.ravel()), len(table), n_units,
            alphas(bound, found), bound.attached("X"), bound.attached("order"), bound.buffers["parameters"], y,
            y_stride, fused.ROW_FUNCTIONS.index(kind),
        ],
        (*variant, tile),
    )  # fmt: skip


def _is_narrow(found: Chain) -> bool:
    """Whether tiles go through these layers."""
    functions = [code for code in found.codes if code != RELU]
    return len(functions) <= 2 and max(layer.n_out for layer in found.layers) <= WIDEST


def _functions(found: Chain) -> tuple:
    """The two activations that a kernel is compiled for; relu, which all have, is none of them."""
    return tuple(([code for code in found.codes if code != RELU] + list(fused.FUNCTIONS))[:2])


def _table(found: Chain) -> np.ndarray:
    """The layers, but for their places in shared memory."""
    table = np.zeros((len(found.layers), chain.N_COLUMNS), np.int64)
    functions = _functions(found)
    for row, layer in zip(table, found.layers, strict=True):
        describe(row, layer, found)
        if layer.code == LINEAR:
            row[chain.FUNCTION] = chain.NO_FUNCTION
        else:
            row[chain.FUNCTION] = fused.RELU if layer.code == RELU else functions.index(layer.code)
    return table


def _step_layout(found: Chain) -> tuple[np.ndarray, int]:
    """The table of a training step, and units of shared memory."""
    table, place = _table(found), min(found.layers[0].n_in, fused_tile.X_UNITS)
    for row, layer in zip(table, found.layers, strict=True):
        row[chain.OUT] = row[chain.SEEN] = row[chain.SLOPE] = place
        place += layer.n_out
        if not layer.sees_output and row[chain.FUNCTION] < chain.NO_FUNCTION:
            row[chain.SEEN] = place
            place += layer.n_out
    table[-1, chain.SLOPE] = place
    return table, place + found.layers[-1].n_out


def _forward_layout(found: Chain) -> tuple[np.ndarray, int]:
    """The table of layers that only go forward, which take turns in two places, and units of shared memory."""
    table, place = _table(found), min(found.layers[0].n_in, fused_tile.X_UNITS)
    for half in (table[0::2], table[1::2]):
        half[:, chain.OUT] = half[:, chain.SEEN] = place
        place += max(half[:, chain.N_OUT], default=0)
    return table, int(place)


def _bytes(tile: Tile, n_units: int, dtype: np.dtype) -> int:
    """Shared memory of a block: the units' lines, and a slab."""
    line, slab = tile.height + fused_tile.PADDING, tile.depth * (tile.width + fused_tile.PADDING)
    return (n_units * line + slab) * dtype.itemsize


def _blocks(tile: Tile, n_bytes: int, n_rows: int) -> int:
    """Blocks that are at work at the same time, or as many as there are tiles."""
    n_multiprocessors, _, shared = _device()
    resident = max(1, min(_RESIDENT, shared // (n_bytes + _SHARED_OF_BLOCK)))
    return min(math.ceil(n_rows / tile.height), n_multiprocessors * resident)


def _tile_for(
    bound: Any, name: str, variant: tuple, n_units: int, n_rows: int, pays: Callable[[Tile], bool]
) -> Tile | None:
    """The largest tile that shared memory takes and of which there is one for each multiprocessor; None if none pays.

    Where there are not enough of any, the smallest.
    """
    n_multiprocessors, most, _ = _device()
    for limit in (most, _PLAIN_SHARED):
        found = None
        for tile in fused_tile.TILES:
            if _bytes(tile, n_units, bound.dtype) > limit:
                break
            if found is None or n_rows >= n_multiprocessors * tile.height:
                found = tile
        if found is None or not pays(found):
            return None
        n_bytes = _bytes(found, n_units, bound.dtype)
        if n_bytes <= _PLAIN_SHARED or kernels.allow_shared(name, bound.dtype, (*variant, found), n_bytes):
            return found
    return None


def _fills(found: Chain, n_rows: int, tile: Tile) -> bool:
    """Whether there are tiles for all multiprocessors, or too little to do for each to be worth sharing."""
    return n_rows >= tile.height * _device()[0] or tile.height * found.work <= _MOST_OF_TILE


def _pays(found: Chain, batch: int, n_parameters: int, tile: Tile) -> bool:
    """Whether a training step is worth a part of the gradient for every tile; see the table above."""
    parts = 2 * math.ceil(batch / tile.height) * n_parameters
    activations = 8 * batch * sum(layer.n_out for layer in found.layers)
    launches = _LAUNCHES_OF_LAYER * len(found.layers) * _NUMBERS_OF_LAUNCH
    return _fills(found, batch, tile) and parts <= activations + launches
