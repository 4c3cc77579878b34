"""Networks of every layer trained step by step beside PyTorch, with the same masks: parameters, states, predictions."""

import numpy as np
import pytest
import reference_random
from engine_cases import features_for, targets_for

import nbbp
from nbbp.layers import (
    Activation,
    BatchNorm,
    Concat,
    Dense,
    Dropout,
    GaussianNoise,
    LayerNorm,
    Residual,
    RMSNorm,
    Standardize,
    StochasticDepth,
)
from nbbp.scalars.philox import STREAM_DEPTH, STREAM_DROPOUT, STREAM_NOISE

torch = pytest.importorskip("torch")
functional = torch.nn.functional

#: The largest relative difference after some steps; in float64 what remains is the rounding of the noise to float32.
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}


class Twin:
    """A network of nbbp in PyTorch, from its nodes."""

    def __init__(self, model, dtype):
        self.model, self.dtype = model, getattr(torch, dtype)
        self.parameters = {
            parameter.name: torch.tensor(
                model.parameters[parameter.name], dtype=self.dtype, requires_grad=parameter.trainable
            )
            for parameter in model.network.parameters
        }
        self.state = {name: torch.tensor(values, dtype=self.dtype) for name, values in model.state.items()}
        trained = {name: values for name, values in self.parameters.items() if values.requires_grad}
        groups = [
            {"params": [v for k, v in trained.items() if k.endswith("weight")], "weight_decay": 1e-2},
            {"params": [v for k, v in trained.items() if not k.endswith("weight")], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD([group for group in groups if group["params"]], lr=0.05, momentum=0.9)

    def train(self, x, y, step):
        """One update; the loss and the gradients before it."""
        loss = functional.cross_entropy(self(x, step), torch.tensor(y))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        none = {name: torch.zeros_like(values) for name, values in self.parameters.items()}
        gradients = {name: none[name] if v.grad is None else v.grad.clone() for name, v in self.parameters.items()}
        return {"loss": loss.detach(), **gradients}

    def __call__(self, x, step=None):
        """What the last layer gives in training step `step`, or in prediction."""
        return self.chain(self.model.network.nodes, torch.tensor(x, dtype=self.dtype), step)

    def chain(self, nodes, x, step):
        for node in nodes:
            x = self.layer(node, x, step)
        return x

    def of(self, node, *kinds):
        return (self.parameters.get(f"{node.path}.{kind}") for kind in kinds)

    def layer(self, node, x, step):
        layer, width = node.layer, (node.n_in,)
        if isinstance(layer, Dense):
            weight, bias = self.of(node, "weight", "bias")
            return self.activation(layer.activation, functional.linear(x, weight.T, bias))
        if isinstance(layer, Activation):
            return self.activation(layer, x)
        if isinstance(layer, BatchNorm):
            mean, variance = (self.state[f"{node.path}.running_{kind}"] for kind in ("mean", "variance"))
            trains = step is not None and node.trainable
            return functional.batch_norm(
                x, mean, variance, *self.of(node, "gamma", "beta"), trains, layer.momentum, layer.eps
            )
        if isinstance(layer, Standardize):
            mean, variance = (self.state[f"{node.path}.{kind}"] for kind in ("mean", "variance"))
            return (x - mean) / variance.sqrt()
        if isinstance(layer, LayerNorm):
            return functional.layer_norm(x, width, *self.of(node, "gamma", "beta"), layer.eps)
        if isinstance(layer, RMSNorm):
            return functional.rms_norm(x, width, *self.of(node, "gamma"), layer.eps)
        if isinstance(layer, Residual):
            branch, *projection = (self.chain(chain, x, step) for chain in node.branches)
            return branch + (projection[0] if projection else x)
        if isinstance(layer, Concat):
            return torch.cat([self.chain(chain, x, step) for chain in node.branches], dim=1)
        return x if step is None else self.disturbed(node, x, step)

    def disturbed(self, node, x, step):
        """A layer of random numbers, which the oracle of the kernels draws."""
        layer, counter = node.layer, (self.model.seed, node.number, step)
        places = reference_random.places(len(x), node.n_in)
        if isinstance(layer, GaussianNoise):
            noise = reference_random.normals(places, *counter, STREAM_NOISE)
            return x + layer.stddev * torch.tensor(noise, dtype=self.dtype)
        stream = STREAM_DROPOUT
        if isinstance(layer, StochasticDepth):
            stream = STREAM_DEPTH
            places = np.arange(len(x))[:, None] * (layer.mode == "row")
        kept = reference_random.kept(places, layer.rate, *counter, stream)
        return x * torch.tensor(kept, dtype=self.dtype) / (1.0 - layer.rate)

    def activation(self, activation, z):
        return {
            "linear": lambda z: z,
            "relu": torch.relu,
            "tanh": torch.tanh,
            "gelu": functional.gelu,
            "sigmoid": torch.sigmoid,
        }[activation.name](z)


def everything(width):
    """A network with every layer, twice as deep as it is wide is many."""
    return [
        Dense(width),
        BatchNorm(),
        Activation("relu"),
        Dropout(0.25),
        Residual([LayerNorm(), Dense(width, "gelu"), Dropout(0.1), Dense(width), StochasticDepth(0.3)]),
        RMSNorm(),
        GaussianNoise(0.1),
        Concat([Dense(5, "tanh"), BatchNorm(affine=False, momentum=0.3)], [Dense(width, "relu"), LayerNorm()], []),
        Residual([Dense(7, "sigmoid"), Dropout(0.2)]),
        Dense(3),
    ]


NETWORKS = {
    "dropout behind relu": [Dense(17, "relu"), Dropout(0.5), Dense(16, "relu"), Dropout(0.2), Dense(3)],
    "dropout behind tanh": [Dense(17, "tanh"), Dropout(0.5), Dense(3)],
    "dropout first and last": [Dropout(0.2), Dense(8, "gelu"), Dense(3), Dropout(0.1)],
    "batch norm in front": [BatchNorm(), Dense(8), BatchNorm(eps=1e-3, momentum=0.5), Activation("tanh"), Dense(3)],
    "batch norm last": [Dense(8, "relu"), Dense(3), BatchNorm()],
    "standardized": [Standardize((3, -1, 0, 7, 0.5, 0), (4, 1, 0.1, 0, 9, 2)), Dense(17, "gelu"), Dense(3)],
    "layer norm": [LayerNorm(), Dense(17), LayerNorm(), Activation("gelu"), Dense(3), LayerNorm(affine=False)],
    "rms norm": [RMSNorm(), Dense(17), RMSNorm(affine=False), Activation("relu"), Dense(3), RMSNorm(eps=1e-2)],
    "noise": [GaussianNoise(0.3), Dense(16, "relu"), GaussianNoise(0.1), Dense(3)],
    "depth": [Dense(16, "relu"), StochasticDepth(0.4), Dense(7), StochasticDepth(0.2, "batch"), Dense(3)],
    "residual ends in relu": [Dense(8), Residual([Dense(8, "relu")]), Residual([Activation("relu")]), Dense(3)],
    "frozen": [
        Dense(8, trainable=False),
        BatchNorm(trainable=False),
        Activation("tanh"),
        Residual([Dense(8, trainable=False), LayerNorm(trainable=False), Dense(8)]),
        Dense(8, "relu", trainable=False),
        Dense(3),
    ],
    "everything": everything(16),
}  # fmt: skip


def assert_as_good(ours, theirs, dtype):
    """Every error, against PyTorch in float64, is within the tolerance, or not above twice PyTorch's own in float32.

    Batch norm of a unit that hardly varies magnifies rounding beyond any fixed bound.
    """
    exact, rounded = theirs[0], theirs[-1]
    scale = max(np.abs(values.numpy()).max() for values in exact.values())
    for name, values in exact.items():
        own = np.abs(rounded[name].numpy() - values.numpy()).max() if dtype == "float32" else 0.0
        allowed = max(TOLERANCES[dtype] * scale, 2.0 * own)
        np.testing.assert_allclose(ours[name], values.numpy(), rtol=0.0, atol=allowed, err_msg=name)


def train_beside(layers, dtype, batch, n_steps=4, n_in=6):
    """Steps on changing batches, the last of them short; then everything is compared.

    By SGD: Adam would make whole steps of mere rounding, as the gradient of a bias in front of a batch norm is.
    """
    network = nbbp.Sequential(layers, n_in=n_in)
    model = nbbp.Model(network, "crossentropy", nbbp.SGD(0.05, momentum=0.9, weight_decay=1e-2), dtype=dtype, seed=11)
    rng = np.random.default_rng(2)
    for values in (*model.parameters.values(), *(v for k, v in model.state.items() if k.endswith("variance"))):
        values += 0.3 * rng.random(values.shape)
    twins = [Twin(model, name) for name in dict.fromkeys(("float64", dtype))]
    for step in range(n_steps):
        rows = batch if step < n_steps - 1 else max(2, batch // 3)
        x, y = features_for(rows, n_in, dtype, seed=step), targets_for(model.loss, rows, 3, seed=step)
        theirs = [twin.train(x, y, step) for twin in twins]
        loss, gradients = model.loss_and_gradients(x, y)
        assert_as_good({"loss": loss, **gradients}, theirs, dtype)
        assert model.train_step(x, y) == loss
    for ours, kind in ((model.state, "state"), (model.parameters, "parameters")):
        if ours:
            expected = [{k: v.detach() for k, v in getattr(twin, kind).items()} for twin in twins]
            assert_as_good(ours, expected, dtype)
    x = features_for(50, n_in, dtype, seed=99)
    assert_as_good({"": model.predict(x)}, [{"": twin(x).detach()} for twin in twins], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_training_beside_pytorch(layers, dtype):
    train_beside(layers, dtype, batch=17)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("width", "batch"), [(16, 1500), (300, 40)], ids=["partial gradients", "wide"])
def test_training_in_parts_beside_pytorch(width, batch, dtype):
    train_beside(everything(width), dtype, batch, n_steps=3)


def test_a_batch_of_one_row():
    """PyTorch refuses it where there is a batch norm; here its output is beta, and its statistics stay."""
    model = nbbp.Model(nbbp.Sequential([BatchNorm(), Dense(3)], n_in=4), "mse")
    before = {name: values.copy() for name, values in model.state.items()}
    model.train_step(np.ones((1, 4), "float32"), np.ones((1, 3), "float32"))
    for name, values in model.state.items():
        np.testing.assert_array_equal(values, before[name])
