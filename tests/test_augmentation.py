"""`fit(…, augment=…)`: trains on what the oracle makes of the data, to the same bits however a run is cut."""

import itertools
import tracemalloc

import numpy as np
import pytest
import reference_augmentation as reference
from engine_cases import (
    ALL_LOSSES,
    DTYPES,
    assert_all_near,
    assert_near,
    copies,
    features_for,
    label,
    model_of,
    oracle_steps,
    targets_for,
)

import nbbp
from nbbp import Dense, losses, metrics, tiling
from nbbp.augmentation import Custom, Mixup, Noise, Shift, integer, normal, uniform
from nbbp.cpu import engine

SEED = 5
#: Changes nothing.
STANDING = nbbp.SGD(1.0, groups={"*": {"learning_rate": 0.0}})


def spotted(row, key):
    """Scaled, and one number changed."""
    scale = 1.0 + 0.25 * uniform(key, 0)
    for j in range(row.size):
        row[j] *= scale
    row[integer(key, 0, row.size)] += 0.5 * normal(key, 0)


SPOTTED = Custom(spotted)


def augments(n_in):
    """By name, for samples of n_in numbers, which are even."""
    shape = (n_in // 2, 2)
    return {
        "shift": (Shift(shape, 1, fill=0.5),),
        "noise": (Noise(0.3),),
        "mixup": (Mixup(0.4),),
        "custom": (SPOTTED,),
        "everything": (Shift(shape, (1, 0)), Noise(0.1), SPOTTED, Mixup(1.0), Noise(0.2), Shift(n_in, 2)),
    }


NAMES = tuple(augments(6))
#: Hidden widths, features, samples, batch: one tile; blocks of rows; layer by layer. Each with a short last batch.
PLANS = {
    tiling.ALONE: ((7, 4), 6, 43, 17),
    tiling.PARTIAL: ((128, 100), 32, 440, 300),
    tiling.WIDE: ((512,), 128, 57, 40),
}


def plan_model(plan, dtype="float64", loss="crossentropy", optimizer=None, **settings):
    widths, n_in, *_ = PLANS[plan]
    layers = [*(Dense(width, "tanh") for width in widths), Dense(3)]
    return model_of(layers, n_in, loss, dtype, optimizer or nbbp.SGD(0.1), SEED, **settings)


def plan_data(plan, dtype="float64"):
    _, n_in, n, batch = PLANS[plan]
    X, y = features_for(n, n_in, dtype), targets_for(losses.Crossentropy(), n, 3)
    return X, y, np.random.default_rng(0).uniform(0.5, 1.5, n), batch


def rows_of(y, n_out=3):
    return np.eye(n_out)[y] if y.ndim == 1 else y


@pytest.fixture
def threads(monkeypatch):
    """Lets steps be shared by any number of threads, however short they are."""
    monkeypatch.setattr("nbbp.tiling._SHARED_WORK", 0)
    return lambda n: monkeypatch.setattr(engine, "_n_threads", n)


# --- the oracle -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", PLANS)
def test_fit_trains_on_what_the_oracle_makes(plan, name, dtype, threads):
    """Augmented by NumPy, batch by batch, and trained on by the oracle; the caller's data stay as they are."""
    threads(2)
    model = plan_model(plan, dtype)
    shapes = [(node.n_in, node.n_out) for node in model.network.nodes]
    X, y, weight, batch = plan_data(plan, dtype)
    assert tiling.plan(shapes, batch) == plan
    given = augments(X.shape[1])[name]
    batches = list(reference.batches(given, X, rows_of(y), weight, batch, 2, SEED))
    expected = oracle_steps(model, batches)
    before = X.copy(), y.copy()
    model.fit(X, y, sample_weight=weight, batch_size=batch, epochs=2, augment=given, verbose=0)
    assert_all_near(model.parameters, expected, dtype)
    for array, start in zip((X, y), before, strict=True):
        np.testing.assert_array_equal(array, start)


@pytest.mark.parametrize("loss", [loss for loss in ALL_LOSSES if loss.name != "hinge"], ids=label)
def test_the_report_is_of_what_was_trained_on(loss):
    """Loss and metrics of an epoch that changes nothing: as evaluated on the oracle's samples and mixed targets."""
    measured = [metrics.MeanAbsoluteError(), metrics.MeanSquaredError(), metrics.BinaryAccuracy()]
    if loss.row_wise:
        measured = [metrics.Accuracy(), metrics.TopKAccuracy(2), *measured[:2]]
    X = features_for(43, 6)
    for y in (targets_for(loss, 43, 3, kind=kind) for kind in ("hard", "soft")):
        model = model_of([Dense(5, "tanh"), Dense(3, "log_softmax")], 6, loss, "float64", STANDING, SEED,
                         metrics=measured)  # fmt: skip
        given = (Noise(0.2), Mixup(0.7))
        weight = np.random.default_rng(1).uniform(0.5, 1.5, 43)
        batches = reference.batches(given, X, rows_of(y), weight, 17, 1, SEED)
        x, target, mixed_weight = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        expected = model.evaluate(x, target, sample_weight=mixed_weight)
        report = model.fit(X, y, sample_weight=weight, batch_size=17, augment=given, verbose=0)
        assert {key: report[key][0] for key in expected} == pytest.approx(expected, rel=1e-10)
        if loss.row_wise:
            assert 0.0 < expected["accuracy"] < 1.0


def test_accuracy_of_a_mixture_is_of_the_class_with_the_larger_share():
    """A network that gives back its one-hot inputs is right about every mixture."""
    labels = np.arange(40) % 3
    model = nbbp.Model(nbbp.Sequential([Dense(3)], n_in=3), "crossentropy", STANDING, ("accuracy",))
    model.parameters["0.weight"][:] = np.eye(3)
    history = model.fit(np.eye(3)[labels], labels, augment=Mixup(1.0), verbose=0)
    assert history["accuracy"] == [1.0]


def test_mixup_of_a_single_sample_is_that_sample():
    X, y = features_for(5, 4), targets_for(losses.Crossentropy(), 5, 3)
    plain, mixed = (model_of([Dense(3)], 4, "crossentropy") for _ in range(2))
    plain.fit(X, rows_of(y), batch_size=1, verbose=0)
    mixed.fit(X, y, batch_size=1, augment=Mixup(0.5), verbose=0)
    assert_near(mixed.parameter_vector, plain.parameter_vector, tolerance=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixup_is_that_of_pytorch(dtype):
    """One step: the gradient of share · loss of one label + (1 - share) · loss of the other, as its authors have it."""
    torch = pytest.importorskip("torch")
    X, y = features_for(16, 6, dtype), targets_for(losses.Crossentropy(), 16, 3)
    model = model_of([Dense(7, "tanh"), Dense(3)], 6, "crossentropy", dtype, nbbp.SGD(0.5), SEED)
    before = copies(model.parameters)
    parameters = {name: torch.tensor(values, requires_grad=True) for name, values in before.items()}
    share = torch.tensor(reference.shares(0.6, np.arange(16), 0, 0, SEED))
    other = reference.partners(16, 0, 0, SEED)
    x, labels = torch.tensor(X, dtype=torch.float64), torch.tensor(y)
    mixed = share[:, None] * x + (1.0 - share[:, None]) * x[other]
    hidden = torch.tanh(mixed @ parameters["0.weight"] + parameters["0.bias"])
    logits = hidden @ parameters["1.weight"] + parameters["1.bias"]
    one, two = (torch.nn.functional.cross_entropy(logits, of, reduction="none") for of in (labels, labels[other]))
    loss = (share * one + (1.0 - share) * two).mean()
    loss.backward()
    history = model.fit(X, y, batch_size=16, shuffle=False, augment=Mixup(0.6), verbose=0)
    assert history["loss"][0] == pytest.approx(loss.item(), rel=1e-5 if dtype == "float32" else 1e-10)
    expected = {name: before[name] - 0.5 * parameters[name].grad.numpy() for name in before}
    assert_all_near(model.parameters, expected, dtype)


# --- the same bits --------------------------------------------------------------------------------------------------


def trained(model, data, batch, **settings):
    """Everything that a run leaves, as bytes."""
    history = model.fit(*data, **{"batch_size": batch, "epochs": 3, "verbose": 0} | settings)
    return model.parameter_vector.tobytes(), dict(history)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plan", PLANS)
def test_threads_and_chunks_change_no_bit(plan, dtype, threads, monkeypatch):
    X, y, _, batch = plan_data(plan, dtype)
    given = augments(X.shape[1])["everything"]
    expected = trained(plan_model(plan, dtype, optimizer="adam"), (X, y), batch, augment=given)
    for n_threads, rows in itertools.product((1, 2, 3), (1 << 16, batch)):
        threads(n_threads)
        monkeypatch.setattr("nbbp.training.CHUNK_ROWS", rows)
        assert trained(plan_model(plan, dtype, optimizer="adam"), (X, y), batch, augment=given) == expected
    assert trained(plan_model(plan, dtype, optimizer="adam"), (X, y), batch)[0] != expected[0]


def test_sources_change_no_bit(tmp_path):
    """Arrays, files, iterables; one-hot rows for labels; images where the network flattens them."""
    X, y, _, batch = plan_data(tiling.ALONE, "float32")
    given = augments(6)["everything"]
    settings = {"augment": given, "shuffle": False}
    expected = trained(plan_model(tiling.ALONE, "float32"), (X, y), batch, **settings)
    on_disk = np.memmap(tmp_path / "X", np.float32, "w+", shape=X.shape)
    on_disk[:] = X
    sources = [(on_disk, y), ([(X[k : k + batch], y[k : k + batch]) for k in range(0, len(X), batch)],)]
    for data in (*sources, (X.astype(np.float64).tolist(), y.tolist()), (X, rows_of(y))):
        assert trained(plan_model(tiling.ALONE, "float32"), data, batch, **settings) == expected
    layers = [nbbp.Flatten(), Dense(7, "tanh"), Dense(4, "tanh"), Dense(3)]
    of_images = model_of(layers, 6, "crossentropy", "float32", nbbp.SGD(0.1), SEED)
    assert trained(of_images, (X.reshape(-1, 3, 2), y), batch, **settings) == expected


@pytest.mark.parametrize("plan", PLANS)
def test_checkpointing_changes_no_bit(plan):
    X, y, _, batch = plan_data(plan, "float32")
    given = augments(X.shape[1])["everything"]
    found = []
    for every in (None, 1):
        layers = [Dense(width, "tanh") for width in PLANS[plan][0]] + [nbbp.Dropout(0.2), Dense(3)]
        network = nbbp.Sequential(layers, n_in=X.shape[1], checkpoint_every=every)
        found.append(trained(nbbp.Model(network, "crossentropy"), (X, y), batch, augment=given))
    assert found[0] == found[1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("plan", PLANS)
def test_mixed_precision_rounds_what_augmentation_gives(plan, precision, threads):
    """The bits of steps on the augmented samples themselves, for shifts, which NumPy does exactly; and it runs on."""
    threads(2)
    X, y, _, batch = plan_data(plan, "float32")
    given = augments(X.shape[1])
    fitted, stepped, everything = (plan_model(plan, "float32", precision=precision) for _ in range(3))
    fitted.fit(X, y, batch_size=batch, augment=given["shift"], verbose=0)
    for x, target, _ in reference.batches(given["shift"], X, y, np.ones(len(X)), batch, 1, SEED):
        stepped.train_step(x.astype(np.float32), target.astype(np.int64))
    np.testing.assert_array_equal(fitted.parameter_vector, stepped.parameter_vector)
    history = everything.fit(X, y, batch_size=batch, epochs=2, augment=given["everything"], verbose=0)
    in_float32 = plan_model(plan, "float32")
    exact = in_float32.fit(X, y, batch_size=batch, epochs=2, augment=given["everything"], verbose=0)
    np.testing.assert_allclose(history["loss"], exact["loss"], rtol=0.02)


def test_a_resumed_run_draws_the_same_numbers(tmp_path):
    X, y, _, batch = plan_data(tiling.ALONE, "float32")
    settings = {"batch_size": batch, "augment": augments(6)["everything"], "verbose": 0}
    whole, stopped, going_on = (plan_model(tiling.ALONE, "float32", optimizer="adam") for _ in range(3))
    expected = whole.fit(X, y, epochs=5, **settings)
    stopped.fit(X, y, epochs=2, **settings)
    stopped.save(tmp_path / "run")
    history = going_on.fit(X, y, epochs=5, resume_from=tmp_path / "run", **settings)
    assert dict(history) == dict(expected)
    np.testing.assert_array_equal(going_on.parameter_vector, whole.parameter_vector)


# --- what it leaves alone -------------------------------------------------------------------------------------------


def test_only_training_is_augmented():
    """Validation, evaluation, prediction and single steps see the samples as they are, in a run and after it."""
    X, y, _, batch = plan_data(tiling.ALONE)
    model = plan_model(tiling.ALONE, optimizer=STANDING, metrics=("accuracy",))
    expected, predicted = model.evaluate(X, y), model.predict(X)
    loss, gradients = model.loss_and_gradients(X, y)
    given = augments(6)["everything"]
    history = model.fit(X, y, batch_size=batch, epochs=2, validation_data=(X, y), augment=given, verbose=0)
    assert {key: history[f"val_{key}"] for key in expected} == {key: [value] * 2 for key, value in expected.items()}
    assert history["loss"][0] != history["loss"][1] != expected["loss"]
    assert model.evaluate(X, y) == expected
    np.testing.assert_array_equal(model.predict(X), predicted)
    assert model.loss_and_gradients(X, y)[0] == loss == model.train_step(X, y)
    assert_all_near(model.loss_and_gradients(X, y)[1], copies(gradients), tolerance=0.0)
    assert model.fit(X, y, batch_size=batch, verbose=0)["loss"][0] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("plan", PLANS)
def test_without_augmentation_the_program_is_as_it_was(plan):
    """One op more for each of them, before the first layer; a phase more for mixup, which has four."""
    batch = PLANS[plan][3]
    session = plan_model(plan)._session
    plain = session.training(batch, True, True).program
    kernels = [op.kernel for op in plain.ops]
    assert kernels[0] == "gather"
    given = augments(PLANS[plan][1])["everything"]
    program = session.training(batch, True, True, given).program
    of_mixup = ["mixup_shares", "mixup_rows", "mixup_targets", "mixup_weights"]
    before = ["gather", "shift", "gaussian_noise_forward", "augment_row", *of_mixup]
    assert [op.kernel for op in program.ops] == [*before, "gaussian_noise_forward", "shift", *kernels[1:]]
    more = 0 if plan == tiling.ALONE else 1
    assert len(program.phases) == len(plain.phases) + more
    assert session.training(batch, True, True, ()).program is plain


def test_a_run_allocates_nothing_of_the_size_of_its_data():
    """Beside the order of the samples, their losses and their places in the batch."""
    X, y = features_for(20_000, 256, "float32"), targets_for(losses.Crossentropy(), 20_000, 3)
    model = model_of([Dense(8, "relu"), Dense(3)], 256, "crossentropy", "float32")
    settings = {"augment": augments(256)["everything"], "verbose": 0}
    model.fit(X, y, **settings)
    tracemalloc.start()
    try:
        model.fit(X, y, epochs=2, **settings)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < X.nbytes // 16


# --- what it is for -------------------------------------------------------------------------------------------------


def test_digits_that_are_not_centred():
    """Trained on centred digits, tested on digits moved by a pixel: half of the errors are gone at least."""
    X, y = nbbp.datasets.load_digits()
    images, random = X[1000:].reshape(-1, 8, 8, 1), np.random.default_rng(0)
    moved = [reference.moved(image, *random.integers(-1, 2, 2), 0.0).ravel() for image in images]
    found = []
    for given in (None, Shift((8, 8), 1)):
        model = nbbp.Model(nbbp.Sequential([Dense(128, "relu"), Dense(10)]), "crossentropy", metrics=("accuracy",))
        model.fit(X[:1000], y[:1000], epochs=60, batch_size=32, augment=given, verbose=0)
        found.append(1.0 - model.evaluate(np.array(moved), y[1000:])["accuracy"])
    assert found[1] < found[0] / 2
