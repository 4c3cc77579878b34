"""Lowering of BatchNorm, LayerNorm, RMSNorm and Standardize."""

from __future__ import annotations

from nbbp.layers import BatchNorm, LayerNorm, RMSNorm, Standardize
from nbbp.lowering.base import Lowering, Step, lowers, operands, padded
from nbbp.nodes import Node
from nbbp.program import Place, Values


@lowers(BatchNorm)
def batch_norm(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``gamma · (x - mean) / sqrt(variance + eps) + beta`` over the batch, or by the running statistics."""
    program, layer = lowering.program, node.layer
    state = Place("state", lowering.state_offsets[f"{node.path}.running_mean"])
    settings = program.setting(layer.eps, layer.momentum)
    parameters = lowering.own_parameters(node)
    if not lowering.trains or not node.trainable:
        return _by_state(lowering, node, x, {"state": state, "settings": settings, **parameters})
    y = program.matrix(f"layer {node.path}", x.width, with_one=True)
    statistics = f"statistics {node.path}"
    program.buffers[statistics] = padded(2 * x.width)
    columns = {"kept": Place(statistics), "settings": settings, **parameters}
    kept_state = {} if lowering.keeps_state else {"state": state}
    program.add("batch_norm_forward", **columns, **kept_state, **operands(x, y))

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        gradient = lowering.own_gradient(node, is_whole=True)
        program.add("batch_norm_backward", **columns, **gradient, **operands(x, d_y))
        return d_y

    return lowering.free(y), Step(node, backward, "overwrites")


@lowers(Standardize)
def standardize(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``(x - mean) / sqrt(variance)``: the inference of a batch norm that adds nothing to the variance."""
    state = Place("state", lowering.state_offsets[f"{node.path}.mean"])
    columns = {"state": state, "settings": lowering.program.setting(0.0), **lowering.own_parameters(node)}
    return _by_state(lowering, node, x, columns)


def _by_state(lowering: Lowering, node: Node, x: Values, columns: dict[str, int | Place]) -> tuple[Values, Step]:
    """Ops that normalize by statistics which do not depend on x; on the way back there is one only if d_x is wanted."""
    y = lowering.output(node, x)
    lowering.program.add("batch_norm_inference", **columns, **operands(x, y))

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        if wants_d_x:
            lowering.program.add("batch_norm_inference_backward", **columns, **operands(d_y, d_y))
        return d_y

    return y, Step(node, backward, "overwrites")


@lowers(LayerNorm)
def layer_norm(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``gamma · (x - mean) / sqrt(variance + eps) + beta`` over the numbers of a sample."""
    return _by_rows(lowering, node, x, "layer_norm", 2)


@lowers(RMSNorm)
def rms_norm(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``gamma · x / sqrt(mean(x²) + eps)`` over the numbers of a sample."""
    return _by_rows(lowering, node, x, "rms_norm", 1)


def _by_rows(lowering: Lowering, node: Node, x: Values, kernel: str, n_kept: int) -> tuple[Values, Step]:
    """A norm of each sample, which keeps `n_kept` numbers of it for the way back."""
    program = lowering.program
    y = program.matrix(f"layer {node.path}", x.width, with_one=True)
    statistics = f"statistics {node.path}"
    program.buffers[statistics] = program.batch * n_kept
    columns = {
        "kept": Place(statistics), "kept_stride": n_kept, "settings": program.setting(node.layer.eps),
        **lowering.own_parameters(node),
    }  # fmt: skip
    program.add(f"{kernel}_forward", **columns, **operands(x, y))

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        gradient = {"slot_rows": program.batch} | lowering.own_gradient(node)
        program.add(f"{kernel}_backward", **columns, **gradient, **operands(x, d_y))
        return d_y

    return lowering.free(y), Step(node, backward, "overwrites")
