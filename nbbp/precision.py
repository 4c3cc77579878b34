"""Precision: in how many bits a model keeps what its layers give, and how it keeps small gradients from vanishing."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbbp.layers.base import positive_integer

__all__ = [
    "PRECISIONS",
    "LossScaling",
    "checked_precision",
    "checked_scale",
    "checked_scaling",
    "scale_memory",
    "scale_so_far",
]

#: What a model may compute in, and which of them only a GPU has.
PRECISIONS = ("float32", "tf32", "bf16", "fp16")
OF_GPUS = ("tf32",)
#: Bits of a float32 that count in a product of that precision.
_BITS = {"tf32": 19, "bf16": 16, "fp16": 16}
#: The least and the largest loss scale: normal float32 numbers, far from the ends.
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-100, 2.0**100


@dataclass(frozen=True)
class LossScaling:
    """A factor of the loss's gradient that keeps small gradients above what 16 bits can hold, and follows training.

    The gradient is multiplied by the scale where it leaves the loss, and divided by it, in float32, before it is
    clipped and applied. A batch whose gradient overflows updates nothing and multiplies the scale by `backoff_factor`
    (bias corrections and schedules count it all the same, so begin with a scale that does not overflow for long);
    after `growth_interval` batches in a row without overflow the scale is multiplied by `growth_factor`
    (P. Micikevicius et al., "Mixed precision training", ICLR 2018; as PyTorch's ``GradScaler``).

    Parameters
    ----------
    initial : float, default 65536
        The scale that training begins with.
    growth_factor : float, default 2
        At least 1.
    backoff_factor : float, default 0.5
        Above 0, at most 1.
    growth_interval : int, default 2000

    Raises
    ------
    TypeError, ValueError
        For settings out of range.
    """

    initial: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        limits = {
            "initial": (SMALLEST_SCALE, LARGEST_SCALE),
            "growth_factor": (1.0, LARGEST_SCALE),
            "backoff_factor": (SMALLEST_SCALE, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name} of LossScaling must be a number; got {value!r} ({type(value).__name__})")
            if not low <= float(value) <= high:
                raise ValueError(f"{name} of LossScaling must be from {low:g} to {high:g}; got {value!r}")
            object.__setattr__(self, name, float(value))
        interval = positive_integer("growth_interval of LossScaling", self.growth_interval)
        if interval >= 1 << 24:  # batches are counted in float32
            raise ValueError(f"growth_interval of LossScaling must be below {1 << 24:,}; got {interval:,}")
        object.__setattr__(self, "growth_interval", interval)


def checked_precision(precision: Any, dtype: np.dtype) -> str:
    """The name of the precision; "float32" stands for the dtype itself, whichever it is.

    Raises
    ------
    ValueError
        For another name, or one that does not go with the dtype.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; got {precision!r}")
    if precision != "float32" and dtype != np.float32:
        raise ValueError(
            f"precision {precision!r} needs dtype='float32', of which it keeps {_BITS[precision]} bits; "
            f"got {dtype.name!r}"
        )
    return precision


def checked_scaling(loss_scaling: Any, precision: str) -> LossScaling | None:
    """The loss scaling of a model: None where there is none.

    Raises
    ------
    TypeError, ValueError
        For what is no scaling, or scaling of another precision than fp16.
    """
    if precision != "fp16":
        if loss_scaling is not None:
            raise ValueError(f"loss_scaling is for precision='fp16'; got {loss_scaling!r} with {precision!r}")
        return None
    if loss_scaling is None:
        return LossScaling()
    if isinstance(loss_scaling, LossScaling):
        return loss_scaling
    if isinstance(loss_scaling, bool) or not isinstance(loss_scaling, numbers.Real):
        raise TypeError(f"loss_scaling must be a LossScaling or a number; got {loss_scaling!r}")
    if not math.isfinite(loss_scaling):
        raise ValueError(f"loss_scaling must be finite; got {loss_scaling!r}")
    return LossScaling(loss_scaling, growth_factor=1.0, backoff_factor=1.0)


def scale_memory(loss_scaling: LossScaling | None) -> np.ndarray:
    """The numbers that training in fp16 keeps of the loss scale, as it begins; none where there is no scaling.

    The scale, updates without overflow since it changed, growth factor, backoff factor, growth interval: float32 (5,).
    """
    if loss_scaling is None:
        return np.empty(0, np.float32)
    settings = loss_scaling.growth_factor, loss_scaling.backoff_factor, loss_scaling.growth_interval
    return np.array([loss_scaling.initial, 0.0, *settings], np.float32)


def scale_so_far(memory: np.ndarray) -> tuple[float, int] | None:
    """What training has made of the loss scale: the scale, and updates without overflow since it changed."""
    return (float(memory[0]), int(memory[1])) if len(memory) else None


def checked_scale(scale: Any, loss_scaling: LossScaling | None) -> tuple[float, int] | None:
    """What `scale_so_far` gave, from a file.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if loss_scaling is None:
        if scale is not None:
            raise ValueError(f"loss_scale must be null without loss scaling; got {scale!r}")
        return None
    is_pair = isinstance(scale, (list, tuple)) and len(scale) == 2 and [type(part) for part in scale] == [float, int]
    largest = float(np.finfo(np.float32).max)
    if not is_pair or not (2.0**-126 <= scale[0] <= largest and 0 <= scale[1] < loss_scaling.growth_interval):
        expected = f"a scale and a count below {loss_scaling.growth_interval:,}"
        raise ValueError(f"loss_scale must be {expected}; got {scale!r}")
    return scale[0], scale[1]
