"""What are more threads worth, over batch and width, and are the bits the same?

    python profiling/scaling.py [--quick] [--output FOLDER]

Networks of three square layers are trained by `Model.fit` (ReLU, crossentropy, Adam, float32) on 1 … n threads, n the
cores of this process. Before a shape is timed, its first losses on one thread are held against a float64 reference, and
the parameters after the same steps must be the same to the bit for every number of threads. Runs with different
numbers of threads take turns.

Amdahl's law is fitted to the times: ``T(t) = T(1) · (1 - p + p / t)``, p the share of a step that is divided. Steps too
short to be shared run on one thread whatever is set (`nbbp.tiling`), so that their speed-up is 1.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy.optimize import least_squares

import nbbp
from nbbp import plotting, tiling
from nbbp.compiling import jit
from profiling import question
from profiling.cases import LOSS_TOLERANCE, Case, initial_parameters, reference_losses, training_data
from profiling.peers.nbbp_peer import Nbbp

BATCHES, WIDTHS = (32, 128, 512, 2048), (64, 256, 1024)
QUICK_BATCHES, QUICK_WIDTHS = (128, 512), (64, 256)
#: Steps that are compared with the reference and from thread to thread.
N_COMPARED = 2
#: Seconds for all runs of a shape, and of one run at least.
SECONDS, RUN = 1.5, 0.03
#: Steps of arithmetic that take some milliseconds.
_SPINS = 1_000_000


def case_of(batch: int, width: int) -> Case:
    """The network of three square layers."""
    return Case((width,) * 4, batch, N_COMPARED, 1.0)


def numbers_of_threads() -> list[int]:
    """1 … n; beyond eight cores, powers of two and n."""
    n = question.n_cores()
    return sorted({*range(1, min(n, 8) + 1), *(1 << k for k in range(4, n.bit_length())), n})


def model_of(case: Case) -> nbbp.Model:
    """A new model with the case's initial parameters."""
    peer = Nbbp(1)
    peer.load(case, initial_parameters(case), *training_data(case))
    return peer.model


def validate(case: Case, threads: Sequence[int]) -> None:
    """Raise AssertionError unless losses are the reference's, and bits the same for all numbers of threads."""
    x, y = training_data(case)
    expected = reference_losses(case, initial_parameters(case), x, y, N_COMPARED)
    bits = set()
    for n_threads in threads:
        model = model_of(case)
        nbbp.set_num_threads(n_threads)
        rows = [slice(i * case.batch, (i + 1) * case.batch) for i in range(N_COMPARED)]
        losses = [model.train_step(x[r], y[r]) for r in rows]
        np.testing.assert_allclose(losses, expected, rtol=LOSS_TOLERANCE)
        bits.add(model.parameter_vector.tobytes())
    assert len(bits) == 1, f"{case.name}: other numbers of threads gave other bits"


def measure_shape(batch: int, width: int, threads: Sequence[int], seconds: float) -> dict[str, object]:
    """Seconds of a step for each number of threads, and Amdahl's share."""
    case = case_of(batch, width)
    validate(case, threads)
    model, (x, y) = model_of(case), training_data(case)
    n_epochs = _epochs_within(model, x, y, case)

    def fit_on(n_threads: int) -> Callable[[], object]:
        def fit() -> None:
            nbbp.set_num_threads(n_threads)
            model.fit(x, y, batch_size=batch, epochs=n_epochs, verbose=0)

        return fit

    timed = question.time_in_turn({n: fit_on(n) for n in threads}, seconds, stretch=RUN / 4)
    per_step = {n: {key: t[key] / (n_epochs * N_COMPARED) for key in ("minimum", "median")} for n, t in timed.items()}
    least = {n: t["minimum"] for n, t in per_step.items()}
    return {
        "batch": batch,
        "width": width,
        "is_shared": tiling.is_shared(tiling.work([(width, width)] * 3, batch)),
        "seconds": {str(n): t for n, t in per_step.items()},
        "parallel_share": parallel_share(least),
    }


def _epochs_within(model: nbbp.Model, x: np.ndarray, y: np.ndarray, case: Case) -> int:
    """Epochs of one thread that take about `RUN` seconds."""
    nbbp.set_num_threads(1)
    model.fit(x, y, batch_size=case.batch, verbose=0)
    n_epochs = 1
    while True:
        begin = time.perf_counter()
        model.fit(x, y, batch_size=case.batch, epochs=n_epochs, verbose=0)
        elapsed = time.perf_counter() - begin
        if elapsed >= 0.5 * RUN:
            return n_epochs
        n_epochs = max(2 * n_epochs, int(0.7 * n_epochs * RUN / elapsed))


@jit()
def _spin(n):
    """Arithmetic in registers alone, each step waiting for the one before."""
    x = 1.0
    for _ in range(n):
        x = 0.5 * x + 1.0 / x
    return x


def free_cores(threads: Sequence[int], seconds: float) -> dict[str, float]:
    """How many times the work of one thread that many do at once which share nothing: the cores that were free."""
    with ThreadPoolExecutor(max(threads)) as pool:
        runs = {n: functools.partial(_spin_together, pool, n) for n in threads}
        timed = question.time_in_turn(runs, seconds, stretch=RUN / 4)
    return {str(n): n * timed[1]["minimum"] / timed[n]["minimum"] for n in threads}


def _spin_together(pool: ThreadPoolExecutor, n_threads: int) -> None:
    list(pool.map(_spin, [_SPINS] * n_threads))


def parallel_share(seconds: dict[int, float]) -> float:
    """The share p of Amdahl's law that fits the times by number of threads best, relatively; from 0 to 1."""
    n, ratio = np.array(list(seconds)), np.array(list(seconds.values())) / seconds[1]
    if len(n) == 1:
        return 0.0
    return float(least_squares(lambda p: (1 - p + p / n) / ratio - 1, [0.5], bounds=(0, 1)).x[0])


def measure(quick: bool) -> dict[str, object]:
    """Every batch with every width."""
    threads = numbers_of_threads()
    batches, widths = (QUICK_BATCHES, QUICK_WIDTHS) if quick else (BATCHES, WIDTHS)
    seconds = SECONDS / 6 if quick else SECONDS
    before = nbbp.get_num_threads()
    try:
        free = free_cores(threads, seconds)
        shapes = [measure_shape(batch, width, threads, seconds) for width in widths for batch in batches]
    finally:
        nbbp.set_num_threads(before)
    return {"numbers_of_threads": threads, "free_cores": free, "shapes": shapes, **question.conditions()}


def speed_up(shape: dict, n_threads: int) -> float:
    """How many times as fast as on one thread."""
    return shape["seconds"]["1"]["minimum"] / shape["seconds"][str(n_threads)]["minimum"]


def table(results: dict) -> str:
    """A row per shape: µs on one thread; then speed-up and efficiency by threads; Amdahl's share."""
    others = results["numbers_of_threads"][1:]
    rows = []
    for shape in results["shapes"]:
        cells = [f"{shape['width']}", f"{shape['batch']}"]
        cells.append(question.digits(1e6 * shape["seconds"]["1"]["minimum"]))
        for n in others:
            times = speed_up(shape, n)
            cells.append(f"{times:.2f}× ({100 * times / n:.0f} %)")
        cells.append(f"{100 * shape['parallel_share']:.0f} %" if shape["is_shared"] else "too short to share")
        rows.append(cells)
    headings = ["width", "batch", "µs, 1 thread", *(f"{n} threads (efficiency)" for n in others), "Amdahl's share"]
    n = others[-1] if others else 1
    free = (
        f"Arithmetic that shares nothing went {results['free_cores'][str(n)]:.2f} times as fast on {n} threads at "
        "once, which is what the machine left free."
    )
    return f"{question.markdown_table(headings, rows)}\nThe bits were the same for every number of threads. {free}\n"


def draw(results: dict, path: Path) -> None:
    """Speed-up over threads with Amdahl's curves, and a map of the speed-up by all threads over batch and width."""
    with question.picture(path, 12.0, 4.8, "What more threads are worth") as figure:
        left, right = figure.subplots(1, 2)
        _draw_curves(left, results)
        _draw_map(figure, right, results)


def _draw_curves(axes, results: dict) -> None:
    threads, shapes = results["numbers_of_threads"], [s for s in results["shapes"] if s["is_shared"]]
    most = threads[-1]
    # a line for each width, at its largest batch
    chosen = list({shape["width"]: shape for shape in shapes}.values())
    fine = np.linspace(1, max(most, 1.01), 100)
    axes.plot([1, most], [1, most], "--", color=plotting.MUTED, linewidth=1.0, label="ideal")
    for shape, colour, marker in zip(chosen, plotting.PALETTE, "osD^v", strict=False):
        p = shape["parallel_share"]
        label = f"width {shape['width']}, batch {shape['batch']}: {100 * p:.0f} % divided"
        axes.plot(fine, 1 / (1 - p + p / fine), color=colour, linewidth=1.4)
        axes.plot(threads, [speed_up(shape, n) for n in threads], marker, color=colour, label=label)
    axes.set(xlabel="threads", ylabel="speed-up", title="Measured, and Amdahl's law fitted")
    axes.set_xticks(threads)
    axes.legend(loc="upper left")


def _draw_map(figure, axes, results: dict) -> None:
    n = results["numbers_of_threads"][-1]
    widths, batches = (sorted({shape[key] for shape in results["shapes"]}) for key in ("width", "batch"))
    values = np.ones((len(widths), len(batches)))
    shared = np.zeros(values.shape, bool)
    for shape in results["shapes"]:
        place = widths.index(shape["width"]), batches.index(shape["batch"])
        shared[place] = shape["is_shared"]
        values[place] = speed_up(shape, n) if shape["is_shared"] else 1.0
    image = axes.imshow(values, cmap="cividis", vmin=1.0, vmax=max(n, 1.5), aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(values):
        ink = plotting.INK if value > 0.5 * (1 + max(n, 1.5)) else "white"
        text = f"{value:.2f}×" if shared[row, column] else "one thread"
        axes.text(column, row, text, ha="center", va="center", color=ink)
    axes.set_xticks(range(len(batches)), batches)
    axes.set_yticks(range(len(widths)), widths)
    axes.set(xlabel="batch", ylabel="width", title=f"Speed-up by {n} threads")
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="times as fast as one thread")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
