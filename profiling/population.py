"""A thousand networks at once against a thousand times one: 8-16-1 (tanh), mse, Adam, batches of 32 of 1024 samples.

    python profiling/population.py [--quick] [--output profiling/results]

First members of a population are held against models trained alone, bit by bit, and the gradients against central
differences. Then one network's step in `Model.fit`, an epoch of the population on each number of threads, and PyTorch's
eager loop (fused Adam, one thread) are timed in turns, so that all see the same machine; the least time of each counts.
Wanted: an epoch of the population takes at most 1.1 times the steps of its networks, one after the other, divided by
the threads, and at least 20 times less than PyTorch, of which a few networks are trained and the others reckoned. Where
other processes hold the cores, a thread more shows in the time of the processors only, which is given beside.

Prints a table and saves it as ``population.md`` and ``population.json``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import nbbp
from profiling import question

N_IN, N_HIDDEN, N_SAMPLES, BATCH = 8, 16, 1024, 32
N_STEPS = N_SAMPLES // BATCH
WANTED_RATIO, WANTED_SPEEDUP = 1.1, 20.0
#: Networks, epochs of a call, seconds of the turns, networks that PyTorch trains.
FULL = {"size": 1000, "epochs": 10, "seconds": 30.0, "pytorch": 3}
QUICK = {"size": 20, "epochs": 2, "seconds": 0.2, "pytorch": 1}


def network() -> nbbp.Sequential:
    """What every member is."""
    return nbbp.Sequential([nbbp.Dense(N_HIDDEN, activation="tanh"), nbbp.Dense(1)], n_in=N_IN)


def samples() -> tuple[np.ndarray, np.ndarray]:
    """X (N_SAMPLES, N_IN) and y (N_SAMPLES, 1), float32: a wave with noise."""
    random = np.random.default_rng(0)
    X = random.standard_normal((N_SAMPLES, N_IN), dtype=np.float32)
    noise = 0.1 * random.standard_normal((N_SAMPLES, 1), dtype=np.float32)
    return X, np.sin(X[:, :1] + X[:, 1:2]) + noise


def make_population(size: int) -> nbbp.Population:
    """Every member with a seed and a learning rate of its own."""
    return nbbp.Population(network(), "mse", nbbp.Adam(), learning_rate=np.logspace(-4, -2, size))


def validate(size: int) -> None:
    """Raise AssertionError unless members get the bits of models alone, and these the right gradients."""
    (X, y), population = samples(), make_population(size)
    history = population.fit(X, y, epochs=2, batch_size=BATCH, verbose=0)
    for number in (0, size // 2, size - 1):
        member = population[number]
        model = nbbp.Model(network(), "mse", member.optimizer, seed=member.seed)
        assert model.check_gradients(X[:BATCH], y[:BATCH]).max_error < 1e-6
        expected = model.fit(X, y, epochs=2, batch_size=BATCH, verbose=0)
        assert history["loss"][:, number].tolist() == expected["loss"]
        assert member.parameter_vector.tobytes() == model.parameter_vector.tobytes()


def population_run(size: int, epochs: int, n_threads: int) -> Callable[[], np.ndarray]:
    """Seconds of an epoch of all members, on the clock and of the processors."""
    (X, y), population = samples(), make_population(size)

    def run() -> np.ndarray:
        nbbp.set_num_threads(n_threads)
        begin = np.array([time.perf_counter(), time.process_time()])
        population.fit(X, y, epochs=epochs, batch_size=BATCH, verbose=0)
        return (np.array([time.perf_counter(), time.process_time()]) - begin) / epochs

    return run


def model_run(epochs: int) -> Callable[[], float]:
    """Seconds of an epoch of one network."""
    (X, y), model = samples(), nbbp.Model(network(), "mse", nbbp.Adam(1e-3))

    def run() -> float:
        begin = time.perf_counter()
        model.fit(X, y, epochs=epochs, batch_size=BATCH, verbose=0)
        return (time.perf_counter() - begin) / epochs

    return run


def pytorch_run(n_networks: int) -> Callable[[], float] | None:
    """Seconds of an epoch of one network in PyTorch, eager; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    X, y = map(torch.from_numpy, samples())

    def run() -> float:
        seconds = []
        for _ in range(n_networks):
            layers = torch.nn.Linear(N_IN, N_HIDDEN), torch.nn.Tanh(), torch.nn.Linear(N_HIDDEN, 1)
            one = torch.nn.Sequential(*layers)
            optimizer = torch.optim.Adam(one.parameters(), lr=1e-3, fused=True)
            begin = time.perf_counter()
            for rows in torch.randperm(N_SAMPLES).split(BATCH):
                optimizer.zero_grad(set_to_none=True)
                torch.nn.functional.mse_loss(one(X[rows]), y[rows]).backward()
                optimizer.step()
            seconds.append(time.perf_counter() - begin)
        return min(seconds)

    return run


def measure(quick: bool) -> dict:
    """Every figure, by name."""
    settings = QUICK if quick else FULL
    size, epochs, pytorch = settings["size"], settings["epochs"], settings["pytorch"]
    before = nbbp.get_num_threads()
    validate(min(size, 50))
    begin = time.perf_counter()
    make_population(size)
    making = time.perf_counter() - begin
    runs: dict[str, Callable[[], float | np.ndarray]] = {"one network": model_run(20 * epochs)}
    threads = sorted({1, before})
    runs |= {f"population, {n} threads": population_run(size, epochs, n) for n in threads}
    peer = pytorch_run(pytorch)
    if peer is not None:
        runs["pytorch"] = peer
    best, stop = dict.fromkeys(runs, np.inf), time.perf_counter() + settings["seconds"]
    try:
        while True:
            best = {name: np.minimum(best[name], run()) for name, run in runs.items()}
            if time.perf_counter() > stop:
                break
    finally:
        nbbp.set_num_threads(before)
    return {
        **question.conditions(),
        "size": size,
        "making_seconds": making,
        "one_network_step_seconds": best["one network"] / N_STEPS,
        "pytorch_step_seconds": best["pytorch"] / N_STEPS if "pytorch" in best else None,
        "epoch_seconds": {str(n): best[f"population, {n} threads"][0] for n in threads},
        "processor_seconds": {str(n): best[f"population, {n} threads"][1] for n in threads},
    }


def table(results: dict) -> str:
    """The figures as Markdown."""
    size, step, peer = results["size"], results["one_network_step_seconds"], results["pytorch_step_seconds"]
    lines = [
        f"| {size} networks, an epoch | s | of their steps ÷ threads | in processor time | wanted | PyTorch | wanted |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for threads, seconds in results["epoch_seconds"].items():
        steps = size * N_STEPS * step
        ratio, busy = seconds / (steps / int(threads)), results["processor_seconds"][threads] / steps
        others = "" if peer is None else f"{size * N_STEPS * peer:.1f} s ({size * N_STEPS * peer / seconds:,.0f}×)"
        lines.append(
            f"| {threads} thread{'s' if threads != '1' else ''} | {seconds:.4f} | {ratio:.2f} | {busy:.2f} | "
            f"≤ {WANTED_RATIO} | {others} | ≥ {WANTED_SPEEDUP:.0f}× |"
        )
    in_pytorch = "" if peer is None else f", in PyTorch, one network after the other, {peer * 1e6:.0f} µs"
    return "\n".join(
        [
            *lines,
            "",
            (
                f"One network's step takes {step * 1e6:.2f} µs in `Model.fit`{in_pytorch}; making the population "
                f"{results['making_seconds']:.2f} s."
            ),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    raise SystemExit(main())
