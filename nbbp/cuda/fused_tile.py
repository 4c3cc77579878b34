"""Tiles of rows in shared memory: how they get there, their products with weights, and what they add to gradients.

Legend: as in nbbp/cuda/fused.py; thread is its number within the block, `sizes` those of the tile: rows, width, depth,
tall, wide and threads. sums (tall, wide), column and line are a thread's registers. Numbers of the first operand of a
product lie in lines, a unit each; those of the second in a slab, lines of width + PADDING numbers.
"""

import numpy as np

from nbbp.cuda.dense import Tile
from nbbp.cuda.kernels import SIMULATED
from nbbp.cuda.vectors import read_vector
from nbbp.scalars.dispatch import formula

#: Tiles from the smallest to the largest: HEIGHT rows, WIDTH outputs at a time, slabs of DEPTH inputs. WIDTH and DEPTH
#: divide the number of threads.
TILES = (
    (Tile(2, 4, 4, 1, 2), Tile(4, 4, 2, 2, 2))
    if SIMULATED
    else (Tile(8, 64, 64, 1, 4), Tile(16, 64, 32, 2, 4), Tile(32, 64, 32, 4, 4), Tile(64, 64, 32, 4, 8))
)
#: What a tile's width, and a gradient's, is divided by for outputs that are few.
_QUARTER = 2 if SIMULATED else 4
#: Threads of a block, whatever the tile.
THREADS = TILES[0].threads
#: A weight gradient at a time: HEIGHT inputs, WIDTH outputs; its depth, rows at once, is that of the row tile's loads.
GRADIENT = Tile(4, 4, 2, 2, 2) if SIMULATED else Tile(64, 64, 4, 4, 8)
_HEIGHT, _WIDTH, TALL, WIDE = GRADIENT.height, GRADIENT.width, GRADIENT.tall, GRADIENT.wide
#: Inputs of the first layer that are brought to shared memory at a time.
X_UNITS = GRADIENT.height
#: Threads that read a row of the data side by side, and rows that a thread reads at a time at most.
LANES, ROWS_AT_ONCE = (2, 1) if SIMULATED else (32, 8)
#: Numbers of a load from shared memory at most, and numbers between lines and between lines of a slab.
VECTOR = 4
PADDING = 4
#: Lines that a product takes without looking whether there are more.
_STEPS = 4


def narrow_of(tile: Tile) -> Tile:
    """The tile for the last outputs of a layer, which are few: a quarter as wide, by as many threads."""
    width = tile.width // _QUARTER
    share = tile.height * width // THREADS
    tall = min(tile.tall, share)
    return Tile(tile.height, width, tile.depth, tall, share // tall)


def sizes_of(tile: Tile) -> tuple[int, ...]:
    """A tile as kernels are given it."""
    return tile.height, tile.width, tile.depth, tile.tall, tile.wide, tile.threads


@formula
def unsigned(i):
    """An index of less than 32 bits, as one of which the compiler knows that it is not negative."""
    return np.int64(np.uint32(i))


@formula
def size_at(table, place):
    """A number of the table that is not negative."""
    return unsigned(table[place])


@formula
def gather(memory, x, n_in, order, first, n, begin, n_units, thread, sources, sizes):
    """Inputs [begin, begin + n_units) of the tile's n rows, which are the run's from `first` on, to units 0 …

    A thread has as many rows of the data at a time as `sources` holds, all of whose loads are on their way together.
    Writes these units, zeros where the tile has no row.
    """
    rows, _, _, _, _, threads = sizes
    stride, zero, apart = rows + PADDING, type(x[0])(0), threads // LANES
    at_once = min(rows // apart, ROWS_AT_ONCE)
    lane = np.int64(thread % np.uint32(LANES))
    for top in range(np.int64(thread // np.uint32(LANES)), rows, apart * at_once):
        for turn in range(at_once):
            sources[turn] = first + min(top + turn * apart, n - 1)
        if order.size > 0:
            for turn in range(at_once):
                sources[turn] = order[sources[turn]]
        for u in range(lane, n_units, LANES):
            for turn in range(at_once):
                r, value = top + turn * apart, x[sources[turn] * n_in + begin + u]
                memory[u * stride + r] = value if r < n else zero


@formula
def copy_rows(memory, first_unit, n_units, y, top, y_stride, n, thread, sizes):
    """y[top + r, j] = unit first_unit + j of row r, for the tile's n rows. Writes y, whose rows are y_stride apart."""
    for r in range(np.int64(thread // np.uint32(LANES)), n, sizes[5] // LANES):
        for j in range(np.int64(thread % np.uint32(LANES)), n_units, LANES):
            y[(top + r) * y_stride + j] = memory[(first_unit + j) * (sizes[0] + PADDING) + r]


@formula
def multiply(memory, a, b, n, down, right, sums, column, line, sizes):
    """sums[i, j] += the sum over k < n of A[k, down + i] · B[k, right … + j]; A in lines from a on, B a slab at b.

    A thread's outputs lie VECTOR at a time, so that neighbours' loads are too. What a version for tensor cores would
    take the place of.
    """
    a_stride, b_stride = sizes[0] + PADDING, sizes[1] + PADDING
    whole = n // _STEPS * _STEPS
    for k in range(0, whole, _STEPS):
        from_a, from_b = unsigned(a + k * a_stride + down), unsigned(b + k * b_stride + right)
        add_outer(memory, from_a, from_b, sums, column, line, sizes)
        add_outer(memory, from_a + a_stride, from_b + b_stride, sums, column, line, sizes)
        add_outer(memory, from_a + 2 * a_stride, from_b + 2 * b_stride, sums, column, line, sizes)
        add_outer(memory, from_a + 3 * a_stride, from_b + 3 * b_stride, sums, column, line, sizes)
    for k in range(whole, n):
        from_a, from_b = unsigned(a + k * a_stride + down), unsigned(b + k * b_stride + right)
        add_outer(memory, from_a, from_b, sums, column, line, sizes)


@formula
def add_outer(memory, a, b, sums, column, line, sizes):
    """sums[i, j] += A[i] · B[j]."""
    _, width, _, tall, wide, _ = sizes
    vector = min(wide, VECTOR)
    read_vector(column, 0, memory, a, tall)
    for j in range(0, wide, vector):
        read_vector(line, j, memory, b + j * width // wide, vector)
    for i in range(tall):
        for j in range(wide):
            sums[i, j] += column[i] * line[j]


@formula
def bring_slab(memory, slab, w, weight, n_out, k, left, n_k, n_columns, is_transposed, thread, sizes):
    """A slab of W (n_in, n_out) or of its transpose: lines [k, k + depth), columns [left, left + width).

    Zeros where the matrix, (n_k, n_columns), has none. Writes the slab.
    """
    _, width, depth, _, _, threads = sizes
    zero = type(w[0])(0)
    if is_transposed:  # neighbouring threads read neighbouring numbers
        inner, j, down, across = np.int64(thread) % depth, np.int64(thread) // depth, 0, threads // depth
        first, step = weight + (left + j) * n_out + k + inner, across * n_out
    else:
        inner, j, down, across = np.int64(thread) // width, np.int64(thread) % width, threads // width, 0
        first, step = weight + (k + inner) * n_out + left + j, down * n_out
    for turn in range(depth * width // threads):
        is_inside = k + inner + turn * down < n_k and left + j + turn * across < n_columns
        # without a branch, so that many loads are on their way
        value = w[unsigned(first + turn * step if is_inside else weight)]
        memory[slab + (inner + turn * down) * (width + PADDING) + j + turn * across] = value if is_inside else zero


@formula
def place_of(thread, j, left, sizes):
    """Of which output sums[:, j] are, and of which row the first of them is."""
    _, width, _, tall, wide, _ = sizes
    vector, across = min(wide, VECTOR), np.uint32(width // wide)
    unit = unsigned(left) + j // vector * (width * vector // wide) + np.int64(thread % across) * vector + j % vector
    return unit, np.int64(thread // across) * tall


@formula
def add_gradient(memory, h, d, n_in, n_out, parts, place, adds, thread, sums, column, lines, at_once, sizes):
    """parts[place + i · n_out + j] = the sum over the tile's rows of H[i] · D[j], or more by that where `adds`.

    H and D in units h … and d …, of which `at_once` rows are read together; every thread writes outputs of its own, and
    waits for none.
    """
    for top in range(0, n_in, _HEIGHT):
        for left in range(0, n_out, _WIDTH):
            if n_out - left > _WIDTH // _QUARTER:
                add_gradient_panel(
                    memory, h, d, n_in, n_out, top, left, parts, place, adds, thread, sums, column, lines, at_once,
                    sizes[0], WIDE,
                )  # fmt: skip
            else:
                add_gradient_panel(
                    memory, h, d, n_in, n_out, top, left, parts, place, adds, thread, sums, column, lines, at_once,
                    sizes[0], WIDE // _QUARTER,
                )  # fmt: skip


@formula
def add_gradient_panel(
    memory, h, d, n_in, n_out, top, left, parts, place, adds, thread, sums, column, lines, at_once, rows, wide,
):  # fmt: skip
    """TALL inputs from `top` on and `wide` outputs from `left` on of a thread; neighbouring threads' are neighbours."""
    stride, across, down, zero = rows + PADDING, _WIDTH // WIDE, _HEIGHT // TALL, type(parts[0])(0)
    first_i, first_j = top + np.int64(thread // np.uint32(across)), left + np.int64(thread % np.uint32(across))
    for i in range(TALL):
        for j in range(wide):
            sums[i, j] = zero
    if adds:  # loads before all stores and without a branch, so that they are on their way together
        for i in range(TALL):
            line = place + min(first_i + i * down, n_in - 1) * n_out
            for j in range(wide):
                sums[i, j] = parts[unsigned(line + min(first_j + j * across, n_out - 1))]
    for turn in range(rows // at_once):
        for j in range(wide):
            # behind the last unit that one again, so that nobody reads what is not there
            unit = min(first_j + j * across, n_out - 1)
            read_vector(lines, j * at_once, memory, unsigned((d + unit) * stride + turn * at_once), at_once)
        for i in range(TALL):
            unit = min(first_i + i * down, n_in - 1)
            read_vector(column, 0, memory, unsigned((h + unit) * stride + turn * at_once), at_once)
            for q in range(at_once):
                for j in range(wide):
                    sums[i, j] += column[q] * lines[j * at_once + q]
    for i in range(TALL):
        unit = first_i + i * down
        if unit < n_in:
            for j in range(wide):
                output = first_j + j * across
                if output < n_out:
                    parts[unsigned(place + unit * n_out + output)] = sums[i, j]


@formula
def add_bias_gradient(memory, d, n_out, parts, place, adds, thread, column, at_once, sizes):
    """parts[place + j] = the sum over the tile's rows of D[j], or more where `adds`; `at_once` are read together."""
    rows, _, _, _, _, threads = sizes
    for j in range(np.int64(thread), n_out, threads):
        total = type(parts[0])(0)
        for r in range(0, rows, at_once):
            read_vector(column, 0, memory, unsigned((d + j) * (rows + PADDING) + r), at_once)
            for q in range(at_once):
                total += column[q]
        parts[place + j] = parts[place + j] + total if adds else total
