"""A team of threads inside jitted code: who takes which tile, and when all are done.

The threads run one program in step. The tiles of a phase are dealt in one stretch per thread, so that a tile's data
stays in one core's cache; a thread that has finished its own takes what is left of the others'. A phase ends when its
tiles are done, not when every thread has come: one that another process holds up delays nobody unless it holds a tile.
Which thread computes a tile never changes what is computed, so results are the same bits for any number of threads.

Legend: ``team`` points to int64 counters, ``LINE`` apart (a cache line each): tiles done, then tickets taken of each
stretch, all counted from the start of the run.
"""

from nbbp.compiling import jit
from nbbp.cpu import simd

LINE = 16
#: Turns of waiting before a thread offers its processor to others: some 20 µs.
_SPINS = 1000


@jit()
def take_tile(team, stretch, first_ticket, n_tiles):
    """The number of the next free tile of `stretch`, below n_tiles, or -1."""
    counter = simd.advance(team, (1 + stretch) * LINE)
    while True:
        ticket = simd.atomic_load(counter)
        if ticket >= first_ticket + n_tiles:
            return -1
        if simd.compare_and_swap(counter, ticket, ticket + 1):
            return ticket - first_ticket


@jit()
def wait_until(team, n_done):
    """Return when the team has done `n_done` tiles since the run began."""
    spins = 0
    while simd.atomic_load(team) < n_done:
        spins += 1
        if spins < _SPINS:
            simd.spin_pause()
        else:
            simd.yield_processor()
