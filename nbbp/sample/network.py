"""A network on one sample, while its machine code is written: forward, backward, loss, and what takes the gradients.

Legend: every layer's input and output are buffers on the stack, one sample wide. Nothing is allocated, nothing is
shared, and whatever depends on the network alone is decided here, while Numba compiles: what runs has neither a table
nor a branch on sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir
from numba import types

from nbbp.sample import formulas
from nbbp.sample.dense import dense_forward, dense_input_gradient
from nbbp.sample.emit import Emitter
from nbbp.sample.plan import CROSSENTROPY, LINEAR, Stage, n_parameters, stages
from nbbp.sample.standardization import standardize, standardize_backward
from nbbp.scalars.activations import ACTIVATIONS
from nbbp.scalars.custom import derivative_of
from nbbp.scalars.losses import LOSSES

_BY_CODE = {formula.code: formula for formula in ACTIVATIONS.values()}
_NLL = LOSSES["nll"].code
#: Codes of the losses that take a label or a row of targets.
ROW_WISE = (CROSSENTROPY, _NLL)
_ROW_WISE_FORWARD = {"softmax": formulas.softmax_forward, "log_softmax": formulas.log_softmax_forward}
_ROW_WISE_BACKWARD = {"softmax": formulas.softmax_backward, "log_softmax": formulas.log_softmax_backward}
_ROW_WISE_LOSSES = {
    (CROSSENTROPY, True): formulas.crossentropy_of_label,
    (CROSSENTROPY, False): formulas.crossentropy_of_target,
    (_NLL, True): formulas.nll_of_label,
    (_NLL, False): formulas.nll_of_target,
}


@dataclass
class Kept:
    """What a layer leaves for its backward pass: its input, what its activation took, and what that gave."""

    x: ir.Value
    logits: ir.Value
    y: ir.Value


#: Takes a layer with parameters, its input x and the gradient d_y of its product.
Sink = Callable[[Stage, ir.Value, ir.Value], None]


class Network:
    """Writes the passes of one network.

    Parameters
    ----------
    emit : Emitter
    entries : sequence
        A `structure` (nbbp/sample/plan.py).
    numbers : ir.Value
        The tuple of float64 that goes with it.
    parameters : ir.Value
        The address of the flat buffer.
    """

    def __init__(self, emit: Emitter, entries: Sequence[int | str], numbers: ir.Value, parameters: ir.Value) -> None:
        self.emit, self.entries, self.numbers, self.parameters = emit, entries, numbers, parameters
        self.stages = stages(entries)
        self.n_in, self.n_out = self.stages[0].n_in, self.stages[-1].n_out
        self.n_parameters = n_parameters(entries)
        self.kept: list[Kept] = []

    def forward(self, x: ir.Value, keeps: bool) -> ir.Value:
        """The buffer that the last layer leaves; `keeps` what backpropagation needs."""
        emit = self.emit
        for stage in self.stages:
            logits = x
            if stage.weight is not None:
                logits = emit.buffer(stage.n_out)
                bias = None if stage.bias is None else emit.at(self.parameters, stage.bias)
                dense_forward(emit, logits, x, emit.at(self.parameters, stage.weight), bias, stage.n_in, stage.n_out)
            y = self._activation(stage, logits, may_overwrite=logits is not x, keeps=keeps)
            self.kept.append(Kept(x, logits, y))
            x = emit.settle(y)
        return x

    def _activation(self, stage: Stage, x: ir.Value, may_overwrite: bool, keeps: bool) -> ir.Value:
        """Its output: in place, unless what came in is wanted later."""
        emit, n = self.emit, stage.n_out
        if stage.standardizes:
            y = emit.buffer(n)
            standardize(emit, stage.code, y, x, n)
            return y
        if stage.code == LINEAR:
            return x
        y = x
        if not may_overwrite or (keeps and _derivative_of(stage) == "input"):
            y = emit.buffer(n)
        name = _row_wise(stage)
        if name:
            kinds = [emit.pointer] * 2 + [types.int64] * 2
            sizes = [emit.index(n), emit.index(emit.padded(n))]
            emit.call(_ROW_WISE_FORWARD[name], types.void, kinds, [y, x, *sizes])
        else:
            emit.map(formulas.activation_forward(stage.code), [y], [x], emit.padded(n), [self._alpha(stage)])
        return y

    def backward(self, d_y: ir.Value, sink: Sink | None, wants_input: bool) -> ir.Value | None:
        """From the gradient d_y of the last layer's output to that of the network's input, where it is wanted.

        d_y is overwritten; its padding must be 0. Each layer's product hands its gradients to `sink` after it has
        passed back what the layer before needs, so a sink may change the parameters.
        """
        emit = self.emit
        first = min(stage.place for stage in self.stages if stage.weight is not None)
        for stage, kept in zip(reversed(self.stages), reversed(self.kept), strict=True):
            if not wants_input and stage.place < first:
                return None
            self._activation_backward(stage, kept, d_y)
            if stage.weight is not None:
                d_x = None
                if wants_input or stage.place > first:
                    d_x = emit.buffer(stage.n_in)
                    weight = emit.at(self.parameters, stage.weight)
                    dense_input_gradient(emit, d_x, d_y, weight, stage.n_in, stage.n_out)
                if sink is not None:
                    sink(stage, kept.x, d_y)
                d_y = d_x
        return d_y

    def _activation_backward(self, stage: Stage, kept: Kept, d: ir.Value) -> None:
        emit, n = self.emit, stage.n_out
        if stage.standardizes:
            standardize_backward(emit, stage.code, d, n)
            return
        if stage.code == LINEAR:
            return
        name = _row_wise(stage)
        if name:
            kinds = [emit.pointer] * 2 + [types.int64] * 2
            sizes = [emit.index(n), emit.index(emit.padded(n))]
            emit.call(_ROW_WISE_BACKWARD[name], types.void, kinds, [d, kept.y, *sizes])
        else:
            of = kept.logits if _derivative_of(stage) == "input" else kept.y
            emit.map(formulas.activation_backward(stage.code), [d], [d, of], emit.padded(n), [self._alpha(stage)])
        emit.clear_padding(d, n)

    def _alpha(self, stage: Stage) -> ir.Value:
        return number_of(self.emit, self.numbers, stage.place)


def _row_wise(stage: Stage) -> str | None:
    formula = _BY_CODE.get(stage.code)
    return formula.name if formula is not None and formula.row_wise else None


def _derivative_of(stage: Stage) -> str:
    """What the derivative is written in: "input" or "output"."""
    return derivative_of(stage.code) if isinstance(stage.code, str) else _BY_CODE[stage.code].derivative_of


def number_of(emit: Emitter, numbers: ir.Value, place: int) -> ir.Value:
    """A number of a tuple of float64, in the dtype."""
    return emit.converted(emit.builder.extract_value(numbers, place))


def loss_and_output_gradient(
    emit: Emitter, code: int | str, settings: ir.Value, y: ir.Value, n: int, target: ir.Value, is_label: bool
) -> tuple[ir.Value, ir.Value]:
    """The loss (float64) of what the last layer gives, and a buffer with its gradient with respect to that.

    `settings` is a tuple of float64: the loss's parameter, and the factor of its value and gradient per output.
    """
    d = emit.buffer(n)
    parameter, factor = number_of(emit, settings, 0), number_of(emit, settings, 1)
    if code in ROW_WISE:
        kinds = [emit.pointer, emit.pointer, types.int64 if is_label else emit.pointer]
        kinds += [types.int64, types.int64, emit.scalar, emit.scalar]
        sizes = [emit.index(n), emit.index(emit.padded(n))]
        function = _ROW_WISE_LOSSES[code, is_label]
        value = emit.call(function, types.float64, kinds, [d, y, target, *sizes, parameter, factor])
    else:
        values = emit.buffer(n)
        emit.map(formulas.elementwise_loss(code), [values, d], [y, target], emit.padded(n), [parameter, factor])
        value = emit.call(formulas.sum_of, types.float64, [emit.pointer, types.int64], [values, emit.index(n)])
    emit.clear_padding(d, n)
    return emit.builder.fmul(value, emit.builder.extract_value(settings, 1)), d
