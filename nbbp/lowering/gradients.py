"""Lowering of what happens to the gradient between backpropagation and the update (kernels: nbbp/cpu/gradient.py).

"prepare_gradient" goes with the ops that make a part of the gradient whole, while the part is in cache; when every part
is prepared, "finish_gradient" goes with the update. Both exist only where a setting of the optimizer asks for them, or
the loss's gradient is scaled.

Legend: as in nbbp/lowering/parameters.py.
"""

from __future__ import annotations

import math

import numpy as np

from nbbp import ops, tiling
from nbbp.lowering.base import Lowering, in_phase
from nbbp.lowering.parameters import LOSS_SCALE, SQUARES, conditions, slot_lengths
from nbbp.network import Sequential
from nbbp.optimizer_base import N_COLUMNS
from nbbp.optimizers import Optimizer, Settings
from nbbp.program import Place
from nbbp.scalars.coefficients import COEFFICIENTS


@in_phase("update")
def prepared_tiles(
    lowering: Lowering, optimizer: Optimizer, first: int, base: int, n_rows: int, panel: tuple[int, int], stride: int,
    size: int,
) -> list[tuple]:  # fmt: skip
    """Add the op that prepares a part of the gradient: the columns `panel` of `n_rows` rows from parameter `base` on.

    Gives tiles of about `size` rows for it and for the ops from `first` on, which make that part.
    """
    program = lowering.program
    has_squares = optimizer.clip_norm is not None or lowering.is_scaled
    is_needed = optimizer.clip_value is not None or has_squares or optimizer.accumulation_steps > 1
    stop = len(program.ops) + is_needed
    tiles = tiling.column_tiles(first, stop, program.batch, n_rows, size)
    if not is_needed:
        return tiles
    start = base + panel[0]
    columns: dict[str, int | Place] = {}
    if optimizer.accumulation_steps > 1:
        columns["accumulation"] = optimizer.accumulation_steps
        columns["slot_0"], columns["slot_1"] = (_of_sum(lowering.network, optimizer, at) for at in (start, None))
    if lowering.is_scaled:
        columns["loss_scale"] = Place(LOSS_SCALE)
    if has_squares:
        so_far = program.buffers.get(SQUARES, 0)
        columns["squares"], columns["n_squares"] = Place(SQUARES), so_far // 2
        program.buffers[SQUARES] = so_far + 2 * len(tiles)  # a float64 takes two numbers of a float32 workspace
    largest = math.inf if optimizer.clip_value is None else optimizer.clip_value
    program.add(
        "prepare_gradient", x=Place("gradient", start), w_stride=stride, slot_stride=panel[1] - panel[0],
        n_in=tiles[0][5] - tiles[0][4], n_out=n_rows, row_values=Place("loss values"),
        settings=program.setting(largest, float(lowering.is_mean)), **columns,
    )  # fmt: skip
    return tiles


@in_phase("update")
def finish(lowering: Lowering, optimizer: Optimizer) -> None:
    """Ops that finish the whole gradient, one for each stretch of parameters that are not frozen."""
    program, columns = lowering.program, conditions(lowering, optimizer)
    if lowering.is_scaled:
        program.add("update_loss_scale", ops.FP16, loss_scale=Place(LOSS_SCALE), **columns)
    if optimizer.clip_norm is None and not optimizer.gradient_noise and optimizer.accumulation_steps == 1:
        return
    clip_norm = math.inf if optimizer.clip_norm is None else optimizer.clip_norm
    if optimizer.accumulation_steps > 1:
        columns["slot_1"] = _of_sum(lowering.network, optimizer, None)
    for start, stop in trainable_stretches(lowering.network):
        program.add(
            "finish_gradient", x=Place("gradient"), n_in=start, n_out=stop, row_values=Place("loss values"),
            settings=program.setting(clip_norm, optimizer.gradient_noise), **columns,
        )  # fmt: skip
        columns.pop("slot_1", None)  # one of them counts the rows


def trainable_stretches(network: Sequential) -> list[tuple[int, int]]:
    """Where in the flat buffer the parameters lie that training changes: [start, stop), none next to another."""
    stretches: list[tuple[int, int]] = []
    for parameter in network.parameters:
        if not parameter.trainable:
            continue
        start = parameter.offset
        if stretches and stretches[-1][1] == start:
            start = stretches.pop()[0]
        stretches.append((start, parameter.stop))
    return stretches


def _of_sum(network: Sequential, optimizer: Optimizer, at: int | None) -> Place:
    """Place in the slot of the sum of gradients: of a parameter's number, or of the count of rows behind them."""
    number = len(slot_lengths(network, optimizer)) - 1
    return Place(f"slot {number}", network.n_parameters if at is None else at)


def coefficients_of_batches(
    optimizer: Optimizer, settings: Settings, first: int, n: int, count: int | None = None
) -> np.ndarray:
    """`Optimizer.coefficients` for `n` training batches from the `first` on, counted from 1: a line for each.

    Batches of one update share its line.
    """
    k = optimizer.accumulation_steps
    if k == 1:
        return optimizer.coefficients(first, n, settings, count)
    n_updates = (first - 1 + n - 1) // k - (first - 1) // k + 1
    lines = optimizer.coefficients((first - 1) // k + 1, n_updates, settings, count)
    return lines[((first - 1) % k + np.arange(n)) // k]


def coefficients_of_rates(
    optimizer: Optimizer, settings: Settings, rates: np.ndarray, first: int, n: int
) -> np.ndarray:
    """`coefficients_of_batches` for each of some constant learning rates (m,): (m, n, N_COLUMNS), the same bits.

    What no rate changes, such as the bias corrections of Adam, is computed once for all of them.
    """
    steps = (first - 1 + np.arange(n)) // optimizer.accumulation_steps + 1.0
    rates = rates[:, None]
    columns = optimizer.penalties(settings, rates)
    columns = *columns, *COEFFICIENTS[optimizer.rule](steps, rates, optimizer.rule_settings)
    table = np.zeros((len(rates), n, N_COLUMNS))
    for column, values in enumerate(columns):
        table[:, :, column] = values
    return table
