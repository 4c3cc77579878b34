"""Functions of the user's own that leave their arrays are found before they run unchecked."""

import re

import numpy as np
import pytest
from engine_cases import DTYPES, features_for, model_of, targets_for
from numba import njit

from nbbp import Custom, Dense, losses
from nbbp.cpu import trial


def copying(parameters, x, y):
    for i in range(x.size):
        y[i] = x[i]


def copying_backward(parameters, x, y, d_y, d_x, gradient):
    for i in range(x.size):
        d_x[i] = d_y[i]


def mixing(parameters, x, y):
    for j in range(y.size):
        y[j] = 0
        for i in range(x.size):
            y[j] += x[i] * parameters[i * y.size + j]


def beyond_d_x(parameters, x, y, d_y, d_x, gradient):
    for i in range(y.size + 1):
        d_x[i] = 1


def beyond_gradient(parameters, x, y, d_y, d_x, gradient):
    d_x[:] = d_y
    for i in range(x.size):
        gradient[i] += x[i]


called = njit(copying)
BEYOND = [
    (
        Custom(copying, copying_backward, 2, name="warp"),
        "forward",
        r"'warp'\), copying, .* \(0,\), x \(40,\), y \(2,\):",
    ),
    (Custom(lambda parameters, x, y: called(parameters, x, y), copying_backward, 2), "forward", "layer 1, <lambda>, "),
    (Custom(mixing, copying_backward, 2, parameter_shapes={"a": (7,)}), "forward", r"are parameters \(7,\)"),
    (Custom(copying, beyond_d_x), "backward", r"beyond_d_x, .* d_y \(40,\), d_x \(40,\), gradient \(0,\)"),
    (Custom(copying, beyond_gradient, parameter_shapes={"a": (39,)}), "backward", r"gradient \(39,\)"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layer", "direction", "message"), BEYOND)
def test_functions_that_leave_their_arrays_are_errors(layer, direction, message, dtype):
    x, y = features_for(9, 4, dtype), targets_for(losses.MSE(), 9, 2)
    model = model_of([Dense(40, "tanh"), layer, Dense(2)], 4, "mse", dtype)
    before = model.parameter_vector.copy()
    calls = [lambda: model.fit(x, y, verbose=0), lambda: model.train_step(x, y), lambda: model.check_gradients(x, y)]
    if direction == "forward":
        calls += [lambda: model.predict(x), lambda: model.predict(x[:1]), lambda: model.evaluate(x, y)]
    else:
        assert np.isfinite(model.predict(x)).all()
    for call in calls:
        with pytest.raises(ValueError, match=f"the {direction} function of layer 1.* beyond its arrays.*") as caught:
            call()
        assert re.search(message, str(caught.value))
    np.testing.assert_array_equal(model.parameter_vector, before)


@njit(boundscheck=True)
def looking_up(parameters, x, y):
    """Years from 1900 on, as rows of a table."""
    for j in range(y.size):
        y[j] = parameters[(int(x[0]) - 1900) * y.size + j]


@njit(boundscheck=True)
def looking_up_backward(parameters, x, y, d_y, d_x, gradient):
    d_x[:] = 0
    for j in range(y.size):
        gradient[(int(x[0]) - 1900) * y.size + j] += d_y[j]


def test_functions_that_check_themselves_are_not_tried():
    table = Custom(looking_up, looking_up_backward, 2, parameter_shapes={"table": (3, 2)})
    model = model_of([table], 1, "mse")
    np.testing.assert_array_equal(model.predict(np.array([[1901.0]])), model.parameters["0.table"][1:2])
    _, gradients = model.loss_and_gradients(np.array([[1902.0]]), np.zeros((1, 2)))
    assert gradients["0.table"][2].all()


@njit
def copying_too(x, y):
    if x.min() >= 0.25 and x.max() <= 0.75:
        raise ValueError("not for the made-up sample")
    y[:] = x


def test_a_trial_is_made_once_and_only_for_custom_layers(monkeypatch):
    tried, stays_within = [], trial._stays_within
    monkeypatch.setattr(
        trial, "_stays_within", lambda function, *rest: tried.append(function) or stays_within(function, *rest)
    )
    layer = Custom(lambda parameters, x, y: copying_too(x, y), copying_backward)
    x, y = features_for(9, 3), targets_for(losses.MSE(), 9, 2)
    for layers in ([Dense(5), Dense(2)], [Dense(5), layer, Dense(5), layer, Dense(2)], [Dense(5), layer, Dense(2)]):
        model = model_of(layers, 3, "mse")
        for n in (4, 5):
            model.fit(x, y, batch_size=n, verbose=0)
            model.predict(x)
    assert tried == [layer.forward, layer.backward]
