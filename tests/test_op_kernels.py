"""Op kernels one by one: what they compute on a tile, what they leave alone, and what the padding must not do."""

import numpy as np
import pytest
import reference
import reference_optimizers
from engine_cases import ALL_OPTIMIZERS, DTYPES, label, replaced
from kernel_calls import ALL, EPS, Guarded, run_kernel
from scipy import special

from nbbp import optimizers, tiling
from nbbp.cpu import gemm
from nbbp.layers import Activation
from nbbp.scalars.activations import ACTIVATIONS
from nbbp.scalars.updates import UPDATES

ELEMENTWISE = [
    *(Activation(name) for name, formula in ACTIVATIONS.items() if not formula.row_wise),
    Activation("leaky_relu", negative_slope=0.3),
    Activation("elu", alpha=0.4),
]
N_ROWS, STRIDE = 7, 32
#: Of the seven rows a tile takes these; the others must stay.
ROWS = (2, 6)
#: What stands behind the last unit of a row, as the 1 of a bias does.
BEHIND = 7.5


def padded_rows(width, dtype, stride=STRIDE, seed=0, spread=3.0, padding=1e30):
    """Seven rows of `width` numbers, then BEHIND, then padding that no result may see."""
    rows = np.full((N_ROWS, stride), padding)
    rows[:, :width] = np.random.default_rng(seed).uniform(-spread, spread, (N_ROWS, width))
    rows[:, width] = BEHIND
    return Guarded(rows, dtype)


def near(actual, expected, dtype, ulps=32):
    tolerance = ulps * EPS[dtype]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# --- activations ---------------------------------------------------------------------------------------------------

#: Columns of the tiles: whole rows, and cuts in and beside registers.
CUTS = {"flat": [(0, ALL)], "cut": [(0, 5), (5, 16), (16, 17), (17, ALL)], "cut at the width": [(0, 10), (10, 20)]}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("activation", ELEMENTWISE, ids=label)
def test_activation_forward(activation, cut, in_place, dtype):
    x = padded_rows(20, dtype)
    before = x.values.copy()
    y = x if in_place else padded_rows(20, dtype, seed=1)
    settings = np.array([activation.parameter], dtype)
    for columns in CUTS[cut]:
        run_kernel(
            "activation_forward", dtype, ROWS, activation.formula.code, columns, x=x, x_stride=STRIDE, y=y,
            y_stride=STRIDE, n_out=20, settings=settings,
        )  # fmt: skip
    rows = slice(*ROWS)
    near(
        y.values[rows, :20], reference.activation_value(activation.name, before[rows, :20], activation.parameter), dtype
    )
    assert (y.values[:, 20] == BEHIND).all()
    y.assert_guards()
    y.assert_untouched([0, 1, 6])
    if cut != "flat":
        y.assert_untouched((slice(None), slice(20, None)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strides", [(32, 48), (48, 32)])
@pytest.mark.parametrize("activation", ELEMENTWISE, ids=label)
def test_activation_between_buffers_of_other_strides(activation, strides, dtype):
    x, y = padded_rows(20, dtype, strides[0]), padded_rows(20, dtype, strides[1], seed=1)
    run_kernel(
        "activation_forward", dtype, ROWS, activation.formula.code, x=x, x_stride=strides[0], y=y,
        y_stride=strides[1], n_out=20, settings=np.array([activation.parameter], dtype),
    )  # fmt: skip
    expected = reference.activation_value(activation.name, x.values[slice(*ROWS), :20], activation.parameter)
    near(y.values[slice(*ROWS), :20], expected, dtype)
    assert (y.values[:, 20] == BEHIND).all()
    x.assert_untouched(...)
    y.assert_guards()
    y.assert_untouched([0, 1, 6])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 31])
@pytest.mark.parametrize("activation", [a for a in ELEMENTWISE if a.name in ("relu", "tanh", "mish")], ids=label)
def test_the_number_behind_the_last_unit_stays(activation, width, dtype):
    """Where it opens a register of its own, and where it is the last of the row."""
    y = padded_rows(width, dtype)
    before = y.values.copy()
    run_kernel(
        "activation_forward", dtype, (0, N_ROWS), activation.formula.code, x=y, x_stride=STRIDE, y=y, y_stride=STRIDE,
        n_out=width, settings=np.array([activation.parameter], dtype),
    )  # fmt: skip
    near(y.values[:, :width], reference.activation_value(activation.name, before[:, :width]), dtype)
    assert (y.values[:, width] == BEHIND).all()
    y.assert_guards()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("activation", ELEMENTWISE, ids=label)
def test_activation_backward(activation, cut, dtype):
    z, d = padded_rows(20, dtype), padded_rows(20, dtype, seed=1)
    logits, d_before = z.values[:, :20].astype("float64"), d.values[:, :20].copy()
    if activation.formula.derivative_of == "output":
        z.values[:, :20] = reference.activation_value(activation.name, logits, activation.parameter)
    for columns in CUTS[cut]:
        run_kernel(
            "activation_backward", dtype, ROWS, activation.formula.code, columns, x=z, x_stride=STRIDE, y=d,
            y_stride=STRIDE, n_out=20, settings=np.array([activation.parameter], dtype),
        )  # fmt: skip
    expected = reference.activation_backward(activation.name, logits, d_before, activation.parameter)
    near(d.values[slice(*ROWS), :20], expected[slice(*ROWS)], dtype, ulps=64)
    d.assert_guards()
    d.assert_untouched([0, 1, 6])
    if cut != "flat":
        d.assert_untouched((slice(None), slice(20, None)))


# --- softmax and its family ----------------------------------------------------------------------------------------

WIDTHS = [1, 2, 15, 16, 17, 31]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spread", [1.0, 1e4])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_forward(name, spread, width, in_place, dtype):
    """The padding holds 1e30, NaN or an infinity, which no unit may see."""
    for padding in (1e30, np.nan, -np.inf, np.inf):
        x = padded_rows(width, dtype, spread=spread, padding=padding)
        before = x.values.astype("float64")
        y = x if in_place else padded_rows(width, dtype, seed=1)
        run_kernel(f"{name}_forward", dtype, ROWS, x=x, x_stride=STRIDE, y=y, y_stride=STRIDE, n_out=width)
        expected = getattr(special, name)(before[slice(*ROWS), :width], axis=1)
        near(y.values[slice(*ROWS), :width], expected, dtype)
        assert (y.values[:, width] == BEHIND).all()
        y.assert_guards()
        y.assert_untouched([0, 1, 6])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spread", [1.0, 1e4])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_backward(name, spread, width, dtype):
    z, d = padded_rows(width, dtype, spread=spread), padded_rows(width, dtype, seed=1)
    logits, before = z.values[:, :width].astype("float64"), d.values[:, :width].copy()
    z.values[:, :width] = getattr(special, name)(logits, axis=1)
    run_kernel(f"{name}_backward", dtype, ROWS, x=z, x_stride=STRIDE, y=d, y_stride=STRIDE, n_out=width)
    expected = reference.activation_backward(name, logits, before)[slice(*ROWS)]
    # the sum over a row rounds in the unit of its largest term
    np.testing.assert_allclose(d.values[slice(*ROWS), :width], expected, rtol=0.0, atol=300 * EPS[dtype])
    d.assert_guards()
    d.assert_untouched([0, 1, 6])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_labels", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_crossentropy(spread, width, as_labels, dtype):
    """Loss and gradient of logits up to ±1e4, in the middle of a batch, in another order."""
    x, d = padded_rows(width, dtype, spread=spread), padded_rows(width, dtype, seed=1)
    order, step, batch = np.random.default_rng(0).permutation(14), 1, 7
    labels = np.random.default_rng(1).integers(0, width, 14)
    target = labels if as_labels else np.eye(width)[labels].astype(dtype)
    values, scratch = Guarded(np.full(14, -3.0), "float64"), Guarded(np.zeros(tiling.LOSS_SCRATCH), dtype)
    run_kernel(
        "crossentropy", dtype, ROWS, step=step, scratch=scratch, x=x, x_stride=STRIDE, y=d, y_stride=STRIDE,
        n_out=width, order=order, n_samples=14, batch=batch, target=target, target_is_labels=int(as_labels),
        target_stride=width, row_values=values, settings=np.array([0.0, 2.0, 1.0], dtype),
    )  # fmt: skip
    rows, of_run = slice(*ROWS), slice(batch + ROWS[0], batch + ROWS[1])
    logits, chosen = x.values[rows, :width].astype("float64"), labels[order[of_run]]
    log_p = special.log_softmax(logits, axis=1)
    np.testing.assert_allclose(
        values.values[of_run], -2.0 * log_p[np.arange(4), chosen], rtol=32 * EPS[dtype], atol=32 * EPS[dtype]
    )
    expected = 2.0 / batch * (np.exp(log_p) - np.eye(width)[chosen])
    near(d.values[rows, :width], expected, dtype)
    for guarded in (d, values, scratch):
        guarded.assert_guards()
    d.assert_untouched([0, 1, 6])
    values.assert_untouched([*range(batch + 2), 13])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_crossentropy_of_few_classes(width, dtype):
    """More rows than go through its passes together, smoothed and weighted; a row of NaN harms no other."""
    n, rng = 150, np.random.default_rng(width)
    x = Guarded(np.pad(3 * rng.standard_normal((n, width)), ((0, 0), (0, 16 - width)), constant_values=np.nan), dtype)
    x.values[77, width - 1] = np.nan
    labels, weights = rng.integers(0, width, n), rng.uniform(0.5, 2.0, n).astype(dtype)
    d, values = Guarded(np.zeros((n, 16)), dtype), Guarded(np.zeros(n), "float64")
    scratch = Guarded(np.zeros(tiling.LOSS_SCRATCH), dtype)
    run_kernel(
        "crossentropy", dtype, (0, n), scratch=scratch, x=x, x_stride=16, y=d, y_stride=16, n_out=width, n_samples=n,
        batch=n, target=labels, target_is_labels=1, sample_weight=weights, row_values=values,
        settings=np.array([0.1, 1.0, 1.0], dtype),
    )  # fmt: skip
    for guarded in (d, values, scratch):
        guarded.assert_guards()
    target = 0.9 * np.eye(width)[labels] + 0.1 / width
    log_p = special.log_softmax(x.values[:, :width].astype("float64"), axis=1)
    wanted = -weights * np.sum(target * log_p, axis=1)
    gradient = weights[:, None] / n * (np.exp(log_p) - target)
    assert np.isnan(values.values[77])
    assert np.isnan(d.values[77, :width]).all()
    others = np.arange(n) != 77
    np.testing.assert_allclose(values.values[others], wanted[others], rtol=64 * EPS[dtype], atol=64 * EPS[dtype])
    near(d.values[others, :width], gradient[others], dtype)


# --- rows in and out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_order", [True, False])
def test_gather_and_copy_out(has_order, dtype):
    data = np.random.default_rng(0).standard_normal((14, 5)).astype(dtype)
    order = np.random.default_rng(1).permutation(14)
    x, out = Guarded(np.full((7, 16), -3.0), dtype), Guarded(np.full((14, 5), -3.0), dtype)
    given = {"order": order} if has_order else {}
    run_kernel("gather", dtype, ROWS, step=1, x=data, x_stride=5, y=x, y_stride=16, n_out=5, batch=7, **given)
    wanted = data[(order if has_order else np.arange(14))[9:13]]
    np.testing.assert_array_equal(x.values[2:6, :5], wanted)
    x.assert_guards()
    x.assert_untouched([0, 1, 6])
    x.assert_untouched((slice(None), slice(5, None)))
    run_kernel("copy_out", dtype, ROWS, step=1, x=x, x_stride=16, y=out, y_stride=5, n_out=5, batch=7)
    np.testing.assert_array_equal(out.values[9:13], wanted)
    out.assert_guards()
    out.assert_untouched([*range(9), 13])


# --- gradients and updates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [(0, 40), (0, 7), (7, 33), (33, 40)])
@pytest.mark.parametrize("n_rows", [1, 16, 17, 32, 33, 50, 64])
def test_reduce_gradient(n_rows, columns, dtype):
    """Only the partial gradients of blocks that have rows; of a short batch the last ones are old."""
    slots = np.random.default_rng(0).integers(-9, 9, (4, 48))
    y = Guarded(slots, dtype)
    run_kernel("reduce_gradient", dtype, (0, n_rows), columns=columns, y=y, slot_rows=16, slot_stride=48)
    part = slice(*columns)
    np.testing.assert_array_equal(y.values[0, part], slots[: -(-n_rows // 16), part].sum(axis=0))
    y.assert_guards()
    y.assert_untouched([1, 2, 3])
    y.assert_untouched((slice(None), [i for i in range(48) if not columns[0] <= i < columns[1]]))


N_STEPS = 4


def oracle_of_update(optimizer, start, gradients):
    """The weights after N_STEPS updates of a parameter called "0.weight"."""
    steps = reference_optimizers.steps(optimizer, {"w": start}, lambda _, t: {"w": gradients[t - 1]}, N_STEPS)
    return steps["w"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile_local", [True, False])
@pytest.mark.parametrize("panel", [(0, 6), (2, 5)], ids=["whole rows", "a panel of columns"])
@pytest.mark.parametrize("penalties", [{}, {"weight_decay": 0.1, "l1": 0.02}], ids=["plain", "penalties"])
@pytest.mark.parametrize("optimizer", [o for o in ALL_OPTIMIZERS if o.rule in UPDATES], ids=label)
def test_update(optimizer, penalties, panel, tile_local, dtype):
    """A segment of rows 2 to 10 of a matrix (12, 6), in tiles of rows that cut it; the rest stays as it is."""
    # "decay_bias": for the oracle the parameter is no weight by its name.
    optimizer = replaced(optimizer, decay_bias=True, **penalties)
    rng = np.random.default_rng(0)
    w = Guarded(rng.uniform(-1.0, 1.0, (12, 6)), dtype)
    slots = [Guarded(np.zeros((12, 6)), dtype) for _ in range(optimizer.n_slots)]
    gradients = rng.uniform(-1.0, 1.0, (N_STEPS, 12, panel[1] - panel[0])).astype(dtype)
    table = optimizer.coefficients(1, N_STEPS, optimizer.settings("w"))
    segment = (slice(2, 10), slice(*panel))
    expected = oracle_of_update(optimizer, w.values[segment].astype("float64"), gradients[:, 2:10])
    columns = {f"slot_{k}": slot.address + panel[0] * w.values.itemsize for k, slot in enumerate(slots)}
    columns |= {"w": w.address + panel[0] * w.values.itemsize, "w_stride": 6, "n_in": 2, "n_out": 10}
    for step, gradient in enumerate(gradients):
        for tile in ((0, 5), (5, 6), (6, 12)):
            g = np.ascontiguousarray(gradient[slice(*tile)] if tile_local else gradient)
            run_kernel(
                "update", dtype, (0, 1), UPDATES[optimizer.rule].code, tile, step, x=0 if tile_local else g, scratch=g,
                tile_local=int(tile_local), slot_stride=panel[1] - panel[0], coefficients=table, **columns,
            )  # fmt: skip
    np.testing.assert_allclose(w.values[segment], expected, rtol=0.0, atol=64 * EPS[dtype])
    outside = np.ones((12, 6), bool)
    outside[segment] = False
    for guarded in (w, *slots):
        guarded.assert_guards()
        guarded.assert_untouched(outside)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", [o for o in ALL_OPTIMIZERS if o.rule in UPDATES], ids=label)
def test_update_keeps_nan_visible(optimizer, dtype):
    w = Guarded(np.full(40, 0.5), dtype)
    g = np.full(40, 0.25, dtype)
    g[[0, 17, 39]] = np.nan
    slots = {f"slot_{k}": Guarded(np.zeros(40), dtype) for k in range(optimizer.n_slots)}
    run_kernel(
        "update", dtype, (0, 1), UPDATES[optimizer.rule].code, (0, 1), x=g, w=w, w_stride=40, n_in=0, n_out=1,
        slot_stride=40, coefficients=optimizer.coefficients(1, 1, optimizer.settings("w")), **slots,
    )  # fmt: skip
    np.testing.assert_array_equal(np.isnan(w.values), np.isnan(g))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5), (6, 4), (17, 33), None])
@pytest.mark.parametrize("eps", [(None, 1e-3), (1e-2, 0.5), (1e-30, 1e-3)], ids=str)
def test_adafactor(eps, shape, dtype):
    """Matrices and, for None, a vector; the least eps of the paper, whose square is no number of float32."""
    optimizer = optimizers.Adafactor(0.1, eps=eps, weight_decay=0.1, decay_bias=True)
    size = shape or (9,)
    rng = np.random.default_rng(0)
    w = Guarded(rng.uniform(-1.0, 1.0, size), dtype)
    start, kept = w.values.astype("float64"), Guarded(np.zeros(sum(size)), dtype)
    gradients = rng.uniform(-1.0, 1.0, (N_STEPS, *size)).astype(dtype)
    table = optimizer.coefficients(1, N_STEPS, optimizer.settings("w"))
    for step, gradient in enumerate(gradients):
        run_kernel(
            "adafactor", dtype, (0, 1), step=step, x=gradient.copy(), w=w, n_in=int(np.prod(size[:-1])),
            n_out=size[-1], is_matrix=int(shape is not None), slot_0=kept, coefficients=table,
        )  # fmt: skip
    expected = reference_optimizers.steps(optimizer, {"w": start}, lambda _, t: {"w": gradients[t - 1]}, N_STEPS, dtype)
    np.testing.assert_allclose(w.values, expected["w"], rtol=0.0, atol=64 * EPS[dtype])
    w.assert_guards()
    kept.assert_guards()


@pytest.mark.parametrize("name", ["update", "adafactor"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_batch_with_a_loss_that_is_not_finite_updates_nothing(bad, name):
    w, kept = Guarded(np.ones(6), "float32"), Guarded(np.zeros(7), "float32")
    values = np.array([0.0, bad, 1.0, bad])
    settings = {"x": np.ones(6, "float32"), "w": w, "n_in": 1, "n_out": 6, "slot_0": kept, "slot_stride": 1}
    settings |= {"w_stride": 1, "row_values": values, "batch": 2, "coefficients": np.ones((2, 11))}
    for step in (0, 1):
        run_kernel(name, "float32", (0, 2), columns=(1, 6), step=step, **settings)
    w.assert_untouched(...)
    kept.assert_untouched(...)
    # Rows that this batch does not have are nobody's loss.
    run_kernel(name, "float32", (0, 1), columns=(1, 6), **settings)
    assert (w.values != 1.0).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_snapshot(dtype):
    """A panel of two columns of three, of rows 1 to 4: in the first step, and only of finite losses."""
    x, losses = np.arange(18.0).reshape(6, 3).astype(dtype), np.array([0.5, 1.0, np.nan])
    for rows, step, copied in (((0, 2), 1, False), ((0, 3), 0, False), ((0, 2), 0, True)):
        y = Guarded(np.full((6, 3), -3.0), dtype)
        columns = {"x": x, "y": y, "n_in": 4, "n_out": 2, "w_stride": 3, "row_values": losses}
        run_kernel("snapshot", dtype, rows, columns=(1, 6), step=step, **columns)
        y.assert_guards()
        expected = np.full((6, 3), -3.0)
        if copied:
            expected[1:4, :2] = x[1:4, :2]
        np.testing.assert_array_equal(y.values, expected)


def test_scratch_of_a_transposed_product_is_enough():
    """What the lowering reserves for a packed panel is what the product writes."""
    from nbbp import tiling

    for dtype in DTYPES:
        for k in (1, 15, 16, 17, 100):
            assert tiling.packed_panel(k) >= gemm.scratch_size(dtype, k)
