"""What happens to a gradient between backpropagation and the update: sums over batches, clipping, noise.

Legend: "prepare_gradient" runs in tiles, "finish_gradient" when all of them are done, so that it can know the norm of
the whole gradient: SQUARES holds one float64 sum of squares per tile, which are added up in their order. k batches in a
row (ACCUMULATION, 1 if 0) make one update; FIRST_STEP + step, the number of the training batch from 0 on, says which of
them a batch is. SLOT_0 holds the sum of the gradients of the batches before it, SLOT_1 the number of their rows.

A batch whose loss is not finite adds nothing, and no rows; the last of the k updates nothing then. The next k begin
anew whatever became of these.

In fp16 what comes is the gradient times LOSS_SCALE (cpu/mixed.py), and what goes on is not; sums over batches are taken
before that, because the scale is the same for all of them. A part with a number that overflowed has SQUARES infinite,
clipped or not.
"""

import math

import numpy as np
from numba import float64

from nbbp import ops
from nbbp.compiling import FASTMATH, jit
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel
from nbbp.cpu.noise import add_normal
from nbbp.cpu.update import is_update, losses_are_finite, place_among
from nbbp.scalars.philox import STREAM_GRADIENT_NOISE

#: Added to the norm that clips, as PyTorch does.
_EPS_OF_NORM = 1e-6
#: How the variance of the noise falls with the updates (Neelakantan et al., 2015).
_DECAY_OF_NOISE = 0.55


@jit(fastmath=FASTMATH)
def _keep_sum(kept, g, share, n, begins):
    """kept[i] += share · g[i], from 0 where the sum `begins`."""
    if begins:
        for i in range(n):
            kept[i] = share * g[i]
    else:
        for i in range(n):
            kept[i] += share * g[i]


@jit(fastmath=FASTMATH)
def _mean_of_sum(g, kept, share, factor, n):
    """g[i] = factor (kept[i] + share · g[i])."""
    for i in range(n):
        g[i] = factor * (kept[i] + share * g[i])


@jit(fastmath=FASTMATH)
def _unscale(g, factor, n):
    """g[i] *= factor; whether all of them are finite."""
    bad = np.int64(0)
    for i in range(n):
        g[i] *= factor
        bad |= np.int64(not (abs(g[i]) < np.inf))
    return bad == 0


@jit(fastmath=FASTMATH)
def _clip_values(g, largest, n):
    """g[i] into [-largest, largest]; comparisons keep NaN."""
    for i in range(n):
        value = g[i]
        value = largest if value > largest else value
        g[i] = -largest if value < -largest else value


@jit(fastmath=FASTMATH)
def _sum_of_squares(g, n):
    """The sum of g[i]², in float64."""
    total = float64(0)
    for i in range(n):
        total += float64(g[i]) * float64(g[i])
    return total


@jit(fastmath=FASTMATH)
def _scale(g, factor, n):
    """g[i] *= factor."""
    for i in range(n):
        g[i] *= factor


@kernel("prepare_gradient", fastmath=FASTMATH)
def prepare_gradient(zero, variant):
    """X = the mean gradient of the k batches, its numbers clipped; SQUARES[N_SQUARES + tile] = its sum of squares.

    Before the last of the k only SLOT_0 += X · weight. X, SLOT_0 (N_OUT, SLOT_STRIDE) with rows W_STRIDE apart, a tile
    has N_IN of them; SETTINGS: the largest magnitude (infinity: any), and 1 if the loss is a mean, so that a gradient's
    weight is the rows of its batch; X is divided by the scale at LOSS_SCALE, unless that is 0. Writes X, SLOT_0 (if
    k > 1) and SQUARES (unless 0), which must not overlap.
    """

    def prepare_gradient(op, step, row_start, row_stop, column_start, column_stop, scratch):
        last = min(column_stop, op[ops.N_OUT])
        if last <= column_start:
            return
        settings = simd.pointer(op[ops.SETTINGS], zero)
        largest, one = settings[0], type(zero)(1)
        place, k = place_among(op, step), max(op[ops.ACCUMULATION], 1)
        fine = losses_are_finite(op, step, row_start, row_stop)
        share = factor = one
        if k > 1 and settings[1] != 0:
            share = type(zero)(row_stop)
            if place + 1 == k:
                factor = one / (simd.pointer(op[ops.SLOT_1], zero)[0] + share)
        width, stride = op[ops.SLOT_STRIDE], op[ops.W_STRIDE]
        n_rows, n = last - column_start, width
        if stride == width:
            n_rows, n = 1, n_rows * width
        squares = float64(0)
        for r in range(n_rows):
            at = column_start * stride + r * stride
            g = simd.advance(simd.pointer(op[ops.X], zero), at)
            kept = simd.advance(simd.pointer(op[ops.SLOT_0], zero), at)
            if place + 1 < k:
                if fine:
                    _keep_sum(kept, g, share, n, place == 0)
                elif place == 0:
                    for i in range(n):  # not 0 · g, which may be NaN
                        kept[i] = zero
                continue
            if k > 1:
                _mean_of_sum(g, kept, share, factor, n)
            if op[ops.LOSS_SCALE] != 0 and not _unscale(g, one / simd.pointer(op[ops.LOSS_SCALE], zero)[0], n):
                squares = math.inf
            if largest < math.inf:
                _clip_values(g, largest, n)
            if op[ops.SQUARES] != 0:
                squares += _sum_of_squares(g, n)
        if op[ops.SQUARES] != 0:
            sums = simd.pointer(op[ops.SQUARES], float64(0))
            sums[op[ops.N_SQUARES] + column_start // op[ops.N_IN]] = squares

    return prepare_gradient


@kernel("finish_gradient", fastmath=FASTMATH)
def finish_gradient(zero, variant):
    """X = X · min(1, clip_norm / (norm + 1e-6)) + noise, over [N_IN, N_OUT) within the tile, if the batch updates.

    norm² = the N_SQUARES numbers of SQUARES; SETTINGS: clip_norm, variance of the noise in the first update. X
    (columns,), number i of it gets number i of the update's normals. Writes X, and SLOT_1 unless it is 0.
    """

    def finish_gradient(op, step, row_start, row_stop, column_start, column_stop, scratch):
        if column_start == 0 and op[ops.SLOT_1] != 0:
            count = simd.pointer(op[ops.SLOT_1], zero)
            n_before = zero if place_among(op, step) == 0 else count[0]
            count[0] = n_before + type(zero)(row_stop if losses_are_finite(op, step, row_start, row_stop) else 0)
        first, last = max(column_start, op[ops.N_IN]), min(column_stop, op[ops.N_OUT])
        if last <= first or not is_update(op, step, row_start, row_stop):
            return
        settings = simd.pointer(op[ops.SETTINGS], zero)
        g = simd.advance(simd.pointer(op[ops.X], zero), first)
        if op[ops.SQUARES] != 0:
            sums, total = simd.pointer(op[ops.SQUARES], float64(0)), float64(0)
            for part in range(op[ops.N_SQUARES]):
                total += sums[part]
            factor = float64(settings[0]) / (math.sqrt(total) + _EPS_OF_NORM)
            if factor < 1:
                _scale(g, type(zero)(factor), last - first)
        if settings[1] > 0:
            update = (op[ops.FIRST_STEP] + step) // max(op[ops.ACCUMULATION], 1)
            deviation = math.sqrt(float64(settings[1]) * (1.0 + update) ** -_DECAY_OF_NOISE)
            seed = op[ops.SEED]
            add_normal(g, zero, last - first, first, type(zero)(deviation), seed, 0, update, STREAM_GRADIENT_NOISE)

    return finish_gradient
