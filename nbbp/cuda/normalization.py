"""Batch normalization: statistics of the columns of a batch.

Legend: matrices are (batch, width). gamma and beta are the numbers of `parameters`, one after the other; where that is
empty gamma is 1 and beta 0. x^ is the normalized x. `statistics` (2, width): mean and 1 / sqrt(variance + eps) of the
batch. `state`: running mean, then running variance, (width,) each. COLUMN_LANES threads share a column: each takes
every COLUMN_LANES-th row, and the parts are added in their order. A mean is refined by the mean of what is left, which
makes it exact for equal numbers, as in nbbp/cpu/normalization_simd.py.

Ioffe and Szegedy, "Batch Normalization", 2015, algorithms 1 and 2.
"""

import math

from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import (
    ARRAY,
    COLUMN_LANES,
    COLUMNS,
    INTEGER,
    INTEGERS,
    N_SAMPLES,
    NUMBER,
    STEP,
    kernel,
)
from nbbp.cuda.lanes import sum_of_column
from nbbp.cuda.launch import Binding, binds, column_sums, matrix

_SHAPE = (COLUMN_LANES, COLUMNS)


@kernel(INTEGERS, INTEGER, ARRAY, ARRAY, ARRAY, INTEGER, INTEGER, NUMBER, NUMBER)
def batch_norm_statistics(number, variant):
    """statistics of x (batch, width), and state = (1 - momentum) · state + momentum · statistic, unless it is empty.

    The variance that state takes is that of a sample (n / (n - 1)); it takes none of one row, nor where the statistics
    of a column are not finite. Writes statistics and state.
    """
    zero, one, infinity = number(0), number(1), number("inf")

    def batch_norm_statistics(clock, batch, statistics, state, x, x_stride, width, eps, momentum):
        sum_of = cuda.shared.array(_SHAPE, number)
        squares_of = cuda.shared.array(_SHAPE, number)
        column, lane = cuda.threadIdx.x, cuda.threadIdx.y
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        for first in range(cuda.blockIdx.x * COLUMNS, width, cuda.gridDim.x * COLUMNS):
            j, total = first + column, zero
            if j < width:
                for r in range(lane, n_rows, COLUMN_LANES):
                    total += x[r * x_stride + j]
            sum_of[lane, column] = total
            cuda.syncthreads()
            mean = sum_of_column(sum_of, column) / number(n_rows)
            cuda.syncthreads()
            rest, squares = zero, zero
            if j < width:
                for r in range(lane, n_rows, COLUMN_LANES):
                    value = x[r * x_stride + j] - mean
                    rest += value
                    squares += value * value
            sum_of[lane, column] = rest
            squares_of[lane, column] = squares
            cuda.syncthreads()
            if lane == 0 and j < width:
                rest, squares = sum_of_column(sum_of, column), sum_of_column(squares_of, column)
                shift = rest / number(n_rows)
                mean += shift
                variance = (squares - rest * shift) / number(n_rows)
                variance = zero if variance < zero else variance  # NaN stays
                statistics[j] = mean
                statistics[width + j] = one / number(math.sqrt(variance + eps))
                if state.size > 0 and n_rows > 1 and abs(mean) < infinity and abs(variance) < infinity:
                    unbiased = number(n_rows) / number(n_rows - 1) * variance
                    state[j] = (one - momentum) * state[j] + momentum * mean
                    state[width + j] = (one - momentum) * state[width + j] + momentum * unbiased
            cuda.syncthreads()

    return batch_norm_statistics


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, ARRAY, INTEGER)
def batch_norm_forward(number, variant):
    """y = x^ · gamma + beta; x, y (batch, width), the same or apart. Writes y."""

    def batch_norm_forward(clock, batch, y, y_stride, x, x_stride, statistics, parameters, width):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                value = (x[r * x_stride + j] - statistics[j]) * statistics[width + j]
                if parameters.size > 0:
                    value = value * parameters[j] + parameters[width + j]
                y[r * y_stride + j] = value

    return batch_norm_forward


@kernel(INTEGERS, INTEGER, ARRAY, ARRAY, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER)
def batch_norm_sums(number, variant):
    """sums (2, width): Σ d · x^ and Σ d over the rows, which gradient (2, width) is too unless it is empty.

    d, x (batch, width), d the output gradient. Writes sums and gradient.
    """
    zero = number(0)

    def batch_norm_sums(clock, batch, sums, gradient, d, d_stride, x, x_stride, statistics, width):
        inner_of = cuda.shared.array(_SHAPE, number)
        sum_of = cuda.shared.array(_SHAPE, number)
        column, lane = cuda.threadIdx.x, cuda.threadIdx.y
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        for first in range(cuda.blockIdx.x * COLUMNS, width, cuda.gridDim.x * COLUMNS):
            j, inner, total = first + column, zero, zero
            if j < width:
                for r in range(lane, n_rows, COLUMN_LANES):
                    slope = d[r * d_stride + j]
                    inner += slope * (x[r * x_stride + j] - statistics[j])
                    total += slope
            inner_of[lane, column] = inner
            sum_of[lane, column] = total
            cuda.syncthreads()
            if lane == 0 and j < width:
                inner, total = sum_of_column(inner_of, column), sum_of_column(sum_of, column)
                inner *= statistics[width + j]
                sums[j] = inner
                sums[width + j] = total
                if gradient.size > 0:
                    gradient[j] = inner
                    gradient[width + j] = total
            cuda.syncthreads()

    return batch_norm_sums


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, ARRAY, ARRAY, INTEGER)
def batch_norm_backward(number, variant):
    """d = gamma / deviation · (d - mean d - x^ · mean(d · x^)), means over the rows.

    d, x (batch, width), d the output gradient, sums from `batch_norm_sums`. Writes d.
    """

    def batch_norm_backward(clock, batch, d, d_stride, x, x_stride, sums, statistics, parameters, width):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        for r in range(row, n_rows, rows):
            for j in range(column, width, columns):
                inverse = statistics[width + j]
                scale = inverse * parameters[j] if parameters.size > 0 else inverse
                normalized = (x[r * x_stride + j] - statistics[j]) * inverse
                # d - mean first: of a single row it is zero, and stays so
                slope = d[r * d_stride + j] - sums[width + j] / number(n_rows)
                d[r * d_stride + j] = scale * (slope - normalized * (sums[j] / number(n_rows)))

    return batch_norm_backward


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, ARRAY, INTEGER, NUMBER)
def batch_norm_inference(number, variant):
    """y = (x - running mean) / sqrt(running variance + eps) · gamma + beta; x, y (batch, width), the same or apart."""

    def batch_norm_inference(clock, batch, y, y_stride, x, x_stride, state, parameters, width, eps):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                value = (x[r * x_stride + j] - state[j]) / number(math.sqrt(state[width + j] + eps))
                if parameters.size > 0:
                    value = value * parameters[j] + parameters[width + j]
                y[r * y_stride + j] = value

    return batch_norm_inference


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, ARRAY, INTEGER, NUMBER)
def batch_norm_inference_backward(number, variant):
    """d *= gamma / sqrt(running variance + eps): running statistics do not depend on x. d (batch, width)."""

    def batch_norm_inference_backward(clock, batch, d, d_stride, state, parameters, width, eps):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                slope = d[r * d_stride + j] / number(math.sqrt(state[width + j] + eps))
                d[r * d_stride + j] = slope * parameters[j] if parameters.size > 0 else slope

    return batch_norm_inference_backward


def parameters_of(op: Binding) -> object:
    """gamma and beta, or an empty array where the layer has none."""
    return op.array(ops.PARAMETERS) if op[ops.N_PARAMETERS] else op.bound.nothing()


@binds("batch_norm_forward")
def bind_forward(op: Binding) -> None:
    """Statistics, then the numbers."""
    x, width, kept = (op.array(ops.X), op[ops.X_STRIDE]), op[ops.N_OUT], op.array(ops.KEPT)
    op.launch(
        "batch_norm_statistics", column_sums(width), op.clock, op.batch, kept, op.array(ops.STATE), *x, width,
        op.setting(0), op.setting(1),
    )  # fmt: skip
    op.launch(
        "batch_norm_forward", matrix(op.batch, width), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE], *x,
        kept, parameters_of(op), width,
    )  # fmt: skip


@binds("batch_norm_backward")
def bind_backward(op: Binding) -> None:
    """Sums over the rows, which are the parameters' gradient, then the output gradient."""
    x, d, width = (op.array(ops.X), op[ops.X_STRIDE]), (op.array(ops.Y), op[ops.Y_STRIDE]), op[ops.N_OUT]
    kept, sums = op.array(ops.KEPT), op.scratch(2 * width)
    op.launch(
        "batch_norm_sums", column_sums(width), op.clock, op.batch, sums, op.array(ops.GRADIENT), *d, *x, kept, width
    )
    op.launch(
        "batch_norm_backward", matrix(op.batch, width), op.clock, op.batch, *d, *x, sums, kept, parameters_of(op),
        width,
    )  # fmt: skip


@binds("batch_norm_inference", "batch_norm_inference_backward")
def bind_inference(op: Binding) -> None:
    """By running statistics."""
    x = () if op.kernel.endswith("backward") else (op.array(ops.X), op[ops.X_STRIDE])
    op.launch(
        op.kernel, matrix(op.batch, op[ops.N_OUT]), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE], *x,
        op.array(ops.STATE), parameters_of(op), op[ops.N_OUT], op.setting(0),
    )  # fmt: skip
