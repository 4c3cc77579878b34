"""The networks and data that ``profiling/train_step.py`` times, and the reference it holds every library to.

Every case is hidden layers of ReLU, or of tanh, crossentropy on the logits and Adam at learning rate 1e-3 in float32;
some have dropout, or batch or layer normalisation, in every hidden layer. The data are drawn from a fixed seed and
labelled by a fixed linear teacher, so that there is something to learn and units die as they do in ordinary training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEARNING_RATE = 1e-3
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

# Losses of two libraries after the same steps differ by rounding; so far, relatively, they may.
LOSS_TOLERANCE = 1e-3
VALIDATION_STEPS = 5

#: What a hidden layer may have beside its activation: dropout behind it, a normalisation in front of it.
DROPOUT, BATCH_NORM, LAYER_NORM = "dropout", "batch norm", "layer norm"
DROPOUT_RATE = 0.2
NORM_EPSILON = 1e-5


#: Activations of hidden layers by name, in float64 NumPy: the value, and the derivative as a function of the value.
ACTIVATIONS = {
    "relu": (lambda z: np.maximum(z, 0.0), lambda value: value > 0.0),
    "tanh": (np.tanh, lambda value: 1.0 - value * value),
}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes
    ----------
    sizes : tuple of int
        Widths from the input to the output.
    batch : int
        Samples per optimizer step.
    n_steps : int
        Batches of different data, so that no step sees data that the step before left in cache.
    goal : float
        How many times faster than `rival` the project wants to be on one core. With a layer: how many times the step
        without it a step may take.
    layer : str
        What every hidden layer has beside its activation, "" for nothing.
    activation : str
        That of every hidden layer: a key of `ACTIVATIONS`.
    rival : str
        The peer that `goal` is held against, "" for the fastest of PyTorch and JAX.
    rate_goal : float
        The share of the machine's best sgemm rate that the project wants the step to reach on one core, 0 for none.
    """

    sizes: tuple[int, ...]
    batch: int
    n_steps: int
    goal: float
    layer: str = ""
    activation: str = "relu"
    rival: str = ""
    rate_goal: float = 0.0

    @property
    def name(self) -> str:
        """The widths joined by dashes, with the batch, what is not ReLU, and the layer: ``784-128-10 b64 tanh``."""
        return self.plain_name + (f" {self.layer}" if self.layer else "")

    @property
    def plain_name(self) -> str:
        """The name of the case without the layer."""
        activation = "" if self.activation == "relu" else f" {self.activation}"
        return f"{'-'.join(map(str, self.sizes))} b{self.batch}{activation}"

    @property
    def flops(self) -> int:
        """Floating-point operations in the matrix products of one step.

        Two per weight and sample in each product. The first layer has two products (forward, weight
        gradient), every other layer three (input gradient as well).
        """
        first, *others = (n_in * n_out for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:], strict=True))
        return 4 * self.batch * first + 6 * self.batch * sum(others)

    @property
    def n_parameters(self) -> int:
        """Weights and biases."""
        return sum((n_in + 1) * n_out for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:], strict=True))


# The goals are ratios of times in µs measured on one core of 187 GFLOP/s: the faster of PyTorch with fused
# Adam and JAX's scan there, over what nbbp wants to reach there.
CASES = (
    Case((4, 16, 16, 2), 1, 100_000, 2.2 / 1.0),
    Case((4, 32, 32, 2), 32, 20_000, 10.9 / 3.0),
    Case((64, 64, 64, 64, 10), 128, 2_000, 107 / 65),
    Case((784, 128, 10), 64, 600, 353 / 200),
    Case((784, 256, 10), 64, 400, 605 / 400),
    Case((1024, 1024, 1024, 1024), 256, 24, 29_400 / 28_500),
    Case((4, 32, 16, 4), 10_000, 24, 3.0, activation="tanh", rival="jax-scan", rate_goal=0.30),
    *(Case((64, 64, 64, 64, 10), 128, 2_000, 1.30, layer) for layer in (DROPOUT, BATCH_NORM, LAYER_NORM)),
    *(Case((784, 256, 10), 64, 400, 1.15, layer) for layer in (DROPOUT, BATCH_NORM, LAYER_NORM)),
)
#: Networks of ReLU and nothing beside it.
RELU_CASES = tuple(case for case in CASES if not case.layer and case.activation == "relu")


def initial_parameters(case: Case, seed: int = 0) -> list[np.ndarray]:
    """He-normal weights ``(n_in, n_out)`` and small random biases ``(n_out,)``, layer by layer, float32."""
    generator = np.random.default_rng([seed, 1])
    parameters = []
    for n_in, n_out in zip(case.sizes[:-1], case.sizes[1:], strict=True):
        parameters.append(generator.normal(0.0, np.sqrt(2.0 / n_in), (n_in, n_out)).astype(np.float32))
        parameters.append(generator.normal(0.0, 0.01, n_out).astype(np.float32))
    return parameters


def training_data(case: Case, n_steps: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples ``(n_steps * batch, n_in)`` float32 in [0, 1) and labels ``(n_steps * batch,)`` int64.

    The label is the largest output of a linear teacher on the centred sample.
    """
    n = case.batch * (case.n_steps if n_steps is None else n_steps)
    n_in, n_classes = case.sizes[0], case.sizes[-1]
    teacher = np.random.default_rng([seed, 2]).normal(size=(n_in, n_classes)).astype(np.float32)
    x = np.random.default_rng([seed, 3]).random((n, n_in), dtype=np.float32)
    return x, np.argmax((x - np.float32(0.5)) @ teacher, axis=1).astype(np.int64)


def reference_losses(case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray, n: int) -> list[float]:
    """Losses of the first `n` optimizer steps, each before its update, in float64 NumPy.

    Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1. Dropout is left out: every library
    draws its own masks, and is held to its losses at rate 0.
    """
    trained = [p.astype(np.float64) for p in parameters]
    if case.layer in (BATCH_NORM, LAYER_NORM):  # gains and shifts lie behind the weights
        trained += [filled(width) for width in case.sizes[1:-1] for filled in (np.ones, np.zeros)]
    first = [np.zeros_like(p) for p in trained]
    second = [np.zeros_like(p) for p in trained]
    losses = []
    for step in range(1, n + 1):
        rows = slice((step - 1) * case.batch, step * case.batch)
        loss, gradients = _loss_and_gradients(case, trained, x[rows].astype(np.float64), y[rows])
        losses.append(loss)
        if step == n:
            break
        for p, g, m, v in zip(trained, gradients, first, second, strict=True):
            m += (1.0 - BETA_1) * (g - m)
            v += (1.0 - BETA_2) * (g * g - v)
            p -= LEARNING_RATE * (m / (1.0 - BETA_1**step)) / (np.sqrt(v / (1.0 - BETA_2**step)) + EPSILON)
    return losses


def reference_log_probabilities(case: Case, parameters: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """Logarithms of the softmax of a network without other layers (n, n_classes), in float64."""
    values, (activation, _) = x.astype(np.float64), ACTIVATIONS[case.activation]
    for layer in range(len(case.sizes) - 1):
        values = values @ parameters[2 * layer].astype(np.float64) + parameters[2 * layer + 1]
        if layer < len(case.sizes) - 2:
            values = activation(values)
    return log_softmax(values)


def log_softmax(values: np.ndarray) -> np.ndarray:
    """``log(softmax(values))`` over the rows' columns."""
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _loss_and_gradients(
    case: Case, trained: list[np.ndarray], x: np.ndarray, labels: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """The loss of a batch and its gradients, in the order of `trained`."""
    n_layers = len(case.sizes) - 1
    axis = {BATCH_NORM: 0, LAYER_NORM: 1}.get(case.layer)
    activation, derivative = ACTIVATIONS[case.activation]
    norms = trained[2 * n_layers :]
    inputs, kept = [x], []
    for layer in range(n_layers):
        z = inputs[-1] @ trained[2 * layer] + trained[2 * layer + 1]
        if layer < n_layers - 1:
            if axis is not None:
                deviation = np.sqrt(z.var(axis=axis, keepdims=True) + NORM_EPSILON)
                z = (z - z.mean(axis=axis, keepdims=True)) / deviation
                kept.append((z, deviation))
                z = norms[2 * layer] * z + norms[2 * layer + 1]
            z = activation(z)
        inputs.append(z)
    logits = inputs.pop()
    log_probabilities = log_softmax(logits)
    each = np.arange(len(x))
    delta = np.exp(log_probabilities)
    delta[each, labels] -= 1.0
    delta /= len(x)
    gradients: list[np.ndarray] = []
    norm_gradients: list[np.ndarray] = []
    for layer in reversed(range(n_layers)):
        if kept and layer < n_layers - 1:
            normal, deviation = kept[layer]
            norm_gradients = [(delta * normal).sum(axis=0), delta.sum(axis=0), *norm_gradients]
            delta = delta * norms[2 * layer]
            inner = (delta * normal).mean(axis=axis, keepdims=True)
            delta = (delta - delta.mean(axis=axis, keepdims=True) - normal * inner) / deviation
        gradients = [inputs[layer].T @ delta, delta.sum(axis=0), *gradients]
        if layer:
            delta = (delta @ trained[2 * layer].T) * derivative(inputs[layer])
    return float(-log_probabilities[each, labels].mean()), gradients + norm_gradients
