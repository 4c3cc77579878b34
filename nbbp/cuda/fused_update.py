"""The second launch of a fused step: the blocks' parts of the gradient added up in their order, and the update.

Legend: nbbp/cuda/fused.py leaves `parts` (blocks, part_stride), each block's sums over its tiles, and `notes`: the
step, and for each block whether it saw a loss that is not finite. Each of LANES threads adds up every LANES-th part of
one of COLUMNS parameters, and the first of them what they have.
"""

from numba import cuda

from nbbp.cuda.kernels import ARRAY, DOUBLES, INTEGER, INTEGERS, N_SAMPLES, SIMULATED, STEP, kernel
from nbbp.cuda.update import SLOTS, coefficients_of, update_parameter
from nbbp.ops import N_COEFFICIENTS

#: Threads that share a parameter, and parameters of a block.
LANES, COLUMNS = (2, 2) if SIMULATED else (8, 32)
_SHAPE = (LANES, COLUMNS)


@kernel(
    INTEGERS, INTEGERS, INTEGER, INTEGER, INTEGER, ARRAY, INTEGER, INTEGERS, INTEGER, ARRAY, ARRAY, ARRAY, ARRAY,
    DOUBLES, DOUBLES, ARRAY,
    variants=tuple(range(len(SLOTS))),
)  # fmt: skip
def update_by_parts(number, variant):
    """w, slots = rule(w, sum of the parts, slots), one step of the rule `variant`; then the clock moves on.

    `groups` (n,) says which of the coefficients a parameter goes by, -1 for a frozen one. Of `n_blocks` blocks those
    have written parts that had a tile of `rows` rows to take. Writes w (n,), the slots that the rule has, the clock's
    step and, in a run's first step, `good` unless it is empty; nothing but the clock where a loss is not finite.
    """
    n_slots, zero = SLOTS[variant], number(0)

    def update_by_parts(
        clock, notes, batch, rows, n_blocks, parts, part_stride, groups, n, w, slot_0, slot_1, slot_2,
        coefficients_0, coefficients_1, good,
    ):  # fmt: skip
        sum_of = cuda.shared.array(_SHAPE, number)
        column, lane = cuda.threadIdx.x, cuda.threadIdx.y
        step = notes[0]  # not the clock's, which the first block moves while others may still be on their way
        n_rows = min(batch, clock[N_SAMPLES] - step * batch)
        n_parts, bad = min(n_blocks, (n_rows + rows - 1) // rows), 0
        for part in range(lane * COLUMNS + column, n_parts, LANES * COLUMNS):
            if notes[1 + part] != 0:
                bad = 1
        bad = cuda.syncthreads_or(bad)
        if cuda.blockIdx.x == 0 and lane == 0 and column == 0:
            clock[STEP] = step + 1
        if bad != 0:
            return  # a batch whose loss is not finite updates nothing
        line = step * N_COEFFICIENTS
        for first in range(cuda.blockIdx.x * COLUMNS, n, cuda.gridDim.x * COLUMNS):
            i, total = first + column, zero
            if i < n:
                for part in range(lane, n_parts, LANES):
                    total += parts[part * part_stride + i]
            sum_of[lane, column] = total
            cuda.syncthreads()
            if lane == 0 and i < n:
                group, g = groups[i], zero
                if step == 0 and good.size > 0:
                    good[i] = w[i]
                if group >= 0:
                    for k in range(LANES):
                        g += sum_of[k, column]
                    of_step = coefficients_of(number, coefficients_0 if group == 0 else coefficients_1, line)
                    update_parameter(variant, n_slots, w, i, g, slot_0, slot_1, slot_2, of_step)
            cuda.syncthreads()

    return update_by_parts
