"""softmax and log_softmax: activations of a whole row, forward and backward.

Legend: batch rows, N_OUT classes; rows are padded to whole registers. Cut by rows only.
Stable for any finite logits: the row's largest is subtracted first (Goodfellow, Bengio, Courville, Deep Learning, 4.1).
"""

from nbbp import ops
from nbbp.compiling import FASTMATH
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel
from nbbp.scalars.functions import exp, log


@kernel("softmax_forward", fastmath=FASTMATH)
def softmax_forward(zero, variant):
    """Y = exp(X - max X) / sum of these, per row; X, Y (batch, N_OUT), the same or apart. Writes Y."""
    lanes = simd.LANES[zero.dtype]

    def softmax_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n = op[ops.N_OUT]
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            behind, largest = y[n], simd.row_maximum(x, n)
            simd.copy(y, x, n)
            for block in range(0, n, lanes):
                for j in range(block, block + lanes):
                    y[j] = exp(y[j] - largest)
            share = type(zero)(1) / simd.row_sum(y, n)
            for j in range(n):
                y[j] *= share
            y[n] = behind

    return softmax_forward


@kernel("softmax_backward", fastmath=FASTMATH)
def softmax_backward(zero, variant):
    """Y = X ∘ (Y - <X, Y>) per row; X the softmax, Y the output gradient, both (batch, N_OUT). Writes Y."""

    def softmax_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n = op[ops.N_OUT]
        for r in range(row_start, row_stop):
            p = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            d = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            inner = zero
            for j in range(n):
                inner += p[j] * d[j]
            for j in range(n):
                d[j] = p[j] * (d[j] - inner)

    return softmax_backward


@kernel("log_softmax_forward", fastmath=FASTMATH)
def log_softmax_forward(zero, variant):
    """Y = X - max X - log(sum exp(X - max X)) per row; X, Y (batch, N_OUT), the same or apart. Writes Y."""

    def log_softmax_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n = op[ops.N_OUT]
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            largest, total = simd.row_maximum(x, n), zero
            for j in range(n):
                total += exp(x[j] - largest)
            shift = log(total)
            simd.copy(y, x, n)
            # in this order: largest + log(total) would round away the logarithm of a row of large logits
            for j in range(n):
                y[j] = (y[j] - largest) - shift

    return log_softmax_forward


@kernel("log_softmax_backward", fastmath=FASTMATH)
def log_softmax_backward(zero, variant):
    """Y -= exp(X) · sum Y per row; X the log-softmax, Y the output gradient, both (batch, N_OUT). Writes Y."""

    def log_softmax_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n = op[ops.N_OUT]
        for r in range(row_start, row_stop):
            y = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            d = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            total = simd.row_sum(d, n)
            for j in range(n):
                d[j] -= exp(y[j]) * total

    return log_softmax_backward
