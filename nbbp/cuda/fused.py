"""Chains of dense layers, a tile of rows after the other through all layers: activations never leave the chip.

A block takes a tile of ROWS rows of the batch and brings it through every layer. What the layers give lies in shared
memory, the weights come there a slab at a time, and each thread adds up TALL × WIDE outputs in its registers, as in
nbbp/cuda/dense.py. Training goes on from there: the loss of the tile's rows, and back through all layers. A block sums
the weight gradients of all of its tiles to a partial gradient of its own; a second launch (nbbp/cuda/fused_update.py)
adds these up in the blocks' order and updates. Which programs go this way, and with which tiles:
nbbp/cuda/fused_programs.py, with an estimate of when that pays.

Legend: `memory` is the block's shared memory, lines of `stride` = ROWS + 4 numbers. A unit is a line: what one input or
output of a layer is in each of the tile's rows. So a product reads its first operand TALL rows at once, a weight
gradient several rows at once, either by loads of 128 bits, and the odd four numbers between lines keep the threads of a
warp on different banks. Layer l has n_in inputs and n_out outputs; its outputs lie from unit OUT on; SEEN, which is OUT
or apart, is what its activation's derivative is written in. The gradient with respect to a layer's input takes the
place of that input, which nobody needs once the layer's weight gradient is done. Rows of a tile that the batch does not
have are zeros throughout. The data come to X_UNITS units in front, so many inputs at a time.

    forward     Z (rows, n_out)  = bias + H · W          floor of a relu; other activations one pass later
    backward    D (rows, n_in)   = (D · Wᵀ) ∘ f'         f' one pass earlier; a relu's as a gate
    gradient    G (n_in, n_out) += Hᵀ · D                from two matrices that lie in lines already
"""

import numpy as np
from numba import cuda

from nbbp.cuda.chain import (
    BIAS,
    BIAS_GROUP,
    FUNCTION,
    N_COLUMNS,
    N_IN,
    N_OUT,
    NO_FUNCTION,
    OUT,
    SEEN,
    SLOPE,
    WEIGHT,
    WEIGHT_GROUP,
    loss_of_classes,
)
from nbbp.cuda.fused_tile import (
    LANES,
    PADDING,
    ROWS_AT_ONCE,
    TALL,
    THREADS,
    TILES,
    VECTOR,
    WIDE,
    X_UNITS,
    add_bias_gradient,
    add_gradient,
    bring_slab,
    copy_rows,
    gather,
    multiply,
    narrow_of,
    place_of,
    size_at,
    sizes_of,
    unsigned,
)
from nbbp.cuda.kernels import ARRAY, DOUBLES, INTEGER, INTEGERS, N_SAMPLES, NUMBER, SIMULATED, STEP, kernel
from nbbp.cuda.lanes import larger
from nbbp.cuda.vectors import BYTES, read_vector, write_vector
from nbbp.scalars.activations import ACTIVATIONS, activation_derivative, activation_value
from nbbp.scalars.dispatch import formula
from nbbp.scalars.functions import exp, log
from nbbp.scalars.losses import LOSSES, loss_derivative, loss_value

#: In the column FUNCTION of the table, beside the first and the second of the kernel's functions and none.
RELU = 3
#: What is done to the rows of the last layer's outputs.
ROW_FUNCTIONS = ("linear", "softmax", "log_softmax")
_CROSSENTROPY = "crossentropy"
_BINARY = LOSSES["binary_crossentropy"].code
#: The two activations of kernels for layers that have none but relu.
FUNCTIONS = ACTIVATIONS["tanh"].code, ACTIVATIONS["gelu"].code


@formula
def add_product(
    memory, a, slab, w, weight, n_out, left, n_k, n_columns, is_transposed, thread, registers, sizes,
):  # fmt: skip
    """sums[i, j] += a thread's share of A · W, or A · Wᵀ, in the columns [left, left + width); A (rows, n_k) from a on.

    All threads of the block; writes the slab. `registers`: sums, column, line, and numbers of rows of the data.
    """
    _, width, depth, tall, wide, _ = sizes
    sums, column, line, _ = registers
    across = np.uint32(width // wide)
    down, right = np.int64(thread // across) * tall, np.int64(thread % across) * min(wide, VECTOR)
    for k in range(0, n_k, depth):
        bring_slab(memory, slab, w, weight, n_out, k, left, n_k, n_columns, is_transposed, thread, sizes)
        cuda.syncthreads()
        place = a + k * (sizes[0] + PADDING)
        multiply(memory, place, slab, min(depth, n_k - k), down, right, sums, column, line, sizes)
        cuda.syncthreads()


@formula
def forward_layer(memory, table, at, slab, w, x, order, first, n, thread, registers, sizes, narrow):
    """H · W + bias of the layer at a place of the table, or the floor of a relu, to SEEN; n rows, from `first` on.

    All threads of the block. H is the data, which come by way of the units in front, or what the layer before gave.
    `narrow`: the sizes for outputs that are so few.
    """
    n_out = size_at(table, at + N_OUT)
    for left in range(0, n_out, sizes[1]):
        if n_out - left > narrow[1]:
            forward_panel(memory, table, at, left, slab, w, x, order, first, n, thread, registers, sizes)
        else:
            forward_panel(memory, table, at, left, slab, w, x, order, first, n, thread, registers, narrow)


@formula
def forward_panel(memory, table, at, left, slab, w, x, order, first, n, thread, registers, sizes):
    """The outputs [left, left + width) of that."""
    rows, _, _, tall, wide, _ = sizes
    sums, column, stride, zero = registers[0], registers[1], rows + PADDING, type(w[0])(0)
    n_in, n_out, weight, seen = (
        size_at(table, at + N_IN), size_at(table, at + N_OUT), size_at(table, at + WEIGHT), size_at(table, at + SEEN),
    )  # fmt: skip
    bias, is_relu, source, most = table[at + BIAS], table[at + FUNCTION] == RELU, 0, X_UNITS
    if at > 0:
        source, most = size_at(table, at - N_COLUMNS + OUT) * stride, n_in
    for j in range(wide):
        unit, _ = place_of(thread, j, left, sizes)
        start = w[unsigned(bias + min(unit, n_out - 1))] if bias >= 0 else zero
        for i in range(tall):
            sums[i, j] = start
    for begin in range(0, n_in, most):
        n_k = min(most, n_in - begin)
        if at == 0 and (left == 0 or n_in > most):
            gather(memory, x, n_in, order, first, n, begin, n_k, thread, registers[3], sizes)
        add_product(
            memory, source, slab, w, weight + begin * n_out, n_out, left, n_k, n_out, False, thread, registers, sizes,
        )  # fmt: skip
    for j in range(wide):
        unit, r = place_of(thread, j, left, sizes)
        if unit < n_out:
            for i in range(tall):
                value = sums[i, j]
                value = zero if is_relu and value < zero else value  # false for NaN, which stays
                column[i] = value if r + i < n else zero
            write_vector(memory, unsigned((seen + unit) * stride + r), column, 0, tall)


@formula
def backward_layer(memory, table, at, slab, w, n, thread, registers, sizes):
    """D · Wᵀ, times what OUT of the layer below holds, or through its relu, in the place of that. All threads."""
    rows, width, _, tall, wide, _ = sizes
    sums, column, stride, zero = registers[0], registers[1], rows + PADDING, type(w[0])(0)
    n_in, n_out, weight = size_at(table, at + N_IN), size_at(table, at + N_OUT), size_at(table, at + WEIGHT)
    slope, out = size_at(table, at + SLOPE) * stride, size_at(table, at - N_COLUMNS + OUT)
    function = table[at - N_COLUMNS + FUNCTION]
    for left in range(0, n_in, width):
        for i in range(tall):
            for j in range(wide):
                sums[i, j] = zero
        add_product(memory, slope, slab, w, weight, n_out, left, n_out, n_in, True, thread, registers, sizes)
        for j in range(wide):
            unit, r = place_of(thread, j, left, sizes)
            if unit < n_in:
                place = unsigned((out + unit) * stride + r)
                read_vector(column, 0, memory, place, tall)
                for i in range(tall):
                    value, old = sums[i, j], column[i]
                    if function == RELU:
                        value = zero if old <= zero else value
                    elif function != NO_FUNCTION:
                        value *= old
                    column[i] = value if r + i < n else zero
                write_vector(memory, place, column, 0, tall)


@kernel(
    INTEGERS, INTEGER, INTEGER, INTEGERS, INTEGER, INTEGER, ARRAY, ARRAY, INTEGERS, ARRAY, ARRAY, INTEGER, INTEGER,
    variants=tuple((*FUNCTIONS, tile) for tile in TILES),
)  # fmt: skip
def fused_forward(number, variant):
    """y (rows, n_out) = what the last layer gives for the rows of `n_steps` steps, from the clock's on.

    `variant`: both activations that are not relu, the tile. `row_function`: one of ROW_FUNCTIONS, done to the rows of
    y. `n_units` of shared memory, and a slab behind them. Writes y, whose rows are `y_stride` apart.
    """
    first_code, second_code, tile = variant
    sizes, narrow = sizes_of(tile), sizes_of(narrow_of(tile))
    rows, stride, unaligned, zero = tile.height, tile.height + PADDING, SIMULATED, number(0)
    n_sources = min(tile.height * LANES // THREADS, ROWS_AT_ONCE)
    kind = np.dtype(number)  # which the simulator wants for memory of the launch
    shape, tall, wide = (tile.tall, tile.wide), tile.tall, tile.wide

    def fused_forward(
        clock, batch, n_steps, table, n_layers, n_units, alphas, x, order, w, y, y_stride, row_function,
    ):  # fmt: skip
        if unaligned:
            memory = cuda.shared.array(0, kind)
        else:
            memory = cuda.shared.array(0, kind, alignment=BYTES)
        sums = cuda.local.array(shape, number)
        column = cuda.local.array(tall, number)
        line = cuda.local.array(wide, number)
        registers = sums, column, line, cuda.local.array(n_sources, np.int64)
        thread, slab = np.uint32(cuda.threadIdx.x), unsigned(n_units) * stride
        start = clock[STEP] * batch
        n_rows = min(batch * n_steps, clock[N_SAMPLES] - start)
        last = (n_layers - 1) * N_COLUMNS
        n_out, out = size_at(table, last + N_OUT), size_at(table, last + OUT)
        for top in range(cuda.blockIdx.x * rows, n_rows, cuda.gridDim.x * rows):
            n = min(rows, n_rows - top)
            for layer in range(n_layers):
                at = layer * N_COLUMNS
                forward_layer(memory, table, at, slab, w, x, order, start + top, n, thread, registers, sizes, narrow)
                function, alpha, seen = table[at + FUNCTION], alphas[layer], size_at(table, at + SEEN) * stride
                if function < NO_FUNCTION:
                    cuda.syncthreads()
                    for e in range(np.int64(thread), size_at(table, at + N_OUT) * rows, THREADS):
                        place = seen + e // rows * stride + e % rows
                        if function == 0:
                            value = activation_value(first_code, memory[place], alpha)
                        else:
                            value = activation_value(second_code, memory[place], alpha)
                        memory[place] = value if e % rows < n else zero
            cuda.syncthreads()
            if row_function != 0:
                for r in range(np.int64(thread), n, THREADS):
                    largest, total = memory[out * stride + r], zero
                    for j in range(1, n_out):
                        largest = larger(memory[(out + j) * stride + r], largest)
                    for j in range(n_out):
                        total += exp(memory[(out + j) * stride + r] - largest)
                    for j in range(n_out):
                        value = memory[(out + j) * stride + r] - largest
                        memory[(out + j) * stride + r] = value - log(total) if row_function == 2 else exp(value) / total
                cuda.syncthreads()
            copy_rows(memory, out, n_out, y, top, y_stride, n, thread, sizes)

    return fused_forward


@kernel(
    INTEGERS, INTEGERS, INTEGER, INTEGERS, INTEGER, INTEGER, ARRAY, ARRAY, INTEGERS, ARRAY, INTEGERS, ARRAY, DOUBLES,
    NUMBER, NUMBER, INTEGER, ARRAY, ARRAY, INTEGER, ARRAY, INTEGER,
    variants=(
        *((_CROSSENTROPY, *FUNCTIONS, tile) for tile in TILES),
        *((loss, *FUNCTIONS, TILES[-1]) for loss in (LOSSES["mse"].code, _BINARY)),
    ),
)  # fmt: skip
def fused_gradient(number, variant):
    """The losses of a batch and each block's part of its gradient, for the step of the clock, as `notes` say too.

    `variant`: the loss, both activations that are not relu, the tile. Writes row_values, parts (blocks, `part_stride`),
    where a layer is not frozen, what the last layer gives to y, unless that is empty, and notes: the step, then for
    each block 1 if it saw a loss which is not finite, else 0. A block for whose tiles there are no rows writes no part.
    As in nbbp/cuda/crossentropy.py one of target and labels is empty.
    """
    loss, first_code, second_code, tile = variant
    sizes, narrow = sizes_of(tile), sizes_of(narrow_of(tile))
    rows, stride, unaligned, zero = tile.height, tile.height + PADDING, SIMULATED, number(0)
    n_sources = min(tile.height * LANES // THREADS, ROWS_AT_ONCE)
    kind = np.dtype(number)  # which the simulator wants for memory of the launch
    shape, tall, wide, of_weights = (tile.tall, tile.wide), tile.tall, tile.wide, (TALL, WIDE)
    at_once = 2 if SIMULATED else BYTES // np.dtype(number).itemsize
    lines_at_once = WIDE * at_once
    is_classes, is_binary, infinity, one, half = loss == _CROSSENTROPY, loss == _BINARY, np.inf, number(1), number(0.5)
    code = 0 if is_classes else loss  # what is not compiled needs a code all the same

    def fused_gradient(
        clock, notes, batch, table, n_layers, n_units, alphas, x, order, target, labels, weights, row_values,
        parameter, scale, is_mean, w, parts, part_stride, y, y_stride,
    ):  # fmt: skip
        if unaligned:
            memory = cuda.shared.array(0, kind)
        else:
            memory = cuda.shared.array(0, kind, alignment=BYTES)
        sums = cuda.local.array(shape, number)
        column = cuda.local.array(tall, number)
        line = cuda.local.array(wide, number)
        registers = sums, column, line, cuda.local.array(n_sources, np.int64)
        sums_of_weights = cuda.local.array(of_weights, number)
        quad = cuda.local.array(at_once, number)
        quads = cuda.local.array(lines_at_once, number)
        thread, slab = np.uint32(cuda.threadIdx.x), unsigned(n_units) * stride
        start, bad = clock[STEP] * batch, 0
        n_rows = min(batch, clock[N_SAMPLES] - start)
        last, part = (n_layers - 1) * N_COLUMNS, cuda.blockIdx.x * part_stride
        n_classes = size_at(table, last + N_OUT)
        lowest = n_layers  # the first layer that training changes; below it nobody wants a gradient
        for layer in range(n_layers - 1, -1, -1):
            if table[layer * N_COLUMNS + WEIGHT_GROUP] >= 0 or table[layer * N_COLUMNS + BIAS_GROUP] >= 0:
                lowest = layer
        for top in range(cuda.blockIdx.x * rows, n_rows, cuda.gridDim.x * rows):
            n, first, adds = min(rows, n_rows - top), start + top, top > cuda.blockIdx.x * rows

            for layer in range(n_layers):
                at, alpha = layer * N_COLUMNS, alphas[layer]
                forward_layer(memory, table, at, slab, w, x, order, first, n, thread, registers, sizes, narrow)
                function, n_out = table[at + FUNCTION], size_at(table, at + N_OUT)
                seen, out = size_at(table, at + SEEN) * stride, size_at(table, at + OUT) * stride
                if function < NO_FUNCTION:
                    cuda.syncthreads()
                    for e in range(np.int64(thread), n_out * rows, THREADS):
                        place = e // rows * stride + e % rows
                        if function == 0:
                            value = activation_value(first_code, memory[seen + place], alpha)
                        else:
                            value = activation_value(second_code, memory[seen + place], alpha)
                        memory[out + place] = value if e % rows < n else zero
            cuda.syncthreads()

            if y.size > 0:
                copy_rows(memory, size_at(table, last + OUT), n_classes, y, top, y_stride, n, thread, sizes)
            function, alpha = table[last + FUNCTION], alphas[n_layers - 1]
            for r in range(np.int64(thread), rows, THREADS):  # a row a thread
                given, d = size_at(table, last + OUT) * stride + r, size_at(table, last + SLOPE) * stride + r
                if r >= n:
                    for j in range(n_classes):
                        memory[d + j * stride] = zero
                    continue
                source = order[first + r] if order.size > 0 else first + r
                row_weight = weights[source] if weights.size > 0 else one
                if is_classes:
                    label = labels[source] if labels.size > 0 else -1
                    factor = row_weight * (scale / number(n_rows if is_mean != 0 else 1))
                    total = loss_of_classes(
                        memory, d, given, n_classes, stride, label, target, source * n_classes, parameter, factor
                    )
                    total *= np.float64(row_weight * scale)
                else:
                    factor, total = row_weight * scale / number(n_classes * n_rows if is_mean != 0 else 1), 0.0
                    for j in range(n_classes):
                        wanted, value = target[source * n_classes + j], memory[given + j * stride]
                        if is_binary:
                            wanted = wanted * (one - parameter) + parameter * half
                        total += np.float64(loss_value(code, value, wanted, parameter))
                        memory[d + j * stride] = factor * loss_derivative(code, value, wanted, parameter)
                    total *= np.float64(row_weight) * (np.float64(scale) / (n_classes if is_mean != 0 else 1))
                row_values[first + r] = total
                if not abs(total) < infinity:
                    bad = 1
                seen = size_at(table, last + SEEN) * stride + r
                for j in range(n_classes):
                    value = memory[seen + j * stride]
                    if function == RELU:
                        memory[d + j * stride] = zero if value <= zero else memory[d + j * stride]
                    elif function == 0:
                        memory[d + j * stride] *= activation_derivative(first_code, value, alpha)
                    elif function == 1:
                        memory[d + j * stride] *= activation_derivative(second_code, value, alpha)
            cuda.syncthreads()

            for layer in range(n_layers - 1, lowest - 1, -1):
                at, below = layer * N_COLUMNS, layer * N_COLUMNS - N_COLUMNS
                n_in, n_out, slope = size_at(table, at + N_IN), size_at(table, at + N_OUT), size_at(table, at + SLOPE)
                if table[at + BIAS_GROUP] >= 0:
                    add_bias_gradient(
                        memory, slope, n_out, parts, part + table[at + BIAS], adds, thread, quad, at_once, sizes,
                    )  # fmt: skip
                if table[at + WEIGHT_GROUP] >= 0:
                    source, most = 0, X_UNITS
                    if layer > 0:
                        source, most = size_at(table, below + OUT), n_in
                    for begin in range(0, n_in, most):
                        n_k = min(most, n_in - begin)
                        if layer == 0 and n_in > most:
                            cuda.syncthreads()
                            gather(memory, x, n_in, order, first, n, begin, n_k, thread, registers[3], sizes)
                            cuda.syncthreads()
                        add_gradient(
                            memory, source, slope, n_k, n_out, parts, part + table[at + WEIGHT] + begin * n_out, adds,
                            thread, sums_of_weights, quad, quads, at_once, sizes,
                        )  # fmt: skip
                if layer > lowest:  # the gradient goes back, to where the layer's input was
                    function, alpha = table[below + FUNCTION], alphas[layer - 1]
                    seen, out = size_at(table, below + SEEN) * stride, size_at(table, below + OUT) * stride
                    if function < NO_FUNCTION:
                        cuda.syncthreads()
                        for e in range(np.int64(thread), n_in * rows, THREADS):
                            place = e // rows * stride + e % rows
                            if function == 0:
                                value = activation_derivative(first_code, memory[seen + place], alpha)
                            else:
                                value = activation_derivative(second_code, memory[seen + place], alpha)
                            memory[out + place] = value
                    backward_layer(memory, table, at, slab, w, n, thread, registers, sizes)
                    cuda.syncthreads()
            cuda.syncthreads()
        bad = cuda.syncthreads_or(bad)
        if thread == 0:
            notes[1 + cuda.blockIdx.x] = 1 if bad != 0 else 0
            if cuda.blockIdx.x == 0:
                notes[0] = clock[STEP]

    return fused_gradient
