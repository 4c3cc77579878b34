"""A callback that looks into the layers while they learn."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbbp.callbacks.base import Callback, Run
from nbbp.layers import positive_integer
from nbbp.lowering.monitoring import monitored
from nbbp.nodes import Node

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GradientWarning", "Monitor"]

#: In the order of nbbp/cpu/monitoring.py.
QUANTITIES = (
    "mean",
    "spread",
    "zeros",
    "saturated",
    "output_gradient",
    "weight_norm",
    "gradient_norm",
    "update_norm",
)


class GradientWarning(UserWarning):
    """Gradients vanish or explode on their way back; the message names the layer."""


class Monitor(Callback):
    """Look at every layer in some of the updates: what it gives, the gradients, its parameters and how they change.

    It is done in the machine code of the step and changes none of its bits. Layers within others are looked at too;
    those that only pass numbers on (`Flatten`, `Reshape`) are not.

    Parameters
    ----------
    every : int
        Updates from one that is looked at to the next, at least 1; the first update of a model is looked at.
    vanishing, exploding : float
        After an epoch a `GradientWarning` names the layer with parameters where the gradient of its outputs was less
        than `vanishing`, or more than `exploding`, times that of the network's last layer, at the median of the
        updates looked at; or was 0, or not finite. Once for each layer and run, for the worst alone.

    Attributes
    ----------
    layers : list of str
        What was looked at, such as "0 Dense", in the order of the forward pass.
    updates : ndarray of int64 (n,)
        The numbers of the updates looked at in the last run, from 1, counted over the model's life.
    epochs : ndarray of int64 (n,)
        The epochs they were in.
    quantities : tuple of str
        Of a layer, in one update, over the rows of its batch:

        - ``mean``, ``spread``: of the numbers that it gives, behind its activation (logits where the loss takes these);
          the spread is their standard deviation.
        - ``zeros``, ``saturated``: shares of these numbers, 0 to 1, that are 0, or so near an end of their activation
          that its slope is at most 4 % of that in its middle (of that at 1, if it has one end); NaN if it has none.
        - ``output_gradient``: the root mean square of the gradients of the samples' losses by these numbers.
        - ``weight_norm``, ``gradient_norm``, ``update_norm``: Euclidean norms of all its parameters before the update,
          their gradient as the optimizer takes it (mean over the batches of an update, clipped), and the update; NaN
          without parameters, or for the gradient of frozen ones.

    Examples
    --------
    >>> monitor = nbbp.callbacks.Monitor(every=10)                       # doctest: +SKIP
    >>> model.fit(X, y, epochs=5, callbacks=[monitor])                   # doctest: +SKIP
    >>> monitor["gradient_norm"].shape                                   # doctest: +SKIP
    (63, 3)
    >>> monitor.plot("layers.png")                                       # doctest: +SKIP
    """

    quantities = QUANTITIES
    is_only_one = True

    def __init__(self, every: int = 100, vanishing: float = 1e-4, exploding: float = 1e4) -> None:
        self.every = positive_integer("every of Monitor", every)
        for name, value in (("vanishing", vanishing), ("exploding", exploding)):
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name} of Monitor must be a number; got {value!r} ({type(value).__name__})")
        if not 0.0 <= vanishing < 1.0 < exploding:
            raise ValueError(
                f"Monitor takes 0 <= vanishing < 1 < exploding; got vanishing={vanishing!r}, exploding={exploding!r}"
            )
        self.vanishing, self.exploding = float(vanishing), float(exploding)
        self.layers: list[str] = []
        self._nodes: list[Node] = []
        self._judged: list[int] = []
        self._run: Run | None = None
        self._clear()

    def _clear(self) -> None:
        self._updates = [np.zeros(0, np.int64)]
        self._epochs = [np.zeros(0, np.int64)]
        self._values = [np.zeros((0, len(self._nodes), len(QUANTITIES)))]
        self._recent: list[np.ndarray] = []  # values of the epoch that runs
        self._named: set[str] = set()

    # the run ----------------------------------------------------------------------------------------------

    def on_train_begin(self, run: Run) -> None:
        session = run.model._built
        if session.monitor is not None:
            raise ValueError("one Monitor at a time can look at a model; another one is looking at this one")
        self._nodes = monitored(session.network)
        self.layers = [f"{node.path} {_name(node)}" for node in self._nodes]
        self._judged = [k for k, node in enumerate(self._nodes) if node.trainable and _has_parameters(node)]
        self._clear()
        self._run, session.monitor = run, self

    def take(self, updates: np.ndarray, values: np.ndarray) -> None:
        """Keep what was seen: numbers of updates (n,), and quantities (n, layers, quantities)."""
        if not len(updates):
            return
        self._updates.append(updates)
        self._values.append(values)
        self._recent.append(values)
        self._epochs.append(np.full(len(updates), self._run.epoch))

    def on_epoch_end(self, run: Run) -> None:
        if not self._recent:
            return
        of_epoch, self._recent = np.concatenate(self._recent), []
        gradients = of_epoch[:, self._judged, QUANTITIES.index("output_gradient")]
        if len(run.model._built.loss_scale):  # in fp16 gradients overflow now and then, and update nothing
            gradients = gradients[np.isfinite(gradients).all(axis=1)]
        if gradients.size:
            self._judge(gradients, [self.layers[number] for number in self._judged], run.epoch)

    def on_train_end(self, run: Run) -> None:
        if run.model._built.monitor is self:
            run.model._built.monitor = None
        self._run = None

    def _judge(self, gradients: np.ndarray, layers: list[str], epoch: int) -> None:
        """Warn of the one of these layers whose gradients (updates, layers) are furthest from those of the last."""
        with np.errstate(all="ignore"):
            ratios = np.sort(gradients / gradients[:, -1:], axis=0)[len(gradients) // 2]
        if not np.isfinite(ratios[-1]):  # nothing comes back at all: the loss is 0, or no number
            return
        is_bad = ~((ratios >= self.vanishing) & (ratios <= self.exploding))
        bad = [k for k in is_bad.nonzero()[0] if layers[k] not in self._named]
        if not bad:
            return
        self._named.update(layers[k] for k in bad)
        with np.errstate(all="ignore"):
            distances = np.where(np.isfinite(ratios), np.abs(np.log(ratios)), np.inf)
        worst = max(bad, key=lambda k: distances[k])
        what = "vanish" if ratios[worst] < 1.0 else "explode"
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        warnings.warn(
            f"gradients {what} in layer {layers[worst]}{more}: in epoch {epoch} the gradient of its outputs is "
            f"{ratios[worst]:.2g} times that of layer {layers[-1]}",
            GradientWarning,
            stacklevel=2,
        )

    # what was seen ----------------------------------------------------------------------------------------

    @staticmethod
    def _all(parts: list[np.ndarray]) -> np.ndarray:
        """Everything so far as one array, which then stands for its parts."""
        if len(parts) > 1:
            parts[:] = [np.concatenate(parts)]
        return parts[0]

    @property
    def updates(self) -> np.ndarray:
        """Numbers of the updates looked at (n,), from 1."""
        return self._all(self._updates)

    @property
    def epochs(self) -> np.ndarray:
        """The epochs that these were in (n,)."""
        return self._all(self._epochs)

    def __getitem__(self, quantity: str) -> np.ndarray:
        """One quantity in each update looked at, (n, layers).

        Raises
        ------
        KeyError
            There is no such quantity.
        """
        if quantity not in QUANTITIES:
            raise KeyError(f"no {quantity!r} in a Monitor; there are: {', '.join(QUANTITIES)}")
        return self._all(self._values)[:, :, QUANTITIES.index(quantity)]

    def per_epoch(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """The mean of a quantity over the updates looked at in each epoch.

        Returns
        -------
        epochs : ndarray of int64 (n_epochs,)
            Those in which there was one.
        values : ndarray (n_epochs, layers)
        """
        values, (epochs, places) = self[quantity], np.unique(self.epochs, return_inverse=True)
        sums = np.zeros((len(epochs), len(self.layers)))
        with np.errstate(all="ignore"):  # of a run that diverged
            np.add.at(sums, places, values)
        return epochs, sums / np.bincount(places, minlength=len(epochs))[:, None]

    def __repr__(self) -> str:
        return f"Monitor(every={self.every}; {len(self.updates)} updates of {len(self.layers)} layers)"

    def plot(
        self, path: Any = None, quantities: Sequence[str] = ("output_gradient", "saturated", "update_norm")
    ) -> Figure:
        """Draw heat maps, layer × time, one panel per quantity.

        Norms and gradients are drawn on a logarithmic scale, where 0 is as blank as what does not exist; of an update
        its share of the weights, because layers differ in size. Of many updates the means of neighbours are drawn.

        Parameters
        ----------
        path : str or path-like, optional
            Also save the picture there; the ending says in which format.
        quantities : sequence of str
            Among `quantities`.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Matplotlib is missing; the message says how to install it.
        ValueError
            Nothing has been looked at yet, or no quantity was asked for.
        """
        from nbbp import plotting

        return plotting.plot_monitor(self, path, quantities)


def _name(node: Node) -> str:
    """What a layer is, with its activation, and what it is called if it was given a name."""
    layer, activation = node.layer, node.layer.activation
    if activation is layer:
        return str(activation)
    kind = type(layer).__name__ + ("" if activation.name == "linear" else f"({activation})")
    return f"{kind} {layer.name!r}" if layer.name else kind


def _has_parameters(node: Node) -> bool:
    return bool(node.layer.parameter_shapes(node.n_in))
