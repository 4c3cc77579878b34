"""What NVIDIA's compilers make of every CUDA kernel: registers, shared memory, local memory and spills. Needs no GPU.

    python -m profiling.cuda_registers [--cc 80 90] [--kernel product]

needs numba-cuda with NVVM (``pip install numba-cuda "nvidia-nvvm==13.0.*" "nvidia-cuda-nvrtc==13.0.*"``), and for the
figures ptxas (``nvidia-cuda-nvcc==13.0.*``, or a CUDA toolkit on the path).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nbbp.cuda import kernels


@dataclass(frozen=True)
class Figures:
    """What ptxas says of a kernel: registers of a thread; bytes of shared and local memory, and of spills."""

    registers: int
    shared: int
    stack: int
    spills: int


def ptxas() -> str | None:
    """NVIDIA's assembler: on the path, or from a package of NVIDIA's."""
    found = shutil.which("ptxas")
    if found is None:
        places = sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/bin/ptxas"))
        found = str(places[-1]) if places else None
    return found


def ptx_of(name: str, dtype: str, variant: Any, cc: tuple[int, int]) -> str:
    """A kernel of the registry as PTX, for a compute capability."""
    from numba import cuda
    from numba.cuda import dispatcher

    present = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)  # there may be none
    try:
        function = kernels.function(name, dtype, variant)
        bounds = kernels.bounds(name, dtype, variant)
        return cuda.compile_ptx(function, kernels.signature(name, dtype).args, cc=cc, launch_bounds=bounds)[0]
    finally:
        dispatcher.get_current_device = present


def figures(ptx: str, cc: tuple[int, int], assembler: str) -> Figures:
    """What ptxas makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx, encoding="utf-8")
        command = [assembler, f"-arch=sm_{cc[0]}{cc[1]}", "-v", str(file), "-o", str(Path(folder) / "kernel.cubin")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, said)))

    return Figures(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes smem"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill"),
    )


def everything(only: str = "", dtype: str = "float32") -> Iterator[tuple[str, Any]]:
    """Name and variant of every kernel for a dtype whose name holds `only`."""
    return ((name, variant) for name, variant in kernels.everything(dtype) if only in name)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cc", type=int, nargs="+", default=[80, 90], help="compute capabilities, such as 80 90")
    parser.add_argument("--kernel", default="", help="only kernels whose name holds this")
    options = parser.parse_args()
    assembler = ptxas()
    if assembler is None:
        raise SystemExit("ptxas was not found: pip install 'nvidia-cuda-nvcc==13.0.*'")
    print(f"{'kernel':32}{'variant':64}{'dtype':9}{'sm':>4}{'registers':>10}{'shared':>8}{'stack':>7}{'spills':>8}")
    for dtype in kernels.DTYPES:
        for name, variant in everything(options.kernel, dtype):
            for cc in (divmod(number, 10) for number in options.cc):
                found = figures(ptx_of(name, dtype, variant, cc), cc, assembler)
                print(
                    f"{name:32}{variant!s:64.63}{dtype:9}{cc[0] * 10 + cc[1]:>4}{found.registers:>10}"
                    f"{found.shared:>8}{found.stack:>7}{found.spills:>8}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
