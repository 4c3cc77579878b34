"""Short calls from Python: check, bind and run one batch in a single jitted call, a microsecond in all.

Legend: X (n, n_in), target (n,) int64 labels or (n, n_out) values; ``table`` and the rest as in cpu/run.py. The rows of
the table that read the data are named by their number. What is not fine is only refused here; `nbbp.validation` says
why.
"""

import numpy as np

from nbbp import ops
from nbbp.compiling import FASTMATH, jit
from nbbp.cpu import simd
from nbbp.cpu.run import run_alone

_COEFFICIENT_BYTES = 8 * ops.N_COEFFICIENTS


@jit(fastmath=FASTMATH)
def are_within(values, low, high):
    """Whether every number lies in [low, high]; NaN lies nowhere. Counted without a way out, so that it vectorises."""
    outside = type(low)(0)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = values[row, column]
            outside += type(low)(0) if (value >= low) & (value <= high) else type(low)(1)
    return outside == 0


@jit()
def are_labels(labels, n_out):
    """Whether every label is one of 0 … n_out - 1."""
    outside = 0
    for row in range(labels.shape[0]):
        outside += (labels[row] < 0) | (labels[row] >= n_out)
    return outside == 0


@jit()
def predict_now(table, tiles, phases, batch, scratch, gather, copy_out, largest, x, out):
    """Run a prediction program on x and write out (n, n_out); whether x was fine."""
    is_fine = are_within(x, -largest, largest)
    if is_fine:
        table[gather, ops.X] = simd.address_of(x)
        table[copy_out, ops.Y] = simd.address_of(out)
        run_alone(table, tiles, phases, len(x), batch, scratch)
    return is_fine


@jit()
def attach_batch(table, gather, loss, x, target, loss_values):
    """Point the ops that read the data at one batch without order."""
    table[:, ops.N_SAMPLES] = len(x)
    table[gather, ops.X] = simd.address_of(x)
    table[loss, ops.TARGET] = simd.address_of(target)
    table[loss, ops.ROW_VALUES] = simd.address_of(loss_values)


@jit()
def train_now(
    table, tiles, phases, batch, scratch, gather, loss, x, target, loss_values, n_out, coefficients, largest, low, high
):
    """One step on labels (n,) or target values (n, n_out) in [low, high].

    Gives whether the data were fine, and the sum of the rows' losses.
    """
    is_fine = are_within(x, -largest, largest)
    if target.ndim == 1:  # decided while this compiles
        is_fine &= are_labels(target, n_out)
    else:
        is_fine &= are_within(target, low, high)
    if not is_fine:
        return False, np.nan
    attach_batch(table, gather, loss, x, target, loss_values)
    run_alone(table, tiles, phases, len(x), batch, scratch)
    _next_step(table, coefficients)
    return True, total(loss_values, 0.0)


@jit()
def _next_step(table, coefficients):
    """Move the addresses of the step's coefficients, at the flat places `coefficients`, to the next line; count on."""
    for row in range(len(table)):
        table[row, ops.FIRST_STEP] += 1
    cells = table.ravel()
    for place in coefficients:
        cells[place] += _COEFFICIENT_BYTES


@jit()
def total(values, before):
    """`before` and the rows' losses (n,), from first to last: one order, so the same bits however a run is cut."""
    result = np.float64(before)
    for value in values:
        result += value
    return result
