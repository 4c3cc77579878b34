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

#: Columns that are summed up at a time: what is near in memory is read together.
_COLUMNS = 8


@jit(fastmath=FASTMATH)
def _blend(kept, share, total, n):
    """kept[0] += share (total / n - kept[0])."""
    kept[0] += share * (type(kept[0])(total / n) - kept[0])


@jit(fastmath=FASTMATH)
def _squares(g, n, stride):
    """The sum of g[j · stride]² over j < n."""
    total = float64(0)
    for j in range(n):
        total += float64(g[j * stride]) ** 2
    return total


@jit(fastmath=FASTMATH)
def _squares_of_columns(g, n, stride):
    """The sums of g[j · stride + i]² over j < n, for each i < _COLUMNS."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = float64(0)
    for j in range(n):
        row = simd.advance(g, j * stride)
        s0 += float64(row[0]) ** 2
        s1 += float64(row[1]) ** 2
        s2 += float64(row[2]) ** 2
        s3 += float64(row[3]) ** 2
        s4 += float64(row[4]) ** 2
        s5 += float64(row[5]) ** 2
        s6 += float64(row[6]) ** 2
        s7 += float64(row[7]) ** 2
    return s0, s1, s2, s3, s4, s5, s6, s7


@jit(fastmath=FASTMATH)
def _blend_both(kept, share, g, n_rows, n_columns):
    """Blend the mean of g² over each row, then over each column, into kept (n_rows + n_columns,)."""
    for i in range(n_rows):
        _blend(simd.advance(kept, i), share, _squares(simd.advance(g, i * n_columns), n_columns, 1), n_columns)
    columns = simd.advance(kept, n_rows)
    whole = n_columns // _COLUMNS * _COLUMNS
    for first in range(0, whole, _COLUMNS):
        for i, total in enumerate(_squares_of_columns(simd.advance(g, first), n_rows, n_columns)):
            _blend(simd.advance(columns, first + i), share, total, n_rows)
    for i in range(whole, n_columns):
        _blend(simd.advance(columns, i), share, _squares(simd.advance(g, i), n_rows, n_columns), n_rows)


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
        _blend_both(kept, share, g, n_rows, n_columns)
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
