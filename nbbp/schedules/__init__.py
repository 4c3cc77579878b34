"""Learning-rate schedules: frozen descriptions that take the place of an optimizer's learning rate.

``Adam(learning_rate=Cosine(1e-3, steps=1000))``. A schedule is a formula of a count t = 0, 1, 2, …: of updates, or with
``unit="epoch"`` of epochs that the model has been trained for. The rates of many steps are computed ahead in float64,
with the optimizer's other coefficients, so that a schedule costs nothing in a step. Meanings are PyTorch's
(`torch.optim.lr_scheduler`), where there is one of the kind. Where an optimizer's `groups` give some parameters a
learning rate of their own, that one goes through the same schedule. Only learning_rate can be positional.
"""

from collections.abc import Mapping
from types import MappingProxyType

from nbbp.schedules.base import Constant, Schedule
from nbbp.schedules.cycles import Cosine, CosineRestarts, OneCycle, WarmUp
from nbbp.schedules.decays import Exponential, InverseTime, MultiStep, Polynomial, Step
from nbbp.schedules.plateau import Plateau, ReduceOnPlateau

__all__ = [
    "BY_NAME",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "InverseTime",
    "MultiStep",
    "OneCycle",
    "Plateau",
    "Polynomial",
    "ReduceOnPlateau",
    "Schedule",
    "Step",
    "WarmUp",
]

#: The schedules by their names.
BY_NAME: Mapping[str, type[Schedule]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Constant,
            Step,
            MultiStep,
            Exponential,
            InverseTime,
            Polynomial,
            Cosine,
            CosineRestarts,
            OneCycle,
            WarmUp,
            ReduceOnPlateau,
        )
    }
)
