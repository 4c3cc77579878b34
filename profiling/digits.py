"""A whole fit on the handwritten digits, nbbp against scikit-learn's MLPClassifier with the same settings.

64-64-10, ReLU, crossentropy, Adam at 1e-3, batch 64, 30 epochs, no weight decay, float32; a fifth is held
out. Both are timed from the description of the network to the trained model, in their own processes, seed
after seed in turn.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median

import numpy as np

from nbbp.datasets import load_digits
from profiling.peers.worker import Worker

HIDDEN, BATCH, EPOCHS = 64, 64, 30


def save_digits(file: Path, seed: int = 0) -> None:
    """Write the shuffled digits, scaled to [0, 1]: ``x, y`` and a held-out fifth, ``x_test, y_test``."""
    x, y = load_digits()
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    n_test = len(x) // 5
    np.savez(file, x=x[n_test:], y=y[n_test:], x_test=x[:n_test], y_test=y[:n_test])


def compare_digits(workers: dict[str, Worker], folder: Path, seeds: int) -> dict[str, dict[str, float]]:
    """Per peer that can: seconds of the fit (minimum and median over `seeds`) and mean accuracy."""
    files = [folder / f"digits_{seed}.npz" for seed in range(seeds)]
    for seed, file in enumerate(files):
        save_digits(file, seed)
    able = [name for name in ("nbbp", "scikit-learn") if name in workers]
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in able}
    for name in able:
        workers[name]("fit_digits", str(files[0]), 0)
    for seed, file in enumerate(files):
        for name in able:
            runs[name].append(workers[name]("fit_digits", str(file), seed))
    return {
        name: {
            "minimum": min(seconds for seconds, _ in done),
            "median": median(seconds for seconds, _ in done),
            "accuracy": mean(accuracy for _, accuracy in done),
        }
        for name, done in runs.items()
    }
