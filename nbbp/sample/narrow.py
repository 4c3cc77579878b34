"""Dense layers of few outputs on one sample: several rows of the weight share a register.

Legend: as in nbbp/sample/dense.py; a register holds ``rows`` rows of n_out numbers, ``rows`` a power of two, as they
lie in memory. Rows are taken in blocks of L, whose part of x is one register.
"""

from nbbp.sample.emit import Emitter

#: Outputs up to which the columns of a block of rows are picked out of registers.
MOST_COLUMNS = 4
#: Sums in flight of a forward product.
_MOST_PARTS = 4
#: Blocks of L rows that are written out one after the other; more of them run in a loop.
_MOST_WRITTEN = 4


def is_narrow(emit: Emitter, n_out: int) -> bool:
    """Whether a register holds at least two rows."""
    return 2 * n_out <= emit.lanes


def _rows(emit: Emitter, n_out: int) -> int:
    """Rows in a register."""
    return 1 << ((emit.lanes // n_out).bit_length() - 1)


def _spread(emit: Emitter, values, start: int, n_out: int):
    """A register with each of values[start], values[start + 1], … n_out times."""
    rows = _rows(emit, n_out)
    return emit.shuffle(values, [start + min(lane // n_out, rows - 1) for lane in range(emit.lanes)])


def _tiled(emit: Emitter, d_y, n_out: int):
    """A register with d_y[0:n_out] as often as rows fit; zeros behind them, from d_y's padding."""
    rows = _rows(emit, n_out)
    return emit.shuffle(emit.load(d_y), [lane % n_out if lane < rows * n_out else n_out for lane in range(emit.lanes)])


def dense_forward(emit: Emitter, y, x, weight, bias, n_in: int, n_out: int) -> None:
    """y[j] = bias[j] + sum_i x[i] · weight[i, j]. Writes y with its padding, which becomes 0; `bias` may be None."""
    rows = _rows(emit, n_out)

    def block(first, n_rows, sums):
        # what stands behind x's last number times a weight that is not read must be 0
        values, new = emit.first(emit.load(x, first), n_rows), list(sums)
        for turn, start in enumerate(range(0, n_rows, rows)):
            at = emit.times(emit.plus(first, start), n_out)
            w = emit.load(weight, at, min(rows, n_rows - start) * n_out)
            part = turn % len(new)
            new[part] = emit.multiply_add(_spread(emit, values, start, n_out), w, new[part])
        return new

    n_parts = min(_MOST_PARTS, -(-min(n_in, emit.lanes) // rows))
    whole, left = divmod(n_in, emit.lanes)
    sums = emit.accumulate(
        whole,
        [emit.zeros()] * n_parts,
        lambda b, sums: block(emit.times(b, emit.lanes), emit.lanes, sums),
        _MOST_WRITTEN,
    )
    if left:
        sums = block(whole * emit.lanes, left, sums)
    total = emit.total(sums)
    half = rows // 2
    while half:  # fold the upper half of the rows onto the lower
        total = emit.builder.fadd(
            total, emit.shuffle(total, [min(lane + half * n_out, emit.lanes - 1) for lane in range(emit.lanes)])
        )
        half //= 2
    if bias is not None:
        total = emit.builder.fadd(total, emit.load(bias, 0, n_out))
    emit.store(emit.first(total, n_out), y)


def dense_input_gradient(emit: Emitter, d_x, d_y, weight, n_in: int, n_out: int) -> None:
    """d_x[i] = sum_j weight[i, j] · d_y[j], n_out <= MOST_COLUMNS, L. Writes d_x with its padding, which becomes 0."""
    d = emit.load(d_y)

    def block(first, n_rows):
        start, n = emit.times(first, n_out), n_rows * n_out
        registers = [
            emit.load(weight, emit.plus(start, at), min(emit.lanes, n - at)) if at < n else emit.zeros()
            for at in range(0, n_out * emit.lanes, emit.lanes)
        ]
        total = emit.zeros()
        for j in range(n_out):
            column = _column(emit, registers, j, n_out)
            total = emit.multiply_add(column, emit.shuffle(d, [j] * emit.lanes), total)
        emit.store(total, d_x, first)

    emit.by_register(n_in, block, _MOST_WRITTEN)


def _column(emit: Emitter, registers: list, j: int, n_out: int):
    """Every n_out-th number of the registers taken together, from the j-th on."""
    places = [divmod(lane * n_out + j, emit.lanes) for lane in range(emit.lanes)]
    column = registers[0]
    for v, register in enumerate(registers):
        chosen = [emit.lanes + lane if at == v else i for i, (at, lane) in enumerate(places)]
        column = emit.shuffle(column, chosen, register)
    return column


def dense_weight_gradient(emit: Emitter, gradient, x, d_y, n_in: int, n_out: int) -> None:
    """gradient[i, j] = x[i] · d_y[j]; d_y's padding is 0. Writes gradient (n_in, n_out) and nothing behind it."""
    rows, d = _rows(emit, n_out), _tiled(emit, d_y, n_out)

    def block(first, n_rows):
        values = emit.load(x, first)
        for start in range(0, n_rows, rows):
            product = emit.builder.fmul(_spread(emit, values, start, n_out), d)
            at = emit.times(emit.plus(first, start), n_out)
            emit.store(product, gradient, at, min(rows, n_rows - start) * n_out)

    emit.by_register(n_in, block, _MOST_WRITTEN)
