"""Products of dense layers on tensor cores: operands rounded to tf32, bf16 or fp16, sums in float32.

Legend: as in nbbp/cuda/dense.py, Y (m, n) = max(floor, bias + A·B) in the layouts FORWARD, TRANSPOSED and OVER_ROWS. A
block's tile of Y, HEIGHT × WIDTH, is cut into those of its warps, TALL × WIDE, and each of these into the 16 × 8 of one
instruction (nbbp/cuda/tensor_cores.py).

Operands are float32 in the GPU's memory. A block goes along k in stages of 16 words, of each of which it brings a panel
of A and one of B to shared memory, rounded (nbbp/cuda/tensor_panels.py). While its warps multiply a stage, the numbers
of the next are on their way to registers, from which they go to the other half of the shared memory when the
multiplication is done: one barrier a stage. A's panels lie along k but in OVER_ROWS, B's across but in TRANSPOSED.

Sums are taken in an order that sizes alone decide: the same bits, run after run.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import cuda

from nbbp import ops
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
from nbbp.cuda.launch import Binding, flat, layout_of
from nbbp.cuda.tensor_cores import (
    BF16,
    COLUMNS,
    FP16,
    ROWS,
    TF32,
    WARP,
    WORDS,
    column_of_c,
    multiply,
    narrow_pair,
    row_of_c,
    widen,
)
from nbbp.cuda.tensor_panels import (
    QUAD,
    STAGE,
    fetch,
    numbers_of_word,
    put,
    read_a,
    read_b,
    share_of_panel,
    size_of_panel,
)
from nbbp.cuda.vectors import BYTES, write_vector
from nbbp.scalars.dispatch import formula


@dataclass(frozen=True)
class Tile:
    """Sizes of a block's tile and of a warp's."""

    height: int
    width: int
    tall: int
    wide: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * (self.height // self.tall) * (self.width // self.wide)


#: From the smallest to the largest. A warp's tile of 64 × 64 reads the least of shared memory for what it multiplies;
#: with formats of 16 bits, of which a stage holds twice as many numbers, registers are too few for it.
_SMALL = (Tile(16, 16, 16, 16),) if SIMULATED else (Tile(32, 32, 16, 16), Tile(64, 64, 32, 32))
TILES = {
    code: _SMALL + ((Tile(32, 16, 16, 16),) if SIMULATED else (Tile(128, 128, 64, 64 if code == TF32 else 32),))
    for code in (TF32, BF16, FP16)
}
#: Blocks that keep every multiprocessor busy, an estimate: a larger tile is taken where there are as many of them, and
#: a batch is cut into parts until there are twice as many.
_BUSY = 2 if SIMULATED else 128
#: Rows of a part of the batch, at least, in a weight gradient that is cut; how many parts, at most.
_ROWS_OF_PART = 8 if SIMULATED else 512
_MOST_PARTS = 4 if SIMULATED else 128

VARIANTS = tuple(
    (layout, tile, code)
    for layout in (FORWARD, TRANSPOSED, OVER_ROWS)
    for code, tiles in TILES.items()
    for tile in tiles
)


def tile_for(m: int, n: int, code: int, n_parts: int = 1) -> Tile:
    """The largest tile of which a result (m, n), times the parts that it can be cut into, has enough."""
    found = TILES[code][0]
    for tile in TILES[code][1:]:
        if n_parts * tiles_in(m, n, tile) >= _BUSY and n > tile.width // 2:
            found = tile
    return found


def tiles_in(m: int, n: int, tile: Tile) -> int:
    """How many tiles cover a result (m, n)."""
    return math.ceil(m / tile.height) * math.ceil(n / tile.width)


def _bounds(dtype: np.dtype, variant: tuple[int, Tile, int]) -> tuple[int, int] | None:
    """Two blocks of the largest tile of 16 bits on a multiprocessor, as in nbbp/cuda/dense.py.

    Not over rows, where both panels lie across, and the wish would be met by memory that is none of a register's.
    """
    layout, tile, code = variant
    return (tile.threads, 2) if code != TF32 and tile == TILES[code][-1] and layout != OVER_ROWS else None


@formula
def multiply_tiles(sums, a_words, b_words, code):
    """sums += A·B of all tiles of a warp, of eight words along k."""
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3] = multiply(
                code, sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3], a_words[i, 0], a_words[i, 1],
                a_words[i, 2], a_words[i, 3], b_words[j, 0], b_words[j, 1],
            )  # fmt: skip


@formula
def add_bias(sums, bias, column, n_out, floor, code):
    """sums = max(floor, sums + bias), the bias rounded to a format of 16 bits, none if it is empty."""
    for j in range(sums.shape[1]):
        for register in range(2):
            c = column + COLUMNS * j + register
            value = bias[c] if bias.size > 0 and c < n_out else np.float32(0)
            if code != TF32:
                value = widen(code, narrow_pair(code, value, value))
            for i in range(sums.shape[0]):
                for half in range(0, 4, 2):
                    total = sums[i, j, half + register] + value
                    sums[i, j, half + register] = floor if total < floor else total  # false for NaN, which stays


@formula
def through_gate(sums, gate, at, stride, n_rows, n_columns):
    """sums = 0 where the gate is not positive, within what there is of rows and columns from gate[at] on."""
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            for register in range(4):
                r, c = ROWS * i + 8 * (register >> 1), COLUMNS * j + (register & 1)
                if r < n_rows and c < n_columns and gate[at + r * stride + c] <= np.float32(0):
                    sums[i, j, register] = np.float32(0)


@formula
def round_sums(sums, code):
    """sums rounded to a format of 16 bits."""
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            for register in range(4):
                value = sums[i, j, register]
                sums[i, j, register] = widen(code, narrow_pair(code, value, value))


@formula
def write_whole(y, at, stride, sums, pair):
    """Write a warp's tile whose rows and columns all are there, two numbers at a time; a lane's begin at y[at]."""
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            for half in range(2):
                pair[0], pair[1] = sums[i, j, 2 * half], sums[i, j, 2 * half + 1]
                write_vector(y, at + (ROWS * i + 8 * half) * stride + COLUMNS * j, pair, 0, 2)


@formula
def write_edge(y, at, stride, sums, n_rows, n_columns):
    """Write those of a warp's numbers whose rows and columns are there."""
    for i in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            for register in range(4):
                r, c = ROWS * i + 8 * (register >> 1), COLUMNS * j + (register & 1)
                if r < n_rows and c < n_columns:
                    y[at + r * stride + c] = sums[i, j, register]


@kernel(
    INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, NUMBER, INTEGER, INTEGER, INTEGER,
    INTEGER, ARRAY, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, variants=VARIANTS, dtypes=("float32",), bounds=_bounds,
)  # fmt: skip
def tensor_product(number, variant):
    """Y = max(floor, bias + A·B), with A and B rounded; `variant` is the layout, the tile and the format.

    Arguments and what is written as in `nbbp.cuda.dense.product`; with a format of 16 bits the bias is rounded to it,
    and, if `rounds`, so is Y.
    """
    layout, tile, code = variant
    height, width, tall, wide, n_threads = tile.height, tile.width, tile.tall, tile.wide, tile.threads
    over_rows, transposed, is_half = layout == OVER_ROWS, layout == TRANSPOSED, code != TF32
    depth, warps_across = STAGE * numbers_of_word(code), np.uint32(width // wide)
    a_shape, b_shape = (int(over_rows), height, n_threads, code), (int(not transposed), width, n_threads, code)
    a_size, b_size = size_of_panel(a_shape), size_of_panel(b_shape)
    a_both, b_both, a_share, b_share = 2 * a_size, 2 * b_size, share_of_panel(a_shape), share_of_panel(b_shape)
    tiles, a_tiles, b_tiles = (tall // ROWS, wide // COLUMNS, 4), (tall // ROWS, 4), (wide // COLUMNS, 2)
    warp_size, zero, unaligned = np.uint32(WARP), number(0), SIMULATED

    def tensor_product(
        clock, batch, y, y_stride, x, x_stride, w, w_stride, bias, floor, n_in, n_out, part_rows, part_stride, gate,
        gate_stride, y_aligned, x_aligned, w_aligned, rounds,
    ):  # fmt: skip
        if unaligned:
            a = cuda.shared.array(a_both, np.uint32)
            b = cuda.shared.array(b_both, np.uint32)
        else:
            a = cuda.shared.array(a_both, np.uint32, alignment=BYTES)
            b = cuda.shared.array(b_both, np.uint32, alignment=BYTES)
        sums = cuda.local.array(tiles, number)
        a_ahead = cuda.local.array(a_share, number)
        b_ahead = cuda.local.array(b_share, number)
        a_words = cuda.local.array(a_tiles, np.uint32)
        b_words = cuda.local.array(b_tiles, np.uint32)
        words = cuda.local.array(QUAD, np.uint32)
        pair = cuda.local.array(2, number)
        # unsigned, so that the compiler knows that indices are not negative
        thread = np.uint32(cuda.threadIdx.x)
        lane, warp = thread % warp_size, thread // warp_size
        down, right = tall * (warp // warps_across), wide * (warp % warps_across)
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        m, start, stop = n_rows, 0, n_in
        if over_rows:
            m, start = n_in, cuda.blockIdx.y * part_rows
            stop = min(start + part_rows, n_rows)
        n_across = (n_out + width - 1) // width
        n_tiles = (m + height - 1) // height * n_across
        for place in range(cuda.blockIdx.x, n_tiles, cuda.gridDim.x):
            top, left = place // n_across * height, place % n_across * width
            for i in range(sums.shape[0]):
                for j in range(sums.shape[1]):
                    for register in range(4):
                        sums[i, j, register] = zero
            for k in range(start - depth, stop, depth):
                stage, following = (k - start) // depth & 1, k + depth  # the first turn only brings the first stage
                if following < stop:
                    fetch(a_ahead, a_shape, thread, x, x_stride, x_aligned, top, m, following, stop)
                    fetch(b_ahead, b_shape, thread, w, w_stride, w_aligned, left, n_out, following, stop)
                if k >= start:
                    for word in range(0, STAGE, WORDS):
                        read_a(a_words, a, stage * a_size, a_shape, lane, down, word)
                        read_b(b_words, b, stage * b_size, b_shape, lane, right, word)
                        multiply_tiles(sums, a_words, b_words, code)
                if following < stop:
                    put(a, (1 - stage) * a_size, a_shape, thread, a_ahead, words)
                    put(b, (1 - stage) * b_size, b_shape, thread, b_ahead, words)
                cuda.syncthreads()
            r, c = top + np.int64(down + row_of_c(lane, 0)), left + np.int64(right + column_of_c(lane, 0))
            if not transposed:
                add_bias(sums, bias, c, n_out, floor, code)
            elif gate.size > 0:
                through_gate(sums, gate, r * gate_stride + c, gate_stride, m - r, n_out - c)
            if is_half and rounds != 0:
                round_sums(sums, code)
            at = cuda.blockIdx.y * part_stride + r * y_stride + c
            if y_aligned != 0 and top + height <= m and left + width <= n_out:
                write_whole(y, at, y_stride, sums, pair)
            else:
                write_edge(y, at, y_stride, sums, m - r, n_out - c)

    return tensor_product


def bind_tensor_product(op: Binding) -> None:
    """One of the three products of a dense layer, in the format of the program."""
    code, layout, n_in, n_out = op.bound.format, layout_of(op.op), op[ops.N_IN], op[ops.N_OUT]
    m, most_parts = op.batch, 1
    if layout == OVER_ROWS:
        m, most_parts = n_in, max(1, min(op.batch // _ROWS_OF_PART, _MOST_PARTS))
    tile = tile_for(m, n_out, code, most_parts)
    n_tiles = tiles_in(m, n_out, tile)
    n_parts = max(1, min(2 * _BUSY // n_tiles, most_parts))
    y, y_stride = op.array(ops.Y), op[ops.Y_STRIDE]
    parts, stride, part_stride = y, y_stride, 0
    if n_parts > 1:
        stride, part_stride = n_out, n_in * n_out
        parts = op.scratch(n_parts * part_stride)
    op.launch(
        "tensor_product", ((min(n_tiles, MOST_BLOCKS), n_parts), (tile.threads,)), op.clock, op.batch, parts, stride,
        op.array(ops.X), op[ops.X_STRIDE], op.array(ops.W), op[ops.W_STRIDE], op.array(ops.BIAS), op.setting(0), n_in,
        n_out, math.ceil(op.batch / n_parts), part_stride, op.array(ops.KEPT), op[ops.KEPT_STRIDE],
        *op.aligned((parts, stride)), int(op.rounds), variant=(layout, tile, code),
    )  # fmt: skip
    if n_parts > 1:
        op.launch("sum_of_parts", flat(part_stride), y, y_stride, parts, part_stride, n_parts, n_in, n_out)
