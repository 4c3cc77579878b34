"""How a step is cut into tiles: the measured crossovers, all in one place.

What is decided here depends on the network and the batch alone, never on the number of threads, so that results are the
same bits for any number of threads. Measured with profiling/train_step.py on one and two cores of an AVX-512 machine;
the figures move little between machines, because they weigh work against work.

Legend: a tile is (first op, last op, row start, row stop, column start, column stop).
"""

from collections.abc import Sequence

#: Column stop of a tile that takes every column.
ALL = 1 << 40

#: Ways to cut a training step; `plan` chooses among those for the CPU.
ALONE = "alone"  # one tile: the step is too short to share
PARTIAL = "partial"  # blocks of rows through all layers, each with a gradient of its own; then their sum
WHOLE = "whole"  # op by op over the whole batch, for a GPU, which shares out every op by itself
WIDE = "wide"  # layer by layer: panels of outputs, so that a panel's weights stay with the thread that updates them

#: Weights of a layer from which on they are worth more than the batch: threads share them out, not rows.
_WIDE_WEIGHTS = 1 << 16
#: Floating-point operations from which on a step is shared among threads (some 90 µs): below, moving the data from
#: core to core costs what the second core saves.
_SHARED_WORK = 2e7
#: Rows and floating-point operations of a block that make a gradient of its own cheap, and how many blocks at most.
_PARTIAL_ROWS = 128
_PARTIAL_WORK = 1e7
_MAX_PARTIALS = 16
#: Floating-point operations of a tile of a wide product that make taking it cheap (some 4 µs).
_TILE_WORK = 1e6
#: Rows and columns from which on a forward product copies its weights side by side before it reads them row by row.
_PACKED_ROWS = 32
_PACKED_COLUMNS = 256

#: Rows up to which a forward product reads its weights from end to end, how many weights make it worth while, and the
#: least columns of a tile then: 2 KiB of a row.
_FLAT_ROWS, _FLAT_WEIGHTS, _FLAT_COLUMNS = 48, 1 << 18, 512

#: Rows of a tile in prediction and evaluation.
FORWARD_ROWS = 32
#: Numbers that a loss takes of scratch (see cpu/crossentropy.py).
LOSS_SCRATCH = 7 * 64
#: Numbers of a tile of an update.
PARAMETERS = 1 << 13
#: Outputs of a layer up to which its forward product and its weight gradient may go their own way, which takes scratch
#: (see cpu/narrow.py), and rows of a batch from which on a forward product does so in training.
FEW_OUTPUTS = 4
_NARROW_ROWS = 16
#: Numbers that a weight gradient over many rows takes of scratch, and how many rows are many (see cpu/gemm.py).
DEEP_PRODUCT, MANY_ROWS = 128 * (128 + 2 * 64), 192
#: Numbers from row to row from which on rows are far apart.
FAR = 256
#: Columns of a tile of a wide product: the widest panel of cpu/tile.py.
PANEL = 64
#: Panels of a wide weight: enough for as many threads, each wide enough to read memory in long runs.
_PANELS = 16


def work(shapes: Sequence[tuple[int, int]], batch: int) -> float:
    """Floating-point operations of a training step; `shapes` are (n_in, n_out) of the dense layers."""
    return 6.0 * batch * sum(n_in * n_out for n_in, n_out in shapes)


def plan(shapes: Sequence[tuple[int, int]], batch: int, by_rows: bool = False) -> str:
    """Which of the CPU's ways; with `by_rows` one that takes rows through all layers, as custom layers need it."""
    if not by_rows and any(is_wide(n_in * n_out) for n_in, n_out in shapes):
        return WIDE
    return PARTIAL if batch > partial_rows(shapes, batch) else ALONE


def is_wide(n_weights: int) -> bool:
    """Whether threads should share out so many weights of a layer, not the rows of a batch."""
    return n_weights >= _WIDE_WEIGHTS


def is_shared(operations: float) -> bool:
    """Whether a step of so many floating-point operations is worth more than one thread."""
    return operations >= _SHARED_WORK


def wants_packing(batch: int, n_out: int) -> bool:
    """Whether a forward product should copy its weights side by side first: many rows, long strides."""
    return batch >= _PACKED_ROWS and n_out >= _PACKED_COLUMNS


def is_flat(batch: int, n_in: int, n_out: int) -> bool:
    """Whether a forward product should read its weights from end to end: more of them than stay in cache, few rows."""
    return batch <= _FLAT_ROWS and n_in * n_out >= _FLAT_WEIGHTS


def narrow_from(n_in: int, n_out: int, trains: bool) -> int:
    """Rows of a batch from which on a forward product of few outputs is one of scalar products of rows; 0 for never.

    By the cycles that 16 rows of 32 take, roughly. Where nothing trains, always (-1), so that a row is predicted alike
    in any company.
    """
    if n_out > FEW_OUTPUTS or n_out * (n_in + 50) >= 8 * n_in:
        return 0
    return _NARROW_ROWS if trains else -1


def packed_panel(k: int) -> int:
    """Numbers that a packed panel of k rows may take."""
    return PANEL * (-(-k // 16) * 16)


def mask_size(batch: int, width: int) -> int:
    """Numbers, of either dtype, that hold the bits of a dropout mask (see cpu/dropout.py): whole groups of 128 bits."""
    return -(-batch * (-(-width // 16) * 16) // 128) * 4


def partial_rows(shapes: Sequence[tuple[int, int]], batch: int) -> int:
    """Rows that share a partial gradient."""
    rows = max(_PARTIAL_ROWS, int(_PARTIAL_WORK / work(shapes, 1)), -(-batch // _MAX_PARTIALS))
    return -(-rows // 16) * 16


def parameters(batch: int) -> int:
    """Numbers of a weight whose gradient is computed and applied at once: a row of the data is read for more of them
    where rows are many.
    """
    return PARAMETERS * (4 if batch > MANY_ROWS else 1)


def panels(n_out: int, batch: int) -> list[tuple[int, int]]:
    """The columns [start, stop) of a weight that one thread updates at a time: more of them where rows are many."""
    least = 2 * PANEL if batch > MANY_ROWS else PANEL
    width = max(least, n_out // _PANELS // PANEL * PANEL) if n_out >= 2 * least else n_out
    return [(start, min(start + width, n_out)) for start in range(0, n_out, width)]


def row_tiles(first_op: int, last_op: int, batch: int, rows: int) -> list[tuple]:
    """Blocks of `rows` rows through the ops [first, last)."""
    return [(first_op, last_op, start, min(start + rows, batch), 0, ALL) for start in range(0, batch, rows)]


def columns_of_tiles(n_columns: int, columns: int) -> int:
    """How many columns each of `column_tiles` takes, but the last."""
    return -(-n_columns // -(-n_columns // columns))


def column_tiles(first_op: int, last_op: int, batch: int, n_columns: int, columns: int) -> list[tuple]:
    """Blocks of about `columns` columns over the whole batch."""
    columns = columns_of_tiles(n_columns, columns)
    return [
        (first_op, last_op, 0, batch, start, min(start + columns, n_columns)) for start in range(0, n_columns, columns)
    ]


def product_tiles(
    first_op: int, last_op: int, batch: int, n_in: int, n_out: int, reads_flat: bool = False
) -> list[tuple]:
    """Blocks of rows and columns of one product (batch, n_in) × (n_in, n_out), each worth some microseconds.

    A tile of weights that are read from end to end (`is_flat`) takes a long part of each row, and all rows.
    """
    wanted = max(1, int(2 * batch * n_in * n_out / _TILE_WORK))
    n_column_tiles = min(wanted, -(-n_out // PANEL))
    columns = -(-n_out // n_column_tiles // PANEL) * PANEL
    if reads_flat:
        columns = max(_FLAT_COLUMNS, n_out // 4 // PANEL * PANEL)
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
