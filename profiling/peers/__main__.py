"""How long do training and inference take beside PyTorch, JAX, scikit-learn, TensorFlow and NumPy?

    python profiling/peers [--quick] [--output FOLDER]

Whichever are installed (``pip install -e ".[peers]"`` brings them all) run in processes of their own, on one thread and
on one per core. Training is that of ``profiling/train_step.py``, whose networks without other layers these are:
forward, loss, backward and Adam, every batch fresh data. Inference is a call from Python on rows that lie in the
library's own form already, to outputs that can be read: logits, of scikit-learn probabilities. Losses and outputs are
held against a float64 reference before anything is timed. Repeats of all libraries take turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

if __package__ in (None, ""):  # run as a script: two folders above lie both packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from nbbp import plotting
from profiling import machine, question, report, train_step
from profiling.cases import CASES, Case, initial_parameters, log_softmax, reference_log_probabilities, training_data
from profiling.peers import PEERS, SLOW_TO_START, WITHOUT_INFERENCE
from profiling.peers.worker import PeerError, Worker, save_case

TRAINED = tuple(case for case in CASES if not case.layer)
#: Networks that predict, and rows of a call.
PREDICTING, ROWS = (TRAINED[0], TRAINED[2], TRAINED[4]), (1, 32, 1024)
QUICK_TRAINED, QUICK_PREDICTING, QUICK_ROWS = TRAINED[1:3], TRAINED[2:3], (1, 32)
#: Repeats, seconds of a run that trains, and of one that predicts.
REPEATS, SECONDS, INFERENCE = 5, 0.12, 0.04
#: Rows whose outputs are compared, and how far logarithms of probabilities may be off.
N_COMPARED, TOLERANCE = 5, 1e-3


def validate_outputs(case: Case, worker: Worker, parameters: list[np.ndarray], x: np.ndarray) -> None:
    """Raise PeerError unless the peer gives the reference's probabilities."""
    given = log_softmax(np.array(worker("outputs", N_COMPARED), np.float64))
    expected = reference_log_probabilities(case, parameters, x[:N_COMPARED])
    if not np.allclose(given, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise PeerError(f"{worker.peer}: outputs {given} on {case.name}; the reference has {expected}")


def calls_within(worker: Worker, rows: int, seconds: float) -> int:
    """How many predictions the peer makes in about `seconds`, at least one."""
    n = 1
    while (elapsed := worker("infer", rows, n)) < 0.2 * seconds:
        n = max(2 * n, int(0.4 * n * seconds / max(elapsed, 1e-7)))
    return max(1, int(n * seconds / elapsed))


def time_inference(
    case: Case, workers: dict[str, Worker], folder: Path, rows: Sequence[int], repeats: int, seconds: float
) -> dict[str, dict[str, dict[str, float]]]:
    """By rows of a call and by peer: ``minimum`` and ``median`` of a call, in µs."""
    parameters, (x, y) = initial_parameters(case), training_data(case, -(-max(rows) // case.batch))
    file = folder / "inference.npz"
    save_case(file, parameters, x, y)
    ready = {}
    for peer, worker in workers.items():
        if peer in WITHOUT_INFERENCE:
            continue
        try:
            worker.load(case, file)
            validate_outputs(case, worker, parameters, x)
            ready[peer] = worker
        except PeerError as error:
            print(f"{case.name}, inference: {error}", file=sys.stderr)
    timed = {}
    for n_rows in rows:
        n_calls = {peer: calls_within(worker, n_rows, seconds) for peer, worker in ready.items()}
        runs: dict[str, list[float]] = {peer: [] for peer in ready}
        for _ in range(repeats):
            for peer, worker in ready.items():
                time.sleep(train_step.SETTLING)
                runs[peer].append(1e6 * worker("infer", n_rows, n_calls[peer]) / n_calls[peer])
        name = f"{'-'.join(map(str, case.sizes))}, {n_rows:,} row{'s' * (n_rows != 1)}"
        timed[name] = {peer: {"minimum": min(times), "median": median(times)} for peer, times in runs.items()}
    return timed


def measure(quick: bool, peers: Sequence[str] | None = None) -> dict[str, object]:
    """Both tables, for one thread and, unless `quick`, for one per core; of `peers`, or of all that are installed."""
    repeats, seconds, inference = (2, 0.03, 0.01) if quick else (REPEATS, SECONDS, INFERENCE)
    trained, predicting, rows = (QUICK_TRAINED, QUICK_PREDICTING, QUICK_ROWS) if quick else (TRAINED, PREDICTING, ROWS)
    peers = peers or [peer for peer in PEERS if not (quick and peer in SLOW_TO_START)]
    measured = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n_threads in [1] if quick else sorted({1, question.n_cores()}):
            row: dict[str, object] = {"sgemm": machine.sgemm_rates(n_threads), "rows": {}, "inference": {}}
            with ExitStack() as stack:
                workers = train_step.start_workers(stack, list(peers), n_threads)
                for case in trained:
                    print(f"threads {n_threads}: {case.name}", file=sys.stderr, flush=True)
                    row["rows"][case.name] = train_step.time_case(case, workers, folder, repeats, seconds)
                for case in predicting:
                    row["inference"] |= time_inference(case, workers, folder, rows, repeats, inference)
            measured[str(n_threads)] = row
    return {"measured": measured, **question.conditions()}


def table(results: dict) -> str:
    """Training and inference, for every number of threads; in brackets, times nbbp's."""
    blocks = []
    for n_threads, measured in results["measured"].items():
        held = report.threads_in_words(n_threads)
        trained = question.markdown_table(*report.step_table({"threads": results["measured"]}, n_threads))
        blocks.append(
            f"Training, µs per step, {held} (in brackets, times nbbp's; nbbp's times the floor's):\n\n{trained}"
        )
        peers = [peer for peer in PEERS if any(peer in row for row in measured["inference"].values())]
        rows = []
        for name, row in measured["inference"].items():
            ours = row.get("nbbp", {}).get("minimum")
            cells = [name]
            for peer in peers:
                time = row.get(peer, {}).get("minimum")
                ratio = f" ({report.ratio(time / ours)})" if time and ours and peer != "nbbp" else ""
                cells.append("–" if time is None else report.microseconds(time) + ratio)
            rows.append(cells)
        called = question.markdown_table(["network, rows of a call", *peers], rows)
        blocks.append(f"Inference, µs per call from Python, {held} (in brackets, times nbbp's):\n\n{called}")
    return "\n".join(blocks)


def draw(results: dict, path: Path) -> None:
    """A row of panels per number of threads: training and inference, every peer's time over nbbp's."""
    measured = results["measured"]
    n_rows = max(len(row["rows"]) + len(row["inference"]) for row in measured.values())
    height = 1.4 + len(measured) * (1.0 + 0.19 * n_rows)
    title = "Training and inference beside other libraries: their time over nbbp's"
    with question.picture(path, 13.0, height, title) as figure:
        all_axes = figure.subplots(len(measured), 2, squeeze=False)
        handles: dict[str, object] = {}
        for (n_threads, row), (left, right) in zip(measured.items(), all_axes, strict=True):
            handles |= _draw_ratios(left, row["rows"], f"A training step, {report.threads_in_words(n_threads)}")
            handles |= _draw_ratios(right, row["inference"], f"A prediction, {report.threads_in_words(n_threads)}")
        for axes in all_axes[-1]:
            axes.set_xlabel("times nbbp's time")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=9)


def _draw_ratios(axes, rows: dict, title: str) -> dict[str, object]:
    """A line per case, a point per peer; points by their label."""
    handles = {}
    rows = {name: row for name, row in rows.items() if "nbbp" in row}
    names = [name.replace(" b", ", batch ") for name in rows]
    others = [peer for peer in PEERS if peer != "nbbp"]
    handles["nbbp"] = axes.axvline(1.0, color=plotting.PALETTE[0], linewidth=1.6)
    for peer, colour, marker in zip(others, plotting.PALETTE[1:], "osD^vPX", strict=False):
        points = [
            (row[peer]["minimum"] / row["nbbp"]["minimum"], place)
            for place, row in enumerate(rows.values())
            if peer in row
        ]
        if points:
            (handles[peer],) = axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=6, alpha=0.9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_title(title)
    return handles


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
