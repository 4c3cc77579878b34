"""Population: many networks trained at once over the same data, each on one thread at a time."""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nbbp import data
from nbbp.fleet import Fleet
from nbbp.fleet_training import Run
from nbbp.layers import positive_integer
from nbbp.losses import Loss
from nbbp.metrics import Metric, more_is_better
from nbbp.model import Model
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.population_settings import networks_of, optimizers_of, size_of, values_of
from nbbp.sources import ArraySource, Source
from nbbp.standardization import measure
from nbbp.training import check_options

__all__ = ["Population", "PopulationHistory"]


class PopulationHistory(Mapping):
    """Loss and metrics of each epoch of each network; a mapping from a name to an array (epochs, size).

    Attributes
    ----------
    stopped : dict of int to int
        Networks whose loss or parameters turned NaN or infinite, and in which epoch, counted from 1. Their history is
        NaN from there on.
    """

    def __init__(self, values: Mapping[str, np.ndarray], stopped: Mapping[int, int]) -> None:
        self._values, self.stopped = dict(values), dict(stopped)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._values[name]
        except KeyError:
            recorded = ", ".join(map(repr, self._values)) or "nothing yet"
            raise KeyError(f"no {name!r} in this history; recorded: {recorded}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        epochs, size = next(iter(self._values.values()), np.empty((0, 0))).shape
        return f"PopulationHistory({epochs} epochs of {size} networks; {', '.join(self._values)})"


class Population:
    """Many networks that are trained at once over the same data, each on one thread at a time.

    Every network gets the same bits as a `Model` with its seed and its settings that is trained alone, on any number of
    threads; but with small networks all threads are busy, and Python is not.

    A setting is one value for all, or a list, tuple, range or one-dimensional array with one for each network.

    Parameters
    ----------
    network : Sequential, or callable
        A callable is called with every network's settings by name, ``network(n_hidden=8)``, and returns a Sequential.
        All must take the same features and give the same outputs.
    loss, metrics, dtype, device
        As `Model`, for all.
    optimizer : str or Optimizer, or a sequence of them
    size : int, optional
        How many networks; may be left out where a setting says it.
    seed : int or sequence of int, optional
        0 … size - 1, if not given.
    learning_rate : float or Schedule, or a sequence of them, optional
        Instead of the optimizer's own.
    **settings
        What `network` is called with. A Sequential takes one, ``n_hidden``: the width of every `Dense` but the last.

    Attributes
    ----------
    settings : dict of str to list
        Seeds, learning rates and the other settings, a value for each network.
    history : PopulationHistory
        Of the last `fit`.

    Raises
    ------
    TypeError, ValueError
        For what cannot be part of a model, and for settings of different lengths.

    Examples
    --------
    >>> net = Sequential([Dense(16, activation="tanh"), Dense(1)], n_in=8)                          # doctest: +SKIP
    >>> population = Population(net, "mse", "adam", size=1000, learning_rate=rates)                 # doctest: +SKIP
    >>> history = population.fit(X, y, epochs=50, validation_data=(Xv, yv))                         # doctest: +SKIP
    >>> history["val_loss"].shape                                                                   # doctest: +SKIP
    (50, 1000)
    >>> model = population[population.best("val_loss")]                                             # doctest: +SKIP
    """

    def __init__(
        self,
        network: Sequential | Callable[..., Sequential],
        loss: str | Loss,
        optimizer: str | Optimizer | Sequence[str | Optimizer] = "adam",
        metrics: Sequence[str | Metric] = (),
        *,
        size: int | None = None,
        seed: int | Sequence[int] | None = None,
        learning_rate: Any = None,
        device: str = "cpu",
        dtype: Any = "float32",
        **settings: Any,
    ) -> None:
        if device != "cpu":
            raise ValueError(f"a population trains on the device 'cpu', all networks side by side; got {device!r}")
        varying = {"seed": seed, "learning_rate": learning_rate, "optimizer": optimizer, **settings}
        n = size_of(size, varying)
        seeds = values_of(range(n) if seed is None else seed, n)
        networks, rules = networks_of(network, settings, n), optimizers_of(optimizer, learning_rate, n)
        self.settings = {"seed": seeds, "learning_rate": [rule.learning_rate for rule in rules]}
        self.settings |= {name: values_of(value, n) for name, value in settings.items()}
        common = {"device": device, "dtype": dtype}
        self._models = [
            Model(one, loss, rule, metrics, seed=key, **common)
            for one, rule, key in zip(networks, rules, seeds, strict=True)
        ]
        self.history = PopulationHistory({}, {})
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._models)

    def __getitem__(self, number: int) -> Model:
        """One network as a `Model` whose memory is the population's: what trains the one trains the other.

        So train no network by itself while the population's `fit` runs.
        """
        return self._models[operator.index(number)]

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    def __repr__(self) -> str:
        return f"Population({len(self)} networks such as {self._models[0]!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    # training ---------------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple | None = None,
        shuffle: bool = True,
        sample_weight: Any = None,
        verbose: int | str = "auto",
    ) -> PopulationHistory:
        """Train every network for some epochs, going on from where each stands.

        Every network shuffles the samples by its own seed. One whose loss turns NaN or infinite stops there with its
        last good parameters, as `Model.fit` would; the others go on, and a warning names it.

        Parameters
        ----------
        X, y, epochs, batch_size, validation_data, shuffle, sample_weight, verbose
            As `Model.fit`, but in memory: no iterables of batches and no memory-mapped files.

        Returns
        -------
        PopulationHistory
            Arrays (epochs, size); also kept as ``population.history``.

        Raises
        ------
        TypeError, ValueError
            For data that cannot be trained on; nothing has changed then.

        Warns
        -----
        RuntimeWarning
            For networks that stopped; `PopulationHistory.stopped` says in which epoch.

        Notes
        -----
        Ctrl-C leaves every network after some whole number of its epochs, the history of the others being NaN.
        """
        epochs, batch_size = positive_integer("epochs", epochs), positive_integer("batch_size", batch_size)
        check_options(verbose, shuffle)
        first = self._models[0]
        n_in = first.network.n_in or data.infer_n_in(X, y, form=first.network.form)
        describe = {**first._describe(first.network.build(n_in)), "epochs": epochs}
        source, validation = data.sources_to_fit(X, y, sample_weight, None, validation_data, describe)
        for name, given in (("X", source), ("validation X", validation)):
            if given is not None and not isinstance(given, ArraySource):
                raise TypeError(
                    f"{name} must be an array in memory, because every network visits it in an order of its own; "
                    "got batches or a memory-mapped file"
                )
        with self._lock:
            self._build(n_in)
            measure(source, [model._built for model in self._models])
            run = Run(self._fleet(), source, validation, epochs, batch_size, bool(shuffle))
            try:
                run.run(bool(verbose))
            finally:
                self._keep(run)
        self._warn_of_stopped()
        return self.history

    def _build(self, n_in: int) -> None:
        """Give parameters to models that were described without n_in; equal networks stay one object."""
        built: dict[int, Sequential] = {}
        for model in self._models:
            if model._session is None:
                model.network = built.setdefault(id(model.network), model.network.build(n_in))
                model._build(n_in)

    def _fleet(self) -> Fleet:
        return Fleet([model._built for model in self._models])

    def _keep(self, run: Run) -> None:
        values = {name: np.ascontiguousarray(numbers.T) for name, numbers in run.report().items()}
        if np.isfinite(run.outcome.rates).any():
            values["learning_rate"] = run.outcome.rates
        self.history = PopulationHistory(values, run.outcome.stopped)

    def _warn_of_stopped(self) -> None:
        stopped = sorted(self.history.stopped.items())
        if stopped:
            some = ", ".join(f"{number} (epoch {epoch})" for number, epoch in stopped[:8])
            more = f" and {len(stopped) - 8} more" if len(stopped) > 8 else ""
            warnings.warn(
                f"the loss of {len(stopped)} of {len(self)} networks turned NaN or infinite; they stopped with their "
                f"last good parameters: {some}{more}. history.stopped has them all",
                RuntimeWarning,
                stacklevel=3,
            )

    # use --------------------------------------------------------------------------------------------------

    def evaluate(self, X: Any, y: Any = None, *, sample_weight: Any = None) -> dict[str, np.ndarray]:
        """Loss and metrics over data, each an array (size,).

        Parameters
        ----------
        X, y, sample_weight
            As `Model.evaluate`.
        """
        source = self._source(X, y, sample_weight=sample_weight)
        with self._lock:
            fleet = self._fleet()
            return fleet.report(*fleet.evaluate(source))

    def predict(self, X: Any, *, mean: bool = False) -> np.ndarray:
        """What the last layers give for each sample: (size, n, n_out), or with `mean` their mean (n, n_out).

        Parameters
        ----------
        X : array_like (n, n_in)
        mean : bool
            Over the networks, an ensemble's answer, summed in float64. Of one over classes, better the mean of
            probabilities: end the network with softmax or sigmoid.
        """
        source = self._source(X, labelled=False)
        with self._lock:
            out = self._fleet().predict(source)
        form = self._models[0].network.form
        if mean:
            return form.outputs(out.mean(axis=0, dtype=np.float64).astype(out.dtype))
        return out.reshape(*out.shape[:2], *form.output_shape) if form.output_shape else out

    def _source(self, X: Any, y: Any = None, **more: Any) -> Source:
        first = self._models[0]
        first._built  # noqa: B018 - raises where there are no parameters
        return data.source(X, y, **more, **first._describe(first.network))

    def best(self, name: str) -> int:
        """The number of the network that ended best in the last `fit`.

        Parameters
        ----------
        name : str
            A key of the history. Of accuracies the largest counts, of everything else the smallest; NaN never does.

        Raises
        ------
        KeyError
            If there is no such name.
        ValueError
            If no network has a number there.
        """
        last = self.history[name][-1]
        if np.isnan(last).all():
            raise ValueError(f"no network has a {name!r} in the last epoch: all have stopped")
        return int(np.nanargmax(last) if more_is_better(name) else np.nanargmin(last))
