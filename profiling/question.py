"""What the questions of the suite share: their command line, how they time, and the files that they write.

A question is a module of this folder with

``__doc__``
    Its first line is the question.
``measure(quick) -> dict``
    Validates every variant against the reference, then times it. What JSON can hold, with `conditions()` in it.
``table(results) -> str``
    The figures as Markdown.
``draw(results, path) -> None``
    The figures as a picture, inside `picture`. (Scripts beside the suite may do without.)
``main(argv) -> int``
    `run` of the module.

and its name and threads in `profiling.QUESTIONS`. Files are ``<name>.json``, ``<name>.md`` and, with Matplotlib,
``<name>.png``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import nbbp
from nbbp import plotting
from profiling import QUESTIONS, machine
from profiling.peers.worker import environment, keep_to_cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent
#: Variables that libraries read their number of threads from when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
#: Seconds of calls in a row that are timed together, so that reading the clock (50 ns) is less than 0.1 % of them.
STRETCH = 1e-4

_Name = TypeVar("_Name")


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def conditions() -> dict[str, object]:
    """What results must say beside their figures: the machine, and every setting of threads."""
    threads = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    return {"machine": machine.describe(), "threads": {**threads, "nbbp": nbbp.get_num_threads()}}


def conditions_text(results: Mapping) -> str:
    """The same as a paragraph."""
    described, threads = results["machine"], results["threads"]
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    held = ", ".join(f"{name}={value}" for name, value in threads.items() if name != "nbbp" and value is not None)
    n, cores = threads["nbbp"], described["cores"]
    return (
        f"{described['cpu']}, {cores} core{'s' * (cores != 1)} for this process, {described['system']}; {versions}; "
        f"nbbp at {described['git_revision']}, {n} thread{'s' * (n != 1)} ({held or 'no thread variable set'})."
    )


def time_in_turn(
    runs: Mapping[_Name, Callable[[], object]],
    seconds: float,
    least_turns: int = 3,
    stretch: float = STRETCH,
    settling: float = 0.0,
) -> dict[_Name, dict[str, float]]:
    """Time calls that take turns, so that a slow moment of the machine falls on all of them.

    Parameters
    ----------
    runs : mapping of name to callable
        Each is called once beforehand, which may compile.
    seconds : float
        Of all turns together.
    least_turns : int
        How many there are in any case.
    stretch : float
        Seconds of calls in a row that make one measurement.
    settling : float
        Seconds to sleep before each: threads of the run before may wait in a loop for that long before they sleep.

    Returns
    -------
    dict
        By name: ``minimum`` and ``median`` in seconds per call, and how many measurements there were (``repeats``).
    """
    n_calls = {name: _calls_within(run, stretch) for name, run in runs.items()}
    taken: dict[_Name, list[float]] = {name: [] for name in runs}
    stop, turns = time.perf_counter() + seconds, 0
    while turns < least_turns or time.perf_counter() < stop:
        for name, run in runs.items():
            time.sleep(settling)
            taken[name].append(_seconds_of(run, n_calls[name]) / n_calls[name])
        turns += 1
    return {
        name: {"minimum": min(times), "median": median(times), "repeats": len(times)} for name, times in taken.items()
    }


def _seconds_of(run: Callable[[], object], n_calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(n_calls):
        run()
    return time.perf_counter() - begin


def _calls_within(run: Callable[[], object], seconds: float) -> int:
    """Calls that take about so long, at least one."""
    run()
    n = 1
    while (elapsed := _seconds_of(run, n)) < 0.5 * seconds:
        n = max(2 * n, min(100 * n, int(0.8 * n * seconds / max(elapsed, 1e-9))))
    return n


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are figures."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def digits(value: float) -> str:
    """Three significant digits, with thousands separated: ``0.412``, ``65.3``, ``28,500``; 0 is ``0``."""
    if value == 0:
        return "0"
    if abs(value) >= 999.5:
        return f"{round(value, 3 - len(str(int(abs(value))))):,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-3 else f"{value:.1e}"


@contextmanager
def picture(path: Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """An empty figure (inches), in the package's style, that is saved at the end; nothing of pyplot is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with plotting.style():
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=14, fontweight="bold", x=0.012, ha="left")
        yield figure
        figure.savefig(path, dpi=110)


def name_of(file: str) -> str:
    """The question that a script asks: the script's name, or that of the folder that it is the ``__main__.py`` of."""
    path = Path(file).resolve()
    return path.parent.name if path.stem == "__main__" else path.stem


def output_folder(quick: bool) -> Path:
    """Where ``results/`` is, unless told otherwise: a rough look does not write over what was measured."""
    return FOLDER / "quick" if quick else FOLDER


def run(module: ModuleType, argv: Sequence[str] | None) -> int:
    """Ask the question of `module`: measure, print the table, write the files. Returns 0."""
    name, wanted = name_of(module.__file__), module.__doc__.split("\n")[0]
    parser = argparse.ArgumentParser(description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases, shorter repeats")
    parser.add_argument("--output", type=Path, help="default: profiling/results, or profiling/quick/results")
    arguments = parser.parse_args(argv)
    folder = arguments.output or output_folder(arguments.quick) / "results"
    results = {"question": wanted, "quick": arguments.quick, **module.measure(arguments.quick)}
    text = f"{module.table(results).strip()}\n\n{conditions_text(results)}\n"
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    if hasattr(module, "draw") and importlib.util.find_spec("matplotlib"):
        module.draw(results, file.with_suffix(".png"))
    return 0


def hold_threads(file: str) -> None:
    """Hold the libraries of this script, and its cores, to the threads of its question.

    They settle their threads when they are loaded, which is past; so unless the variables say so already, the script
    runs again in a process of its own, and this one ends with its status.
    """
    n_threads = next(wanted.n_threads for wanted in QUESTIONS if wanted.name == name_of(file)) or n_cores()
    if any(os.environ.get(name) != str(n_threads) for name in THREAD_VARIABLES):
        command = [sys.executable, file, *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, env=environment(n_threads), check=False).returncode)
    keep_to_cores(n_threads)
