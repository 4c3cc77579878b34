"""What limits each kernel of a training step: arithmetic or memory, and how far is it from that limit?

    python profiling/roofline.py [--quick] [--output FOLDER]

Measured on one core: the best sgemm rate of the libraries at hand, and the bandwidth of copying and adding arrays of
16 KiB to 1 GiB in a jitted loop of whole vector registers, reads and writes counted as in STREAM. Between them lies the
roof of S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 52 (2009): the time that an op cannot do without is the longer of its operations over the rate and
its bytes over the bandwidth at its size.

Then every op of a training step (ReLU, crossentropy, Adam, float32) of the networks of profiling/train_step.py, which
train to the losses of a float64 reference first. Each op runs over and over alone, in the tiles and on the memory that
it has in the step: what it reads is in cache where it fits, except for the data of each batch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import nbbp
from nbbp.compiling import jit
from nbbp.cpu import simd
from nbbp.cpu.engine import aligned
from nbbp.session import Session
from profiling import machine, op_costs, question, roofline_picture, single_ops
from profiling.cases import (
    LOSS_TOLERANCE,
    RELU_CASES,
    VALIDATION_STEPS,
    Case,
    initial_parameters,
    reference_losses,
    training_data,
)
from profiling.roofline_picture import floor, furthest

NETWORKS = RELU_CASES
QUICK = (1, 3)
#: Seconds that can be told from none.
CLOCK = 1e-9
#: The whole step and a step of no ops, among the ops that are timed.
STEP, NOTHING = "step", "nothing"
#: Bytes of working sets whose bandwidth is measured.
SIZES = tuple(1 << power for power in range(14, 31))
QUICK_SIZES = SIZES[:12:2]
#: Seconds of a run of whole steps: short enough that some of many fit between what else a machine does.
RUN = 5e-3
#: Seconds of runs in a row: right behind a whole step, whose data fill the caches, entering a run of nothing alone
#: would cost more than a run of a short op behind another.
STRETCH = 1e-3
#: Not to lie whole pages from each other, which processors take for the same place at first.
APART = 272


@jit()
def copy_back_and_forth(x, y, n_turns):
    """y = x, then x = y, so often."""
    there, back = simd.pointer(simd.address_of(x), x[0]), simd.pointer(simd.address_of(y), x[0])
    for _ in range(n_turns):
        simd.copy(back, there, x.size)
        simd.copy(there, back, x.size)


@jit()
def add_over_and_over(x, y, z, n_turns):
    """z = x + y, then x = z + y, so often."""
    first, second = simd.pointer(simd.address_of(x), x[0]), simd.pointer(simd.address_of(y), x[0])
    total = simd.pointer(simd.address_of(z), x[0])
    for _ in range(n_turns):
        simd.add(total, first, second, x.size)
        simd.add(first, total, second, x.size)


def bandwidth(size: int, seconds: float) -> dict[str, float]:
    """Bytes per second read and written, of arrays that take `size` bytes together."""
    memory = aligned(size // 4 + 3 * APART, np.float32)
    half, third = size // 8, size // 12
    x, y = memory[:half], memory[half + APART :][:half]
    a, b, c = (memory[k * (third + APART) :][:third] for k in range(3))
    n_turns = max(1, int(1e-4 * 5e10 / (2 * size)))
    x[:], y[:] = 1, 0
    copy_back_and_forth(x, y, 1)
    np.testing.assert_array_equal(y[:: max(1, half // 1000)], 1)
    a[:], b[:] = 1, 2
    add_over_and_over(a, b, c, 1)
    np.testing.assert_array_equal(a[:: max(1, third // 1000)], 5)
    b[:] = 0
    runs = {
        "copy": lambda: copy_back_and_forth(x, y, n_turns),
        "add": lambda: add_over_and_over(a, b, c, n_turns),
    }
    moved = {"copy": 16 * half * n_turns, "add": 24 * third * n_turns}
    timed = question.time_in_turn(runs, seconds)
    return {name: moved[name] / each["minimum"] for name, each in timed.items()}


class Training:
    """A network's training step, bound to data for `n_steps` of them."""

    def __init__(self, case: Case) -> None:
        *hidden, last = (nbbp.Dense(width) for width in case.sizes[1:])
        layers = [nbbp.Dense(layer.n_out, activation="relu") for layer in hidden]
        network = nbbp.Sequential([*layers, last], n_in=case.sizes[0])
        parameters = np.concatenate([each.ravel() for each in initial_parameters(case)])
        loss, optimizer = nbbp.losses.get("crossentropy"), nbbp.Adam()
        self.session = Session(network, loss, optimizer, (), np.dtype("float32"), 0, parameters=parameters)
        self.bound = self.session.training(case.batch, labels=True, keeps_good=False)
        self.n_steps = min(case.n_steps, max(VALIDATION_STEPS, int(RUN / (case.flops / 1e11 + 5e-7))))
        self.x, self.labels = training_data(case, self.n_steps)
        n = len(self.x)
        self.order, self.losses = np.arange(n), np.empty(n)
        self.tables = {
            name: optimizer.coefficients(1, self.n_steps, settings)
            for name, settings in self.session.coefficients.settings.items()
        }
        attached = {"X": self.x, "target": self.labels, "order": self.order, "loss values": self.losses}
        for name, array in {**attached, **self.tables, "sample weight": None}.items():
            self.bound.attach(name, array)
        self.bound.run(n)
        means = self.losses.reshape(-1, case.batch).mean(axis=1)[:VALIDATION_STEPS]
        expected = reference_losses(case, initial_parameters(case), self.x, self.labels, VALIDATION_STEPS)
        np.testing.assert_allclose(means, expected, rtol=LOSS_TOLERANCE, err_msg=case.name)


def measure_network(case: Case, seconds: float) -> dict[str, object]:
    """µs of the whole step and of each of its ops, with what these cannot do without.

    What a run takes that is told to do nothing, which is Python mostly, is taken off every time.
    """
    training = Training(case)
    bound, found = training.bound, op_costs.groups(training.bound.program)
    run = single_ops.steps(bound, training.n_steps)
    cuts = {STEP: (bound.tiles, bound.phases), NOTHING: single_ops.nothing(bound)}
    cuts |= {name: single_ops.only(bound, rows) for name, rows in found.items()}

    def run_only(name: str) -> None:
        bound.tiles, bound.phases = cuts[name]
        run()

    runs = {name: functools.partial(run_only, name) for name in cuts}
    timed = question.time_in_turn(runs, seconds, stretch=STRETCH)
    spent = {name: max(each["minimum"] - timed[NOTHING]["minimum"], CLOCK) for name, each in timed.items()}
    microseconds = {name: 1e6 * seconds / training.n_steps for name, seconds in spent.items()}
    costs = {name: op_costs.total(bound.program, rows, len(training.x)) for name, rows in found.items()}
    rows = {name: {"microseconds": microseconds[name], **vars(cost)} for name, cost in costs.items()}
    return {"step": microseconds[STEP], "ops": rows}


def measure(quick: bool = False) -> dict[str, object]:
    """The roofs, and every op of every network."""
    sizes = QUICK_SIZES if quick else SIZES
    results = {
        **question.conditions(),
        "sgemm": machine.sgemm_rates(1),
        "bandwidth": {str(size): bandwidth(size, 0.02 if quick else 0.3) for size in sizes},
        "caches": machine.caches(),
    }
    networks = [NETWORKS[i] for i in QUICK] if quick else NETWORKS
    return {**results, "networks": {case.name: measure_network(case, 0.1 if quick else 4.0) for case in networks}}


def table(results: dict) -> str:
    """Every op beside its floor, and the three places that are furthest from it."""
    rows = []
    for network, measured in results["networks"].items():
        for name, op in measured["ops"].items():
            least, limit = floor(results, op)
            microseconds = op["microseconds"]
            flops = question.digits(op["flops"] / microseconds / 1e3) if op["flops"] else "–"
            rows.append(
                [
                    f"{network}: {name}",
                    *(question.digits(value) for value in (microseconds, least)),
                    f"{microseconds / least:.2f}×",
                    limit,
                    flops,
                    question.digits(op["traffic"] / microseconds / 1e3),
                    f"{100 * (microseconds - least) / measured['step']:.1f} %",
                ]
            )
    headings = ["op", "µs", "floor", "× floor", "limit", "GFLOP/s", "GB/s", "above the floor, of the step"]
    sgemm = ", ".join(f"{name} {rate:.0f}" for name, rate in results["sgemm"].items())
    worst = "\n".join(f"{number}. {_line(results, *place)}" for number, place in enumerate(furthest(results), 1))
    return (
        f"{question.markdown_table(headings, rows)}\n"
        f"sgemm in GFLOP/s: {sgemm}. Bandwidth in GB/s, the better of copy and add: {_levels(results)}.\n\n"
        f"Furthest from the floor, by what is lost of a step:\n\n{worst}\n"
    )


def _line(results: dict, network: str, name: str) -> str:
    """One op and its floor, as text."""
    step, op = results["networks"][network]["step"], results["networks"][network]["ops"][name]
    microseconds, (least, limit) = op["microseconds"], floor(results, op)
    share = 100 * (microseconds - least) / step
    return (
        f"{network}, {name}: {question.digits(microseconds)} µs, {microseconds / least:.2f} times its floor of "
        f"{question.digits(least)} µs ({limit}); what lies above the floor is {share:.0f} % of the step of "
        f"{question.digits(step)} µs"
    )


def _levels(results: dict) -> str:
    return ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in roofline_picture.levels(results).items())


def draw(results: dict, path: Path) -> None:
    """The roofline with a point per op, and bandwidth over size."""
    roofline_picture.draw(results, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
