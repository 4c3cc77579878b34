"""The same overfitting network with nothing, L1, L2, dropout and early stopping: curves side by side.

    python demos/regularization.py [--epochs 150] [--seeds 3] [--output demos/output]

A network of 64-256-256-10 learns 250 handwritten digits, a fifth of them mislabelled: enough parameters to know every
label by heart, the wrong ones too. Each panel is one way to hold it back; the loss on 800 digits that were held out
says whether it helps. Early stopping gives a fifth of the digits to watching: it goes back to the parameters with the
least loss there, and stops when there has been none smaller for a while. Prints final losses and errors and saves
``regularization.png``.
"""

import argparse
from pathlib import Path

import numpy as np

import nbbp
from nbbp import callbacks, datasets, plotting

SAMPLES, HELD_OUT = 250, 800
WRONG_LABELS = 0.2
HIDDEN, BATCH = 256, 32
LEARNING_RATE = 1e-3
PATIENCE = 15
METHODS = {
    "nothing": {},
    "L1": {"l1": 2e-3},
    "L2": {"weight_decay": 3e-2},
    "dropout": {"rate": 0.7},
    "early stopping": {"patience": PATIENCE},
}


def load(seed=0):
    """250 digits, a fifth mislabelled, and 800 with the right labels."""
    X, y = datasets.load_digits()
    X = (X - X.mean(axis=0)) / X.std()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(X))
    train, held_out = order[:SAMPLES], order[-HELD_OUT:]
    labels = y[train].copy()
    wrong = rng.random(SAMPLES) < WRONG_LABELS
    labels[wrong] = rng.integers(0, 10, np.count_nonzero(wrong))
    return X[train], labels, X[held_out], y[held_out]


def build(seed, rate=0.0, **penalties):
    """The network, with dropout behind each hidden layer or with penalties on the weights."""
    hidden = [layer for _ in range(2) for layer in (nbbp.Dense(HIDDEN, activation="relu"), nbbp.Dropout(rate))]
    network = nbbp.Sequential([*hidden, nbbp.Dense(10)], n_in=64)
    optimizer = nbbp.Adam(LEARNING_RATE, **penalties)
    return nbbp.Model(network, loss="crossentropy", optimizer=optimizer, metrics=("accuracy",), seed=seed)


class Curves(callbacks.Callback):
    """Reports the loss on these sets as the network stands after each epoch, with dropout at rest."""

    def __init__(self, **sets):
        self.sets = sets

    def on_epoch_end(self, run):
        run.report |= {name: run.model.evaluate(*data)["loss"] for name, data in self.sets.items()}


def train(epochs, data, seed, patience=None, **settings):
    """Losses on both sets after each epoch (2, epochs); error on the held-out digits; when it was best."""
    X, y, X_held_out, y_held_out = data
    model, n_watched = build(seed, **settings), SAMPLES // 5 if patience else 0
    X_watched, y_watched, X, y = X[:n_watched], y[:n_watched], X[n_watched:], y[n_watched:]
    used, watched = [Curves(training=(X, y), held_out=(X_held_out, y_held_out))], None
    if patience:
        used.append(callbacks.EarlyStopping("val_loss", patience))
        watched = X_watched, y_watched
    history = model.fit(X, y, epochs=epochs, batch_size=BATCH, validation_data=watched, callbacks=used, verbose=0)
    curves = np.full((2, epochs), np.nan)
    curves[:, : len(history.epochs)] = history["training"], history["held_out"]
    return curves, model.evaluate(X_held_out, y_held_out), used[-1].best_epoch if patience else epochs


def draw(measured, epochs):
    """One panel for each method: loss over epochs on training and held-out digits; bands span the seeds."""
    figure = plotting.new_figure(15.0, 4.4)
    panels = figure.subplots(1, len(METHODS), sharex=True, sharey=True)
    for axes, (name, runs) in zip(panels, measured.items(), strict=True):
        for row, label in enumerate(("training", "held out")):
            curves = np.array([run[0][row] for run in runs])
            shown = np.arange(1, epochs + 1)[np.isfinite(curves).all(axis=0)]
            curves = curves[:, shown - 1]
            colour = plotting.PALETTE[row]
            axes.fill_between(shown, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.18, linewidth=0)
            axes.plot(shown, curves.mean(axis=0), color=colour, label=label)
        if name == "early stopping":
            stop = np.mean([run[2] for run in runs])
            axes.axvline(stop, color="0.45", linestyle="--", linewidth=1.2)
            axes.annotate("goes back\nto here", (stop, 1.6), (6, 0), textcoords="offset points", fontsize=9)
        error = 100 * (1 - np.mean([run[1]["accuracy"] for run in runs]))
        axes.set_title(f"{name}\n{error:.1f} % misread", fontsize=11)
        axes.set_xlabel("epoch")
    panels[0].set(yscale="log", ylabel="crossentropy", ylim=(3e-3, 3))
    panels[0].legend(loc="center right")
    figure.suptitle(
        "A network that knows its labels by heart, held back in four ways",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3, help="networks for each method")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    for option in ("epochs", "seeds"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} must be at least 1")

    data, measured = load(), {}
    print(f"{'':16s}{'training loss':>15s}{'held-out loss':>15s}{'misread':>10s}")
    for name, settings in METHODS.items():
        runs = [train(arguments.epochs, data, seed, **settings) for seed in range(arguments.seeds)]
        measured[name] = runs
        training = np.mean([curves[0, epoch - 1] for curves, _, epoch in runs])  # of the parameters that are kept
        loss, accuracy = (np.mean([result[key] for _, result, _ in runs]) for key in ("loss", "accuracy"))
        print(f"{name:16s}{training:15.4f}{loss:15.4f}{100 * (1 - accuracy):9.1f}%")
    picture = plotting.save(draw(measured, arguments.epochs), arguments.output / "regularization.png")
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    with plotting.style():
        main()
