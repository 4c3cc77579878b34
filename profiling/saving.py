"""Saving a model against writing the same bytes: 10⁶ parameters with Adam, whose moments are as many again, twice.

    python profiling/saving.py [--quick] [--folder FOLDER] [--output profiling/results]

First a file is held against the model, bit by bit, and read by `safetensors` itself. Then saving, writing the file's
bytes, loading and reading the bytes are timed in turns, so that all see the same machine. Both ways of writing go to a
temporary file, which is flushed to the disk and renamed; `Model.save` flushes the folder too. Wanted is a save of at
most 3 times the writing.

Prints a table and saves it as ``saving.md`` and ``saving.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import nbbp
from profiling import machine
from profiling.question import output_folder

WANTED = 3.0
#: Width of the one layer, of which (width - 1) features come in; turns.
FULL = {"width": 1000, "turns": 200}
QUICK = {"width": 20, "turns": 3}


def trained(width: int) -> nbbp.Model:
    """A model of width² parameters after some updates, so that Adam's moments are numbers like any other."""
    model = nbbp.Model(nbbp.Sequential([nbbp.Dense(width)], n_in=width - 1), "mse", nbbp.Adam(), seed=1)
    random = np.random.default_rng(0)
    for _ in range(3):
        x, y = random.standard_normal((32, width - 1)), random.standard_normal((32, width))
        model.train_step(x.astype("float32"), y.astype("float32"))
    return model


def validate(model: nbbp.Model, path: Path) -> None:
    """Raise AssertionError unless the file holds the model: for `nbbp.load_model`, and for safetensors."""
    from safetensors.numpy import load_file

    model.save(path)
    loaded, arrays = nbbp.load_model(path), load_file(path)
    slots = model._session.slots
    assert loaded.parameter_vector.tobytes() == model.parameter_vector.tobytes()
    for name, values in model.parameters.items():
        assert arrays[name].tobytes() == values.tobytes()
    for number, slot in enumerate(slots):
        assert slot.any()
        assert arrays[f"optimizer.slot {number}"].tobytes() == slot.tobytes()
        assert loaded._session.slots[number].tobytes() == slot.tobytes()


def write(path: Path, content: bytes) -> None:
    """Replace a file by one with these bytes, on the disk."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def measure(width: int, turns: int, folder: Path) -> dict:
    """Every figure, by name."""
    model = trained(width)
    path, beside = folder / "model.safetensors", folder / "bytes"
    validate(model, path)
    content = path.read_bytes()
    runs: dict[str, Callable[[], object]] = {
        "save": lambda: model.save(path),
        "write": lambda: write(beside, content),
        "load": lambda: nbbp.load_model(path),
        "read": path.read_bytes,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {
        "machine": machine.describe(),
        "parameters": model.network.n_parameters,
        "bytes": len(content),
        "turns": turns,
        "minimum": {name: min(times) for name, times in seconds.items()},
        "median": {name: float(np.median(times)) for name, times in seconds.items()},
    }


def table(results: dict) -> str:
    """The figures as Markdown."""
    size = f"{results['parameters']:,} parameters with Adam, {results['bytes'] / 1e6:.1f} MB"
    lines = [f"| {size} | minimum, ms | median, ms |", "|---|---:|---:|"]
    named = {
        "save": "`Model.save`",
        "write": "the same bytes, flushed and renamed",
        "load": "`nbbp.load_model`",
        "read": "reading the same bytes",
    }
    for name, label in named.items():
        lines.append(f"| {label} | {results['minimum'][name] * 1e3:.2f} | {results['median'][name] * 1e3:.2f} |")
    ratios = [results[kind]["save"] / results[kind]["write"] for kind in ("minimum", "median")]
    lines.append(f"| saving over writing (wanted: ≤ {WANTED:.0f}) | {ratios[0]:.2f}× | {ratios[1]:.2f}× |")
    described = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    on = f"{described['cpu']}, {described['cores']} shared cores, {described['system']}"
    foot = f"{results['turns']} turns. {on}; {versions}; revision {described['git_revision']}."
    return "\n".join([*lines, "", foot, ""])


def main(arguments: list[str] | None = None) -> dict:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few turns")
    parser.add_argument("--folder", type=Path, help="where to write, on the disk to be measured; else a temporary one")
    parser.add_argument("--output", type=Path, help="default: profiling/results, or profiling/quick/results")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        results = measure(**(QUICK if given.quick else FULL), folder=Path(folder))
    text = table(results)
    print(text)
    output = given.output or output_folder(given.quick) / "results"
    output.mkdir(parents=True, exist_ok=True)
    (output / "saving.md").write_text(text, encoding="utf-8")
    (output / "saving.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
