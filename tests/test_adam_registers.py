"""Adam's update in whole registers (nbbp/cpu/adam.py) against the scalar rule in float64, and its odd numbers."""

import numpy as np
import pytest
from kernel_calls import Guarded, run_kernel

from nbbp.scalars.updates import UPDATES

ADAM = UPDATES["adam"]
SIZES = (1, 3, 15, 16, 17, 64, 371)
#: Learning rate / correction, beta1, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(correction), eps.
C = (1e-2, 0.9, 0.1, 0.99, 0.01, 1.7, 1e-8, 0.0)
EPS = float(np.finfo(np.float32).eps)


def stepped(w, g, m, v, decay=(0.0, 0.0, 1.0), c=C):
    """w, m and v after the kernel's step; nothing but these is written."""
    w, g, m, v = (Guarded(each, np.float32) for each in (w, g, m, v))
    n = w.values.size
    run_kernel(
        "update", "float32", (0, 1), ADAM.code, (0, n), x=g, w=w, w_stride=1, n_in=0, n_out=n, slot_0=m, slot_1=v,
        slot_stride=1, coefficients=np.array([*decay, *c]),
    )  # fmt: skip
    for each in (w, m, v):
        each.assert_guards()
    g.assert_untouched(slice(None))
    return w.values, m.values, v.values


def parts(w, g, m, v, decay=(0.0, 0.0, 1.0), c=C):
    """What the scalar rule makes of the same float32 numbers in float64; and w's change without the parameter."""
    l2, _, kept = (np.float64(np.float32(each)) for each in decay)
    c = tuple(np.float64(np.float32(each)) for each in c)
    w, g, m, v = (np.asarray(each, np.float32).astype(np.float64) for each in (w, g, m, v))
    new = [ADAM.apply(kept * a, b + l2 * a, p, q, np.float64(0), c)[:3] for a, b, p, q in zip(w, g, m, v, strict=True)]
    new_w, new_m, new_v = np.array(new).T
    return new_w, new_m, new_v, new_w - kept * w


def random_state(n, seed):
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.uniform(-6, 6, n)
    w, g, m = generator.standard_normal((3, n))
    return w, g * scale, m * scale, generator.random(n) * scale**2


@pytest.mark.parametrize("decay", [(0.0, 0.0, 1.0), (0.01, 0.0, 1.0), (0.0, 0.0, 0.99), (0.0, 0.01, 1.0)])
@pytest.mark.parametrize("n", SIZES)
def test_a_step_is_that_of_the_scalar_rule(n, decay):
    w, g, m, v = random_state(n, n)
    l1 = decay[1]
    new_w, new_m, new_v = stepped(w, g, m, v, decay)
    right_w, right_m, right_v, change = parts(w, g + l1 * np.sign(w), m, v, decay)
    # a moment is a sum of two products; the change has a root and a quotient of it; the parameter is their sum
    error_of_m = 3 * EPS * (np.abs(m) + np.abs(g) + 0.02)
    assert np.all(np.abs(new_m - right_m) <= error_of_m)
    assert np.all(np.abs(new_v - right_v) <= 8 * EPS * right_v)
    relative = error_of_m / np.maximum(np.abs(right_m), 1e-300) + 8 * EPS
    assert np.all(np.abs(new_w - right_w) <= relative * np.abs(change) + EPS * (np.abs(w) + np.abs(right_w)))


@pytest.mark.parametrize("root", np.geomspace(1e-18, 1e18, 37))
def test_the_change_alone_is_as_good_as_a_root_and_a_quotient(root):
    """Moments that stay as they are, and a parameter of 0."""
    n = 1000
    generator = np.random.default_rng(0)
    v, m = root**2 * generator.uniform(0.5, 2, n), root * generator.uniform(0.5, 2, n)
    unmoved = (1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    zeros = np.zeros(n)
    change, *_ = stepped(zeros, zeros, m, v, c=unmoved)
    m, v = (np.asarray(each, np.float32).astype(np.float64) for each in (m, v))
    assert np.abs(change / -(m / np.sqrt(v)) - 1).max() <= 1.5 * EPS


def test_numbers_at_the_ends():
    """No gradient ever, a mean square that overflowed, and moments too small for a root."""
    w, g = np.ones(4), np.array([0.0, 1e25, 1e-25, -1e-30])
    new_w, _, new_v = stepped(w, g, np.zeros(4), np.zeros(4))
    assert new_w[0] == 1
    assert new_v[1] == np.inf
    assert np.all(np.isfinite(new_w))
    np.testing.assert_allclose(new_w[2:], 1 - 1e-2 * 0.1 * g[2:] / 1e-8, rtol=EPS)


@pytest.mark.parametrize("which", range(4))
def test_nan_stays_visible(which):
    state = [np.full(17, 0.5) for _ in range(4)]
    state[which][3] = np.nan
    new_w, *_ = stepped(*state)
    np.testing.assert_array_equal(np.isnan(new_w), np.arange(17) == 3)
