"""Learn a stream one sample at a time, while what there is to learn changes.

    python demos/online.py [--samples 100000] [--output demos/output]

A target depends on one input, by a law that changes at once at two moments and drifts steadily in the last third. Every
sample is predicted before it is learnt, so the error over time is an honest one; ``partial_fit`` returns just that, the
loss before its update. A copy of the network that stops learning at the first change, and a running mean that never
looks at the input, stand beside it. The same stream is then learnt inside a jitted loop, with ``train_step`` of
``as_njit``. Prints errors and microseconds per sample both ways, and saves ``online.png``.
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np
from numba import njit

import nbbp
from nbbp import plotting

NOISE, N_MOMENTS = 0.1, 250  # N_MOMENTS: how often the picture looks at the network
GRID = np.linspace(-2.0, 2.0, 81, dtype=np.float32)


def new_model():
    """The network, always with the same initial weights."""
    hidden = [nbbp.Dense(32, activation="silu", weight_initializer="he_normal") for _ in range(2)]
    network = nbbp.Sequential([*hidden, nbbp.Dense(1)], n_in=1)
    return nbbp.Model(network, loss="mse", optimizer=nbbp.Adam(learning_rate=2e-3), seed=0)


functions = new_model().as_njit()
train_step = functions.train_step


@njit
def learn(parameters, slots, X, Y, losses):
    """The whole stream in machine code; losses (n,) takes the squared error of each sample before its update."""
    for k in range(len(X)):
        losses[k] = train_step(parameters, slots, k + 1, X[k], Y[k])


def law(share, x):
    """The target without noise at a share 0 … 1 of the stream; both may be arrays."""
    laws = np.sin(3.0 * x), 0.5 * x**2 - 1.0, np.cos(3.0 * x - 40.0 * (share - 2 / 3))
    return np.select([share < 1 / 3, share < 2 / 3], laws[:2], laws[2])


def moving_root_mean(squares, width):
    """Root of the mean of the last `width` values, one for each place that has as many before it."""
    sums = np.concatenate(([0.0], np.cumsum(squares, dtype=np.float64)))
    return np.sqrt((sums[width:] - sums[:-width]) / width)


def draw_law(axes, image, n, title):
    """Colours for the target of every input at every moment."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("target", [plotting.PALETTE[1], "white", plotting.PALETTE[0]])
    extent = (0.0, n / 1000, GRID[0], GRID[-1])
    drawn = axes.imshow(image.T, origin="lower", aspect="auto", extent=extent, cmap=colours, vmin=-1.2, vmax=1.2)
    axes.set(ylabel="input", yticks=(-2, 0, 2))
    axes.grid(False)
    axes.set_title(title)
    return drawn


def draw(true, learnt, errors, width, times):
    """One picture: the law, what the network makes of it, the errors, all over the same samples."""
    n = len(errors["learns on"])
    figure = plotting.new_figure(12.5, 8.6)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=[1.0, 1.0, 1.9])
    draw_law(panels[0], true, n, "the law that gives the target: changed twice, then drifting")
    drawn = draw_law(panels[1], learnt, n, "what the network makes of it, a sample at a time")
    figure.colorbar(drawn, ax=panels[:2], label="target", ticks=(-1, 0, 1), aspect=14, pad=0.01)

    axes = panels[2]
    colours = plotting.PALETTE[1], plotting.PALETTE[4], plotting.MUTED
    for (name, squares), colour in zip(errors.items(), colours, strict=True):
        along = np.arange(width, n + 1) / 1000
        axes.plot(
            along, moving_root_mean(squares, width), color=colour, label=name, zorder=3 if name == "learns on" else 2
        )
    axes.axhline(NOISE, color=plotting.INK, linestyle="--", linewidth=1.0, label="noise: nobody does better")
    for share, text in ((1 / 3, "law changes"), (2 / 3, "changes again,\nand drifts from here")):
        axes.axvline(share * n / 1000, color=plotting.INK, linewidth=0.8)
        axes.text(share * n / 1000 + 0.004 * n / 1000, 2.4, text, va="top", fontsize=9)
    axes.set(yscale="log", ylim=(0.07, 2.6), xlim=(0, n / 1000), xlabel="samples (thousands)")
    axes.set(yticks=(0.1, 0.2, 0.5, 1.0, 2.0))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend(loc="lower center", ncols=4, fontsize=9, bbox_to_anchor=(0.5, -0.32))
    axes.set_title(f"error of predictions made before learning (root mean square of {width:,} samples)")
    python, compiled = times
    figure.suptitle(
        f"A stream learnt sample by sample: {python:.1f} µs each from Python, {compiled:.2f} µs in an @njit loop",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Learn the stream twice, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    n = arguments.samples
    if n < 3 * N_MOMENTS:
        parser.error(f"--samples must be at least {3 * N_MOMENTS}")

    random = np.random.default_rng(0)
    share = np.arange(n)[:, None] / n
    X = random.uniform(-2.0, 2.0, (n, 1)).astype(np.float32)
    Y = (law(share, X) + NOISE * random.standard_normal((n, 1))).astype(np.float32)

    new_model().partial_fit(X[:2], Y[:2])  # compiles
    model = new_model()
    losses, learnt, seconds, frozen = np.empty(n), [], 0.0, None
    for samples in np.array_split(np.arange(n), N_MOMENTS):
        start = time.perf_counter()
        for k in samples:
            losses[k] = model.partial_fit(X[k], Y[k])
        seconds += time.perf_counter() - start
        learnt.append(model.predict(GRID[:, None])[:, 0])
        if samples[-1] < n // 3:
            frozen = copy.deepcopy(model)

    parameters, slots, again = new_model().parameter_vector, np.zeros(functions.n_slots, np.float32), np.empty(n)
    learn(parameters, slots, X[:0], Y[:0], again)  # compiles
    start = time.perf_counter()
    learn(parameters, slots, X, Y, again)
    compiled = time.perf_counter() - start

    before = np.concatenate(([0.0], np.cumsum(Y[:-1], dtype=np.float64)))
    recent = before - np.concatenate((np.zeros(1000), before))[:n]  # sums of the 1,000 targets before each
    mean = recent / np.clip(np.arange(n), 1, 1000)
    errors = {
        "learns on": losses,
        "stops learning before the change": np.where(share < 1 / 3, losses[:, None], (frozen.predict(X) - Y) ** 2)[
            :, 0
        ],
        "mean of the last 1,000 targets": (mean - Y[:, 0]) ** 2,
    }
    print(f"root mean square error over {n:,} samples, noise {NOISE}:")
    print(f"{'':34s}{'first law':>12s}{'second law':>12s}{'drifting':>12s}")
    for name, squares in errors.items():
        print(f"{name:34s}" + "".join(f"{np.sqrt(part.mean()):12.3f}" for part in np.array_split(squares, 3)))
    times = 1e6 * seconds / n, 1e6 * compiled / n
    print(f"partial_fit from Python: {times[0]:.2f} µs per sample; train_step in an @njit loop: {times[1]:.2f} µs")
    both = [np.sqrt(np.mean(squares)) for squares in (losses, again)]
    print(f"errors of the two runs, which round differently: {both[0]:.4f}, {both[1]:.4f}")

    true = law((np.arange(N_MOMENTS)[:, None] + 1) / N_MOMENTS, GRID)
    figure = draw(true, np.array(learnt), errors, max(1, n // 100), times)
    print(f"picture: {plotting.save(figure, arguments.output / 'online.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
