"""What the tests of the engine share: losses with their targets, optimizers, small models, and how close is close."""

import numpy as np
import reference
import reference_optimizers

import nbbp
from nbbp import losses, optimizers
from nbbp.layers import Activation, Dense
from nbbp.scalars.activations import ACTIVATIONS

DTYPES = ("float32", "float64")
#: Largest error, relative to the largest number of the array: what the project promises.
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}

#: Every activation, those with a parameter twice.
ALL_ACTIVATIONS = [
    *map(Activation, ACTIVATIONS),
    Activation("leaky_relu", negative_slope=0.3),
    Activation("elu", alpha=0.4),
]

#: Every loss, those with a setting twice.
ALL_LOSSES = [
    losses.MSE(),
    losses.MAE(),
    losses.Huber(),
    losses.Huber(delta=0.3),
    losses.LogCosh(),
    losses.BinaryCrossentropy(),
    losses.BinaryCrossentropy(label_smoothing=0.2),
    losses.Crossentropy(),
    losses.Crossentropy(label_smoothing=0.2),
    losses.NLL(),
    losses.Hinge(),
    losses.Poisson(),
]

#: Last activations and losses, but for nll of probabilities, which models refuse.
LAST_AND_LOSS = [(a, loss) for a in ALL_ACTIVATIONS for loss in ALL_LOSSES if (a.name, loss.name) != ("softmax", "nll")]

#: Every optimizer and every rule of its own.
ALL_OPTIMIZERS = [
    optimizers.SGD(0.1),
    optimizers.SGD(0.1, momentum=0.9),
    optimizers.SGD(0.1, momentum=0.9, dampening=0.3),
    optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    optimizers.AdaGrad(0.1),
    optimizers.AdaGrad(0.1, learning_rate_decay=0.1, initial_accumulator=0.5),
    optimizers.Adadelta(),
    optimizers.RMSprop(),
    optimizers.RMSprop(momentum=0.7),
    optimizers.RMSprop(centered=True),
    optimizers.RMSprop(momentum=0.7, centered=True),
    optimizers.Adam(0.01),
    optimizers.Adam(0.01, amsgrad=True, betas=(0.8, 0.6)),
    optimizers.AdamW(0.01),
    optimizers.Adamax(),
    optimizers.NAdam(),
    optimizers.RAdam(0.01),
    optimizers.Lion(0.01),
    optimizers.Adafactor(0.1),
    optimizers.Adafactor(0.1, eps=(1e-2, 0.7), d=1.5),
]


def label(value) -> str | None:
    """The id of a test's parameter: a description's name and what is not its default."""
    if isinstance(value, Activation):
        return str(value)
    if isinstance(value, (losses.Loss, optimizers.Optimizer)):
        plain = type(value)()
        changed = [f"{k}={v}" for k, v in vars(value).items() if v != getattr(plain, k)]
        return "-".join([value.name, *changed])
    return None


def replaced(description, **settings):
    """The same description with other settings."""
    return type(description)(**{**vars(description), **settings})


def targets_for(loss, batch: int, n_out: int, seed: int = 0, kind: str = "hard") -> np.ndarray:
    """Targets that the loss takes; `kind` is "hard", "one-hot" or "soft"."""
    rng = np.random.default_rng(seed)
    if loss.row_wise:
        if kind == "soft":
            return rng.dirichlet(np.ones(n_out), batch)
        labels = rng.integers(0, n_out, batch)
        return np.eye(n_out)[labels] if kind == "one-hot" else labels
    if loss.name == "binary_crossentropy":
        hard = rng.integers(0, 2, (batch, n_out))
        return rng.uniform(0.0, 1.0, (batch, n_out)) if kind == "soft" else hard
    if loss.name == "hinge":
        return rng.choice([-1.0, 1.0], (batch, n_out))
    if loss.name == "poisson":
        return rng.integers(0, 5, (batch, n_out)).astype(np.float64)
    return rng.standard_normal((batch, n_out))


def features_for(batch: int, n_in: int, dtype: str = "float64", seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, n_in)).astype(dtype)


def model_of(layers, n_in: int, loss, dtype: str = "float64", optimizer="sgd", seed: int = 5, **settings):
    """A model with random weights and biases, none of them zero."""
    model = nbbp.Model(nbbp.Sequential(layers, n_in=n_in), loss, optimizer, dtype=dtype, seed=seed, **settings)
    rng = np.random.default_rng(seed)
    for name, values in model.parameters.items():
        spread = 0.3 if name.endswith("bias") else 1.0 / np.sqrt(values.shape[0])
        values[:] = rng.uniform(0.3, 1.0, values.shape) * rng.choice([-1.0, 1.0], values.shape) * 1.5 * spread
    return model


def small_model(activation, loss, dtype: str = "float64", optimizer="sgd", last="linear", **settings):
    """5-7-4-3 with the activation in both hidden layers."""
    layers = [Dense(7, activation), Dense(4, activation), Dense(3, last)]
    return model_of(layers, 5, loss, dtype, optimizer, **settings)


def copies(parameters) -> dict[str, np.ndarray]:
    """The parameters as they are now, in float64."""
    return {name: np.array(values, np.float64) for name, values in parameters.items()}


def assert_near(actual, expected, dtype: str = "float64", tolerance: float | None = None, name: str = "") -> None:
    """Every error within the tolerance times the largest expected magnitude.

    Or times 1e-2 if all are smaller: what adds up to nearly nothing is made of numbers of order one.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, name
    scale = max(np.abs(expected).max(initial=0.0), 1e-2)
    tolerance = TOLERANCES[dtype] if tolerance is None else tolerance
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=tolerance * scale, err_msg=name)


def assert_all_near(actual, expected, dtype: str = "float64", tolerance: float | None = None) -> None:
    """`assert_near` for every parameter by its name."""
    assert list(actual) == list(expected)
    for name in expected:
        assert_near(actual[name], expected[name], dtype, tolerance, name)


def assert_gradients_near_oracle(model, x, y, sample_weight=None, tolerance: float | None = None) -> None:
    """Loss and gradients of a batch against the oracle; the parameters stay as they are."""
    before = copies(model.parameters)
    loss, gradients = model.loss_and_gradients(x, y, sample_weight)
    assert_all_near(model.parameters, before, tolerance=0.0)
    expected = reference.loss_and_gradients(model.network, before, x, y, model.loss, sample_weight)
    assert_near(loss, expected[0], model.dtype.name, tolerance, "loss")
    assert_all_near(gradients, expected[1], model.dtype.name, tolerance)


def oracle_steps(model, batches) -> dict[str, np.ndarray]:
    """The parameters after one step on each batch (x, y, sample_weight or None), from where the model stands."""

    def gradients(parameters, t):
        x, y, weight = batches[t - 1]
        return reference.loss_and_gradients(model.network, parameters, x, y, model.loss, weight)[1]

    start = copies(model.parameters)
    return reference_optimizers.steps(model.optimizer, start, gradients, len(batches), model.dtype.name)


def one_sample(model, seed: int = 3, kind: str = "hard"):
    """x (n_in,), what the sample engine takes for y, and the same as a batch of one."""
    x = features_for(1, model.network.n_in, model.dtype.name, seed)
    y = targets_for(model.loss, 1, model.network.n_out, seed, kind)
    if y.ndim == 1:
        return x[0], int(y[0]), x, y
    y = y.astype(model.dtype)
    return x[0], y[0], x, y
