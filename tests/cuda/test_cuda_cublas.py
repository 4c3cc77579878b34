"""Large products by cuBLAS, with a library that is made up: what it is asked for, and that models come out the same."""

import ctypes
import enum
import gc

import numpy as np
import pytest
from cuda_cases import assert_same_gradients, assert_same_standing, assert_same_steps, batch_of, twins
from engine_cases import DTYPES, assert_near
from numba import cuda

from nbbp import losses
from nbbp.cuda import cublas, kernels
from nbbp.cuda.kernels import FORWARD, OVER_ROWS, TRANSPOSED
from nbbp.layers import Dense

LOSS = losses.Crossentropy()
LAYERS = [Dense(7, "relu"), Dense(6, "tanh", use_bias=False), Dense(5, "relu"), Dense(3)]


class Library:
    """cuBLAS as its manual says, on memory that is the host's; records calls, and refuses what a test names."""

    Operation = enum.IntEnum("Operation", {"N": 0, "T": 1})
    Math = enum.IntEnum("Math", {"DEFAULT_MATH": 0, "TF32_TENSOR_OP_MATH": 3})
    AtomicsMode = enum.IntEnum("AtomicsMode", {"NOT_ALLOWED": 0, "ALLOWED": 1})
    PointerMode = enum.IntEnum("PointerMode", {"HOST": 0, "DEVICE": 1})

    def __init__(self, refuses=None):
        self.refuses, self.calls, self.sizes = refuses, [], []

    def _called(self, name, *given):
        if name == self.refuses:
            raise RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")
        self.calls.append((name, *given))

    def create(self):
        self._called("create")
        return 40 + sum(name == "create" for name, *_ in self.calls)

    def destroy(self, handle):
        self._called("destroy", handle)

    def set_stream(self, handle, stream):
        self._called("stream", handle, stream)

    def set_workspace(self, handle, workspace, size):
        assert workspace % 256 == 0 or kernels.SIMULATED
        self._called("workspace", handle, size)

    def set_math_mode(self, handle, mode):
        self._called("math", handle, mode)

    def set_atomics_mode(self, handle, mode):
        self._called("atomics", handle, mode)

    def set_pointer_mode(self, handle, mode):
        self._called("pointers", handle, mode)

    def sgemm(self, *arguments):
        self._multiply(np.float32, *arguments)

    def dgemm(self, *arguments):
        self._multiply(np.float64, *arguments)

    def _multiply(self, dtype, handle, turn_a, turn_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        """C (m, n) = alpha · op(A) · op(B) + beta · C; what lies between columns is nobody's."""
        assert min(m, n, k) > 0
        (alpha,), (beta,) = (_numbers(place, 1, dtype) for place in (alpha, beta))
        A = _by_columns(a, *((k, m) if turn_a else (m, k)), lda, dtype)
        B = _by_columns(b, *((n, k) if turn_b else (k, n)), ldb, dtype)
        C = _by_columns(c, m, n, ldc, dtype)
        product = (A.T if turn_a else A) @ (B.T if turn_b else B)
        C[...] = alpha * product + (beta * C if beta != 0 else 0)  # of beta 0, NaN in C goes nowhere
        self.sizes.append((m, n, k))


def _numbers(place, n, dtype):
    size = n * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(place), dtype)


def _by_columns(place, n_rows, n_columns, leading, dtype):
    """A matrix whose columns are `leading` numbers apart, which is a view of the memory."""
    assert leading >= n_rows
    numbers = _numbers(place, leading * (n_columns - 1) + n_rows, dtype)
    size = numbers.itemsize
    return np.lib.stride_tricks.as_strided(numbers, (n_rows, n_columns), (size, leading * size))


pytestmark = pytest.mark.skipif(not kernels.SIMULATED, reason="the library is made up")


@pytest.fixture
def library(monkeypatch, op_by_op):
    """Every product goes to the library."""
    found = Library()
    monkeypatch.setattr(cublas, "binding", lambda: found)
    monkeypatch.setattr(cublas, "LEAST_WORK", 0)
    monkeypatch.setattr(cublas, "LEAST_SIDE", 1)
    monkeypatch.setattr(cublas, "WORKSPACE", 1 << 10)
    monkeypatch.setattr(type(cuda.stream()), "__int__", lambda stream: 7, raising=False)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [FORWARD, TRANSPOSED, OVER_ROWS])
@pytest.mark.parametrize(("rows", "n_in", "n_out"), [(1, 1, 1), (5, 3, 7), (17, 9, 4)])
def test_layouts(library, layout, rows, n_in, n_out, dtype):
    """Matrices by rows with gaps between them; what Y held before, and what lies in the gaps, counts for nothing."""
    rng = np.random.default_rng(3)
    over_rows, transposed = layout == OVER_ROWS, layout == TRANSPOSED
    shapes = {FORWARD: (n_in, n_out), TRANSPOSED: (n_out, n_in), OVER_ROWS: (rows, n_out)}
    x, w = rng.standard_normal((rows, n_in)).astype(dtype), rng.standard_normal(shapes[layout]).astype(dtype)
    expected = (x.T if over_rows else x).astype(float) @ (w.T if transposed else w)

    def with_gaps(matrix, gap):
        spread = np.full((len(matrix) + 1, matrix.shape[1] + gap), np.nan, dtype)
        spread[:-1, :-gap] = matrix
        return cuda.to_device(spread.ravel()), spread.shape[1]

    y = with_gaps(np.full(expected.shape, np.nan), 2)
    handle = cublas.Handle(library, cuda.stream())
    cublas.LibraryProduct(handle, y, with_gaps(x, 3), with_gaps(w, 1), n_in, n_out, rows, layout)()
    found = y[0].copy_to_host().reshape(-1, y[1])
    assert_near(found[:-1, :n_out], expected, dtype)
    assert np.isnan(found[-1]).all()
    assert np.isnan(found[:, n_out:]).all()


def test_a_handle_has_a_stream_and_a_workspace_of_its_own(library):
    handle = cublas.Handle(library, cuda.stream())
    names = [name for name, *_ in library.calls]
    assert names.index("stream") < names.index("workspace")  # a new stream would put the workspace back
    assert ("stream", handle.value, 7) in library.calls
    assert ("math", handle.value, library.Math.DEFAULT_MATH) in library.calls  # float32 as it is, not TF32
    assert ("atomics", handle.value, library.AtomicsMode.NOT_ALLOWED) in library.calls
    value = handle.value
    del handle
    gc.collect()
    assert library.calls[-1] == ("destroy", value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_models_train_by_it(library, dtype):
    models = twins(LAYERS, 5, LOSS, dtype, optimizer="adam")
    x, y = batch_of(models[0], 17)
    assert_same_gradients(*models, x, y)
    assert_same_steps(*models, [batch_of(models[0], n, n) for n in (17, 3, 1, 17)])
    assert library.sizes
    assert_near(models[1].predict(x), models[0].predict(x), dtype)


def test_short_batches_have_sizes_of_their_own(library):
    models = twins(LAYERS, 5, LOSS, optimizer="adam")
    x, y = batch_of(models[0], 17)
    for model in models:
        model.fit(x, y, batch_size=7, epochs=2, verbose=0, validation_data=(x, y))
    assert_same_standing(*models)
    rows_of_gradients = [k for _, _, k in library.sizes if k in (7, 3)]
    assert {7, 3} <= set(rows_of_gradients)
    library.sizes.clear()
    assert_near(models[1].predict(x[:2]), models[0].predict(x[:2]))
    assert {n for _, n, _ in library.sizes} == {2}  # of the rows that there are, not of a whole batch


def test_nan_goes_through_rectifiers(library):
    models = twins([Dense(4, "relu"), Dense(3)], 5, losses.MSE(), "float32")
    x, _ = batch_of(models[0], 3)
    models[1].parameters["0.bias"][2] = np.nan
    assert np.isnan(models[1].predict(x)).all()


def test_only_large_products_go_there(library, monkeypatch):
    monkeypatch.setattr(cublas, "LEAST_WORK", 2.0 * 17 * 7 * 6)
    models = twins(LAYERS, 5, LOSS)
    assert_same_steps(*models, [batch_of(models[0], 17)])
    # of the first layer, of 5 inputs, only the weight gradient is, whose column of ones brings the bias along
    assert set(library.sizes) == {(7, 6, 17), (6, 17, 7), (7, 17, 6), (6, 7, 17)}
    monkeypatch.setattr(cublas, "LEAST_SIDE", 8)
    library.sizes.clear()
    assert_same_steps(*twins(LAYERS, 5, LOSS), [batch_of(models[0], 17)])
    assert library.sizes == []


@pytest.mark.parametrize("name", ["create", "workspace"])
def test_where_it_is_not_to_be_had(library, name):
    library.refuses = name
    models = twins(LAYERS, 5, LOSS)
    batches = [batch_of(models[0], 4)]
    with pytest.warns(RuntimeWarning, match="large products are computed without cuBLAS .RuntimeError: CUBLAS_STATUS"):
        assert_same_steps(*models, batches)
    assert library.sizes == []


def test_short_batches_are_in_no_graph(library, monkeypatch):
    """Whole batches are recorded, once one has run; the last, of fewer rows, is launched by itself."""
    from test_cuda_graph import Driver

    monkeypatch.setattr("nbbp.cuda.engine._address", lambda array: id(array) if array.size else 0)
    models = twins(LAYERS, 5, LOSS)
    X, y = batch_of(models[0], 17)
    session = models[1]._session
    session.begin_fit()
    bound = session.training(3, True, True)
    driver, kept, steps = Driver(), {}, []
    bound._driver, found, step = driver, bound._place, bound._step
    bound._place = lambda name, n, dtype: kept.setdefault((name, n), found(name, n, dtype))

    def launch():
        steps.append((driver.recording is not None, {product.rows for product in bound._sized}))
        driver.recorded(step)()

    bound._step = launch
    for model in models:
        model.fit(X, y, epochs=2, batch_size=3, verbose=0)
    assert_same_standing(*models)
    assert steps == [(False, {3})] * 5 + [(False, {2}), (True, {3}), (False, {2})]


def test_the_binding_has_what_is_asked_of_it():
    """Names, and the order of arguments, of which the made-up library has the same."""
    binding = pytest.importorskip("nvmath.bindings.cublas")
    for function in ("create", "destroy", "set_stream", "set_workspace", "set_math_mode", "set_atomics_mode"):
        assert callable(getattr(binding, function))
    assert binding.Math.DEFAULT_MATH == Library.Math.DEFAULT_MATH
    assert binding.Operation.T == Library.Operation.T
    assert binding.AtomicsMode.NOT_ALLOWED == Library.AtomicsMode.NOT_ALLOWED
    assert binding.PointerMode.HOST == Library.PointerMode.HOST
    order = ["handle", "transa", "transb", "m", "n", "k", "alpha", "a", "lda", "b", "ldb", "beta", "c", "ldc"]
    for function in (binding.sgemm, binding.dgemm):
        given = function.__doc__.partition("(")[2].partition(")")[0].split(", ")
        assert [argument.split()[-1] for argument in given] == order
