"""The registry of CUDA kernels, and what is common to them: sizes of blocks, kinds of arguments, the clock of a run.

A kernel is made by a factory ``make(number, variant)``, as on the CPU: `number` is the model's dtype (``np.float32`` or
``np.float64``), `variant` a number that chooses a formula, the key of a formula that was made at run time, or sizes of
a tile. The formulas are those of nbbp/scalars, compiled into the kernel. Arguments are flat arrays, each beginning at
its place in its buffer, and integers. An array of length 0 stands for one that is not there.

Legend: what changes from step to step lies on the GPU, so that a step is the same list of launches every time: `clock`
(3,) int64 holds the rows of the run, the step within it, and the training batches before the run. A matrix has a row
stride in numbers; `batch` is the rows of a whole batch, and a kernel computes how many this step really has.

No kernel adds floating-point numbers in an order that depends on timing: sums are taken by one thread, or by the
threads of one block whose parts are then added in their order. So the same seed gives the same bits, run after run.

On the simulator (NUMBA_ENABLE_CUDASIM=1) a thread is a thread of Python and costs milliseconds: blocks are a few
threads there, and grids a few blocks. Kernels take any block and grid of these shapes.
"""

import contextlib
import functools
import importlib
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import config, cuda, types
from numba.core.errors import NumbaError, NumbaPerformanceWarning

from nbbp.compiling import fingerprint, interrupts_wait
from nbbp.ops import UserFunction

SIMULATED = bool(config.ENABLE_CUDASIM)

#: Threads of a block of elementwise kernels, and blocks of a grid at most: threads stride over what is left.
THREADS = 4 if SIMULATED else 256
MOST_BLOCKS = 2 if SIMULATED else 4096
#: Threads that share a row, and rows of a block, in kernels that take sums over rows.
ROW_LANES, ROWS = (2, 2) if SIMULATED else (8, 32)
#: Threads that share a column, and columns of a block, in kernels that take sums over columns.
COLUMN_LANES, COLUMNS = (2, 2) if SIMULATED else (64, 8)

#: Places in the clock.
N_SAMPLES, STEP, FIRST_STEP = 0, 1, 2
CLOCK_LENGTH = 3

#: Kinds of arguments: arrays of the dtype, of float64, of int64, of uint16; a number of the dtype; an int64.
ARRAY, DOUBLES, INTEGERS, HALVES, NUMBER, INTEGER = "array", "doubles", "integers", "halves", "number", "integer"

#: Layouts of products (nbbp/cuda/dense.py): forward, by a transposed weight, over the rows of the batch.
FORWARD, TRANSPOSED, OVER_ROWS = range(3)
#: What kernels are made for.
DTYPES = ("float32", "float64")

#: Modules whose import fills the registry.
_MODULES = (
    "rows",
    "dense",
    "tensor_product",
    "mixed",
    "activation",
    "softmax",
    "normalization",
    "normalization_rows",
    "loss",
    "crossentropy",
    "metric",
    "verdict",
    "update",
    "adafactor",
    "gradient",
    "custom",
    "dropout",
    "noise",
    "embedding",
    "scan",
    "chain",
    "fused",
    "fused_update",
    "tensor_chain",
)


@dataclass(frozen=True)
class Factory:
    """How a kernel is made: ``make(number, variant)``, the kinds of its arguments, and the variants and dtypes.

    `bounds`, where it is given, says by ``bounds(dtype, variant)`` how many threads a block has at most and how many
    blocks a multiprocessor should hold, to which the compiler limits a thread's registers; None for no such wish.
    """

    make: Callable
    kinds: tuple[str, ...]
    variants: tuple
    dtypes: tuple[str, ...] = DTYPES
    bounds: Callable | None = None


_factories: dict[str, Factory] = {}
_compiled: dict[tuple[str, str, Any], Any] = {}
_making = threading.RLock()


def kernel(
    *kinds: str, variants: tuple = (0,), dtypes: tuple[str, ...] = DTYPES, bounds: Callable | None = None
) -> Callable:
    """Register a factory under its name; `kinds` are those of the kernel's arguments, in order."""

    def register(make: Callable) -> Callable:
        _factories[make.__name__] = Factory(make, kinds, variants, dtypes, bounds)
        return make

    return register


def load() -> None:
    """Fill the registries of kernels and of ops."""
    for module in _MODULES:
        importlib.import_module(f"nbbp.cuda.{module}")


def compiled(name: str, dtype: Any, variant: Any = 0) -> Any:
    """The kernel as a dispatcher with one signature, made when first asked for in this process.

    Raises
    ------
    TypeError
        If a function of the user's own does not compile for the GPU.
    """
    key = name, np.dtype(dtype).name, variant
    with _making:
        if key not in _compiled:
            try:
                _compiled[key] = _dispatcher(name, dtype, variant)
            except NumbaError as error:
                if not isinstance(variant, UserFunction):
                    raise
                raise TypeError(f"{variant.label} does not compile for {np.dtype(dtype)} on CUDA:\n{error}") from error
    return _compiled[key]


def configured(kernel: Any, grid: tuple, block: tuple, stream: Any, shared: int = 0) -> Callable:
    """What launches a kernel on this grid, with bytes of shared memory beside the kernel's own: of the arguments."""
    if SIMULATED:  # where a kernel keeps one configuration
        return lambda *arguments: kernel[grid, block, stream, shared](*arguments)
    with warnings.catch_warnings():  # small grids are what small networks have
        warnings.simplefilter("ignore", NumbaPerformanceWarning)
        return kernel[grid, block, stream, shared]


def allow_shared(name: str, dtype: Any, variant: Any, n_bytes: int) -> bool:
    """Let blocks of a kernel bring so much shared memory, which beyond 48 KiB has to be asked for; False if they can't.

    As numba-cuda asks for its ``shared_memory_carveout``.
    """
    kernel = compiled(name, dtype, variant)
    if SIMULATED:
        return True
    from numba.cuda.cudadrv import driver

    try:
        (overload,) = kernel.overloads.values()
        function = overload._codelibrary.get_cufunc()
        attribute = driver.binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driver.driver.cuKernelSetAttribute(attribute, n_bytes, function.handle, function.device.id)
    except (AttributeError, driver.CudaAPIError) as error:
        warnings.warn(f"blocks have 48 KiB of shared memory, which is slower: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


@functools.cache
def _stamp() -> str:
    """What machine code of this process is made from."""
    return fingerprint(("cuda", "scalars", "compiling.py", "ops.py"))


def _dispatcher(name: str, dtype: Any, variant: Any) -> Any:
    """The kernel, compiled or from the cache on disk, whose key holds every file that it comes from."""
    if SIMULATED:
        return cuda.jit(function(name, dtype, variant))
    dispatcher = cuda.jit(function(name, dtype, variant), launch_bounds=bounds(name, dtype, variant))
    if not isinstance(variant, UserFunction):  # Numba's cache cannot know what another function does
        with contextlib.suppress(RuntimeError, OSError):  # where no folder takes the cache
            dispatcher.enable_caching()
            file = dispatcher._cache._cache_file
            file._source_stamp = (file._source_stamp, _stamp())
    with interrupts_wait():
        dispatcher.compile(signature(name, dtype).args)
    dispatcher.disable_compile()
    return dispatcher


def function(name: str, dtype: Any, variant: Any) -> Callable:
    """The kernel as plain Python."""
    return _factories[name].make(np.dtype(dtype).type, variant)


def bounds(name: str, dtype: Any, variant: Any) -> tuple[int, int] | None:
    """Threads of a block and blocks of a multiprocessor that the kernel is compiled for, if it has such wishes."""
    found = _factories[name].bounds
    return None if found is None else found(np.dtype(dtype), variant)


def signature(name: str, dtype: Any) -> Any:
    """Types of the kernel's arguments."""
    number = types.float32 if np.dtype(dtype) == np.float32 else types.float64
    kinds = {
        ARRAY: number[::1], DOUBLES: types.float64[::1], INTEGERS: types.int64[::1], HALVES: types.uint16[::1],
        NUMBER: number, INTEGER: types.int64,
    }  # fmt: skip
    return types.void(*(kinds[kind] for kind in _factories[name].kinds))


def everything(dtype: str = "float32") -> Iterator[tuple[str, Any]]:
    """Name and variant of every kernel that there is for a dtype."""
    load()
    for name, factory in _factories.items():
        for variant in factory.variants if dtype in factory.dtypes else ():
            yield name, variant
