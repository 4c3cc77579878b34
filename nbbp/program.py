"""Lowering: a network, its loss and its optimizer become a table of ops over named buffers.

A program is data that any engine can run: rows of ops (columns in nbbp/ops.py), tiles that say which ops run on which
part of the batch, phases that say which tiles may run at the same time, and the sizes of the buffers. It holds no
addresses and no arrays of the caller; an engine binds it.

Legend: a buffer is a name and a length in numbers. "parameters", "slot 0" … "slot 2" and everything in `EXTERNAL` belong to the
model or the caller; the others are the workspace. Rows of workspace buffers are padded to whole vector registers, with room
behind the last unit for the 1 that makes a bias the last row of its weight.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nbbp import metrics as metric_codes, ops, tiling
from nbbp.layers import Activation, Dense
from nbbp.losses import Loss
from nbbp.metrics import Metric
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.scalars.updates import UPDATES

#: Buffers of the caller, bound anew for every run.
EXTERNAL = ("X", "target", "sample weight", "order", "loss values", "output")

#: Rows are padded to this many numbers: a vector register of any processor.
PADDING = 16
#: A row stride that is a multiple of this many numbers sends every row to the same few cache sets.
_ALIASING = 256

# As in cpu/gemm.py: how a product finds its second operand.
IN_PLACE, PACKED, TRANSPOSED = 0, 1, 2


@dataclass(frozen=True)
class Place:
    """A place in a buffer: its name and how many numbers into it."""

    buffer: str
    offset: int = 0


@dataclass(frozen=True)
class Values:
    """A matrix (batch, width) in the workspace."""

    buffer: str
    width: int
    stride: int


@dataclass
class Op:
    """One row: which kernel, of which variant, with which columns."""

    kernel: str
    variant: int = 0
    columns: dict[int, int | Place] = field(default_factory=dict)


@dataclass
class Program:
    """Ops, tiles, phases and buffers; see the module's docstring.

    Attributes
    ----------
    batch : int
        Rows of a whole batch.
    ops : list of Op
    tiles : ndarray of int64, (n_tiles, ops.N_TILE_COLUMNS)
    phases : ndarray of int64, (n_phases + 1,)
        Where each phase's tiles begin.
    buffers : dict of str to int
        Workspace buffers and their lengths.
    ones : list of (str, int, int)
        Buffer, column and stride of the constant 1 of every row that feeds a bias.
    settings : list of float
        What `SETTINGS` columns point into.
    scratch : int
        Numbers of scratch that each thread needs.
    """

    batch: int
    ops: list[Op] = field(default_factory=list)
    tiles: np.ndarray = field(default_factory=lambda: np.empty((0, ops.N_TILE_COLUMNS), np.int64))
    phases: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    buffers: dict[str, int] = field(default_factory=dict)
    ones: list[tuple[str, int, int]] = field(default_factory=list)
    settings: list[float] = field(default_factory=list)
    scratch: int = PADDING

    def find(self, kernel: str) -> list[int]:
        """The rows of every op of this kernel."""
        return [row for row, op in enumerate(self.ops) if op.kernel == kernel]

    def loss_rows(self) -> list[int]:
        """The row of the loss."""
        return [row for row, op in enumerate(self.ops) if op.columns.get(ops.ROW_VALUES) == Place("loss values")
                and op.kernel != "snapshot"]

    def matrix(self, name: str, width: int, with_one: bool = False) -> Values:
        """A new workspace buffer of (batch, width) with padded rows."""
        stride = -(-(width + 1) // PADDING) * PADDING
        if stride % _ALIASING == 0:
            stride += PADDING
        self.buffers[name] = self.batch * stride
        if with_one:
            self.ones.append((name, width, stride))
        return Values(name, width, stride)

    def setting(self, *values: float) -> Place:
        """The place of these numbers among the settings."""
        self.settings.extend(values)
        return Place("settings", len(self.settings) - len(values))

    def add(self, kernel: str, variant: int = 0, **columns: int | Place) -> int:
        """Append an op; columns by their names in nbbp/ops.py, in lower case. Gives its row."""
        self.ops.append(Op(kernel, variant, {getattr(ops, k.upper()): v for k, v in columns.items()}))
        return len(self.ops) - 1


@dataclass(frozen=True)
class _Step:
    """What backpropagation needs to know of one forward op: a product or an activation."""

    layer: int
    before: Values
    after: Values
    activation: Activation | None = None


def takes_logits(network: Sequential, loss: Loss) -> bool:
    """Whether the last activation is part of the loss and left out of training."""
    return loss.fuses(_last_activation(network))


def _last_activation(network: Sequential) -> Activation:
    last = network.layers[-1]
    return last if isinstance(last, Activation) else last.activation


class _Lowering:
    """Builds one program; its methods append ops in the order in which they run."""

    def __init__(self, network: Sequential, batch: int) -> None:
        self.network = network
        self.program = Program(batch)
        self.steps: list[_Step] = []
        self.offsets = {parameter.name: parameter.offset for parameter in network.parameters}

    # forward ---------------------------------------------------------------------------------------------------------

    def gather(self) -> Values:
        n_in, program = self.network.n_in, self.program
        x = program.matrix("input", n_in, with_one=True)
        program.add(
            "gather",
            x=Place("X"), x_stride=n_in, y=Place(x.buffer), y_stride=x.stride, order=Place("order"), n_out=n_in,
        )  # fmt: skip
        return x

    def forward(self, x: Values, skip_last_activation: bool) -> Values:
        """Every layer; what the last one gives, or its logits."""
        last = len(self.network.layers) - 1
        for index, layer in enumerate(self.network.layers):
            activation = layer if isinstance(layer, Activation) else layer.activation
            if isinstance(layer, Dense):
                x = self.dense(index, layer, x)
            if index == last and skip_last_activation:
                break
            if activation.name == "relu" and isinstance(layer, Dense):
                self.steps.append(_Step(index, x, x, activation))  # done in the product's epilogue
            elif activation.name != "linear":
                x = self.activation(index, activation, x, in_place=isinstance(layer, Dense))
        return x

    def dense(self, index: int, layer: Dense, x: Values) -> Values:
        program = self.program
        out = program.matrix(f"layer {index}", layer.n_out, with_one=True)
        floor = 0.0 if layer.activation.name == "relu" else -math.inf
        layout = PACKED if tiling.wants_packing(program.batch, x.width, layer.n_out) else IN_PLACE
        program.add(
            "product",
            x=Place(x.buffer), x_stride=x.stride, w=Place("parameters", self.offsets[f"{index}.weight"]),
            w_stride=layer.n_out, y=Place(out.buffer), y_stride=out.stride,
            n_in=x.width + layer.use_bias, n_out=layer.n_out, layout=layout, settings=program.setting(floor),
        )  # fmt: skip
        self.steps.append(_Step(index, x, out))
        return out

    def activation(self, index: int, activation: Activation, x: Values, in_place: bool) -> Values:
        """In place where the derivative is written in the output, and nobody else reads what came in."""
        program, formula = self.program, activation.formula
        if not in_place or (not formula.row_wise and formula.derivative_of == "input"):
            y = program.matrix(f"activation {index}", x.width, with_one=True)
        else:
            y = x
        kernel = f"{activation.name}_forward" if formula.row_wise else "activation_forward"
        program.add(
            kernel, 0 if formula.row_wise else formula.code,
            x=Place(x.buffer), x_stride=x.stride, y=Place(y.buffer), y_stride=y.stride, n_out=x.width,
            settings=program.setting(activation.parameter),
        )  # fmt: skip
        self.steps.append(_Step(index, x, y, activation))
        return y

    # loss ------------------------------------------------------------------------------------------------------------

    def loss(self, loss: Loss, x: Values, target_is_labels: bool, with_gradient: bool) -> Values | None:
        program = self.program
        d_x = program.matrix("d output", x.width) if with_gradient else None
        columns = {"y": Place(d_x.buffer), "y_stride": d_x.stride} if d_x else {}
        kernel = loss.name if loss.row_wise else "loss"
        if takes_logits(self.network, loss) and loss.row_wise:
            kernel = "crossentropy"  # nll behind log_softmax is crossentropy of what came in
        program.add(
            kernel, 0 if loss.row_wise else loss.formula.code,
            x=Place(x.buffer), x_stride=x.stride, n_out=x.width, **columns, **self.target(x, target_is_labels),
            sample_weight=Place("sample weight"), row_values=Place("loss values"),
            settings=program.setting(loss.parameter, loss.scale, float(loss.reduction == "mean")),
        )  # fmt: skip
        program.scratch = max(program.scratch, x.stride)
        return d_x

    def target(self, x: Values, is_labels: bool) -> dict[str, int | Place]:
        return {
            "target": Place("target"),
            "target_stride": 0 if is_labels else x.width,
            "target_is_labels": int(is_labels),
            "order": Place("order"),
        }

    def metrics(self, metrics: Sequence[Metric], loss: Loss, x: Values, target_is_labels: bool) -> None:
        """Metrics of what the last layer gives; where only logits are at hand, of what follows from them."""
        program, n_out = self.program, x.width
        fused = takes_logits(self.network, loss)
        output = None
        for number, metric in enumerate(metrics):
            code = metric.code_for(n_out)
            parameter = metric.parameter
            source = x
            if code == metric_codes.RIGHT_SIDES and loss.name == "binary_crossentropy":
                parameter = metric_codes.threshold_of_logits(parameter)
            elif code == metric_codes.RIGHT_SIDES and loss.name == "hinge":
                parameter = 0.0
            elif fused and code in (metric_codes.RIGHT_SIDES, metric_codes.ABSOLUTE_ERROR, metric_codes.SQUARED_ERROR):
                if output is None:
                    last = len(self.network.layers) - 1
                    kept = list(self.steps)
                    output = self.activation(last, _last_activation(self.network), x, in_place=False)
                    self.steps = kept  # backpropagation does not pass here
                source = output
            program.add(
                "metric", code, x=Place(source.buffer), x_stride=source.stride, n_out=n_out,
                **self.target(x, target_is_labels), row_values=Place(f"metric values {number}"),
                settings=program.setting(parameter),
            )  # fmt: skip

    # backward --------------------------------------------------------------------------------------------------------

    def backward(self, d_x: Values) -> dict[int, tuple[Values, Values]]:
        """Output gradients from the last layer to the first dense one; per dense layer its input and output gradient."""
        program, operands = self.program, {}
        first_dense = min(step.layer for step in self.steps if step.activation is None)
        for step in reversed(self.steps):
            if step.activation is not None and step.layer >= first_dense:
                self.activation_backward(step, d_x)
            elif step.activation is None:
                operands[step.layer] = (step.before, d_x)
                if step.layer > first_dense:
                    layer = self.network.layers[step.layer]
                    d_before = program.matrix(f"d layer {step.layer}", step.before.width)
                    program.add(
                        "product", x=Place(d_x.buffer), x_stride=d_x.stride,
                        w=Place("parameters", self.offsets[f"{step.layer}.weight"]), w_stride=layer.n_out,
                        y=Place(d_before.buffer), y_stride=d_before.stride, n_in=layer.n_out,
                        n_out=step.before.width, layout=TRANSPOSED, settings=program.setting(-math.inf),
                    )  # fmt: skip
                    program.scratch = max(program.scratch, tiling.packed_panel(layer.n_out))
                    d_x = d_before
        return operands

    def activation_backward(self, step: _Step, d_x: Values) -> None:
        formula = step.activation.formula
        kept = step.before if not formula.row_wise and formula.derivative_of == "input" else step.after
        kernel = f"{step.activation.name}_backward" if formula.row_wise else "activation_backward"
        self.program.add(
            kernel, 0 if formula.row_wise else formula.code,
            x=Place(kept.buffer), x_stride=kept.stride, y=Place(d_x.buffer), y_stride=d_x.stride, n_out=d_x.width,
            settings=self.program.setting(step.activation.parameter),
        )  # fmt: skip

    # parameters ------------------------------------------------------------------------------------------------------

    def weight_gradient(self, index: int, x: Values, d_out: Values, gradient: Place | int, **columns: int) -> None:
        """Op for one layer's weight and bias gradient, which lie one behind the other as (n_in + 1, n_out)."""
        layer = self.network.layers[index]
        base = self.offsets[f"{index}.weight"]
        where = Place(gradient.buffer, gradient.offset + base) if isinstance(gradient, Place) else gradient
        self.program.add(
            "product", x=Place(x.buffer), x_stride=x.stride, w=Place(d_out.buffer), w_stride=d_out.stride,
            y=where, y_stride=layer.n_out, n_in=x.width + layer.use_bias, n_out=layer.n_out, layout=IN_PLACE,
            contracts_rows=1, settings=self.program.setting(-math.inf),
            **{"slot_rows": self.program.batch, **columns},
        )  # fmt: skip

    def snapshot(self, start: int, n: int, unit: int) -> None:
        """Op that copies `n` parameters from `start` on in the first step of a run, if its loss is finite."""
        self.program.add(
            "snapshot", x=Place("parameters", start), y=Place("good parameters", start), n_out=n, slot_stride=unit,
            row_values=Place("loss values"),
        )  # fmt: skip

    def updates(self, optimizer: Optimizer, names: Sequence[str], base: int, unit: int, gradient: Place | int) -> None:
        """Update ops for neighbouring parameters from `base` on; those of equal settings share one."""
        segments: list[list] = []
        for parameter in self.network.parameters:
            if parameter.name in names:
                settings = optimizer.settings(parameter.name)
                if segments and segments[-1][2] == settings:
                    segments[-1][1] = parameter.stop - base
                else:
                    segments.append([parameter.offset - base, parameter.stop - base, settings])
        for start, stop, settings in segments:
            self.program.add(
                "update", UPDATES[optimizer.rule].code, x=gradient, w=Place("parameters", base),
                n_in=start, n_out=stop, slot_stride=unit, tile_local=int(gradient == 0),
                coefficients=Place(coefficients_buffer(settings)),
                **{f"slot_{k}": Place(f"slot {k}", base) for k in range(optimizer.n_slots)},
            )  # fmt: skip

    def adafactor(self, optimizer: Optimizer, index: int) -> None:
        """Update ops of one layer's parameters, each whole."""
        for parameter, slot_offset in zip(self.network.parameters, adafactor_offsets(self.network), strict=False):
            if parameter.layer_index == index:
                self.program.add(
                    "adafactor", x=Place("gradient", parameter.offset), w=Place("parameters", parameter.offset),
                    n_in=math.prod(parameter.shape[:-1]), n_out=parameter.shape[-1],
                    is_matrix=int(len(parameter.shape) > 1), slot_0=Place("slot 0", slot_offset),
                    coefficients=Place(coefficients_buffer(optimizer.settings(parameter.name))),
                )  # fmt: skip


def adafactor_offsets(network: Sequential) -> list[int]:
    """Where each parameter's factored second moment begins in its slot; the last entry is the slot's length."""
    offsets = [0]
    for parameter in network.parameters:
        offsets.append(offsets[-1] + (sum(parameter.shape) if len(parameter.shape) > 1 else parameter.size))
    return offsets


def slot_lengths(network: Sequential, optimizer: Optimizer) -> list[int]:
    """Numbers in each of the optimizer's slots."""
    if optimizer.rule == "adafactor":
        return [adafactor_offsets(network)[-1]]
    return [network.n_parameters] * optimizer.n_slots


def coefficients_buffer(settings: object) -> str:
    """Name of the buffer of step coefficients for parameters of these settings."""
    return f"coefficients of {settings}"


def prediction_program(network: Sequential, batch: int, also: Activation | None = None) -> Program:
    """What the last layer gives for rows of "X", into "output"; followed by the activation `also`."""
    lowering = _Lowering(network, batch)
    out = lowering.forward(lowering.gather(), skip_last_activation=False)
    if also is not None:
        out = lowering.activation(len(network.layers), also, out, in_place=False)
    program = lowering.program
    program.add(
        "copy_out", x=Place(out.buffer), x_stride=out.stride, y=Place("output"), y_stride=out.width, n_out=out.width
    )
    return _with_tiles(program, [tiling.row_tiles(0, len(program.ops), batch, tiling.FORWARD_ROWS)])


def evaluation_program(
    network: Sequential, loss: Loss, metrics: Sequence[Metric], batch: int, target_is_labels: bool
) -> Program:
    """Loss and metrics of every row."""
    lowering = _Lowering(network, batch)
    out = lowering.forward(lowering.gather(), takes_logits(network, loss))
    lowering.loss(loss, out, target_is_labels, with_gradient=False)
    lowering.metrics(metrics, loss, out, target_is_labels)
    program = lowering.program
    return _with_tiles(program, [tiling.row_tiles(0, len(program.ops), batch, tiling.FORWARD_ROWS)])


def training_program(
    network: Sequential,
    loss: Loss,
    optimizer: Optimizer | None,
    metrics: Sequence[Metric],
    batch: int,
    target_is_labels: bool,
    keeps_good: bool = False,
) -> Program:
    """Forward, loss, metrics, backward and update; without an optimizer the gradient stays in "gradient".

    With `keeps_good`, parameters at which the loss was finite are kept in "good parameters" (see cpu/snapshot.py).
    """
    lowering = _Lowering(network, batch)
    program = lowering.program
    out = lowering.forward(lowering.gather(), takes_logits(network, loss))
    d_out = lowering.loss(loss, out, target_is_labels, with_gradient=True)
    lowering.metrics(metrics, loss, out, target_is_labels)
    operands = lowering.backward(d_out)
    shapes = [(values.width, network.layers[index].n_out) for index, (values, _) in operands.items()]
    plan = tiling.plan(shapes, batch)
    whole_gradient = optimizer is None or optimizer.rule == "adafactor" or plan in (tiling.ALONE, tiling.PARTIAL)
    row_ops = len(program.ops)
    if plan == tiling.PARTIAL:
        phases = _partial_phases(lowering, operands, optimizer, keeps_good)
    elif plan == tiling.ALONE:
        for index, (x, d) in operands.items():
            lowering.weight_gradient(index, x, d, Place("gradient"))
        if keeps_good:
            lowering.snapshot(0, network.n_parameters, 1)
        _update_everything(lowering, optimizer)
        phases = [[(0, len(program.ops), 0, batch, 0, tiling.ALL)]]
    else:
        phases = [tiling.row_tiles(0, row_ops, batch, tiling.rows_per_tile(shapes, batch))]
        if plan == tiling.WIDE:
            phases = _phases_by_op(program, row_ops, shapes)
        phases += _parameter_phase(lowering, operands, optimizer, whole_gradient, keeps_good)
    if whole_gradient:
        slots = tiling.partial_count(batch) if plan == tiling.PARTIAL else 1
        program.buffers["gradient"] = slots * _padded(network.n_parameters)
    for index, (x, _) in operands.items():
        program.scratch = max(program.scratch, tiling.packed_panel(x.width + 1))
    return _with_tiles(program, phases)


def _padded(n: int) -> int:
    return -(-n // PADDING) * PADDING


def _update_everything(lowering: _Lowering, optimizer: Optimizer | None) -> None:
    """Update ops over the whole buffer."""
    network = lowering.network
    if optimizer is None:
        return
    if optimizer.rule == "adafactor":
        for index in range(len(network.layers)):
            lowering.adafactor(optimizer, index)
    else:
        names = [parameter.name for parameter in network.parameters]
        lowering.updates(optimizer, names, 0, 1, Place("gradient"))


def _partial_phases(
    lowering: _Lowering, operands: dict, optimizer: Optimizer | None, keeps_good: bool
) -> list[list[tuple]]:
    """A partial gradient per block of rows; then their sum in order, and the update."""
    program, network = lowering.program, lowering.network
    rows = tiling.partial_rows(program.batch)
    n = network.n_parameters
    for index, (x, d) in operands.items():
        lowering.weight_gradient(index, x, d, Place("gradient"), slot_rows=rows, slot_stride=_padded(n))
    phases = [tiling.row_tiles(0, len(program.ops), program.batch, rows)]
    reduction = program.add("reduce_gradient", y=Place("gradient"), slot_rows=rows, slot_stride=_padded(n))
    if keeps_good:
        lowering.snapshot(0, n, 1)
    after = len(program.ops)
    _update_everything(lowering, optimizer)
    stop = len(program.ops)
    if optimizer is not None and optimizer.rule == "adafactor":
        phases.append(tiling.column_tiles(reduction, after, program.batch, n, tiling.PARAMETERS))
        phases.append([(op, op + 1, 0, program.batch, 0, tiling.ALL) for op in range(after, stop)])
    else:
        phases.append(tiling.column_tiles(reduction, stop, program.batch, n, tiling.PARAMETERS))
    return phases


def _parameter_phase(
    lowering: _Lowering, operands: dict, optimizer: Optimizer | None, whole_gradient: bool, keeps_good: bool
) -> list[list[tuple]]:
    """Per layer and tile of its weight: the gradient over the whole batch, and the update while it is in cache."""
    program, network = lowering.program, lowering.network
    tiles = []
    for index, (x, d) in operands.items():
        layer = network.layers[index]
        first, n_rows = len(program.ops), x.width + layer.use_bias
        gradient = Place("gradient") if whole_gradient else 0
        lowering.weight_gradient(index, x, d, gradient, tile_local=int(not whole_gradient))
        if keeps_good:
            lowering.snapshot(lowering.offsets[f"{index}.weight"], n_rows * layer.n_out, layer.n_out)
        size = tiling.weight_rows(layer.n_out)
        if optimizer is not None and optimizer.rule == "adafactor":
            lowering.adafactor(optimizer, index)
            size = n_rows
        elif optimizer is not None:
            names = [p.name for p in network.parameters if p.layer_index == index]
            base = lowering.offsets[f"{index}.weight"]
            lowering.updates(optimizer, names, base, layer.n_out, 0)
        if not whole_gradient:
            program.scratch = max(program.scratch, min(size, n_rows) * layer.n_out)
        tiles += tiling.column_tiles(first, len(program.ops), program.batch, n_rows, size)
    return [tiles]


def _phases_by_op(program: Program, row_ops: int, shapes: list) -> list[list[tuple]]:
    """For wide layers: a phase per product with what follows it elementwise, cut by rows and columns."""
    starts = [0]
    for row in range(1, row_ops):
        kernel = program.ops[row].kernel
        if kernel == "product" or not kernel.startswith("activation") and kernel != "metric":
            starts.append(row)
    phases = []
    for first, last in zip(starts, [*starts[1:], row_ops], strict=True):
        op = program.ops[first]
        if op.kernel == "product":
            phases.append(tiling.product_tiles(first, last, program.batch, op.columns[ops.N_IN], op.columns[ops.N_OUT]))
        else:
            phases.append(tiling.row_tiles(first, last, program.batch, tiling.FORWARD_ROWS))
    return phases


def _with_tiles(program: Program, phases: list[list[tuple]]) -> Program:
    """Put the tiles of the phases into the program."""
    program.tiles = np.array([tile for phase in phases for tile in phase], np.int64)
    program.phases = np.cumsum([0, *map(len, phases)]).astype(np.int64)
    return program
