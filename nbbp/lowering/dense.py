"""Lowering of dense layers, activations and custom layers."""

from __future__ import annotations

import math

from nbbp import ops, tiling
from nbbp.layers import Activation, Custom, Dense
from nbbp.lowering.base import Lowering, Step, WeightGradient, lowers, operands, passes
from nbbp.nodes import Node
from nbbp.ops import UserFunction
from nbbp.program import PADDING, Op, Place, Program, Values

# As in cpu/gemm.py: how a product finds its second operand.
IN_PLACE, PACKED, TRANSPOSED, FLAT = 0, 1, 2, 3


@lowers(Dense)
def dense(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``y = f(x @ weight + bias)``; a relu is done in the product's epilogue."""
    layer = node.layer
    is_relu = ends and layer.activation.name == "relu"
    z = _product(lowering, node, x, floor=0.0 if is_relu else -math.inf)
    y = z
    if ends and not is_relu and layer.activation.name != "linear":
        y = activation_forward(lowering, node, layer.activation, lowering.free(z))

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        if ends and layer.activation.name != "linear":
            activation_backward(lowering, layer.activation, z, y, d_y)
        if node.trainable:
            lowering.pending.append(WeightGradient(node, x, d_y))
        return input_gradient(lowering, node, d_y) if wants_d_x else d_y

    has_activation = ends and layer.activation.name != "linear"
    return lowering.free(y, unless=has_activation and of_output(layer.activation)), Step(
        node, backward, "overwrites" if has_activation else "reads"
    )


def _product(lowering: Lowering, node: Node, x: Values, floor: float) -> Values:
    """Op for ``max(floor, x @ weight + bias)``."""
    program, layer = lowering.program, node.layer
    out = program.matrix(f"layer {node.path}", layer.n_out, with_one=True)
    layout = IN_PLACE
    if tiling.is_flat(program.batch, x.width, layer.n_out):
        layout = FLAT
    elif tiling.wants_packing(program.batch, layer.n_out):
        layout = PACKED
        program.scratch = max(program.scratch, tiling.packed_panel(x.width))
    narrow_from = tiling.narrow_from(x.width, layer.n_out, lowering.trains)
    if narrow_from:  # the columns of the weight side by side
        program.scratch = max(program.scratch, PADDING + layer.n_out * x.width)
    program.add(
        "product",
        x=Place(x.buffer), x_stride=x.stride, w=Place("parameters", lowering.offsets[f"{node.path}.weight"]),
        w_stride=layer.n_out, y=Place(out.buffer), y_stride=out.stride,
        bias=Place("parameters", lowering.offsets[f"{node.path}.bias"]) if layer.use_bias else 0,
        n_in=x.width, n_out=layer.n_out, layout=layout, narrow_from=narrow_from, settings=program.setting(floor),
    )  # fmt: skip
    return out


def input_gradient(lowering: Lowering, node: Node, d_y: Values) -> Values:
    """Op for the gradient of what came into a dense layer: ``d_x = d_y @ weight.T``."""
    program, layer = lowering.program, node.layer
    d_x = program.matrix(f"d layer {node.path}", node.n_in)
    program.add(
        "product", x=Place(d_y.buffer), x_stride=d_y.stride,
        w=Place("parameters", lowering.offsets[f"{node.path}.weight"]), w_stride=layer.n_out,
        y=Place(d_x.buffer), y_stride=d_x.stride, n_in=layer.n_out,
        n_out=node.n_in, layout=TRANSPOSED, settings=program.setting(-math.inf),
    )  # fmt: skip
    program.scratch = max(program.scratch, tiling.packed_panel(layer.n_out))
    return d_x


@lowers(Activation)
def activation(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``y = f(x)``."""
    function = node.layer
    if not ends or function.name == "linear":
        return passes(node, x)
    y = activation_forward(lowering, node, function, x)

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        if wants_d_x:
            activation_backward(lowering, function, x, y, d_y)
        return d_y

    return lowering.free(y, unless=of_output(function)), Step(node, backward, "overwrites")


def of_output(function: Activation) -> bool:
    """Whether the derivative is written in the function's value."""
    return function.formula.row_wise or function.formula.derivative_of != "input"


def activation_forward(lowering: Lowering, node: Node, function: Activation, x: Values) -> Values:
    """Op for ``f(x)``: in place, where the derivative is written in the output and nobody reads what came in."""
    y = x
    if not x.is_free or (lowering.trains and not of_output(function)):
        y = lowering.program.matrix(f"activation {node.path}", x.width, with_one=True)
    activation_op(lowering.program, function, "forward", x, y)
    return y


def activation_backward(lowering: Lowering, function: Activation, x: Values, y: Values, d_y: Values) -> None:
    """Op for ``d_y *= f'``, of what came in or of what went out; a relu is done by the product that gave d_y."""
    product = _gave(lowering.program, d_y, y) if function.name == "relu" else None
    if product is not None:
        product.columns |= {ops.KEPT: Place(y.buffer), ops.KEPT_STRIDE: y.stride}
    else:
        activation_op(lowering.program, function, "backward", y if of_output(function) else x, d_y)


def _gave(program: Program, d_y: Values, y: Values) -> Op | None:
    """The product that gave d_y, if nobody has looked at that since, and y was there already."""
    for op in reversed(program.ops):
        written = op.columns.get(ops.Y)
        if written == Place(d_y.buffer) and op.kernel == "product":
            return op
        if any(place.buffer == d_y.buffer for place in op.places()) or written == Place(y.buffer):
            return None
    return None


def activation_op(program: Program, function: Activation, direction: str, x: Values, y: Values) -> None:
    """The op of an activation's "forward" or "backward" kernel."""
    formula = function.formula
    kernel = f"{function.name if formula.row_wise else 'activation'}_{direction}"
    variant = 0 if formula.row_wise else formula.code
    program.add(kernel, variant, settings=program.setting(function.parameter), **operands(x, y))


@lowers(Custom)
def custom(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """Two functions of the user's own."""
    program, layer = lowering.program, node.layer
    y = program.matrix(f"layer {node.path}", node.n_out, with_one=True)
    parameters = lowering.own_parameters(node)
    program.add(
        "custom_forward", UserFunction(layer.forward, f"the forward function of {node.label}"),
        n_in=x.width, **parameters, **operands(x, y),
    )  # fmt: skip

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        d_x = program.matrix(f"d layer {node.path}", node.n_in)
        columns = {"n_in": d_x.width, "slot_rows": program.batch} | parameters | lowering.own_gradient(node)
        program.add(
            "custom_backward", UserFunction(layer.backward, f"the backward function of {node.label}"),
            kept=Place(y.buffer), kept_stride=y.stride, d_y=Place(d_y.buffer), d_y_stride=d_y.stride,
            **columns, **(operands(x, d_x) | {"n_out": d_y.width}),
        )  # fmt: skip
        program.scratch = max(program.scratch, parameters["n_parameters"])
        return d_x

    return lowering.free(y, unless=True), Step(node, backward, "reads")
