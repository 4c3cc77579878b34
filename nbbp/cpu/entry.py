"""Short calls from Python: check, bind and run one batch in a single jitted call, a microsecond in all.

Legend: X (n, n_in), target (n,) int64 labels or (n, n_out) values; ``table`` and the rest as in cpu/run.py. The rows of
the table that read the data are named by their number; status is -1, or the flat index of the first number that is
NaN or infinite in X, then in the target (counted on from X.size).
"""

import math

import numpy as np

from nbbp import ops
from nbbp.compiling import jit
from nbbp.cpu import simd
from nbbp.cpu.run import run_alone

FINE = -1
_COEFFICIENT_BYTES = 8 * ops.N_COEFFICIENTS


@jit()
def first_not_finite(values):
    """Flat index of the first NaN or infinity, or FINE."""
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            if not math.isfinite(values[row, column]):
                return row * values.shape[1] + column
    return FINE


@jit()
def first_bad_label(labels, n_out):
    """Index of the first label outside 0 … n_out - 1, or FINE."""
    for row in range(labels.shape[0]):
        if labels[row] < 0 or labels[row] >= n_out:
            return row
    return FINE


@jit()
def predict_now(table, tiles, phases, batch, scratch, gather, copy_out, x, out):
    """Run a prediction program on x and write out (n, n_out); gives the status."""
    status = first_not_finite(x)
    if status == FINE:
        table[gather, ops.X] = simd.address_of(x)
        table[copy_out, ops.Y] = simd.address_of(out)
        run_alone(table, tiles, phases, len(x), batch, scratch)
    return status


@jit()
def attach_batch(table, gather, loss, x, target, loss_values):
    """Point the ops that read the data at one batch without order."""
    table[:, ops.N_SAMPLES] = len(x)
    table[gather, ops.X] = simd.address_of(x)
    table[loss, ops.TARGET] = simd.address_of(target)
    table[loss, ops.ROW_VALUES] = simd.address_of(loss_values)


@jit()
def train_now(table, tiles, phases, batch, scratch, gather, loss, x, target, loss_values, n_out, coefficients):
    """One step on labels (n,) or target values (n, n_out); gives the status and the sum of the rows' losses."""
    status = first_not_finite(x)
    if status == FINE:
        if target.ndim == 1:  # decided while this compiles
            status = first_bad_label(target, n_out)
        else:
            status = first_not_finite(target)
        status = status + x.size if status != FINE else status
    if status == FINE:
        attach_batch(table, gather, loss, x, target, loss_values)
        run_alone(table, tiles, phases, len(x), batch, scratch)
        _next_step(table, coefficients)
    return status, total(loss_values)


@jit()
def _next_step(table, coefficients):
    """Move the addresses of the step's coefficients, at the flat places `coefficients`, to the next line."""
    cells = table.ravel()
    for place in coefficients:
        cells[place] += _COEFFICIENT_BYTES


@jit()
def total(values):
    """The sum of the rows' losses (n,) from first to last: one order, so the same bits whichever way a step ran."""
    result = np.float64(0)
    for value in values:
        result += value
    return result
