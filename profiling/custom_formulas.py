"""Whether a formula of one's own costs what the built-in one costs: silu and the squared error written by hand.

    python profiling/custom_formulas.py [--quick]

Both are validated against float64 NumPy before they are timed, in turns, in float32 on one thread. The kernels run on
128 rows of 64 numbers that stay in cache; the step is one of a 64-64-64-10 network on 128 samples. Wanted are ratios of
at most 1.3.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import nbbp
from nbbp.program import Place, Program
from profiling import single_ops

BATCH, WIDTH = 128, 64
WIDTHS = (64, 64, 64, 10)
#: Seconds that the repeats of one row of the table take together.
BUDGET = 2.0
WANTED = 1.3

ACTIVATIONS = {
    "built in": nbbp.Activation("silu"),
    "custom": nbbp.activation(lambda z: z / (1 + np.exp(-z)), name="silu by hand"),
}
LOSSES = {
    "built in": nbbp.losses.MSE(),
    "custom": nbbp.loss(lambda prediction, target: (prediction - target) ** 2, name="squared error by hand"),
}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print the table; microseconds by row and by who."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter repeats")
    budget = BUDGET / 20 if parser.parse_args(arguments).quick else BUDGET
    nbbp.set_num_threads(1)
    rows = {
        "silu, forward": {who: activation_run(chosen, "forward") for who, chosen in ACTIVATIONS.items()},
        "silu, backward": {who: activation_run(chosen, "backward") for who, chosen in ACTIVATIONS.items()},
        "squared error": {who: loss_run(chosen) for who, chosen in LOSSES.items()},
        "training step": {who: step_run(ACTIVATIONS[who], LOSSES[who]) for who in ACTIVATIONS},
    }
    print(f"{'':<16}{'built in':>10}{'custom':>10}{'ratio':>8}   microseconds, at best")
    results = {}
    for name, runs in rows.items():
        results[name] = best = timed(runs, budget)
        ratio = best["custom"] / best["built in"]
        verdict = "" if ratio <= WANTED else f"   wanted {WANTED}"
        print(f"{name:<16}{best['built in']:>10.3g}{best['custom']:>10.3g}{ratio:>8.2f}{verdict}", flush=True)
    return results


def timed(runs: dict[str, tuple[Callable[[], object], int]], budget: float) -> dict[str, float]:
    """Microseconds of one step of each run, at best; they take turns, so that both see the same machine."""
    best, begin = dict.fromkeys(runs, np.inf), time.perf_counter()
    while time.perf_counter() - begin < budget:
        for who, (run, n_steps) in runs.items():
            started = time.perf_counter()
            run()
            best[who] = min(best[who], (time.perf_counter() - started) / n_steps * 1e6)
    return best


def activation_run(activation: nbbp.Activation, direction: str) -> tuple[Callable[[], object], int]:
    """The activation's kernel, validated; many steps at a time."""
    program = Program(BATCH)
    x, y = program.matrix("x", WIDTH), program.matrix("y", WIDTH)
    program.add(
        f"activation_{direction}", activation.formula.code,
        x=Place(x.buffer), x_stride=x.stride, y=Place(y.buffer), y_stride=y.stride, n_out=WIDTH,
        settings=program.setting(activation.parameter),
    )  # fmt: skip
    bound = single_ops.bind(program)
    numbers = np.random.default_rng(0).normal(0.0, 3.0, (2, len(bound.buffer("x"))))
    bound.buffer("x")[:], bound.buffer("y")[:] = numbers
    bound.run(BATCH)
    z, sigmoid = numbers[0], 1.0 / (1.0 + np.exp(-numbers[0]))
    expected = z * sigmoid if direction == "forward" else numbers[1] * (sigmoid + z * sigmoid * (1.0 - sigmoid))
    inside = np.arange(len(z)).reshape(BATCH, -1)[:, :WIDTH]
    np.testing.assert_allclose(bound.buffer("y")[inside], expected[inside], rtol=1e-5, atol=1e-6)
    bound.buffer("y")[:] = 0.0  # the backward kernel multiplies: let it not grow
    return lambda: bound.run(500 * BATCH), 500


def loss_run(loss: nbbp.losses.Loss) -> tuple[Callable[[], object], int]:
    """The loss's kernel with its gradient, validated; 64 steps at a time."""
    n = 64 * BATCH
    program = Program(BATCH)
    x, y = program.matrix("x", WIDTH), program.matrix("y", WIDTH)
    program.add(
        "loss", loss.formula.code,
        x=Place(x.buffer), x_stride=x.stride, y=Place(y.buffer), y_stride=y.stride, n_out=WIDTH,
        target=Place("target"), target_stride=WIDTH, row_values=Place("loss values"),
        settings=program.setting(loss.parameter, loss.scale, 1.0),
    )  # fmt: skip
    bound = single_ops.bind(program)
    random = np.random.default_rng(0)
    target, losses = random.standard_normal((n, WIDTH), dtype=np.float32), np.empty(n)
    prediction = bound.buffer("x").reshape(BATCH, -1)[:, :WIDTH]
    prediction[:] = random.standard_normal(prediction.shape)

    def run() -> None:
        bound.attach("target", target)
        bound.attach("loss values", losses)
        bound.run(n)

    run()
    errors = prediction.astype("f8") - target[-BATCH:]
    np.testing.assert_allclose(losses[-BATCH:], (errors**2).mean(axis=1), rtol=1e-5)
    gradient = bound.buffer("y").reshape(BATCH, -1)[:, :WIDTH]
    np.testing.assert_allclose(gradient, 2 * errors / errors.size, rtol=1e-4, atol=1e-9)
    return run, 64


def step_run(activation: nbbp.Activation, loss: nbbp.losses.Loss) -> tuple[Callable[[], object], int]:
    """A training step from Python, with SGD; its gradients validated by differences."""
    layers = [nbbp.Dense(width, activation) for width in WIDTHS[1:-1]]
    network = nbbp.Sequential([*layers, nbbp.Dense(WIDTHS[-1])], n_in=WIDTHS[0])
    model = nbbp.Model(network, loss, nbbp.SGD(1e-3))
    random = np.random.default_rng(0)
    x = random.standard_normal((BATCH, WIDTHS[0]), dtype=np.float32)
    y = random.standard_normal((BATCH, WIDTHS[-1]), dtype=np.float32)
    assert model.check_gradients(x, y, max_per_parameter=10).max_error < 1e-6
    model.train_step(x, y)  # compiles
    return lambda: model.train_step(x, y), 1


if __name__ == "__main__":
    main()
