"""The op of dense layers: forward, input gradient and weight gradient as one kernel over tiles in shared memory.

Legend: Y (m, n) = max(floor, bias + A·B), A (m, k), B (k, n). A tile of Y, HEIGHT × WIDTH, belongs to one block, which
walks along k in steps of DEPTH: it brings that much of A and B to shared memory, and each thread adds TALL × WIDE
products to sums in its registers (Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra", 2008). A lies in
shared memory transposed, so that a thread reads the numbers it needs of either with loads of 128 bits.

    FORWARD          Y (rows, N_OUT)    = X · W             k = N_IN
    TRANSPOSED       Y (rows, N_OUT)    = X · Wᵀ            k = N_IN, W (N_OUT, N_IN): the input gradient
    OVER_ROWS        Y (N_IN, N_OUT)    = Xᵀ · W            k = rows of the batch: the weight gradient

A column of ones behind X's columns makes the bias the last row of a weight gradient. Where a weight is small and the
batch long, OVER_ROWS cuts the batch into parts, whose sums `sum_of_parts` adds in their order.
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
from nbbp.cuda.launch import Binding, binds, flat
from nbbp.cuda.tensor_product import bind_tensor_product

#: As in nbbp/lowering/dense.py: the layout of a product whose second operand is transposed.
_LAYOUT_TRANSPOSED = 2


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
    (Tile(4, 4, 4, 2, 2), Tile(4, 8, 2, 2, 4))
    if SIMULATED
    else (Tile(32, 32, 16, 2, 2), Tile(64, 64, 16, 4, 4), Tile(128, 128, 8, 8, 8))
)
#: Tiles that keep every multiprocessor busy: a larger tile is taken where there are as many of them.
_BUSY = 4 if SIMULATED else 256
#: Rows of a part of the batch, at least, in a weight gradient that is cut.
_ROWS_OF_PART = 8 if SIMULATED else 512
_MOST_PARTS = 4 if SIMULATED else 128
#: Bytes of a load from shared memory; numbers between its rows, so that columns fall on different banks.
_ALIGNMENT = 16
_PADDING = 4

VARIANTS = tuple((layout, tile) for layout in (FORWARD, TRANSPOSED, OVER_ROWS) for tile in TILES)


def tile_for(m: int, n: int) -> Tile:
    """The largest tile of which a result (m, n) has enough; the smallest where it has not."""
    found = TILES[0]
    for tile in TILES[1:]:
        if math.ceil(m / tile.height) * math.ceil(n / tile.width) >= _BUSY and n > tile.width // 2:
            found = tile
    return found


@kernel(
    INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, ARRAY, NUMBER, INTEGER, INTEGER, INTEGER,
    INTEGER, ARRAY, INTEGER, variants=VARIANTS,
)  # fmt: skip
def product(number, variant):
    """Y = max(floor, bias + A·B); `variant` is the layout and the tile.

    Of a batch that is cut, part p has the rows from p · `part_rows` on and writes Y `part_stride` numbers further each;
    p is blockIdx.y. Empty arrays: no bias, no gate (m, n). An input gradient (TRANSPOSED) has no bias and no floor but
    a gate, perhaps: Y is 0 where that is not positive, so that it has come back through the rectifier that gave it.
    Writes Y, which must overlap nothing.
    """
    layout, tile = variant
    height, width, depth, tall, wide = tile.height, tile.width, tile.depth, tile.tall, tile.wide
    across = np.uint32(width // wide)
    n_threads, unaligned = tile.threads, SIMULATED
    of_a, of_b = -(-height * depth // n_threads), -(-width * depth // n_threads)
    a_shape, b_shape = (depth, height + _PADDING), (depth, width + _PADDING)
    zero, over_rows, transposed = number(0), layout == OVER_ROWS, layout == TRANSPOSED

    def product(
        clock, batch, y, y_stride, x, x_stride, w, w_stride, bias, floor, n_in, n_out, part_rows, part_stride, gate,
        gate_stride,
    ):  # fmt: skip
        if unaligned:
            a = cuda.shared.array(a_shape, number)
            b = cuda.shared.array(b_shape, number)
        else:
            a = cuda.shared.array(a_shape, number, alignment=_ALIGNMENT)
            b = cuda.shared.array(b_shape, number, alignment=_ALIGNMENT)
        sums = cuda.local.array((tall, wide), number)
        column = cuda.local.array(tall, number)
        line = cuda.local.array(wide, number)
        # unsigned, so that the compiler knows that indices are not negative, and where loads are aligned
        thread = np.uint32(cuda.threadIdx.x)
        down, right = np.int64(thread // across) * tall, np.int64(thread % across) * wide
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        m, start, stop = n_rows, 0, n_in
        if over_rows:
            m, start = n_in, cuda.blockIdx.y * part_rows
            stop = min(start + part_rows, n_rows)
        n_across = (n_out + width - 1) // width
        n_tiles = (m + height - 1) // height * n_across
        for place in range(cuda.blockIdx.x, n_tiles, cuda.gridDim.x):
            top, left = place // n_across * height, place % n_across * width
            for i in range(tall):
                for j in range(wide):
                    sums[i, j] = zero
            for k in range(start, stop, depth):
                for turn in range(of_a):
                    t = np.int64(thread) + turn * n_threads
                    if over_rows:  # neighbouring threads read neighbouring numbers
                        i, inner = t % height, t // height
                        if inner < depth:
                            inside = top + i < m and k + inner < stop
                            a[inner, i] = x[(k + inner) * x_stride + top + i] if inside else zero
                    else:
                        i, inner = t // depth, t % depth
                        if i < height:
                            inside = top + i < m and k + inner < stop
                            a[inner, i] = x[(top + i) * x_stride + k + inner] if inside else zero
                for turn in range(of_b):
                    t = np.int64(thread) + turn * n_threads
                    if transposed:
                        j, inner = t // depth, t % depth
                        if j < width:
                            inside = left + j < n_out and k + inner < stop
                            b[inner, j] = w[(left + j) * w_stride + k + inner] if inside else zero
                    else:
                        j, inner = t % width, t // width
                        if inner < depth:
                            inside = left + j < n_out and k + inner < stop
                            b[inner, j] = w[(k + inner) * w_stride + left + j] if inside else zero
                cuda.syncthreads()
                for inner in range(depth):
                    for i in range(tall):
                        column[i] = a[inner, down + i]
                    for j in range(wide):
                        line[j] = b[inner, right + j]
                    for i in range(tall):
                        for j in range(wide):
                            sums[i, j] += column[i] * line[j]
                cuda.syncthreads()
            for i in range(tall):
                for j in range(wide):
                    r, c = top + down + i, left + right + j
                    if r < m and c < n_out:
                        value = sums[i, j]
                        if transposed:
                            if gate.size > 0 and gate[r * gate_stride + c] <= zero:
                                value = zero
                        else:
                            if bias.size > 0:
                                value += bias[c]
                            value = floor if value < floor else value  # false for NaN, which stays
                        y[cuda.blockIdx.y * part_stride + r * y_stride + c] = value

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
    over_rows = op[ops.CONTRACTS_ROWS] != 0
    n_in, n_out = op[ops.N_IN], op[ops.N_OUT]
    m = n_in if over_rows else op.batch
    tile = tile_for(m, n_out)
    n_tiles = math.ceil(m / tile.height) * math.ceil(n_out / tile.width)
    y, y_stride = op.array(ops.Y), op[ops.Y_STRIDE]
    gate = op.array(ops.KEPT), op[ops.KEPT_STRIDE]
    operands = op.array(ops.X), op[ops.X_STRIDE], op.array(ops.W), op[ops.W_STRIDE], op.array(ops.BIAS), op.setting(0)
    if not over_rows:
        layout = TRANSPOSED if op[ops.LAYOUT] == _LAYOUT_TRANSPOSED else FORWARD
        grid = (min(n_tiles, 2 if SIMULATED else 2**31 - 1), 1)
        op.launch(
            "product", (grid, (tile.threads,)), op.clock, op.batch, y, y_stride, *operands, n_in, n_out, 0, 0,
            *gate, variant=(layout, tile),
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
        *operands, n_in, n_out, part_rows, part_stride, *gate, variant=(OVER_ROWS, tile),
    )  # fmt: skip
    if n_parts > 1:
        op.launch("sum_of_parts", flat(part_stride), y, y_stride, parts, part_stride, n_parts, n_in, n_out)
