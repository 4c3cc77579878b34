"""Metrics: one number per row, whose mean over the samples the metric's description finishes.

Legend: batch rows, N_OUT outputs. ROW_VALUES takes the row's number in float64. Targets as for a loss: int64 labels, or
rows of N_OUT values (one-hot, probabilities, or the values themselves). The variants' numbers are those of
nbbp/metrics.py.
"""

from numba import float64, int64

from nbbp import ops
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel

RIGHT_CLASS, RIGHT_SIDES, IN_TOP_K, ABSOLUTE_ERROR, SQUARED_ERROR = range(5)


@kernel("metric", (RIGHT_CLASS, RIGHT_SIDES, IN_TOP_K, ABSOLUTE_ERROR, SQUARED_ERROR))
def metric(zero, variant):
    """ROW_VALUES[r] of X (batch, N_OUT); SETTINGS holds the threshold (RIGHT_SIDES) or k (IN_TOP_K). Cut by rows."""

    def metric(op, step, row_start, row_stop, column_start, column_stop, scratch):
        parameter = simd.pointer(op[ops.SETTINGS], zero)[0]
        values = simd.pointer(op[ops.ROW_VALUES], float64(0))
        order = simd.pointer(op[ops.ORDER], int64(0))
        labels = simd.pointer(op[ops.TARGET], int64(0))
        n, first = op[ops.N_OUT], step * op[ops.BATCH]
        for r in range(row_start, row_stop):
            source = order[first + r] if op[ops.ORDER] != 0 else first + r
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            target = simd.advance(simd.pointer(op[ops.TARGET], zero), source * op[ops.TARGET_STRIDE])
            value = float64(0)
            if variant == RIGHT_CLASS or variant == IN_TOP_K:
                label = int64(0)
                if op[ops.TARGET_IS_LABELS]:
                    label = labels[source]
                else:
                    for j in range(1, n):
                        label = j if target[j] > target[label] else label
                ahead = 0
                for j in range(n):
                    is_behind = x[j] <= x[label]  # False for NaN, which is never right
                    if variant == RIGHT_CLASS and j < label:
                        is_behind = x[j] < x[label]
                    ahead += (not is_behind) & (j != label)
                most = int64(0) if variant == RIGHT_CLASS else int64(parameter) - 1
                value = float64(ahead <= most) if x[label] == x[label] else float64(0)
            else:
                for j in range(n):
                    if op[ops.TARGET_IS_LABELS]:  # as its one-hot row
                        wanted = type(zero)(labels[source] == j)
                    else:
                        wanted = target[j]
                    error = float64(x[j] - wanted)
                    if variant == RIGHT_SIDES:
                        is_yes = wanted > type(zero)(0.5)
                        value += float64(x[j] > parameter if is_yes else x[j] <= parameter)
                    elif variant == ABSOLUTE_ERROR:
                        value += abs(error)
                    else:
                        value += error * error
                value /= n
            values[first + r] = value

    return metric
