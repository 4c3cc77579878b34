"""Augmentation: what happens to the rows of a batch between the data and the network, in training only.

Legend: batch rows, N_OUT numbers per row. SEED, FIRST_STEP + step, a row's position in the batch and LAYER, the
position of the augmentation among those of the run, say which numbers are drawn (scalars/sampling.py). Normal noise is
the op "gaussian_noise_forward" (cpu/noise.py).

Mixup (Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond empirical risk minimization", ICLR 2018): row r becomes
``share[r] · row r + (1 - share[r]) · row p(r)``, and so do its target and its weight. ``p(r) = (r + k) mod n`` with the
same random k, 1 to n - 1, for all n rows that the batch really has: no row meets itself, and every row is a partner
once. Shares are of the model's dtype, at KEPT.
"""

import math
from typing import Any

import numpy as np
from numba import carray, from_dtype, int64, types

from nbbp import ops
from nbbp.cpu import simd
from nbbp.cpu.kernels import compiled, kernel
from nbbp.cpu.rows import rows_of_batch
from nbbp.cpu.trial import check_bounds
from nbbp.scalars.dispatch import formula
from nbbp.scalars.sampling import WHOLE_BATCH, integer, key_of_sample, symmetric_beta


@kernel("shift")
def shift(zero, variant):
    """Y[r] moved by up to DOWN lines and RIGHT pixels, SETTINGS[0] moving in; Y (batch, N_OUT). Cut by rows.

    A row is HEIGHT lines of pixels of CHANNELS numbers. Draws two integers a row. Writes Y, and N_OUT numbers of
    scratch.
    """

    def shift(op, step, row_start, row_stop, column_start, column_stop, scratch):
        fill = simd.pointer(op[ops.SETTINGS], zero)[0]
        n, height, channels = op[ops.N_OUT], op[ops.HEIGHT], op[ops.CHANNELS]
        width = n // height  # numbers of a line
        before = simd.pointer(scratch, zero)
        for r in range(row_start, row_stop):
            key = key_of_sample(op[ops.SEED], r, op[ops.FIRST_STEP] + step, op[ops.LAYER])
            down = integer(key, 0, 2 * op[ops.DOWN] + 1) - op[ops.DOWN]
            right = (integer(key, 1, 2 * op[ops.RIGHT] + 1) - op[ops.RIGHT]) * channels
            # all numbers move equally far; those that come from another line or from nowhere are filled
            move = down * width + right
            if move == 0 and right == 0:
                continue
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            simd.copy(before, y, n)
            start, stop = max(move, 0), n + min(move, 0)
            simd.copy(simd.advance(y, start), simd.advance(before, start - move), stop - start)
            for i in range(max(down, 0) * width):
                y[i] = fill
            for i in range(n + min(down, 0) * width, n):
                y[i] = fill
            first, last = (0, right) if right > 0 else (width + right, width)
            for line in range(height):
                for i in range(line * width + first, line * width + last):
                    y[i] = fill

    return shift


@kernel("augment_row", (), cached=False)
def augment_row(zero, variant):
    """function(Y[r], key of r) for each row; Y (batch, N_OUT). Writes Y, and N_OUT numbers of scratch. Cut by rows.

    The function works on a copy in scratch. Where it raises, Y[r] stays NaN and Numba prints the exception.
    """
    function = variant.function
    nan = type(zero)(math.nan)

    def augment_row(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n = op[ops.N_OUT]
        row = simd.pointer(scratch, zero)
        for r in range(row_start, row_stop):
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            simd.copy(row, y, n)
            for j in range(n):
                y[j] = nan
            function(carray(row, (n,)), key_of_sample(op[ops.SEED], r, op[ops.FIRST_STEP] + step, op[ops.LAYER]))
            simd.copy(y, row, n)

    return augment_row


def prepare(variant: ops.UserFunction, dtype: Any, n: int) -> None:
    """Compile a function for `augment_row` on rows of n numbers, and try it, ahead of a run.

    Raises
    ------
    TypeError
        If it does not compile, or gives something back.
    ValueError
        If it reads or writes beyond its row.
    """
    dtype = np.dtype(dtype)
    compiled("augment_row", dtype.name, variant)
    for signature in variant.function.nopython_signatures:
        is_ours = len(signature.args) == 2 and getattr(signature.args[0], "dtype", None) == from_dtype(dtype)
        if is_ours and signature.return_type != types.none:
            named = f"{variant.label}, {variant.function.py_func.__name__}"
            raise TypeError(
                f"{named}, gives back {signature.return_type}; expected it to change the row in place and to give back "
                "nothing"
            )
    check_bounds(variant, "augment_row", dtype, {ops.N_OUT: n})


@kernel("mixup_shares")
def mixup_shares(zero, variant):
    """Y[r] = a number of Beta(alpha, alpha); SETTINGS: alpha. Y (batch,). Writes Y. Cut by rows."""

    def mixup_shares(op, step, row_start, row_stop, column_start, column_stop, scratch):
        alpha = simd.pointer(op[ops.SETTINGS], zero)[0]
        y = simd.pointer(op[ops.Y], zero)
        for r in range(row_start, row_stop):
            y[r] = symmetric_beta(key_of_sample(op[ops.SEED], r, op[ops.FIRST_STEP] + step, op[ops.LAYER]), alpha)

    return mixup_shares


@formula
def partner_distance(seed, step, number, n_rows):
    """How many rows further on the partners of a batch are: 1 to n_rows - 1, or 0 for a single row."""
    key = key_of_sample(seed, WHOLE_BATCH, step, number)
    return integer(key, 0, n_rows - 1) + 1 if n_rows > 1 else int64(0)


@kernel("mixup_rows")
def mixup_rows(zero, variant):
    """Y[r] = share[r] X[r] + (1 - share[r]) X[p(r)]; X, Y (batch, N_OUT), apart, KEPT (batch,). Writes Y. Cut by rows.

    Reads rows of other tiles, which must be there.
    """

    def mixup_rows(op, step, row_start, row_stop, column_start, column_stop, scratch):
        shares = simd.pointer(op[ops.KEPT], zero)
        n_rows = rows_of_batch(op, step)
        distance = partner_distance(op[ops.SEED], op[ops.FIRST_STEP] + step, op[ops.LAYER], n_rows)
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            other = simd.advance(simd.pointer(op[ops.X], zero), (r + distance) % n_rows * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            share = shares[r]
            rest = type(zero)(1) - share
            for j in range(op[ops.N_OUT]):
                y[j] = share * x[j] + rest * other[j]

    return mixup_rows


@kernel("mixup_targets")
def mixup_targets(zero, variant):
    """Y[r] = share[r] t[r] + (1 - share[r]) t[p(r)], t the rows of TARGET, one-hot ones for labels. Cut by rows.

    Y (batch, N_OUT), TARGET (n,) or (n, N_OUT) as for a loss, KEPT (batch,). Writes Y.
    """

    def mixup_targets(op, step, row_start, row_stop, column_start, column_stop, scratch):
        order = simd.pointer(op[ops.ORDER], int64(0))
        shares = simd.pointer(op[ops.KEPT], zero)
        first = step * op[ops.BATCH]
        n_rows = rows_of_batch(op, step)
        distance = partner_distance(op[ops.SEED], op[ops.FIRST_STEP] + step, op[ops.LAYER], n_rows)
        for r in range(row_start, row_stop):
            source, other = order[first + r], order[first + (r + distance) % n_rows]
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            share = shares[r]
            rest = type(zero)(1) - share
            if op[ops.TARGET_IS_LABELS]:
                labels = simd.pointer(op[ops.TARGET], int64(0))
                for j in range(op[ops.N_OUT]):
                    y[j] = zero
                y[labels[source]] = share
                y[labels[other]] += rest
            else:
                mine = simd.advance(simd.pointer(op[ops.TARGET], zero), source * op[ops.TARGET_STRIDE])
                others = simd.advance(simd.pointer(op[ops.TARGET], zero), other * op[ops.TARGET_STRIDE])
                for j in range(op[ops.N_OUT]):
                    y[j] = share * mine[j] + rest * others[j]

    return mixup_targets


@kernel("mixup_weights")
def mixup_weights(zero, variant):
    """Y[r] = share[r] w[r] + (1 - share[r]) w[p(r)], w the SAMPLE_WEIGHT (n,) of the rows; 1 where that is 0.

    Y, KEPT (batch,). Writes Y. Cut by rows.
    """

    def mixup_weights(op, step, row_start, row_stop, column_start, column_stop, scratch):
        order = simd.pointer(op[ops.ORDER], int64(0))
        shares, weights = simd.pointer(op[ops.KEPT], zero), simd.pointer(op[ops.SAMPLE_WEIGHT], zero)
        y = simd.pointer(op[ops.Y], zero)
        first = step * op[ops.BATCH]
        n_rows = rows_of_batch(op, step)
        distance = partner_distance(op[ops.SEED], op[ops.FIRST_STEP] + step, op[ops.LAYER], n_rows)
        for r in range(row_start, row_stop):
            y[r] = 1
            if op[ops.SAMPLE_WEIGHT] != 0:
                share = shares[r]
                rest = type(zero)(1) - share
                other = order[first + (r + distance) % n_rows]
                y[r] = share * weights[order[first + r]] + rest * weights[other]

    return mixup_weights
