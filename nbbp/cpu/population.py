"""Many networks over the same data: every thread takes one network at a time and runs its epochs to the end.

A stand is a program bound for one thread and for every network of one shape. It has a workspace but none of a
network's own memory; the addresses of that are written into its table when a thread takes the network, some hundred
numbers for an epoch of thousands of kernels. So a network costs its parameters, what the optimizer keeps of them, and
one line of numbers.

Legend: ``members`` (size, FIRST_COEFFICIENTS + n), a line for each network: the columns below, of which those from
PARAMETERS on are addresses that links name. ``stands`` (n_shapes, N_STAND_COLUMNS), this thread's. ``links`` (n, 3): a
flat place in a stand's table, the column of the member's line whose address goes there, and bytes to add to it.
``turns`` (n,), members in the order in which they are taken. ``values`` (n_values, rows), this thread's: what each row
gives for the loss and for every metric. ``counters`` (N_COUNTERS · LINE,), shared by the threads.
"""

from typing import Any

import numpy as np
from numba import carray, int64

from nbbp import ops
from nbbp.compiling import jit
from nbbp.cpu import simd
from nbbp.cpu.engine import BoundProgram
from nbbp.cpu.entry import total
from nbbp.cpu.run import run_alone
from nbbp.cpu.team import LINE
from nbbp.scalars.philox import fill_permutation

#: Which stand trains the member; its seed; batches and epochs so far; rows of a run; whether its loss has gone.
SHAPE, SEED, STEP, EPOCH, ROWS, HAS_STOPPED = range(6)
#: Addresses of the member's own memory, and of what its thread gives it.
PARAMETERS, STATE, GOOD, FIRST_SLOT = 6, 7, 8, 9
N_SLOTS = 4
ORDER, OUTPUT = FIRST_SLOT + N_SLOTS, FIRST_SLOT + N_SLOTS + 1
#: Addresses of step coefficients: one for every group of parameters.
FIRST_COEFFICIENTS = OUTPUT + 1

TABLE, N_OPS, TILES, N_TILES, PHASES, N_PHASES, SCRATCH, BATCH, LINKS, N_LINKS = range(10)
N_STAND_COLUMNS = 10

#: Counters: the next turn, whether to stop early, epochs that were run.
TURN, STOP, DONE = 0, LINE, 2 * LINE
N_COUNTERS = 3

_COEFFICIENT_BYTES = 8 * ops.N_COEFFICIENTS
_ADDRESSES = {
    "parameters": PARAMETERS,
    "state": STATE,
    "good parameters": GOOD,
    "order": ORDER,
    "output": OUTPUT,
    **{f"slot {k}": FIRST_SLOT + k for k in range(N_SLOTS)},
}


class Stand:
    """A program with a workspace, for one thread and any network of its shape.

    Parameters
    ----------
    program : nbbp.program.Program
    dtype : dtype
    coefficients : sequence of str
        Names of the buffers of step coefficients, in the order of the members' columns.
    brought : dict of str to ndarray or None
        What is the same for every network: data, and where the rows' losses and metrics go.

    Attributes
    ----------
    line : ndarray of int64, (N_STAND_COLUMNS,)
        What jitted code sees of it; good as long as this object lives.
    """

    def __init__(self, program: Any, dtype: np.dtype, coefficients: Any, brought: dict[str, Any]) -> None:
        self.bound = bound = BoundProgram(program, dtype, {})
        for name, array in brought.items():
            bound.attach(name, array)
        columns = _ADDRESSES | {name: FIRST_COEFFICIENTS + k for k, name in enumerate(coefficients)}
        links = [
            (cell, column, offset)
            for name, column in columns.items()
            for cell, offset in zip(*bound.links(name), strict=True)
        ]
        self.links = np.array(links, np.int64).reshape(-1, 3)
        arrays = (bound.table, bound.tiles, bound.phases)
        sizes = [number for array in arrays for number in (array.ctypes.data, len(array))]
        more = bound.scratch.ctypes.data, program.batch, self.links.ctypes.data, len(self.links)
        self.line = np.array([*sizes, *more], np.int64)


@jit()
def _matrix(address, rows, columns):
    """int64 numbers (rows, columns) that lie at an address."""
    return carray(simd.pointer(address, int64(0)), (rows, columns))


@jit()
def run_member(stand, member, n_samples):
    """Run a stand's program over `n_samples` rows for the member of this line, from its step on."""
    table = _matrix(stand[TABLE], stand[N_OPS], ops.N_COLUMNS)
    cells = simd.pointer(stand[TABLE], int64(0))
    links = _matrix(stand[LINKS], stand[N_LINKS], 3)
    for k in range(len(links)):
        cells[links[k, 0]] = member[links[k, 1]] + links[k, 2]
    for op in range(len(table)):
        table[op, ops.SEED] = member[SEED]
        table[op, ops.FIRST_STEP] = member[STEP]
        table[op, ops.N_SAMPLES] = n_samples
    tiles = _matrix(stand[TILES], stand[N_TILES], ops.N_TILE_COLUMNS)
    phases = carray(simd.pointer(stand[PHASES], int64(0)), (stand[N_PHASES],))
    run_alone(table, tiles, phases, n_samples, stand[BATCH], stand[SCRATCH])


@jit()
def train_epoch(stand, member, n_samples, is_shuffled, order, words, values, sums):
    """One epoch of a member, in runs of member[ROWS] rows; writes sums (n_values,) and the member's line.

    `words` is what shuffling needs (`nbbp.scalars.philox.room_for_words`).

    Gives whether the loss stayed finite. The run in which it did not is the last; then sums[0] is not finite.
    """
    if is_shuffled:
        fill_permutation(order, words, member[SEED], member[EPOCH])
    member[EPOCH] += 1
    sums[:] = 0.0
    for start in range(0, n_samples, member[ROWS]):
        n_rows = min(member[ROWS], n_samples - start)
        member[ORDER] = simd.address_of(order) + 8 * start
        run_member(stand, member, n_rows)
        n_steps = (n_rows + stand[BATCH] - 1) // stand[BATCH]
        member[STEP] += n_steps
        for k in range(FIRST_COEFFICIENTS, len(member)):
            member[k] += n_steps * _COEFFICIENT_BYTES
        for k in range(len(values)):
            sums[k] = total(values[k, :n_rows], sums[k])
        if not np.isfinite(sums[0]):
            return False
    return True


@jit()
def train_members(
    members,
    turns,
    stands,
    evaluations,
    first,
    stop,
    n_samples,
    n_validation,
    is_shuffled,
    order,
    words,
    values,
    sums,
    counters,
):
    """The part of one thread in the epochs [first, stop) of every member; all threads call this at once.

    Writes sums (1 or 2, size, epochs, n_values), of training and of validation, where an epoch was run.
    """
    counter = simd.pointer(simd.address_of(counters), int64(0))
    while True:
        turn = simd.atomic_add(counter, 1)
        if turn >= len(turns):
            return
        number = turns[turn]
        member = members[number]
        for epoch in range(first, stop):
            if simd.atomic_load(simd.advance(counter, STOP)):
                return
            into = sums[0, number, epoch]
            if not train_epoch(stands[member[SHAPE]], member, n_samples, is_shuffled, order, words, values, into):
                member[HAS_STOPPED] = 1
                break
            if n_validation > 0:
                member[ORDER] = 0
                run_member(evaluations[member[SHAPE]], member, n_validation)
                for k in range(len(values)):
                    sums[1, number, epoch, k] = total(values[k, :n_validation], 0.0)
            simd.atomic_add(simd.advance(counter, DONE), 1)


@jit()
def run_members(members, turns, stands, n_samples, output, output_bytes, values, sums, counters):
    """The part of one thread in running every member forward; writes sums (size, n_values), added to what is there.

    `output` is the address of the first member's outputs, `output_bytes` how far from there the next one's are.
    """
    counter = simd.pointer(simd.address_of(counters), int64(0))
    while True:
        turn = simd.atomic_add(counter, 1)
        if turn >= len(turns) or simd.atomic_load(simd.advance(counter, STOP)):
            return
        number = turns[turn]
        member = members[number]
        member[OUTPUT] = output + number * output_bytes
        run_member(stands[member[SHAPE]], member, n_samples)
        for k in range(len(values)):
            sums[number, k] = total(values[k, :n_samples], sums[number, k])
