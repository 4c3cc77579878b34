"""Optimizer updates over a stretch of the flat parameter buffer, and the sum of partial gradients before them.

Legend: a segment [N_IN, N_OUT) of W shares its coefficients (learning rate, decay); a tile [column_start, column_stop)
of units of SLOT_STRIDE numbers cuts it. COEFFICIENTS holds a line of ``N_COEFFICIENTS`` float64 per step: coupled L2,
L1, decoupled multiplier, then what the rule takes (nbbp/optimizers.py computes them).

A batch whose loss is not finite (ROW_VALUES) updates nothing: its gradient would wipe out every layer, and with them
the trace of where the numbers went. Nor does a gradient whose norm (SQUARES) is not finite, or a batch that only adds
its gradient to those of others (ACCUMULATION; cpu/gradient.py).
"""

import numpy as np
from numba import float64, njit

from nbbp import ops
from nbbp.compiling import FASTMATH, jit
from nbbp.cpu import adam, simd
from nbbp.cpu.kernels import kernel
from nbbp.scalars.updates import UPDATES, penalized_gradient, update_rule

N_SLOTS = {rule.code: rule.n_slots for rule in UPDATES.values()}
_SLOTS_BY_CODE = tuple(N_SLOTS[code] for code in range(len(N_SLOTS)))
#: A sum of squares that large counts as infinite, so that the sum of however many stays finite (norms below 1e149).
_LARGEST_SQUARES = 1e298
penalized = njit(fastmath=FASTMATH)(penalized_gradient)


@jit()
def losses_are_finite(op, step, row_start, row_stop):
    """Whether the losses of these rows of the batch are, where the op has them."""
    if op[ops.ROW_VALUES] == 0:
        return True
    values = simd.advance(simd.pointer(op[ops.ROW_VALUES], float64(0)), step * op[ops.BATCH])
    bad = np.int64(0)
    for r in range(row_start, row_stop):
        bad |= np.int64(not (abs(values[r]) < np.inf))
    return bad == 0


@jit()
def place_among(op, step):
    """How many batches of the same update came before this one."""
    return (op[ops.FIRST_STEP] + step) % max(op[ops.ACCUMULATION], 1)


@jit()
def gradient_is_finite(op):
    """Whether the sums of squares of all parts of the gradient are."""
    squares = simd.pointer(op[ops.SQUARES], float64(0))
    bad = np.int64(0)
    for part in range(op[ops.N_SQUARES]):
        bad |= np.int64(not (abs(squares[part]) < _LARGEST_SQUARES))
    return bad == 0


@jit()
def is_update(op, step, row_start, row_stop):
    """Whether the batch updates: the last of those that do together, with finite losses and a finite gradient."""
    if op[ops.ACCUMULATION] > 1 and place_among(op, step) + 1 < op[ops.ACCUMULATION]:  # a division is not for nothing
        return False
    if op[ops.SQUARES] != 0 and not gradient_is_finite(op):
        return False
    return losses_are_finite(op, step, row_start, row_stop)


@jit()
def units_of_tile(op, column_start, column_stop):
    """The first unit of the segment within the tile, and its units as rows without gaps: how many, of how many numbers.

    No rows where the segment lies elsewhere.
    """
    first = max(column_start, op[ops.N_IN])
    n_rows, n = max(min(column_stop, op[ops.N_OUT]) - first, 0), op[ops.SLOT_STRIDE]
    if op[ops.W_STRIDE] == n and n_rows > 0:
        n_rows, n = 1, n_rows * n
    return first, n_rows, n


@jit()
def gradient_of_tile(op, first, column_start, zero, scratch):
    """The gradient of the units from `first` on: of all rows at X, or of the tile's alone, in scratch where X is 0."""
    gradient = simd.pointer(op[ops.X] if op[ops.X] != 0 else scratch, zero)
    return simd.advance(gradient, (first - column_start if op[ops.TILE_LOCAL] else first) * op[ops.SLOT_STRIDE])


@kernel("reduce_gradient")
def reduce_gradient(zero, variant):
    """Y = the sum of partial gradients, in their order; Y (columns,), partials SLOT_STRIDE apart. Writes Y.

    The first of them is Y itself, or begins at X, which must not overlap Y.
    """

    def reduce_gradient(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n_slots = (row_stop + op[ops.SLOT_ROWS] - 1) // op[ops.SLOT_ROWS]
        y = simd.advance(simd.pointer(op[ops.Y], zero), column_start)
        partials = y
        if op[ops.X] != 0:
            partials = simd.advance(simd.pointer(op[ops.X], zero), column_start)
            simd.copy(y, partials, column_stop - column_start)
        for slot in range(1, n_slots):
            x = simd.advance(partials, slot * op[ops.SLOT_STRIDE])
            for i in range(column_stop - column_start):
                y[i] += x[i]

    return reduce_gradient


@kernel("update", tuple(N_SLOTS), fastmath=FASTMATH)
def update(zero, variant):
    """W, slots = rule(W, X, slots): one step of the rule `variant` over the segment within the tile.

    X the gradient, of all rows or of the tile's alone (TILE_LOCAL, in scratch where X is 0), without gaps. Writes W and
    the slots; none of them may overlap.
    """
    n_slots = _SLOTS_BY_CODE[variant]
    is_adam = variant == UPDATES["adam"].code and type(zero) is np.float32 and simd.HAS_ESTIMATES

    def update(op, step, row_start, row_stop, column_start, column_stop, scratch):
        first, n_rows, n = units_of_tile(op, column_start, column_stop)
        if n_rows == 0 or not is_update(op, step, row_start, row_stop):
            return
        width, stride = op[ops.SLOT_STRIDE], op[ops.W_STRIDE]
        gradient = gradient_of_tile(op, first, column_start, zero, scratch)
        line = simd.advance(simd.pointer(op[ops.COEFFICIENTS], float64(0)), step * ops.N_COEFFICIENTS)
        number = type(zero)
        l2, l1, kept = number(line[0]), number(line[1]), number(line[2])
        c = (
            number(line[3]), number(line[4]), number(line[5]), number(line[6]),
            number(line[7]), number(line[8]), number(line[9]), number(line[10]),
        )  # fmt: skip
        is_plain = l2 == 0 and l1 == 0 and kept == 1
        for r in range(n_rows):
            at = (first + r) * stride
            g = simd.advance(gradient, r * width)
            w = simd.advance(simd.pointer(op[ops.W], zero), at)
            s0 = simd.advance(simd.pointer(op[ops.SLOT_0], zero), at)
            s1 = simd.advance(simd.pointer(op[ops.SLOT_1], zero), at)
            s2 = simd.advance(simd.pointer(op[ops.SLOT_2], zero), at)
            if is_adam and l1 == 0:
                adam.adam(w, g, s0, s1, n, l2, kept, c)
                continue
            for i in range(n):
                parameter, slope = w[i], g[i]
                if not is_plain:
                    slope = penalized(parameter, slope, l2, l1)
                    parameter *= kept
                if n_slots == 0:
                    w[i], _, _, _ = update_rule(variant, parameter, slope, zero, zero, zero, c)
                elif n_slots == 1:
                    w[i], s0[i], _, _ = update_rule(variant, parameter, slope, s0[i], zero, zero, c)
                elif n_slots == 2:
                    w[i], s0[i], s1[i], _ = update_rule(variant, parameter, slope, s0[i], s1[i], zero, c)
                else:
                    w[i], s0[i], s1[i], s2[i] = update_rule(variant, parameter, slope, s0[i], s1[i], s2[i], c)

    return update
