"""What the tests of the CUDA engine share: the same model on the CPU and on the GPU."""

import numpy as np
from engine_cases import assert_all_near, assert_near, copies, features_for, model_of, targets_for

#: Rows of a batch: one, few, an odd number, more than a block has.
BATCHES = (1, 3, 17)


def twins(layers, n_in, loss, dtype="float64", optimizer="sgd", **settings):
    """A model on the CPU, which is the oracle here, and the same one on the GPU."""
    return tuple(
        model_of(layers, n_in, loss, dtype, optimizer, device=device, **settings) for device in ("cpu", "cuda")
    )


def batch_of(model, n, seed=1, kind="hard"):
    """x (n, n_in) and targets."""
    x = features_for(n, model.network.n_in, model.dtype.name, seed)
    return x, targets_for(model.loss, n, model.network.n_out, seed, kind)


def assert_same_gradients(on_cpu, on_gpu, x, y, weight=None):
    """Loss and gradients of a batch."""
    dtype = on_cpu.dtype.name
    expected, actual = (model.loss_and_gradients(x, y, weight) for model in (on_cpu, on_gpu))
    assert_near(actual[0], expected[0], dtype, name="loss")
    assert_all_near(actual[1], expected[1], dtype)


def assert_same_steps(on_cpu, on_gpu, batches):
    """Losses of training steps, and the parameters and the optimizer's slots behind them."""
    dtype = on_cpu.dtype.name
    for x, y in batches:
        expected, actual = (model.train_step(x, y) for model in (on_cpu, on_gpu))
        assert_near(actual, expected, dtype, name="loss")
    assert_same_standing(on_cpu, on_gpu)


def assert_same_standing(on_cpu, on_gpu):
    """Parameters, states and slots."""
    dtype = on_cpu.dtype.name
    assert_all_near(on_gpu.parameters, copies(on_cpu.parameters), dtype)
    assert_all_near(on_gpu.state, copies(on_cpu.state), dtype)
    for actual, expected in zip(on_gpu._session.slots, on_cpu._session.slots, strict=True):
        assert_near(actual, np.array(expected), dtype, name="slot")
    assert on_gpu._session.step == on_cpu._session.step
