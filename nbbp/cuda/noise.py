"""Gaussian noise on the numbers of a layer.

Legend: batch rows, `width` units, W = width rounded up to 16; which normal belongs to which number,
nbbp/scalars/draws.py says. A thread takes a block of Philox numbers, which gives four normals.
"""

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, FIRST_STEP, INTEGER, INTEGERS, N_SAMPLES, NUMBER, STEP, kernel
from nbbp.cuda.launch import Binding, binds, flat
from nbbp.scalars.draws import NORMAL_GROUP, normal_pair, padded_width
from nbbp.scalars.philox import STREAM_NOISE, random_words

_BLOCKS = 16


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, NUMBER, INTEGER, INTEGER)
def gaussian_noise(number, variant):
    """y = x + stddev · normal; x, y (batch, width), the same or apart. Writes y. The gradient passes as it is."""
    zero = number(0)

    def gaussian_noise(clock, batch, y, y_stride, x, x_stride, width, stddev, seed, layer):
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        padded, step = padded_width(width), clock[FIRST_STEP] + clock[STEP]
        n_blocks = (n_rows * padded + NORMAL_GROUP - 1) // NORMAL_GROUP * _BLOCKS
        for block in range(cuda.grid(1), n_blocks, cuda.gridsize(1)):
            a, b, c, d = random_words(seed, block, layer, step, STREAM_NOISE)
            first, second = normal_pair(np.int32(a), np.int32(b), zero)
            third, fourth = normal_pair(np.int32(c), np.int32(d), zero)
            start = block // _BLOCKS * NORMAL_GROUP + block % _BLOCKS
            for k in range(4):
                i = start + k * _BLOCKS
                r, j = i // padded, i % padded
                if r < n_rows and j < width:
                    normal = first if k == 0 else second if k == 1 else third if k == 2 else fourth
                    y[r * y_stride + j] = x[r * x_stride + j] + stddev * normal

    return gaussian_noise


@binds("gaussian_noise_forward")
def bind_noise(op: Binding) -> None:
    """Noise of a training batch."""
    width = op[ops.N_OUT]
    n_blocks = -(-op.batch * padded_width(width) // NORMAL_GROUP) * _BLOCKS
    op.launch(
        "gaussian_noise", flat(n_blocks), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE], op.array(ops.X),
        op[ops.X_STRIDE], width, op.setting(0), op.bound.seed, op[ops.LAYER],
    )  # fmt: skip
