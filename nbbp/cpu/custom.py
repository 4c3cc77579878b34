"""Layers of the user's own: a jitted function for one sample, called for each row.

Legend: batch rows, N_IN inputs and N_OUT outputs per row, N_PARAMETERS numbers at PARAMETERS. The variant is an
`ops.UserFunction`. Numba's cache cannot know what another function does, so these kernels are compiled in every
process.
"""

import math

from numba import carray

from nbbp import ops
from nbbp.cpu import simd
from nbbp.cpu.kernels import kernel

NAN = math.nan


@kernel("custom_forward", (), cached=False)
def custom_forward(zero, variant):
    """Y = forward(PARAMETERS, X) row by row; X (batch, N_IN), Y (batch, N_OUT), apart from each other. Writes Y.

    Where the function raises, Y stays NaN and Numba prints the exception.
    """
    function = variant.function

    def custom_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n_in, n_out = op[ops.N_IN], op[ops.N_OUT]
        parameters = carray(simd.pointer(op[ops.PARAMETERS], zero), (op[ops.N_PARAMETERS],))
        for r in range(row_start, row_stop):
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            for j in range(n_out):
                y[j] = NAN
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            function(parameters, carray(x, (n_in,)), carray(y, (n_out,)))

    return custom_forward


@kernel("custom_backward", (), cached=False)
def custom_backward(zero, variant):
    """Y, GRADIENT = backward(PARAMETERS, X, KEPT, D_Y) row by row, GRADIENT summed over the rows of the tile.

    X, Y (batch, N_IN), KEPT and D_Y (batch, N_OUT), GRADIENT (N_PARAMETERS,) for each block of SLOT_ROWS rows, which
    a tile must hold whole; 0 if nobody wants it. Writes Y, GRADIENT and scratch, where the sum is made: where the
    function raises, Y and GRADIENT stay NaN and Numba prints the exception.
    """
    function = variant.function

    def custom_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        n_in, n_out, n = op[ops.N_IN], op[ops.N_OUT], op[ops.N_PARAMETERS]
        parameters = carray(simd.pointer(op[ops.PARAMETERS], zero), (n,))
        slot = row_start // op[ops.SLOT_ROWS] * op[ops.SLOT_STRIDE] if op[ops.GRADIENT] != 0 else 0
        gradient = simd.advance(simd.pointer(op[ops.GRADIENT] if op[ops.GRADIENT] != 0 else scratch, zero), slot)
        total = carray(simd.pointer(scratch, zero), (n,))
        for i in range(n):
            gradient[i] = NAN
            total[i] = 0
        for r in range(row_start, row_stop):
            d_x = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            for j in range(n_in):
                d_x[j] = NAN
        for r in range(row_start, row_stop):
            x = simd.advance(simd.pointer(op[ops.X], zero), r * op[ops.X_STRIDE])
            y = simd.advance(simd.pointer(op[ops.KEPT], zero), r * op[ops.KEPT_STRIDE])
            d_y = simd.advance(simd.pointer(op[ops.D_Y], zero), r * op[ops.D_Y_STRIDE])
            d_x = carray(simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE]), (n_in,))
            function(parameters, carray(x, (n_in,)), carray(y, (n_out,)), carray(d_y, (n_out,)), d_x, total)
        for i in range(n):
            gradient[i] = total[i]

    return custom_backward
