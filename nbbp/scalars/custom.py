"""Formulas that are made at run time, under keys that jitted code takes where it takes the codes of built-in ones.

A key is a digest of the nodes of value and derivative. So it is the same in every process, and machine code that was
compiled for it is found in the cache of the next one.
"""

import hashlib
from collections.abc import Sequence

from nbbp.scalars.activations import Formula
from nbbp.scalars.dispatch import CUSTOM, formula
from nbbp.scalars.losses import LossFormula
from nbbp.scalars.operations import Node
from nbbp.scalars.writing import function_of

__all__ = ["ACTIVATION", "LOSS", "activation_formula", "loss_formula"]

#: Names of what the functions take; the last is a parameter that formulas of this kind do not have.
ACTIVATION = ("z", "alpha")
LOSS = ("prediction", "target", "parameter")


def activation_formula(name: str, value: Sequence[Node], derivative: Sequence[Node]) -> Formula:
    """The activation of these formulas of one input z."""
    return Formula(name, *_registered(ACTIVATION, value, derivative), derivative_of="input")


def loss_formula(name: str, value: Sequence[Node], derivative: Sequence[Node]) -> LossFormula:
    """The loss of these formulas of two inputs, prediction and target."""
    return LossFormula(name, *_registered(LOSS, value, derivative))


def _registered(arguments: tuple[str, ...], value: Sequence[Node], derivative: Sequence[Node]) -> tuple:
    """Key, value and derivative, which `CUSTOM` has from here on."""
    digest = hashlib.sha256(repr(arguments).encode())
    for nodes in (value, derivative):
        digest.update(repr([(node.operation, node.arguments, node.number.hex()) for node in nodes]).encode())
    key = digest.hexdigest()[:32]
    if key not in CUSTOM:
        CUSTOM[key] = tuple(formula(function_of(nodes, arguments)) for nodes in (value, derivative))
    return key, *CUSTOM[key]
