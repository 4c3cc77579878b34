"""How much memory does training take: over steps, against theory, and with activations computed again?

    python profiling/memory.py [--quick] [--output FOLDER]

Every figure comes from a process of its own, which reports its resident memory (Linux: /proc/self/statm; elsewhere the
largest so far). Losses are held against a float64 reference first, and checkpointing must train to the bits of
training without.

- Over steps: resident memory while `fit` and `train_step` take turns. It must stay flat.
- The workspace of a step, by what lies in it, against the least that backpropagation as such must hold: what every
  layer gives, and the gradients on both sides of the layer that it is at.
- Checkpointing: what the first large step of a deep network adds to resident memory, for `checkpoint_every=k`; the
  least for n layers is n / k checkpoints and k activations.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import nbbp
from nbbp import plotting
from profiling import question
from profiling.cases import (
    BETA_1,
    BETA_2,
    EPSILON,
    LEARNING_RATE,
    LOSS_TOLERANCE,
    RELU_CASES,
    Case,
    initial_parameters,
    reference_losses,
    training_data,
)
from profiling.peers.worker import environment

PLAIN = RELU_CASES
#: Networks whose memory is watched over steps, with the steps between two looks.
WATCHED = ((PLAIN[0], 20_000), (PLAIN[2], 400), (PLAIN[4], 100))
N_LOOKS, QUICK_LOOKS = 30, 6
#: The deep network: layers, width, batch; and k.
DEEP, QUICK_DEEP = (64, 256, 512), (16, 64, 512)
EVERY, QUICK_EVERY = (None, 2, 4, 8, 16, 32), (None, 4)
N_COMPARED = 2
#: Seconds in which steps with all k take turns.
SECONDS = 5.0
MIB = 2**20
_PARTS = ("activations", "gradients on the way back", "gradient of the parameters", "padding")


def resident() -> int:
    """Bytes of this process that are in memory; elsewhere than on Linux the most there have been."""
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def model_of(case: Case, every: int | None = None) -> nbbp.Model:
    """The case's network with its initial parameters."""
    *hidden, n_out = case.sizes[1:]
    layers = [nbbp.Dense(n, activation="relu") for n in hidden] + [nbbp.Dense(n_out)]
    network = nbbp.Sequential(layers, n_in=case.sizes[0], checkpoint_every=every)
    optimizer = nbbp.Adam(LEARNING_RATE, betas=(BETA_1, BETA_2), eps=EPSILON)
    model = nbbp.Model(network, "crossentropy", optimizer)
    for values, initial in zip(model.parameters.values(), initial_parameters(case), strict=True):
        values[...] = initial
    return model


def validated(case: Case, every: int | None = None) -> nbbp.Model:
    """A model whose first losses are the reference's; AssertionError otherwise."""
    model, (x, y) = model_of(case, every), training_data(case, N_COMPARED)
    rows = [slice(i * case.batch, (i + 1) * case.batch) for i in range(N_COMPARED)]
    losses = [model.train_step(x[r], y[r]) for r in rows]
    expected = reference_losses(case, initial_parameters(case), x, y, N_COMPARED)
    np.testing.assert_allclose(losses, expected, rtol=LOSS_TOLERANCE)
    return model


def watch_steps(sizes: Sequence[int], batch: int, n_steps: int, n_looks: int) -> None:
    """In a process of its own: print resident bytes after every `n_steps` steps, as JSON."""
    case = Case(tuple(sizes), batch, 16, 1.0)
    model, (x, y) = validated(case), training_data(case)
    looks = []
    for _ in range(n_looks):
        model.fit(x, y, batch_size=batch, epochs=max(1, n_steps // 2 // case.n_steps), verbose=0)
        for _ in range(n_steps // 2):
            model.train_step(x[:batch], y[:batch])
        looks.append(resident())
    print(json.dumps(looks))


def deep_case(n_layers: int, width: int, batch: int) -> Case:
    """A network of so many layers of equal width."""
    return Case((width,) * (n_layers + 1), batch, N_COMPARED, 1.0)


def first_large_step(n_layers: int, width: int, batch: int, every: int | None) -> None:
    """In a process of its own: print what a step adds to resident memory and a digest of what it trained, as JSON."""
    case = deep_case(n_layers, width, batch)
    model, (x, y) = model_of(case, every), training_data(case)
    model.train_step(x[:1], y[:1])  # machine code, parameters and moments are in memory from here on
    before = resident()
    model.train_step(x[:batch], y[:batch])
    added = resident() - before
    digest = hashlib.sha256(validated(case, every).parameter_vector.tobytes()).hexdigest()
    print(json.dumps({"bytes": added, "digest": digest}))


def time_of_steps(n_layers: int, width: int, batch: int, every: Sequence[int | None], seconds: float) -> None:
    """In a process of its own: print seconds of a step for each k, taken in turn, as JSON."""
    case = deep_case(n_layers, width, batch)
    x, y = training_data(case, 1)
    models = [model_of(case, k) for k in every]
    runs = {place: functools.partial(model.train_step, x, y) for place, model in enumerate(models)}
    timed = question.time_in_turn(runs, seconds)
    print(json.dumps([timed[place]["minimum"] for place in runs]))


def in_a_process(call: str) -> object:
    """What a call of this module's prints in a process of its own."""
    code = f"from profiling import memory; memory.{call}"
    # glibc would give large arrays memory of earlier ones, which is resident already, once it has seen some go
    variables = {**environment(1), "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True, timeout=600, check=True
    )
    return json.loads(done.stdout)


def workspace(case: Case) -> dict[str, int]:
    """Bytes of a training step's workspace by what lies in it, all of it, and the least that there must be."""
    session = model_of(case)._session
    session.begin_fit()
    bound = session.training(case.batch, True, True)
    keeps_gradient = "gradient" in bound.program.buffers
    activations, gradients = case.batch * sum(case.sizes), case.batch * sum(case.sizes[1:])
    of_parameters = case.n_parameters if keeps_gradient else 0
    least = activations + case.batch * max(a + b for a, b in pairwise(case.sizes[1:]))
    sizes = [activations, gradients, of_parameters]
    sizes.append(bound.workspace.size - sum(sizes))
    return {
        **{part: 4 * n for part, n in zip(_PARTS, sizes, strict=True)},
        "all": bound.workspace.nbytes,
        "least": 4 * least,
    }


def measure(quick: bool) -> dict[str, object]:
    """All three, each process after the other."""
    looks, divisor = (QUICK_LOOKS, 20) if quick else (N_LOOKS, 1)
    watched = {
        case.name: {
            "steps": n_steps // divisor,
            "resident": in_a_process(f"watch_steps({case.sizes}, {case.batch}, {n_steps // divisor}, {looks})"),
        }
        for case, n_steps in WATCHED
    }
    deep, every = (QUICK_DEEP, QUICK_EVERY) if quick else (DEEP, EVERY)
    checkpointed = [{"every": k, **in_a_process(f"first_large_step(*{deep}, {k})")} for k in every]
    assert len({row["digest"] for row in checkpointed}) == 1, "checkpointing changed what was trained"
    times = in_a_process(f"time_of_steps(*{deep}, {every}, {SECONDS / divisor})")
    for row, row["seconds"] in zip(checkpointed, times, strict=True):
        row["least"] = least_of(deep, row["every"])
    return {
        "over_steps": watched,
        "workspace": {case.name: workspace(case) for case in PLAIN},
        "deep": dict(zip(("layers", "width", "batch"), deep, strict=True)),
        "checkpointing": checkpointed,
        **question.conditions(),
    }


def least_of(deep: tuple[int, int, int], every: int | None) -> int:
    """Bytes of the activations that must be held at once: n / k checkpoints, those of k layers, two gradients."""
    n_layers, width, batch = deep
    n_matrices = n_layers + 1 if every is None else -(-n_layers // every) + every
    return 4 * batch * width * (n_matrices + 2)


def growth(row: dict) -> float:
    """KiB by which resident memory grew from the second third of the looks on."""
    looks = row["resident"]
    return (looks[-1] - looks[len(looks) // 3]) / 1024


def table(results: dict) -> str:
    """The three tables."""
    rows = []
    for name, row in results["over_steps"].items():
        n = row["steps"] * len(row["resident"])
        rows.append([name, f"{n:,}", f"{row['resident'][-1] / MIB:.1f}", f"{growth(row):+.0f}"])
    over_steps = question.markdown_table(
        ["network, batch", "steps", "MiB resident", "KiB grown in the last two thirds"], rows
    )
    rows = []
    for name, row in results["workspace"].items():
        cells = [question.digits(row[part] / 1024) for part in (*_PARTS, "all", "least")]
        rows.append([name, *cells, f"{row['all'] / row['least']:.2f}×"])
    of_step = question.markdown_table(["KiB of workspace", *_PARTS, "all", "least", "times the least"], rows)
    without = results["checkpointing"][0]
    rows = [
        [
            "without" if row["every"] is None else f"every {row['every']}",
            f"{row['bytes'] / MIB:.1f}",
            f"{row['bytes'] / without['bytes']:.2f}×",
            f"{row['least'] / MIB:.1f}",
            question.digits(1e3 * row["seconds"]),
            f"{100 * (row['seconds'] / without['seconds'] - 1):+.0f} %",
        ]
        for row in results["checkpointing"]
    ]
    deep = results["deep"]
    headings = ["checkpoints", "MiB added", "of that without", "least", "ms per step", "time"]
    return (
        f"{over_steps}\n{of_step}\n{deep['layers']} layers of {deep['width']} at batch {deep['batch']}, "
        f"the same bits in every row:\n\n{question.markdown_table(headings, rows)}"
    )


def draw(results: dict, path: Path) -> None:
    """Resident memory over steps, the workspace's parts, and memory by checkpoints."""
    with question.picture(path, 13.0, 4.9, "What memory training takes") as figure:
        left, middle, right = figure.subplots(1, 3)
        _draw_steps(left, results["over_steps"])
        _draw_workspace(middle, results["workspace"])
        _draw_checkpoints(right, results)


def _draw_steps(axes, watched: dict) -> None:
    for (name, row), colour in zip(watched.items(), plotting.PALETTE, strict=False):
        looks = np.array(row["resident"]) / MIB
        share = np.arange(1, len(looks) + 1) / len(looks)
        label = f"{name}: {row['steps'] * len(looks):,} steps"
        axes.plot(share, looks, color=colour, marker="o", markersize=3, label=label)
    highest = max(max(row["resident"]) for row in watched.values()) / MIB
    axes.set_ylim(0, 1.45 * highest)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set(xlabel="of the steps", ylabel="MiB resident", title="Over steps")
    axes.legend(loc="upper left", fontsize=8)


def _draw_workspace(axes, rows: dict) -> None:
    from matplotlib.lines import Line2D

    names = [name.replace(" b", "\nbatch ") for name in rows]
    starts = np.zeros(len(rows))
    whole = np.array([row["all"] for row in rows.values()])
    for part, colour in zip(_PARTS, (*plotting.PALETTE[:3], "#c9ced6"), strict=True):
        shares = np.array([row[part] for row in rows.values()]) / whole
        axes.barh(names, shares, left=starts, color=colour, height=0.62, label=part)
        starts += shares
    least = np.array([row["least"] for row in rows.values()]) / whole
    axes.plot(least, names, "|", color=plotting.INK, markersize=22, markeredgewidth=2, label="least there must be")
    for row, total in enumerate(whole):
        axes.text(1.02, row, f"{question.digits(total / 1024)} KiB", va="center", fontsize=8)
    axes.set_xlim(0, 1.3)
    axes.set_xticks(np.linspace(0, 1, 5), [f"{25 * k} %" for k in range(5)])
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_title("A step's workspace")
    handles, labels = axes.get_legend_handles_labels()
    handles[0] = Line2D([], [], color=plotting.INK, linewidth=2)
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=2, fontsize=8, handlelength=1.2)


def _draw_checkpoints(axes, results: dict) -> None:
    rows, deep = results["checkpointing"], results["deep"]
    names = ["none" if row["every"] is None else str(row["every"]) for row in rows]
    axes.bar(
        names, [row["bytes"] / MIB for row in rows], color=plotting.PALETTE[0], width=0.65, label="added to resident"
    )
    least = [row["least"] / MIB for row in rows]
    axes.plot(names, least, "_", color=plotting.INK, markersize=26, markeredgewidth=2, label="least there must be")
    for place, row in enumerate(rows[1:], start=1):
        slower = row["seconds"] / rows[0]["seconds"] - 1
        top = max(row["bytes"], row["least"]) / MIB
        axes.text(place, top + 1, f"{100 * slower:+.0f} %\ntime", ha="center", va="bottom", fontsize=8)
    title = f"{deep['layers']} layers of {deep['width']}, batch {deep['batch']}"
    axes.set(xlabel="checkpoint every … layers", ylabel="MiB", title=title)
    axes.grid(False, axis="x")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, loc="upper right", fontsize=8, markerscale=0.6)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
