"""One dense layer, forward and backward, in every way that `profiling/loop_vs_vectorized.py` times.

Legend: batch rows, width inputs and outputs. A step is

    out = x · weight + bias        d_x = d_out · weightᵀ        d_weight = xᵀ · d_out, d_bias = its columns' sums

As a script, ``python -m profiling.dense_layer JSON`` times what it is told to (see `time_shapes`) with the threads that
the environment says, and prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from numba import njit

import nbbp
from nbbp import ops, programs, tiling
from nbbp.cpu.dense_variants import VARIANTS
from nbbp.cpu.engine import BoundProgram
from profiling import question, single_ops
from profiling.peers.worker import keep_to_cores

#: Variants that run in jitted code on the CPU.
JITTED = ("loops", "vectorized", "fused", "parallel")
#: Seconds that the steps of one call take, so that entering it from Python is less than a hundredth of them.
CALL = 1e-3
#: Seconds of calls that are timed together: the first of them reads its operands from wherever another way left them.
STRETCH = 10 * CALL

Outputs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Operands = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def operands(batch: int, width: int) -> Operands:
    """x, d_out (batch, width), weight (width, width), bias (width,), float32."""
    random = np.random.default_rng(0)
    x, d_out = random.standard_normal((2, batch, width), dtype=np.float32)
    return x, d_out, random.standard_normal((width, width), dtype=np.float32), random.standard_normal(width, np.float32)


def reference(x: np.ndarray, d_out: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Outputs:
    """out, d_x, d_weight, d_bias in float64."""
    x, d_out, weight, bias = (each.astype(np.float64) for each in (x, d_out, weight, bias))
    return x @ weight + bias, d_out @ weight.T, x.T @ d_out, d_out.sum(axis=0)


def outputs(batch: int, width: int) -> Outputs:
    """Room for out, d_x, d_weight and d_bias."""
    shapes = (batch, width), (batch, width), (width, width), (width,)
    return tuple(np.full(shape, np.nan, np.float32) for shape in shapes)


class PythonLoops:
    """Lists and loops of plain Python."""

    n_steps = 1

    def __init__(self, x: np.ndarray, d_out: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
        self.operands = tuple(each.tolist() for each in (x, d_out, weight, bias))

    def run(self) -> None:
        x, d_out, weight, bias = self.operands
        width = range(len(bias))
        self.out, self.d_x = [], []
        self.d_weight, self.d_bias = [[0.0 for _ in width] for _ in width], [0.0 for _ in width]
        for row, d_row in zip(x, d_out, strict=True):
            self.out.append([bias[j] + sum(row[i] * weight[i][j] for i in width) for j in width])
            self.d_x.append([sum(d_row[j] * weight[i][j] for j in width) for i in width])
            for j in width:
                self.d_bias[j] += d_row[j]
            for i in width:
                line, value = self.d_weight[i], row[i]
                for j in width:
                    line[j] += value * d_row[j]

    def results(self) -> Outputs:
        return tuple(np.array(each) for each in (self.out, self.d_x, self.d_weight, self.d_bias))


class NumPyPerSample:
    """NumPy, one row of the batch at a time."""

    n_steps = 1

    def __init__(self, x: np.ndarray, d_out: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
        self.operands, self.outputs = (x, d_out, weight, bias), outputs(*x.shape)

    def run(self) -> None:
        (x, d_out, weight, bias), (out, d_x, d_weight, d_bias) = self.operands, self.outputs
        d_weight[:], d_bias[:] = 0, 0
        for r in range(len(x)):
            out[r] = x[r] @ weight + bias
            d_x[r] = weight @ d_out[r]
            d_weight += np.outer(x[r], d_out[r])
            d_bias += d_out[r]

    def results(self) -> Outputs:
        return self.outputs


class NumPy(NumPyPerSample):
    """NumPy, the whole batch at once, without a temporary."""

    def run(self) -> None:
        (x, d_out, weight, bias), (out, d_x, d_weight, d_bias) = self.operands, self.outputs
        np.matmul(x, weight, out=out)
        out += bias
        np.matmul(d_out, weight.T, out=d_x)
        np.matmul(x.T, d_out, out=d_weight)
        d_out.sum(axis=0, out=d_bias)

    def results(self) -> Outputs:
        return self.outputs


class Jitted(NumPyPerSample):
    """A variant of nbbp/cpu/dense_variants.py, many steps in one jitted loop."""

    def __init__(self, *arrays: np.ndarray, variant: str) -> None:
        super().__init__(*arrays)
        self.n_steps, self.loop = n_steps(*arrays[0].shape), jitted_loop(variant)

    def run(self) -> None:
        self.loop(self.n_steps, *self.outputs, *self.operands)


class Engine:
    """What the engine runs for such a layer: its ops, tiles, phases and threads, by the crossovers of nbbp/tiling.py.

    Taken from the training step of a network of a layer normalisation, which wants the input gradient, and the layer.
    """

    def __init__(self, x: np.ndarray, d_out: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
        (batch, width), self.n_steps = x.shape, n_steps(*x.shape)
        network = nbbp.Sequential([nbbp.LayerNorm(), nbbp.Dense(width)], n_in=width)
        program = programs.training_program(network, nbbp.losses.MSE(), None, (), batch, False)
        parameters = np.concatenate([np.zeros(2 * width, np.float32), weight.ravel(), bias])
        self.bound, self.width = BoundProgram(program, "float32", {"parameters": parameters}), width
        forward, back, *_ = (program.ops[row].columns for row in program.find("product"))
        self.names = forward[ops.Y].buffer, back[ops.Y].buffer
        single_ops.inside(self.bound, forward[ops.X].buffer, width)[:] = x
        single_ops.inside(self.bound, back[ops.X].buffer, width)[:] = d_out
        rows = [row for kernel in ("product", "deep_product", "reduce_gradient") for row in program.find(kernel)]
        self.bound.tiles, self.bound.phases = single_ops.only(self.bound, rows)
        self.run = single_ops.steps(self.bound, self.n_steps)
        self.plan, self.n_threads = tiling.plan([(width, width)], batch), self.bound.n_threads()

    def results(self) -> Outputs:
        out, d_x = (single_ops.inside(self.bound, name, self.width).copy() for name in self.names)
        start, n = 2 * self.width, (self.width + 1) * self.width
        gradient = self.bound.buffer("gradient")[start : start + n].reshape(-1, self.width)
        return out, d_x, gradient[:-1], gradient[-1]


def n_steps(batch: int, width: int) -> int:
    """Steps that take about CALL, at a rate that quick variants reach."""
    return max(1, int(CALL / (2e-7 + 6 * batch * width**2 / 1e11)))


_loops: dict[str, Callable] = {}


def jitted_loop(variant: str) -> Callable:
    """``loop(n, out, d_x, d_weight, d_bias, x, d_out, weight, bias)``, n steps of a variant."""
    if variant not in _loops:
        forward, input_gradient, weight_gradient = (VARIANTS[op][variant] for op in VARIANTS)
        floor = np.float32(-np.inf)

        @njit
        def loop(n, out, d_x, d_weight, d_bias, x, d_out, weight, bias):
            for _ in range(n):
                forward(out, x, weight, bias, floor)
                input_gradient(d_x, d_out, weight)
                weight_gradient(d_weight, d_bias, x, d_out)

        _loops[variant] = loop
    return _loops[variant]


#: Every way, by its name.
WAYS: dict[str, Callable] = {
    "Python loops": PythonLoops,
    "NumPy, by sample": NumPyPerSample,
    "NumPy": NumPy,
    **{variant: lambda *arrays, variant=variant: Jitted(*arrays, variant=variant) for variant in JITTED},
    "engine": Engine,
}
#: Those that only the small shapes are quick in.
SLOW = ("Python loops", "NumPy, by sample", "loops")
#: Seconds of a step from which on one is measurement enough of a slow way.
ONCE = 0.1
#: Seconds for which OpenBLAS's threads wait in a loop for more work.
SETTLING = 0.03


def flops(batch: int, width: int) -> float:
    """Floating-point operations of a step."""
    return 6.0 * batch * width**2


def time_shapes(
    shapes: Sequence[tuple[int, int]], ways: Sequence[str], limit: float, seconds: float, least_turns: int
) -> list[dict[str, object]]:
    """Validate and time `ways` on every (batch, width), the small ones first.

    Slow ways are left out where they would take more than `limit` seconds for a step, by their rate on the last shape;
    the others take turns for so many `seconds` and so often, at least.

    Returns
    -------
    list of dict
        Of each shape ``batch``, ``width``, the engine's ``plan`` and ``threads``, and ``ways``: by name ``minimum`` and
        ``median`` in seconds per step, and ``repeats``.
    """
    for way in ways:  # compiles
        WAYS[way](*operands(2, 4)).run()
    rates: dict[str, float] = {}
    return [_time_shape(batch, width, ways, rates, limit, seconds, least_turns) for batch, width in shapes]


def _time_shape(
    batch: int,
    width: int,
    ways: Sequence[str],
    rates: dict[str, float],
    limit: float,
    seconds: float,
    least_turns: int,
) -> dict[str, object]:
    arrays, made, timed = operands(batch, width), {}, {}
    expected = reference(*arrays)
    for name in ways:
        if name in SLOW and name in rates and flops(batch, width) / rates[name] > limit:
            continue
        way = WAYS[name](*arrays)
        begin = time.perf_counter()
        way.run()
        elapsed = (time.perf_counter() - begin) / way.n_steps
        for came, right in zip(way.results(), expected, strict=True):
            tolerance = 2e-5 * np.sqrt(max(batch, width))
            np.testing.assert_allclose(came, right, rtol=1e-4, atol=tolerance, err_msg=f"{name}, {batch} × {width}")
        if name in SLOW and elapsed > ONCE:
            timed[name] = {"minimum": elapsed, "median": elapsed, "repeats": 1}
        else:
            made[name] = way
    settling = SETTLING if nbbp.get_num_threads() > 1 else 0.0
    runs = {name: way.run for name, way in made.items()}
    calls = question.time_in_turn(runs, seconds, least_turns, stretch=STRETCH, settling=settling)
    for name, way in made.items():
        per_step = {key: calls[name][key] / way.n_steps for key in ("minimum", "median")}
        timed[name] = {**per_step, "repeats": calls[name]["repeats"]}
    rates.update({name: flops(batch, width) / each["minimum"] for name, each in timed.items()})
    engine = made["engine"]
    shape = {"batch": batch, "width": width, "plan": engine.plan, "threads": engine.n_threads}
    return {**shape, "ways": {name: timed[name] for name in ways if name in timed}}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    keep_to_cores(asked.pop("n_threads"))
    print(json.dumps(time_shapes(**asked)))
