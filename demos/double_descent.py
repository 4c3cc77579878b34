"""Test error over width, through the interpolation threshold: it falls, rises to a peak, and falls again.

    python demos/double_descent.py [--epochs 5000] [--seeds 3] [--output demos/output]

Networks of one hidden layer, 1 to 256 units wide, learn 200 handwritten digits of which a fifth carry a random label,
until nothing changes any more; the mean squared error is over ten outputs. Up to some width they cannot fit the wrong
labels, and the old trade-off between bias and variance holds. Around the width where they just can, at the latest
where there are as many parameters as numbers to fit (200 samples × 10 outputs), the few networks that fit are wild
ones. Beyond, there are many that fit, and training finds smoother and smoother ones. Prints and draws both errors for
plain training and with weight decay, which all but removes the peak. Saves ``double_descent.png``.

Belkin, Hsu, Ma and Mandal, "Reconciling modern machine-learning practice and the classical bias-variance trade-off",
PNAS 116 (2019); Nakkiran, Venkat, Kakade and Ma, "Optimal regularization can mitigate double descent", ICLR 2021.
"""

import argparse
from pathlib import Path

import numpy as np

import nbbp
from nbbp import datasets, plotting

SAMPLES = 200
HELD_OUT = 800
WRONG_LABELS = 0.2
LEARNING_RATE = 0.01
WIDTHS = (1, 2, 4, 6, 8, 10, 12, 14, 17, 20, 25, 32, 45, 64, 128, 256)
OPTIMIZERS = {
    "plain": nbbp.Adam(LEARNING_RATE),
    "weight decay": nbbp.AdamW(LEARNING_RATE, weight_decay=1.0),
}


def load(seed=0):
    """200 digits with some wrong labels, 800 with the right ones; targets are one-hot rows."""
    X, y = datasets.load_digits()
    X = (X - X.mean(axis=0)) / X.std()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(X))
    train, held_out = order[:SAMPLES], order[-HELD_OUT:]
    labels = y[train].copy()
    wrong = rng.random(SAMPLES) < WRONG_LABELS
    labels[wrong] = rng.integers(0, 10, np.count_nonzero(wrong))
    one_hot = np.eye(10)
    return X[train], one_hot[labels], X[held_out], one_hot[y[held_out]]


def errors(width, optimizer, epochs, data, seed):
    """Mean squared errors on both sets, and the share of held-out digits misread, of one trained network."""
    X, T, X_held_out, T_held_out = data
    layers = [nbbp.Dense(width, activation="relu", weight_initializer="he_normal"), nbbp.Dense(10)]
    model = nbbp.Model(nbbp.Sequential(layers, n_in=X.shape[1]), loss="mse", optimizer=optimizer, seed=seed)
    model.fit(X, T, epochs=epochs, batch_size=SAMPLES, verbose=0)
    misread = np.mean(model.predict(X_held_out).argmax(axis=1) != T_held_out.argmax(axis=1))
    return model.evaluate(X, T)["loss"], model.evaluate(X_held_out, T_held_out)["loss"], misread


def draw(measured, threshold):
    """Squared errors on the left, misread digits on the right, over the width; bands span the seeds."""
    figure = plotting.new_figure(12.0, 5.2)
    left, right = figure.subplots(1, 2)
    for place, (name, values) in enumerate(measured.items()):
        colour = plotting.PALETTE[place]
        for axes, column in ((left, 1), (right, 2)):
            found = values[:, :, column] * (100 if column == 2 else 1)
            axes.fill_between(WIDTHS, found.min(axis=1), found.max(axis=1), color=colour, alpha=0.18, linewidth=0)
            axes.plot(WIDTHS, found.mean(axis=1), "o-", color=colour, markersize=3.5, label=f"{name}, held out")
        left.plot(WIDTHS, values[:, :, 0].mean(axis=1), ":", color=colour, label=f"{name}, training")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.axvline(threshold, color="0.45", linestyle="--", linewidth=1.2)
        axes.set_xlabel("units in the hidden layer")
    right.annotate(
        "as many parameters\nas numbers to fit", (threshold, 76), (6, 0), textcoords="offset points",
        fontsize=9, color="0.35",
    )  # fmt: skip
    left.set(yscale="log", ylim=(1e-5, None), ylabel="mean squared error")
    right.set(ylabel="held-out digits misread (%)", ylim=(0, None))
    left.legend(loc="lower left", fontsize=9)
    right.legend(loc="lower left", fontsize=9)
    figure.suptitle(
        "Beyond the width that just fits every label, wider networks err less again",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5000, help="full-batch updates of each network")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each width")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    for option in ("epochs", "seeds"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} must be at least 1")

    data = load()
    threshold = (SAMPLES * 10 - 10) / (data[0].shape[1] + 1 + 10)
    measured = {}
    for name, optimizer in OPTIMIZERS.items():
        print(f"{name}\n{'width':>6s}{'parameters':>12s}{'training error':>16s}{'held-out error':>16s}{'misread':>9s}")
        rows = []
        for width in WIDTHS:
            seeds = range(arguments.seeds)
            rows.append([errors(width, optimizer, arguments.epochs, data, seed) for seed in seeds])
            training, held_out, misread = np.mean(rows[-1], axis=0)
            print(f"{width:6d}{75 * width + 10:12,d}{training:16.5f}{held_out:16.4f}{100 * misread:8.1f}%")
        measured[name] = np.array(rows)
        misread = measured[name][:, :, 2].mean(axis=1)
        print(f"worst width beyond 4 units: {WIDTHS[3 + int(misread[3:].argmax())]}\n")
    picture = plotting.save(draw(measured, threshold), arguments.output / "double_descent.png")
    print(f"picture: {picture}")


if __name__ == "__main__":
    with plotting.style():
        main()
