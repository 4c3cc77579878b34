"""Random layers by NumPy alone: Philox's words, masks and normals as nbbp/scalars/draws.py describes them."""

import numpy as np

DROPOUT, DEPTH, NOISE = 2, 3, 4
LOW_HALVES = 1 << 31
WORD = np.uint64(0xFFFFFFFF)


def philox(counter, seed):
    """The words (4, n) uint64 of counters (4, n), by the paper: ten rounds, the key is bumped between them."""
    c = [np.asarray(word, np.uint64) & WORD for word in np.broadcast_arrays(*counter)]
    key = [seed % 2**32, seed % 2**64 >> 32]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            second >> np.uint64(32) ^ c[1] ^ np.uint64(key[0]),
            second & WORD,
            first >> np.uint64(32) ^ c[3] ^ np.uint64(key[1]),
            first & WORD,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return np.array(c)


def places(batch, width):
    """The number i of each place of a matrix, (batch, width)."""
    return np.arange(batch)[:, None] * (-(-width // 16) * 16) + np.arange(width)


def uniform_bits(i, seed, layer, step, stream):
    """The uniform 32-bit integer of number i of a mask: sixteen bits of two streams."""
    group, place = np.divmod(np.asarray(i), 128)
    lane = place % 32
    halves = []
    for of_stream in (stream, LOW_HALVES + stream):
        words = philox([group * 16 + lane // 2, layer, step, of_stream], seed)
        word = np.take_along_axis(words, (place // 32)[None], axis=0)[0].astype(np.int64)
        halves.append(np.where(lane % 2 == 1, word >> 16, word & 0xFFFF))
    return halves[0] << 16 | halves[1]


def kept(i, rate, seed, layer, step, stream):
    """Which of the numbers i are kept."""
    limit = min(int(np.floor(float(np.float32(rate)) * 2**32 + 0.5)), 2**32 - 1)
    return uniform_bits(i, seed, layer, step, stream) >= limit


def normals(i, seed, layer, step, stream):
    """The standard normals of the numbers i, in float64 but for the rounding of the uniforms to float32."""
    group, place = np.divmod(np.asarray(i), 64)
    words = philox([group * 16 + place % 16, layer, step, stream], seed)
    which = place // 16
    first, second = np.where(which < 2, words[0], words[2]), np.where(which < 2, words[1], words[3])
    u = (first >> np.uint64(1) | np.uint64(1)).astype(np.float32).astype(np.float64) * 2.0**-31
    v = second.astype(np.uint32).view(np.int32).astype(np.float32).astype(np.float64) * 2.0**-32
    wave = np.where(which % 2 == 0, np.cos(2.0 * np.pi * v), np.sin(2.0 * np.pi * v))
    return np.sqrt(-2.0 * np.log(u)) * wave
