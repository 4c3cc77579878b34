"""Which programs are chains of small dense layers, whose steps one block can do (nbbp/cuda/chain.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda import chain
from nbbp.cuda.launch import Attached, Launch, launch_of
from nbbp.scalars.activations import ACTIVATIONS
from nbbp.scalars.custom import derivative_of

#: Place of the number of steps among the kernel's arguments.
N_STEPS = 2
#: Kernels that a chain's program has, and no others.
_FORWARD = ("gather", "product", "activation_forward")
_BACKWARD = ("product", "activation_backward", "update", "snapshot")
_LINEAR = ACTIVATIONS["linear"].code


@dataclass
class Layer:
    """A dense layer of a chain: sizes, places in the flat buffer of parameters, and its activation."""

    n_in: int
    n_out: int
    weight: int
    bias: int
    code: int | str = _LINEAR
    alpha: float = 0.0


@dataclass
class Chain:
    """A program's layers, its loss, and what its updates go by.

    Attributes
    ----------
    layers : list of Layer
    loss, updates : Op, list of Op
    codes : list
        The activations that there are, at most two, but for "linear".
    """

    layers: list[Layer] = field(default_factory=list)
    loss: Any = None
    updates: list = field(default_factory=list)
    good: bool = False

    @property
    def codes(self) -> list:
        """The activations that there are, in the order of their first layers, but for "linear"."""
        return list(dict.fromkeys(layer.code for layer in self.layers if layer.code != _LINEAR))

    @property
    def coefficients(self) -> list[str]:
        """The buffers of coefficients of the updates."""
        return list(dict.fromkeys(op.columns[ops.COEFFICIENTS].buffer for op in self.updates))

    def group_of(self, place: int) -> int:
        """Which of the coefficients the parameter at a place goes by; -1 for a frozen one."""
        for op in self.updates:
            first = op.columns[ops.W].offset
            if first + op.columns.get(ops.N_IN, 0) <= place < first + op.columns[ops.N_OUT]:
                return self.coefficients.index(op.columns[ops.COEFFICIENTS].buffer)
        return -1

    @property
    def is_small(self) -> bool:
        """Whether one block may do its steps, with no more activations and coefficients than it takes."""
        return len(self.codes) <= 2 and len(self.coefficients) <= 2 and bool(self.updates)


def chain_of(program: Any, settings: np.ndarray) -> Chain | None:
    """The program as a chain whose steps one block can do; None if it is none, or too large.

    Parameters
    ----------
    program : nbbp.program.Program
    settings : ndarray
        Its settings.
    """
    (loss_row,) = program.loss_rows() or (None,)
    if loss_row is None or program.ops[loss_row].kernel not in ("loss", "crossentropy"):
        return None
    found = Chain(loss=program.ops[loss_row])
    last = _forward(found, program.ops[:loss_row], settings)
    if last is None or found.loss.columns[ops.X].buffer != last or not _backward(found, program.ops[loss_row + 1 :]):
        return None
    work = program.batch * sum(layer.n_in * layer.n_out for layer in found.layers)
    return found if found.is_small and work <= chain.MOST_WORK else None


def _forward(found: Chain, forward: Sequence[Any], settings: np.ndarray) -> str | None:
    """Put the layers into the chain; the buffer that the last one gives, or None if they are no chain."""
    if not forward or forward[0].kernel != "gather":
        return None
    last = forward[0].columns[ops.Y].buffer
    for op in forward[1:]:
        x = op.columns.get(ops.X)
        if op.kernel not in _FORWARD or x is None or x.buffer != last or x.offset:
            return None
        if op.kernel == "product":
            bias = op.columns.get(ops.BIAS, 0)
            layer = Layer(
                op.columns[ops.N_IN], op.columns[ops.N_OUT], op.columns[ops.W].offset, bias.offset if bias else -1
            )
            if settings[op.columns[ops.SETTINGS].offset] == 0:
                layer.code = ACTIVATIONS["relu"].code
            found.layers.append(layer)
        elif not found.layers or found.layers[-1].code != _LINEAR:
            return None
        else:
            found.layers[-1].code = op.variant
            found.layers[-1].alpha = float(settings[op.columns[ops.SETTINGS].offset])
        last = op.columns[ops.Y].buffer
    return last if found.layers else None


def _backward(found: Chain, backward: Sequence[Any]) -> bool:
    """Put the updates into the chain; whether there is nothing else than a chain's way back."""
    weights = {layer.weight for layer in found.layers}
    for op in backward:
        if op.kernel not in _BACKWARD:
            return False
        if op.kernel == "product" and not op.columns.get(ops.CONTRACTS_ROWS):
            if op.columns[ops.W].offset not in weights or not op.columns.get(ops.LAYOUT):
                return False  # forward once more, as with checkpoints
        elif op.kernel == "update":
            if op.columns.get(ops.ACCUMULATION, 0) > 1 or ops.SQUARES in op.columns:
                return False
            found.updates.append(op)
        found.good |= op.kernel == "snapshot"
    return len({op.variant for op in found.updates}) == 1


def chain_launch(bound: Any, found: Chain) -> Launch:
    """The launch of a run's steps, whose number comes in the place `N_STEPS` of its arguments."""
    batch, loss = bound.program.batch, found.loss
    table = np.zeros((len(found.layers), chain.N_COLUMNS), np.int64)
    codes, n = found.codes, 0
    for row, layer in zip(table, found.layers, strict=True):
        size = batch * layer.n_out
        row[chain.N_IN], row[chain.N_OUT] = layer.n_in, layer.n_out
        row[chain.WEIGHT], row[chain.BIAS] = layer.weight, layer.bias
        row[chain.FUNCTION] = chain.NO_FUNCTION if layer.code == _LINEAR else codes.index(layer.code)
        row[chain.OUT], row[chain.SEEN], row[chain.SLOPE] = n, n if _sees_output(layer.code) else n + size, n + 2 * size
        row[chain.WEIGHT_GROUP] = found.group_of(layer.weight)
        row[chain.BIAS_GROUP] = found.group_of(layer.bias) if layer.bias >= 0 else -1
        n += 3 * size
    (first, *_), n_slots = found.updates, chain.SLOTS[found.updates[0].variant]
    slots = [bound.buffers[f"slot {k}"] for k in range(n_slots)] + [bound.nothing()] * (3 - n_slots)
    coefficients = [bound.attached(name) for name in found.coefficients]
    coefficients += [bound.nothing(np.float64)] * (2 - len(coefficients))
    settings = bound.settings[loss.columns[ops.SETTINGS].offset :]
    is_labels, target = loss.columns.get(ops.TARGET_IS_LABELS, 0), bound.attached("target")
    targets = (bound.nothing(), target) if is_labels else (target, bound.nothing(np.int64))
    variant = (
        "crossentropy" if loss.kernel == "crossentropy" else loss.variant, first.variant,
        *(codes + [ACTIVATIONS["relu"].code] * 2)[:2],
    )  # fmt: skip
    arguments: list[Any | Attached] = [
        bound.clock, batch, 1, cuda.to_device(table.ravel()), len(found.layers),
        cuda.to_device(np.array([layer.alpha for layer in found.layers], bound.dtype)),
        cuda.device_array(n, bound.dtype), bound.attached("X"), bound.attached("order"), *targets,
        bound.attached("sample weight"), bound.attached("loss values"), settings[0], settings[1], int(settings[2]),
        bound.buffers["parameters"], *slots, *coefficients,
        bound.buffers["good parameters"] if found.good else bound.nothing(),
    ]  # fmt: skip
    return launch_of(bound, "train_chain", ((1,), (chain.THREADS,)), arguments, variant)


def _sees_output(code: int | str) -> bool:
    """Whether an activation's derivative is written in what it gives."""
    if isinstance(code, str):
        return derivative_of(code) == "output"
    return next(formula for formula in ACTIVATIONS.values() if formula.code == code).derivative_of == "output"
