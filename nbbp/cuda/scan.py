"""Checks of data that lie on the GPU: the first number that is not what it should be, which only an integer comes back
from.
"""

import numpy as np
from numba import cuda

from nbbp.cuda.kernels import ARRAY, INTEGER, INTEGERS, NUMBER, compiled, configured, kernel
from nbbp.cuda.launch import flat

#: Larger than any index.
_NONE = np.iinfo(np.int64).max


@kernel(ARRAY, INTEGER, NUMBER, NUMBER, INTEGERS)
def first_number_outside(number, variant):
    """found[0] = the smallest i < n with x[i] outside [low, high], if it is smaller; NaN is outside."""

    def first_number_outside(x, n, low, high, found):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            if not (x[i] >= low and x[i] <= high):
                cuda.atomic.min(found, 0, i)

    return first_number_outside


@kernel(INTEGERS, INTEGER, INTEGER, INTEGERS)
def first_label_outside(number, variant):
    """found[0] = the smallest i < n with labels[i] outside [0, n_classes), if it is smaller."""

    def first_label_outside(labels, n, n_classes, found):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            if labels[i] < 0 or labels[i] >= n_classes:
                cuda.atomic.min(found, 0, i)

    return first_label_outside


@kernel(ARRAY, INTEGER, INTEGER, INTEGER, INTEGER, INTEGERS)
def first_no_category(number, variant):
    """found[0] = the smallest row of x (n_rows, width) whose `column` is none of 0 … n_categories - 1, if smaller."""
    zero = number(0)

    def first_no_category(x, n_rows, width, column, n_categories, found):
        for r in range(cuda.grid(1), n_rows, cuda.gridsize(1)):
            value = x[r * width + column]
            if not (value >= zero and value < number(n_categories) and value == number(int(value))):
                cuda.atomic.min(found, 0, r)

    return first_no_category


@kernel(ARRAY, INTEGER, INTEGER, NUMBER, INTEGERS)
def first_row_not_summing_to_one(number, variant):
    """found[0] = the smallest row of x (n_rows, width) whose sum is not 1 within the tolerance, if it is smaller."""

    def first_row_not_summing_to_one(x, n_rows, width, tolerance, found):
        for r in range(cuda.grid(1), n_rows, cuda.gridsize(1)):
            total = 0.0
            for j in range(width):
                total += np.float64(x[r * width + j])
            if not abs(total - 1.0) <= tolerance:
                cuda.atomic.min(found, 0, r)

    return first_row_not_summing_to_one


def first(name: str, dtype: np.dtype, n: int, *arguments: object) -> int:
    """What one of these kernels finds among `n` numbers or rows; -1 if nothing."""
    found = cuda.to_device(np.array([_NONE]))
    configured(compiled(name, dtype), *flat(n), 0)(*arguments, found)
    index = int(found.copy_to_host()[0])
    return -1 if index == _NONE else index
