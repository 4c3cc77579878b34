"""What the members of a population are made of: settings, shared or one per member, and what they turn into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nbbp import optimizers
from nbbp.layers import Dense, positive_integer
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer

__all__ = ["networks_of", "optimizers_of", "size_of", "values_of"]


def is_one_each(value: Any) -> bool:
    """Whether a setting has a value for every member: a list, a tuple, a range or an array of one dimension."""
    return isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim == 1)


def size_of(size: int | None, settings: Mapping[str, Any]) -> int:
    """How many members there are: what was said, or the length of the settings that vary.

    Raises
    ------
    TypeError
        If nothing says it.
    ValueError
        If a setting is of another length.
    """
    lengths = {name: len(value) for name, value in settings.items() if is_one_each(value)}
    if size is None and not lengths:
        raise TypeError("size is missing: give it, or a setting with one value per network: learning_rate=[…]")
    by, n = ("size", positive_integer("size of Population", size)) if size is not None else next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != n:
            raise ValueError(f"{name} has {length} values, but {by} says {n} networks: give one value, or one for each")
    return positive_integer("the number of networks", n)


def values_of(value: Any, size: int) -> list:
    """A setting's value for every member, NumPy's scalars as Python's."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return list(value) if is_one_each(value) else [value] * size


def networks_of(network: Sequential | Callable, settings: Mapping[str, Any], size: int) -> list[Sequential]:
    """The network of every member; equal ones are the same object.

    Raises
    ------
    TypeError, ValueError
        If the network is none, does not take the settings, or the members' ends differ.
    """
    names = list(settings)
    rows = list(zip(*(values_of(value, size) for value in settings.values()), strict=True)) or [()] * size
    if isinstance(network, Sequential):
        if unknown := [name for name in names if name != "n_hidden"]:
            raise TypeError(
                f"a Sequential takes no setting {unknown[0]!r}, only n_hidden; give Population a function "
                f"of {unknown[0]} that returns a Sequential instead"
            )
        make = lambda **of_member: with_hidden(network, **of_member)  # noqa: E731
    elif callable(network):
        make = network
    else:
        came = f"{network!r} ({type(network).__name__})"
        raise TypeError(f"network must be a Sequential, or a function that returns one; got {came}")
    same: dict[Any, Sequential] = {}
    made: list[Sequential] = []
    for row in rows:
        one = make(**dict(zip(names, row, strict=True)))
        if not isinstance(one, Sequential):
            called = ", ".join(f"{name}={value!r}" for name, value in zip(names, row, strict=True))
            raise TypeError(f"network({called}) must return a Sequential; got {one!r} ({type(one).__name__})")
        made.append(_shared(one, same))
    check_ends(made)
    return made


def _shared(one: Sequential, same: dict) -> Sequential:
    """The first network that was equal to this one."""
    try:
        return same.setdefault(one, one)
    except TypeError:  # an initializer of the user's own may have no hash
        return one


def with_hidden(network: Sequential, n_hidden: int | None = None) -> Sequential:
    """The network with `n_hidden` units in every `Dense` layer but the last; as it is without a number.

    Raises
    ------
    ValueError
        If there is no such layer.
    """
    if n_hidden is None:
        return network
    dense = [place for place, layer in enumerate(network.layers) if isinstance(layer, Dense)]
    if len(dense) < 2:
        raise ValueError(f"n_hidden needs a hidden Dense layer; there is none in {network!r}")
    n = positive_integer("n_hidden", n_hidden)
    layers = [replace(layer, n_out=n) if k in dense[:-1] else layer for k, layer in enumerate(network.layers)]
    return replace(network, layers=tuple(layers))


def check_ends(networks: list[Sequential]) -> None:
    """Refuse networks that do not take or give the same.

    Raises
    ------
    ValueError
    """
    first = networks[0]
    for number, network in enumerate(networks):
        for what, mine, wanted in (
            ("features per sample", network.n_in, first.n_in),
            ("outputs", network.n_in and network.n_out, first.n_in and first.n_out),
            ("forms of samples and outputs", network.form, first.form),
        ):
            if mine != wanted:
                raise ValueError(
                    f"all networks see the same data, but the {what} of network 0 are {wanted!r}, "
                    f"those of network {number} are {mine!r}"
                )


def optimizers_of(optimizer: Any, learning_rate: Any, size: int) -> list[Optimizer]:
    """The optimizer of every member, with its own learning rate where one is given.

    Raises
    ------
    TypeError, ValueError
        As `nbbp.optimizers.get` and the optimizers do.
    """
    chosen = [optimizers.get(one) for one in values_of(optimizer, size)]
    rates = values_of(learning_rate, size)
    return [one if rate is None else replace(one, learning_rate=rate) for one, rate in zip(chosen, rates, strict=True)]
