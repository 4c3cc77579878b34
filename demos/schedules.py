"""The shapes of all learning-rate schedules, and what they do: digits learnt from a rate that the range test suggests.

    python demos/schedules.py [--epochs 20] [--seeds 10] [--output demos/output]

Left, each schedule over 100 counts, of updates or of epochs. Right, above, the range test (Smith, 2017): a copy of the
network is trained at ever larger rates, and the one where its loss falls steepest is taken. Below, a network of
64-64-64-10 with dropout learns two thirds of the UCI digits from that rate: held at it, in steps, along a cosine, with
a rise in front, and in one cycle. A constant rate soon shakes around the minimum; all that fall come closer to it.
Prints final losses and errors on the digits that were held out, and saves ``schedules.png``.
"""

import argparse
from pathlib import Path

import numpy as np

import nbbp
from nbbp import datasets, plotting
from nbbp.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseTime,
    MultiStep,
    OneCycle,
    Plateau,
    Polynomial,
    ReduceOnPlateau,
    Step,
    WarmUp,
)

HELD_OUT, HIDDEN, BATCH = 600, 64, 16
DROPOUT, MOMENTUM = 0.3, 0.9
COUNTS = 100
SHAPES = (
    Constant(1.0),
    Step(1.0, every=25, factor=0.5),
    MultiStep(1.0, milestones=(50, 75), factor=0.3),
    Exponential(1.0, factor=0.96),
    InverseTime(1.0, decay=1.0, every=15),
    Polynomial(1.0, steps=90, power=2.0),
    Cosine(1.0, steps=90),
    CosineRestarts(1.0, steps=15, growth=2),
    OneCycle(1.0, steps=COUNTS),
    OneCycle(1.0, steps=COUNTS, three_phases=True, curve="linear"),
    WarmUp(Cosine(1.0, steps=80), steps=20),
    ReduceOnPlateau(1.0, factor=0.4, patience=10),
)
NAMES = ("step", "cosine", "warm-up, cosine", "one cycle")
COLOURS = {"constant": "#555b66", **dict(zip(NAMES, plotting.PALETTE[:4], strict=True))}


def load(seed=0):
    """Two thirds of the digits, and the others."""
    X, y = datasets.load_digits()
    X = (X - X.mean(axis=0)) / X.std()
    order = np.random.default_rng(seed).permutation(len(X))
    train, held_out = order[:-HELD_OUT], order[-HELD_OUT:]
    return X[train], y[train], X[held_out], y[held_out]


def build(learning_rate, seed=0):
    """The network, by stochastic gradient descent with momentum."""
    hidden = [layer for _ in range(2) for layer in (nbbp.Dense(HIDDEN, activation="relu"), nbbp.Dropout(DROPOUT))]
    network = nbbp.Sequential([*hidden, nbbp.Dense(10)], n_in=64)
    optimizer = nbbp.SGD(learning_rate, momentum=MOMENTUM)
    return nbbp.Model(network, loss="crossentropy", optimizer=optimizer, metrics=("accuracy",), seed=seed)


def methods(rate, steps):
    """What to compare, over so many updates."""
    rise = max(1, steps // 10)
    return {
        "constant": rate,
        "step": Step(rate, every=-(-steps // 3)),
        "cosine": Cosine(rate, steps=steps),
        "warm-up, cosine": WarmUp(Cosine(rate, steps=steps - rise), steps=rise),
        "one cycle": OneCycle(rate, steps=steps),
    }


def train(schedule, epochs, data, seed):
    """Loss and accuracy on the held-out digits after each epoch (2, epochs)."""
    X, y, *held_out = data
    history = build(schedule, seed).fit(
        X, y, epochs=epochs, batch_size=BATCH, validation_data=tuple(held_out), verbose=0
    )
    return history["val_loss"], history["val_accuracy"]


def shape(schedule):
    """The rates of a schedule over 100 counts; a plateau is told of a loss that falls and stalls, again and again."""
    if not isinstance(schedule, ReduceOnPlateau):
        return schedule.rates(range(COUNTS))
    state, reductions = Plateau(), []
    for epoch in range(COUNTS):
        reductions.append(state.reductions)
        # each drop of the rate lets the loss fall a little further
        state = schedule.observe(state, max(np.exp(-epoch / 10), 0.1 / (1 + state.reductions)))
    return schedule.rates(reductions)


def draw_shapes(figure):
    """A small panel for each schedule."""
    panels = figure.subplots(4, 3, sharex=True, sharey=True)
    for axes, schedule in zip(panels.flat, SHAPES, strict=True):
        name = type(schedule).__name__
        if getattr(schedule, "three_phases", False):
            name += ", 3 phases"
        rates = shape(schedule)
        axes.fill_between(range(COUNTS), rates, color=plotting.PALETTE[0], alpha=0.13, linewidth=0)
        axes.plot(rates, color=plotting.PALETTE[0])
        axes.set_title(name, fontsize=10, pad=5)
        axes.set(ylim=(0.0, 1.12), yticks=(0.0, 0.5, 1.0))
    for axes in panels[-1]:
        axes.set_xlabel("updates or epochs")
    for axes in panels[:, 0]:
        axes.set_ylabel("rate")


def draw(found, measured, epochs, seeds):
    """Shapes on the left, the range test and the held-out losses on the right."""
    figure = plotting.new_figure(14.0, 7.6)
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1.0), wspace=0.03)
    draw_shapes(left)
    above, below = right.subplots(2, 1, height_ratios=(1.0, 1.45))
    plotting.draw_learning_rates(above, found)
    above.set_title("The range test: the loss of a copy at growing rates")
    for name, runs in measured.items():
        losses, accuracies = runs.mean(axis=0)
        label = f"{name}: {100 * (1 - accuracies[-1]):.1f} % misread"
        marker = "o" if epochs == 1 else None
        below.plot(range(1, epochs + 1), losses, color=COLOURS[name], label=label, marker=marker)
    networks = "one network" if seeds == 1 else f"mean of {seeds} networks"
    below.set_title(f"Digits held out, {networks}")
    below.set(xlabel="epoch", ylabel="crossentropy")
    below.set_yscale("log", subs=(2, 5))
    below.xaxis.get_major_locator().set_params(integer=True)
    below.yaxis.set_major_formatter("{x:g}")
    below.yaxis.set_minor_formatter("{x:g}")
    below.legend()
    return figure


def main():
    """Find a rate, train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=10, help="networks for each schedule")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    for option in ("epochs", "seeds"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} must be at least 1")

    data, measured = load(), {}
    found = nbbp.find_learning_rate(build(0.01), *data[:2], batch_size=BATCH)
    print(f"rate that find_learning_rate suggests: {found.suggestion:.4f}\n")
    steps = arguments.epochs * -(-len(data[0]) // BATCH)
    print(f"{'':18s}{'held-out loss':>15s}{'misread':>10s}")
    for name, schedule in methods(found.suggestion, steps).items():
        runs = [train(schedule, arguments.epochs, data, seed) for seed in range(arguments.seeds)]
        measured[name] = np.array(runs)
        loss, accuracy = measured[name][..., -1].mean(axis=0)
        print(f"{name:18s}{loss:15.4f}{100 * (1 - accuracy):9.2f}%")
    picture = plotting.save(
        draw(found, measured, arguments.epochs, arguments.seeds), arguments.output / "schedules.png"
    )
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    with plotting.style():
        main()
