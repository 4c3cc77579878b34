"""How long does it take to import and to compile, cold and from the cache, and how large is the cache?

    python profiling/compile_time.py [--quick] [--output FOLDER]

Everything runs in processes of its own with an empty folder for machine code, and once more with what the first left
there. A first fit (64-64-10, crossentropy, Adam, float32) is timed from the start of the process to trained parameters;
its loss is held against a float64 reference, and machine code from the cache must train to the same bits. Then every
kernel in all its variants is compiled one by one, behind an empty function that starts the compiler. Times are seconds
of the processor, which on an idle machine are those of the clock: compiling and importing are done by one thread.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from nbbp import plotting
from profiling import question
from profiling.cases import LOSS_TOLERANCE, Case, initial_parameters, reference_losses, training_data

CASE = Case((64, 64, 10), 32, 20, 1.0)
#: Packages whose share of the import is named; the others are Python's own.
PACKAGES = ("nbbp", "numba", "llvmlite", "numpy", "scipy")
#: How often what is cached is repeated, for the least.
REPEATS = 5
#: Kernels that the picture shows.
_SHOWN = 16

#: Prints JSON: seconds at the end of each part, then the loss and a digest of the parameters.
FIRST_FIT = """
import time
begin = time.process_time()
import nbbp
times = {"import": time.process_time() - begin}
import hashlib, json
from profiling.compile_time import CASE, initial_parameters, training_data
x, y = training_data(CASE)
for name in ("first fit", "second fit"):
    begin = time.process_time()
    *hidden, n_out = CASE.sizes[1:]
    layers = [nbbp.Dense(n, activation="relu") for n in hidden] + [nbbp.Dense(n_out)]
    model = nbbp.Model(nbbp.Sequential(layers, n_in=CASE.sizes[0]), loss="crossentropy", seed=0)
    for values, initial in zip(model.parameters.values(), initial_parameters(CASE)):
        values[...] = initial
    history = model.fit(x, y, batch_size=CASE.batch, shuffle=False, verbose=0)
    times[name] = time.process_time() - begin
digest = hashlib.sha256(model.parameter_vector.tobytes()).hexdigest()
print(json.dumps({"times": times, "loss": history["loss"][0], "digest": digest}))
"""

#: Prints JSON: [kernel, variant, seconds] of all kernels, or of those named in the arguments.
KERNELS = """
import json, sys, time
import numba
from nbbp.cpu import kernels
numba.cfunc("void()")(lambda: None)
rows = []
for name, dtype, variant in kernels.everything("float32"):
    if len(sys.argv) == 1 or name in sys.argv[1:]:
        begin = time.process_time()
        kernels.compiled(name, dtype, variant)
        rows.append([name, str(variant), time.process_time() - begin])
print(json.dumps(rows))
"""
#: Kernels that `--quick` compiles.
QUICK_KERNELS = ("gather", "product", "crossentropy", "snapshot")


def run(code: str, folder: Path, *arguments: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """Run Python code in a process whose machine code and bytecode lie under `folder`."""
    variables = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(folder / "machine code"),
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(question.FOLDER.parent), os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, *options, "-c", code, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=True)


def measure_first_fit(folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each part of a process that trains, cold and with the cache that this left; at best for the latter."""
    expected = np.mean(reference_losses(CASE, initial_parameters(CASE), *training_data(CASE), CASE.n_steps))
    run("import nbbp", folder)  # bytecode, which `pip` makes when it installs
    processes = [json.loads(run(FIRST_FIT, folder).stdout) for _ in range(1 + repeats)]
    for process in processes:
        np.testing.assert_allclose(process["loss"], expected, rtol=LOSS_TOLERANCE)
    assert len({process["digest"] for process in processes}) == 1, "cached machine code gave other bits"
    cold, *cached = (process["times"] for process in processes)
    return {"cold": cold, "cached": {part: min(times[part] for times in cached) for part in cold}}


def measure_import(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds that importing takes in the modules of each package, from the quickest of some processes."""
    found = []
    for _ in range(repeats):
        written = run("import nbbp", folder, options=("-X", "importtime")).stderr
        shares = dict.fromkeys((*PACKAGES, "Python"), 0.0)
        for microseconds, module in re.findall(r"import time:\s+(\d+) \|\s+\d+ \| +(\S+)", written):
            root = module.partition(".")[0]
            shares[root if root in PACKAGES else "Python"] += 1e-6 * int(microseconds)
        found.append(shares)
    return min(found, key=lambda shares: sum(shares.values()))


def measure(quick: bool) -> dict[str, object]:
    """Everything, in one folder for each kind of process."""
    repeats = 1 if quick else REPEATS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit = measure_first_fit(folder / "fit", repeats)
        imported = measure_import(folder / "fit", repeats)
        arguments = QUICK_KERNELS if quick else ()
        cold, cached = (json.loads(run(KERNELS, folder / "kernels", *arguments).stdout) for _ in range(2))
        files = [file for file in (folder / "kernels" / "machine code").rglob("*.nb[ic]") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        of_fit = sum(file.stat().st_size for file in (folder / "fit" / "machine code").rglob("*.nb[ic]"))
    return {
        "first_fit": fit,
        "import": imported,
        "kernels": {"cold": cold, "cached": cached},
        "cache": {"files": len(files), "bytes": size, "bytes_of_first_fit": of_fit},
        **question.conditions(),
    }


def by_kernel(results: dict) -> dict[str, tuple[int, float, float]]:
    """Variants, seconds cold and from the cache of each kernel, the longest first."""
    sums: dict[str, list[float]] = {}
    for column, state in enumerate(("cold", "cached")):
        for name, _, seconds in results["kernels"][state]:
            row = sums.setdefault(name, [0, 0.0, 0.0])
            row[0] += column == 0
            row[1 + column] += seconds
    return {name: tuple(row) for name, row in sorted(sums.items(), key=lambda item: -item[1][1])}


def table(results: dict) -> str:
    """The first fit, the import, and every kernel."""
    parts = list(results["first_fit"]["cold"])
    rows = [[state, *(question.digits(times[part]) for part in parts)] for state, times in results["first_fit"].items()]
    first = question.markdown_table(["seconds", *parts], rows)
    imported = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in results["import"].items())
    kernels = by_kernel(results)
    lines = [
        [name, str(n), question.digits(1e3 * cold), question.digits(1e3 * cached)]
        for name, (n, cold, cached) in kernels.items()
    ]
    n, cold, cached = (sum(column) for column in zip(*kernels.values(), strict=True))
    lines.append(["all", str(n), question.digits(1e3 * cold), question.digits(1e3 * cached)])
    cache = results["cache"]
    return (
        f"{first}\nImporting by the clock, by the package whose modules take it: {imported}.\n\n"
        f"The cache of a first fit is {cache['bytes_of_first_fit'] / 2**20:.1f} MiB, that of these kernels "
        f"{cache['bytes'] / 2**20:.1f} MiB in {cache['files']} files.\n\n"
        + question.markdown_table(["kernel", "variants", "ms, cold", "ms, cached"], lines)
    )


def draw(results: dict, path: Path) -> None:
    """A process that trains, cold and cached; the import by package; the kernels that take longest to compile."""
    with question.picture(path, 12.0, 5.4, "Importing and compiling") as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1.0))
        _draw_parts(figure.add_subplot(grid[0, 0]), results["first_fit"], "A process that trains for the first time")
        of_packages = {"import nbbp": results["import"]}
        _draw_parts(figure.add_subplot(grid[1, 0]), of_packages, "The import, by package")
        _draw_kernels(figure.add_subplot(grid[:, 1]), results)


def _draw_parts(axes, rows: dict[str, dict[str, float]], title: str) -> None:
    starts = np.zeros(len(rows))
    for part, colour in zip(next(iter(rows.values())), plotting.PALETTE, strict=False):
        seconds = np.array([times[part] for times in rows.values()])
        axes.barh(list(rows), seconds, left=starts, height=0.55, color=colour, label=part)
        starts += seconds
    for row, total in enumerate(starts):
        axes.text(total, row, f" {total:.2f} s", va="center")
    axes.set_xlim(0, 1.15 * starts.max())
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(xlabel="seconds", title=title)
    axes.set_ylim(len(rows) - 0.5, -1.0)  # room for the legend above the bars
    axes.legend(loc="upper right", ncols=6, fontsize=8, columnspacing=1.0, handlelength=1.0)


def _draw_kernels(axes, results: dict) -> None:
    shown = list(by_kernel(results).items())[:_SHOWN]
    labels = [f"{name} ×{n}" if n > 1 else name for name, (n, _, _) in shown]
    axes.barh(labels, [cold for _, (_, cold, _) in shown], color=plotting.PALETTE[0], height=0.7, label="compiled")
    cached = [cached for _, (_, _, cached) in shown]
    axes.plot(cached, labels, "D", color=plotting.PALETTE[2], markersize=5, label="from the cache")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(xlabel="seconds, all variants (×)", title="The kernels that take longest")
    axes.legend(loc="lower right", fontsize=8, frameon=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
