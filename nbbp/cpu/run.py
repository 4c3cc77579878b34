"""The engine's loop: steps, phases, tiles, ops.

Legend: ``table`` (n_ops, ops.N_COLUMNS), the op table with every address filled in; ``tiles`` (n_tiles,
ops.N_TILE_COLUMNS); ``phases`` (n_phases + 1,), where each phase's tiles begin. A phase starts when the one before it
is done; its tiles write apart from each other.
"""

from numba import int64

from nbbp import ops
from nbbp.compiling import jit
from nbbp.cpu import simd
from nbbp.cpu import team as teams


@jit()
def run_tile(table, tiles, tile, step, n_rows, scratch):
    """Run the ops of one tile on the rows that the batch really has."""
    row_start, row_stop = tiles[tile, 2], min(tiles[tile, 3], n_rows)
    if row_start < row_stop:
        for op in range(tiles[tile, 0], tiles[tile, 1]):
            row = simd.advance(table, op * ops.N_COLUMNS)
            simd.call_kernel(row, ops.KERNEL, step, row_start, row_stop, tiles[tile, 4], tiles[tile, 5], scratch)


@jit()
def _steps(rows_of_table, tiles, n_tiles, first, last, n_samples, batch, scratch):
    """The steps [first, last) of a run of `n_samples` rows."""
    for step in range(first, last):
        n_rows = min(batch, n_samples - step * batch)
        for tile in range(n_tiles):
            run_tile(rows_of_table, tiles, tile, step, n_rows, scratch)


@jit()
def run_alone(table, tiles, phases, n_samples, batch, scratch):
    """Every step of a run of `n_samples` rows, on the calling thread."""
    state = simd.flush_denormals()
    rows_of_table = simd.pointer(simd.address_of(table), int64(0))
    n_steps = (n_samples + batch - 1) // batch
    _steps(rows_of_table, tiles, phases[len(phases) - 1], 0, n_steps, n_samples, batch, scratch)
    simd.restore_denormals(state)


@jit()
def run_alone_monitored(table, tiles, phases, due_tiles, due_phases, due, period, n_samples, batch, scratch):
    """As `run_alone`; the step `due` and every `period`-th after it by the tiles and phases of a monitored one."""
    state = simd.flush_denormals()
    rows_of_table = simd.pointer(simd.address_of(table), int64(0))
    n_steps = (n_samples + batch - 1) // batch
    n_tiles, n_due_tiles = phases[len(phases) - 1], due_phases[len(due_phases) - 1]
    first = 0
    while first < n_steps:
        last = min(due, n_steps)
        _steps(rows_of_table, tiles, n_tiles, first, last, n_samples, batch, scratch)
        first = min(last + 1, n_steps)
        _steps(rows_of_table, due_tiles, n_due_tiles, last, first, n_samples, batch, scratch)
        due += period
    simd.restore_denormals(state)


@jit()
def run_in_team(
    table, tiles, phases, due_tiles, due_phases, due, period, n_samples, batch, scratch, counters, thread, n_threads
):
    """The part of `thread` in the same run; every thread of the team calls this once with its own scratch.

    `counters` ((1 + n_threads) · LINE,) must be zero before the first of them starts. Monitored steps as in
    `run_alone_monitored`; `due` is beyond the run where there are none.
    """
    state = simd.flush_denormals()
    rows_of_table = simd.pointer(simd.address_of(table), int64(0))
    team = simd.pointer(simd.address_of(counters), int64(0))
    done = n_monitored = 0
    for step in range((n_samples + batch - 1) // batch):
        n_rows = min(batch, n_samples - step * batch)
        is_due = step == due
        its_tiles, its_phases = tiles, phases
        if is_due:
            its_tiles, its_phases = due_tiles, due_phases
        for phase in range(len(its_phases) - 1):
            first, n_tiles = its_phases[phase], its_phases[phase + 1] - its_phases[phase]
            for turn in range(n_threads):
                stretch = (thread + turn) % n_threads
                start, stop = n_tiles * stretch // n_threads, n_tiles * (stretch + 1) // n_threads
                # tickets are counted over the whole run: those of the phases before this one are all taken
                before = (step - n_monitored) * _tickets(phases, len(phases) - 1, stretch, n_threads)
                before += n_monitored * _tickets(due_phases, len(due_phases) - 1, stretch, n_threads)
                before += _tickets(its_phases, phase, stretch, n_threads)
                while True:
                    tile = teams.take_tile(team, stretch, before, stop - start)
                    if tile < 0:
                        break
                    run_tile(rows_of_table, its_tiles, first + start + tile, step, n_rows, scratch)
                    simd.atomic_add(team, 1)
            teams.wait_until(team, done + its_phases[phase + 1])
        done += its_phases[len(its_phases) - 1]
        if is_due:
            n_monitored, due = n_monitored + 1, due + period
    simd.restore_denormals(state)


@jit()
def _tickets(phases, n_phases, stretch, n_threads):
    """How many tiles the first `n_phases` phases deal to `stretch`."""
    total = 0
    for phase in range(n_phases):
        n_tiles = phases[phase + 1] - phases[phase]
        total += n_tiles * (stretch + 1) // n_threads - n_tiles * stretch // n_threads
    return total
