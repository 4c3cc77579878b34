"""Where does the time of a training step go, op by op?

    python profiling/where_time_goes.py [--quick] [--output FOLDER]

Five shapes are trained by `Model.fit` within `nbbp.profile`, whose counters inside the engine time every op; on one
thread, crossentropy and Adam in float32, every batch fresh data. Before that, the losses of the first steps are held
against a float64 reference, and profiled training must give the bits of training without. Of many short profiles the
quickest is kept, since whatever else the machine does only adds. Beside it stands the step without counters, by the
clock around the engine's plain loop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import nbbp
from nbbp import profile_drawing
from nbbp.cpu.run import run_alone
from nbbp.profiler import OpTime, grouped
from nbbp.program import Program
from profiling import question
from profiling.cases import (
    LOSS_TOLERANCE,
    RELU_CASES,
    VALIDATION_STEPS,
    Case,
    initial_parameters,
    reference_losses,
    training_data,
)
from profiling.peers.nbbp_peer import Nbbp

#: Of the shapes that the peers are timed on, those without a layer of another kind; one of two that look alike.
SHAPES = tuple(case for case in RELU_CASES if case.sizes != (784, 256, 10))
#: Seconds of one profile, shorter than the turns that a busy machine gives; and of all of a shape, as long without.
PROFILE, SECONDS = 0.004, 3.0
#: Ops that the table names for each shape.
_DEAREST = 3


def model_of(case: Case) -> tuple[nbbp.Model, np.ndarray, np.ndarray]:
    """The model of a case with its initial parameters, and its data."""
    peer, (x, y) = Nbbp(1), training_data(case)
    peer.load(case, initial_parameters(case), x, y)
    return peer.model, x, y


def validate(case: Case) -> None:
    """Raise AssertionError unless profiled steps have the reference's losses, and the bits of steps without."""
    trained = []
    for profiles in (True, False):
        model, x, y = model_of(case)
        losses = []
        for i in range(VALIDATION_STEPS):
            rows = slice(i * case.batch, (i + 1) * case.batch)
            if profiles:
                with nbbp.profile(model):
                    losses.append(model.train_step(x[rows], y[rows]))
            else:
                losses.append(model.train_step(x[rows], y[rows]))
        expected = reference_losses(case, initial_parameters(case), x, y, VALIDATION_STEPS)
        np.testing.assert_allclose(losses, expected, rtol=LOSS_TOLERANCE)
        trained.append(model.parameter_vector.tobytes())
    assert trained[0] == trained[1], "profiling changed what was trained"


class Clock:
    """The least seconds of the engine's plain loop."""

    def __init__(self) -> None:
        self.least = np.inf

    @contextmanager
    def around(self, model: nbbp.Model) -> Iterator[None]:
        """Time the runs of a model in the place of `Profile`."""
        model._session.watchers.append(self)
        try:
            yield
        finally:
            model._session.watchers.remove(self)

    def run(self, program: Program, plans: tuple, n_samples: int, scratch: int) -> None:
        """As the engine would, on one thread."""
        begin = time.perf_counter()
        run_alone(*plans[:3], n_samples, program.batch, scratch)
        self.least = min(self.least, time.perf_counter() - begin)


def measure_case(case: Case, seconds: float) -> dict[str, object]:
    """The quickest profile of some steps, and the least µs of a step without."""
    validate(case)
    model, x, y = model_of(case)
    settings = {"batch_size": case.batch, "verbose": 0}
    model.fit(x, y, **settings)  # which compiles
    begin = time.perf_counter()
    model.fit(x, y, **settings)
    n_steps = max(4, min(case.n_steps, int(case.n_steps * PROFILE / (time.perf_counter() - begin))))
    x, y = x[: n_steps * case.batch], y[: n_steps * case.batch]
    best, clock, stop = None, Clock(), time.perf_counter() + seconds
    while best is None or time.perf_counter() < stop:
        with clock.around(model):
            model.fit(x, y, **settings)
        with nbbp.profile(model) as report:
            model.fit(x, y, **settings)
        if best is None or report.seconds < best.seconds:
            best = report
    return {
        "steps": n_steps,
        "microseconds": 1e6 * best.seconds / n_steps,
        "without": 1e6 * clock.least / n_steps,
        "overhead_nanoseconds": best.overhead,
        "ops": [asdict(op) for op in best.ops],
    }


def measure(quick: bool) -> dict[str, object]:
    """Every shape's quickest profile."""
    nbbp.set_num_threads(1)
    shapes = {case.name: measure_case(case, SECONDS / 10 if quick else SECONDS) for case in SHAPES}
    return {"shapes": shapes, **question.conditions()}


def table(results: dict) -> str:
    """A row per shape: µs of a step, the share of every phase, and the ops that take longest."""
    shapes = {name: (row, [OpTime(**op) for op in row["ops"]]) for name, row in results["shapes"].items()}
    phases = list(dict.fromkeys(op.phase for _, ops in shapes.values() for op in ops))
    rows, dearest = [], []
    for name, (row, ops) in shapes.items():
        shares = {phase: share for phase, share, _ in grouped(ops)}
        cells = [f"{100 * shares[phase]:.0f} %" if phase in shares else "–" for phase in phases]
        rows.append([name, question.digits(row["microseconds"]), question.digits(row["without"]), *cells])
        longest = sorted(ops, key=lambda op: op.share, reverse=True)[:_DEAREST]
        said = ", ".join(f"{op.kernel} of {op.layer} ({op.phase}) {100 * op.share:.0f} %" for op in longest)
        dearest.append(f"- {name}: {said}")
    headings = ["network, batch", "µs in ops", "µs without counters", *phases]
    least, most = (f([row["overhead_nanoseconds"] for row, _ in shapes.values()]) for f in (min, max))
    return "\n".join(
        [
            question.markdown_table(headings, rows),
            "The ops that take longest:",
            "",
            *dearest,
            "",
            f"Counting costs {least:.1f} to {most:.1f} ns per op, which are taken off.",
        ]
    )


def draw(results: dict, path: Path) -> None:
    """A bar per shape, as long as its step: phases above, ops below."""
    with question.picture(
        path, 12.0, 2.0 * len(results["shapes"]) + 1.0, "Where the time of a training step goes"
    ) as f:
        all_axes = f.subplots(len(results["shapes"]), squeeze=False)[:, 0]
        phases: set[str] = set()
        for axes, (name, row) in zip(all_axes, results["shapes"].items(), strict=True):
            ops = [OpTime(**op) for op in row["ops"]]
            phases |= {op.phase for op in ops}
            profile_drawing.draw_steps(axes, ops, row["steps"])
            network, _, batch = name.rpartition(" b")
            axes.set_title(f"{network}, batch {batch}: {question.digits(row['microseconds'])} µs per step")
        all_axes[-1].set_xlabel("µs, phases in the order in which they begin")
        profile_drawing.draw_legend(f, phases)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
