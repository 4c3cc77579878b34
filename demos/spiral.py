"""Watch a decision boundary form: three spiral arms, separated by a network of two hidden layers.

    python demos/spiral.py [--epochs 300] [--output demos/output]

Prints loss and accuracy as training goes on and saves ``spiral.png``: what the network thinks of every point
of the plane, at six moments, and the loss between them.
"""

import argparse
from pathlib import Path

import numpy as np

import nbbp
from nbbp import datasets, plotting


def moments(epochs):
    """Six epochs at which to look, close together at first: that is when most happens."""
    return [
        0,
        *(max(k, round(epochs * share)) for k, share in enumerate((0.01, 0.07, 0.12, 0.3, 1.0), start=1)),
    ]


def main():
    """Train in stages, print and draw each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    if arguments.epochs < 5:
        parser.error("--epochs must be at least 5, one for each picture")

    X, y = datasets.make_spiral(n_per_class=150, n_classes=3, noise=0.2, seed=1)
    network = nbbp.Sequential(
        [nbbp.Dense(64, activation="tanh"), nbbp.Dense(64, activation="tanh"), nbbp.Dense(3)], n_in=2
    )
    model = nbbp.Model(
        network,
        loss="crossentropy",
        optimizer=nbbp.AdamW(learning_rate=3e-3),
        metrics=("accuracy",),
        seed=0,
    )

    figure = plotting.new_figure(10.5, 9.6)
    grid = figure.add_gridspec(3, 3, height_ratios=[1.0, 1.0, 0.62])
    losses = []
    for place, epoch in enumerate(moments(arguments.epochs)):
        if epoch:
            losses += model.fit(X, y, epochs=epoch - len(losses), batch_size=32, verbose=0)["loss"]
        now = model.evaluate(X, y)
        print(f"epoch {epoch:4d}: loss {now['loss']:.4f}, accuracy {100 * now['accuracy']:6.2f} %")
        axes = figure.add_subplot(grid[place // 3, place % 3])
        plotting.draw_decision_regions(axes, model.predict_proba, X, y)
        axes.set_title(f"epoch {epoch}:  {100 * now['accuracy']:.0f} %")

    axes = figure.add_subplot(grid[2, :])
    epochs = np.arange(1, len(losses) + 1)
    axes.plot(epochs, losses, color=plotting.PALETTE[0])
    looked_at = np.array(moments(arguments.epochs)[1:])
    axes.plot(looked_at, np.array(losses)[looked_at - 1], "o", color=plotting.VALIDATION, label="the moments above")
    axes.set_yscale("log")
    axes.set_title("training loss")
    axes.set_xlabel("epoch")
    axes.legend()
    figure.suptitle("A decision boundary forms", fontsize=14, fontweight="bold", x=0.012, ha="left")
    print(f"picture: {plotting.save(figure, arguments.output / 'spiral.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
