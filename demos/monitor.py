"""Look into deep networks while they learn: where gradients die, as a heat map.

    python demos/monitor.py [--layers 16] [--epochs 20] [--output demos/output]

Four networks of equal shape learn the handwritten digits, each with a `nbbp.callbacks.Monitor` that looks at every
layer in every fifth update, inside the machine code of the step. Above, the gradient that arrives at each layer (the
first layer at the top: what is dark learns nothing); below, the share of numbers in it that are saturated, which lets
no gradient through. Sigmoids lose the gradient layer by layer; small weights lose it at once, on the way forward too;
large weights under tanh saturate half of the units and let the gradient through the others grow; ReLU with He's
weights keeps it alive. Prints the accuracy reached and the warnings that `fit` gave, and saves ``monitor.png``.
"""

import argparse
import warnings
from pathlib import Path

import nbbp
from nbbp import callbacks, datasets, plotting

WIDTH, BATCH, EVERY = 32, 32, 5
NETWORKS = {
    "sigmoid, Xavier's weights": ("sigmoid", "glorot_normal"),
    "tanh, small weights (0.05)": ("tanh", nbbp.initializers.Normal(deviation=0.05)),
    "tanh, large weights (0.6)": ("tanh", nbbp.initializers.Normal(deviation=0.6)),
    "ReLU, He's weights": ("relu", "he_normal"),
}
#: What the colours of the gradient span.
GRADIENTS = (1e-10, 1e2)


def train(activation, weights, n_layers, epochs, X, y, held_out):
    """Accuracy on digits that were held out, the monitor, and what it warned of."""
    hidden = [nbbp.Dense(WIDTH, activation, weight_initializer=weights) for _ in range(n_layers)]
    network = nbbp.Sequential([*hidden, nbbp.Dense(10)], n_in=X.shape[1])
    model = nbbp.Model(network, loss="crossentropy", optimizer=nbbp.Adam(1e-3), metrics=("accuracy",))
    monitor = callbacks.Monitor(every=EVERY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", callbacks.GradientWarning)
        model.fit(X, y, epochs=epochs, batch_size=BATCH, verbose=0, callbacks=[monitor])
    return model.evaluate(*held_out)["accuracy"], monitor, [str(one.message) for one in caught]


def draw(results):
    """One column for each network; the colours mean the same in all of them."""
    figure = plotting.new_figure(13.5, 7.6)
    panels = figure.subplots(2, len(results), sharex=True, sharey=True)
    for column, (name, (accuracy, monitor, _)) in enumerate(results.items()):
        is_last = column == len(results) - 1
        above, below = panels[:, column]
        plotting.draw_heat_map(above, monitor, "output_gradient", GRADIENTS, has_scale=False)
        plotting.draw_heat_map(below, monitor, "saturated", has_scale=False)
        above.set(title=f"{name}\n{100 * accuracy:.0f} % of held-out digits read", xlabel="")
        below.set_title("")
        if is_last:
            for axes, label in ((above, "gradient (root mean square)"), (below, "share of saturated numbers")):
                figure.colorbar(
                    axes.images[0], ax=panels[int(axes is below)].tolist(), label=label, aspect=16, pad=0.01
                )
    n_layers = len(monitor.layers)
    labels = [f"hidden {layer}" if layer % 3 == 1 else "" for layer in range(1, n_layers)] + ["output"]
    panels[0, 0].set_yticks(range(n_layers), labels)
    figure.suptitle(
        "Where gradients die: each layer, from the first (top) to the last, over the updates",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="hidden layers (default: 16)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each network (default: 20)")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    for option in ("layers", "epochs"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} must be at least 1")
    X, y = datasets.load_digits()
    X = (X - X.mean(axis=0)) / X.std()
    n_train = 1437
    results = {}
    for name, (activation, weights) in NETWORKS.items():
        data = X[:n_train], y[:n_train], (X[n_train:], y[n_train:])
        results[name] = train(activation, weights, arguments.layers, arguments.epochs, *data)
        accuracy, monitor, warned = results[name]
        first, last = monitor["output_gradient"][-1, [0, -1]]
        print(f"{name}: {100 * accuracy:.1f} % of held-out digits read")
        print(f"    gradient at the first layer {first:.1e}, at the last {last:.1e}, in update {monitor.updates[-1]}")
        for message in warned:
            print(f"    GradientWarning: {message}")
    with plotting.style():
        print(f"picture: {plotting.save(draw(results), arguments.output / 'monitor.png')}")


if __name__ == "__main__":
    main()
