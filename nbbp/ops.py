"""The op table: what the columns of a row mean, for the program that writes it and the engines that run it.

A row is ``N_COLUMNS`` int64 numbers. Addresses are filled in by an engine when it binds a program to its buffers;
strides and sizes count numbers, not bytes. Columns that a kernel does not name it does not read.
"""

from dataclasses import dataclass, field
from typing import Any

#: Address of the kernel's machine code (CPU) or its index (CUDA).
KERNEL = 0
#: First operand and its row and column strides.
X, X_STRIDE, X_COLUMN_STRIDE = 1, 2, 3
#: Second operand of a product, or what an activation kept for its derivative.
W, W_STRIDE = 4, 5
#: What the kernel writes.
Y, Y_STRIDE = 6, 7
#: Sizes: contracted length of a product (or number of classes), width of the result.
N_IN, N_OUT = 8, 9
#: How a product finds its second operand (see cpu/gemm.py), and whether it contracts over the batch's rows.
LAYOUT, CONTRACTS_ROWS = 10, 11
#: Address of float64 settings: the floor of a product, alpha of an activation, the parameters of a loss.
SETTINGS = 12
#: Target of a loss or a metric, its row stride, and 1 where it holds int64 labels.
TARGET, TARGET_STRIDE, TARGET_IS_LABELS = 13, 14, 15
#: Sample weights (0: none) and float64 results per row, counted from the first row of the run.
SAMPLE_WEIGHT, ROW_VALUES = 16, 17
#: int64 row numbers in the order of the run (0: as they lie), number of rows of the run, rows of a whole batch.
ORDER, N_SAMPLES, BATCH = 18, 19, 20
#: Rows per partial gradient and numbers from one partial gradient to the next.
SLOT_ROWS, SLOT_STRIDE = 21, 22
#: Optimizer: addresses of up to three slots, and of the float64 coefficients, a line of N_COEFFICIENTS per step.
SLOT_0, SLOT_1, SLOT_2, COEFFICIENTS = 23, 24, 25, 26
#: 1 where the gradient of a tile starts at the tile, not at the start of its parameter.
TILE_LOCAL = 27
#: 1 where the parameter is a matrix, which Adafactor factors.
IS_MATRIX = 28
#: Address of the bias that a product starts from (0: none).
BIAS = 29
#: Custom layer: address and number of its parameters, address of their gradient, its output and the derivative by it.
PARAMETERS, N_PARAMETERS, GRADIENT = 30, 31, 32
KEPT, KEPT_STRIDE, D_Y, D_Y_STRIDE = 33, 34, 35, 36
#: Random numbers: the model's seed, the position of the layer among all, training batches before this run.
SEED, LAYER, FIRST_STEP = 37, 38, 39
#: What a layer keeps from step to step beside its parameters (0: it is left as it is).
STATE = 40
#: Batches whose gradients add up to one update (0 or 1: each has its own).
ACCUMULATION = 41
#: Address of the float64 sums of squares of the gradient's parts; how many there are, or the first of an op's own.
SQUARES, N_SQUARES = 42, 43
#: How many columns of X an embedding looks up in one table.
N_LOOKUPS = 44
#: Address of the scale of the loss's gradient and what its growth goes by (0: none; see cpu/mixed.py).
LOSS_SCALE = 45
#: Batches from one that is monitored to the next (see cpu/monitoring.py).
PERIOD = 46
#: Augmentation, in columns of custom layers: lines of an image, numbers of a pixel, most lines and pixels of a shift.
HEIGHT, CHANNELS, DOWN, RIGHT = 30, 31, 32, 33
#: Address of the kernel that a deep product leaves batches of fewer rows to, in a column of custom layers.
OTHERWISE = 30
#: Rows of a batch from which on a forward product is one of scalar products (0: never, -1: always; see cpu/narrow.py).
NARROW_FROM = 47
N_COLUMNS = 48

#: Variants of kernels that round to 16 bits, or back: bfloat16 and IEEE binary16 (see cpu/half.py).
BF16, FP16 = 1, 2

#: Per step: coupled L2, L1, decoupled multiplier, then eight coefficients of the update rule.
N_COEFFICIENTS = 11

#: Columns of a tile: ops [first, last), batch rows [start, stop), columns [start, stop) of the op's own split.
N_TILE_COLUMNS = 6


@dataclass(frozen=True)
class UserFunction:
    """The variant of an op that calls a function of the user's own.

    Attributes
    ----------
    function : Dispatcher
        A jitted function.
    label : str
        What messages call it.
    """

    function: Any
    label: str = field(compare=False)
