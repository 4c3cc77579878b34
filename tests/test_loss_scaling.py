"""Loss scaling of fp16: it grows, falls and skips, whichever way a step is cut, and changes nothing else."""

import numpy as np
import pytest
from mixed_cases import LOSS, PLANS, data_for, distance, model_in, take_plan

import nbbp
from nbbp import optimizers, precision
from nbbp.layers import Dense


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    """Every way of cutting a step."""
    take_plan(request.param, monkeypatch)
    return request.param


def scaled(loss_scaling, optimizer="adam"):
    model = model_in("fp16", [Dense(16, "tanh"), Dense(3)], optimizer, loss_scaling=loss_scaling)
    return model, *data_for(40)


def test_scale_grows_after_the_interval():
    model, x, y = scaled(nbbp.LossScaling(4.0, growth_factor=8.0, growth_interval=3))
    scales = []
    for _ in range(7):
        model.train_step(x, y)
        scales.append(model.loss_scale)
    assert scales == [4.0, 4.0, 32.0, 32.0, 32.0, 256.0, 256.0]
    assert nbbp.Model(model.network, LOSS, precision="fp16").loss_scale == 2.0**16
    assert nbbp.Model(model.network, LOSS, precision="bf16").loss_scale == 1.0


@pytest.mark.parametrize("optimizer", [optimizers.Adam(0.01), optimizers.Adam(0.01, clip_value=0.1), "adafactor"])
def test_overflow_skips_the_step_halves_the_scale_and_is_over(plan, optimizer):
    model, x, y = scaled(nbbp.LossScaling(2.0**30, growth_interval=1000), optimizer)
    session, skipped = model._session, 0
    while True:
        before = [array.copy() for array in (session.parameters, session.slot_buffer)]
        last, loss = model.loss_scale, model.train_step(x, y)
        assert np.isfinite(loss)
        if model.loss_scale == last:
            break
        skipped += 1
        assert model.loss_scale == last / 2
        for now, then in zip((session.parameters, session.slot_buffer), before, strict=True):
            assert now.tobytes() == then.tobytes()
    assert 3 < skipped < 20
    assert (session.parameters != before[0]).any()
    history = model.fit(x, y, epochs=20, batch_size=10, verbose=0)
    assert history["loss"][-1] < loss
    assert np.isfinite(session.parameters).all()


def test_fit_goes_on_where_steps_are_skipped():
    """Overflow is no divergence; the best scale is found from far above, and lost and found again as it grows."""
    model, x, y = scaled(nbbp.LossScaling(2.0**60, growth_interval=4), optimizers.Adam(0.01))
    history = model.fit(x, y, epochs=60, batch_size=10, verbose=0)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert 2.0**10 < model.loss_scale < 2.0**24


def test_scale_changes_no_gradient_that_fits():
    """A power of two is exact, so what goes into the update is the same to the bit, added up over batches or not."""
    for optimizer in (optimizers.Adam(0.01), optimizers.Adam(0.01, accumulation_steps=3, clip_norm=0.5)):
        vectors = []
        for scale_of_loss in (256.0, 1024):
            model, x, y = scaled(scale_of_loss, optimizer)
            x, y = 4 * x, y  # gradients of order one, of which none is subnormal
            for _ in range(6):
                model.train_step(x[:4], y[:4])
            vectors.append(model.parameter_vector.copy())
            assert model.loss_scale == scale_of_loss
        assert distance(*vectors) < 1e-6


def test_a_fixed_scale_stays_and_skips():
    model, x, y = scaled(2.0**40)
    before = model.parameter_vector.copy()
    model.train_step(x, y)
    assert model.loss_scale == 2.0**40
    np.testing.assert_array_equal(model.parameter_vector, before)


def test_scale_is_one_for_all_batches_of_an_update():
    """An overflow in one of them skips the update, and the scale waits for its end."""
    model, x, y = scaled(nbbp.LossScaling(2.0**40), optimizers.SGD(0.1, accumulation_steps=2))
    before, scales = model.parameter_vector.copy(), []
    for _ in range(4):
        model.train_step(x, y)
        scales.append(model.loss_scale / 2.0**40)
    assert scales == [1.0, 0.5, 0.5, 0.25]
    np.testing.assert_array_equal(model.parameter_vector, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial": 0.0}, "initial of LossScaling must be from"),
        ({"initial": True}, "initial of LossScaling must be a number"),
        ({"growth_factor": 0.5}, "growth_factor of LossScaling must be from 1 to"),
        ({"backoff_factor": 2.0}, "backoff_factor of LossScaling must be from"),
        ({"growth_interval": 0}, "growth_interval of LossScaling must be at least 1"),
        ({"growth_interval": 1 << 24}, "growth_interval of LossScaling must be below 16,777,216"),
    ],
)
def test_settings_of_loss_scaling_are_checked(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nbbp.LossScaling(**settings)


@pytest.mark.parametrize(
    "scale",
    [None, 1.0, [1.0], [1, 0], [1.0, 0.0], [0.0, 0], [-1.0, 0], [1e39, 0], [float("nan"), 0], [1.0, -1], [1.0, 2000]],
)
def test_scales_that_no_training_leaves_behind_are_refused(scale):
    """As a file may hold them."""
    with pytest.raises(ValueError, match="loss_scale must be a scale and a count below 2,000; got"):
        precision.checked_scale(scale, nbbp.LossScaling())
    assert precision.checked_scale([2.0**20, 1999], nbbp.LossScaling()) == (2.0**20, 1999)


def test_the_scale_is_that_of_the_last_good_parameters_after_a_loss_of_nan():
    model, x, y = scaled(nbbp.LossScaling(1024.0))

    class Breaks(nbbp.callbacks.Callback):
        def on_epoch_begin(self, run):
            if run.epoch == 2:
                run.model.parameter_vector[:] = np.nan

    with pytest.raises(nbbp.TrainingDiverged):
        model.fit(x, y, epochs=2, batch_size=1, verbose=0, callbacks=[Breaks()])
    assert model.loss_scale == 1024.0
