"""What does an optimizer's update cost per parameter, against moving its numbers once, and against PyTorch?

    python profiling/optimizers.py [--quick] [--output FOLDER]

Every optimizer updates one weight of 1024 columns from a gradient that is there, in float32 on one thread: one that
stays in the second-level cache with its moments, and one for which it is far too large. The floor is the least that
must be read and written (gradient, parameter, moments) over the rate at which ``y += x`` moves as many bytes. The
updates are held against the float64 oracle of the tests before they are timed; so are PyTorch's, once over lists of
tensors (foreach) and once in one kernel (fused), where it has them. nbbp's steps follow each other inside jitted code,
as they do in `fit`; PyTorch's have a call from Python each, as they do there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import reference_optimizers
from numba import float32

import nbbp
from nbbp import plotting, tiling
from nbbp.compiling import jit
from nbbp.cpu import simd
from nbbp.cpu.engine import BoundProgram, aligned
from nbbp.lowering import parameters
from nbbp.lowering.base import Lowering, Partials
from nbbp.lowering.gradients import coefficients_of_batches
from nbbp.optimizers import Optimizer
from nbbp.program import Place
from profiling import question

#: Ours; PyTorch's name and words for the same, if it has it.
OPTIMIZERS: dict[str, tuple[Optimizer, str | None, dict[str, Any]]] = {
    "SGD": (nbbp.SGD(0.01), "SGD", {"lr": 0.01}),
    "SGD, momentum": (nbbp.SGD(0.01, momentum=0.9), "SGD", {"lr": 0.01, "momentum": 0.9}),
    "AdaGrad": (nbbp.AdaGrad(), "Adagrad", {}),
    "Adadelta": (nbbp.Adadelta(), "Adadelta", {}),
    "RMSprop": (nbbp.RMSprop(1e-3), "RMSprop", {"lr": 1e-3}),
    "Adam": (nbbp.Adam(), "Adam", {}),
    "AdamW": (nbbp.AdamW(), "AdamW", {}),
    "Adamax": (nbbp.Adamax(), "Adamax", {}),
    "NAdam": (nbbp.NAdam(), "NAdam", {}),
    "RAdam": (nbbp.RAdam(), "RAdam", {}),
    "Lion": (nbbp.Lion(1e-4), None, {}),
    "Adafactor": (nbbp.Adafactor(), "Adafactor", {}),
}
WAYS = ("foreach", "fused")
N_COLUMNS = 1024
#: Parameters: 128 KiB for each array, and 64 MiB.
SIZES = {"L2 cache": 1 << 15, "main memory": 1 << 24}
QUICK_SIZES = {"L2 cache": 1 << 15, "main memory": 1 << 22}
#: Updates that are compared with the oracle, and how far their sum may be off.
N_COMPARED, TOLERANCE = 3, 1e-3
#: Numbers that one run of nbbp's updates goes over, so that calling it from Python costs next to nothing.
_NUMBERS_PER_RUN = 1 << 22
SECONDS = 0.4
_MARKERS = {
    "nbbp": ("o", plotting.PALETTE[0]),
    "foreach": ("s", plotting.PALETTE[1]),
    "fused": ("D", plotting.PALETTE[2]),
}


def least_bytes(optimizer: Optimizer) -> int:
    """Bytes per parameter that an update must read or write: gradient, parameter and moments.

    Of Adafactor, whose moments are small, the gradient and the parameter twice: its update follows from the means of
    their squares.
    """
    return 20 if optimizer.rule == "adafactor" else 4 * (1 + 2 + 2 * optimizer.n_slots)


class Ours:
    """The update of one weight (n / 1024, 1024) as a program."""

    def __init__(self, optimizer: Optimizer, weight: np.ndarray, gradient: np.ndarray, n_steps: int) -> None:
        n, network = weight.size, nbbp.Sequential([nbbp.Dense(weight.shape[1], use_bias=False)], n_in=weight.shape[0])
        lowering = Lowering(network, 1, Partials(1))
        program = lowering.program
        program.buffers["gradient"] = n
        if optimizer.rule == "adafactor":
            parameters.adafactor(lowering, optimizer, network.parameters)
            tiles = [(0, 1, 0, 1, 0, tiling.ALL)]
        else:
            parameters.updates(lowering, optimizer, network.parameters, 0, Place("gradient"), (0, 1), 1)
            tiles = tiling.column_tiles(0, 1, 1, n, tiling.PARAMETERS)
        program.tiles, program.phases = np.array(tiles, np.int64), np.array([0, len(tiles)], np.int64)
        self.weight = aligned(n, np.float32)
        self.weight[:] = weight.ravel()
        slots = [aligned(length, np.float32) for length in parameters.slot_lengths(network, optimizer)]
        buffers = {"parameters": self.weight, **{f"slot {k}": slot for k, slot in enumerate(slots)}}
        self.bound = BoundProgram(program, np.float32, buffers)
        self.gradient = self.bound.buffer("gradient")[:n]
        self.gradient[:] = gradient.ravel()
        settings = optimizer.settings("0.weight")
        self.coefficients = coefficients_of_batches(optimizer, settings, 1, n_steps)
        self.losses, self.name = np.zeros(n_steps), parameters.coefficients_buffer(settings)

    def __call__(self, n_steps: int) -> None:
        """Make the first `n_steps` updates; the count starts anew with every call, the moments go on."""
        self._run(0, n_steps)

    def one_by_one(self) -> np.ndarray:
        """The weight after all steps, each along the same gradient, which Adafactor overwrites."""
        gradient = self.gradient.copy()
        for step in range(len(self.losses)):
            self.gradient[:] = gradient
            self._run(step, 1)
        return self.weight

    def _run(self, first: int, n_steps: int) -> None:
        self.bound.attach(self.name, self.coefficients[first:])
        self.bound.attach("loss values", self.losses)
        self.bound.run(n_steps)


def theirs(name: str, words: dict[str, Any], way: str, weight: np.ndarray, gradient: np.ndarray) -> tuple[Any, Any]:
    """PyTorch's weight and optimizer; (None, None) where it is not installed or has no such way."""
    try:
        import torch
    except ImportError:
        return None, None
    torch.set_num_threads(1)
    tensor = torch.nn.Parameter(torch.tensor(weight))
    tensor.grad = torch.tensor(gradient)
    try:
        return tensor, getattr(torch.optim, name)([tensor], **words, **{way: True})
    except (TypeError, RuntimeError, ValueError):
        return None, None


def validate(after: np.ndarray, optimizer: Optimizer, weight: np.ndarray, gradient: np.ndarray) -> None:
    """Raise AssertionError unless `after` is the oracle's weight after `N_COMPARED` updates."""
    expected = reference_optimizers.steps(
        optimizer, {"0.weight": weight}, lambda *_: {"0.weight": gradient}, N_COMPARED, "float32"
    )["0.weight"]
    before = weight.astype(np.float64)
    np.testing.assert_allclose(after.reshape(weight.shape) - before, expected - before, rtol=TOLERANCE, atol=1e-6)


@jit()
def _add_up(y, x, n_steps):
    """y += x, `n_steps` times, in whole registers."""
    for _ in range(n_steps):
        simd.add(
            simd.pointer(simd.address_of(y), float32(0)), simd.pointer(simd.address_of(y), float32(0)),
            simd.pointer(simd.address_of(x), float32(0)), len(y),
        )  # fmt: skip


def time_size(n: int, seconds: float) -> dict[str, Any]:
    """ns per parameter of every update of `n` parameters, and GB/s of moving bytes."""
    random = np.random.default_rng(0)
    weight = random.normal(0.0, 0.1, (n // N_COLUMNS, N_COLUMNS)).astype(np.float32)
    gradient = random.normal(0.0, 1.0, weight.shape).astype(np.float32)
    checked = slice(0, 32)  # rows that the oracle computes too
    n_steps = max(1, _NUMBERS_PER_RUN // n)
    rows: dict[str, dict[str, Any]] = {}
    rates = []
    for label, (optimizer, name, words) in OPTIMIZERS.items():
        small = weight[checked], gradient[checked]
        validate(Ours(optimizer, *small, N_COMPARED).one_by_one(), optimizer, *small)
        runs: dict[str, Callable[[], object]] = {}
        runs["nbbp"] = _many_updates(Ours(optimizer, weight, gradient, n_steps), n_steps)
        for way in WAYS if name else ():
            tensor, stepping = theirs(name, words, way, *small)
            if tensor is not None:
                for _ in range(N_COMPARED):
                    stepping.step()
                validate(tensor.detach().numpy(), optimizer, *small)
                runs[way] = theirs(name, words, way, weight, gradient)[1].step
        size = least_bytes(optimizer) * n
        y, x = aligned(size // 8, np.float32), aligned(size // 8, np.float32)
        moves = max(1, _NUMBERS_PER_RUN // n)
        runs["bytes"] = lambda y=y, x=x, moves=moves: _add_up(y, x, moves)
        timed = question.time_in_turn(runs, seconds)
        steps = {"nbbp": n_steps, "bytes": moves}
        cost = {
            who: {key: 1e9 * t[key] / n / steps.get(who, 1) for key in ("minimum", "median")}
            for who, t in timed.items()
        }
        # of y += x, two numbers are read and one is written for every two that are held
        per_byte = cost.pop("bytes")["minimum"] / (least_bytes(optimizer) * 1.5)
        rates.append(1.0 / per_byte)
        rows[label] = {"bytes": least_bytes(optimizer), "times": cost, "gigabytes_per_second": 1.0 / per_byte}
    for row in rows.values():
        row["floor"] = row["bytes"] / max(rates)
    return {"parameters": n, "gigabytes_per_second": max(rates), "rows": rows}


def _many_updates(update: Ours, n_steps: int) -> Callable[[], None]:
    return lambda: update(n_steps)


def measure(quick: bool) -> dict[str, Any]:
    """Every optimizer in both sizes."""
    nbbp.set_num_threads(1)
    sizes = QUICK_SIZES if quick else SIZES
    measured = {name: time_size(n, SECONDS / 10 if quick else SECONDS) for name, n in sizes.items()}
    return {"sizes": measured, **question.conditions()}


def table(results: dict) -> str:
    """A table per size: ns per parameter; in brackets, nbbp's times the floor, PyTorch's times nbbp's."""
    blocks = []
    for size, measured in results["sizes"].items():
        rows = []
        for label, row in measured["rows"].items():
            ours = row["times"]["nbbp"]["minimum"]
            cells = [label, str(row["bytes"]), question.digits(row["floor"])]
            cells.append(f"{question.digits(ours)} ({ours / row['floor']:.2f}× floor)")
            for way in WAYS:
                time = row["times"].get(way, {}).get("minimum")
                cells.append("–" if time is None else f"{question.digits(time)} ({time / ours:.2f}×)")
            rows.append(cells)
        headings = ["ns per parameter", "bytes", "floor", "nbbp", "PyTorch, foreach", "PyTorch, fused"]
        blocks.append(
            f"{size}, {measured['parameters']:,} parameters, {measured['gigabytes_per_second']:.0f} GB/s at best:\n\n"
            + question.markdown_table(headings, rows)
        )
    return "\n".join(blocks)


def draw(results: dict, path: Path) -> None:
    """A panel per size: a row per optimizer, the floor as a bar, who takes how long as points."""
    with question.picture(path, 12.0, 5.6, "What an update costs per parameter") as figure:
        all_axes = figure.subplots(1, len(results["sizes"]), sharey=True, squeeze=False)[0]
        for axes, (size, measured) in zip(all_axes, results["sizes"].items(), strict=True):
            labels = list(measured["rows"])
            floors = [row["floor"] for row in measured["rows"].values()]
            axes.barh(labels, floors, color="#dfe3e8", height=0.7, label="floor: moving the bytes once")
            for who, (marker, colour) in _MARKERS.items():
                points = [
                    (r["times"][who]["minimum"], i)
                    for i, r in enumerate(measured["rows"].values())
                    if who in r["times"]
                ]
                label = who if who == "nbbp" else f"PyTorch, {who}"
                if points:
                    axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=7, label=label)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.grid(False, axis="y")
            axes.set_xlabel("ns per parameter")
            axes.set_title(
                f"{size}: {measured['parameters']:,} parameters, {measured['gigabytes_per_second']:.0f} GB/s"
            )
        all_axes[0].invert_yaxis()
        handles, names = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
