"""What this installation runs on: versions, processor, threads, BLAS, CUDA devices and the cache of machine
code.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import platform
import subprocess
import sys
from pathlib import Path

from llvmlite import binding

PACKAGE = Path(__file__).resolve().parent
DEPENDENCIES = ("numpy", "scipy", "numba", "llvmlite")

# The features that say how wide this processor computes; LLVM lists some hundred others.
_VECTOR_FEATURES = (
    "sse4.2",
    "avx",
    "fma",
    "f16c",
    "amx",
    "neon",
    "asimd",
    "sve",
    "fullfp16",
    "bf16",
    "dotprod",
)


def cpu_name() -> str:
    """The processor's name as its maker writes it, with LLVM's name for it: ``AMD EPYC 9965 (znver5)``."""
    name = ""
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            name = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        elif sys.platform.startswith("linux"):
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            name = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "")
    except (OSError, subprocess.SubprocessError):
        pass  # the names below serve
    name = name.strip() or platform.processor() or platform.machine()
    return f"{name} ({binding.get_host_cpu_name()})"


def cpu_features() -> list[str]:
    """The processor's vector features, as LLVM names them, sorted; empty where LLVM cannot tell."""
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:
        return []
    return sorted(name for name, has in features.items() if has and name.startswith(_VECTOR_FEATURES))


def blas_library() -> str:
    """Name and version of the BLAS that SciPy was built with, and the kernels it chose on this processor."""
    import scipy

    built_with = scipy.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    name = f"{built_with.get('name', 'unknown')} {built_with.get('version', '')}".strip()
    kernels = _openblas_kernels(Path(scipy.__file__).parent)
    return f"{name}, kernels for {kernels}" if kernels else name


def _openblas_kernels(scipy_folder: Path) -> str | None:
    """The processor whose kernels SciPy's own OpenBLAS runs; None where SciPy came without one."""
    for folder in (scipy_folder.parent / "scipy.libs", scipy_folder / ".dylibs"):
        for file in sorted(folder.glob("libscipy_openblas*")):
            try:
                corename = ctypes.CDLL(str(file)).scipy_openblas_get_corename
            except (OSError, AttributeError):
                continue
            corename.restype = ctypes.c_char_p
            corename.argtypes = []
            return corename().decode("ascii", errors="replace")
    return None


def cuda_devices() -> str:
    """The CUDA devices in words; never raises, whatever is wrong with the driver."""
    if importlib.util.find_spec("numba_cuda") is None:
        return "not looked for: numba-cuda is not installed (extras cu12 and cu13 bring it)"
    try:
        from numba import cuda

        if not cuda.is_available():
            return "none available"
        names = []
        for device in cuda.list_devices():
            name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
            names.append(f"{name} (compute capability {'.'.join(map(str, device.compute_capability))})")
        return ", ".join(names) or "none"
    except Exception as error:  # drivers fail in ways of their own; this must print the rest
        return f"none usable: {type(error).__name__}: {error}"


def cache_folders() -> list[Path]:
    """The folders in which Numba keeps this package's machine code, whether or not they exist yet."""
    from numba.core.dispatcher import Dispatcher

    for module in pkgutil.iter_modules([str(PACKAGE / "cpu")], prefix="nbbp.cpu."):
        importlib.import_module(module.name)
    loaded = [module for name, module in sys.modules.items() if name.startswith("nbbp.")]
    functions = [value for module in loaded for value in vars(module).values() if isinstance(value, Dispatcher)]
    return sorted({Path(path) for function in functions if (path := function.stats.cache_path)})


def cache_size(folders: list[Path]) -> tuple[int, int]:
    """Number of cache files in `folders` (indices and machine code) and their bytes."""
    sizes = [file.stat().st_size for folder in folders for file in folder.glob("*.nb[ic]")]
    return len(sizes), sum(sizes)


def information() -> list[tuple[str, str]]:
    """Everything ``python -m nbbp`` prints, as (label, text)."""
    import nbbp
    from nbbp.cpu.simd import VECTOR_BYTES

    folders = cache_folders()
    n_files, n_bytes = cache_size(folders)
    lines = [
        ("nbbp", f"{nbbp.__version__} in {PACKAGE}"),
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        *((name, importlib.metadata.version(name)) for name in DEPENDENCIES),
        ("system", platform.platform()),
        ("processor", cpu_name()),
        ("features", " ".join(cpu_features()) or "unknown"),
        ("vectors", f"{8 * VECTOR_BYTES} bits: {VECTOR_BYTES // 4} float32, {VECTOR_BYTES // 8} float64"),
        (
            "threads",
            f"{nbbp.get_num_threads()}, a team of its own (no OpenMP or TBB; numba's layer is not used)",
        ),
        ("BLAS", blas_library()),
        ("CUDA devices", cuda_devices()),
        ("cache", f"{n_files} files, {n_bytes / 2**20:.1f} MiB"),
    ]
    return lines + [("", str(folder)) for folder in folders]
