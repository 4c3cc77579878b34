"""Compile every kernel of the CPU engine now, so that no later process has to."""

from collections.abc import Iterable

import numpy as np

from nbbp.cpu import kernels


def warmup(dtypes: Iterable[str] = ("float32", "float64")) -> None:
    """Compile (or load from the cache) all op kernels and the engine's loops.

    Parameters
    ----------
    dtypes : iterable of {"float32", "float64"}
    """
    for dtype in dtypes:
        for arguments in kernels.everything(np.dtype(dtype).name):
            kernels.compiled(*arguments)
