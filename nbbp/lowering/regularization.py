"""Lowering of Dropout, StochasticDepth and GaussianNoise."""

from __future__ import annotations

from nbbp.layers import Dropout, GaussianNoise, StochasticDepth
from nbbp.lowering.base import Lowering, Step, lowers, operands, passes
from nbbp.nodes import Node
from nbbp.program import Place, Values
from nbbp.tiling import mask_size


def _disturbed(lowering: Lowering, node: Node, x: Values, kernel: str, **columns: int | Place) -> tuple[Values, Step]:
    """A layer of random numbers, whose backward op multiplies by what its forward op multiplied by."""
    program = lowering.program
    y = lowering.output(node, x)
    program.add(f"{kernel}_forward", layer=node.number, **columns, **operands(x, y))

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        if wants_d_x:
            program.add(f"{kernel}_backward", layer=node.number, **columns, **operands(d_y, d_y))
        return d_y

    return y, Step(node, backward, "overwrites")


@lowers(Dropout)
def dropout(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``x · m / (1 - rate)``, m 0 or 1."""
    if not lowering.trains or node.layer.rate == 0:
        return passes(node, x)
    program = lowering.program
    mask = f"mask {node.path}"
    program.buffers[mask] = mask_size(program.batch, x.width)
    settings = program.setting(node.layer.rate)
    return _disturbed(lowering, node, x, "dropout", kept=Place(mask), settings=settings)


@lowers(StochasticDepth)
def stochastic_depth(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``x · m / (1 - rate)``, m 0 or 1 for a sample or for the batch."""
    layer = node.layer
    if not lowering.trains or layer.rate == 0:
        return passes(node, x)
    settings = lowering.program.setting(layer.rate, float(layer.mode == "row"))
    return _disturbed(lowering, node, x, "stochastic_depth", settings=settings)


@lowers(GaussianNoise)
def gaussian_noise(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``x + stddev · n``, n standard normal."""
    program = lowering.program
    if not lowering.trains or node.layer.stddev == 0:
        return passes(node, x)
    y = lowering.output(node, x)
    settings = program.setting(node.layer.stddev)
    program.add("gaussian_noise_forward", layer=node.number, settings=settings, **operands(x, y))
    return y, Step(node, lambda d_y, wants_d_x: d_y, "passes")
