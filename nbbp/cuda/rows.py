"""Rows in and out: gather a batch from the data, copy results to the caller's array, copy and add matrices.

Legend: rows r of the batch; row ``step · batch + r`` of the run; its number in the data is ``order`` of that, or that
itself where there is no order.
"""

from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, INTEGER, INTEGERS, N_SAMPLES, STEP, kernel
from nbbp.cuda.launch import Binding, binds, matrix


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGERS, INTEGER)
def gather(number, variant):
    """y[r, :] = x[order[r], :]; x (n, width), y (batch, width). Writes y."""

    def gather(clock, batch, y, y_stride, x, x_stride, order, width):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        first = clock[STEP] * batch
        for r in range(row, min(batch, clock[N_SAMPLES] - first), rows):
            source = order[first + r] if order.size > 0 else first + r
            for j in range(column, width, columns):
                y[r * y_stride + j] = x[source * x_stride + j]

    return gather


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER)
def copy_out(number, variant):
    """y[row of the run, :] = x[r, :]; x (batch, width), y (n, width). Writes y."""

    def copy_out(clock, batch, y, y_stride, x, x_stride, width):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        first = clock[STEP] * batch
        for r in range(row, min(batch, clock[N_SAMPLES] - first), rows):
            for j in range(column, width, columns):
                y[(first + r) * y_stride + j] = x[r * x_stride + j]

    return copy_out


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER)
def copy_rows(number, variant):
    """y = x; x, y (batch, width), apart. Writes y."""

    def copy_rows(clock, batch, y, y_stride, x, x_stride, width):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                y[r * y_stride + j] = x[r * x_stride + j]

    return copy_rows


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER)
def add_rows(number, variant):
    """y = x + w; x, w, y (batch, width), of which any may be the same, or else apart. Writes y."""

    def add_rows(clock, batch, y, y_stride, x, x_stride, w, w_stride, width):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                y[r * y_stride + j] = x[r * x_stride + j] + w[r * w_stride + j]

    return add_rows


@kernel(INTEGERS)
def next_step(number, variant):
    """Move the clock to the next step of the run. One thread."""

    def next_step(clock):
        if cuda.grid(1) == 0:
            clock[STEP] += 1

    return next_step


@binds("gather")
def bind_gather(op: Binding) -> None:
    """Rows of the data."""
    order = op.bound.attached("order")
    op.launch(
        "gather", matrix(op.batch, op[ops.N_OUT]), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE],
        op.array(ops.X), op[ops.X_STRIDE], order, op[ops.N_OUT],
    )  # fmt: skip


@binds("copy_out", "copy_rows")
def bind_copy(op: Binding) -> None:
    """Rows of a matrix."""
    op.launch(
        op.kernel, matrix(op.batch, op[ops.N_OUT]), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE],
        op.array(ops.X), op[ops.X_STRIDE], op[ops.N_OUT],
    )  # fmt: skip


@binds("add_rows")
def bind_add(op: Binding) -> None:
    """Rows of two matrices."""
    op.launch(
        "add_rows", matrix(op.batch, op[ops.N_OUT]), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE],
        op.array(ops.X), op[ops.X_STRIDE], op.array(ops.W), op[ops.W_STRIDE], op[ops.N_OUT],
    )  # fmt: skip


@binds("reduce_gradient")
def bind_reduce(op: Binding) -> None:
    """The sum of partial gradients: a program for a GPU has one of them, which is where it belongs."""
    if op.has(ops.X):
        raise NotImplementedError("a program for CUDA has one gradient, in one place")
