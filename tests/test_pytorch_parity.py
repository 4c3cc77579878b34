"""PyTorch beside nbbp: the same start, the same batches; 1e-10 apart in float64, 1e-5 in float32 after 50 steps."""

import numpy as np
import pytest
from engine_cases import (
    ALL_ACTIVATIONS,
    DTYPES,
    assert_all_near,
    assert_near,
    features_for,
    label,
    model_of,
    replaced,
    targets_for,
)

from nbbp import losses, optimizers
from nbbp.layers import Dense

torch = pytest.importorskip("torch")
functional = torch.nn.functional

N_STEPS, BATCH, N_IN, N_OUT = 50, 16, 6, 3
TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads cost more here than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


#: What PyTorch does for an activation; the others are functions of their name in torch.nn.functional.
ACTIVATIONS = {
    "linear": lambda z, _: z * 1.0,
    "leaky_relu": lambda z, slope: functional.leaky_relu(z, slope),
    "elu": lambda z, alpha: functional.elu(z, alpha),
    "softplus": lambda z, _: functional.softplus(z, threshold=100.0),  # beyond, PyTorch takes a line
    "hard_tanh": lambda z, _: functional.hardtanh(z),
    "hard_sigmoid": lambda z, _: torch.clamp(z / 6.0 + 0.5, 0.0, 1.0),  # hardsigmoid has its slope in float32 only
    "gelu_tanh": lambda z, _: functional.gelu(z, approximate="tanh"),
    "softmax": lambda z, _: functional.softmax(z, dim=-1),
    "log_softmax": lambda z, _: functional.log_softmax(z, dim=-1),
}


def activate(activation, z):
    named = ACTIVATIONS.get(activation.name)
    return named(z, activation.parameter) if named else getattr(functional, activation.name)(z)


class Twin:
    """The same network in PyTorch, with its parameters under the same names; weights are (n_in, n_out) here too."""

    def __init__(self, model):
        self.layers, self.dtype = model.network.layers, TORCH_DTYPES[model.dtype.name]
        self.parameters = {
            name: torch.nn.Parameter(torch.tensor(values, dtype=self.dtype))
            for name, values in model.parameters.items()
        }

    def __call__(self, x, skip_last=False):
        a = torch.tensor(x, dtype=self.dtype)
        for index, layer in enumerate(self.layers):
            z = a @ self.parameters[f"{index}.weight"] + self.parameters[f"{index}.bias"]
            a = activate(layer.activation, z)
        return z if skip_last else a

    def arrays(self):
        return {name: values.detach().numpy() for name, values in self.parameters.items()}

    def gradients(self):
        return {name: values.grad.numpy() for name, values in self.parameters.items()}


def torch_loss(loss, p, y):
    """The same loss by PyTorch's functions; `p` is what they take, logits for both crossentropies."""
    y = torch.tensor(y)
    if not loss.row_wise or y.is_floating_point():
        y = y.to(p.dtype)
    call = {
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": lambda p, y, reduction: functional.huber_loss(p, y, reduction=reduction, delta=loss.delta),
        "binary_crossentropy": functional.binary_cross_entropy_with_logits,
        "crossentropy": lambda p, y, reduction: functional.cross_entropy(
            p, y, reduction=reduction, label_smoothing=loss.label_smoothing
        ),
        "nll": functional.nll_loss,
        "poisson": lambda p, y, reduction: functional.poisson_nll_loss(
            p, y, log_input=loss.log_input, eps=1e-8, reduction=reduction
        ),
    }[loss.name]
    return call(p, y, reduction=loss.reduction)


# --- losses and activations ------------------------------------------------------------------------------------------

LOSSES = [
    (losses.MSE(), "hard"),
    (losses.MAE(), "hard"),
    (losses.Huber(), "hard"),
    (losses.Huber(delta=0.3), "hard"),
    (losses.BinaryCrossentropy(), "hard"),
    (losses.BinaryCrossentropy(), "soft"),
    (losses.Crossentropy(), "hard"),
    (losses.Crossentropy(), "soft"),
    (losses.Crossentropy(label_smoothing=0.2), "hard"),
    (losses.Crossentropy(label_smoothing=0.2), "soft"),
    (losses.NLL(), "hard"),
    (losses.Poisson(), "hard"),
]


def assert_same(model, loss, x, y, last):
    """Loss, gradients and predictions."""
    twin = Twin(model)
    out = twin(x)
    fused = loss.name in ("crossentropy", "binary_crossentropy") and loss.fuses(last)
    expected = torch_loss(loss, twin(x, skip_last=True) if fused else out, y)
    expected.backward()
    value, gradients = model.loss_and_gradients(x, y)
    dtype = model.dtype.name
    assert_near(value, expected.item(), dtype)
    assert_all_near(gradients, twin.gradients(), dtype)
    assert_near(model.predict(x), out.detach().numpy(), dtype)
    assert_near(model.evaluate(x, y)["loss"], expected.item(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("last", ["linear", "tanh", "fused"])
@pytest.mark.parametrize(("loss", "kind"), LOSSES, ids=lambda value: label(value) or value)
def test_loss_with_gradients(loss, kind, last, reduction, dtype):
    loss = replaced(loss, reduction=reduction)
    if last == "fused":
        last = loss.fused_with[0] if loss.fused_with else "sigmoid"
    model = model_of([Dense(7, "tanh"), Dense(N_OUT, last)], N_IN, loss, dtype)
    x, y = features_for(BATCH, N_IN, dtype), targets_for(loss, BATCH, N_OUT, kind=kind)
    assert_same(model, loss, x, y, model.network.layers[-1].activation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_poisson_of_rates(dtype):
    loss = losses.Poisson(log_input=False)
    model = model_of([Dense(7, "tanh"), Dense(N_OUT, "softplus")], N_IN, loss, dtype)
    x, y = features_for(BATCH, N_IN, dtype), targets_for(loss, BATCH, N_OUT)
    assert_same(model, loss, x, y, model.network.layers[-1].activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_activation(activation, dtype):
    """In two hidden layers and the last; logits some units wide."""
    loss = losses.MSE()
    model = model_of([Dense(20, activation), Dense(20, activation), Dense(N_OUT, activation)], N_IN, loss, dtype)
    x, y = 2.0 * features_for(BATCH, N_IN, dtype), targets_for(loss, BATCH, N_OUT)
    assert_same(model, loss, x.astype(dtype), y, activation)


# --- optimizers ----------------------------------------------------------------------------------------------------

#: Ours, and PyTorch's name and words for the same.
OPTIMIZERS = [
    (optimizers.SGD(0.1), "SGD", {"lr": 0.1}),
    (optimizers.SGD(0.05, momentum=0.9), "SGD", {"lr": 0.05, "momentum": 0.9}),
    (
        optimizers.SGD(0.05, momentum=0.9, dampening=0.3),
        "SGD",
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3},
    ),
    (
        optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        "SGD",
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    ),
    (optimizers.AdaGrad(), "Adagrad", {}),
    (
        optimizers.AdaGrad(0.1, learning_rate_decay=0.1, initial_accumulator=0.5),
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
    (optimizers.Adadelta(), "Adadelta", {}),
    (optimizers.RMSprop(1e-3), "RMSprop", {"lr": 1e-3}),
    (optimizers.RMSprop(1e-3, momentum=0.7), "RMSprop", {"lr": 1e-3, "momentum": 0.7}),
    (optimizers.RMSprop(1e-3, centered=True), "RMSprop", {"lr": 1e-3, "centered": True}),
    (
        optimizers.RMSprop(1e-3, momentum=0.7, centered=True, alpha=0.9),
        "RMSprop",
        {"lr": 1e-3, "momentum": 0.7, "centered": True, "alpha": 0.9},
    ),
    (optimizers.Adam(), "Adam", {}),
    (optimizers.Adam(0.01, amsgrad=True, betas=(0.8, 0.6)), "Adam", {"lr": 0.01, "amsgrad": True, "betas": (0.8, 0.6)}),
    (optimizers.AdamW(), "AdamW", {}),
    (optimizers.AdamW(0.01, amsgrad=True), "AdamW", {"lr": 0.01, "amsgrad": True}),
    (optimizers.Adamax(), "Adamax", {}),
    (optimizers.NAdam(), "NAdam", {}),
    (optimizers.RAdam(), "RAdam", {}),
    (optimizers.RAdam(betas=(0.9, 0.5)), "RAdam", {"betas": (0.9, 0.5)}),
    (optimizers.Adafactor(), "Adafactor", {}),
    (
        optimizers.Adafactor(0.2, eps=(1e-2, 1e-2), d=1.5),
        "Adafactor",
        {"lr": 0.2, "eps": (1e-2, 1e-2), "d": 1.5},
    ),
]


@pytest.fixture
def default_dtype(dtype):
    """The running product of NAdam's momenta is a tensor of PyTorch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(TORCH_DTYPES[dtype])
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["train_step", "fit"])
@pytest.mark.parametrize("decay", [None, 0.03], ids=["no decay", "decay"])
@pytest.mark.parametrize(
    ("optimizer", "name", "words"), OPTIMIZERS, ids=[f"{name}-{i}" for i, (_, name, _) in enumerate(OPTIMIZERS)]
)
def test_fifty_steps(optimizer, name, words, decay, way, dtype):
    """The losses on the way and the parameters in the end; decay as each optimizer of PyTorch means it."""
    if decay is not None:
        optimizer = replaced(optimizer, weight_decay=decay, decay_bias=True)
        words = {**words, "weight_decay": decay}
    elif optimizer.weight_decay:
        optimizer = replaced(optimizer, decay_bias=True)
    loss = losses.Crossentropy()
    layers = [Dense(8, "tanh"), Dense(7, "gelu"), Dense(N_OUT)]
    model = model_of(layers, N_IN, loss, dtype, optimizer)
    twin = Twin(model)
    theirs = getattr(torch.optim, name)(twin.parameters.values(), **words)
    X, y = features_for(N_STEPS * BATCH, N_IN, dtype), targets_for(loss, N_STEPS * BATCH, N_OUT)
    batches = [slice(start, start + BATCH) for start in range(0, len(X), BATCH)]
    expected = []
    for rows in batches:
        theirs.zero_grad()
        value = torch_loss(loss, twin(X[rows]), y[rows])
        value.backward()
        theirs.step()
        expected.append(value.item())
    if way == "train_step":
        assert_near([model.train_step(X[rows], y[rows]) for rows in batches], expected, dtype)
    else:
        history = model.fit(X, y, batch_size=BATCH, shuffle=False, verbose=0)
        assert_near(history["loss"], [np.mean(expected)], dtype)
    assert_all_near(model.parameters, twin.arrays(), dtype)
