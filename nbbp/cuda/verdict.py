"""Whether a step may update: are its losses finite, and its gradient; once per step, for every op that asks.

Legend: `verdict` (2,) int64 is 1 where the losses of the batch, and the sums of squares of the gradient's parts, are
finite; `norm` (1,) float64 is the gradient's, where some op takes its squares. A batch whose loss is not finite updates
nothing: its gradient would wipe out every layer, and with them the trace of where the numbers went.
"""

import math

from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import DOUBLES, INTEGER, INTEGERS, N_SAMPLES, STEP, THREADS, kernel
from nbbp.cuda.launch import Binding
from nbbp.scalars.dispatch import formula

LOSSES_FINE, GRADIENT_FINE = 0, 1
#: A sum of squares that large counts as infinite, as in cpu/update.py.
_LARGEST_SQUARES = 1e298


@kernel(INTEGERS, INTEGER, DOUBLES, INTEGERS)
def losses_are_finite(number, variant):
    """verdict[LOSSES_FINE] of the batch's row_values, and verdict[GRADIENT_FINE] = 1. One block."""

    def losses_are_finite(clock, batch, row_values, verdict):
        start, bad = clock[STEP] * batch, 0
        for r in range(cuda.threadIdx.x, min(batch, clock[N_SAMPLES] - start), cuda.blockDim.x):
            if not abs(row_values[start + r]) < math.inf:
                bad = 1
        bad = cuda.syncthreads_or(bad)
        if cuda.threadIdx.x == 0:
            verdict[LOSSES_FINE] = 0 if bad != 0 else 1
            verdict[GRADIENT_FINE] = 1

    return losses_are_finite


@kernel(DOUBLES, INTEGER, INTEGERS, DOUBLES)
def gradient_is_finite(number, variant):
    """verdict[GRADIENT_FINE], and norm[0] = the root of the sum of squares (n,), in their order. One thread."""

    def gradient_is_finite(squares, n, verdict, norm):
        if cuda.grid(1) == 0:
            total, fine = 0.0, 1
            for part in range(n):
                if not abs(squares[part]) < _LARGEST_SQUARES:
                    fine = 0
                total += squares[part]
            verdict[GRADIENT_FINE] = fine
            norm[0] = math.sqrt(total)

    return gradient_is_finite


@formula
def place_among(first_step, step, accumulation):
    """How many batches of the same update came before this one."""
    return (first_step + step) % max(accumulation, 1)


@formula
def is_update(losses_fine, gradient_fine, place, accumulation):
    """Whether the batch updates: the last of those that do together, with finite losses and a finite gradient."""
    return losses_fine != 0 and gradient_fine != 0 and place + 1 >= accumulation


def judge_losses(op: Binding) -> None:
    """Launch behind a loss."""
    op.launch(
        "losses_are_finite", ((1,), (THREADS,)), op.clock, op.batch, op.bound.attached("loss values"),
        op.bound.verdict,
    )  # fmt: skip


def judge_gradient(op: Binding, squares: object, n_squares: int) -> None:
    """Launch behind what took the squares of the last part of the gradient."""
    op.launch("gradient_is_finite", ((1,), (1,)), squares, n_squares, op.bound.verdict, op.bound.norm)


def conditions(op: Binding) -> tuple:
    """What kernels that ask are given: the verdict, and the batches of an update."""
    return op.bound.verdict, op[ops.ACCUMULATION]
