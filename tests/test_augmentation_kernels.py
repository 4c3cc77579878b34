"""The ops of augmentations, and the numbers that they draw: the oracle's, wherever a tile ends, and rightly spread."""

import itertools
import math

import numpy as np
import pytest
import reference_augmentation as reference
from engine_cases import DTYPES
from kernel_calls import EPS, Guarded, run_kernel
from numba import njit
from scipy import stats

from nbbp import augmentation, ops
from nbbp.scalars import philox, sampling

SEED, FIRST_STEP, STEP, NUMBER = 2**62 + 12345, 2**32 - 3, 7, 3
OF_DRAW = (FIRST_STEP + STEP, NUMBER, SEED)
DRAW = {"seed": SEED, "first_step": FIRST_STEP, "layer": NUMBER}
ROWS = [1, 3, 17, 48]
BEHIND = 7.5


def run(name, dtype, rows, **columns):
    run_kernel(name, dtype, rows, step=STEP, **{**DRAW, **columns})


def matrix(rows, width, dtype, seed=0):
    """Rows of a workspace: numbers, BEHIND behind the last one, and padding that nobody may write."""
    values = np.full((rows, (width + 16) // 16 * 16), 1e30)
    values[:, :width] = np.random.default_rng(seed).uniform(-3.0, 3.0, (rows, width))
    values[:, width] = BEHIND
    return Guarded(values, dtype)


def near(actual, expected, ulps=8):
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=ulps * EPS[actual.dtype.name] * np.abs(expected).max())


# --- numbers --------------------------------------------------------------------------------------------------------


def drawn(key):
    """Some numbers of each kind of one sample."""
    uniforms = [sampling.uniform(key, i) for i in range(5)]
    integers = [sampling.integer(key, i, 1000) for i in range(9)]
    return uniforms, integers, [sampling.normal(key, i) for i in range(5)]


def test_numbers_of_a_sample_are_the_oracle():
    """In Python and in jitted code, from the first to where the block's number takes all of its word."""

    @njit
    def in_jitted_code(seed, sample, step, number):
        key = augmentation.key_of_sample(seed, sample, step, number)
        uniforms = [augmentation.uniform(key, i) for i in range(5)]
        integers = [augmentation.integer(key, i, 1000) for i in range(9)]
        return uniforms, integers, [augmentation.normal(key, i) for i in range(5)]

    sample = np.array([5, 2**24 + 1])
    uniforms = np.array([reference.uniforms(i, sample, *OF_DRAW) for i in range(5)])
    integers = np.array([reference.integers(i, 1000, sample, *OF_DRAW) for i in range(9)])
    normals = np.array([reference.normals_of_samples(i, sample, *OF_DRAW) for i in range(5)])
    for column, one in enumerate(sample):
        for found in (
            in_jitted_code(SEED, one, FIRST_STEP + STEP, NUMBER),
            drawn(sampling.key_of_sample(SEED, one, FIRST_STEP + STEP, NUMBER)),
        ):
            np.testing.assert_array_equal(found[0], uniforms[:, column])
            np.testing.assert_array_equal(found[1], integers[:, column])
            np.testing.assert_allclose(found[2], normals[:, column], rtol=1e-14)


def test_streams_are_nobody_elses():
    of_layers = {philox.STREAM_PARAMETERS, philox.STREAM_SHUFFLE, philox.STREAM_DROPOUT, philox.STREAM_DEPTH}
    of_layers |= {philox.STREAM_NOISE, philox.STREAM_GRADIENT_NOISE}
    own = [int(sampling.key_of_sample(0, 0, 0, number)[3]) + kind for number in range(40) for kind in range(3)]
    assert len(set(own)) == len(own)
    assert not set(own) & of_layers
    assert max(own) < 2**31, "where the lower halves of masks begin"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 1.0, 3.0, 1e3])
def test_shares_are_the_oracle_and_beta(alpha, dtype):
    share = Guarded(np.full(20_000, -1.0), dtype)
    for rows in ((16, 20_000), (0, 16)):
        run("mixup_shares", dtype, rows, y=share, settings=np.array([alpha], dtype))
    share.assert_guards()
    found = share.values.astype(np.float64)
    expected = reference.shares(float(np.dtype(dtype).type(alpha)), np.arange(20_000), *OF_DRAW)
    # an exponent of up to 80 is rounded, so that its power is off by up to so many units in the last place
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=160 * EPS[dtype])
    assert 0.0 <= found.min() <= found.max() <= 1.0
    for end in (0.01, 0.1, 0.25, 0.45, 0.5, 0.52, 0.9, 0.99):  # at 0 and 1 rounding heaps them up
        share_below = stats.beta(alpha, alpha).cdf(end)
        below = np.count_nonzero(found <= end)
        assert abs(below - share_below * found.size) <= 4.0 * math.sqrt(share_below * (1.0 - share_below) * found.size)
    assert abs(found.mean() - 0.5) < 4.0 * found.std() / math.sqrt(found.size)
    variance, kurtosis = 1.0 / (4.0 * (2.0 * alpha + 1.0)), stats.beta(alpha, alpha).stats("k") + 3.0
    assert abs(found.var() / variance - 1.0) < 4.0 * math.sqrt((kurtosis - 1.0) / found.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shares_of_extreme_alphas_are_numbers(dtype):
    for alpha, expected in ((np.finfo(dtype).tiny, (0.0, 1.0)), (np.finfo(dtype).max, (0.5, 0.5))):
        share = Guarded(np.full(100, -1.0), dtype)
        run("mixup_shares", dtype, (0, 100), y=share, settings=np.array([alpha], dtype))
        assert {share.values.min(), share.values.max()} == set(expected)


def test_every_sample_and_step_draws_anew():
    samples = np.arange(4000)
    uniforms = [reference.uniforms(i, samples, step, 0, 1) for i in range(2) for step in range(2)]
    for k, one in enumerate(uniforms):
        assert stats.kstest(one, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 4.0 / math.sqrt(one.size)
        for other in uniforms[:k]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 4.0 / math.sqrt(one.size)


# --- shift ----------------------------------------------------------------------------------------------------------

SHIFTS = [((8, 8), (1, 1)), ((3, 17, 3), (2, 0)), ((5, 4, 2), (4, 3)), ((1, 33), (0, 32)), ((19,), (3,)), ((2,), (1,))]


def run_shift(y, width, shape, pixels, fill, tiles):
    dtype = y.values.dtype.name
    lines = shape[0] if len(shape) > 1 else 1
    down, right = (0, *pixels)[-2:]
    scratch = Guarded(np.zeros(width), dtype)
    for rows in tiles:
        run(
            "shift", dtype, rows, y=y, y_stride=y.values.shape[1], n_out=width, height=lines, down=down, right=right,
            channels=shape[2] if len(shape) > 2 else 1, settings=np.array([fill], dtype), scratch=scratch,
        )  # fmt: skip
        scratch.assert_guards()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("shape", "pixels"), SHIFTS)
def test_shift(shape, pixels, rows, dtype):
    """Bit for bit what moving pixel by pixel gives, whole and in tiles."""
    width = math.prod(shape)
    cuts = sorted({0, min(2, rows), rows})
    for tiles in ([(0, rows)], list(itertools.pairwise(cuts))[::-1]):
        y = matrix(rows, width, dtype)
        expected = reference.shifted(y.values[:, :width], shape, pixels, -2.5, *OF_DRAW)
        run_shift(y, width, shape, pixels, -2.5, tiles)
        np.testing.assert_array_equal(y.values[:, :width], expected)
        y.assert_untouched((slice(None), slice(width, None)))
        y.assert_guards()


def test_shifts_are_uniform():
    """Of an image with one pixel: where it is found, all 15 places as often."""
    n = 15_000
    y = Guarded(np.zeros((n, 64)), "float32")
    y.values[:, 4 * 7 + 3] = 1.0
    run_shift(y, 63, (9, 7), (2, 1), 0.0, [(0, n)])
    line, column = np.divmod(y.values[:, :63].argmax(axis=1), 7)
    found = np.bincount((line - 2) * 3 + column - 2, minlength=15)
    assert found.sum() == n
    assert stats.chisquare(found).pvalue > 1e-3


# --- mixup ----------------------------------------------------------------------------------------------------------


def pairs(rows, batch, dtype):
    """Shares and partners of the last batch of a run, which has that many rows, and the columns that say so."""
    share = reference.shares(0.7, np.arange(rows), *OF_DRAW).astype(dtype)
    columns = {"kept": share, "batch": batch, "n_samples": STEP * batch + rows}
    return share, reference.partners(rows, *OF_DRAW), columns


def cut(rows):
    return [(min(2, rows), rows), (0, min(2, rows))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 64])
@pytest.mark.parametrize("rows", ROWS)
def test_mixup_rows(rows, width, dtype):
    """The same bits as NumPy in the dtype, for a whole batch and for a short one."""
    for batch in (rows, rows + 5):
        share, other, columns = pairs(rows, batch, dtype)
        x, y = matrix(rows, width, dtype), matrix(rows, width, dtype, seed=1)
        start = x.values[:, :width].copy()
        strides = {"x_stride": x.values.shape[1], "y_stride": y.values.shape[1]}
        for tile in cut(rows):
            run("mixup_rows", dtype, tile, x=x, y=y, n_out=width, **strides, **columns)
        expected = share[:, None] * start + (np.dtype(dtype).type(1) - share)[:, None] * start[other]
        np.testing.assert_array_equal(y.values[:, :width], expected)
        x.assert_untouched(...)
        y.assert_untouched((slice(None), slice(width, None)))
        y.assert_guards()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_out", [1, 3, 17])
@pytest.mark.parametrize("rows", ROWS)
def test_mixup_targets_and_weights(rows, n_out, dtype):
    random = np.random.default_rng(2)
    share, other, columns = pairs(rows, rows + 2, dtype)
    order = random.permutation(STEP * (rows + 2) + rows)
    own = order[STEP * (rows + 2) :]
    labels, dense = random.integers(0, n_out, order.size), random.random((order.size, n_out)).astype(dtype)
    weight = random.random(order.size).astype(dtype)
    for target, one_hot in ((labels, np.eye(n_out, dtype=dtype)[labels]), (dense, dense)):
        y = Guarded(np.full((rows, n_out), np.nan), dtype)
        is_labels = int(target is labels)
        stride = {"target_stride": 0 if is_labels else n_out, "target_is_labels": is_labels}
        for tile in cut(rows):
            run("mixup_targets", dtype, tile, target=target, order=order, y=y, y_stride=n_out, n_out=n_out,
                **stride, **columns)  # fmt: skip
        mine = one_hot[own]
        near(y.values, (share * mine.T + (1 - share) * mine[other].T).T, ulps=1)
        y.assert_guards()
    for given, expected in ((weight, share * weight[own] + (1 - share) * weight[own][other]), (0, np.ones(rows))):
        y = Guarded(np.full(rows, np.nan), dtype)
        for tile in cut(rows):
            run("mixup_weights", dtype, tile, sample_weight=given, order=order, y=y, **columns)
        near(y.values, expected, ulps=1)
        y.assert_guards()


def test_partners_are_others_and_everybodys_once():
    for n in (2, 3, 64):
        distances = set()
        for step in range(40 * n):
            other = reference.partners(n, step, 0, 9)
            assert (other != np.arange(n)).all()
            assert sorted(other) == list(range(n))
            distances.add((other[0]) % n)
        assert distances == set(range(1, n))


# --- functions of the user's own ------------------------------------------------------------------------------------


@njit
def jitter(row, key):
    for j in range(row.size):
        row[j] += augmentation.normal(key, j) + augmentation.uniform(key, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_a_function_gets_every_row_with_its_key(rows, dtype):
    y, scratch = matrix(rows, 5, dtype), Guarded(np.zeros(5), dtype)
    samples = np.arange(rows)
    noise = np.array([reference.normals_of_samples(j, samples, *OF_DRAW) for j in range(5)]).T
    expected = y.values[:, :5] + noise + reference.uniforms(0, samples, *OF_DRAW)[:, None]
    for tile in cut(rows):
        run(
            "augment_row", dtype, tile, variant=ops.UserFunction(jitter, "jitter"), y=y, y_stride=16, n_out=5,
            scratch=scratch,
        )  # fmt: skip
    near(y.values[:, :5], expected)
    y.assert_untouched((slice(None), slice(5, None)))
    y.assert_guards()
    scratch.assert_guards()
