"""Which steps of a run are monitored, and the memory for what is then known of the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from nbbp.cpu.engine import BoundProgram
from nbbp.cpu.monitoring import N_QUANTITIES
from nbbp.lowering.monitoring import VALUES, monitored

if TYPE_CHECKING:
    from nbbp.session import Session

__all__ = ["Monitor", "attach_monitor"]


class Monitor(Protocol):
    """Who is told of the layers in every `every`-th update."""

    every: int

    def take(self, updates: np.ndarray, values: np.ndarray) -> None:
        """Numbers of updates (n,), counted from 1, and the quantities of cpu/monitoring.py (n, layers, quantities)."""


def attach_monitor(session: Session, bound: BoundProgram, n_steps: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Attach memory for what the session's monitor is to be told of the next steps, and say which these are.

    Gives what it takes, once the run has filled it; None where nobody monitors.
    """
    if session.monitor is None:
        return None
    k = session.optimizer.accumulation_steps
    period = session.monitor.every * k
    due = (k - 1 - session.step) % period  # an update is made by the last of its batches
    steps = np.arange(due, n_steps, period)
    values = np.empty((len(steps), len(monitored(session.network)), N_QUANTITIES))
    bound.attach(VALUES, values)
    bound.monitor(due, period)
    return (session.step + steps) // k + 1, values
