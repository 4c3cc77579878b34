"""Backpropagation against central differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nbbp.scalars.philox import permutation

__all__ = ["GradientCheck", "check_gradients"]

#: Step of the differences, relative to max(1, |w|): the cube root of float64's precision balances truncation and
#: rounding.
_STEP = 6e-6


class GradientCheck(Mapping):
    """Largest relative error of each parameter's gradient: a mapping from its name, which prints as a table.

    The error of an entry is |analytic - numeric| over the largest magnitude of either within that parameter, or over
    a thousandth of the largest in any where that is more: a gradient that is zero but for rounding has no digits.

    Attributes
    ----------
    max_error : float
        The largest of all.
    analytic, numeric : dict of str to ndarray
        The entries that were compared.
    indices : dict of str to ndarray
        Their flat places in the parameter.
    """

    def __init__(self, analytic: dict, numeric: dict, indices: dict) -> None:
        self.analytic, self.numeric, self.indices = analytic, numeric, indices
        least = 1e-3 * max(_largest(values) for found in (analytic, numeric) for values in found.values())
        self._errors = {name: _relative_error(analytic[name], numeric[name], least) for name in analytic}
        self.max_error = max(self._errors.values())

    def __getitem__(self, name: str) -> float:
        return self._errors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._errors)

    def __len__(self) -> int:
        return len(self._errors)

    def __repr__(self) -> str:
        width = max(map(len, self._errors))
        lines = [f"{'parameter':<{width}}  entries  largest relative error"]
        for name, error in self._errors.items():
            lines.append(f"{name:<{width}}  {len(self.analytic[name]):7d}  {error:.2e}")
        return "\n".join(lines)


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def _relative_error(analytic: np.ndarray, numeric: np.ndarray, least: float) -> float:
    scale = max(_largest(analytic), _largest(numeric), least)
    return 0.0 if scale == 0 else _largest(analytic - numeric) / scale


def check_gradients(model: Any, x: Any, y: Any, max_per_parameter: int) -> GradientCheck:
    """Compare, for a float64 model whose parameters this may disturb and puts back.

    Parameters
    ----------
    model : nbbp.Model
        In float64.
    x, y : array_like
        One batch.
    max_per_parameter : int
        Entries to compare per parameter.
    """
    _, gradients = model.loss_and_gradients(x, y)
    analytic, numeric, indices = {}, {}, {}
    frozen = {parameter.name for parameter in model.network.parameters if not parameter.trainable}
    for name, values in model.parameters.items():
        if name in frozen:
            continue
        chosen = np.sort(permutation(values.size, model.seed, 0)[:max_per_parameter])
        flat = values.reshape(-1)
        analytic[name], indices[name] = gradients[name].reshape(-1)[chosen], chosen
        numeric[name] = np.array([_central_difference(model, x, y, flat, place) for place in chosen])
    return GradientCheck(analytic, numeric, indices)


def _central_difference(model: Any, x: Any, y: Any, flat: np.ndarray, place: int) -> float:
    kept = flat[place]
    step = _STEP * max(1.0, abs(kept))
    flat[place] = kept + step
    above, _ = model.loss_and_gradients(x, y)  # as layers act in training, with the same random numbers
    flat[place] = kept - step
    below, _ = model.loss_and_gradients(x, y)
    flat[place] = kept
    return (above - below) / (2 * step)
