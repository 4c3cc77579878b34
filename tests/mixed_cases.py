"""What the tests of mixed precision share: plans, models, data and distances."""

import numpy as np
from engine_cases import features_for, model_of, targets_for
from test_engine_plans import CUTS

from nbbp import losses, tiling

LOSS = losses.Crossentropy()
PLANS = ("alone", "partial", "wide")


def take_plan(plan, monkeypatch):
    """Cut steps that way, and share them among threads whatever their size."""
    for name, value in {"_SHARED_WORK": 0, **CUTS[plan]}.items():
        monkeypatch.setattr(tiling, name, value)


def model_in(precision, layers, optimizer="sgd", n_in=20, loss=LOSS, **settings):
    return model_of(layers, n_in, loss, "float32", optimizer, precision=precision, **settings)


def data_for(batch, n_in=20, loss=LOSS, seed=1):
    return features_for(batch, n_in, "float32", seed), targets_for(loss, batch, 3)


def flat(gradients):
    return np.concatenate([np.ravel(values) for values in gradients.values()])


def distance(actual, expected):
    """Of vectors, relative to the second."""
    return np.linalg.norm(np.float64(actual) - expected) / np.linalg.norm(expected)
