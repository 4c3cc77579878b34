"""Of the oracle: normalisations and layers of random numbers, as ``reference_network`` takes them.

Their context: "mask" (batch, n) or (batch, 1), what the layer multiplies by before it divides by 1 - rate; "noise"
(batch, n); "running_mean" and "running_variance" (n,) where batch norm goes by them; "mean" and "variance" (n,) of
`Standardize`. What is not given acts as in
prediction, but batch norm then goes by the batch.
"""

import numpy as np
import reference_normalization as oracle
import reference_random
from reference_network import oracle_of

from nbbp import layers
from nbbp.nodes import walk
from nbbp.scalars.philox import STREAM_DEPTH, STREAM_DROPOUT, STREAM_NOISE


def gain_and_shift(place):
    return [place.parameter(kind) if place.layer.affine else None for kind in ("gamma", "beta")]


def named(place, d_gamma, d_beta=None):
    found = {"gamma": d_gamma, "beta": d_beta} if place.layer.affine else {}
    return {kind: gradient for kind, gradient in found.items() if gradient is not None}


@oracle_of(layers.BatchNorm)
def batch_norm(place, x):
    eps, mean, variance = place.layer.eps, place.given("running_mean"), place.given("running_variance")
    gamma, beta = gain_and_shift(place)
    if mean is not None:
        y = oracle.inference(x, mean, variance, gamma, beta, eps)
        nothing = None if gamma is None else np.zeros_like(gamma)
        return y, lambda d_y: (oracle.inference_backward(d_y, variance, gamma, eps), named(place, nothing, nothing))
    return normalized(place, x, 0)


@oracle_of(layers.Standardize)
def standardize(place, x):
    deviation = np.sqrt(np.asarray(place.given("variance"), np.float64))
    return (x - place.given("mean")) / deviation, lambda d_y: (d_y / deviation, {})


@oracle_of(layers.LayerNorm)
def layer_norm(place, x):
    return normalized(place, x, 1)


def normalized(place, x, axis):
    gamma, beta = gain_and_shift(place)
    y, *_ = oracle.normalization(x, gamma, beta, axis, place.layer.eps)

    def backward(d_y):
        d_x, *gradients = oracle.normalization_backward(d_y, x, gamma, axis, place.layer.eps)
        return d_x, named(place, *gradients)

    return y, backward


@oracle_of(layers.RMSNorm)
def rms_norm(place, x):
    gamma = place.parameter("gamma") if place.layer.affine else None
    y, _ = oracle.rms_norm(x, gamma, place.layer.eps)

    def backward(d_y):
        d_x, d_gamma = oracle.rms_norm_backward(d_y, x, gamma, place.layer.eps)
        return d_x, named(place, d_gamma)

    return y, backward


@oracle_of(layers.Dropout)
@oracle_of(layers.StochasticDepth)
def masked(place, x):
    mask = place.given("mask")
    factor = 1.0 if mask is None else mask / (1.0 - place.layer.rate)
    return x * factor, lambda d_y: (d_y * factor, {})


@oracle_of(layers.GaussianNoise)
def noisy(place, x):
    noise = place.given("noise")
    y = x if noise is None else x + place.layer.stddev * noise
    return y, lambda d_y: (d_y, {})


def context_of(model, batch, step):
    """What the layers of a model go by in training step `step`, counted from 0."""
    context = {}
    for node in walk(model.network.nodes):
        counter = model.seed, node.number, step
        places = reference_random.places(batch, node.n_in)
        if isinstance(node.layer, layers.Dropout):
            context[f"{node.path}.mask"] = reference_random.kept(places, node.layer.rate, *counter, STREAM_DROPOUT)
        elif isinstance(node.layer, layers.StochasticDepth):
            rows = np.arange(batch)[:, None] * (node.layer.mode == "row")
            context[f"{node.path}.mask"] = reference_random.kept(rows, node.layer.rate, *counter, STREAM_DEPTH)
        elif isinstance(node.layer, layers.GaussianNoise):
            context[f"{node.path}.noise"] = reference_random.normals(places, *counter, STREAM_NOISE)
        elif isinstance(node.layer, layers.Standardize) or (
            isinstance(node.layer, layers.BatchNorm) and not node.trainable
        ):
            context |= {name: values for name, values in model.state.items() if name.startswith(f"{node.path}.")}
    return context
