"""Losses over classes: crossentropy of logits, fused with its softmax, and the negative log-likelihood.

Legend: batch rows, N_OUT classes. SETTINGS: label smoothing, scale, 1 for the mean or 0 for the sum. Targets are int64
labels or rows of probabilities; both are smoothed to t' = (1 - s) t + s / N_OUT (Szegedy et al., "Rethinking the
Inception Architecture", 2016, section 7). ROW_VALUES as in cpu/loss.py.

    crossentropy: l = log(sum exp X) · sum t' - <t', X>,    dl/dX = softmax(X) · sum t' - t'
    nll:          l = -<t', X>,                             dl/dX = -t'
"""

from numba import float64, int64

from nbbp import ops
from nbbp.compiling import FASTMATH, jit
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel
from nbbp.cpu.rows import rows_ahead, rows_of_batch
from nbbp.scalars.functions import exp, log

#: Rows that go through the passes of `crossentropy` together.
_BLOCK = 64
#: Classes up to which it is quicker to fill registers with rows than with the classes of a row.
FEW_CLASSES = 4


@jit()
def _rounded(x, y):
    """x · y, rounded before anything is added to it: fused or not, the bits would depend on the code around."""
    return x * y


@jit()
def _loss_of_row(weight, logarithm, mass, of_all, of_target):
    """weight · (logarithm · mass - <t', X>), whose two sums are added up in this order."""
    return weight * (logarithm * mass - (of_all + of_target))


@jit(fastmath=FASTMATH)
def _transpose(out, out_stride, x, x_stride, n_rows, n_columns):
    """out[j, i] = x[i, j], where there are few columns."""
    for j in range(n_columns):
        for i in range(n_rows):
            out[j * out_stride + i] = x[i * x_stride + j]


@jit(fastmath=FASTMATH)
def _exponentials(x, largest, totals, logarithms, n_rows, n):
    """x[j, i] = exp(x[j, i] - largest[i]); totals[i] of them over the n classes j, and their logarithms[i].

    x: n rows of _BLOCK numbers. NaN stays visible.
    """
    for i in range(n_rows):
        largest[i] = x[i]
    for j in range(1, n):
        row = simd.advance(x, j * _BLOCK)
        for i in range(n_rows):
            so_far, value = largest[i], row[i]
            largest[i] = so_far if (value < so_far) | (so_far != so_far) else value
    for j in range(n):
        row = simd.advance(x, j * _BLOCK)
        for i in range(n_rows):
            row[i] = exp(row[i] - largest[i])
    for i in range(n_rows):
        totals[i] = x[i]
    for j in range(1, n):
        row = simd.advance(x, j * _BLOCK)
        for i in range(n_rows):
            totals[i] += row[i]
    for i in range(n_rows):
        logarithms[i] = log(totals[i])


@jit(fastmath=FASTMATH)
def _few_classes(op, step, row_start, row_stop, zero, scratch):
    """`crossentropy` for at most FEW_CLASSES: blocks of rows are turned round, so that what is costly fills registers
    with rows. Takes (FEW_CLASSES + 3) · 64 numbers of scratch.
    """
    settings = simd.pointer(op[ops.SETTINGS], zero)
    one, n, start = type(zero)(1), op[ops.N_OUT], step * op[ops.BATCH]
    smoothing, scale = settings[0], settings[1]
    kept, even = one - smoothing, smoothing / type(zero)(n)
    per_row = scale / type(zero)(rows_of_batch(op, step) if settings[2] != 0 else 1)
    ahead = rows_ahead(op)
    n_prefetched = op[ops.N_SAMPLES] - start - ahead if op[ops.ORDER] != 0 else 0
    values = simd.advance(simd.pointer(op[ops.ROW_VALUES], float64(0)), start)
    order = simd.advance(simd.pointer(op[ops.ORDER], int64(0)), start)
    labels, targets = simd.pointer(op[ops.TARGET], int64(0)), simd.pointer(op[ops.TARGET], zero)
    largest, totals, logarithms, columns = (
        scratch, simd.advance(scratch, _BLOCK), simd.advance(scratch, 2 * _BLOCK), simd.advance(scratch, 3 * _BLOCK)
    )  # fmt: skip
    for first in range(row_start, row_stop, _BLOCK):
        n_rows = min(_BLOCK, row_stop - first)
        x = simd.advance(simd.pointer(op[ops.X], zero), first * op[ops.X_STRIDE])
        _transpose(columns, _BLOCK, x, op[ops.X_STRIDE], n_rows, n)
        _exponentials(columns, largest, totals, logarithms, n_rows, n)
        for r in range(n_rows):
            row, start_of_d = simd.advance(x, r * op[ops.X_STRIDE]), (first + r) * op[ops.Y_STRIDE]
            d_row = simd.advance(simd.pointer(op[ops.Y], zero), start_of_d)
            source = order[first + r] if op[ops.ORDER] != 0 else start + first + r
            weight = one
            if op[ops.SAMPLE_WEIGHT] != 0:
                weight = simd.pointer(op[ops.SAMPLE_WEIGHT], zero)[source]
            factor, mass, of_all, of_target = weight * per_row, one, float64(0), float64(0)
            if smoothing != 0:
                for j in range(n):
                    of_all += float64(even * (row[j] - largest[r]))
            target = simd.advance(targets, source * op[ops.TARGET_STRIDE])
            if not op[ops.TARGET_IS_LABELS]:
                mass = smoothing + kept * simd.row_sum(target, n)
            # labels and one-hot rows give the same bits: products with a target of 1 and of 0 are exact
            share, part, even_part = factor * mass / totals[r], _rounded(factor, kept), _rounded(factor, even)
            for j in range(n):
                d_row[j] = columns[j * _BLOCK + r] * share - even_part
            if op[ops.TARGET_IS_LABELS]:
                if first + r < n_prefetched:
                    simd.prefetch(simd.advance(labels, order[ahead + first + r]), 1)
                label = labels[source]
                of_target = float64(_rounded(kept, row[label] - largest[r]))
                d_row[label] -= part
            else:
                for j in range(n):
                    if target[j] != 0:  # 0 · -inf would be NaN
                        of_target += float64(target[j] * _rounded(kept, row[j] - largest[r]))
                    d_row[j] -= part * target[j]
            values[first + r] = _loss_of_row(
                float64(weight * scale), float64(logarithms[r]), float64(mass), of_all, of_target
            )


@kernel("crossentropy", fastmath=FASTMATH)
def crossentropy(zero, variant):
    """ROW_VALUES[r], and Y = d loss / d X; X, Y (batch, N_OUT) logits and gradient. Cut by rows.

    In passes over some rows, so that exponentials and logarithms fill whole registers also where classes are few.
    Writes Y with its padding (of few classes without), and (FEW_CLASSES + 3) · 64 numbers of scratch.
    """

    def crossentropy(op, step, row_start, row_stop, column_start, column_stop, scratch):
        if op[ops.N_OUT] <= FEW_CLASSES:
            _few_classes(op, step, row_start, row_stop, zero, simd.pointer(scratch, zero))
            return
        settings = simd.pointer(op[ops.SETTINGS], zero)
        smoothing, scale, is_mean = settings[0], settings[1], settings[2] != 0
        values = simd.advance(simd.pointer(op[ops.ROW_VALUES], float64(0)), step * op[ops.BATCH])
        order = simd.advance(simd.pointer(op[ops.ORDER], int64(0)), step * op[ops.BATCH])
        n, stride = op[ops.N_OUT], op[ops.Y_STRIDE]
        batch = rows_of_batch(op, step)
        # rows `ahead` of which there is one that has a label anywhere in memory
        ahead = rows_ahead(op)
        n_prefetched = op[ops.N_SAMPLES] - step * op[ops.BATCH] - ahead if op[ops.ORDER] != 0 else 0
        one = type(zero)(1)  # zero + 1 would be a float64
        kept, even = one - smoothing, smoothing / type(zero)(n)
        per_row = scale / type(zero)(batch if is_mean else 1)
        totals = simd.pointer(scratch, zero)
        logarithms = simd.advance(totals, _BLOCK)
        for first in range(row_start, row_stop, _BLOCK):
            n_rows = min(_BLOCK, row_stop - first)
            x = simd.advance(simd.pointer(op[ops.X], zero), first * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], zero), first * stride)
            for r in range(n_rows):
                row = simd.advance(x, r * op[ops.X_STRIDE])
                largest = simd.row_maximum(row, n)
                logarithms[r] = largest
                simd.scale_row(simd.advance(y, r * stride), row, one, -largest, n)
            for i in range(n_rows * stride):
                y[i] = exp(y[i])
            for r in range(n_rows):
                totals[r] = simd.row_sum(simd.advance(y, r * stride), n)
            for r in range(n_rows):
                largest = logarithms[r]
                logarithms[r] = log(totals[r])
                totals[r] = one / totals[r]
                # the loss needs both; the larger part goes to the row's result for now
                values[first + r] = float64(largest)
            for r in range(n_rows):
                source = order[first + r] if op[ops.ORDER] != 0 else step * op[ops.BATCH] + first + r
                row, d_row = simd.advance(x, r * op[ops.X_STRIDE]), simd.advance(y, r * stride)
                largest = type(zero)(values[first + r])
                weight = one
                if op[ops.SAMPLE_WEIGHT] != 0:
                    weight = simd.pointer(op[ops.SAMPLE_WEIGHT], zero)[source]
                factor = weight * per_row
                # the two sums of <t', X - largest>, and sum t'
                of_all, of_target, mass = float64(0), float64(0), one
                if smoothing != 0:
                    for j in range(n):
                        of_all += float64(even * (row[j] - largest))
                target = simd.advance(simd.pointer(op[ops.TARGET], zero), source * op[ops.TARGET_STRIDE])
                if not op[ops.TARGET_IS_LABELS]:
                    mass = smoothing + kept * simd.row_sum(target, n)
                # labels and one-hot rows give the same bits: products with a target of 1 and of 0 are exact
                part = _rounded(factor, kept)
                simd.scale_row(d_row, d_row, factor * mass * totals[r], -factor * even, n)
                if op[ops.TARGET_IS_LABELS]:
                    labels = simd.pointer(op[ops.TARGET], int64(0))
                    if first + r < n_prefetched:
                        simd.prefetch(simd.advance(labels, order[ahead + first + r]), 1)
                    label = labels[source]
                    of_target = float64(_rounded(kept, row[label] - largest))
                    d_row[label] -= part
                else:
                    for j in range(n):
                        if target[j] != 0:  # 0 · -inf would be NaN
                            of_target += float64(target[j] * _rounded(kept, row[j] - largest))
                        d_row[j] -= part * target[j]
                values[first + r] = _loss_of_row(
                    float64(weight * scale), float64(logarithms[r]), float64(mass), of_all, of_target
                )

    return crossentropy


@kernel("nll", fastmath=FASTMATH)
def nll(zero, variant):
    """ROW_VALUES[r], and Y = d loss / d X unless Y is 0; X, Y (batch, N_OUT) log-probabilities and gradient. Cut by
    rows.
    """

    def nll(op, step, row_start, row_stop, column_start, column_stop, scratch):
        settings = simd.pointer(op[ops.SETTINGS], zero)
        scale, is_mean = settings[1], settings[2] != 0
        values = simd.pointer(op[ops.ROW_VALUES], float64(0))
        order = simd.pointer(op[ops.ORDER], int64(0))
        n, first = op[ops.N_OUT], step * op[ops.BATCH]
        batch = rows_of_batch(op, step)
        for r in range(row_start, row_stop):
            source = order[first + r] if op[ops.ORDER] != 0 else first + r
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            weight = type(zero)(1)
            if op[ops.SAMPLE_WEIGHT] != 0:
                weight = simd.pointer(op[ops.SAMPLE_WEIGHT], zero)[source]
            factor = weight * scale / type(zero)(batch if is_mean else 1)
            wants_gradient = op[ops.Y] != 0
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            total = float64(0)
            if op[ops.TARGET_IS_LABELS]:
                label = simd.pointer(op[ops.TARGET], int64(0))[source]
                total = float64(x[label])
                if wants_gradient:
                    for j in range(n):
                        y[j] = zero
                    y[label] = -factor
            else:
                target = simd.advance(simd.pointer(op[ops.TARGET], zero), source * op[ops.TARGET_STRIDE])
                for j in range(n):
                    if target[j] != 0:  # 0 · -inf would be NaN
                        total += float64(target[j] * x[j])
                    if wants_gradient:
                        y[j] = -factor * target[j]
            values[first + r] = -float64(weight * scale) * total

    return nll
