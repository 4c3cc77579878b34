"""Kernels of mixed precision one by one: what they compute on a tile, and what they leave alone."""

import numpy as np
import pytest
import reference_mixed
from kernel_calls import ALL, Guarded, run_kernel

from nbbp import tiling
from nbbp.cpu.gemm import PACKED, TRANSPOSED
from nbbp.ops import BF16, FP16

CODES = {"bf16": BF16, "fp16": FP16}
N_ROWS, WIDTH, STRIDE = 7, 75, 80
#: Of the seven rows a tile takes these; the others must stay.
ROWS = (2, 6)


def matrix(seed=0):
    return np.random.default_rng(seed).normal(0.0, 2.0, (N_ROWS, STRIDE)).astype("float32")


@pytest.mark.parametrize("precision", CODES)
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("columns", [(0, ALL), (0, 64), (64, ALL), (64, WIDTH)])
def test_narrow(columns, keeps, precision):
    x, kept = Guarded(matrix(), "float32"), Guarded(np.zeros((N_ROWS, STRIDE)), "uint16", guard=7)
    before = x.values.copy()
    settings = {"kept": kept} if keeps else {}
    run_kernel("narrow", "float32", ROWS, CODES[precision], columns, x=x, x_stride=STRIDE, n_out=WIDTH, **settings)
    part = slice(*ROWS), slice(columns[0], STRIDE if columns[1] >= WIDTH else columns[1])
    codes = reference_mixed.narrowed(np.ascontiguousarray(before[part]), precision)
    np.testing.assert_array_equal(x.values[part], reference_mixed.widened(codes, precision))
    outside = np.ones((N_ROWS, STRIDE), bool)
    outside[part] = False
    for guarded in (x, kept):
        guarded.assert_guards()
        guarded.assert_untouched(outside)
    if not keeps:
        kept.assert_untouched(...)
        return
    np.testing.assert_array_equal(kept.values[part], codes)
    back = Guarded(np.zeros((N_ROWS, STRIDE)), "float32")
    run_kernel("widen", "float32", ROWS, CODES[precision], kept=kept, y=back, y_stride=STRIDE, n_out=WIDTH)
    np.testing.assert_array_equal(back.values[part], x.values[part])
    back.assert_guards()
    back.assert_untouched([0, 1, 6])


def test_narrow_scales_before_it_rounds():
    x, scale = Guarded(matrix() * 1e-6, "float32"), np.array([3e5, 0, 2, 0.5, 2000], "float32")
    expected = reference_mixed.rounded(x.values * scale[0], "fp16")
    run_kernel("narrow", "float32", (0, N_ROWS), FP16, x=x, x_stride=STRIDE, n_out=WIDTH, loss_scale=scale)
    np.testing.assert_array_equal(x.values, expected)


@pytest.mark.parametrize("precision", CODES)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 75])
def test_round_parameters(n, precision):
    """Reads no further than asked."""
    x, y = Guarded(matrix().ravel()[:n], "float32"), Guarded(np.zeros(STRIDE), "float32")
    run_kernel("round_parameters", "float32", (0, 1), CODES[precision], x=x, y=y, n_out=n)
    np.testing.assert_array_equal(y.values[:n], reference_mixed.rounded(x.values, precision))
    y.assert_guards()


@pytest.mark.parametrize("precision", CODES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n_out", [1, 16, 17, 75, 130])
def test_product_rounds_weight_and_bias(n_out, transposed, precision):
    """Forward with a bias, or back by the transposed weight; the scratch that lowering reserves is enough."""
    random, n_in = np.random.default_rng(1), 19
    x = Guarded(random.normal(size=(N_ROWS, n_in)), "float32")
    weight = Guarded(random.normal(size=(n_out, n_in) if transposed else (n_in, n_out)), "float32")
    bias, y = Guarded(random.normal(size=n_out), "float32"), Guarded(np.full((N_ROWS, n_out), -3.0), "float32")
    scratch = Guarded(np.zeros(tiling.packed_panel(n_in) + tiling.PANEL), "float32")
    columns = {"layout": TRANSPOSED} if transposed else {"layout": PACKED, "bias": bias}
    run_kernel(
        "product", "float32", ROWS, CODES[precision], scratch=scratch, x=x, x_stride=n_in, w=weight,
        w_stride=weight.values.shape[1], y=y, y_stride=n_out, n_in=n_in, n_out=n_out,
        settings=np.array([-np.inf], "float32"), **columns,
    )  # fmt: skip
    w, b = (reference_mixed.rounded(one.values, precision) for one in (weight, bias))
    expected = x.values.astype("float64") @ (w.T if transposed else w) + (0.0 if transposed else b)
    np.testing.assert_allclose(y.values[slice(*ROWS)], expected[slice(*ROWS)], rtol=0.0, atol=2e-5)
    for guarded in (x, weight, bias, y, scratch):
        guarded.assert_guards()
    y.assert_untouched([0, 1, 6])
    weight.assert_untouched(...)
