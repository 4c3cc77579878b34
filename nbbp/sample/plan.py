"""The plan: a network, its loss and its optimizer as tuples of constants that a jitted function can close over.

Numba's cache on disk goes by the values of what a function closes over; a tuple of ints and strings is a type of its
own to Numba, so whatever is in it is known while machine code is written. Numbers that may be fractions come in a
second tuple, as constants in that code.

Legend: a stage is a layer of the network, ``(n_out, kind, code)`` in the tuple: kind is `NO_PARAMETERS` for an
activation alone, `WEIGHT` or `WEIGHT_AND_BIAS` for a dense layer, and code is what `activation_value` takes; of a
`STANDARDIZES` code is the name of its statistics (nbbp/sample/standardization.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nbbp.layers import Activation, Dense, Standardize
from nbbp.losses import Loss
from nbbp.lowering.base import padded, takes_logits
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.scalars.activations import ACTIVATIONS
from nbbp.scalars.losses import LOSSES

NO_PARAMETERS, WEIGHT, WEIGHT_AND_BIAS, STANDARDIZES = range(4)
LINEAR = ACTIVATIONS["linear"].code
CROSSENTROPY = LOSSES["crossentropy"].code
_ENTRIES_PER_STAGE = 3
#: Learning rate, coupled L2, L1, multiplier of a decoupled decay.
SETTINGS_PER_GROUP = 4


@dataclass(frozen=True)
class Stage:
    """One layer while its machine code is written.

    Attributes
    ----------
    n_in, n_out : int
    weight, bias : int or None
        Where its parameters begin in the flat buffer; None where it has none.
    code : int or str
        Its activation, or the name of the statistics that it standardizes by.
    place : int
        Its position, and that of its activation's parameter among the numbers.
    """

    n_in: int
    n_out: int
    weight: int | None
    bias: int | None
    code: int | str
    place: int
    standardizes: bool


def structure(network: Sequential, statistics: str = "", loss: Loss | None = None) -> tuple[int | str, ...]:
    """``(n_in, n_out, kind, code, n_out, kind, code, …)``; with a `loss`, less a last activation that it takes in.

    `statistics` names those of a `Standardize`.
    """
    entries: list[int | str] = [network.n_in]
    for layer in network.layers:
        if isinstance(layer, Dense):
            kind = WEIGHT_AND_BIAS if layer.use_bias else WEIGHT
            entries += [layer.n_out, kind, layer.activation.formula.code]
        elif isinstance(layer, Standardize):
            entries += [network.n_in, STANDARDIZES, statistics]
        else:
            entries += [entries[-3] if len(entries) > 1 else network.n_in, NO_PARAMETERS, layer.formula.code]
    if loss is not None and takes_logits(network, loss):
        entries[-1] = LINEAR
    return tuple(entries)


def stages(entries: Sequence[int | str]) -> list[Stage]:
    """The layers of a `structure`."""
    n_in, offset, found = entries[0], 0, []
    for place in range((len(entries) - 1) // _ENTRIES_PER_STAGE):
        start = 1 + place * _ENTRIES_PER_STAGE
        n_out, kind, code = entries[start : start + _ENTRIES_PER_STAGE]
        weight = offset if kind in (WEIGHT, WEIGHT_AND_BIAS) else None
        offset += 0 if weight is None else n_in * n_out
        bias = offset if kind == WEIGHT_AND_BIAS else None
        offset += n_out if kind == WEIGHT_AND_BIAS else 0
        found.append(Stage(n_in, n_out, weight, bias, code, place, kind == STANDARDIZES))
        n_in = n_out
    return found


def n_parameters(entries: Sequence[int | str]) -> int:
    """Length of the flat buffer."""
    return sum(
        (stage.n_in * stage.n_out if stage.weight is not None else 0) + (stage.n_out if stage.bias is not None else 0)
        for stage in stages(entries)
    )


def ends(entries: Sequence[int | str]) -> tuple[int, int]:
    """n_in of the first layer and n_out of the last."""
    found = stages(entries)
    return found[0].n_in, found[-1].n_out


def most_on_stack(entries: Sequence[int | str]) -> int:
    """Numbers of all activations and their gradients together."""
    found = stages(entries)
    return 2 * (found[0].n_in + 2 * sum(stage.n_out for stage in found))


def numbers(network: Sequential) -> tuple[float, ...]:
    """The parameter of each layer's activation."""
    return tuple((layer if isinstance(layer, Activation) else layer.activation).parameter for layer in network.layers)


def loss_code(network: Sequential, loss: Loss) -> int | str:
    """The loss as its kernel is called: nll behind log_softmax is crossentropy of what came in."""
    if loss.row_wise and takes_logits(network, loss):
        return CROSSENTROPY
    return loss.formula.code


def loss_settings(loss: Loss, n_out: int) -> tuple[float, float]:
    """The loss's parameter, and what its value and its derivative per output are multiplied by, for one sample."""
    return loss.parameter, loss.scale / (n_out if loss.reduction == "mean" and not loss.row_wise else 1)


def update_groups(network: Sequential, optimizer: Optimizer) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Which parameters share settings, and the settings.

    Returns
    -------
    groups : tuple of int
        A number for each parameter in the order of the flat buffer.
    settings : tuple of float
        Of each group: learning rate, coupled L2, L1 and the multiplier of a decoupled decay.
    """
    known: dict[tuple[float, ...], int] = {}
    groups = []
    for parameter in network.parameters:
        own = optimizer.settings(parameter.name)
        line = own.learning_rate, *optimizer.penalties(own, own.learning_rate)
        groups.append(known.setdefault(line, len(known)))
    return tuple(groups), tuple(number for line in known for number in line)


def slot_stride(entries: Sequence[int | str]) -> int:
    """Numbers from one optimizer slot to the next: each begins at a cache line if the first does."""
    return padded(n_parameters(entries))


def adafactor_places(all_stages: Sequence[Stage]) -> tuple[dict[tuple[int, bool], int], int]:
    """Where the moments of each parameter begin, and where room for the gradient of the largest does, in the slots.

    A weight's are the means of its rows, then of its columns; a bias has one for each number.
    """
    places, offset = {}, 0
    for stage, is_bias in parameters_of(all_stages):
        places[stage.place, is_bias] = offset
        offset += stage.n_out if is_bias else stage.n_in + stage.n_out
    return places, offset


def n_slots(entries: Sequence[int | str], optimizer: Optimizer) -> int:
    """Numbers that an optimizer keeps from step to step, and works in."""
    if optimizer.rule != "adafactor":
        return optimizer.n_slots * slot_stride(entries)
    found = stages(entries)
    largest = max(stage.n_out if is_bias else stage.n_in * stage.n_out for stage, is_bias in parameters_of(found))
    return adafactor_places(found)[1] + largest


def parameters_of(all_stages: Sequence[Stage]) -> Iterator[tuple[Stage, bool]]:
    """The parameters in the order of the flat buffer: the stage, and whether it is its bias."""
    for stage in all_stages:
        if stage.weight is not None:
            yield stage, False
        if stage.bias is not None:
            yield stage, True
