"""The picture of a profile: each task's step as a bar as long as it takes, phases above and their ops below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbbp import plotting
from nbbp.profiler import OpTime, Profile, grouped, microseconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_steps", "plot_profile"]

#: A colour for every phase, the same in all pictures.
COLOURS = {
    "gather": plotting.PALETTE[9],
    "forward": plotting.PALETTE[0],
    "forward again": plotting.PALETTE[6],
    "loss": plotting.PALETTE[4],
    "metrics": plotting.PALETTE[7],
    "backward": plotting.PALETTE[1],
    "weight gradients": plotting.PALETTE[2],
    "update": plotting.PALETTE[3],
    "output": plotting.PALETTE[5],
    "monitoring": plotting.PALETTE[8],
    "augmentation": "#a9b4a2",
}
#: Inches of a picture's width and of a task's height.
WIDTH, HEIGHT = 11.0, 2.3
#: Rows of the bars, in units of the axis, and the gap between neighbours as a share of the whole.
_PHASES, _OPS, _THICKNESS = 1.0, 0.0, 0.92
_LETTER, _MARGIN = 0.0068, 0.004


def plot_profile(profile: Profile, path: str | Path | None = None) -> Figure:
    """Draw a profile; see `Profile.plot`."""
    if not profile.steps:
        raise ValueError("nothing has run in this profile; there is nothing to draw")
    with plotting.style():
        figure = plotting.new_figure(WIDTH, HEIGHT * len(profile.steps))
        all_axes = figure.subplots(len(profile.steps), squeeze=False)[:, 0]
        for axes, (task, n_steps) in zip(all_axes, profile.steps.items(), strict=True):
            chosen = [op for op in profile.ops if op.task == task]
            per_step = 1e6 * sum(op.seconds for op in chosen) / n_steps
            draw_steps(axes, chosen, n_steps)
            axes.set_title(f"{task}: {microseconds(per_step)} µs per step")
        all_axes[-1].set_xlabel("µs, phases in the order in which they begin")
        draw_legend(figure, {op.phase for op in profile.ops})
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
    return figure


def draw_legend(figure: Figure, phases: set[str]) -> None:
    """The phases' colours, below everything, for bars too short for a name."""
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=phase) for phase, colour in COLOURS.items() if phase in phases]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=9, handlelength=1.2)


def draw_steps(axes: Axes, ops: Sequence[OpTime], n_steps: int) -> None:
    """Fill axes with one task's step: phases above, their ops below, in µs; each named where its name fits."""
    whole = 1e6 * sum(op.seconds for op in ops) / n_steps or 1.0
    start = 0.0
    for phase, share, group in grouped(ops):
        colour = COLOURS.get(phase, plotting.MUTED)
        _bar(axes, _PHASES, start, share * whole, whole, colour, (f"{phase}\n{share:.0%}", f"{share:.0%}"))
        for number, op in enumerate(group):
            cost = 1e6 * op.seconds / n_steps
            shade = _lighter(colour, 0.42 + 0.16 * (number % 2))
            _bar(axes, _OPS, start, cost, whole, shade, _names(op))
            start += cost
    axes.set_xlim(0.0, whole)
    axes.set_ylim(_OPS - 0.5, _PHASES + 0.5)
    axes.set_yticks([_OPS, _PHASES], ["ops", "phases"])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.grid(False)
    axes.spines["left"].set_visible(False)


def _names(op: OpTime) -> tuple[str, ...]:
    """What an op's bar says, the longest first."""
    kernel = op.kernel.replace("_", " ")
    if op.layer == "network":
        return (kernel.replace(" ", "\n"),)
    path, _, kind = op.layer.partition(" ")
    return f"{path} {kind}\n{kernel}", f"{path} {kind}", path


def _bar(
    axes: Axes, row: float, start: float, length: float, whole: float, colour: Any, names: tuple[str, ...]
) -> None:
    """A bar of one row, with the first of its names that is not wider than it."""
    axes.barh(row, length, left=start, height=_THICKNESS, color=colour, edgecolor="white", linewidth=0.8)
    for name in names:
        lines = name.split("\n")
        if max(map(len, lines)) * _LETTER + _MARGIN <= length / whole:
            place = {"ha": "center", "va": "center", "fontsize": 8, "clip_on": True}
            axes.text(start + length / 2, row, name, color=_ink_on(colour), **place)
            return


def _ink_on(colour: Any) -> str:
    """White on dark colours, dark on light ones (by luma, ITU-R BT.709)."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.55 else plotting.INK


def _lighter(colour: str, by: float) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(channel + (1.0 - channel) * by for channel in to_rgb(colour))
