"""Mixed precision: matrices and parameters between float32, in which kernels compute, and 16 bits.

Legend: batch rows, `width` units, rows `stride` numbers apart. The variant is the 16-bit format, `ops.BF16` or
`ops.FP16`; a number of 16 bits lies in memory as uint16. `scale` (5,) float32 holds the scale of the loss's gradient,
updates without overflow since it changed, its growth factor, its backoff factor, and how many updates without overflow
it takes to grow. As nbbp/cpu/mixed.py; rounding is nbbp/cuda/tensor_cores.py's.

A product that is followed by the rounding of what it gives rounds it itself, if nothing is to be kept in 16 bits.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, FIRST_STEP, HALVES, INTEGER, INTEGERS, N_SAMPLES, STEP, kernel
from nbbp.cuda.launch import Binding, binds, flat, matrix
from nbbp.cuda.tensor_cores import narrow_pair, widen
from nbbp.cuda.verdict import GRADIENT_FINE, conditions, place_among

_FORMATS = (ops.BF16, ops.FP16)
_OF_FLOAT32 = {"variants": _FORMATS, "dtypes": ("float32",)}


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, HALVES, INTEGER, ARRAY, **_OF_FLOAT32)
def narrow(number, variant):
    """x = what x, times scale[0] unless that is empty, is in 16 bits; so is kept, unless that is empty, in them.

    x, kept (batch, width), of equal strides, apart. Writes x and kept.
    """

    def narrow(clock, batch, x, stride, kept, width, scale):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                at = r * stride + j
                value = x[at] * scale[0] if scale.size > 0 else x[at]
                word = narrow_pair(variant, value, value)
                x[at] = widen(variant, word)
                if kept.size > 0:
                    kept[at] = np.uint16(word & np.uint32(0xFFFF))

    return narrow


@kernel(INTEGERS, INTEGER, ARRAY, INTEGER, HALVES, INTEGER, **_OF_FLOAT32)
def widen_rows(number, variant):
    """y = kept, in float32; y, kept (batch, width), of equal strides, apart. Writes y."""

    def widen_rows(clock, batch, y, stride, kept, width):
        column, row = cuda.grid(2)
        columns, rows = cuda.gridsize(2)
        for r in range(row, min(batch, clock[N_SAMPLES] - clock[STEP] * batch), rows):
            for j in range(column, width, columns):
                y[r * stride + j] = widen(variant, np.uint32(kept[r * stride + j]))

    return widen_rows


@kernel(ARRAY, ARRAY, INTEGER, **_OF_FLOAT32)
def round_parameters(number, variant):
    """y = x (n,) rounded to 16 bits, in float32; apart. Writes y."""

    def round_parameters(y, x, n):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            y[i] = widen(variant, narrow_pair(variant, x[i], x[i]))

    return round_parameters


@kernel(INTEGERS, ARRAY, INTEGERS, INTEGER, dtypes=("float32",))
def update_loss_scale(number, variant):
    """scale after an update: smaller if the gradient overflowed, larger if none has for long enough. One thread.

    Once for every update, that is after the last of the `accumulation` batches; a scale beyond the normal numbers, or
    infinite, is not taken.
    """
    smallest, zero, one, infinity = number(2.0**-126), number(0), number(1), number(math.inf)

    def update_loss_scale(clock, scale, verdict, accumulation):
        if cuda.grid(1) != 0 or place_among(clock[FIRST_STEP], clock[STEP], accumulation) + 1 < accumulation:
            return
        following = scale[0]
        scale[1] += one
        if verdict[GRADIENT_FINE] == 0:
            following *= scale[3]
            scale[1] = zero
        elif scale[1] >= scale[4]:
            following *= scale[2]
            scale[1] = zero
        if smallest <= following and following < infinity:
            scale[0] = following

    return update_loss_scale


def roundings_of_products(program_ops: Sequence[Any]) -> dict[int, int]:
    """Rows of products that may round what they give, each with the row of the op that would do it."""
    found = {}
    for row, (op, following) in enumerate(itertools.pairwise(program_ops)):
        if op.kernel != "product" or following.kernel != "narrow" or op.columns.get(ops.CONTRACTS_ROWS):
            continue
        columns = following.columns
        is_all = columns[ops.X] == op.columns[ops.Y] and columns[ops.N_OUT] == op.columns[ops.N_OUT]
        if is_all and not columns.get(ops.KEPT) and not columns.get(ops.LOSS_SCALE):
            found[row] = row + 1
    return found


@binds("narrow")
def bind_narrow(op: Binding) -> None:
    """Round a matrix, and keep it in 16 bits perhaps."""
    op.launch(
        "narrow", matrix(op.batch, op[ops.N_OUT]), op.clock, op.batch, op.array(ops.X), op[ops.X_STRIDE],
        op.array(ops.KEPT, np.uint16), op[ops.N_OUT], op.array(ops.LOSS_SCALE), variant=op.variant,
    )  # fmt: skip


@binds("widen")
def bind_widen(op: Binding) -> None:
    """Bring a matrix back."""
    op.launch(
        "widen_rows", matrix(op.batch, op[ops.N_OUT]), op.clock, op.batch, op.array(ops.Y), op[ops.Y_STRIDE],
        op.array(ops.KEPT, np.uint16), op[ops.N_OUT], variant=op.variant,
    )  # fmt: skip


@binds("round_parameters")
def bind_round(op: Binding) -> None:
    """Parameters of a layer of the user's own."""
    n = op[ops.N_OUT]
    op.launch("round_parameters", flat(n), op.array(ops.Y), op.array(ops.X), n, variant=op.variant)


@binds("update_loss_scale")
def bind_update(op: Binding) -> None:
    """After the verdict on the gradient, before the update."""
    op.launch("update_loss_scale", ((1,), (1,)), op.clock, op.array(ops.LOSS_SCALE), *conditions(op))
