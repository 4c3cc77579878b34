"""Elementwise losses: each row's loss and the gradient with respect to what the last layer gives.

Legend: batch rows, `width` outputs; `parameter` is the loss's (label smoothing for binary_crossentropy).

    loss = scale / count · sum over rows r of weight[r] · sum over outputs j of l(x[r, j], target[r, j])

count: rows of the whole batch times outputs for the mean, 1 for the sum. `row_values` takes weight · mean (or sum) over
outputs · scale, in float64. ROW_LANES threads share a row.
"""

import numpy as np
from numba import cuda

from nbbp import ops
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
from nbbp.cuda.verdict import judge_losses
from nbbp.scalars.losses import LOSSES, loss_derivative, loss_value

_BINARY = LOSSES["binary_crossentropy"].code
ELEMENTWISE = tuple(formula.code for formula in LOSSES.values() if not formula.row_wise)
_SHAPE = (ROWS, ROW_LANES)


@kernel(
    INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, ARRAY, INTEGER, INTEGERS, ARRAY, DOUBLES, NUMBER,
    NUMBER, INTEGER, variants=ELEMENTWISE,
)  # fmt: skip
def loss(number, variant):
    """row_values[r], and y = d loss / d x unless y is empty; x, y (batch, width), target (n, width)."""
    is_binary, one, half = variant == _BINARY, number(1), number(0.5)

    def loss(
        clock, batch, y, y_stride, x, x_stride, width, target, target_stride, order, weights, row_values, parameter,
        scale, is_mean,
    ):  # fmt: skip
        sum_of = cuda.shared.array(_SHAPE, np.float64)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        start = clock[STEP] * batch
        n_rows = min(batch, clock[N_SAMPLES] - start)
        for first in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
            r, total, weight = first + row, 0.0, one
            if r < n_rows:
                source = order[start + r] if order.size > 0 else start + r
                if weights.size > 0:
                    weight = weights[source]
                factor = weight * scale / number(width * n_rows if is_mean != 0 else 1)
                for j in range(lane, width, ROW_LANES):
                    wanted = target[source * target_stride + j]
                    if is_binary:
                        wanted = wanted * (one - parameter) + parameter * half
                    given = x[r * x_stride + j]
                    total += np.float64(loss_value(variant, given, wanted, parameter))
                    if y.size > 0:
                        y[r * y_stride + j] = factor * loss_derivative(variant, given, wanted, parameter)
            sum_of[row, lane] = total
            cuda.syncthreads()
            if lane == 0 and r < n_rows:
                per_row = np.float64(scale) / (width if is_mean != 0 else 1)
                row_values[start + r] = np.float64(weight) * sum_of_row(sum_of, row) * per_row
            cuda.syncthreads()

    return loss


@binds("loss")
def bind_loss(op: Binding) -> None:
    """An elementwise loss, and in training whether it is finite."""
    op.launch(
        "loss", row_sums(op.batch), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE], op.array(ops.X),
        op[ops.X_STRIDE], op[ops.N_OUT], op.array(ops.TARGET), op[ops.TARGET_STRIDE], op.array(ops.ORDER, np.int64),
        op.array(ops.SAMPLE_WEIGHT), op.array(ops.ROW_VALUES, np.float64), op.setting(0), op.setting(1),
        int(op.setting(2)), variant=op.variant,
    )  # fmt: skip
    if op.has(ops.Y):
        judge_losses(op)
