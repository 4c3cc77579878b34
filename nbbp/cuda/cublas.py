"""Large products of dense layers by cuBLAS, where NVIDIA's binding to it is installed; bias and rectifiers behind it.

The binding is nvmath-python, NVIDIA's own: its functions take the addresses and numbers that the C functions take, so
that memory of Numba's is used as it lies. (CuPy's is part of the internals of an array library, which brings a memory
pool along.) Without it nbbp's own kernels do these products too.

Numbers are those of the dtype throughout: float32 is multiplied as float32 (no TF32, no emulation). The library's own
epilogues are no use, because they do not promise that a rectifier keeps NaN: `finish_product` does what comes behind.

The library takes sizes from the host, where other kernels find the rows of a step on the GPU; so steps of fewer rows
than a batch are launched with `rows` of their own, and are in no graph.

Legend: Y (m, n) = A·B, A (m, k), B (k, n), as in nbbp/cuda/dense.py, by rows. The library goes by columns, and sees the
transposed of everything: Yᵀ (n, m) = Bᵀ·Aᵀ, with the row strides as its leading dimensions.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from typing import Any

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import (
    ARRAY,
    INTEGER,
    INTEGERS,
    N_SAMPLES,
    NUMBER,
    OVER_ROWS,
    SIMULATED,
    STEP,
    TRANSPOSED,
    kernel,
)
from nbbp.cuda.launch import Binding, matrix
from nbbp.cuda.memory import address

#: Floating-point operations from which on a product goes to the library. It saves a share of the arithmetic, perhaps a
#: quarter, and costs a pass over Y and a launch where there is a bias or a rectifier: of 10⁹ operations, which take
#: 20 µs at 50 TFLOP/s, some 5 µs against 2 to 4 for a Y of 4 to 8 MB. An estimate, not measured on a GPU yet.
LEAST_WORK = 1e9
#: Sizes of a product below which the library has no better tiles either.
LEAST_SIDE = 64
#: Bytes of the library's workspace, as many as it takes for itself on the largest GPUs.
WORKSPACE = 32 << 20


def binding() -> Any:
    """The binding's functions, or None where there are none: on the simulator, or where it is not installed."""
    if SIMULATED:
        return None
    try:
        from nvmath.bindings import cublas as found
    except ImportError:
        return None
    return found


class Library:
    """The library as a bound program finds it: with a handle from the first product on that asks for it.

    Parameters
    ----------
    stream : stream
        On which everything is launched.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @functools.cached_property
    def handle(self) -> Handle | None:
        """The handle; None where there is no library, with a warning if its binding is there nevertheless."""
        functions = binding()
        if functions is None:
            return None
        try:
            return Handle(functions, self._stream)
        except Exception as error:  # of several modules of the binding, and of the driver
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"large products are computed without cuBLAS ({reason})", RuntimeWarning, stacklevel=2)
            return None


class Handle:
    """The library's state for one bound program: its stream and a workspace, which no other stream may share.

    With a workspace of its own it allocates nothing, also while a graph is recorded, and gives the same bits run after
    run.

    Parameters
    ----------
    functions : module
        As `binding` gives.
    stream : stream

    Raises
    ------
    Exception
        Of the binding's, if the library or the driver is missing or refuses.
    """

    def __init__(self, functions: Any, stream: Any) -> None:
        self.functions, self.value = functions, functions.create()
        workspace = cuda.device_array(WORKSPACE, np.uint8)
        released = weakref.finalize(self, _release, functions, self.value, workspace)
        released.atexit = False  # at the end of a process the driver takes everything back, and may be gone by then
        functions.set_stream(self.value, int(stream))  # before the workspace, which it would put back to the default
        functions.set_workspace(self.value, address(workspace), WORKSPACE)
        functions.set_math_mode(self.value, functions.Math.DEFAULT_MATH)
        functions.set_atomics_mode(self.value, functions.AtomicsMode.NOT_ALLOWED)
        functions.set_pointer_mode(self.value, functions.PointerMode.HOST)


def _release(functions: Any, handle: int, workspace: Any) -> None:
    """Give a handle back, and then its workspace."""
    functions.destroy(handle)


class LibraryProduct:
    """Y = A·B as a launch of a bound program, see `nbbp.cuda.launch.Launch`; `rows` of the batch take part.

    Parameters
    ----------
    handle : Handle
    y, x, w : (device array, row stride)
        X is A, or of a product over rows Aᵀ (k, m); W is B, or Bᵀ (n, k) where it is transposed.
    n_in, n_out, rows : int
    layout : int
        FORWARD, TRANSPOSED or OVER_ROWS.
    """

    def __init__(
        self, handle: Handle, y: tuple[Any, int], x: tuple[Any, int], w: tuple[Any, int], n_in: int, n_out: int,
        rows: int, layout: int,
    ) -> None:  # fmt: skip
        self._handle, self._y, self._x, self._w = handle, y, x, w
        self.n_in, self.n_out, self.rows, self._over_rows = n_in, n_out, rows, layout == OVER_ROWS
        as_it_is, turned = handle.functions.Operation.N, handle.functions.Operation.T
        self._operations = turned if layout == TRANSPOSED else as_it_is, turned if self._over_rows else as_it_is
        self._multiply = handle.functions.sgemm if y[0].dtype == np.float32 else handle.functions.dgemm
        self._one, self._zero = np.ones(1, y[0].dtype), np.zeros(1, y[0].dtype)

    def take(self, arrays: Any) -> None:
        """Arrays of the caller's: there are none among the operands."""

    def __call__(self) -> None:
        m, k = (self.n_in, self.rows) if self._over_rows else (self.rows, self.n_in)
        (y, y_stride), (x, x_stride), (w, w_stride) = self._y, self._x, self._w
        self._multiply(
            self._handle.value, *self._operations, self.n_out, m, k, self._one.ctypes.data, address(w), w_stride,
            address(x), x_stride, self._zero.ctypes.data, address(y), y_stride,
        )  # fmt: skip


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, INTEGER, ARRAY, NUMBER, ARRAY, INTEGER)
def finish_product(number, variant):
    """y = max(floor, y + bias), and 0 where gate is not positive; y, gate (batch, width), bias (width,).

    Empty arrays: no bias, no gate. NaN stays. Writes y.
    """
    zero = number(0)

    def finish_product(clock, batch, y, y_stride, width, bias, floor, gate, gate_stride):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                value = y[r * y_stride + j]
                if bias.size > 0:
                    value += bias[j]
                value = floor if value < floor else value
                if gate.size > 0 and gate[r * gate_stride + j] <= zero:
                    value = zero
                y[r * y_stride + j] = value

    return finish_product


def bind_product(op: Binding, layout: int) -> bool:
    """Add the launches of a product by the library, if it is large enough and there is one; whether they were added."""
    n_in, n_out = op[ops.N_IN], op[ops.N_OUT]
    is_large = 2.0 * op.batch * n_in * n_out >= LEAST_WORK and min(op.batch, n_in, n_out) >= LEAST_SIDE
    if not is_large or not all(op.is_ours(column) for column in (ops.Y, ops.X, ops.W)):
        return False
    handle = op.bound.library.handle
    if handle is None:
        return False
    operands = ((op.array(a), op[b]) for a, b in ((ops.Y, ops.Y_STRIDE), (ops.X, ops.X_STRIDE), (ops.W, ops.W_STRIDE)))
    op.add(LibraryProduct(handle, *operands, n_in, n_out, op.batch, layout))
    floor, bias, gate = op.setting(0), op.array(ops.BIAS), op.array(ops.KEPT)
    if bias.size or gate.size or floor > -np.inf:
        op.launch(
            "finish_product", matrix(op.batch, n_out), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE], n_out,
            bias, floor, gate, op[ops.KEPT_STRIDE],
        )  # fmt: skip
    return True
