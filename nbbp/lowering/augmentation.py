"""Lowering of augmentations: ops between those that bring a batch's rows and those of the first layer.

Mixup reads rows that other tiles bring, so its ops begin a phase, with a matrix of their own to write. Its targets and
weights lie in the workspace, where a row's number is its place in the batch: what losses and metrics take for the order
of the rows is then "place in batch".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nbbp.augmentation import Augmentation, Custom, Mixup, Noise, Shift
from nbbp.lowering.base import MIXED_TARGETS, MIXED_WEIGHTS, Lowering, in_phase, operands
from nbbp.ops import UserFunction
from nbbp.program import Place, Values

#: What Mixup gives to the first of two rows.
_SHARES = "mixup shares"
#: Noise is drawn as that of a layer: layers count from 0 upwards, augmentations from here downwards.
_LAST_LAYER = 2**32 - 1


def user_function(augment: Custom, number: int) -> UserFunction:
    """The function of augmentation `number`, for messages too."""
    return UserFunction(augment.function, f"the function of augmentation {number}")


@in_phase("augmentation")
def augmented(lowering: Lowering, augment: Sequence[Augmentation], x: Values, target_is_labels: bool) -> Values:
    """The ops of all augmentations of the rows x, in their order; where the rows are then."""
    for number, description in enumerate(augment):
        if isinstance(description, Mixup):
            x = _mixup(lowering, description, number, x, target_is_labels)
        else:
            _IN_PLACE[type(description)](lowering, description, number, x)
    return x


def _shift(lowering: Lowering, augment: Shift, number: int, x: Values) -> None:
    shape = augment.shape if len(augment.shape) > 1 else (1, *augment.shape)  # a signal is one line
    height, channels = shape[0], shape[2] if len(shape) > 2 else 1
    down, right = (0, *augment.pixels)[-2:]
    lowering.program.add(
        "shift", layer=number, height=height, channels=channels, down=down, right=right,
        settings=lowering.program.setting(augment.fill), **operands(x, x),
    )  # fmt: skip
    lowering.program.scratch = max(lowering.program.scratch, x.width)


def _noise(lowering: Lowering, augment: Noise, number: int, x: Values) -> None:
    settings = lowering.program.setting(augment.stddev)
    lowering.program.add("gaussian_noise_forward", layer=_LAST_LAYER - number, settings=settings, **operands(x, x))


def _custom(lowering: Lowering, augment: Custom, number: int, x: Values) -> None:
    lowering.program.add("augment_row", user_function(augment, number), layer=number, **operands(x, x))
    lowering.program.scratch = max(lowering.program.scratch, x.width)


_IN_PLACE: dict[type, Callable] = {Shift: _shift, Noise: _noise, Custom: _custom}


def _mixup(lowering: Lowering, augment: Mixup, number: int, x: Values, target_is_labels: bool) -> Values:
    program, n_out = lowering.program, lowering.network.n_out
    program.buffers |= {_SHARES: program.batch, MIXED_WEIGHTS: program.batch, MIXED_TARGETS: program.batch * n_out}
    program.add("mixup_shares", layer=number, settings=program.setting(augment.alpha), y=Place(_SHARES))
    y = lowering.free(program.matrix("mixed input", x.width, with_one=True), unless=True)
    of_pair = {"layer": number, "kept": Place(_SHARES)}
    program.add("mixup_rows", **of_pair, **operands(x, y))
    program.add(
        "mixup_targets", **of_pair, order=Place("order"), target=Place("target"),
        target_stride=0 if target_is_labels else n_out, target_is_labels=int(target_is_labels),
        y=Place(MIXED_TARGETS), y_stride=n_out, n_out=n_out,
    )  # fmt: skip
    program.add(
        "mixup_weights", **of_pair, order=Place("order"), sample_weight=Place("sample weight"), y=Place(MIXED_WEIGHTS)
    )
    lowering.mixes_targets = True
    return y
