"""Dropout, stochastic depth and Gaussian noise: the numbers that the oracle draws, wherever a tile or a vector ends."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference_random as reference
from engine_cases import DTYPES
from kernel_calls import EPS, Guarded, run_kernel
from numba import njit
from scipy import stats

from nbbp import tiling
from nbbp.cpu import noise, random_simd, simd
from nbbp.scalars import draws, philox

WIDTHS, ROWS = [1, 3, 16, 17, 64, 100], [1, 3, 17, 48]
SIZES = [(rows, width) for width in WIDTHS for rows in ROWS]
#: A seed that fills both key words, and counters that are no small numbers.
DRAW = {"seed": -0x1234567_89ABCDEF, "layer": 5, "first_step": 2**32 - 3}
STEP = 7
OF_DRAW = (DRAW["seed"], DRAW["layer"], DRAW["first_step"] + STEP)
BEHIND = 7.5
RATES = [0.3, 0.5]


def matrix(rows, width, dtype, extra=0, seed=0):
    """Rows of a workspace: numbers, BEHIND behind the last one, and padding that no result may see."""
    values = np.full((rows, (width + 16) // 16 * 16 + extra), 1e30)
    values[:, :width] = np.random.default_rng(seed).uniform(-3.0, 3.0, (rows, width))
    values[:, width] = BEHIND
    return Guarded(values, dtype)


def run(name, x, y, width, settings, tiles=None, step=STEP, **columns):
    dtype, rows = y.values.dtype.name, len(y.values)
    for tile in tiles or [(0, rows)]:
        run_kernel(
            name, dtype, tile, step=step, x=x, x_stride=x.values.shape[1], y=y, y_stride=y.values.shape[1],
            n_out=width, settings=np.array(settings, dtype), **{**DRAW, **columns},
        )  # fmt: skip


def mask_memory(rows, width, dtype):
    return Guarded(np.full(tiling.mask_size(rows, width), -3.0), dtype)


def near(actual, expected, ulps=4):
    np.testing.assert_allclose(actual, expected, rtol=ulps * EPS[actual.dtype.name], atol=0.0)


def assert_rows(y, width, expected, ulps=4):
    near(y.values[:, :width], expected, ulps)
    assert (y.values[:, width] == BEHIND).all()
    y.assert_guards()


# --- the oracle, the formulas and the bits --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 12345, -1, -(2**63), 2**63 - 1])
def test_oracle_draws_the_words_of_philox(seed):
    counter = 2**32 - 1, 3, 2**40 + 7, philox.STREAM_DROPOUT + draws.LOW_HALVES
    assert reference.philox(counter, seed).tolist() == list(philox.random_words(seed % 2**64, *counter))


def test_formulas_of_a_number_are_the_oracle():
    @njit
    def all_kept(out, seed, layer, step, stream, rate):
        for i in range(out.size):
            out[i] = draws.is_kept(i, seed, layer, step, stream, rate)

    out = np.zeros(1000, np.bool_)
    all_kept(out, -5, 6, 7, 8, 0.3)
    np.testing.assert_array_equal(out, reference.kept(np.arange(1000), 0.3, -5, 6, 7, 8))
    assert [draws.is_kept(i, 2**64 - 5, 6, 7, 8, 0.3) for i in range(300)] == out[:300].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rate_counts_to_its_last_bit(dtype):
    """A number whose upper bits are those of the limit: dropped or kept by the lower ones, of the other stream."""
    i = reference.places(1, 128)
    drawn = reference.uniform_bits(i, *OF_DRAW, reference.DROPOUT)[0]
    for place in (0, 63, 64, 101):
        limit = drawn[place] >> 8 << 8  # float32 has 24 bits
        for rate, is_kept in ((limit / 2.0**32, True), ((limit + 256) / 2.0**32, False)):
            y = Guarded(np.ones((1, 144)), dtype)
            run("dropout_forward", y, y, 128, [rate], kept=mask_memory(1, 128, dtype))
            assert (y.values[0, place] != 0.0) == is_kept
            np.testing.assert_array_equal(y.values[:, :128] != 0.0, reference.kept(i, rate, *OF_DRAW, 2))


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_dropout(rows, width, rate, dtype):
    """In place and apart, forward and backward, against the oracle's mask."""
    is_kept = reference.kept(reference.places(rows, width), rate, *OF_DRAW, reference.DROPOUT)
    kept = mask_memory(rows, width, dtype)
    x = matrix(rows, width, dtype)
    start = x.values[:, :width].copy()
    expected = np.where(is_kept, start / (1.0 - rate), 0.0)
    y = matrix(rows, width, dtype, extra=16, seed=1)
    run("dropout_forward", x, y, width, [rate], kept=kept)
    x.assert_untouched(...)
    assert_rows(y, width, expected)
    kept.assert_guards()
    bits = np.unpackbits(kept.values.view(np.uint8), bitorder="little")
    np.testing.assert_array_equal(bits[reference.places(rows, width)], is_kept)
    run("dropout_forward", x, x, width, [rate], kept=mask_memory(rows, width, dtype))
    assert_rows(x, width, expected)
    d = matrix(rows, width, dtype, seed=2)
    expected = np.where(is_kept, d.values[:, :width] / (1.0 - rate), 0.0)
    run("dropout_backward", x, d, width, [rate], kept=kept)
    assert_rows(d, width, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 17, 100])
def test_tiles_make_the_whole(width, dtype):
    """In any order, with a short last one; every kernel that goes by rows."""
    for name, settings in [
        ("dropout_forward", [0.3]),
        ("stochastic_depth_forward", [0.3, 1.0]),
        ("gaussian_noise_forward", [2.0]),
    ]:
        whole, cut = (matrix(45, width, dtype) for _ in range(2))
        run(name, whole, whole, width, settings, kept=mask_memory(45, width, dtype))
        kept = mask_memory(45, width, dtype)
        run(name, cut, cut, width, settings, [(32, 45), (0, 16), (16, 32)], kept=kept)
        np.testing.assert_array_equal(cut.values[:, : width + 1], whole.values[:, : width + 1])
        kept.assert_guards()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["dropout", "stochastic_depth"])
def test_what_is_not_finite_is_dropped_or_stays(name, dtype):
    for value in (np.nan, np.inf, -np.inf):
        y, d = (Guarded(np.full((48, 32), value), dtype) for _ in range(2))
        kept = mask_memory(48, 20, dtype)
        run(f"{name}_forward", y, y, 20, [0.5, 1.0], kept=kept)
        run(f"{name}_backward", y, d, 20, [0.5, 1.0], kept=kept)
        for of in (y.values[:, :20], d.values[:, :20]):
            is_dropped = of == 0.0
            assert 0.25 < is_dropped.mean() < 0.75
            np.testing.assert_array_equal(of[~is_dropped], value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["dropout", "stochastic_depth"])
def test_rate_zero_is_the_identity_and_a_rate_near_one_drops(name, dtype):
    for rate in (0.0, 1.0 - EPS[dtype] / 2):
        for direction in ("forward", "backward"):
            y = matrix(17, 33, dtype)
            before = y.values.copy()
            bits = np.full(tiling.mask_size(17, 33) * EPS[dtype].itemsize, 255 if rate == 0.0 else 0, np.uint8)
            run(f"{name}_{direction}", y, y, 33, [rate, 1.0], kept=bits)
            np.testing.assert_array_equal(y.values[:, :33], before[:, :33] if rate == 0.0 else 0.0)


# --- stochastic depth -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_row", [1.0, 0.0])
@pytest.mark.parametrize(("rows", "width"), [*SIZES, (300, 2)])
def test_stochastic_depth(rows, width, by_row, dtype):
    number = np.arange(rows)[:, None] * int(by_row)
    dropped = set()
    for step in range(STEP, STEP + 4):
        of_draw = (*OF_DRAW[:2], DRAW["first_step"] + step)
        is_kept = reference.kept(number, 0.4, *of_draw, reference.DEPTH)
        dropped |= set(np.unique(~is_kept))
        x, y, d = matrix(rows, width, dtype), matrix(rows, width, dtype, 16, 1), matrix(rows, width, dtype, 0, 2)
        expected = [np.where(is_kept, of.values[:, :width] / 0.6, 0.0) for of in (x, d)]
        run("stochastic_depth_forward", x, y, width, [0.4, by_row], step=step)
        x.assert_untouched(...)
        assert_rows(y, width, expected[0])
        run("stochastic_depth_forward", x, x, width, [0.4, by_row], step=step)
        assert_rows(x, width, expected[0])
        run("stochastic_depth_backward", x, d, width, [0.4, by_row], step=step)
        assert_rows(d, width, expected[1])
    assert dropped == {False, True}


# --- Gaussian noise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_gaussian_noise(rows, width, dtype):
    x, y = matrix(rows, width, dtype), matrix(rows, width, dtype, extra=16, seed=1)
    drawn = reference.normals(reference.places(rows, width), *OF_DRAW, reference.NOISE)
    expected = x.values[:, :width] + 2.0 * drawn
    run("gaussian_noise_forward", x, y, width, [2.0])
    run("gaussian_noise_forward", x, x, width, [2.0])
    for of in (x, y):
        np.testing.assert_allclose(of.values[:, :width], expected, rtol=0.0, atol=1e-5 if dtype == "float32" else 1e-13)
        of.assert_untouched((slice(None), slice(width, None)))
        of.assert_guards()


@njit
def add_at(address, zero, n, first, factor, seed, layer, step, stream):
    noise.add_normal(simd.pointer(address, zero), zero, n, first, factor, seed, layer, step, stream)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_normal_to_stretches_of_a_buffer(dtype):
    """Cut anywhere: the bits of the whole, and nothing beside the stretch is touched."""
    zero, factor = np.dtype(dtype).type(0), np.dtype(dtype).type(0.5)
    of_draw = (3, 0, 11, philox.STREAM_GRADIENT_NOISE)
    whole = Guarded(np.ones(400), dtype)
    add_at(whole.address, zero, 400, 0, factor, *of_draw)
    expected = 1.0 + 0.5 * reference.normals(np.arange(400), *of_draw)
    np.testing.assert_allclose(whole.values, expected, rtol=0.0, atol=1e-5 if dtype == "float32" else 1e-13)
    whole.assert_guards()
    cuts = [0, 1, 14, 16, 32, 65, 127, 129, 129, 250, 400]
    for first, stop in itertools.pairwise(cuts):
        part = Guarded(np.ones(stop - first), dtype)
        add_at(part.address, zero, stop - first, first, factor, *of_draw)
        np.testing.assert_array_equal(part.values, whole.values[first:stop])
        part.assert_guards()


# --- as random numbers ----------------------------------------------------------------------------------------------


def drawn_mask(rate=0.5, step=0, **columns):
    kept = mask_memory(1000, 64, "float32")
    y = Guarded(np.zeros((1000, 80)), "float32")
    run("dropout_forward", y, y, 64, [rate], kept=kept, step=step, **columns)
    bits = np.unpackbits(kept.values.view(np.uint8), bitorder="little")
    return bits[: 1000 * 64].reshape(1000, 64).astype(np.float64)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_frequencies(rate):
    mask = drawn_mask(rate)
    sigma = math.sqrt(rate * (1.0 - rate))
    assert abs(mask.mean() - (1.0 - rate)) < 4.0 * sigma / math.sqrt(mask.size)
    # columns, rows and neighbours: as many standard deviations as so many independent numbers show
    columns = (mask.mean(axis=0) - (1.0 - rate)) / (sigma / math.sqrt(1000))
    rows = (mask.mean(axis=1) - (1.0 - rate)) / (sigma / 8.0)
    assert abs(columns).max() < 4.0
    assert rows.std() == pytest.approx(1.0, abs=0.1)
    for lag in (1, 2, 16, 32, 64, 128):
        flat = mask.ravel()
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 4.0 / math.sqrt(flat.size)


def test_every_part_of_the_counter_gives_another_mask():
    others = [{"layer": 6}, {"seed": DRAW["seed"] + 1}, {"seed": DRAW["seed"] + 2**32}, {"step": 1}]
    masks = [drawn_mask(), *(drawn_mask(**other) for other in others)]
    for k, mask in enumerate(masks):
        for other in masks[:k]:
            assert abs((mask == other).mean() - 0.5) < 4.0 * 0.5 / math.sqrt(mask.size)
    np.testing.assert_array_equal(drawn_mask(step=1), drawn_mask(first_step=DRAW["first_step"] + 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_normal(dtype):
    y = Guarded(np.zeros((2000, 80)), dtype)
    run("gaussian_noise_forward", y, y, 64, [1.0])
    values = y.values[:, :64].astype(np.float64).ravel()
    assert stats.kstest(values, stats.norm().cdf).pvalue > 1e-3
    assert abs(values.mean()) < 4.0 / math.sqrt(values.size)
    assert values.var() == pytest.approx(1.0, abs=0.02)
    assert stats.kurtosis(values) == pytest.approx(0.0, abs=0.06)
    for lag in (1, 16, 32, 64):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4.0 / math.sqrt(values.size)


# --- other processors -----------------------------------------------------------------------------------------------


def everything_drawn(dtype, out):
    """Save what the kernels make of 37 rows."""
    results = {}
    for width in (17, 100):
        kept = mask_memory(37, width, dtype)
        for name, settings in [("dropout", [0.3]), ("stochastic_depth", [0.3, 1.0]), ("gaussian_noise", [1.0])]:
            y = matrix(37, width, dtype)
            run(f"{name}_forward", y, y, width, settings, kept=kept)
            results[f"{name} {width}"] = y.values[:, : width + 1]
        results[f"kept {width}"] = kept.values.view(np.uint8)[: 37 * (-(-width // 16) * 16) // 8]
    np.savez(out, bits=random_simd.LANES * 32, **results)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bits"), [("float32", "256"), ("float64", "128")])
def test_narrower_vectors_draw_the_same_numbers(tmp_path, dtype, bits):
    environment = {**os.environ, "NBBP_VECTOR_BITS": bits, "NUMBA_CACHE_DIR": str(tmp_path)}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    code = f"import test_random_kernels as t; t.everything_drawn({dtype!r}, {str(tmp_path / 'narrow.npz')!r})"
    command = [sys.executable, "-c", code]
    subprocess.run(command, env={**environment, "PYTHONPATH": path}, check=True, capture_output=True, timeout=300)
    everything_drawn(dtype, tmp_path / "here.npz")
    with np.load(tmp_path / "narrow.npz") as narrow, np.load(tmp_path / "here.npz") as here:
        assert narrow["bits"] <= int(bits)
        for name in set(here.files) - {"bits"}:
            tolerance = 32 * EPS[dtype] if "noise" in name else 0.0
            np.testing.assert_allclose(narrow[name], here[name], rtol=0.0, atol=tolerance, err_msg=name)
