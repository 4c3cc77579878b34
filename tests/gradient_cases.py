"""What the tests of gradients between backpropagation and the update share: plans, models, batches and the oracle."""

import numpy as np
import reference
import reference_optimizers
import reference_random
from engine_cases import copies, features_for, model_of, targets_for
from test_engine_plans import CUTS

from nbbp import losses, tiling
from nbbp.layers import Dense

LOSS = losses.Crossentropy()
PLANS = ("alone", "partial", "wide")
#: Philox's stream of the noise of gradients.
STREAM = 5
ALL = {"clip_value": 0.01, "clip_norm": 0.05, "gradient_noise": 1e-4, "accumulation_steps": 3}
SETTINGS = {
    "value": {"clip_value": 0.01},
    "norm": {"clip_norm": 0.1},
    "noise": {"gradient_noise": 0.01},
    "accumulation": {"accumulation_steps": 3},
    "all": ALL,
    "all, penalties": {**ALL, "weight_decay": 0.05, "l1": 0.02, "groups": {"*.bias": {"learning_rate": 0.05}}},
}


def cut_as(plan, monkeypatch):
    """Make steps be cut in this way, with as many tiles as small sizes allow."""
    for name, value in {"_SHARED_WORK": 0, **CUTS[plan]}.items():
        monkeypatch.setattr(tiling, name, value)


def network_model(optimizer, dtype="float64", frozen=None, **settings):
    """20-150-70-3, one layer of which may be frozen."""
    widths = [(150, "tanh"), (70, "tanh"), (3, "linear")]
    layers = [Dense(width, a, trainable=index != frozen) for index, (width, a) in enumerate(widths)]
    return model_of(layers, 20, LOSS, dtype, optimizer, **settings)


def batches_for(model, sizes):
    n_in, n_out = model.network.n_in, model.network.n_out
    return [
        (features_for(n, n_in, model.dtype, 10 + i), targets_for(model.loss, n, n_out, 50 + i))
        for i, n in enumerate(sizes)
    ]


def train(model, batches):
    for x, y in batches:
        model.train_step(x, y)


def joined(batches):
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


def oracle_updates(model, batches):
    """The parameters after every whole update that the batches make, from where the model stands."""
    optimizer, k = model.optimizer, model.optimizer.accumulation_steps
    current, state = copies(model.parameters), {}
    numbers = np.arange(model.network.n_parameters)
    trainable = {parameter.name for parameter in model.network.parameters if parameter.trainable}
    for first in range(0, len(batches) - k + 1, k):
        chosen = batches[first : first + k]
        parts = [reference.loss_and_gradients(model.network, current, *batch, model.loss)[1] for batch in chosen]
        parts = [{name: part[name] for name in part if name in trainable} for part in parts]
        gradient = reference_optimizers.mean_gradient(parts, [len(x) for x, _ in chosen], model.loss.reduction)
        normals = np.zeros(numbers.size)
        if optimizer.gradient_noise:
            normals = reference_random.normals(numbers, model.seed, 0, first // k, STREAM)
        normals = {parameter.name: parameter.view(normals) for parameter in model.network.parameters}
        gradient = reference_optimizers.prepared(optimizer, gradient, first // k + 1, normals)
        moving = {name: current[name] for name in gradient}
        current |= reference_optimizers.step(optimizer, moving, gradient, state, model.dtype.name)
    return current
