"""Lowering of what happens to the parameters: weight gradients, their sums, updates, and a copy of the last good ones.

Legend: as in nbbp/program.py. A panel is the columns [start, stop) of a weight (n_in + 1, n_out), whose last row is the
bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nbbp import tiling
from nbbp.lowering.base import Lowering, OwnGradient, WeightGradient, in_phase, padded
from nbbp.lowering.dense import IN_PLACE
from nbbp.network import Sequential
from nbbp.nodes import Parameter
from nbbp.optimizers import Optimizer
from nbbp.program import Place
from nbbp.scalars.updates import UPDATES

#: Buffer of the sums of squares of a gradient whose norm is wanted.
SQUARES = "squares"
#: The model's buffer of the scale of the loss's gradient (see cpu/mixed.py).
LOSS_SCALE = "loss scale"


@in_phase("weight gradients")
def weight_gradient(
    lowering: Lowering, job: WeightGradient, gradient: Place | int, panel: tuple[int, int] | None = None,
    **columns: int,
) -> None:  # fmt: skip
    """Op for one layer's weight and bias gradient, which lie one behind the other as (n_in + 1, n_out).

    Into `gradient`, or a tile's into its scratch where that is 0; of the columns `panel`.
    """
    program, node = lowering.program, job.node
    start, stop = panel or (0, node.n_out)
    is_local = not isinstance(gradient, Place)
    if stop - start <= tiling.FEW_OUTPUTS and not is_local:
        program.scratch = max(program.scratch, tiling.FEW_OUTPUTS * padded(job.x.width + 1))
    is_deep = program.batch > tiling.MANY_ROWS and max(job.x.stride, job.d_y.stride) > tiling.FAR
    if is_deep:
        program.scratch = max(program.scratch, tiling.DEEP_PRODUCT)
    program.add(
        "deep_product" if is_deep else "product", x=Place(job.x.buffer), x_stride=job.x.stride,
        w=Place(job.d_y.buffer, start), w_stride=job.d_y.stride,
        y=0 if is_local else Place(gradient.buffer, gradient.offset + start),
        y_stride=stop - start if is_local else node.n_out, tile_local=int(is_local),
        n_in=job.x.width + node.layer.use_bias, n_out=stop - start, layout=IN_PLACE, contracts_rows=1,
        settings=program.setting(-math.inf), **{"slot_rows": program.batch, **columns},
    )  # fmt: skip


@in_phase("weight gradients")
def sum_of_partials(lowering: Lowering, job: OwnGradient, into: Place | None) -> None:
    """Op that adds up the partial gradients of a layer's own ops: into the first, or `into` the whole gradient."""
    columns = {"y": Place(job.buffer)} if into is None else {"x": Place(job.buffer), "y": into}
    lowering.program.add("reduce_gradient", slot_rows=job.rows, slot_stride=job.stride, **columns)


@in_phase("update")
def snapshot(lowering: Lowering, start: int, n_rows: int, panel: tuple[int, int], stride: int) -> None:
    """Op that keeps rows of parameters from `start` on in the first step of a run, if its loss is finite."""
    lowering.program.add(
        "snapshot", x=Place("parameters", start + panel[0]), y=Place("good parameters", start + panel[0]),
        n_in=n_rows, n_out=panel[1] - panel[0], w_stride=stride, row_values=Place("loss values"),
    )  # fmt: skip


@in_phase("update")
def updates(
    lowering: Lowering, optimizer: Optimizer, parameters: Sequence[Parameter], base: int, gradient: Place | int,
    panel: tuple[int, int], stride: int,
) -> None:  # fmt: skip
    """Update ops for parameters from `base` on; neighbours of equal settings share one.

    They are taken as rows of `stride` numbers, of which the columns `panel` are updated.
    """
    segments: list[list] = []
    for parameter in parameters:
        start, stop = (parameter.offset - base) // stride, (parameter.stop - base) // stride
        settings = optimizer.settings(parameter.name)
        if not parameter.trainable:
            continue
        if segments and segments[-1][1:] == [start, settings]:
            segments[-1][1] = stop
        else:
            segments.append([start, stop, settings])
    slots = {f"slot_{k}": Place(f"slot {k}", base + panel[0]) for k in range(optimizer.n_slots)}
    for start, stop, settings in segments:
        lowering.program.add(
            "update", UPDATES[optimizer.rule].code, x=gradient, w=Place("parameters", base + panel[0]),
            w_stride=stride, n_in=start, n_out=stop, slot_stride=panel[1] - panel[0],
            tile_local=int(not isinstance(gradient, Place)),
            coefficients=Place(coefficients_buffer(settings)), row_values=Place("loss values"), **slots,
            **conditions(lowering, optimizer),
        )  # fmt: skip


@in_phase("update")
def adafactor(lowering: Lowering, optimizer: Optimizer, parameters: Sequence[Parameter]) -> None:
    """Update ops of parameters, each whole."""
    network = lowering.network
    slots = dict(zip((parameter.name for parameter in network.parameters), adafactor_offsets(network), strict=False))
    for parameter in parameters:
        if parameter.trainable:
            lowering.program.add(
                "adafactor", x=Place("gradient", parameter.offset), w=Place("parameters", parameter.offset),
                n_in=math.prod(parameter.shape[:-1]), n_out=parameter.shape[-1],
                is_matrix=int(len(parameter.shape) > 1), slot_0=Place("slot 0", slots[parameter.name]),
                coefficients=Place(coefficients_buffer(optimizer.settings(parameter.name))),
                row_values=Place("loss values"), **conditions(lowering, optimizer),
            )  # fmt: skip


def conditions(lowering: Lowering, optimizer: Optimizer) -> dict[str, int | Place]:
    """Columns that say which batches update nothing, beside those whose loss is not finite."""
    columns: dict[str, int | Place] = {}
    if optimizer.accumulation_steps > 1:
        columns["accumulation"] = optimizer.accumulation_steps
    n_numbers = lowering.program.buffers.get(SQUARES, 0)
    if n_numbers:
        columns |= {"squares": Place(SQUARES), "n_squares": n_numbers // 2}
    return columns


def adafactor_offsets(network: Sequential) -> list[int]:
    """Where each parameter's factored second moment begins in its slot; the last entry is the slot's length."""
    offsets = [0]
    for parameter in network.parameters:
        offsets.append(offsets[-1] + (sum(parameter.shape) if len(parameter.shape) > 1 else parameter.size))
    return offsets


def slot_lengths(network: Sequential, optimizer: Optimizer) -> list[int]:
    """Numbers in each of the optimizer's slots, and in one for the sum of gradients and the count of rows behind it."""
    lengths = [network.n_parameters] * optimizer.n_slots
    if optimizer.rule == "adafactor":
        lengths = [adafactor_offsets(network)[-1]]
    return lengths + [network.n_parameters + 1] * (optimizer.accumulation_steps > 1)


def coefficients_buffer(settings: object) -> str:
    """Name of the buffer of step coefficients for parameters of these settings."""
    return f"coefficients of {settings}"
