"""Schedules in files: every kind comes back, standing where it stood; and files whose schedules are none."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from engine_cases import features_for

import nbbp
from nbbp import description
from nbbp import schedules as s
from nbbp.description_parts import clock_to_data
from nbbp.layers import Dense
from nbbp.optimizers import SGD, Adam

SCHEDULES = [
    s.Constant(0.1),
    s.Step(0.1, every=3, unit="epoch"),
    s.MultiStep(0.1, milestones=[2, 5], factor=0.5),
    s.Exponential(0.1, factor=0.9),
    s.InverseTime(0.1, decay=0.5, staircase=True),
    s.Polynomial(0.1, steps=30, power=2.0, end=0.01),
    s.Cosine(0.1, steps=20),
    s.CosineRestarts(0.1, steps=4, growth=2, unit="epoch"),
    s.OneCycle(0.1, steps=30, curve="linear", three_phases=True),
    s.WarmUp(s.Cosine(0.1, steps=3, unit="epoch"), steps=2),
    s.WarmUp(0.1, steps=5),
    s.ReduceOnPlateau(0.1, patience=0, threshold=0.5, monitor="val_loss", cooldown=1),
]


def model_of(optimizer):
    return nbbp.Model(nbbp.Sequential([Dense(4, "tanh"), Dense(2)], 3), "mse", optimizer)


def test_all_kinds_are_here():
    assert {type(schedule) for schedule in SCHEDULES} == set(s.BY_NAME.values())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_training_goes_on_to_the_same_bits(tmp_path, schedule):
    x, y = features_for(20, 3, "float32"), features_for(20, 2, "float32", 1)
    model = model_of(Adam(schedule, groups={"*.bias": {"learning_rate": 0.3}}))
    fit = {"batch_size": 8, "epochs": 3, "verbose": 0, "validation_data": (x, y)}
    model.fit(x, y, **fit)
    model.train_step(x, y)
    model.save(tmp_path / "m")
    loaded = nbbp.load_model(tmp_path / "m")
    assert loaded.optimizer == model.optimizer
    assert vars(loaded._session.clock) == vars(model._session.clock)
    rates = [one.fit(x, y, **fit)["learning_rate"] for one in (model, loaded)]
    assert rates[0] == rates[1]
    np.testing.assert_array_equal(loaded.parameter_vector, model.parameter_vector)


def test_a_schedule_of_the_users_own_is_refused(tmp_path):
    class Own(s.Schedule):
        name = "own"

    with pytest.raises(TypeError, match=r"the schedule is .*Own.*whose code a file cannot hold"):
        model_of(SGD(Own(0.1))).save(tmp_path / "m")
    assert not list(Path(tmp_path).iterdir())


PLATEAU = clock_to_data((0, s.Plateau()))["plateau"]


@pytest.mark.parametrize(
    ("rate", "clock", "message"),
    [
        ({"name": "step"}, None, "the schedule must be an object with 'name', 'settings'"),
        ({"name": "sgd", "settings": {}}, None, "unknown schedule 'sgd'"),
        ({"name": "exponential", "settings": {"learning_rate": 0.1}}, None, "settings of the schedule 'exponential'"),
        ({"name": "constant", "settings": {"learning_rate": -1, "unit": "step"}}, None, "must be above 0"),
        ([0.1], None, "learning_rate of SGD must be a number"),
        (0.1, {"epoch": 1}, "the clock must be an object"),
        (0.1, {"epoch": -1, "plateau": PLATEAU}, "epoch of the clock must be an integer from 0"),
        (0.1, {"epoch": 1, "plateau": PLATEAU | {"bad": 1.5}}, "bad of the clock must be an integer from 0"),
        (0.1, {"epoch": 1, "plateau": PLATEAU | {"best": "0"}}, "best of the plateau must be null or a finite number"),
        (0.1, {"epoch": 1, "plateau": {}}, "the plateau must be an object"),
    ],
)
def test_what_is_none_is_refused(rate, clock, message):
    data = json.loads(description.to_text(described(SGD(0.1))))
    data["optimizer"]["settings"]["learning_rate"] = rate
    data["clock"] = data["clock"] if clock is None else clock
    with pytest.raises(ValueError, match=message):
        description.from_text(json.dumps(data))


def described(optimizer):
    network = nbbp.Sequential([Dense(2)], 3)
    parts = network, nbbp.losses.MSE(), optimizer, (), "float32", 0, 0, 0, (0, s.Plateau()), "float32", None, None
    return description.Description(*parts)


def test_a_plateau_that_claims_reductions_without_end_costs_no_time():
    start = time.perf_counter()
    assert s.ReduceOnPlateau(0.1, end=0.01).rates(1 << 40) == pytest.approx(0.01)
    assert time.perf_counter() - start < 1
