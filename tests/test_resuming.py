"""`fit(…, resume_from=path)`: the bits of a run that was never stopped, and files with which a model cannot go on."""

import json
import math

import numpy as np
import pytest
from callback_cases import Diary
from formula_cases import quartic
from safetensors.numpy import load

import nbbp
from nbbp import description, optimizers, schedules
from nbbp.callbacks import Callback, CSVLogger, EarlyStopping, LearningRateScheduler, ModelCheckpoint
from nbbp.history import History
from nbbp.progress import Progress

random = np.random.default_rng(0)
X = random.standard_normal((50, 4)).astype(np.float32)
LABELS = random.integers(0, 3, 50)
VALIDATION = random.standard_normal((20, 4)), random.integers(0, 3, 20)


def model_of(optimizer="adam", n_in=4, **settings):
    layers = [nbbp.Dense(8, "tanh"), nbbp.BatchNorm(), nbbp.Dropout(0.2), nbbp.Dense(3)]
    settings = {"loss": "crossentropy", "metrics": ["accuracy"]} | settings
    return nbbp.Model(nbbp.Sequential(layers, n_in=n_in), optimizer=optimizer, **settings)


def fit(model, epochs, *used, **settings):
    settings = {"batch_size": 8, "validation_data": VALIDATION, "verbose": 0} | settings
    return model.fit(X, LABELS, epochs=epochs, callbacks=list(used), **settings)


def everything_of(model):
    session = model._session
    arrays = session.parameters, session.state, session.slot_buffer, model.history.to_array()
    clock = session.clock.epoch, session.clock.plateau, session.clock.override
    return [array.tobytes() for array in arrays], list(model.history), session.step, session.epoch, clock


SCHEDULES = [
    schedules.WarmUp(schedules.Cosine(0.01, steps=40), steps=5),
    schedules.MultiStep(0.01, milestones=(2, 5), unit="epoch"),
    schedules.ReduceOnPlateau(0.01, patience=0, cooldown=1, threshold=0.5),
    schedules.WarmUp(schedules.OneCycle(0.01, steps=6, unit="epoch"), steps=2),
]


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        *((kind(), "float32") for kind in optimizers.BY_NAME.values()),
        pytest.param(optimizers.Adafactor(), "float64", marks=pytest.mark.slow),
        (nbbp.Adam(accumulation_steps=4, clip_norm=1.0, gradient_noise=0.01), "float32"),
        *((nbbp.SGD(schedule, momentum=0.9), "float32") for schedule in SCHEDULES),
    ],
)
def test_the_bits_of_a_run_that_was_never_stopped(tmp_path, optimizer, dtype):
    path = tmp_path / "run.safetensors"
    whole, stopped, going_on = (model_of(optimizer, dtype=dtype) for _ in range(3))
    expected = fit(whole, 6)
    fit(stopped, 4, ModelCheckpoint(path))
    history = fit(going_on, 6, resume_from=path)
    assert history.epochs == [1, 2, 3, 4, 5, 6]
    assert dict(history) == dict(expected)
    assert everything_of(going_on) == everything_of(whole)
    # after that both go on alike, and so does what is loaded
    fit(whole, 6, ModelCheckpoint(path))
    loaded = nbbp.load_model(path)
    assert everything_of(loaded) == everything_of(whole)
    assert dict(fit(loaded, 1)) == dict(fit(whole, 1))
    assert everything_of(loaded) == everything_of(whole)


def test_resuming_in_a_model_that_is_not_built_or_has_been_trained(tmp_path):
    whole, first = model_of(), model_of()
    expected = fit(whole, 4)
    fit(first, 2)
    first.save(tmp_path / "run")
    unbuilt, used = model_of(n_in=None), model_of()
    fit(used, 3, batch_size=7)
    used.train_step(X, LABELS)
    for model in (unbuilt, used):
        assert dict(fit(model, 4, resume_from=str(tmp_path / "run"))) == dict(expected)
        assert everything_of(model) == everything_of(whole)
        assert model.train_step(X, LABELS) == whole.train_step(X, LABELS)
        whole = model_of()
        fit(whole, 4)


def test_formulas_of_ones_own_are_the_same_in_a_file(tmp_path):
    def model_of(scale):
        layers = [nbbp.Dense(4, nbbp.activation(lambda z: np.sin(z) * scale, name="wave")), nbbp.Dense(3)]
        return nbbp.Model(nbbp.Sequential(layers, n_in=4), nbbp.loss(quartic))

    model = model_of(0.5)
    model.fit(X, X[:, :3], verbose=0)
    model.save(tmp_path / "run")
    assert model_of(0.5).fit(X, X[:, :3], epochs=2, verbose=0, resume_from=tmp_path / "run").epochs == [1, 2]
    with pytest.raises(
        ValueError, match=r"network\.layers\.0\.activation\.formula\.value\..* is 0\.5 in the file and 0\.25"
    ):
        model_of(0.25).fit(X, X[:, :3], epochs=2, verbose=0, resume_from=tmp_path / "run")


def test_the_second_fit_of_a_model(tmp_path):
    """Epochs are counted within the run, shuffles over all of them."""
    whole, stopped = model_of(), model_of()
    for model, epochs in ((whole, 5), (stopped, 3)):
        fit(model, 2)
        fit(model, epochs, ModelCheckpoint(tmp_path / "run"))
        if model is whole:
            (tmp_path / "run").unlink()
    going_on = model_of()
    assert fit(going_on, 5, resume_from=tmp_path / "run").epochs == [1, 2, 3, 4, 5]
    assert everything_of(going_on) == everything_of(whole)


def test_nothing_is_left_to_do(tmp_path):
    model, again, diary = model_of(), model_of(), Diary()
    fit(model, 3)
    model.save(tmp_path / "run")
    for epochs in (3, 2):
        assert fit(again, epochs, diary, resume_from=tmp_path / "run").epochs == [1, 2, 3]
        assert everything_of(again) == everything_of(model)
    assert [call[0] for call in diary.calls] == ["train begin", "train end"] * 2


def test_a_file_of_the_middle_of_an_epoch_goes_on_with_a_new_one(tmp_path):
    class Saves(Callback):
        every_batches = 2

        def on_batch_end(self, run):
            if run.epoch == 3:
                run.model.save(tmp_path / "run")
                run.stop()

    model = model_of()
    fit(model, 5, Saves())
    assert model.history.epochs == [1, 2]
    step = model._session.step
    assert fit(model, 5, resume_from=tmp_path / "run").epochs == [1, 2, 3, 4, 5]
    assert model._session.step == step + 3 * 7


def test_callbacks_go_on_too(tmp_path):
    """A rate that is made of the one before, early stopping's patience, a table of epochs."""

    def used(name):
        decay = LearningRateScheduler(lambda epoch, rate: rate * 0.5)
        stopping = EarlyStopping("val_loss", patience=3, min_delta=0.01)
        return [decay, stopping, CSVLogger(tmp_path / f"{name}.csv", append=True)]

    whole, stopped, going_on = model_of(), model_of(), model_of()
    callbacks = used("whole")
    expected = fit(whole, 50, *callbacks)
    last = expected.epochs[-1]
    assert callbacks[1].stopped_epoch == last < 50
    # the file is two epochs old when the process ends, in the middle of the patience
    fit(stopped, last - 1, *used("parts"), ModelCheckpoint(tmp_path / "{epoch}"))
    resumed = used("parts")
    history = fit(going_on, 50, *resumed, resume_from=tmp_path / str(last - 3))
    assert dict(history) == dict(expected)
    assert (tmp_path / "parts.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert resumed[1].best_epoch == callbacks[1].best_epoch == last - 3
    assert everything_of(going_on) == everything_of(whole)
    assert going_on._session.clock.override is None
    # the rate of a run is none of the model that is loaded
    loaded = nbbp.load_model(tmp_path / str(last - 3))
    assert "learning_rate" not in fit(loaded, 1)


def test_a_best_epoch_before_the_file_is_missed_aloud(tmp_path):
    whole, stopping = model_of(), EarlyStopping("val_loss", patience=3, min_delta=0.01)
    expected = fit(whole, 50, stopping, ModelCheckpoint(tmp_path / "{epoch}"))
    best = stopping.best_epoch
    going_on, resumed = model_of(), EarlyStopping("val_loss", patience=3, min_delta=0.01)
    with pytest.warns(RuntimeWarning, match=rf"cannot go back to epoch {best}, the best: the run was resumed behind"):
        assert dict(fit(going_on, 50, resumed, resume_from=tmp_path / str(best + 1))) == dict(expected)
    assert resumed.best_epoch == best
    last = nbbp.load_model(tmp_path / str(expected.epochs[-1]))
    np.testing.assert_array_equal(going_on.parameter_vector, last.parameter_vector)


def test_values_that_json_has_no_number_for(tmp_path):
    values = [1.5, math.nan, math.inf, -math.inf]

    class Adds(Callback):
        def on_epoch_end(self, run):
            run.report["größe"] = values[run.epoch - 1]

    model = model_of()
    fit(model, 4, Adds())
    model._session.clock.plateau = schedules.Plateau(best=-math.inf)
    model.save(tmp_path / "run")
    loaded = nbbp.load_model(tmp_path / "run")
    np.testing.assert_array_equal(loaded.history["größe"], values)
    assert loaded.history.epochs == [1, 2, 3, 4]
    assert loaded._session.clock.plateau.best == -math.inf


# what cannot be resumed -------------------------------------------------------------------------------------


def test_files_of_other_models(tmp_path):
    path = tmp_path / "run"
    model = model_of()
    fit(model, 1)
    model.save(path)
    other_layers = [nbbp.Dense(9, "tanh"), nbbp.BatchNorm(), nbbp.Dropout(0.5), nbbp.Dense(3)]
    cases = [
        (model_of(loss="nll"), "loss.name is 'crossentropy' in the file and 'nll' in this model"),
        (model_of(nbbp.Adam(0.01)), "optimizer.settings.learning_rate is 0.001 in the file and 0.01 in this model"),
        (
            model_of(nbbp.Adam(SCHEDULES[0])),
            "optimizer.settings.learning_rate is 0.001 in the file and {'name': 'warm_up'",
        ),
        (model_of(dtype="float64"), "dtype is 'float32' in the file and 'float64' in this model"),
        (model_of(seed=1), "seed is 0 in the file and 1 in this model"),
        (
            nbbp.Model(nbbp.Sequential(other_layers), "crossentropy"),
            "network.layers.0.n_out is 8 in the file and 9 in this model; network.layers.2.rate is 0.2",
        ),
        (nbbp.Model(nbbp.Sequential(other_layers[2:]), "crossentropy"), "network.layers is "),
    ]
    for other, message in cases:
        before = other._session and everything_of(other)
        with pytest.raises(ValueError, match="cannot go on: ") as caught:
            fit(other, 2, resume_from=path)
        assert message in str(caught.value)
        assert (other._session and everything_of(other)) == before
    # what is only looked at may differ
    assert fit(model_of(metrics=[]), 2, resume_from=path).epochs == [1, 2]


def test_files_that_are_none(tmp_path):
    model = model_of()
    with pytest.raises(FileNotFoundError):
        fit(model, 2, resume_from=tmp_path / "none")
    with pytest.raises(TypeError, match="PathLike"):
        fit(model, 2, resume_from=3)
    (tmp_path / "text").write_text("epoch 4")
    with pytest.raises(ValueError, match="no safetensors file"):
        fit(model, 2, resume_from=tmp_path / "text")
    assert model._session.step == 0


# nothing is taken on trust ----------------------------------------------------------------------------------


def described():
    network = nbbp.Sequential([nbbp.Dense(3)], n_in=2)
    optimizer = nbbp.SGD(schedules.WarmUp(schedules.Cosine(0.1, steps=9), steps=3))
    progress = Progress(3, None, schedules.Plateau(0.25, 1, 2, 3), ("loss", "val_loss"))
    return description.Description(network, nbbp.losses.MSE(), optimizer, (), "float32", 1, 2, 3, progress=progress)


@pytest.mark.parametrize("schedule", [*SCHEDULES, schedules.CosineRestarts(0.1, steps=3, growth=2)])
def test_schedules_come_back(schedule):
    network = nbbp.Sequential([nbbp.Dense(3)], n_in=2)
    whole = description.Description(network, nbbp.losses.MSE(), nbbp.Adam(schedule), (), "float32", 1, 2, 3)
    assert description.from_text(description.to_text(whole)) == whole
    assert set(schedules.BY_NAME) >= {schedule.name}


DEEP = {"name": "warm_up", "settings": {"unit": "step", "steps": 3, "start": 0.1, "learning_rate": 0.1}}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("clock", None, "the clock must be an object with 'epoch', 'learning_rate', 'plateau'; got None"),
        ("clock.epoch", -1, "epoch of the clock must be an integer from 0"),
        ("clock.epoch", 1 << 60, "epoch of the clock must be"),
        ("clock.learning_rate", -0.5, "learning_rate of the clock must be null or a number"),
        ("clock.learning_rate", True, "learning_rate of the clock must be null or a number"),
        ("clock.learning_rate", 0.5, "learning_rate of the clock must be null where the optimizer has a schedule"),
        ("clock.plateau", [], "the plateau must be an object with"),
        ("clock.plateau.best", "nan", "best of the plateau must be null or a number; got 'nan'"),
        ("clock.plateau.bad", 0.5, "bad of the plateau must be an integer"),
        ("clock.plateau.reductions", 1 << 40, "reductions of the plateau must be an integer from 0 to 16383"),
        ("history", "loss", "history must be a list"),
        ("history", ["loss", "loss"], "history must be names that differ"),
        ("history", [1], "history must be names"),
        ("optimizer.settings.learning_rate", "cosine", "learning_rate of SGD must be a number"),
        ("optimizer.settings.learning_rate", {}, "the schedule must be an object with 'name', 'settings'"),
        ("optimizer.settings.learning_rate.name", "Schedule", "unknown schedule 'Schedule'"),
        ("optimizer.settings.learning_rate.settings", {}, "settings of the schedule 'warm_up' must be an object"),
        ("optimizer.settings.learning_rate.settings.learning_rate", DEEP, "WarmUp stands before a schedule of its"),
        ("optimizer.settings.learning_rate.settings.learning_rate.settings.learning_rate", DEEP, "Cosine must be a n"),
        ("optimizer.settings.learning_rate.settings.steps", 0, "steps of WarmUp must be at least 1"),
    ],
)  # fmt: skip
def test_descriptions_with_something_wrong(place, value, message):
    data = json.loads(description.to_text(described()))
    *way, last = place.split(".")
    inner = data
    for key in way:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(ValueError, match=message):
        description.from_text(json.dumps(data))


def test_histories_with_something_wrong(tmp_path):
    for epochs in ([0, 1], [2, 1], [1, 1], [1, 1.5], [1, math.nan], [1, math.inf], [1, 1e300]):
        with pytest.raises(ValueError, match="epochs of the history must be integers from 1 on that rise"):
            History.of_array(["loss"], np.array([epochs, [0.5, 0.25]]))
    model = model_of()
    fit(model, 2)
    model.save(tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    numbers = load(content)["history"]
    assert numbers.shape == (5, 2)
    altered = content.replace(numbers.tobytes(), (numbers + 1).tobytes())
    (tmp_path / "run").write_bytes(altered)
    with pytest.raises(ValueError, match="it was altered"):
        nbbp.load_model(tmp_path / "run")
    for shape, came in (([10], r"\(10,\)"), ([2, 5], r"\(2, 5\)"), ([5, 2, 1], r"\(5, 2, 1\)")):
        changed = content.replace(b'"shape":[5,2]', b'"shape":' + json.dumps(shape, separators=(",", ":")).encode())
        header = int.from_bytes(content[:8], "little") + len(changed) - len(content)
        (tmp_path / "run").write_bytes(header.to_bytes(8, "little") + changed[8:])
        with pytest.raises(ValueError, match=rf"array history must have the shape \(5, .*got {came}"):
            nbbp.load_model(tmp_path / "run")
