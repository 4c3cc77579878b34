"""Losses over classes: crossentropy of logits, fused with its softmax, and the negative log-likelihood.

Legend: batch rows, N_OUT classes. SETTINGS: label smoothing, scale, 1 for the mean or 0 for the sum. Targets are int64
labels or rows of probabilities; both are smoothed to t' = (1 - s) t + s / N_OUT (Szegedy et al., "Rethinking the
Inception Architecture", 2016, section 7). ROW_VALUES as in cpu/loss.py.

    crossentropy: l = log(sum exp X) · sum t' - <t', X>,    dl/dX = softmax(X) · sum t' - t'
    nll:          l = -<t', X>,                             dl/dX = -t'
"""

from numba import float64, int64

from nbbp import ops
from nbbp.compiling import FASTMATH
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel
from nbbp.scalars.functions import exp, log


@kernel("crossentropy", fastmath=FASTMATH)
def crossentropy(zero, variant):
    """ROW_VALUES[r], and Y = d loss / d X unless Y is 0; X, Y (batch, N_OUT) logits and gradient. Cut by rows.

    Writes Y (up to its padding) or, where that is 0, scratch.
    """
    lanes = simd.LANES[zero.dtype]

    def crossentropy(op, step, row_start, row_stop, column_start, column_stop, scratch):
        settings = simd.pointer(op[ops.SETTINGS], zero)
        smoothing, scale, is_mean = settings[0], settings[1], settings[2] != 0
        values = simd.pointer(op[ops.ROW_VALUES], float64(0))
        order = simd.pointer(op[ops.ORDER], int64(0))
        n, first = op[ops.N_OUT], step * op[ops.BATCH]
        batch = min(op[ops.BATCH], op[ops.N_SAMPLES] - first)
        one = zero + 1
        for r in range(row_start, row_stop):
            source = order[first + r] if op[ops.ORDER] != 0 else first + r
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            y = simd.pointer(scratch, zero)
            if op[ops.Y] != 0:
                y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            weight = one
            if op[ops.SAMPLE_WEIGHT] != 0:
                weight = simd.pointer(op[ops.SAMPLE_WEIGHT], zero)[source]
            largest = simd.row_maximum(x, n)
            for block in range(0, n, lanes):
                for j in range(block, block + lanes):
                    y[j] = exp(x[j] - largest)
            total = simd.row_sum(y, n)
            factor = weight * scale / type(zero)(batch if is_mean else 1)
            even = smoothing / type(zero)(n)
            # <t', X - largest> and sum t'
            inner, mass = zero, one
            if smoothing != 0:
                for j in range(n):
                    inner += even * (x[j] - largest)
            if op[ops.TARGET_IS_LABELS]:
                label = simd.pointer(op[ops.TARGET], int64(0))[source]
                inner += (one - smoothing) * (x[label] - largest)
                share = factor / total
                for j in range(n):
                    y[j] = y[j] * share - factor * even
                y[label] -= factor * (one - smoothing)
            else:
                target = simd.advance(simd.pointer(op[ops.TARGET], zero), source * op[ops.TARGET_STRIDE])
                mass = smoothing + (one - smoothing) * simd.row_sum(target, n)
                share = factor * mass / total
                for j in range(n):
                    if target[j] != 0:  # 0 · -inf would be NaN
                        inner += (one - smoothing) * target[j] * (x[j] - largest)
                    y[j] = y[j] * share - factor * (even + (one - smoothing) * target[j])
            values[first + r] = float64(weight * scale) * (float64(log(total)) * mass - inner)

    return crossentropy


@kernel("nll", fastmath=FASTMATH)
def nll(zero, variant):
    """ROW_VALUES[r], and Y = d loss / d X unless Y is 0; X, Y (batch, N_OUT) log-probabilities and gradient. Cut by rows."""

    def nll(op, step, row_start, row_stop, column_start, column_stop, scratch):
        settings = simd.pointer(op[ops.SETTINGS], zero)
        scale, is_mean = settings[1], settings[2] != 0
        values = simd.pointer(op[ops.ROW_VALUES], float64(0))
        order = simd.pointer(op[ops.ORDER], int64(0))
        n, first = op[ops.N_OUT], step * op[ops.BATCH]
        batch = min(op[ops.BATCH], op[ops.N_SAMPLES] - first)
        for r in range(row_start, row_stop):
            source = order[first + r] if op[ops.ORDER] != 0 else first + r
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            weight = zero + 1
            if op[ops.SAMPLE_WEIGHT] != 0:
                weight = simd.pointer(op[ops.SAMPLE_WEIGHT], zero)[source]
            factor = weight * scale / type(zero)(batch if is_mean else 1)
            wants_gradient = op[ops.Y] != 0
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            total = float64(0)
            if op[ops.TARGET_IS_LABELS]:
                label = simd.pointer(op[ops.TARGET], int64(0))[source]
                total = float64(x[label])
                if wants_gradient:
                    for j in range(n):
                        y[j] = zero
                    y[label] = -factor
            else:
                target = simd.advance(simd.pointer(op[ops.TARGET], zero), source * op[ops.TARGET_STRIDE])
                for j in range(n):
                    if target[j] != 0:  # 0 · -inf would be NaN
                        total += float64(target[j] * x[j])
                    if wants_gradient:
                        y[j] = -factor * target[j]
            values[first + r] = -float64(weight * scale) * total

    return nll
