"""Layers that drop: units (dropout) or whole rows (stochastic depth), scaled so that the expected output stays.

Legend: batch rows, `width` units, W = width rounded up to 16. Which number is dropped, nbbp/scalars/draws.py says, by
the seed, the layer, the training batch and the number's place: the same ones as on the CPU. The way back draws the same
numbers again, which costs less than a mask in memory.

A thread of dropout takes a block of Philox numbers, whose four words decide eight numbers of the matrix.
"""

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, FIRST_STEP, INTEGER, INTEGERS, N_SAMPLES, NUMBER, STEP, kernel
from nbbp.cuda.launch import Binding, binds, flat, matrix
from nbbp.scalars.dispatch import formula
from nbbp.scalars.draws import LOW_HALVES, MASK_GROUP, is_kept, limit_of_rate, padded_width
from nbbp.scalars.philox import STREAM_DEPTH, STREAM_DROPOUT, random_words

_HALF_BITS, _HALF, _ZERO, _ONE = np.uint64(16), np.uint64(0xFFFF), np.uint64(0), np.uint64(1)
_BLOCKS = 16


@formula
def _is_kept(word, low_word, half, limit):
    """Whether the number is kept whose 32 random bits are the halves of these two words; `half` is 0 or 1."""
    shift = _HALF_BITS * half
    return ((word >> shift & _HALF) << _HALF_BITS | (low_word >> shift & _HALF)) >= limit


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, NUMBER, INTEGER, INTEGER)
def dropout(number, variant):
    """y = x ∘ m / (1 - rate), m one with probability 1 - rate (Srivastava et al., "Dropout", 2014).

    x, y (batch, width), the same or apart. Writes y. What is dropped is 0, were it NaN.
    """
    zero, one = number(0), number(1)

    def dropout(clock, batch, y, y_stride, x, x_stride, width, rate, seed, layer):
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        padded, limit = padded_width(width), limit_of_rate(rate)
        factor, step = one / (one - rate), clock[FIRST_STEP] + clock[STEP]
        n_blocks = (n_rows * padded + MASK_GROUP - 1) // MASK_GROUP * _BLOCKS
        for block in range(cuda.grid(1), n_blocks, cuda.gridsize(1)):
            a, b, c, d = random_words(seed, block, layer, step, STREAM_DROPOUT)
            e, f, g, h = random_words(seed, block, layer, step, LOW_HALVES + STREAM_DROPOUT)
            # word k of a group's blocks decides its numbers from 32 k on, two of them a block
            start = block // _BLOCKS * MASK_GROUP + block % _BLOCKS * 2
            for k in range(8):
                i = start + k // 2 * 32 + k % 2
                r, j = i // padded, i % padded
                if r < n_rows and j < width:
                    word, low_word = (a, e) if k < 2 else (b, f) if k < 4 else (c, g) if k < 6 else (d, h)
                    keeps = _is_kept(word, low_word, _ONE if k % 2 == 1 else _ZERO, limit)
                    y[r * y_stride + j] = x[r * x_stride + j] * factor if keeps else zero

    return dropout


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, NUMBER, INTEGER, INTEGER, INTEGER)
def stochastic_depth(number, variant):
    """y = x · m / (1 - rate), m one for a row with probability 1 - rate (Huang et al., "Deep Networks with Stochastic
    Depth", 2016), an m of each row, which is the number of its bit, or one of all.

    x, y (batch, width), the same or apart. Writes y. What is dropped is 0, were it NaN.
    """
    zero, one = number(0), number(1)

    def stochastic_depth(clock, batch, y, y_stride, x, x_stride, width, rate, seed, layer, is_by_row):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        factor, step = one / (one - rate), clock[FIRST_STEP] + clock[STEP]
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            keeps = is_kept(r if is_by_row != 0 else 0, seed, layer, step, STREAM_DEPTH, rate)
            for j in range(column, width, columns):
                y[r * y_stride + j] = x[r * x_stride + j] * factor if keeps else zero

    return stochastic_depth


@binds("dropout_forward", "dropout_backward")
def bind_dropout(op: Binding) -> None:
    """The same either way; the gradient is changed in place."""
    width = op[ops.N_OUT]
    n_blocks = -(-op.batch * padded_width(width) // MASK_GROUP) * _BLOCKS
    op.launch(
        "dropout", flat(n_blocks), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE], op.array(ops.X),
        op[ops.X_STRIDE], width, op.setting(0), op.bound.seed, op[ops.LAYER],
    )  # fmt: skip


@binds("stochastic_depth_forward", "stochastic_depth_backward")
def bind_depth(op: Binding) -> None:
    """The same either way; the gradient is changed in place."""
    op.launch(
        "stochastic_depth", matrix(op.batch, op[ops.N_OUT]), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE],
        op.array(ops.X), op[ops.X_STRIDE], op[ops.N_OUT], op.setting(0), op.bound.seed, op[ops.LAYER],
        int(op.setting(1)),
    )  # fmt: skip
