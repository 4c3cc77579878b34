"""The op of dense layers: forward, input gradient and weight gradient as one kernel over tiles in shared memory.

Legend: Y (m, n) = max(floor, bias + A·B), A (m, k), B (k, n). A tile of Y, HEIGHT × WIDTH, belongs to one block, which
walks along k in slabs of DEPTH: it brings that much of A and B to shared memory, and each thread adds TALL × WIDE
products to sums in its registers (Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra", 2008).

Shared memory holds two slabs of either operand: while one is multiplied, the next is on its way from global memory to
registers, from where it goes to the other; so a slab costs one barrier, and nobody waits for global memory unless a
slab's products take less time. Both operands lie there with their lines (rows of A, columns of B) side by side.

    FORWARD          Y (rows, N_OUT)    = X · W             k = N_IN
    TRANSPOSED       Y (rows, N_OUT)    = X · Wᵀ            k = N_IN, W (N_OUT, N_IN): the input gradient
    OVER_ROWS        Y (N_IN, N_OUT)    = Xᵀ · W            k = rows of the batch: the weight gradient

Global and shared memory are read and written by 128 bits, `lanes` numbers: shared memory always, global memory where
rows begin at multiples of that (`Binding.aligned`) and a slab lies within its operand; others by single numbers.
The order of every sum is that of k, whichever way.

A column of ones behind X's columns makes the bias the last row of a weight gradient. Where a weight is small and the
batch long, OVER_ROWS cuts the batch into parts, whose sums `sum_of_parts` adds in their order.
"""

import math
from dataclasses import astuple, dataclass

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda import cublas
from nbbp.cuda.kernels import (
    ARRAY,
    FORWARD,
    INTEGER,
    INTEGERS,
    MOST_BLOCKS,
    N_SAMPLES,
    NUMBER,
    OVER_ROWS,
    SIMULATED,
    STEP,
    TRANSPOSED,
    kernel,
)
from nbbp.cuda.launch import Binding, binds, flat, layout_of
from nbbp.cuda.tensor_product import bind_tensor_product
from nbbp.cuda.vectors import BYTES, read_vector, write_vector
from nbbp.scalars.dispatch import formula


@dataclass(frozen=True)
class Tile:
    """Sizes of a block's tile and of a thread's share of it."""

    height: int
    width: int
    depth: int
    tall: int
    wide: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (self.height // self.tall) * (self.width // self.wide)


#: From the smallest to the largest; which one a product takes, `tile_for` says.
TILES = (
    (Tile(4, 4, 4, 2, 2), Tile(4, 8, 4, 2, 4))
    if SIMULATED
    else (Tile(32, 32, 16, 2, 2), Tile(64, 64, 16, 4, 4), Tile(128, 128, 8, 8, 8))
)
#: Tiles that keep every multiprocessor busy: a larger tile is taken where there are as many of them.
_BUSY = 4 if SIMULATED else 256
#: Rows of a part of the batch, at least, in a weight gradient that is cut.
_ROWS_OF_PART = 8 if SIMULATED else 512
_MOST_PARTS = 4 if SIMULATED else 128
#: Threads of a warp, down and across a tile: so many read a line of shared memory each, and the same, at a time.
_WARP_DOWN, _WARP_ACROSS = (1, 2) if SIMULATED else (4, 8)
#: Numbers between the rows of a slab in shared memory, beyond its lines. Where vectors lie along k, two neighbouring
#: threads read 32 bytes of one line, the least that memory gives, and 16 pairs as many lines; a warp then stores number
#: c of its vectors to lines 0 … 15 of two rows that are `lanes` rows apart. Of rows of a multiple of 32 banks both fall
#: on the same 16; with 4 numbers more per row (8 bytes each, for which 16 threads go at a time: likewise) one falls on
#: the other 16. A multiple of 16 bytes, so that every row can be read by vectors.
_PADDING = 4

#: Steps along k of one turn of the innermost loop, whose counting would cost a sixth of a step's instructions.
_UNROLLED = 2

VARIANTS = tuple((layout, tile) for layout in (FORWARD, TRANSPOSED, OVER_ROWS) for tile in TILES)


def tile_for(m: int, n: int) -> Tile:
    """The largest tile of which a result (m, n) has enough; the smallest where it has not."""
    found = TILES[0]
    for tile in TILES[1:]:
        if math.ceil(m / tile.height) * math.ceil(n / tile.width) >= _BUSY and n > tile.width // 2:
            found = tile
    return found


def _bounds(dtype: np.dtype, variant: tuple[int, Tile]) -> tuple[int, int] | None:
    """Two blocks of the largest tile on a multiprocessor, so that one multiplies while the other waits or writes.

    In float64 its sums leave no registers for that; smaller tiles need no such wish.
    """
    _, tile = variant
    return (tile.threads, 2) if dtype == np.float32 and tile == TILES[-1] else None


@formula
def _of_slab(shape, t):
    """Line and place along k of the first number of vector t of a slab of that shape.

    `shape`: whether vectors lie along k (or along the lines), the slab's lines and depth, the numbers of a vector, and
    the threads that share the slab.
    """
    along_k, n_lines, depth, lanes, _ = shape
    if along_k:
        pair = min(2, depth // lanes)
        return t // pair % n_lines, (t // (pair * n_lines) * pair + t % pair) * lanes
    across = n_lines // lanes
    return t % across * lanes, t // across


@formula
def _fetch(registers, shape, thread, source, stride, is_aligned, first, n, k, stop):
    """A thread's share of the slab of an operand from line `first` and place k on; 0 beyond line n and place `stop`."""
    along_k, n_lines, depth, lanes, n_threads = shape
    zero = type(registers[0])(0)
    fills = n_lines * depth % (lanes * n_threads) == 0  # then no thread has less to do than another
    is_whole = is_aligned != 0 and first + n_lines <= n and k + depth <= stop  # as most slabs are, for all threads
    for turn in range(registers.size // lanes):
        line, inner = _of_slab(shape, thread + turn * n_threads)
        row, column, n_rows, n_columns = k + inner, first + line, stop, n
        if along_k:
            row, column, n_rows, n_columns = first + line, k + inner, n, stop
        place = row * stride + column
        if is_whole and (fills or inner < depth):
            read_vector(registers, turn * lanes, source, place, lanes)
        else:
            is_row = row < n_rows and inner < depth
            for c in range(lanes):
                is_number = is_row and column + c < n_columns
                registers[turn * lanes + c] = source[np.uint64(place + c)] if is_number else zero


@formula
def _store(shared, at, registers, shape, thread):
    """A thread's share of a slab from its registers to the rows of shared memory from `at` on."""
    along_k, n_lines, depth, lanes, n_threads = shape
    pitch = n_lines + _PADDING
    for turn in range(registers.size // lanes):
        line, inner = _of_slab(shape, thread + turn * n_threads)
        if inner < depth:
            if along_k:
                for c in range(lanes):  # an index without a sign, which might count from the end
                    shared[np.uint32((at + inner + c) * pitch + line)] = registers[turn * lanes + c]
            else:
                write_vector(shared, (at + inner) * pitch + line, registers, turn * lanes, lanes)


@formula
def _read_lines(registers, shared, at, shape, member, chunk):
    """A thread's lines of one row of a slab: every so many `chunk` of them, which is a vector or 2."""
    n_lines, n_groups = shape[1], registers.size // chunk
    for g in range(n_groups):
        place = at * (n_lines + _PADDING) + g * (n_lines // n_groups) + member * chunk
        read_vector(registers, g * chunk, shared, place, chunk)


@formula
def _line_of(lines, i):
    """Line i of a thread's; `lines`: its first, how many it has, how many lie side by side, how far those are apart."""
    first, _, chunk, apart = lines
    return first + i // chunk * apart + i % chunk


@formula
def _gate(sums, gate, gate_stride, rows, columns, m, n):
    """0 where gate (m, n), unless it is empty, is not positive; `rows` and `columns` are the thread's lines."""
    if gate.size > 0:
        for i in range(rows[1]):
            for j in range(columns[1]):
                r, c = _line_of(rows, i), _line_of(columns, j)
                if r < m and c < n and gate[r * gate_stride + c] <= type(sums[0])(0):
                    sums[i * columns[1] + j] = type(sums[0])(0)


@formula
def _add_bias(sums, bias, line, floor, columns, n):
    """max(floor, sums + bias), bias (n,) or empty, whose numbers of the thread's columns go to `line`; NaN stays."""
    for j in range(line.size):
        c = _line_of(columns, j)
        line[j] = bias[c] if bias.size > 0 and c < n else type(floor)(0)
    for i in range(sums.size // line.size):
        for j in range(line.size):
            value = sums[i * line.size + j] + line[j]
            sums[i * line.size + j] = floor if value < floor else value  # false for NaN


@formula
def _write(y, base, stride, sums, rows, columns, m, n, by_vectors):
    """A thread's sums to y (m, n) from `base` on, whose rows are `stride` apart."""
    right, wide, chunk, apart = columns
    for i in range(rows[1]):
        r = _line_of(rows, i)
        at = base + r * stride
        if by_vectors:
            for g in range(wide // chunk):
                if r < m and right + g * apart < n:
                    write_vector(y, at + right + g * apart, sums, i * wide + g * chunk, chunk)
        else:
            for j in range(wide):
                c = _line_of(columns, j)
                if r < m and c < n:
                    y[at + c] = sums[i * wide + j]


@kernel(
    INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, NUMBER, INTEGER, INTEGER, INTEGER,
    INTEGER, ARRAY, INTEGER, INTEGER, INTEGER, INTEGER, variants=VARIANTS, bounds=_bounds,
)  # fmt: skip
def product(number, variant):
    """Y = max(floor, bias + A·B); `variant` is the layout and the tile.

    Of a batch that is cut, part p has the rows from p · `part_rows` on and writes Y `part_stride` numbers further each;
    p is blockIdx.y. Empty arrays: no bias, no gate (m, n). An input gradient (TRANSPOSED) has no bias and no floor but
    a gate, perhaps: Y is 0 where that is not positive, so that it has come back through the rectifier that gave it.
    Not 0: the rows of Y, X and W begin at multiples of 128 bits. Writes Y, which must overlap nothing.
    """
    layout, tile = variant
    height, width, depth, tall, wide, n_threads = (*astuple(tile), tile.threads)
    lanes, unaligned = BYTES // np.dtype(number).itemsize, SIMULATED
    warps_across, warp = width // wide // _WARP_ACROSS, _WARP_DOWN * _WARP_ACROSS
    a_share, b_share = (lanes * -(-lines * depth // (lanes * n_threads)) for lines in (height, width))
    a_size, b_size = (2 * depth * (lines + _PADDING) for lines in (height, width))
    tall_chunk, wide_chunk = min(tall, lanes), min(wide, lanes)
    tall_groups, wide_groups = tall // tall_chunk, wide // wide_chunk
    zero, over_rows, transposed = number(0), layout == OVER_ROWS, layout == TRANSPOSED
    a_shape, b_shape = (not over_rows, height, depth, lanes, n_threads), (transposed, width, depth, lanes, n_threads)
    n_sums = tall * wide

    def product(
        clock, batch, y, y_stride, x, x_stride, w, w_stride, bias, floor, n_in, n_out, part_rows, part_stride, gate,
        gate_stride, y_aligned, x_aligned, w_aligned,
    ):  # fmt: skip
        if unaligned:
            a = cuda.shared.array(a_size, number)
            b = cuda.shared.array(b_size, number)
        else:
            a = cuda.shared.array(a_size, number, alignment=BYTES)
            b = cuda.shared.array(b_size, number, alignment=BYTES)
        next_a = cuda.local.array(a_share, number)
        next_b = cuda.local.array(b_share, number)
        sums = cuda.local.array(n_sums, number)
        column = cuda.local.array(tall, number)
        line = cuda.local.array(wide, number)
        # unsigned, so that the compiler knows that indices are not negative, and where loads are aligned
        thread = np.int64(np.uint32(cuda.threadIdx.x))
        down = thread // warp // warps_across * _WARP_DOWN + thread % warp // _WARP_ACROSS
        across = thread // warp % warps_across * _WARP_ACROSS + thread % _WARP_ACROSS
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        m, start, stop = n_rows, 0, n_in
        if over_rows:
            m, start = n_in, cuda.blockIdx.y * part_rows
            stop = min(start + part_rows, n_rows)
        base = cuda.blockIdx.y * part_stride
        writes_vectors = wide_chunk == lanes and y_aligned != 0 and n_out % lanes == 0
        n_across = (n_out + width - 1) // width
        n_tiles = (m + height - 1) // height * n_across
        for place in range(cuda.blockIdx.x, n_tiles, cuda.gridDim.x):
            top, left = place // n_across * height, place % n_across * width
            for i in range(n_sums):
                sums[i] = zero
            slab = 0
            _fetch(next_a, a_shape, thread, x, x_stride, x_aligned, top, m, start, stop)
            _fetch(next_b, b_shape, thread, w, w_stride, w_aligned, left, n_out, start, stop)
            _store(a, slab, next_a, a_shape, thread)
            _store(b, slab, next_b, b_shape, thread)
            cuda.syncthreads()
            for k in range(start, stop, depth):
                more = k + depth
                if more < stop:
                    _fetch(next_a, a_shape, thread, x, x_stride, x_aligned, top, m, more, stop)
                    _fetch(next_b, b_shape, thread, w, w_stride, w_aligned, left, n_out, more, stop)
                for inner in range(0, depth, _UNROLLED):
                    for step in range(_UNROLLED):
                        _read_lines(column, a, slab + inner + step, a_shape, down, tall_chunk)
                        _read_lines(line, b, slab + inner + step, b_shape, across, wide_chunk)
                        for i in range(tall):
                            for j in range(wide):
                                sums[i * wide + j] += column[i] * line[j]
                slab = depth - slab
                if more < stop:
                    _store(a, slab, next_a, a_shape, thread)
                    _store(b, slab, next_b, b_shape, thread)
                cuda.syncthreads()
            rows = top + down * tall_chunk, tall, tall_chunk, height // tall_groups
            columns = left + across * wide_chunk, wide, wide_chunk, width // wide_groups
            if transposed:
                _gate(sums, gate, gate_stride, rows, columns, m, n_out)
            else:
                _add_bias(sums, bias, line, floor, columns, n_out)
            _write(y, base, y_stride, sums, rows, columns, m, n_out, writes_vectors)

    return product


@kernel(ARRAY, INTEGER, ARRAY, INTEGER, INTEGER, INTEGER, INTEGER)
def sum_of_parts(number, variant):
    """y (n_rows, width) = the sum of `n_parts` matrices without gaps, `part_stride` apart in x, in their order.

    Writes y, whose rows are `y_stride` apart and which must not overlap x.
    """

    def sum_of_parts(y, y_stride, x, part_stride, n_parts, n_rows, width):
        for i in range(cuda.grid(1), n_rows * width, cuda.gridsize(1)):
            total = x[i]
            for part in range(1, n_parts):
                total += x[part * part_stride + i]
            y[i // width * y_stride + i % width] = total

    return sum_of_parts


@binds("product", "deep_product")
def bind_product(op: Binding) -> None:
    """One of the three products of a dense layer: on tensor cores where the precision has a format of theirs."""
    if op.bound.format:
        bind_tensor_product(op)
        return
    layout, n_in, n_out = layout_of(op.op), op[ops.N_IN], op[ops.N_OUT]
    if cublas.bind_product(op, layout):
        return
    m = n_in if layout == OVER_ROWS else op.batch
    tile = tile_for(m, n_out)
    n_tiles = math.ceil(m / tile.height) * math.ceil(n_out / tile.width)
    y, y_stride = op.array(ops.Y), op[ops.Y_STRIDE]
    gate = op.array(ops.KEPT), op[ops.KEPT_STRIDE]
    operands = op.array(ops.X), op[ops.X_STRIDE], op.array(ops.W), op[ops.W_STRIDE], op.array(ops.BIAS), op.setting(0)
    if layout != OVER_ROWS:
        grid = (min(n_tiles, 2 if SIMULATED else 2**31 - 1), 1)
        op.launch(
            "product", (grid, (tile.threads,)), op.clock, op.batch, y, y_stride, *operands, n_in, n_out, 0, 0,
            *gate, *op.aligned((y, y_stride)), variant=(layout, tile),
        )  # fmt: skip
        return
    n_parts = max(1, min(_BUSY // n_tiles, op.batch // _ROWS_OF_PART, _MOST_PARTS))
    part_rows = math.ceil(op.batch / n_parts)
    parts, stride, part_stride = y, y_stride, 0
    if n_parts > 1:
        stride, part_stride = n_out, n_in * n_out
        parts = op.scratch(n_parts * part_stride)
    op.launch(
        "product", ((min(n_tiles, MOST_BLOCKS), n_parts), (tile.threads,)), op.clock, op.batch, parts, stride,
        *operands, n_in, n_out, part_rows, part_stride, *gate, *op.aligned((parts, stride)), variant=(OVER_ROWS, tile),
    )  # fmt: skip
    if n_parts > 1:
        op.launch("sum_of_parts", flat(part_stride), y, y_stride, parts, part_stride, n_parts, n_in, n_out)
