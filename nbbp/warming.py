"""Compile everything now, so that no later process has to."""

from collections.abc import Iterable

import numpy as np

from nbbp import initializers
from nbbp.arena import compile_sweeps
from nbbp.cpu import kernels
from nbbp.cpu.counting import compile_counting
from nbbp.cpu.engine import BoundProgram
from nbbp.layers import Dense
from nbbp.model import Model
from nbbp.network import Sequential
from nbbp.population import Population
from nbbp.validation import compile_scans

__all__ = ["warmup"]


def warmup(dtypes: Iterable[str] = ("float32", "float64")) -> None:
    """Compile, or load from the cache, every op kernel and every function that models and scalar graphs call.

    Parameters
    ----------
    dtypes : iterable of {"float32", "float64"}
    """
    compile_scans()
    compile_sweeps()
    for initializer in initializers.BY_NAME.values():
        initializer((2, 2), 0, 0, np.dtype(np.float32))
    for dtype in dtypes:
        for arguments in kernels.everything(np.dtype(dtype).name):
            kernels.compiled(*arguments)
        x = np.zeros((2, 2), dtype)
        for loss, y in (("crossentropy", np.zeros(2, np.int64)), ("mse", np.zeros((2, 2), dtype))):
            model = Model(Sequential([Dense(2)], n_in=2), loss=loss, dtype=dtype)
            model.fit(x, y, verbose=0)
            model.train_step(x, y)
            model.predict(x)
        population = Population(Sequential([Dense(2)], n_in=2), "mse", size=1, dtype=dtype)
        population.fit(x, y, verbose=0)
        population.predict(x)
    BoundProgram.compile_team()
    compile_counting()
