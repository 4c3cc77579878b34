"""The CUDA engine: gives a program memory on the GPU, and runs it as launches of kernels.

It runs the op table that the CPU engine runs, with one difference in how that is written: a program for a GPU takes the
whole batch at a time (`nbbp.tiling.WHOLE`), so that there is one gradient, each op is one or two launches whose grid
covers all rows, and tiles, phases and scratch are not read. What is done to a row, and in which order sums are
taken within an op, is the GPU's own: results agree with the CPU's to rounding, and with themselves to the bit.

A step is a list of launches that was made once, when the program was bound: kernels, grids, blocks and arguments. What
changes from step to step (which rows, which coefficients, which random numbers) kernels find by a clock on the GPU,
which the last launch of the step moves on; so nothing is computed on the host in between, and runs of many steps are
launched as graphs (nbbp/cuda/graph.py). Chains of dense layers have shorter ways: few launches a step, or one for all
steps of a run (nbbp/cuda/paths.py says which program goes which way).

Legend: a bound program owns its workspace; the parameters and slots are the model's (nbbp/cuda/memory.py); everything
that a caller brings is attached before a run: arrays of the host, for which the program has places on the GPU that stay
from run to run, or of the GPU, where they then stay.
"""

import threading
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.compiling import interrupts_wait
from nbbp.cuda import graph, kernels, paths
from nbbp.cuda.cublas import Library, LibraryProduct
from nbbp.cuda.launch import N_STEPS, Attached, Launch
from nbbp.cuda.memory import Memory
from nbbp.cuda.tensor_cores import FORMATS

#: Numbers that a buffer's place in the workspace is a multiple of: loads of 128 bits, and float64 in float32 memory.
_ALIGNED = 32
#: What the caller reads when a run is over; everything else attached is only read by it.
_RESULTS = ("loss values", "metric values", "output")
#: Places of the caller's arrays that graphs are kept for: chunks of data come in two by turns.
_KEPT_PLACES = 2
#: Columns with places in buffers of the model that kernels write.
_WRITTEN = {
    "update": (ops.W, ops.SLOT_0, ops.SLOT_1, ops.SLOT_2),
    "adafactor": (ops.W, ops.SLOT_0),
    "prepare_gradient": (ops.SLOT_0, ops.SLOT_1),
    "finish_gradient": (ops.SLOT_1,),
    "snapshot": (ops.Y,),
    "batch_norm_forward": (ops.STATE,),
    "update_loss_scale": (ops.LOSS_SCALE,),
}


class BoundProgram:
    """A program with memory on the GPU: ready to run on data.

    Parameters
    ----------
    program : nbbp.program.Program
        Written for `nbbp.tiling.WHOLE`.
    dtype : dtype
    memory : Memory
        The model's own buffers ("parameters", "slot 0", …).
    seed : int
        Key of the layers' random numbers.
    precision : {"float32", "tf32", "bf16", "fp16"}
        What products compute in.

    Attributes
    ----------
    buffers : dict of str to device array
        The model's and the workspace's.
    launches : list of Launch
        One step.
    format : int
        That of tensor cores (nbbp/cuda/tensor_cores.py); 0 where products are of the dtype itself.
    lock : RLock
        To be held from `attach` to the end of what the run leaves behind.
    meanwhile : callable or None
        What the host is to do while the GPU does the next run: what it computes for the one behind that.
    """

    def __init__(self, program: Any, dtype: Any, memory: Memory, seed: int = 0, precision: str = "float32") -> None:
        kernels.load()
        if getattr(program, "monitored", None) is not None:
            raise NotImplementedError("steps that are monitored are not on CUDA yet; expected device='cpu' for them")
        self.program, self.dtype, self.lock = program, np.dtype(dtype), threading.RLock()
        self.memory, self.seed, self.format = memory, seed, FORMATS.get(precision, 0)
        self.meanwhile = None
        with np.errstate(over="ignore"):  # what is beyond the dtype is infinite, as a limit is that nothing reaches
            self.settings = np.array(program.settings, self.dtype)
        self.buffers = {name: buffer.device for name, buffer in memory.buffers.items()}
        self.stream = cuda.stream()
        self.library = Library(self.stream)
        kinds = self.dtype, np.float64, np.int64, np.uint16
        self._nothing = {np.dtype(kind): cuda.device_array(0, kind) for kind in kinds}
        self.clock = cuda.to_device(np.zeros(kernels.CLOCK_LENGTH, np.int64))
        self.verdict = cuda.to_device(np.ones(2, np.int64))
        self.norm = cuda.to_device(np.zeros(1))
        self.launches: list[Launch] = []
        self._wanted: set[str] = set()
        self._first_step = 0
        self._attached: dict[str, Any] = {}
        self._places: dict[str, Any] = {}
        self._graphs: OrderedDict[tuple, dict[int, graph.StepGraph]] = OrderedDict()
        self._has_run, self._driver = False, graph.driver()
        self._whole_run = paths.whole_run(self)
        if self._whole_run is None:
            paths.bind_steps(self)
        self._sized = [launch for launch in self.launches if isinstance(launch, LibraryProduct)]
        self._changes = self._written_buffers()

    def _written_buffers(self) -> list[str]:
        """The model's buffers that a run may change."""
        written = set()
        for op in self.program.ops:
            for column in _WRITTEN.get(op.kernel, ()):
                place = op.columns.get(column, 0)
                written.add(getattr(place, "buffer", None))
        return sorted(written & set(self.memory.buffers))

    def make_workspace(self) -> None:
        places, total = {}, 0
        for name, length in self.program.buffers.items():
            places[name] = total
            total += -(-length // _ALIGNED) * _ALIGNED
        host = np.zeros(total, self.dtype)
        for name, column, stride in self.program.ones:
            host[places[name] :][: self.program.buffers[name]].reshape(-1, stride)[:, column] = 1
        workspace = cuda.to_device(host) if total else cuda.device_array(0, self.dtype)
        for name, length in self.program.buffers.items():
            self.buffers[name] = workspace[places[name] : places[name] + length]

    def nothing(self, dtype: Any = None) -> Any:
        """An empty array, for an argument that there is none for."""
        return self._nothing[self.dtype if dtype is None else np.dtype(dtype)]

    def attached(self, name: str, offset: int = 0) -> Attached:
        """What stands for an array of the caller's until a run."""
        if offset:
            raise ValueError(f"a program for CUDA reads {name} from its beginning; got the offset {offset}")
        self._wanted.add(name)
        return Attached(name)

    def buffer(self, name: str) -> np.ndarray:
        """A copy of a workspace buffer on the host."""
        return self.buffers[name].copy_to_host()

    def attach(self, name: str, array: Any) -> None:
        """Let the next run read or write the caller's `array` (C-contiguous) under `name`; None for none."""
        if name in self._wanted:
            self._attached[name] = array

    def count_from(self, first_step: int) -> None:
        """Let the next run's steps be these, for the layers' random numbers."""
        self._first_step = first_step

    def run(self, n_samples: int) -> None:
        """Run every step of `n_samples` rows of what is attached, and bring the results to the caller's arrays.

        Results that are attached as device arrays stay there.

        Raises
        ------
        RuntimeError
            If an iterable, asked for its next batch while the GPU computes, makes the model compute the same.
        """
        n_steps = -(-n_samples // self.program.batch)
        attached, self._attached = self._attached, {}
        meanwhile, self.meanwhile = self.meanwhile, None
        self.memory.begin_run(self, changes=bool(self._changes))
        self.memory.to_device()
        arrays = {name: self._on_device(name, array, n_steps) for name, array in attached.items()}
        for launch in self.launches if self._whole_run is None else (self._whole_run,):
            launch.take(arrays)
        self.clock.copy_to_device(np.array([n_samples, 0, self._first_step], np.int64))
        for name in self._changes:
            self.memory.buffers[name].was_written()
        try:
            with interrupts_wait():  # Ctrl-C is heard when the steps are done
                self._run(n_steps, arrays, n_samples % self.program.batch if self._sized else 0)
            if meanwhile is not None:
                with self.memory.computing(self):
                    meanwhile()
        finally:
            with interrupts_wait():
                self.stream.synchronize()
        for name, array in attached.items():
            if name.startswith(_RESULTS) and isinstance(array, np.ndarray):
                arrays[name].copy_to_host(array.reshape(-1))

    def _run(self, n_steps: int, arrays: dict[str, Any], rest: int) -> None:
        """Launch the steps: as graphs, where these are to be had and pay, which is in long runs and repeated ones.

        `rest`: rows of a last step that is no whole batch, where the host has to say how many these are.
        """
        n_steps -= rest > 0
        left = n_steps
        if self._whole_run is not None:
            self._whole_run.arguments[N_STEPS] = n_steps
            self._whole_run()
            left = 0
        elif self._driver is not None and n_steps:
            places = tuple((name, _address(array)) for name, array in arrays.items())
            is_known = places in self._graphs
            graphs = self._graphs.setdefault(places, {})
            self._graphs.move_to_end(places)
            while len(self._graphs) > _KEPT_PLACES:
                self._graphs.popitem(last=False)
            if is_known or n_steps >= graph.LEAST_STEPS:
                left = self._launch_graphs(n_steps, graphs)
        for _ in range(left):
            self._step()
        if rest:
            self._short_step(rest)

    def _launch_graphs(self, n_steps: int, graphs: dict[int, graph.StepGraph]) -> int:
        """Launch steps as graphs, of many and of single ones; how many are left, which were not to be recorded."""
        left = n_steps
        if not self._has_run:
            self._step()  # everything is loaded once it has run
            left -= 1
        for size in (graph.STEPS, 1):
            if left >= size and (size == 1 or n_steps >= graph.LEAST_STEPS):
                steps = self._recorded(size, graphs)
                while steps is not None and left >= size:
                    steps.launch()
                    left -= size
        return left

    def _recorded(self, n_steps: int, graphs: dict[int, graph.StepGraph]) -> graph.StepGraph | None:
        """So many steps as a graph; None, with a warning, where the driver will not have it."""
        if n_steps not in graphs and self._driver is not None:
            try:
                graphs[n_steps] = graph.StepGraph(self._driver, self.stream, self._step, n_steps)
            except RuntimeError as error:
                self._driver = None
                warnings.warn(f"steps are launched one by one, which is slower: {error}", RuntimeWarning, stacklevel=2)
        return graphs.get(n_steps)

    def _step(self) -> None:
        for launch in self.launches:
            launch()
        self._has_run = True

    def _short_step(self, rows: int) -> None:
        """A step of fewer rows than a batch, with launches whose sizes are the host's."""
        has_run = self._has_run
        for launch in self._sized:
            launch.rows = rows
        try:
            self._step()
        finally:
            for launch in self._sized:
                launch.rows = self.program.batch
        self._has_run = has_run  # a whole batch may take other kernels of a library

    def _on_device(self, name: str, array: Any, n_steps: int) -> Any:
        """The device array that a run takes for one of the caller's."""
        if array is None:
            return self.nothing(np.int64 if name == "order" else None)
        if name.startswith(_RESULTS) and isinstance(array, np.ndarray):
            return self._place(name, array.size, array.dtype)
        if name.startswith("coefficients of"):
            array = array[:n_steps]
        elif not isinstance(array, np.ndarray):
            return array.reshape(array.size)
        elif self.memory.keeps(name):
            return self.memory.data(array)
        place = self._place(name, array.size, array.dtype)
        place.copy_to_device(array.reshape(-1))
        return place

    def _place(self, name: str, n: int, dtype: Any) -> Any:
        """Memory of this program's for `n` numbers that come or go under a name: as before, if that is enough."""
        place = self._places.get(name)
        if place is None or place.size < n or place.dtype != dtype:
            place = self._places[name] = cuda.device_array(n, dtype)
        return place[:n]


def _address(array: Any) -> int:
    """Where a device array lies; 0 for an empty one."""
    return array.__cuda_array_interface__["data"][0] or 0
