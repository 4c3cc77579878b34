"""Lowering of losses and metrics."""

from __future__ import annotations

from collections.abc import Sequence

from nbbp import metrics as metric_codes
from nbbp import tiling
from nbbp.layers import Activation
from nbbp.losses import Loss
from nbbp.lowering.base import (
    MIXED_TARGETS,
    MIXED_WEIGHTS,
    PLACE_IN_BATCH,
    Lowering,
    in_phase,
    last_activation,
    takes_logits,
)
from nbbp.lowering.dense import activation_op
from nbbp.metrics import Metric
from nbbp.program import Place, Values


@in_phase("loss")
def loss_op(lowering: Lowering, loss: Loss, x: Values, target_is_labels: bool, with_gradient: bool) -> Values | None:
    """Op for the loss of every row, and of its gradient if that is wanted."""
    program = lowering.program
    d_x = program.matrix("d output", x.width) if with_gradient or loss.row_wise else None
    columns = {"y": Place(d_x.buffer), "y_stride": d_x.stride} if d_x else {}
    kernel = loss.name if loss.row_wise else "loss"
    if takes_logits(lowering.network, loss) and loss.row_wise:
        kernel = "crossentropy"  # nll behind log_softmax is crossentropy of what came in
    program.add(
        kernel, 0 if loss.row_wise else loss.formula.code,
        x=Place(x.buffer), x_stride=x.stride, n_out=x.width, **columns, **_target(lowering, x, target_is_labels),
        sample_weight=Place(MIXED_WEIGHTS if lowering.mixes_targets else "sample weight"),
        row_values=Place("loss values"),
        settings=program.setting(loss.parameter, loss.scale, float(loss.reduction == "mean")),
    )  # fmt: skip
    program.scratch = max(program.scratch, tiling.LOSS_SCRATCH)
    return d_x


def _target(lowering: Lowering, x: Values, is_labels: bool) -> dict[str, int | Place]:
    if lowering.mixes_targets:
        return {"target": Place(MIXED_TARGETS), "target_stride": x.width, "order": Place(PLACE_IN_BATCH)}
    return {
        "target": Place("target"),
        "target_stride": 0 if is_labels else x.width,
        "target_is_labels": int(is_labels),
        "order": Place("order"),
    }


@in_phase("metrics")
def metric_ops(lowering: Lowering, metrics: Sequence[Metric], loss: Loss, x: Values, target_is_labels: bool) -> None:
    """Ops for metrics of what the last layer gives; where only logits are at hand, of what follows from them."""
    program, n_out = lowering.program, x.width
    fused = takes_logits(lowering.network, loss)
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
            source = output = output or final_activation(lowering, last_activation(lowering.network), x)
        program.add(
            "metric", code, x=Place(source.buffer), x_stride=source.stride, n_out=n_out,
            **_target(lowering, x, target_is_labels), row_values=Place(f"metric values {number}"),
            settings=program.setting(parameter),
        )  # fmt: skip


def final_activation(lowering: Lowering, function: Activation, x: Values) -> Values:
    """Op for an activation behind the network, which backpropagation does not pass."""
    y = lowering.program.matrix("final activation", x.width, with_one=True)
    activation_op(lowering.program, function, "forward", x, y)
    return y
