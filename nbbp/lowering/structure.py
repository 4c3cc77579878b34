"""Lowering of Residual, Concat, Flatten and Reshape."""

from __future__ import annotations

from dataclasses import replace

from nbbp.layers import Concat, Flatten, Reshape, Residual
from nbbp.lowering.base import Lowering, Step, lowers, operands, passes
from nbbp.nodes import Node
from nbbp.program import Place, Values


@lowers(Flatten)
@lowers(Reshape)
def view(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """The same numbers: nothing to do."""
    return passes(node, x)


def copied(lowering: Lowering, name: str, x: Values) -> Values:
    """Op that copies a matrix."""
    copy = lowering.program.matrix(name, x.width)
    lowering.program.add("copy_rows", **operands(x, copy))
    return copy


def overwrites(steps: list[Step]) -> bool:
    """Whether the way back through a chain changes the gradient that it starts from."""
    first = next((step.on_d_y for step in reversed(steps) if step.on_d_y != "passes"), "reads")
    return first == "overwrites"


@lowers(Residual)
def residual(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``y = x + f(x)``, or ``x @ projection + f(x)``."""
    program, read_again = lowering.program, replace(x, is_free=False)
    branch, steps = lowering.chain(node.branches[0], read_again)
    skip, skip_steps = lowering.chain(node.branches[1], read_again) if len(node.branches) > 1 else (x, [])
    y = program.matrix(f"layer {node.path}", node.n_out, with_one=True)
    program.add("add_rows", w=Place(skip.buffer), w_stride=skip.stride, **operands(branch, y))

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        d_branch = copied(lowering, f"d branch {node.path}", d_y) if overwrites(steps) else d_y
        d_branch = lowering.back(steps, d_branch, wants_d_x)
        d_skip = lowering.back(skip_steps, d_y, wants_d_x)
        if not wants_d_x:
            return d_y
        d_x = d_branch if d_branch.buffer != d_y.buffer else program.matrix(f"d layer {node.path}", node.n_in)
        program.add("add_rows", w=Place(d_skip.buffer), w_stride=d_skip.stride, **operands(d_branch, d_x))
        return d_x

    return lowering.free(y), Step(node, backward, "reads")


@lowers(Concat)
def concat(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``y = [f(x), g(x), …]``, side by side."""
    program, read_again = lowering.program, replace(x, is_free=False)
    y = program.matrix(f"layer {node.path}", node.n_out, with_one=True)
    parts, start = [], 0
    for chain in node.branches:
        branch, steps = lowering.chain(chain, read_again)
        program.add("copy_rows", **(operands(branch, y) | {"y": Place(y.buffer, start), "n_out": branch.width}))
        parts.append((steps, start, branch.width))
        start += branch.width

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        total: Values | None = None
        for number, (steps, start, width) in enumerate(parts):
            if not wants_d_x and not any(step.node.trains for step in steps):
                continue
            d_x = program.matrix(f"d branch {node.path}.{number}", width)
            program.add("copy_rows", **(operands(d_y, d_x) | {"x": Place(d_y.buffer, start), "n_out": width}))
            d_x = lowering.back(steps, d_x, wants_d_x)
            if total is not None and wants_d_x:
                program.add("add_rows", w=Place(d_x.buffer), w_stride=d_x.stride, **operands(total, total))
            total = total or d_x
        return total or d_y

    return lowering.free(y), Step(node, backward, "reads")
