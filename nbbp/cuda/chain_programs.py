"""The launch of a run of a small chain of dense layers, whose steps one block does (nbbp/cuda/chain.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda import chain
from nbbp.cuda.chains import LINEAR, RELU, Chain, training_chain
from nbbp.cuda.launch import Attached, Launch, launch_of
from nbbp.cuda.update import SLOTS


def chain_launch(bound: Any) -> Launch | None:
    """The launch of a run's steps, whose number comes in the place `N_STEPS` of its arguments.

    None if the program is no chain, or one block would not do: for activations of more than two kinds, or much work.
    """
    found = training_chain(bound.program, bound.settings)
    if found is None or found.metrics or len(found.codes) > 2 or bound.program.batch * found.work > chain.MOST_WORK:
        return None
    batch = bound.program.batch
    table = np.zeros((len(found.layers), chain.N_COLUMNS), np.int64)
    codes, n = found.codes, 0
    for row, layer in zip(table, found.layers, strict=True):
        size = batch * layer.n_out
        describe(row, layer, found)
        row[chain.FUNCTION] = chain.NO_FUNCTION if layer.code == LINEAR else codes.index(layer.code)
        row[chain.OUT], row[chain.SEEN], row[chain.SLOPE] = n, n if layer.sees_output else n + size, n + 2 * size
        n += 3 * size
    arguments: list[Any | Attached] = [
        bound.clock, batch, 1, cuda.to_device(table.ravel()), len(found.layers), alphas(bound, found),
        cuda.device_array(n, bound.dtype), *loss_arguments(bound, found), bound.buffers["parameters"],
        *update_arguments(bound, found),
    ]  # fmt: skip
    variant = loss_variant(found), found.updates[0].variant, *(codes + [RELU] * 2)[:2]
    return launch_of(bound, "train_chain", ((1,), (chain.THREADS,)), arguments, variant)


def describe(row: np.ndarray, layer: Any, found: Chain) -> None:
    """Fill in sizes, parameters and groups of a row of the table."""
    row[chain.N_IN], row[chain.N_OUT] = layer.n_in, layer.n_out
    row[chain.WEIGHT], row[chain.BIAS] = layer.weight, layer.bias
    row[chain.WEIGHT_GROUP] = found.group_of(layer.weight)
    row[chain.BIAS_GROUP] = found.group_of(layer.bias) if layer.bias >= 0 else -1


def alphas(bound: Any, found: Chain) -> Any:
    """The parameters of the layers' activations."""
    return cuda.to_device(np.array([layer.alpha for layer in found.layers], bound.dtype))


def loss_variant(found: Chain) -> int | str:
    """The loss, for kernels that do one with the layers."""
    return "crossentropy" if found.loss.kernel == "crossentropy" else found.loss.variant


def loss_arguments(bound: Any, found: Chain) -> list[Any]:
    """Data, order, targets, labels, weights and losses of the rows; parameter, scale and mean of the loss."""
    settings = bound.settings[found.loss.columns[ops.SETTINGS].offset :]
    target = bound.attached("target")
    is_labels = found.loss.columns.get(ops.TARGET_IS_LABELS, 0)
    targets = (bound.nothing(), target) if is_labels else (target, bound.nothing(np.int64))
    return [
        bound.attached("X"), bound.attached("order"), *targets, bound.attached("sample weight"),
        bound.attached("loss values"), settings[0], settings[1], int(settings[2]),
    ]  # fmt: skip


def update_arguments(bound: Any, found: Chain) -> list[Any]:
    """Three slots, two buffers of coefficients, and where good parameters go."""
    n_slots = SLOTS[found.updates[0].variant]
    slots = [bound.buffers[f"slot {k}"] for k in range(n_slots)] + [bound.nothing()] * (3 - n_slots)
    coefficients = [bound.attached(name) for name in found.coefficients]
    coefficients += [bound.nothing(np.float64)] * (2 - len(coefficients))
    return [*slots, *coefficients, bound.buffers["good parameters"] if found.good else bound.nothing()]
