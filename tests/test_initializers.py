"""Initializers: moments, bounds, fans as in PyTorch and Keras, orthogonality, reproducibility, errors."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from scipy import stats

from nbbp import initializers
from nbbp.initializers import (
    BY_NAME,
    Constant,
    Initializer,
    Normal,
    Orthogonal,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
)

SHAPE = (300, 200)
RANDOM = [name for name in BY_NAME if name not in ("zeros", "ones", "constant")]
# The variance each named one should have at SHAPE, and its distribution with unit variance.
EXPECTED = {
    "uniform": (0.1**2 / 12.0, "uniform"),
    "normal": (0.05**2, "normal"),
    "glorot_uniform": (2.0 / 500.0, "uniform"),
    "glorot_normal": (2.0 / 500.0, "normal"),
    "he_uniform": (2.0 / 300.0, "uniform"),
    "he_normal": (2.0 / 300.0, "normal"),
    "lecun_uniform": (1.0 / 300.0, "uniform"),
    "lecun_normal": (1.0 / 300.0, "normal"),
}
DISTRIBUTIONS = {
    "uniform": stats.uniform(-math.sqrt(3.0), 2.0 * math.sqrt(3.0)),
    "normal": stats.norm(),
    "truncated_normal": stats.truncnorm(-2.0, 2.0, scale=1.0 / stats.truncnorm(-2.0, 2.0).std()),
}


def check_distribution(values, variance, distribution):
    values = values.ravel()
    assert abs(values.mean()) < 4.0 * math.sqrt(variance / values.size)
    assert values.var() == pytest.approx(variance, rel=0.03)
    assert stats.kstest(values / math.sqrt(variance), DISTRIBUTIONS[distribution].cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", EXPECTED)
def test_moments_and_distribution(name):
    check_distribution(initializers.get(name)(SHAPE, 0, 0, "float64"), *EXPECTED[name])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("fan", "size"), [("in", 300.0), ("out", 200.0), ("average", 250.0)])
def test_variance_scaling(distribution, fan, size):
    values = VarianceScaling(1.5, fan, distribution)(SHAPE, 1, 0, "float64")
    check_distribution(values, 1.5 / size, distribution)


@pytest.mark.parametrize("name", ["glorot_uniform", "he_uniform", "lecun_uniform"])
def test_uniform_bounds(name):
    limit = math.sqrt(3.0 * EXPECTED[name][0])
    values = initializers.get(name)(SHAPE, 0, 0, "float64")
    assert 0.999 * limit < np.abs(values).max() <= limit


def test_truncated_normal():
    values = TruncatedNormal(1.0, 0.5)(SHAPE, 0, 0, "float64")
    assert np.abs(values - 1.0).max() <= 1.0
    check_distribution(values - 1.0, 0.25 * stats.truncnorm(-2.0, 2.0).var(), "truncated_normal")
    assert pytest.approx(stats.truncnorm(-2.0, 2.0).std(), rel=1e-14) == initializers.DEVIATION_WITHIN_TWO


def test_constants():
    np.testing.assert_array_equal(initializers.get("zeros")((3, 2), 0, 0), np.zeros((3, 2)))
    np.testing.assert_array_equal(initializers.get("ones")((3,), 0, 0), np.ones(3))
    np.testing.assert_array_equal(Constant(-2.5)((3, 2), 0, 0), np.full((3, 2), -2.5))


def test_fans_are_those_of_torch_and_keras():
    # Our weight (n_in, n_out) is Keras' kernel and the transpose of PyTorch's weight.
    torch = pytest.importorskip("torch")
    fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(torch.nn.Linear(30, 20).weight)
    assert initializers.fans((30, 20)) == (fan_in, fan_out) == (30, 20)
    # Keras: compute_fans of one dimension.
    assert initializers.fans((7,)) == (7, 7)


@pytest.mark.parametrize(
    ("name", "function", "arguments"),
    [
        ("glorot_uniform", "xavier_uniform_", {}),
        ("glorot_normal", "xavier_normal_", {}),
        ("he_uniform", "kaiming_uniform_", {"nonlinearity": "relu"}),
        ("he_normal", "kaiming_normal_", {"nonlinearity": "relu"}),
    ],
)
def test_same_spread_as_torch(name, function, arguments):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(SHAPE[::-1], dtype=torch.float64)
    theirs = getattr(torch.nn.init, function)(weight, generator=generator, **arguments).numpy()
    ours = initializers.get(name)(SHAPE, 0, 0, "float64")
    assert stats.ks_2samp(ours.ravel(), theirs.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (1, 5), (5, 1)])
@pytest.mark.parametrize("gain", [1.0, -2.0, 0.5])
def test_orthogonal(shape, gain):
    q = Orthogonal(gain)(shape, 3, 0, "float64") / gain
    product = q @ q.T if shape[0] < shape[1] else q.T @ q
    np.testing.assert_allclose(product, np.eye(min(shape)), atol=1e-13)


def test_orthogonal_is_uniformly_distributed():
    """Signs of QR not corrected would make the first entry always negative."""
    first = np.array([Orthogonal()((3, 3), seed, 0, "float64")[0, 0] for seed in range(2000)])
    # A coordinate of a uniformly distributed unit vector in three dimensions is uniform in [-1, 1].
    assert stats.kstest(first, stats.uniform(-1.0, 2.0).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("shape", [(5, 3), (1, 1), (3, 8)])
def test_float32_is_the_rounded_float64(name, shape):
    initializer = initializers.get(name)
    single, double = (initializer(shape, 4, 2, dtype) for dtype in (np.float32, np.float64))
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert single.shape == double.shape == shape
    assert single.flags.c_contiguous
    assert double.flags.c_contiguous
    np.testing.assert_array_equal(single, double.astype(np.float32))


@pytest.mark.parametrize("name", RANDOM)
def test_seed_and_stream_decide(name):
    initializer = initializers.get(name)
    first = initializer((40, 30), 0, 0)
    np.testing.assert_array_equal(first, initializer((40, 30), 0, 0))
    for seed, stream in ((1, 0), (0, 1), (-1, 0), (2**62, 0), (0, 2**31)):
        other = initializer((40, 30), seed, stream)
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.15


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "orthogonal"])
def test_bias_shape(name):
    assert initializers.get(name)((7,), 0, 0).shape == (7,)


def test_get():
    initializer = Uniform(-1.0, 2.0)
    assert initializers.get(initializer) is initializer

    def of_my_own(shape, seed, stream, dtype):
        return np.zeros(shape, dtype)

    assert initializers.get(of_my_own) is of_my_own


def test_descriptions_are_values():
    assert Normal(0, 1) == Normal(0.0, 1.0)
    assert hash(Normal(0, 1)) == hash(Normal(0.0, 1.0))
    assert Normal() != TruncatedNormal()
    assert pickle.loads(pickle.dumps(BY_NAME["he_normal"])) == BY_NAME["he_normal"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Normal().mean = 1.0


REFUSED = [
    (
        lambda: initializers.get("he_norml"),
        ValueError,
        "unknown initializer 'he_norml'. Did you mean 'he_normal'?",
    ),
    (lambda: initializers.get(Normal), TypeError, r"such as Normal\(\); got the class Normal"),
    (lambda: initializers.get(3), TypeError, "got 3"),
    (lambda: Normal(0.0, -1.0), ValueError, "deviation of Normal must be at least 0; got -1.0"),
    (lambda: TruncatedNormal(0.0, -1.0), ValueError, "deviation of TruncatedNormal"),
    (lambda: Uniform(1.0, -1.0), ValueError, "low of Uniform must not be above high"),
    (lambda: Constant(math.nan), ValueError, "value of Constant must be finite; got nan"),
    (lambda: Constant("1"), TypeError, "value of Constant must be a number; got '1'"),
    (lambda: VarianceScaling(0.0), ValueError, "scale of VarianceScaling must be above 0"),
    (
        lambda: VarianceScaling(1.0, "avg"),
        ValueError,
        "fan of VarianceScaling must be one of 'in', 'out', 'average'",
    ),
    (
        lambda: VarianceScaling(1.0, "in", "cauchy"),
        ValueError,
        "distribution of VarianceScaling must be one of",
    ),
    (lambda: VarianceScaling(1.0, 3), ValueError, "fan of VarianceScaling"),
    (lambda: Orthogonal()((3,), 0, 0), ValueError, r"matrices \(n_in, n_out\); got shape \(3,\)"),
    (lambda: VarianceScaling()((3, 2, 2), 0, 0), ValueError, r"got shape \(3, 2, 2\)"),
    (lambda: Initializer(), TypeError, "Initializer is only what initializers share"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
