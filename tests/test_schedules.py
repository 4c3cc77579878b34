"""Schedules: PyTorch's schedulers step by step, closed forms, groups, tables in pieces, errors."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbbp import optimizers, schedules
from nbbp.optimizer_base import DECOUPLED, RULE
from nbbp.optimizers import SGD, Adam, AdamW, NAdam
from nbbp.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseTime,
    MultiStep,
    OneCycle,
    Plateau,
    Polynomial,
    ReduceOnPlateau,
    Schedule,
    Step,
    WarmUp,
)

BASE, N = 0.3, 400

#: One of each that is a formula of its count alone.
FORMULAS = [
    Constant(BASE),
    Step(BASE, every=30),
    MultiStep(BASE, milestones=(5, 40, 100), factor=0.3),
    Exponential(BASE, factor=0.97),
    InverseTime(BASE, decay=0.5, every=10),
    Polynomial(BASE, steps=150, power=2.0, end=0.01),
    Cosine(BASE, steps=120, end=0.02),
    CosineRestarts(BASE, steps=7, growth=2, end=0.01),
    OneCycle(BASE, steps=130),
    WarmUp(Cosine(BASE, steps=100), steps=20),
]


def name_of(value):
    return type(value).__name__ if isinstance(value, Schedule) else None


def scheduled_by_torch(make, n, base=BASE):
    """The rates that PyTorch gives n steps in a row."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        for _ in range(n):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(rates) < n:
                scheduler.step()
    return rates


def behind(make, steps, start):
    """PyTorch's rise in front of another scheduler."""

    def made(torch, optimizer):
        rise = torch.LinearLR(optimizer, start_factor=start, total_iters=steps)
        return torch.SequentialLR(optimizer, [rise, make(torch, optimizer)], milestones=[steps])

    return made


def one_cycle(**settings):
    return lambda torch, o: torch.OneCycleLR(o, max_lr=BASE, total_steps=N, cycle_momentum=False, **settings)


OF_TORCH = [
    (Step(BASE, every=30), lambda torch, o: torch.StepLR(o, 30)),
    (Step(BASE, every=1, factor=0.99), lambda torch, o: torch.StepLR(o, 1, 0.99)),
    (MultiStep(BASE, milestones=(1, 50, 51, 300)), lambda torch, o: torch.MultiStepLR(o, [1, 50, 51, 300])),
    (MultiStep(BASE, milestones=(9, 9), factor=0.5), lambda torch, o: torch.MultiStepLR(o, [9, 9], 0.5)),
    (Exponential(BASE, factor=0.97), lambda torch, o: torch.ExponentialLR(o, 0.97)),
    (Polynomial(BASE, steps=300), lambda torch, o: torch.PolynomialLR(o, 300)),
    (Polynomial(BASE, steps=350, power=2.5), lambda torch, o: torch.PolynomialLR(o, 350, 2.5)),
    (Cosine(BASE, steps=N), lambda torch, o: torch.CosineAnnealingLR(o, N)),
    (Cosine(BASE, steps=N - 1, end=0.01), lambda torch, o: torch.CosineAnnealingLR(o, N - 1, 0.01)),
    (CosineRestarts(BASE, steps=30), lambda torch, o: torch.CosineAnnealingWarmRestarts(o, 30)),
    (CosineRestarts(BASE, steps=1), lambda torch, o: torch.CosineAnnealingWarmRestarts(o, 1)),
    (
        CosineRestarts(BASE, steps=7, growth=2, end=0.02),
        lambda torch, o: torch.CosineAnnealingWarmRestarts(o, 7, 2, 0.02),
    ),
    (OneCycle(BASE, steps=N), one_cycle()),
    (OneCycle(BASE, steps=N, curve="linear"), one_cycle(anneal_strategy="linear")),
    (
        OneCycle(BASE, steps=N, three_phases=True, rise=0.37, divisor=10.0),
        one_cycle(three_phase=True, pct_start=0.37, div_factor=10.0),
    ),
    (
        OneCycle(BASE, steps=N, three_phases=True, curve="linear", final_divisor=50.0),
        one_cycle(three_phase=True, anneal_strategy="linear", final_div_factor=50.0),
    ),
    (WarmUp(Constant(BASE), steps=50, start=0.2), lambda torch, o: torch.LinearLR(o, 0.2, 1.0, 50)),
    (WarmUp(Step(BASE, every=30), steps=50), behind(lambda torch, o: torch.StepLR(o, 30), 50, 0.01)),
    (
        WarmUp(Cosine(BASE, steps=N), steps=25, start=0.1),
        behind(lambda torch, o: torch.CosineAnnealingLR(o, N), 25, 0.1),
    ),
    (
        WarmUp(CosineRestarts(BASE, steps=9, growth=3), steps=1),
        behind(lambda torch, o: torch.CosineAnnealingWarmRestarts(o, 9, 3), 1, 0.01),
    ),
]


@pytest.mark.parametrize(("schedule", "make"), OF_TORCH, ids=name_of)
def test_pytorch_gives_the_same_rates(schedule, make):
    theirs = scheduled_by_torch(make, N)
    # PyTorch goes from rate to rate, so that near 0 only the rounding of the first rates is left.
    np.testing.assert_allclose(schedule.rates(range(N)), theirs, rtol=1e-12, atol=1e-14 * BASE)


def series(kind, n):
    """What a plateau is told: noise, a fall that stalls, the same with NaN and infinities."""
    random = np.random.default_rng(len(kind))
    if kind == "random":
        return random.uniform(0.5, 1.5, n)
    values = np.maximum(np.exp(-np.arange(n) / 40.0), 0.2) + random.normal(size=n) * 1e-4
    if kind == "broken":
        values[random.random(n) < 0.2] = np.nan
        values[[0, 1, 50]] = np.nan, np.inf, -np.inf
    return values


@pytest.mark.parametrize("kind", ["random", "stalling", "broken"])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(
    "changed",
    [
        {"patience": 3, "factor": 0.9},
        {"patience": 0, "factor": 0.7, "threshold": 0.01},
        {"patience": 2, "cooldown": 5, "end": 0.02, "factor": 0.5},
        {"patience": 1, "cooldown": 1, "factor": 0.5, "eps": 1e-3},
    ],
)
def test_pytorch_reduces_at_the_same_epochs(kind, mode, threshold_mode, changed):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    renamed = {{"end": "min_lr"}.get(name, name): value for name, value in changed.items()}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, threshold_mode=threshold_mode, **{"threshold": 1e-4, **renamed}
    )
    ours, state = ReduceOnPlateau(BASE, mode=mode, threshold_mode=threshold_mode, **changed), Plateau()
    values = series(kind, 300)
    for value in values if mode == "min" else 2.0 - values:
        theirs.step(value)
        state = ours.observe(state, float(value))
        expected = optimizer.param_groups[0]["lr"]
        np.testing.assert_allclose(ours.rates(state.reductions), expected, rtol=1e-12)
        assert (state.bad, state.cooldown) == (theirs.num_bad_epochs, theirs.cooldown_counter)
    assert state.reductions > 1


def test_closed_forms_without_pytorch():
    t = np.arange(200)
    np.testing.assert_array_equal(Constant(BASE).rates(t), np.full(200, BASE))
    # Keras: initial_learning_rate / (1 + decay_rate * step / decay_steps), rounded down with staircase
    expected = [BASE / (1 + 0.5 * k / 7) for k in range(200)]
    np.testing.assert_allclose(InverseTime(BASE, decay=0.5, every=7).rates(t), expected, rtol=1e-15)
    expected = [BASE / (1 + 0.5 * (k // 7)) for k in range(200)]
    np.testing.assert_allclose(InverseTime(BASE, decay=0.5, every=7, staircase=True).rates(t), expected, rtol=1e-15)
    expected = [0.1 + (BASE - 0.1) * (1 - min(k, 50) / 50) ** 3 for k in range(200)]
    np.testing.assert_allclose(Polynomial(BASE, steps=50, power=3, end=0.1).rates(t), expected, rtol=1e-15)
    rising = WarmUp(OneCycle(BASE, steps=60), steps=10, start=0.5).rates(t)
    assert rising[0] == pytest.approx(BASE / 25 / 2)
    np.testing.assert_allclose(rising[10:], OneCycle(BASE, steps=60).rates(t[:-10]))


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (Polynomial(BASE, steps=50), 0.0),
        (Polynomial(BASE, steps=50, end=0.02), 0.02),
        (Cosine(BASE, steps=50, end=0.02), 0.02),
        (OneCycle(BASE, steps=50), BASE / 25 / 1e4),
        (OneCycle(BASE, steps=50, curve="linear", three_phases=True), BASE / 25 / 1e4),
        (WarmUp(Cosine(BASE, steps=40, end=0.02), steps=10), 0.02),
    ],
    ids=name_of,
)
def test_beyond_the_end_the_last_rate_stays(schedule, last):
    beyond = schedule.rates([50, 51, 1000, 10**9])
    np.testing.assert_allclose(beyond, last, rtol=1e-12)
    assert schedule.rates(48) > last


@pytest.mark.parametrize("schedule", [*FORMULAS, ReduceOnPlateau(BASE, factor=0.5)], ids=name_of)
def test_rates_take_any_shape_and_a_rate_to_start_from(schedule):
    whole = schedule.rates(np.arange(60))
    np.testing.assert_array_equal(schedule.rates(np.arange(60).reshape(3, 4, 5)), whole.reshape(3, 4, 5))
    assert float(schedule.rates(17)) == whole[17]
    assert schedule.rates([]).shape == (0,)
    assert whole.dtype == np.float64
    assert schedule.base == BASE
    end = getattr(getattr(schedule, "learning_rate", None), "end", getattr(schedule, "end", 0.0))
    if end == 0.0:  # then the rates are in proportion
        np.testing.assert_allclose(schedule.rates(np.arange(60), 2 * BASE), 2 * whole, rtol=1e-12, atol=2e-8)
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert twin == schedule
        assert hash(twin) == hash(schedule)


def test_every_schedule_is_tested_and_named():
    tested = {type(schedule) for schedule in FORMULAS} | {ReduceOnPlateau}
    assert tested == set(schedules.BY_NAME.values())
    assert {"Schedule", "Plateau", "BY_NAME", *(kind.__name__ for kind in tested)} == set(schedules.__all__)


@pytest.mark.parametrize("schedule", FORMULAS, ids=name_of)
@settings(max_examples=30)
@given(first=st.integers(1, 10**6), lengths=st.lists(st.integers(0, 70), min_size=1, max_size=6))
def test_tables_in_pieces_make_up_the_table_in_one(schedule, first, lengths):
    optimizer = NAdam(schedule)  # the one whose own coefficients depend on those before
    of_weight = optimizer.settings("0.weight")
    whole = optimizer.coefficients(first, sum(lengths), of_weight)
    starts = first + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    pieces = [optimizer.coefficients(int(s), n, of_weight) for s, n in zip(starts, lengths, strict=True)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("name", optimizers.BY_NAME)
def test_a_line_of_the_table_is_that_of_its_rate_alone(name):
    schedule, kind = Exponential(0.1, factor=0.9), optimizers.BY_NAME[name]
    scheduled = kind(schedule, weight_decay=0.1)
    table = scheduled.coefficients(1, 30, scheduled.settings("0.weight"))
    held = scheduled.coefficients(1, 30, scheduled.settings("0.weight"), count=12)
    for step in (1, 2, 13, 30):
        for lines, rate in ((table, 0.1 * 0.9 ** (step - 1)), (held, 0.1 * 0.9**12)):
            plain = kind(rate, weight_decay=0.1)
            expected = plain.coefficients(step, 1, plain.settings("0.weight"))[0]
            np.testing.assert_allclose(lines[step - 1], expected, rtol=1e-14)


def test_groups_go_through_the_schedule_from_their_own_rate():
    groups = {"*.bias": {"learning_rate": 0.5}, "1.*": {"learning_rate": 0.0}, "2.*": {"l1": 0.1}}
    optimizer = AdamW(Cosine(BASE, steps=20, end=0.01), weight_decay=0.2, groups=groups)
    rates = {}
    for name in ("0.weight", "0.bias", "1.weight", "2.weight"):
        plain = SGD(optimizer.learning_rate, groups=groups)
        rates[name] = plain.coefficients(1, 30, plain.settings(name))[:, RULE]
        decay = 0.0 if name == "0.bias" else 0.2
        table = optimizer.coefficients(1, 30, optimizer.settings(name))
        np.testing.assert_allclose(table[:, DECOUPLED], 1.0 - rates[name] * decay, rtol=1e-15)
    np.testing.assert_array_equal(rates["0.weight"], Cosine(BASE, steps=20, end=0.01).rates(range(30)))
    np.testing.assert_array_equal(rates["0.bias"], Cosine(0.5, steps=20, end=0.01).rates(range(30)))
    np.testing.assert_array_equal(rates["2.weight"], rates["0.weight"])
    assert not rates["1.weight"].any()  # although the schedule's end is above 0


REFUSED = [
    (lambda: Schedule(0.1), TypeError, "Schedule is only what schedules share; take one of nbbp.schedules.BY_NAME"),
    (lambda: Constant("0.1"), TypeError, "learning_rate of Constant must be a number; got '0.1'"),
    (lambda: Constant(True), TypeError, "learning_rate of Constant must be a number"),
    (lambda: Constant(0.0), ValueError, "learning_rate of Constant must be above 0 and finite; got 0.0"),
    (lambda: Constant(math.nan), ValueError, "got nan"),
    (lambda: Constant(0.1, unit="update"), ValueError, "unit of Constant must be 'step' or 'epoch'; got 'update'"),
    (lambda: Step(0.1, every=0), ValueError, "every of Step must be at least 1"),
    (lambda: Step(0.1, every=2.0), TypeError, "every of Step must be an integer"),
    (lambda: Step(0.1, every=2, factor=0.0), ValueError, "factor of Step must be above 0"),
    (
        lambda: MultiStep(0.1, milestones=30),
        TypeError,
        r"milestones of MultiStep must be a sequence such as \(30, 60\)",
    ),
    (lambda: MultiStep(0.1, milestones=()), TypeError, "milestones of MultiStep"),
    (lambda: MultiStep(0.1, milestones=(0, 3)), ValueError, "a milestone of MultiStep must be at least 1"),
    (lambda: MultiStep(0.1, milestones=(5, 3)), ValueError, r"milestones of MultiStep must rise; got \(5, 3\)"),
    (lambda: Exponential(0.1, factor=-1), ValueError, "factor of Exponential"),
    (lambda: InverseTime(0.1, decay=-1), ValueError, "decay of InverseTime must be at least 0"),
    (lambda: InverseTime(0.1, decay=1, staircase="no"), TypeError, "staircase of InverseTime must be True or False"),
    (lambda: Polynomial(0.1, steps=9, power=0), ValueError, "power of Polynomial must be above 0"),
    (lambda: Polynomial(0.1, steps=9, end=-1), ValueError, "end of Polynomial must be at least 0"),
    (lambda: Cosine(0.1, steps=True), TypeError, "steps of Cosine must be an integer"),
    (lambda: CosineRestarts(0.1, steps=9, growth=0), ValueError, "growth of CosineRestarts must be at least 1"),
    (lambda: OneCycle(0.1, steps=9, rise=1.0), ValueError, "rise of OneCycle must be above 0 and below 1"),
    (lambda: OneCycle(0.1, steps=9, divisor=0.5), ValueError, "divisor of OneCycle must be at least 1"),
    (lambda: OneCycle(0.1, steps=9, curve="sine"), ValueError, "curve of OneCycle must be 'cosine' or 'linear'"),
    (lambda: OneCycle(0.1, steps=3), ValueError, "rise of OneCycle leaves no way up or down in so few steps"),
    (lambda: OneCycle(0.1, steps=9, rise=0.6, three_phases=True), ValueError, "rise of OneCycle leaves no way"),
    (lambda: OneCycle(0.1, steps=9, three_phases=1), TypeError, "three_phases of OneCycle must be True or False"),
    (lambda: WarmUp("0.1", steps=9), TypeError, "must be a number; got '0.1'"),
    (lambda: WarmUp(0.1, steps=9, start=1.0), ValueError, "start of WarmUp must be at least 0 and below 1"),
    (lambda: WarmUp(WarmUp(0.1, steps=2), steps=2), TypeError, "WarmUp stands before a schedule of its count alone"),
    (lambda: WarmUp(ReduceOnPlateau(0.1), steps=2), TypeError, "got ReduceOnPlateau"),
    (lambda: WarmUp(Step(0.1, every=2), steps=2, unit="epoch"), ValueError, "unit of WarmUp must be .* 'step'"),
    (lambda: WarmUp(0.1, steps=2, unit="day"), ValueError, "'step' or 'epoch'; got 'day'"),
    (lambda: ReduceOnPlateau(0.1, unit="step"), ValueError, "unit of ReduceOnPlateau can only be 'epoch'"),
    (lambda: ReduceOnPlateau(0.1, factor=1.0), ValueError, "factor of ReduceOnPlateau must be above 0 and below 1"),
    (lambda: ReduceOnPlateau(0.1, mode="less"), ValueError, "mode of ReduceOnPlateau must be 'min' or 'max'"),
    (lambda: ReduceOnPlateau(0.1, threshold_mode="x"), ValueError, "threshold_mode of ReduceOnPlateau must be"),
    (lambda: ReduceOnPlateau(0.1, patience=-1), ValueError, "patience of ReduceOnPlateau must be at least 0"),
    (lambda: ReduceOnPlateau(0.1, cooldown=False), TypeError, "cooldown of ReduceOnPlateau must be an integer"),
    (lambda: ReduceOnPlateau(0.1, monitor=""), TypeError, "monitor of ReduceOnPlateau must be a name"),
    (lambda: Adam(groups={"*": {"learning_rate": Constant(0.1)}}), TypeError, "must be a number; got Constant"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_unit_behind_a_rise_is_that_of_the_schedule():
    assert WarmUp(0.1, steps=3).unit == "step"
    assert WarmUp(0.1, steps=3, unit="epoch").learning_rate == Constant(0.1, unit="epoch")
    assert WarmUp(Step(0.1, every=3, unit="epoch"), steps=3).unit == "epoch"
