"""Batch norm, layer norm and RMS norm: the oracle, every kernel on guarded memory, digits, NaN, and PyTorch beside."""

from dataclasses import dataclass

import numpy as np
import pytest
import reference
import reference_normalization as oracle
from kernel_calls import ALL, EPS, Guarded, run_kernel

DTYPES = ("float32", "float64")
WIDTHS = (1, 3, 17, 64, 80, 257)
HEIGHTS = (1, 3, 17, 128)
MOMENTUM = 0.1
#: What stands behind the last unit of a row, as the 1 of a bias does.
BEHIND = 7.5
KINDS = ("batch", "layer", "rms")


def padded(values, dtype, padding=np.nan):
    """Rows with BEHIND behind the last number, and then padding up to 16 numbers, which no result may see."""
    n_rows, n = values.shape
    rows = np.full((n_rows, (n // 16 + 1) * 16), padding)
    rows[:, :n], rows[:, n] = values, BEHIND
    return Guarded(rows, dtype)


@dataclass
class Layer:
    """A layer and its memory; `bare` has no parameters, no running statistics, and no gradient is wanted."""

    kind: str
    dtype: str
    x: np.ndarray
    bare: bool = False
    eps: float = 1e-5
    rows: tuple | None = None
    slot_rows: int = 1 << 20

    def __post_init__(self):
        rng = np.random.default_rng(self.x.size)
        n_rows, n = self.x.shape
        self.rows = self.rows or (0, n_rows)
        self.x = padded(self.x, self.dtype)
        self.y, self.n = padded(np.full((n_rows, n), -3.0), self.dtype), n
        self.d = padded(rng.uniform(-1.0, 1.0, (n_rows, n)), self.dtype)
        self.d_y = self.d.values[:, :n].astype("float64")
        shape = {"batch": (2, n), "layer": (n_rows, 3), "rms": (n_rows, 2)}[self.kind]
        self.kept = Guarded(np.full(shape, -3.0), self.dtype)
        n_vectors = 1 if self.kind == "rms" else 2
        self.parameters = Guarded(rng.uniform(0.5, 2.0, (n_vectors, n)), self.dtype)
        n_slots = -(-n_rows // self.slot_rows)
        self.gradient = Guarded(np.full((n_slots, n_vectors, n), -3.0), self.dtype)
        self.state = Guarded(rng.uniform(0.5, 2.0, (2, n)), self.dtype)
        self.settings = np.array([self.eps, MOMENTUM], self.dtype)

    def run(self, direction, columns=(0, ALL), rows=None, kind=None, x=None, y=None):
        x, y = x or self.x, y or (self.y if "forward" in direction or direction == "inference" else self.d)
        given = {} if self.bare else {
            "parameters": self.parameters, "n_parameters": self.parameters.values.size, "gradient": self.gradient,
        }  # fmt: skip
        if not self.bare or "inference" in direction:
            given["state"] = self.state
        run_kernel(
            f"{kind or self.kind}_norm_{direction}", self.dtype, rows or self.rows, columns=columns,
            x=x, x_stride=x.values.shape[1], y=y, y_stride=y.values.shape[1], n_out=self.n, settings=self.settings,
            kept=self.kept, kept_stride=self.kept.values.shape[1], slot_rows=self.slot_rows,
            slot_stride=self.gradient.values[0].size, **given,
        )  # fmt: skip

    @property
    def gamma(self):
        return None if self.bare else self.parameters.values[0].astype("float64")

    @property
    def beta(self):
        return None if self.bare or self.kind == "rms" else self.parameters.values[1].astype("float64")

    def inside(self):
        """x of the tile, in float64."""
        return self.x.values[slice(*self.rows), : self.n].astype("float64")

    def expected(self):
        """y, d_x and the statistics to be kept, as columns of their axis, and the gradients of the parameters."""
        x, d_y = self.inside(), self.d_y[slice(*self.rows)]
        if self.kind == "rms":
            y, inverse = oracle.rms_norm(x, self.gamma, self.eps)
            d_x, *gradients = oracle.rms_norm_backward(d_y, x, self.gamma, self.eps)
            return y, d_x, (inverse,), gradients
        axis = 0 if self.kind == "batch" else 1
        y, *kept = oracle.normalization(x, self.gamma, self.beta, axis, self.eps)
        d_x, *gradients = oracle.normalization_backward(d_y, x, self.gamma, axis, self.eps)
        return y, d_x, kept, gradients

    def check(self):
        """Everything the two kernels give; errors grow with how far numbers lie from 0, in deviations."""
        y, d_x, kept, gradients = self.expected()
        rows = slice(*self.rows)
        inverse = kept[-1] if self.kind == "batch" else kept[-1][:, None]
        error = 16 * EPS[self.dtype] * (1.0 + 3.0 * inverse)
        assert (np.abs(self.y.values[rows, : self.n] - y) <= 2.0 * error).all()
        assert (np.abs(self.d.values[rows, : self.n] - d_x) <= 8.0 * error * inverse).all()
        found = self.kept.values if self.kind == "batch" else self.kept.values[rows].T
        for values, wanted in zip(found, kept, strict=False):
            np.testing.assert_allclose(values, wanted, rtol=64 * EPS[self.dtype], atol=16 * EPS[self.dtype])
        if not self.bare:
            for values, wanted in zip(self.gradient.values[self.rows[0] // self.slot_rows], gradients, strict=True):
                assert (np.abs(values - wanted) <= 4.0 * len(y) * np.max(error, axis=0)).all()
        self.check_untouched()

    def check_untouched(self):
        outside = np.ones(self.y.values.shape, bool)
        outside[slice(*self.rows), : self.n] = False
        for guarded in (self.y, self.d):
            guarded.assert_untouched(outside)
        for guarded in (self.x, self.parameters):
            guarded.assert_untouched(...)
        for guarded in (self.y, self.d, self.kept, self.gradient, self.state, self.x, self.parameters):
            guarded.assert_guards()
        if self.bare:
            self.gradient.assert_untouched(...)
        if self.bare or self.kind != "batch":
            self.state.assert_untouched(...)


def data(n_rows, n, seed=0):
    return np.random.default_rng(seed).uniform(-3.0, 3.0, (n_rows, n))


# --- the oracle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_scale", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_the_oracle_are_slopes(kind, has_scale):
    x, d_y = data(4, 3), data(4, 3, seed=1)
    gamma, beta = (data(2, 3, seed=2)) if has_scale else (None, None)

    def loss(x, gamma, beta):
        if kind == "rms":
            return np.sum(d_y * oracle.rms_norm(x, gamma, 1e-2)[0])
        return np.sum(d_y * oracle.normalization(x, gamma, beta, 0 if kind == "batch" else 1, 1e-2)[0])

    if kind == "rms":
        found = oracle.rms_norm_backward(d_y, x, gamma, 1e-2)
    else:
        found = oracle.normalization_backward(d_y, x, gamma, 0 if kind == "batch" else 1, 1e-2)
    wanted = [reference.central_differences(lambda v: loss(v, gamma, beta), x)]
    if has_scale:
        wanted.append(reference.central_differences(lambda v: loss(x, v, beta), gamma))
        wanted.append(reference.central_differences(lambda v: loss(x, gamma, v), beta))
    for values, slopes in zip(found, wanted, strict=False):
        np.testing.assert_allclose(values, slopes, rtol=1e-9, atol=1e-9)


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(kind, bare, dtype):
    for n in WIDTHS:
        for n_rows in HEIGHTS:
            layer = Layer(kind, dtype, data(n_rows, n), bare)
            state = layer.state.values.astype("float64")
            layer.run("forward")
            layer.run("backward")
            layer.check()
            if kind == "batch" and n_rows == 1:
                np.testing.assert_array_equal(layer.y.values[0, :n], 0.0 if bare else layer.parameters.values[1])
                assert (layer.d.values[:, :n] == 0.0).all()
                layer.state.assert_untouched(...)
            elif kind == "batch" and not bare:
                wanted = oracle.running_statistics(*state, layer.inside(), MOMENTUM)
                np.testing.assert_allclose(layer.state.values, wanted, rtol=32 * EPS[dtype], atol=EPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_writes_its_columns_only(dtype):
    """Columns of a tile, cut in and beside registers: a neighbour's are another thread's, to read and to write."""
    whole = Layer("batch", dtype, data(17, 90))
    for columns in ((0, 5), (5, 21), (21, 86), (86, 90), (90, ALL)):
        tile = Layer("batch", dtype, data(17, 90))
        own = np.arange(90)[slice(*columns)]
        others = np.setdiff1d(np.arange(90), own)
        for name in ("x", "d"):
            values = getattr(tile, name).values.copy()
            values[:, others] = np.nan
            setattr(tile, name, Guarded(values, dtype))
        for layer in (whole, tile):
            layer.run("forward", columns)
            layer.run("backward", columns)
        for name in ("kept", "state", "y", "d"):
            getattr(tile, name).assert_guards()
            getattr(tile, name).assert_untouched((slice(None), others))
            np.testing.assert_array_equal(getattr(tile, name).values[:, own], getattr(whole, name).values[:, own])
        tile.gradient.assert_untouched((slice(None), slice(None), others))
    whole.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_row_is_the_same_bits_in_any_tile(kind, dtype):
    """Also where fewer rows are left than the kernel takes at a time; the rows of others stay as they are."""
    for n in (3, 17, 80):
        whole = Layer(kind, dtype, data(11, n))
        whole.run("forward")
        whole.run("backward")
        for rows in ((0, 1), (2, 4), (3, 6), (5, 9), (6, 11)):
            tile = Layer(kind, dtype, data(11, n), rows=rows)
            tile.run("forward")
            tile.run("backward")
            tile.check()
            outside = np.delete(np.arange(11), np.arange(*rows))
            tile.kept.assert_untouched(outside)
            for name in ("y", "d", "kept"):
                own = getattr(tile, name).values[slice(*rows)]
                assert own.tobytes() == getattr(whole, name).values[slice(*rows)].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_gradients_of_blocks_of_rows(kind, dtype):
    """Each block writes its own slot, the last of them short, and no other."""
    for rows in ((0, 16), (16, 32), (32, 37)):
        layer = Layer(kind, dtype, data(37, 33), rows=rows, slot_rows=16)
        layer.run("forward")
        layer.run("backward")
        layer.check()
        layer.gradient.assert_untouched(np.delete(np.arange(3), rows[0] // 16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("bare", [False, True])
def test_batch_norm_with_fixed_statistics(bare, in_place, dtype):
    for n in WIDTHS:
        layer = Layer("batch", dtype, data(7, n), bare, rows=(2, 6))
        rows, state = slice(2, 6), layer.state.values
        wanted = oracle.inference(layer.inside(), *state, layer.gamma, layer.beta, 1e-5)
        y = layer.x if in_place else layer.y
        layer.run("inference", y=y)
        layer.run("inference_backward")
        np.testing.assert_allclose(y.values[rows, :n], wanted, rtol=0.0, atol=64 * EPS[dtype])
        wanted = oracle.inference_backward(layer.d_y[rows], state[1], layer.gamma, 1e-5)
        np.testing.assert_allclose(layer.d.values[rows, :n], wanted, rtol=16 * EPS[dtype])
        for guarded in (y, layer.d):
            guarded.assert_untouched([0, 1, 6])
            guarded.assert_untouched((slice(None), slice(n, None)))
        for guarded in (layer.state, layer.kept, layer.gradient, layer.parameters):
            guarded.assert_untouched(...)
        for guarded in (layer.x, layer.y, layer.d):
            guarded.assert_guards()


# --- digits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_many_numbers_keep_their_digits(kind):
    """10,000 numbers of float32: far from zero, and equal squares, whose sum rounds to the same side ever again."""
    far = np.random.default_rng(0).uniform(0.0, 1.0, (10_000, 80)) + np.linspace(0.0, 50.0, 80)
    alternating = np.where(np.arange(10_000) % 2, 0.1, -0.1)[:, None] * np.ones(80)
    for x in (far, alternating):
        layer = Layer(kind, "float32", x if kind == "batch" else x.T)
        layer.d.values[:, : layer.n] = 0.1
        layer.d_y = layer.d.values[:, : layer.n].astype("float64")
        layer.run("forward")
        layer.run("backward")
        y, _, kept, gradients = layer.expected()
        found = layer.kept.values if kind == "batch" else layer.kept.values.T
        for values, wanted in zip(found, kept, strict=False):
            np.testing.assert_allclose(values, wanted, rtol=2e-6, atol=1e-8)
        np.testing.assert_allclose(layer.y.values[:, : layer.n], y, rtol=0.0, atol=5e-5)
        d_gamma, *d_beta = layer.gradient.values[0]
        np.testing.assert_allclose(d_gamma, gradients[0], rtol=0.0, atol=1e-5 * layer.d_y.sum(axis=0).max())
        if kind != "rms":
            np.testing.assert_allclose(d_beta[0], gradients[1], rtol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1000.1, -0.1, 1e-30, 1e10])
def test_equal_numbers_are_normalized_to_zero(number, dtype):
    """A feature that never changes: divided by sqrt(eps), a mean that is one digit off would be far from zero."""
    for kind in ("batch", "layer"):
        for shape in ((37, 3), (3, 37), (130, 130)):
            layer = Layer(kind, dtype, np.full(shape, number))
            layer.run("forward")
            beta = np.broadcast_to(layer.parameters.values[1], shape)
            np.testing.assert_array_equal(layer.y.values[:, : layer.n], beta)


# --- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_batch_norm_shows_what_is_no_number(bad, dtype):
    """In its column alone, whose running statistics stay as they are."""
    x = data(9, 37)
    x[4, [5, 36]] = bad
    layer = Layer("batch", dtype, x)
    layer.run("forward")
    layer.run("backward")
    is_bad = np.isin(np.arange(37), [5, 36])
    for values in (layer.y.values[4, :37], layer.d.values[4, :37], layer.gradient.values[0, 0]):
        np.testing.assert_array_equal(np.isnan(values), is_bad)
    layer.state.assert_untouched((slice(None), is_bad))
    assert (layer.state.values != layer.state._before[layer.state.inside].reshape(2, 37))[:, ~is_bad].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_row_norms_show_what_is_no_number(kind, bad, dtype):
    """In its row alone; and an output gradient that is none in its row of d_x and its column of the gradients."""
    x = data(9, 37)
    x[4, 36] = bad
    layer = Layer(kind, dtype, x)
    layer.d.values[7, 3] = np.nan
    layer.run("forward")
    layer.run("backward")
    np.testing.assert_array_equal(np.isnan(layer.y.values[:, 36]), np.arange(9) == 4)
    np.testing.assert_array_equal(np.isnan(layer.d.values[:, 36]), np.isin(np.arange(9), [4, 7]))
    np.testing.assert_array_equal(np.isfinite(layer.y.values[np.arange(9) != 4, :37]), True)
    assert np.isnan(layer.gradient.values[0, :, 3]).all()


# --- PyTorch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_as_pytorch(dtype):
    """Running statistics over several steps of training, then the same layer frozen."""
    torch = pytest.importorskip("torch")
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    layer = Layer("batch", dtype, data(24, 19))
    peer = torch.nn.BatchNorm1d(19, eps=layer.eps, momentum=MOMENTUM, dtype=getattr(torch, dtype))
    with torch.no_grad():
        peer.weight.copy_(torch.tensor(layer.parameters.values[0]))
        peer.bias.copy_(torch.tensor(layer.parameters.values[1]))
        peer.running_mean.copy_(torch.tensor(layer.state.values[0]))
        peer.running_var.copy_(torch.tensor(layer.state.values[1]))
    for step in range(6):
        x = (2.0 * data(24, 19, seed=step) + step).astype(dtype)
        layer.x.values[:, :19], layer.d.values[:, :19] = x, layer.d_y
        if step == 4:
            peer.eval()
        layer.run("forward" if step < 4 else "inference")
        layer.run("backward" if step < 4 else "inference_backward")
        of_x = torch.tensor(x, requires_grad=True)
        peer.zero_grad()
        y = peer(of_x)
        y.backward(torch.tensor(layer.d_y.astype(dtype)))
        np.testing.assert_allclose(
            layer.y.values[:, :19], peer(of_x).detach() if step > 3 else layer.expected()[0], **tolerance
        )
        np.testing.assert_allclose(layer.d.values[:, :19], of_x.grad, **tolerance)
        if step < 4:
            np.testing.assert_allclose(
                layer.gradient.values[0], torch.stack([peer.weight.grad, peer.bias.grad]), **tolerance
            )
        np.testing.assert_allclose(layer.state.values, torch.stack([peer.running_mean, peer.running_var]), **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_row_norms_as_pytorch(kind, dtype):
    torch = pytest.importorskip("torch")
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    layer = Layer(kind, dtype, data(24, 19))
    peer = {"layer": torch.nn.LayerNorm, "rms": torch.nn.RMSNorm}[kind](19, eps=layer.eps, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter, values in zip(peer.parameters(), layer.parameters.values, strict=True):
            parameter.copy_(torch.tensor(values))
    layer.run("forward")
    layer.run("backward")
    of_x = torch.tensor(layer.inside().astype(dtype), requires_grad=True)
    y = peer(of_x)
    y.backward(torch.tensor(layer.d_y.astype(dtype)))
    np.testing.assert_allclose(layer.y.values[:, :19], y.detach(), **tolerance)
    np.testing.assert_allclose(layer.d.values[:, :19], of_x.grad, **tolerance)
    for values, parameter in zip(layer.gradient.values[0], peer.parameters(), strict=True):
        np.testing.assert_allclose(values, parameter.grad, **tolerance)
