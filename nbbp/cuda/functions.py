"""A network as functions of one sample, for kernels of the user's own: what `nbbp.CudaFunctions` is made of.

A network is a row of steps, dense products and activations, each a closure over its sizes and its places; the functions
are the steps one after the other, nested closures that the compiler unfolds. Numbers between layers lie in `scratch`,
which the caller brings, from memory that suits it: local, shared or global.

Legend: a step reads width numbers of x from `source` on and writes those of the next from `target` on, in scratch.
Going back, the gradient with respect to what it wrote lies at `slope`, and that with respect to what it read goes to
`back`. gradient, unless there is none, is added to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda

from nbbp.cuda.chain import loss_of_classes, product_of_row
from nbbp.cuda.kernels import SIMULATED
from nbbp.scalars.activations import activation_derivative, activation_value
from nbbp.scalars.functions import exp, log
from nbbp.scalars.losses import LOSSES, loss_derivative, loss_value

__all__ = ["DenseStep", "FunctionStep", "LossStep", "RowStep", "backpropagation", "forward", "loss_and_gradient"]

_BINARY = LOSSES["binary_crossentropy"].code


def device(function: Callable) -> Any:
    """A function that kernels can call; the simulator's kernels call Python."""
    return function if SIMULATED else cuda.jit(device=True)(function)


@dataclass(frozen=True)
class DenseStep:
    """``x @ weight + bias``, the parameters from `weight` and `bias` (-1: none) on."""

    n_in: int
    n_out: int
    weight: int
    bias: int

    def forward(self, source: int, target: int) -> Callable:
        """``run(parameters, x, scratch)``."""
        n_in, n_out, weight, bias = self.n_in, self.n_out, self.weight, self.bias
        has_bias = bias >= 0

        def run(parameters, x, scratch):
            for j in range(n_out):
                place = bias + j if has_bias else -1
                scratch[target + j] = product_of_row(parameters, weight + j, n_in, n_out, place, x, source)

        return device(run)

    def backward(self, source: int, target: int, slope: int, back: int, has_gradient: bool) -> Callable:
        """``run(parameters, x, scratch, gradient)``."""
        n_in, n_out, weight, bias = self.n_in, self.n_out, self.weight, self.bias
        has_bias = bias >= 0 and has_gradient

        def run(parameters, x, scratch, gradient):
            for i in range(n_in):
                total = scratch[slope] * parameters[weight + i * n_out]
                for j in range(1, n_out):
                    total += scratch[slope + j] * parameters[weight + i * n_out + j]
                if has_gradient:
                    for j in range(n_out):
                        gradient[weight + i * n_out + j] += x[source + i] * scratch[slope + j]
                scratch[back + i] = total
            if has_bias:
                for j in range(n_out):
                    gradient[bias + j] += scratch[slope + j]

        return device(run)


@dataclass(frozen=True)
class FunctionStep:
    """An elementwise activation by its code; `sees_output` where its derivative is written in what it gives."""

    n_in: int
    n_out: int
    code: int | str
    alpha: Any
    sees_output: bool

    def forward(self, source: int, target: int) -> Callable:
        """``run(parameters, x, scratch)``."""
        n, code, alpha = self.n_in, self.code, self.alpha

        def run(parameters, x, scratch):
            for j in range(n):
                scratch[target + j] = activation_value(code, x[source + j], alpha)

        return device(run)

    def backward(self, source: int, target: int, slope: int, back: int, has_gradient: bool) -> Callable:
        """``run(parameters, x, scratch, gradient)``."""
        n, code, alpha, sees_output = self.n_in, self.code, self.alpha, self.sees_output

        def run(parameters, x, scratch, gradient):
            for j in range(n):
                seen = scratch[target + j] if sees_output else x[source + j]
                scratch[back + j] = scratch[slope + j] * activation_derivative(code, seen, alpha)

        return device(run)


@dataclass(frozen=True)
class RowStep:
    """softmax, or its logarithm."""

    n_in: int
    n_out: int
    takes_log: bool

    def forward(self, source: int, target: int) -> Callable:
        """``run(parameters, x, scratch)``."""
        n, takes_log = self.n_in, self.takes_log

        def run(parameters, x, scratch):
            largest = x[source]
            for j in range(1, n):
                value = x[source + j]
                largest = value if value > largest or value != value else largest
            total = exp(x[source] - largest)
            for j in range(1, n):
                total += exp(x[source + j] - largest)
            for j in range(n):
                value = x[source + j] - largest
                scratch[target + j] = value - log(total) if takes_log else exp(value) / total

        return device(run)

    def backward(self, source: int, target: int, slope: int, back: int, has_gradient: bool) -> Callable:
        """``run(parameters, x, scratch, gradient)``."""
        n, takes_log = self.n_in, self.takes_log

        def run(parameters, x, scratch, gradient):
            total = scratch[slope] if takes_log else scratch[slope] * scratch[target]
            for j in range(1, n):
                total += scratch[slope + j] if takes_log else scratch[slope + j] * scratch[target + j]
            for j in range(n):
                d, given = scratch[slope + j], scratch[target + j]
                scratch[back + j] = d - exp(given) * total if takes_log else given * (d - total)

        return device(run)


@dataclass(frozen=True)
class LossStep:
    """The loss of a batch of one: crossentropy of a label, or an elementwise one by its code."""

    n: int
    code: int | str | None
    parameter: Any
    scale: Any
    is_mean: bool

    def run(self, given: int, slope: int) -> Callable:
        """``run(scratch, y) -> loss``; the gradient goes to `slope`."""
        n, code, parameter = self.n, 0 if self.code is None else self.code, self.parameter
        number = type(self.scale)
        scale, one, half, is_binary = self.scale, number(1), number(0.5), code == _BINARY and self.code is not None
        factor = number(self.scale / (n if self.is_mean else 1))

        def classes(scratch, y):
            return np.float64(scale) * loss_of_classes(scratch, slope, given, n, 1, y, scratch, 0, parameter, scale)

        def elementwise(scratch, y):
            total = 0.0
            for j in range(n):
                wanted = y[j]
                if is_binary:
                    wanted = wanted * (one - parameter) + parameter * half
                total += np.float64(loss_value(code, scratch[given + j], wanted, parameter))
                scratch[slope + j] = factor * loss_derivative(code, scratch[given + j], wanted, parameter)
            return np.float64(factor) * total

        return device(classes if self.code is None else elementwise)


def places(steps: Sequence[Any]) -> list[int]:
    """Where what each step gives begins in scratch; the last entry is behind it all."""
    found = [0]
    for step in steps:
        found.append(found[-1] + step.n_out)
    return found


def scratch_size(steps: Sequence[Any]) -> int:
    """Numbers of scratch: what each step gives, and two gradients that take turns."""
    return places(steps)[-1] + 2 * max(max(step.n_in, step.n_out) for step in steps)


def forward(steps: Sequence[Any]) -> tuple[Callable, int]:
    """``run(parameters, x, scratch)``, and where the outputs begin in scratch."""
    targets = places(steps)
    run = steps[0].forward(0, 0)
    for number, step in enumerate(steps[1:], 1):
        run = _then(run, step.forward(targets[number - 1], targets[number]))
    return run, targets[-2]


def _then(before: Callable, step: Callable) -> Callable:
    def run(parameters, x, scratch):
        before(parameters, x, scratch)
        step(parameters, scratch, scratch)

    return device(run)


def backpropagation(steps: Sequence[Any], has_gradient: bool) -> tuple[Callable, int, int]:
    """``run(parameters, x, scratch, gradient)`` behind `forward`; where the gradient begins before it, and after."""
    targets = places(steps)
    widest = max(max(step.n_in, step.n_out) for step in steps)
    turns = targets[-1], targets[-1] + widest
    run, turn = None, 0
    for number in range(len(steps) - 1, -1, -1):
        source = targets[number - 1] if number else 0
        step = steps[number].backward(source, targets[number], turns[turn], turns[1 - turn], has_gradient)
        run, turn = _back(run, step, number == 0), 1 - turn
    return run, turns[0], turns[turn]


def _back(behind: Callable | None, step: Callable, is_first: bool) -> Callable:
    """`step`, the first of which reads x and the others scratch, after those behind it."""
    if behind is None:

        def run(parameters, x, scratch, gradient):
            step(parameters, x if is_first else scratch, scratch, gradient)

    else:

        def run(parameters, x, scratch, gradient):
            behind(parameters, x, scratch, gradient)
            step(parameters, x if is_first else scratch, scratch, gradient)

    return device(run)


def loss_and_gradient(steps: Sequence[Any], loss: LossStep, n_parameters: int) -> Callable:
    """``loss_and_gradient(parameters, x, y, gradient, scratch) -> loss``."""
    ahead, given = forward(steps)
    back, slope, _ = backpropagation(steps, True)
    loss_of = loss.run(given, slope)

    def loss_and_gradient(parameters, x, y, gradient, scratch):
        for i in range(n_parameters):
            gradient[i] = 0
        ahead(parameters, x, scratch)
        total = loss_of(scratch, y)
        back(parameters, x, scratch, gradient)
        return total

    return device(loss_and_gradient)
