"""Callbacks: what `fit` calls around the training, at its begin and end, of every epoch and of chunks of batches.

``model.fit(X, y, epochs=100, callbacks=[EarlyStopping(), CSVLogger("run.csv")])``. They are called in the order of the
list. The steps stay in machine code: a callback sees them before and after, and never changes their bits unless it
changes the model.
"""

from nbbp.callbacks.base import Callback, Run
from nbbp.callbacks.logs import CSVLogger, ProgressBar, TensorBoard
from nbbp.callbacks.monitoring import GradientWarning, Monitor
from nbbp.callbacks.rates import LearningRateScheduler
from nbbp.callbacks.saving import ModelCheckpoint
from nbbp.callbacks.stopping import EarlyStopping, TerminateOnNaN

__all__ = [
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "GradientWarning",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "Monitor",
    "ProgressBar",
    "Run",
    "TensorBoard",
    "TerminateOnNaN",
]
