"""Pictures of training: curves, confusion matrices, decision regions, images.

Matplotlib is loaded when a picture is drawn, never by ``import nbbp``. Functions that start with ``plot``
make a figure; those that start with ``draw`` fill axes that exist, so that they can be put together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nbbp.callbacks import Monitor
    from nbbp.history import History
    from nbbp.learning_rate_finder import LearningRateCurve

#: Colours that stay apart in the common colour-vision deficiencies and in print.
PALETTE = (
    "#2f6690",
    "#d1495b",
    "#e3a72f",
    "#3a9278",
    "#7d5ba6",
    "#8c6d46",
    "#4aa8c0",
    "#c06fa5",
    "#7c8a3a",
    "#555b66",
)
INK = "#22262e"
MUTED = "#8a919c"
TRAINING = "#8fa3b8"
VALIDATION = PALETTE[1]

#: Columns of a heat map, at most.
_COLUMNS = 400

STYLE = {
    "font.size": 10.0,
    "text.color": INK,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler(color={list(PALETTE)})",
    "grid.color": "#e7e9ed",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
    "savefig.dpi": 150,
}


def _matplotlib() -> Any:
    """Matplotlib itself, or an ImportError that says how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need Matplotlib: pip install 'nbbp[demos]'") from error
    return matplotlib


def style() -> AbstractContextManager:
    """The look of this package's pictures, for everything drawn inside ``with plotting.style():``.

    Raises ImportError if Matplotlib is missing.
    """
    return _matplotlib().rc_context(STYLE)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches. Without a display it can be saved all the same."""
    from matplotlib import pyplot

    return pyplot.figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | Path) -> Path:
    """Save the figure and close it; folders on the way are made. Returns the path."""
    from matplotlib import pyplot

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    return path


def plot_history(history: History, path: str | Path | None = None) -> Figure:
    """Draw the training and validation curve of each quantity of a history, one panel per quantity.

    Parameters
    ----------
    history : nbbp.History
    path : path-like, optional
        Also save the picture there.

    Raises
    ------
    ImportError
        Matplotlib is missing.
    ValueError
        The history has no epoch.
    """
    if not history.epochs:
        raise ValueError("this history has no epochs; there is nothing to draw")
    names = [name for name in history if not (name.startswith("val_") and name[4:] in history)]
    with style():
        figure = new_figure(4.6 * len(names), 3.4)
        for column, name in enumerate(names, start=1):
            draw_curves(figure.add_subplot(1, len(names), column), history, name)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
    return figure


def draw_curves(axes: Axes, history: History, name: str = "loss") -> None:
    """Draw one quantity of a history over the epochs, with its validation curve if there is one."""
    marker = "o" if len(history.epochs) == 1 else None
    curves = [("training", name, TRAINING), ("validation", f"val_{name}", VALIDATION)]
    drawn = []
    for label, key, colour in curves:
        if key in history:
            axes.plot(history.epochs, history[key], color=colour, label=label, marker=marker)
            drawn.append(np.asarray(history[key]))
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    # A loss that falls by more than a factor of 20 shows its end only on a logarithmic axis.
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    axes.set_title(name.replace("_", " "))
    axes.set_xlabel("epoch")
    axes.grid(False, axis="x")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(drawn) > 1:
        axes.legend()


def plot_learning_rates(curve: LearningRateCurve, path: str | Path | None = None) -> Figure:
    """Draw the losses of `find_learning_rate` over the rates, with the rate that it suggests, if it does.

    Parameters
    ----------
    curve : nbbp.LearningRateCurve
    path : path-like, optional
        Also save the picture there.

    Raises
    ------
    ImportError
        Matplotlib is missing.
    """
    with style():
        figure = new_figure(6.4, 3.8)
        draw_learning_rates(figure.add_subplot(), curve)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
    return figure


def draw_learning_rates(axes: Axes, curve: LearningRateCurve) -> None:
    """Draw the losses of `find_learning_rate` over the rates."""
    axes.plot(curve.rates, curve.losses, color=TRAINING, linewidth=0.9, alpha=0.8, label="each update")
    axes.plot(curve.smoothed_rates, curve.smoothed, color=PALETTE[0], label="smoothed")
    with suppress(ValueError):  # where the loss never falls there is no suggestion
        suggestion = curve.suggestion
        loss = float(curve.smoothed[np.searchsorted(curve.smoothed_rates, suggestion)])
        axes.axvline(suggestion, color=MUTED, linestyle="--", linewidth=1.0)
        axes.plot(suggestion, loss, "o", color=VALIDATION, label=f"suggestion: {suggestion:.2g}")
    # What happens when it goes up at last would press all before it to the ground.
    least = int(np.argmin(curve.smoothed))
    low, high = curve.losses[: least + 1].min(), curve.smoothed[: least + 1].max()
    margin = 0.15 * (high - low) if least else abs(low)
    if margin > 0.0:
        axes.set_ylim(low - margin, high + margin)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend()


def plot_monitor(monitor: Monitor, path: str | Path | None = None, quantities: Sequence[str] = ()) -> Figure:
    """Draw heat maps of what a monitor saw, layer × time, one panel per quantity.

    Parameters
    ----------
    monitor : nbbp.callbacks.Monitor
    path : path-like, optional
        Also save the picture there.
    quantities : sequence of str
        Among ``monitor.quantities``.

    Raises
    ------
    ImportError
        Matplotlib is missing.
    KeyError
        There is no such quantity.
    ValueError
        Nothing was looked at, or no quantity is given.
    """
    if not len(monitor.updates):
        raise ValueError("this monitor has looked at no update; there is nothing to draw")
    if isinstance(quantities, str) or not len(quantities):
        raise ValueError(f"quantities must be a list such as ['saturated']; got {quantities!r}")
    with style():
        n_layers = len(monitor.layers)
        figure = new_figure(8.0, len(quantities) * (1.3 + 0.17 * max(n_layers, 4)))
        for row, quantity in enumerate(quantities, start=1):
            draw_heat_map(figure.add_subplot(len(quantities), 1, row), monitor, quantity)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
    return figure


def draw_heat_map(
    axes: Axes, monitor: Monitor, quantity: str, limits: tuple[float, float] | None = None, has_scale: bool = True
) -> None:
    """Draw one quantity of a monitor, layer × time; norms of updates per norm of weights.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    monitor : nbbp.callbacks.Monitor
    quantity : str
    limits : (float, float), optional
        The values of the first and the last colour; those of the quantity by default.
    has_scale : bool
        Whether the scale of colours is drawn beside it.
    """
    from matplotlib.colors import LogNorm, Normalize

    values, updates = monitor[quantity], monitor.updates
    title = quantity.replace("_", " ")
    with np.errstate(all="ignore"):
        if quantity == "update_norm":
            values, title = values / monitor["weight_norm"], "update, as a share of the weights"
        stretches = np.array_split(values, min(len(values), _COLUMNS))
        image = np.ma.masked_invalid([stretch.mean(axis=0) for stretch in stretches]).T
    scale: Normalize
    if quantity in ("zeros", "saturated"):
        title = f"share of {title} numbers".replace("zeros", "zero")
        scale, colours = Normalize(*(limits or (0.0, 1.0))), "cividis"
    elif quantity == "mean":
        largest = float(np.abs(image).max()) if image.count() else 0.0
        scale, colours = Normalize(*(limits or (-(largest or 1.0), largest or 1.0))), "RdBu_r"
    else:
        image, colours = np.ma.masked_less_equal(image, 0.0), "viridis"
        low, high = limits or ((float(image.min()), float(image.max())) if image.count() else (1.0, 1.0))
        scale = LogNorm(low, high if high > low else 10.0 * low)
    axes.set_facecolor("#e7e9ed")
    n_layers = len(monitor.layers)
    half = 0.5 * (updates[-1] - updates[0]) / max(1, len(updates) - 1) or 0.5
    drawn = axes.imshow(
        image, norm=scale, cmap=colours, aspect="auto", interpolation="nearest",
        extent=(updates[0] - half, updates[-1] + half, n_layers - 0.5, -0.5),
    )  # fmt: skip
    axes.set_yticks(range(n_layers), monitor.layers, fontsize=8.0)
    axes.set(title=title, xlabel="update")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    if has_scale:
        axes.figure.colorbar(drawn, ax=axes, pad=0.015, aspect=14).outline.set_visible(False)


def draw_confusion_matrix(axes: Axes, matrix: np.ndarray, labels: Sequence[str] | None = None) -> None:
    """Draw how often each class (row) was predicted to be each class (column); mistakes stand out in red.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    matrix : ndarray of int, shape (n_classes, n_classes)
    labels : sequence of str, optional
        Names of the classes; 0, 1, … without.
    """
    n = len(matrix)
    labels = [str(k) for k in range(n)] if labels is None else labels
    of_row = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = np.array(_rgb(PALETTE[0]))
    wrong = np.array(_rgb(VALIDATION))
    colours = np.ones((n, n, 3))
    for row in range(n):
        for column in range(n):
            ink = right if row == column else wrong
            # Even a single mistake must be visible beside a diagonal near 1.
            share = of_row[row, column] if row == column else min(1.0, 8.0 * of_row[row, column])
            strength = 0.0 if matrix[row, column] == 0 else 0.18 + 0.82 * share
            colours[row, column] = 1.0 - strength * (1.0 - ink)
            if matrix[row, column]:
                shade = "white" if strength > 0.55 else INK
                count = str(matrix[row, column])
                axes.text(column, row, count, ha="center", va="center", color=shade, fontsize=8.5)
    axes.imshow(colours, aspect="equal")
    axes.set_xticks(range(n), labels)
    axes.set_yticks(range(n), labels)
    axes.set_xticks(np.arange(n - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(n - 1) + 0.5, minor=True)
    axes.grid(False)
    axes.grid(which="minor", color="#e7e9ed", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def draw_decision_regions(
    axes: Axes,
    predict_proba: Callable[[np.ndarray], np.ndarray],
    X: np.ndarray,
    y: np.ndarray,
    resolution: int = 220,
) -> None:
    """Colour the plane by the class predicted there, and the points by the class they have.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    predict_proba : callable
        Takes points (n, 2), returns probabilities (n, n_classes): the surer, the deeper the colour.
    X : ndarray, shape (n, 2)
    y : ndarray of int, shape (n,)
    resolution : int
        Points asked for along each axis.
    """
    low, high = X.min(axis=0), X.max(axis=0)
    margin = 0.08 * (high - low)
    (left, bottom), (right, top) = low - margin, high + margin
    across, up = np.meshgrid(np.linspace(left, right, resolution), np.linspace(bottom, top, resolution))
    points = np.column_stack((across.ravel(), up.ravel())).astype(X.dtype)
    probabilities = np.asarray(predict_proba(points), dtype=np.float64)
    n_classes = probabilities.shape[1]
    palette = np.array([_rgb(PALETTE[k % len(PALETTE)]) for k in range(n_classes)])
    winner = probabilities.argmax(axis=1)
    # From nothing where all classes are equally likely to half the colour where one is certain.
    sureness = (probabilities.max(axis=1) - 1.0 / n_classes) / (1.0 - 1.0 / n_classes)
    tint = 1.0 - (0.08 + 0.42 * sureness)[:, None] * (1.0 - palette[winner])
    image = tint.reshape(resolution, resolution, 3)
    extent = (left, right, bottom, top)
    axes.imshow(image, origin="lower", extent=extent, aspect="equal", interpolation="bilinear")
    axes.scatter(X[:, 0], X[:, 1], s=11, c=palette[y], edgecolors="white", linewidths=0.4)
    _without_scales(axes)


def draw_image(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """Draw a small grey image (height, width), ink dark on paper, with a short title."""
    axes.imshow(image, cmap="gray_r", interpolation="nearest")
    axes.set_title(title, fontsize=8.5, fontweight="normal", loc="center", pad=4)
    _without_scales(axes)


def _without_scales(axes: Axes) -> None:
    """A thin frame and nothing else."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#d5d9df")


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255.0 for i in (1, 3, 5))
