"""What `fit` calls around the training: when, with what, and that it changes no bit of it."""

import gc
import math
import time

import numpy as np
import pytest
from callback_cases import LABELS, VALIDATION, Diary, N, X, fit, model_of, numbers_of, setting

import nbbp
from nbbp import callbacks
from nbbp.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar, TerminateOnNaN

# hooks ------------------------------------------------------------------------------------------------------


def test_when_hooks_are_called_and_that_no_bit_changes():
    plain, watched, diary = model_of(), model_of(), Diary(every_batches=3)
    histories = fit(plain, epochs=2), fit(watched, diary, Diary(), epochs=2)
    assert dict(histories[0]) == dict(histories[1])
    assert numbers_of(plain) == numbers_of(watched)
    chunks = [(1, 3), (4, 6), (7, 8)]  # eight batches, the last of four rows
    expected = [("train begin", 0)]
    for epoch in (1, 2):
        expected.append(("epoch begin", epoch))
        for first, last in chunks:
            expected += [("batch begin", epoch, first, last), ("batch end", epoch, first, last)]
        expected.append(("epoch end", epoch))
    assert diary.calls == [*expected, ("train end", 2)]


def test_without_batch_hooks_chunks_are_cut_as_ever():
    class Ends(Callback):
        every_batches = 1

        def on_epoch_end(self, run):
            pass

    asked, diary = model_of(), Diary()
    fit(asked, Ends(), diary, epochs=1)
    assert ("batch end", 1, 1, 8) in diary.calls


def test_batches_of_a_generator():
    batches = [(X[:5], LABELS[:5]), (X[5:30], LABELS[5:30]), (X[30:], LABELS[30:])]
    plain, watched, diary = model_of(), model_of(), Diary(every_batches=2)
    plain.fit(batches, verbose=0)
    watched.fit(batches, callbacks=[diary], verbose=0)
    assert [call[2:] for call in diary.calls if call[0] == "batch end"] == [(1, 1), (2, 2), (3, 3)]
    assert numbers_of(plain) == numbers_of(watched)


def test_the_order_is_that_of_the_list_and_reports_grow_along_it():
    seen = []

    class Adds(Callback):
        def __init__(self, name):
            self.name = name

        def on_epoch_end(self, run):
            seen.append((self.name, "first" in run.history, run.history.epochs[-1]))
            run.report[self.name] = run.epoch * np.float32(0.5)

        def on_train_end(self, run):
            seen.append((self.name, run.epochs))

    history = fit(model_of(), Adds("first"), Adds("second"), epochs=2)
    assert seen == [
        ("first", False, 1), ("second", True, 1), ("first", True, 2), ("second", True, 2), ("first", 2), ("second", 2)
    ]  # fmt: skip
    assert history["first"] == history["second"] == [0.5, 1.0]
    with pytest.raises(TypeError, match="'text' of epoch 1 must be a number; got 'abc'"):
        fit(model_of(), setting("text", ["abc"]))


@pytest.mark.parametrize("place", [("train begin", 0), ("epoch begin", 2), ("batch end", 2), ("epoch end", 2)])
def test_the_end_is_called_after_an_error_in_a_hook(place):
    model = model_of()
    before, bad, after = Diary(), Diary("bad", raises=[place]), Diary()
    with pytest.raises(OSError, match=f"bad {place[0]}"):
        fit(model, before, bad, after)
    assert before.calls[-1] == bad.calls[-1] == ("train end", place[1])
    assert after.calls == [] if place[0] == "train begin" else after.calls[-1] == ("train end", 2)
    assert model.history.epochs == [1, 2][: max(0, place[1] - (place[0] != "epoch end"))]
    assert np.isfinite(fit(model)["loss"]).all()


def test_every_end_is_called_even_if_one_fails():
    used = [Diary(raises=[("train end", 1)]), Diary(raises=[("train end", 1)]), Diary()]
    with pytest.raises(OSError, match="train end"):
        fit(model_of(), *used, epochs=1)
    assert all(diary.calls[-1] == ("train end", 1) for diary in used)


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end"])
def test_stopping(hook):
    class Stops(Callback):
        every_batches = 4

    def stop(self, run):
        if run.epoch == (0 if hook == "on_train_begin" else 2):
            run.stop("enough")

    setattr(Stops, hook, stop)
    model, diary = model_of(), Diary()
    history = fit(model, Stops(), diary, epochs=5)
    assert history.epochs == {"on_train_begin": [], "on_epoch_end": [1, 2]}.get(hook, [1])
    steps = {"on_train_begin": 0, "on_epoch_begin": 8, "on_batch_begin": 8, "on_batch_end": 12, "on_epoch_end": 16}
    assert model._session.step == steps[hook]
    assert diary.calls[-1][0] == "train end"
    assert fit(model, epochs=1).epochs == [1]


def test_what_is_no_callback():
    model = model_of()
    before = numbers_of(model)
    for wrong, message in (
        (print, r"callbacks\[1\] must be a nbbp.callbacks.Callback; got <built-in function print>"),
        (EarlyStopping, r"callbacks\[1\] is the class EarlyStopping; expected an instance, such as EarlyStopping\(…\)"),
    ):
        with pytest.raises(TypeError, match=message):
            fit(model, Diary(), wrong)
    with pytest.raises(TypeError, match="alone: write callbacks="):
        fit(model, callbacks=ProgressBar())
    with pytest.raises(ValueError, match="every_batches of Diary must be at least 1; got 0"):
        fit(model, Diary(every_batches=0))
    diary = Diary()
    with pytest.raises(ValueError, match=r"callbacks\[1\] is in the list twice"):
        fit(model, diary, diary)
    assert numbers_of(model) == before
    assert set(callbacks.__all__) <= set(dir(callbacks))


@pytest.mark.slow
def test_a_callback_costs_little():
    """At most 50 µs an epoch, for all hooks and for early stopping."""
    model = model_of()

    def seconds(*used):
        begin = time.perf_counter()
        fit(model, *used, epochs=300, batch_size=N)
        return (time.perf_counter() - begin) / 300

    seconds()
    gc.collect()
    for make in (Diary, lambda: EarlyStopping("loss", patience=10**6)):
        pairs = [(seconds(make()), seconds()) for _ in range(15)]  # in turns, because other processes come and go
        extra = min(one for one, _ in pairs) - min(other for _, other in pairs)
        print(f"{extra * 1e6:.1f} µs")
        assert extra < 50e-6


# early stopping ---------------------------------------------------------------------------------------------


def test_it_stops_and_goes_back_to_the_best():
    values = [3, 2, 2.5, math.nan, 1.95, 1.9, 5, 0]
    stopping = EarlyStopping("mine", patience=3, min_delta=0.1)
    model, expected = model_of(), model_of()
    history = fit(model, setting("mine", values), stopping, epochs=8)
    # 1.95 and 1.9 are not better than 2 by more than 0.1
    assert (history.epochs[-1], stopping.best, stopping.best_epoch, stopping.stopped_epoch) == (5, 2, 2, 5)
    fit(expected, epochs=2)
    assert numbers_of(model) == numbers_of(expected)


def test_settings_of_early_stopping():
    kept = EarlyStopping("mine", patience=1, restore_best=False)
    model, expected = model_of(), model_of()
    assert fit(model, setting("mine", [1, 2]), kept).epochs == [1, 2]
    fit(expected, epochs=2)
    assert numbers_of(model) == numbers_of(expected)
    late = EarlyStopping("mine", patience=2, start_from=2)
    assert fit(model_of(), setting("mine", [1, 2, 3, 4, 5, 6]), late, epochs=6).epochs[-1] == 5
    assert late.best_epoch == 3
    for mode, name, best in (("auto", "val_accuracy", 2), ("auto", "error", 1), ("max", "error", 2)):
        largest = EarlyStopping(name, mode=mode)
        fit(model_of(), setting(name, [1, 2]), largest, epochs=2)
        assert largest.best == best
    auto = EarlyStopping()
    history = fit(model_of(), auto, validation_data=VALIDATION)
    assert auto.best == min(history["val_loss"])
    wrong_values = {"patience": 0, "mode": "up", "min_delta": -1, "start_from": -1}
    cases = [({name: value}, ValueError) for name, value in wrong_values.items()]
    for wrong, error in (*cases, ({"monitor": 3}, TypeError), ({"restore_best": 1}, TypeError)):
        with pytest.raises(error, match=f"{next(iter(wrong))} of EarlyStopping must be"):
            EarlyStopping(**wrong)


def test_an_unknown_monitor_is_refused_as_soon_as_it_can_be(tmp_path):
    model = model_of()
    before = numbers_of(model)
    for one in (EarlyStopping("val_loss"), ModelCheckpoint(tmp_path / "m", "val_loss", save_best_only=True)):
        with pytest.raises(
            ValueError, match=r"monitors 'val_loss', which this fit does not report; there are: loss, acc"
        ):
            fit(model, one)
    with pytest.raises(ValueError, match=r"holds \{val_loss\}, which this fit does not report; there are: epoch, loss"):
        fit(model, ModelCheckpoint("{epoch}-{val_loss:.2f}"))
    assert numbers_of(model) == before
    with pytest.raises(ValueError, match="'other', which the report of epoch 1 does not hold; there are: loss, acc"):
        fit(model, EarlyStopping("other"), setting("mine", [1]))


def test_a_best_that_the_next_loss_shows_to_be_broken():
    """The loss of epoch 1 is the best there is, and its last update is one that nothing survives."""
    settings = {"batch_size": N, "epochs": 5, "callbacks": [EarlyStopping("loss")], "verbose": 0}
    model = nbbp.Model(nbbp.Sequential([nbbp.Dense(3)], n_in=4), "mse", nbbp.SGD(3e38))
    with pytest.raises(nbbp.TrainingDiverged):
        model.fit(X, 1e10 * X[:, :3], **settings)
    assert np.isfinite(model.parameter_vector).all()


def test_an_end_without_an_error_where_the_loss_is_none():
    y = 1e30 * X[:, :3]
    model = nbbp.Model(nbbp.Sequential([nbbp.Dense(3)], n_in=4), "mse", "sgd")
    quiet, diary = TerminateOnNaN(), Diary()
    history = model.fit(X, y, callbacks=[diary, quiet], verbose=0, epochs=2)
    assert history.epochs == []
    assert model.history is history
    assert quiet.reason.startswith("the loss turned inf in batch 1 of epoch 1")
    assert diary.calls[-1][0] == "train end"
    assert np.isfinite(model.parameter_vector).all()
    model.fit(X, X[:, :3], callbacks=[quiet], verbose=0)
    assert quiet.reason is None
