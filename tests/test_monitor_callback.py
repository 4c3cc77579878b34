"""The Monitor around a run: which updates it looks at, what it warns of, what it draws."""

import tracemalloc
import warnings

import numpy as np
import pytest
from callback_cases import LABELS, X, fit, model_of, numbers_of
from monitoring_cases import LAYERS, trained

import nbbp
from nbbp.callbacks import GradientWarning, Monitor
from nbbp.layers import Activation, Dense, Flatten, Reshape


def test_every_so_many_updates_over_fits_and_short_chunks():
    class Often(nbbp.callbacks.Callback):
        every_batches = 3

        def on_batch_end(self, run):
            pass

    model, monitor = model_of(), Monitor(every=5)
    for _ in range(2):  # 8 batches an epoch
        fit(model, monitor, Often(), epochs=3)
        assert monitor.epochs.tolist() == sorted(monitor.epochs)
    assert monitor.updates.tolist() == [26, 31, 36, 41, 46]
    assert monitor.epochs.tolist() == [1, 1, 2, 3, 3]
    epochs, means = monitor.per_epoch("spread")
    assert epochs.tolist() == [1, 2, 3]
    np.testing.assert_allclose(means[0], monitor["spread"][:2].mean(axis=0))


def test_batches_of_one_update_are_looked_at_in_the_last():
    model, monitor = model_of(nbbp.SGD(0.1, accumulation_steps=3)), Monitor(every=2)
    fit(model, monitor, epochs=3)  # 24 batches, 8 updates
    assert monitor.updates.tolist() == [1, 3, 5, 7]
    assert (monitor["update_norm"][:, 0] > 0).all()


def test_a_resumed_run_looks_at_the_same_updates(tmp_path):
    whole, second = Monitor(every=3), Monitor(every=3)
    fit(model_of(), whole, epochs=4)
    model = model_of()
    fit(model, epochs=2)
    model.save(tmp_path / "m.safetensors")
    fit(model_of(), second, epochs=4, resume_from=tmp_path / "m.safetensors")
    n = len(second.updates)
    assert second.updates.tolist() == whole.updates[-n:].tolist()
    np.testing.assert_array_equal(second["update_norm"], whole["update_norm"][-n:])


def test_batches_of_an_iterable():
    batches = [(X[:7], LABELS[:7]), (X[7:8], LABELS[7:8]), (X[8:], LABELS[8:])]
    monitor = Monitor(every=1)
    model_of().fit(batches, epochs=2, verbose=0, callbacks=[monitor])
    assert monitor.updates.tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(monitor["mean"]).all()


def test_the_end_of_an_epoch_goes_through_that_epoch_alone():
    peaks = []

    class Measured(Monitor):
        def on_epoch_end(self, run):
            tracemalloc.start()
            try:
                super().on_epoch_end(run)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()

    fit(model_of(), Measured(every=1), epochs=50)
    assert max(peaks[-10:]) <= 1.5 * max(peaks[1:11])  # bytes; over all epochs so far they would be 5 times as many


def test_a_run_that_diverges_leaves_its_records_and_no_monitor():
    model, monitor = model_of(nbbp.SGD(1e30)), Monitor(every=1)
    with pytest.raises(nbbp.TrainingDiverged):
        fit(model, monitor, epochs=20)
    assert len(monitor.updates)
    assert model._session.monitor is None
    fit(model_of(), monitor)


# --- warnings -----------------------------------------------------------------------------------------------


def deep(activation, n_layers, deviation, rate=1e-3):
    weights = nbbp.initializers.Normal(deviation=deviation)
    hidden = [Dense(16, activation, weight_initializer=weights) for _ in range(n_layers)]
    return nbbp.Model(nbbp.Sequential([*hidden, Dense(3)], n_in=4), "crossentropy", nbbp.SGD(rate))


def test_a_warning_names_where_gradients_vanish_once():
    with pytest.warns(GradientWarning, match=r"vanish in layer 0 Dense\(sigmoid\) \(and .*of layer 12 Dense$") as seen:
        fit(deep("sigmoid", 12, 0.1), Monitor())
    assert len(seen) == 1


def test_a_dead_layer():
    model = deep("relu", 2, 0.3)
    model.parameters["1.bias"][:] = -100.0
    with pytest.warns(GradientWarning, match=r"vanish in layer 0 Dense\(relu\): in epoch 1 .* is 0 times"):
        fit(model, Monitor())


def test_a_warning_names_where_gradients_explode():
    with pytest.warns(GradientWarning, match=r"explode in layer 0 Dense .*in epoch 1"):
        fit(deep("linear", 12, 1.0, rate=1e-20), Monitor(), epochs=1)


def test_no_warning_for_a_healthy_network():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(deep("tanh", 3, 0.25), Monitor(every=1))


# --- errors and pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"every": 0}, ValueError, "every of Monitor"),
        ({"every": 2.5}, TypeError, "every of Monitor"),
        ({"vanishing": "1"}, TypeError, "vanishing of Monitor must be a number; got '1'"),
        ({"vanishing": 2.0}, ValueError, "vanishing < 1 < exploding; got vanishing=2.0"),
        ({"exploding": float("nan")}, ValueError, "exploding=nan"),
    ],
)
def test_what_cannot_be_a_monitor(settings, error, match):
    with pytest.raises(error, match=match):
        Monitor(**settings)


def test_one_at_a_time(tmp_path):
    model, path = model_of(), tmp_path / "m.safetensors"
    fit(model, epochs=2)
    model.save(path)
    history = fit(model)
    before = numbers_of(model)
    with pytest.raises(ValueError, match=r"callbacks\[1\] is another Monitor; one Monitor at a time can look at a mod"):
        fit(model, Monitor(), Monitor(), resume_from=path)
    assert numbers_of(model) == before
    assert model.history is history

    class Nested(nbbp.callbacks.Callback):
        def on_epoch_begin(self, run):
            fit(run.model, Monitor(), epochs=1)

    with pytest.raises(ValueError, match="another one is looking at this one"):
        fit(model, Monitor(), Nested())
    assert model._session.monitor is None
    fit(model, Monitor())


def test_layers_that_only_pass_numbers_on_are_left_out():
    layers = [Flatten(), Dense(4, "tanh", name="first"), Reshape((2, 2)), Flatten(), Activation("linear"), Dense(3)]
    monitor = Monitor()
    trained(layers, monitor)
    assert monitor.layers == ["1 Dense(tanh) 'first'", "5 Dense"]
    assert repr(monitor) == "Monitor(every=100; 1 updates of 2 layers)"
    with pytest.raises(KeyError, match="no 'loss' in a Monitor; there are: mean, spread"):
        monitor["loss"]


def test_pictures(tmp_path):
    monitor = Monitor(every=1)
    with pytest.raises(ValueError, match="nothing to draw"):
        monitor.plot()
    trained(LAYERS["norms"], monitor)
    figure = monitor.plot(tmp_path / "new" / "seen.png", monitor.quantities)
    assert (tmp_path / "new" / "seen.png").stat().st_size > 20_000
    panels = [axes for axes in figure.axes if axes.images]
    assert [len(axes.get_yticks()) for axes in panels] == [7] * 8
    shown = panels[monitor.quantities.index("spread")].images[0].get_array()
    np.testing.assert_allclose(shown, monitor["spread"].T)
    with pytest.raises(ValueError, match="quantities must be a list"):
        monitor.plot(quantities="mean")


def test_one_update_and_nothing_but_zeros_can_be_drawn():
    monitor = Monitor()
    trained(LAYERS["all frozen"], monitor)
    monitor.plot(quantities=monitor.quantities)
    for value in (np.nan, np.inf, 0.0):
        monitor._values[0][:] = value
        monitor.plot(quantities=monitor.quantities)
