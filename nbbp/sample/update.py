"""What takes the gradients of one sample: the caller's gradient array, or an optimizer that applies them at once.

Legend: the weight of a layer and the bias behind it are n_in · n_out + n_out numbers in a row of the flat buffer. An
optimizer's update goes over them in stretches of at most `_STRETCH` numbers, whose gradient lies on the stack in
between: it never leaves the first cache level. A group is the parameters that share settings; its line is coupled L2,
L1, the multiplier of a decoupled decay, and the rule's coefficients, as nbbp/optimizer_base.py lays them out.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from llvmlite import ir
from numba import float64, types
from numba.core import cgutils

from nbbp.cpu.adafactor import adafactor_step
from nbbp.cpu.update import penalized
from nbbp.sample.dense import dense_weight_gradient
from nbbp.sample.emit import Emitter
from nbbp.sample.network import Network, Sink
from nbbp.sample.plan import SETTINGS_PER_GROUP, Stage, adafactor_places, parameters_of, slot_stride
from nbbp.scalars.coefficients import COEFFICIENTS
from nbbp.scalars.dispatch import formula
from nbbp.scalars.updates import N_COEFFICIENTS, UPDATES, update_rule

#: Numbers whose gradient is kept on the stack at a time (16 KiB of float32).
_STRETCH = 4096
_N_PENALTIES = SETTINGS_PER_GROUP - 1


def gradient_sink(emit: Emitter, gradient: ir.Value, adds: bool = False) -> Sink:
    """Write every gradient into the flat array `gradient`, or add it to what is there."""

    def sink(stage: Stage, x: ir.Value, d_y: ir.Value) -> None:
        dense_weight_gradient(emit, emit.at(gradient, stage.weight), x, d_y, stage.n_in, stage.n_out, adds)
        if stage.bias is not None:
            emit.copy(emit.at(gradient, stage.bias), d_y, stage.n_out, adds)

    return sink


def update_sink(
    network: Network,
    rule: str,
    groups: Sequence[int],
    settings: ir.Value,
    rule_settings: tuple[types.Type, ir.Value],
    step: ir.Value,
    slots: ir.Value,
) -> Sink:
    """Update every parameter by an optimizer's rule.

    Parameters
    ----------
    network : Network
    rule : str
        Key of ``UPDATES``, or "adafactor".
    groups : sequence of int
        The group of each parameter, in the order of the flat buffer.
    settings : ir.Value
        Tuple of float64: of each group, its learning rate and the first three numbers of its line.
    rule_settings : (type, ir.Value)
        What the rule's coefficients take as s.
    step, slots : ir.Value
        The step's number, counted from 1, and the address of the slots.
    """
    lines = [_line(network.emit, rule, k, settings, rule_settings, step) for k in range(max(groups) + 1)]
    parameters = [(stage.place, is_bias) for stage, is_bias in parameters_of(network.stages)]
    group_of = dict(zip(parameters, groups, strict=True))
    kind = Adafactor if rule == "adafactor" else Elementwise
    return kind(network, rule, group_of, lines, slots)


def _line(emit: Emitter, rule: str, group: int, settings, rule_settings, step) -> list[ir.Value]:
    """The numbers of a group's line, float64."""
    builder, (kind, values) = emit.builder, rule_settings
    first = group * SETTINGS_PER_GROUP
    rate, *penalties = (builder.extract_value(settings, first + k) for k in range(SETTINGS_PER_GROUP))
    n_given = len(COEFFICIENTS[rule](2.0, 0.1, (0.5,) * len(kind)))
    function = _coefficients(rule, N_COEFFICIENTS - n_given)
    result = types.UniTuple(types.float64, N_COEFFICIENTS)
    numbers = emit.call(function, result, [types.int64, types.float64, kind], [step, rate, values])
    return [*penalties, *(builder.extract_value(numbers, k) for k in range(N_COEFFICIENTS))]


@cache
def _coefficients(rule: str, n_zeros: int) -> Callable:
    """The coefficients of a step, and zeros behind them."""
    of_rule, zeros = COEFFICIENTS[rule], (0.0,) * n_zeros

    def coefficients(step, rate, settings):
        return of_rule(float64(step), rate, settings) + zeros

    return coefficients


@formula
def penalize(w, g, penalties):
    """Return w after its decoupled decay, and g with the gradients of coupled L2 and L1."""
    l2, l1, kept = penalties
    if l2 != 0 or l1 != 0:
        g = penalized(w, g, l2, l1)
    if kept != 1:
        w *= kept
    return w, g


@cache
def _apply_rule(rule: str) -> Callable:
    """One parameter: its new value, and those of as many slots as the rule has."""
    code = UPDATES[rule].code

    def no_slot(w, g, penalties, c):
        w, g = penalize(w, g, penalties)
        zero = type(w)(0)
        return update_rule(code, w, g, zero, zero, zero, c)[0]

    def one_slot(w, g, s0, penalties, c):
        w, g = penalize(w, g, penalties)
        zero = type(w)(0)
        return update_rule(code, w, g, s0, zero, zero, c)[:2]

    def two_slots(w, g, s0, s1, penalties, c):
        w, g = penalize(w, g, penalties)
        return update_rule(code, w, g, s0, s1, type(w)(0), c)[:3]

    def three_slots(w, g, s0, s1, s2, penalties, c):
        w, g = penalize(w, g, penalties)
        return update_rule(code, w, g, s0, s1, s2, c)

    return (no_slot, one_slot, two_slots, three_slots)[UPDATES[rule].n_slots]


class Elementwise:
    """Applies a rule of ``UPDATES`` to the parameters of a layer; arguments as `update_sink`, which makes it."""

    def __init__(self, network: Network, rule: str, group_of: dict, lines: list, slots: ir.Value) -> None:
        self.emit, self.parameters, self.slots = network.emit, network.parameters, slots
        self.stride, self.group_of = slot_stride(network.entries), group_of
        self.function, self.n_slots = _apply_rule(rule), UPDATES[rule].n_slots
        self.lines = [self._packed(line) for line in lines]

    def _packed(self, line: list[ir.Value]) -> list[ir.Value]:
        """A line in the dtype, as the two tuples that `_apply_rule` takes."""
        numbers = [self.emit.converted(number) for number in line]
        parts = numbers[:_N_PENALTIES], numbers[_N_PENALTIES:]
        return [cgutils.pack_array(self.emit.builder, part) for part in parts]

    def __call__(self, stage: Stage, x: ir.Value, d_y: ir.Value) -> None:
        """Update the weight and the bias of one layer with the gradients x ⊗ d_y and d_y."""
        emit, n_in, n_out = self.emit, stage.n_in, stage.n_out
        of_weight = self.group_of[stage.place, False]
        of_bias = self.group_of.get((stage.place, True))
        rows = max(1, min(n_in, _STRETCH // n_out))
        bias_joins = rows == n_in and of_bias == of_weight
        gradient = emit.buffer(rows * n_out + n_out)

        def stretch(first: int | ir.Value, n_rows: int) -> None:
            dense_weight_gradient(emit, gradient, emit.at(x, first), d_y, n_rows, n_out)
            n = n_rows * n_out
            if bias_joins:
                emit.copy(emit.at(gradient, n), d_y, n_out)
            start = emit.plus(stage.weight, emit.times(first, n_out))
            self._apply(of_weight, start, gradient, n + n_out * bias_joins)

        emit.repeat(n_in // rows, lambda block: stretch(emit.times(block, rows), rows), 1)
        if n_in % rows:
            stretch(n_in // rows * rows, n_in % rows)
        if of_bias is not None and not bias_joins:
            self._apply(of_bias, stage.bias, d_y, n_out)

    def _apply(self, group: int, start: int | ir.Value, gradient: ir.Value, n: int) -> None:
        """Update parameters [start, start + n); what is left of whole registers, in copies on the stack."""
        emit = self.emit
        arrays = [emit.at(self.parameters, start)]
        arrays += [emit.at(self.slots, emit.plus(start, k * self.stride)) for k in range(self.n_slots)]
        more, kinds = self.lines[group], [types.UniTuple(emit.scalar, k) for k in (_N_PENALTIES, N_COEFFICIENTS)]
        whole = n // emit.lanes * emit.lanes
        if whole:
            emit.map(self.function, arrays, [arrays[0], gradient, *arrays[1:]], whole, more, kinds)
        if whole < n:
            copies = [emit.buffer(emit.lanes) for _ in arrays]
            for copy, array in zip(copies, arrays, strict=True):
                emit.store(emit.load(array, whole, n - whole), copy)
            inputs = [copies[0], emit.at(gradient, whole), *copies[1:]]
            emit.map(self.function, copies, inputs, emit.lanes, more, kinds)
            for copy, array in zip(copies, arrays, strict=True):
                emit.store(emit.load(copy), array, whole, n - whole)


class Adafactor:
    """Applies Adafactor, which takes the gradient of a whole parameter; it lies behind the moments in the slots."""

    def __init__(self, network: Network, rule: str, group_of: dict, lines: list, slots: ir.Value) -> None:
        self.emit, self.parameters, self.slots, self.group_of = network.emit, network.parameters, slots, group_of
        self.places, scratch = adafactor_places(network.stages)
        self.gradient = self.emit.at(slots, scratch)
        self.lines = [self._stored(line) for line in lines]
        self.limits = np.finfo(np.float32 if self.emit.scalar == types.float32 else np.float64)

    def _stored(self, line: list[ir.Value]) -> ir.Value:
        """The address of a line on the stack."""
        return self.emit.builder.bitcast(
            cgutils.alloca_once_value(self.emit.builder, cgutils.pack_array(self.emit.builder, line)),
            ir.DoubleType().as_pointer(),
        )

    def __call__(self, stage: Stage, x: ir.Value, d_y: ir.Value) -> None:
        """Update the weight and the bias of one layer with the gradients x ⊗ d_y and d_y."""
        dense_weight_gradient(self.emit, self.gradient, x, d_y, stage.n_in, stage.n_out)
        self._apply(stage, False, stage.weight, stage.n_in)
        if stage.bias is not None:
            self.emit.copy(self.gradient, d_y, stage.n_out)
            self._apply(stage, True, stage.bias, 1)

    def _apply(self, stage: Stage, is_bias: bool, start: int, n_rows: int) -> None:
        emit, key = self.emit, (stage.place, is_bias)
        arrays = emit.at(self.parameters, start), self.gradient, emit.at(self.slots, self.places[key])
        sizes = [emit.index(n_rows), emit.index(stage.n_out), ir.Constant(ir.IntType(1), not is_bias)]
        limits = [ir.Constant(ir.DoubleType(), float(x)) for x in (self.limits.eps, self.limits.tiny)]
        kinds = [emit.pointer] * 3 + [types.int64, types.int64, types.boolean]
        kinds += [types.CPointer(types.float64), types.float64, types.float64]
        emit.call(_adafactor, types.void, kinds, [*arrays, *sizes, self.lines[self.group_of[key]], *limits])


def _adafactor(w, g, kept, n_rows, n_columns, is_matrix, line, precision, smallest):
    """`adafactor_step`, as a plain function."""
    adafactor_step(w, g, kept, n_rows, n_columns, is_matrix, line, precision, smallest)
