"""What one sample costs inside a user's own jitted loop: forward, and forward with backward and an update.

    python profiling/sample_engine.py [--quick] [--output profiling/results]

Every function of ``model.as_njit()`` that is timed is first held against a float64 reference in NumPy. Then it runs in
an ``@njit`` loop over 64 samples in turn, one core, float32; the best of a second's repeats counts. Layers are dense
with tanh, the last one of a network linear. "Alone" is a layer whose calls may overlap in the processor, as those of
independent samples do; "in a chain" is a quarter of four such layers, which wait for each other. PyTorch, where it is
installed, makes the same updates one sample at a time.

Prints a table and saves it as ``sample_engine.md``, with ``sample_engine.json`` and a picture.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numba import njit

import nbbp
from nbbp import plotting
from profiling import question
from profiling.peers.worker import environment, keep_to_cores

SMALL = (4, 16, 16, 2)
DEEP = (64, 64, 64, 64, 10)
N_SAMPLES = 64
SEED = 0

#: What is timed and how many nanoseconds it may take; (sizes, whether the last layer is tanh too, share of the time).
ROWS = {
    "4-16-16-2: forward": (SMALL, False, 1, "forward", 50.0),
    "4-16-16-2: forward, backward, SGD": (SMALL, False, 1, "SGD", 170.0),
    "4-16-16-2: forward, backward, Adam": (SMALL, False, 1, "Adam", 300.0),
    **{
        f"{n}-{n}: forward of a layer, {how}": ((n,) * (1 + layers), True, layers, "forward", goal)
        for n, goal in ((16, 18.0), (32, 76.0), (64, 307.0))
        for how, layers in (("alone", 1), ("in a chain", 4))
    },
    "64-64-64-64-10: forward": (DEEP, False, 1, "forward", 600.0),
    "64-64-64-64-10: forward, backward, SGD": (DEEP, False, 1, "SGD", None),
    "64-64-64-64-10: forward, backward, Adam": (DEEP, False, 1, "Adam", None),
}

COMPILE = """
import time
import numpy as np
import nbbp

layers = [nbbp.Dense(16, activation="tanh"), nbbp.Dense(16, activation="tanh"), nbbp.Dense(2)]
model = nbbp.Model(nbbp.Sequential(layers, n_in=4), "mse", nbbp.Adam())
p, x, y = model.parameter_vector, np.zeros(4, "f4"), np.zeros(2, "f4")
begin = time.perf_counter()
functions = model.as_njit()
functions.predict(p, x, np.zeros(2, "f4"))
functions.loss_and_gradient(p, x, y, np.zeros_like(p))
functions.input_gradient(p, x, y, np.zeros(4, "f4"))
functions.backpropagate(p, x, y, np.zeros_like(p), np.zeros(4, "f4"))
functions.jacobian(p, x, np.zeros((2, 4), "f4"))
functions.train_step(p, np.zeros(functions.n_slots, "f4"), 1, x, y)
print(time.perf_counter() - begin)
"""


def make_model(sizes: tuple[int, ...], last_is_tanh: bool, optimizer: str) -> nbbp.Model:
    """The network of a row."""
    layers = [nbbp.Dense(n, activation="tanh") for n in sizes[1:-1]]
    layers.append(nbbp.Dense(sizes[-1], activation="tanh" if last_is_tanh else "linear"))
    rule = {"SGD": nbbp.SGD(1e-3), "Adam": nbbp.Adam(1e-4), "forward": nbbp.SGD(1e-3)}[optimizer]
    return nbbp.Model(nbbp.Sequential(layers, n_in=sizes[0]), "mse", rule, seed=SEED)


def samples(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """X (N_SAMPLES, n_in) and Y (N_SAMPLES, n_out), float32."""
    random = np.random.default_rng(SEED)
    return (
        (0.7 * random.standard_normal((N_SAMPLES, sizes[0]))).astype(np.float32),
        (0.3 * random.standard_normal((N_SAMPLES, sizes[-1]))).astype(np.float32),
    )


def reference(model: nbbp.Model, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Output and flat gradient of the mean squared error of one sample, in float64."""
    parameters = {name: np.float64(values) for name, values in model.parameters.items()}
    a, kept, n_layers = np.float64(x), [], len(model.network.layers)
    for k, layer in enumerate(model.network.layers):
        z = a @ parameters[f"{k}.weight"] + parameters[f"{k}.bias"]
        kept.append(a)
        a = np.tanh(z) if layer.activation.name == "tanh" else z
    out, d, gradients = a, 2 * (a - y) / len(y), []
    for k in reversed(range(n_layers)):
        if model.network.layers[k].activation.name == "tanh":
            d = d * (1 - a**2)
        gradients = [np.outer(kept[k], d).ravel(), d, *gradients]
        d, a = parameters[f"{k}.weight"] @ d, kept[k]
    return out, np.concatenate(gradients)


def updated(model: nbbp.Model, gradient: np.ndarray) -> np.ndarray:
    """Parameters after a first step with this gradient, in float64."""
    rate, start = model.optimizer.learning_rate, np.float64(model.parameter_vector)
    if model.optimizer.name == "sgd":
        return start - rate * gradient
    return start - rate * gradient / (np.abs(gradient) + model.optimizer.eps)


def validate(model: nbbp.Model) -> None:
    """Raise AssertionError unless the functions give what the reference gives."""
    functions, (X, Y) = model.as_njit(), samples((model.network.n_in, model.network.n_out))
    out, gradient = np.empty(functions.n_out, np.float32), np.empty(functions.n_parameters, np.float32)
    for x, y in zip(X[:4], Y[:4], strict=True):
        expected, expected_gradient = reference(model, x, y)
        functions.predict(model.parameter_vector, x, out)
        functions.loss_and_gradient(model.parameter_vector, x, y, gradient)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
        parameters = model.parameter_vector.copy()
        functions.train_step(parameters, np.zeros(functions.n_slots, np.float32), 1, x, y)
        # Adam's first step is as large for a gradient that is nearly nothing, whose sign may be rounding's
        clear = np.abs(expected_gradient) > 1e-5
        np.testing.assert_allclose(parameters[clear], updated(model, expected_gradient)[clear], rtol=1e-5, atol=1e-6)


def best_of(run: Callable[[int], object], n: int, seconds: float) -> float:
    """Nanoseconds per turn of ``run(n)``: the minimum over so many seconds."""
    run(10)
    best, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        begin = time.perf_counter()
        run(n)
        best = min(best, time.perf_counter() - begin)
    return best / n * 1e9


def time_row(model: nbbp.Model, what: str, n: int, seconds: float) -> float:
    """Nanoseconds per sample inside a jitted loop."""
    functions, (X, Y) = model.as_njit(), samples((model.network.n_in, model.network.n_out))
    predict, train_step = functions.predict, functions.train_step
    parameters, out = model.parameter_vector.copy(), np.empty(functions.n_out, np.float32)
    slots = np.zeros(functions.n_slots, np.float32)

    @njit
    def forward(parameters, out, n):
        for i in range(n):
            predict(parameters, X_of[i % N_SAMPLES], out)

    @njit
    def train(parameters, slots, n):
        for i in range(n):
            train_step(parameters, slots, i + 1, X_of[i % N_SAMPLES], Y_of[i % N_SAMPLES])

    X_of, Y_of = X, Y
    if what == "forward":
        return best_of(lambda n: forward(parameters, out, n), n, seconds)
    return best_of(lambda n: train(parameters, slots, n), n, seconds)


def time_pytorch(n: int, seconds: float) -> dict[str, float]:
    """Nanoseconds of SMALL in PyTorch, eager, one sample at a time; empty where it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)
    layers = [torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)]
    network, (X, Y) = torch.nn.Sequential(*layers), map(torch.from_numpy, samples(SMALL))

    def forward(n):
        with torch.inference_mode():
            for i in range(n):
                network(X[i % N_SAMPLES])

    def trainer(optimizer):
        def train(n):
            for i in range(n):
                optimizer.zero_grad(set_to_none=True)
                torch.nn.functional.mse_loss(network(X[i % N_SAMPLES]), Y[i % N_SAMPLES]).backward()
                optimizer.step()

        return train

    runs = {
        "forward": forward,
        "SGD": trainer(torch.optim.SGD(network.parameters(), lr=1e-3)),
        "Adam": trainer(torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)),
    }
    return {what: best_of(run, n, seconds) for what, run in runs.items()}


def time_partial_fit(n: int, seconds: float) -> float:
    """Nanoseconds of ``model.partial_fit`` from Python on SMALL with Adam."""
    model, (X, Y) = make_model(SMALL, False, "Adam"), samples(SMALL)
    x, y = X[0].copy(), Y[0].copy()

    def run(n):
        for _ in range(n):
            model.partial_fit(x, y)

    return best_of(run, n, seconds)


def time_compiling() -> tuple[float, float]:
    """Seconds until all six functions of SMALL have run once: with an empty cache, and in the next process."""
    with tempfile.TemporaryDirectory() as folder:
        variables = {**environment(1), "NUMBA_CACHE_DIR": folder}
        command = [sys.executable, "-c", COMPILE]
        runs = [subprocess.run(command, env=variables, capture_output=True, text=True, check=True) for _ in range(2)]
    return float(runs[0].stdout), float(runs[1].stdout)


def measure(quick: bool) -> dict:
    """Every figure, by name."""
    n, seconds = (200, 0.002) if quick else (10_000, 1.0)
    rows = {}
    for name, (sizes, last_is_tanh, layers, what, goal) in ROWS.items():
        model = make_model(sizes, last_is_tanh, what)
        validate(model)
        rows[name] = {"nanoseconds": time_row(model, what, n, seconds) / layers, "goal": goal}
    for what, nanoseconds in time_pytorch(max(20, n // 50), seconds).items():
        suffix = "forward" if what == "forward" else f"forward, backward, {what}"
        rows[f"4-16-16-2: {suffix}"]["pytorch"] = nanoseconds
    cold, cached = time_compiling()
    return {
        **question.conditions(),
        "rows": rows,
        "partial_fit_nanoseconds": time_partial_fit(n, seconds),
        "compile_seconds": {"cold": cold, "cached": cached},
    }


def table(results: dict) -> str:
    """The figures as Markdown."""
    lines = ["| one core, float32 | ns | wanted | PyTorch |", "|---|---:|---:|---:|"]
    for name, row in results["rows"].items():
        goal = "" if row["goal"] is None else f"≤ {row['goal']:.0f}"
        peer = "" if "pytorch" not in row else f"{row['pytorch']:,.0f} ({row['pytorch'] / row['nanoseconds']:.0f}×)"
        lines.append(f"| {name} | {row['nanoseconds']:,.1f} | {goal} | {peer} |")
    lines.append(f"| 4-16-16-2: partial_fit from Python, Adam | {results['partial_fit_nanoseconds']:,.0f} | ≤ 2000 | |")
    seconds = results["compile_seconds"]
    return "\n".join(
        [
            *lines,
            "",
            (
                f"Compiling all six functions of 4-16-16-2 takes {seconds['cold']:.2f} s (wanted ≤ 2), "
                f"{seconds['cached']:.3f} s from the cache (wanted ≤ 0.2)."
            ),
        ]
    )


def draw(results: dict, path: Path) -> None:
    """Bars of the rows, with what was wanted."""
    with question.picture(path, 9.0, 5.2, "One sample in a jitted loop") as figure:
        axes = figure.add_subplot()
        names = list(results["rows"])[::-1]
        times = [results["rows"][name]["nanoseconds"] for name in names]
        axes.barh(names, times, color=plotting.PALETTE[0], height=0.62)
        for place, (name, nanoseconds) in enumerate(zip(names, times, strict=True)):
            axes.text(nanoseconds / 1.06, place, f"{nanoseconds:,.0f}", va="center", ha="right", color="white")
            goal = results["rows"][name]["goal"]
            if goal is not None:
                label = "wanted, at most" if place == len(names) - 1 else None
                axes.plot([goal, goal], [place - 0.38, place + 0.38], color=plotting.VALIDATION, lw=2, label=label)
        axes.set_xscale("log")
        axes.set_xlim(5.0, 2.0 * max(times))
        axes.set_xlabel("nanoseconds per sample, one core, float32 (log scale)")
        axes.grid(False, axis="y")
        axes.legend(loc="upper right")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    keep_to_cores(1)
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    raise SystemExit(main())
