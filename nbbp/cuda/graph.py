"""Steps as a CUDA graph: what a step launches is recorded once, and then launched as one thing, as often as there are
steps.

A launch from Python costs the host microseconds, which for small networks is longer than the GPU takes; those of a
graph cost the host none. Nothing in a step's arguments changes from step to step, because kernels find what does by the
clock on the GPU; so a graph is good as long as the caller's arrays stay where they are. Long runs are recorded at once,
short ones when the next run comes with its arrays in the same places, as in a loop around `train_step`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from nbbp.cuda.kernels import SIMULATED

#: Steps in one graph: enough that the host need not hurry.
STEPS = 16
#: Steps of a run from which on recording them pays.
LEAST_STEPS = 4 * STEPS


def driver() -> Any:
    """The driver's functions, or None where graphs are not to be had: on the simulator, or without cuda-bindings."""
    if SIMULATED:
        return None
    try:
        from cuda.bindings import driver as found
    except ImportError:
        return None
    return found


class StepGraph:
    """Some steps, recorded on a stream.

    Parameters
    ----------
    functions : module
        As `driver` gives.
    stream : stream
        On which `step` launches.
    step : callable
        Launches one step; every kernel in it has run before, so that nothing is loaded or compiled meanwhile.
    n_steps : int

    Raises
    ------
    RuntimeError
        If the driver refuses.
    """

    def __init__(self, functions: Any, stream: Any, step: Callable[[], None], n_steps: int) -> None:
        self.n_steps, self._functions, self._stream = n_steps, functions, int(stream)
        mode = functions.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(functions.cuStreamBeginCapture(self._stream, mode))
        try:
            for _ in range(n_steps):
                step()
        finally:  # a stream that records forever is no use to anybody
            ended = functions.cuStreamEndCapture(self._stream)
        graph = _checked(ended)
        try:
            self._executable = _checked(functions.cuGraphInstantiate(graph, 0))
        finally:
            functions.cuGraphDestroy(graph)
        weakref.finalize(self, functions.cuGraphExecDestroy, self._executable)

    def launch(self) -> None:
        """Run the steps."""
        _checked(self._functions.cuGraphLaunch(self._executable, self._stream))


def _checked(answer: tuple) -> Any:
    """What the driver gave, which comes behind its error."""
    error, *found = answer
    if int(error) != 0:
        raise RuntimeError(f"the CUDA driver refused a graph: {error}")
    return found[0] if found else None
