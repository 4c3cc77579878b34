"""The callbacks that come with nbbp, but for those that end a run (tests/test_callbacks.py)."""

import csv
import math
import sys
import types

import numpy as np
import pytest
from callback_cases import LABELS, VALIDATION, Diary, X, fit, model_of, numbers_of, setting

import nbbp
from nbbp import optimizers
from nbbp.callbacks import CSVLogger, LearningRateScheduler, ModelCheckpoint, ProgressBar, TensorBoard

# saving -----------------------------------------------------------------------------------------------------


def test_checkpoints(tmp_path):
    model = model_of()
    fit(model, ModelCheckpoint(tmp_path / "new" / "{epoch:02d}-{loss:.3f}", every=2), epochs=5)
    loss = model.history["loss"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"02-{loss[1]:.3f}", f"04-{loss[3]:.3f}"]
    expected = model_of()
    fit(expected, epochs=4)
    assert numbers_of(nbbp.load_model(tmp_path / "new" / f"04-{loss[3]:.3f}")) == numbers_of(expected)


def test_only_the_best_is_saved(tmp_path):
    values = [5, 3, 4, 2, 1]
    best = ModelCheckpoint(str(tmp_path / "{mine}"), "mine", "max", save_best_only=True)
    fit(model_of(), setting("mine", values), best, epochs=5)
    assert [path.name for path in tmp_path.iterdir()] == ["5"]
    fit(
        model_of(), setting("mine", values), ModelCheckpoint(tmp_path / "{mine}", "mine", save_best_only=True), epochs=5
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3", "5"]


def test_what_cannot_be_a_checkpoint(tmp_path):
    for path in ("{epoch.__class__}", "{0}", "{}"):
        with pytest.raises(ValueError, match="may hold names such as"):
            ModelCheckpoint(path)
    own = nbbp.Dense(3, weight_initializer=lambda shape, seed, stream, dtype: np.ones(shape, dtype))
    model = nbbp.Model(nbbp.Sequential([own], n_in=4), "crossentropy")
    with pytest.raises(TypeError, match="a file cannot hold"):
        fit(model, ModelCheckpoint(tmp_path / "m"))
    assert model._session.step == 0


# learning rates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(optimizers.BY_NAME))
def test_rates_of_every_optimizer(name):
    """At another rate from the beginning; groups with rates of their own keep the ratio."""
    kind = optimizers.BY_NAME[name]
    groups = {"0.bias": {"learning_rate": 0.001}}, {"0.bias": {"learning_rate": 0.0005}}
    model, expected = model_of(kind(0.02, groups=groups[0])), model_of(kind(0.01, groups=groups[1]))
    history = fit(model, LearningRateScheduler(lambda epoch: 0.01), epochs=2)
    assert history["learning_rate"] == [0.01, 0.01]
    assert history["loss"] == fit(expected, epochs=2)["loss"]
    assert numbers_of(model) == numbers_of(expected)


def test_rates_of_epochs():
    model, parts = model_of("sgd"), model_of("sgd")
    rates = [0.1, 0.01, 0.0]
    history = fit(model, LearningRateScheduler(rates.__getitem__))
    assert history["learning_rate"] == rates
    for epoch, rate in enumerate(rates):
        before = parts.parameter_vector.tobytes()
        parts_of_epoch = fit(parts, LearningRateScheduler(lambda epoch, rate, own=rate: own), epochs=1)
        assert parts_of_epoch["loss"] == history["loss"][epoch : epoch + 1]
        assert (before == parts.parameter_vector.tobytes()) == (rate == 0.0)
    assert numbers_of(model) == numbers_of(parts)
    halved = fit(model, LearningRateScheduler(lambda epoch, rate: rate / 2))
    assert halved["learning_rate"] == [0.005, 0.0025, 0.00125]
    # and afterwards the optimizer's own rate holds again
    assert model.train_step(X, LABELS) != 0
    fit(model, epochs=1)
    assert "learning_rate" not in model.history


def test_rates_that_are_none():
    scheduled = model_of(nbbp.SGD(nbbp.schedules.Exponential(0.1, factor=0.9)))
    with pytest.raises(ValueError, match="a schedule already, Exponential"):
        fit(scheduled, LearningRateScheduler(lambda epoch: 0.1))
    for function, message in ((lambda a, b, c: 1, "an epoch, or an epoch and a rate"), (3, "must be callable")):
        with pytest.raises(TypeError, match=message):
            LearningRateScheduler(function)
    for rate, error in ((math.nan, ValueError), (-1, ValueError), ("1", TypeError), (None, TypeError)):
        with pytest.raises(error, match="learning_rate must be"):
            fit(model_of(), LearningRateScheduler(lambda epoch, rate=rate: rate))


# logs -------------------------------------------------------------------------------------------------------


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_table_of_epochs(tmp_path):
    path = tmp_path / "run.csv"
    history = fit(model_of(), CSVLogger(path), validation_data=VALIDATION)
    names = ["loss", "accuracy", "val_loss", "val_accuracy"]
    columns = list(zip(*rows_of(path), strict=True))
    assert [column[0] for column in columns] == ["epoch", *names]
    assert columns[0][1:] == ("1", "2", "3")
    for name, column in zip(names, columns[1:], strict=True):
        assert [float(value) for value in column[1:]] == history[name]
    fit(model_of(), CSVLogger(path, append=True), validation_data=VALIDATION, epochs=1)
    assert [row[0] for row in rows_of(path)] == ["epoch", "1", "2", "3", "1"]
    with pytest.raises(ValueError, match=r"the report of epoch 1 has 'mine'; the header of .* has epoch, loss"):
        fit(model_of(), setting("mine", [1]), CSVLogger(path, append=True))
    fit(model_of(), CSVLogger(path), epochs=1)
    assert len(path.read_text().splitlines()) == 2


def test_a_table_that_cannot_be_written_is_refused_at_once(tmp_path):
    path, model = tmp_path / "other.csv", model_of()
    path.write_text("a,b\n")
    history = fit(model)
    before = numbers_of(model)
    for logger, error, match in (
        (CSVLogger(path, append=True), ValueError, "no file of CSVLogger"),
        (CSVLogger(tmp_path / "none" / "run.csv"), FileNotFoundError, "there is no folder '.*none'"),
        (CSVLogger(tmp_path), IsADirectoryError, "which is a folder; expected that of a file"),
    ):
        with pytest.raises(error, match=match):
            fit(model, logger)
        assert numbers_of(model) == before
        assert model.history is history
    assert path.read_text() == "a,b\n"


def stand_in(monkeypatch, name, module):
    for part in ("torch.utils.tensorboard", "tensorboardX", "tensorflow"):
        monkeypatch.setitem(sys.modules, part, None)
    if name is not None:
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", ["torch.utils.tensorboard", "tensorboardX"])
def test_tensorboard(monkeypatch, name, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    # "torch" itself may be there or not
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch.utils", types.ModuleType("torch.utils"))
    stand_in(monkeypatch, name, types.SimpleNamespace(SummaryWriter=SummaryWriter))
    history = fit(model_of(), TensorBoard(tmp_path), epochs=2)
    points = [(name, history[name][k], k + 1) for k in range(2) for name in ("loss", "accuracy")]
    assert written == [str(tmp_path), *points, "closed"]


def test_tensorboard_of_tensorflow_and_of_nothing(monkeypatch):
    written = []

    class Writer:
        def as_default(self):
            return memoryview(b"")  # something that `with` takes

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    summary = types.SimpleNamespace(
        create_file_writer=lambda folder: written.append(folder) or Writer(),
        scalar=lambda name, value, step: written.append((name, value, step)),
    )
    stand_in(monkeypatch, "tensorflow", types.SimpleNamespace(summary=summary))
    history = fit(model_of(), TensorBoard("runs"), epochs=1)
    assert written == ["runs", ("loss", history["loss"][0], 1), ("accuracy", history["accuracy"][0], 1), "closed"]
    stand_in(monkeypatch, None, None)
    model = model_of()
    with pytest.raises(ImportError, match=r"TensorBoard needs torch\.utils\.tensorboard, tensorboardX or tensorflow"):
        fit(model, TensorBoard("runs"))
    assert model._session.step == 0


def test_one_bar(capfd):
    model = model_of()
    fit(model)  # compiles, which says so once
    capfd.readouterr()
    shown = []
    for verbose, used in ((1, []), (0, [ProgressBar()]), ("auto", [ProgressBar()])):
        fit(model, *used, epochs=2, verbose=verbose)
        shown.append(capfd.readouterr().err)
    for text in shown:
        assert text.count("epoch 1/2: 100%") == text.count("epoch 2/2: 100%") == shown[0].count("epoch 1/2: 100%")
    with pytest.raises(OSError, match="epoch end"):
        fit(model, Diary(raises=[("epoch end", 1)]), verbose=1)
    assert capfd.readouterr().err.endswith("\n"), "the bar is closed"


def test_a_table_that_a_killed_process_left(tmp_path):
    """A row that is missing or cut short comes back from the history; a new run begins on a line of its own."""
    path = tmp_path / "run.csv"
    fit(model_of(), CSVLogger(path), ModelCheckpoint(tmp_path / "{epoch}"))
    whole = path.read_bytes()
    for cut in (len(whole) - 5, whole.rindex(b"\n3,") + 1, whole.rindex(b"\n2,") + 6):
        path.write_bytes(whole[:cut])
        fit(model_of(), CSVLogger(path, append=True), epochs=3, resume_from=tmp_path / "3")
        assert path.read_bytes() == whole
    path.write_bytes(whole[: whole.rindex(b"\n3,") + 4])
    fit(model_of(), CSVLogger(path, append=True), epochs=1)
    assert [row[0] for row in rows_of(path)] == ["epoch", "1", "2", "1"]


@pytest.mark.parametrize("name", ["{loss:03d}", "{epoch:x.3}", "{epoch:{width}}"])
def test_a_path_that_cannot_be_filled_in_is_refused_at_once(tmp_path, name):
    model = model_of()
    with pytest.raises(ValueError, match="cannot be filled in"):
        fit(model, ModelCheckpoint(tmp_path / name))
    assert model._session.step == 0
