"""Roofs and points of what `profiling/roofline.py` measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbbp import plotting
from profiling import question

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARITHMETIC = "arithmetic"
#: Colour of an op by the first word of its name, and markers of the networks.
COLOURS = {
    "forward": plotting.PALETTE[0],
    "input": plotting.PALETTE[3],
    "weight": plotting.PALETTE[6],
    "rectifier": plotting.PALETTE[2],
    "crossentropy": plotting.PALETTE[4],
    "Adam": plotting.PALETTE[1],
}
LABELS = {"input": "input gradient", "weight": "weight gradient", "rectifier": "rectifier gradient"}
MARKERS = "ovs^DP"
#: Operations per byte at the left edge, with room for the names of the roofs.
LEFT = 0.04


def peak(results: Mapping) -> float:
    """Operations per second of the best sgemm."""
    return 1e9 * max(results["sgemm"].values())


def curve(results: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Sizes in bytes, and the better bandwidth of copy and add at each, in bytes per second."""
    sizes = np.array([int(size) for size in results["bandwidth"]], float)
    return sizes, np.array([max(rates.values()) for rates in results["bandwidth"].values()])


def bandwidth_at(results: Mapping, size: float) -> float:
    """Bytes per second for a working set of `size` bytes."""
    sizes, rates = curve(results)
    return float(np.exp(np.interp(np.log(size), np.log(sizes), np.log(rates))))


def levels(results: Mapping) -> dict[str, float]:
    """Bandwidth of each cache level, half-way (in logarithms) between its size and the one above, and of memory.

    Memory is what the largest arrays reach, if no cache holds half of them. What a virtual machine says of the last
    level is that of all its neighbours together.
    """
    sizes, rates = curve(results)
    found, above = {}, sizes[0]
    for name, size in results["caches"].items():
        if size <= sizes[-1]:
            found[name] = bandwidth_at(results, np.sqrt(min(above, size) * size))
        above = size
    if sizes[-1] > 2 * max(results["caches"].values(), default=0):
        found["memory"] = float(rates[-1])
    return found


def floor(results: Mapping, op: Mapping) -> tuple[float, str]:
    """µs that an op cannot do without, and what limits it: arithmetic, or the smallest memory that holds it."""
    arithmetic = 1e6 * op["flops"] / peak(results)
    moving = 1e6 * op["traffic"] / bandwidth_at(results, op["footprint"])
    fitting = [name for name, size in results["caches"].items() if op["footprint"] <= size]
    return (arithmetic, ARITHMETIC) if arithmetic >= moving else (moving, fitting[0] if fitting else "memory")


def furthest(results: Mapping, n: int = 3) -> list[tuple[str, str]]:
    """Network and name of the ops that lose most of their step against their floor, no two of the same kind."""
    lost = []
    for network, measured in results["networks"].items():
        for name, op in measured["ops"].items():
            lost.append(((op["microseconds"] - floor(results, op)[0]) / measured["step"], network, name))
    first_of_kind = {}
    for _, network, name in sorted(lost, reverse=True):
        first_of_kind.setdefault(name.split()[0], (network, name))
    return list(first_of_kind.values())[:n]


def draw(results: Mapping, path: Path) -> None:
    """The roofline with a point per op; beside it bandwidth over size."""
    with question.picture(
        path, 14.0, 6.4, "How far every op of a training step is from its limit (one core)"
    ) as figure:
        roof, bandwidth = figure.subplots(1, 2, width_ratios=(2.0, 1.0))
        _draw_roof(roof, results)
        _draw_points(roof, results)
        _draw_bandwidth(bandwidth, results)
        handles, labels = roof.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)


def _draw_roof(axes: Axes, results: Mapping) -> None:
    intensity = np.geomspace(LEFT, 1000.0, 200)
    for number, (name, rate) in enumerate(levels(results).items()):
        attainable = np.minimum(peak(results), intensity * rate) / 1e9
        axes.plot(intensity, attainable, color=plotting.INK, lw=1.4, alpha=1.0 - 0.2 * number, zorder=1)
        slope = {"rotation": np.degrees(np.arctan(rate / 1e9)), "transform_rotates_text": True}
        text = f"{name}: {rate / 1e9:.0f} GB/s"
        axes.text(1.1 * LEFT, 1.24 * LEFT * rate / 1e9, text, rotation_mode="anchor", fontsize=8.5, **slope)
    text = f"sgemm: {peak(results) / 1e9:.0f} GFLOP/s"
    axes.text(900.0, peak(results) / 1e9 * 1.07, text, ha="right", fontsize=8.5, color=plotting.INK)
    axes.set(xscale="log", yscale="log", xlim=(LEFT, 1000.0))
    axes.set(xlabel="operations per byte", ylabel="GFLOP/s")
    axes.set_title("every op of a step; numbered: those that cost their step most")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}")


def _draw_points(axes: Axes, results: Mapping) -> None:
    numbers = {place: number for number, place in enumerate(furthest(results), 1)}
    for marker, (network, measured) in zip(MARKERS, results["networks"].items(), strict=False):
        for name, op in measured["ops"].items():
            if op["flops"]:
                at = op["flops"] / op["traffic"], op["flops"] / op["microseconds"] / 1e3
                colour = COLOURS[name.split()[0]]
                axes.plot(*at, marker, color=colour, ms=7, mec="white", mew=0.6, alpha=0.9, zorder=3)
                if (network, name) in numbers:
                    text = str(numbers[network, name])
                    axes.annotate(text, at, (6, -4), textcoords="offset points", fontweight="bold", zorder=4)
        axes.plot([], [], marker, color=plotting.MUTED, ms=7, label=network)
    for kind, colour in COLOURS.items():
        axes.plot([], [], "s", color=colour, ms=9, label=LABELS.get(kind, kind))


def _draw_bandwidth(axes: Axes, results: Mapping) -> None:
    sizes = np.array([int(size) for size in results["bandwidth"]], float)
    for name, colour, marker, above in (("copy", plotting.PALETTE[0], "o", 6), ("add", plotting.PALETTE[1], "s", -15)):
        rates = [each[name] / 1e9 for each in results["bandwidth"].values()]
        axes.plot(sizes, rates, marker, color=colour, ls="-", ms=4.5)
        axes.annotate(name, (sizes[0], rates[0]), xytext=(0, above), textcoords="offset points", color=colour)
    axes.set(xscale="log", yscale="log", xlabel="bytes of all arrays", ylabel="GB/s read and written")
    axes.set_title("bandwidth over size")
    axes.margins(y=0.12)
    top = axes.get_ylim()[1]
    for name, size in results["caches"].items():
        if size < sizes[-1]:
            axes.axvline(size, color=plotting.MUTED, lw=1.0, ls="--")
            axes.annotate(f"{name} ", (size, top), ha="right", va="top", fontsize=9, color=plotting.INK)
    ticks = [1 << power for power in range(14, 31, 4) if 1 << power <= sizes[-1]]
    units = {10: "KiB", 20: "MiB", 30: "GiB"}
    named = [next(f"{tick >> p} {unit}" for p, unit in reversed(units.items()) if tick >= 1 << p) for tick in ticks]
    axes.set_xticks(ticks, named)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if f"{value:g}"[0] in "25" else "")
