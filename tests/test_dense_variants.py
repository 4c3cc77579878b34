"""Every variant of the dense products against plain float64 NumPy, in both dtypes and at odd sizes."""

import numpy as np
import pytest

from nbbp.cpu.dense_variants import VARIANTS

SIZES = [(1, 1, 1), (1, 3, 17), (17, 3, 1), (3, 17, 65), (65, 64, 64), (130, 33, 100)]
TOLERANCE = {"float32": 2e-5, "float64": 1e-13}
NAMES = ("loops", "vectorized", "fused", "parallel")


def arrays(dtype, *shapes):
    random = np.random.default_rng(3)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def test_registry_is_complete():
    assert {op: tuple(variants) for op, variants in VARIANTS.items()} == dict.fromkeys(
        ("dense_forward", "dense_input_gradient", "dense_weight_gradient"), NAMES
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", NAMES)
class TestVariants:
    @pytest.mark.parametrize("floor", [-np.inf, 0.0])
    def test_forward(self, variant, dtype, size, floor):
        batch, n_in, n_out = size
        x, weight, bias = arrays(dtype, (batch, n_in), (n_in, n_out), n_out)
        output = np.full((batch, n_out), np.nan, dtype)
        assert VARIANTS["dense_forward"][variant](output, x, weight, bias, np.dtype(dtype).type(floor)) is None
        expected = np.maximum(x.astype("f8") @ weight.astype("f8") + bias, floor)
        np.testing.assert_allclose(output, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * np.sqrt(n_in))

    def test_input_gradient(self, variant, dtype, size):
        batch, n_in, n_out = size
        d_out, weight = arrays(dtype, (batch, n_out), (n_in, n_out))
        d_x = np.full((batch, n_in), np.nan, dtype)
        assert VARIANTS["dense_input_gradient"][variant](d_x, d_out, weight) is None
        expected = d_out.astype("f8") @ weight.astype("f8").T
        np.testing.assert_allclose(d_x, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * np.sqrt(n_out))

    def test_weight_gradient(self, variant, dtype, size):
        batch, n_in, n_out = size
        x, d_out = arrays(dtype, (batch, n_in), (batch, n_out))
        d_weight, d_bias = np.full((n_in, n_out), np.nan, dtype), np.full(n_out, np.nan, dtype)
        assert VARIANTS["dense_weight_gradient"][variant](d_weight, d_bias, x, d_out) is None
        tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * np.sqrt(batch)}
        np.testing.assert_allclose(d_weight, x.astype("f8").T @ d_out.astype("f8"), **tolerance)
        np.testing.assert_allclose(d_bias, d_out.astype("f8").sum(0), **tolerance)


@pytest.mark.parametrize("variant", NAMES)
def test_nan_stays_visible(variant):
    x, weight, bias = arrays("float32", (2, 3), (3, 4), 4)
    x[1, 0] = np.nan
    output = np.empty((2, 4), np.float32)
    VARIANTS["dense_forward"][variant](output, x, weight, bias, np.float32(0))
    assert np.isnan(output[1]).all()
    assert np.isfinite(output[0]).all()
