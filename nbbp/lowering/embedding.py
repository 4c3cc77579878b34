"""Lowering of Embedding."""

from __future__ import annotations

import itertools

from nbbp.layers import Embedding
from nbbp.lowering.base import Lowering, Step, lowers, operands
from nbbp.nodes import Node
from nbbp.program import Place, Values


@lowers(Embedding)
def embedding(lowering: Lowering, node: Node, x: Values, ends: bool) -> tuple[Values, Step]:
    """``y = [columns that pass, table[x[column]], …]``."""
    program = lowering.program
    y = program.matrix(f"layer {node.path}", node.n_out, with_one=True)
    passed, looked_up = node.layer.columns(node.n_in)
    for source, start, width in _runs(passed):
        places = {"x": Place(x.buffer, source), "y": Place(y.buffer, start), "n_out": width}
        program.add("copy_rows", **(operands(x, y) | places))
    base, start, lookups = lowering.offset_of(node), len(passed), []
    for offset, same in itertools.groupby(looked_up, key=lambda lookup: lookup[3]):
        columns = list(same)
        column, n_categories, width, _ = columns[0]
        shape = {"n_in": n_categories, "n_out": width, "n_lookups": len(columns)}
        shape |= {"x": Place(x.buffer, column), "x_stride": x.stride}
        lookups.append((shape, offset, start))
        program.add(
            "embedding_forward", w=Place("parameters", base + offset), y=Place(y.buffer, start), y_stride=y.stride,
            **shape,
        )  # fmt: skip
        start += len(columns) * width

    def backward(d_y: Values, wants_d_x: bool) -> Values:
        if node.trainable:
            columns = lowering.own_gradient(node, is_whole=True)
            whole = columns.pop("gradient")
            for shape, offset, start in lookups:
                program.add(
                    "embedding_backward", gradient=Place(whole.buffer, whole.offset + offset),
                    d_y=Place(d_y.buffer, start), d_y_stride=d_y.stride, **columns, **shape,
                )  # fmt: skip
        return d_y

    return lowering.free(y), Step(node, backward, "reads")


def _runs(columns: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Neighbouring columns as (first, place among all of them, how many)."""
    runs: list[tuple[int, int, int]] = []
    for place, column in enumerate(columns):
        if runs and runs[-1][0] + runs[-1][2] == column:
            first, start, width = runs[-1]
            runs[-1] = first, start, width + 1
        else:
            runs.append((column, place, 1))
    return runs
