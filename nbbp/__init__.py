"""nbbp: backpropagation compiled. Dense neural networks at machine-code speed, in Numba kernels that a person can
read.
"""

from nbbp import augmentation, autodiff, callbacks, datasets, initializers, losses, metrics, optimizers, schedules
from nbbp.autodiff import Value
from nbbp.cpu.engine import get_num_threads, set_num_threads
from nbbp.divergence import TrainingDiverged
from nbbp.formulas import activation, loss
from nbbp.gradcheck import GradientCheck
from nbbp.history import History
from nbbp.layers import (
    Activation,
    BatchNorm,
    Concat,
    Custom,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GaussianNoise,
    LayerNorm,
    Reshape,
    Residual,
    RMSNorm,
    Standardize,
    StochasticDepth,
)
from nbbp.learning_rate_finder import LearningRateCurve, find_learning_rate
from nbbp.model import Model
from nbbp.network import Sequential
from nbbp.optimizers import (
    SGD,
    Adadelta,
    Adafactor,
    AdaGrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    NAdam,
    RAdam,
    RMSprop,
)
from nbbp.persistence import load_model
from nbbp.population import Population, PopulationHistory
from nbbp.precision import LossScaling
from nbbp.profiler import Profile, profile
from nbbp.splitting import train_test_split
from nbbp.warming import warmup

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Activation",
    "AdaGrad",
    "Adadelta",
    "Adafactor",
    "Adam",
    "AdamW",
    "Adamax",
    "BatchNorm",
    "Concat",
    "Custom",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GaussianNoise",
    "GradientCheck",
    "History",
    "LayerNorm",
    "LearningRateCurve",
    "Lion",
    "LossScaling",
    "Model",
    "NAdam",
    "Population",
    "PopulationHistory",
    "Profile",
    "RAdam",
    "RMSNorm",
    "RMSprop",
    "Reshape",
    "Residual",
    "Sequential",
    "Standardize",
    "StochasticDepth",
    "TrainingDiverged",
    "Value",
    "activation",
    "augmentation",
    "autodiff",
    "callbacks",
    "datasets",
    "find_learning_rate",
    "get_num_threads",
    "initializers",
    "load_model",
    "loss",
    "losses",
    "metrics",
    "optimizers",
    "profile",
    "schedules",
    "set_num_threads",
    "train_test_split",
    "warmup",
]
