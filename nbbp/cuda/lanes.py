"""What threads that share a row or a column make of their parts: each lane leaves one in shared memory, and all of them
take the parts in their order, so that every lane has the same bits.

Legend: `parts` is (ROWS, ROW_LANES) where lanes share a row, (COLUMN_LANES, COLUMNS) where they share a column; between
leaving a part and taking all of them a kernel waits at a barrier, and at another before it leaves the next.
"""

from nbbp.cuda.kernels import COLUMN_LANES, ROW_LANES
from nbbp.scalars.dispatch import formula


@formula
def sum_of_row(parts, row):
    """The sum of what the lanes of a row have left."""
    total = type(parts[row, 0])(0)
    for lane in range(ROW_LANES):
        total += parts[row, lane]
    return total


@formula
def sum_of_column(parts, column):
    """The sum of what the lanes of a column have left."""
    total = type(parts[0, column])(0)
    for lane in range(COLUMN_LANES):
        total += parts[lane, column]
    return total


@formula
def larger(value, largest):
    """The larger of two numbers; NaN where one of them is."""
    return value if value > largest or value != value else largest


@formula
def largest_of_part(x, start, width, lane, lowest):
    """The largest of every ROW_LANES-th of `width` numbers of x, from number `start` + `lane` on; NaN where one is."""
    largest = lowest
    for j in range(lane, width, ROW_LANES):
        largest = larger(x[start + j], largest)
    return largest


@formula
def largest_of_row(parts, row):
    """The largest of what the lanes of a row have left; NaN where one is."""
    largest = parts[row, 0]
    for lane in range(1, ROW_LANES):
        largest = larger(parts[row, lane], largest)
    return largest
