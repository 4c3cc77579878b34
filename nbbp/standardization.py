"""Mean and variance of the data, for layers that standardize them: measured in one pass, and put in place.

Legend: X (n, n_in); statistics are (n_in,) and float64 until they become a model's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbbp import data
from nbbp.layers.standardization import Standardize, as_statistic
from nbbp.network import Sequential
from nbbp.nodes import Node, walk
from nbbp.sources import Source, row_ranges

if TYPE_CHECKING:
    from nbbp.model_base import ModelBase
    from nbbp.session import Session

__all__ = ["Moments", "adapt", "check_known", "measure"]

#: Numbers that are taken at a time: in float64 they stay in the cache.
_BLOCK = 1 << 16


class Moments:
    """Mean and variance of every feature, over all rows so far.

    The rows are taken less the first one, so that a constant feature has the variance 0 exactly; the moments of blocks
    are joined as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.
    """

    def __init__(self) -> None:
        self._n = 0
        self._shift = self._mean = self._squares = np.zeros(0)

    def add(self, X: np.ndarray, order: np.ndarray) -> None:
        """Take in the rows `order` of X."""
        for part in row_ranges(len(order), max(1, _BLOCK // X.shape[1])):
            rows = X.take(order[part], axis=0).astype(np.float64)
            if self._n == 0:
                self._shift, self._mean, self._squares = rows[0].copy(), np.zeros(X.shape[1]), np.zeros(X.shape[1])
            with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float64 becomes inf
                rows -= self._shift
                mean = rows.mean(axis=0)
                rows -= mean
                step, n = mean - self._mean, self._n + len(rows)
                self._mean += step * (len(rows) / n)
                self._squares += np.einsum("rj,rj->j", rows, rows) + step * (step * (self._n * len(rows) / n))
            self._n = n

    @property
    def mean(self) -> np.ndarray:
        return self._shift + self._mean

    @property
    def variance(self) -> np.ndarray:
        """The biased one."""
        return self._squares / self._n


def adapt(model: ModelBase, X: Any) -> None:
    """See `nbbp.Model.adapt`, which calls this."""
    network = model.network
    network = network.build(network.n_in or data.infer_n_in(X, X, form=network.form))
    nodes = _standardizing(network)
    if not nodes:
        given = any(isinstance(node.layer, Standardize) for node in walk(network.nodes))
        has = "its Standardize was given mean and variance" if given else "it has no Standardize"
        raise ValueError(f"this network has nothing to adapt to data: {has}")
    found = _statistics(data.source(X, labelled=False, **model._describe(network)), model.dtype, "X")
    if model._session is None:
        model._build(network.n_in)
    _put(found, model._session, nodes)


def measure(source: Source, sessions: Sequence[Session]) -> None:
    """Give layers that have no statistics yet those of the data that are to be trained on.

    Raises
    ------
    ValueError
        If the data can be gone through only once, or the dtype does not hold a statistic.
    """
    unknown = [(session, _unknown(session.network, session.state)) for session in sessions]
    first = next((nodes[0] for _, nodes in unknown if nodes), None)
    if first is None:
        return
    if source.is_one_shot:
        raise ValueError(
            f"{first.label} standardizes the data, but a generator can be gone through only once: call "
            "model.adapt(X) with data first, or pass a function that returns a new generator, or give "
            "Standardize(mean=…, variance=…)"
        )
    found = _statistics(source, sessions[0].dtype, "the data")
    for session, nodes in unknown:
        _put(found, session, nodes)


def check_known(network: Sequential, state: np.ndarray) -> None:
    """Refuse to run a network while its statistics are not known.

    Raises ValueError.
    """
    unknown = _unknown(network, state)
    if unknown:
        raise ValueError(
            f"{unknown[0].label} has no mean and variance of the data yet: call fit or adapt first, or give "
            "Standardize(mean=…, variance=…)"
        )


def _standardizing(network: Sequential) -> list[Node]:
    """The layers whose statistics are to be measured."""
    layers = ((node, node.layer) for node in walk(network.nodes))
    return [node for node, layer in layers if isinstance(layer, Standardize) and not layer.is_given]


def _unknown(network: Sequential, state: np.ndarray) -> list[Node]:
    """Those of them that have no statistics yet."""
    nodes = _standardizing(network)
    if not nodes:
        return []
    paths = {own.layer for own in network.states if np.isnan(own.view(state)).any()}
    return [node for node in nodes if node.path in paths]


def _statistics(source: Source, dtype: np.dtype, name: str) -> dict[str, np.ndarray]:
    """Mean and variance of a source, each (n_in,) of the dtype."""
    moments = Moments()
    for chunk in source.chunks(None, None):
        X = chunk.X if isinstance(chunk.X, np.ndarray) else chunk.X.copy_to_host()  # it lies on a GPU
        moments.add(X, chunk.order)
    found = {"mean": moments.mean, "variance": moments.variance}
    # the data are finite: what is NaN comes from differences of infinities, and is too large as these are
    return {
        kind: as_statistic(kind, np.where(np.isnan(values), np.inf, values), dtype, name)
        for kind, values in found.items()
    }


def _put(found: dict[str, np.ndarray], session: Session, nodes: Sequence[Node]) -> None:
    """Write the statistics of these layers."""
    paths = {node.path for node in nodes}
    with session.lock:
        for own in session.network.states:
            if own.layer in paths:
                own.view(session.state)[:] = found[own.name.rpartition(".")[2]]
