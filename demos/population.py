"""Which learning rate for which width: a map of a thousand networks, trained at once.

    python demos/population.py [--size 1000] [--epochs 60] [--output demos/output]

Networks of two hidden tanh layers separate three noisy spiral arms. Each has a width, a learning rate of Adam and a
seed of its own; one `nbbp.Population` trains them all, a network per thread at a time. Prints how long it took and the
best of them, and saves ``population.png``: the accuracy on points that were held out over width and learning rate, and
what three of the networks make of the plane.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import nbbp
from nbbp import datasets, plotting

WIDEST = 64
LOWEST_RATE, HIGHEST_RATE = 1e-4, 1.0
HELD_OUT = 600


def load():
    """450 points to learn from, 600 held out, of three arms."""
    X, y = datasets.make_spiral(n_per_class=350, n_classes=3, noise=0.2, seed=1)
    return X[HELD_OUT:], y[HELD_OUT:], X[:HELD_OUT], y[:HELD_OUT]


def grid(size):
    """Learning rates and widths, evenly spaced on logarithmic axes, of which about `size` pairs can be made."""
    n_rates = max(1, round((1.6 * size) ** 0.5))
    n_widths = max(1, min(WIDEST, size // n_rates))
    widths = np.geomspace(1, WIDEST, n_widths)
    for k in range(1, n_widths):  # every width once: the narrow ones are then one apart
        widths[k] = max(round(widths[k]), widths[k - 1] + 1)
    return np.geomspace(LOWEST_RATE, HIGHEST_RATE, n_rates), widths.astype(int)


def train(rates, widths, epochs):
    """The population, a network for each pair, widths outermost; and the seconds that its training took."""
    network = nbbp.Sequential([nbbp.Dense(1, "tanh"), nbbp.Dense(1, "tanh"), nbbp.Dense(3, "softmax")], n_in=2)
    population = nbbp.Population(
        network,
        loss="crossentropy",
        optimizer="adam",
        metrics=("accuracy",),
        learning_rate=np.tile(rates, len(widths)),
        n_hidden=np.repeat(widths, len(rates)),
    )
    X, y, X_held_out, y_held_out = load()
    begin = time.perf_counter()
    population.fit(X, y, epochs=epochs, validation_data=(X_held_out, y_held_out), verbose=0)
    return population, time.perf_counter() - begin


def draw_map(axes, accuracy, rates, widths):
    """Accuracy (n_widths, n_rates) as a heat map; what a network that learned nothing has is the darkest."""
    across, up = (np.arange(len(values) + 1) - 0.5 for values in (rates, widths))
    mesh = axes.pcolormesh(across, up, 100 * accuracy, cmap="cividis", vmin=100 / 3, vmax=100)
    exponents = np.arange(np.log10(rates[0]), np.log10(rates[-1]) + 0.5)
    places = np.interp(exponents, np.log10(rates), np.arange(len(rates)))
    axes.set_xticks(places, [f"$10^{{{exponent:.0f}}}$" for exponent in exponents])
    shown = [k for k, width in enumerate(widths) if k % max(1, len(widths) // 9) == 0 or width == widths[-1]]
    axes.set_yticks(shown, [str(widths[k]) for k in shown])
    axes.set(xlabel="learning rate", ylabel="width of both hidden layers")
    axes.grid(False)
    bar = axes.figure.colorbar(mesh, ax=axes, label="held-out accuracy, %", pad=0.02)
    bar.outline.set_visible(False)


def chosen(accuracy):
    """Places (row, column) of the best network, of a wide one at the lowest and of one at the highest rate."""
    best = np.unravel_index(np.nanargmax(accuracy), accuracy.shape)
    n_rates, last = accuracy.shape[1], accuracy.shape[0] - 1
    return {
        "the best": best,
        "too slow": (last, n_rates // 8),
        "too fast": (last, n_rates - 1 - n_rates // 16),
    }


def draw(population, accuracy, rates, widths, seconds):
    """The map on the left, the plane of three networks beside it."""
    X, y, _, _ = load()
    figure = plotting.new_figure(12.0, 6.8)
    layout = figure.add_gridspec(3, 2, width_ratios=[2.9, 1.0])
    axes = figure.add_subplot(layout[:, 0])
    draw_map(axes, accuracy, rates, widths)
    for place, (name, (row, column)) in enumerate(chosen(accuracy).items()):
        letter = "ABC"[place]
        axes.plot(column, row, "o", markersize=15, color="white", markeredgecolor=plotting.INK)
        axes.text(column, row, letter, ha="center", va="center", fontsize=9, fontweight="bold", color=plotting.INK)
        beside = figure.add_subplot(layout[place, 1])
        plotting.draw_decision_regions(beside, population[row * len(rates) + column].predict, X, y)
        beside.set_title(
            f"{letter}   {name}: {100 * accuracy[row, column]:.1f} %\nwidth {widths[row]}, rate {rates[column]:.2g}",
            fontsize=9,
            pad=5,
        )
    figure.suptitle(
        f"Which learning rate for which width: {len(population)} networks, trained at once in {seconds:.1f} s",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1000, help="networks, about")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    for option in ("size", "epochs"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} must be at least 1")

    rates, widths = grid(arguments.size)
    population, seconds = train(rates, widths, arguments.epochs)
    accuracy = population.history["val_accuracy"][-1].reshape(len(widths), len(rates))
    best = population.best("val_accuracy")
    width, rate = (population.settings[name][best] for name in ("n_hidden", "learning_rate"))
    print(f"{len(population)} networks of widths 1 to {widths[-1]}, {arguments.epochs} epochs: {seconds:.1f} s")
    print(f"best held-out accuracy: {100 * np.nanmax(accuracy):.1f} % at width {width}, learning rate {rate:.2g}")
    good = np.nanmean(accuracy > 0.9, axis=1)
    for row in sorted({0, len(widths) // 4, len(widths) // 2, len(widths) - 1}):
        print(f"width {widths[row]:3d}: above 90 % at {100 * good[row]:3.0f} % of the learning rates")
    figure = draw(population, accuracy, rates, widths, seconds)
    print(f"\npicture: {plotting.save(figure, arguments.output / 'population.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
