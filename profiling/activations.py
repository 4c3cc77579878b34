"""What does an activation cost, and how exact is it: the C library, NumPy, and nbbp one by one and vectorised?

    python profiling/activations.py [--quick] [--output FOLDER]

Every activation and its derivative, float32, over 2000 numbers that stay in the first-level cache:

libm              nbbp's formula in a jitted loop, with the exp, tanh, erf … of the C library
NumPy             the formula as one writes it, temporaries and all
nbbp, one by one  nbbp's formula in a jitted loop that LLVM cannot vectorise, as in branching code of one's own
nbbp, vectorised  the kernels that the engine runs

Errors are the largest over [-10, 10], in units of the last place (ulp) of the exact result, or of 2⁻¹⁰ where that is
larger than the result: nearer to a zero of a function the digits are those of what cancels. What a derivative is given
is what nbbp keeps for it, rounded to float32: the output of the activation where that suffices, or its input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder above holds both packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numba import njit

from nbbp import plotting
from nbbp.program import Place, Program
from nbbp.scalars.activations import ACTIVATIONS, activation_derivative, activation_value
from profiling import question, single_ops
from profiling.activation_formulas import NAMES, in_numpy, reference, with_libm

VARIANTS = ("libm", "NumPy", "nbbp, one by one", "nbbp, vectorised")
WHATS = ("value", "derivative")
QUICK = ("relu", "sigmoid", "tanh", "softplus", "gelu")
#: Numbers that are timed: two arrays of them fill a third of a first-level cache of 48 KiB. No power of two, so that
#: what is written does not lie whole pages from what is read next, which processors take for the same place at first.
N = 2000
#: Numbers that errors are looked for among.
N_ERRORS = 1 << 18
#: Smallest magnitude whose last place errors are counted in.
LEAST = 2.0**-10
#: Where the picture shows an error of 0, on its logarithmic axis.
EXACT = 0.1
#: So many ulp of 1 any variant may be wrong by, as the tests of the formulas ask.
TOLERANCE = 16.0
#: Steps of a kernel that Python is entered once for.
N_STEPS = 100

Run = Callable[[np.ndarray], np.ndarray]


def one_by_one(function: Callable) -> Callable:
    """``y[i] = function(x[i], alpha)`` in a jitted loop; the way out in its middle keeps it one number at a time."""

    @njit(error_model="numpy")
    def loop(x, y, alpha):
        for i in range(x.size):
            y[i] = function(x[i], alpha)
            if x[i] != x[i]:
                break

    return loop


def nbbp_formula(name: str, what: str) -> Callable:
    """nbbp's formula, jitted."""
    code, stub = ACTIVATIONS[name].code, activation_value if what == "value" else activation_derivative

    @njit(error_model="numpy", forceinline=True)
    def formula(x, alpha):
        return stub(code, x, alpha)

    return formula


class Kernel:
    """The engine's kernel over n numbers: validated by `__call__`, timed by `run`."""

    def __init__(self, name: str, what: str, n: int) -> None:
        formula, program = ACTIVATIONS[name], Program(1)
        x, y = program.matrix("x", n), program.matrix("y", n)
        program.add(
            "activation_forward" if what == "value" else "activation_backward", formula.code,
            x=Place(x.buffer), x_stride=x.stride, y=Place(y.buffer), y_stride=y.stride, n_out=n,
            settings=program.setting(formula.default),
        )  # fmt: skip
        self.bound, self.n = single_ops.bind(program), n
        self.run = single_ops.steps(self.bound, N_STEPS)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.bound.buffer("x")[: self.n] = x
        self.bound.buffer("y")[:] = 1  # which the derivative is multiplied by
        self.bound.run(1)
        return self.bound.buffer("y")[: self.n].copy()


def looping(loop: Callable, alpha: float) -> Run:
    """A jitted loop as a function of an array."""

    def run(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        loop(x, y, np.float32(alpha))
        return y

    return run


def error(y: np.ndarray, exact: np.ndarray) -> float:
    """The largest error in ulp."""
    place = np.spacing(np.maximum(np.abs(exact), LEAST).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(y - exact) / place))


def measure_one(name: str, what: str, seconds: float, n_errors: int) -> dict[str, dict[str, float]]:
    """ns per number and error of every variant of one formula."""
    x = np.random.default_rng(0).uniform(-10, 10, n_errors).astype(np.float32)
    formula, alpha = ACTIVATIONS[name], ACTIVATIONS[name].default
    if what == "derivative" and formula.derivative_of == "output":
        x = reference(name, "value", x).astype(np.float32)
    loops = {"libm": one_by_one(with_libm(name, what)), "nbbp, one by one": one_by_one(nbbp_formula(name, what))}
    runs: dict[str, Run] = {variant: looping(loop, alpha) for variant, loop in loops.items()}
    runs["NumPy"], runs["nbbp, vectorised"] = in_numpy(name, what), Kernel(name, what, n_errors)
    exact, errors = reference(name, what, x), {}
    for variant in VARIANTS:
        y = runs[variant](x)
        tolerance = TOLERANCE * np.finfo(np.float32).eps
        message = f"{variant}: {what} of {name}"
        np.testing.assert_allclose(y, exact, rtol=tolerance, atol=tolerance, err_msg=message)
        assert y.dtype == np.float32, message
        errors[variant] = error(y, exact)

    z, y, a = x[:N].copy(), np.empty(N, np.float32), np.float32(alpha)
    kernel, numpy = Kernel(name, what, N), in_numpy(name, what)
    kernel(z)
    timed = question.time_in_turn(
        {
            "libm": lambda: loops["libm"](z, y, a),
            "NumPy": lambda: numpy(z),
            "nbbp, one by one": lambda: loops["nbbp, one by one"](z, y, a),
            "nbbp, vectorised": kernel.run,
        },
        seconds,
    )
    steps = {"nbbp, vectorised": N_STEPS}
    return {
        variant: {
            "ns": 1e9 * timed[variant]["minimum"] / N / steps.get(variant, 1),
            "ns_median": 1e9 * timed[variant]["median"] / N / steps.get(variant, 1),
            "ulp": errors[variant],
        }
        for variant in VARIANTS
    }


def measure(quick: bool = False, names: Sequence[str] | None = None) -> dict:
    """Every activation (with `quick` some of them) and its derivative, in every variant."""
    names = names or (QUICK if quick else NAMES)
    seconds, n_errors = (0.05, N_ERRORS // 16) if quick else (0.6, N_ERRORS)
    rows = {what: {name: measure_one(name, what, seconds, n_errors) for name in names} for what in WHATS}
    return {**question.conditions(), "n": N, "rows": rows}


def table(results: dict) -> str:
    """ns per number, with the error in brackets."""
    parts = []
    for what, rows in results["rows"].items():
        headings = [f"{what}: ns per number (error in ulp)", *VARIANTS, "vectorised against libm"]
        lines = []
        for name, row in rows.items():
            cells = [f"{question.digits(row[v]['ns'])} ({row[v]['ulp']:.1f})" for v in VARIANTS]
            times = row["libm"]["ns"] / row["nbbp, vectorised"]["ns"]
            lines.append([name, *cells, f"{times:.1f}× as fast"])
        parts.append(question.markdown_table(headings, lines))
    return "\n".join(parts)


def draw(results: dict, path: Path) -> None:
    """Dots: ns per number on top of each other for values and derivatives, and the errors beside them."""
    names = list(results["rows"]["value"])[::-1]
    # where marks fall together the larger ones show around the smaller
    marks = zip(VARIANTS, plotting.PALETTE[1:4] + plotting.PALETTE[:1], "svDo", (9.0, 8.0, 6.0, 5.5), strict=True)
    styles = {v: {"color": c, "marker": m, "ls": "", "ms": size, "mec": "white", "mew": 0.6} for v, c, m, size in marks}
    title = "Activations: what they cost, and how exact they are (float32, one core)"
    with question.picture(path, 11.0, 1.6 + 0.55 * len(names), title) as figure:
        axes = figure.subplots(2, 2, sharex="col", sharey=True, width_ratios=(1.6, 1.0))
        for (time_axes, error_axes), what in zip(axes, WHATS, strict=True):
            rows = results["rows"][what]
            for place, name in enumerate(names):
                times = [rows[name][variant]["ns"] for variant in VARIANTS]
                time_axes.plot([min(times), max(times)], [place, place], color="#d5d9df", lw=1.0, zorder=1)
            for variant, style in styles.items():
                time_axes.plot([rows[n][variant]["ns"] for n in names], range(len(names)), label=variant, **style)
                ulps = [max(rows[n][variant]["ulp"], EXACT) for n in names]
                error_axes.plot(ulps, range(len(names)), **style)
            time_axes.set_title(f"the {what}: ns per number")
            error_axes.set_title(f"the {what}: largest error in ulp")
            time_axes.set_yticks(range(len(names)), names)
            for each in (time_axes, error_axes):
                each.set(xscale="log", ylim=(-0.7, len(names) - 0.3))
                each.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
                each.tick_params(labelbottom=True)
                each.grid(False, axis="y")
            error_axes.set_xlabel("0.1 stands for no error")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(VARIANTS))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    return question.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    question.hold_threads(__file__)
    raise SystemExit(main())
