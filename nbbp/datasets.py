"""Small data sets to try things on: one that is shipped, one that is made."""

from __future__ import annotations

from importlib import resources

import numpy as np


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Load 1,797 images of handwritten digits, 8 × 8 pixels each.

    Returns
    -------
    X : ndarray of float32, shape (1797, 64)
        Ink of each pixel from 0 (paper) to 1, row by row; ``X[i].reshape(8, 8)`` is the image.
    y : ndarray of int64, shape (1797,)
        The digit, 0 to 9.

    References
    ----------
    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    1998, https://doi.org/10.24432/C50P49 (CC BY 4.0); see digits/ATTRIBUTION.md in the package.
    """
    shipped = resources.files("nbbp").joinpath("digits/digits.npz")
    with shipped.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return archive["images"].astype(np.float32) / np.float32(16), archive["labels"].astype(np.int64)


def make_spiral(
    n_per_class: int = 100, n_classes: int = 3, noise: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Make points on spiral arms, one arm per class: a small problem that no straight line solves.

    Arm k has the radii r = 0 … 1 and the angles 4 r + 2 π k / n_classes, plus normal noise.

    Parameters
    ----------
    n_per_class : int
        Points per arm.
    n_classes : int
        Arms.
    noise : float
        Standard deviation of the angle, in radians.
    seed : int
        The same seed gives the same points.

    Returns
    -------
    X : ndarray of float32, shape (n_per_class * n_classes, 2)
        Points in shuffled order, so that a fraction cut off the end has every class.
    y : ndarray of int64, shape (n_per_class * n_classes,)
        The arm, 0 to n_classes - 1.

    Raises
    ------
    ValueError
        A count below 1 or a negative noise.
    """
    if n_per_class < 1 or n_classes < 1:
        raise ValueError(f"n_per_class={n_per_class} and n_classes={n_classes}; both must be at least 1")
    if not noise >= 0:
        raise ValueError(f"noise is {noise}; expected an angle in radians, not negative")
    random = np.random.default_rng(seed)
    arm = np.repeat(np.arange(n_classes), n_per_class)
    radius = np.tile(np.linspace(0.0, 1.0, n_per_class), n_classes)
    angle = 4.0 * radius + 2.0 * np.pi * arm / n_classes + noise * random.standard_normal(len(arm))
    X = np.column_stack((radius * np.sin(angle), radius * np.cos(angle)))
    shuffled = random.permutation(len(arm))
    return X[shuffled].astype(np.float32), arm[shuffled].astype(np.int64)
