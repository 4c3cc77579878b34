"""A model's numbers at one moment of its training, kept in memory, to go back to."""

from __future__ import annotations

import numpy as np

from nbbp.session import Session

__all__ = ["Snapshot"]


class Snapshot:
    """Copies of parameters, layers' states, the optimizer's state and the loss scale.

    Their memory is taken when it is made.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._buffers = [session.parameters, session.state, session.slot_buffer, session.loss_scale]
        self._copies = [np.empty_like(buffer) for buffer in self._buffers]
        self._step: int | None = None

    def take(self) -> None:
        """Keep the numbers as they are now."""
        with self.session.lock:
            for copy, buffer in zip(self._copies, self._buffers, strict=True):
                copy[:] = buffer
            self._step = self.session.step

    def put_back(self) -> bool:
        """Go back to the numbers that were kept last; whether any were."""
        if self._step is None:
            return False
        with self.session.lock:
            for copy, buffer in zip(self._copies, self._buffers, strict=True):
                buffer[:] = copy
            self.session.step, self.session.steps_ahead = self._step, 0
        return True
