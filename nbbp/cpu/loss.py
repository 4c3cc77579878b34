"""Elementwise losses: each row's loss and the gradient with respect to what the last layer gives.

Legend: batch rows, N_OUT outputs. SETTINGS: the loss's parameter (label smoothing for binary_crossentropy), its scale,
1 for the mean or 0 for the sum.

    loss = scale / count · sum over rows r of weight[r] · sum over outputs j of l(X[r, j], target[r, j])

count: rows of the whole batch times outputs for the mean, 1 for the sum. ROW_VALUES takes weight · mean (or sum) over
outputs · scale, in float64, so that a caller sums or averages them over any number of rows.
"""

from numba import float64, int64, njit

from nbbp import ops
from nbbp.compiling import FASTMATH
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel
from nbbp.cpu.rows import rows_ahead, rows_of_batch
from nbbp.scalars.losses import LOSSES, loss_derivative, loss_value

_BINARY = LOSSES["binary_crossentropy"].code
ELEMENTWISE = tuple(formula.code for formula in LOSSES.values() if not formula.row_wise)


@njit(fastmath=FASTMATH)
def smoothed(target, smoothing):
    """A binary target moved towards one half."""
    one = type(target)(1)
    return target * (one - smoothing) + smoothing / (one + one)


@kernel("loss", ELEMENTWISE, fastmath=FASTMATH)
def loss(zero, variant):
    """ROW_VALUES[r], and Y = d loss / d X unless Y is 0; X, Y (batch, N_OUT), target (n, N_OUT). Cut by rows."""
    is_binary = variant == _BINARY

    def loss(op, step, row_start, row_stop, column_start, column_stop, scratch):
        settings = simd.pointer(op[ops.SETTINGS], zero)
        parameter, scale, is_mean = settings[0], settings[1], settings[2] != 0
        values = simd.pointer(op[ops.ROW_VALUES], float64(0))
        order = simd.pointer(op[ops.ORDER], int64(0))
        n, first = op[ops.N_OUT], step * op[ops.BATCH]
        batch = rows_of_batch(op, step)
        per_row = float64(scale) / (n if is_mean else 1)
        # rows `ahead` of which there is one that has a target anywhere in memory
        ahead = rows_ahead(op)
        n_prefetched = op[ops.N_SAMPLES] - ahead if op[ops.ORDER] != 0 else 0
        for r in range(row_start, row_stop):
            source = order[first + r] if op[ops.ORDER] != 0 else first + r
            if first + r < n_prefetched:
                following = order[first + ahead + r] * op[ops.TARGET_STRIDE]
                simd.prefetch(simd.advance(simd.pointer(op[ops.TARGET], zero), following), n)
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            target = simd.advance(simd.pointer(op[ops.TARGET], zero), source * op[ops.TARGET_STRIDE])
            weight = type(zero)(1)
            if op[ops.SAMPLE_WEIGHT] != 0:
                weight = simd.pointer(op[ops.SAMPLE_WEIGHT], zero)[source]
            total = float64(0)
            for j in range(n):
                wanted = smoothed(target[j], parameter) if is_binary else target[j]
                total += float64(loss_value(variant, x[j], wanted, parameter))
            values[first + r] = float64(weight) * total * per_row
            if op[ops.Y] != 0:
                y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
                factor = weight * scale
                if is_mean:
                    factor /= type(zero)(n * batch)
                for j in range(n):
                    wanted = smoothed(target[j], parameter) if is_binary else target[j]
                    y[j] = factor * loss_derivative(variant, x[j], wanted, parameter)

    return loss
