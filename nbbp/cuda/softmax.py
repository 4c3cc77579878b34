"""softmax and log_softmax: activations of a whole row, forward and backward.

Legend: batch rows, `width` classes. ROW_LANES threads share a row: each takes every ROW_LANES-th class, and all of them
add up the same parts in the same order. Stable for any finite logits: the row's largest is subtracted first
(Goodfellow, Bengio, Courville, Deep Learning, 4.1). Where a row holds NaN all of it becomes NaN.
"""

from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, INTEGER, INTEGERS, N_SAMPLES, ROW_LANES, ROWS, STEP, kernel
from nbbp.cuda.lanes import largest_of_part, largest_of_row, sum_of_row
from nbbp.cuda.launch import Binding, binds, row_sums
from nbbp.scalars.functions import exp, log

_KINDS = (INTEGERS, INTEGER, ARRAY, INTEGER, ARRAY, INTEGER, INTEGER)
_SHAPE = (ROWS, ROW_LANES)


@kernel(*_KINDS, variants=("softmax", "log_softmax"))
def softmax_forward(number, variant):
    """y = exp(x - max x) / sum of these, per row, or its logarithm; x, y (batch, width), the same or apart.

    Writes y.
    """
    zero, lowest, takes_log = number(0), number("-inf"), variant == "log_softmax"

    def softmax_forward(clock, batch, y, y_stride, x, x_stride, width):
        largest_of = cuda.shared.array(_SHAPE, number)
        sum_of = cuda.shared.array(_SHAPE, number)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        for first in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
            r = first + row
            largest, total = lowest, zero
            if r < n_rows:
                largest = largest_of_part(x, r * x_stride, width, lane, lowest)
            largest_of[row, lane] = largest
            cuda.syncthreads()
            largest = largest_of_row(largest_of, row)
            if r < n_rows:
                for j in range(lane, width, ROW_LANES):
                    total += exp(x[r * x_stride + j] - largest)
            sum_of[row, lane] = total
            cuda.syncthreads()
            total = sum_of_row(sum_of, row)
            shift = log(total)
            if r < n_rows:
                for j in range(lane, width, ROW_LANES):
                    value = x[r * x_stride + j] - largest
                    # in this order: largest + log(total) would round away the logarithm of a row of large logits
                    y[r * y_stride + j] = value - shift if takes_log else exp(value) / total
            cuda.syncthreads()  # nobody writes the next row's parts while somebody reads these

    return softmax_forward


@kernel(*_KINDS, variants=("softmax", "log_softmax"))
def softmax_backward(number, variant):
    """y = x ∘ (y - <x, y>) per row; x the softmax, y the output gradient, both (batch, width). Writes y.

    Of log_softmax, y -= exp(x) · sum y.
    """
    zero, takes_log = number(0), variant == "log_softmax"

    def softmax_backward(clock, batch, y, y_stride, x, x_stride, width):
        sum_of = cuda.shared.array(_SHAPE, number)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        n_rows = min(batch, clock[N_SAMPLES] - clock[STEP] * batch)
        for first in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
            r, total = first + row, zero
            if r < n_rows:
                for j in range(lane, width, ROW_LANES):
                    slope = y[r * y_stride + j]
                    total += slope if takes_log else x[r * x_stride + j] * slope
            sum_of[row, lane] = total
            cuda.syncthreads()
            total = sum_of_row(sum_of, row)
            if r < n_rows:
                for j in range(lane, width, ROW_LANES):
                    slope, value = y[r * y_stride + j], x[r * x_stride + j]
                    y[r * y_stride + j] = slope - exp(value) * total if takes_log else value * (slope - total)
            cuda.syncthreads()

    return softmax_backward


@binds("softmax_forward", "softmax_backward", "log_softmax_forward", "log_softmax_backward")
def bind_softmax(op: Binding) -> None:
    """One function of rows."""
    function, _, direction = op.kernel.rpartition("_")
    op.launch(
        f"softmax_{direction}", row_sums(op.batch), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE],
        op.array(ops.X), op[ops.X_STRIDE], op[ops.N_OUT], variant=function,
    )  # fmt: skip
