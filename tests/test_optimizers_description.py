"""Optimizer descriptions: settings, groups, coefficient tables, errors."""

import copy
import dataclasses
import inspect
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbbp import optimizers
from nbbp.optimizer_base import COUPLED_L2, DECOUPLED, L1, N_COLUMNS, RULE
from nbbp.optimizers import (
    BY_NAME,
    SGD,
    Adafactor,
    Adam,
    AdamW,
    Lion,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Settings,
)
from nbbp.scalars.updates import N_COEFFICIENTS, UPDATES

OF_TORCH = {
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adamw": "AdamW",
    "adamax": "Adamax",
    "nadam": "NAdam",
    "radam": "RAdam",
    "adafactor": "Adafactor",
}
NAME_IN_TORCH = {
    "learning_rate": "lr",
    "learning_rate_decay": "lr_decay",
    "initial_accumulator": "initial_accumulator_value",
}


def table(optimizer, first_step=1, n_steps=10, name="0.weight"):
    return optimizer.coefficients(first_step, n_steps, optimizer.settings(name))


@pytest.mark.parametrize("name", BY_NAME)
def test_get_by_name(name):
    optimizer = optimizers.get(name)
    assert type(optimizer) is BY_NAME[name]
    assert optimizer.name == name
    assert optimizers.get(optimizer) is optimizer


@pytest.mark.parametrize("name", OF_TORCH)
def test_defaults_are_those_of_torch(name):
    torch = pytest.importorskip("torch")
    theirs = inspect.signature(getattr(torch.optim, OF_TORCH[name])).parameters
    optimizer = optimizers.get(name)
    n_compared = 0
    for setting in dataclasses.fields(optimizer):
        other = NAME_IN_TORCH.get(setting.name, setting.name)
        # PyTorch's SGD now takes 1e-3; Keras, and PyTorch's own examples, 0.01.
        if other in theirs and (name, other) != ("sgd", "lr"):
            assert getattr(optimizer, setting.name) == pytest.approx(theirs[other].default), setting.name
            n_compared += 1
    assert n_compared >= 2


@pytest.mark.parametrize("optimizer", [*map(optimizers.get, BY_NAME), NAdam(betas=(0.999, 0.9)), SGD(momentum=0.5)])
@given(
    first=st.integers(1, 10**6),
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=6),
)
def test_blocks_make_up_the_table_in_one_piece(optimizer, first, lengths):
    whole = table(optimizer, first, sum(lengths))
    starts = first + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    blocks = [table(optimizer, int(start), length) for start, length in zip(starts, lengths, strict=True)]
    assert whole.shape == (sum(lengths), N_COLUMNS)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("name", BY_NAME)
def test_table_is_finite_float64_of_eleven_columns(name):
    optimizer = optimizers.get(name)
    for first_step in (1, 1000, 10**9):
        values = table(optimizer, first_step, 7)
        assert values.dtype == np.float64
        assert values.shape == (7, 11)
        assert np.isfinite(values).all()
    assert table(optimizer, 5, 0).shape == (0, 11)


@pytest.mark.parametrize("name", BY_NAME)
def test_rule_and_slots(name):
    optimizer = optimizers.get(name)
    if name == "adafactor":
        assert (optimizer.rule, optimizer.n_slots) == ("adafactor", 2)
    else:
        assert optimizer.n_slots == UPDATES[optimizer.rule].n_slots
    assert N_COLUMNS == RULE + N_COEFFICIENTS == 11


def test_rule_follows_the_settings():
    assert SGD().rule == "sgd"
    assert SGD(momentum=0.5).rule == "sgd_momentum"
    assert SGD(momentum=0.5, nesterov=True).rule == "sgd_nesterov"
    assert RMSprop(centered=True).rule == "rmsprop_centered"
    assert RMSprop(centered=True, momentum=0.1).rule == "rmsprop_centered_momentum"
    assert RMSprop(momentum=0.1).rule == "rmsprop_momentum"
    assert Adam(amsgrad=True).rule == AdamW(amsgrad=True).rule == "adam_amsgrad"


def test_penalty_columns():
    coupled = table(Adam(0.1, weight_decay=0.2, l1=0.3))
    assert (coupled[:, [COUPLED_L2, L1, DECOUPLED]] == [0.2, 0.3, 1.0]).all()
    decoupled = table(Adam(0.1, weight_decay=0.2, l1=0.3, decoupled=True))
    assert (decoupled[:, [COUPLED_L2, L1, DECOUPLED]] == [0.0, 0.3, 1.0 - 0.1 * 0.2]).all()
    np.testing.assert_array_equal(coupled[:, RULE:], decoupled[:, RULE:])


def test_decay_is_for_weights_only_unless_asked_for():
    optimizer = AdamW(weight_decay=0.1, l1=0.2)
    assert optimizer.settings("0.weight") == Settings(1e-3, 0.1, 0.2)
    assert optimizer.settings("0.bias") == Settings(1e-3, 0.0, 0.0)
    assert optimizer.settings("3.scale") == Settings(1e-3, 0.0, 0.0)
    everywhere = dataclasses.replace(optimizer, decay_bias=True)
    assert everywhere.settings("0.bias") == Settings(1e-3, 0.1, 0.2)


def test_groups_override_and_the_last_match_holds():
    optimizer = SGD(
        0.5,
        weight_decay=0.1,
        groups={
            "*.bias": {"learning_rate": 1.0, "weight_decay": 0.3},
            "1.*": {"learning_rate": 0.0},
            "[23].weight": {"l1": 0.7, "weight_decay": 0.0},
        },
    )
    assert optimizer.settings("0.weight") == Settings(0.5, 0.1, 0.0)
    assert optimizer.settings("0.bias") == Settings(1.0, 0.3, 0.0)
    assert optimizer.settings("1.bias") == Settings(0.0, 0.3, 0.0)
    assert optimizer.settings("3.weight") == Settings(0.5, 0.0, 0.7)
    assert optimizer.settings("3.WEIGHT") == Settings(0.5, 0.0, 0.0)
    assert (table(optimizer, name="1.weight")[:, RULE] == 0.0).all()


def test_groups_are_a_copy():
    groups = {"*": {"l1": 0.5}}
    optimizer = SGD(groups=groups)
    groups["*"]["l1"] = 9.0
    assert optimizer.settings("0.weight").l1 == 0.5


def test_descriptions_are_values():
    first, second = Adam(1e-2, groups={"*": {"l1": 1}}), Adam(np.float64(0.01), groups={"*": {"l1": 1.0}})
    assert first == second
    assert hash(first) == hash(second)
    assert first != Adam(1e-2)
    assert Adam() != AdamW()
    assert type(second.learning_rate) is float
    assert Adam(betas=[0.5, 0.6]) == Adam(betas=(0.5, 0.6))
    assert hash(first.settings("0.weight")) == hash(second.settings("0.weight"))
    for other in (
        pickle.loads(pickle.dumps(first)),
        copy.deepcopy(first),
        eval(repr(first), vars(optimizers)),
    ):
        assert other == first
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.learning_rate = 1.0


def test_nadam_product_of_momenta_far_from_the_start():
    optimizer = NAdam(betas=(0.99, 0.999))
    n = 6000
    steps = np.arange(1.0, n + 1.0)
    mu = 0.99 * (1.0 - 0.5 * 0.96 ** (steps * optimizer.momentum_decay))
    expected = optimizer.learning_rate * (1.0 - mu) / (1.0 - np.cumprod(mu))
    np.testing.assert_allclose(table(optimizer, 1, n)[:, RULE], expected, rtol=1e-15)
    np.testing.assert_allclose(table(optimizer, 5990, 11)[:, RULE], expected[5989:], rtol=1e-15)
    assert np.isfinite(table(NAdam(betas=(0.0, 0.9)))).all()


def test_radam_rectifies_when_the_average_is_long_enough():
    rectified = table(RAdam(), 1, 10)[:, RULE + 6]
    assert rectified.tolist() == [0.0] * 5 + [1.0] * 5
    for beta2 in (0.0, 0.5, 0.6, 0.65):
        values = table(RAdam(betas=(0.9, beta2)), 1, 100)
        assert np.isfinite(values).all()
        assert not values[:, RULE + 6].any()


def test_sgd_velocity_starts_as_the_first_gradient():
    values = table(SGD(momentum=0.9, dampening=0.25), 1, 3)
    assert values[:, RULE + 2].tolist() == [1.0, 0.75, 0.75]
    assert table(SGD(momentum=0.9, dampening=0.25), 2, 1)[0, RULE + 2] == 0.75


def adafactor_step(w, g, rows, columns, line, dtype_eps):
    """Adafactor's kernel for one parameter, as its docstring gives the coefficients."""
    new, rate, eps1, eps2, d = line[RULE : RULE + 5]
    eps1 = eps1 or dtype_eps
    rate = rate * max(eps2, math.sqrt(np.mean(w * w)))
    w = w * line[DECOUPLED]
    if w.ndim == 2:
        rows += new * ((g * g).mean(axis=1) - rows)
        columns += new * ((g * g).mean(axis=0) - columns)
        variance = np.outer(rows, columns) / max(rows.mean(), eps1)
    else:
        rows += new * (g * g - rows)
        variance = rows
    update = g / np.sqrt(np.maximum(variance, eps1 * eps1))
    return w - rate / max(1.0, math.sqrt(np.mean(update * update)) / d) * update


@pytest.mark.parametrize("shape", [(5, 7), (7,)])
@pytest.mark.parametrize("eps1", [None, 0.1])
def test_adafactor_coefficients_do_what_torch_does(shape, eps1):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    w = random.normal(size=shape)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    settings = {"beta2_decay": -0.7, "eps": (eps1, 1e-2), "d": 1.1, "weight_decay": 0.1}
    theirs = torch.optim.Adafactor([parameter], lr=0.05, **settings)
    ours = Adafactor(0.05, decay_bias=True, **settings)
    rows, columns = np.zeros(shape[0]), np.zeros(shape[-1])
    for line in table(ours, 1, 50):
        g = random.normal(size=shape)
        parameter.grad = torch.from_numpy(g)
        theirs.step()
        w = adafactor_step(w, g, rows, columns, line, np.finfo(np.float64).eps)
    np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=1e-12, atol=1e-12)


REFUSED = [
    (lambda: Adam(0.0), ValueError, r"learning_rate of Adam must be above 0 and finite; got 0\.0"),
    (lambda: Adam(-1), ValueError, "learning_rate of Adam"),
    (lambda: Adam(math.nan), ValueError, "got nan"),
    (lambda: Adam(math.inf), ValueError, "got inf"),
    (lambda: Adam("0.1"), TypeError, "learning_rate of Adam must be a number; got '0.1'"),
    (lambda: Adam(True), TypeError, "must be a number"),
    (lambda: Adam(betas=(0.9, 1.0)), ValueError, r"betas\[1\] of Adam must be in \[0, 1\); got 1.0"),
    (lambda: Adam(betas=(-0.1, 0.9)), ValueError, r"betas\[0\]"),
    (lambda: Adam(betas=0.9), TypeError, "betas of Adam must be two numbers"),
    (lambda: Adam(betas=(0.9,)), TypeError, "two numbers"),
    (lambda: Adam(eps=0.0), ValueError, "eps of Adam must be above 0"),
    (lambda: Adam(weight_decay=-0.1), ValueError, "weight_decay of Adam must be at least 0"),
    (lambda: Adam(l1=math.inf), ValueError, "l1 of Adam"),
    (lambda: Adam(amsgrad=1), TypeError, "amsgrad of Adam must be True or False"),
    (lambda: Adam(decoupled="yes"), TypeError, "decoupled of Adam must be True or False"),
    (lambda: SGD(momentum=1.0), ValueError, "momentum of SGD"),
    (lambda: SGD(momentum=0.9, dampening=1.1), ValueError, r"dampening of SGD must be in \[0, 1\]"),
    (lambda: SGD(nesterov=True), ValueError, "nesterov of SGD takes momentum above 0 and dampening 0"),
    (lambda: SGD(momentum=0.9, dampening=0.1, nesterov=True), ValueError, "nesterov of SGD"),
    (lambda: RMSprop(alpha=1.0), ValueError, "alpha of RMSprop"),
    (lambda: NAdam(momentum_decay=-1.0), ValueError, "momentum_decay of NAdam"),
    (lambda: Lion(betas=(0.9, 2.0)), ValueError, r"betas\[1\] of Lion"),
    (
        lambda: Adafactor(eps=(0.0, 1e-3)),
        ValueError,
        r"eps\[0\] of Adafactor must be above 0 and finite, or None",
    ),
    (lambda: Adafactor(eps=(None, None)), TypeError, r"eps\[1\] of Adafactor must be a number"),
    (lambda: Adafactor(d=0.5), ValueError, "d of Adafactor must be at least 1"),
    (lambda: Adafactor(beta2_decay=0.8), ValueError, "beta2_decay of Adafactor must be at most 0"),
    (
        lambda: Adam(groups={"*": {"lr": 1.0}}),
        ValueError,
        "'lr'; a group can set learning_rate, weight_decay, l1",
    ),
    (
        lambda: Adam(groups={"*": {"l1": -1.0}}),
        ValueError,
        r"groups\['\*'\]\['l1'\] of Adam must be at least 0",
    ),
    (lambda: Adam(groups={"*": 1.0}), TypeError, "groups of Adam must be a mapping"),
    (lambda: Adam(groups=[("*", {})]), TypeError, "groups of Adam must be a mapping"),
    (lambda: Optimizer(), TypeError, "Optimizer is only what optimizers share"),
    (lambda: optimizers.get("adma"), ValueError, "unknown optimizer 'adma'.*There are: sgd, adagrad"),
    (lambda: optimizers.get(Adam), TypeError, r"such as Adam\(\); got the class Adam"),
    (lambda: optimizers.get(3), TypeError, "got 3"),
    (lambda: table(Adam(), 0), ValueError, "steps count from 1"),
    (lambda: table(Adam(), 1, -1), ValueError, "n_steps=-1"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
