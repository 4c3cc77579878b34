"""Losses over classes: crossentropy of logits, fused with its softmax, and the negative log-likelihood.

Legend: batch rows, `width` classes. Targets are int64 labels, or rows of probabilities, of which the other array is
empty; both are smoothed to t' = (1 - s) t + s / width (Szegedy et al., "Rethinking the Inception Architecture", 2016,
section 7). `row_values` as in nbbp/cuda/loss.py. ROW_LANES threads share a row.

    crossentropy: l = log(sum exp x) · sum t' - <t', x>,    dl/dx = softmax(x) · sum t' - t'
    nll:          l = -<t', x>,                             dl/dx = -t'
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
from nbbp.cuda.lanes import largest_of_part, largest_of_row, sum_of_row
from nbbp.cuda.launch import Binding, binds, row_sums
from nbbp.cuda.verdict import judge_losses
from nbbp.scalars.dispatch import formula
from nbbp.scalars.functions import exp, log

_KINDS = (
    INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, ARRAY, INTEGER, INTEGERS, INTEGERS, ARRAY, DOUBLES,
    NUMBER, NUMBER, INTEGER,
)  # fmt: skip
_SHAPE = (ROWS, ROW_LANES)


@formula
def smoothed(j, label, target, wanted_at, kept, even):
    """t' of class j: of a label, or where that is -1 of the row of targets that begins at `wanted_at`."""
    if label >= 0:
        return even + (kept if j == label else type(kept)(0))
    return even + kept * target[wanted_at + j]


@kernel(*_KINDS)
def crossentropy(number, variant):
    """row_values[r], and y = d loss / d x unless y is empty; x, y (batch, width) logits and gradient. Writes y."""
    zero, one, lowest = number(0), number(1), number("-inf")

    def crossentropy(
        clock, batch, y, y_stride, x, x_stride, width, target, target_stride, labels, order, weights, row_values,
        smoothing, scale, is_mean,
    ):  # fmt: skip
        largest_of = cuda.shared.array(_SHAPE, number)
        sum_of = cuda.shared.array(_SHAPE, number)
        mass_of = cuda.shared.array(_SHAPE, number)
        inner_of = cuda.shared.array(_SHAPE, np.float64)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        start = clock[STEP] * batch
        n_rows = min(batch, clock[N_SAMPLES] - start)
        kept, even = one - smoothing, smoothing / number(width)
        for first in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
            r, source, label, weight = first + row, 0, -1, one
            largest, total, mass, inner = lowest, zero, zero, 0.0
            if r < n_rows:
                source = order[start + r] if order.size > 0 else start + r
                if weights.size > 0:
                    weight = weights[source]
                if labels.size > 0:
                    label = labels[source]
                largest = largest_of_part(x, r * x_stride, width, lane, lowest)
            largest_of[row, lane] = largest
            cuda.syncthreads()
            largest = largest_of_row(largest_of, row)
            if r < n_rows:
                for j in range(lane, width, ROW_LANES):
                    value = x[r * x_stride + j] - largest
                    total += exp(value)
                    wanted = smoothed(j, label, target, source * target_stride, kept, even)
                    mass += wanted
                    if wanted != zero:  # 0 · -inf would be NaN
                        inner += np.float64(wanted * value)
            sum_of[row, lane] = total
            mass_of[row, lane] = mass
            inner_of[row, lane] = inner
            cuda.syncthreads()
            total, inner = sum_of_row(sum_of, row), sum_of_row(inner_of, row)
            mass = one if labels.size > 0 else sum_of_row(mass_of, row)
            if r < n_rows:
                if y.size > 0:
                    factor = weight * (scale / number(n_rows if is_mean != 0 else 1))
                    share = factor * mass / total
                    for j in range(lane, width, ROW_LANES):
                        wanted = smoothed(j, label, target, source * target_stride, kept, even)
                        y[r * y_stride + j] = share * exp(x[r * x_stride + j] - largest) - factor * wanted
                if lane == 0:
                    value = np.float64(log(total)) * np.float64(mass) - inner
                    row_values[start + r] = np.float64(weight * scale) * value
            cuda.syncthreads()

    return crossentropy


@kernel(*_KINDS)
def nll(number, variant):
    """row_values[r], and y = d loss / d x unless y is empty; x, y (batch, width) log-probabilities and gradient.

    Writes y. There is no smoothing.
    """
    zero, one = number(0), number(1)

    def nll(
        clock, batch, y, y_stride, x, x_stride, width, target, target_stride, labels, order, weights, row_values,
        smoothing, scale, is_mean,
    ):  # fmt: skip
        inner_of = cuda.shared.array(_SHAPE, np.float64)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        start = clock[STEP] * batch
        n_rows = min(batch, clock[N_SAMPLES] - start)
        for first in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
            r, weight, inner = first + row, one, 0.0
            if r < n_rows:
                source = order[start + r] if order.size > 0 else start + r
                if weights.size > 0:
                    weight = weights[source]
                factor = weight * scale / number(n_rows if is_mean != 0 else 1)
                for j in range(lane, width, ROW_LANES):
                    if labels.size > 0:
                        wanted = one if j == labels[source] else zero
                    else:
                        wanted = target[source * target_stride + j]
                    if wanted != zero:  # 0 · -inf would be NaN
                        inner += np.float64(wanted * x[r * x_stride + j])
                    if y.size > 0:
                        y[r * y_stride + j] = -factor * wanted
            inner_of[row, lane] = inner
            cuda.syncthreads()
            if lane == 0 and r < n_rows:
                row_values[start + r] = -np.float64(weight * scale) * sum_of_row(inner_of, row)
            cuda.syncthreads()

    return nll


@binds("crossentropy", "nll")
def bind_crossentropy(op: Binding) -> None:
    """A loss over classes, and in training whether it is finite.

    (Its gradient always has a place, which evaluation does not read.)
    """
    op.launch(
        op.kernel, row_sums(op.batch), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE], op.array(ops.X),
        op[ops.X_STRIDE], op[ops.N_OUT], *targets(op), op.array(ops.ORDER, np.int64), op.array(ops.SAMPLE_WEIGHT),
        op.array(ops.ROW_VALUES, np.float64), op.setting(0), op.setting(1), int(op.setting(2)),
    )  # fmt: skip
    judge_losses(op)


def targets(op: Binding) -> tuple:
    """Dense targets, their row stride, and labels: one of the two arrays is empty."""
    if op[ops.TARGET_IS_LABELS]:
        return op.bound.nothing(), 0, op.array(ops.TARGET, np.int64)
    return op.array(ops.TARGET), op[ops.TARGET_STRIDE], op.bound.nothing(np.int64)
