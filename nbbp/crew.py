"""A crew: threads that run one jitted function together until its work is done, while Python listens for Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import numpy as np

from nbbp.cpu.engine import aligned, get_num_threads
from nbbp.cpu.population import DONE, N_COUNTERS, STOP, TURN
from nbbp.cpu.team import LINE

#: Seconds between two looks at how far the threads are.
_LOOK = 0.1


class Crew:
    """Threads for `size` members, to be used in a ``with`` statement.

    They are the crew's own: an engine's team would wait for those that are busy here.

    Attributes
    ----------
    n_threads : int
        As many as networks train on, but no more than members.
    counters : ndarray of int64
        What the threads tell each other, see nbbp/cpu/population.py.
    """

    def __init__(self, size: int) -> None:
        self.n_threads = min(get_num_threads(), size)
        self.counters = aligned(N_COUNTERS * LINE, np.int64)

    def __enter__(self) -> Crew:
        self._pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="nbbp-crew")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def run(self, function: Callable, jobs: Sequence[tuple], moved: Callable[[int], object] | None = None) -> None:
        """Call the function once per job, each on a thread, and return when all have.

        `moved` is called now and then with what the threads have counted as done since. On Ctrl-C they stop early.
        """
        self.counters[[TURN, STOP, DONE]] = 0
        told = 0
        futures = []
        try:
            for job in jobs:
                futures.append(self._pool.submit(function, *job))
            waiting: Any = futures
            while waiting:
                waiting = wait(futures, _LOOK).not_done
                if moved is not None:
                    now = int(self.counters[DONE])
                    moved(now - told)
                    told = now
        finally:  # nobody may write on when this returns
            self.counters[STOP] = 1
            wait(futures)
        for future in futures:
            future.result()
