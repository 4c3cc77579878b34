"""An activation and a loss of one's own: a line of Python each, differentiated and compiled by nbbp.

    python demos/custom_function.py [--seeds 8] [--epochs 400] [--output demos/output]

The data are a wave on a slope, and a fifth of the measurements came out too high. The loss is Cauchy's, under which a
point that is far off pulls less, so that outliers do not bend the curve. The activation is a line with a ripple on it,
like the snake of Ziyin et al. (2020): what it has learnt goes on where the data end. Each is trained in every
combination with built-in ones. Prints the formulas with the derivatives that nbbp found, and the errors within the
data and beyond; saves ``custom_function.png``, with the graph of one neuron and its loss.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import nbbp
from nbbp import plotting

N_SAMPLES, END, BEYOND, NOISE = 600, 6.0, 10.0, 0.4
SHOWN = ("tanh", "mse"), ("tanh", "cauchy"), ("ripple", "cauchy")


def ripple(z):
    """A line with a ripple on it; its slope lies between 0 and 2."""
    return z + np.sin(4.0 * z) / 4.0


def cauchy(prediction, target):
    """A square near 0; the pull is greatest at a distance of 1 and fades beyond."""
    return np.log1p(np.square(prediction - target))


ACTIVATIONS = {"tanh": "tanh", "ripple": nbbp.activation(ripple)}
LOSSES = {"mse": "mse", "mae": "mae", "cauchy": nbbp.loss(cauchy)}


def law(x):
    """The target without noise and outliers."""
    return 4.0 * np.sin(2.5 * x) + 0.6 * x


def make_data():
    """Inputs and targets, both (n, 1)."""
    random = np.random.default_rng(0)
    X = random.uniform(-END, END, (N_SAMPLES, 1))
    Y = law(X) + NOISE * random.standard_normal(X.shape)
    Y += np.where(random.uniform(size=X.shape) < 0.2, random.exponential(8.0, X.shape), 0.0)
    return X.astype(np.float32), Y.astype(np.float32)


def train(X, Y, activation, loss, epochs, seed):
    """A network of two hidden layers, and the µs that a training step took."""
    hidden = [nbbp.Dense(16, activation=activation) for _ in range(2)]
    network = nbbp.Sequential([*hidden, nbbp.Dense(1)], n_in=1)
    model = nbbp.Model(network, loss=loss, optimizer=nbbp.Adam(learning_rate=0.02), seed=seed)
    model.fit(X, Y, batch_size=32, verbose=0)  # compiles what is new
    start = time.perf_counter()
    model.fit(X, Y, epochs=epochs, batch_size=32, verbose=0)
    return model, 1e6 * (time.perf_counter() - start) / (epochs * -(-len(X) // 32))


def neuron():
    """The loss of one neuron as a value that knows what it was computed from, differentiated."""
    x, weight, bias = nbbp.Value(0.7, "x"), nbbp.Value(1.5, "weight"), nbbp.Value(-0.3, "bias")
    z = x * weight + bias
    output = ripple(z)
    loss = cauchy(output, nbbp.Value(1.2, "target"))
    z.label, output.label, loss.label = "z", "ripple(z)", "loss"
    loss.backward()
    return loss


def draw_formula(axes, function, at, built_in, title):
    """A formula with its derivative, and a built-in one."""
    values = np.array([nbbp.autodiff.derivative(function, z) for z in at])
    axes.plot(at, values[:, 0], color=plotting.VALIDATION, label=title)
    axes.plot(at, values[:, 1], color=plotting.PALETTE[0], label="derivative")
    axes.plot(at, built_in[1], color=plotting.MUTED, linewidth=1.2, linestyle="--", label=built_in[0])
    axes.legend(fontsize=8.5)
    axes.set_title(title)


def draw_fits(axes, X, Y, where, predictions, title):
    """The data, the law, and what every network makes of it."""
    axes.axvspan(END, BEYOND, color=plotting.TRAINING, alpha=0.18, linewidth=0)
    axes.plot(X, Y, ".", color=plotting.PALETTE[2], markersize=3, label="measured")
    curves = axes.plot(where, np.transpose(predictions), color=plotting.PALETTE[0], linewidth=0.9, alpha=0.7)
    curves[0].set_label("predicted")
    axes.plot(where, law(where), color=plotting.INK, linewidth=1.2, linestyle=":", label="the law")
    axes.legend(loc="lower right", fontsize=8.5)
    axes.text(END + 0.2, 14.5, "beyond the data", fontsize=8.5, va="top")
    axes.set(xlim=(-END, BEYOND), ylim=(-9.0, 15.0), xlabel="x")
    axes.set_title(title)


def draw(X, Y, where, predictions):
    """One picture: the graph, the formulas, what was derived, and the fits of three combinations."""
    figure = plotting.new_figure(15.0, 10.6)
    grid = figure.add_gridspec(3, 3, height_ratios=[0.5, 0.9, 1.0])
    axes = figure.add_subplot(grid[0, :])
    neuron().graph.draw(axes=axes)
    axes.set_title("one neuron and its loss, as a graph of numbers: values, and the derivatives of the loss by each")

    at = np.linspace(-3.0, 3.0, 301)
    axes = figure.add_subplot(grid[1, 0])
    draw_formula(axes, ripple, at, ("tanh", np.tanh(at)), "ripple: z + sin(4 z) / 4")
    axes.set_xlabel("z")
    axes = figure.add_subplot(grid[1, 1])
    draw_formula(axes, lambda off: cauchy(off, 0.0), at, ("mse", at**2), "cauchy: log(1 + (p − t)²)")
    axes.set(xlabel="p − t, prediction minus target", ylim=(-1.3, 4.0))
    axes = figure.add_subplot(grid[1, 2])
    mine = ACTIVATIONS["ripple"], LOSSES["cauchy"]
    written = "\n\n".join(f"{function.source}\n\n{function.derivative_source}" for function in mine)
    axes.text(0.0, 1.0, written, family="monospace", fontsize=8.5, va="top", transform=axes.transAxes)
    axes.set_axis_off()
    axes.set_title("what nbbp derived, and compiled")

    for column, (activation, loss) in enumerate(SHOWN):
        title = f"{activation}, {loss}: {len(predictions[activation, loss])} networks"
        draw_fits(figure.add_subplot(grid[2, column]), X, Y, where, predictions[activation, loss], title)
    figure.suptitle(
        "An activation and a loss of one's own: outliers do not pull, and the wave goes on",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    return figure


def main():
    """Print the formulas, train every combination, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="networks of each combination")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    for option in ("seeds", "epochs"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} must be at least 1")

    for mine in (ACTIVATIONS["ripple"], LOSSES["cauchy"]):
        print(f"{mine.source}\n\n{mine.derivative_source}\n")

    X, Y = make_data()
    where = np.linspace(-END, BEYOND, 801, dtype=np.float32)
    predictions = {}
    print(f"root mean square error (the law's is 0, the noise {NOISE}), median of {arguments.seeds} networks:")
    print(f"{'activation':12s}{'loss':10s}{'within the data':>16s}{'beyond':>10s}{'µs per step':>14s}")
    for activation, a in ACTIVATIONS.items():
        for loss, b in LOSSES.items():
            models, times = zip(*(train(X, Y, a, b, arguments.epochs, k) for k in range(arguments.seeds)), strict=True)
            curves = np.array([model.predict(where[:, None])[:, 0] for model in models])
            squares = (curves - law(where)) ** 2
            within, beyond = (np.median(np.sqrt(squares[:, part].mean(axis=1))) for part in (where <= END, where > END))
            print(f"{activation:12s}{loss:10s}{within:16.2f}{beyond:10.2f}{np.median(times):14.2f}")
            predictions[activation, loss] = curves

    figure = draw(X, Y, where, predictions)
    print(f"picture: {plotting.save(figure, arguments.output / 'custom_function.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()
