"""Update rules and their coefficients: equal to PyTorch, vectorised, without doubles, and they converge."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from nbbp import optimizers
from nbbp.scalars.updates import N_COEFFICIENTS, UPDATES, penalized_gradient, update_rule

N_STEPS = 50
DTYPES = [np.float32, np.float64]

# Every rule, by optimizers that use it; with PyTorch's name and arguments where it has one.
CASES = {
    "sgd": (optimizers.SGD(0.05), "SGD", {"lr": 0.05}),
    "sgd-l2": (
        optimizers.SGD(0.05, weight_decay=0.1, decay_bias=True),
        "SGD",
        {"lr": 0.05, "weight_decay": 0.1},
    ),
    "momentum": (optimizers.SGD(0.05, momentum=0.9), "SGD", {"lr": 0.05, "momentum": 0.9}),
    "dampening": (
        optimizers.SGD(0.05, momentum=0.9, dampening=0.3, weight_decay=0.1, decay_bias=True),
        "SGD",
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    ),
    "nesterov": (
        optimizers.SGD(0.05, momentum=0.8, nesterov=True),
        "SGD",
        {"lr": 0.05, "momentum": 0.8, "nesterov": True},
    ),
    "adagrad": (optimizers.AdaGrad(), "Adagrad", {}),
    "adagrad-decay": (
        optimizers.AdaGrad(0.1, learning_rate_decay=0.1, initial_accumulator=0.2),
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2},
    ),
    "adadelta": (optimizers.Adadelta(), "Adadelta", {}),
    "rmsprop": (optimizers.RMSprop(), "RMSprop", {}),
    "rmsprop-momentum": (optimizers.RMSprop(momentum=0.9), "RMSprop", {"momentum": 0.9}),
    "rmsprop-centered": (
        optimizers.RMSprop(alpha=0.9, centered=True),
        "RMSprop",
        {"alpha": 0.9, "centered": True},
    ),
    "rmsprop-centered-momentum": (
        optimizers.RMSprop(alpha=0.9, centered=True, momentum=0.5),
        "RMSprop",
        {"alpha": 0.9, "centered": True, "momentum": 0.5},
    ),
    "adam": (optimizers.Adam(), "Adam", {}),
    "adam-l2": (
        optimizers.Adam(0.01, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1, decay_bias=True),
        "Adam",
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
    ),
    "amsgrad": (
        optimizers.Adam(0.01, betas=(0.8, 0.6), amsgrad=True),
        "Adam",
        {"lr": 0.01, "betas": (0.8, 0.6), "amsgrad": True},
    ),
    "adamw": (optimizers.AdamW(0.01, decay_bias=True), "AdamW", {"lr": 0.01}),
    "adamax": (optimizers.Adamax(), "Adamax", {}),
    "adamax-betas": (optimizers.Adamax(betas=(0.5, 0.7)), "Adamax", {"betas": (0.5, 0.7)}),
    "nadam": (optimizers.NAdam(), "NAdam", {}),
    "nadam-decoupled": (
        optimizers.NAdam(0.01, momentum_decay=0.1, weight_decay=0.1, decoupled=True, decay_bias=True),
        "NAdam",
        {"lr": 0.01, "momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "radam": (optimizers.RAdam(0.01), "RAdam", {"lr": 0.01}),
    "radam-never-rectified": (
        optimizers.RAdam(0.01, betas=(0.9, 0.5)),
        "RAdam",
        {"lr": 0.01, "betas": (0.9, 0.5)},
    ),
    "lion": (optimizers.Lion(), None, {}),
    "lion-decay": (
        optimizers.Lion(0.01, betas=(0.8, 0.9), weight_decay=0.1, decay_bias=True),
        None,
        {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1},
    ),
}


def problem():
    """Initial parameters (n,) and one gradient per step (N_STEPS, n), of very different sizes."""
    random = np.random.default_rng(0)
    n = 37
    return random.normal(size=n), random.normal(size=(N_STEPS, n)) * 10.0 ** random.integers(-3, 2, n)


def after_torch(class_name, arguments):
    torch = pytest.importorskip("torch")
    w, gradients = problem()
    # NAdam keeps its product of momenta in the default dtype.
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        parameter = torch.nn.Parameter(torch.from_numpy(w))
        optimizer = getattr(torch.optim, class_name)([parameter], **arguments)
        for gradient in gradients:
            parameter.grad = torch.from_numpy(gradient.copy())
            optimizer.step()
    finally:
        torch.set_default_dtype(default)
    return parameter.detach().numpy()


def after_lion(lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    """Chen et al., 2023, algorithm 2."""
    w, gradients = problem()
    m = np.zeros_like(w)
    for g in gradients:
        w = w - lr * (np.sign(betas[0] * m + (1.0 - betas[0]) * g) + weight_decay * w)
        m = betas[1] * m + (1.0 - betas[1]) * g
    return w


def expected_result(case):
    _, class_name, arguments = CASES[case]
    return after_lion(**arguments) if class_name is None else after_torch(class_name, arguments)


def one_step(code, w, g, slots, line):
    """One update of arrays (n,) by the rule in plain Python, in place."""
    number = w.dtype.type
    l2, l1, multiplier, *c = (number(value) for value in line)
    for i in range(w.size):
        gradient = penalized_gradient(w[i], g[i], l2, l1)
        w[i], slots[0, i], slots[1, i], slots[2, i] = update_rule(
            code, w[i] * multiplier, gradient, slots[0, i], slots[1, i], slots[2, i], tuple(c)
        )


def make_compiled_step(code):
    """The same as a jitted loop; the code is a constant of the closure."""

    @njit(error_model="numpy")
    def step(w, g, s0, s1, s2, l2, l1, multiplier, c):
        for i in range(w.size):
            gradient = penalized_gradient(w[i], g[i], l2, l1)
            w[i], s0[i], s1[i], s2[i] = update_rule(code, w[i] * multiplier, gradient, s0[i], s1[i], s2[i], c)

    return step


COMPILED_STEPS = {rule.name: make_compiled_step(rule.code) for rule in UPDATES.values()}


def compiled_step(name, w, g, slots, line):
    l2, l1, multiplier, *c = (w.dtype.type(value) for value in line)
    COMPILED_STEPS[name](w, g, *slots, l2, l1, multiplier, tuple(c))


def table_of(optimizer):
    return optimizer.coefficients(1, N_STEPS, optimizer.settings("0.weight"))


def test_cases_cover_every_rule_and_optimizer():
    chosen = [case[0] for case in CASES.values()]
    assert {optimizer.rule for optimizer in chosen} == set(UPDATES)
    assert {type(optimizer) for optimizer in chosen} == set(optimizers.BY_NAME.values()) - {optimizers.Adafactor}


def test_registry():
    assert [rule.code for rule in UPDATES.values()] == list(range(len(UPDATES)))
    assert all(name == rule.name == rule.apply.__name__ for name, rule in UPDATES.items())


@pytest.mark.parametrize("case", CASES)
def test_float64_equals_torch(case):
    optimizer = CASES[case][0]
    w, gradients = problem()
    slots = np.zeros((3, w.size))
    for g, line in zip(gradients, table_of(optimizer), strict=True):
        one_step(UPDATES[optimizer.rule].code, w, g, slots, line)
    np.testing.assert_allclose(w, expected_result(case), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("case", CASES)
def test_compiled_equals_torch(case, dtype, tolerance):
    optimizer = CASES[case][0]
    w, gradients = problem()
    w, gradients = w.astype(dtype), gradients.astype(dtype)
    slots = np.zeros((3, w.size), dtype)
    for g, line in zip(gradients, table_of(optimizer), strict=True):
        compiled_step(optimizer.rule, w, g, slots, line)
    np.testing.assert_allclose(w, expected_result(case), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", UPDATES)
def test_python_keeps_float32(name):
    one = np.float32(0.5)
    results = update_rule(UPDATES[name].code, one, one, one, one, one, (one,) * N_COEFFICIENTS)
    assert [type(result) for result in results] == [np.float32] * 4


@pytest.mark.parametrize("name", UPDATES)
def test_slots_that_a_rule_does_not_use_stay(name):
    slots = np.array([[0.25], [0.5], [0.1]])
    before = slots.copy()
    w, g = np.ones(1), np.full(1, 0.3)
    one_step(UPDATES[name].code, w, g, slots, [0.0, 0.0, 1.0] + [0.5] * N_COEFFICIENTS)
    changed = (slots != before).ravel()
    assert changed.tolist() == [i < UPDATES[name].n_slots for i in range(3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", ["python", "compiled"])
@pytest.mark.parametrize("case", CASES)
def test_nan_in_the_gradient_stays_visible(case, step, dtype):
    optimizer = CASES[case][0]
    w = np.ones(20, dtype)
    g = np.full(20, 0.5, dtype)
    g[3] = np.nan
    slots = np.zeros((3, 20), dtype)
    for i, line in enumerate(table_of(optimizer)[:4]):
        if i == 1:
            g[3] = 0.5
        if step == "python":
            one_step(UPDATES[optimizer.rule].code, w, g, slots, line)
        else:
            compiled_step(optimizer.rule, w, g, slots, line)
        np.testing.assert_array_equal(np.isnan(w), np.arange(20) == 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if "l2" not in case and "dampening" not in case])
def test_zero_gradient_changes_nothing_but_by_decay(case, dtype):
    optimizer = CASES[case][0]
    w = np.linspace(-2.0, 2.0, 20).astype(dtype)
    expected = w.copy()
    slots = np.zeros((3, 20), dtype)
    for line in table_of(optimizer):
        compiled_step(optimizer.rule, w, np.zeros(20, dtype), slots, line)
        expected *= dtype(line[2])
    np.testing.assert_array_equal(w, expected)
    assert not slots[0].any()


def test_centered_variance_that_rounding_made_negative_counts_as_zero():
    name = "rmsprop_centered"
    w, g = np.ones(20, np.float32), np.full(20, 0.1, np.float32)
    slots = np.zeros((3, 20), np.float32)
    table = optimizers.RMSprop(centered=True, alpha=0.5).coefficients(1, 200, optimizers.RMSprop().settings("0.weight"))
    for line in table:
        compiled_step(name, w, g, slots, line)
    assert (slots[0] - slots[1] * slots[1] <= 1e-9).all()
    assert np.isfinite(w).all()


@njit
def compiled_penalized_gradient(w, g, l2, l1):
    return penalized_gradient(w, g, l2, l1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [penalized_gradient, compiled_penalized_gradient], ids=["python", "compiled"])
def test_penalized_gradient(function, dtype):
    def at(w, g):
        return function(dtype(w), dtype(g), dtype(0.25), dtype(0.5))

    assert at(2.0, 1.0) == 1.0 + 0.5 + 0.5
    assert at(-2.0, 1.0) == 1.0 - 0.5 - 0.5
    assert at(0.0, 1.0) == at(-0.0, 1.0) == 1.0
    assert math.isnan(at(math.nan, 1.0))
    assert math.isnan(at(1.0, math.nan))
    assert at(math.inf, 0.0) == math.inf
    if function is penalized_gradient:
        assert type(at(2.0, 1.0)) is dtype


@pytest.mark.parametrize("name", UPDATES)
def test_loop_is_vectorised_and_float32_stays_float32(name):
    step = make_compiled_step(UPDATES[name].code)
    array = "float32[::1]"
    step.compile(f"void({', '.join([array] * 5 + ['float32'] * 3)}, UniTuple(float32, {N_COEFFICIENTS}))")
    (signature,) = step.signatures
    (kernel,) = re.findall(r"^define [^\n]*@_ZN(?!7cpython)[^\n]*\{\n.*?^\}", step.inspect_llvm(signature), re.M | re.S)
    assert " double " not in kernel
    arithmetic = re.findall(r" = (?:tail call )?(fadd|fmul|fsub|fdiv|fcmp|call)\b([^\n]*)", kernel)
    packed = {operation for operation, rest in arithmetic if re.search(r"<\d+ x float>", rest)}
    assert "fmul" in packed
    source = "".join(line for line in kernel.splitlines() if "x float>" in line)
    assert ("llvm.sqrt" in source) == (name.split("_")[0] not in ("sgd", "lion", "adamax"))
    assert ("fdiv" in packed) == (name.split("_")[0] not in ("sgd", "lion"))


def test_code_that_is_no_constant_does_not_compile():
    @njit
    def f(code):
        return update_rule(code, 1.0, 1.0, 0.0, 0.0, 0.0, (0.1,) * 8)

    with pytest.raises(Exception, match="update_rule needs a constant code"):
        f(1)


def make_descent(code):
    """Gradient descent on a parabola with curvatures 1 to n around 1, or in Rosenbrock's valley."""

    @njit(error_model="numpy")
    def descend(w, table, in_valley):
        slots = np.zeros((3, w.size))
        g = np.empty(w.size)
        for line in table:
            if in_valley:
                g[0] = -2.0 * (1.0 - w[0]) - 400.0 * w[0] * (w[1] - w[0] ** 2)
                g[1] = 200.0 * (w[1] - w[0] ** 2)
            else:
                for i in range(w.size):
                    g[i] = (i + 1.0) * (w[i] - 1.0)
            c = (line[3], line[4], line[5], line[6], line[7], line[8], line[9], line[10])
            for i in range(w.size):
                w[i], slots[0, i], slots[1, i], slots[2, i] = update_rule(
                    code, w[i], g[i], slots[0, i], slots[1, i], slots[2, i], c
                )

    return descend


# Learning rates that suit the parabola (1,000 steps) and the valley (20,000 steps).
DESCENTS = [
    (optimizers.SGD, {}, 0.1, 0.001),
    (optimizers.SGD, {"momentum": 0.9}, 0.03, 0.001),
    (optimizers.SGD, {"momentum": 0.9, "nesterov": True}, 0.03, 0.001),
    (optimizers.AdaGrad, {}, 1.0, 0.3),
    (optimizers.Adadelta, {}, 1.0, 0.01),
    (optimizers.RMSprop, {}, 0.01, 0.0003),
    (optimizers.RMSprop, {"momentum": 0.9}, 0.001, 0.001),
    (optimizers.RMSprop, {"centered": True, "alpha": 0.9}, 0.01, 0.0003),
    (optimizers.RMSprop, {"centered": True, "alpha": 0.9, "momentum": 0.5}, 0.001, 0.0003),
    (optimizers.Adam, {}, 0.03, 0.003),
    (optimizers.Adam, {"amsgrad": True}, 0.03, 0.1),
    (optimizers.Adamax, {}, 0.03, 0.003),
    (optimizers.NAdam, {}, 0.03, 0.003),
    (optimizers.RAdam, {}, 0.03, 0.001),
    (optimizers.Lion, {}, 0.003, 0.0003),
]


@pytest.mark.parametrize(("kind", "settings", "rate", "rate_in_valley"), DESCENTS)
def test_descends_to_the_minimum(kind, settings, rate, rate_in_valley):
    descend = make_descent(UPDATES[kind(**settings).rule].code)
    starts = (np.array([-1.0, 3.0, 0.0, 2.5]), np.array([-1.2, 1.0]))
    for w, learning_rate, n_steps in zip(starts, (rate, rate_in_valley), (1000, 20_000), strict=True):
        optimizer = kind(learning_rate, **settings)
        descend(w, optimizer.coefficients(1, n_steps, optimizer.settings("0.weight")), w.size == 2)
        np.testing.assert_allclose(w, 1.0, atol=0.05)


CACHED_KERNEL = """
import numpy as np
from numba import njit
from nbbp.scalars.updates import UPDATES, update_rule

def make(code):
    @njit(cache=True)
    def step(w, g, c):
        for i in range(w.size):
            w[i] = update_rule(code, w[i], g[i], w[i], w[i], w[i], c)[0]
    return step

if __name__ == "__main__":
    for name in ("sgd", "adam"):
        step = make(UPDATES[name].code)
        w = np.ones(3, np.float32)
        step(w, w, (np.float32(0.5),) * 8)
        print(len(step.stats.cache_hits), w[0])
"""


def test_kernel_that_closes_over_a_code_is_cached_for_the_next_process(tmp_path, monkeypatch):
    script = tmp_path / "kernel.py"
    script.write_text(CACHED_KERNEL)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    first, second = (
        subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(2)
    )
    assert first[0::2] == ["0", "0"]
    assert second[0::2] == ["1", "1"]
    assert first[1::2] == second[1::2]
