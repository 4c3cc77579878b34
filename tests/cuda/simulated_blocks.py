"""Blocks of Numba's simulator whose threads wait for each other at a barrier.

Numba's own look again and again whether all threads have arrived, which takes thirty times as long. Here a thread that
ends while others wait, which no GPU allows either, is an error after a while.
"""

import threading

import numpy as np
from numba.cuda.simulator import kernel

#: Seconds that a thread waits for the others of its block.
_PATIENCE = 60.0


class BlockManager(kernel.BlockManager):
    """Runs a block: starts its threads and waits for their ends."""

    def run(self, grid_point, *arguments):
        points = list(np.ndindex(*self._block_dim))
        self.barrier = threading.Barrier(len(points))
        threads = [BlockThread(lambda: self._f(*arguments), self, grid_point, point, self._debug) for point in points]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        failed = [thread.exception for thread in threads if thread.exception]
        # a broken barrier is what the others report
        failed.sort(key=lambda exception: isinstance(exception[0], threading.BrokenBarrierError))
        if failed:
            raise failed[0][0].with_traceback(failed[0][1])


class BlockThread(kernel.BlockThread):
    """A thread of a block."""

    def syncthreads(self):
        self._manager.barrier.wait(_PATIENCE)

    def run(self):
        with np.errstate(all="ignore"):  # NumPy's scalars warn where machine code is silent
            super().run()
        if self.exception:
            self._manager.barrier.abort()


def install() -> None:
    """Let the simulator's kernels run their blocks so."""
    kernel.BlockManager = BlockManager
