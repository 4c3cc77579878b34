"""Rows of a table in place of category numbers, and the gradient of the table.

Legend: x (batch, n_lookups) holds categories, in neighbouring columns of the data that share the table w
(n_categories, width); y (batch, n_lookups · width) the rows that they name, side by side. A number that is no category
all the same reads or changes another row of the table, never other memory.
"""

from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, INTEGER, INTEGERS, N_SAMPLES, STEP, kernel
from nbbp.cuda.launch import Binding, binds, matrix
from nbbp.scalars.dispatch import formula


@formula
def category(value, n_categories):
    """`value` as one of 0 … n_categories - 1, of which each is exact in its dtype; NaN is 0."""
    number = type(value)
    if not value > number(0):
        return 0
    return int(value) if value < number(n_categories) else n_categories - 1


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, INTEGER)
def embedding_forward(number, variant):
    """y[r, k · width + j] = w[x[r, k], j]. Writes y, which must not overlap x and w."""

    def embedding_forward(clock, batch, y, y_stride, x, x_stride, w, n_categories, width, n_lookups):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for k in range(n_lookups):
                at = category(x[r * x_stride + k], n_categories) * width
                for j in range(column, width, columns):
                    y[r * y_stride + k * width + j] = w[at + j]

    return embedding_forward


@kernel(INTEGERS, INTEGER, ARRAY, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, INTEGER, INTEGER)
def embedding_backward(number, variant):
    """gradient[c, j] = the sum of d_y[r, k · width + j] over the r and k with x[r, k] = c, in their order.

    gradient (n_categories, width); d_y (batch, n_lookups · width). Writes gradient: each number of it is one thread's,
    which goes through all lookups, so that no two threads ever add to the same place.
    """
    zero = number(0)

    def embedding_backward(clock, batch, gradient, d_y, d_stride, x, x_stride, n_categories, width, n_lookups):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        for c in range(row, n_categories, rows):
            for j in range(column, width, columns):
                total = zero
                for r in range(n_rows):
                    for k in range(n_lookups):
                        if category(x[r * x_stride + k], n_categories) == c:
                            total += d_y[r * d_stride + k * width + j]
                gradient[c * width + j] = total

    return embedding_backward


@binds("embedding_forward")
def bind_forward(op: Binding) -> None:
    """Rows of one table."""
    op.launch(
        "embedding_forward", matrix(op.batch, op[ops.N_OUT]), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE],
        op.array(ops.X), op[ops.X_STRIDE], op.array(ops.W), op[ops.N_IN], op[ops.N_OUT], op[ops.N_LOOKUPS],
    )  # fmt: skip


@binds("embedding_backward")
def bind_backward(op: Binding) -> None:
    """The gradient of one table."""
    op.launch(
        "embedding_backward", matrix(op[ops.N_IN], op[ops.N_OUT]), op.clock, op.batch, op.array(ops.GRADIENT),
        op.array(ops.D_Y), op[ops.D_Y_STRIDE], op.array(ops.X), op[ops.X_STRIDE], op[ops.N_IN], op[ops.N_OUT],
        op[ops.N_LOOKUPS],
    )  # fmt: skip
