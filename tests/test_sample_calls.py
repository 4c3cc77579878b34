"""How the functions of the sample engine are called: arrays, threads, caching, errors."""

import copy
import pickle
import threading

import numpy as np
import pytest
from engine_cases import features_for, model_of, one_sample, small_model
from numba import njit, prange
from numba.core.errors import TypingError

import nbbp
from nbbp.layers import Dense
from nbbp.losses import MSE, Crossentropy


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


def test_nothing_is_allocated(classifier):
    functions, (x, y, _, _) = classifier.as_njit(), one_sample(classifier)
    parameters, slots = classifier.parameter_vector.copy(), np.zeros(functions.n_slots, "float32")
    # compiled anew, because code from the cache shows no IR
    train_step, loss_and_gradient = njit(functions.train_step.py_func), njit(functions.loss_and_gradient.py_func)
    train_step(parameters, slots, 1, x, y)
    loss_and_gradient(parameters, x, y, np.empty_like(parameters))

    @njit
    def allocates(n):
        return np.empty(n)

    allocates(3)
    for function, expected in ((train_step, False), (loss_and_gradient, False), (allocates, True)):
        (code,) = function.inspect_llvm().values()
        assert ("NRT_Allocate" in code or "NRT_MemInfo_alloc" in code) == expected


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
        (functions.backpropagate, (parameters, x, out[1:], gradient, x), "output_gradient has the wrong length"),
        (functions.backpropagate, (parameters, x, out, gradient[1:], x), "gradient has the wrong length"),
        (functions.backpropagate, (parameters, x, out, gradient, x[1:]), "out has the wrong length"),
        (
            functions.jacobian,
            (parameters, x, jacobian.T.copy()),
            r"out has the wrong length; this network takes an array \(3, 5\)",
        ),
        (functions.loss_and_gradient, (parameters, x, 1, gradient[1:]), "gradient has the wrong length"),
        (functions.loss_and_gradient, (parameters, x, 3, gradient), "y is no label of this network; it takes 0 to 2"),
        (functions.loss_and_gradient, (parameters, x, -1, gradient), "y is no label"),
        (
            functions.loss_and_gradient,
            (parameters, x, out[1:], gradient),
            "y has the wrong length; this network takes 3",
        ),
        (functions.train_step, (parameters, slots[1:], 1, x, 1), "slots has the wrong length"),
        (functions.train_step, (parameters, slots, 0, x, 1), "steps count from 1"),
        (functions.train_step, (parameters, slots, 1, x, 3), "y is no label"),
    ]
    before = parameters.copy()
    for function, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    np.testing.assert_array_equal(parameters, before)


def test_types_are_checked(classifier):
    functions, (x, _, _, _) = classifier.as_njit(), one_sample(classifier)
    parameters, out = classifier.parameter_vector, np.empty(3, "float32")
    slots, read_only = np.zeros(functions.n_slots, "float32"), out.copy()
    read_only.flags.writeable = False
    cases = [
        (
            functions.predict,
            (parameters.astype("f8"), x, out),
            "parameters must be a C-contiguous one-dimensional array",
        ),
        (functions.predict, (parameters, x, out.astype("f8")), r"out must be .* of float32; got array\(float64"),
        (functions.predict, (parameters, x, read_only), "out is written to, so it must not be read-only"),
        (functions.predict, (parameters, x[None], out), "x must be a one-dimensional array of float32"),
        (functions.loss_and_gradient, (parameters, x, 1.0, parameters), "y must be an integer label"),
        (functions.predict, (parameters, x.astype("f2"), out), "x must be a one-dimensional array of float32, float64"),
        (functions.train_step, (parameters, slots, 1.5, x, 1), "step must be an integer"),
        (functions.jacobian, (parameters, x, out), "out must be a C-contiguous two-dimensional array"),
    ]
    for function, arguments, message in cases:
        with pytest.raises(TypingError, match=message) as raised:
            function(*arguments)
        assert "Literal value" not in str(raised.value)  # of Numba's second try, which says nothing


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "bool"])
def test_labels_of_any_integer(classifier, kind):
    functions, (x, _, _, _) = classifier.as_njit(), one_sample(classifier)
    first, second = np.empty((2, functions.n_parameters), "float32")
    loss = functions.loss_and_gradient(classifier.parameter_vector, x, 1, first)
    assert functions.loss_and_gradient(classifier.parameter_vector, x, np.ones(1, kind)[0], second) == loss
    np.testing.assert_array_equal(first, second)


def test_a_network_too_wide_for_the_stack_is_refused():
    model = nbbp.Model(nbbp.Sequential([Dense(1)], n_in=200_000), "mse")
    with pytest.raises(ValueError, match="at most 32,768 numbers; this network has 400,004"):
        model.as_njit()


def test_a_custom_layer_is_refused_and_learns_online_by_the_batch_engine():
    def forward(parameters, x, y):
        y[:] = x

    def backward(parameters, x, y, d_y, d_x, gradient):
        d_x[:] = d_y

    model = nbbp.Model(nbbp.Sequential([Dense(3), nbbp.Custom(forward, backward)], n_in=2), "mse")
    with pytest.raises(ValueError, match=r"takes dense layers and activations, .*; layer 1 is Custom"):
        model.as_njit()
    losses = [model.partial_fit(np.ones(2, "f4"), np.ones(3, "f4")) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]


def test_a_model_without_sizes_is_refused():
    with pytest.raises(ValueError, match="this model has no parameters yet"):
        nbbp.Model(nbbp.Sequential([Dense(1)]), "mse").as_njit()


def test_functions_are_of_one_process(classifier):
    with pytest.raises(TypeError, match="pickle the model and call as_njit again"):
        pickle.dumps(classifier.as_njit())
