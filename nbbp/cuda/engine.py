"""The CUDA engine: gives a program memory on the GPU, and runs it as launches of kernels.

It runs the op table that the CPU engine runs, with one difference in how that is written: a program for a GPU takes the
whole batch at a time (`nbbp.tiling.WHOLE`), so that there is one gradient, each op is one or two launches whose grid
covers all rows, and tiles, phases and scratch are not read. What is done to a row, and in which order sums are
taken within an op, is the GPU's own: results agree with the CPU's to rounding, and with themselves to the bit.

A step is a list of launches that was made once, when the program was bound: kernels, grids, blocks and arguments. What
changes from step to step (which rows, which coefficients, which random numbers) kernels find by a clock on the GPU,
which the last launch of the step moves on; so nothing is computed on the host in between, and runs of many steps are
launched as graphs (nbbp/cuda/graph.py), or, for small chains of dense layers, all steps as one kernel
(nbbp/cuda/chain.py, and nbbp/cuda/tensor_chain.py for prediction in 16 bits).

Legend: a bound program owns its workspace; the parameters and slots are the model's (nbbp/cuda/memory.py); everything
that a caller brings is attached before a run: arrays of the host, for which the program has places on the GPU that stay
from run to run, or of the GPU, where they then stay.
"""

import threading
import warnings
from typing import Any

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.compiling import interrupts_wait
from nbbp.cuda import graph, kernels
from nbbp.cuda.chain_programs import N_STEPS, chain_launch, chain_of
from nbbp.cuda.launch import Attached, Binding, Launch, launch_of
from nbbp.cuda.memory import Memory
from nbbp.cuda.mixed import roundings_of_products
from nbbp.cuda.tensor_chain import tensor_chain_launch
from nbbp.cuda.tensor_cores import FORMATS

#: Numbers that a buffer's place in the workspace is a multiple of: loads of 128 bits, and float64 in float32 memory.
_ALIGNED = 32
#: What the caller reads when a run is over; everything else attached is only read by it.
_RESULTS = ("loss values", "metric values", "output")
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
    lock : Lock
        To be held from `attach` to the end of what the run leaves behind.
    """

    def __init__(self, program: Any, dtype: Any, memory: Memory, seed: int = 0, precision: str = "float32") -> None:
        kernels.load()
        if getattr(program, "monitored", None) is not None:
            raise NotImplementedError("steps that are monitored are not on CUDA yet; expected device='cpu' for them")
        self.program, self.dtype, self.lock = program, np.dtype(dtype), threading.Lock()
        self.memory, self.seed, self.format = memory, seed, FORMATS.get(precision, 0)
        with np.errstate(over="ignore"):  # what is beyond the dtype is infinite, as a limit is that nothing reaches
            self.settings = np.array(program.settings, self.dtype)
        self.buffers = {name: buffer.device for name, buffer in memory.buffers.items()}
        self._make_workspace()
        self.stream = cuda.stream()
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
        self._graphs: dict[int, graph.StepGraph] = {}
        self._last_places: tuple = ()
        self._has_run, self._driver = False, graph.driver()
        chain = chain_of(program, self.settings)
        self._chain = tensor_chain_launch(self) if chain is None else chain_launch(self, chain)
        if self._chain is None:
            roundings = roundings_of_products(program.ops)
            for row, op in enumerate(program.ops):
                if row not in roundings.values():
                    Binding(self, op, rounds=row in roundings).bind()
            self.launches.append(launch_of(self, "next_step", ((1,), (1,)), [self.clock]))
        self._changes = self._written_buffers()

    def _written_buffers(self) -> list[str]:
        """The model's buffers that a run may change."""
        written = set()
        for op in self.program.ops:
            for column in _WRITTEN.get(op.kernel, ()):
                place = op.columns.get(column, 0)
                written.add(getattr(place, "buffer", None))
        return sorted(written & set(self.memory.buffers))

    def _make_workspace(self) -> None:
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
        """Run every step of `n_samples` rows of what is attached, and bring the results to the caller's arrays."""
        n_steps = -(-n_samples // self.program.batch)
        self.memory.to_device()
        arrays = {name: self._on_device(name, array, n_steps) for name, array in self._attached.items()}
        for launch in self.launches if self._chain is None else (self._chain,):
            launch.take(arrays)
        self.clock.copy_to_device(np.array([n_samples, 0, self._first_step], np.int64))
        for name in self._changes:
            self.memory.buffers[name].was_written()
        with interrupts_wait():  # Ctrl-C is heard when the steps are done
            self._run(n_steps, arrays)
        for name, array in self._attached.items():
            if name.startswith(_RESULTS):
                arrays[name].copy_to_host(array.reshape(-1))
        self._attached.clear()

    def _run(self, n_steps: int, arrays: dict[str, Any]) -> None:
        """Launch the steps: as graphs, where these are to be had and pay, which is in long runs and repeated ones."""
        left = n_steps
        if self._chain is not None:
            self._chain.arguments[N_STEPS] = n_steps
            self._chain()
            left = 0
        elif self._driver is not None:
            places = tuple((name, _address(array)) for name, array in arrays.items())
            if places != self._last_places:
                self._graphs.clear()
            if n_steps >= graph.LEAST_STEPS or places == self._last_places:
                left = self._launch_graphs(n_steps)
            self._last_places = places
        for _ in range(left):
            self._step()
        self.stream.synchronize()

    def _launch_graphs(self, n_steps: int) -> int:
        """Launch steps as graphs, of many and of single ones; how many are left, which were not to be recorded."""
        left = n_steps
        if not self._has_run:
            self._step()  # everything is loaded once it has run
            left -= 1
        for size in (graph.STEPS, 1):
            if left >= size and (size == 1 or n_steps >= graph.LEAST_STEPS):
                steps = self._recorded(size)
                while steps is not None and left >= size:
                    steps.launch()
                    left -= size
        return left

    def _recorded(self, n_steps: int) -> graph.StepGraph | None:
        """So many steps as a graph; None, with a warning, where the driver will not have it."""
        if n_steps not in self._graphs and self._driver is not None:
            try:
                self._graphs[n_steps] = graph.StepGraph(self._driver, self.stream, self._step, n_steps)
            except RuntimeError as error:
                self._driver = None
                warnings.warn(f"steps are launched one by one, which is slower: {error}", RuntimeWarning, stacklevel=2)
        return self._graphs.get(n_steps)

    def _step(self) -> None:
        for launch in self.launches:
            launch()
        self._has_run = True

    def _on_device(self, name: str, array: Any, n_steps: int) -> Any:
        """The device array that a run takes for one of the caller's."""
        if array is None:
            return self.nothing(np.int64 if name == "order" else None)
        if name.startswith(_RESULTS):
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
