"""Schedules in training: fit and train_step against the float64 oracle, epochs, plateaus, copies."""

import copy
import pickle

import numpy as np
import pytest
import reference
import reference_optimizers
from engine_cases import DTYPES, assert_all_near, copies, features_for, label, replaced, small_model

from nbbp import losses, optimizers, training
from nbbp.optimizers import SGD, Adafactor, AdaGrad, Adam, AdamW, NAdam, RAdam
from nbbp.schedules import Cosine, Exponential, MultiStep, OneCycle, Plateau, ReduceOnPlateau, Step, WarmUp

LOSS = losses.Crossentropy()
BATCH, N_BATCHES = 8, 4


def data_for(dtype="float64", n=BATCH * N_BATCHES, seed=0):
    """X and y such that train_step need not convert them."""
    labels = np.random.default_rng(seed).integers(0, 3, n)
    return features_for(n, 5, dtype, seed), labels


def in_batches(X, y, batch=BATCH):
    return [(X[start : start + batch], y[start : start + batch]) for start in range(0, len(X), batch)]


def at_rate(optimizer, count):
    """The optimizer with the rates of this count as plain numbers, those of its groups too."""
    schedule, groups = optimizer.learning_rate, copy.deepcopy(optimizer.groups)
    for overrides in groups.values():
        if overrides.get("learning_rate", 0.0) > 0.0:
            overrides["learning_rate"] = float(schedule.rates(count, overrides["learning_rate"]))
    return replaced(optimizer, learning_rate=float(schedule.rates(count)), groups=groups, accumulation_steps=1)


def by_oracle(model, updates, counts):
    """The parameters after an update on each list of batches, from the model's, with the rate of each count."""
    parameters, state = copies(model.parameters), {}
    for batches, count in zip(updates, counts, strict=True):
        parts = [reference.loss_and_gradients(model.network, parameters, x, y, LOSS)[1] for x, y in batches]
        gradients = reference_optimizers.mean_gradient(parts, [len(y) for _, y in batches], "mean")
        optimizer = at_rate(model.optimizer, count)
        parameters = reference_optimizers.step(optimizer, parameters, gradients, state, model.dtype.name)
    return parameters


GROUPS = {"*.bias": {"learning_rate": 0.05}, "1.weight": {"learning_rate": 0.0}, "2.*": {"weight_decay": 0.1}}


#: One whose step is the rate times something, and all whose coefficients mix the rate with the count of steps.
OPTIMIZERS = [
    SGD(0.1, momentum=0.9, nesterov=True),
    AdaGrad(0.1, learning_rate_decay=0.1),
    AdamW(0.01),
    NAdam(),
    RAdam(0.01),
    Adafactor(0.1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=label)
def test_fit_and_train_step_take_the_rates_of_the_schedule(optimizer, dtype, monkeypatch):
    monkeypatch.setattr(training, "CHUNK_ROWS", 2 * BATCH)
    schedule = WarmUp(Cosine(optimizer.learning_rate, steps=5, end=1e-3), steps=4, start=0.1)
    model = small_model("tanh", LOSS, dtype, replaced(optimizer, learning_rate=schedule, groups=GROUPS))
    X, y = data_for(dtype)
    batches = in_batches(X, y)
    expected = by_oracle(model, [[batch] for batch in (batches * 3)[:-1]], range(11))
    history = model.fit(X, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    for batch in batches[:-1]:
        model.train_step(*batch)
    assert_all_near(model.parameters, expected, dtype)
    np.testing.assert_allclose(history["learning_rate"], schedule.rates([3, 7]))


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), AdamW(0.01, weight_decay=0.1)], ids=label)
def test_epochs_count_where_the_unit_says_so(optimizer, monkeypatch):
    monkeypatch.setattr(training, "CHUNK_ROWS", 2 * BATCH)
    schedule = Exponential(optimizer.learning_rate, factor=0.5, unit="epoch")
    model = small_model("tanh", LOSS, "float64", replaced(optimizer, learning_rate=schedule, groups=GROUPS))
    X, y = data_for()
    batches = in_batches(X, y)
    plan = [("step", 0), ("fit", 0), ("fit", 1), ("step", 2), ("step", 2), ("fit", 2), ("step", 3)]
    updates = [[batch] for kind, _ in plan for batch in (batches if kind == "fit" else batches[:1])]
    counts = [count for kind, count in plan for _ in range(N_BATCHES if kind == "fit" else 1)]
    expected = by_oracle(model, updates, counts)
    recorded = []
    for kind, _ in plan:
        if kind == "fit":
            recorded += model.fit(X, y, batch_size=BATCH, shuffle=False, verbose=0)["learning_rate"]
        else:
            model.train_step(*batches[0])
            assert model._session.steps_ahead > 0  # the quick path, whose coefficients lie ready
    assert_all_near(model.parameters, expected)
    np.testing.assert_allclose(recorded, schedule.rates([0, 1, 2]))


@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.parametrize("monitor", ["auto", "accuracy"])
def test_plateau_watches_the_history(validates, monitor):
    settings = {"monitor": monitor, "mode": "min" if monitor == "auto" else "max"}
    schedule = ReduceOnPlateau(0.5, patience=0, factor=0.5, threshold=0.05, **settings)
    model = small_model("tanh", LOSS, "float64", SGD(schedule), metrics=("accuracy",))
    X, y = data_for()
    held_out = data_for(seed=9) if validates else None
    start = copy.deepcopy(model)
    histories = [
        model.fit(X, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, validation_data=held_out)
        for epochs in (5, 3)
    ]
    watched = ("val_loss" if validates else "loss") if monitor == "auto" else monitor
    state, reductions = Plateau(), []
    for value in [value for history in histories for value in history[watched]]:
        reductions.append(state.reductions)
        state = schedule.observe(state, value)
    assert 0 < reductions[-1] < len(reductions) - 1
    rates = [rate for history in histories for rate in history["learning_rate"]]
    np.testing.assert_allclose(rates, schedule.rates(reductions))
    expected = by_oracle(start, [[b] for b in in_batches(X, y) * 8], np.repeat(reductions, N_BATCHES))
    assert_all_near(model.parameters, expected)


def test_plateau_refuses_to_watch_what_fit_does_not_report():
    X, y = data_for()
    for monitor in ("val_loss", "accuracy"):
        model = small_model("tanh", LOSS, "float64", SGD(ReduceOnPlateau(0.5, monitor=monitor)))
        before = copies(model.parameters)
        with pytest.raises(
            ValueError, match=f"monitors '{monitor}', which this fit does not report; there are: loss, learning_rate$"
        ):
            model.fit(X, y, verbose=0)
        assert_all_near(model.parameters, before, tolerance=0.0)


@pytest.mark.parametrize("by_fit", [True, False])
def test_accumulated_batches_count_once(by_fit):
    schedule = Exponential(0.1, factor=0.5)
    model = small_model("tanh", LOSS, "float64", Adam(schedule, accumulation_steps=3))
    X, y = data_for()
    batches = in_batches(X, y) * 3
    expected = by_oracle(model, [batches[start : start + 3] for start in range(0, 12, 3)], range(4))
    if by_fit:
        history = model.fit(X, y, batch_size=BATCH, epochs=3, shuffle=False, verbose=0)
        np.testing.assert_allclose(history["learning_rate"], schedule.rates([1, 2, 3]))
    else:
        for batch in batches:
            model.train_step(*batch)
    assert_all_near(model.parameters, expected)


@pytest.mark.parametrize(
    "schedule",
    [
        OneCycle(0.05, steps=40),
        MultiStep(0.05, milestones=(1, 3), unit="epoch"),
        ReduceOnPlateau(0.05, patience=0, threshold=0.5, factor=0.5),
    ],
)
def test_copies_go_on_to_the_same_bits(schedule):
    X, y = data_for("float32")
    model = small_model("tanh", LOSS, "float32", Adam(schedule))
    model.fit(X, y, batch_size=BATCH, epochs=2, verbose=0)
    twins = [model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    histories = [twin.fit(X, y, batch_size=BATCH, epochs=3, verbose=0) for twin in twins]
    for twin, history in zip(twins[1:], histories[1:], strict=True):
        twin_steps = [m.train_step(X[:BATCH], y[:BATCH]) for m in (copy.deepcopy(model), twin)]
        assert twin_steps[0] == twin_steps[1]
        assert history["learning_rate"] == histories[0]["learning_rate"]
    assert len(set(histories[0]["learning_rate"])) > 1


def test_an_epoch_that_breaks_off_is_not_over():
    schedule = Exponential(0.1, factor=0.5, unit="epoch")
    model = small_model("tanh", LOSS, "float64", SGD(schedule))
    batches = in_batches(*data_for())

    def broken():
        yield from batches[:2]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        model.fit(broken, verbose=0)
    assert model.fit(batches, epochs=2, verbose=0)["learning_rate"] == [0.1, 0.05]


@pytest.mark.parametrize("name", ["sgd", "nadam", "adafactor"])
def test_rates_that_would_overflow_later_do_not_matter_now(name):
    model = small_model("tanh", LOSS, "float32", optimizers.BY_NAME[name](Exponential(1e-3, factor=8.0)))
    X, y = data_for("float32")
    plain = small_model("tanh", LOSS, "float32", optimizers.BY_NAME[name](1e-3))
    assert model.train_step(X, y) == plain.train_step(X, y)
    np.testing.assert_array_equal(model.parameter_vector, plain.parameter_vector)


def test_the_sample_engine_refuses_to_train_and_does_the_rest():
    model = small_model("tanh", LOSS, "float64", SGD(Step(0.1, every=2)))
    twin = copy.deepcopy(model)
    functions = model.as_njit()
    with pytest.raises(ValueError, match=r"train_step of as_njit has one learning rate; .* follows a schedule, Step"):
        _ = functions.train_step
    X, y = data_for()
    out = np.empty(3)
    functions.predict(model.parameter_vector, X[0], out)
    np.testing.assert_allclose(out, model.predict(X[:1])[0], rtol=1e-12)
    gradient = np.empty_like(model.parameter_vector)
    loss = functions.loss_and_gradient(model.parameter_vector, X[0], y[0], gradient)
    assert loss == pytest.approx(model.loss_and_gradients(X[:1], y[:1])[0])
    expected = by_oracle(model, [[batch] for batch in in_batches(X, y, 1)[:5]], range(5))
    model.partial_fit(X[:5], y[:5])
    assert_all_near(model.parameters, expected)
    for row in range(5):
        twin.partial_fit(X[row], int(y[row]))
    assert_all_near(twin.parameters, expected)
