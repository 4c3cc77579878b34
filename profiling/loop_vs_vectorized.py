"""Which way of writing a dense layer is fastest where: plain loops, NumPy, BLAS, register tiles, or threads?

    python profiling/loop_vs_vectorized.py [--quick] [--output FOLDER]

One square layer, forward and backward (6 · batch · width² operations), over batch 1 … 4096 and width 4 … 2048, float32:

Python loops       lists and loops of plain Python, where a step takes less than a second
NumPy, by sample   NumPy, one row of the batch at a time, where a step takes less than a second
NumPy              NumPy, the whole batch at once
loops              nbbp/cpu/dense_variants.py: plain loops in jitted code, where a step takes less than a second
vectorized         BLAS from jitted code
fused              register tiles of explicit SIMD, one thread
parallel           fused, over blocks of rows on Numba's threads
engine             what nbbp runs: fused, cut and shared among threads by the crossovers of nbbp/tiling.py

Each is held against float64 NumPy before it is timed, in a process with one thread and one core, and those that can use
more also with one thread per core. The floor is the operations over the best sgemm rate of the machine on as many
threads. The engine chose wrongly where another way took less time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from profiling import dense_layer, dense_layer_picture, machine, question
from profiling.dense_layer_picture import fastest, loss, over_floor
from profiling.peers.worker import environment

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
WIDTHS = (4, 16, 64, 256, 1024, 2048)
QUICK_BATCHES, QUICK_WIDTHS = (1, 32, 512), (4, 64, 256)
#: Ways that are timed on one thread, and on several.
ALONE = tuple(way for way in dense_layer.WAYS if way != "parallel")
TOGETHER = tuple(way for way in dense_layer.WAYS if way not in dense_layer.SLOW)
#: Seconds of a step that slow ways are not asked to take.
LIMIT = 1.0
#: Largest loss against the best way that the engine's crossovers may cost.
WANTED = 0.10


def measure(
    quick: bool = False, batches: Sequence[int] | None = None, widths: Sequence[int] | None = None
) -> dict[str, object]:
    """Every way on every shape, on one thread and, unless `quick`, on one for each core."""
    batches, widths = batches or (QUICK_BATCHES if quick else BATCHES), widths or (QUICK_WIDTHS if quick else WIDTHS)
    settings = {
        "shapes": [(batch, width) for width in widths for batch in batches],
        "limit": LIMIT / 10 if quick else LIMIT,
        "seconds": 0.03 if quick else 0.3,
        "least_turns": 2 if quick else 3,
    }
    by_threads = {}
    for n_threads in (1,) if quick else sorted({1, question.n_cores()}):
        ways = ALONE if n_threads == 1 else TOGETHER
        by_threads[str(n_threads)] = {
            "sgemm": machine.sgemm_rates(n_threads),
            "shapes": _in_a_process({**settings, "ways": ways, "n_threads": n_threads}),
        }
    return {**question.conditions(), "by_threads": by_threads}


def _in_a_process(settings: dict[str, object]) -> list[dict]:
    """`dense_layer.time_shapes` in a process of so many threads; those of OpenMP sleep while they wait.

    (In a loop they would hold up everybody as soon as another process has one of the cores.)
    """
    done = subprocess.run(
        [sys.executable, "-m", "profiling.dense_layer", json.dumps(settings)],
        env={**environment(settings["n_threads"]), "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def table(results: dict) -> str:
    """µs of every way on every shape, the best in bold, and what the engine's choice costs."""
    parts = []
    for n_threads, measured in results["by_threads"].items():
        ways = ALONE if n_threads == "1" else TOGETHER
        rate = max(measured["sgemm"].values())
        threads = f"{n_threads} thread{'s' * (n_threads != '1')}"
        headings = [f"{threads}: width, batch", *ways, "engine's choice", "to the best other", "× floor"]
        rows = []
        for shape in measured["shapes"]:
            choice = f"{shape['plan']}, {shape['threads']} thread{'s' * (shape['threads'] > 1)}"
            costs = [f"{100 * loss(shape):+.0f} %", question.digits(over_floor(shape, rate))]
            rows.append([f"{shape['width']:,}, {shape['batch']:,}", *_cells(shape, ways), choice, *costs])
        parts += [question.markdown_table(headings, rows), f"{threads}: {verdict(measured['shapes'])}\n"]
    head = "µs of a step, forward and backward; the best of a row is bold.\n"
    return "\n".join([head, *parts, _floors(results)])


def _cells(shape: dict, ways: Sequence[str]) -> list[str]:
    """µs of each way, the best in bold, a dash for one that was left out."""
    best = min(each["minimum"] for each in shape["ways"].values())
    cells = []
    for name in ways:
        seconds = shape["ways"].get(name, {}).get("minimum")
        text = "–" if seconds is None else question.digits(1e6 * seconds)
        cells.append(f"**{text}**" if seconds == best else text)
    return cells


def _floors(results: dict) -> str:
    rates = "; ".join(
        f"{n} thread{'s' * (n != '1')}: {max(measured['sgemm'].values()):.0f}"
        for n, measured in results["by_threads"].items()
    )
    return f"The floor is the best sgemm of the machine, in GFLOP/s: {rates}."


def verdict(shapes: Sequence[dict]) -> str:
    """Where the engine chose wrongly by more than is wanted, and by how much at most."""
    wrong = sorted((shape for shape in shapes if loss(shape) > WANTED), key=loss, reverse=True)
    if not wrong:
        most = max(0.0, *(loss(shape) for shape in shapes))
        return f"the engine's choice costs at most {100 * most:.0f} % against the best other way."
    named = "; ".join(f"width {s['width']}, batch {s['batch']}: {100 * loss(s):.0f} % ({fastest(s)})" for s in wrong)
    return (
        f"the engine's choice costs more than {100 * WANTED:.0f} % against the best other way on {len(wrong)} of "
        f"{len(shapes)} shapes: {named}."
    )


def draw(results: dict, path: Path) -> None:
    """Maps over batch and width, a row of them per number of threads."""
    dense_layer_picture.draw(results["by_threads"], path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
