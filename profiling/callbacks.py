"""What does it cost to look on: a callback after every epoch, a Monitor in every hundredth update?

    python profiling/callbacks.py [--quick] [--output FOLDER]

Runs of `Model.fit` with and without take turns, on one thread; the same bits must come out of all of them first. Of a
callback the microseconds per epoch are wanted (at most 50), on a network and data so small that nothing hides them; of
`Monitor` the share of the updates (at most 2 %). That is below what runs differ by, so it is taken from runs with
``every=1``: what an update that is looked at takes longer. Beside it stands a whole fit, as measured, which also has
what a Monitor does once an epoch.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import nbbp
from nbbp import callbacks, plotting
from profiling import question
from profiling.cases import RELU_CASES, Case
from profiling.where_time_goes import model_of

WANTED_MICROSECONDS, WANTED_SHARE = 50.0, 0.02
#: Shapes that a Monitor looks at; updates of a run, of which every 100th is looked at.
SHAPES = tuple(case for case in RELU_CASES if case.sizes != (784, 256, 10))
EVERY = 100
#: Seconds of all turns of one comparison.
SECONDS = 6.0


class Own(callbacks.Callback):
    """What a user may write in a line."""

    def on_epoch_end(self, run: callbacks.Run) -> None:
        """Report a number."""
        run.report["twice the loss"] = 2.0 * run.report["loss"]


def epoch_callbacks(folder: Path) -> dict[str, Callable[[], list]]:
    """Lists of callbacks by name, new for every run."""
    return {
        "none": list,
        "a line of one's own": lambda: [Own()],
        "Monitor": lambda: [callbacks.Monitor(10**9)],
        "EarlyStopping": lambda: [callbacks.EarlyStopping("loss", patience=10**6)],
        "LearningRateScheduler": lambda: [callbacks.LearningRateScheduler(lambda epoch, rate: 0.999 * rate)],
        "TerminateOnNaN": lambda: [callbacks.TerminateOnNaN()],
        "CSVLogger": lambda: [callbacks.CSVLogger(folder / "run.csv")],
    }


def trained(case: Case, made: list, **settings: int) -> bytes:
    """The parameters after a fit from the start."""
    model, x, y = model_of(case)
    model.fit(x, y, batch_size=case.batch, verbose=0, callbacks=made, **settings)
    return model.parameter_vector.tobytes()


def measure_epochs(quick: bool) -> dict[str, float]:
    """µs per epoch that each callback adds."""
    case, epochs = Case((4, 16, 16, 2), 32, 2, 1.0), 20 if quick else 200
    with tempfile.TemporaryDirectory() as folder:
        lists = epoch_callbacks(Path(folder))
        bits = {name: trained(case, make(), epochs=3) for name, make in lists.items() if "Scheduler" not in name}
        assert len(set(bits.values())) == 1, "a callback changed what was trained"
        models = {name: model_of(case) for name in lists}

        def fit(name: str) -> None:
            model, x, y = models[name]
            model.fit(x, y, batch_size=case.batch, epochs=epochs, verbose=0, callbacks=lists[name]())

        runs = {name: functools.partial(fit, name) for name in lists}
        timed = question.time_in_turn(runs, 0.2 if quick else SECONDS)
    return {name: 1e6 * (timed[name]["minimum"] - timed["none"]["minimum"]) / epochs for name in lists}


def measure_monitor(case: Case, quick: bool) -> dict[str, float]:
    """What a Monitor costs on one shape."""

    def monitor(every: int) -> list:
        return [callbacks.Monitor(every, vanishing=0.0, exploding=1e300)]

    assert trained(case, monitor(1)) == trained(case, []), "the Monitor changed what was trained"
    model, x, y = model_of(case)
    n_steps = max(2, min(case.n_steps, 10 if quick else 200 * EVERY))
    x, y = x[: n_steps * case.batch], y[: n_steps * case.batch]
    made = {"without": list, "monitored": lambda: monitor(EVERY), "every update": lambda: monitor(1)}

    def fit(name: str) -> None:
        model.fit(x, y, batch_size=case.batch, verbose=0, callbacks=made[name]())

    runs = {name: functools.partial(fit, name) for name in made}
    timed = question.time_in_turn(runs, 0.1 if quick else SECONDS)
    step = timed["without"]["minimum"] / n_steps
    longer = timed["every update"]["minimum"] / n_steps - step
    return {
        "steps": n_steps,
        "microseconds": 1e6 * step,
        "overhead": timed["monitored"]["minimum"] / timed["without"]["minimum"] - 1.0,
        "longer": 1e6 * longer,
        "share": longer / step / EVERY,
    }


def measure(quick: bool) -> dict[str, object]:
    """Both parts."""
    nbbp.set_num_threads(1)
    shapes = {case.name: measure_monitor(case, quick) for case in SHAPES[: 2 if quick else None]}
    return {"epochs": measure_epochs(quick), "shapes": shapes, **question.conditions()}


def table(results: dict) -> str:
    """A table of callbacks and one of shapes."""
    epochs = [[name, f"{value:.2f}"] for name, value in results["epochs"].items() if name != "none"]
    shapes = [
        [
            name,
            question.digits(row["microseconds"]),
            question.digits(row["longer"]),
            f"{100 * row['share']:.2f} %",
            f"{100 * row['overhead']:+.1f} %",
        ]
        for name, row in results["shapes"].items()
    ]
    headings = ["network, batch", "µs per update", "µs longer if looked at", f"of {EVERY} updates", "fit, measured"]
    worst, share = max(results["epochs"].values()), max(row["share"] for row in results["shapes"].values())
    return "\n".join(
        [
            question.markdown_table(["callback after every epoch", "µs per epoch"], epochs),
            f"At most {worst:.1f} µs; wanted: {WANTED_MICROSECONDS:.0f}.",
            "",
            question.markdown_table(headings, shapes),
            f"A Monitor in every {EVERY}th update: at most {100 * share:.2f} %; wanted: {100 * WANTED_SHARE:.0f} %.",
        ]
    )


def draw(results: dict, path: Path) -> None:
    """Bars of both, with what is wanted as a line."""
    panels = (
        ("a callback after every epoch, µs", results["epochs"], WANTED_MICROSECONDS, 1.0),
        ("a Monitor in every 100th update, %", results["shapes"], 100 * WANTED_SHARE, 100.0),
    )
    with question.picture(path, 11.0, 3.6, "What looking on costs") as figure:
        for axes, (title, values, wanted, factor) in zip(figure.subplots(1, 2), panels, strict=True):
            named = {
                name: value if factor == 1.0 else value["share"] for name, value in values.items() if name != "none"
            }
            heights = factor * np.maximum(list(named.values()), 0.0)
            axes.barh(list(named), heights, color=plotting.PALETTE[0])
            axes.axvline(wanted, color=plotting.PALETTE[1], linestyle="--", label=f"wanted: at most {wanted:g}")
            axes.set(title=title)
            axes.invert_yaxis()
            axes.grid(False, axis="y")
            axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.1))  # below: bars may be as long as the axes


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, write the files. Returns 0."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
