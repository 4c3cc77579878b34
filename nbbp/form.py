"""The form of a network's data: of what shape samples and outputs are, and which columns hold categories."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbbp.validation import as_array

__all__ = ["PLAIN", "Form"]


@dataclass(frozen=True)
class Form:
    """What the network's ends take and give.

    Attributes
    ----------
    any_shape : bool
        Whether samples may have any shape of as many numbers.
    categories : tuple of (int, int)
        Columns that hold categories, and how many of these there are.
    output_shape : tuple of int
        Of one sample where that is no row of numbers; else empty.
    """

    any_shape: bool = False
    categories: tuple[tuple[int, int], ...] = ()
    output_shape: tuple[int, ...] = ()

    def samples(self, X: Any, n_in: int | None, name: str) -> Any:
        """X as it is, or as a matrix where samples may have any shape: a view where X is contiguous.

        Raises
        ------
        ValueError
            If the samples have another number of numbers.
        """
        if not self.any_shape:
            return X
        array = as_array(X, name)
        if array.ndim < 3 or array.size == 0:
            return X
        n = math.prod(array.shape[1:])
        if n_in is not None and n != n_in:
            came = f"samples of shape {array.shape[1:]}, {n} numbers"
            raise ValueError(f"{name} has {came}; this network takes {n_in} ({name}.shape = {array.shape})")
        return array.reshape(len(array), n)

    def targets(self, y: Any, name: str) -> Any:
        """y as it is, or as a matrix where it has the shape of the outputs."""
        if y is None or not self.output_shape:
            return y
        array = as_array(y, name)
        return array.reshape(len(array), -1) if array.size and array.shape[1:] == self.output_shape else y

    def outputs(self, flat: np.ndarray) -> np.ndarray:
        """Outputs (n, n_out) in their shape."""
        return flat.reshape(len(flat), *self.output_shape) if self.output_shape else flat


#: Rows of numbers in and out.
PLAIN = Form()
