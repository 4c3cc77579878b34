"""Adafactor (Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, algorithm 4).

Legend: one parameter W of rows × columns, N_IN × N_OUT. The second moment of a matrix is kept as the means of its rows
and of its columns (SLOT_0 holds rows, then columns); that of a vector (IS_MATRIX 0, N_IN = 1) in full. Semantics as
torch.optim.Adafactor. Coefficients behind the three of decay: 1 - beta2_t, relative step rho_t, eps1, eps2, clipping
threshold d; eps1 = 0 stands for the precision of the dtype. Sums and the numbers of a whole parameter are float64.
"""

import math

import numpy as np
from numba import float64

from nbbp import ops
from nbbp.compiling import FASTMATH, jit
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel
from nbbp.cpu.update import is_update, penalized


@jit(fastmath=FASTMATH)
def _blend(kept, share, start, count, g, stride_in, stride_out, n):
    """kept[i] += share (mean over j < n of g[i, j]² - kept[i])."""
    for i in range(count):
        total = float64(0)
        for j in range(n):
            value = float64(g[i * stride_in + j * stride_out])
            total += value * value
        kept[start + i] += share * (type(kept[start + i])(total / n) - kept[start + i])


@jit(fastmath=FASTMATH, forceinline=True)
def adafactor_step(w, g, kept, n_rows, n_columns, is_matrix, line, precision, smallest):
    """One step of w (n_rows, n_columns) with the gradient g and the moments `kept`, all of them pointers.

    `line` are the step's coefficients as in the legend, float64; `precision` and `smallest` are eps and tiny of the
    dtype. Writes w, kept and g, which ends as the clipped update.
    """
    number = type(w[0])
    n = n_rows * n_columns
    l2, l1 = number(line[0]), number(line[1])
    share, eps_gradient, eps_scale, threshold = number(line[3]), line[5], line[6], line[7]
    if eps_gradient == 0:
        eps_gradient = precision
    if l2 != 0 or l1 != 0:
        for i in range(n):
            g[i] = penalized(w[i], g[i], l2, l1)
    squares = float64(0)
    for i in range(n):
        squares += float64(w[i]) * float64(w[i])
    step_size = max(eps_scale, math.sqrt(squares / n)) * line[4]
    mean = float64(1)
    if is_matrix:
        _blend(kept, share, 0, n_rows, g, n_columns, 1, n_columns)
        _blend(kept, share, n_rows, n_columns, g, 1, n_columns, n_rows)
        mean = float64(0)
        for i in range(n_rows):
            mean += float64(kept[i])
        mean = max(mean / n_rows, eps_gradient)
    else:
        for i in range(n):
            kept[i] += share * (g[i] * g[i] - kept[i])
    # Shazeer and Stern's eps1 squared is no number of float32; comparisons below keep NaN, which max might not
    floor = number(max(eps_gradient * eps_gradient, smallest))
    columns = simd.advance(kept, n_rows if is_matrix else 0)
    squares = float64(0)
    for i in range(n_rows):
        row = number(float64(kept[i]) / mean) if is_matrix else number(1)
        for j in range(n_columns):
            moment = row * columns[j]
            moment = floor if moment < floor else moment
            at = i * n_columns + j
            g[at] /= number(math.sqrt(moment))
            squares += float64(g[at]) * float64(g[at])
    clipped = math.sqrt(squares / n) / threshold
    factor = number(step_size / (1.0 if clipped < 1.0 else clipped))
    kept_share = number(line[2])
    for i in range(n):
        w[i] = w[i] * kept_share - factor * g[i]


@kernel("adafactor", fastmath=FASTMATH)
def adafactor(zero, variant):
    """One step of W (N_IN, N_OUT) with the gradient X; writes W, SLOT_0 and X (which ends as the clipped update)."""
    precision = float(np.finfo(zero.dtype).eps)
    smallest = float(np.finfo(zero.dtype).tiny)

    def adafactor(op, step, row_start, row_stop, column_start, column_stop, scratch):
        if not is_update(op, step, row_start, row_stop):
            return
        w, g, kept = simd.pointer(op[ops.W], zero), simd.pointer(op[ops.X], zero), simd.pointer(op[ops.SLOT_0], zero)
        line = simd.advance(simd.pointer(op[ops.COEFFICIENTS], float64(0)), step * ops.N_COEFFICIENTS)
        adafactor_step(w, g, kept, op[ops.N_IN], op[ops.N_OUT], op[ops.IS_MATRIX] != 0, line, precision, smallest)

    return adafactor
