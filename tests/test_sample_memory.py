"""The sample engine reads and writes its arrays and nothing else: they lie against pages that may not be touched."""

import ctypes
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
from engine_cases import DTYPES, assert_near

import nbbp
from nbbp.layers import Dense
from nbbp.losses import MSE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="mprotect is POSIX's")

#: Every width up to two AVX-512 registers of float32 and beyond, each as n_in and as n_out, in pairs of all kinds.
CHAINS = [
    (1, 1, 2, 1, 3, 2, 2, 4, 3, 3, 5, 4, 4, 6, 5, 5, 7, 6, 6, 8, 7),
    (8, 8, 9, 16, 8, 17, 9, 15, 16, 16, 17, 17, 1, 16, 2, 17, 3, 15, 15, 4, 31),
    (32, 32, 33, 16, 33, 33, 1, 33, 5, 32, 3, 31, 31, 64, 17, 65, 2, 65, 65, 64, 1),
]
OPTIMIZERS = [nbbp.SGD(0.1), nbbp.Adam(), nbbp.Adadelta(), nbbp.Adam(amsgrad=True), nbbp.Adafactor()]
PROT_NONE = 0


def between_guards(values, at_end):
    """A copy of an array that ends (or begins) where a page begins (or ends) that nobody may touch."""
    values = np.ascontiguousarray(values)
    n_pages = -(-max(values.nbytes, 1) // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (n_pages + 2) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (start, start + (n_pages + 1) * mmap.PAGESIZE):
        assert protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), PROT_NONE) == 0
    offset = mmap.PAGESIZE + (n_pages * mmap.PAGESIZE - values.nbytes if at_end else 0)
    array = np.frombuffer(memory, values.dtype, values.size, offset).reshape(values.shape)
    array[...] = values
    return array


def run_everything(sizes, dtype, optimizer, at_end):
    """Every function of a network on guarded arrays; what each gives, beside what it should."""
    layers = [Dense(n, "softsign") for n in sizes[1:]]
    model = nbbp.Model(nbbp.Sequential(layers, n_in=sizes[0]), MSE(reduction="sum", scale=0.5), optimizer, dtype=dtype)
    functions, random = model.as_njit(), np.random.default_rng(len(sizes))
    x = between_guards(random.standard_normal(sizes[0]).astype(dtype), at_end)
    y = between_guards(random.standard_normal(sizes[-1]).astype(dtype), at_end)
    parameters = between_guards(model.parameter_vector, at_end)
    empty = [(n,) for n in (sizes[-1], sizes[0], sizes[0], len(parameters), len(parameters))]
    out, by_x, by_x_again, gradient, summed = (between_guards(np.zeros(shape, dtype), at_end) for shape in empty)
    jacobian = between_guards(np.zeros((sizes[-1], sizes[0]), dtype), at_end)
    slots = between_guards(np.zeros(functions.n_slots, dtype), at_end)

    functions.predict(parameters, x, out)
    functions.loss_and_gradient(parameters, x, y, gradient)
    output_gradient = between_guards(out - y, at_end)
    functions.input_gradient(parameters, x, output_gradient, by_x)
    functions.backpropagate(parameters, x, output_gradient, summed, by_x_again)
    functions.jacobian(parameters, x, jacobian)
    functions.train_step(parameters, slots, 1, x, y)

    expected_gradient = np.concatenate([g.ravel() for g in model.loss_and_gradients(x[None], y[None])[1].values()])
    expected_out = model.predict(x[None])[0]
    model.train_step(x[None], y[None])
    return [
        (out, expected_out),
        (gradient, expected_gradient),
        (summed, expected_gradient),
        (by_x, output_gradient @ jacobian),
        (by_x_again, by_x),
        (parameters, model.parameter_vector),
    ]


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_nothing_beyond_an_array_is_touched(chain, dtype, at_end):
    for k, start in enumerate(range(0, len(chain) - 1, 4)):
        sizes = chain[start : start + 5]
        for came, expected in run_everything(sizes, dtype, OPTIMIZERS[k], at_end):
            # Adam's first step turns a last-bit difference of a tiny gradient into more
            assert_near(came, expected, dtype, {"float32": 1e-4, "float64": 1e-9}[dtype])


def test_the_guards_hold():
    """A process that touches the page behind an array ends: the test above can fail."""
    code = (
        "import numpy as np, test_sample_memory as t\n"
        "array = t.between_guards(np.zeros(3), True)\n"
        "behind = np.lib.stride_tricks.as_strided(array, (4,))\n"
        "behind[3] = 1\n"
    )
    folder = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ".:.."},
        timeout=120,
    )
    assert done.returncode < 0, "it was not ended by a signal"
