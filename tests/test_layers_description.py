"""What the new layers refuse, and what was expected instead."""

import numpy as np
import pytest

from nbbp import Sequential
from nbbp.layers import (
    BatchNorm,
    Concat,
    Dense,
    Dropout,
    Embedding,
    GaussianNoise,
    LayerNorm,
    Reshape,
    Residual,
    RMSNorm,
    Standardize,
    StochasticDepth,
)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dropout(1.0), ValueError, "rate of Dropout must be at least 0 and below 1; got 1.0"),
        (lambda: Dropout("half"), TypeError, r"rate of Dropout must be a number; got 'half' \(str\)"),
        (lambda: Dropout(True), TypeError, r"rate of Dropout must be a number; got True \(bool\)"),
        (lambda: StochasticDepth(0.1, "rows"), ValueError, "mode of StochasticDepth must be 'row' or 'batch'"),
        (lambda: GaussianNoise(-0.1), ValueError, "stddev of GaussianNoise must be at least 0 and finite; got -0.1"),
        (lambda: BatchNorm(momentum=1), ValueError, "momentum of BatchNorm must be at least 0 and below 1; got 1"),
        (lambda: BatchNorm(eps=0.0), ValueError, "eps of BatchNorm must be at least 1.17549e-38 and finite; got 0.0"),
        (lambda: LayerNorm(eps=float("nan")), ValueError, "eps of LayerNorm must be at least"),
        (lambda: RMSNorm(affine=1), TypeError, "affine of RMSNorm must be True or False; got 1"),
        (lambda: LayerNorm(name=""), TypeError, "name of LayerNorm must be a str with something in it"),
        (lambda: Standardize(1.0), ValueError, "Standardize takes both mean and variance, or neither; got mean=1.0"),
        (lambda: Standardize("a", "b"), TypeError, r"mean of Standardize must be a number; got 'a' \(str\)"),
        (lambda: Standardize([1, np.nan], 1), ValueError, "number 1 of mean of Standardize must be above -inf and"),
        (lambda: Standardize(0, -1), ValueError, "variance of Standardize must be at least 0 and finite; got -1"),
        (lambda: Standardize([1, 2], [1, 2, 3]), ValueError, "of as many features; got 2 and 3 numbers"),
        (lambda: Standardize([[1, 2]], 1), ValueError, "must be one number, or one for each feature"),
        (lambda: Standardize(name=3), TypeError, "name of Standardize must be a str"),
        (lambda: Sequential([Standardize([1, 2], 1), Dense(2)], 3), ValueError, "layer 0: .* of 2 features; got 3"),
        (lambda: Sequential([Dense(2), Standardize()], 3), ValueError, "layer 1: Standardize standardizes the"),
        (lambda: Sequential([Dropout(0.1), Standardize(), Dense(1)], 3), ValueError, "layer 1: Standardize"),
        (lambda: Sequential([Standardize(), Standardize(), Dense(1)], 3), ValueError, "layer 1: Standardize"),
        (lambda: Sequential([Reshape((2, 2)), Standardize(), Dense(2)], 4), ValueError, r"put Flatten\(\)"),
        (lambda: Sequential([Standardize()]), ValueError, "at least one layer with parameters"),
        (lambda: Residual(Dense(3)), TypeError, "Residual takes a list of layers"),
        (lambda: Residual([]), ValueError, "Residual takes a list of layers, .*; got no layers"),
        (lambda: Residual(["relu"]), TypeError, r"element 0 is 'relu' \(str\); did you mean Activation\('relu'\)"),
        (lambda: Residual(Sequential([Dense(3)], n_in=3)), ValueError, "got a Sequential with n_in=3"),
        (lambda: Concat([Dense(3)]), ValueError, "Concat takes at least two branches, each a list of layers; got 1"),
        (lambda: Reshape((2, -1, -1)), ValueError, "shape of Reshape can have one -1"),
        (lambda: Reshape(8), TypeError, r"shape of Reshape must be a tuple such as \(8, 8\); got 8"),
        (lambda: Sequential([Reshape((3, -1)), Dense(2)], n_in=4), ValueError, r"layer 0: Reshape to \(3, -1\) takes"),
        (lambda: Sequential([Reshape((2, 2)), Dense(2)], n_in=4), ValueError, r"layer 1: Dense .* put Flatten\(\)"),
        (lambda: Sequential([Dense(2), Embedding(3, 2)], n_in=4).nodes, ValueError, "layer 1: Embedding looks up"),
        (lambda: Sequential([Dropout(0.5)]), ValueError, "got only: Dropout"),
    ],
)  # fmt: skip
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
