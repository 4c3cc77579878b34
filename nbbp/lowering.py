"""Lowering: writes the programs that train, evaluate and predict.

Legend: as in nbbp/program.py. ``x`` and ``d_x`` are the outputs of a layer and the loss's gradient with respect to
them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nbbp import metrics as metric_codes
from nbbp import tiling
from nbbp.custom_layer import Custom
from nbbp.layers import Activation, Dense
from nbbp.losses import Loss
from nbbp.metrics import Metric
from nbbp.network import Sequential
from nbbp.ops import UserFunction
from nbbp.optimizers import Optimizer
from nbbp.program import PADDING, Place, Program, Values
from nbbp.scalars.updates import UPDATES

# As in cpu/gemm.py: how a product finds its second operand.
IN_PLACE, PACKED, TRANSPOSED = 0, 1, 2


@dataclass(frozen=True)
class Step:
    """What backpropagation needs to know of one forward op: a product, a custom layer or an activation."""

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


class Lowering:
    """Builds one program; its methods append ops in the order in which they run."""

    def __init__(self, network: Sequential, batch: int) -> None:
        self.network = network
        self.program = Program(batch)
        self.steps: list[Step] = []
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
            if isinstance(layer, Custom):
                x = self.custom(index, layer, x)
            elif isinstance(layer, Dense):
                x = self.dense(index, layer, x)
            if index == last and skip_last_activation:
                break
            if activation.name == "relu" and isinstance(layer, Dense):
                self.steps.append(Step(index, x, x, activation))  # done in the product's epilogue
            elif activation.name != "linear":
                x = self.activation(index, activation, x, in_place=isinstance(layer, Dense))
        return x

    def dense(self, index: int, layer: Dense, x: Values) -> Values:
        program = self.program
        out = program.matrix(f"layer {index}", layer.n_out, with_one=True)
        floor = 0.0 if layer.activation.name == "relu" else -math.inf
        layout = PACKED if tiling.wants_packing(program.batch, layer.n_out) else IN_PLACE
        if layout == PACKED:
            program.scratch = max(program.scratch, tiling.packed_panel(x.width))
        program.add(
            "product",
            x=Place(x.buffer), x_stride=x.stride, w=Place("parameters", self.offsets[f"{index}.weight"]),
            w_stride=layer.n_out, y=Place(out.buffer), y_stride=out.stride,
            bias=Place("parameters", self.offsets[f"{index}.bias"]) if layer.use_bias else 0,
            n_in=x.width, n_out=layer.n_out, layout=layout, settings=program.setting(floor),
        )  # fmt: skip
        self.steps.append(Step(index, x, out))
        return out

    def custom(self, index: int, layer: Custom, x: Values) -> Values:
        program = self.program
        out = program.matrix(f"layer {index}", layer.width(x.width), with_one=True)
        program.add(
            "custom_forward", UserFunction(layer.forward, f"the forward function of {self.label(index)}"),
            x=Place(x.buffer), x_stride=x.stride, y=Place(out.buffer), y_stride=out.stride,
            n_in=x.width, n_out=out.width, **self.parameters(index),
        )  # fmt: skip
        self.steps.append(Step(index, x, out))
        return out

    def label(self, index: int) -> str:
        """What messages call a layer."""
        name = self.network.layers[index].name
        return f"layer {index}" + (f" ({name!r})" if name else "")

    def parameters(self, index: int) -> dict[str, int | Place]:
        """Columns of a custom layer's parameters."""
        own = [parameter for parameter in self.network.parameters if parameter.layer_index == index]
        start = own[0].offset if own else 0
        return {"parameters": Place("parameters", start), "n_parameters": sum(parameter.size for parameter in own)}

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
        self.steps.append(Step(index, x, y, activation))
        return y

    # loss ------------------------------------------------------------------------------------------------------------

    def loss(self, loss: Loss, x: Values, target_is_labels: bool, with_gradient: bool) -> Values | None:
        program = self.program
        d_x = program.matrix("d output", x.width) if with_gradient or loss.row_wise else None
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
        program.scratch = max(program.scratch, 2 * tiling.LOSS_ROWS)
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
            elif fused and code in (
                metric_codes.RIGHT_SIDES,
                metric_codes.ABSOLUTE_ERROR,
                metric_codes.SQUARED_ERROR,
            ):
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

    def backward(self, d_x: Values, slot_rows: int) -> dict[int, tuple[Values, Values]]:
        """Output gradients from the last layer to the first with parameters; per dense layer its input and output
        gradient. Gradients of custom layers' parameters too, one for every `slot_rows` rows.
        """
        operands = {}
        first = min(parameter.layer_index for parameter in self.network.parameters)
        for step in reversed(self.steps):
            if step.layer < first:
                break
            if step.activation is not None:
                self.activation_backward(step, d_x)
            elif isinstance(self.network.layers[step.layer], Custom):
                d_x = self.custom_backward(step, d_x, slot_rows)
            else:
                operands[step.layer] = (step.before, d_x)
                if step.layer > first:
                    d_x = self.input_gradient(step, d_x)
        return operands

    def input_gradient(self, step: Step, d_x: Values) -> Values:
        """Op for the gradient of what came into a dense layer."""
        program, layer = self.program, self.network.layers[step.layer]
        d_before = program.matrix(f"d layer {step.layer}", step.before.width)
        program.add(
            "product", x=Place(d_x.buffer), x_stride=d_x.stride,
            w=Place("parameters", self.offsets[f"{step.layer}.weight"]), w_stride=layer.n_out,
            y=Place(d_before.buffer), y_stride=d_before.stride, n_in=layer.n_out,
            n_out=step.before.width, layout=TRANSPOSED, settings=program.setting(-math.inf),
        )  # fmt: skip
        program.scratch = max(program.scratch, tiling.packed_panel(layer.n_out))
        return d_before

    def custom_backward(self, step: Step, d_y: Values, slot_rows: int) -> Values:
        """Op for the gradients of what came into a custom layer and of its parameters."""
        program, layer = self.program, self.network.layers[step.layer]
        d_before = program.matrix(f"d layer {step.layer}", step.before.width)
        parameters = self.parameters(step.layer)
        gradient = Place("gradient", parameters["parameters"].offset) if parameters["n_parameters"] else 0
        program.add(
            "custom_backward", UserFunction(layer.backward, f"the backward function of {self.label(step.layer)}"),
            x=Place(step.before.buffer), x_stride=step.before.stride, kept=Place(step.after.buffer),
            kept_stride=step.after.stride, d_y=Place(d_y.buffer), d_y_stride=d_y.stride, y=Place(d_before.buffer),
            y_stride=d_before.stride, n_in=d_before.width, n_out=d_y.width, gradient=gradient,
            slot_rows=slot_rows, slot_stride=padded(self.network.n_parameters), **parameters,
        )  # fmt: skip
        program.scratch = max(program.scratch, parameters["n_parameters"])
        return d_before

    def activation_backward(self, step: Step, d_x: Values) -> None:
        formula = step.activation.formula
        kept = step.before if not formula.row_wise and formula.derivative_of == "input" else step.after
        kernel = f"{step.activation.name}_backward" if formula.row_wise else "activation_backward"
        self.program.add(
            kernel, 0 if formula.row_wise else formula.code,
            x=Place(kept.buffer), x_stride=kept.stride, y=Place(d_x.buffer), y_stride=d_x.stride, n_out=d_x.width,
            settings=self.program.setting(step.activation.parameter),
        )  # fmt: skip

    # parameters ------------------------------------------------------------------------------------------------------

    def weight_gradient(
        self, index: int, x: Values, d_out: Values, gradient: Place | int, panel: tuple[int, int] | None = None,
        **columns: int,
    ) -> None:  # fmt: skip
        """Op for one layer's weight and bias gradient, which lie one behind the other as (n_in + 1, n_out).

        Into the whole gradient at `gradient`, or a tile's into its scratch where that is 0; of the columns `panel`.
        """
        layer = self.network.layers[index]
        base = self.offsets[f"{index}.weight"]
        start, stop = panel or (0, layer.n_out)
        is_local = not isinstance(gradient, Place)
        self.program.add(
            "product", x=Place(x.buffer), x_stride=x.stride, w=Place(d_out.buffer, start), w_stride=d_out.stride,
            y=0 if is_local else Place(gradient.buffer, gradient.offset + base + start),
            y_stride=stop - start if is_local else layer.n_out, tile_local=int(is_local),
            n_in=x.width + layer.use_bias, n_out=stop - start, layout=IN_PLACE, contracts_rows=1,
            settings=self.program.setting(-math.inf), **{"slot_rows": self.program.batch, **columns},
        )  # fmt: skip

    def snapshot(self, start: int, n_rows: int, panel: tuple[int, int], stride: int) -> None:
        """Op that keeps rows of parameters from `start` on in the first step of a run, if its loss is finite."""
        self.program.add(
            "snapshot", x=Place("parameters", start + panel[0]), y=Place("good parameters", start + panel[0]),
            n_in=n_rows, n_out=panel[1] - panel[0], w_stride=stride, row_values=Place("loss values"),
        )  # fmt: skip

    def updates(
        self, optimizer: Optimizer, names: Sequence[str], base: int, gradient: Place | int, panel: tuple[int, int],
        stride: int,
    ) -> None:  # fmt: skip
        """Update ops for neighbouring parameters from `base` on; those of equal settings share one.

        They are taken as rows of `stride` numbers, of which the columns `panel` are updated.
        """
        segments: list[list] = []
        for parameter in self.network.parameters:
            if parameter.name in names:
                settings = optimizer.settings(parameter.name)
                if segments and segments[-1][2] == settings:
                    segments[-1][1] = (parameter.stop - base) // stride
                else:
                    segments.append([(parameter.offset - base) // stride, (parameter.stop - base) // stride, settings])
        slots = {f"slot_{k}": Place(f"slot {k}", base + panel[0]) for k in range(optimizer.n_slots)}
        for start, stop, settings in segments:
            self.program.add(
                "update", UPDATES[optimizer.rule].code, x=gradient, w=Place("parameters", base + panel[0]),
                w_stride=stride, n_in=start, n_out=stop, slot_stride=panel[1] - panel[0],
                tile_local=int(not isinstance(gradient, Place)),
                coefficients=Place(coefficients_buffer(settings)), row_values=Place("loss values"), **slots,
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
                    row_values=Place("loss values"),
                )  # fmt: skip


def adafactor_offsets(network: Sequential) -> list[int]:
    """Where each parameter's factored second moment begins in its slot; the last entry is the slot's length."""
    offsets = [0]
    for parameter in network.parameters:
        offsets.append(offsets[-1] + (sum(parameter.shape) if len(parameter.shape) > 1 else parameter.size))
    return offsets


def coefficients_buffer(settings: object) -> str:
    """Name of the buffer of step coefficients for parameters of these settings."""
    return f"coefficients of {settings}"


def padded(n: int) -> int:
    """`n` rounded up to whole vector registers."""
    return -(-n // PADDING) * PADDING
