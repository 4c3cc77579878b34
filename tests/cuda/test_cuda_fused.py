"""Chains that go by tiles of rows: against the CPU engine, at sizes that no tile divides; which programs are such."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import watched_memory
from cuda_cases import BATCHES, assert_same_standing, assert_same_steps, batch_of, twins
from engine_cases import ALL_ACTIVATIONS, ALL_LOSSES, ALL_OPTIMIZERS, DTYPES, assert_near, label
from numba import cuda

import nbbp
from nbbp import losses, optimizers
from nbbp.cuda import chain, fused_programs, fused_tile, fused_update, kernels
from nbbp.layers import Activation, Dense, Dropout, Residual
from nbbp.metrics import TopKAccuracy

LAYERS = [Dense(9, "relu"), Dense(6, "tanh"), Dense(5, "gelu"), Dense(3)]
LOSS = losses.Crossentropy()
ELEMENTWISE = [activation for activation in ALL_ACTIVATIONS if not activation.formula.row_wise]
RULES = [optimizer for optimizer in ALL_OPTIMIZERS if optimizer.rule != "adafactor"]


@pytest.fixture(autouse=True)
def _not_one_block(monkeypatch):
    """Chains this small would be one block's otherwise."""
    monkeypatch.setattr(chain, "MOST_WORK", 0)


def names_of(launches):
    return [launch.name for launch in launches]


def bound_of(model, batch, labels=True):
    return model._session.training(batch, labels, False)


def assert_fused_steps(models, batches):
    """The same steps, each of which was two launches."""
    for x, y in batches:
        bound = bound_of(models[1], len(x), y.ndim == 1)
        assert names_of(bound.launches) == ["fused_gradient", "update_by_parts"]
    assert_same_steps(*models, batches)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", RULES, ids=label)
def test_rules(optimizer, dtype):
    optimizer = dataclasses.replace(optimizer, weight_decay=0.03, l1=0.02, groups={"*.bias": {"learning_rate": 0.05}})
    models = twins([Dense(5, "tanh"), Dense(3)], 6, LOSS, dtype, optimizer)
    assert_fused_steps(models, [batch_of(models[0], n, seed) for seed, n in enumerate(BATCHES)])


@pytest.mark.parametrize("activation", ELEMENTWISE, ids=label)
def test_activations(activation):
    models = twins(
        [Dense(5, activation), Dense(4, activation), Dense(3, activation)], 5, losses.MSE(), optimizer="adam"
    )
    x, y = batch_of(models[0], 11)
    assert_fused_steps(models, [(x, y), (x[:3], y[:3])])
    assert_near(models[1].predict(x), models[0].predict(x))


@pytest.mark.parametrize(
    "loss", [*ALL_LOSSES, losses.Crossentropy(reduction="sum"), losses.MSE(reduction="sum")], ids=label
)
def test_losses(loss):
    last = "log_softmax" if loss.name == "nll" else "linear"
    for kind in ("hard", "one-hot", "soft") if loss.row_wise else ("hard",):
        models = twins([Dense(4, "tanh"), Dense(3, last)], 5, loss)
        x, y = batch_of(models[0], 5, kind=kind)
        assert_fused_steps(models, [(x, y), (x[:1], y[:1])])
        weight = np.linspace(0.0, 2.0, 5)
        assert models[1].train_step(x, y, weight) == pytest.approx(models[0].train_step(x, y, weight))
        assert_same_standing(*models)
        assert models[1].evaluate(x, y) == pytest.approx(models[0].evaluate(x, y), rel=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(1, 1, 1), (3, 17, 8), (4, 4, 4), (21, 1, 13, 2), (10, 9, 5, 8, 3)], ids=str)
def test_sizes(widths, dtype, monkeypatch):
    """Inputs, slabs and outputs that end within a tile; more tiles than blocks, and fewer; both tiles."""
    n_in, *widths = widths
    for resident in (1, 2):
        monkeypatch.setattr(fused_programs, "_RESIDENT", resident)
        for n in (1, 2, 7, 19):
            models = twins([Dense(n_out, "relu") for n_out in widths], n_in, losses.MSE(), dtype, "adam")
            x, y = batch_of(models[0], n, n)
            assert_fused_steps(models, [(x, y)])
            assert_near(models[1].predict(x), models[0].predict(x), dtype)


@pytest.mark.parametrize("tile", fused_tile.TILES, ids=str)
def test_tiles(tile, monkeypatch):
    """Each tile at every number of rows that its last one may have, with several tiles a block."""
    monkeypatch.setattr(fused_tile, "TILES", (tile,))
    models = twins(LAYERS, 6, LOSS, "float64", "adam")
    sizes = [2 * 3 * tile.height + rest for rest in range(tile.height if kernels.SIMULATED else 3)]
    assert_fused_steps(models, [batch_of(models[0], n, n) for n in sizes])


@pytest.mark.skipif(not kernels.SIMULATED, reason="watches the simulator's memory")
@pytest.mark.parametrize("tile", fused_tile.TILES, ids=str)
def test_threads_wait_for_each_other(tile, monkeypatch):
    """No thread touches what another one writes before both have passed a barrier: in all launches, and every branch.

    Layers as wide as a panel, wider and narrower, of every kind of activation; data that come at once, and in parts.
    """
    watched_memory.watch(monkeypatch)
    monkeypatch.setattr(fused_tile, "TILES", (tile,))
    layers = [Dense(9, "gelu"), Dense(4, "relu"), Dense(6, "tanh"), Dense(3, trainable=False), Dense(5), Dense(3)]
    for n_in, batch in ((3, 13), (9, 13)):
        models = twins(layers, n_in, LOSS, "float64", "adam", metrics=("accuracy",))
        x, y = batch_of(models[0], batch)
        assert_fused_steps(models, [(x, y)])
        for model in models:
            model.fit(x, y, batch_size=7, verbose=0)
        assert_same_standing(*models)
        assert_near(models[1].predict_proba(x), models[0].predict_proba(x))


@pytest.mark.skipif(not kernels.SIMULATED, reason="watches the simulator's memory")
def test_a_missing_barrier_is_seen(monkeypatch):
    """The watch that the test before relies on."""
    watched_memory.watch(monkeypatch)

    @cuda.jit
    def hand_on(y, waits):
        shared = cuda.shared.array(4, np.float64)
        shared[cuda.threadIdx.x] = cuda.threadIdx.x
        if waits:
            cuda.syncthreads()
        y[cuda.threadIdx.x] = shared[(cuda.threadIdx.x + 1) % 4]

    y = cuda.to_device(np.zeros(4))
    hand_on[1, 4](y, True)
    np.testing.assert_array_equal(y.copy_to_host(), [1, 2, 3, 0])
    with pytest.raises(AssertionError, match="of shared memory, which"):
        hand_on[1, 4](y, False)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_frozen_layers_and_layers_without_bias(frozen):
    layers = [
        Dense(width, "tanh", trainable=number not in frozen, use_bias=number != 1)
        for number, width in enumerate((6, 4, 3))
    ]
    models = twins(layers, 5, LOSS, optimizer="adam")
    assert_fused_steps(models, [batch_of(models[0], n, n) for n in (3, 5)])


def test_formulas_of_the_users_own():
    """Also such as are not finite at 0, which is what a tile holds where the batch has no row."""
    swish = nbbp.activation(lambda z: z / (1 + np.exp(-1.5 * z)), name="swish_fused")
    steep = nbbp.activation(lambda z: np.log(z * z), name="log_of_squares")
    smooth = nbbp.loss(lambda p, t: np.sqrt((p - t) ** 2 + 1) - 1, name="charbonnier_fused")
    models = twins([Dense(7, swish), Activation("linear"), Dense(5, steep, use_bias=False), Dense(3)], 5, smooth)
    x, y = batch_of(models[0], 5)
    assert_fused_steps(models, [(x, y), (x[:3], y[:3])])
    assert_near(models[1].predict(x), models[0].predict(x))


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fit_with_everything(dtype, batch_size):
    """Shuffles, a short last batch, weights, a schedule, metrics and validation: the same history."""
    metrics = ("accuracy", TopKAccuracy(k=2))
    models = twins(LAYERS, 5, LOSS, dtype, optimizers.Adam(nbbp.schedules.Cosine(0.02, steps=20)), metrics=metrics)
    X, y = batch_of(models[0], 14)
    settings = {"epochs": 2, "batch_size": batch_size, "sample_weight": np.linspace(0.5, 2.0, 14), "verbose": 0}
    histories = [model.fit(X, y, validation_data=(X[:7], y[:7]), **settings) for model in models]
    for name in histories[0]:
        assert_near(histories[1][name], histories[0][name], dtype, name=name)
    assert_same_standing(*models)
    models[1]._session.begin_fit()
    launches = names_of(models[1]._session.training(batch_size, True, True).launches)
    assert launches == ["fused_gradient", "metric", "metric", "update_by_parts"]


@pytest.mark.parametrize("last", ["softmax", "log_softmax", "sigmoid"])
def test_predictions_are_one_launch(last):
    """All steps of a run, and a softmax at the end of it; evaluation is a launch for all layers."""
    loss = losses.BinaryCrossentropy() if last == "sigmoid" else losses.NLL() if last == "log_softmax" else LOSS
    models = twins([*LAYERS[:2], Dense(3, last)], 5, loss)
    x, y = batch_of(models[0], 23)
    models[1]._session.forward_batch = 8
    bound = models[1]._session.bind(models[1]._session.prediction(8))
    assert (bound._whole_run.name, bound.launches) == ("fused_forward", [])
    assert_near(models[1].predict(x), models[0].predict(x))
    assert_near(models[1].predict(3e4 * x), models[0].predict(3e4 * x))
    assert models[1].evaluate(x, y) == pytest.approx(models[0].evaluate(x, y), rel=1e-10)
    (bound,) = (bound for key, bound in models[1]._session._bound.items() if key[0] == "evaluate")
    first, *others = names_of(bound.launches)
    assert first == "fused_forward"
    assert set(others) <= {"loss", "crossentropy", "losses_are_finite", "next_step"}


def test_rows_do_not_see_each_other():
    """A row that is infinite leaves those of the same tile, and of the next, as they are."""
    model = twins(LAYERS, 6, LOSS, "float32")[1]
    x, _ = batch_of(model, 12)
    expected = model.predict(x)
    bound = model._session.bind(model._session.prediction(4))
    bad, out = x.copy(), np.empty((12, 3), np.float32)
    bad[[1, 6]] = np.inf
    for name, array in (("X", bad), ("order", None), ("output", out)):
        bound.attach(name, array)
    bound.run(12)
    fine = np.delete(np.arange(12), [1, 6])
    np.testing.assert_array_equal(out[fine], expected[fine])
    assert not np.isfinite(out[[1, 6]]).any()


def test_the_same_seed_gives_the_same_bits():
    def trained():
        model = twins(LAYERS, 5, LOSS, "float32", "adam")[1]
        model.fit(*batch_of(model, 40), epochs=2, batch_size=17, verbose=0)
        return model.parameter_vector.tobytes()

    assert trained() == trained()


def test_a_loss_that_is_not_finite_updates_nothing():
    models = twins([Dense(4, "tanh"), Dense(3)], 5, losses.MSE(), "float64", "adam")
    x, y = batch_of(models[0], 9)
    before = np.array(models[1].parameter_vector)
    bad = y.copy()
    bad[6] *= 1e200  # in one tile of one block
    assert models[1].train_step(x, bad) == np.inf
    np.testing.assert_array_equal(models[1].parameter_vector, before)
    models[0].train_step(x, bad)
    assert_fused_steps(models, [(x, y)])


def test_a_run_that_diverges_gets_its_last_good_parameters_back():
    models = twins([Dense(4), Dense(3)], 5, losses.MSE(), "float64", optimizers.SGD(1e30))
    X, y = batch_of(models[0], 12)
    for model in models:
        with pytest.raises(nbbp.TrainingDiverged):
            model.fit(X, y, epochs=9, batch_size=4, verbose=0)
    assert_same_standing(*models)


# which programs ------------------------------------------------------------------------------------------------------

OTHERS = {
    "dropout": ([Dense(4), Dropout(0.5), Dense(3)], {}),
    "residual": ([Dense(4), Residual([Dense(4)]), Dense(3)], {}),
    "softmax within": ([Dense(4, "softmax"), Dense(3)], {}),
    "three activations": ([Dense(4, "tanh"), Dense(4, "gelu"), Dense(4, "silu"), Dense(3)], {}),
    "clipping": ([Dense(3)], {"clip_norm": 1.0}),
    "sums": ([Dense(3)], {"accumulation_steps": 2}),
    "three groups": (LAYERS, {"groups": {"0.*": {"learning_rate": 0.3}, "1.*": {"learning_rate": 0.2}}}),
    "a wide layer": ([Dense(fused_programs.WIDEST + 1), Dense(3)], {}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_programs_run_op_by_op(case):
    layers, settings = OTHERS[case]
    models = twins(layers, 5, LOSS, optimizer=optimizers.SGD(0.1, **settings))
    x, y = batch_of(models[0], 3)
    assert "fused_gradient" not in names_of(bound_of(models[1], 3).launches)
    if case != "a wide layer":
        assert_same_steps(*models, [(x, y)])
    if case in ("dropout", "clipping", "sums", "three groups"):  # which go forward like others, but for the first
        assert_near(models[1].predict(x), models[0].predict(x))


def test_outputs_of_layers_stay_where_somebody_reads_them():
    model = twins(LAYERS, 6, LOSS)[1]
    bound = model._session.bind(model._session.prediction(1, keeps_outputs=True))
    assert "fused_forward" not in names_of(bound.launches)


H200 = (132, 227 << 10, 228 << 10)
TILES_OF_GPUS = tuple(
    fused_tile.Tile(*sizes) for sizes in ((8, 64, 64, 1, 4), (16, 64, 32, 2, 4), (32, 64, 32, 4, 4), (64, 64, 32, 4, 8))
)


def chosen(monkeypatch, sizes, batch, device=H200, allows=lambda n_bytes: True):
    """Rows of the tile that a step of relus takes on a GPU, and blocks; None where it does not pay."""
    monkeypatch.setattr(fused_programs, "_device", lambda: device)
    monkeypatch.setattr(fused_tile, "TILES", TILES_OF_GPUS)
    monkeypatch.setattr(fused_tile, "X_UNITS", 64)
    monkeypatch.setattr(kernels, "allow_shared", lambda name, dtype, variant, n_bytes: allows(n_bytes))
    model = nbbp.Model(
        nbbp.Sequential([Dense(n, "relu") for n in sizes[1:-1]] + [Dense(sizes[-1])], n_in=sizes[0]), LOSS, "adam"
    )
    program = nbbp.programs.training_program(
        model.network, LOSS, model.optimizer, (), batch, True, True, plan=nbbp.tiling.WHOLE
    )
    settings = np.array(program.settings, np.float32)
    found = fused_programs.training_chain(program, settings)
    if not fused_programs._is_narrow(found):
        return None
    _, n_units = fused_programs._step_layout(found)
    n_parameters = model.network.n_parameters
    tile = fused_programs._tile_for(
        SimpleNamespace(dtype=np.dtype("float32")), "fused_gradient", (0, 0, 0), n_units, batch,
        lambda tile: fused_programs._pays(found, batch, n_parameters, tile),
    )  # fmt: skip
    if tile is None:
        return None
    n_bytes = fused_programs._bytes(tile, n_units, np.dtype("float32"))
    assert n_bytes <= device[1]
    return tile.height, fused_programs._blocks(tile, n_bytes, batch)


def test_tiles_suit_the_batch_and_the_gpu(monkeypatch):
    """As the table in nbbp/cuda/fused_programs.py has it."""
    sizes = (64, 64, 64, 64, 10)
    assert chosen(monkeypatch, sizes, 1 << 10) == (8, 128)
    assert chosen(monkeypatch, sizes, 1 << 14) == (64, 256)
    assert chosen(monkeypatch, sizes, 1 << 18) == (64, 264)
    assert chosen(monkeypatch, sizes, 1 << 18, (132, 48 << 10, 228 << 10)) == (32, 264)
    assert chosen(monkeypatch, (128, 128, 128, 128), 1 << 16) == (64, 132)  # two blocks' activations are too many
    assert chosen(monkeypatch, (256, 256, 256, 256), 1 << 16) is None
    assert chosen(monkeypatch, (784, 256, 10), 64) is None
    assert chosen(monkeypatch, (784, 256, 10), 4096) is None
    assert chosen(monkeypatch, (256, 256, 10), 64) is None
    assert chosen(monkeypatch, (256, 257, 10), 4096) is None
    assert chosen(monkeypatch, (256, *[256] * 20, 10), 1 << 16) is None  # no tile's activations fit


def test_gpus_that_refuse_more_shared_memory_get_smaller_tiles(monkeypatch):
    asked = []
    assert chosen(monkeypatch, (64, 64, 64, 64, 10), 1 << 18, allows=asked.append) == (32, 264)
    assert asked == [4 * (276 * 68 + 32 * 68)]


def test_parts_are_added_in_their_order():
    """The second launch alone: parts of blocks that had rows, frozen parameters, and the clock."""
    rng = np.random.default_rng(0)
    n, n_blocks, rows, batch = 11, 5, 4, 14  # the last block has no tile
    parts = rng.standard_normal((n_blocks, 16)).astype(np.float32)
    parts[4] = np.nan
    w = rng.standard_normal(n).astype(np.float32)
    groups = np.zeros(n, np.int64)
    groups[3] = -1
    coefficients = np.zeros((2, 11))
    coefficients[1, 2:4] = 1.0, 0.5
    empty = cuda.device_array(0, np.float32)
    clock, device_w = cuda.to_device(np.array([batch + 14, 1, 0])), cuda.to_device(w)
    update = kernels.configured(
        kernels.compiled("update_by_parts", np.float32, 0), (3,), (fused_update.COLUMNS, fused_update.LANES), 0
    )
    notes = cuda.to_device(np.array([1, 0, 0, 0, 0, 1]))
    update(
        clock, notes, batch, rows, n_blocks, cuda.to_device(parts.ravel()), 16, cuda.to_device(groups), n, device_w,
        empty, empty, empty, cuda.to_device(coefficients.ravel()), cuda.device_array(0, np.float64), empty,
    )  # fmt: skip
    expected = w - np.float32(0.5) * parts[:4, :n].sum(axis=0)
    expected[3] = w[3]
    assert_near(device_w.copy_to_host(), expected, "float32")
    np.testing.assert_array_equal(clock.copy_to_host(), [batch + 14, 2, 0])
