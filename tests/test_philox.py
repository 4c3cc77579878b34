"""Philox: known answers, the distributions made from it, and unbiased permutations."""

import math

import numpy as np
import pytest
from numba import njit
from scipy import stats

from nbbp.scalars import philox

# Counter, key and result of philox4x32 with 10 rounds, from the kat_vectors file of Random123.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [np.uint64(int(word, 16)) for word in text.split()]


@njit
def compiled_philox(a, b, c, d, key_low, key_high):
    return philox.philox4x32(a, b, c, d, key_low, key_high)


@njit
def compiled_random_words(seed, block, layer, step, stream):
    return philox.random_words(seed, block, layer, step, stream)


@pytest.mark.parametrize("function", [philox.philox4x32, compiled_philox], ids=["python", "compiled"])
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(function, counter, key, expected):
    assert list(function(*words(counter), *words(key))) == words(expected)


def test_random_words_puts_seed_and_counter_in_their_places():
    seed = 0x1234567_89ABCDEF
    expected = philox.philox4x32(*map(np.uint64, (5, 6, 7, 8, 0x89ABCDEF, 0x1234567)))
    assert philox.random_words(seed, 5, 6, 7, 8) == expected
    assert compiled_random_words(seed, 5, 6, 7, 8) == expected


def test_negative_seed_counts_modulo_two_to_the_64():
    ones = np.uint64(0xFFFFFFFF)
    assert compiled_random_words(-1, 0, 0, 0, 0) == philox.philox4x32(*[np.uint64(0)] * 4, ones, ones)


def test_uniforms_at_both_ends():
    largest = np.uint64(0xFFFFFFFF)
    assert philox.uniform_float32_from_word(np.uint64(255)) == 0.0
    assert philox.uniform_float32_from_word(largest) == 1.0 - 2.0**-24
    assert philox.uniform_float32_from_word(largest).dtype == np.float32
    assert philox.uniform_float64_from_words(np.uint64(31), np.uint64(63)) == 0.0
    assert philox.uniform_float64_from_words(largest, largest) == 1.0 - 2.0**-53


def test_normals_at_both_ends():
    assert philox.normal_pair_from_uniforms(0.0, 0.0) == (0.0, 0.0)
    largest, _ = philox.normal_pair_from_uniforms(1.0 - 2.0**-53, 0.0)
    assert largest == pytest.approx(math.sqrt(106.0 * math.log(2.0)))


def test_fill_takes_words_in_order():
    out = np.empty(6, np.float32)
    philox.fill_uniform_float32(out, 9, 1, 2, 3)
    drawn = [word for block in range(2) for word in philox.random_words(9, block, 1, 2, 3)]
    assert out.tolist() == [philox.uniform_float32_from_word(word) for word in drawn[:6]]
    out = np.empty(3)
    philox.fill_uniform_float64(out, 9, 1, 2, 3)
    assert out.tolist() == [philox.uniform_float64_from_words(*drawn[i : i + 2]) for i in (0, 2, 4)]


FILLS = {
    "uniform_float32": lambda out, *counter: philox.fill_uniform_float32(out, *counter),
    "uniform_float64": lambda out, *counter: philox.fill_uniform_float64(out, *counter),
    "normal": lambda out, *counter: philox.fill_normal_float64(out, *counter),
    "truncated_normal": lambda out, *counter: philox.fill_truncated_normal_float64(out, *counter, 2.0),
}


def filled(name, n, *counter):
    out = np.full(n, np.nan, np.float32 if name.endswith("float32") else np.float64)
    FILLS[name](out, *counter)
    return out


@pytest.mark.parametrize("name", FILLS)
def test_shorter_fill_is_the_beginning_of_a_longer_one(name):
    longest = filled(name, 41, 3, 0, 0, 0)
    for n in range(41):
        np.testing.assert_array_equal(filled(name, n, 3, 0, 0, 0), longest[:n])


@pytest.mark.parametrize("name", FILLS)
def test_every_part_of_key_and_counter_gives_other_numbers(name):
    counters = [(0, 0, 0, 0), (1, 0, 0, 0), (1 << 32, 0, 0, 0), (0, 1, 0, 0), (0, 0, 50, 0), (0, 0, 0, 1)]
    drawn = [filled(name, 1000, *counter) for counter in counters]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
            assert not (first == second).any()


DISTRIBUTIONS = {
    "uniform_float32": stats.uniform(),
    "uniform_float64": stats.uniform(),
    "normal": stats.norm(),
    "truncated_normal": stats.truncnorm(-2.0, 2.0),
}


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("seed", [0, 12345])
def test_distribution(name, seed):
    n = 200_000
    values = filled(name, n, seed, 3, 5, 7).astype(np.float64)
    expected = DISTRIBUTIONS[name]
    assert stats.kstest(values, expected.cdf).pvalue > 1e-3
    mean, variance, skew, kurtosis = map(float, expected.stats("mvsk"))
    assert abs(values.mean() - mean) < 4.0 * math.sqrt(variance / n)
    assert values.var() == pytest.approx(variance, rel=0.02)
    assert stats.skew(values) == pytest.approx(skew, abs=0.03)
    assert stats.kurtosis(values) == pytest.approx(kurtosis, abs=0.06)
    for lag in (1, 2, 4):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4.0 / math.sqrt(n)


def test_truncated_normal_stays_within_its_bound():
    assert np.abs(filled("truncated_normal", 100_000, 0, 0, 0, 0)).max() <= 2.0


@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 1000])
@pytest.mark.parametrize("seed", [0, -3, 2**62])
def test_permutation_is_one(n, seed):
    order = philox.permutation(n, seed, 4)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(order, philox.permutation(n, seed, 4))


def test_permutation_depends_on_seed_and_epoch():
    first = philox.permutation(100, 0, 0)
    assert (first != philox.permutation(100, 0, 1)).any()
    assert (first != philox.permutation(100, 1, 0)).any()


def test_fill_permutation_ignores_what_was_there():
    out = np.full(50, -1, np.int32)
    philox.fill_permutation(out, philox.room_for_words(50), 7, 2)
    np.testing.assert_array_equal(out, philox.permutation(50, 7, 2))


@pytest.mark.parametrize("n", [2, 5, 257, 1000])
def test_permutation_is_the_same_however_many_words_are_at_hand(n):
    for blocks in (1, 3, 64, 100):
        out = np.empty(n, np.int64)
        philox.fill_permutation(out, np.empty((4, blocks), np.uint64), 7, 2)
        np.testing.assert_array_equal(out, philox.permutation(n, 7, 2))


def test_all_orders_of_four_are_equally_likely():
    counts = {}
    n = 24_000
    for epoch in range(n):
        order = tuple(philox.permutation(4, 0, epoch))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_every_entry_is_equally_likely_at_every_place():
    n = 20
    counts = np.zeros((n, n))
    for epoch in range(10_000):
        counts[np.arange(n), philox.permutation(n, 5, epoch)] += 1
    assert stats.chisquare(counts.ravel(), ddof=2 * n - 2).pvalue > 1e-3


@njit
def shuffle_words(out, seed, epoch):
    for i in range(out.shape[0]):
        out[i] = philox.random_words(seed, i, 0, epoch, philox.STREAM_SHUFFLE)


def test_words_that_favour_some_results_are_thrown_away():
    """Compare with a slow shuffle that draws the same words and rejects by the definition."""
    n, seed, epoch = 300_000, 1, 0
    blocks = np.empty((n // 4 + 100, 4), np.uint64)
    shuffle_words(blocks, seed, epoch)
    drawn = iter(blocks.ravel().tolist())
    expected = list(range(n))
    n_rejected = 0
    for last in range(n - 1, 0, -1):
        bound = last + 1
        product = next(drawn) * bound
        while product % 2**32 < 2**32 % bound:
            product = next(drawn) * bound
            n_rejected += 1
        chosen = product >> 32
        expected[last], expected[chosen] = expected[chosen], expected[last]
    assert n_rejected > 0
    assert philox.permutation(n, seed, epoch).tolist() == expected


def test_loop_over_blocks_is_vectorised():
    @njit
    def fill(out):
        for i in range(out.size // 4):
            a, b, c, d = philox.random_words(0, i, 0, 0, 0)
            out[4 * i] = philox.uniform_float32_from_word(a)
            out[4 * i + 1] = philox.uniform_float32_from_word(b)
            out[4 * i + 2] = philox.uniform_float32_from_word(c)
            out[4 * i + 3] = philox.uniform_float32_from_word(d)

    fill.compile("void(float32[::1])")
    assert " x i64> " in fill.inspect_llvm(fill.signatures[0])
