"""The sample engine: every pass against the batch engine, central differences and itself under other circumstances."""

import copy
import pickle
import threading

import numpy as np
import pytest
from engine_cases import (
    ALL_ACTIVATIONS,
    ALL_LOSSES,
    ALL_OPTIMIZERS,
    DTYPES,
    features_for,
    label,
    model_of,
    replaced,
    small_model,
    targets_for,
)
from numba import njit, prange
from numba.core.errors import TypingError

import nbbp
from nbbp.layers import Activation, Dense
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


def assert_close(actual, expected, dtype, times=1.0):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(initial=0.0), 1e-2)
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=times * NEAR[dtype] * scale)


def one_sample(model, seed=3, kind="hard"):
    """x (n_in,), what the sample engine takes for y, and the same as a batch of one."""
    x = features_for(1, model.network.n_in, model.dtype.name, seed)
    y = targets_for(model.loss, 1, model.network.n_out, seed, kind)
    if y.ndim == 1:
        return x[0], int(y[0]), x, y
    y = y.astype(model.dtype)
    return x[0], y[0], x, y


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


# how it is called -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier():
    return small_model("tanh", Crossentropy(), "float32", "adam")


def test_arrays_of_any_dtype_and_stride(classifier):
    functions, (x, _, _, _) = classifier.as_njit(), one_sample(classifier)
    expected, out = np.empty(3, "float32"), np.empty(3, "float32")
    whole = np.round(4 * x)
    functions.predict(classifier.parameter_vector, whole, expected)
    columns = np.ascontiguousarray(np.stack([whole, whole], axis=1).T).T
    for given in (
        whole.astype("float64"),
        whole.astype("int64"),
        np.repeat(whole, 2)[::2],
        columns[:, 1],
        whole[::-1][::-1],
    ):
        out[:] = np.nan
        functions.predict(classifier.parameter_vector, given, out)
        np.testing.assert_array_equal(out, expected)
    read_only = whole.copy()
    read_only.flags.writeable = False
    functions.predict(classifier.parameter_vector, read_only, out)
    np.testing.assert_array_equal(out, expected)


def test_results_may_be_written_over_what_is_read():
    model = model_of([Dense(9, "tanh"), Dense(4)], 4, MSE(), "float32")
    functions, (x, _, _, _) = model.as_njit(), one_sample(model)
    expected = np.empty(4, "float32")
    functions.predict(model.parameter_vector, x, expected)
    both = x.copy()
    functions.predict(model.parameter_vector, both, both)
    np.testing.assert_array_equal(both, expected)


def test_one_output_takes_a_number_for_its_target():
    model = model_of([Dense(5, "tanh"), Dense(1)], 3, MSE(), "float32")
    functions, x = model.as_njit(), one_sample(model)[0]
    first, second = np.empty((2, functions.n_parameters), "float32")
    for y in (2, 2.0, np.float32(2), True + True):
        loss = functions.loss_and_gradient(model.parameter_vector, x, np.array([2.0]), first)
        assert functions.loss_and_gradient(model.parameter_vector, x, y, second) == loss
        np.testing.assert_array_equal(first, second)


def test_the_same_bits_from_threads_and_from_prange(classifier):
    functions = classifier.as_njit()
    predict, loss_and_gradient, train_step = functions.predict, functions.loss_and_gradient, functions.train_step
    X, y = features_for(64, 5, "float32"), np.random.default_rng(0).integers(0, 3, 64)
    n, n_slots = functions.n_parameters, functions.n_slots

    def work(parameters, X, y, outputs, gradients, trained, slots, rows):
        for i in rows:
            predict(parameters, X[i], outputs[i])
            loss_and_gradient(parameters, X[i], y[i], gradients[i])
            for step in range(1, 6):
                train_step(trained[i], slots[i], step, X[i], y[i])

    @njit(nogil=True)
    def serial(parameters, X, y, outputs, gradients, trained, slots):
        work_jitted(parameters, X, y, outputs, gradients, trained, slots, range(len(X)))

    @njit(parallel=True)
    def parallel(parameters, X, y, outputs, gradients, trained, slots):
        for i in prange(len(X)):
            work_jitted(parameters, X, y, outputs, gradients, trained, slots, range(i, i + 1))

    work_jitted = njit(nogil=True)(work)

    def buffers():
        trained = np.tile(classifier.parameter_vector, (64, 1))
        return np.empty((64, 3), "f4"), np.empty((64, n), "f4"), trained, np.zeros((64, n_slots), "f4")

    expected, in_parallel = buffers(), buffers()
    serial(classifier.parameter_vector, X, y, *expected)
    parallel(classifier.parameter_vector, X, y, *in_parallel)
    for mine, theirs in zip(in_parallel, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)

    from_threads = [buffers() for _ in range(4)]
    arguments = classifier.parameter_vector, X, y
    threads = [threading.Thread(target=serial, args=(*arguments, *mine)) for mine in from_threads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in from_threads:
        for came, theirs in zip(mine, expected, strict=True):
            np.testing.assert_array_equal(came, theirs)


def test_one_network_has_one_set_of_functions(classifier):
    functions, again = classifier.as_njit(), copy.deepcopy(classifier).as_njit()
    assert functions.predict is again.predict
    assert functions.train_step is again.train_step
    other = small_model("tanh", Crossentropy(), "float64", "adam").as_njit()
    assert functions.predict is not other.predict


def test_a_second_call_compiles_nothing(classifier):
    functions, (x, y, _, _) = classifier.as_njit(), one_sample(classifier)
    parameters, slots = classifier.parameter_vector.copy(), np.zeros(functions.n_slots, "float32")
    for step in (1, 2):
        functions.train_step(parameters, slots, step, x, y)
    assert len(functions.train_step.signatures) == 1


def test_a_loss_that_is_not_finite_updates_nothing():
    model = small_model("relu", MSE(), "float32", "adam")
    functions, (x, y, _, _) = model.as_njit(), one_sample(model)
    parameters, slots = model.parameter_vector.copy(), np.zeros(functions.n_slots, "float32")
    for bad in (np.nan, np.inf):
        x[:] = bad
        assert not np.isfinite(functions.train_step(parameters, slots, 1, x, y))
        np.testing.assert_array_equal(parameters, model.parameter_vector)
        assert not slots.any()


def test_nan_goes_through(classifier):
    functions, (x, _, _, _) = classifier.as_njit(), one_sample(classifier)
    x[-1], out = np.nan, np.zeros(3, "float32")
    functions.predict(classifier.parameter_vector, x, out)
    assert np.isnan(out).all()


def test_padding_holds_no_trap():
    """What a formula gives for the zeros behind the last unit must not reach the numbers: log_softmax(…) of 3 of 16."""
    model = model_of([Dense(3, "log_softmax"), Dense(3, "softsign"), Dense(2)], 3, MSE(), "float32")
    assert_same_learning(model)


# errors ---------------------------------------------------------------------------------------------------------------


def test_lengths_are_checked(classifier):
    functions, (x, _, _, _) = classifier.as_njit(), one_sample(classifier)
    parameters, out = classifier.parameter_vector, np.empty(3, "float32")
    gradient, slots = np.empty_like(parameters), np.zeros(functions.n_slots, "float32")
    jacobian = np.empty((3, 5), "float32")
    n = functions.n_parameters
    cases = [
        (functions.predict, (parameters[1:], x, out), f"parameters has the wrong length; this network takes {n}"),
        (functions.predict, (parameters, x[1:], out), "x has the wrong length; this network takes 5 features"),
        (functions.predict, (parameters, x, out[1:]), "out has the wrong length; this network takes 3 outputs"),
        (functions.input_gradient, (parameters, x, out[1:], x), "output_gradient has the wrong length"),
        (functions.input_gradient, (parameters, x, out, x[1:]), "out has the wrong length"),
        (functions.jacobian, (parameters, x, jacobian.T.copy()), r"out has the wrong shape; .* is \(3, 5\)"),
        (functions.loss_and_gradient, (parameters, x, 1, gradient[1:]), "gradient has the wrong length"),
        (functions.loss_and_gradient, (parameters, x, 3, gradient), "takes a label 0 to 2 or 3 target values"),
        (functions.loss_and_gradient, (parameters, x, -1, gradient), "y does not fit"),
        (functions.loss_and_gradient, (parameters, x, out[1:], gradient), "y does not fit"),
        (functions.train_step, (parameters, slots[1:], 1, x, 1), "slots has the wrong length"),
        (functions.train_step, (parameters, slots, 0, x, 1), "steps count from 1"),
        (functions.train_step, (parameters, slots, 1, x, 3), "y does not fit"),
    ]
    before = parameters.copy()
    for function, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    np.testing.assert_array_equal(parameters, before)


def test_types_are_checked(classifier):
    functions, (x, _, _, _) = classifier.as_njit(), one_sample(classifier)
    parameters, out = classifier.parameter_vector, np.empty(3, "float32")
    read_only = out.copy()
    read_only.flags.writeable = False
    cases = [
        (
            functions.predict,
            (parameters.astype("f8"), x, out),
            "parameters must be a C-contiguous one-dimensional array",
        ),
        (functions.predict, (parameters, x, out.astype("f8")), r"out must be .* of float32; got array\(float64"),
        (functions.predict, (parameters, x, read_only), "out is written to, so it must not be read-only"),
        (functions.predict, (parameters, x[None], out), "x must be a one-dimensional array of numbers"),
        (functions.loss_and_gradient, (parameters, x, 1.0, parameters), "y must be an integer label"),
        (functions.jacobian, (parameters, x, out), "out must be a C-contiguous two-dimensional array"),
    ]
    for function, arguments, message in cases:
        with pytest.raises(TypingError, match=message):
            function(*arguments)


def test_a_network_too_wide_for_the_stack_is_refused():
    model = nbbp.Model(nbbp.Sequential([Dense(1)], n_in=200_000), "mse")
    with pytest.raises(ValueError, match="at most 32,768 numbers; this network has 400,004"):
        model.as_njit()


def test_a_model_without_sizes_is_refused():
    with pytest.raises(ValueError, match="this model has no parameters yet"):
        nbbp.Model(nbbp.Sequential([Dense(1)]), "mse").as_njit()


def test_functions_are_of_one_process(classifier):
    with pytest.raises(TypeError, match="pickle the model and call as_njit again"):
        pickle.dumps(classifier.as_njit())
