"""Counter-based random numbers: Philox4x32-10.

A number is a pure function of a key and a counter, so that it does not matter which thread, device or call
asks for it, nor in which order. Here the key is the seed and the counter is ``(block, layer, step, stream)``;
one counter gives a block of four 32-bit words, that is four float32 uniforms, two float64 uniforms or two
float64 normals.

Every function is plain integer arithmetic in uint64 variables that hold 32-bit words. This keeps Numba from
mixing signed and unsigned integers (which would turn them into floats) and gives the same bits in Python, on
the CPU and on the GPU. The normal numbers alone depend on the machine, in the last bit of log, sin and cos.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
2011.
"""

import math

import numpy as np

from nbbp.compiling import jit
from nbbp.scalars.dispatch import formula

#: Fourth counter word of initial parameters.
STREAM_PARAMETERS = 0
#: Fourth counter word of `permutation`.
STREAM_SHUFFLE = 1
#: Fourth counter words of random layers; scalars/draws.py says which number takes which word.
STREAM_DROPOUT = 2
STREAM_DEPTH = 3
STREAM_NOISE = 4
#: Fourth counter word of noise that is added to gradients.
STREAM_GRADIENT_NOISE = 5
#: First of the fourth counter words of augmentations; scalars/sampling.py says which have the others.
STREAM_AUGMENTATION = 16

#: Largest length `permutation` accepts: one 32-bit word chooses each position.
MAX_PERMUTATION = 2**32
#: Counters whose words are computed together for a permutation, at most.
_BLOCKS_AT_ONCE = 64
_MAX_INT32 = 2**31 - 1

#: What a round multiplies two words of the counter by, and what is added to the words of the key after each.
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = np.uint64(0x9E3779B9)
WEYL_1 = np.uint64(0xBB67AE85)
_WORD = np.uint64(0xFFFFFFFF)
_WORD_BITS = np.uint64(32)
_ONE = np.uint64(1)

_FLOAT32_SHIFT = np.uint64(8)
_FLOAT32_STEP = np.float32(2.0**-24)
_HIGH_SHIFT = np.uint64(5)
_LOW_SHIFT = np.uint64(6)
_LOW_BITS = np.uint64(26)
_FLOAT64_STEP = 2.0**-53


@formula
def philox_round(c0, c1, c2, c3, key_low, key_high, number):
    """One of the ten rounds: two 32-bit products, and the key after `number` Weyl steps, 0 to 9."""
    product_0 = MULTIPLIER_0 * c0
    product_1 = MULTIPLIER_1 * c2
    key_low = (key_low + number * WEYL_0) & _WORD
    key_high = (key_high + number * WEYL_1) & _WORD
    return (
        (product_1 >> _WORD_BITS) ^ c1 ^ key_low,
        product_1 & _WORD,
        (product_0 >> _WORD_BITS) ^ c3 ^ key_high,
        product_0 & _WORD,
    )


@formula
def philox4x32(block, layer, step, stream, key_low, key_high):
    """Return the four 32-bit words that belong to one counter and one key (ten rounds).

    The rounds are written out because LLVM unrolls a loop over them too late to vectorise a loop over blocks,
    which then takes ten times as long.

    Parameters
    ----------
    block, layer, step, stream : uint64, below 2**32
        The counter, first word first.
    key_low, key_high : uint64, below 2**32
        The key, first word first; see `key_words`.

    Returns
    -------
    tuple of four uint64, each below 2**32
    """
    a, b, c, d = philox_round(block, layer, step, stream, key_low, key_high, np.uint64(0))
    a, b, c, d = philox_round(a, b, c, d, key_low, key_high, np.uint64(1))
    a, b, c, d = philox_round(a, b, c, d, key_low, key_high, np.uint64(2))
    a, b, c, d = philox_round(a, b, c, d, key_low, key_high, np.uint64(3))
    a, b, c, d = philox_round(a, b, c, d, key_low, key_high, np.uint64(4))
    a, b, c, d = philox_round(a, b, c, d, key_low, key_high, np.uint64(5))
    a, b, c, d = philox_round(a, b, c, d, key_low, key_high, np.uint64(6))
    a, b, c, d = philox_round(a, b, c, d, key_low, key_high, np.uint64(7))
    a, b, c, d = philox_round(a, b, c, d, key_low, key_high, np.uint64(8))
    a, b, c, d = philox_round(a, b, c, d, key_low, key_high, np.uint64(9))
    return a, b, c, d


@formula
def key_words(seed):
    """Split a seed, an integer of up to 64 bits, into the two key words; compiled, -1 is 2**64 - 1."""
    bits = np.uint64(seed)
    return bits & _WORD, bits >> _WORD_BITS


@formula
def uniform_float32_from_word(word):
    """Turn one 32-bit word into a float32 in [0, 1): its upper 24 bits times 2**-24."""
    # Through int32, which has a vector conversion on every processor.
    return np.float32(np.int32(word >> _FLOAT32_SHIFT)) * _FLOAT32_STEP


@formula
def uniform_float64_from_words(high, low):
    """Turn two 32-bit words into a float64 in [0, 1): 27 and 26 of their upper bits, times 2**-53."""
    bits = ((high >> _HIGH_SHIFT) << _LOW_BITS) | (low >> _LOW_SHIFT)
    return np.float64(np.int64(bits)) * _FLOAT64_STEP


@formula
def normal_pair_from_uniforms(u, v):
    """Turn two float64 uniforms in [0, 1) into two independent standard normals (Box and Muller, 1958).

    ``r = sqrt(-2 log(1 - u))``, ``(r cos 2 pi v, r sin 2 pi v)``; 1 - u is exact and never zero, so the
    largest magnitude is ``sqrt(106 log 2)``, about 8.57.
    """
    radius = math.sqrt(-2.0 * math.log(1.0 - u))
    angle = 2.0 * math.pi * v
    return radius * math.cos(angle), radius * math.sin(angle)


@formula
def random_words(seed, block, layer, step, stream):
    """Return the four words of one counter, from integers of any type; callable from jitted code.

    Parameters
    ----------
    seed : int
        The key; int64, negative ones included.
    block, layer, step, stream : int
        The counter; each counts modulo 2**32.

    Returns
    -------
    tuple of four uint64, each below 2**32
    """
    key_low, key_high = key_words(seed)
    return philox4x32(
        np.uint64(block) & _WORD,
        np.uint64(layer) & _WORD,
        np.uint64(step) & _WORD,
        np.uint64(stream) & _WORD,
        key_low,
        key_high,
    )


@jit()
def fill_uniform_float32(out, seed, layer, step, stream):
    """Write uniform numbers of [0, 1) with 24 bits into `out` (n,) float32; four per block, from block 0."""
    n_whole = out.size // 4
    for i in range(n_whole):
        a, b, c, d = random_words(seed, i, layer, step, stream)
        out[4 * i] = uniform_float32_from_word(a)
        out[4 * i + 1] = uniform_float32_from_word(b)
        out[4 * i + 2] = uniform_float32_from_word(c)
        out[4 * i + 3] = uniform_float32_from_word(d)
    a, b, c, _ = random_words(seed, n_whole, layer, step, stream)
    for i in range(4 * n_whole, out.size):
        out[i] = uniform_float32_from_word(a)
        a, b = b, c


@jit()
def fill_uniform_float64(out, seed, layer, step, stream):
    """Write uniform numbers of [0, 1) with 53 bits into `out` (n,) float64; two per block, from block 0."""
    n_whole = out.size // 2
    for i in range(n_whole):
        a, b, c, d = random_words(seed, i, layer, step, stream)
        out[2 * i] = uniform_float64_from_words(a, b)
        out[2 * i + 1] = uniform_float64_from_words(c, d)
    if out.size % 2 == 1:
        a, b, _, _ = random_words(seed, n_whole, layer, step, stream)
        out[2 * n_whole] = uniform_float64_from_words(a, b)


@formula
def _normals_of_block(seed, block, layer, step, stream):
    a, b, c, d = random_words(seed, block, layer, step, stream)
    return normal_pair_from_uniforms(uniform_float64_from_words(a, b), uniform_float64_from_words(c, d))


@jit()
def fill_normal_float64(out, seed, layer, step, stream):
    """Write standard normal numbers into `out` (n,) float64; two per block, from block 0."""
    for i in range(0, out.size, 2):
        x, y = _normals_of_block(seed, i // 2, layer, step, stream)
        out[i] = x
        if i + 1 < out.size:
            out[i + 1] = y


@jit()
def fill_truncated_normal_float64(out, seed, layer, step, stream, bound):
    """Write standard normal numbers redrawn until their magnitude is at most `bound` into `out` (n,) float64.

    The step word of the counter goes up by one with each attempt, so that a number depends on its index
    alone. `bound` > 0; at 2 one number in 22 is drawn again.
    """
    for i in range(out.size):
        attempt = step
        x, y = _normals_of_block(seed, i // 2, layer, attempt, stream)
        value = x if i % 2 == 0 else y
        while abs(value) > bound:
            attempt += 1
            x, y = _normals_of_block(seed, i // 2, layer, attempt, stream)
            value = x if i % 2 == 0 else y
        out[i] = value


@jit()
def _fill_words(words, first_block, epoch, key_low, key_high):
    """Write the words of as many counters as there are columns from the block `first_block` on into `words` (4, n)."""
    for i in range(words.shape[1]):
        block = (np.uint64(first_block) + np.uint64(i)) & _WORD
        words[0, i], words[1, i], words[2, i], words[3, i] = philox4x32(
            block, np.uint64(0), epoch, np.uint64(STREAM_SHUFFLE), key_low, key_high
        )


@jit()
def room_for_words(n):
    """What `fill_permutation` needs for `n` numbers: new memory, of no more words than it takes."""
    return np.empty((4, max(1, min(_BLOCKS_AT_ONCE, (n + 3) // 4))), np.uint64)


@jit()
def fill_permutation(out, words, seed, epoch):
    """Write a random permutation of 0 .. n-1 into `out` (n,), an integer array, whatever was in it.

    Fisher and Yates' shuffle (Knuth, TAOCP 2, algorithm P). Each position is an unbiased bounded integer by
    D. Lemire's method ("Fast random integer generation in an interval", 2019): ``word * bound >> 32``, where
    the few words that would favour some results are thrown away. Words come from counters (block, 0, epoch,
    STREAM_SHUFFLE), as many at a time as `words` (4, any), uint64, has room for, in vector registers. Writes both
    arrays.

    Raises
    ------
    ValueError
        If `out` is longer than 2**32.
    """
    n = out.size
    if n > MAX_PERMUTATION:
        raise ValueError("a permutation has at most 2**32 entries")
    for i in range(n):
        out[i] = i
    key_low, key_high = key_words(seed)
    block, used = 0, words.size
    for last in range(n - 1, 0, -1):
        bound = np.uint64(last) + _ONE
        while True:
            if used == words.size:
                _fill_words(words, block, np.uint64(epoch) & _WORD, key_low, key_high)
                block, used = block + words.shape[1], 0
            product = words[used & 3, used >> 2] * bound
            used += 1
            fraction = product & _WORD
            # 2**32 mod bound words are too many; only a fraction below the bound needs the division.
            if fraction >= bound or fraction >= (_WORD - bound + _ONE) % bound:
                break
        chosen = np.int64(product >> _WORD_BITS)
        out[last], out[chosen] = out[chosen], out[last]


@jit()
def permutation(n, seed, epoch):
    """Return a random permutation of 0 .. n-1 as an int64 array (n,): the order of the samples in one epoch.

    The same `n`, `seed` and `epoch` give the same order everywhere. See `fill_permutation`.
    """
    if n > _MAX_INT32:
        out = np.empty(n, np.int64)
        fill_permutation(out, room_for_words(n), seed, epoch)
        return out
    # numbers are exchanged all over the array, of which twice as many stay in cache
    short = np.empty(n, np.int32)
    fill_permutation(short, room_for_words(n), seed, epoch)
    return short.astype(np.int64)
