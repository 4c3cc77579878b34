"""The oracle of the optimizers against PyTorch in float64, and where PyTorch has no such thing, by hand."""

import numpy as np
import pytest
import reference_optimizers

from nbbp import optimizers

TOLERANCE = 1e-10
N_STEPS = 12
SHAPES = {"0.weight": (4, 3), "0.bias": (3,), "1.weight": (3, 2), "1.bias": (2,)}


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def problem():
    """Parameters, and gradients for N_STEPS steps that depend on nothing else."""
    rng = np.random.default_rng(0)
    parameters = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    gradients = [{name: rng.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(N_STEPS)]
    return parameters, gradients


def by_oracle(optimizer):
    parameters, gradients = problem()
    return reference_optimizers.steps(optimizer, parameters, lambda _, t: gradients[t - 1], N_STEPS)


def by_torch(torch, torch_name, words, groups, l1=0.0):
    """`words`: the settings as PyTorch calls them; `groups`: list of (names, settings that differ)."""
    parameters, gradients = problem()
    tensors = {name: torch.nn.Parameter(torch.tensor(values)) for name, values in parameters.items()}
    # The running product of NAdam's momenta is a tensor of the default dtype.
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = getattr(torch.optim, torch_name)(
            [{"params": [tensors[name] for name in names], **settings} for names, settings in groups], **words
        )
        for step in range(N_STEPS):
            for name, tensor in tensors.items():
                penalty = l1 * tensor.detach().sign() if name.endswith("weight") else 0.0
                tensor.grad = torch.tensor(gradients[step][name]) + penalty
            optimizer.step()
    finally:
        torch.set_default_dtype(default)
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


# Ours, and PyTorch's name and words for the same.
CASES = [
    (optimizers.SGD(0.1), "SGD", {"lr": 0.1}),
    (optimizers.SGD(0.1, momentum=0.9), "SGD", {"lr": 0.1, "momentum": 0.9}),
    (
        optimizers.SGD(0.1, momentum=0.9, dampening=0.3),
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
    ),
    (
        optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    (optimizers.AdaGrad(), "Adagrad", {}),
    (
        optimizers.AdaGrad(0.2, learning_rate_decay=0.1, initial_accumulator=0.5),
        "Adagrad",
        {"lr": 0.2, "lr_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
    (optimizers.Adadelta(), "Adadelta", {}),
    (optimizers.Adadelta(0.3, rho=0.8), "Adadelta", {"lr": 0.3, "rho": 0.8}),
    (optimizers.RMSprop(), "RMSprop", {}),
    (optimizers.RMSprop(momentum=0.7), "RMSprop", {"momentum": 0.7}),
    (optimizers.RMSprop(centered=True), "RMSprop", {"centered": True}),
    (
        optimizers.RMSprop(momentum=0.7, centered=True, alpha=0.9),
        "RMSprop",
        {"momentum": 0.7, "centered": True, "alpha": 0.9},
    ),
    (optimizers.Adam(), "Adam", {}),
    (optimizers.Adam(amsgrad=True, betas=(0.8, 0.6)), "Adam", {"amsgrad": True, "betas": (0.8, 0.6)}),
    (optimizers.AdamW(), "AdamW", {}),
    (optimizers.Adamax(), "Adamax", {}),
    (optimizers.NAdam(), "NAdam", {}),
    (optimizers.NAdam(momentum_decay=0.1), "NAdam", {"momentum_decay": 0.1}),
    # The length of the average passes 5 within the steps for the first, never for the second.
    (optimizers.RAdam(), "RAdam", {}),
    (optimizers.RAdam(betas=(0.9, 0.5)), "RAdam", {"betas": (0.9, 0.5)}),
    (optimizers.Adafactor(), "Adafactor", {}),
    (
        optimizers.Adafactor(0.5, eps=(1e-2, 0.7), d=1.5),
        "Adafactor",
        {"lr": 0.5, "eps": (1e-2, 0.7), "d": 1.5},
    ),
]
IDS = [f"{torch_name}-{index}" for index, (_, torch_name, _) in enumerate(CASES)]


def replaced(optimizer, **settings):
    own = {name: value for name, value in vars(optimizer).items() if name not in settings}
    return type(optimizer)(**own, **settings)


@pytest.mark.parametrize(("optimizer", "torch_name", "words"), CASES, ids=IDS)
def test_agrees_with_torch(optimizer, torch_name, words):
    torch = pytest.importorskip("torch")
    words = {"weight_decay": optimizer.weight_decay, **words}
    biases = [name for name in SHAPES if name.endswith("bias")]
    weights = [name for name in SHAPES if name.endswith("weight")]
    expected = by_torch(torch, torch_name, words, [(weights, {}), (biases, {"weight_decay": 0.0})])
    for name, values in by_oracle(optimizer).items():
        assert_close(values, expected[name])


@pytest.mark.parametrize(("optimizer", "torch_name", "words"), CASES, ids=IDS)
def test_penalties_and_groups_agree_with_torch(optimizer, torch_name, words):
    torch = pytest.importorskip("torch")
    optimizer = replaced(
        optimizer,
        weight_decay=0.1,
        l1=0.05,
        groups={"*.bias": {"learning_rate": 0.03}, "1.*": {"weight_decay": 0.4}},
    )
    expected = by_torch(
        torch,
        torch_name,
        {**words, "lr": optimizer.learning_rate},
        [
            (["0.weight"], {"weight_decay": 0.1}),
            (["0.bias"], {"lr": 0.03, "weight_decay": 0.0}),
            (["1.weight"], {"weight_decay": 0.4}),
            (["1.bias"], {"lr": 0.03, "weight_decay": 0.4}),
        ],
        l1=0.05,
    )
    for name, values in by_oracle(optimizer).items():
        assert_close(values, expected[name])


def test_decay_bias_decays_the_biases_too():
    torch = pytest.importorskip("torch")
    expected = by_torch(torch, "Adam", {"weight_decay": 0.1}, [(list(SHAPES), {})])
    for name, values in by_oracle(optimizers.Adam(weight_decay=0.1, decay_bias=True)).items():
        assert_close(values, expected[name])


def test_decoupled_decay_shrinks_and_leaves_the_rule_alone():
    parameters, gradients = problem()
    for optimizer, _, _ in CASES:
        if optimizer.name == "adafactor":
            continue
        plain = replaced(optimizer, weight_decay=0.0)
        decayed = replaced(optimizer, weight_decay=0.2, decoupled=True)
        moved = reference_optimizers.step(plain, parameters, gradients[0], {})
        shrunk = reference_optimizers.step(decayed, parameters, gradients[0], {})
        lost = optimizer.learning_rate * 0.2 * parameters["0.weight"]
        assert_close(shrunk["0.weight"], moved["0.weight"] - lost)
        assert_close(shrunk["0.bias"], moved["0.bias"])


def test_lion_by_hand():
    optimizer = optimizers.Lion(0.1, betas=(0.9, 0.5), weight_decay=0.5)
    state = {}
    w = {"0.weight": np.array([[1.0, -2.0, 3.0]])}
    w = reference_optimizers.step(optimizer, w, {"0.weight": np.array([[2.0, -1.0, 0.0]])}, state)
    assert_close(w["0.weight"], [[0.95 - 0.1, -1.9 + 0.1, 2.85]])
    # The mean is (1, -0.5, 0); 0.9 of it outweighs 0.1 of the gradient in the first place, not in the second.
    w = reference_optimizers.step(optimizer, w, {"0.weight": np.array([[-8.0, 5.0, 1.0]])}, state)
    assert_close(w["0.weight"], [[0.85 * 0.95 - 0.1, -1.8 * 0.95 - 0.1, 2.85 * 0.95 - 0.1]])
    assert_close(state["0.weight"]["mean"], [[-3.5, 2.25, 0.5]])


def test_adafactor_takes_the_epsilon_of_the_dtype_in_question():
    w, g = {"0.bias": np.ones(2)}, {"0.bias": np.full(2, 1e-9)}
    after = {
        dtype: reference_optimizers.step(optimizers.Adafactor(), w, g, {}, dtype)["0.bias"]
        for dtype in ("float32", "float64")
    }
    # A gradient below the epsilon of float32 makes a small update there, and one of size 1 in float64.
    assert_close(after["float64"], 1.0 - 0.01)
    assert_close(after["float32"], 1.0 - 0.01 * 1e-9 / float(np.finfo(np.float32).eps))
