"""What does fusing save: the bias, the activation, the loss with its gradient, and the optimizer's update?

    python profiling/fusion.py [--quick] [--output FOLDER]

On five layers, float32, one thread: each thing as the engine does it in one kernel or tile, against the sequence of the
engine's own kernels that does the same in passes over memory:

bias         the product starts from it; or the product, then rows + bias
activation   a rectifier as the product stores its results; or the product, then the activation in place
loss         crossentropy of logits and its gradient; or log_softmax, negative log-likelihood, and back through both
update       Adam on a tile of the weight gradient while it is in cache; or the whole gradient, then Adam on all of it

Both sides are held against float64 NumPy before they are timed. The last can be too much of a good thing: where a
gradient fits the cache, cutting it into tiles saves nothing. The engine fuses the update for layers that
`nbbp.tiling.is_wide` calls wide. A step is forward, loss, input gradient, weight gradient and update, all fused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy import special

import nbbp
from nbbp import plotting, tiling
from nbbp.cpu.engine import BoundProgram
from nbbp.lowering.base import padded
from nbbp.lowering.dense import IN_PLACE, PACKED, TRANSPOSED
from nbbp.program import Place, Program, Values
from nbbp.scalars.activations import ACTIVATIONS
from nbbp.scalars.updates import UPDATES
from profiling import question, single_ops

#: (batch, n_in, n_out): layers of the networks that profiling/train_step.py times; n_out are also the classes.
SHAPES = ((1, 16, 16), (32, 32, 32), (128, 64, 64), (64, 784, 256), (256, 1024, 1024))
PARTS = ("bias", "activation", "loss", "update")
#: Seconds of a run, so that entering it from Python is less than a hundredth of them.
RUN = 1e-3
OPTIMIZER = nbbp.Adam(1e-3)


FUSED, UNFUSED = "fused", "unfused"


class Layer:
    """A dense layer and everything that its kernels read; the weight (n_in + 1, n_out) has the bias as its last row."""

    def __init__(self, batch: int, n_in: int, n_out: int) -> None:
        self.batch, self.n_in, self.n_out = batch, n_in, n_out
        random = np.random.default_rng(0)
        self.x = random.standard_normal((batch, n_in), dtype=np.float32)
        self.d_y = random.standard_normal((batch, n_out), dtype=np.float32)
        weight = random.standard_normal((n_in + 1, n_out)) / math.sqrt(n_in)
        self.parameters = weight.astype(np.float32)
        self.n_steps = max(1, int(RUN / (2e-7 + 6.0 * batch * n_in * n_out / 1e11)))
        self.labels = random.integers(0, n_out, batch * self.n_steps)
        self.losses = np.empty(batch * self.n_steps)
        self.coefficients = OPTIMIZER.coefficients(1, self.n_steps, OPTIMIZER.settings("0.weight"))

    def wide(self) -> tuple[np.ndarray, ...]:
        """x, d_y, weight and bias in float64."""
        x, d_y, parameters = (each.astype(np.float64) for each in (self.x, self.d_y, self.parameters))
        return x, d_y, parameters[:-1], parameters[-1]

    def bind(self, program: Program, tiles: Sequence[tuple] | None = None) -> BoundProgram:
        """A program over this layer's parameters (a copy), with its x, d_y, labels and coefficients in place."""
        bound = single_ops.bind(program, {"parameters": self.parameters.ravel().copy()}, tiles)
        for name, values in (("x", self.x), ("d_y", self.d_y)):
            if name in program.buffers:
                single_ops.inside(bound, name, values.shape[1])[:] = values
        bound.attach("target", self.labels)
        bound.attach("loss values", self.losses)
        bound.attach("coefficients", self.coefficients)
        bound.run(self.batch)
        return bound


def _columns(x: Values, y: Values) -> dict[str, object]:
    return {"x": Place(x.buffer), "x_stride": x.stride, "y": Place(y.buffer), "y_stride": y.stride, "n_out": y.width}


def forward(layer: Layer, bias: str | None, activation: str | None) -> BoundProgram:
    """max(0, x · weight + bias), with bias and activation fused, after the product, or (None) left out."""
    program, n_in, n_out = Program(layer.batch), layer.n_in, layer.n_out
    x, y = program.matrix("x", n_in, with_one=True), program.matrix("y", n_out, with_one=True)
    at_bias = Place("parameters", n_in * n_out)
    program.scratch = tiling.packed_panel(n_in)
    program.add(
        "product", w=Place("parameters"), w_stride=n_out, bias=at_bias if bias == FUSED else 0, n_in=n_in,
        layout=PACKED if tiling.wants_packing(layer.batch, n_out) else IN_PLACE,
        settings=program.setting(0.0 if activation == FUSED else -math.inf), **_columns(x, y),
    )  # fmt: skip
    if bias == UNFUSED:
        program.add("add_rows", w=at_bias, w_stride=0, **_columns(y, y))
    if activation == UNFUSED:
        program.add("activation_forward", ACTIVATIONS["relu"].code, settings=program.setting(0.0), **_columns(y, y))
    bound = layer.bind(program)
    wide_x, _, weight, wide_bias = layer.wide()
    expected = wide_x @ weight + (wide_bias if bias else 0.0)
    _assert_close(single_ops.inside(bound, "y", n_out), np.maximum(expected, 0.0) if activation else expected)
    return bound


def loss(layer: Layer, how: str) -> BoundProgram:
    """Crossentropy of y as logits, and its gradient."""
    program, n_out = Program(layer.batch), layer.n_out
    x, d_x = program.matrix("d_y", n_out), program.matrix("d_x", n_out)
    program.scratch = tiling.LOSS_SCRATCH
    targets = {"target": Place("target"), "target_is_labels": 1, "row_values": Place("loss values")}
    settings = program.setting(0.0, 1.0, 1.0)  # no smoothing, not scaled, the mean
    if how == FUSED:
        program.add("crossentropy", settings=settings, **targets, **_columns(x, d_x))
    else:
        p = program.matrix("p", n_out)
        program.add("log_softmax_forward", **_columns(x, p))
        program.add("nll", settings=settings, **targets, **_columns(p, d_x))
        program.add("log_softmax_backward", **_columns(p, d_x))
    bound = layer.bind(program)
    logits, labels = layer.wide()[1], layer.labels[: layer.batch]
    _assert_close(layer.losses[: layer.batch], -special.log_softmax(logits, axis=1)[np.arange(layer.batch), labels])
    expected = (special.softmax(logits, axis=1) - np.eye(n_out)[labels]) / layer.batch
    _assert_close(single_ops.inside(bound, "d_x", n_out), expected)
    return bound


def update(layer: Layer, how: str) -> BoundProgram:
    """Adam by xᵀ · d_y: tile by tile, as the plan for wide layers cuts it, or in two passes, as the others do."""
    program, n_rows, n_out = Program(layer.batch), layer.n_in + 1, layer.n_out
    x, d_y = program.matrix("x", layer.n_in, with_one=True), program.matrix("d_y", n_out)
    n = n_rows * n_out
    program.buffers |= {"gradient": n, "slot 0": n, "slot 1": n}
    tiles: list[tuple] = []
    for start, stop in tiling.panels(n_out, layer.batch) if how == FUSED else [(0, n_out)]:
        first, width, is_local = len(program.ops), stop - start, how == FUSED
        program.add(
            "product", x=Place(x.buffer), x_stride=x.stride, w=Place(d_y.buffer, start), w_stride=d_y.stride,
            y=0 if is_local else Place("gradient"), y_stride=width, tile_local=int(is_local), n_in=n_rows,
            n_out=width, layout=IN_PLACE, contracts_rows=1, slot_rows=layer.batch, settings=program.setting(-math.inf),
        )  # fmt: skip
        program.add(
            "update", UPDATES[OPTIMIZER.rule].code, x=0 if is_local else Place("gradient"),
            w=Place("parameters", start), w_stride=n_out, n_out=n_rows, slot_stride=width, tile_local=int(is_local),
            slot_0=Place("slot 0", start), slot_1=Place("slot 1", start), coefficients=Place("coefficients"),
        )  # fmt: skip
        size = max(1, tiling.parameters(layer.batch) // width)
        program.scratch = max(program.scratch, padded(size * width) + tiling.DEEP_PRODUCT)
        if is_local:
            tiles += tiling.column_tiles(first, len(program.ops), layer.batch, n_rows, size)
    bound = layer.bind(program, tiles)
    wide_x, wide_d_y, *_ = layer.wide()
    gradient = np.vstack([wide_x.T @ wide_d_y, wide_d_y.sum(axis=0)])
    # Adam's first step: lr · g / (|g| + eps), whose sign may be rounding's where g is nearly nothing
    step = OPTIMIZER.learning_rate * gradient / (np.abs(gradient) + OPTIMIZER.eps)
    clear = np.abs(gradient) > 1e-3
    updated = bound.buffer("parameters").reshape(n_rows, n_out)
    _assert_close(updated[clear], (layer.parameters.astype(np.float64) - step)[clear])
    return bound


def input_gradient(layer: Layer) -> BoundProgram:
    """d_y · weightᵀ, which has nothing to fuse."""
    program = Program(layer.batch)
    d_y, d_x = program.matrix("d_y", layer.n_out), program.matrix("d_x", layer.n_in)
    program.scratch = tiling.packed_panel(layer.n_out)
    program.add(
        "product", w=Place("parameters"), w_stride=layer.n_out, n_in=layer.n_out, layout=TRANSPOSED,
        settings=program.setting(-math.inf), **_columns(d_y, d_x),
    )  # fmt: skip
    bound = layer.bind(program)
    _, wide_d_y, weight, _ = layer.wide()
    _assert_close(single_ops.inside(bound, "d_x", layer.n_in), wide_d_y @ weight.T)
    return bound


def _assert_close(came: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max()))


def measure_shape(batch: int, n_in: int, n_out: int, seconds: float) -> dict[str, object]:
    """µs of every part of a layer's step, fused and not."""
    layer = Layer(batch, n_in, n_out)
    bound = {
        ("bias", FUSED): forward(layer, FUSED, None),
        ("bias", UNFUSED): forward(layer, UNFUSED, None),
        ("activation", FUSED): forward(layer, FUSED, FUSED),
        ("activation", UNFUSED): forward(layer, FUSED, UNFUSED),
        **{("loss", how): loss(layer, how) for how in (FUSED, UNFUSED)},
        **{("update", how): update(layer, how) for how in (FUSED, UNFUSED)},
        ("input gradient", FUSED): input_gradient(layer),
    }
    runs = {name: single_ops.steps(each, layer.n_steps) for name, each in bound.items()}
    timed = question.time_in_turn(runs, seconds, stretch=RUN)
    microseconds = {name: 1e6 * each["minimum"] / layer.n_steps for name, each in timed.items()}
    parts = {part: {how: microseconds[part, how] for how in (FUSED, UNFUSED)} for part in PARTS}
    shared = ("activation", "loss", "update", "input gradient")
    step = sum(microseconds[name, FUSED] for name in shared)
    is_wide = tiling.is_wide(n_in * n_out)
    return {"batch": batch, "n_in": n_in, "n_out": n_out, "parts": parts, "step": step, "engine_fuses_update": is_wide}


def measure(quick: bool = False) -> dict[str, object]:
    """Every shape."""
    rows = [measure_shape(*shape, seconds=0.05 if quick else 3.0) for shape in SHAPES]
    return {**question.conditions(), "shapes": rows}


def saved(part: dict[str, float]) -> float:
    """µs that fusing saves."""
    return part[UNFUSED] - part[FUSED]


def shares(shape: dict) -> dict[str, float]:
    """What each part saves, in % of the step in which nothing is fused."""
    whole = shape["step"] + sum(saved(part) for part in shape["parts"].values())
    return {name: 100 * saved(part) / whole for name, part in shape["parts"].items()}


def name_of(shape: dict) -> str:
    """``784 → 256, batch 64``."""
    return f"{shape['n_in']} → {shape['n_out']}, batch {shape['batch']}"


def table(results: dict) -> str:
    """µs fused and not, and what all of it is of a step."""
    rows = []
    for shape in results["shapes"]:
        cells = []
        for name, part in shape["parts"].items():
            mark = "*" if name == "update" and not shape["engine_fuses_update"] else ""
            pair = f"{question.digits(part[UNFUSED])} → {question.digits(part[FUSED])}{mark}"
            cells.append(f"{pair} ({shares(shape)[name]:+.1f} %)")
        whole = f"{question.digits(shape['step'])} ({sum(shares(shape).values()):+.1f} %)"
        rows.append([name_of(shape), *cells, whole])
    headings = ["layer", "bias", "activation", "loss with gradient", "Adam", "step, all fused"]
    return (
        "µs unfused → fused; in brackets, what fusing saves of the step in which nothing is fused.\n\n"
        f"{question.markdown_table(headings, rows)}\n"
        "\\* The engine does not fuse the update of a layer of this size.\n"
    )


def draw(results: dict, path: Path) -> None:
    """Bars: what each part saves of a step, by layer."""
    shapes, width = results["shapes"], 0.19
    with question.picture(path, 10.0, 5.0, "What fusing saves of a layer's training step") as figure:
        axes = figure.add_subplot()
        for number, (part, colour) in enumerate(zip(PARTS, plotting.PALETTE, strict=False)):
            places = [at + (number - 1.5) * width for at in range(len(shapes))]
            heights = [shares(shape)[part] for shape in shapes]
            idle = [part == "update" and not shape["engine_fuses_update"] for shape in shapes]
            for place, height, is_idle in zip(places, heights, idle, strict=True):
                style = {"facecolor": "white", "hatch": "////"} if is_idle else {"facecolor": colour}
                axes.bar(place, height, 0.92 * width, edgecolor=colour, linewidth=0.8, **style)
                text, offset = f"{round(height, 1) + 0.0:.1f}", (0, 2 if height >= 0 else -11)
                axes.annotate(text, (place, height), offset, textcoords="offset points", ha="center", fontsize=8.5)
            axes.bar(0, 0, color=colour, label=part)  # for the legend
        axes.bar(0, 0, facecolor="white", edgecolor=plotting.MUTED, hatch="////", label="not fused by the engine")
        axes.axhline(0.0, color=plotting.MUTED, lw=0.8)
        names = [f"{name_of(s)}\n{question.digits(s['step'])} µs" for s in shapes]
        axes.set_xticks(range(len(shapes)), [name.replace(", batch", "\nbatch") for name in names])
        axes.tick_params(axis="x", length=0)
        axes.grid(False, axis="x")
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.06 * (high - low), high + 0.18 * (high - low))
        axes.set_ylabel("saved, in % of the step with nothing fused")
        axes.set_title(
            "below each layer: its step with everything fused (float32, one core, Adam)", fontweight="normal"
        )
        axes.legend(ncols=5, loc="upper right")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
