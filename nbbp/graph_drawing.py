"""Pictures of scalar graphs: boxes with data and gradient, in layers from the inputs on the left to the result.

A node stands one layer to the right of the last node it takes; a number that nothing computes stands just before the
first that takes it. An edge over several layers bends at a waypoint in each. Within a layer the order is that of the
neighbours' mean position (Sugiyama et al. 1981), and positions come as close to that mean as boxes allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbbp import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nbbp.autodiff import Graph, Value

__all__ = ["LARGEST", "plot_graph"]

#: Beyond so many nodes nobody can read a picture.
LARGEST = 300
#: Inches, on a figure that is not too large to be drawn in full size.
BOX_WIDTH, BOX_HEIGHT, LAYER_GAP, BOX_GAP, WAYPOINT_GAP, MARGIN = 1.28, 0.56, 0.62, 0.22, 0.2, 0.25
LARGEST_FIGURE = 60.0
CONSTANT_WIDTH, CONSTANT_HEIGHT = 0.62, 0.3
_SWEEPS = 120
_SIGNS = {"add": "+", "subtract": "−", "multiply": "×", "divide": "/", "power": "xⁿ", "negative": "−x"}
_SIGNS |= {"less": "<", "less_equal": "≤", "equal": "=", "absolute": "|x|", "maximum": "max", "minimum": "min"}


def plot_graph(graph: Graph, path: str | Path | None = None, axes: Axes | None = None) -> Figure:
    """Draw a graph; see `nbbp.autodiff.Graph.draw`."""
    if len(graph) > LARGEST:
        raise ValueError(f"this graph has {len(graph)} nodes; a picture stays readable up to {LARGEST}")
    nodes = graph.nodes
    heights = [CONSTANT_HEIGHT if node.operation == "constant" else BOX_HEIGHT for node in nodes]
    places, waypoints = _layout([node.arguments for node in nodes], heights)
    everything = np.array([*places, *(point for way in waypoints.values() for point in way)])
    around = np.array((BOX_WIDTH / 2 + MARGIN, BOX_HEIGHT / 2 + MARGIN))
    left, low = everything.min(axis=0) - around
    right, high = everything.max(axis=0) + around
    with plotting.style():
        if axes is None:
            scale = min(1.0, LARGEST_FIGURE / max(right - left, high - low))
            figure = plotting.new_figure(scale * (right - left), scale * (high - low))
            figure.set_layout_engine("none")
            axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(left, right)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        figure = axes.figure
        size = axes.get_position().size * figure.get_size_inches()
        scale = min(size[0] / (right - left), size[1] / (high - low))
        for (source, target), way in waypoints.items():
            _draw_edge(axes, places[source], way, places[target], scale)
        for place, node, value in zip(places, nodes, graph.values, strict=True):
            _draw_box(axes, place, node.operation, value, value is graph.value, scale)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
    return figure


def _draw_box(axes: Axes, place: Sequence[float], operation: str, value: Value, is_result: bool, scale: float) -> None:
    """One node: what it is above, its number and its derivative below."""
    from matplotlib.patches import FancyBboxPatch

    frame, paper = {"input": (plotting.PALETTE[0], "#eaf1f7"), "constant": ("#d5d9df", "#f6f7f9")}.get(
        operation, (plotting.VALIDATION, "#fbecee") if is_result else ("#b9c1cb", "white")
    )
    x, y = place
    width, height = (CONSTANT_WIDTH, CONSTANT_HEIGHT) if operation == "constant" else (BOX_WIDTH, BOX_HEIGHT)
    right = x + BOX_WIDTH / 2
    box = FancyBboxPatch(
        (right - width, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.07",
        facecolor=paper,
        edgecolor=frame,
        linewidth=1.1 * scale,
        zorder=3,
    )
    axes.add_patch(box)

    def write(text_x: float, dy: float, text: str, colour: str, size: float, **options: str) -> None:
        axes.text(text_x, y + dy, text, color=colour, fontsize=size * scale, va="baseline", zorder=4, **options)

    if operation == "constant":
        write(right - width / 2, -0.045, _number(value.data), plotting.INK, 8.5, ha="center")
        return
    sign = "" if operation == "input" else _SIGNS.get(operation, operation)
    label = value.label if len(value.label) <= 12 else value.label[:11] + "…"
    start, end = x - BOX_WIDTH / 2 + 0.09, right - 0.09
    write(start, 0.1, label or sign, plotting.INK, 9.0, ha="left", fontweight="bold")
    if label and sign:
        write(end, 0.1, sign, plotting.MUTED, 9.0, ha="right")
    for dy, name, number in ((-0.06, "data", value.data), (-0.21, "grad", value.grad)):
        write(start, dy, name, plotting.MUTED, 7.0, ha="left")
        write(end, dy, _number(number), plotting.INK, 7.5, ha="right")


def _number(number: float) -> str:
    return f"{number:.5g}".replace("-", "−")


def _draw_edge(axes: Axes, start: Sequence[float], way: list, end: Sequence[float], scale: float) -> None:
    """A curve that leaves and enters boxes horizontally, with a head at its end."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    points = [(start[0] + BOX_WIDTH / 2, start[1])]
    for x, y in way:  # over the width of a layer an edge runs straight, so that it cannot cross a box
        points += [(x - BOX_WIDTH / 2, y), (x + BOX_WIDTH / 2, y)]
    points.append((end[0] - BOX_WIDTH / 2 - 0.02, end[1]))
    vertices, codes = [points[0]], [Curve.MOVETO]
    for k in range(1, len(points)):
        (x, y), (to_x, to_y) = points[k - 1], points[k]
        if k % 2 == 0:
            vertices.append((to_x, to_y))
            codes.append(Curve.LINETO)
        else:
            half = (to_x - x) / 2
            vertices += [(x + half, y), (to_x - half, to_y), (to_x, to_y)]
            codes += [Curve.CURVE4] * 3
    arrow = FancyArrowPatch(
        path=Curve(vertices, codes),
        arrowstyle="-|>,head_length=0.35,head_width=0.16",
        mutation_scale=9.0 * scale,
        color="#9aa3ae",
        linewidth=1.0 * scale,
        capstyle="butt",
        zorder=2,
    )
    axes.add_patch(arrow)


def _layout(
    arguments: list[tuple[int, ...]], heights: list[float]
) -> tuple[list[tuple[float, float]], dict[tuple[int, int], list]]:
    """Places of nodes of these heights, and of the bends of each edge (source, target), in inches."""
    layers = _layers(arguments)
    n_nodes = len(arguments)
    columns: list[list[int]] = [[] for _ in range(max(layers) + 1)]
    left: list[list[int]] = []  # neighbours of each vertex one layer to the left, and to the right
    right: list[list[int]] = []
    ways: dict[tuple[int, int], list[int]] = {}

    def add(layer: int) -> int:
        columns[layer].append(len(left))
        left.append([])
        right.append([])
        return len(left) - 1

    for layer in layers:
        add(layer)
    for target, sources in enumerate(arguments):
        for source in sources:
            if (source, target) in ways:
                continue
            ways[source, target] = [add(layer) for layer in range(layers[source] + 1, layers[target])]
            chain = [source, *ways[source, target], target]
            for one, other in pairwise(chain):
                right[one].append(other)
                left[other].append(one)
    room = np.full(len(left), WAYPOINT_GAP)
    room[:n_nodes] = np.add(heights, BOX_GAP)
    y = _heights(columns, left, right, room)
    step = BOX_WIDTH + LAYER_GAP
    x = np.empty(len(left))
    for layer, column in enumerate(columns):
        x[column] = layer * step
    places = list(zip(x.tolist(), y.tolist(), strict=True))
    return places[:n_nodes], {edge: [places[vertex] for vertex in way] for edge, way in ways.items()}


def _layers(arguments: list[tuple[int, ...]]) -> list[int]:
    """The layer of each node: its longest way from the left."""
    layers = []
    for sources in arguments:
        layers.append(1 + max((layers[source] for source in sources), default=-1))
    first_taken: dict[int, int] = {}
    for target, sources in enumerate(arguments):
        for source in sources:
            first_taken[source] = min(layers[target], first_taken.get(source, layers[target]))
    for node, sources in enumerate(arguments):
        if not sources and node in first_taken:
            layers[node] = first_taken[node] - 1
    return layers


def _heights(columns: list, left: list, right: list, room: np.ndarray) -> np.ndarray:
    """The vertical place of each vertex, by sweeps that pull it to the mean of its neighbours on one side or both."""
    y = np.empty(len(room))
    for column in columns:
        y[column] = _spread(-np.arange(len(column), dtype=float), room[column])
    for sweep in range(_SWEEPS):
        settles = sweep >= _SWEEPS // 4  # the order is found, now edges become straight
        rightward = sweep % 2 == 0
        for column in columns if rightward else reversed(columns):
            wanted = np.empty(len(column))
            for k, vertex in enumerate(column):
                near = left[vertex] if rightward else right[vertex]
                far = right[vertex] if rightward else left[vertex]
                neighbours = near + far if settles else near or [vertex]
                wanted[k] = y[neighbours].mean() if neighbours else y[vertex]
            if not settles:
                order = np.argsort(-wanted, kind="stable")
                column[:] = [column[k] for k in order]
                wanted = wanted[order]
            y[column] = _spread(wanted, room[column])
    return y


def _spread(wanted: np.ndarray, room: np.ndarray) -> np.ndarray:
    """The places nearest to those wanted, in squares, that go down and leave each its room."""
    below = np.concatenate(([0.0], np.cumsum((room[1:] + room[:-1]) / 2)))
    # With the room taken out, places must not rise: runs that do are put at their mean (pool adjacent violators).
    runs: list[list[float]] = []
    for place in wanted + below:
        runs.append([place, 1])
        while len(runs) > 1 and runs[-1][0] > runs[-2][0]:
            mean, n = runs.pop()
            runs[-1] = [(runs[-1][0] * runs[-1][1] + mean * n) / (runs[-1][1] + n), runs[-1][1] + n]
    return np.concatenate([np.full(int(n), mean) for mean, n in runs]) - below
