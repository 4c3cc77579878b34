"""Both ends of the pipe to a process in which one library is timed.

The parent starts one process per library and number of threads, with the environment and the cores set
before the library is imported, keeps them waiting, and asks each in turn for one timed run: so repeats of
different libraries interleave and a slow minute of the machine falls on all of them. Requests and answers
are lines of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from profiling.cases import Case
from profiling.peers import PEERS

ROOT = Path(__file__).resolve().parents[2]


class PeerError(RuntimeError):
    """What went wrong in the other process, with its traceback."""


def environment(n_threads: int) -> dict[str, str]:
    """The variables that hold every library to `n_threads` threads; the rest is inherited."""
    values = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        values[name] = str(n_threads)
    if n_threads == 1:
        values["XLA_FLAGS"] = (values.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false").strip()
    values["JAX_PLATFORMS"] = "cpu"
    values["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), values.get("PYTHONPATH"))))
    return values


def keep_to_cores(n_threads: int) -> None:
    """Restrict this process to the last `n_threads` cores it may use, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-n_threads:])


class Worker:
    """A process in which `peer` runs with `n_threads` threads. Use as a context manager."""

    def __init__(self, peer: str, n_threads: int) -> None:
        self.peer, self.n_threads = peer, n_threads
        self.process = subprocess.Popen(
            [sys.executable, "-m", "profiling.peers.worker", peer, str(n_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(n_threads),
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Call `method` of the peer with `arguments` there and return its answer."""
        try:
            self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"{self.peer}: the process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.peer}: {answer['error']}")
        return answer["value"]

    def load(self, case: Case, file: Path) -> None:
        """Have the peer take `case` with the parameters and data in `file`, as `save_case` wrote it."""
        self("load", asdict(case), str(file))


def save_case(file: Path, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
    """Write what every peer gets: the same initial parameters and the same data."""
    np.savez(file, x=x, y=y, **{f"p{i}": p for i, p in enumerate(parameters)})


def _serve(peer: str, n_threads: int) -> None:
    keep_to_cores(n_threads)
    # Answers go out on a descriptor of their own, so that whatever a library prints cannot get in between.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    served: Any = None
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            if method == "start":
                module, name = PEERS[peer]
                served = getattr(importlib.import_module(module), name)(n_threads)
                value = served.version()
            elif method == "load":
                fields, file = arguments
                case = Case(**{**fields, "sizes": tuple(fields["sizes"])})
                with np.load(file) as arrays:
                    parameters = [arrays[f"p{i}"] for i in range(2 * len(case.sizes) - 2)]
                    value = served.load(case, parameters, arrays["x"], arrays["y"])
            else:
                value = getattr(served, method)(*arguments)
            answer = {"value": value}
        except ImportError as error:
            answer = {"value": None, "missing": str(error)} if method == "start" else {"error": str(error)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
