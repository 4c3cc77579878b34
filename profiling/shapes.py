"""Is there a shape of network and batch on which another library is faster?

    python profiling/shapes.py [--quick] [--output FOLDER]        some five minutes on two cores; quick: seconds

Networks of two dense layers, width-width-width (of two classes where the width is 1), over width and batch 1 … 4096:
forward, loss, backward and Adam, ReLU, crossentropy, float32, every batch fresh data. Libraries run in processes of
their own, on one thread and on one per core:

nbbp       `Model.fit`, with its checks, shuffle and gather; networks of a million parameters and more, few of whose
           steps make a run, by `Model.train_step`, since a ``fit`` begins by looking through all parameters
pytorch    eager, with its fused Adam; batches cut beforehand
jax-scan   all steps in one compiled ``lax.scan``; batches cut beforehand

Before a library is timed on a shape, its first losses are held against a float64 reference. Runs of the libraries take
turns; the minimum is kept. Shapes on which a step would take nbbp more than 2 s are left out, and on several threads
those on which it takes less than 50 µs on one, which is too short to share.

The ratio is the time of the fastest other library over nbbp's: below 1, nbbp is slower.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from nbbp import plotting
from profiling import dense_layer_picture, question, report
from profiling.cases import LOSS_TOLERANCE, Case, initial_parameters, reference_losses, training_data
from profiling.peers.worker import PeerError, Worker, save_case
from profiling.train_step import SETTLING, start_workers, steps_within

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPARED = ("nbbp", "pytorch", "jax-scan")
WIDTHS = BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
QUICK_WIDTHS, QUICK_BATCHES = (4, 64), (1, 64)
#: Seconds of one run, and of all runs of a shape; turns that there are in any case.
RUN, SECONDS, QUICK_SECONDS, LEAST_TURNS = 0.04, 0.6, 0.2, 3
#: Seconds of a step: shapes that take longer are left out, and on several threads those that take less on one.
LIMIT, SHORT = 2.0, 50e-6
TOO_LONG, TOO_SHORT = "too long", "too short"
#: Numbers that the data of a run may have: more than a core's L2 cache holds.
MOST_NUMBERS = 4_000_000
#: Steps whose losses are compared; for steps of more than `LARGE` operations, an update's being 100 a parameter, fewer.
N_COMPARED, FEW_COMPARED, LARGE = 5, 2, 2e9
#: Parameters from which on nbbp is timed through ``train_step``.
MANY_PARAMETERS = 1_000_000
#: Losses near 0 are differences of numbers near 1: so far they may be off, beside `LOSS_TOLERANCE`.
NEAR_ZERO = 1e-5
#: The ratio under which nbbp is slower by more than the noise of a shared machine.
NOISE = 0.95


def n_compared(case: Case) -> int:
    """Steps whose losses are compared."""
    return FEW_COMPARED if case.flops + 100 * case.n_parameters > LARGE else N_COMPARED


def case_of(width: int, batch: int) -> Case:
    """The network, with as many batches as the quickest library may run through in `RUN`, or as memory allows."""
    case = Case((width, width, max(2, width)), batch, 1, 1.0)
    quickest = 2e-7 + case.flops / 2e11 + 1e-10 * case.n_parameters
    n = min(int(RUN / quickest), MOST_NUMBERS // (batch * (width + 1)))
    return Case(case.sizes, batch, max(n, n_compared(case)), 1.0)


def validate(case: Case, worker: Worker, reference: Sequence[float]) -> None:
    """Raise PeerError unless the peer's first losses are the reference's."""
    losses = worker("losses", len(reference))
    if not np.allclose(losses, reference, rtol=LOSS_TOLERANCE, atol=NEAR_ZERO):
        raise PeerError(f"{worker.peer}: losses {losses} on {case.name}; the reference has {reference}")


def prepare(case: Case, workers: Mapping[str, Worker], file: Path, reference: Sequence[float]) -> dict[str, int]:
    """Have every worker take the case and validate it; by peer, the steps of a run.

    JAX compiles a scan for every number of steps, which takes longer than all runs: it is given as many as nbbp makes.
    A peer that fails is named on stderr and left out, but for nbbp.
    """
    steps: dict[str, int] = {}
    for peer, worker in workers.items():
        try:
            worker.load(case, file)
            if peer == "jax-scan":
                worker("compile", steps["nbbp"])
            validate(case, worker, reference)
            steps[peer] = steps["nbbp"] if peer == "jax-scan" else steps_within(worker, case, RUN, least=1)
        except PeerError as error:
            if peer == "nbbp":
                raise
            print(f"{case.name}: {error}", file=sys.stderr)
    return steps


def seconds_per_step(case: Case, worker: Worker, n: int) -> float:
    """Of a run of `n` steps."""
    if worker.peer == "nbbp" and case.n_parameters >= MANY_PARAMETERS:
        return worker("step_from_python", n)
    return worker("run", n) / n


def time_runs(
    case: Case, workers: Mapping[str, Worker], steps: Mapping[str, int], seconds: float, settling: float
) -> dict[str, dict[str, float]]:
    """By peer: ``minimum`` and ``median`` in seconds per step, ``steps`` of a run and ``repeats``."""
    runs: dict[str, list[float]] = {peer: [] for peer in steps}
    turns, total = 0, 0.0
    while turns < LEAST_TURNS or total < seconds:
        for peer, n in steps.items():
            time.sleep(settling)
            runs[peer].append(seconds_per_step(case, workers[peer], n))
            total += n * runs[peer][-1]
        turns += 1
    return {
        peer: {"minimum": min(times), "median": median(times), "steps": steps[peer], "repeats": len(times)}
        for peer, times in runs.items()
    }


def expected_seconds(timed: Sequence[Mapping], width: int, batch: int) -> float:
    """Seconds of nbbp's step: a straight line through the last two batches of that width, 0 while there are none."""
    smaller = [shape for shape in timed if shape["width"] == width][-2:]
    if len(smaller) < 2:
        return 0.0
    (b1, t1), (b2, t2) = ((shape["batch"], shape["peers"]["nbbp"]["minimum"]) for shape in smaller)
    return t2 + (t2 - t1) * (batch - b2) / (b2 - b1)


def time_shapes(
    shapes: Mapping[int, Sequence[int]], n_threads: int, seconds: float, references: dict[Case, list[float]]
) -> dict[str, list]:
    """Time batches by width, small ones first, each for `seconds`. `references` are those that are known; it gets more.

    Returns
    -------
    dict
        ``shapes``: ``width``, ``batch`` and ``peers``, by name what `time_runs` gives; ``left_out``: ``width``,
        ``batch``, ``why`` and the ``seconds`` of a step that were expected.
    """
    timed: list[dict] = []
    left_out: list[dict] = []
    settling = SETTLING if n_threads > 1 else 0.0
    with ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "case.npz"
        workers = start_workers(stack, list(COMPARED), n_threads)
        for width, batches in shapes.items():
            parameters = initial_parameters(case_of(width, 1))
            for batch in batches:
                shape = {"width": width, "batch": batch}
                if (expected := expected_seconds(timed, width, batch)) > LIMIT:
                    left_out.append({**shape, "why": TOO_LONG, "seconds": expected})
                    continue
                print(f"threads {n_threads}: width {width}, batch {batch}", file=sys.stderr, flush=True)
                case = case_of(width, batch)
                x, y = training_data(case)
                if case not in references:
                    references[case] = reference_losses(case, parameters, x, y, n_compared(case))
                save_case(file, parameters, x, y)
                steps = prepare(case, workers, file, references[case])
                timed.append({**shape, "peers": time_runs(case, workers, steps, seconds, settling)})
    return {"shapes": timed, "left_out": left_out}


def measure(quick: bool) -> dict[str, object]:
    """Every width with every batch on one thread; unless `quick`, those that are not too short on one per core."""
    widths, batches = (QUICK_WIDTHS, QUICK_BATCHES) if quick else (WIDTHS, BATCHES)
    seconds, n_cores = QUICK_SECONDS if quick else SECONDS, question.n_cores()
    references: dict[Case, list[float]] = {}
    single = time_shapes(dict.fromkeys(widths, batches), 1, seconds, references)
    by_threads = {"1": single}
    if n_cores > 1 and not quick:
        short = too_short(single["shapes"])
        skipped = {(shape["width"], shape["batch"]) for shape in short}
        shapes = {width: [batch for batch in batches if (width, batch) not in skipped] for width in widths}
        several = time_shapes({width: some for width, some in shapes.items() if some}, n_cores, seconds, references)
        by_threads[str(n_cores)] = {**several, "left_out": short + several["left_out"]}
    return {"by_threads": by_threads, **question.conditions()}


def too_short(shapes: Sequence[Mapping]) -> list[dict]:
    """Those on which nbbp's step takes less than `SHORT`, as `time_shapes` names what it leaves out."""
    taken = [(shape, shape["peers"]["nbbp"]["minimum"]) for shape in shapes]
    return [
        {"width": shape["width"], "batch": shape["batch"], "why": TOO_SHORT, "seconds": seconds}
        for shape, seconds in taken
        if seconds < SHORT
    ]


def fastest_other(shape: Mapping) -> str | None:
    """The library that is fastest of all but nbbp, None where nbbp is alone."""
    others = {peer: timed["minimum"] for peer, timed in shape["peers"].items() if peer != "nbbp"}
    return min(others, key=others.get, default=None)


def ratio(shape: Mapping) -> float:
    """Time of the fastest other library over nbbp's; NaN where nbbp is alone."""
    other = fastest_other(shape)
    return shape["peers"][other]["minimum"] / shape["peers"]["nbbp"]["minimum"] if other else float("nan")


def verdict(shapes: Sequence[Mapping]) -> str:
    """The shapes on which nbbp is slower than another library, the worst first; apart, those that noise may explain."""
    shapes = sorted((shape for shape in shapes if fastest_other(shape)), key=ratio)
    if not shapes:
        return "no other library was there to compare with."
    slower = [shape for shape in shapes if ratio(shape) < NOISE]
    close = [shape for shape in shapes if NOISE <= ratio(shape) < 1.0]
    if not slower and not close:
        return f"nbbp is the fastest on all {len(shapes)} shapes, least so on {_named(shapes[:1])}."
    parts = [f"nbbp is slower than another library on {len(slower) + len(close)} of {len(shapes)} shapes."]
    if slower:
        parts.append(f"By more than {100 * (1 - NOISE):.0f} %, ratio and library: {_named(slower)}.")
    if close:
        parts.append(f"By no more than noise: {_named(close)}.")
    return " ".join(parts)


def _named(shapes: Sequence[Mapping]) -> str:
    return "; ".join(
        f"width {shape['width']}, batch {shape['batch']}: {ratio(shape):.2f} ({fastest_other(shape)})"
        for shape in shapes
    )


def table(results: dict) -> str:
    """µs of every library on every shape, the ratio, and the verdict, for every number of threads."""
    head = (
        "µs of a training step (nbbp's by `Model.fit`, from a million parameters on by `Model.train_step`); time of "
        "the fastest other library over nbbp's, bold where nbbp is slower.\n"
    )
    parts = [head]
    for n_threads, measured in results["by_threads"].items():
        threads = report.threads_in_words(n_threads)
        rows = []
        for shape in measured["shapes"]:
            times = {peer: timed["minimum"] for peer, timed in shape["peers"].items()}
            cells = [question.digits(1e6 * times[peer]) if peer in times else "–" for peer in COMPARED]
            compared = report.ratio(ratio(shape)) if fastest_other(shape) else "–"
            cells.append(f"**{compared}**" if ratio(shape) < 1.0 else compared)
            rows.append([f"{shape['width']:,}, {shape['batch']:,}", *cells])
        headings = [f"{threads}: width, batch", *COMPARED, "fastest other ÷ nbbp"]
        said = " ".join([verdict(measured["shapes"]), *left_out_text(measured["left_out"])])
        parts += [question.markdown_table(headings, rows), f"{threads}: {said}\n"]
    return "\n".join(parts)


def left_out_text(left_out: Sequence[Mapping]) -> list[str]:
    """A sentence on those too long, and one on those too short to share."""
    sentences = []
    if long := [shape for shape in left_out if shape["why"] == TOO_LONG]:
        named = "; ".join(f"width {s['width']}, batch {s['batch']}: some {s['seconds']:.1f} s" for s in long)
        sentences.append(f"Left out, since a step would take more than {LIMIT:g} s: {named}.")
    if n := len(left_out) - len(long):
        one = "shape" if n == 1 else "shapes"
        sentences.append(f"Left out: {n} {one} of less than {1e6 * SHORT:.0f} µs on one thread, too short to share.")
    return sentences


def draw(results: dict, path: Path) -> None:
    """Maps of the ratio over width and batch, one per number of threads."""
    measured = results["by_threads"]
    first = next(iter(measured.values()))
    every = [*first["shapes"], *first["left_out"]]
    batches, widths = (sorted({shape[key] for shape in every}) for key in ("batch", "width"))
    size = 1.5 + len(measured) * (1.2 + 0.75 * len(batches)), 2.0 + 0.5 * len(widths)
    with question.picture(path, *size, "Time of the fastest other library over nbbp's, a training step") as figure:
        (row,) = figure.subplots(1, len(measured), squeeze=False)
        for axes, (n_threads, of_threads) in zip(row, measured.items(), strict=True):
            _draw_ratios(axes, of_threads, batches, widths)
            axes.set_title(report.threads_in_words(n_threads))
        note = "Two dense layers, ReLU, crossentropy, Adam. Orange: another library is faster; purple: nbbp is."
        figure.supxlabel(note, fontsize=9, color=plotting.INK)


def _draw_ratios(axes: Axes, measured: Mapping[str, Sequence], batches: list[int], widths: list[int]) -> None:
    from matplotlib.colors import LogNorm

    values = dense_layer_picture.grid(measured["shapes"], batches, widths, ratio)
    axes.imshow(values, cmap="PuOr", norm=LogNorm(0.25, 4.0), origin="lower", aspect="auto")
    for shape in measured["left_out"]:
        at = dense_layer_picture.place(shape, batches, widths)
        axes.text(*at, shape["why"], ha="center", va="center", fontsize=7.5, color=plotting.MUTED)
    for shape in measured["shapes"]:
        times = ratio(shape)
        text = f"{report.ratio(times)}\n{fastest_other(shape)}" if fastest_other(shape) else "alone"
        colour = "white" if times > 2.2 or times < 0.45 else plotting.INK
        at = dense_layer_picture.place(shape, batches, widths)
        axes.text(*at, text, ha="center", va="center", fontsize=7.5, color=colour, linespacing=1.1)
    dense_layer_picture.scales(axes, batches, widths)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    raise SystemExit(main())
