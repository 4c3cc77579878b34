"""What a monitored step looks at: what layers give, the gradients that come back, and parameters before and after.

Legend: rows r of the batch; a layer gives N_OUT numbers per row. "monitor_rows" leaves N_ROW_SUMS float64 per row,
"monitor_before" and "monitor_after" N_PARAMETER_SUMS per layer and tile, each where no other tile writes;
"monitor_record" adds them up in their order when all are done. So the record is the same for any number of threads.
None of them writes anything that the training reads.
"""

import math

import numpy as np
from numba import float64

from nbbp import ops
from nbbp.compiling import FASTMATH, jit
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel
from nbbp.cpu.update import gradient_of_tile, units_of_tile

#: Per row: sum, squared deviations from the row's mean, zeros, saturated numbers.
N_ROW_SUMS = 4
#: Per tile: sums of squares of the parameters, the gradient and the change of the parameters.
N_PARAMETER_SUMS = 3
#: Of a record; in this order.
MEAN, SPREAD, ZEROS, SATURATED, OUTPUT_GRADIENT, WEIGHT_NORM, GRADIENT_NORM, UPDATE_NORM = range(8)
N_QUANTITIES = 8


@jit(fastmath=FASTMATH)
def _sum(x, n):
    """The sum of x[i], in float64."""
    total = float64(0)
    for i in range(n):
        total += float64(x[i])
    return total


@jit(fastmath=FASTMATH)
def _squared_deviations(x, mean, n):
    """The sum of (x[i] - mean)², in float64."""
    total = float64(0)
    for i in range(n):
        deviation = float64(x[i]) - mean
        total += deviation * deviation
    return total


@jit(fastmath=FASTMATH)
def _squared_distance(x, y, n):
    """The sum of (x[i] - y[i])², in float64."""
    total = float64(0)
    for i in range(n):
        distance = float64(x[i]) - float64(y[i])
        total += distance * distance
    return total


@jit()
def _count(x, n, low, high):
    """How many x[i] are 0, and how many are at or beyond `low` or `high`."""
    zeros = outside = np.int64(0)
    for i in range(n):
        zeros += np.int64(x[i] == 0)
        outside += np.int64((x[i] <= low) | (x[i] >= high))
    return zeros, outside


@kernel("monitor_rows", fastmath=FASTMATH)
def monitor_rows(zero, variant):
    """Y[r] = Σ x, Σ (x - mean of the row)², number of x = 0, number of x <= low or >= high, over x = X[r, :].

    X (batch, N_OUT), Y (batch, N_ROW_SUMS) float64, SETTINGS: low, high. Of gradients (N_IN = 1) Y[r] = 0, Σ x², 0, 0;
    in fp16 X are the true ones times LOSS_SCALE, and the sums those of the true ones. Writes Y.
    """

    def monitor_rows(op, step, row_start, row_stop, column_start, column_stop, scratch):
        settings = simd.pointer(op[ops.SETTINGS], zero)
        factor, n = float64(1), op[ops.N_OUT]
        if op[ops.LOSS_SCALE] != 0:
            factor = 1.0 / float64(simd.pointer(op[ops.LOSS_SCALE], zero)[0])
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], float64(0)), r * N_ROW_SUMS)
            if op[ops.N_IN] == 1:
                y[0], y[1] = float64(0), _squared_deviations(x, float64(0), n) * factor * factor
                y[2] = y[3] = float64(0)
            else:
                y[0] = _sum(x, n)
                y[1] = _squared_deviations(x, y[0] / n, n)
                y[2], y[3] = _count(x, n, settings[0], settings[1])

    return monitor_rows


@jit()
def _of_tile(op, column_start):
    """Where the sums of a tile of N_LOOKUPS units go."""
    tile = op[ops.N_SQUARES] + column_start // op[ops.N_LOOKUPS]
    return simd.advance(simd.pointer(op[ops.SQUARES], float64(0)), tile * N_PARAMETER_SUMS)


@kernel("monitor_before", fastmath=FASTMATH)
def monitor_before(zero, variant):
    """SQUARES of the tile = Σ W², Σ X², 0; Y = W: over the units [N_IN, N_OUT) within the tile.

    Columns as those of "update" (cpu/update.py): parameters W as units of SLOT_STRIDE numbers, W_STRIDE apart, X their
    gradient without gaps; Y lies as W does. Writes SQUARES and Y, which must not overlap anything.
    """

    def monitor_before(op, step, row_start, row_stop, column_start, column_stop, scratch):
        width, stride, sums = op[ops.SLOT_STRIDE], op[ops.W_STRIDE], _of_tile(op, column_start)
        sums[0] = sums[1] = sums[2] = float64(0)
        first, n_rows, n = units_of_tile(op, column_start, column_stop)
        gradient = gradient_of_tile(op, first, column_start, zero, scratch)
        for r in range(n_rows):
            w = simd.advance(simd.pointer(op[ops.W], zero), (first + r) * stride)
            simd.copy(simd.advance(simd.pointer(op[ops.Y], zero), (first + r) * stride), w, n)
            sums[0] += _squared_deviations(w, float64(0), n)
            sums[1] += _squared_deviations(simd.advance(gradient, r * width), float64(0), n)

    return monitor_before


@kernel("monitor_after", fastmath=FASTMATH)
def monitor_after(zero, variant):
    """SQUARES[2] of the tile = Σ (W - Y)²: what the update has changed since "monitor_before". Columns as there."""

    def monitor_after(op, step, row_start, row_stop, column_start, column_stop, scratch):
        sums = _of_tile(op, column_start)
        first, n_rows, n = units_of_tile(op, column_start, column_stop)
        for r in range(n_rows):
            at = (first + r) * op[ops.W_STRIDE]
            w = simd.advance(simd.pointer(op[ops.W], zero), at)
            sums[2] += _squared_distance(w, simd.advance(simd.pointer(op[ops.Y], zero), at), n)

    return monitor_after


@jit()
def _whole_spread(rows, n_rows, n, mean):
    """The standard deviation of all n_rows · n numbers around their `mean`, from the sums of their rows.

    T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1.
    """
    total = float64(0)
    for r in range(n_rows):
        deviation = rows[r * N_ROW_SUMS] / n - mean
        total += rows[r * N_ROW_SUMS + 1] + n * deviation * deviation
    return math.sqrt(total / (n_rows * n))


@jit()
def _total(sums, place, n, stride):
    """The sum of sums[place], sums[place + stride], …, n of them."""
    total = float64(0)
    for i in range(n):
        total += sums[place + i * stride]
    return total


@kernel("monitor_record")
def monitor_record(zero, variant):
    """The quantities of one layer, NaN where there is none, into Y: record of this step, line LAYER of it. Writes Y.

    Y (records of the run, SLOT_STRIDE, N_QUANTITIES) float64; X (batch, N_ROW_SUMS) the sums of what the layer gives
    and W those of its gradient; N_IN tiles of sums at SQUARES, from tile N_SQUARES on. Each of them 0 for none. Without
    the last a frozen layer's PARAMETERS (N_PARAMETERS,) give their norm. SETTINGS: low, high as in "monitor_rows", and
    1 if the loss is a mean: then the gradient of a row's own loss is that of the batch's times its rows.
    """

    def monitor_record(op, step, row_start, row_stop, column_start, column_stop, scratch):
        k, period, first = max(op[ops.ACCUMULATION], 1), op[ops.PERIOD], op[ops.FIRST_STEP]
        record = (first + step) // period - (first + period - k) // period
        y = simd.pointer(op[ops.Y], float64(0))
        y = simd.advance(y, (record * op[ops.SLOT_STRIDE] + op[ops.LAYER]) * N_QUANTITIES)
        for quantity in range(N_QUANTITIES):
            y[quantity] = math.nan
        n = op[ops.N_OUT]
        count, settings = row_stop * n, simd.pointer(op[ops.SETTINGS], zero)
        if op[ops.X] != 0:
            rows = simd.pointer(op[ops.X], float64(0))
            y[MEAN] = _total(rows, 0, row_stop, N_ROW_SUMS) / count
            y[SPREAD] = _whole_spread(rows, row_stop, n, y[MEAN])
            y[ZEROS] = _total(rows, 2, row_stop, N_ROW_SUMS) / count
            if settings[0] > -math.inf or settings[1] < math.inf:
                y[SATURATED] = _total(rows, 3, row_stop, N_ROW_SUMS) / count
        if op[ops.W] != 0:
            y[OUTPUT_GRADIENT] = _whole_spread(simd.pointer(op[ops.W], float64(0)), row_stop, n, float64(0))
            if settings[2] != 0:
                y[OUTPUT_GRADIENT] *= row_stop
        if op[ops.SQUARES] != 0:
            sums = simd.advance(simd.pointer(op[ops.SQUARES], float64(0)), op[ops.N_SQUARES] * N_PARAMETER_SUMS)
            for quantity in range(N_PARAMETER_SUMS):
                y[WEIGHT_NORM + quantity] = math.sqrt(_total(sums, quantity, op[ops.N_IN], N_PARAMETER_SUMS))
        elif op[ops.PARAMETERS] != 0:
            parameters = simd.pointer(op[ops.PARAMETERS], zero)
            y[WEIGHT_NORM] = math.sqrt(_squared_deviations(parameters, float64(0), op[ops.N_PARAMETERS]))
            y[UPDATE_NORM] = 0.0

    return monitor_record
