"""What a measurement was taken on: the processor, the versions, the git revision, and the rate of its sgemm.

``python -m profiling.machine`` prints it all.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nbbp.diagnostics import cpu_features, cpu_name
from profiling.peers.worker import environment, keep_to_cores

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = (
    "numba",
    "llvmlite",
    "numpy",
    "scipy",
    "torch",
    "jax",
    "jaxlib",
    "scikit-learn",
    "tensorflow",
    "tensorflow-cpu",
)
SGEMM_SIZE = 1024


def versions() -> dict[str, str]:
    """Version of Python and of each library that is installed."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str:
    """The revision of this checkout, with ``-dirty`` where files differ; ``unknown`` without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def describe() -> dict[str, object]:
    """Processor, cores this process may use, system, versions and git revision."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "git_revision": git_revision(),
        "versions": versions(),
    }


def caches() -> dict[str, int]:
    """Bytes of the caches that a core has for data: ``{"L1": 49152, …}``; empty where the system does not tell."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size.removesuffix("K")) << 10
    return found


def _openblas(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    from scipy.linalg.blas import sgemm

    a, b = np.asfortranarray(a), np.asfortranarray(b)
    out = np.zeros_like(a)
    return lambda: sgemm(1.0, a, b, 0.0, out, overwrite_c=True)


def _pytorch(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    import torch

    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    out = torch.empty_like(ta)
    return lambda: torch.mm(ta, tb, out=out)


def _jax(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    import jax

    product = jax.jit(lambda x, y: x @ y)
    ja, jb = jax.device_put(a), jax.device_put(b)
    return lambda: product(ja, jb).block_until_ready()


# Each runs in a process of its own, with the variables set there. OpenBLAS takes its AVX2 kernels on AMD
# processors that have AVX-512, and is nearly twice as fast with the others: what the machine can do is the
# best of them all.
SGEMMS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], Callable[[], object]], dict[str, str]]] = {
    "SciPy": (_openblas, {}),
    "SciPy, AVX-512 kernels": (_openblas, {"OPENBLAS_CORETYPE": "SkylakeX"}),
    "PyTorch": (_pytorch, {}),
    "JAX": (_jax, {}),
}


def sgemm_rates(n_threads: int) -> dict[str, float]:
    """Best rate, in GFLOP/s, of a 1024×1024×1024 float32 product in each library that is installed.

    Each runs with `n_threads` threads on as many cores in a process of its own, since a library settles its
    threads and its kernels when it is loaded. Keys: those of `SGEMMS`, without what is missing.
    """
    rates = {}
    for name, (_, variables) in SGEMMS.items():
        if "OPENBLAS_CORETYPE" in variables and "avx512f" not in cpu_features():
            continue
        done = subprocess.run(
            [sys.executable, "-m", "profiling.machine", name, str(n_threads)],
            env={**environment(n_threads), **variables},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        rate = json.loads(done.stdout)
        if rate is not None:
            rates[name] = rate
    return rates


def _measure_sgemm(name: str, n_threads: int, repeats: int = 25) -> float | None:
    """GFLOP/s of one entry of `SGEMMS` in this process; None where its library is missing."""
    keep_to_cores(n_threads)
    a, b = (np.random.default_rng(i).random((SGEMM_SIZE, SGEMM_SIZE), dtype=np.float32) for i in range(2))
    try:
        product = SGEMMS[name][0](a, b)
    except ImportError:
        return None
    product()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - begin)
    return 2.0 * SGEMM_SIZE**3 / best / 1e9


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(_measure_sgemm(sys.argv[1], int(sys.argv[2]))))
    else:
        rates = {n_threads: sgemm_rates(n_threads) for n_threads in sorted({1, os.cpu_count() or 1})}
        print(json.dumps({**describe(), "sgemm": rates}, indent=2))
