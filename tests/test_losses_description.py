"""Losses as descriptions; what they compute is tested with the formulas and the kernels."""

import dataclasses
import pickle

import numpy as np
import pytest

from nbbp import losses
from nbbp.layers import Activation
from nbbp.scalars.losses import LOSSES

FUSED = {
    ("crossentropy", "softmax"),
    ("crossentropy", "log_softmax"),
    ("nll", "log_softmax"),
    ("binary_crossentropy", "sigmoid"),
}


def test_names_are_those_of_the_formulas():
    assert set(losses.BY_NAME) == set(LOSSES)
    for name in losses.BY_NAME:
        loss = losses.get(name)
        assert loss.name == name
        assert loss.formula is LOSSES[name]
        assert loss.row_wise == (name in ("crossentropy", "nll"))
        assert (loss.reduction, loss.scale) == ("mean", 1.0)


@pytest.mark.parametrize("name", list(losses.BY_NAME))
def test_fuses_with_the_activations_that_make_probabilities_of_its_logits(name):
    loss = losses.get(name)
    for activation in ("linear", "relu", "sigmoid", "softmax", "log_softmax"):
        assert loss.fuses(Activation(activation)) == ((name, activation) in FUSED)


def test_classification():
    classifying = {name for name, loss in losses.BY_NAME.items() if loss.is_classification}
    assert classifying == {"binary_crossentropy", "crossentropy", "nll", "hinge"}


def test_parameters():
    assert losses.Huber(2).parameter == 2.0
    assert losses.Poisson().parameter == 1.0
    assert losses.Poisson(log_input=False).parameter == 0.0
    assert losses.Crossentropy(0.1).parameter == 0.1
    assert losses.BinaryCrossentropy(label_smoothing=0.1).parameter == 0.1
    assert {losses.get(name).parameter for name in ("mse", "mae", "log_cosh", "nll", "hinge")} == {0.0}
    # The formulas' own defaults are the same.
    for name, formula in LOSSES.items():
        if formula.parameter is not None and not formula.row_wise:
            assert losses.get(name).parameter == float(formula.default)


def test_descriptions_are_values():
    loss = losses.Huber(np.float32(0.5), reduction="sum", scale=2)
    assert loss == losses.Huber(0.5, reduction="sum", scale=2.0)
    assert hash(loss) == hash(losses.Huber(0.5, reduction="sum", scale=2.0))
    assert losses.MSE() != losses.MAE()
    assert type(loss.scale) is float
    assert type(loss.delta) is float
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert losses.get(loss) is loss
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.scale = 1.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: losses.MSE(reduction="avg"),
            ValueError,
            "reduction of mse must be 'mean' or 'sum'; got 'avg'",
        ),
        (
            lambda: losses.MSE(reduction=None),
            ValueError,
            "reduction of mse must be 'mean' or 'sum'; got None",
        ),
        (lambda: losses.MSE(scale="2"), TypeError, "scale of mse must be a number; got '2' (str)"),
        (lambda: losses.MSE(scale=True), TypeError, "scale of mse must be a number; got True (bool)"),
        (lambda: losses.MSE(scale=float("nan")), ValueError, "scale of mse must be finite; got nan"),
        (lambda: losses.Huber(0.0), ValueError, "delta of huber must be above 0 and finite; got 0.0"),
        (
            lambda: losses.Huber(float("inf")),
            ValueError,
            "delta of huber must be above 0 and finite; got inf",
        ),
        (
            lambda: losses.Crossentropy(1.0),
            ValueError,
            "label_smoothing of crossentropy must be in [0, 1); got 1.0",
        ),
        (lambda: losses.BinaryCrossentropy(-0.1), ValueError, "must be in [0, 1); got -0.1"),
        (lambda: losses.Poisson(1), TypeError, "log_input of poisson must be True or False; got 1"),
        (
            lambda: losses.get("cross entropy"),
            ValueError,
            "unknown loss 'cross entropy'. Did you mean 'crossentropy'?",
        ),
        (
            lambda: losses.get("xyzzy"),
            ValueError,
            f"unknown loss 'xyzzy'. There are: {', '.join(losses.BY_NAME)}.",
        ),
        (lambda: losses.get(losses.MSE), TypeError, "such as MSE(); got the class MSE"),
        (
            lambda: losses.get(None),
            TypeError,
            "loss must be a name such as 'mse' or a loss; got None (NoneType)",
        ),
        (lambda: losses.Loss(), TypeError, "take one of: mse, mae"),
    ],
)
def test_refusals_say_what_was_expected_and_what_came(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
