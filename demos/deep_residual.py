"""Sixty layers, with and without residual connections: which network learns at all, and what the gradient does in it.

    python demos/deep_residual.py [--layers 60] [--epochs 20] [--output demos/output]

Four networks of 60 layers of 64 units learn to read digits: plain layers; the same with batch normalisation; pairs of
these with a residual connection around each (He et al., 2016); and pairs with layer normalisation at the start of the
branch, as transformers have it (Xiong et al., 2020). Adding x to f(x) gives the gradient a way around every pair, so
that it arrives at the first layer as large as it left the last. Without, plain layers learn haltingly, and batch
normalisation multiplies the gradient layer by layer until nothing is learnt at all (Yang et al., "A mean field theory
of batch normalization", 2019). Prints losses, accuracies and seconds and saves ``deep_residual.png``.

With ``--checkpoint-every 8`` the way back computes activations again instead of keeping them: the same numbers in less
memory.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import nbbp
from nbbp import datasets, plotting

WIDTH = 64
BATCH = 64
LEARNING_RATE = 1e-3


def dense():
    """A layer with its ReLU."""
    return [nbbp.Dense(WIDTH, activation="relu", weight_initializer="he_normal")]


def normalised():
    """A layer with batch normalisation in front of its ReLU."""
    return [nbbp.Dense(WIDTH), nbbp.BatchNorm(), nbbp.Activation("relu")]


#: What a pair of layers is made of, with and without a connection around it.
NETWORKS = {
    "plain": lambda: [*dense(), *dense()],
    "batch norm": lambda: [*normalised(), *normalised()],
    "batch norm, residual": lambda: [nbbp.Residual([*normalised(), nbbp.Dense(WIDTH), nbbp.BatchNorm()])],
    "layer norm, residual": lambda: [nbbp.Residual([nbbp.LayerNorm(), *dense(), nbbp.Dense(WIDTH)])],
}


def load(seed=0):
    """The digits, a fifth of them held out."""
    X, y = datasets.load_digits()
    X = (X - X.mean(axis=0)) / X.std()
    order = np.random.default_rng(seed).permutation(len(X))
    cut = len(X) * 4 // 5
    return X[order[:cut]], y[order[:cut]], X[order[cut:]], y[order[cut:]]


def gradient_norms(model, X, y):
    """Norm of the gradient of every weight in the sixty layers, from the first to the last, on one batch."""
    _, gradients = model.loss_and_gradients(X[:256], y[:256])
    weights = [name for name in gradients if name.endswith("weight")]
    return [np.linalg.norm(gradients[name]) for name in weights[1:-1]]


def draw(measured, histories):
    """Gradient norms before training on the left, training loss in the middle, accuracy on the right."""
    figure = plotting.new_figure(14.5, 4.8)
    left, middle, right = figure.subplots(1, 3)
    for place, name in enumerate(measured):
        colour = plotting.PALETTE[place]
        left.plot(np.arange(1, len(measured[name]) + 1), measured[name], color=colour, label=name)
        epochs = histories[name].epochs
        middle.plot(epochs, histories[name]["loss"], color=colour, label=name)
        right.plot(epochs, 100 * np.array(histories[name]["val_accuracy"]), color=colour, label=name)
    left.set(yscale="log", xlabel="layer", ylabel="norm of the weight's gradient, untrained")
    middle.set(yscale="log", xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="held-out digits read correctly (%)", ylim=(0, 102))
    left.legend(loc="upper right", fontsize=9.5)
    for axes in (middle, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{len(measured['plain'])} layers learn when the gradient has a way around them",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--checkpoint-every", type=int, help="keep the activations of every so many layers only")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    for option, least in (("layers", 2), ("epochs", 1)):
        if getattr(arguments, option) < least:
            parser.error(f"--{option} must be at least {least}")

    X, y, X_held_out, y_held_out = load()
    measured, histories = {}, {}
    print(f"{'':26s}{'parameters':>11s}{'loss':>9s}{'held out':>10s}{'seconds':>9s}   gradient, first : last layer")
    for name, pair in NETWORKS.items():
        pairs = [layer for _ in range(arguments.layers // 2) for layer in pair()]
        last = [nbbp.LayerNorm(), nbbp.Dense(10)] if "residual" in name else [nbbp.Dense(10)]
        layers = [*dense(), *pairs, *last]
        network = nbbp.Sequential(layers, n_in=64, checkpoint_every=arguments.checkpoint_every)
        optimizer = nbbp.Adam(LEARNING_RATE)
        model = nbbp.Model(network, loss="crossentropy", optimizer=optimizer, metrics=("accuracy",))
        measured[name] = gradient_norms(model, X, y)
        begin = time.perf_counter()
        histories[name] = history = model.fit(
            X, y, epochs=arguments.epochs, batch_size=BATCH, validation_data=(X_held_out, y_held_out), verbose=0
        )
        seconds = time.perf_counter() - begin
        accuracy = 100 * history["val_accuracy"][-1]
        ratio = measured[name][0] / measured[name][-1]
        print(
            f"{name:26s}{network.n_parameters:11,d}{history['loss'][-1]:9.4f}{accuracy:9.1f}%{seconds:9.1f}"
            f"   {ratio:.1e}"
        )
    picture = plotting.save(draw(measured, histories), arguments.output / "deep_residual.png")
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    with plotting.style():
        main()
