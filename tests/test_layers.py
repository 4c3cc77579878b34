"""Layers and activations as descriptions: what they accept, what they keep, and how they refuse."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from nbbp import initializers
from nbbp.layers import Activation, Dense, positive_integer, unknown_name
from nbbp.scalars.activations import ACTIVATIONS


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_activation_can_be_named(name):
    activation = Dense(2, activation=name).activation
    assert activation == Activation(name)
    assert activation.formula is ACTIVATIONS[name]
    assert activation.row_wise == (name in ("softmax", "log_softmax"))
    assert activation.parameter == (ACTIVATIONS[name].default if ACTIVATIONS[name].parameter else 0.0)


def test_defaults_of_dense():
    layer = Dense(3)
    assert (layer.n_out, layer.activation, layer.use_bias, layer.name) == (
        3,
        Activation("linear"),
        True,
        None,
    )
    assert layer.weight_initializer == initializers.get("glorot_uniform")
    assert layer.bias_initializer == initializers.get("zeros")


def test_descriptions_are_values():
    layer = Dense(np.int64(3), activation=Activation("elu", alpha=2))
    assert type(layer.n_out) is int
    assert layer == Dense(3, activation=Activation("elu", alpha=2.0))
    assert layer != Dense(3, activation="elu")
    assert hash(layer) == hash(Dense(3, activation=Activation("elu", alpha=2.0)))
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert copy.deepcopy(layer) == layer
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.n_out = 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.activation.parameter = 4.0


def test_activation_in_words():
    assert repr(Activation("relu")) == "Activation('relu')"
    assert repr(Activation("leaky_relu")) == "Activation('leaky_relu', negative_slope=0.01)"
    assert eval(repr(Activation("elu", alpha=0.3))) == Activation("elu", alpha=0.3)
    assert str(Activation("leaky_relu")) == "leaky_relu"
    assert str(Activation("leaky_relu", negative_slope=0.25)) == "leaky_relu(negative_slope=0.25)"


def test_parameter_of_an_activation():
    assert Activation("leaky_relu", negative_slope=0.2).parameter == 0.2
    assert Activation("elu", alpha=0).parameter == 0.0
    assert type(Activation("elu", alpha=np.float32(0.5)).parameter) is float


def test_parameter_shapes():
    assert Dense(3).parameter_shapes(5) == {"weight": (5, 3), "bias": (3,)}
    assert list(Dense(3).parameter_shapes(5)) == ["weight", "bias"]
    assert Dense(3, use_bias=False).parameter_shapes(5) == {"weight": (5, 3)}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dense(0), ValueError, "n_out of Dense must be at least 1; got 0"),
        (lambda: Dense(-3), ValueError, "n_out of Dense must be at least 1; got -3"),
        (lambda: Dense(2.0), TypeError, "n_out of Dense must be an integer; got 2.0 (float)"),
        (lambda: Dense("2"), TypeError, "n_out of Dense must be an integer; got '2' (str)"),
        (lambda: Dense(True), TypeError, "n_out of Dense must be an integer; got True (bool)"),
        (lambda: Dense(np.True_), TypeError, "n_out of Dense must be an integer; got "),
        (lambda: Dense(None), TypeError, "n_out of Dense must be an integer; got None (NoneType)"),
        (lambda: Dense(2, activation=None), TypeError, "('linear' is the identity); got None"),
        (lambda: Dense(2, activation=np.tanh), TypeError, "got <ufunc 'tanh'> (ufunc)"),
        (
            lambda: Dense(2, activation="rellu"),
            ValueError,
            "unknown activation 'rellu'. Did you mean 'relu'?",
        ),
        (lambda: Dense(2, activation="Leaky ReLU"), ValueError, "Did you mean 'leaky_relu'?"),
        (
            lambda: Dense(2, activation="xyzzy"),
            ValueError,
            "unknown activation 'xyzzy'. There are: linear, relu,",
        ),
        (lambda: Dense(2, use_bias=1), TypeError, "use_bias of Dense must be True or False; got 1"),
        (
            lambda: Dense(2, name=3),
            TypeError,
            "name of Dense must be a str with something in it, or None; got 3",
        ),
        (lambda: Dense(2, name=""), TypeError, "name of Dense must be a str with something in it"),
        (lambda: Dense(2, weight_initializer="he_norml"), ValueError, "'he_normal'"),
        (lambda: Dense(2, bias_initializer=3), TypeError, "3"),
        (lambda: Activation(3), TypeError, "the name of an activation must be a str; got 3 (int)"),
        (
            lambda: Activation("relu", alpha=1.0),
            TypeError,
            "activation 'relu' takes no parameter; got 'alpha'",
        ),
        (lambda: Activation("elu", slope=1.0), TypeError, "activation 'elu' takes only 'alpha'; got 'slope'"),
        (lambda: Activation("elu", alpha="a"), TypeError, "alpha of 'elu' must be a number; got 'a' (str)"),
        (
            lambda: Activation("elu", alpha=True),
            TypeError,
            "alpha of 'elu' must be a number; got True (bool)",
        ),
        (lambda: Activation("elu", alpha=None), TypeError, "alpha of 'elu' must be a number; got None"),
        (lambda: Activation("elu", alpha=-0.1), ValueError, "must be finite and not negative; got -0.1"),
        (
            lambda: Activation("elu", alpha=float("nan")),
            ValueError,
            "must be finite and not negative; got nan",
        ),
        (lambda: Activation("leaky_relu", negative_slope=float("inf")), ValueError, "not negative; got inf"),
    ],
)
def test_refusals_say_what_was_expected_and_what_came(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_unknown_name_lists_all_that_exist():
    error = unknown_name("activation", "rule", ACTIVATIONS)
    assert isinstance(error, ValueError)
    assert str(error).endswith(f"There are: {', '.join(ACTIVATIONS)}.")


def test_positive_integer_takes_whatever_is_an_integer():
    assert [positive_integer("k", k) for k in (1, np.int32(2), np.uint8(3), np.array(4))] == [1, 2, 3, 4]
