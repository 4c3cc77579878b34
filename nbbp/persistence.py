"""Models in files: the safetensors format, with the model's description as JSON in its metadata.

What a file holds: every parameter by its name ("0.weight"), the optimizer's slots and what layers keep beside their
parameters as the flat arrays that they are ("optimizer.slot 0", "state"), the numbers of the history, if it has epochs,
as an array of float64 (1 + names, epochs) whose first row are the epochs ("history"), and three strings:
``nbbp.format``, the version; ``nbbp.model``, the description (`nbbp.description`); ``nbbp.sha256``, a digest of it and
of the arrays. All of it is data: loading runs no code of a file, and allocates nothing before the sizes in it agree
with each other and with its length.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nbbp.description import Description, from_text, to_text
from nbbp.history import History
from nbbp.lowering.parameters import slot_lengths
from nbbp.model import Model
from nbbp.network import Sequential
from nbbp.precision import scale_so_far
from nbbp.progress import Progress
from nbbp.session import Session

__all__ = ["FORMAT", "load_model", "save"]

#: Version of the format, which changes with the meaning of anything in a file.
FORMAT = "2"

_VERSION, _MODEL, _DIGEST = "nbbp.format", "nbbp.model", "nbbp.sha256"
#: Characters of a message, at most: what came may be anything.
_LONGEST_MESSAGE = 1000
#: The array of the layers' states; a network without any has none.
_STATE = "state"
#: The array of the history; one without epochs has none.
_HISTORY = "history"
_NO_HISTORY = np.zeros((1, 0))
_DTYPES = {"float32": "F32", "float64": "F64"}
#: The header's length is a multiple of this many bytes.
_ALIGNMENT = 8


def save(model: Model, path: str | os.PathLike) -> None:
    """Write a model to a file: see `nbbp.Model.save`, which calls this."""
    session = model._built
    path = os.path.realpath(os.fsdecode(path))  # a link stays one
    with session.lock:
        text = to_text(describe(model))
        _check_finite(model.network, session.parameters)
        numbers = model.history.to_array() if model.history.epochs else _NO_HISTORY
        tensors = {_HISTORY: numbers} if numbers.size else {}  # in front, so that all arrays are aligned
        tensors |= {**model.parameters, **{_slot(k): slot for k, slot in enumerate(session.slots)}}
        tensors |= {_STATE: session.state} if len(session.state) else {}
        digest = _digest(text, session.parameters, *session.slots, session.state, numbers.ravel())
        content = _to_bytes(tensors, {_VERSION: FORMAT, _MODEL: text, _DIGEST: digest})
    _replace(path, content)


def describe(model: Model) -> Description:
    """What a file says of a model beside its arrays.

    Raises
    ------
    ValueError
        If its sizes are not known yet.
    """
    session = model._built
    clock, names = session.clock, tuple(model.history) if model.history.epochs else ()
    progress = Progress(clock.epoch, clock.override, clock.plateau, names)
    standing = {"step": session.step, "epoch": session.epoch, "loss_scale": scale_so_far(session.loss_scale)}
    return replace(describe_parts(model, model.network), **standing, progress=progress)


def describe_parts(model: Model, network: Sequential) -> Description:
    """What a model is made of, with its network of these sizes."""
    parts = model.loss, model.optimizer, model.metrics, model.dtype.name, model.seed
    precision = {"precision": model.precision, "loss_scaling": model.loss_scaling, "loss_scale": None}
    return Description(network, *parts, step=0, epoch=0, **precision)


def load_model(path: str | os.PathLike, device: str = "cpu") -> Model:
    """The model that `nbbp.Model.save` wrote to a file.

    It predicts the same bits, and trains on to the same bits, as the one that was saved. Its activations and losses
    come from the file too, formulas of your own included; nothing of a file is executed.

    Parameters
    ----------
    path : str or os.PathLike
    device : {"cpu", "cuda", "auto"}
        As `nbbp.Model`; a model in tf32 is one of GPUs.

    Returns
    -------
    Model
        On that device, with the history of its last run of `fit`.

    Raises
    ------
    ValueError
        If the file holds anything else: another kind of file, one that is cut short or altered, a description whose
        parts are unknown or do not fit the arrays. The message says what is wrong, what was expected and what came.
        If the device does not have the model's precision.
    OSError
        If there is no such file, or it cannot be read.
    RuntimeError
        If there is no CUDA for device="cuda".

    Examples
    --------
    >>> model.save("digits.safetensors")                                        # doctest: +SKIP
    >>> nbbp.load_model("digits.safetensors").fit(X, y, epochs=10)              # doctest: +SKIP
    """
    return read(path).model(device)


def read(path: str | os.PathLike) -> Saved:
    """What a file holds, checked. Raises as `load_model` does."""
    path = os.fsdecode(path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is no file; expected one that Model.save wrote")
    try:
        return _read(path)
    except ValueError as error:
        message = str(error)
        message = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"
        raise ValueError(f"{path} cannot be loaded: {message}") from None


def _read(path: str) -> Saved:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            text, digest = _checked_metadata(file.metadata())
            description = from_text(text)
            _check_tensors(file, description)
            parameters, slots, state = _arrays(file, description)
            numbers = file.get_tensor(_HISTORY) if description.progress.names else _NO_HISTORY
    except SafetensorError as error:
        raise ValueError(f"it is no safetensors file, or not all of one ({error})") from None
    if _digest(text, parameters, *slots, state, numbers.ravel()) != digest:
        raise ValueError("it was altered: its SHA-256 digest is not that of its contents")
    _check_finite(description.network, parameters)
    history = History.of_array(description.progress.names, numbers)
    return Saved(description, parameters, slots, state, history)


def _slot(number: int) -> str:
    return f"optimizer.slot {number}"


def _digest(text: str, *arrays: np.ndarray) -> str:
    """SHA-256 of the description, the parameters, the slots, the state and the history."""
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(array)
    return digest.hexdigest()


def _check_finite(network: Sequential, parameters: np.ndarray) -> None:
    """Of the parameters (n_parameters,) only: a slot holds infinity where a mean square has outgrown its dtype."""
    bad = network.first_not_finite(parameters)
    if bad is not None:
        raise ValueError(f"parameter {bad} holds NaN or infinity; expected numbers")


@dataclass(frozen=True)
class Saved:
    """What a file holds: a description, and arrays and a history that fit it."""

    description: Description
    parameters: np.ndarray
    slots: Sequence[np.ndarray]
    state: np.ndarray
    history: History

    def put_into(self, session: Session) -> None:
        """Give the session of such a model these numbers and this place in training."""
        described = self.description
        with session.lock:
            session.parameters[:], session.state[:] = self.parameters, self.state
            for slot, values in zip(session.slots, self.slots, strict=True):
                slot[:] = values
            session.step, session.steps_ahead, session.epoch = described.step, 0, described.epoch
            session.clock.epoch, session.clock.plateau = described.progress.epoch, described.progress.plateau
            if described.loss_scale is not None:
                session.loss_scale[:2] = described.loss_scale

    def model(self, device: str = "cpu") -> Model:
        """A new model of it on that device, in no run: its learning rate is the optimizer's."""
        described, network = self.description, self.description.network
        # without sizes, so that nothing is drawn at random
        network = Sequential(network.layers, checkpoint_every=network.checkpoint_every)
        parts = network, described.loss, described.optimizer, described.metrics
        settings = {"precision": described.precision, "loss_scaling": described.loss_scaling}
        model = Model(*parts, device=device, dtype=described.dtype, seed=described.seed, **settings)
        model._build(described.network.n_in, self.parameters)
        model.history = self.history
        self.put_into(model._session)
        return model


# reading ----------------------------------------------------------------------------------------------------


def _checked_metadata(metadata: dict[str, str] | None) -> tuple[str, str]:
    """Description and digest from the metadata."""
    metadata = metadata or {}
    if _VERSION not in metadata:
        raise ValueError("it is a safetensors file, but not of a model of nbbp")
    if metadata[_VERSION] != FORMAT:
        raise ValueError(f"its format is {metadata[_VERSION][:20]!r}; this version of nbbp reads {FORMAT!r}")
    expected = {_VERSION, _MODEL, _DIGEST}
    if set(metadata) != expected:
        came = ", ".join(sorted(metadata))[:200]
        raise ValueError(f"its metadata must be {', '.join(sorted(expected))}; got {came}")
    return metadata[_MODEL], metadata[_DIGEST]


def _check_tensors(file: Any, description: Description) -> None:
    """Names, dtypes and shapes of the file's arrays, which are not read yet, are those of the description."""
    expected = {parameter.name: parameter.shape for parameter in description.network.parameters}
    for k, length in enumerate(slot_lengths(description.network, description.optimizer)):
        expected[_slot(k)] = (length,)
    if description.network.states:
        expected[_STATE] = (description.network.states[-1].stop,)
    if description.progress.names:
        expected[_HISTORY] = (1 + len(description.progress.names), 0)
    names = set(file.keys())
    if names != set(expected):
        missing, more = (sorted(one)[:3] for one in (set(expected) - names, names - set(expected)))
        raise ValueError(f"its arrays are not those of the network described: missing {missing}, not of it {more}")
    for name, shape in expected.items():
        entry = file.get_slice(name)
        dtype = _DTYPES["float64" if name == _HISTORY else description.dtype]
        if entry.get_dtype() != dtype:
            raise ValueError(f"array {name} must be of {dtype}; got {entry.get_dtype()}")
        came = tuple(entry.get_shape())
        if name == _HISTORY and len(came) == 2:
            shape = (shape[0], came[1])  # how many epochs there were, the description does not say
        if came != shape:
            raise ValueError(f"array {name} must have the shape {shape}; got {came}")


def _arrays(file: Any, description: Description) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """The parameters (n_parameters,), the slots and the state."""
    network = description.network
    parameters = np.empty(network.n_parameters, description.dtype)
    for parameter in network.parameters:
        parameter.view(parameters)[...] = file.get_tensor(parameter.name)
    n_slots = len(slot_lengths(network, description.optimizer))
    state = file.get_tensor(_STATE) if network.states else np.zeros(0, description.dtype)
    return parameters, [file.get_tensor(_slot(k)) for k in range(n_slots)], state


# writing ----------------------------------------------------------------------------------------------------


def _to_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: the length of its header, the header as JSON, the arrays one behind the other.

    In one copy: `safetensors.numpy.save` makes three, which take longer than the disk.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    stop = 0
    for name, array in tensors.items():
        start, stop = stop, stop + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": (start, stop)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join((len(text).to_bytes(8, "little"), text, *tensors.values()))


def _replace(path: str, content: bytes) -> None:
    """Put a file in the place of another, or leave that as it was."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to save a model in", folder)
    temporary = os.path.join(folder, f".nbbp-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":
        with contextlib.suppress(OSError):  # not every file system can, and the file is whole without it
            _flush_folder(folder)


def _flush_folder(folder: str) -> None:
    """Write the entries of a folder to the disk, so that the new file is there after a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
