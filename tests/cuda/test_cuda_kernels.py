"""Single kernels: products in every layout and tile, at sizes that no tile divides, and grids of any size."""

import numpy as np
import pytest
from engine_cases import DTYPES, assert_near
from numba import cuda

from nbbp.cuda import dense, kernels, launch, vectors
from nbbp.cuda.dense import FORWARD, OVER_ROWS, TRANSPOSED, VARIANTS, Tile

kernels.load()
SIZES = [(1, 1, 1), (5, 3, 7), (17, 9, 4), (4, 8, 16)]
#: What a GPU takes, for one run of the simulator each.
OF_GPUS = [(layout, Tile(32, 32, 16, 2, 2)) for layout in (FORWARD, TRANSPOSED, OVER_ROWS)]


def with_gaps(matrix, gap, aligned):
    """The matrix with NaN behind every row: rows a multiple of what vectors take apart, or an odd number."""
    width = matrix.shape[1]
    stride = -(-(width + gap) // 4) * 4 if aligned else (width + gap) | 1
    spread = np.full((len(matrix), stride), np.nan, matrix.dtype)
    spread[:, :width] = matrix
    return spread


def run_product(
    variant, rows, n_in, n_out, dtype, grid=2, floor=-np.inf, with_bias=True, parts=1, gated=False, aligned=False
):
    """The product on random numbers with gaps between its rows, and what it should be; and what it must not touch."""
    layout, tile = variant
    rng = np.random.default_rng(rows + n_in + n_out)
    batch = rows + 2  # a short last batch, of which the kernel must not read more
    x = with_gaps(rng.standard_normal((batch, n_in)).astype(dtype), 2, aligned)
    if layout == OVER_ROWS:
        w = with_gaps(rng.standard_normal((batch, n_out)).astype(dtype), 1, aligned)
        expected = x[:rows, :n_in].T.astype(float) @ w[:rows, :n_out]
        x[rows:], w[rows:] = np.nan, np.nan
        with_bias = False
    else:
        shape = (n_out, n_in) if layout == TRANSPOSED else (n_in, n_out)
        with_bias = with_bias and layout != TRANSPOSED
        w = with_gaps(rng.standard_normal(shape).astype(dtype), 1, aligned)
        matrix = w[:, :n_in].T if layout == TRANSPOSED else w[:, :n_out]
        expected = x[:rows, :n_in].astype(float) @ matrix
        x[rows:] = np.nan
    bias = rng.standard_normal(n_out).astype(dtype) if with_bias else np.zeros(0, dtype)
    expected = np.maximum(expected + (bias if with_bias else 0), floor)
    stride = with_gaps(expected, 1, aligned).shape[1]
    m = len(expected)
    gate = np.maximum(rng.standard_normal((m, n_out + 2)), 0).astype(dtype) if gated else np.zeros((0, 0), dtype)
    if gated:
        expected = np.where(gate[:, :n_out] > 0, expected, 0)
    y = cuda.to_device(np.full(parts * (m + 1) * stride, 7, dtype))
    flags = (int(aligned),) * 3
    part_rows = -(-rows // parts)
    clock = cuda.to_device(np.array([3 * batch + rows, 3, 0]))
    number = np.dtype(dtype).type
    kernels.configured(kernels.compiled("product", dtype, variant), (grid, parts), (tile.threads,), 0)(
        clock, batch, y, stride, cuda.to_device(x.ravel()), x.shape[1], cuda.to_device(w.ravel()), w.shape[1],
        cuda.to_device(bias), number(floor), n_in, n_out, part_rows, (m + 1) * stride,
        cuda.to_device(gate.ravel()), n_out + 2, *flags,
    )  # fmt: skip
    found = y.copy_to_host().reshape(parts, m + 1, stride)
    assert (found[:, m] == 7).all(), "written behind the last row"
    assert (found[:, :, n_out:] == 7).all(), "written behind the last column"
    return found[:, :m, :n_out], expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products(variant, sizes, dtype):
    """By single numbers and by vectors, to the same bits."""
    (found,), expected = run_product(variant, *sizes, dtype)
    assert_near(found, expected, dtype)
    (by_vectors,), _ = run_product(variant, *sizes, dtype, aligned=True)
    np.testing.assert_array_equal(by_vectors, found)


@pytest.mark.skipif(not kernels.SIMULATED, reason="a GPU rounds a product and its sum once")
def test_sums_are_taken_in_order():
    """To the bits of a plain loop over k, and the bias last."""
    rows, n_in, n_out = 9, 13, 6
    (found,), _ = run_product(VARIANTS[0], rows, n_in, n_out, "float32")
    rng = np.random.default_rng(rows + n_in + n_out)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows + 2, n_in), (n_in, n_out)))
    total = np.zeros((rows, n_out), np.float32)
    for k in range(n_in):
        total += x[:rows, k, None] * w[k]
    np.testing.assert_array_equal(found, total + rng.standard_normal(n_out).astype(np.float32))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("variant", OF_GPUS, ids=str)
def test_products_in_tiles_of_gpus(variant, aligned):
    (found,), expected = run_product(variant, 33, 17, 36, "float32", grid=1, aligned=aligned)
    assert_near(found, expected, "float32")


@pytest.mark.parametrize("variant", VARIANTS[len(dense.TILES) : 2 * len(dense.TILES)], ids=str)
def test_products_through_a_rectifier(variant):
    (found,), expected = run_product(variant, 9, 5, 6, "float64", gated=True)
    assert_near(found, expected)
    assert (found == 0).any()


def test_products_with_a_floor_keep_nan():
    variant = VARIANTS[0]
    (found,), expected = run_product(variant, 9, 5, 6, "float64", floor=0.0)
    assert_near(found, expected)
    assert (found == 0).any()
    (found,), _ = run_product(variant, 9, 5, 6, "float64", floor=np.nan)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_batch_add_up(parts):
    variant = VARIANTS[2 * len(dense.TILES)]
    assert variant[0] == OVER_ROWS
    found, expected = run_product(variant, 7, 5, 6, "float64", parts=parts)
    assert_near(found.sum(axis=0), expected)
    flat = np.ascontiguousarray(found).reshape(parts, -1)
    total = cuda.to_device(np.full(5 * 8, 7.0))
    add = kernels.configured(kernels.compiled("sum_of_parts", "float64"), *launch.flat(30), 0)
    add(total, 8, cuda.to_device(flat.ravel()), 30, parts, 5, 6)
    total = total.copy_to_host().reshape(5, 8)
    assert_near(total[:, :6], expected)
    assert (total[:, 6:] == 7).all()


@pytest.mark.skipif(not kernels.SIMULATED, reason="a GPU gives a wrong answer, or none")
def test_vectors_that_memory_is_not_aligned_for_are_told():
    memory, registers = np.arange(12.0, dtype=np.float32), np.zeros(6, np.float32)
    vectors.read_vector(registers, 1, memory, 4, 4)
    vectors.write_vector(memory, 2, registers, 1, 2)
    np.testing.assert_array_equal(registers, [0, 4, 5, 6, 7, 0])
    np.testing.assert_array_equal(memory[:6], [0, 1, 4, 5, 4, 5])
    for place, n in ((6, 4), (3, 2), (12, 4), (-4, 4)):
        with pytest.raises(ValueError, match=f"{n} numbers at {place} of 12 cannot be moved as one"):
            vectors.read_vector(registers, 0, memory, place, n)
    vectors.read_vector(np.zeros(4), 0, np.zeros(8), 2, 4)  # two loads of two float64


@pytest.mark.parametrize(("n_out", "expected"), [(8, 1), (7, 0)])
def test_what_is_aligned_is_moved_by_vectors(n_out, expected, op_by_op):
    """Rows of the workspace always are; those of weights, and of their gradients, where the outputs come out even."""
    from nbbp.layers import Dense
    from nbbp.model import Model
    from nbbp.network import Sequential

    network = Sequential([Dense(n_out), Dense(3)], n_in=4)
    bound = Model(network, "mse", device="cuda")._session.training(4, False, False)
    forward, *_, over_rows = [launch.arguments[-3:] for launch in bound.launches if launch.name == "product"]
    assert forward == [1, 1, expected]
    assert over_rows == [expected, 1, 1]


def test_tiles_are_as_large_as_there_are_enough_of_them():
    smallest, *others = dense.TILES
    assert dense.tile_for(1, 1) == smallest
    for tile in others:
        assert dense.tile_for(tile.height * 10_000, tile.width).height >= tile.height
        assert tile.threads == smallest.threads
    assert dense.tile_for(1 << 20, 1) == smallest


@pytest.mark.parametrize(("n_rows", "width"), [(1, 1), (3, 2), (1000, 1), (2, 1000), (10**7, 10**5)])
def test_shapes_of_grids(n_rows, width):
    for grid, block in (launch.matrix(n_rows, width), launch.row_sums(n_rows), launch.column_sums(width)):
        assert 1 <= np.prod(block) <= max(kernels.THREADS, kernels.COLUMNS * kernels.COLUMN_LANES)
        assert all(1 <= size <= kernels.MOST_BLOCKS for size in grid)
    grid, block = launch.flat(n_rows)
    assert grid[0] * block[0] >= min(n_rows, kernels.MOST_BLOCKS * kernels.THREADS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scans_name_the_first(dtype):
    from nbbp.cuda import scan

    x = np.linspace(0.0, 1.0, 37).astype(dtype)
    low, high = np.dtype(dtype).type(0), np.dtype(dtype).type(1)

    def first(values):
        return scan.first("first_number_outside", dtype, 37, cuda.to_device(values), 37, low, high)

    assert first(x) == -1
    x[[30, 11, 20]] = np.nan, np.inf, -1
    assert first(x) == 11
    labels = np.zeros(37, np.int64)
    labels[[36, 35]] = -1, 3
    assert scan.first("first_label_outside", dtype, 37, cuda.to_device(labels), 37, 3) == 35
