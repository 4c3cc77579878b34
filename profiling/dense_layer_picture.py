"""Maps over batch and width of what `profiling/loop_vs_vectorized.py` measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbbp import plotting
from profiling import dense_layer, question

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours of the ways; nbbp's own are blue and green, of which the engine's is the strongest.
COLOURS = {
    "Python loops": plotting.PALETTE[5],
    "NumPy, by sample": plotting.PALETTE[7],
    "NumPy": plotting.PALETTE[2],
    "loops": plotting.PALETTE[4],
    "vectorized": plotting.PALETTE[1],
    "fused": plotting.PALETTE[6],
    "parallel": plotting.PALETTE[3],
    "engine": plotting.PALETTE[0],
}
#: Those of them that white does not show on.
LIGHT = ("NumPy", "fused")
SHORT = {"Python loops": "Python", "NumPy, by sample": "by sample", "vectorized": "BLAS"}


def fastest(shape: Mapping) -> str:
    """The best way but the engine's."""
    others = {name: each["minimum"] for name, each in shape["ways"].items() if name != "engine"}
    return min(others, key=others.get)


def loss(shape: Mapping) -> float:
    """How much longer the engine takes than the best other way, as a fraction; negative where it is ahead."""
    return shape["ways"]["engine"]["minimum"] / shape["ways"][fastest(shape)]["minimum"] - 1


def over_floor(shape: Mapping, rate: float) -> float:
    """The engine's time over that of its operations at `rate` GFLOP/s."""
    return shape["ways"]["engine"]["minimum"] / (dense_layer.flops(shape["batch"], shape["width"]) / (1e9 * rate))


def draw(by_threads: Mapping[str, Mapping], path: Path) -> None:
    """Per number of threads: who wins, how far the engine is from the floor, what its choice costs."""
    first = next(iter(by_threads.values()))["shapes"]
    batches, widths = sorted({s["batch"] for s in first}), sorted({s["width"] for s in first})
    size = 3.5 + 2.1 * len(batches), 1.3 + len(by_threads) * (1.1 + 0.5 * len(widths))
    with question.picture(path, *size, "One dense layer, forward and backward") as figure:
        rows = figure.subplots(len(by_threads), 3, squeeze=False)
        for axes, (n_threads, measured) in zip(rows, by_threads.items(), strict=True):
            threads = "one thread" if n_threads == "1" else f"{n_threads} threads"
            _draw_winners(axes[0], measured["shapes"], batches, widths)
            _draw_floor(axes[1], measured["shapes"], max(measured["sgemm"].values()), batches, widths)
            _draw_loss(axes[2], measured["shapes"], batches, widths)
            axes[0].set_title(f"{threads}: the fastest way")
            axes[1].set_title(f"{threads}: engine ÷ sgemm floor")
            axes[2].set_title(f"{threads}: engine against the best other way")
        for axes in rows.ravel():
            scales(axes, batches, widths)
        note = (
            "Letters are the engine's choice: A alone, P by rows with partial gradients, W wide layers by columns; "
            "² shared by that many threads. Right: orange, it loses; purple, it is ahead."
        )
        figure.supxlabel(note, fontsize=9, color=plotting.INK)


def grid(shapes: Sequence[Mapping], batches: list[int], widths: list[int], value: Callable) -> np.ndarray:
    """value(shape) for every width (row) and batch (column)."""
    values = np.full((len(widths), len(batches)), np.nan)
    for shape in shapes:
        values[widths.index(shape["width"]), batches.index(shape["batch"])] = value(shape)
    return values


def _draw_winners(axes: Axes, shapes: Sequence[Mapping], batches: list[int], widths: list[int]) -> None:
    from matplotlib.colors import ListedColormap

    ways = list(dense_layer.WAYS)
    best = {(s["width"], s["batch"]): min(s["ways"], key=lambda n, s=s: s["ways"][n]["minimum"]) for s in shapes}
    places = grid(shapes, batches, widths, lambda s: ways.index(best[s["width"], s["batch"]]))
    colours = ListedColormap([COLOURS[way] for way in ways])
    axes.imshow(places, cmap=colours, vmin=-0.5, vmax=len(ways) - 0.5, origin="lower", aspect="auto")
    for shape in shapes:
        at, name = place(shape, batches, widths), best[shape["width"], shape["batch"]]
        threads = {1: "", 2: "²", 3: "³"}.get(shape["threads"], f"×{shape['threads']}")
        text = f"{SHORT.get(name, name)}\n{shape['plan'][0].upper()}{threads}"
        colour = plotting.INK if name in LIGHT else "white"
        axes.text(*at, text, ha="center", va="center", fontsize=7.5, color=colour, linespacing=1.1)


def _draw_floor(axes: Axes, shapes: Sequence[Mapping], rate: float, batches: list[int], widths: list[int]) -> None:
    from matplotlib.colors import LogNorm

    ratio = grid(shapes, batches, widths, lambda s: over_floor(s, rate))
    axes.imshow(ratio, cmap="cividis_r", norm=LogNorm(1.0, 100.0), origin="lower", aspect="auto")
    for shape in shapes:
        over = over_floor(shape, rate)
        text = f"{over:.{2 if over < 9.95 else 0}f}×"
        colour = "white" if over > 12 else plotting.INK
        axes.text(*place(shape, batches, widths), text, ha="center", va="center", fontsize=8, color=colour)


def _draw_loss(axes: Axes, shapes: Sequence[Mapping], batches: list[int], widths: list[int]) -> None:
    from matplotlib.colors import SymLogNorm

    lost = grid(shapes, batches, widths, lambda s: 100 * loss(s))
    norm = SymLogNorm(10.0, vmin=-200.0, vmax=200.0)
    axes.imshow(lost, cmap="PuOr_r", norm=norm, origin="lower", aspect="auto")
    for shape in shapes:
        percent, name = 100 * loss(shape), fastest(shape)
        text = f"{percent:+.0f} %\n{SHORT.get(name, name)}"
        colour = "white" if abs(percent) > 28 else plotting.INK
        axes.text(*place(shape, batches, widths), text, ha="center", va="center", fontsize=7.5, color=colour)


def place(shape: Mapping, batches: list[int], widths: list[int]) -> tuple[int, int]:
    """Column and row of a shape."""
    return batches.index(shape["batch"]), widths.index(shape["width"])


def scales(axes: Axes, batches: list[int], widths: list[int]) -> None:
    """Batches below, widths at the side, no lines."""
    axes.set_xticks(range(len(batches)), [f"{batch:,}" for batch in batches])
    axes.set_yticks(range(len(widths)), [f"{width:,}" for width in widths])
    axes.set(xlabel="batch", ylabel="width")
    axes.grid(False)
    axes.tick_params(length=0)
