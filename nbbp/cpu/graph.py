"""Sweeps over a scalar computational graph that lies in arrays, one node per position.

  n_nodes         nodes; a node's arguments lie at smaller positions, so that going up is a topological order
  codes           uint8   (n_nodes,)  the operations, as in scalars/operations.py
  first, second, third
                  int32   (n_nodes,)  positions of the arguments; columns that an operation does not use repeat the
                                      first, and mean nothing where there is no argument
  values          float64 (n_nodes,)
  gradients       float64 (n_nodes,)
  marks           uint8   (n_nodes,)  scratch: all 0 before and after a sweep

Only what a root depends on is read or written. A sweep finds that on its way down: whoever marks a node lies above it.
"""

import numpy as np

from nbbp.compiling import jit
from nbbp.scalars.operations import INPUT, OPERATIONS
from nbbp.scalars.primitives import chain, partials, value

__all__ = ["backward", "evaluate", "evaluate_dual", "forward", "mark_arguments", "reachable"]

N_ARGUMENTS = np.array([operation.n_arguments for operation in OPERATIONS.values()], np.uint8)


@jit()
def evaluate(code, a, b, c):
    """Return the value of one operation; arguments that it does not take are ignored."""
    return value(code, a, b, c)


@jit()
def evaluate_dual(code, a, b, c, a_derivative, b_derivative, c_derivative):
    """Return the value of one operation and its derivative, given the derivatives of its arguments."""
    y = value(code, a, b, c)
    by_a, by_b, by_c = partials(code, a, b, c, y)
    derivative = chain(code, by_a, a_derivative)
    derivative += chain(code, by_b, b_derivative)
    derivative += chain(code, by_c, c_derivative)
    return y, derivative


@jit()
def forward(codes, first, second, third, values, marks, root):
    """Evaluate again, in order, all that the root depends on: ``values[p] = operation(values[arguments])``."""
    lowest = _mark(codes, first, second, third, marks, root)
    for p in range(lowest, root + 1):
        if marks[p] == 0:
            continue
        marks[p] = 0
        code = codes[p]
        if N_ARGUMENTS[code] > 0:
            values[p] = value(code, values[first[p]], values[second[p]], values[third[p]])


@jit()
def backward(codes, first, second, third, values, gradients, marks, root):
    """Write into ``gradients[p]`` the derivative of the root with respect to node p, for all that the root depends on.

    Inputs accumulate: the derivative is added to what they hold.
    """
    if codes[root] != INPUT:
        gradients[root] = 0.0
    gradients[root] += 1.0
    marks[root] = 1
    lowest = root
    p = root
    while p >= lowest:
        if marks[p] != 0:
            marks[p] = 0
            code = codes[p]
            n_arguments = N_ARGUMENTS[code]
            if n_arguments > 0:
                i, j, k = first[p], second[p], third[p]
                for argument in (i, j, k):
                    if marks[argument] == 0:
                        marks[argument] = 1
                        lowest = min(lowest, argument)
                        if codes[argument] != INPUT:  # the first to reach an operation clears its gradient
                            gradients[argument] = 0.0
                by_first, by_second, by_third = partials(code, values[i], values[j], values[k], values[p])
                gradient = gradients[p]
                gradients[i] += chain(code, by_first, gradient)
                if n_arguments > 1:
                    gradients[j] += chain(code, by_second, gradient)
                if n_arguments > 2:
                    gradients[k] += chain(code, by_third, gradient)
        p -= 1


@jit()
def _mark(codes, first, second, third, marks, root):
    """Mark the root and all that it depends on. Returns the lowest mark."""
    marks[root] = 1
    lowest = root
    p = root
    while p >= lowest:
        if marks[p] != 0 and N_ARGUMENTS[codes[p]] > 0:
            i, j, k = first[p], second[p], third[p]
            marks[i] = 1
            marks[j] = 1
            marks[k] = 1
            lowest = min(lowest, i, j, k)
        p -= 1
    return lowest


@jit()
def reachable(codes, first, second, third, marks, root):
    """Return the positions of all that the root depends on, itself last, in order: int64 (n,)."""
    lowest = _mark(codes, first, second, third, marks, root)
    n = 0
    for p in range(lowest, root + 1):
        n += marks[p]
    positions = np.empty(n, np.int64)
    n = 0
    for p in range(lowest, root + 1):
        if marks[p] != 0:
            marks[p] = 0
            positions[n] = p
            n += 1
    return positions


@jit()
def mark_arguments(codes, first, second, third, marks):
    """Mark all that marked nodes depend on; ``marks`` is uint8 (n_nodes,) and stays marked."""
    for p in range(len(marks) - 1, -1, -1):
        if marks[p] != 0 and N_ARGUMENTS[codes[p]] > 0:
            marks[first[p]] = 1
            marks[second[p]] = 1
            marks[third[p]] = 1
