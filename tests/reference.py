"""The oracle: everything a network does, in plain float64 NumPy, one formula after the other.

Nothing here is shared with the package but the descriptions (layers, losses) that say what to compute. The
formulas are written anew, through scipy.special where that is an independent way to say them, and as clearly
as possible: no buffers are reused and nothing is fast. Activations and losses are in ``reference_functions``, networks
in ``reference_network``, the optimizers in ``reference_optimizers``; this file gathers the first two and has the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from reference_functions import (
    ACTIVATION_PARAMETERS,
    DERIVATIVES,
    FUSED,
    ROW_WISE_LOSSES,
    SELU_ALPHA,
    SELU_SCALE,
    VALUES,
    activation_backward,
    activation_derivative,
    activation_jacobian,
    activation_value,
    default_parameter,
    gelu_tanh_inner,
    loss_terms,
    loss_value_and_gradient,
    sech_squared,
    target_rows,
)
from reference_network import (
    activation_of,
    backward,
    forward,
    input_gradient,
    loss_and_gradients,
    loss_value,
    predict,
)

__all__ = [
    "ACTIVATION_PARAMETERS",
    "DERIVATIVES",
    "FUSED",
    "ROW_WISE_LOSSES",
    "SELU_ALPHA",
    "SELU_SCALE",
    "VALUES",
    "activation_backward",
    "activation_derivative",
    "activation_jacobian",
    "activation_of",
    "activation_value",
    "backward",
    "central_differences",
    "default_parameter",
    "forward",
    "gelu_tanh_inner",
    "input_gradient",
    "loss_and_gradients",
    "loss_terms",
    "loss_value",
    "loss_value_and_gradient",
    "metric",
    "metric_rows",
    "predict",
    "sech_squared",
    "target_rows",
]

# --- metrics ------------------------------------------------------------------------------------------------


def metric_rows(name: str, outputs: np.ndarray, y: np.ndarray, *, k: int = 5, threshold: float = 0.5) -> np.ndarray:
    """A metric's quantity of each sample, (batch,), of which `metric` takes the mean (rmse: squared error).

    `threshold` is in the unit of the outputs: 0 where they are logits or margins.
    """
    outputs = np.asarray(outputs, np.float64)
    y = np.asarray(y)
    if name == "accuracy" and outputs.shape[1] == 1:
        name = "binary_accuracy"
    if name in ("accuracy", "top_k_accuracy"):
        labels = y.argmax(axis=1) if y.shape == outputs.shape else y.reshape(-1).astype(np.int64)
        if name == "accuracy":
            with_nan = np.isnan(outputs).any(axis=1)
            return ((outputs.argmax(axis=1) == labels) & ~with_nan).astype(np.float64)
        of_target = outputs[np.arange(len(outputs)), labels]
        not_above = np.sum(outputs <= of_target[:, None], axis=1)
        return (outputs.shape[1] - not_above < k).astype(np.float64)
    y = y.astype(np.float64).reshape(outputs.shape)
    if name == "binary_accuracy":
        return np.mean(np.where(y > 0.5, outputs > threshold, outputs <= threshold), axis=1)
    if name == "mae":
        return np.mean(np.abs(outputs - y), axis=1)
    if name in ("mse", "rmse"):
        return np.mean((outputs - y) ** 2, axis=1)
    raise KeyError(name)


def metric(name: str, outputs: np.ndarray, y: np.ndarray, *, k: int = 5, threshold: float = 0.5) -> float:
    """A metric over all samples at once."""
    mean = float(np.mean(metric_rows(name, outputs, y, k=k, threshold=threshold)))
    return np.sqrt(mean) if name == "rmse" else mean


# --- differences --------------------------------------------------------------------------------------------


def central_differences(f: Callable[[np.ndarray], Any], x: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """d f / d x by the five-point central difference, each number of x in turn.

    f may give a number or an array; the result has x's shape followed by the shape of f(x). The error is
    step^4 / 30 times the fifth derivative plus rounding, about 1e-12 for a function of order one.
    """
    x = np.array(x, np.float64)
    rows = []
    for place in np.ndindex(x.shape):

        def at(shift: float, place: tuple[int, ...] = place) -> np.ndarray:
            moved = x.copy()
            moved[place] += shift
            return np.asarray(f(moved), np.float64)

        rows.append((8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step))
    return np.array(rows).reshape(x.shape + np.shape(rows[0]))
