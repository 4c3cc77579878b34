"""What a model is made of: its parts, checked, and its parameters by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nbbp import losses, optimizers
from nbbp import metrics as metric_descriptions
from nbbp.compatibility import check_parts
from nbbp.device_data import batch_on_device, is_on_device
from nbbp.history import History
from nbbp.losses import Loss
from nbbp.metrics import Metric
from nbbp.network import Sequential, checked_dtype
from nbbp.optimizers import Optimizer
from nbbp.placement import checked_device, session_on
from nbbp.precision import LossScaling, checked_precision, checked_scaling
from nbbp.quick import OnlineStep
from nbbp.session import Session
from nbbp.sources import Chunk
from nbbp.standardization import adapt
from nbbp.targets import targets, weights
from nbbp.validation import check_categories, features

if TYPE_CHECKING:
    from nbbp.device_functions import CudaFunctions

__all__ = ["ModelBase"]

#: What a model is made of: fixed, because its memory and its programs are made for it.
_FIXED = ("network", "loss", "optimizer", "metrics", "device", "dtype", "seed", "precision", "loss_scaling")


class ModelBase:
    """The parts of a `Model` and its parameters; what can be done with them is in `Model`."""

    def __init__(
        self,
        network: Sequential,
        loss: str | Loss,
        optimizer: str | Optimizer = "adam",
        metrics: Sequence[str | Metric] = (),
        *,
        device: str = "cpu",
        dtype: Any = "float32",
        seed: int = 0,
        precision: str = "float32",
        loss_scaling: LossScaling | float | None = None,
    ) -> None:
        if not isinstance(network, Sequential):
            raise TypeError(f"network must be a Sequential; got {network!r} ({type(network).__name__})")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
            raise ValueError(f"seed must be an integer from 0 to 2**63 - 1; got {seed!r}")
        if isinstance(metrics, str) or not isinstance(metrics, Sequence):
            raise TypeError(f"metrics must be a sequence such as ('accuracy',); got {metrics!r}")
        self.network = network
        self.loss = losses.get(loss)
        self.optimizer = optimizers.get(optimizer)
        self.metrics = tuple(metric_descriptions.get(metric) for metric in metrics)
        check_parts(network, self.loss, self.metrics)
        self.seed = int(seed)
        self.dtype = checked_dtype(dtype)
        self.precision = checked_precision(precision, self.dtype)
        self.device = checked_device(device, self.precision)
        self.loss_scaling = checked_scaling(loss_scaling, self.precision)
        self.history = History()
        self._session: Session | None = None
        self._online: OnlineStep | Literal[False] | None = None  # False: there is none for this model
        self._profile: Any = None  # a nbbp.profiler.Profile, while it waits for the session
        self._parameters: Mapping[str, np.ndarray] | None = None
        self._state: Mapping[str, np.ndarray] | None = None
        if network.n_in is not None:
            self._build(network.n_in)

    def __repr__(self) -> str:
        precision = "" if self.precision == "float32" else f", precision={self.precision!r}"
        device = "" if self.device == "cpu" else f", device={self.device!r}"
        return (
            f"Model({self.network!r}, loss={self.loss!r}, optimizer={self.optimizer!r}, "
            f"dtype={self.dtype.name!r}, seed={self.seed}{precision}{device})"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and self.__dict__.get("_session") is not None:
            raise AttributeError(
                f"{name} cannot be changed, because the model's memory is made for it: make another Model, and give it "
                "these parameters with other.parameter_vector[:] = model.parameter_vector"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy.deepcopy; the copy has memory of its own and goes on from where this model stands."""
        return {**self.__dict__, "_parameters": None, "_state": None, "_online": None, "_profile": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._name_parameters()

    def _build(self, n_in: int, parameters: np.ndarray | None = None) -> None:
        network = self.network.build(n_in)
        check_parts(network, self.loss, self.metrics)  # again, now that all sizes are known
        self.network = network
        parts = self.network, self.loss, self.optimizer, self.metrics, self.dtype, self.seed
        self._session = session_on(self.device)(*parts, self.precision, self.loss_scaling, parameters)
        if self._profile is not None:
            self._profile.watch(self._session)
        self._name_parameters()

    def _name_parameters(self) -> None:
        if self._session is not None:
            self._parameters = MappingProxyType(self._named(self._session.parameters))
            states = {state.name: state.view(self._session.state) for state in self.network.states}
            self._state = MappingProxyType(states)

    def _named(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of a flat buffer (n_parameters,) by the names of the parameters."""
        return {parameter.name: parameter.view(flat) for parameter in self.network.parameters}

    @property
    def _built(self) -> Session:
        if self._session is None:
            raise ValueError(
                "this model has no parameters yet, because the features per sample are not known: "
                "give n_in to Sequential, or call fit first"
            )
        return self._session

    def _describe(self, network: Sequential) -> dict[str, Any]:
        """What `data.source` is told of the model."""
        sizes = {"n_in": network.n_in, "n_out": network.n_out, "form": network.form}
        return {**sizes, "loss": self.loss, "dtype": self.dtype, "on_device": self.device == "cuda"}

    def _one_batch(self, x: Any, y: Any, sample_weight: Any) -> Chunk:
        """Checked and converted arrays of one batch; gives the model its parameters if it has none yet."""
        if is_on_device(x):
            return batch_on_device(x, y, sample_weight, **self._describe(self._built.network))
        n_in = self.network.n_in
        X = features(self.network.form.samples(x, n_in, "x"), n_in, self.dtype, "x", original=x)
        network = self.network.build(X.shape[1])
        check_categories(X, network.form.categories, "x", None, x)
        loss, n_out = self.loss, network.n_out
        target = targets(network.form.targets(y, "y"), loss, n_out, len(X), self.dtype, "y", partner="x")
        weight = weights(sample_weight, None, target, loss, n_out, len(X), self.dtype, partner="x")
        if self._session is None:
            self._build(X.shape[1])
        return Chunk(X, target, weight, np.arange(len(X), dtype=np.int64))

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """Every parameter by its name: {"0.weight": (n_in, n_out), "0.bias": (n_out,), …}.

        The arrays are views of `parameter_vector`: what is written into them the model uses. On a GPU they are copies
        on the host, brought up to date whenever the model is asked for them, which has to be before you write into
        them; what is written goes to the GPU with the next call.
        """
        self._built.fetch()
        return self._parameters

    @property
    def state(self) -> Mapping[str, np.ndarray]:
        """What layers keep from step to step beside their parameters, as `parameters`: running statistics by name,
        {"1.running_mean": (n,), "1.running_variance": (n,), …}.
        """
        self._built.fetch()
        return self._state

    @property
    def parameter_vector(self) -> np.ndarray:
        """All parameters one behind the other, (n_parameters,): the model's own memory, 64-byte aligned."""
        return self._built.parameters

    @property
    def loss_scale(self) -> float:
        """The factor of the loss's gradient in the next training batch; 1 but for precision="fp16"."""
        scale = self._built.loss_scale
        return float(scale[0]) if len(scale) else 1.0

    def to(self, device: str) -> ModelBase:
        """Move the model to another device, with its parameters, its optimizer's state and where it stands.

        Parameters
        ----------
        device : {"cpu", "cuda", "auto"}

        Returns
        -------
        Model
            This one. Arrays that were taken of its `parameters` before are no longer its own: ask for them anew.

        Raises
        ------
        RuntimeError
            If there is no CUDA; the message says what is missing and how to install it.
        ValueError
            For another device, or a precision that it does not have.
        """
        device = checked_device(device, self.precision)
        if device != self.device:
            session = self._session
            if session is not None:
                with session.lock:
                    moved = session_on(device).__new__(session_on(device))
                    moved.__setstate__(session.__getstate__())
                session = moved
            self.__dict__.update(device=device, _session=session, _online=None)
            self._name_parameters()
        return self

    def as_cuda_device(self) -> CudaFunctions:
        """The network as device functions of one sample, to be called from your own ``@cuda.jit`` kernels.

        Returns
        -------
        CudaFunctions
            `predict`, `loss_and_gradient`, `input_gradient` and `backpropagate`; they take the parameters as a flat
            array such as `parameter_vector`, sent to the GPU, and memory of a thread to work in.

        Raises
        ------
        ValueError
            If the sizes are not known yet, a layer is neither dense nor an activation, or the precision is not that of
            the dtype.
        """
        self._built  # noqa: B018 - raises where there are no parameters
        if self.precision != "float32":
            what = f"this model has precision={self.precision!r}"
            raise ValueError(f"as_cuda_device computes in the dtype itself; {what}")
        from nbbp.device_functions import CudaFunctions  # which knows CUDA

        return CudaFunctions(self.network, self.loss, self.dtype)

    def adapt(self, X: Any) -> None:
        """Measure mean and variance of data for the network's `Standardize`, in the place of what it had.

        `fit` does so by itself, of the data that it trains on, where there are no statistics yet: this is for data that
        can be gone through only once, and for statistics of other data.

        Parameters
        ----------
        X : array_like (n, n_in), or an iterable of batches x or (x, …)
            As `fit`. Gone through once, a part at a time; sums are float64.

        Raises
        ------
        TypeError, ValueError
            For data that `fit` would refuse, for a variance that the dtype does not hold, and for a network without a
            `Standardize` to be adapted; nothing has changed then.
        """
        adapt(self, X)

    def summary(self) -> str:
        """A table of layers, shapes and parameters."""
        return self.network.summary(self.dtype)
