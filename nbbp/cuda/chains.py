"""Which programs are chains of dense layers: what one block does (nbbp/cuda/chain_programs.py), or a launch for all of
their layers (nbbp/cuda/fused_programs.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nbbp import ops
from nbbp.cuda.kernels import FORWARD, TRANSPOSED
from nbbp.cuda.launch import layout_of
from nbbp.scalars.activations import ACTIVATIONS
from nbbp.scalars.custom import derivative_of

#: Kernels that a chain's program has, and no others.
_FORWARD = ("gather", "product", "activation_forward")
_BACKWARD = ("metric", "product", "deep_product", "activation_backward", "update", "snapshot")
_BEHIND = ("softmax_forward", "log_softmax_forward", "copy_out", "loss", "crossentropy", "nll", "metric")
LINEAR, RELU = ACTIVATIONS["linear"].code, ACTIVATIONS["relu"].code


@dataclass
class Layer:
    """A dense layer of a chain: sizes, places in the flat buffer of parameters, and its activation."""

    n_in: int
    n_out: int
    weight: int
    bias: int
    code: int | str = LINEAR
    alpha: float = 0.0

    @property
    def sees_output(self) -> bool:
        """Whether the activation's derivative is written in what it gives."""
        if isinstance(self.code, str):
            return derivative_of(self.code) == "output"
        return next(formula for formula in ACTIVATIONS.values() if formula.code == self.code).derivative_of == "output"


@dataclass
class Chain:
    """A program's dense layers, and what becomes of what the last one gives.

    Attributes
    ----------
    layers : list of Layer
    last, stride : str, int
        The buffer that the last one writes, and numbers between its rows.
    loss : Op or None
        Of a training step, which then goes back through the layers and to the updates.
    updates, metrics : list of Op
    good : bool
        Whether the step keeps a copy of good parameters.
    rest : sequence of Op
        Of a program that only goes forward, the ops behind the layers.
    """

    layers: list[Layer] = field(default_factory=list)
    last: str = ""
    stride: int = 0
    loss: Any = None
    updates: list = field(default_factory=list)
    metrics: list = field(default_factory=list)
    good: bool = False
    rest: Sequence[Any] = ()

    @property
    def codes(self) -> list:
        """The activations that there are, in the order of their first layers, but for "linear"."""
        return list(dict.fromkeys(layer.code for layer in self.layers if layer.code != LINEAR))

    @property
    def work(self) -> int:
        """Multiplications of a row going forward: weights."""
        return sum(layer.n_in * layer.n_out for layer in self.layers)

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


def training_chain(program: Any, settings: np.ndarray) -> Chain | None:
    """The program as a training step of a chain, with one rule and at most two groups of coefficients; None otherwise.

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
    if _forward(found, program.ops[:loss_row], settings) != loss_row or not found.layers:
        return None
    if found.loss.columns[ops.X].buffer != found.last or not _backward(found, program.ops[loss_row + 1 :]):
        return None
    return found if len({op.variant for op in found.updates}) == 1 and len(found.coefficients) <= 2 else None


def forward_chain(program: Any, settings: np.ndarray) -> Chain | None:
    """The program, which only goes forward, as a chain and the ops behind it; None if it is none, or goes back.

    Parameters are those of `training_chain`.
    """
    found = Chain()
    n_ops = _forward(found, program.ops, settings)
    if not found.layers or program.keeps_outputs or any(op.kernel not in _BEHIND for op in program.ops[n_ops:]):
        return None
    found.rest = program.ops[n_ops:]
    return found


def _forward(found: Chain, forward: Sequence[Any], settings: np.ndarray) -> int:
    """Put the layers into the chain, as far as it goes; how many ops these are."""
    if not forward or forward[0].kernel != "gather":
        return 0
    found.last = forward[0].columns[ops.Y].buffer
    for number, op in enumerate(forward[1:], 1):
        x = op.columns.get(ops.X)
        if op.kernel not in _FORWARD or x is None or x.buffer != found.last or x.offset:
            return number
        if op.kernel == "product" and op.variant:
            return number  # which rounds its operands
        if op.kernel == "product":
            bias = op.columns.get(ops.BIAS, 0)
            layer = Layer(
                op.columns[ops.N_IN], op.columns[ops.N_OUT], op.columns[ops.W].offset, bias.offset if bias else -1
            )
            if settings[op.columns[ops.SETTINGS].offset] == 0:
                layer.code = RELU
            found.layers.append(layer)
        elif not found.layers or found.layers[-1].code != LINEAR:
            return number
        else:
            found.layers[-1].code = op.variant
            found.layers[-1].alpha = float(settings[op.columns[ops.SETTINGS].offset])
        found.last, found.stride = op.columns[ops.Y].buffer, op.columns[ops.Y_STRIDE]
    return len(forward)


def _backward(found: Chain, backward: Sequence[Any]) -> bool:
    """Put the updates into the chain; whether there is nothing else than a chain's way back."""
    weights = {layer.weight for layer in found.layers}
    for op in backward:
        if op.kernel not in _BACKWARD:
            return False
        if op.kernel == "product" and (op.variant or layout_of(op) == FORWARD):
            return False  # which rounds its operands, or goes forward once more, as with checkpoints
        if op.kernel == "product" and layout_of(op) == TRANSPOSED:
            if op.columns[ops.W].offset not in weights:
                return False
        elif op.kernel == "update":
            if op.columns.get(ops.ACCUMULATION, 0) > 1 or ops.SQUARES in op.columns:
                return False
            found.updates.append(op)
        elif op.kernel == "metric":
            if op.columns[ops.X].buffer != found.last:
                return False
            found.metrics.append(op)
        found.good |= op.kernel == "snapshot"
    return True
