"""Random numbers of one sample of a batch: what augmentations draw, and what a function of the user's own may draw.

A key says whose numbers they are: ``(seed, sample, step, stream)``, the sample by its position in the batch. A number
is a pure function of a key and of its own number i, which its caller chooses: no state, so tiles and threads agree. The
counter is (block, sample, step, stream + kind), so that uniforms, integers and normals of the same i have nothing
to do with each other.
"""

import math

import numpy as np

from nbbp.scalars.circular import cos
from nbbp.scalars.dispatch import formula
from nbbp.scalars.functions import expm1, log
from nbbp.scalars.philox import (
    STREAM_AUGMENTATION,
    normal_pair_from_uniforms,
    random_words,
    uniform_float64_from_words,
)

#: What is added to the stream of a key for numbers of each kind, and from one augmentation to the next.
UNIFORMS, INTEGERS, NORMALS = 0, 1, 2
KINDS = 16
#: The sample of a key whose numbers belong to a batch as a whole.
WHOLE_BATCH = 2**32 - 1

_WORD_BITS = np.uint64(32)
_ONE = np.uint64(1)
_2_MINUS_31, _2_MINUS_32 = np.float32(2.0**-31), np.float32(2.0**-32)
#: From about here on a share is 0 or 1; far from overflow in float32.
_LARGEST_EXPONENT = 80.0


@formula
def key_of_sample(seed, sample, step, number):
    """The key of augmentation `number` of a `fit`, counted from 0, for one sample of a batch, in one step."""
    stream = STREAM_AUGMENTATION + KINDS * number
    return np.uint64(seed), np.uint64(sample), np.uint64(step), np.uint64(stream)


@formula
def uniform(key, i):
    """Uniform number i of a sample: a float64 in [0, 1) with 53 bits.

    Parameters
    ----------
    key : tuple
        What an augmentation's function gets beside the row.
    i : int
        Which number, from 0 on; the same i gives the same number.
    """
    seed, sample, step, stream = key
    a, b, c, d = random_words(seed, i // 2, sample, step, stream + np.uint64(UNIFORMS))
    return uniform_float64_from_words(a, b) if i % 2 == 0 else uniform_float64_from_words(c, d)


@formula
def integer(key, i, n):
    """Random integer i of a sample: one of 0 … n - 1, n at most 2**31; key and i as `uniform` takes them.

    ``word · n >> 32``, a word of 32 bits: no result is likelier than another by more than n / 2**32 of itself.
    """
    seed, sample, step, stream = key
    a, b, c, d = random_words(seed, i // 4, sample, step, stream + np.uint64(INTEGERS))
    place = i % 4
    first = a if place == 0 else b
    second = c if place == 2 else d
    word = first if place < 2 else second
    return np.int64(word * np.uint64(n) >> _WORD_BITS)


@formula
def normal(key, i):
    """Standard normal number i of a sample, a float64; key and i as `uniform` takes them."""
    seed, sample, step, stream = key
    a, b, c, d = random_words(seed, i // 2, sample, step, stream + np.uint64(NORMALS))
    first, second = normal_pair_from_uniforms(uniform_float64_from_words(a, b), uniform_float64_from_words(c, d))
    return first if i % 2 == 0 else second


@formula
def symmetric_beta(key, alpha):
    """A number of Beta(alpha, alpha), alpha > 0, in [0, 1], of the dtype of alpha; it spends uniform 0 of the sample.

    ``(1 + sign(c) / sqrt(1 + 1 / (q c²))) / 2`` with ``q = u**(-1 / alpha) - 1`` and ``c = cos 2 pi v``, of two uniform
    numbers, both rounded to float32 in either dtype: no rejection, so that every sample costs the same two words.
    (``c sqrt(2 alpha q)`` has Student's t distribution with 2 alpha degrees of freedom; R. W. Bailey, "Polar generation
    of random variates with the t-distribution", 1994; L. Devroye, "Random variate generation in one line of code",
    1996.)
    """
    dtype = type(alpha)
    seed, sample, step, stream = key
    a, b, _, _ = random_words(seed, 0, sample, step, stream + np.uint64(UNIFORMS))
    u = dtype(np.float32(np.int64(a >> _ONE | _ONE)) * _2_MINUS_31)
    v = dtype(np.float32(np.int64(b)) * _2_MINUS_32)
    exponent, largest = -log(u) / alpha, dtype(_LARGEST_EXPONENT)
    exponent = exponent if exponent < largest else largest
    c = cos(dtype(2.0 * math.pi) * v)
    one, half = dtype(1.0), dtype(0.5)
    offset = half / dtype(math.sqrt(one + one / (expm1(exponent) * (c * c))))
    return half + offset if c > dtype(0.0) else half - offset
