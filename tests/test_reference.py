"""The oracle against two independent witnesses: central differences, and PyTorch in float64."""

import numpy as np
import pytest
import reference

from nbbp import losses
from nbbp.layers import Activation, Dense
from nbbp.network import Sequential

TOLERANCE = 1e-10
ELEMENTWISE = sorted(reference.VALUES)
ROW_WISE = ["softmax", "log_softmax"]

# Irregular, so that no point lies within a difference's reach (2e-3) of a kink at 0, ±1 or ±3.
SMOOTH_POINTS = np.linspace(-7.013, 6.987, 57)
KINKS_AND_TAILS = np.array([0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 40.0, -40.0, 1e4, -1e4])


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def torch_activation(torch, name, parameter):
    functional = torch.nn.functional
    return {
        "linear": lambda z: z * 1.0,
        "leaky_relu": lambda z: functional.leaky_relu(z, parameter),
        "elu": lambda z: functional.elu(z, parameter),
        # The threshold beyond which PyTorch takes a line is out of reach of the points.
        "softplus": lambda z: functional.softplus(z, threshold=100.0),
        "hard_tanh": functional.hardtanh,
        "hard_sigmoid": functional.hardsigmoid,
        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
        "softmax": lambda z: functional.softmax(z, dim=-1),
        "log_softmax": lambda z: functional.log_softmax(z, dim=-1),
    }.get(name) or getattr(functional, name)


def cases_of(name):
    return [0.01, 0.3] if name == "leaky_relu" else [1.0, 0.4] if name == "elu" else [None]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_derivative_is_the_slope_of_the_value(name):
    for parameter in cases_of(name):
        slopes = [
            reference.central_differences(lambda z: reference.activation_value(name, z, parameter), z)  # noqa: B023
            for z in SMOOTH_POINTS
        ]
        assert_close(reference.activation_derivative(name, SMOOTH_POINTS, parameter), slopes)


@pytest.mark.parametrize("name", ELEMENTWISE + ROW_WISE)
def test_activation_agrees_with_torch_at_kinks_and_in_tails(name):
    torch = pytest.importorskip("torch")
    points = np.concatenate([SMOOTH_POINTS, KINKS_AND_TAILS])
    rng = np.random.default_rng(0)
    for parameter in cases_of(name):
        rows = np.stack([points, rng.permutation(points), points / 100.0])
        d_a = rng.standard_normal(rows.shape)
        z = torch.tensor(rows, requires_grad=True)
        a = torch_activation(torch, name, parameter)(z)
        a.backward(torch.tensor(d_a))
        assert_close(reference.activation_value(name, rows, parameter), a.detach().numpy())
        d_z = reference.activation_backward(name, rows, d_a, parameter)
        if name == "hard_sigmoid":
            # PyTorch keeps the slope 1/6 in float32 even here.
            np.testing.assert_allclose(d_z, z.grad.numpy(), rtol=1e-7)
        else:
            assert_close(d_z, z.grad.numpy())


@pytest.mark.parametrize("name", [*ROW_WISE, "tanh"])
def test_jacobian_is_the_slope_of_a_row_and_backward_multiplies_by_it(name):
    rng = np.random.default_rng(1)
    z, d_a = 2.0 * rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    products = []
    for row, d_row in zip(z, d_a, strict=True):
        jacobian = reference.activation_jacobian(name, row)
        # Differences come indexed by what was moved first: [k, j].
        slopes = reference.central_differences(lambda r: reference.activation_value(name, r), row)
        assert_close(jacobian, slopes.T)
        products.append(d_row @ jacobian)
    assert_close(reference.activation_backward(name, z, d_a), products)


def predictions_and_targets(name, kind):
    """Predictions (6, 4) and targets, away from kinks."""
    rng = np.random.default_rng(2)
    p = rng.standard_normal((6, 4)) * 2.0
    if name in reference.ROW_WISE_LOSSES:
        labels = np.array([0, 3, 1, 1, 2, 0])
        soft = rng.dirichlet(np.ones(4), 6)
        return p, {"integer": labels, "column": labels[:, None], "one-hot": np.eye(4)[labels], "soft": soft}[kind]
    if name == "binary_crossentropy":
        return p, rng.uniform(0.0, 1.0, p.shape) if kind == "soft" else rng.integers(0, 2, p.shape)
    if name == "hinge":
        return p, rng.choice([-1.0, 1.0], p.shape)
    if name == "poisson":
        return np.abs(p) + 0.1, rng.integers(0, 5, p.shape)
    return p, rng.standard_normal(p.shape)


LOSS_CASES = [
    *((losses.get(name), "plain") for name in ("mse", "mae", "huber", "log_cosh", "hinge", "poisson")),
    *(
        (losses.get(name), kind)
        for name in ("crossentropy", "nll")
        for kind in ("integer", "column", "one-hot", "soft")
    ),
    *((losses.Crossentropy(label_smoothing=0.2), kind) for kind in ("integer", "soft")),
    *((losses.BinaryCrossentropy(), kind) for kind in ("hard", "soft")),
    *((losses.BinaryCrossentropy(label_smoothing=0.2), kind) for kind in ("hard", "soft")),
    (losses.Huber(delta=0.3), "plain"),
    (losses.Poisson(log_input=False), "plain"),
]


def with_reductions(cases):
    both = []
    for loss, kind in cases:
        settings = {name: value for name, value in vars(loss).items() if name not in ("reduction", "scale")}
        both.append(pytest.param(loss, kind, id=f"{loss}-{kind}"))
        summed = type(loss)(**settings, reduction="sum", scale=0.5)
        both.append(pytest.param(summed, kind, id=f"{summed}-{kind}"))
    return both


@pytest.mark.parametrize(("loss", "kind"), with_reductions(LOSS_CASES))
def test_loss_gradient_is_the_slope_of_the_loss(loss, kind):
    p, y = predictions_and_targets(loss.name, kind)
    weights = np.array([1.0, 0.5, 2.0, 0.0, 1.5, 3.0])
    for sample_weight in (None, weights):
        slopes = reference.central_differences(
            lambda q: reference.loss_value_and_gradient(loss, q, y, sample_weight)[0],  # noqa: B023
            p,
        )
        assert_close(reference.loss_value_and_gradient(loss, p, y, sample_weight)[1], slopes)


def torch_loss(torch, loss, p, y):
    """The loss of every sample and output as PyTorch computes it, row-wise losses of every sample."""
    functional = torch.nn.functional
    y = torch.tensor(np.asarray(y))
    if loss.name in ("crossentropy", "nll"):
        labels = y.reshape(-1) if not y.is_floating_point() else y
        if loss.name == "crossentropy":
            return functional.cross_entropy(p, labels, reduction="none", label_smoothing=loss.label_smoothing)
        return -(labels * p).sum(1) if labels.ndim == 2 else functional.nll_loss(p, labels, reduction="none")
    y = y.to(p.dtype)
    if loss.name == "binary_crossentropy":
        smoothed = y * (1.0 - loss.label_smoothing) + 0.5 * loss.label_smoothing
        return functional.binary_cross_entropy_with_logits(p, smoothed, reduction="none")
    if loss.name == "log_cosh":
        return torch.log(torch.cosh(p - y))
    if loss.name == "hinge":
        return torch.clamp(1.0 - p * y, min=0.0)
    if loss.name == "huber":
        return functional.huber_loss(p, y, reduction="none", delta=loss.delta)
    if loss.name == "poisson":
        return functional.poisson_nll_loss(p, y, log_input=loss.log_input, reduction="none")
    return {"mse": functional.mse_loss, "mae": functional.l1_loss}[loss.name](p, y, reduction="none")


@pytest.mark.parametrize(("loss", "kind"), with_reductions(LOSS_CASES))
def test_loss_agrees_with_torch(loss, kind):
    torch = pytest.importorskip("torch")
    values, y = predictions_and_targets(loss.name, kind)
    p = torch.tensor(values, requires_grad=True)
    terms = torch_loss(torch, loss, p, y)
    expected = loss.scale * (terms.mean() if loss.reduction == "mean" else terms.sum())
    expected.backward()
    value, gradient = reference.loss_value_and_gradient(loss, values, y)
    assert_close(value, expected.item())
    assert_close(gradient, p.grad.numpy())


@pytest.mark.parametrize("name", ["mse", "crossentropy", "binary_crossentropy", "log_cosh", "hinge"])
def test_loss_is_finite_far_out(name):
    p = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    y = np.array([2, 0]) if name == "crossentropy" else np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    value, gradient = reference.loss_value_and_gradient(name, p, y)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_mean_divides_by_the_samples_not_by_their_weights():
    p, y = np.array([[1.0, 0.0], [0.0, 4.0]]), np.zeros((2, 2))
    assert reference.loss_value_and_gradient("mse", p, y, np.array([3.0, 1.0]))[0] == (3 * 0.5 + 8.0) / 2
    summed = losses.MSE(reduction="sum")
    assert reference.loss_value_and_gradient(summed, p, y, np.array([3.0, 1.0]))[0] == 3 * 1.0 + 16.0


def network(last, *, use_bias=True):
    layers = [
        Dense(5, activation="tanh"),
        Dense(4, activation=Activation("leaky_relu", negative_slope=0.2), use_bias=use_bias),
        Dense(4, activation="softmax"),
        Dense(3, activation=last),
    ]
    net = Sequential(layers, n_in=6)
    rng = np.random.default_rng(3)
    parameters = {p.name: rng.standard_normal(p.shape) for p in net.parameters}
    return net, parameters, rng.standard_normal((7, 6))


NETWORK_CASES = [
    ("linear", losses.MSE()),
    ("mish", losses.Huber()),
    ("linear", losses.Crossentropy(label_smoothing=0.1)),
    ("softmax", losses.Crossentropy(label_smoothing=0.1)),
    ("log_softmax", losses.Crossentropy()),
    ("log_softmax", losses.NLL(reduction="sum")),
    ("linear", losses.BinaryCrossentropy()),
    ("sigmoid", losses.BinaryCrossentropy()),
    ("softmax", losses.MSE()),
]


def network_targets(loss):
    rng = np.random.default_rng(4)
    if loss.name in reference.ROW_WISE_LOSSES:
        return rng.integers(0, 3, 7)
    return rng.integers(0, 2, (7, 3)) if loss.is_classification else rng.standard_normal((7, 3))


@pytest.mark.parametrize(("last", "loss"), NETWORK_CASES)
@pytest.mark.parametrize("use_bias", [True, False])
def test_network_gradients_are_slopes_of_the_loss(last, loss, use_bias):
    net, parameters, x = network(last, use_bias=use_bias)
    y, weights = network_targets(loss), np.linspace(0.0, 2.0, 7)
    value, gradients = reference.loss_and_gradients(net, parameters, x, y, loss, weights)
    assert value == reference.loss_value(net, parameters, x, y, loss, weights)
    assert list(gradients) == [p.name for p in net.parameters]
    for name in gradients:
        slopes = reference.central_differences(
            lambda w: reference.loss_value(net, {**parameters, name: w}, x, y, loss, weights),  # noqa: B023
            parameters[name],
        )
        assert_close(gradients[name], slopes)
    slopes = reference.central_differences(
        lambda moved: reference.loss_value(net, parameters, moved, y, loss, weights), x
    )
    assert_close(reference.input_gradient(net, parameters, x, y, loss, weights), slopes)


@pytest.mark.parametrize(("last", "loss"), NETWORK_CASES)
def test_network_agrees_with_torch(last, loss):
    torch = pytest.importorskip("torch")
    net, parameters, x = network(last)
    y = network_targets(loss)
    tensors = {name: torch.tensor(values, requires_grad=True) for name, values in parameters.items()}
    output = torch.tensor(x)
    for index, layer in enumerate(net.layers):
        z = output @ tensors[f"{index}.weight"] + tensors[f"{index}.bias"]
        output = torch_activation(torch, layer.activation.name, layer.activation.parameter)(z)
    assert_close(reference.predict(net, parameters, x), output.detach().numpy())
    terms = torch_loss(torch, loss, z if loss.fuses(net.layers[-1].activation) and loss.name != "nll" else output, y)
    expected = terms.mean() if loss.reduction == "mean" else terms.sum()
    expected.backward()
    value, gradients = reference.loss_and_gradients(net, parameters, x, y, loss)
    assert_close(value, expected.item())
    for name, tensor in tensors.items():
        assert_close(gradients[name], tensor.grad.numpy())


def test_activation_that_stands_alone_is_that_of_the_layer_before():
    net, parameters, x = network("mish")
    y, loss = network_targets(losses.MSE()), losses.MSE()
    last = net.layers[-1]
    apart = Sequential([*net.layers[:-1], Dense(last.n_out), last.activation], n_in=6)
    assert reference.loss_value(apart, parameters, x, y, loss) == reference.loss_value(net, parameters, x, y, loss)
    expected = reference.loss_and_gradients(net, parameters, x, y, loss)[1]
    for name, values in reference.loss_and_gradients(apart, parameters, x, y, loss)[1].items():
        assert_close(values, expected[name])


def test_metrics_of_a_case_by_hand():
    outputs = np.array([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [np.nan, 0.5, 0.5], [0.2, 0.3, 0.5]])
    labels = np.array([1, 1, 0, 0])
    # Of equals the first is the largest; NaN makes a row wrong.
    assert reference.metric_rows("accuracy", outputs, labels).tolist() == [1, 0, 0, 0]
    assert reference.metric_rows("accuracy", outputs, np.eye(3)[labels]).tolist() == [1, 0, 0, 0]
    assert reference.metric_rows("top_k_accuracy", outputs, labels, k=1).tolist() == [1, 1, 0, 0]
    assert reference.metric_rows("top_k_accuracy", outputs, labels, k=2).tolist() == [1, 1, 0, 0]
    assert reference.metric_rows("top_k_accuracy", outputs, labels, k=3).tolist() == [1, 1, 0, 1]

    sides = np.array([[0.6, 0.4], [0.5, 0.9]])
    signs = np.array([[1, -1], [1, 1]])
    assert reference.metric_rows("binary_accuracy", sides, (signs > 0).astype(int)).tolist() == [1.0, 0.5]
    assert reference.metric_rows("binary_accuracy", sides, signs).tolist() == [1.0, 0.5]
    assert reference.metric("binary_accuracy", sides - 0.5, signs, threshold=0.0) == 0.75
    assert reference.metric("accuracy", sides[:, :1], np.array([1, 0])) == 1.0

    errors = np.array([[3.0], [4.0]])
    assert reference.metric("mae", errors, np.zeros(2)) == 3.5
    assert reference.metric("mse", errors, np.zeros(2)) == 12.5
    assert reference.metric("rmse", errors, np.zeros(2)) == np.sqrt(12.5)
