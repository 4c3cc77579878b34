"""nbbp.datasets: the shipped digits and the spiral."""

import hashlib
from importlib import resources

import numpy as np
import pytest

from nbbp import datasets


def test_digits_have_their_shape_and_range():
    X, y = datasets.load_digits()
    assert X.shape == (1797, 64)
    assert X.dtype == np.float32
    assert y.shape == (1797,)
    assert y.dtype == np.int64
    assert X.min() == 0.0
    assert X.max() == 1.0
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_are_those_of_the_source():
    X, y = datasets.load_digits()
    source = pytest.importorskip("sklearn.datasets").load_digits()
    np.testing.assert_array_equal(X * 16, source.data)
    np.testing.assert_array_equal(y, source.target)


def test_digits_have_not_changed():
    X, y = datasets.load_digits()
    digest = hashlib.sha256((X * 16).astype(np.uint8).tobytes() + y.astype(np.uint8).tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_digits_are_fresh_arrays():
    X, _ = datasets.load_digits()
    X[:] = 7.0
    assert datasets.load_digits()[0].max() == 1.0


def test_digits_name_their_source_and_license():
    text = resources.files("nbbp").joinpath("digits/ATTRIBUTION.md").read_text(encoding="utf-8")
    for part in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0"):
        assert part in text


def test_spiral_is_balanced_shuffled_and_repeatable():
    X, y = datasets.make_spiral(n_per_class=50, n_classes=4, noise=0.1, seed=3)
    assert X.shape == (200, 2)
    assert X.dtype == np.float32
    assert y.dtype == np.int64
    assert np.bincount(y).tolist() == [50] * 4
    assert set(y[-40:]) == {0, 1, 2, 3}
    again, _ = datasets.make_spiral(n_per_class=50, n_classes=4, noise=0.1, seed=3)
    other, _ = datasets.make_spiral(n_per_class=50, n_classes=4, noise=0.1, seed=4)
    np.testing.assert_array_equal(X, again)
    assert not np.array_equal(X, other)


def test_spiral_without_noise_lies_on_its_arms():
    X, y = datasets.make_spiral(n_per_class=30, n_classes=3, noise=0.0)
    radius = np.hypot(X[:, 0], X[:, 1])
    angle = 4.0 * radius + 2.0 * np.pi * y / 3
    expected = np.column_stack((radius * np.sin(angle), radius * np.cos(angle)))
    np.testing.assert_allclose(X, expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"n_per_class": 0}, {"n_classes": 0}, {"noise": -1.0}, {"noise": np.nan}])
def test_spiral_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        datasets.make_spiral(**wrong)
