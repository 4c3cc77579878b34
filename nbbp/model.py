"""Model: a network with a loss, an optimizer and an engine. Where descriptions and engines come together."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from nbbp import data
from nbbp.callbacks.base import Callback, checked
from nbbp.gradcheck import GradientCheck, check_gradients
from nbbp.history import History
from nbbp.layers import Activation, positive_integer
from nbbp.model_base import ModelBase
from nbbp.quick import OnlineStep
from nbbp.sample import SampleFunctions
from nbbp.sources import Chunk
from nbbp.training import Training, check_options, checked_augmentation, checked_hooks
from nbbp.validation import as_array

if TYPE_CHECKING:
    from nbbp.resuming import Resumption

__all__ = ["Model"]


class Model(ModelBase):
    """A network that can be trained and used.

    Threads of yours may predict and evaluate with one model at the same time; only one of them may train it.

    Parameters
    ----------
    network : Sequential
        Layers and, unless the first data are to tell, `n_in`.
    loss : str or nbbp.losses.Loss
        ``crossentropy``, ``mse``, …; what each takes from the last layer is in its docstring (`nbbp.losses`).
    optimizer : str or nbbp.optimizers.Optimizer, default "adam"
    metrics : sequence of str or nbbp.metrics.Metric
        What `fit` and `evaluate` report beside the loss.
    device : {"cpu", "cuda", "auto"}
        "cuda" needs numba-cuda and an NVIDIA GPU; "auto" takes it where both are. See `to`.
    dtype : {"float32", "float64"}
        Of parameters, data and arithmetic, end to end.
    seed : int
        Key of every random number: initial parameters and shuffles. The same seed gives the same bits, on any
        number of threads.
    precision : {"float32", "tf32", "bf16", "fp16"}
        "float32" for the dtype itself. "tf32", on a GPU, rounds the factors of matrix products to 11 significant bits
        for its tensor cores, and nothing else. The others are mixed precision: parameters, their gradients and the
        optimizer stay float32; weights, data, what layers give and gradients on their way back are rounded to 16 bits,
        and products, on a GPU those of tensor cores, add up in float32. Deep networks then train in about 0.6 of the
        memory; data and outputs of fp16 end at 65504. Tensor cores need compute capability 8.0.
    loss_scaling : LossScaling or float, optional
        Of fp16: how the loss's gradient is scaled (by default as `nbbp.LossScaling`), or a fixed scale.

    Raises
    ------
    TypeError, ValueError
        For what cannot be part of a model; the message says what was expected and what came.

    Examples
    --------
    >>> net = Sequential([Dense(16, activation="relu"), Dense(3)], n_in=4)      # doctest: +SKIP
    >>> model = Model(net, loss="crossentropy", metrics=("accuracy",))          # doctest: +SKIP
    >>> history = model.fit(X, y, epochs=20, batch_size=32)                     # doctest: +SKIP
    >>> model.evaluate(X_test, y_test)                                          # doctest: +SKIP
    {'loss': 0.11, 'accuracy': 0.97}
    """

    # training ---------------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple | None = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | str | None = None,
        callbacks: Sequence[Callback] = (),
        verbose: int | str = "auto",
        resume_from: str | os.PathLike | None = None,
        augment: Any = None,
    ) -> History:
        """Train for some epochs, going on from where the model stands, or from where a file does.

        Parameters
        ----------
        X : array_like (n, n_in), or an iterable of batches (x, y) or (x, y, sample_weight)
            Arrays of any dtype, order or strides, lists, DataFrames, memory maps larger than memory. With `Flatten` or
            `Reshape` first, samples of any shape. (On a GPU an iterable is asked for its next batch while the last one
            is trained on, before callbacks hear of that.)
        y : array_like (n,) or (n, n_out)
            Class labels, one-hot or soft rows for classification losses, values for the others, shaped as outputs are.
        epochs, batch_size : int
            A short last batch is trained on, with the mean over its own rows.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Evaluated after every epoch.
        validation_split : float
            Share of the samples, taken from the end before shuffling, to validate on instead. (Of every class:
            `nbbp.train_test_split`.)
        shuffle : bool
            A new order every epoch, from the model's seed.
        sample_weight : array_like (n,), optional
        class_weight : mapping of label to weight, or "balanced", optional
            Both multiply a sample's loss; the mean still divides by the number of samples.
        callbacks : list of nbbp.callbacks.Callback
            Called around the training, in their order.
        verbose : {"auto", 0, 1}
            1 or "auto": a `nbbp.callbacks.ProgressBar`, behind the other callbacks; 0: silent.
        resume_from : str or os.PathLike, optional
            A file that `save` or a `ModelCheckpoint` wrote during a run, with which this one goes on to the bits of a
            run that was never stopped. `epochs` counts from its beginning. Saved within an epoch, it begins that anew.
        augment : augmentation of `nbbp.augmentation`, function of (row, key), or a sequence of these, optional
            Done to every sample, in their order, each time it is trained on; not to what is validated on. A file to
            resume from holds none: give the same again.

        Returns
        -------
        History
            Loss and metrics of each epoch; also kept as ``model.history``.

        Raises
        ------
        TypeError, ValueError
            For data that cannot be trained on; nothing has changed then. Only what is read while training goes on,
            batches of a generator and files larger than memory, can fail later: then what was trained stays. Also for
            a file to resume from of another network, loss, optimizer, dtype or seed.
        OSError
            There is no such file, or it cannot be read.
        nbbp.TrainingDiverged
            The loss turned NaN or infinite; the last good parameters are back in place.
        KeyboardInterrupt
            Ctrl-C, heard after whole batches: the model is usable, and ``model.history`` holds the epochs before.
        """
        epochs = positive_integer("epochs", epochs)
        batch_size = positive_integer("batch_size", batch_size)
        check_options(verbose, shuffle)
        callbacks = checked(callbacks)
        splits = not isinstance(validation_split, numbers.Real) or validation_split != 0
        if validation_data is not None and splits:
            raise ValueError("give validation_data or validation_split, not both")
        if splits:
            (X, y, sample_weight), validation_data = data.split(X, y, sample_weight, validation_split)
        saved = None if resume_from is None else _resumption(resume_from)
        n_in = self.network.n_in or (saved and saved.n_in) or data.infer_n_in(X, y, form=self.network.form)
        network = self.network.build(n_in)
        augment = checked_augmentation(self, network, augment)
        describe = {**self._describe(network), "epochs": max(1, epochs - (saved.n_epochs if saved else 0))}
        source, validation = data.sources_to_fit(X, y, sample_weight, class_weight, validation_data, describe)
        hooks = checked_hooks(self, callbacks, bool(verbose), epochs, source, validation is not None)
        if saved is not None:
            saved.check_same(self, network)
        if self._session is None:
            self._build(n_in, None if saved is None else saved.parameters)
        if saved is not None:
            saved.resume(hooks.run)
        self.history = hooks.run.history
        Training(self._session, source, validation, batch_size, shuffle, hooks, augment).run()
        return self.history

    def train_step(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """One optimizer update on one batch, or one of the `accumulation_steps` batches of an update.

        Parameters
        ----------
        x : array_like (batch, n_in)
        y : array_like (batch,) or (batch, n_out)
        sample_weight : array_like (batch,), optional

        Returns
        -------
        float
            The loss of the batch before the update.

        Raises
        ------
        TypeError, ValueError
            As `fit`; nothing has changed then.
        """
        session = self._session
        if session is not None and sample_weight is None:
            loss = session.train_quickly(x, y)
            if loss is not None:
                return loss
        chunk = self._one_batch(x, y, sample_weight)
        return self._built.train_batch(chunk)

    def partial_fit(self, x: Any, y: Any) -> float:
        """Learn samples of a stream, each with an optimizer update of its own.

        Parameters
        ----------
        x : array_like (n_in,), or (n, n_in)
            One sample, or several that are learnt one after the other.
        y : label, number or array_like (n_out,); or one for each of n samples

        Returns
        -------
        float
            The loss before the update; of several samples, the mean of theirs.

        Raises
        ------
        TypeError, ValueError
            As `fit`; nothing has been learnt then, of several samples none.

        Notes
        -----
        Quickest, at a microsecond beside the update, for a C-contiguous x of the model's dtype with an int label or a
        y of that dtype.
        """
        if self._online is None and self._session is not None:
            self._online = OnlineStep.of(self._session)
        if self._online:
            loss = self._online.learn(x, y)
            if loss is not None:
                return loss
        samples, wanted = as_array(x, "x"), as_array(y, "y") if np.ndim(y) else np.asarray(y)
        n_in = self.network.n_in
        is_one = samples.ndim > 1 and self.network.form.any_shape and samples.size == n_in != samples[0].size
        if samples.ndim == 1 or is_one:
            samples, wanted = samples[None], wanted[None]
        chunk = self._one_batch(samples, np.atleast_1d(wanted), None)
        return float(np.mean([self._learn_row(chunk, row) for row in range(len(chunk.order))]))

    def _learn_row(self, chunk: Chunk, row: int) -> float:
        """One update on one row of checked data; its loss."""
        if self._online:
            loss = self._online.learn(chunk.X[row], int(chunk.y[row]) if chunk.has_labels else chunk.y[row])
            if loss is not None:
                return loss
        one = slice(row, row + 1)
        return self._built.train_batch(Chunk(chunk.X[one], chunk.y[one], None, np.zeros(1, np.int64)))

    def loss_and_gradients(self, x: Any, y: Any, sample_weight: Any = None) -> tuple[float, Mapping[str, np.ndarray]]:
        """The loss of a batch and its gradient with respect to every parameter; updates nothing.

        Parameters
        ----------
        x : array_like (batch, n_in)
        y : array_like (batch,) or (batch, n_out)
        sample_weight : array_like (batch,), optional

        Returns
        -------
        loss : float
        gradients : mapping of str to ndarray
            Named and shaped as `parameters`; new arrays, views of one flat one. In fp16 they went back with
            `loss_scale` and hold infinity or NaN where that was too large.
        """
        chunk = self._one_batch(x, y, sample_weight)
        loss, flat = self._built.gradients(chunk)
        return loss, MappingProxyType(self._named(flat))

    def check_gradients(self, x: Any, y: Any, *, max_per_parameter: int = 200) -> GradientCheck:
        """Compare the gradients of backpropagation with central differences, in float64.

        Parameters
        ----------
        x : array_like (batch, n_in)
        y : array_like (batch,) or (batch, n_out)
        max_per_parameter : int
            Entries of each parameter to compare, drawn at random where it has more.

        Returns
        -------
        GradientCheck
            The largest relative error of every parameter; prints as a table.
        """
        self._built  # noqa: B018 - raises where there are no parameters
        twin = Model(self.network, self.loss, self.optimizer, dtype="float64", seed=self.seed, device=self.device)
        twin.parameter_vector[:] = self.parameter_vector
        twin._session.state[:], twin._session.step = self._session.state, self._session.step
        return check_gradients(twin, x, y, positive_integer("max_per_parameter", max_per_parameter))

    def as_njit(self) -> SampleFunctions:
        """The network as `@njit` functions of one sample, to be called from your own jitted code.

        Returns
        -------
        SampleFunctions
            `predict`, `loss_and_gradient`, `train_step`, `input_gradient`, `backpropagate` and `jacobian`; they take
            the parameters as a flat array such as `parameter_vector`. A function of yours that Numba caches
            (``cache=True``) keeps the network that it was compiled with: see its Notes.

        Raises
        ------
        ValueError
            If the sizes are not known yet, or the layers are too wide for the stack.
        """
        self._built  # noqa: B018 - raises where there are no parameters
        if self.precision != "float32":
            raise ValueError(f"as_njit computes in the dtype itself; this model has precision={self.precision!r}")
        return SampleFunctions(self.network, self.loss, self.optimizer, self.dtype, self._session.state)

    def save(self, path: str | os.PathLike) -> None:
        """Write the model to a file; what `nbbp.load_model` makes of it predicts and trains on to the same bits.

        The file is in the safetensors format. It holds the parameters, the optimizer's state, steps and epochs so far,
        where a schedule stands, the history of the last `fit`, which may be running, and a description of every part
        as data, formulas of your own included: no pickle, no code. A file of that name is replaced by a whole one or,
        if anything fails, stays as it was; a process that is killed meanwhile may leave another one beside it, named
        ".nbbp-….tmp".

        Parameters
        ----------
        path : str or os.PathLike
            Such as "digits.safetensors"; nothing is added to it.

        Raises
        ------
        TypeError
            If a part is no data: a `Custom` layer, an initializer, loss, optimizer or metric of your own class.
        ValueError
            If the sizes are not known yet, or a parameter holds NaN or infinity.
        OSError
            If the file cannot be written.
        """
        from nbbp.persistence import save

        save(self, path)

    # use --------------------------------------------------------------------------------------------------

    def evaluate(self, X: Any, y: Any = None, *, sample_weight: Any = None) -> dict[str, float]:
        """Loss and metrics over data, as a dict.

        Parameters
        ----------
        X, y, sample_weight
            As `fit`. Weights count in the loss, not in the metrics.
        """
        session, network = self._built, self.network
        return session.evaluate(data.source(X, y, sample_weight=sample_weight, **self._describe(network)))

    def predict(self, X: Any) -> np.ndarray:
        """What the last layer gives for each sample: (n, n_out), or (n, *shape) where that is a `Reshape`.

        X as `fit`. A linear last layer gives classes logits: `predict_proba` makes probabilities of them.
        """
        session = self._session
        if (
            session is not None
            and type(X) is np.ndarray
            and X.dtype == self.dtype
            and X.ndim == 2
            and X.flags.carray
            and X.shape[1] == self.network.n_in
            and X.shape[0] > 0
        ):
            out = session.predict_quickly(X)
            if out is not None:
                return out
        return self._predict(X, None)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of each class, (n, n_out), for crossentropy, binary_crossentropy and nll; X as `fit`.

        Raises
        ------
        ValueError
            For another loss.
        """
        name = self.loss.name
        given = self.network.last_layer.activation.name
        final = {"crossentropy": "softmax", "nll": "softmax", "binary_crossentropy": "sigmoid"}.get(name)
        if final is None:
            raise ValueError(f"predict_proba needs a loss over classes; this model's loss is {name!r}")
        return self._predict(X, None if given == final else Activation(final))

    def _predict(self, X: Any, also: Activation | None) -> np.ndarray:
        session, network = self._built, self.network
        return session.predict(data.source(X, labelled=False, **self._describe(network)), also)


def _resumption(path: str | os.PathLike) -> Resumption:
    from nbbp.resuming import Resumption  # which knows models

    return Resumption(path)
