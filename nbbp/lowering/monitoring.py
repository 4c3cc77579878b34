"""Lowering of a monitored step: ops that look at layers, gradients and parameters (kernels: nbbp/cpu/monitoring.py).

They stand between the ops of an ordinary step, whose numbers and order stay what they are. A program that is not
monitored has an `Unmonitored` in the same places, which adds nothing.

Legend: as in nbbp/lowering/parameters.py; `units` are the rows of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nbbp import tiling
from nbbp.layers import Activation, Flatten, Reshape
from nbbp.network import Sequential
from nbbp.nodes import Node, Parameter, walk
from nbbp.optimizers import Optimizer
from nbbp.program import Place, Program, Values

#: The caller's buffer of records, and the workspace buffers of sums and of the parameters before the update.
VALUES = "monitored values"
_SUMS, _BEFORE = "monitored sums", "monitored parameters"
#: Numbers of a float32 workspace that a float64 takes.
_PER_FLOAT64 = 2
#: As in nbbp/cpu/monitoring.py.
_N_ROW_SUMS, _N_PARAMETER_SUMS = 4, 3
#: An activation is saturated where its slope is at most this share of that in its middle: tanh beyond 0.98.
_FLAT = 0.04
#: Halvings that find where that begins, to the last bit.
_BISECTIONS = 60


def monitored(network: Sequential) -> list[Node]:
    """The layers that are monitored: all that compute something, those within others included."""
    return [
        node
        for node in walk(network.nodes)
        if not isinstance(node.layer, (Flatten, Reshape))
        and not (node.layer.activation is node.layer and node.layer.name == "linear")
    ]


class Unmonitored:
    """Adds nothing to a program."""

    def output(self, node: Node, y: Values, has_ended: bool) -> None:
        """Ops for what a layer gives; whether its activation is done."""

    def gradient(self, node: Node, d_y: Values) -> None:
        """Ops for the gradient of it."""

    def before(
        self, parameters: Sequence[Parameter], base: int, gradient: Place | int, panel: tuple[int, int], stride: int,
        n_units: int, units: int,
    ) -> None:  # fmt: skip
        """Ops in front of the update of parameters, which are taken as `n_units` units in tiles of about `units`."""

    def after(self) -> None:
        """Ops behind the update that the last `before` was in front of."""


class Monitoring(Unmonitored):
    """Adds what is to be known of a step.

    Parameters
    ----------
    program : Program
    network : Sequential
    is_mean : bool
        Whether the loss of a batch is the mean over its rows.
    loss_scale : Place, optional
        By whose number the gradients that come back are multiplied.
    """

    def __init__(self, program: Program, network: Sequential, is_mean: bool, loss_scale: Place | int = 0) -> None:
        self.program, self.network, self.is_mean, self.loss_scale = program, network, is_mean, loss_scale
        self.nodes = monitored(network)
        self._paths = {node.path for node in self.nodes}
        #: By path: the columns of its record.
        self._columns: dict[str, dict[str, int | Place]] = {node.path: {} for node in self.nodes}
        self._after: list[dict[str, int | Place]] = []

    def output(self, node: Node, y: Values, has_ended: bool) -> None:
        if node.path in self._paths and "x" not in self._columns[node.path]:  # not when a part goes forward again
            low, high = saturation(node.layer.activation) if has_ended else (-math.inf, math.inf)
            settings = self.program.setting(low, high, float(self.is_mean))
            rows = self._rows(node.path, f"monitored {node.path}", y, settings=settings)
            self._columns[node.path] |= {"x": rows, "settings": settings}

    def gradient(self, node: Node, d_y: Values) -> None:
        if node.path in self._paths:
            rows = self._rows(node.path, f"monitored d {node.path}", d_y, n_in=1, loss_scale=self.loss_scale)
            self._columns[node.path]["w"] = rows

    def _rows(self, path: str, name: str, values: Values, **columns: int | Place) -> Place:
        """Op for the sums of every row of a matrix; where they are."""
        self.program.buffers[name] = _PER_FLOAT64 * _N_ROW_SUMS * self.program.batch
        with self.program.labelled(phase="monitoring", layer=path):
            self.program.add(
                "monitor_rows", x=Place(values.buffer), x_stride=values.stride, y=Place(name), n_out=values.width,
                **columns,
            )  # fmt: skip
        return Place(name)

    def before(
        self, parameters: Sequence[Parameter], base: int, gradient: Place | int, panel: tuple[int, int], stride: int,
        n_units: int, units: int,
    ) -> None:  # fmt: skip
        program = self.program
        program.buffers[_BEFORE] = self.network.n_parameters
        units = tiling.columns_of_tiles(n_units, units)
        n_tiles = -(-n_units // units)
        self._after = []
        for layer in dict.fromkeys(parameter.layer for parameter in parameters if parameter.trainable):
            own = [parameter for parameter in parameters if parameter.layer == layer]
            so_far = program.buffers.get(_SUMS, 0)
            first = so_far // (_PER_FLOAT64 * _N_PARAMETER_SUMS)
            program.buffers[_SUMS] = so_far + _PER_FLOAT64 * _N_PARAMETER_SUMS * n_tiles
            columns = {
                "w": Place("parameters", base + panel[0]), "y": Place(_BEFORE, base + panel[0]), "w_stride": stride,
                "n_in": (own[0].offset - base) // stride, "n_out": (own[-1].stop - base) // stride,
                "slot_stride": panel[1] - panel[0], "squares": Place(_SUMS), "n_squares": first, "n_lookups": units,
            }  # fmt: skip
            with program.labelled(phase="monitoring", layer=layer):
                program.add("monitor_before", x=gradient, tile_local=int(not isinstance(gradient, Place)), **columns)
            self._after.append(columns)
            of_record = self._columns[layer]  # a wide layer's panels lie one behind the other
            of_record.setdefault("squares", Place(_SUMS))
            of_record.setdefault("n_squares", first)
            of_record["n_in"] = of_record.get("n_in", 0) + n_tiles

    def after(self) -> None:
        for columns in self._after:
            with self.program.labelled(phase="monitoring"):
                self.program.add("monitor_after", **columns)

    def record(self, optimizer: Optimizer) -> None:
        """Ops that put every layer's quantities into the record of the step, behind all others."""
        for number, node in enumerate(self.nodes):
            own = [parameter for parameter in self.network.parameters if parameter.layer == node.path]
            columns = {"accumulation": optimizer.accumulation_steps, "n_out": node.n_out} | self._columns[node.path]
            if own and not node.trainable:
                n_parameters = own[-1].stop - own[0].offset
                columns |= {"parameters": Place("parameters", own[0].offset), "n_parameters": n_parameters}
            columns |= {"layer": number, "slot_stride": len(self.nodes)}
            with self.program.labelled(phase="monitoring", layer=node.path):
                self.program.add("monitor_record", y=Place(VALUES), **columns)


def saturation(activation: Activation) -> tuple[float, float]:
    """At and below, and at and above, which values an activation is saturated; infinite where it never is."""
    formula, (low, high) = activation.formula, activation.limits
    if low == -math.inf:
        return low, high
    steep = 0.5 * (low + high) if high < math.inf else 1.0

    def slope(value: float) -> float:
        return formula.derivative(value, activation.parameter)

    def edge(end: float) -> float:
        flat, other = end, steep
        for _ in range(_BISECTIONS):
            middle = 0.5 * (flat + other)
            if slope(middle) <= _FLAT * slope(steep):
                flat = middle
            else:
                other = middle
        return flat

    return edge(low), edge(high) if high < math.inf else high
