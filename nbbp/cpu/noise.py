"""Gaussian noise, on the numbers of a layer and on gradients.

Legend: batch rows, N_OUT units, W = N_OUT rounded up to 16. SEED, LAYER and FIRST_STEP + step say which numbers are
drawn, scalars/draws.py how. Normals are made in groups of 64, always whole, so that number i has the same bits wherever
a tile begins or ends.
"""

from numba import int32

from nbbp import ops
from nbbp.compiling import jit
from nbbp.cpu import random_simd, simd
from nbbp.cpu.kernels import kernel
from nbbp.cpu.random_simd import BLOCKS, CHUNK
from nbbp.scalars.dispatch import formula
from nbbp.scalars.draws import NORMAL_GROUP, normal_pair, padded_width
from nbbp.scalars.philox import STREAM_NOISE, key_words


@formula
def normals_of_group(out, words, zero, group, layer, step, stream, key_low, key_high):
    """out[0:64] = the normals of a group; `words` takes 64 int32 numbers."""
    random_simd.words_of_group(words, group, layer, step, stream, key_low, key_high)
    for start in range(0, NORMAL_GROUP, 2 * BLOCKS):
        some, of = simd.advance(out, start), simd.advance(words, start)
        for b in range(BLOCKS):
            first, second = normal_pair(of[b], of[b + BLOCKS], zero)
            some[b] = first
            some[b + BLOCKS] = second


@kernel("gaussian_noise_forward", fastmath={"contract"})
def gaussian_noise_forward(zero, variant):
    """Y = X + stddev · normal; SETTINGS: stddev. Cut by rows, from multiples of 16 on.

    X, Y (batch, N_OUT), which are the same or do not overlap. Writes Y, no padding. The gradient passes as it is.
    """

    def gaussian_noise_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        stddev = simd.pointer(op[ops.SETTINGS], zero)[0]
        n, layer, of_run = op[ops.N_OUT], op[ops.LAYER], op[ops.FIRST_STEP] + step
        width = padded_width(n)
        key_low, key_high = key_words(op[ops.SEED])
        normals, words = random_simd.stack_of_group(zero), random_simd.stack_of_group(int32(0))
        row, column = row_start, 0
        for group in range(row_start * width // NORMAL_GROUP, (row_stop * width + NORMAL_GROUP - 1) // NORMAL_GROUP):
            normals_of_group(normals, words, zero, group, layer, of_run, STREAM_NOISE, key_low, key_high)
            for start in range(0, NORMAL_GROUP, CHUNK):
                if row < row_stop:
                    x = simd.advance(simd.pointer(op[ops.X], zero), row * op[ops.X_STRIDE] + column)
                    y = simd.advance(simd.pointer(op[ops.Y], zero), row * op[ops.Y_STRIDE] + column)
                    random_simd.add_to_chunk(y, x, simd.advance(normals, start), stddev, 0, n - column)
                column += CHUNK
                if column == width:
                    row, column = row + 1, 0

    return gaussian_noise_forward


@jit(fastmath={"contract"})
def add_normal(y, zero, n, first, factor, seed, layer, step, stream):
    """y[k] += factor · normal, k in [0, n), where y[k] is number ``first + k`` of what the noise is added to.

    y a pointer to n numbers of the type of `zero` and `factor`, the only ones written; first at least 0. Stretches of
    one buffer, wherever it is cut, get what the whole buffer would get.
    """
    key_low, key_high = key_words(seed)
    normals, words = random_simd.stack_of_group(zero), random_simd.stack_of_group(int32(0))
    for group in range(first // NORMAL_GROUP, (first + n + NORMAL_GROUP - 1) // NORMAL_GROUP):
        normals_of_group(normals, words, zero, group, layer, step, stream, key_low, key_high)
        for start in range(0, NORMAL_GROUP, CHUNK):
            k = group * NORMAL_GROUP + start - first
            if -CHUNK < k < n:
                target = simd.advance(y, k)
                random_simd.add_to_chunk(target, target, simd.advance(normals, start), factor, -k, n - k)
