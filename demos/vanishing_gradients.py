"""Follow the gradient through 20 hidden layers: where it vanishes, and which weights keep it alive.

    python demos/vanishing_gradients.py [--layers 20] [--output demos/output]

For three activations under three ways to draw the initial weights: the norm of the gradient that arrives at each
layer, and the norm of the gradient of that layer's weights. Prints both for the first and the last hidden layer
and saves ``vanishing_gradients.png``.

Going back through one layer multiplies the gradient by the transposed weights and by the activation's
derivative. Weights too small, or a derivative below one (a sigmoid's is at most 1/4), shrink it 20 times in a
row. Weights too small shrink the activations on their way forward as well, and the gradient of a weight is the
one times the other: then every layer has too little of it. Glorot and Bengio (2010) choose the variance
2 / (n_in + n_out), which keeps the size of both under tanh; He et al. (2015) choose 2 / n_in, because ReLU lets
half of it through.
"""

import argparse
from pathlib import Path

import numpy as np

import nbbp
from nbbp import datasets, plotting

WIDTH = 64
SEEDS = 5
SAMPLES = 16
ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU"}
WEIGHTS = {
    "random (normal, 0.05)": nbbp.initializers.Normal(deviation=0.05),
    "Xavier (Glorot)": nbbp.initializers.get("glorot_normal"),
    "He": nbbp.initializers.get("he_normal"),
}


ROWS = ("gradient that arrives at the layer", "gradient of the layer's weights")


def gradient_norms(activation, weights, n_layers, X, y, seed):
    """Mean norms of both gradients over single samples, in a network that has not been trained: (2, n_layers)."""
    hidden = [nbbp.Dense(WIDTH, activation, weight_initializer=weights) for _ in range(n_layers)]
    network = nbbp.Sequential([*hidden, nbbp.Dense(10, weight_initializer=weights)], n_in=X.shape[1])
    model = nbbp.Model(network, loss="crossentropy", dtype="float64", seed=seed)
    norms = np.zeros((2, n_layers))
    for sample in range(len(X)):
        _, gradients = model.loss_and_gradients(X[sample : sample + 1], y[sample : sample + 1])
        for layer in range(n_layers):
            # A bias is added to x @ weight, so on one sample its gradient is the gradient that arrives there.
            norms[0, layer] += np.linalg.norm(gradients[f"{layer}.bias"])
            norms[1, layer] += np.linalg.norm(gradients[f"{layer}.weight"])
    return norms / len(X)


def draw(measured, n_layers):
    """One column for each kind of weights, one row for each gradient; the axes are the same everywhere."""
    figure = plotting.new_figure(12.5, 8.2)
    panels = figure.subplots(len(ROWS), len(WEIGHTS), sharex=True, sharey=True)
    layers = np.arange(1, n_layers + 1)
    for column, title in enumerate(WEIGHTS):
        for row, quantity in enumerate(ROWS):
            axes = panels[row, column]
            for place, (activation, label) in enumerate(ACTIVATIONS.items()):
                norms = measured[title, activation][:, row]
                colour = plotting.PALETTE[place]
                low, high = norms.min(axis=0), norms.max(axis=0)
                axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
                typical = np.exp(np.log(norms).mean(axis=0))
                axes.plot(layers, typical, "o-", color=colour, markersize=3.5, label=label)
            axes.set_yscale("log")
            axes.xaxis.get_major_locator().set_params(integer=True)
            if row == 0:
                axes.set_title(title)
            else:
                axes.set_xlabel("hidden layer (1 is next to the input)")
            if column == 0:
                axes.set_ylabel(f"norm of the {quantity}")
    panels[0, 0].legend(loc="lower right")
    figure.suptitle(
        f"Back through {n_layers} layers, the gradient vanishes unless the weights suit the activation",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20, help="hidden layers")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()

    X, y = datasets.load_digits()
    X, y = X[:SAMPLES] - X.mean(axis=0), y[:SAMPLES]
    measured = {}
    last = f"layer {arguments.layers}"
    print(f"{arguments.layers} hidden layers of {WIDTH}; means over {SAMPLES} samples and {SEEDS} seeds\n")
    print(f"{'':34s}{'arriving gradient':^20s}   {'weight gradient':^20s}")
    print(f"{'weights':22s} {'activation':10s} {'layer 1':>10s}{last:>10s}   {'layer 1':>10s}{last:>10s}")
    for title, weights in WEIGHTS.items():
        for activation, label in ACTIVATIONS.items():
            norms = np.array(
                [gradient_norms(activation, weights, arguments.layers, X, y, seed) for seed in range(SEEDS)]
            )
            measured[title, activation] = norms
            (arriving_1, *_, arriving_n), (weight_1, *_, weight_n) = np.exp(np.log(norms).mean(axis=0))
            print(f"{title:22s} {label:10s} {arriving_1:10.1e}{arriving_n:10.1e}   {weight_1:10.1e}{weight_n:10.1e}")
    figure = draw(measured, arguments.layers)
    print(f"\npicture: {plotting.save(figure, arguments.output / 'vanishing_gradients.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
