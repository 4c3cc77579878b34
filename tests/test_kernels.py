"""Products and SIMD helpers: every layout and size around the registers, and no number outside its range."""

import numpy as np
import pytest
from kernel_calls import EPS, Guarded, run_kernel
from numba import njit

from nbbp import tiling
from nbbp.cpu import gemm, kernels, simd, tile

DTYPES = ("float32", "float64")
SIZES = (1, 3, 17, 64, 65)
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100)
LAYOUTS = {"in place": gemm.IN_PLACE, "packed": gemm.PACKED, "transposed": gemm.TRANSPOSED}


@njit
def multiply(sizes, c, a, b, bias, scratch, floor):
    """gemm.product; sizes = (c_stride, a_row, a_column, b_stride, has_bias, m, n, k, layout, lanes, panel)."""
    c_stride, a_row, a_column, b_stride, has_bias, m, n, k, layout, lanes, panel = sizes
    gemm.product(
        simd.pointer(c, floor), c_stride, simd.pointer(a, floor), a_row, a_column, simd.pointer(b, floor), b_stride,
        simd.pointer(bias, floor), has_bias, m, n, k, floor, layout, simd.pointer(scratch, floor), lanes, panel,
    )  # fmt: skip


def product(dtype, layout, a, b, bias, floor, a_transposed, gap):
    """C of gemm.product, after checking that nothing else was written; `gap` numbers lie between the rows."""
    m, k = a.shape
    n = b.shape[1]
    c = Guarded(np.full((m, n + gap), np.nan), dtype)
    of_a = with_gap(a.T if a_transposed else a, gap, dtype)
    of_b = with_gap(b.T if layout == gemm.TRANSPOSED else b, gap, dtype)
    of_bias = Guarded(np.zeros(n) if bias is None else bias, dtype)
    scratch = Guarded(np.zeros(0 if layout == gemm.IN_PLACE else gemm.scratch_size(dtype, k)), dtype, guard=7.0)
    a_strides = (1, of_a.values.shape[1]) if a_transposed else (of_a.values.shape[1], 1)
    sizes = (
        n + gap, *a_strides, of_b.values.shape[1], int(bias is not None), m, n, k, layout,
        simd.LANES[np.dtype(dtype)], gemm.panel_width(dtype),
    )  # fmt: skip
    addresses = (c.address, of_a.address, of_b.address, of_bias.address, scratch.address)
    multiply(sizes, *addresses, np.dtype(dtype).type(floor))
    for guarded in (c, of_a, of_b, of_bias, scratch):
        guarded.assert_guards()
    for guarded in (of_a, of_b, of_bias):
        guarded.assert_untouched(...)
    c.assert_untouched((slice(None), slice(n, None)))
    return c.values[:, :n]


def with_gap(matrix, gap, dtype):
    """The matrix with `gap` NaN behind every row."""
    return Guarded(np.pad(matrix.astype(dtype), ((0, 0), (0, gap)), constant_values=np.nan), dtype)


def operands(m, n, k, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.uniform(-1.0, 1.0, shape).astype(dtype) for shape in ((m, k), (k, n), (n,)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("m", SIZES)
def test_product(m, n, k, layout, dtype):
    a, b, bias = operands(m, n, k, dtype)
    exact = a.astype("float64") @ b.astype("float64")
    error = (k + 2) * EPS[dtype] * (np.abs(a).astype("float64") @ np.abs(b) + np.abs(bias))
    for a_transposed in (False, True):
        for gap in (0, 5):
            plain = product(dtype, layout, a, b, None, -np.inf, a_transposed, gap)
            assert (np.abs(plain - exact) <= error).all()
            rectified = product(dtype, layout, a, b, bias, 0.0, a_transposed, gap)
            assert (np.abs(rectified - np.maximum(exact + bias, 0.0)) <= error).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_height_of_a_tile_and_every_width_of_a_panel(layout, dtype):
    lanes = simd.LANES[np.dtype(dtype)]
    widths = [v * lanes + rest for v in range(tile.MAX_VECTORS + 1) for rest in (-1, 0, 1) if v * lanes + rest > 0]
    for n in widths:
        for m in range(1, 2 * tile.max_rows(1) + 2):
            a, b, bias = operands(m, n, 5, dtype)
            expected = a.astype("float64") @ b.astype("float64") + bias
            found = product(dtype, layout, a, b, bias, -np.inf, False, 0)
            np.testing.assert_allclose(found, expected, rtol=0.0, atol=30 * EPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_do_not_depend_on_their_neighbours(layout, dtype):
    """But to rounding: short tiles add up in more partial sums than tall ones."""
    a, b, bias = operands(40, 70, 33, dtype)
    whole = product(dtype, layout, a, b, bias, 0.0, False, 0)
    for start, stop in ((0, 16), (16, 32), (32, 40)):
        part = product(dtype, layout, a[start:stop], b, bias, 0.0, False, 0)
        np.testing.assert_allclose(part, whole[start:stop], rtol=0.0, atol=40 * EPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_pass_the_rectifier(bad, layout, dtype):
    a, b, _ = operands(17, 20, 9, dtype)
    b = np.abs(b) + np.dtype(dtype).type(0.1)
    a[3, 4] = bad
    expected = bad if np.isnan(bad) else max(bad, 0.0)
    found = product(dtype, layout, a, b, None, 0.0, False, 0)
    np.testing.assert_array_equal(found[3], np.full(20, expected))
    assert np.isfinite(np.delete(found, 3, axis=0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_products_of_nothing(layout, dtype):
    a, b, bias = operands(5, 20, 0, dtype)
    np.testing.assert_array_equal(product(dtype, layout, a, b, bias, -np.inf, False, 0), np.tile(bias, (5, 1)))
    a, b, bias = operands(0, 20, 3, dtype)
    assert product(dtype, layout, a, b, bias, -np.inf, False, 0).shape == (0, 20)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_op_cut_by_rows_and_columns(dtype):
    """Forward in tiles, weight gradient in blocks of rows with partial sums apart, and in blocks of its own rows."""
    x, w, bias = operands(50, 90, 20, dtype)
    settings = np.array([-np.inf], dtype)
    y = Guarded(np.full((50, 90), np.nan), dtype)
    scratch = np.zeros(gemm.scratch_size(dtype, 64), dtype)
    for rows in ((0, 16), (16, 50)):
        for columns in ((0, 64), (64, 1 << 40)):
            run_kernel(
                "product", dtype, rows, columns=columns, scratch=scratch, x=x, x_stride=20, w=w, w_stride=90, y=y,
                y_stride=90, bias=bias, n_in=20, n_out=90, layout=gemm.IN_PLACE, settings=settings,
            )  # fmt: skip
    y.assert_guards()
    np.testing.assert_allclose(y.values, x.astype("float64") @ w + bias, rtol=0.0, atol=100 * EPS[dtype])

    d = y.values.copy()
    partials = Guarded(np.full((4, 20 * 90 + 7), np.nan), dtype)
    for rows in ((0, 16), (16, 32), (32, 48), (48, 50)):
        for columns in ((0, 9), (9, 20)):
            run_kernel(
                "product", dtype, rows, columns=columns, scratch=scratch, x=x, x_stride=20, w=d, w_stride=90,
                y=partials, y_stride=90, n_in=20, n_out=90, contracts_rows=1, settings=settings, slot_rows=16,
                slot_stride=20 * 90 + 7,
            )  # fmt: skip
    partials.assert_guards()
    partials.assert_untouched((slice(None), slice(20 * 90, None)))
    for block, rows in enumerate((slice(0, 16), slice(16, 32), slice(32, 48), slice(48, 50))):
        expected = x[rows].T.astype("float64") @ d[rows]
        found = partials.values[block, : 20 * 90].reshape(20, 90)
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=400 * EPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_out", [1, 2, 4, 5])
@pytest.mark.parametrize("n_in", SIZES)
def test_weight_gradient_of_few_outputs(n_in, n_out, dtype):
    """In blocks of rows and of its own rows, with gaps in what comes in."""
    rng = np.random.default_rng(n_in)
    x = Guarded(np.pad(rng.uniform(-1, 1, (33, n_in)), ((0, 0), (0, 3)), constant_values=np.nan), dtype)
    d = Guarded(np.pad(rng.uniform(-1, 1, (33, n_out)), ((0, 0), (0, 5)), constant_values=np.nan), dtype)
    partials = Guarded(np.full((3, n_in * n_out + 7), np.nan), dtype)
    scratch = Guarded(np.zeros(tiling.FEW_OUTPUTS * (-(-n_in // 16) * 16)), dtype)
    middle = n_in // 2
    for rows in ((0, 16), (16, 32), (32, 33)):
        for columns in ((0, middle), (middle, n_in)) if middle else ((0, n_in),):
            run_kernel(
                "product", dtype, rows, columns=columns, scratch=scratch, x=x, x_stride=n_in + 3, w=d,
                w_stride=n_out + 5, y=partials, y_stride=n_out, n_in=n_in, n_out=n_out, contracts_rows=1, batch=33,
                n_samples=33,
                settings=np.array([-np.inf], dtype), slot_rows=16, slot_stride=n_in * n_out + 7,
            )  # fmt: skip
    for guarded in (x, d, partials, scratch):
        guarded.assert_guards()
    partials.assert_untouched((slice(None), slice(n_in * n_out, None)))
    for block, rows in enumerate((slice(0, 16), slice(16, 32), slice(32, 33))):
        expected = x.values[rows, :n_in].T.astype("float64") @ d.values[rows, :n_out]
        found = partials.values[block, : n_in * n_out].reshape(n_in, n_out)
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=100 * EPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_gate", [False, True])
@pytest.mark.parametrize("n_out", [1, 6, 17])
@pytest.mark.parametrize("n_in", SIZES)
@pytest.mark.parametrize("batch", [1, 4, 23])
def test_input_gradient(batch, n_in, n_out, has_gate, dtype):
    """Through a rectifier: 0 where that gave nothing, whatever came, and NaN goes on; of few rows in its own way."""
    rng, stride = np.random.default_rng(n_in), -(-(n_in + 1) // 16) * 16
    gate = Guarded(rng.choice([-1.0, 0.0, 0.5, 2.0], (batch, n_in + 4)), dtype)
    gate.values[:, n_in:] = np.nan
    d, w = (Guarded(rng.uniform(-1, 1, shape), dtype) for shape in ((batch, n_out), (n_in, n_out)))
    d.values[batch // 2, n_out // 2] = np.nan
    y, scratch = Guarded(np.full((batch, stride), 7.0), dtype), np.zeros(gemm.scratch_size(dtype, n_out), dtype)
    kept = {"kept": gate, "kept_stride": n_in + 4} if has_gate else {}
    for rows in ((0, (batch + 1) // 2), ((batch + 1) // 2, batch)):
        run_kernel(
            "product", dtype, rows, scratch=scratch, x=d, x_stride=n_out, w=w, w_stride=n_out, y=y, y_stride=stride,
            n_in=n_out, n_out=n_in, layout=gemm.TRANSPOSED, settings=np.array([-np.inf], dtype), batch=batch,
            n_samples=batch, **kept,
        )  # fmt: skip
    for guarded in (y, d, w, gate):
        guarded.assert_guards()
    is_open = gate.values[:, :n_in] > 0 if has_gate else np.ones((batch, n_in), bool)
    expected = np.where(is_open, d.values.astype("float64") @ w.values.T.astype("float64"), 0.0)
    found = y.values[:, :n_in]
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=60 * EPS[dtype])
    assert not np.signbit(found[~is_open]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_scratch", [False, True])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 5), (17, 64), (130, 129), (257, 200)])
@pytest.mark.parametrize("n_rows", [17, 193, 400])
def test_weight_gradient_over_many_rows(n_rows, n_in, n_out, in_scratch, dtype):
    """Rows so far apart that pieces of them are copied side by side; into scratch, what is copied lies behind it."""
    rng, gap = np.random.default_rng(n_in), 260
    x = Guarded(np.pad(rng.uniform(-1, 1, (n_rows, n_in)), ((0, 0), (0, gap)), constant_values=np.nan), dtype)
    d = Guarded(np.pad(rng.uniform(-1, 1, (n_rows, n_out)), ((0, 0), (0, gap)), constant_values=np.nan), dtype)
    size = -(-n_in * n_out // 16) * 16
    scratch = Guarded(np.zeros((size if in_scratch else 0) + tiling.DEEP_PRODUCT), dtype)
    y = Guarded(np.full((n_in, n_out), np.nan), dtype)
    otherwise = kernels.compiled("product", dtype).address  # for fewer rows
    run_kernel(
        "deep_product", dtype, (0, n_rows), columns=(0, n_in), scratch=scratch, x=x, x_stride=n_in + gap, w=d,
        w_stride=n_out + gap, y=0 if in_scratch else y, y_stride=n_out, n_in=n_in, n_out=n_out, contracts_rows=1,
        batch=n_rows, settings=np.array([-np.inf], dtype), slot_rows=n_rows, tile_local=int(in_scratch),
        otherwise=otherwise, n_samples=n_rows,
    )  # fmt: skip
    for guarded in (x, d, scratch, y):
        guarded.assert_guards()
    found = scratch.values[: n_in * n_out].reshape(n_in, n_out) if in_scratch else y.values
    expected = x.values[:, :n_in].T.astype("float64") @ d.values[:, :n_out]
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=20 * n_rows**0.5 * EPS[dtype])


# --- helpers -------------------------------------------------------------------------------------------------------


@njit
def sum_of(address, like, n):
    return simd.row_sum(simd.pointer(address, like), n)


@njit
def maximum_of(address, like, n):
    return simd.row_maximum(simd.pointer(address, like), n)


@njit
def copy_to(out, x, like, n):
    simd.copy(simd.pointer(out, like), simd.pointer(x, like), n)


@njit
def scale_to(out, x, like, factor, shift, n):
    simd.scale_row(simd.pointer(out, like), simd.pointer(x, like), factor, shift, n)


@njit
def transpose_to(out, out_stride, x, x_stride, like, n_rows, n_columns):
    tile.transpose_block(simd.pointer(out, like), out_stride, simd.pointer(x, like), x_stride, n_rows, n_columns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_row_sum(n, dtype):
    """Of integers, so that the order of additions does not matter."""
    row = Guarded(np.random.default_rng(n).integers(-9, 9, n), dtype)
    assert sum_of(row.address, row.values[0], n) == row.values.sum()
    for place in {0, n // 2, n - 1}:
        bad = row.values.copy()
        bad[place] = np.nan
        assert np.isnan(sum_of(Guarded(bad, dtype).address, bad[0], n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_row_maximum(n, dtype):
    """Wherever it stands; of negative numbers and infinities; NaN where any is."""
    values = np.random.default_rng(n).uniform(-9.0, -1.0, n).astype(dtype)
    for place in range(n):
        row = values.copy()
        row[place] = -0.5
        assert maximum_of(Guarded(row, dtype).address, row[0], n) == row[place]
        row[place] = np.nan
        assert np.isnan(maximum_of(Guarded(row, dtype).address, row[0], n))
        row[place] = np.inf
        assert maximum_of(Guarded(row, dtype).address, row[0], n) == np.inf
    lowest = Guarded(np.full(n, -np.inf), dtype)
    assert maximum_of(lowest.address, lowest.values[0], n) == -np.inf
    # NaN first and a larger number in a later register: that must not bring it back.
    if n > 1:
        row[0], row[-1] = np.nan, 5.0
        assert np.isnan(maximum_of(Guarded(row, dtype).address, row[0], n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, *LENGTHS])
def test_copy(n, dtype):
    values = np.arange(n + 1.0).astype(dtype)
    x, out = Guarded(values, dtype), Guarded(np.full(n + 1, -3.0), dtype)
    copy_to(out.address, x.address, values[0], n)
    np.testing.assert_array_equal(out.values, [*values[:n], -3.0])
    out.assert_guards()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_scale_row_writes_whole_registers_and_no_more(n, dtype):
    lanes = simd.LANES[np.dtype(dtype)]
    padded = -(-n // lanes) * lanes
    kind = np.dtype(dtype).type
    x, out = Guarded(np.arange(padded), dtype), Guarded(np.full(padded + 3, -3.0), dtype)
    scale_to(out.address, x.address, kind(0), kind(2.0), kind(0.5), n)
    np.testing.assert_array_equal(out.values[:n], 2.0 * np.arange(n) + 0.5)
    np.testing.assert_array_equal(out.values[padded:], -3.0)
    out.assert_guards()


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose_block(dtype):
    """Of every shape up to a square of registers; what is missing comes as zero, what lies beyond is not read."""
    lanes = simd.LANES[np.dtype(dtype)]
    for n_rows in range(1, lanes + 1):
        for n_columns in range(1, lanes + 1):
            matrix = np.random.default_rng(n_rows).uniform(1.0, 2.0, (n_rows, n_columns)).astype(dtype)
            x, out = with_gap(matrix, 3, dtype), Guarded(np.full((lanes, lanes + 2), -3.0), dtype)
            transpose_to(out.address, lanes + 2, x.address, n_columns + 3, matrix[0, 0], n_rows, n_columns)
            np.testing.assert_array_equal(out.values[:n_columns, :n_rows], matrix.T)
            np.testing.assert_array_equal(out.values[:n_columns, n_rows:lanes], 0.0)
            np.testing.assert_array_equal(out.values[n_columns:], -3.0)
            np.testing.assert_array_equal(out.values[:, lanes:], -3.0)
            out.assert_guards()
