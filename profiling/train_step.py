"""How long one optimizer step takes: nbbp, PyTorch, JAX and scikit-learn side by side.

    python profiling/train_step.py                  the whole table, some minutes
    python profiling/train_step.py --quick          a rough one
    python profiling/train_step.py --rows 1 4 --threads 1 --peers nbbp jax-scan

A step is one as inside training: forward, loss, backward and Adam, ReLU, crossentropy, float32, every batch
fresh data; a small network also with tanh over 10,000 samples at once, and two of the others also with dropout, batch
and layer normalisation. nbbp is timed through ``fit``,
with its checks, shuffle and gather; the others are given their batches cut and converted beforehand. Whichever library
is not installed is left out. Each runs in processes of its own with the threads and cores set; before it is timed, its
losses over the first steps must agree with a float64 reference, from the same initial weights and on the same batches
(dropout at rate 0: every library draws its own masks). Repeats of all libraries interleave; the minimum and the median
are kept.

Beside them stands the arithmetic floor: the operations of the matrix products over the sgemm rate of this
machine, measured in the same run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from profiling import machine, report
from profiling.cases import (
    CASES,
    LOSS_TOLERANCE,
    VALIDATION_STEPS,
    Case,
    initial_parameters,
    reference_losses,
    training_data,
)
from profiling.digits import compare_digits
from profiling.peers import PEERS, SLOW_TO_START, WITHOUT_LAYERS
from profiling.peers.worker import PeerError, Worker, save_case

# Seconds between the runs of two peers: threads of the one before may wait in a loop for that long before they sleep.
SETTLING = 0.05


def start_workers(stack: ExitStack, peers: list[str], n_threads: int) -> dict[str, Worker]:
    """Start a process for each peer that is installed; the others are named on stderr and left out."""
    workers = {}
    for peer in peers:
        worker = stack.enter_context(Worker(peer, n_threads))
        version = worker("start")
        if version is None:
            print(f"{peer}: not installed, left out", file=sys.stderr)
        else:
            workers[peer] = worker
    return workers


def validate(case: Case, worker: Worker, reference: list[float]) -> None:
    """Raise PeerError unless the peer's first losses are the reference's within `LOSS_TOLERANCE`.

    A peer may give fewer losses than asked for, where its network is the same at the start only.
    """
    losses = worker("losses", len(reference))
    if not np.allclose(losses, reference[: len(losses)], rtol=LOSS_TOLERANCE, atol=0.0):
        raise PeerError(f"{worker.peer}: losses {losses} on {case.name}; the reference has {reference}")


def steps_within(worker: Worker, case: Case, seconds: float, least: int = 4) -> int:
    """How many steps the peer makes in about `seconds`, from `least` to as many as there are batches."""
    n = min(case.n_steps, least)
    while True:
        worker("compile", n)
        elapsed = worker("run", n)
        if n == case.n_steps or elapsed >= 0.2 * seconds:
            return min(case.n_steps, max(least, int(n * seconds / elapsed)))
        n = min(case.n_steps, max(4 * n, int(0.4 * n * seconds / elapsed)))


def time_case(
    case: Case, workers: dict[str, Worker], folder: Path, repeats: int, seconds: float
) -> dict[str, dict[str, object]]:
    """Validate every worker on `case`, then time them in turn `repeats` times.

    Returns
    -------
    dict
        Per peer: ``minimum`` and ``median`` in µs per step, ``steps`` in a run, and the ``runs`` in µs per
        step. A peer that fails is named on stderr and left out of this row.
    """
    parameters = initial_parameters(case)
    x, y = training_data(case)
    reference = reference_losses(case, parameters, x, y, VALIDATION_STEPS)
    file = folder / "case.npz"
    save_case(file, parameters, x, y)
    steps: dict[str, int] = {}
    for peer, worker in workers.items():
        if case.layer and peer in WITHOUT_LAYERS:
            continue
        try:
            worker.load(case, file)
            validate(case, worker, reference)
            steps[peer] = steps_within(worker, case, seconds)
            worker("compile", steps[peer])
        except PeerError as error:
            print(f"{case.name}: {error}", file=sys.stderr)
            steps.pop(peer, None)
    runs: dict[str, list[float]] = {peer: [] for peer in steps}
    for _ in range(repeats):
        for peer, n in steps.items():
            time.sleep(SETTLING)
            runs[peer].append(1e6 * workers[peer]("run", n) / n)
    return {
        peer: {"minimum": min(times), "median": median(times), "steps": steps[peer], "runs": times}
        for peer, times in runs.items()
    }


def time_calls(workers: dict[str, Worker], folder: Path, n_calls: int, repeats: int) -> dict[str, dict[str, float]]:
    """µs of calls from Python on the smallest network: ``predict_one``, and nbbp's ``step_from_python``."""
    case = CASES[0]
    parameters = initial_parameters(case)
    save_case(folder / "calls.npz", parameters, *training_data(case, n_calls))
    calls: dict[str, dict[str, float]] = {}
    for peer, methods in (
        ("nbbp", ("step_from_python", "predict_one", "run")),
        ("pytorch", ("predict_one",)),
    ):
        if peer not in workers:
            continue
        workers[peer].load(case, folder / "calls.npz")
        calls[peer] = {}
        for method in methods:
            times = [workers[peer](method, n_calls) for _ in range(repeats)]
            calls[peer][method] = 1e6 * min(times) / (n_calls if method == "run" else 1)
    return calls


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run everything that `arguments` ask for; the answer is what goes into the JSON file."""
    repeats, seconds = (3, 0.05) if arguments.quick else (9, 0.25)
    rows = [CASES[i - 1] for i in arguments.rows]
    results: dict[str, object] = {"machine": machine.describe(), "threads": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n_threads in arguments.threads:
            rates = [machine.sgemm_rates(n_threads)]
            with ExitStack() as stack:
                workers = start_workers(stack, arguments.peers, n_threads)
                table = {}
                for case in rows:
                    print(f"threads {n_threads}: {case.name}", file=sys.stderr, flush=True)
                    table[case.name] = time_case(case, workers, folder, repeats, seconds)
                if n_threads == 1 and not arguments.rows_only:
                    results["calls"] = time_calls(workers, folder, 2_000 if arguments.quick else 20_000, repeats)
                    if "scikit-learn" in workers:
                        results["digits"] = compare_digits(workers, folder, 2 if arguments.quick else 5)
            if not arguments.quick:
                rates.append(machine.sgemm_rates(n_threads))
            sgemm = {library: max(rate[library] for rate in rates) for library in rates[0]}
            results["threads"][str(n_threads)] = {"sgemm": sgemm, "rows": table}
    return results


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = range(1, len(CASES) + 1)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repeats")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        choices=numbers,
        default=list(numbers),
        metavar="N",
        help="; ".join(f"{i}: {case.name}" for i, case in enumerate(CASES, 1)),
    )
    parser.add_argument("--rows-only", action="store_true", help="neither calls from Python nor the fit on the digits")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)")
    usual = [peer for peer in PEERS if peer not in SLOW_TO_START]
    parser.add_argument(
        "--peers", nargs="+", choices=list(PEERS), default=usual, help="default: all but " + ", ".join(SLOW_TO_START)
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent / "results",
        help="folder for train_step.json, .md and .png (default: results beside this file)",
    )
    arguments = parser.parse_args(argv)
    if min(arguments.threads) < 1:
        parser.error(f"--threads takes numbers from 1 on, not {min(arguments.threads)}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the files. Returns 0."""
    arguments = parse(argv)
    results = measure(arguments)
    print(report.text(results))
    for file in report.write(results, arguments.output):
        print(f"wrote {file}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
