"""Adafactor (Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, algorithm 4).

Legend: one parameter w (n_rows, n_columns). The second moment of a matrix is kept as the means of its rows and of its
columns (`kept` holds rows, then columns); that of a vector (`is_matrix` 0, one row) in full. Coefficients behind the
three of decay: 1 - beta2_t, relative step rho_t, eps1, eps2, clipping threshold d; eps1 = 0 stands for the precision of
the dtype. Sums, and the numbers of a whole parameter, are float64.

A parameter is one block's, whose threads wait for each other between the passes.
"""

import math

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, DOUBLES, FIRST_STEP, INTEGER, INTEGERS, SIMULATED, STEP, kernel
from nbbp.cuda.launch import Binding, binds
from nbbp.cuda.verdict import GRADIENT_FINE, LOSSES_FINE, conditions, is_update, place_among
from nbbp.ops import N_COEFFICIENTS
from nbbp.scalars.updates import penalized_gradient

THREADS = 4 if SIMULATED else 512


@kernel(
    INTEGERS, ARRAY, ARRAY, ARRAY, DOUBLES, INTEGER, INTEGER, INTEGER, INTEGERS, INTEGER
)  # fmt: skip
def adafactor(number, variant):
    """One step of w with the gradient g; writes w, kept and g (which ends as the clipped update). One block."""
    precision, smallest = float(np.finfo(number).eps), float(np.finfo(number).tiny)
    zero = number(0)

    def adafactor(clock, w, g, kept, coefficients, n_rows, n_columns, is_matrix, verdict, accumulation):
        sum_of = cuda.shared.array(THREADS, np.float64)
        place = place_among(clock[FIRST_STEP], clock[STEP], accumulation)
        if not is_update(verdict[LOSSES_FINE], verdict[GRADIENT_FINE], place, accumulation):
            return
        thread, n = cuda.threadIdx.x, n_rows * n_columns
        line = clock[STEP] * N_COEFFICIENTS
        l2, l1 = number(coefficients[line]), number(coefficients[line + 1])
        kept_share, share = number(coefficients[line + 2]), number(coefficients[line + 3])
        eps_gradient, eps_scale, threshold = coefficients[line + 5], coefficients[line + 6], coefficients[line + 7]
        if eps_gradient == 0.0:
            eps_gradient = precision
        # the root mean square of w, and the gradient with its penalties
        total = 0.0
        for i in range(thread, n, THREADS):
            if l2 != zero or l1 != zero:
                g[i] = penalized_gradient(w[i], g[i], l2, l1)
            total += np.float64(w[i]) * np.float64(w[i])
        sum_of[thread] = total
        cuda.syncthreads()
        total = 0.0
        for k in range(THREADS):
            total += sum_of[k]
        step_size = max(eps_scale, math.sqrt(total / n)) * coefficients[line + 4]
        # the moments
        if is_matrix != 0:
            for i in range(thread, n_rows + n_columns, THREADS):
                total, count = 0.0, n_columns if i < n_rows else n_rows
                for k in range(count):
                    value = np.float64(g[i * n_columns + k] if i < n_rows else g[k * n_columns + i - n_rows])
                    total += value * value
                kept[i] += share * (number(total / count) - kept[i])
        else:
            for i in range(thread, n, THREADS):
                kept[i] += share * (g[i] * g[i] - kept[i])
        cuda.syncthreads()
        mean, first_column = 1.0, 0
        if is_matrix != 0:
            mean, first_column = 0.0, n_rows
            for i in range(n_rows):
                mean += np.float64(kept[i])
            mean = max(mean / n_rows, eps_gradient)
        # the update, and its root mean square; comparisons keep NaN, which max might not
        floor, total = number(max(eps_gradient * eps_gradient, smallest)), 0.0
        for i in range(thread, n, THREADS):
            moment = kept[first_column + i % n_columns]
            if is_matrix != 0:
                moment *= number(np.float64(kept[i // n_columns]) / mean)
            moment = floor if moment < floor else moment
            value = g[i] / number(math.sqrt(moment))
            g[i] = value
            total += np.float64(value) * np.float64(value)
        sum_of[thread] = total
        cuda.syncthreads()
        total = 0.0
        for k in range(THREADS):
            total += sum_of[k]
        clipped = math.sqrt(total / n) / threshold
        factor = number(step_size / (1.0 if clipped < 1.0 else clipped))
        for i in range(thread, n, THREADS):
            w[i] = w[i] * kept_share - factor * g[i]

    return adafactor


@binds("adafactor")
def bind_adafactor(op: Binding) -> None:
    """One parameter."""
    op.launch(
        "adafactor", ((1,), (THREADS,)), op.clock, op.array(ops.W), op.array(ops.X), op.array(ops.SLOT_0),
        op.array(ops.COEFFICIENTS), op[ops.N_IN], op[ops.N_OUT], op[ops.IS_MATRIX], *conditions(op),
    )  # fmt: skip
