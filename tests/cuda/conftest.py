"""Where the tests of the CUDA engine can run: on a GPU, or on Numba's simulator (NUMBA_ENABLE_CUDASIM=1, in a process
of their own); without either of them only kernels are compiled, to PTX, where numba-cuda and NVIDIA's compiler are.
"""

import importlib.util
from pathlib import Path

import numba
import pytest

from nbbp.placement import why_no_cuda

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
RUNS = why_no_cuda() is None
COMPILES = not SIMULATED and importlib.util.find_spec("numba_cuda") is not None

TO_PTX = "test_cuda_ptx.py"
collect_ignore = [] if RUNS else [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != TO_PTX]
if not COMPILES:
    collect_ignore.append(TO_PTX)

if SIMULATED:
    import simulated_blocks

    simulated_blocks.install()


@pytest.fixture
def op_by_op(monkeypatch):
    """Small chains do not have the paths of their own that nbbp/cuda/paths.py lists."""
    from nbbp.cuda import chain, fused_programs

    monkeypatch.setattr(chain, "MOST_WORK", 0)
    monkeypatch.setattr(fused_programs, "WIDEST", 0)


def pytest_report_header():
    """What runs, and how the rest would."""
    if SIMULATED:
        return "CUDA: on Numba's simulator; kernels are compiled to PTX in a process without it"
    if RUNS:
        return "CUDA: on the GPU"
    if COMPILES:
        return "CUDA: compiled to PTX only; NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda runs it on the simulator"
    return "CUDA: skipped; NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda runs it on the simulator, numba-cuda compiles it"
