"""Follow the gradient through 20 hidden layers: where it vanishes, and which weights keep it alive.

    python demos/vanishing_gradients.py [--layers 20] [--output demos/output]

Prints the norm of the weight gradient in the first and in the last hidden layer, for three activations under
three ways to draw the initial weights, and saves ``vanishing_gradients.png`` with the norm in every layer.

Going back through one layer multiplies the gradient by the transposed weights and by the activation's
derivative. Weights too small, or a derivative below one (a sigmoid's is at most 1/4), shrink it 20 times in a
row. Glorot and Bengio (2010) choose the variance 2 / (n_in + n_out), which keeps its size under tanh; He et
al. (2015) choose 2 / n_in, because ReLU lets half of it through.
"""

import argparse
from pathlib import Path

import numpy as np

import nbbp
from nbbp import datasets, plotting

WIDTH = 64
SEEDS = 5
ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU"}
WEIGHTS = {
    "random (normal, 0.05)": nbbp.initializers.Normal(deviation=0.05),
    "Xavier (Glorot)": nbbp.initializers.get("glorot_normal"),
    "He": nbbp.initializers.get("he_normal"),
}


def gradient_norms(activation, weights, n_layers, X, y, seed):
    """Euclidean norm of the weight gradient of each hidden layer, in a network that has not been trained."""
    hidden = [nbbp.Dense(WIDTH, activation, weight_initializer=weights) for _ in range(n_layers)]
    network = nbbp.Sequential([*hidden, nbbp.Dense(10, weight_initializer=weights)], n_in=X.shape[1])
    model = nbbp.Model(network, loss="crossentropy", dtype="float64", seed=seed)
    _, gradients = model.loss_and_gradients(X, y)
    return [np.linalg.norm(gradients[f"{layer}.weight"]) for layer in range(n_layers)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20, help="hidden layers")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()

    X, y = datasets.load_digits()
    X, y = X[:256] - X.mean(axis=0), y[:256]
    layers = np.arange(1, arguments.layers + 1)
    figure = plotting.new_figure(12.5, 4.9)
    grid = figure.add_gridspec(1, len(WEIGHTS))
    print(
        f"norm of the weight gradient, {arguments.layers} hidden layers of {WIDTH}, mean of {SEEDS} seeds\n"
    )
    print(
        f"{'weights':22s} {'activation':11s} {'layer 1':>9s} {'layer ' + str(arguments.layers):>9s}    ratio"
    )
    shared = None
    for column, (title, weights) in enumerate(WEIGHTS.items()):
        axes = figure.add_subplot(grid[0, column])
        for place, (activation, label) in enumerate(ACTIVATIONS.items()):
            norms = np.array(
                [gradient_norms(activation, weights, arguments.layers, X, y, seed) for seed in range(SEEDS)]
            )
            typical = np.exp(np.log(norms).mean(axis=0))
            first, last = typical[0], typical[-1]
            print(f"{title:22s} {label:11s} {first:9.1e} {last:9.1e}  {first / last:7.1e}")
            colour = plotting.PALETTE[place]
            axes.fill_between(
                layers, norms.min(axis=0), norms.max(axis=0), color=colour, alpha=0.15, linewidth=0
            )
            axes.plot(layers, typical, "o-", color=colour, markersize=3.5, label=label)
        axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("hidden layer  (1 is next to the input)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if shared is None:
            shared = axes
            axes.set_ylabel("norm of the weight gradient")
            axes.legend(loc="lower right")
        else:
            axes.sharey(shared)
            axes.tick_params(labelleft=False)
    figure.suptitle(
        f"Back through {arguments.layers} layers the gradient vanishes unless the weights suit it",
        fontsize=13,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    print(f"\npicture: {plotting.save(figure, arguments.output / 'vanishing_gradients.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
