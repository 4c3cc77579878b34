"""Dense layers on one sample: the product forward, the product backward, and the gradient of a weight.

Legend: x (n_in,), weight (n_in, n_out) row-major, bias (n_out,), y (n_out,); d_x and d_y are the loss's gradients with
respect to x and y. L is the number of lanes of a register. x, y, d_x and d_y are buffers on the stack.

A product of a matrix and a vector reads every weight once, so its floor is reading them: each register of weights is
loaded once and goes into one fused multiply-add. What is left to arrange is that enough sums are in flight to hide its
latency, and that sums across a register are taken for a whole block of rows at once. Layers of at most L/2 outputs are
products of their own (nbbp/sample/narrow.py), in which a register holds several rows.
"""

from nbbp.sample import narrow
from nbbp.sample.emit import Emitter

#: Sums in flight that hide the latency of a fused multiply-add (4 cycles × 2 per cycle).
_SUMS_IN_FLIGHT = 8
#: Registers of columns that a product keeps sums of at a time.
_MAX_VECTORS = 4
#: Multiply-adds that are written out one after the other; more of them run in a loop.
_MOST_WRITTEN = 64


def dense_forward(emit: Emitter, y, x, weight, bias, n_in: int, n_out: int) -> None:
    """y[j] = bias[j] + sum_i x[i] · weight[i, j]. Writes y with its padding; `bias` may be None."""
    if narrow.is_narrow(emit, n_out):
        narrow.dense_forward(emit, y, x, weight, bias, n_in, n_out)
        return

    def group(first, n):
        _forward_columns(emit, y, x, weight, bias, n_in, n_out, first, n)

    most = _MAX_VECTORS * emit.lanes
    emit.repeat(n_out // most, lambda g: group(emit.times(g, most), most), _MAX_VECTORS)
    if n_out % most:
        group(n_out // most * most, n_out % most)


def _forward_columns(emit: Emitter, y, x, weight, bias, n_in: int, n_out: int, first, n: int) -> None:
    """y[first : first + n], each register of it as several sums over every so many rows."""
    widths = [min(emit.lanes, n - start) for start in range(0, n, emit.lanes)]
    columns = [emit.plus(first, v * emit.lanes) for v in range(len(widths))]
    n_parts = max(1, min(n_in, _SUMS_IN_FLIGHT // len(columns)))
    sums = [emit.zeros()] * (n_parts * len(columns))
    if bias is not None:
        sums[: len(columns)] = [emit.load(bias, c, active) for c, active in zip(columns, widths, strict=True)]

    def rows(start, n_rows, sums):
        new = list(sums)
        for part in range(n_rows):
            i = emit.plus(start, part)
            a, base = emit.broadcast(x, i), emit.times(i, n_out)
            for v, (column, active) in enumerate(zip(columns, widths, strict=True)):
                at = part * len(columns) + v
                new[at] = emit.multiply_add(a, emit.load(weight, emit.plus(base, column), active), new[at])
        return new

    turns, left = divmod(n_in, n_parts)
    most = _MOST_WRITTEN // (n_parts * len(columns))
    sums = emit.accumulate(turns, sums, lambda i, sums: rows(emit.times(i, n_parts), n_parts, sums), most)
    sums = rows(turns * n_parts, left, sums)
    for v, column in enumerate(columns):
        emit.store(emit.total(sums[v :: len(columns)]), y, column)


def dense_input_gradient(emit: Emitter, d_x, d_y, weight, n_in: int, n_out: int) -> None:
    """d_x[i] = sum_j weight[i, j] · d_y[j]; d_y's padding is 0. Writes d_x with its padding, which becomes 0."""
    if n_out <= min(narrow.MOST_COLUMNS, emit.lanes):
        narrow.dense_input_gradient(emit, d_x, d_y, weight, n_in, n_out)
        return

    whole, left = divmod(n_out, emit.lanes)

    def block(first, n_rows):
        def column(start, active, sums):
            d = emit.load(d_y, start)
            places = [emit.plus(emit.times(emit.plus(first, i), n_out), start) for i in range(n_rows)]
            weights = [emit.load(weight, place, active) for place in places]
            return [emit.multiply_add(w, d, total) for w, total in zip(weights, sums, strict=True)]

        sums = [emit.zeros()] * n_rows
        sums = emit.accumulate(
            whole, sums, lambda v, sums: column(emit.times(v, emit.lanes), emit.lanes, sums), _MAX_VECTORS
        )
        if left:
            sums = column(whole * emit.lanes, left, sums)
        emit.store(_sum_across(emit, sums + [emit.zeros()] * (emit.lanes - n_rows)), d_x, first)

    emit.by_register(n_in, block, max(1, _MOST_WRITTEN // n_out))


def _sum_across(emit: Emitter, rows: list):
    """A register whose lane i is the sum of all lanes of rows[i]; L registers.

    Butterfly: each of log2(L) rounds adds pairs of registers half by half, so L - 1 additions and twice as many
    shuffles do what L sums across a register would do in L · log2(L) of each.
    """
    lanes, distance = range(emit.lanes), 1
    while len(rows) > 1:
        low = [i if not i & distance else emit.lanes + (i ^ distance) for i in lanes]
        high = [i ^ distance if not i & distance else emit.lanes + i for i in lanes]
        pairs = [rows[k : k + 2] for k in range(0, len(rows), 2)]
        rows = [emit.builder.fadd(emit.shuffle(a, low, b), emit.shuffle(a, high, b)) for a, b in pairs]
        distance *= 2
    return rows[0]


def dense_weight_gradient(emit: Emitter, gradient, x, d_y, n_in: int, n_out: int) -> None:
    """gradient[i, j] = x[i] · d_y[j]. Writes gradient (n_in, n_out) and nothing behind it."""
    if narrow.is_narrow(emit, n_out):
        narrow.dense_weight_gradient(emit, gradient, x, d_y, n_in, n_out)
        return

    def row(i):
        a, base = emit.broadcast(x, i), emit.times(i, n_out)

        def column(j, active):
            product = emit.builder.fmul(a, emit.load(d_y, j))
            emit.store(product, gradient, emit.plus(base, j), active)

        emit.by_register(n_out, column)

    emit.repeat(n_in, row, max(1, _MOST_WRITTEN * emit.lanes // n_out))
