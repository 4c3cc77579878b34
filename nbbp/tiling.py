"""How a step is cut into tiles: the measured crossovers, all in one place.

What is decided here depends on the network and the batch alone, never on the number of threads, so that results are the
same bits for any number of threads. Measured with profiling/train_step.py on one and two cores of an AVX-512 machine;
the figures move little between machines, because they weigh work against work.

Legend: a tile is (first op, last op, row start, row stop, column start, column stop).
"""

from collections.abc import Sequence

#: Column stop of a tile that takes every column.
ALL = 1 << 40

#: Ways to cut a training step.
ALONE = "alone"  # one tile: the whole step is too short to share
ROWS = "rows"  # blocks of rows through all layers; then blocks of weights over the whole batch
PARTIAL = "partial"  # blocks of rows, each with a gradient of its own; then their sum
WIDE = "wide"  # layer by layer, in tiles of outputs

#: A step below this many floating-point operations (some 7 µs) is not shared.
_ALONE_WORK = 1.5e6
#: Weights of a layer from which on a block of rows no longer keeps them in the second cache level.
_WIDE_WEIGHTS = 1 << 16
#: Rows from which on the layers' outputs of a batch no longer fit the second cache level.
_PARTIAL_BATCH = 1024
#: Floating-point operations of a tile that make taking it cheap (some 4 µs).
_TILE_WORK = 1e6
#: The same for a block of rows through all layers, which packs its weights once.
_ROWS_WORK = 3e6
_MAX_PARTIALS = 16

#: Rows of a tile in prediction and evaluation.
FORWARD_ROWS = 64
#: Rows that a loss takes at a time (as in cpu/crossentropy.py).
LOSS_ROWS = 64
#: Numbers of a tile of an update.
PARAMETERS = 1 << 13
#: Columns of a tile of a wide product: the widest panel of cpu/tile.py, or a multiple.
_PANEL = 64


def plan(shapes: Sequence[tuple[int, int]], batch: int) -> str:
    """Which of the four ways; `shapes` are (n_in, n_out) of the dense layers."""
    weights = [n_in * n_out for n_in, n_out in shapes]
    if 6 * batch * sum(weights) < _ALONE_WORK:
        return ALONE
    if max(weights) >= _WIDE_WEIGHTS:
        return WIDE
    return PARTIAL if batch > _PARTIAL_BATCH else ROWS


def wants_packing(batch: int, n_in: int, n_out: int) -> bool:
    """Whether a forward product should copy its weights side by side first: many rows, long strides."""
    return batch >= 32 and n_out >= 256


def packed_panel(k: int) -> int:
    """Numbers that a packed panel of k rows may take."""
    return _PANEL * (-(-k // 16) * 16)


def rows_per_tile(shapes: Sequence[tuple[int, int]], batch: int) -> int:
    """Rows of a tile of ROWS: whole cache lines of rows, worth some microseconds."""
    per_row = 4 * sum(n_in * n_out for n_in, n_out in shapes)
    rows = max(int(_ROWS_WORK / per_row), -(-batch // _MAX_PARTIALS))
    return -(-rows // 16) * 16


def partial_rows(batch: int) -> int:
    """Rows that share a partial gradient."""
    return -(-batch // _MAX_PARTIALS // 16) * 16


def partial_count(batch: int) -> int:
    """Number of partial gradients."""
    return -(-batch // partial_rows(batch))


def weight_rows(n_out: int) -> int:
    """Rows of a weight whose gradient is computed and applied at once: some 8 KB to 256 KB."""
    return max(64 if n_out >= 256 else 16, 2048 // n_out)


def row_tiles(first_op: int, last_op: int, batch: int, rows: int) -> list[tuple]:
    """Blocks of `rows` rows through the ops [first, last)."""
    return [(first_op, last_op, start, min(start + rows, batch), 0, ALL) for start in range(0, batch, rows)]


def column_tiles(first_op: int, last_op: int, batch: int, n_columns: int, columns: int) -> list[tuple]:
    """Blocks of `columns` columns over the whole batch."""
    n_tiles = -(-n_columns // columns)
    columns = -(-n_columns // n_tiles)
    return [
        (first_op, last_op, 0, batch, start, min(start + columns, n_columns)) for start in range(0, n_columns, columns)
    ]


def product_tiles(first_op: int, last_op: int, batch: int, n_in: int, n_out: int) -> list[tuple]:
    """Blocks of rows and columns of one product (batch, n_in) × (n_in, n_out), each worth some microseconds."""
    wanted = max(1, int(2 * batch * n_in * n_out / _TILE_WORK))
    n_column_tiles = min(wanted, -(-n_out // _PANEL))
    columns = -(-n_out // n_column_tiles // _PANEL) * _PANEL
    n_row_tiles = max(1, min(wanted // n_column_tiles, -(-batch // 256)))
    rows = -(-batch // n_row_tiles // 16) * 16
    return [
        (
            first_op,
            last_op,
            r,
            min(r + rows, batch),
            c,
            min(c + columns, n_out) if c + columns < n_out else ALL,
        )
        for r in range(0, batch, rows)
        for c in range(0, n_out, columns)
    ]
