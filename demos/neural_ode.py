"""A network as the right-hand side of a differential equation, fitted to a noisy spiral through the integrator.

    python demos/neural_ode.py [--updates 3000] [--output demos/output]

The network is the velocity dx/dt = f(x) in the plane; a Runge-Kutta integrator in Numba asks it four times a step. The
loss compares where the integrator arrives with what was observed, and its gradient is that of the integrator's own
arithmetic, taken backward step by step (the discrete adjoint). Prints how close that gradient comes to central
differences and how the fit comes along; saves ``neural_ode.png``.

Observed are 200 positions in 20 s of dx/dt = A x³, a spiral as in Chen et al. (2018), with noise. Training integrates
windows of a second, each from an observation; the test integrates all 20 s from the true start.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
from numba import njit

import nbbp
from nbbp import plotting

N_OBSERVED, NOISE = 200, 0.05
INTERVAL, STEP = 0.1, 0.05  # s, between observations and of the integrator
PER_INTERVAL = round(INTERVAL / STEP)
WINDOW, BATCH, LEARNING_RATE = 10, 16, 0.03
N_STEPS = WINDOW * PER_INTERVAL  # of integration in a window
SHARES, WEIGHTS = (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)  # of the four stages of Runge and Kutta
START, TURN = np.array([2.0, 0.0]), np.array([[-0.1, 1.0], [-1.0, -0.1]])

layers = [nbbp.Dense(32, activation="tanh"), nbbp.Dense(32, activation="tanh"), nbbp.Dense(2)]
model = nbbp.Model(nbbp.Sequential(layers, n_in=2), loss="mse", dtype="float64", seed=0)
functions = model.as_njit()
velocity = functions.predict
# For a derivative g of anything by the velocity, this adds its derivative by the parameters and gives that by x.
backpropagate = functions.backpropagate


@njit
def step_forward(parameters, x, stages, slopes):
    """Move x (2,) on by a step; stages (4, 2) take where the network was asked, slopes (4, 2) its answers."""
    for s in range(4):
        for i in range(2):
            stages[s, i] = x[i] + SHARES[s] * STEP * slopes[s - 1, i]
        velocity(parameters, stages[s], slopes[s])
    for s in range(4):
        for i in range(2):
            x[i] += WEIGHTS[s] * STEP * slopes[s, i]


@njit
def step_backward(parameters, adjoint, stages, scratch, gradient):
    """Turn the loss's derivative by x after a step into that before it; the parameters' share is added to gradient."""
    slope_adjoint, stage_adjoint = scratch[0], scratch[1]
    after = adjoint[0], adjoint[1]
    for s in range(3, -1, -1):
        for i in range(2):
            slope_adjoint[i] = WEIGHTS[s] * STEP * after[i]
            if s < 3:
                slope_adjoint[i] += SHARES[s + 1] * STEP * stage_adjoint[i]
        backpropagate(parameters, stages[s], slope_adjoint, gradient, stage_adjoint)
        for i in range(2):
            adjoint[i] += stage_adjoint[i]


@njit
def loss_of_windows(parameters, observed, starts, gradient):
    """Mean squared distance over some windows of the observations, and its gradient by the parameters."""
    stages, slopes = np.empty((N_STEPS, 4, 2)), np.zeros((4, 2))  # the stages are what the way back needs
    scratch, x, adjoint = np.empty((2, 2)), np.empty(2), np.empty(2)
    misses = np.empty((WINDOW, 2))
    gradient[:] = 0.0
    loss, scale = 0.0, 1.0 / (len(starts) * WINDOW)
    for start in starts:
        x[:] = observed[start]
        for k in range(N_STEPS):
            step_forward(parameters, x, stages[k], slopes)
            if (k + 1) % PER_INTERVAL == 0:
                row = k // PER_INTERVAL
                misses[row] = x - observed[start + row + 1]
                loss += scale * (misses[row, 0] ** 2 + misses[row, 1] ** 2)
        adjoint[:] = 0.0
        for k in range(N_STEPS - 1, -1, -1):
            if (k + 1) % PER_INTERVAL == 0:
                adjoint += 2.0 * scale * misses[k // PER_INTERVAL]
            step_backward(parameters, adjoint, stages[k], scratch, gradient)
    return loss


@njit
def train(parameters, moments, observed, random, first, last, n_updates, losses):
    """Updates first … last - 1 of n by Adam, with a rate that falls to nothing; losses (n,) are written."""
    gradient, starts = np.empty_like(parameters), np.empty(BATCH, np.int64)
    for update in range(first, last):
        for b in range(BATCH):
            starts[b] = int(random.uniform(0, len(observed) - WINDOW))
        losses[update] = loss_of_windows(parameters, observed, starts, gradient)
        moments[0] += 0.1 * (gradient - moments[0])
        moments[1] += 0.01 * (gradient**2 - moments[1])
        rate = LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * update / n_updates))
        rate *= math.sqrt(1.0 - 0.99 ** (update + 1)) / (1.0 - 0.9 ** (update + 1))
        parameters -= rate * moments[0] / (np.sqrt(moments[1]) + 1e-8)


@njit
def integrate(parameters, start):
    """Positions (N_OBSERVED * PER_INTERVAL, 2), one for each step, the start being the first."""
    path, x, scratch = np.empty((N_OBSERVED * PER_INTERVAL, 2)), start.copy(), np.zeros((2, 4, 2))
    for row in range(len(path)):
        path[row] = x
        step_forward(parameters, x, scratch[0], scratch[1])
    return path


def true_path():
    """The same without network and noise, in steps so short that their error does not count."""
    path, x, short = np.empty((N_OBSERVED * PER_INTERVAL, 2)), START, STEP / 50
    for row in range(len(path)):
        path[row] = x
        for _ in range(50):
            half = x + short / 2 * TURN @ x**3
            x = x + short * TURN @ half**3
    return path


def error_of_gradient(parameters, observed, n=50):
    """The largest difference from central differences among some parameters, relative to the largest derivative."""
    gradient, unused = np.empty((2, len(parameters)))
    starts = np.arange(0, 160, 40)
    loss_of_windows(parameters, observed, starts, gradient)
    chosen, difference, h = np.random.default_rng(0).choice(len(parameters), n, replace=False), np.empty(n), 1e-5
    for k, p in enumerate(chosen):
        moved = np.array([parameters, parameters])
        moved[:, p] += h, -h
        high, low = (loss_of_windows(m, observed, starts, unused) for m in moved)
        difference[k] = (high - low) / (2 * h)
    return np.abs(difference - gradient[chosen]).max() / np.abs(difference).max()


def draw(truth, observed, fits, losses, parameters):
    """One picture: the plane with field, spiral and fits; a coordinate over time; the loss."""
    figure = plotting.new_figure(13.0, 7.0)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.0, 0.95], height_ratios=[1.0, 0.8])
    axes = figure.add_subplot(grid[:, 0])
    model.parameter_vector[:] = parameters  # the model predicts a batch at once
    side = np.linspace(-2.3, 2.3, 60)
    field = model.predict(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)).reshape(60, 60, 2)
    axes.streamplot(side, side, *np.moveaxis(field, 2, 0), color="#d3dae2", linewidth=0.8, arrowsize=0.8, density=1.3)
    axes.plot(*observed.T, "o", color=plotting.PALETTE[2], markersize=4, label="observed")
    axes.plot(*truth.T, color=plotting.INK, linewidth=1.0, label="true")
    axes.plot(*fits[max(fits)].T, color=plotting.VALIDATION, label="learnt, integrated from ○")
    axes.plot(*START, "o", color="white", markeredgecolor=plotting.VALIDATION, markersize=8, markeredgewidth=1.8)
    axes.set(aspect="equal", xlim=(-2.3, 2.3), ylim=(-2.3, 2.6), xlabel="x", ylabel="y", yticks=range(-2, 3))
    axes.grid(False)
    axes.legend(loc="upper center", ncols=3, fontsize=9)
    axes.set_title("the learnt field, and the way through it")

    axes = figure.add_subplot(grid[0, 1])
    seconds = STEP * np.arange(len(truth))
    axes.plot(seconds[::PER_INTERVAL], observed[:, 0], "o", color=plotting.PALETTE[2], markersize=3, label="observed")
    axes.plot(seconds, truth[:, 0], color=plotting.INK, linewidth=1.0, label="true")
    shades = [plotting.TRAINING, plotting.PALETTE[3], plotting.PALETTE[4], plotting.VALIDATION]
    for shade, (update, path) in zip(shades, fits.items(), strict=False):
        axes.plot(seconds, path[:, 0], color=shade, linewidth=1.4, label=f"after {update:,} updates")
    axes.set(xlabel="time (s)", ylim=(-1.9, 3.1), xlim=(0, 20), xticks=range(0, 21, 5), yticks=range(-1, 3))
    axes.legend(ncols=3, loc="upper center", fontsize=8.5)
    axes.set_title("x over time")

    axes = figure.add_subplot(grid[1, 1])
    distance, width = np.sqrt(losses), min(50, len(losses))
    axes.plot(np.arange(1, len(losses) + 1), distance, color=plotting.TRAINING, linewidth=0.5, alpha=0.6)
    smooth = np.convolve(distance, np.full(width, 1 / width), mode="valid")
    axes.plot(np.arange(width, len(losses) + 1), smooth, color=plotting.PALETTE[0], label=f"mean of {width} updates")
    axes.axhline(2 * NOISE, color=plotting.INK, linewidth=1.0, linestyle="--", label="noise of start and end")
    axes.set(yscale="log", xlabel="update", yticks=[0.1, 0.2, 0.5, 1.0])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend()
    axes.set_title("distance from the observations, a window ahead")
    return figure


def main():
    """Check the gradient, fit, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    if arguments.updates < 1:
        parser.error("--updates must be at least 1")
    n_updates = arguments.updates

    truth = true_path()
    random = np.random.default_rng(0)
    observed = truth[::PER_INTERVAL] + NOISE * random.standard_normal((N_OBSERVED, 2))
    parameters, losses = model.parameter_vector.copy(), np.empty(n_updates)
    moments, fits, seconds, first = np.zeros((2, len(parameters))), {}, 0.0, 0
    start = time.perf_counter()
    error = error_of_gradient(parameters, observed)
    train(parameters, moments, observed, random, 0, 0, n_updates, losses)
    print(f"compiled in {time.perf_counter() - start:.1f} s; {len(parameters):,} parameters")
    print(f"gradient through {N_STEPS} steps of integration, against central differences: {error:.1e} off")

    for last in (0, n_updates // 30, n_updates // 10, n_updates):
        start = time.perf_counter()
        train(parameters, moments, observed, random, first, last, n_updates, losses)
        seconds += time.perf_counter() - start
        first, fits[last] = last, integrate(parameters, START)
        off = np.sqrt(((fits[last] - truth) ** 2).sum(axis=1))
        print(f"after {last:5,} updates: {np.sqrt(np.mean(off**2)):.3f} off the true spiral in 20 s (root mean square)")
    per_stage = 1e6 * seconds / (n_updates * BATCH * N_STEPS * 4)
    print(f"{seconds:.1f} s: {per_stage:.2f} µs for each evaluation of the network, forward and backward")

    figure = draw(truth, observed, fits, losses, parameters)
    figure.suptitle(
        "A differential equation learnt from noisy positions, through a Runge-Kutta integrator",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    print(f"picture: {plotting.save(figure, arguments.output / 'neural_ode.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
