"""The three products of a dense layer, each in four variants of the same arguments, for readers, tests and profiling.

Legend: batch rows, n_in inputs, n_out outputs per row.

    output = max(floor, x · weight + bias)                      forward
    input_gradient = output_gradient · weightᵀ                  input_gradient
    weight_gradient = xᵀ · output_gradient, its columns' sums   weight_gradient

``loops``       plain loops, sample by sample: where a reader starts
``vectorized``  one call of BLAS (SciPy's, inside jitted code), then a pass over the result
``fused``       register tiles of explicit SIMD, bias and rectifier on the way out: what the engine runs
``parallel``    ``fused`` over blocks of rows (of the weight, for its gradient), on Numba's threads

All variants of one op take outputs, inputs, parameters in this order, as C-contiguous arrays of one dtype, write the
outputs, which must not overlap the rest, and return None. ``floor`` is -inf for a linear layer, 0 for a rectifier.
"""

import numpy as np
from numba import prange

from nbbp.compiling import jit
from nbbp.cpu import blas, simd
from nbbp.cpu.gemm import IN_PLACE, TRANSPOSED, panel_width, product

_LANES_32, _LANES_64 = simd.LANES[np.dtype("float32")], simd.LANES[np.dtype("float64")]
_PANEL_32, _PANEL_64 = panel_width("float32"), panel_width("float64")
#: Rows that one thread takes at a time in the parallel variants.
_BLOCK = 64


@jit()
def _product(c, a, a_row, a_column, b, bias, has_bias, m, k, floor, layout, start_c, start_a):
    """`gemm.product` on arrays: rows from the flat places start_c of c and start_a of a on."""
    narrow = c.itemsize == 4
    lanes, panel = (_LANES_32, _PANEL_32) if narrow else (_LANES_64, _PANEL_64)
    scratch = np.empty(panel * (k + lanes) if layout == TRANSPOSED else 0, c.dtype)
    product(
        simd.pointer(simd.address_of(c) + start_c * c.itemsize, floor), c.shape[1],
        simd.pointer(simd.address_of(a) + start_a * a.itemsize, floor), a_row, a_column,
        simd.pointer(simd.address_of(b), floor), b.shape[1],
        simd.pointer(simd.address_of(bias), floor), has_bias, m, c.shape[1], k, floor, layout,
        simd.pointer(simd.address_of(scratch), floor), lanes, panel,
    )  # fmt: skip


@jit()
def _forward_rows(output, x, weight, bias, floor, start, n_rows):
    n_in = x.shape[1]
    _product(output, x, n_in, 1, weight, bias, 1, n_rows, n_in, floor, IN_PLACE, start * output.shape[1], start * n_in)


@jit()
def _input_gradient_rows(input_gradient, output_gradient, weight, start, n_rows):
    n_out, n_in = weight.shape[1], weight.shape[0]
    no_floor = input_gradient.dtype.type(-np.inf)
    _product(
        input_gradient, output_gradient, n_out, 1, weight, weight, 0, n_rows, n_out, no_floor, TRANSPOSED,
        start * n_in, start * n_out,
    )  # fmt: skip


@jit()
def _weight_gradient_rows(weight_gradient, x, output_gradient, start, n_rows):
    n_out = output_gradient.shape[1]
    no_floor = weight_gradient.dtype.type(-np.inf)
    _product(
        weight_gradient, x, 1, x.shape[1], output_gradient, output_gradient, 0, n_rows, x.shape[0], no_floor,
        IN_PLACE, start * n_out, start,
    )  # fmt: skip


@jit()
def _column_sums(sums, x):
    sums[:] = 0
    for r in range(x.shape[0]):
        for j in range(x.shape[1]):
            sums[j] += x[r, j]


@jit()
def _blas(c, a, a_transposed, b, b_transposed, k, beta):
    """c = a·b + beta·c with SciPy's BLAS, on as many threads as it likes."""
    blas.gemm(
        simd.pointer(simd.address_of(c), beta), c.shape[1], simd.pointer(simd.address_of(a), beta), a.shape[1],
        a_transposed, simd.pointer(simd.address_of(b), beta), b.shape[1], b_transposed, c.shape[0], c.shape[1], k,
        beta,
    )  # fmt: skip


@jit()
def dense_forward_loops(output, x, weight, bias, floor):
    """output (batch, n_out) = max(floor, x (batch, n_in) · weight (n_in, n_out) + bias (n_out,))."""
    for r in range(x.shape[0]):
        for j in range(weight.shape[1]):
            total = bias[j]
            for i in range(weight.shape[0]):
                total += x[r, i] * weight[i, j]
            output[r, j] = floor if total < floor else total


@jit()
def dense_forward_vectorized(output, x, weight, bias, floor):
    """output (batch, n_out) = max(floor, x (batch, n_in) · weight (n_in, n_out) + bias (n_out,))."""
    for r in range(output.shape[0]):
        for j in range(output.shape[1]):
            output[r, j] = bias[j]
    _blas(output, x, 0, weight, 0, x.shape[1], x.dtype.type(1))
    for r in range(output.shape[0]):
        for j in range(output.shape[1]):
            output[r, j] = floor if output[r, j] < floor else output[r, j]


@jit()
def dense_forward_fused(output, x, weight, bias, floor):
    """output (batch, n_out) = max(floor, x (batch, n_in) · weight (n_in, n_out) + bias (n_out,))."""
    _forward_rows(output, x, weight, bias, floor, 0, x.shape[0])


@jit(parallel=True)
def dense_forward_parallel(output, x, weight, bias, floor):
    """output (batch, n_out) = max(floor, x (batch, n_in) · weight (n_in, n_out) + bias (n_out,))."""
    for block in prange((x.shape[0] + _BLOCK - 1) // _BLOCK):
        start = block * _BLOCK
        _forward_rows(output, x, weight, bias, floor, start, min(_BLOCK, x.shape[0] - start))


@jit()
def dense_input_gradient_loops(input_gradient, output_gradient, weight):
    """input_gradient (batch, n_in) = output_gradient (batch, n_out) · weightᵀ, weight (n_in, n_out)."""
    for r in range(output_gradient.shape[0]):
        for i in range(weight.shape[0]):
            total = output_gradient.dtype.type(0)
            for j in range(weight.shape[1]):
                total += output_gradient[r, j] * weight[i, j]
            input_gradient[r, i] = total


@jit()
def dense_input_gradient_vectorized(input_gradient, output_gradient, weight):
    """input_gradient (batch, n_in) = output_gradient (batch, n_out) · weightᵀ, weight (n_in, n_out)."""
    _blas(input_gradient, output_gradient, 0, weight, 1, weight.shape[1], output_gradient.dtype.type(0))


@jit()
def dense_input_gradient_fused(input_gradient, output_gradient, weight):
    """input_gradient (batch, n_in) = output_gradient (batch, n_out) · weightᵀ, weight (n_in, n_out)."""
    _input_gradient_rows(input_gradient, output_gradient, weight, 0, output_gradient.shape[0])


@jit(parallel=True)
def dense_input_gradient_parallel(input_gradient, output_gradient, weight):
    """input_gradient (batch, n_in) = output_gradient (batch, n_out) · weightᵀ, weight (n_in, n_out)."""
    batch = output_gradient.shape[0]
    for block in prange((batch + _BLOCK - 1) // _BLOCK):
        start = block * _BLOCK
        _input_gradient_rows(input_gradient, output_gradient, weight, start, min(_BLOCK, batch - start))


@jit()
def dense_weight_gradient_loops(weight_gradient, bias_gradient, x, output_gradient):
    """weight_gradient (n_in, n_out) = xᵀ · output_gradient, x (batch, n_in); bias_gradient (n_out,) its columns'
    sums.
    """
    weight_gradient[:] = 0
    bias_gradient[:] = 0
    for r in range(x.shape[0]):
        for j in range(output_gradient.shape[1]):
            bias_gradient[j] += output_gradient[r, j]
            for i in range(x.shape[1]):
                weight_gradient[i, j] += x[r, i] * output_gradient[r, j]


@jit()
def dense_weight_gradient_vectorized(weight_gradient, bias_gradient, x, output_gradient):
    """weight_gradient (n_in, n_out) = xᵀ · output_gradient, x (batch, n_in); bias_gradient (n_out,) its columns'
    sums.
    """
    _blas(weight_gradient, x, 1, output_gradient, 0, x.shape[0], x.dtype.type(0))
    _column_sums(bias_gradient, output_gradient)


@jit()
def dense_weight_gradient_fused(weight_gradient, bias_gradient, x, output_gradient):
    """weight_gradient (n_in, n_out) = xᵀ · output_gradient, x (batch, n_in); bias_gradient (n_out,) its columns'
    sums.
    """
    _weight_gradient_rows(weight_gradient, x, output_gradient, 0, x.shape[1])
    _column_sums(bias_gradient, output_gradient)


@jit(parallel=True)
def dense_weight_gradient_parallel(weight_gradient, bias_gradient, x, output_gradient):
    """weight_gradient (n_in, n_out) = xᵀ · output_gradient, x (batch, n_in); bias_gradient (n_out,) its columns'
    sums.
    """
    n_in = x.shape[1]
    for block in prange((n_in + _BLOCK - 1) // _BLOCK):
        start = block * _BLOCK
        _weight_gradient_rows(weight_gradient, x, output_gradient, start, min(_BLOCK, n_in - start))
    _column_sums(bias_gradient, output_gradient)


#: Every variant of every op: what tests and profiling go through.
VARIANTS = {
    "dense_forward": {
        "loops": dense_forward_loops,
        "vectorized": dense_forward_vectorized,
        "fused": dense_forward_fused,
        "parallel": dense_forward_parallel,
    },
    "dense_input_gradient": {
        "loops": dense_input_gradient_loops,
        "vectorized": dense_input_gradient_vectorized,
        "fused": dense_input_gradient_fused,
        "parallel": dense_input_gradient_parallel,
    },
    "dense_weight_gradient": {
        "loops": dense_weight_gradient_loops,
        "vectorized": dense_weight_gradient_vectorized,
        "fused": dense_weight_gradient_fused,
        "parallel": dense_weight_gradient_parallel,
    },
}
