"""Normalization layers: batch norm over the columns of a batch, layer norm and RMS norm over each row.

Legend: matrices are (batch, N_OUT); what lies behind the last unit of a row is neither read nor written. gamma and beta
are the numbers at PARAMETERS, one after the other; where N_PARAMETERS is 0 there are none, and gamma is 1, beta 0.
x^ is the normalized X. GRADIENT 0: the parameters' gradient is not wanted. SETTINGS: eps; momentum of the running
statistics. STATE: running mean (N_OUT), then running variance (N_OUT). How sums are rounded: normalization_simd.py.

Batch norm comes in tiles of columns over all rows that the batch has, [0, row_stop); all else is cut by rows.

Ioffe and Szegedy, "Batch Normalization", 2015, algorithms 1 and 2; Ba, Kiros and Hinton, "Layer Normalization", 2016;
Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

import math

import numpy as np

from nbbp import ops
from nbbp.cpu import normalization_columns as columns
from nbbp.cpu import normalization_rows as rows
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel


@kernel("batch_norm_forward")
def batch_norm_forward(zero, variant):
    """Y = x^ · gamma + beta, x^ = (X - mean) / sqrt(variance + eps), both of a column over the rows.

    X, Y (batch, N_OUT), KEPT (2, N_OUT): mean and 1 / sqrt(variance + eps). Writes Y, KEPT and, unless it is 0, STATE:
    (1 - momentum) · running + momentum · statistic, whose variance is that of a sample (n / (n - 1)); not of one row,
    nor where the statistics of a column are not finite. What is written must overlap nothing.
    """
    one, infinity = type(zero)(1), type(zero)(np.inf)

    def batch_norm_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        width, n_rows = op[ops.N_OUT], row_stop - row_start
        n = min(column_stop, width) - column_start
        if n <= 0 or n_rows <= 0:
            return
        settings = simd.pointer(op[ops.SETTINGS], zero)
        eps, momentum = settings[0], settings[1]
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * op[ops.X_STRIDE] + column_start)
        y = simd.advance(simd.pointer(op[ops.Y], zero), row_start * op[ops.Y_STRIDE] + column_start)
        mean = simd.advance(simd.pointer(op[ops.KEPT], zero), column_start)
        inverse = simd.advance(mean, width)
        columns.column_moments(mean, inverse, x, op[ops.X_STRIDE], n_rows, n)
        if op[ops.STATE] != 0 and n_rows > 1:
            running_mean = simd.advance(simd.pointer(op[ops.STATE], zero), column_start)
            running_variance = simd.advance(running_mean, width)
            kept, unbiased = one - momentum, type(zero)(n_rows) / type(zero)(n_rows - 1)
            for j in range(n):
                m, v = mean[j], inverse[j]
                new_mean = kept * running_mean[j] + momentum * m
                new_variance = kept * running_variance[j] + momentum * (unbiased * v)
                is_finite = abs(m) < infinity and abs(v) < infinity
                running_mean[j] = new_mean if is_finite else running_mean[j]
                running_variance[j] = new_variance if is_finite else running_variance[j]
        for j in range(n):
            inverse[j] = one / math.sqrt(inverse[j] + eps)
        gamma = simd.advance(simd.pointer(op[ops.PARAMETERS], zero), column_start)
        columns.normalize_columns(
            y, op[ops.Y_STRIDE], x, op[ops.X_STRIDE], n_rows, n, mean, inverse, gamma, simd.advance(gamma, width),
            op[ops.N_PARAMETERS],
        )  # fmt: skip

    return batch_norm_forward


@kernel("batch_norm_backward")
def batch_norm_backward(zero, variant):
    """Y = gamma · KEPT[1] · (Y - mean Y - x^ · mean(Y · x^)), means over the rows, x^ = (X - KEPT[0]) · KEPT[1].

    X, Y (batch, N_OUT), Y the output gradient, KEPT (2, N_OUT) and X of the forward pass. Writes Y and, unless it is 0,
    GRADIENT (2, N_OUT): d_gamma = Σ Y · x^ and d_beta = Σ Y. What is written must overlap nothing.
    """

    def batch_norm_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        width, n_rows = op[ops.N_OUT], row_stop - row_start
        n = min(column_stop, width) - column_start
        if n <= 0 or n_rows <= 0:
            return
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * op[ops.X_STRIDE] + column_start)
        y = simd.advance(simd.pointer(op[ops.Y], zero), row_start * op[ops.Y_STRIDE] + column_start)
        mean = simd.advance(simd.pointer(op[ops.KEPT], zero), column_start)
        inverse = simd.advance(mean, width)
        gamma = simd.advance(simd.pointer(op[ops.PARAMETERS], zero), column_start)
        d_gamma = simd.advance(simd.pointer(op[ops.GRADIENT], zero), column_start)
        columns.column_derivatives(
            d_gamma, simd.advance(d_gamma, width), op[ops.GRADIENT], y, op[ops.Y_STRIDE], x, op[ops.X_STRIDE],
            n_rows, n, mean, inverse, gamma, op[ops.N_PARAMETERS],
        )  # fmt: skip

    return batch_norm_backward


@kernel("batch_norm_inference")
def batch_norm_inference(zero, variant):
    """Y = (X - running mean) / sqrt(running variance + eps) · gamma + beta; X, Y (batch, N_OUT), the same or apart.

    Writes Y.
    """

    def batch_norm_inference(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n = op[ops.N_OUT]
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * op[ops.X_STRIDE])
        y = simd.advance(simd.pointer(op[ops.Y], zero), row_start * op[ops.Y_STRIDE])
        mean, gamma = simd.pointer(op[ops.STATE], zero), simd.pointer(op[ops.PARAMETERS], zero)
        columns.standardize_columns(
            y, op[ops.Y_STRIDE], x, op[ops.X_STRIDE], row_stop - row_start, n, mean, simd.advance(mean, n), gamma,
            simd.advance(gamma, n), op[ops.N_PARAMETERS], simd.pointer(op[ops.SETTINGS], zero)[0],
        )  # fmt: skip

    return batch_norm_inference


@kernel("batch_norm_inference_backward")
def batch_norm_inference_backward(zero, variant):
    """Y *= gamma / sqrt(running variance + eps): the running statistics do not depend on X. Y (batch, N_OUT) the output
    gradient. Writes Y.
    """

    def batch_norm_inference_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n = op[ops.N_OUT]
        y = simd.advance(simd.pointer(op[ops.Y], zero), row_start * op[ops.Y_STRIDE])
        variance = simd.advance(simd.pointer(op[ops.STATE], zero), n)
        columns.scale_columns(
            y, op[ops.Y_STRIDE], row_stop - row_start, n, variance, simd.pointer(op[ops.PARAMETERS], zero),
            op[ops.N_PARAMETERS], simd.pointer(op[ops.SETTINGS], zero)[0],
        )  # fmt: skip

    return batch_norm_inference_backward


@kernel("layer_norm_forward")
def layer_norm_forward(zero, variant):
    """Y = x^ · gamma + beta, x^ = (X - mean) / sqrt(variance + eps), both of a row over its columns.

    X, Y (batch, N_OUT), KEPT (batch, 2): mean and 1 / sqrt(variance + eps). Writes Y and KEPT, which must overlap
    nothing.
    """

    def layer_norm_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n = op[ops.N_OUT]
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * op[ops.X_STRIDE])
        y = simd.advance(simd.pointer(op[ops.Y], zero), row_start * op[ops.Y_STRIDE])
        kept = simd.advance(simd.pointer(op[ops.KEPT], zero), row_start * op[ops.KEPT_STRIDE])
        gamma = simd.pointer(op[ops.PARAMETERS], zero)
        rows.normalize_rows(
            y, op[ops.Y_STRIDE], x, op[ops.X_STRIDE], kept, op[ops.KEPT_STRIDE], row_stop - row_start, n, gamma,
            simd.advance(gamma, n), op[ops.N_PARAMETERS], simd.pointer(op[ops.SETTINGS], zero)[0],
        )  # fmt: skip

    return layer_norm_forward


@kernel("layer_norm_backward")
def layer_norm_backward(zero, variant):
    """Y = KEPT[:, 1] · (g - mean g - x^ · mean(g · x^)), g = Y · gamma, means over the columns; x^ of X and KEPT.

    X, Y (batch, N_OUT), Y the output gradient, KEPT (batch, 2) of the forward pass. Writes Y and, unless it is 0,
    GRADIENT (2, N_OUT) of each block of SLOT_ROWS rows, which a tile must hold whole: d_gamma = Σ Y · x^ and
    d_beta = Σ Y over its rows. What is written must overlap nothing.
    """

    def layer_norm_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n, n_rows = op[ops.N_OUT], row_stop - row_start
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * op[ops.X_STRIDE])
        d = simd.advance(simd.pointer(op[ops.Y], zero), row_start * op[ops.Y_STRIDE])
        kept = simd.advance(simd.pointer(op[ops.KEPT], zero), row_start * op[ops.KEPT_STRIDE])
        if op[ops.GRADIENT] != 0:
            slot = row_start // op[ops.SLOT_ROWS] * op[ops.SLOT_STRIDE]
            gradient = simd.advance(simd.pointer(op[ops.GRADIENT], zero), slot)
            columns.scale_and_shift_gradients(
                gradient, simd.advance(gradient, n), d, op[ops.Y_STRIDE], x, op[ops.X_STRIDE], kept,
                op[ops.KEPT_STRIDE], n_rows, n,
            )  # fmt: skip
        rows.normalized_row_derivatives(
            d, op[ops.Y_STRIDE], x, op[ops.X_STRIDE], kept, op[ops.KEPT_STRIDE], n_rows, n,
            simd.pointer(op[ops.PARAMETERS], zero), op[ops.N_PARAMETERS],
        )  # fmt: skip

    return layer_norm_backward


@kernel("rms_norm_forward")
def rms_norm_forward(zero, variant):
    """Y = x^ · gamma, x^ = X / sqrt(mean X² + eps), the mean of a row over its columns; beta there is none.

    X, Y (batch, N_OUT), KEPT (batch, 1): 1 / sqrt(mean X² + eps). Writes Y and KEPT, which must overlap nothing.
    """

    def rms_norm_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * op[ops.X_STRIDE])
        y = simd.advance(simd.pointer(op[ops.Y], zero), row_start * op[ops.Y_STRIDE])
        kept = simd.advance(simd.pointer(op[ops.KEPT], zero), row_start * op[ops.KEPT_STRIDE])
        rows.scale_rows(
            y, op[ops.Y_STRIDE], x, op[ops.X_STRIDE], kept, op[ops.KEPT_STRIDE], row_stop - row_start, op[ops.N_OUT],
            simd.pointer(op[ops.PARAMETERS], zero), op[ops.N_PARAMETERS], simd.pointer(op[ops.SETTINGS], zero)[0],
        )  # fmt: skip

    return rms_norm_forward


@kernel("rms_norm_backward")
def rms_norm_backward(zero, variant):
    """Y = KEPT · (g - x^ · mean(g · x^)), g = Y · gamma, the mean over the columns; x^ of X and KEPT.

    X, Y (batch, N_OUT), Y the output gradient, KEPT (batch, 1) of the forward pass. Writes Y and, unless it is 0,
    GRADIENT (N_OUT,) of each block of SLOT_ROWS rows, which a tile must hold whole: d_gamma = Σ Y · x^ over its rows.
    What is written must overlap nothing.
    """

    def rms_norm_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n, n_rows = op[ops.N_OUT], row_stop - row_start
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * op[ops.X_STRIDE])
        d = simd.advance(simd.pointer(op[ops.Y], zero), row_start * op[ops.Y_STRIDE])
        kept = simd.advance(simd.pointer(op[ops.KEPT], zero), row_start * op[ops.KEPT_STRIDE])
        if op[ops.GRADIENT] != 0:
            slot = row_start // op[ops.SLOT_ROWS] * op[ops.SLOT_STRIDE]
            gradient = simd.advance(simd.pointer(op[ops.GRADIENT], zero), slot)
            columns.scale_gradients(
                gradient, d, op[ops.Y_STRIDE], x, op[ops.X_STRIDE], kept, op[ops.KEPT_STRIDE], n_rows, n
            )
        rows.scaled_row_derivatives(
            d, op[ops.Y_STRIDE], x, op[ops.X_STRIDE], kept, op[ops.KEPT_STRIDE], n_rows, n,
            simd.pointer(op[ops.PARAMETERS], zero), op[ops.N_PARAMETERS],
        )  # fmt: skip

    return rms_norm_backward
