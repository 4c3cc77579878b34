"""Metrics: one number per row, whose mean over the samples the metric's description finishes.

Legend: batch rows, `width` outputs; `row_values` takes the row's number in float64. Targets as for a loss: int64
labels, or rows of values, of which the other array is empty. The variants' numbers are those of nbbp/metrics.py.
ROW_LANES threads share a row.
"""

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda.crossentropy import targets
from nbbp.cuda.kernels import (
    ARRAY,
    DOUBLES,
    INTEGER,
    INTEGERS,
    N_SAMPLES,
    NUMBER,
    ROW_LANES,
    ROWS,
    STEP,
    kernel,
)
from nbbp.cuda.lanes import sum_of_row
from nbbp.cuda.launch import Binding, binds, row_sums

RIGHT_CLASS, RIGHT_SIDES, IN_TOP_K, ABSOLUTE_ERROR, SQUARED_ERROR = range(5)
_SHAPE = (ROWS, ROW_LANES)


@kernel(
    INTEGERS, INTEGER, ARRAY, INTEGER, INTEGER, ARRAY, INTEGER, INTEGERS, INTEGERS, DOUBLES, NUMBER,
    variants=(RIGHT_CLASS, RIGHT_SIDES, IN_TOP_K, ABSOLUTE_ERROR, SQUARED_ERROR),
)  # fmt: skip
def metric(number, variant):
    """row_values[r] of x (batch, width); `parameter`: the threshold (RIGHT_SIDES) or k (IN_TOP_K)."""
    one, half, zero = number(1), number(0.5), number(0)
    is_rank, is_top, is_sides = variant in (RIGHT_CLASS, IN_TOP_K), variant == IN_TOP_K, variant == RIGHT_SIDES
    is_absolute = variant == ABSOLUTE_ERROR

    def metric(clock, batch, x, x_stride, width, target, target_stride, labels, order, row_values, parameter):
        sum_of = cuda.shared.array(_SHAPE, np.float64)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        start = clock[STEP] * batch
        n_rows = min(batch, clock[N_SAMPLES] - start)
        for first in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
            r, total, label = first + row, 0.0, 0
            if r < n_rows:
                source = order[start + r] if order.size > 0 else start + r
                if labels.size > 0:
                    label = labels[source]
                elif is_rank:
                    for j in range(1, width):
                        at = source * target_stride
                        label = j if target[at + j] > target[at + label] else label
                right = x[r * x_stride + label]
                for j in range(lane, width, ROW_LANES):
                    given = x[r * x_stride + j]
                    if is_rank:
                        # how many are ahead of the right class; False for NaN, which is never right
                        is_behind = given < right if j < label and not is_top else given <= right
                        if not is_behind and j != label:
                            total += 1.0
                    else:
                        if labels.size > 0:  # as its one-hot row
                            wanted = one if label == j else zero
                        else:
                            wanted = target[source * target_stride + j]
                        error = np.float64(given - wanted)
                        if is_sides:
                            is_right = given > parameter if wanted > half else given <= parameter
                            total += 1.0 if is_right else 0.0
                        elif is_absolute:
                            total += abs(error)
                        else:
                            total += error * error
            sum_of[row, lane] = total
            cuda.syncthreads()
            if lane == 0 and r < n_rows:
                total = sum_of_row(sum_of, row)
                if is_rank:
                    most = np.float64(parameter) - 1.0 if is_top else 0.0
                    right = x[r * x_stride + label]
                    row_values[start + r] = 1.0 if total <= most and right == right else 0.0
                else:
                    row_values[start + r] = total / width
            cuda.syncthreads()

    return metric


@binds("metric")
def bind_metric(op: Binding) -> None:
    """One metric."""
    op.launch(
        "metric", row_sums(op.batch), op.clock, op.batch, op.array(ops.X), op[ops.X_STRIDE], op[ops.N_OUT],
        *targets(op), op.array(ops.ORDER, np.int64), op.array(ops.ROW_VALUES, np.float64), op.setting(0),
        variant=op.variant,
    )  # fmt: skip
