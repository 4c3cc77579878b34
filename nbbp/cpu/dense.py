"""The op of dense layers: forward, input gradient and weight gradient as one kernel over register tiles.

Legend: batch rows, n_in inputs, n_out outputs per row. The same three products as plain functions of arrays, as loops,
with BLAS and in parallel too, are in cpu/dense_variants.py.
"""

from numba import int64

from nbbp import ops
from nbbp.compiling import jit
from nbbp.cpu import narrow, simd
from nbbp.cpu.gemm import (
    FAR,
    IN_PLACE,
    MANY,
    TRANSPOSED,
    deep_product,
    gated_product,
    panel_width,
    product,
    rounded_product,
)
from nbbp.cpu.kernels import kernel

#: Rows of a batch from which on a weight gradient with few outputs goes its own way (cpu/narrow.py).
_MANY_ROWS = 8


@jit()
def rows_of_batch(op, step):
    """How many rows the batch has; what goes by it is the same however the batch is cut, and whatever was planned."""
    return min(op[ops.BATCH], op[ops.N_SAMPLES] - step * op[ops.BATCH])


@jit()
def weight_gradient(op, step, row_start, row_stop, column_start, column_stop, zero, scratch, lanes, panel):
    """The product over rows: in the way that suits its shape (cpu/narrow.py, cpu/gemm.py)."""
    x_stride, w_stride, y_stride = op[ops.X_STRIDE], op[ops.W_STRIDE], op[ops.Y_STRIDE]
    x = simd.advance(simd.pointer(op[ops.X], zero), row_start * x_stride + column_start)
    w = simd.advance(simd.pointer(op[ops.W], zero), row_start * w_stride)
    m, n, k = min(column_stop, op[ops.N_IN]) - column_start, op[ops.N_OUT], row_stop - row_start
    is_in_scratch = op[ops.Y] == 0
    y = scratch
    if not is_in_scratch:
        slot = row_start // op[ops.SLOT_ROWS] * op[ops.SLOT_STRIDE]
        y = simd.advance(simd.pointer(op[ops.Y], zero), slot)
    if not op[ops.TILE_LOCAL]:
        y = simd.advance(y, column_start * y_stride)
    no_floor = zero + simd.pointer(op[ops.SETTINGS], zero)[0]
    if n <= narrow.FEW_OUTPUTS and rows_of_batch(op, step) >= _MANY_ROWS and not is_in_scratch:
        narrow.weight_gradient(y, y_stride, x, x_stride, w, w_stride, m, n, k, no_floor, scratch, panel)
    elif k > MANY and max(x_stride, w_stride) > FAR:
        free = simd.advance(scratch, (m * n + 15) // 16 * 16) if is_in_scratch else scratch
        deep_product(y, y_stride, x, x_stride, w, w_stride, m, n, k, no_floor, free, panel)
    else:
        product(y, y_stride, x, 1, x_stride, w, w_stride, w, 0, m, n, k, no_floor, IN_PLACE, scratch, lanes, panel)


@kernel("product", of_float32=(ops.BF16, ops.FP16))
def product_op(zero, variant):
    """Y = max(floor, BIAS + X·W), for all three products of a dense layer; which one, the row's strides and flags say.

    Where there is KEPT (batch, N_OUT), what a rectifier gave, Y is 0 where that is not positive: the input gradient has
    then come back through the rectifier as well.

    Over columns (forward, input gradient): Y (batch, N_OUT), X (batch, N_IN), W (N_IN, N_OUT) or its transpose; cut by
    rows and by columns. Over rows (weight gradient, CONTRACTS_ROWS): Y (N_IN, N_OUT) = Xᵀ·W with X (batch, N_IN) and
    W (batch, N_OUT); cut by rows (each block of SLOT_ROWS writes a partial gradient of its own) and by rows of Y.
    Writes Y, or scratch where that is 0 or W must be packed. A column of ones behind X's columns makes the bias the
    last row of the weight. The variants of 16 bits round W and BIAS; they write scratch in any layout.
    """
    lanes, panel = simd.LANES[zero.dtype], panel_width(zero.dtype)

    def product_op(op, step, row_start, row_stop, column_start, column_stop, scratch):
        free = simd.pointer(scratch, zero)
        if op[ops.CONTRACTS_ROWS]:
            weight_gradient(op, step, row_start, row_stop, column_start, column_stop, zero, free, lanes, panel)
            return
        layout, x_stride, w_stride, y_stride = op[ops.LAYOUT], op[ops.X_STRIDE], op[ops.W_STRIDE], op[ops.Y_STRIDE]
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * x_stride)
        w = simd.advance(simd.pointer(op[ops.W], zero), column_start * (w_stride if layout == TRANSPOSED else 1))
        y = simd.advance(simd.pointer(op[ops.Y], zero), row_start * y_stride + column_start)
        m, n, k = row_stop - row_start, min(column_stop, op[ops.N_OUT]) - column_start, op[ops.N_IN]
        floor = zero + simd.pointer(op[ops.SETTINGS], zero)[0]
        has_bias, has_gate = op[ops.BIAS] != 0, op[ops.KEPT] != 0
        # without a bias a pointer that can be read all the same: masked loads of nothing from nowhere are slow
        bias = simd.advance(simd.pointer(op[ops.BIAS], zero), column_start) if has_bias else w
        gate, gate_stride = y, y_stride
        if has_gate:
            gate_stride = op[ops.KEPT_STRIDE]
            gate = simd.advance(simd.pointer(op[ops.KEPT], zero), row_start * gate_stride + column_start)
        if variant != 0:
            rounded_product(
                y, y_stride, x, x_stride, 1, w, w_stride, bias, int64(has_bias), m, n, k, floor, layout, free, lanes,
                panel, variant,
            )  # fmt: skip
        elif layout == TRANSPOSED and rows_of_batch(op, step) <= narrow.FEW_ROWS:
            narrow.input_gradient(y, y_stride, x, x_stride, w, w_stride, m, n, k, gate, gate_stride, has_gate, lanes)
        else:
            gated_product(
                y, y_stride, x, x_stride, 1, w, w_stride, bias, int64(has_bias), m, n, k, floor, layout, free, lanes,
                panel, gate, gate_stride, int64(has_gate),
            )  # fmt: skip

    return product_op
