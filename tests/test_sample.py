"""The sample engine: every pass against the batch engine, central differences and itself under other circumstances."""

import copy
import re

import numpy as np
import pytest
from engine_cases import (
    ALL_ACTIVATIONS,
    ALL_LOSSES,
    ALL_OPTIMIZERS,
    DTYPES,
    label,
    model_of,
    one_sample,
    replaced,
    small_model,
)

import nbbp
from nbbp.layers import Activation, Dense, Standardize
from nbbp.losses import MSE, Crossentropy

#: How close the two engines come, relative to the largest number of an array: they add in another order.
NEAR = {"float32": 1e-6, "float64": 1e-13}
#: Sizes (n_in, hidden …, n_out): one lane, a register and one more, several registers, few and many outputs.
SIZES = [
    (1, 1),
    (1, 3, 1),
    (17, 17),
    (3, 1, 17),
    (5, 33, 2),
    (16, 16, 16),
    (40, 4),
    (2, 70, 3),
    (31, 8, 5),
    (130, 9, 64),
]


@pytest.fixture(autouse=True)
def nothing_said(capfd):
    """LLVM says on stderr what it could not do as it was told."""
    yield
    assert not set(re.findall("remark|warning", capfd.readouterr().err))


def assert_close(actual, expected, dtype, times=1.0):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(initial=0.0), 1e-2)
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=times * NEAR[dtype] * scale)


def flat(gradients):
    return np.concatenate([values.ravel() for values in gradients.values()])


def assert_same_learning(model, kind="hard", times=1.0):
    """Loss and gradient of one sample in both engines."""
    functions, (x, y, batch_x, batch_y) = model.as_njit(), one_sample(model, kind=kind)
    gradient = np.full(functions.n_parameters, np.nan, model.dtype)
    loss = functions.loss_and_gradient(model.parameter_vector, x, y, gradient)
    expected, gradients = model.loss_and_gradients(batch_x, batch_y)
    assert type(loss) is float
    assert_close(loss, expected, model.dtype.name, times)
    assert_close(gradient, flat(gradients), model.dtype.name, times)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_every_activation_forward_and_backward(activation, dtype):
    model = small_model(activation, MSE(), dtype, last=activation)
    functions, (x, _, batch_x, _) = model.as_njit(), one_sample(model)
    out = np.full(functions.n_out, np.nan, dtype)
    functions.predict(model.parameter_vector, x, out)
    assert_close(out, model.predict(batch_x)[0], dtype)
    assert_same_learning(model)


@pytest.mark.parametrize("dtype", DTYPES)
def test_formulas_of_the_users_own(dtype):
    ripple = nbbp.activation(lambda z: np.tanh(z) + 0.1 * np.sin(3 * z), name="ripple")
    cauchy = nbbp.loss(lambda p, t: np.log(1 + (p - t) ** 2), name="cauchy", reduction="sum")
    model = small_model(ripple, cauchy, dtype, "adam", last=ripple)
    functions, (x, _, batch_x, _) = model.as_njit(), one_sample(model)
    out = np.full(functions.n_out, np.nan, dtype)
    functions.predict(model.parameter_vector, x, out)
    assert_close(out, model.predict(batch_x)[0], dtype)
    assert_same_learning(model)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_every_loss(loss, reduction, dtype):
    last = "log_softmax" if loss.name == "nll" else "linear"
    assert_same_learning(small_model("tanh", replaced(loss, reduction=reduction, scale=0.7), dtype, last=last))


@pytest.mark.parametrize("loss", [loss for loss in ALL_LOSSES if loss.row_wise], ids=label)
@pytest.mark.parametrize("last", ["linear", "softmax", "log_softmax"])
@pytest.mark.parametrize("kind", ["hard", "one-hot", "soft"])
def test_every_kind_of_class_target(loss, last, kind):
    if (last, loss.name) != ("softmax", "nll"):
        assert_same_learning(small_model("tanh", loss, "float32", last=last), kind)


def test_sigmoid_is_taken_in_by_its_loss():
    assert_same_learning(small_model("tanh", nbbp.losses.BinaryCrossentropy(), "float32", last="sigmoid"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_size(sizes, dtype):
    layers = [Dense(n, "tanh", use_bias=k % 3 != 2) for k, n in enumerate(sizes[1:])]
    model = model_of(layers, sizes[0], MSE(), dtype, "adam")
    functions, (x, y, batch_x, batch_y) = model.as_njit(), one_sample(model)
    guarded = np.full(functions.n_out + 2, 7.0, dtype)
    functions.predict(model.parameter_vector, x, guarded[1:-1])
    assert_close(guarded[1:-1], model.predict(batch_x)[0], dtype)
    assert guarded[0] == guarded[-1] == 7.0
    assert_same_learning(model)

    parameters, slots = model.parameter_vector.copy(), np.zeros(functions.n_slots + 2, dtype)
    slots[[0, -1]] = 7.0
    for step in range(1, 4):
        loss = functions.train_step(parameters, slots[1:-1], step, x, y)
        assert_close(loss, model.train_step(batch_x, batch_y), dtype, 10)
    # Adam's first steps turn a last-bit difference of a tiny gradient into more
    assert_close(parameters, model.parameter_vector, dtype, 100)
    assert slots[0] == slots[-1] == 7.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS, ids=label)
def test_every_optimizer(optimizer, dtype):
    groups = {"1.*": {"learning_rate": 0.02, "l1": 0.01}}
    optimizer = replaced(optimizer, weight_decay=0.1, groups=groups)
    model = model_of([Dense(7, "tanh"), Dense(3)], 5, MSE(), dtype, optimizer)
    functions = model.as_njit()
    parameters, slots = model.parameter_vector.copy(), np.zeros(functions.n_slots, dtype)
    for step in range(1, 9):
        x, y, batch_x, batch_y = one_sample(model, seed=step)
        loss = functions.train_step(parameters, slots, step, x, y)
        assert_close(loss, model.train_step(batch_x, batch_y), dtype, 100)
    # eight steps of rules that divide by roots of tiny numbers
    assert_close(parameters, model.parameter_vector, dtype, 100)


def test_steps_may_be_taken_up_anywhere():
    """The number of the step is all that a rule knows of the steps before it, beside its slots."""
    model = model_of([Dense(4, "tanh"), Dense(2)], 3, MSE(), "float64", nbbp.NAdam(0.01))
    functions = model.as_njit()
    parameters, slots = model.parameter_vector.copy(), np.zeros(functions.n_slots)
    for step in range(1, 601):
        x, y, batch_x, batch_y = one_sample(model, seed=step % 7)
        functions.train_step(parameters, slots, step, x, y)
        model.train_step(batch_x, batch_y)
    assert_close(parameters, model.parameter_vector, "float64", 1e4)  # 600 steps of rounding


@pytest.mark.parametrize("name", ["mse", "crossentropy"])
def test_wide_layers_run_in_stretches(name):
    """More rows than the gradient on the stack has room for, and a last stretch that is shorter."""
    model = model_of([Dense(70, "relu"), Dense(130, "tanh"), Dense(3)], 300, nbbp.losses.get(name), "float32", "adamw")
    functions, (x, y, batch_x, batch_y) = model.as_njit(), one_sample(model)
    assert_same_learning(model)
    parameters, slots = model.parameter_vector.copy(), np.zeros(functions.n_slots, "float32")
    functions.train_step(parameters, slots, 1, x, y)
    model.train_step(batch_x, batch_y)
    assert_close(parameters, model.parameter_vector, "float32", 10)


def test_activations_as_layers_of_their_own():
    layers = [Activation("tanh"), Dense(6), Activation("gelu"), Activation("sigmoid"), Dense(4), Activation("softmax")]
    model = model_of(layers, 5, MSE(), "float64")
    functions, (x, _, batch_x, _) = model.as_njit(), one_sample(model)
    out = np.empty(4)
    functions.predict(model.parameter_vector, x, out)
    assert_close(out, model.predict(batch_x)[0], "float64")
    assert_same_learning(model)


# derivatives with respect to the input --------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_jacobian_and_input_gradient_against_central_differences(sizes):
    last = [Dense(sizes[-1], "softmax" if sizes[-1] > 1 else "tanh")]
    model = model_of([Dense(n, "silu") for n in sizes[1:-1]] + last, sizes[0], MSE(), "float64")
    functions, (x, _, _, _) = model.as_njit(), one_sample(model)
    parameters = model.parameter_vector
    jacobian = np.full((sizes[-1], sizes[0]), np.nan)
    functions.jacobian(parameters, x, jacobian)

    h, low, high = 1e-6, np.empty(sizes[-1]), np.empty(sizes[-1])
    for i in range(sizes[0]):
        moved = x.copy()
        moved[i] += h
        functions.predict(parameters, moved, high)
        moved[i] -= 2 * h
        functions.predict(parameters, moved, low)
        np.testing.assert_allclose(jacobian[:, i], (high - low) / (2 * h), rtol=1e-5, atol=1e-8)

    weight, product = np.random.default_rng(0).standard_normal(sizes[-1]), np.full(sizes[0], np.nan)
    functions.input_gradient(parameters, x, weight, product)
    np.testing.assert_allclose(product, weight @ jacobian, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(5, 7, 3), (17, 16, 33), (3, 2, 1)])
def test_backpropagate_adds_the_gradient_of_a_loss_with_this_output_gradient(sizes, dtype):
    """The gradient of half the squared error is prediction - target."""
    layers = [Dense(sizes[1], "silu"), Dense(sizes[2], "sigmoid")]
    model = model_of(layers, sizes[0], MSE(reduction="sum", scale=0.5), dtype)
    functions, (x, y, _, _) = model.as_njit(), one_sample(model)
    out, gradient = np.empty(sizes[2], dtype), np.full(functions.n_parameters, np.nan, dtype)
    by_x, expected_by_x = np.full((2, sizes[0]), np.nan, dtype)
    functions.predict(model.parameter_vector, x, out)
    functions.loss_and_gradient(model.parameter_vector, x, y, gradient)
    functions.input_gradient(model.parameter_vector, x, out - y, expected_by_x)
    summed = np.arange(functions.n_parameters).astype(dtype) / functions.n_parameters
    for turn in (1, 2):
        functions.backpropagate(model.parameter_vector, x, out - y, summed, by_x)
        start = np.arange(functions.n_parameters) / functions.n_parameters
        assert_close(summed, start + turn * gradient, dtype)
        np.testing.assert_array_equal(by_x, expected_by_x)


def test_gradient_against_central_differences():
    model = small_model("mish", Crossentropy(), "float64")
    functions, (x, y, _, _) = model.as_njit(), one_sample(model)
    parameters, gradient = model.parameter_vector.copy(), np.empty(functions.n_parameters)
    functions.loss_and_gradient(parameters, x, y, gradient)
    nothing, h = np.empty_like(gradient), 1e-6
    for i in range(len(parameters)):
        kept = parameters[i]
        parameters[i] = kept + h
        above = functions.loss_and_gradient(parameters, x, y, nothing)
        parameters[i] = kept - h
        below = functions.loss_and_gradient(parameters, x, y, nothing)
        parameters[i] = kept
        np.testing.assert_allclose(gradient[i], (above - below) / (2 * h), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_in", [1, 3, 16, 37])
def test_statistics_of_the_data_are_constants(n_in, dtype):
    """Of two models of one network, each has its own; derivatives by x go through them."""
    for seed in (1, 2):
        random = np.random.default_rng(seed)
        model = model_of([Standardize(), Dense(7, "tanh"), Dense(2)], n_in, MSE(), dtype, "adam")
        model.adapt(random.normal(random.uniform(-50, 50, n_in), random.uniform(0.5, 3.0, n_in), (30, n_in)))
        x = (model.state["0.mean"] + random.normal(size=n_in)).astype(dtype)
        y = random.normal(size=2).astype(dtype)
        functions, parameters, batch_y = model.as_njit(), model.parameter_vector, y[None]
        out, gradient = np.full(2, np.nan, dtype), np.full(functions.n_parameters, np.nan, dtype)
        functions.predict(parameters, x, out)
        assert_close(out, model.predict(x[None])[0], dtype)
        loss = functions.loss_and_gradient(parameters, x, y, gradient)
        expected, gradients = model.loss_and_gradients(x[None], batch_y)
        assert_close(loss, expected, dtype)
        assert_close(gradient, flat(gradients), dtype)

        jacobian, by_x, weight = np.empty((2, n_in), dtype), np.empty(n_in, dtype), np.array([0.5, -2.0], dtype)
        functions.jacobian(parameters, x, jacobian)
        inner = nbbp.Model(nbbp.Sequential(model.network.layers[1:], n_in), MSE(), dtype="float64").as_njit()
        deviation = np.sqrt(model.state["0.variance"].astype("float64"))
        inner_jacobian, standardized = np.empty((2, n_in)), (x.astype("float64") - model.state["0.mean"]) / deviation
        inner.jacobian(parameters.astype("float64"), standardized, inner_jacobian)
        assert_close(jacobian, inner_jacobian / deviation, dtype, times=3.0)
        functions.input_gradient(parameters, x, weight, by_x)
        assert_close(by_x, weight @ jacobian, dtype)
        summed = np.zeros_like(gradient)
        functions.backpropagate(parameters, x, out - y, summed, by_x)
        assert_close(summed, gradient, dtype)

        twin = copy.deepcopy(model)
        slots = np.zeros(functions.n_slots, dtype)
        for step in (1, 2, 3):
            functions.train_step(parameters, slots, step, x, y)
            twin.train_step(x[None], batch_y)
        assert_close(parameters, twin.parameter_vector, dtype, times=30.0)


def test_a_stream_of_data_that_are_standardized():
    """By the batch engine, which compiles nothing for the statistics of one model."""
    X = np.random.default_rng(0).normal(30.0, 4.0, (20, 3)).astype("float32")
    models = [model_of([Standardize(), Dense(2)], 3, MSE(), "float32") for _ in range(2)]
    for model in models:
        model.adapt(X)
    for x in X:
        assert models[0].partial_fit(x, x[:2]) == models[1].train_step(x[None], x[None, :2])
    np.testing.assert_array_equal(models[0].parameter_vector, models[1].parameter_vector)


def test_padding_holds_no_trap():
    """What a formula gives for the zeros behind the last unit must not reach the numbers."""
    assert_same_learning(model_of([Dense(3, "log_softmax"), Dense(3, "softsign"), Dense(2)], 3, MSE(), "float32"))
