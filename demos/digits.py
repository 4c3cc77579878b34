"""Read handwritten digits: train on four fifths of 1,797 images, read the held-out fifth, five times over.

    python demos/digits.py [--seeds 5] [--epochs 40] [--device cpu] [--output demos/output]

Prints how many of the held-out images each network reads correctly and saves ``digits.png``: training and
validation curves, the confusion matrix and the digits that were misread.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import nbbp
from nbbp import datasets, plotting

SHOWN = 24


def train(X, y, seed, epochs, device):
    """Train one network; the seed draws the split, the initial weights and the order of the samples."""
    shuffled = np.random.default_rng(seed).permutation(len(X))
    held_out, rest = np.split(shuffled, [len(X) // 5])
    network = nbbp.Sequential(
        [
            nbbp.Dense(128, activation="relu", weight_initializer="he_normal"),
            nbbp.Dense(64, activation="relu", weight_initializer="he_normal"),
            nbbp.Dense(10),
        ],
        n_in=64,
    )
    model = nbbp.Model(
        network,
        loss=nbbp.losses.Crossentropy(label_smoothing=0.1),
        optimizer=nbbp.AdamW(learning_rate=1e-3, weight_decay=0.1),
        metrics=("accuracy",),
        device=device,
        seed=seed,
    )
    history = model.fit(
        X[rest],
        y[rest],
        epochs=epochs,
        batch_size=32,
        validation_data=(X[held_out], y[held_out]),
        verbose=0,
    )
    return model, history, held_out


def draw(histories, confusion, misread, X, y, accuracy):
    """One picture of everything: curves of every seed, the confusion matrix, the misread images."""
    rows = max(1, -(-min(len(misread), SHOWN) // 12))
    figure = plotting.new_figure(13.0, 5.4 + 1.3 * rows)
    top, bottom = figure.subfigures(2, 1, height_ratios=[5.0, 1.3 * rows])
    grid = top.add_gridspec(1, 3, width_ratios=[1.0, 1.0, 1.15])
    for column, name in enumerate(("loss", "accuracy")):
        axes = top.add_subplot(grid[0, column])
        for label, key, colour in (
            ("training", name, plotting.TRAINING),
            ("held out", f"val_{name}", plotting.VALIDATION),
        ):
            curves = np.array([history[key] for history in histories])
            epochs = histories[0].epochs
            axes.plot(epochs, curves.T, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(epochs, curves.mean(axis=0), color=colour, label=label)
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.grid(False, axis="x")
        axes.legend()
        if name == "accuracy":
            axes.set_ylim(0.88, 1.002)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes = top.add_subplot(grid[0, 2])
    plotting.draw_confusion_matrix(axes, confusion)
    axes.set_xlabel("read as")
    axes.set_ylabel("digit")
    axes.set_title(f"held-out images of {len(histories)} networks")

    bottom.suptitle(
        "Misread: what it is → what the network read, and how sure it was",
        fontsize=11,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    grid = bottom.add_gridspec(rows, 12)
    # The surest mistakes first: they say the most about the network, or about the writer.
    surest_first = sorted(misread.items(), key=lambda entry: entry[1], reverse=True)
    for place, (image, (sureness, read)) in enumerate(surest_first[:SHOWN]):
        axes = bottom.add_subplot(grid[place // 12, place % 12])
        title = f"{y[image]} → {read}  ({100 * sureness:.0f} %)"
        plotting.draw_image(axes, X[image].reshape(8, 8), title)
    figure.suptitle(
        f"Handwritten digits: {100 * accuracy:.1f} % of the held-out images read correctly",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many networks to train")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "auto"], help="cuda needs an NVIDIA GPU")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()

    X, y = datasets.load_digits()
    histories, accuracies, misread = [], [], {}
    confusion = np.zeros((10, 10), dtype=int)
    for seed in range(arguments.seeds):
        start = time.perf_counter()
        model, history, held_out = train(X, y, seed, arguments.epochs, arguments.device)
        seconds = time.perf_counter() - start
        probabilities = model.predict_proba(X[held_out])
        read = probabilities.argmax(axis=1)
        np.add.at(confusion, (y[held_out], read), 1)
        for row in np.flatnonzero(read != y[held_out]):
            image, sureness = held_out[row], probabilities[row].max()
            # An image that several networks misread is shown once, as the surest of them read it.
            misread[image] = max(misread.get(image, (0.0, None)), (sureness, read[row]))
        histories.append(history)
        accuracies.append(np.mean(read == y[held_out]))
        print(
            f"seed {seed}: {100 * accuracies[-1]:6.2f} % of {len(held_out)} held-out images read correctly "
            f"({seconds:.2f} s for {arguments.epochs} epochs)"
        )
    accuracy = np.mean(accuracies)
    print(f"mean:   {100 * accuracy:6.2f} % over {arguments.seeds} seeds; {len(misread)} images misread")

    figure = draw(histories, confusion, misread, X, y, accuracy)
    print(f"picture: {plotting.save(figure, arguments.output / 'digits.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
