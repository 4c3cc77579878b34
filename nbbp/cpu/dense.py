"""The op of dense layers: forward, input gradient and weight gradient as one kernel over register tiles.

Legend: batch rows, n_in inputs, n_out outputs per row. The same three products as plain functions of arrays, as loops,
with BLAS and in parallel too, are in cpu/dense_variants.py.
"""

from numba import int64

from nbbp import ops
from nbbp.cpu import narrow, simd
from nbbp.cpu.gemm import FLAT, TRANSPOSED, flat_product, gated_product, panel_width, rounded_product
from nbbp.cpu.kernels import kernel
from nbbp.cpu.rows import rows_of_batch

#: Rows of a batch from which on a weight gradient with few outputs goes its own way (cpu/narrow.py).
_MANY_ROWS = 8


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
        x, w, free = simd.pointer(op[ops.X], zero), simd.pointer(op[ops.W], zero), simd.pointer(scratch, zero)
        y = simd.pointer(op[ops.Y] if op[ops.Y] != 0 else scratch, zero)
        layout, x_stride, w_stride, y_stride = op[ops.LAYOUT], op[ops.X_STRIDE], op[ops.W_STRIDE], op[ops.Y_STRIDE]
        floor = zero + simd.pointer(op[ops.SETTINGS], zero)[0]
        is_narrow, gradient, narrow_from = False, y, op[ops.NARROW_FROM]
        if op[ops.CONTRACTS_ROWS]:
            x, w = simd.advance(x, row_start * x_stride + column_start), simd.advance(w, row_start * w_stride)
            slot = row_start // op[ops.SLOT_ROWS] * op[ops.SLOT_STRIDE]
            y = simd.advance(y, slot + (0 if op[ops.TILE_LOCAL] else column_start * y_stride))
            m, n, k = min(column_stop, op[ops.N_IN]) - column_start, op[ops.N_OUT], row_stop - row_start
            x_row, x_column = 1, x_stride
            is_narrow = n <= narrow.FEW_OUTPUTS and rows_of_batch(op, step) >= _MANY_ROWS and op[ops.Y] != 0
            if is_narrow:  # compute Wᵀ·X, whose rows fill registers
                gradient, y, y_stride, x_row, x_column, m, n = y, free, (m + 15) // 16 * 16, 1, w_stride, n, m
                x, w, w_stride = w, x, x_stride
        else:
            x = simd.advance(x, row_start * x_stride)
            w = simd.advance(w, column_start * (w_stride if layout == TRANSPOSED else 1))
            y = simd.advance(y, row_start * y_stride + column_start)
            m, n, k = row_stop - row_start, min(column_stop, op[ops.N_OUT]) - column_start, op[ops.N_IN]
            x_row, x_column = x_stride, 1
        has_bias, has_gate = op[ops.BIAS] != 0, op[ops.KEPT] != 0
        # without a bias a pointer that can be read all the same: masked loads of nothing from nowhere are slow
        bias = simd.advance(simd.pointer(op[ops.BIAS], zero), column_start) if has_bias else w
        gate, gate_stride = y, op[ops.KEPT_STRIDE]
        if has_gate:
            gate = simd.advance(simd.pointer(op[ops.KEPT], zero), row_start * gate_stride + column_start)
        if variant != 0:
            rounded_product(
                y, y_stride, x, x_row, x_column, w, w_stride, bias, int64(has_bias), m, n, k, floor, layout, free,
                lanes, panel, variant,
            )  # fmt: skip
        elif layout == TRANSPOSED and rows_of_batch(op, step) <= narrow.FEW_ROWS:
            narrow.input_gradient(y, y_stride, x, x_stride, w, w_stride, m, n, k, gate, gate_stride, has_gate, lanes)
        elif narrow_from < 0 or 0 < narrow_from <= rows_of_batch(op, step):
            narrow.forward(y, y_stride, x, x_stride, w, w_stride, bias, has_bias, m, n, k, floor, free, lanes)
        elif layout == FLAT:
            flat_product(y, y_stride, x, x_stride, w, w_stride, bias, int64(has_bias), m, n, k, floor, panel)
        else:
            gated_product(
                y, y_stride, x, x_row, x_column, w, w_stride, bias, int64(has_bias), m, n, k, floor, layout, free,
                lanes, panel, gate, gate_stride, int64(has_gate),
            )  # fmt: skip
        if is_narrow:
            narrow.turn_round(gradient, op[ops.Y_STRIDE], free, y_stride, n, m)

    return product_op
