"""What a layer is: frozen descriptions, compared and hashed by value, with no arrays and no loops in them."""

from nbbp.layers.activation import Activation
from nbbp.layers.base import Layer, positive_integer, unknown_name
from nbbp.layers.custom import Custom
from nbbp.layers.dense import Dense
from nbbp.layers.embedding import Embedding
from nbbp.layers.normalization import BatchNorm, LayerNorm, RMSNorm
from nbbp.layers.regularization import Dropout, GaussianNoise, StochasticDepth
from nbbp.layers.standardization import Standardize
from nbbp.layers.structure import Concat, Flatten, Reshape, Residual

__all__ = [
    "Activation",
    "BatchNorm",
    "Concat",
    "Custom",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GaussianNoise",
    "Layer",
    "LayerNorm",
    "RMSNorm",
    "Reshape",
    "Residual",
    "Standardize",
    "StochasticDepth",
    "positive_integer",
    "unknown_name",
]
