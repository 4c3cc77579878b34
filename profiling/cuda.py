"""How long a training step and a prediction take on a GPU: nbbp, PyTorch (eager, compiled, as a CUDA graph) and JAX.

    python -m profiling.cuda                        everything, some minutes
    python -m profiling.cuda --rows 1 3 --peers nbbp torch-graph --repeats 3

A step is forward, loss, backward and Adam, ReLU, crossentropy, in float32 (tf32 is off) or in the row's precision,
which is everybody's then; every batch is other rows of data that lie on the GPU. nbbp is timed through ``fit``, with
its checks, shuffle and gather; the others get their batches cut beforehand. Whichever library is not installed, or
finds no GPU, is left out. Before it is timed, its losses over the first steps must agree with a float64 reference, as
far as the precision goes. Repeats interleave; the minimum is kept. Times are those of device events around work that
ends with the device idle, JAX's of the clock.

The roofline is what this GPU needs at least: the step's matrix products at its best measured rate in that precision, or
parameters, gradients, moments and activations (bf16: of 16 bits) once each way at its measured copy rate, whichever is
longer.

Writes ``profiling/results/cuda.md`` and ``cuda.json``, or to another ``--output`` folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from profiling.cases import LOSS_TOLERANCE, VALIDATION_STEPS, Case, initial_parameters, reference_losses, training_data
from profiling.cuda_peers import PEERS, Peer

#: The network that predicts, with rows of its batch, and how many samples per second it is to reach.
_SMALL = Case((64, 64, 64, 64, 64, 10), 1 << 20, 1, 1.0)
INFERENCE = {("float32", _SMALL): None, ("bf16", _SMALL): 2e9}
#: How far a precision's losses may be from the reference's, relatively.
TOLERANCES = {"float32": LOSS_TOLERANCE, "tf32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Row:
    """A case, and what it is to reach: at most so many µs, or so many times the best of the others."""

    case: Case
    microseconds: float | None = None
    ratio: float | None = None
    precision: str = "float32"

    @property
    def name(self) -> str:
        """The case's, with the precision."""
        return self.case.name + ("" if self.precision == "float32" else f" {self.precision}")

    @property
    def bytes_moved(self) -> int:
        """Parameters, gradients and both moments read and written; activations and their gradients once each way."""
        activations = self.case.batch * sum(self.case.sizes)
        return 4 * 8 * self.case.n_parameters + (2 if self.precision == "bf16" else 4) * 4 * activations


ROWS = (
    Row(Case((4, 16, 16, 2), 1, 20_000, 1.0), microseconds=10.0),
    Row(Case((4, 32, 32, 2), 32, 20_000, 1.0), microseconds=10.0),
    Row(Case((64, 64, 64, 64, 10), 1 << 10, 1_000, 3.0), ratio=3.0),
    Row(Case((64, 64, 64, 64, 10), 1 << 14, 100, 2.0), ratio=2.0),
    Row(Case((64, 64, 64, 64, 10), 1 << 18, 10, 1.5), ratio=1.5),
    Row(Case((784, 256, 10), 64, 1_000, 2.0), ratio=2.0),
    Row(Case((784, 256, 10), 4096, 40, 1.2), ratio=1.2),
    Row(Case((1024, 1024, 1024, 1024), 4096, 20, 0.8), ratio=0.8),
    Row(Case((1024, 1024, 1024, 1024), 4096, 20, 0.7), ratio=0.7, precision="tf32"),
    Row(Case((64, 64, 64, 64, 64, 10), 1 << 20, 10, 1.0), microseconds=1e6 * (1 << 20) / 5e8, precision="bf16"),
)


def validate(peer: Peer, case: Case, precision: str = "float32", n: int = VALIDATION_STEPS) -> None:
    """Hold the peer's first losses to the reference's.

    Raises
    ------
    ValueError
        If they differ by more than `TOLERANCES` allows.
    """
    few = min(n, case.n_steps)
    parameters, (x, y) = initial_parameters(case), training_data(case, few)
    expected = reference_losses(case, parameters, x, y, few)
    peer.load(case, parameters, x, y, precision)
    losses = peer.losses(few)
    if not np.allclose(losses, expected, rtol=TOLERANCES[precision], atol=0.0):
        raise ValueError(f"{peer.name}: losses {losses} on {case.name}; the reference has {expected}")


def measure(case: Case, peers: Sequence[Peer], repeats: int, precision: str = "float32") -> dict[str, float]:
    """µs per step of each peer, the minimum of interleaved repeats; one that fails is named and left out."""
    times: dict[str, float] = {}
    ready = []
    for peer in peers:
        try:
            validate(peer, case, precision)
            peer.load(case, initial_parameters(case), *training_data(case), precision)
            peer.compile(case.n_steps)
        except Exception as error:
            print(f"{peer.name}: left out of {case.name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        ready.append(peer)
    for _ in range(repeats):
        for peer in ready:
            seconds = peer.run(case.n_steps)
            times[peer.name] = min(times.get(peer.name, np.inf), 1e6 * seconds / case.n_steps)
    for peer in ready:
        peer.forget()
    return times


def roofline(row: Row, sgemm: float, copy: float) -> float:
    """µs that the row takes at least, from rates in operations and bytes per second."""
    return 1e6 * max(row.case.flops / sgemm, row.bytes_moved / copy)


def line(row: Row, times: dict[str, float], rates: dict[str, tuple[float, float] | None]) -> list[str]:
    """Cells of the table: the network, the roofline, every peer with its ratio to nbbp, what is wanted, the verdict.

    `rates` by precision.
    """
    ours = times.get("nbbp")
    others = [value for name, value in times.items() if name != "nbbp"]
    pair = rates.get(row.precision)
    least = roofline(row, *pair) if pair else None
    cells = [row.name, f"{least:.3g}" if least else "–"]
    for name in PEERS:
        if name not in times:
            cells.append("–")
        elif name == "nbbp":
            cells.append(f"{ours:.3g}" + (f" ({100 * least / ours:.0f} % of the roofline)" if least else ""))
        else:
            cells.append(f"{times[name]:.3g}" + (f" ({times[name] / ours:.2f}×)" if ours else ""))
    if row.microseconds is not None:
        wanted, reached = f"≤ {row.microseconds:g} µs", ours is not None and ours <= row.microseconds
    else:
        wanted = f"≥ {row.ratio:g}× the best"
        reached = ours is not None and bool(others) and min(others) / ours >= row.ratio
    return [*cells, wanted, "reached" if reached else "missed" if ours and (others or row.microseconds) else "–"]


def table(
    rows: Sequence[Row], measured: Sequence[dict[str, float]], rates: dict[str, tuple[float, float] | None]
) -> str:
    """Everything as Markdown."""
    headings = ["network, batch", "roofline", *PEERS, "wanted", ""]
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * len(PEERS) + "|---:|---|---|"]
    lines += ["| " + " | ".join(line(row, times, rates)) + " |" for row, times in zip(rows, measured, strict=True)]
    return "\n".join(["µs per training step; in brackets, times nbbp's:", "", *lines])


def inference(
    peers: Sequence[Peer], case: Case, repeats: int, precision: str = "float32", wanted: float | None = None
) -> list[str]:
    """Samples per second of prediction, a line for each peer; and whether nbbp's are as many as wanted."""
    lines = []
    for peer in peers:
        try:
            peer.load(case, initial_parameters(case), *training_data(case), precision)
            seconds = min(peer.predict() for _ in range(repeats + 1))
        except Exception as error:
            print(f"{peer.name}: no inference: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        rate = case.batch / seconds
        lines.append(f"{peer.name}: {rate:.3g} samples/s")
        if wanted is not None and peer.name == "nbbp":
            lines[-1] += f" (wanted ≥ {wanted:g}: {'reached' if rate >= wanted else 'missed'})"
        peer.forget()
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    from profiling import cuda_peers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(1, len(ROWS) + 1)), help="counted from 1")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args(arguments)
    peers = cuda_peers.installed(options.peers)
    rows = [ROWS[number - 1] for number in options.rows]
    rates = {precision: cuda_peers.rates(precision) for precision in dict.fromkeys(row.precision for row in rows)}
    measured = []
    for row in rows:
        measured.append(measure(row.case, peers, options.repeats, row.precision))
        print(row.name, {name: f"{value:.3g} µs" for name, value in measured[-1].items()}, flush=True)
    parts = [table(rows, measured, rates)]
    for (precision, case), wanted in INFERENCE.items():
        predicted = inference(peers, case, options.repeats, precision, wanted)
        parts.append(f"Prediction, {case.name} {precision}:\n\n" + "\n".join(f"- {found}" for found in predicted))
    parts.append(cuda_peers.conditions(peers, rates))
    text = "\n\n".join(parts) + "\n"
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "cuda.md").write_text(text, encoding="utf-8")
    named = {row.name: times for row, times in zip(rows, measured, strict=True)}
    (options.output / "cuda.json").write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
