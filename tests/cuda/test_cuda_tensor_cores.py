"""Tensor cores: which lane holds what, rounding to the bit, banks of shared memory, and products in every layout."""

import numpy as np
import pytest
import reference_mixed
from engine_cases import assert_near
from numba import cuda
from tensor_cases import rounded, rounded_to_tf32, run_product

from nbbp.cuda import kernels, tensor_cores, tensor_panels, tensor_product
from nbbp.cuda.kernels import FORWARD, OVER_ROWS, SIMULATED, TRANSPOSED
from nbbp.cuda.tensor_cores import BF16, FORMATS, FP16, TF32, WARP, as_tf32
from nbbp.cuda.tensor_product import TILES, VARIANTS, Tile, tile_for

kernels.load()
NAMES = {code: name for name, code in FORMATS.items()}
LANES = range(WARP)
SIZES = [(1, 1, 1), (5, 3, 7), (17, 40, 4), (16, 32, 16), (33, 17, 35)]
LAYOUTS = (FORWARD, TRANSPOSED, OVER_ROWS)
#: The smallest of what a GPU takes: four warps, for one run of the simulator each.
OF_GPUS = Tile(32, 32, 16, 16)


# which lane holds what ------------------------------------------------------------------------------------------------


def numbers_of(code):
    """(row, column) of every number of A, B and C that lanes hold, as the PTX ISA says it: by lane and register.

    "Matrix Fragments for mma.m16n8k8" with .tf32, "Matrix Fragments for mma.m16n8k16 with floating point type".
    """
    a, b, c = {}, {}, {}
    for lane in LANES:
        group, member = lane >> 2, lane % 4
        if code == TF32:
            for i in range(4):
                a[lane, i] = group if i in (0, 2) else group + 8, member if i < 2 else member + 4
            for i in range(2):
                b[lane, i] = member if i == 0 else member + 4, group
        else:
            for i in range(8):
                row = group if i < 2 or 4 <= i < 6 else group + 8
                a[lane, i] = row, member * 2 + (i & 1) + (0 if i < 4 else 8)
            for i in range(4):
                b[lane, i] = member * 2 + (i & 1) + (0 if i < 2 else 8), group
        for i in range(4):
            c[lane, i] = group if i < 2 else group + 8, member * 2 + (i & 1)
    return a, b, c


@pytest.mark.parametrize("code", NAMES, ids=NAMES.get)
def test_maps_are_those_of_the_instructions(code):
    a, b, c = numbers_of(code)
    per_word = tensor_panels.numbers_of_word(code)
    for (lane, i), (row, column) in a.items():
        register = i // per_word
        assert tensor_cores.row_of_a(lane, register) == row
        assert tensor_cores.word_of_a(lane, register) == column // per_word
    for (lane, i), (row, column) in b.items():
        assert tensor_cores.word_of_b(lane, i // per_word) == row // per_word
        assert tensor_cores.column_of_b(lane) == column
    for (lane, i), (row, column) in c.items():
        assert (tensor_cores.row_of_c(lane, i), tensor_cores.column_of_c(lane, i)) == (row, column)


def test_a_warp_multiplies_matrices_by_the_maps():
    """Each lane adds up what the maps say that it holds; words, not yet numbers."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 8)), rng.standard_normal((8, 8))
    held_a = {
        (lane, i): a[tensor_cores.row_of_a(lane, i), tensor_cores.word_of_a(lane, i)]
        for lane in LANES
        for i in range(4)
    }
    held_b = {
        (lane, i): b[tensor_cores.word_of_b(lane, i), tensor_cores.column_of_b(lane)]
        for lane in LANES
        for i in range(2)
    }
    assert len(set(held_a.values())) == a.size
    assert len(set(held_b.values())) == b.size
    found = np.full((16, 8), np.nan)
    for lane in LANES:
        for i in range(4):
            row, column = tensor_cores.row_of_c(lane, i), tensor_cores.column_of_c(lane, i)
            # of a row the four lanes of its group hold the words, of a column those of another one
            words = [
                held_a[4 * (row % 8) + k % 4, 2 * (k // 4) + row // 8] * held_b[4 * column + k % 4, k // 4]
                for k in range(8)
            ]
            found[row, column] = sum(words)
    np.testing.assert_allclose(found, a @ b, rtol=1e-12)


# rounding -------------------------------------------------------------------------------------------------------------


def floats():
    """Any bits; ties of every format and what lies beside them, of both signs, from subnormal to infinite; NaN."""
    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 1 << 32, 2000, dtype=np.uint32)
    short = rng.integers(0, 1 << 11, 300, dtype=np.uint32) << np.uint32(21) | rng.integers(0, 8, 300, dtype=np.uint32)
    near = [(any_bits[:300] & np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)) for bits in (12, 13, 15, 16)]
    near = [
        (kept + np.uint32(tie)) + np.uint32(off) & np.uint32(0xFFFFFFFF)
        for kept, tie in zip(near, (1 << 12, 1 << 12, 1 << 15, 1 << 15), strict=True)
        for off in (0, 1, 0xFFFFFFFF)
    ]
    ends = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519, 65520, 2.0**-24, 2.0**-25, 3.4e38], np.float32)
    return np.concatenate(
        [any_bits.view(np.float32), short.view(np.float32), np.concatenate(near).view(np.float32), ends]
    )


@pytest.mark.parametrize("code", [BF16, FP16], ids=NAMES.get)
def test_rounding_to_16_bits_to_the_bit(code):
    """By `narrow`, which also keeps the 16 bits; and back."""
    x = floats()
    n, nothing = len(x), cuda.to_device(np.zeros(0, np.float32))
    clock, kept, numbers = (
        cuda.to_device(np.array([1, 0, 0])),
        cuda.to_device(np.zeros(n, np.uint16)),
        cuda.to_device(x),
    )
    grid = ((2, 1), (kernels.THREADS, 1))
    narrow = kernels.configured(kernels.compiled("narrow", "float32", code), *grid, 0)
    narrow(clock, 1, numbers, n, kept, n, nothing)
    is_nan = np.isnan(x)
    expected = reference_mixed.narrowed(x, NAMES[code])
    bits = kept.copy_to_host()
    np.testing.assert_array_equal(bits[~is_nan], expected[~is_nan])
    back = cuda.to_device(np.zeros(n, np.float32))
    widen = kernels.configured(kernels.compiled("widen_rows", "float32", code), *grid, 0)
    widen(clock, 1, back, n, kept, n)
    for found in (numbers.copy_to_host(), back.copy_to_host()):
        assert np.isnan(found[is_nan]).all()
        np.testing.assert_array_equal(
            found[~is_nan].view(np.uint32), reference_mixed.widened(expected, NAMES[code])[~is_nan].view(np.uint32)
        )


def test_rounding_to_tf32_to_the_bit():
    def kernel(words, x):
        for i in range(cuda.grid(1), len(x), cuda.gridsize(1)):
            words[i] = as_tf32(x[i])

    x = floats()
    words = cuda.to_device(np.zeros(len(x), np.uint32))
    kernels.configured(cuda.jit(kernel), (2,), (kernels.THREADS,), 0)(words, cuda.to_device(x))
    found, expected = words.copy_to_host(), np.float32(rounded_to_tf32(x))
    is_nan = np.isnan(x)
    assert np.isnan(found.view(np.float32)[is_nan]).all()
    np.testing.assert_array_equal(found[~is_nan], expected[~is_nan].view(np.uint32))
    assert not (found[~is_nan] & 0x1FFF).any()


def test_the_oracle_of_tf32():
    unit = 2.0**-10
    given = np.array([1 + unit / 2, 1 + unit / 2 - 2.0**-23, -1 - 1.5 * unit, 3.0, 2.0**-149, -0.0], np.float32)
    np.testing.assert_array_equal(rounded_to_tf32(given), [1 + unit, 1, -1 - 2 * unit, 3.0, 0.0, -0.0])


# shared memory --------------------------------------------------------------------------------------------------------


class Recorder:
    """A panel that remembers which words were written or read."""

    size, dtype = 1 << 20, np.dtype(np.uint32)

    def __init__(self):
        self.places = []

    def __setitem__(self, place, value):
        self.places.append(int(place))

    def __getitem__(self, place):
        self.places.append(int(place))
        return np.uint32(0)


def shape_of(across, rows, code):
    return across, rows, 128, code


@pytest.mark.skipif(not SIMULATED, reason="calls what the simulator does in Python")
@pytest.mark.parametrize("code", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("rows", [32, 64, 128])
@pytest.mark.parametrize("across", [0, 1])
def test_panels_are_written_whole_and_without_conflicts(across, rows, code):
    """Threads whose stores go together, 128 bytes at a time, write to 32 banks."""
    shape, written = shape_of(across, rows, code), []
    n_words = 4 if across or code == TF32 else 2
    for thread in range(128):
        recorder = Recorder()
        ahead = np.zeros(tensor_panels.share_of_panel(shape), np.float32)
        tensor_panels.put(recorder, 0, shape, thread, ahead, np.zeros(4, np.uint32))
        written.append(np.reshape(recorder.places, (-1, n_words)))
    stores = np.stack(written, axis=1)  # (turns, threads, words)
    together = 32 // n_words
    for turn in stores:
        banks = turn.reshape(-1, together * n_words) % 32
        assert all(len(set(group)) == 32 for group in banks)
    assert len(set(stores.ravel())) == stores.size == rows * tensor_panels.STAGE
    assert stores.max() < tensor_panels.size_of_panel(shape)


@pytest.mark.skipif(not SIMULATED, reason="calls what the simulator does in Python")
@pytest.mark.parametrize("rows", [32, 64, 128])
def test_fragments_across_are_read_without_conflicts(rows):
    shape = shape_of(1, rows, TF32)
    for read, tiles, n_words in ((tensor_panels.read_a, 1, 4), (tensor_panels.read_b, 2, 2)):
        places = []
        for lane in LANES:
            recorder = Recorder()
            read(np.zeros((tiles, n_words), np.uint32), recorder, 0, shape, lane, 16, 8)
            places.append(recorder.places)
        for load in np.transpose(places):
            assert len(set(load % 32)) == 32


def test_fragments_along_k_are_read_without_conflicts():
    """The eight rows of four words of each matrix of `ldmatrix`."""
    for row in range(0, 64, 8):
        for word in range(0, 16, 4):
            first = [tensor_panels.place_along(row + i, word) for i in range(8)]
            assert all(tensor_panels.place_along(row + i, word + c) == first[i] + c for i in range(8) for c in range(4))
            assert all(place % 4 == 0 for place in first)
            assert len({place // 4 % 8 for place in first}) == 8


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_panels_fit_into_static_shared_memory(variant):
    """48 KiB, on every GPU."""
    layout, tile, code = variant
    shapes = shape_of(layout == OVER_ROWS, tile.height, code), shape_of(layout != TRANSPOSED, tile.width, code)
    assert 2 * 4 * sum(map(tensor_panels.size_of_panel, shapes)) <= 48 * 1024


# products -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v[1] == TILES[TF32][0]], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products(variant, sizes):
    """Products of rounded numbers, summed in float32: nothing else is rounded."""
    precision = NAMES[variant[2]]
    (found,), expected = run_product(variant, precision, *sizes)
    assert_near(found, expected, "float32")


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v[1] != TILES[TF32][0]], ids=str)
def test_products_in_larger_tiles(variant):
    (found,), expected = run_product(variant, NAMES[variant[2]], 37, 20, 18, gap=4)
    assert_near(found, expected, "float32")


@pytest.mark.parametrize("code", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_four_warps(layout, code):
    (found,), expected = run_product((layout, OF_GPUS, code), NAMES[code], 33, 34, 36, grid=1, gap=4)
    assert_near(found, expected, "float32")


@pytest.mark.parametrize("code", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_by_quads_are_those_by_single_numbers(layout, code):
    """Aligned or not, whole tiles or not: the same bits."""
    variant = layout, TILES[code][0], code
    runs = [run_product(variant, NAMES[code], 16, 16, 16, gap=gap)[0] for gap in (3, 4)]
    assert runs[0].tobytes() == runs[1].tobytes()


@pytest.mark.parametrize("code", NAMES, ids=NAMES.get)
def test_products_through_a_rectifier(code):
    (found,), expected = run_product((TRANSPOSED, TILES[code][0], code), NAMES[code], 9, 5, 6, gated=True)
    assert_near(found, expected, "float32")
    assert (found == 0).any()


@pytest.mark.parametrize("code", NAMES, ids=NAMES.get)
def test_products_with_a_floor_keep_nan(code):
    variant = FORWARD, TILES[code][0], code
    (found,), expected = run_product(variant, NAMES[code], 9, 5, 6, floor=0.0)
    assert_near(found, expected, "float32")
    assert (found == 0).any()
    (found,), _ = run_product(variant, NAMES[code], 9, 5, 6, floor=np.nan)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("code", [BF16, FP16], ids=NAMES.get)
@pytest.mark.parametrize("layout", [FORWARD, TRANSPOSED])
def test_products_round_what_they_give(layout, code):
    variant = layout, TILES[code][0], code
    (exact,), _ = run_product(variant, NAMES[code], 9, 5, 6)
    (found,), _ = run_product(variant, NAMES[code], 9, 5, 6, rounds=1)
    np.testing.assert_array_equal(found, rounded(exact, NAMES[code]))
    assert (found != exact).any()


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_batch_add_up(parts):
    for code in (TF32, BF16):
        found, expected = run_product((OVER_ROWS, TILES[code][0], code), NAMES[code], 70, 5, 6, parts=parts)
        assert_near(found.sum(axis=0), expected, "float32")
        assert all(part.any() for part in found)


def test_more_parts_than_rows_are_zero():
    found, expected = run_product((OVER_ROWS, TILES[TF32][0], TF32), "tf32", 5, 3, 4, parts=4)
    assert_near(found.sum(axis=0), expected, "float32")
    assert not found[3].any()


def test_infinity_and_nan_go_through():
    for code, name in NAMES.items():
        variant = FORWARD, TILES[code][0], code
        large = 1e6 if code == FP16 else np.inf
        x = np.array([[large, 1.0], [np.nan, 1.0], [1.0, 1.0]], np.float32)
        y, empty = cuda.to_device(np.zeros(3, np.float32)), cuda.to_device(np.zeros(0, np.float32))
        launch = kernels.configured(
            kernels.compiled("tensor_product", "float32", variant), (1, 1), (variant[1].threads,), 0
        )
        launch(
            cuda.to_device(np.array([3, 0, 0])), 3, y, 1, cuda.to_device(x.ravel()), 2,
            cuda.to_device(np.ones(2, np.float32)), 1, empty, np.float32(-np.inf), 2, 1, 0, 0, empty, 0, 0, 0,
            0, 0,
        )  # fmt: skip
        np.testing.assert_array_equal(y.copy_to_host(), [np.inf, np.nan, 2.0], err_msg=name)


@pytest.mark.parametrize("code", NAMES, ids=NAMES.get)
def test_tiles_are_as_large_as_there_are_enough_of_them(code):
    smallest, *others = TILES[code]
    assert tile_for(1, 1, code) == smallest
    for tile in others:
        assert tile_for(tile.height * 10_000, tile.width, code).height >= tile.height
        assert tile_for(tile.height, tile.width, code, tensor_product._BUSY).height >= tile.height
    assert tile_for(1 << 20, 1, code) == smallest
