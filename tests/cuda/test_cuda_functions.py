"""A network inside a kernel of the user's own: one sample a thread, against the same network on the CPU."""

import numpy as np
import pytest
from engine_cases import ALL_ACTIVATIONS, ALL_LOSSES, DTYPES, assert_all_near, assert_near, label, model_of, one_sample
from numba import cuda

import nbbp
from nbbp import losses
from nbbp.cuda import kernels
from nbbp.layers import Activation, BatchNorm, Dense

LAYERS = [Dense(6, "tanh"), Dense(4, "gelu", use_bias=False), Dense(3)]
N = 5


def launched(kernel, *arguments):
    """Run a kernel of N threads; the arrays as they are behind it."""
    arrays = [cuda.to_device(np.ascontiguousarray(argument)) for argument in arguments]
    kernels.configured(cuda.jit(kernel), (1,), (N,), 0)(*arrays)
    return [array.copy_to_host() for array in arrays]


def samples_of(model):
    return np.random.default_rng(1).standard_normal((N, model.network.n_in)).astype(model.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", ["linear", "softmax", "log_softmax", "sigmoid"])
def test_predict(last, dtype):
    model = model_of([*LAYERS[:2], Dense(3, last)], 5, losses.MSE(), dtype)
    functions = model.as_cuda_device()
    predict, n = functions.predict, functions.n_scratch
    assert (functions.n_in, functions.n_out, functions.dtype) == (5, 3, model.dtype)
    assert functions.n_parameters == len(model.parameter_vector)

    def kernel(parameters, x, out, scratch):
        i = cuda.grid(1)
        predict(parameters, x[i], out[i], scratch[i])

    x = samples_of(model)
    out = launched(kernel, model.parameter_vector, x, np.zeros((N, 3), dtype), np.zeros((N, n), dtype))[2]
    assert_near(out, model.predict(x), dtype)


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_loss_and_gradient(loss):
    model = model_of([*LAYERS[:2], Dense(3, "log_softmax" if loss.name == "nll" else "linear")], 5, loss)
    functions = model.as_cuda_device()
    loss_and_gradient, n, is_label = functions.loss_and_gradient, functions.n_scratch, loss.row_wise
    x, y, xs, ys = one_sample(model)
    expected = model.loss_and_gradients(xs, ys)
    targets = np.array([[y]]) if is_label else y[None]

    def of_label(parameters, x, y, gradient, scratch, total):
        if cuda.grid(1) == 0:
            total[0] = loss_and_gradient(parameters, x, y[0, 0], gradient, scratch)

    def of_values(parameters, x, y, gradient, scratch, total):
        if cuda.grid(1) == 0:
            total[0] = loss_and_gradient(parameters, x, y[0], gradient, scratch)

    kernel, gradient = of_label if is_label else of_values, np.full(functions.n_parameters, np.nan)
    found = launched(kernel, model.parameter_vector, x, targets, gradient, np.zeros(n), np.zeros(1))
    assert_near(found[5][0], expected[0])
    assert_all_near(model._named(found[3]), dict(expected[1]))


@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_products_with_the_jacobian(activation):
    model = model_of([Dense(4, activation), Activation("tanh"), Dense(3, activation)], 5, losses.MSE())
    functions, reference = model.as_cuda_device(), model.as_njit()
    input_gradient, backpropagate, n = functions.input_gradient, functions.backpropagate, functions.n_scratch

    def kernel(parameters, x, d, out, both, gradient, scratch):
        i = cuda.grid(1)
        input_gradient(parameters, x[i], d[i], out[i], scratch[i])
        backpropagate(parameters, x[i], d[i], gradient[i], both[i], scratch[i])

    x, n_parameters = samples_of(model), functions.n_parameters
    d = np.random.default_rng(2).standard_normal((N, 3))
    start = np.ones((N, n_parameters))
    outs = launched(kernel, model.parameter_vector, x, d, np.zeros((N, 5)), np.zeros((N, 5)), start, np.zeros((N, n)))
    for i in range(N):
        gradient, out = np.ones(n_parameters), np.empty(5)
        reference.backpropagate(model.parameter_vector, x[i], d[i], gradient, out)
        assert_near(outs[3][i], out)
        assert_near(outs[4][i], out)
        assert_near(outs[5][i], gradient)


def test_a_network_of_one_layer():
    model = model_of([Dense(1)], 1, losses.MSE())
    predict = model.as_cuda_device().predict

    def kernel(parameters, x, out, scratch):
        predict(parameters, x[cuda.grid(1)], out[cuda.grid(1)], scratch[cuda.grid(1)])

    x = samples_of(model)
    out = launched(kernel, model.parameter_vector, x, np.zeros((N, 1)), np.zeros((N, 3)))[2]
    assert_near(out, model.predict(x))


def test_networks_that_no_kernel_takes():
    network = nbbp.Sequential([Dense(3), BatchNorm()], n_in=2)
    with pytest.raises(ValueError, match="takes dense layers and activations; layer 1 is BatchNorm"):
        nbbp.Model(network, "mse").as_cuda_device()
    with pytest.raises(ValueError, match="no parameters yet"):
        nbbp.Model(nbbp.Sequential([Dense(3)]), "mse").as_cuda_device()
    nll = nbbp.Model(nbbp.Sequential([Dense(3)], n_in=2), "nll").as_cuda_device()
    with pytest.raises(ValueError, match="nll in a kernel needs a network that ends in log_softmax"):
        nll.loss_and_gradient  # noqa: B018 - asks
