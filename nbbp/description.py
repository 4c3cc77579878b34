"""Models as plain data, which a file can hold: written out as JSON, and read back with nothing taken on trust.

``{"network": {"n_in": 4, "layers": [{"type": "Dense", "n_out": 3, …}]}, "loss": {"name": "mse", "settings": {…}}, …}``:
parts are named as in their registries, with all of their fields; activations and losses from formulas are
``{"formula": …}`` (`nbbp.formulas`). A name leads to a part through a registry and in no other way.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from nbbp import initializers, losses, metrics, optimizers, progress, schedules
from nbbp.compatibility import check_parts
from nbbp.formulas import CustomActivation, CustomLoss
from nbbp.layers import (
    Activation,
    BatchNorm,
    Concat,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GaussianNoise,
    Layer,
    LayerNorm,
    Reshape,
    Residual,
    RMSNorm,
    Standardize,
    StochasticDepth,
    unknown_name,
)
from nbbp.layers.embedding import MOST_COLUMNS
from nbbp.losses import Loss
from nbbp.metrics import Metric
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.plain_data import check_keys, check_list, parsed
from nbbp.precision import LossScaling, checked_precision, checked_scale, checked_scaling
from nbbp.progress import LARGEST_COUNT, NOWHERE, Progress
from nbbp.scalars.activations import ACTIVATIONS
from nbbp.schedules import Schedule

__all__ = [
    "DEEPEST_LAYER",
    "LARGEST_COUNT",
    "LARGEST_TEXT",
    "MOST_GROUPS",
    "MOST_LAYERS",
    "Description",
    "from_text",
    "to_text",
]

#: Characters of a description, layers of a network (those within others too, so many deep), numbers of a shape, groups
#: of an optimizer (each is tried on every parameter), at most.
LARGEST_TEXT = 1 << 22
MOST_LAYERS = 4096
DEEPEST_LAYER = 32
MOST_DIMENSIONS = 32
MOST_GROUPS = 256

#: Layers whose fields are data, by the name of their class.
_LAYERS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        Dense, BatchNorm, LayerNorm, RMSNorm, Dropout, StochasticDepth, GaussianNoise, Residual, Concat, Embedding,
        Flatten, Reshape, Standardize,
    )
}  # fmt: skip
_INITIALIZERS: Mapping[str, type] = {type(one).__name__: type(one) for one in initializers.BY_NAME.values()}
#: What unchecked numbers, names and patterns may raise on their way into a part.
_REFUSALS = (TypeError, ValueError, OverflowError, RecursionError, re.error)


@dataclass(frozen=True)
class Description:
    """What a model is made of and where its training stands: everything but its arrays.

    Attributes
    ----------
    network : Sequential
        With sizes.
    loss : Loss
    optimizer : Optimizer
    metrics : tuple of Metric
    dtype : {"float32", "float64"}
    seed, step, epoch : int
        Key of the random numbers, training batches and epochs so far.
    precision : str
    loss_scaling : LossScaling or None
    loss_scale : (float, int) or None
        The scale and the updates without overflow since it changed, where there is scaling.
    progress : Progress
        Where its last run of `fit` stands.
    """

    network: Sequential
    loss: Loss
    optimizer: Optimizer
    metrics: tuple[Metric, ...]
    dtype: str
    seed: int
    step: int
    epoch: int
    precision: str = "float32"
    loss_scaling: LossScaling | None = None
    loss_scale: tuple[float, int] | None = None
    progress: Progress = NOWHERE


_KEYS = (*(field.name for field in fields(Description) if field.name != "progress"), "clock", "history")


def to_data(description: Description) -> dict[str, Any]:
    """The description as plain data.

    Raises
    ------
    TypeError
        If a part is no data: a layer, a function or a class of the user's own.
    """
    network = description.network
    return {
        "network": {
            "n_in": network.n_in,
            "layers": _chain_to_data(network.layers, ""),
            "checkpoint_every": network.checkpoint_every,
        },
        "loss": _loss_to_data(description.loss),
        "optimizer": _to_data(description.optimizer, optimizers.BY_NAME, "the optimizer"),
        "metrics": [_to_data(metric, metrics.BY_NAME, "a metric") for metric in description.metrics],
        "loss_scaling": None if description.loss_scaling is None else asdict(description.loss_scaling),
        **{key: getattr(description, key) for key in ("dtype", "seed", "step", "epoch", "precision", "loss_scale")},
        **progress.to_data(description.progress),
    }


def to_text(description: Description) -> str:
    """The description as JSON, of ASCII characters.

    Raises
    ------
    TypeError
        As `to_data`.
    ValueError
        If it is more than `from_text` takes.
    """
    text = json.dumps(to_data(description), allow_nan=False, separators=(",", ":"))
    from_text(text)  # what could not be read back is not written
    return text


def from_text(text: str) -> Description:
    """The description of what `to_text` gave. Allocates no arrays.

    Raises
    ------
    ValueError
        If it is anything else; the message says what is wrong.
    """
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"the description has {len(text):,} characters; expected at most {LARGEST_TEXT:,}")
    try:
        return _description(parsed(text))
    except _REFUSALS as error:
        raise ValueError(str(error)) from None


# to data ----------------------------------------------------------------------------------------------------


def _to_data(part: Any, kinds: Mapping[str, type], what: str) -> dict[str, Any]:
    """A frozen description of one of these kinds: its name there, and its fields."""
    for name, kind in kinds.items():
        if type(part) is kind:
            settings = {field.name: getattr(part, field.name) for field in fields(part)}
            if isinstance(settings.get("learning_rate"), Schedule):
                rate = settings["learning_rate"]
                settings["learning_rate"] = _to_data(rate, schedules.BY_NAME, f"the schedule of {what}")
            return {"name": name, "settings": settings}
    raise _no_data(what, part, f"expected one of nbbp's own: {', '.join(kinds)}")


def _no_data(what: str, part: Any, hint: str) -> TypeError:
    came = f"{what} is {part!r} ({type(part).__name__})"
    return TypeError(f"{came}, whose code a file cannot hold; {hint}")


def _loss_to_data(loss: Loss) -> dict[str, Any]:
    if type(loss) is CustomLoss:
        return {"formula": loss.to_data()}
    return _to_data(loss, losses.BY_NAME, "the loss")


def _activation_to_data(activation: Activation, what: str) -> dict[str, Any]:
    if type(activation) is CustomActivation:
        return {"formula": activation.to_data()}
    if type(activation) is not Activation:
        raise _no_data(what, activation, "expected a built-in activation or one of nbbp.activation")
    keyword = activation.formula.parameter
    return {"name": activation.name, "settings": {keyword: activation.parameter} if keyword else {}}


def _chain_to_data(layers: Iterable[Layer], prefix: str) -> list[dict[str, Any]]:
    return [_layer_to_data(layer, f"{prefix}{index}") for index, layer in enumerate(layers)]


def _layer_to_data(layer: Any, path: str) -> dict[str, Any]:
    what = f"layer {path}"
    if isinstance(layer, Activation):
        return {"type": "Activation", "activation": _activation_to_data(layer, what)}
    name = type(layer).__name__
    if type(layer) is not _LAYERS.get(name):
        hint = f"expected only layers that are data: {', '.join(_LAYERS)}, Activation"
        raise _no_data(what, layer, f"{hint}. Keep model.parameter_vector, and make the model by its code")
    data = {"type": name}
    for field in fields(layer):
        value, where = getattr(layer, field.name), f"{field.name} of {what}"
        if field.name == "activation":
            value = _activation_to_data(value, where)
        elif field.name.endswith("_initializer"):
            value = _to_data(value, _INITIALIZERS, where)
        elif field.name == "layers":
            value = _chain_to_data(value, f"{path}.")
        elif field.name == "chains":
            value = [_chain_to_data(chain, f"{path}.{number}.") for number, chain in enumerate(value)]
        data[field.name] = value
    return data


# from data --------------------------------------------------------------------------------------------------


def _from_data(data: Any, kinds: Mapping[str, type], what: str) -> Any:
    """What `_to_data` was given."""
    check_keys(data, ("name", "settings"), f"the {what}")
    name, settings = data["name"], data["settings"]
    if not isinstance(name, str):
        raise ValueError(f"name of the {what} must be a string; got {name!r}")
    if name not in kinds:
        raise unknown_name(what, name, kinds)
    check_keys(settings, [field.name for field in fields(kinds[name])], f"settings of the {what} {name!r}")
    if isinstance(settings.get("learning_rate"), dict):
        settings = {**settings, "learning_rate": _from_data(settings["learning_rate"], schedules.BY_NAME, "schedule")}
    return kinds[name](**settings)


def _loss_from_data(data: Any) -> Loss:
    if isinstance(data, dict) and "formula" in data:
        check_keys(data, ("formula",), "the loss")
        return CustomLoss.from_data(data["formula"])
    return _from_data(data, losses.BY_NAME, "loss")


def _activation_from_data(data: Any, what: str) -> Activation:
    if isinstance(data, dict) and "formula" in data:
        check_keys(data, ("formula",), what)
        return CustomActivation.from_data(data["formula"])
    check_keys(data, ("name", "settings"), what)
    name, settings = data["name"], data["settings"]
    if not isinstance(name, str):
        raise ValueError(f"name of {what} must be a string; got {name!r}")
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    keyword = ACTIVATIONS[name].parameter
    check_keys(settings, (keyword,) if keyword else (), f"settings of {what}")
    for key, value in settings.items():
        if type(value) not in (int, float):
            raise ValueError(f"{key} of {what} must be a number; got {value!r}")
    return Activation(name, **settings)


def _chain_from_data(data: Any, prefix: str, counted: Iterator[int]) -> list[Layer]:
    """Layers one after the other; `counted` goes on with every layer of the network."""
    check_list(data, MOST_LAYERS, f"the layers of layer {prefix[:-1]}" if prefix else "the layers")
    if prefix.count(".") > DEEPEST_LAYER:
        raise ValueError(f"the layers are nested too deeply; expected at most {DEEPEST_LAYER} levels")
    return [_layer_from_data(layer, f"{prefix}{index}", counted) for index, layer in enumerate(data)]


def _layer_from_data(data: Any, path: str, counted: Iterator[int]) -> Layer:
    what = f"layer {path}"
    if next(counted) >= MOST_LAYERS:
        raise ValueError(f"the network has too many layers; expected at most {MOST_LAYERS:,} in all")
    name = data.get("type") if isinstance(data, dict) else None
    if name == "Activation":
        check_keys(data, ("type", "activation"), what)
        return _activation_from_data(data["activation"], what)
    if not isinstance(name, str) or name not in _LAYERS:
        types = ", ".join(map(repr, (*_LAYERS, "Activation")))
        raise ValueError(f"{what} must be an object whose 'type' is one of {types}; got {data!r}")
    kind = _LAYERS[name]
    check_keys(data, ("type", *(field.name for field in fields(kind))), what)
    values = {key: value for key, value in data.items() if key != "type"}
    for key, value in values.items():
        where = f"{key} of {what}"
        if key == "activation":
            values[key] = _activation_from_data(value, where)
        elif key.endswith("_initializer"):
            values[key] = _from_data(value, _INITIALIZERS, f"{key.replace('_', ' ')} of {what}")
        elif key == "layers":
            values[key] = _chain_from_data(value, f"{path}.", counted)
        elif key == "shape":
            check_list(value, MOST_DIMENSIONS, where)
    if kind is Concat:
        chains = values.pop("chains")
        check_list(chains, MOST_LAYERS, f"chains of {what}")
        chains = [_chain_from_data(chain, f"{path}.{number}.", counted) for number, chain in enumerate(chains)]
        return Concat(*chains, **values)
    if kind is Embedding:
        return Embedding(*_tables_from_data(values.pop("tables"), f"tables of {what}"), **values)
    return kind(**values)


def _tables_from_data(data: Any, what: str) -> tuple[Any, Any]:
    """The first arguments of an `Embedding`: categories, and numbers per category, of every column."""
    check_list(data, MOST_COLUMNS, what)
    for table in data:
        check_list(table, 3, what)
        if len(table) != 3 or any(isinstance(number, bool) for number in table):
            raise ValueError(f"{what} must be of a column or null, categories and numbers per category; got {table!r}")
    if len(data) == 1 and data[0][0] is None:
        return data[0][1], data[0][2]
    columns = [column for column, *_ in data]
    if not all(type(column) is int for column in columns) or columns != sorted(set(columns)):
        raise ValueError(f"{what} must have one table for each column, in their order; got the columns {columns!r}")
    return {column: count for column, count, _ in data}, {column: width for column, _, width in data}


def _precision(data: Any) -> dict[str, Any]:
    """Precision, loss scaling and loss scale."""
    precision, scaling = checked_precision(data["precision"], np.dtype(data["dtype"])), data["loss_scaling"]
    if scaling is not None or precision == "fp16":
        check_keys(scaling, [field.name for field in fields(LossScaling)], "the loss scaling")
        scaling = LossScaling(**scaling)
    scaling = checked_scaling(scaling, precision)
    return {
        "precision": precision,
        "loss_scaling": scaling,
        "loss_scale": checked_scale(data["loss_scale"], scaling),
    }


def _description(data: Any) -> Description:
    check_keys(data, _KEYS, "the description")
    network = data["network"]
    check_keys(network, ("n_in", "layers", "checkpoint_every"), "the network")
    check_list(data["metrics"], len(metrics.BY_NAME), "the metrics")
    if data["dtype"] not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64'; got {data['dtype']!r}")
    for key, stop in (("seed", 1 << 63), ("step", LARGEST_COUNT), ("epoch", LARGEST_COUNT)):
        if type(data[key]) is not int or not 0 <= data[key] < stop:
            raise ValueError(f"{key} must be an integer from 0 to {stop - 1}; got {data[key]!r}")
    if type(network["n_in"]) is not int:
        raise ValueError(f"n_in of the network must be an integer; got {network['n_in']!r}")
    layers = _chain_from_data(network["layers"], "", itertools.count())
    described = Description(
        network=Sequential(layers, network["n_in"], network["checkpoint_every"]),
        loss=_loss_from_data(data["loss"]),
        optimizer=_from_data(data["optimizer"], optimizers.BY_NAME, "optimizer"),
        metrics=tuple(_from_data(metric, metrics.BY_NAME, "metric") for metric in data["metrics"]),
        **{key: data[key] for key in ("dtype", "seed", "step", "epoch")},
        **_precision(data),
        progress=progress.from_data(data["clock"], data["history"]),
    )
    check_parts(described.network, described.loss, described.metrics)
    if described.optimizer.schedule is not None and described.progress.learning_rate is not None:
        raise ValueError("learning_rate of the clock must be null where the optimizer has a schedule")
    groups = described.optimizer.groups
    if len(groups) > MOST_GROUPS:
        raise ValueError(f"the optimizer has {len(groups):,} groups; expected at most {MOST_GROUPS}")
    described.optimizer.settings(described.network.parameters[0].name)  # tries every pattern, which may be none
    return described
