"""The oracle of the optimizers: each update as its paper writes it, with PyTorch's conventions, in float64.

Nothing is shared with the package but the optimizer descriptions, which are read for their settings. Each
rule is a function ``rule(optimizer, learning_rate, w, g, state, t) -> w``; `state` is a dict of the arrays
that the optimizer keeps for one parameter, empty before the first step (t = 1), and all that a rule changes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def sgd(optimizer, learning_rate, w, g, state, t):
    """Sutskever et al. 2013, as PyTorch: the buffer starts as the first gradient, without dampening."""
    if optimizer.momentum == 0.0:
        return w - learning_rate * g
    if t == 1:
        state["buffer"] = g
    else:
        state["buffer"] = optimizer.momentum * state["buffer"] + (1.0 - optimizer.dampening) * g
    direction = g + optimizer.momentum * state["buffer"] if optimizer.nesterov else state["buffer"]
    return w - learning_rate * direction


def adagrad(optimizer, learning_rate, w, g, state, t):
    """Duchi, Hazan and Singer 2011."""
    state["sum"] = state.get("sum", np.full_like(w, optimizer.initial_accumulator)) + g**2
    decayed = learning_rate / (1.0 + (t - 1) * optimizer.learning_rate_decay)
    return w - decayed * g / (np.sqrt(state["sum"]) + optimizer.eps)


def adadelta(optimizer, learning_rate, w, g, state, t):
    """Zeiler 2012; the learning rate multiplies the step."""
    rho = optimizer.rho
    state["square"] = averaged(state, "square", g**2, rho)
    past_steps = state.get("step_square", np.zeros_like(w))
    step = np.sqrt(past_steps + optimizer.eps) / np.sqrt(state["square"] + optimizer.eps) * g
    state["step_square"] = averaged(state, "step_square", step**2, rho)
    return w - learning_rate * step


def rmsprop(optimizer, learning_rate, w, g, state, t):
    """Hinton's lecture 6e; centered as in Graves 2013, but with eps outside of the root."""
    state["square"] = averaged(state, "square", g**2, optimizer.alpha)
    variance = state["square"]
    if optimizer.centered:
        state["mean"] = averaged(state, "mean", g, optimizer.alpha)
        variance = variance - state["mean"] ** 2
    step = g / (np.sqrt(variance) + optimizer.eps)
    if optimizer.momentum > 0.0:
        state["buffer"] = optimizer.momentum * state.get("buffer", np.zeros_like(w)) + step
        step = state["buffer"]
    return w - learning_rate * step


def adam(optimizer, learning_rate, w, g, state, t):
    """Kingma and Ba 2015; amsgrad as in Reddi, Kale and Kumar 2018: maximum, then bias correction."""
    beta1, beta2 = optimizer.betas
    mean, square = moments(optimizer, g, state)
    if getattr(optimizer, "amsgrad", False):
        square = state["largest_square"] = np.maximum(state.get("largest_square", np.zeros_like(w)), square)
    corrected_mean, corrected_square = mean / (1.0 - beta1**t), square / (1.0 - beta2**t)
    return w - learning_rate * corrected_mean / (np.sqrt(corrected_square) + optimizer.eps)


def adamax(optimizer, learning_rate, w, g, state, t):
    """Kingma and Ba 2015, section 7.1; eps is added to the gradient's magnitude."""
    beta1, beta2 = optimizer.betas
    state["mean"] = averaged(state, "mean", g, beta1)
    state["norm"] = np.maximum(beta2 * state.get("norm", np.zeros_like(w)), np.abs(g) + optimizer.eps)
    return w - learning_rate / (1.0 - beta1**t) * state["mean"] / state["norm"]


def nadam(optimizer, learning_rate, w, g, state, t):
    """Dozat 2016, with its schedule of the momentum."""
    beta1, beta2 = optimizer.betas
    mean, square = moments(optimizer, g, state)
    mu = [beta1 * (1.0 - 0.5 * 0.96 ** (i * optimizer.momentum_decay)) for i in range(1, t + 2)]
    looked_ahead = mu[t] * mean / (1.0 - np.prod(mu)) + (1.0 - mu[t - 1]) * g / (1.0 - np.prod(mu[:t]))
    return w - learning_rate * looked_ahead / (np.sqrt(square / (1.0 - beta2**t)) + optimizer.eps)


def radam(optimizer, learning_rate, w, g, state, t):
    """Liu et al. 2020; rectified where the average's length is above 5, as PyTorch (the paper says 4)."""
    beta1, beta2 = optimizer.betas
    mean, square = moments(optimizer, g, state)
    corrected_mean = mean / (1.0 - beta1**t)
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * t * beta2**t / (1.0 - beta2**t)
    if length <= 5.0:
        return w - learning_rate * corrected_mean
    rectification = np.sqrt((length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length))
    # eps joins the root before the bias correction.
    adaptive = np.sqrt(1.0 - beta2**t) / (np.sqrt(square) + optimizer.eps)
    return w - learning_rate * corrected_mean * rectification * adaptive


def lion(optimizer, learning_rate, w, g, state, t):
    """Chen et al. 2023, algorithm 2."""
    beta1, beta2 = optimizer.betas
    mean = state.get("mean", np.zeros_like(w))
    direction = np.sign(beta1 * mean + (1.0 - beta1) * g)
    state["mean"] = averaged(state, "mean", g, beta2)
    return w - learning_rate * direction


def adafactor(optimizer, learning_rate, w, g, state, t, weight_decay=0.0, epsilon_of_dtype=None):
    """Shazeer and Stern 2018, as PyTorch: relative step sizes, no momentum, vectors not factored.

    Weight decay belongs to the rule, because the size of the parameter is taken before it decays.
    """
    eps1, eps2 = optimizer.eps
    if eps1 is None:
        eps1 = epsilon_of_dtype
    beta2 = 1.0 - t**optimizer.beta2_decay
    size = max(eps2, root_mean_square(w)) * min(learning_rate, 1.0 / np.sqrt(t))
    w = w * (1.0 - learning_rate * weight_decay)
    if g.ndim == 2:
        state["rows"] = averaged(state, "rows", np.mean(g**2, axis=1), beta2)
        state["columns"] = averaged(state, "columns", np.mean(g**2, axis=0), beta2)
        square = np.outer(state["rows"], state["columns"]) / max(np.mean(state["rows"]), eps1)
    else:
        square = state["square"] = averaged(state, "square", g**2, beta2)
    update = g / np.sqrt(np.maximum(square, eps1**2))
    return w - size * update / max(1.0, root_mean_square(update) / optimizer.d)


def averaged(state: Arrays, name: str, value: np.ndarray, beta: float) -> np.ndarray:
    """The moving average ``beta * old + (1 - beta) * value``, of which the old value starts as 0."""
    return beta * state.get(name, np.zeros_like(value)) + (1.0 - beta) * value


def moments(optimizer: Any, g: np.ndarray, state: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """First and second moment of the gradient after this one, both without bias correction."""
    beta1, beta2 = optimizer.betas
    state["mean"] = averaged(state, "mean", g, beta1)
    state["square"] = averaged(state, "square", g**2, beta2)
    return state["mean"], state["square"]


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


#: The rules, by the name of the optimizer.
RULES: dict[str, Callable[..., np.ndarray]] = {
    "sgd": sgd,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adam,
    "adamax": adamax,
    "nadam": nadam,
    "radam": radam,
    "adafactor": adafactor,
    "lion": lion,
}


def mean_gradient(parts: list[Arrays], rows: list[int], reduction: str) -> Arrays:
    """The gradient of one batch of all rows, from those of batches that have so many."""
    if reduction == "sum":
        return {name: sum(part[name] for part in parts) for name in parts[0]}
    return {name: sum(n * part[name] for n, part in zip(rows, parts, strict=True)) / sum(rows) for name in parts[0]}


def prepared(optimizer: Any, gradients: Arrays, t: int, normals: Arrays) -> Arrays:
    """Gradients of all trainable parameters as update t, from 1 on, takes them: clipped, and with noise."""
    g = {name: np.asarray(gradient, np.float64) for name, gradient in gradients.items()}
    if optimizer.clip_value is not None:
        g = {name: np.clip(values, -optimizer.clip_value, optimizer.clip_value) for name, values in g.items()}
    if optimizer.clip_norm is not None:
        norm = np.sqrt(sum(np.sum(values**2) for values in g.values()))
        g = {name: values * min(1.0, optimizer.clip_norm / (norm + 1e-6)) for name, values in g.items()}
    deviation = np.sqrt(optimizer.gradient_noise / t**0.55)
    return {name: values + deviation * normals[name] for name, values in g.items()}


def settings_of(optimizer: Any, name: str) -> dict[str, float]:
    """learning_rate, weight_decay and l1 of one parameter: biases are spared, then groups override."""
    settings = {key: getattr(optimizer, key) for key in ("learning_rate", "weight_decay", "l1")}
    if not (optimizer.decay_bias or name.split(".")[-1] == "weight"):
        settings["weight_decay"] = settings["l1"] = 0.0
    for pattern, overrides in optimizer.groups.items():
        if fnmatch.fnmatchcase(name, pattern):
            settings.update(overrides)
    return settings


def step(
    optimizer: Any,
    parameters: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    state: dict[str, Any],
    dtype: str = "float64",
) -> Arrays:
    """The parameters after one step; `state` starts as {} and carries the step number and every slot.

    `dtype` is that of the implementation in question: only Adafactor's default eps depends on it.
    """
    t = state["t"] = state.get("t", 0) + 1
    rule = RULES[optimizer.name]
    after = {}
    for name, w in parameters.items():
        w = np.asarray(w, np.float64)
        g = np.asarray(gradients[name], np.float64)
        chosen = settings_of(optimizer, name)
        learning_rate, weight_decay = chosen["learning_rate"], chosen["weight_decay"]
        slots = state.setdefault(name, {})
        g = g + chosen["l1"] * np.sign(w)
        if not optimizer.decoupled:
            g = g + weight_decay * w
            weight_decay = 0.0
        if rule is adafactor:
            epsilon = float(np.finfo(dtype).eps)
            after[name] = adafactor(optimizer, learning_rate, w, g, slots, t, weight_decay, epsilon)
        else:
            w = w * (1.0 - learning_rate * weight_decay)
            after[name] = rule(optimizer, learning_rate, w, g, slots, t)
    return after


def steps(
    optimizer: Any,
    parameters: Mapping[str, np.ndarray],
    gradients_of: Callable[[Arrays, int], Mapping[str, np.ndarray]],
    n_steps: int,
    dtype: str = "float64",
) -> Arrays:
    """The parameters after `n_steps` steps along ``gradients_of(parameters, t)``, t from 1."""
    current = {name: np.asarray(values, np.float64) for name, values in parameters.items()}
    state: dict[str, Any] = {}
    for t in range(1, n_steps + 1):
        current = step(optimizer, current, gradients_of(current, t), state, dtype)
    return current
