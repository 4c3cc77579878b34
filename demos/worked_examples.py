"""The networks of the textbooks with every number, each gradient beside its central difference.

    python demos/worked_examples.py [--updates 1000] [--epochs 100] [--output demos/output]

1. 2-3-1, sigmoid, squared error: forward and back by hand, beside what nbbp computes.
2. 3-4-2, ReLU, mean squared error: 1000 updates on one sample.
3. 2-3-1, sigmoid hidden layer, linear output, ½ (ŷ - y)²: one update, then many.
4. 2-8-1, ReLU hidden layer, sigmoid output, binary crossentropy: 100 epochs of Adam in batches of 32.

A central difference moves one parameter by ±h and looks at the loss alone: (L(w + h) - L(w - h)) / 2h. It
knows nothing of backpropagation, so where both agree, backpropagation is right.

Saves ``worked_examples.png``.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import nbbp
from nbbp import plotting

STEP = 1e-5


def headline(text):
    """Print a title, underlined."""
    print(f"\n{text}\n{'=' * len(text)}")


def set_parameters(model, **values):
    """Write given numbers into a model: w0, b0, w1, b1 are the weights and biases of layers 0 and 1."""
    for name, value in values.items():
        kind = {"w": "weight", "b": "bias"}[name[0]]
        model.parameters[f"{name[1]}.{kind}"][...] = value


def central_differences(model, x, y):
    """The gradient of every parameter from losses alone."""
    estimates = {}
    for name, values in model.parameters.items():
        estimates[name] = np.empty(values.shape)
        for index in np.ndindex(values.shape):
            kept = values[index]
            values[index] = kept + STEP
            above, _ = model.loss_and_gradients(x, y)
            values[index] = kept - STEP
            below, _ = model.loss_and_gradients(x, y)
            values[index] = kept
            estimates[name][index] = (above - below) / (2.0 * STEP)
    return estimates


def show_gradients(model, x, y):
    """Print every parameter, its gradient and its central difference; return the two as flat arrays."""
    loss, gradients = model.loss_and_gradients(x, y)
    estimates = central_differences(model, x, y)
    print(f"loss {loss:.10f}")
    print(f"{'parameter':>14s} {'value':>12s} {'gradient':>14s} {'central diff.':>14s} {'difference':>11s}")
    for name, values in model.parameters.items():
        for index in np.ndindex(values.shape):
            exact, estimate = gradients[name][index], estimates[name][index]
            place = ",".join(map(str, index))
            print(
                f"{name + '[' + place + ']':>14s} {values[index]:12.6f} {exact:14.9f} {estimate:14.9f} "
                f"{abs(exact - estimate):11.1e}"
            )
    names = list(model.parameters)
    return tuple(np.concatenate([part[name].ravel() for name in names]) for part in (gradients, estimates))


def sigmoid(z):
    """1 / (1 + exp(-z))."""
    return 1.0 / (1.0 + np.exp(-z))


def squared_error_by_hand():
    """Example 1."""
    headline("1. 2-3-1, sigmoid, squared error (ŷ - y)² on x = (0.1, 0.2), y = 1")
    network = nbbp.Sequential([nbbp.Dense(3, "sigmoid"), nbbp.Dense(1, "sigmoid")], n_in=2)
    model = nbbp.Model(network, loss="mse", optimizer=nbbp.SGD(learning_rate=0.5), dtype="float64")
    w0 = np.array([[0.1, 0.3, -0.5], [-0.2, 0.4, 0.6]])
    b0 = np.array([0.1, -0.1, 0.2])
    w1 = np.array([[0.7], [-0.8], [0.9]])
    b1 = np.array([0.3])
    set_parameters(model, w0=w0, b0=b0, w1=w1, b1=b1)
    x, y = np.array([[0.1, 0.2]]), np.array([[1.0]])

    z0 = x @ w0 + b0
    a0 = sigmoid(z0)
    z1 = a0 @ w1 + b1
    a1 = sigmoid(z1)
    delta1 = 2.0 * (a1 - y) * a1 * (1.0 - a1)
    delta0 = (delta1 @ w1.T) * a0 * (1.0 - a0)
    print("by hand, forward:")
    print(f"  hidden   z = x W + b    {z0[0]}\n           a = sigmoid(z) {a0[0]}")
    print(f"  output   z = a W + b    {z1[0]}\n           ŷ = sigmoid(z) {a1[0]}")
    print("by hand, backward:")
    print(f"  output   δ = 2 (ŷ - y) ŷ (1 - ŷ)    {delta1[0]}")
    print(f"  hidden   δ = (δ Wᵀ) a (1 - a)       {delta0[0]}")
    print(f"  weight gradients: aᵀ δ = {(a0.T @ delta1).ravel()}")
    print(f"                    xᵀ δ = {(x.T @ delta0).ravel()}")
    print(f"nbbp: ŷ = {model.predict(x)[0]}")
    compared = show_gradients(model, x, y)
    _, gradients = model.loss_and_gradients(x, y)
    weights = [(w0, gradients["0.weight"]), (w1, gradients["1.weight"])]
    return compared, ([x[0], a0[0], a1[0]], weights)


def thousand_updates(updates):
    """Example 2."""
    headline(f"2. 3-4-2, ReLU, mean squared error on x = (1, 0, 1), y = (1, 0), {updates} updates")
    hidden = nbbp.Dense(4, "relu", weight_initializer="he_normal")
    network = nbbp.Sequential([hidden, nbbp.Dense(2)], n_in=3)
    model = nbbp.Model(network, loss="mse", optimizer=nbbp.SGD(learning_rate=0.01), dtype="float64", seed=5)
    x, y = np.array([[1.0, 0.0, 1.0]]), np.array([[1.0, 0.0]])
    compared = show_gradients(model, x, y)
    losses = []
    for update in range(1, updates + 1):
        losses.append(model.train_step(x, y))
        if update in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) or update == updates:
            print(f"update {update:5d}: loss {losses[-1]:.3e}, ŷ = {model.predict(x)[0]}")
    return compared, losses


def half_squared_error(updates):
    """Example 3."""
    headline("3. 2-3-1, sigmoid hidden layer, linear output, ½ (ŷ - y)² on x = (0.5, -0.3), y = 0.8")
    network = nbbp.Sequential([nbbp.Dense(3, "sigmoid"), nbbp.Dense(1)], n_in=2)
    model = nbbp.Model(network, loss=nbbp.losses.MSE(scale=0.5), optimizer=nbbp.SGD(learning_rate=0.1), dtype="float64")
    set_parameters(
        model,
        w0=[[0.15, 0.25, -0.3], [0.2, -0.35, 0.4]],
        b0=[0.35, 0.1, -0.2],
        w1=[[0.4], [0.5], [-0.45]],
        b1=[0.6],
    )
    x, y = np.array([[0.5, -0.3]]), np.array([[0.8]])
    compared = show_gradients(model, x, y)
    predictions = [model.predict(x)[0, 0]]
    print("one update with learning rate 0.1, each parameter before and after:")
    before = {name: values.copy() for name, values in model.parameters.items()}
    model.train_step(x, y)
    for name, values in model.parameters.items():
        for index in np.ndindex(values.shape):
            place = ",".join(map(str, index))
            print(f"{name + '[' + place + ']':>14s} {before[name][index]:12.8f} → {values[index]:12.8f}")
    predictions.append(model.predict(x)[0, 0])
    for _ in range(updates - 1):
        model.train_step(x, y)
        predictions.append(model.predict(x)[0, 0])
    for update in sorted({0, 1, min(10, updates), updates}):
        print(f"after {update:4d} updates: ŷ = {predictions[update]:.10f}")
    return compared, (predictions, y[0, 0])


def adam_in_batches(epochs):
    """Example 4."""
    headline(f"4. 2-8-1, ReLU, sigmoid output, binary crossentropy: Adam, {epochs} epochs, batch 32")
    random = np.random.default_rng(4)
    X = random.uniform(-1.0, 1.0, (512, 2))
    y = (np.abs(X).sum(axis=1) < 0.75).astype(int)
    hidden = nbbp.Dense(8, "relu", weight_initializer="he_normal")
    network = nbbp.Sequential([hidden, nbbp.Dense(1, "sigmoid")], n_in=2)
    model = nbbp.Model(
        network,
        loss="binary_crossentropy",
        optimizer=nbbp.Adam(learning_rate=1e-2),
        metrics=("accuracy",),
        dtype="float64",
        seed=3,
    )
    compared = show_gradients(model, X[:32], y[:32])
    history = model.fit(X, y, epochs=epochs, batch_size=32, verbose=0)
    for place, epoch in enumerate(history.epochs):
        if epoch == 1 or epoch % 10 == 0:
            print(
                f"epoch {epoch:4d}: loss {history['loss'][place]:.5f}, "
                f"accuracy {100 * history['accuracy'][place]:6.2f} %"
            )
    return compared, (model, X, y)


# How far along its edge each label sits, so that none hides another: (from layer, from node, to node).
LABELLED_AT = [[[0.5, 0.62, 0.21], [0.21, 0.62, 0.5]], [[0.5], [0.5], [0.5]]]


def draw_network(axes, values, weights):
    """Draw a network: values in the nodes, on each edge its weight and the weight's gradient."""
    heights = [np.linspace(1.0, -1.0, len(layer)) * 0.5 * (len(layer) - 1) for layer in values]
    for layer, (weight, gradient) in enumerate(weights):
        for i, start in enumerate(heights[layer]):
            for j, end in enumerate(heights[layer + 1]):
                colour = plotting.PALETTE[0] if weight[i, j] > 0 else plotting.VALIDATION
                axes.plot(
                    [layer, layer + 1],
                    [start, end],
                    color=colour,
                    linewidth=4.0 * abs(weight[i, j]),
                    alpha=0.5,
                )
                along = LABELLED_AT[layer][i][j]
                axes.text(
                    layer + along,
                    start + along * (end - start),
                    f"{weight[i, j]:+.1f}\n{gradient[i, j]:+.4f}",
                    fontsize=6.5,
                    ha="center",
                    va="center",
                    linespacing=1.1,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
                )
    for layer, activations in enumerate(values):
        for height, value in zip(heights[layer], activations, strict=True):
            axes.plot(layer, height, "o", markersize=27, color="white", markeredgecolor=plotting.INK)
            axes.text(layer, height, f"{value:.3f}", ha="center", va="center", fontsize=8)
    axes.set_xlim(-0.25, 2.25)
    axes.set_ylim(-1.35, 1.35)
    axes.axis("off")


def draw_comparison(axes, compared):
    """Each parameter's gradient against its central difference: all lie on the diagonal."""
    exact, estimate = compared
    reach = 1.15 * max(np.abs(exact).max(), np.abs(estimate).max())
    axes.plot([-reach, reach], [-reach, reach], color=plotting.MUTED, linewidth=1.0, zorder=1)
    axes.plot(exact, estimate, "o", color=plotting.PALETTE[0], markersize=5, alpha=0.75, markeredgewidth=0)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_box_aspect(1.0)
    axes.set_xlabel("gradient by backpropagation")
    axes.set_ylabel("central difference")
    axes.locator_params(nbins=5)
    worst = np.abs(exact - estimate).max()
    axes.text(
        0.05,
        0.93,
        f"{exact.size} parameters\nlargest difference {worst:.0e}",
        transform=axes.transAxes,
        va="top",
    )


def draw(by_hand, relu, half, adam, updates):
    """One column for each example: what it shows, and its gradients."""
    figure = plotting.new_figure(16.0, 8.6)
    grid = figure.add_gridspec(2, 4, width_ratios=[1.3, 1.0, 1.0, 1.0])
    upper = [figure.add_subplot(grid[0, column]) for column in range(4)]

    draw_network(upper[0], *by_hand[1])
    upper[0].set_title("1. sigmoid, squared error\n    weight above its gradient")

    upper[1].plot(np.arange(1, updates + 1), relu[1], color=plotting.PALETTE[0])
    upper[1].set_xscale("log")
    upper[1].set_yscale("log")
    upper[1].set_title("2. ReLU, mean squared error\n    loss over the updates")
    upper[1].set_xlabel("update")

    predictions, target = half[1]
    upper[2].axhline(target, color=plotting.VALIDATION, linewidth=1.2, label="target y")
    upper[2].plot(np.arange(len(predictions)), predictions, color=plotting.PALETTE[0], label="prediction ŷ")
    upper[2].set_title("3. linear output, ½ (ŷ - y)²\n    prediction over the updates")
    upper[2].set_xlabel("update")
    upper[2].legend()

    model, X, y = adam[1]

    def both_classes(points):
        one = model.predict(points)
        return np.hstack((1.0 - one, one))

    plotting.draw_decision_regions(upper[3], both_classes, X, y)
    upper[3].set_title("4. sigmoid output, crossentropy\n    what Adam learned")

    for column, example in enumerate((by_hand, relu, half, adam)):
        draw_comparison(figure.add_subplot(grid[1, column]), example[0])
    figure.suptitle(
        "Four textbook networks, and each gradient beside its central difference",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Work through all four, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=1000, help="of example 2")
    parser.add_argument("--epochs", type=int, default=100, help="of example 4")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    # A console of another encoding, as on Windows, would stop at the first ŷ.
    sys.stdout.reconfigure(encoding="utf-8")
    np.set_printoptions(precision=8, suppress=True)

    by_hand = squared_error_by_hand()
    relu = thousand_updates(arguments.updates)
    half = half_squared_error(min(100, arguments.updates))
    adam = adam_in_batches(arguments.epochs)
    figure = draw(by_hand, relu, half, adam, arguments.updates)
    print(f"\npicture: {plotting.save(figure, arguments.output / 'worked_examples.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
