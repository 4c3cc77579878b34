"""Data augmentation: what `nbbp.Model.fit` does to each sample as it brings it to the network, anew in every epoch.

``fit(…, augment=Shift((8, 8), 1))``, or a sequence, applied in order. The caller's data stay as they are, and so does
what is evaluated, validated and predicted on. All of it runs in jitted code on a copy in the workspace. Random numbers
are drawn by the model's seed, the number of the training batch and the sample's position in it: the same seed gives the
same bits on any number of threads, and so does a run that is resumed with the same `augment`.

`uniform`, `integer` and `normal` are what a function of the user's own draws by; see `Custom`.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numba.core.dispatcher import Dispatcher

from nbbp.layers.base import number_in, positive_integer
from nbbp.layers.custom import jitted
from nbbp.losses import Loss
from nbbp.scalars.sampling import integer, key_of_sample, normal, uniform

__all__ = [
    "Augmentation",
    "Custom",
    "Mixup",
    "Noise",
    "Shift",
    "integer",
    "key_of_sample",
    "normal",
    "uniform",
]

#: Lines, pixels of a line, numbers of a pixel: most dimensions of a sample that is shifted.
_MOST_DIMENSIONS = 3


@dataclass(frozen=True)
class Augmentation:
    """What all augmentations share; they themselves are the subclasses."""

    #: Whether it makes one sample of two, with targets between theirs.
    mixes_targets: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self) is Augmentation:
            raise TypeError("Augmentation is only what augmentations share; take one of: Shift, Noise, Mixup, Custom")

    def check(self, n_in: int, loss: Loss) -> None:
        """Refuse samples of `n_in` numbers, or a loss, that it is not for.

        Raises
        ------
        ValueError
        """


@dataclass(frozen=True)
class Shift(Augmentation):
    """Move images, or signals, by whole pixels; what moves out is lost, `fill` moves in.

    Each sample by its own distances, each of ``-pixels … pixels`` as likely as any other.

    Parameters
    ----------
    shape : tuple of int
        Of a sample: (height, width), (height, width, channels) or (length,), row-major, as many numbers as the network
        takes.
    pixels : int or tuple of int
        Most pixels to move by along height and width (or length): one number for both, or one for each, of which one
        may be 0. Below the size there.
    fill : float, default 0.0

    Examples
    --------
    >>> model.fit(X, y, augment=nbbp.augmentation.Shift((8, 8), 1))             # doctest: +SKIP
    """

    shape: tuple[int, ...]
    pixels: int | tuple[int, ...]
    fill: float = 0.0

    def __post_init__(self) -> None:
        given = self.shape if isinstance(self.shape, Sequence) and not isinstance(self.shape, str) else (self.shape,)
        shape = tuple(positive_integer("shape of Shift, each of its numbers,", size) for size in given)
        if not 1 <= len(shape) <= _MOST_DIMENSIONS:
            expected = "(height, width), (height, width, channels) or (length,)"
            raise ValueError(f"shape of Shift must be {expected}; got {self.shape!r}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "pixels", _distances(self.pixels, shape[:2]))
        if isinstance(self.fill, bool) or not isinstance(self.fill, numbers.Real):
            raise TypeError(f"fill of Shift must be a number; got {self.fill!r} ({type(self.fill).__name__})")
        if not math.isfinite(self.fill):
            raise ValueError(f"fill of Shift must be finite; got {self.fill!r}")
        object.__setattr__(self, "fill", float(self.fill))

    def check(self, n_in: int, loss: Loss) -> None:
        size = math.prod(self.shape)
        if size != n_in:
            raise ValueError(f"shape of Shift is {self.shape}, {size} numbers; samples of this network have {n_in}")


def _distances(pixels: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Most pixels along each of the axes that are moved along."""
    if isinstance(pixels, Sequence) and not isinstance(pixels, str):
        if len(pixels) != len(sizes):
            raise ValueError(f"pixels of Shift must be one number, or one for each of {sizes}; got {pixels!r}")
        given = tuple(pixels)
    else:
        given = (positive_integer("pixels of Shift", pixels),) * len(sizes)
    distances = tuple(
        0 if distance is not False and distance == 0 else positive_integer("pixels of Shift, each of them,", distance)
        for distance in given
    )
    if not any(distances):
        raise ValueError(f"pixels of Shift must not all be 0; got {pixels!r}")
    for distance, size in zip(distances, sizes, strict=True):
        if distance >= size:
            raise ValueError(f"pixels of Shift must be below the size that is moved, {sizes}; got {pixels!r}")
    return distances


@dataclass(frozen=True)
class Noise(Augmentation):
    """Add normal noise, independent for each number of each sample: ``x + stddev · n``.

    As a `nbbp.GaussianNoise` in front of the network would, but for no layer in it.

    Parameters
    ----------
    stddev : float
        In the unit of the data; above 0.

    Examples
    --------
    >>> model.fit(X, y, augment=[Shift((8, 8), 1), Noise(0.05)])                # doctest: +SKIP
    """

    stddev: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "stddev", number_in("stddev of Noise", self.stddev, 0.0, above=True))


@dataclass(frozen=True)
class Mixup(Augmentation):
    """Train on mixtures of two samples of a batch: ``x = share · x_i + (1 - share) · x_j``, and so the targets.

    ``share`` is drawn from Beta(alpha, alpha) for each sample; the authors' code draws one for each batch, which has
    the same expectation and a noisier gradient. The partner of sample i is sample ``i + k`` of the same batch, counted
    around its end, with a random k other than 0 for each batch: no sample meets itself, and each is a partner once.
    A batch of one sample stays as it is.

    Labels become rows of probabilities with the two shares, for losses that take such rows. Sample and class weights
    mix like the targets. The loss and the metrics that `fit` reports of the training data are those of the mixtures:
    accuracy counts how often the largest output is the class with the larger share. What is measured on validation data
    has nothing of it.

    H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, "mixup: Beyond empirical risk minimization", ICLR 2018.

    Parameters
    ----------
    alpha : float, default 0.2
        Above 0: towards 0 one of the two has nearly all, at 1 every share is as likely, beyond both have about half.

    Examples
    --------
    >>> model = Model(net, loss="crossentropy")                                 # doctest: +SKIP
    >>> model.fit(X, labels, augment=nbbp.augmentation.Mixup(0.2))              # doctest: +SKIP
    """

    alpha: float = 0.2
    mixes_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number_in("alpha of Mixup", self.alpha, 0.0, above=True))

    def check(self, n_in: int, loss: Loss) -> None:
        if not loss.takes_soft_targets:
            raise ValueError(
                f"Mixup makes targets between those of two samples, which the loss {loss.name!r} does not take; for "
                "classes use 'crossentropy' or 'binary_crossentropy'"
            )


@dataclass(frozen=True, init=False)
class Custom(Augmentation):
    """A jitted function of your own that changes one sample in place.

    It may be called for several samples at the same time, so it must not write anything else. As with functions of a
    `nbbp.Custom` layer, it is called once, before anything is trained, on a sample of numbers between 0 and 1 with its
    indices checked, unless it is of ``@njit(boundscheck=True)``; an exception in it is printed and leaves NaN, which
    ends `fit`; it is compiled in every process. `fit` also takes the function itself in the place of this description.

    Parameters
    ----------
    function : callable
        ``function(row, key)``: an ``@njit`` function, or a plain one that becomes one. row (n_in,), flat, of the
        model's dtype. key says which random numbers are the sample's: `uniform(key, i)`, `integer(key, i, n)` and
        `normal(key, i)` are its number i of each kind, i from 0 on as the function likes. The same i is the same number
        again. `key_of_sample` makes a key to try it with. It gives back nothing.

    Examples
    --------
    >>> from nbbp.augmentation import uniform
    >>> def darken(row, key):
    ...     factor = 1.0 - 0.5 * uniform(key, 0)
    ...     for j in range(row.size):
    ...         row[j] *= factor
    >>> model.fit(X, y, augment=[darken, Noise(0.05)])                          # doctest: +SKIP
    >>> row = np.ones(3)
    >>> Custom(darken).function(row, key_of_sample(0, 0, 0, 0))
    >>> bool(0.5 <= row[0] <= 1.0)
    True
    """

    function: Dispatcher

    def __init__(self, function: Callable) -> None:
        object.__setattr__(self, "function", jitted(function, "function of an augmentation", ("row", "key")))


def checked(augment: Any, n_in: int, categories: Sequence, loss: Loss) -> tuple[Augmentation, ...]:
    """What `fit` takes as `augment`, as a tuple of descriptions.

    Parameters
    ----------
    augment : Augmentation, function, sequence of these, or None
    n_in : int
        Numbers of a sample.
    categories : sequence
        Columns of samples that hold categories.
    loss : Loss

    Raises
    ------
    TypeError, ValueError
        If it is something else, or does not fit the samples or the loss.
    """
    if augment is None:
        return ()
    several = isinstance(augment, Sequence) and not isinstance(augment, str)
    made = tuple(_described(one) for one in (augment if several else (augment,)))
    if made and categories:
        raise ValueError(
            f"augment changes the numbers of a sample, and this network has an Embedding: column {categories[0][0]} "
            "holds categories; expected augment=None"
        )
    for description in made:
        description.check(n_in, loss)
    if sum(description.mixes_targets for description in made) > 1:
        raise ValueError("augment has more than one Mixup; expected at most one")
    return made


@functools.lru_cache(maxsize=256)
def _of_function(function: Callable) -> Custom:
    """The description of a plain function, once, so that the next `fit` with it compiles nothing."""
    return Custom(function)


def _described(augment: Any) -> Augmentation:
    if isinstance(augment, Augmentation):
        return augment
    if callable(augment) and not isinstance(augment, type):
        return _of_function(augment) if inspect.isfunction(augment) else Custom(augment)
    expected = "augment must be augmentations such as nbbp.augmentation.Noise(0.1), or functions of (row, key)"
    came = f"the class {augment.__name__}" if isinstance(augment, type) else f"{augment!r} ({type(augment).__name__})"
    raise TypeError(f"{expected}; got {came}")
