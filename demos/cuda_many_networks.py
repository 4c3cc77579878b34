"""A hundred thousand random networks evaluated inside one CUDA kernel: what functions they are before they learn.

    python demos/cuda_many_networks.py [--networks 100000] [--points 101] [--output demos/output]

A network of one hidden layer with independent random weights is a random function. With ever more hidden units the
distribution of its value at a point goes to a normal one (R. Neal, "Bayesian learning for neural networks", 1996,
chapter 2); with few it is far from that. Each thread of a kernel is one network, which it evaluates along a line with
the device function that ``model.as_cuda_device()`` gives. Prints, for 1, 4 and 64 hidden units, the excess kurtosis of
the values at a point (0 for a normal distribution) and the time, and saves ``cuda_many_networks.png``.

Needs an NVIDIA GPU and numba-cuda; or NUMBA_ENABLE_CUDASIM=1 and few networks.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numba import cuda, float32

import nbbp
from nbbp import plotting
from nbbp.placement import why_no_cuda

WIDTHS = (1, 4, 64)
WEIGHTS, BIASES = 3.0, 2.0
LIMIT = 2.0
THREADS = 128
SHOWN = 12


def parameters_of(network, n_networks, seed):
    """Random parameters of every network (n_networks, n_parameters); the last weights shrink with the width."""
    random = np.random.default_rng(seed)
    found = np.empty((n_networks, network.n_parameters), np.float32)
    n_hidden = network.nodes[0].n_out
    spreads = {"0.weight": WEIGHTS, "0.bias": BIASES, "1.weight": 1 / np.sqrt(n_hidden), "1.bias": 0.1}
    for parameter in network.parameters:
        shape = n_networks, parameter.size
        found[:, parameter.offset : parameter.stop] = spreads[parameter.name] * random.standard_normal(shape)
    return found


def evaluate(n_hidden, n_networks, points, seed):
    """Values of every network at every point (n_networks, len(points)), and the seconds of the kernel."""
    network = nbbp.Sequential([nbbp.Dense(n_hidden, activation="tanh"), nbbp.Dense(1)], n_in=1)
    functions = nbbp.Model(network, loss="mse").as_cuda_device()
    predict, n_scratch = functions.predict, functions.n_scratch

    @cuda.jit
    def kernel(parameters, points, values):
        i = cuda.grid(1)
        if i < parameters.shape[0]:
            scratch = cuda.local.array(n_scratch, float32)
            for k in range(points.shape[0]):
                predict(parameters[i], points[k : k + 1], values[i, k : k + 1], scratch)

    parameters = cuda.to_device(parameters_of(network, n_networks, seed))
    line, values = cuda.to_device(points), cuda.device_array((n_networks, len(points)), np.float32)
    launch = kernel[-(-n_networks // THREADS), min(THREADS, n_networks)]
    launch(parameters, line, values)  # compiles
    cuda.synchronize()
    begin = time.perf_counter()
    launch(parameters, line, values)
    cuda.synchronize()
    return values.copy_to_host(), time.perf_counter() - begin


def kurtosis(values):
    """Excess kurtosis: 0 for a normal distribution."""
    deviations = (values - values.mean()) / values.std()
    return np.mean(deviations**4) - 3.0


def draw(results, points):
    """Above, some of the networks and where most of them are; below, values in the middle beside a normal density."""
    figure = plotting.new_figure(12.0, 6.4)
    for column, (n_hidden, values) in enumerate(results.items()):
        above, below = (figure.add_subplot(2, len(results), 1 + column + row * len(results)) for row in (0, 1))
        low, high = np.quantile(values, (0.05, 0.95), axis=0)
        above.fill_between(points, low, high, alpha=0.25, linewidth=0, label="nine of ten")
        above.plot(points, values[:SHOWN].T, linewidth=0.9, alpha=0.8)
        above.set(title=f"{n_hidden} hidden unit{'s' * (n_hidden > 1)}", xlabel="x", ylim=(-3, 3))
        above.legend(loc="upper left")
        middle = values[:, len(points) // 2]
        below.hist(middle, bins=np.linspace(-3, 3, 121), density=True, alpha=0.5)
        grid = np.linspace(-3, 3, 200)
        spread = middle.std()
        below.plot(grid, np.exp(-0.5 * (grid / spread) ** 2) / (spread * np.sqrt(2 * np.pi)), label="normal")
        below.set(xlabel="value at x = 0", ylabel="density")
        below.legend(loc="upper left")
    title = f"{len(values):,} random networks of one hidden layer"
    figure.suptitle(title, fontsize=14, fontweight="bold", x=0.012, ha="left")
    return figure


def main():
    """Evaluate, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=101, help="along the line from -2 to 2")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    missing = why_no_cuda()
    if missing is not None:
        parser.exit(1, f"no GPU to run on: {missing}\n")
    points = np.linspace(-LIMIT, LIMIT, arguments.points, dtype=np.float32)
    results = {}
    for n_hidden in WIDTHS:
        values, seconds = evaluate(n_hidden, arguments.networks, points, seed=n_hidden)
        results[n_hidden] = values
        rate = values.size / seconds
        print(
            f"{n_hidden:3} hidden: excess kurtosis {kurtosis(values[:, len(points) // 2]):+.3f}; "
            f"{values.size:,} evaluations in {1e3 * seconds:.2f} ms, {rate:.3g} per second"
        )
    print(f"picture: {plotting.save(draw(results, points), arguments.output / 'cuda_many_networks.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
