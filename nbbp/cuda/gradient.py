"""What happens to a gradient between backpropagation and the update: sums over batches, clipping, noise.

Legend: `prepare_gradient` runs over parts of the gradient, one block each; `finish_gradient` when all are done, so that
it knows the norm of the whole gradient: `squares` holds one float64 sum of squares per part, which are added up in
their order. k batches in a row (`accumulation`, 1 if 0) make one update. `kept` is the sum of the gradients of the
batches before, `count` (1,) the number of their rows. A batch whose loss is not finite adds nothing, and no rows; the
last of the k updates nothing then. The next k begin anew whatever became of these.
"""

import math

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import (
    ARRAY,
    DOUBLES,
    FIRST_STEP,
    INTEGER,
    INTEGERS,
    MOST_BLOCKS,
    N_SAMPLES,
    NUMBER,
    STEP,
    THREADS,
    kernel,
)
from nbbp.cuda.launch import Binding, binds, flat
from nbbp.cuda.verdict import GRADIENT_FINE, LOSSES_FINE, conditions, is_update, judge_gradient, place_among
from nbbp.scalars.draws import NORMAL_GROUP, normal_pair
from nbbp.scalars.philox import STREAM_GRADIENT_NOISE, random_words

#: Added to the norm that clips, as PyTorch does.
_EPS_OF_NORM = 1e-6
#: How the variance of the noise falls with the updates (Neelakantan et al., 2015).
_DECAY_OF_NOISE = 0.55


@kernel(
    INTEGERS, INTEGER, ARRAY, ARRAY, ARRAY, DOUBLES, ARRAY, INTEGER, INTEGER, NUMBER, INTEGER, INTEGERS, INTEGER
)  # fmt: skip
def prepare_gradient(number, variant):
    """g = the mean gradient of the k batches, its numbers within ±largest; squares[part] = its sum of squares.

    Before the last of the k only kept += g · weight; the weight of a mean's gradient is the rows of its batch
    (`is_mean`), of a sum's 1. g and kept (n,), a block has `part` of them. In fp16 the mean is divided by the loss's
    `scale` (1,), else empty; a part with a number that overflowed has squares infinite, clipped or not. Writes g, kept
    (if k > 1) and squares (unless empty), which must not overlap.
    """
    zero, one, infinity = number(0), number(1), number("inf")

    def prepare_gradient(
        clock, batch, g, kept, count, squares, scale, n, part, largest, is_mean, verdict, accumulation
    ):  # fmt: skip
        sum_of = cuda.shared.array(THREADS, np.float64)
        place = place_among(clock[FIRST_STEP], clock[STEP], accumulation)
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        is_last = place + 1 >= accumulation
        share = number(n_rows) if accumulation > 1 and is_mean != 0 else one
        factor = one
        if accumulation > 1 and is_mean != 0 and is_last:
            factor = one / (count[0] + share)
        unscale = one / scale[0] if scale.size > 0 else one
        for number_of_part in range(cuda.blockIdx.x, (n + part - 1) // part, cuda.gridDim.x):
            start, total = number_of_part * part, 0.0
            for i in range(start + cuda.threadIdx.x, min(start + part, n), cuda.blockDim.x):
                if not is_last:
                    if verdict[LOSSES_FINE] != 0:
                        kept[i] = share * g[i] if place == 0 else kept[i] + share * g[i]
                    elif place == 0:
                        kept[i] = zero
                else:
                    value = g[i]
                    if accumulation > 1:
                        value = factor * (kept[i] + share * value)
                    if scale.size > 0:
                        value *= unscale
                        if not abs(value) < infinity:
                            total = math.inf
                    if largest < infinity:  # comparisons keep NaN
                        value = largest if value > largest else value
                        value = -largest if value < -largest else value
                    g[i] = value
                    total += np.float64(value) * np.float64(value)
            if squares.size > 0:
                sum_of[cuda.threadIdx.x] = total
                cuda.syncthreads()
                if cuda.threadIdx.x == 0:
                    total = 0.0
                    for k in range(cuda.blockDim.x):
                        total += sum_of[k]
                    squares[number_of_part] = total
                cuda.syncthreads()

    return prepare_gradient


@kernel(
    INTEGERS, ARRAY, DOUBLES, NUMBER, NUMBER, INTEGER, INTEGER, INTEGER, INTEGERS, INTEGER
)  # fmt: skip
def finish_gradient(number, variant):
    """g = g · min(1, clip_norm / (norm + 1e-6)) + noise, over [start, stop), if the batch updates. Writes g.

    `norm` (1,) is empty where nobody clips by it; `noise` the variance of the noise in the first update, 0 for none.
    Number i of g gets number i of the update's normals. A thread makes four of them.
    """
    zero = number(0)

    def finish_gradient(clock, g, norm, clip_norm, noise, start, stop, seed, verdict, accumulation):
        place = place_among(clock[FIRST_STEP], clock[STEP], accumulation)
        if not is_update(verdict[LOSSES_FINE], verdict[GRADIENT_FINE], place, accumulation):
            return
        factor = 1.0
        if norm.size > 0:
            factor = min(1.0, np.float64(clip_norm) / (norm[0] + _EPS_OF_NORM))
        if noise == zero:
            for i in range(start + cuda.grid(1), stop, cuda.gridsize(1)):
                g[i] *= number(factor)
            return
        number_of_update = (clock[FIRST_STEP] + clock[STEP]) // max(accumulation, 1)
        deviation = number(math.sqrt(np.float64(noise) * (1.0 + number_of_update) ** -_DECAY_OF_NOISE))
        n_blocks = (stop + NORMAL_GROUP - 1) // NORMAL_GROUP * 16
        for block in range(start // NORMAL_GROUP * 16 + cuda.grid(1), n_blocks, cuda.gridsize(1)):
            a, b, c, d = random_words(seed, block, 0, number_of_update, STREAM_GRADIENT_NOISE)
            first, second = normal_pair(np.int32(a), np.int32(b), zero)
            third, fourth = normal_pair(np.int32(c), np.int32(d), zero)
            i = block // 16 * NORMAL_GROUP + block % 16
            if start <= i < stop:
                g[i] = g[i] * number(factor) + deviation * first
            if start <= i + 16 < stop:
                g[i + 16] = g[i + 16] * number(factor) + deviation * second
            if start <= i + 32 < stop:
                g[i + 32] = g[i + 32] * number(factor) + deviation * third
            if start <= i + 48 < stop:
                g[i + 48] = g[i + 48] * number(factor) + deviation * fourth

    return finish_gradient


@kernel(INTEGERS, INTEGER, ARRAY, INTEGERS, INTEGER)
def count_rows(number, variant):
    """count[0] = the rows behind the sum of gradients, with this batch's if its losses are finite. One thread."""
    zero = number(0)

    def count_rows(clock, batch, count, verdict, accumulation):
        if cuda.grid(1) == 0:
            place = place_among(clock[FIRST_STEP], clock[STEP], accumulation)
            n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch) if verdict[LOSSES_FINE] != 0 else 0
            count[0] = (zero if place == 0 else count[0]) + number(n_rows)

    return count_rows


@binds("prepare_gradient")
def bind_prepare(op: Binding) -> None:
    """The parts of the gradient, each one as large as on the CPU, and then whether the whole of it is finite."""
    n, part = op[ops.N_OUT] * op[ops.SLOT_STRIDE], op[ops.N_IN] * op[ops.SLOT_STRIDE]
    n_parts = -(-n // part)
    squares = op.array(ops.SQUARES, np.float64)
    grid = ((min(n_parts, MOST_BLOCKS),), (THREADS,))
    op.launch(
        "prepare_gradient", grid, op.clock, op.batch, op.array(ops.X), op.array(ops.SLOT_0), op.array(ops.SLOT_1),
        squares, op.array(ops.LOSS_SCALE), n, part, op.setting(0), int(op.setting(1)), *conditions(op),
    )  # fmt: skip
    if op.has(ops.SQUARES):
        judge_gradient(op, squares, n_parts)


@binds("finish_gradient")
def bind_finish(op: Binding) -> None:
    """A stretch of the gradient; one of them counts the rows first."""
    if op.has(ops.SLOT_1):
        op.launch("count_rows", ((1,), (1,)), op.clock, op.batch, op.array(ops.SLOT_1), *conditions(op))
    norm = op.bound.norm if op.has(ops.SQUARES) else op.bound.nothing(np.float64)
    start, stop = op[ops.N_IN], op[ops.N_OUT]
    op.launch(
        "finish_gradient", flat(stop - start), op.clock, op.array(ops.X), norm, op.setting(0), op.setting(1), start,
        stop, op.bound.seed, *conditions(op),
    )  # fmt: skip
