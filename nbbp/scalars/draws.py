"""Which random number belongs to which place: the masks and the noise of random layers, on any processor.

Number i of a matrix (batch, width) has ``i = row · W + column``, W the width rounded up to 16; numbers of a vector are
counted from its start. i alone, with the seed, the layer, the step and the stream, says what number i is, so that
tiles, threads, vector widths and GPUs agree, and so do float32 and float64. Counters are (block, layer, step, stream).

Bits of masks. Number i is dropped where a uniform 32-bit integer is below ``rate · 2**32``. Its upper 16 bits are half
i % 2 (0: the lower) of word (i % 128) // 32 of block ``i // 128 · 16 + i % 32 // 2``; its lower 16 bits are the same
half of the same block of the stream ``LOW_HALVES + stream``. They matter to one number in 65536, whose upper bits are
those of the limit, so that a mask costs two bytes a number and its rate holds to 2**-32 all the same.

Normals. A block gives four: from words 0 and 1 ``(r cos, r sin)``, likewise from 2 and 3 (Box and Muller, 1958). Number
i is the normal (i % 64) // 16 of block ``i // 64 · 16 + i % 16``: sixteen blocks side by side fill vector registers,
which then hold numbers that lie side by side.
"""

import math

import numpy as np

from nbbp.scalars.circular import cos, sin
from nbbp.scalars.dispatch import exactly, formula
from nbbp.scalars.functions import log
from nbbp.scalars.philox import random_words

#: Added to a mask's stream: where the lower halves of its numbers come from.
LOW_HALVES = 1 << 31
#: Numbers that take sixteen blocks together.
MASK_GROUP = 128
NORMAL_GROUP = 64

_HALF_BITS, _HALF = np.uint64(16), np.uint64(0xFFFF)
_TWO_32, _LARGEST = 2.0**32, 2.0**32 - 1.0
_31_BITS = np.int32(0x7FFFFFFF)
_2_MINUS_31, _2_MINUS_32 = np.float32(2.0**-31), np.float32(2.0**-32)


@formula
def padded_width(width):
    """The width rounded up to 16: how far apart the numbers of a row and those of the next one are."""
    return (width + 15) // 16 * 16


@formula
def limit_of_rate(rate):
    """The integer below which a number is dropped. From float32, so that a float64 model drops the same numbers."""
    return np.uint64(np.int64(min(np.float64(np.float32(rate)) * _TWO_32 + 0.5, _LARGEST)))


@formula
def is_kept(i, seed, layer, step, stream, rate):
    """Whether number i of a mask is kept, which it is with probability 1 - rate; see the head of this file.

    Parameters
    ----------
    i : int
        At least 0.
    seed, layer, step, stream : int
        As `nbbp.scalars.philox.random_words` takes them.
    rate : float
        In [0, 1).
    """
    block = i // 128 * 16 + i % 32 // 2
    word = i % 128 // 32
    upper = random_words(seed, block, layer, step, stream)[word] >> _HALF_BITS * np.uint64(i % 2) & _HALF
    lower = random_words(seed, block, layer, step, LOW_HALVES + stream)[word] >> _HALF_BITS * np.uint64(i % 2) & _HALF
    return upper << _HALF_BITS | lower >= limit_of_rate(rate)


@exactly
def normal_pair(radius_word, angle_word, like):
    """Turn two int32 words into two standard normals of the dtype of `like`.

    ``u`` in (0, 1] is the upper 31 bits of the first word, the last of them set; ``v`` in [-1/2, 1/2] is the second
    word, signed; both rounded to float32 in either dtype, so that both take the same numbers.
    ``r = sqrt(-2 log u)``, ``(r cos 2 pi v, r sin 2 pi v)``; the largest magnitude is ``sqrt(62 log 2)``, about 6.56.
    """
    dtype = type(like)
    u = dtype(np.float32(np.int32((radius_word >> 1) & _31_BITS | 1)) * _2_MINUS_31)
    v = dtype(np.float32(angle_word) * _2_MINUS_32)
    radius = math.sqrt(dtype(-2.0) * log(u))
    angle = dtype(2.0 * math.pi) * v
    return radius * cos(angle), radius * sin(angle)
