"""What the tests of tensor cores share: an oracle of rounding, and products of rounded numbers."""

import numpy as np
import reference_mixed
from numba import cuda

from nbbp.cuda import kernels
from nbbp.cuda.kernels import OVER_ROWS, TRANSPOSED
from nbbp.cuda.launch import is_aligned

#: Relative errors of whole models against the CPU engine: rounding to 11, 8 and 11 significant bits.
TOLERANCES = {"tf32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}


def rounded(x, precision):
    """float32 numbers as a format holds them, in float64."""
    return rounded_to_tf32(x) if precision == "tf32" else reference_mixed.rounded(x, precision)


def rounded_to_tf32(x):
    """To 11 significant bits, or the multiples of the least subnormal number; of two equally near, the larger."""
    with np.errstate(invalid="ignore", over="ignore"):  # infinity and NaN stay
        x = np.float64(x)
        _, exponent = np.frexp(x)
        unit = np.ldexp(1.0, np.maximum(exponent, -125) - 11)
        found = np.copysign(np.floor(np.abs(x) / unit + 0.5) * unit, x)
        return np.where(np.isfinite(x), np.float64(np.float32(found)), x)


def run_product(variant, precision, rows, n_in, n_out, grid=2, floor=-np.inf, parts=1, gated=False, gap=3, rounds=0):
    """The product on random numbers with gaps between its rows, and what it should be; checks what it must not touch.

    `gap`: numbers behind the rows of every matrix, and in front of the first; rows of other than whole quads cannot be
    moved by quads.
    """
    layout, tile, _ = variant
    rng = np.random.default_rng(rows + n_in + n_out)
    batch, shape = rows + 2, {OVER_ROWS: (rows, n_out), TRANSPOSED: (n_out, n_in)}.get(layout, (n_in, n_out))
    x, w = _matrix(rng, rows, n_in, gap), _matrix(rng, *shape, gap)
    left, right = rounded(x[:, :n_in], precision), rounded(w[:, : shape[1]], precision)
    expected = {OVER_ROWS: lambda: left.T @ right, TRANSPOSED: lambda: left @ right.T}.get(
        layout, lambda: left @ right
    )()
    bias = np.zeros(0, np.float32)
    if layout != TRANSPOSED and layout != OVER_ROWS:
        bias = rng.standard_normal(n_out).astype(np.float32)
        expected = expected + (bias if precision == "tf32" else rounded(bias, precision))
    expected, m, stride = np.maximum(expected, floor), len(expected), n_out + gap
    gate = np.maximum(rng.standard_normal((m if gated else 0, n_out + 2)), 0).astype(np.float32)
    if gated:
        expected = np.where(gate[:, :n_out] > 0, expected, 0)
    y = np.full(gap + parts * (m + 1) * stride, 7, np.float32)
    memory = cuda.to_device(y)
    clock = cuda.to_device(np.array([3 * batch + rows, 3, 0]))
    matrices = (memory[gap:], stride), (_on_device(x, gap), x.shape[1]), (_on_device(w, gap), w.shape[1])
    operands = [argument for matrix in matrices for argument in matrix]
    configured = kernels.configured(
        kernels.compiled("tensor_product", "float32", variant), (grid, parts), (tile.threads,), 0
    )
    configured(
        clock, batch, *operands, cuda.to_device(bias), np.float32(floor), n_in, n_out, -(-rows // parts),
        (m + 1) * stride, cuda.to_device(gate.ravel()), n_out + 2, *(int(is_aligned(*matrix)) for matrix in matrices),
        rounds,
    )  # fmt: skip
    found = memory.copy_to_host()
    assert (found[:gap] == 7).all(), "written in front of the first row"
    found = found[gap:].reshape(parts, m + 1, stride)
    assert (found[:, m] == 7).all(), "written behind the last row"
    assert (found[:, :, n_out:] == 7).all(), "written behind the last column"
    return found[:, :m, :n_out], expected


def _matrix(rng, n_rows, width, gap):
    """Random numbers; NaN in the gaps, which nobody may read."""
    x = np.full((n_rows, width + gap), np.nan, np.float32)
    x[:, :width] = rng.standard_normal((n_rows, width))
    return x


def _on_device(x, gap):
    """A matrix `gap` numbers behind the beginning of its memory, and NaN behind it."""
    flat = np.concatenate([np.full(gap, np.nan, np.float32), x.ravel(), np.full(64, np.nan, np.float32)])
    return cuda.to_device(flat)[gap:]
