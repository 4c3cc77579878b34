"""Gradients of several batches that make one update: like one large batch, over epochs, calls, copies and files."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from engine_cases import assert_all_near, copies, features_for, label, model_of, small_model, targets_for
from gradient_cases import LOSS, PLANS, batches_for, cut_as, joined, network_model, oracle_updates, train

import nbbp
from nbbp import losses, optimizers
from nbbp.layers import Activation, Dense, LayerNorm, RMSNorm
from nbbp.schedules import Exponential


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    """Every way of cutting a step; its name."""
    cut_as(request.param, monkeypatch)
    return request.param


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [[8] * 6, [8, 3, 1, 5, 8, 2]], ids=["equal", "unequal"])
@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.SGD(0.01, momentum=0.9),
        optimizers.Adam(Exponential(0.01, factor=0.5)),
        optimizers.Adafactor(),
        optimizers.Adam(clip_norm=0.01),
    ],
    ids=label,
)
def test_batches_add_up_to_one(optimizer, sizes, reduction):
    """Bias corrections and schedules count updates, the session counts batches."""
    loss = losses.Crossentropy(reduction=reduction)
    large = small_model("tanh", loss, optimizer=optimizer)
    small = small_model("tanh", loss, optimizer=dataclasses.replace(optimizer, accumulation_steps=3))
    batches = batches_for(small, sizes)
    train(small, batches)
    train(large, [joined(batches[:3]), joined(batches[3:])])
    assert_all_near(small.parameters, copies(large.parameters), tolerance=1e-9)
    assert (small._session.step, large._session.step) == (6, 2)


def test_small_batches_add_up_in_float32_too():
    large, small = (
        small_model("tanh", LOSS, "float32", optimizers.SGD(0.1, momentum=0.5, accumulation_steps=k)) for k in (1, 4)
    )
    batches = batches_for(small, [8, 8, 3, 8] * 5)
    train(small, batches)
    train(large, [joined(batches[i : i + 4]) for i in range(0, 20, 4)])
    assert_all_near(small.parameters, copies(large.parameters), tolerance=1e-6)


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("kind", [optimizers.Adam, optimizers.Adafactor])
def test_layers_with_gradients_of_their_own_and_checkpoints(plan, kind, every):
    def model(k):
        layers = [Dense(150), LayerNorm(), Activation("tanh"), Dense(70, "tanh"), RMSNorm(), Dense(3)]
        network = nbbp.Sequential(layers, n_in=20, checkpoint_every=every)
        return nbbp.Model(network, LOSS, kind(0.01, clip_norm=0.1, accumulation_steps=k), dtype="float64")

    small, large, free = model(3), model(1), nbbp.Model(model(1).network, LOSS, kind(0.01), dtype="float64")
    batches = batches_for(small, [30, 17, 50, 41, 8, 50])
    train(small, batches)
    for other in (large, free):
        train(other, [joined(batches[:3]), joined(batches[3:])])
    assert_all_near(small.parameters, copies(large.parameters), tolerance=1e-9)
    assert np.abs(large.parameters["1.gamma"] - free.parameters["1.gamma"]).max() > 1e-5, "which clipping changed"


@pytest.mark.parametrize("way", ["nothing", "pickle", "file", "deepcopy"])
def test_a_sum_goes_on_over_epochs_calls_and_copies(way, plan, tmp_path):
    """Epochs of six batches, the last one short, four batches an update; interrupted in the middle of one."""
    model = network_model(optimizers.Adam(accumulation_steps=4, clip_norm=0.1, gradient_noise=1e-4), "float32")
    X, y = joined(batches_for(model, [44]))
    parts = [slice(start, min(start + 8, 44)) for start in range(0, 44, 8)]
    batches = [(X[part], y[part]) for part in parts]
    expected = oracle_updates(model, batches * 3)
    by_steps = copy.deepcopy(model)
    train(by_steps, batches * 3)

    model.fit(X, y, batch_size=8, shuffle=False, verbose=0)
    if way == "pickle":
        model = pickle.loads(pickle.dumps(model))
    elif way == "deepcopy":
        model = copy.deepcopy(model)
    elif way == "file":
        model.save(tmp_path / "m.safetensors")
        model = nbbp.load_model(tmp_path / "m.safetensors")
    model.fit(X, y, batch_size=8, shuffle=False, verbose=0)
    train(model, batches[:3])
    model.fit(X[24:], y[24:], batch_size=8, shuffle=False, verbose=0)
    assert model._session.step == 18
    assert_all_near(model.parameters, expected, "float32")
    assert model.parameter_vector.tobytes() == by_steps.parameter_vector.tobytes()
    unfinished = model._session.slots[-1]
    assert unfinished.size == model.network.n_parameters + 1
    assert unfinished[-1] == 12, "rows of the last two batches"


def test_more_batches_than_coefficients_are_computed_ahead():
    """Also with an update's batches on both sides of the seam, and with far more batches than there ever are."""
    large, small = (
        model_of([Dense(2)], 1, losses.MSE(), optimizer=optimizers.Adam(1e-3, accumulation_steps=k)) for k in (1, 3)
    )
    batches = [(x, y.astype("float64")) for x, y in batches_for(small, [1] * 1200)]
    train(small, batches)
    train(large, [joined(batches[i : i + 3]) for i in range(0, 1200, 3)])
    assert_all_near(small.parameters, copies(large.parameters))
    never = small_model("tanh", LOSS, optimizer=optimizers.SGD(accumulation_steps=2**31 - 1))
    before = copies(never.parameters)
    train(never, batches_for(never, [4] * 3))
    assert_all_near(never.parameters, before, tolerance=0.0)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_batch_of_infinite_loss_adds_nothing_and_updates_nothing(plan, bad):
    loss = losses.MSE()
    layers = [Dense(70, "tanh"), Dense(3)]
    model = model_of(layers, 20, loss, "float32", optimizers.SGD(0.1, momentum=0.5, accumulation_steps=3))
    twin = model_of(layers, 20, loss, "float32", optimizers.SGD(0.1, momentum=0.5))
    batches = [(x, y.astype("float32")) for x, y in batches_for(model, [9, 5, 8, 4, 7, 6, 3, 2, 1])]
    batches[3 + bad][1][0] = 1e30
    train(model, batches[:3])
    before = copies(model.parameters)
    given = [model.train_step(x, y) for x, y in batches[3:6]]
    assert [np.isfinite(value) for value in given] == [i != bad for i in range(3)]
    train(twin, [joined(batches[:3])])
    if bad == 2:
        assert_all_near(model.parameters, before, tolerance=0.0)
    else:
        train(twin, [joined([batch for i, batch in enumerate(batches[3:6]) if i != bad])])
    train(model, batches[6:])
    train(twin, [joined(batches[6:])])
    assert_all_near(model.parameters, copies(twin.parameters), "float32")


def test_divergence_forgets_the_sum():
    model = model_of([Dense(3)], 5, losses.MSE(), "float32", optimizers.SGD(1e30, accumulation_steps=2))
    X, y = features_for(32, 5, "float32"), targets_for(model.loss, 32, 3)
    with pytest.raises(nbbp.TrainingDiverged):
        model.fit(X, y, batch_size=4, epochs=9, verbose=0)
    assert np.isfinite(model.parameter_vector).all()
    assert model._session.step == 0
    assert not model._session.slot_buffer.any()
