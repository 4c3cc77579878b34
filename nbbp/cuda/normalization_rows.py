"""Layer norm and RMS norm: statistics of each row.

Legend: as in nbbp/cuda/normalization.py; `kept` holds what a row's backward pass needs again: its mean and
1 / sqrt(variance + eps) for layer norm, 1 / sqrt(mean square + eps) for RMS norm, which has no beta. The variants are
these two. ROW_LANES threads share a row.

Ba, Kiros and Hinton, "Layer Normalization", 2016; Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
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
    ROW_LANES,
    ROWS,
    STEP,
    kernel,
)
from nbbp.cuda.lanes import sum_of_column, sum_of_row
from nbbp.cuda.launch import Binding, binds, column_sums, row_sums
from nbbp.cuda.normalization import parameters_of

_LAYER_NORM, _RMS_NORM = "layer_norm", "rms_norm"
_VARIANTS = (_LAYER_NORM, _RMS_NORM)
_OF_ROWS, _OF_COLUMNS = (ROWS, ROW_LANES), (COLUMN_LANES, COLUMNS)


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, ARRAY, INTEGER, NUMBER, variants=_VARIANTS)
def norm_of_rows_forward(number, variant):
    """y = x^ · gamma + beta, x^ = (x - mean) / sqrt(variance + eps), or x / sqrt(mean x² + eps). Writes y and kept.

    x, y (batch, width), apart.
    """
    zero, one, is_centered = number(0), number(1), variant == _LAYER_NORM

    def norm_of_rows_forward(clock, batch, y, y_stride, x, x_stride, kept, parameters, width, eps):
        sum_of = cuda.shared.array(_OF_ROWS, number)
        squares_of = cuda.shared.array(_OF_ROWS, number)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        for first in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
            r, mean = first + row, zero
            if is_centered:
                total = zero
                if r < n_rows:
                    for j in range(lane, width, ROW_LANES):
                        total += x[r * x_stride + j]
                sum_of[row, lane] = total
                cuda.syncthreads()
                mean = sum_of_row(sum_of, row) / number(width)
                cuda.syncthreads()
            rest, squares = zero, zero
            if r < n_rows:
                for j in range(lane, width, ROW_LANES):
                    value = x[r * x_stride + j] - mean
                    rest += value
                    squares += value * value
            sum_of[row, lane] = rest
            squares_of[row, lane] = squares
            cuda.syncthreads()
            rest, squares = sum_of_row(sum_of, row), sum_of_row(squares_of, row)
            if is_centered:
                shift = rest / number(width)
                mean += shift
                squares -= rest * shift
                squares = zero if squares < zero else squares  # NaN stays
            inverse = one / number(math.sqrt(squares / number(width) + eps))
            if r < n_rows:
                for j in range(lane, width, ROW_LANES):
                    value = (x[r * x_stride + j] - mean) * inverse
                    if parameters.size > 0:
                        value *= parameters[j]
                        if is_centered:
                            value += parameters[width + j]
                    y[r * y_stride + j] = value
                if lane == 0 and is_centered:
                    kept[2 * r] = mean
                    kept[2 * r + 1] = inverse
                if lane == 0 and not is_centered:
                    kept[r] = inverse
            cuda.syncthreads()

    return norm_of_rows_forward


@kernel(INTEGERS, INTEGER, ARRAY, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, variants=_VARIANTS)
def norm_of_rows_gradient(number, variant):
    """gradient (2, width): d_gamma = Σ d · x^ and d_beta = Σ d over the rows; of RMS norm d_gamma alone.

    d, x (batch, width), d the output gradient. Writes gradient. COLUMN_LANES threads share a column.
    """
    zero, is_centered = number(0), variant == _LAYER_NORM

    def norm_of_rows_gradient(clock, batch, gradient, d, d_stride, x, x_stride, kept, width):
        inner_of = cuda.shared.array(_OF_COLUMNS, number)
        sum_of = cuda.shared.array(_OF_COLUMNS, number)
        column, lane = cuda.threadIdx.x, cuda.threadIdx.y
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        for first in range(cuda.blockIdx.x * COLUMNS, width, cuda.gridDim.x * COLUMNS):
            j, inner, total = first + column, zero, zero
            if j < width:
                for r in range(lane, n_rows, COLUMN_LANES):
                    slope, value = d[r * d_stride + j], x[r * x_stride + j]
                    if is_centered:
                        value = (value - kept[2 * r]) * kept[2 * r + 1]
                    else:
                        value *= kept[r]
                    inner += slope * value
                    total += slope
            inner_of[lane, column] = inner
            sum_of[lane, column] = total
            cuda.syncthreads()
            if lane == 0 and j < width:
                gradient[j] = sum_of_column(inner_of, column)
                if is_centered:
                    gradient[width + j] = sum_of_column(sum_of, column)
            cuda.syncthreads()

    return norm_of_rows_gradient


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, ARRAY, INTEGER, variants=_VARIANTS)
def norm_of_rows_backward(number, variant):
    """d = inverse · (g - mean g - x^ · mean(g · x^)), g = d · gamma, means over the columns; RMS norm has no mean g.

    d, x (batch, width), d the output gradient, kept of the forward pass. Writes d.
    """
    zero, one, is_centered = number(0), number(1), variant == _LAYER_NORM

    def norm_of_rows_backward(clock, batch, d, d_stride, x, x_stride, kept, parameters, width):
        sum_of = cuda.shared.array(_OF_ROWS, number)
        inner_of = cuda.shared.array(_OF_ROWS, number)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        for first in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
            r, mean, inverse, total, inner = first + row, zero, one, zero, zero
            if r < n_rows:
                if is_centered:
                    mean, inverse = kept[2 * r], kept[2 * r + 1]
                else:
                    inverse = kept[r]
                for j in range(lane, width, ROW_LANES):
                    slope = d[r * d_stride + j]
                    if parameters.size > 0:
                        slope *= parameters[j]
                    total += slope
                    inner += slope * (x[r * x_stride + j] - mean)
            sum_of[row, lane] = total
            inner_of[row, lane] = inner
            cuda.syncthreads()
            total = sum_of_row(sum_of, row) / number(width) if is_centered else zero
            inner = sum_of_row(inner_of, row)
            inner *= inverse / number(width)
            if r < n_rows:
                for j in range(lane, width, ROW_LANES):
                    slope = d[r * d_stride + j]
                    if parameters.size > 0:
                        slope *= parameters[j]
                    normalized = (x[r * x_stride + j] - mean) * inverse
                    d[r * d_stride + j] = inverse * ((slope - total) - normalized * inner)
            cuda.syncthreads()

    return norm_of_rows_backward


@binds("layer_norm_forward", "rms_norm_forward")
def bind_forward(op: Binding) -> None:
    """Statistics and numbers of each row."""
    op.launch(
        "norm_of_rows_forward", row_sums(op.batch), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE],
        op.array(ops.X), op[ops.X_STRIDE], op.array(ops.KEPT), parameters_of(op), op[ops.N_OUT], op.setting(0),
        variant=op.kernel.removesuffix("_forward"),
    )  # fmt: skip


@binds("layer_norm_backward", "rms_norm_backward")
def bind_backward(op: Binding) -> None:
    """The parameters' gradient, where somebody wants it, then the output gradient."""
    variant, width = op.kernel.removesuffix("_backward"), op[ops.N_OUT]
    d, x = (op.array(ops.Y), op[ops.Y_STRIDE]), (op.array(ops.X), op[ops.X_STRIDE])
    kept = op.array(ops.KEPT)
    if op.has(ops.GRADIENT):
        op.launch(
            "norm_of_rows_gradient", column_sums(width), op.clock, op.batch, op.array(ops.GRADIENT), *d, *x, kept,
            width, variant=variant,
        )  # fmt: skip
    op.launch(
        "norm_of_rows_backward", row_sums(op.batch), op.clock, op.batch, *d, *x, kept, parameters_of(op), width,
        variant=variant,
    )  # fmt: skip
