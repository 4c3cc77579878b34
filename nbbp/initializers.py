"""How parameters begin: frozen descriptions that turn a seed into an array.

``initializer(shape, seed, stream, dtype)`` draws from Philox with the seed as key and the counter
(block, stream, step, 0): the same arguments give the same numbers, no call changes another's, and float32
is the float64 result rounded. A weight is (n_in, n_out), so that its fan in is the number of its rows and its
fan out that of its columns; a bias (n_out,) has both equal to n_out, as in Keras.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

from nbbp.scalars.philox import (
    STREAM_PARAMETERS,
    fill_normal_float64,
    fill_truncated_normal_float64,
    fill_uniform_float64,
)

__all__ = [
    "Constant",
    "Initializer",
    "Normal",
    "Orthogonal",
    "TruncatedNormal",
    "Uniform",
    "VarianceScaling",
    "get",
]

#: Standard deviation of a standard normal number that is redrawn until it lies within [-2, 2]; about 0.8796.
DEVIATION_WITHIN_TWO = math.sqrt(1.0 - 4.0 * math.exp(-2.0) / (math.sqrt(2.0 * math.pi) * math.erf(math.sqrt(2.0))))


@dataclass(frozen=True)
class Initializer:
    """What all initializers share: checked numbers, and the call.

    Raises
    ------
    TypeError, ValueError
        If a setting is no finite number, or is out of its range.
    """

    #: What a setting may be that is no number.
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        if type(self) is Initializer:
            raise TypeError("Initializer is only what initializers share; take one of nbbp.initializers.BY_NAME")
        for setting in fields(self):
            value = getattr(self, setting.name)
            owner = f"{setting.name} of {type(self).__name__}"
            if setting.name in self.choices:
                expected = ", ".join(map(repr, self.choices[setting.name]))
                if value not in self.choices[setting.name]:
                    raise ValueError(f"{owner} must be one of {expected}; got {value!r}")
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{owner} must be a number; got {value!r} ({type(value).__name__})")
            if not math.isfinite(value):
                raise ValueError(f"{owner} must be finite; got {value!r}")
            # Frozen fields allow no plain assignment.
            object.__setattr__(self, setting.name, float(value))

    def __call__(self, shape: tuple[int, ...], seed: int, stream: int, dtype: DTypeLike = "float32") -> np.ndarray:
        """Make a parameter.

        Parameters
        ----------
        shape : tuple of int
            (n_in, n_out) of a weight, (n_out,) of a bias.
        seed : int
            Key of the random numbers, an int64.
        stream : int
            Which of the seed's streams, 0 to 2**32 - 1; each parameter takes its own.
        dtype : {"float32", "float64"}

        Returns
        -------
        ndarray, C-contiguous

        Raises
        ------
        ValueError
            If there is no parameter of that shape for this initializer.
        """
        return self.draw(tuple(shape), seed, stream).astype(dtype, copy=False)

    def draw(self, shape: tuple[int, ...], seed: int, stream: int) -> np.ndarray:
        """The parameter in float64."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Initializer):
    """One number everywhere.

    Parameters
    ----------
    value : float
    """

    value: float = 0.0

    def draw(self, shape, seed, stream):
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Uniform(Initializer):
    """Evenly distributed in [low, high).

    Parameters
    ----------
    low, high : float
        low <= high.
    """

    low: float = -0.05
    high: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            came = f"low={self.low!r}, high={self.high!r}"
            raise ValueError(f"low of Uniform must not be above high; got {came}")

    def draw(self, shape, seed, stream):
        return self.low + (self.high - self.low) * _filled(fill_uniform_float64, shape, seed, stream)


@dataclass(frozen=True)
class Normal(Initializer):
    """Normally distributed.

    Parameters
    ----------
    mean, deviation : float
        deviation (the standard deviation) is at least 0.
    """

    mean: float = 0.0
    deviation: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deviation < 0.0:
            owner = f"deviation of {type(self).__name__}"
            raise ValueError(f"{owner} must be at least 0; got {self.deviation!r}")

    def draw(self, shape, seed, stream):
        return self.mean + self.deviation * _filled(fill_normal_float64, shape, seed, stream)


@dataclass(frozen=True)
class TruncatedNormal(Normal):
    """Normally distributed, redrawn until within two deviations of the mean, as Keras' TruncatedNormal.

    `deviation` is that of the normal distribution; what comes out has 0.8796 of it.
    """

    def draw(self, shape, seed, stream):
        return self.mean + self.deviation * _filled(_fill_within_two, shape, seed, stream)


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Zero mean and variance ``scale / fan``, so that signals keep their size from layer to layer.

    Parameters
    ----------
    scale : float
        Above 0.
    fan : {"in", "out", "average"}
        fan in, fan out or half their sum.
    distribution : {"uniform", "normal", "truncated_normal"}
        The last one is normal within two deviations, widened to the variance asked for, as in Keras.
    """

    scale: float = 1.0
    fan: str = "in"
    distribution: str = "normal"

    choices: ClassVar = {
        "fan": ("in", "out", "average"),
        "distribution": ("uniform", "normal", "truncated_normal"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0.0:
            raise ValueError(f"scale of VarianceScaling must be above 0; got {self.scale!r}")

    def draw(self, shape, seed, stream):
        fan_in, fan_out = fans(shape)
        fan = {"in": fan_in, "out": fan_out, "average": (fan_in + fan_out) / 2.0}[self.fan]
        deviation = math.sqrt(self.scale / fan)
        if self.distribution == "uniform":
            limit = math.sqrt(3.0) * deviation
            return Uniform(-limit, limit).draw(shape, seed, stream)
        if self.distribution == "truncated_normal":
            return TruncatedNormal(0.0, deviation / DEVIATION_WITHIN_TWO).draw(shape, seed, stream)
        return Normal(0.0, deviation).draw(shape, seed, stream)


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """A random matrix whose rows or columns, whichever are fewer, are orthonormal (Saxe et al., 2014).

    The Q of a QR decomposition of normal numbers, with the signs of R's diagonal, which makes it uniformly
    distributed over such matrices (Mezzadri, 2007). LAPACK's rounding may differ from machine to machine.

    Parameters
    ----------
    gain : float
        Multiplies it.
    """

    gain: float = 1.0

    def draw(self, shape, seed, stream):
        if len(shape) != 2:
            raise ValueError(f"Orthogonal makes matrices (n_in, n_out); got shape {shape}")
        rows, columns = max(shape), min(shape)
        q, r = np.linalg.qr(Normal(0.0, 1.0).draw((rows, columns), seed, stream))
        q *= np.where(np.diagonal(r) < 0.0, -self.gain, self.gain)
        return np.ascontiguousarray(q if shape[0] >= shape[1] else q.T)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Fan in and fan out: (n_in, n_out) of a weight, (n_out, n_out) of a bias.

    Raises
    ------
    ValueError
        If the shape has neither one nor two dimensions.
    """
    if len(shape) not in (1, 2):
        raise ValueError(f"a parameter is (n_in, n_out) or (n_out,); got shape {shape}")
    return shape[0], shape[-1]


def _fill_within_two(out: np.ndarray, seed: int, layer: int, step: int, stream: int) -> None:
    fill_truncated_normal_float64(out, seed, layer, step, stream, 2.0)


def _filled(fill: Callable, shape: tuple[int, ...], seed: int, stream: int) -> np.ndarray:
    values = np.empty(math.prod(shape))
    fill(values, seed, stream, 0, STREAM_PARAMETERS)
    return values.reshape(shape)


#: Every initializer that `get` knows by name. The normal ones are not truncated (Keras truncates them).
BY_NAME: Mapping[str, Initializer] = MappingProxyType(
    {
        "zeros": Constant(0.0),
        "ones": Constant(1.0),
        "constant": Constant(),
        "uniform": Uniform(),
        "normal": Normal(),
        "truncated_normal": TruncatedNormal(),
        # X. Glorot and Y. Bengio, 2010.
        "glorot_uniform": VarianceScaling(1.0, "average", "uniform"),
        "glorot_normal": VarianceScaling(1.0, "average", "normal"),
        # K. He et al., 2015: for ReLU, which halves the variance.
        "he_uniform": VarianceScaling(2.0, "in", "uniform"),
        "he_normal": VarianceScaling(2.0, "in", "normal"),
        # Y. LeCun et al., "Efficient BackProp", 1998; what SELU takes.
        "lecun_uniform": VarianceScaling(1.0, "in", "uniform"),
        "lecun_normal": VarianceScaling(1.0, "in", "normal"),
        "orthogonal": Orthogonal(),
    }
)


def get(initializer: str | Callable) -> Callable:
    """An initializer from its name, or what was given: an `Initializer` or anything that is called like one.

    Raises
    ------
    TypeError
        If `initializer` is neither a name nor callable.
    ValueError
        If there is no initializer of that name; the message lists those that exist.
    """
    if isinstance(initializer, str):
        if initializer not in BY_NAME:
            close = difflib.get_close_matches(initializer.strip().lower(), BY_NAME, n=1)
            guess = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown initializer {initializer!r}.{guess} There are: {', '.join(BY_NAME)}.")
        return BY_NAME[initializer]
    if isinstance(initializer, type) and issubclass(initializer, Initializer):
        name = initializer.__name__
        raise TypeError(f"initializer must be a name or an initializer such as {name}(); got the class {name}")
    if not callable(initializer):
        came = f"{initializer!r} ({type(initializer).__name__})"
        raise TypeError(f"initializer must be a name such as 'he_normal' or an initializer; got {came}")
    return initializer
