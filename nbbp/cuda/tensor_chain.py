"""Prediction by narrow networks on tensor cores: all layers and all rows of a run in one launch.

A layer of 64 inputs and outputs is so little work for tensor cores that the time would go by with what layers give on
its way to memory and back. Here that never leaves a warp's registers: what `mma` gives of 16 rows lies among the lanes
as it takes the left factor of the next product, once two numbers next to each other are rounded into a word. (By the
maps of nbbp/cuda/tensor_cores.py a lane's numbers 2 · h and 2 · h + 1 of C in tile 2 · k + s are its word 2 · s + h of
A in tile k.) Weights are rounded once, and lie in shared memory in the order in which lanes take them. Such
networks: T. Müller et al., "Real-time neural radiance caching for path tracing", 2021.

It takes chains of dense layers of at most WIDTH inputs and outputs, with at most one kind of elementwise activation but
relu, in bf16 and fp16; the numbers are those of the general path, op by op, but for the order of sums.

Legend: a block takes ROWS rows for each of its warps at a time. The table says of a layer what that of
nbbp/cuda/chain.py says: sizes, places of weight (n_in, n_out) and bias (n_out,) among the parameters, or -1, and
FUNCTION: NO_FUNCTION, RELU or OTHER.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from nbbp import ops
from nbbp.cuda import chains
from nbbp.cuda.kernels import ARRAY, INTEGER, INTEGERS, N_SAMPLES, SIMULATED, kernel
from nbbp.cuda.launch import Launch, launch_of
from nbbp.cuda.tensor_cores import (
    BF16,
    COLUMNS,
    FP16,
    ROWS,
    WARP,
    column_of_b,
    column_of_c,
    multiply,
    narrow_pair,
    row_of_c,
    widen,
    word_of_b,
)
from nbbp.scalars.activations import ACTIVATIONS, activation_value
from nbbp.scalars.dispatch import formula

#: Inputs and outputs of a layer at most, and layers: their words fill the shared memory that every block may have.
WIDTH, MOST_LAYERS = 64, 5
#: Numbers along k of an instruction, and of tiles of a layer along k and across.
DEPTH = 16
DEEP, WIDE = WIDTH // DEPTH, WIDTH // COLUMNS
#: Words of a layer's weight: two of each lane for each tile.
WORDS = DEEP * WIDE * 2 * WARP
#: Columns of the table.
N_IN, N_OUT, WEIGHT, BIAS, FUNCTION = range(5)
N_COLUMNS = 5
NO_FUNCTION, RELU, OTHER = range(3)
#: Threads of a block and blocks of the grid, an estimate: two blocks on each multiprocessor of the largest GPUs.
THREADS, BLOCKS = (WARP, 2) if SIMULATED else (256, 264)
_TANH = ACTIVATIONS["tanh"].code


@formula
def pair_of_weights(w, layer, table, index, code):
    """Word `index` of a layer's weight, rounded: by tile along k, tile across, register and lane."""
    lane, register = index % WARP, index // WARP % 2
    at = layer * N_COLUMNS
    n_in, n_out = table[at + N_IN], table[at + N_OUT]
    k = index // (2 * WARP * WIDE) * DEPTH + 2 * word_of_b(lane, register)
    j = index // (2 * WARP) % WIDE * COLUMNS + column_of_b(lane)
    place, zero = table[at + WEIGHT] + k * n_out + j, np.float32(0)
    low = w[place] if k < n_in and j < n_out else zero
    high = w[place + n_out] if k + 1 < n_in and j < n_out else zero
    return narrow_pair(code, low, high)


@formula
def read_rows(words, x, n_in, order, first, n_rows, lane, code):
    """A lane's words of A of 16 rows of the data, from row `first` of the run on: 0 where there are no such rows."""
    zero = np.float32(0)
    for half in range(2):
        row = first + row_of_c(lane, 2 * half)
        is_there, source = row < n_rows, row
        if is_there and order.size > 0:
            source = order[row]
        for tile in range(DEEP):
            for side in range(2):
                k = DEPTH * tile + COLUMNS * side + column_of_c(lane, 0)
                low = x[source * n_in + k] if is_there and k < n_in else zero
                high = x[source * n_in + k + 1] if is_there and k + 1 < n_in else zero
                words[tile, 2 * side + half] = narrow_pair(code, low, high)


@formula
def add_bias(sums, w, bias, n_out, lane, code):
    """sums of a layer begin with its rounded bias."""
    for tile in range(WIDE):
        for column in range(2):
            j = COLUMNS * tile + column_of_c(lane, column)
            value = w[bias + j] if bias >= 0 and j < n_out else np.float32(0)
            value = widen(code, narrow_pair(code, value, value))
            sums[tile, column], sums[tile, column + 2] = value, value


@kernel(
    INTEGERS, INTEGER, INTEGER, INTEGERS, INTEGER, ARRAY, ARRAY, INTEGERS, ARRAY, ARRAY,
    variants=((BF16, _TANH), (FP16, _TANH)), dtypes=("float32",),
)  # fmt: skip
def tensor_chain(number, variant):
    """y (n, n_out of the last layer) = what the network gives for the run's n rows of x, in the order of `order`.

    `variant`: the format, and the activation of layers whose FUNCTION is OTHER; alphas (n_layers,) are its parameters.
    Writes y, which must overlap nothing.
    """
    code, activation = variant
    zero, n_warps, n_words = number(0), THREADS // WARP, MOST_LAYERS * WORDS

    def tensor_chain(clock, batch, n_steps, table, n_layers, alphas, x, order, w, y):
        weights = cuda.shared.array(n_words, np.uint32)
        words = cuda.local.array((DEEP, 4), np.uint32)
        sums = cuda.local.array((WIDE, 4), number)
        thread, n_rows = np.uint32(cuda.threadIdx.x), clock[N_SAMPLES]
        lane, warp = np.int64(thread % np.uint32(WARP)), np.int64(thread // np.uint32(WARP))
        if cuda.blockIdx.x * (n_warps * ROWS) >= n_rows:
            return  # with all the block's threads
        for index in range(thread, n_layers * WORDS, THREADS):
            weights[index] = pair_of_weights(w, index // WORDS, table, index % WORDS, code)
        cuda.syncthreads()
        for begin in range(cuda.blockIdx.x * (n_warps * ROWS), n_rows, cuda.gridDim.x * (n_warps * ROWS)):
            first = begin + warp * ROWS
            read_rows(words, x, table[N_IN], order, first, n_rows, lane, code)
            for layer in range(n_layers):
                at = layer * N_COLUMNS
                n_in, n_out, function = table[at + N_IN], table[at + N_OUT], table[at + FUNCTION]
                add_bias(sums, w, table[at + BIAS], n_out, lane, code)
                for k in range(DEEP):
                    if k * DEPTH < n_in:
                        for j in range(WIDE):
                            if j * COLUMNS < n_out:
                                place = layer * WORDS + (k * WIDE + j) * 2 * WARP + lane
                                sums[j, 0], sums[j, 1], sums[j, 2], sums[j, 3] = multiply(
                                    code, sums[j, 0], sums[j, 1], sums[j, 2], sums[j, 3], words[k, 0], words[k, 1],
                                    words[k, 2], words[k, 3], weights[place], weights[place + WARP],
                                )  # fmt: skip
                for j in range(WIDE):
                    for register in range(4):
                        value = sums[j, register]
                        if function == RELU:
                            value = zero if value < zero else value  # false for NaN, which stays
                        elif function == OTHER:
                            value = activation_value(activation, value, alphas[layer])
                        is_there = COLUMNS * j + column_of_c(lane, register) < n_out
                        sums[j, register] = value if is_there else zero  # which is no value of every activation
                for k in range(DEEP):
                    for side in range(2):
                        for half in range(2):
                            low, high = sums[2 * k + side, 2 * half], sums[2 * k + side, 2 * half + 1]
                            words[k, 2 * side + half] = narrow_pair(code, low, high)
            n_out = table[(n_layers - 1) * N_COLUMNS + N_OUT]
            for k in range(DEEP):
                for register in range(4):
                    row = first + row_of_c(lane, 2 * (register & 1))
                    column = DEPTH * k + COLUMNS * (register >> 1) + column_of_c(lane, 0)
                    word = words[k, register]
                    if row < n_rows and column < n_out:
                        y[row * n_out + column] = widen(code, word)
                    if row < n_rows and column + 1 < n_out:
                        y[row * n_out + column + 1] = widen(code, word >> np.uint32(16))

    return tensor_chain


def tensor_chain_launch(bound: Any) -> Launch | None:
    """The launch of a whole run of prediction, whose number of steps comes as that of `chain_launch`'s does.

    None if the program is no chain of narrow layers in a format of 16 bits.
    """
    layers = _layers_of(bound)
    codes = {layer.code for layer in layers or () if layer.code not in (chains.LINEAR, chains.RELU)}
    if not layers or len(layers) > MOST_LAYERS or len(codes) > 1:
        return None
    if any(max(layer.n_in, layer.n_out) > WIDTH for layer in layers):
        return None
    table = np.zeros((len(layers), N_COLUMNS), np.int64)
    functions = {chains.LINEAR: NO_FUNCTION, chains.RELU: RELU}
    for row, layer in zip(table, layers, strict=True):
        row[:] = layer.n_in, layer.n_out, layer.weight, layer.bias, functions.get(layer.code, OTHER)
    alphas = np.array([layer.alpha for layer in layers], bound.dtype)
    arguments = [
        bound.clock, bound.program.batch, 1, cuda.to_device(table.ravel()), len(layers), cuda.to_device(alphas),
        bound.attached("X"), bound.attached("order"), bound.buffers["parameters"], bound.attached("output"),
    ]  # fmt: skip
    variant = bound.format, *(codes or {_TANH})
    return launch_of(bound, "tensor_chain", ((BLOCKS,), (THREADS,)), arguments, variant)


def _layers_of(bound: Any) -> list[chains.Layer] | None:
    """The layers of a program of 16 bits that is gather, then products, activations and roundings, then a copy out."""
    gather, *middle, copy_out = bound.program.ops
    if bound.format not in (BF16, FP16) or gather.kernel != "gather" or copy_out.kernel != "copy_out":
        return None
    layers: list[chains.Layer] = []
    last, is_rounded = gather.columns[ops.Y].buffer, False
    for op in (*middle, copy_out):
        x = op.columns.get(ops.X)
        if x is None or x.buffer != last or x.offset:
            return None
        if op.kernel == "narrow" and not op.columns.get(ops.KEPT):
            is_rounded = True
            continue
        if op.kernel == "product" and is_rounded:
            bias = op.columns.get(ops.BIAS, 0)
            sizes = op.columns[ops.N_IN], op.columns[ops.N_OUT]
            layers.append(chains.Layer(*sizes, op.columns[ops.W].offset, bias.offset if bias else -1))
            if bound.settings[op.columns[ops.SETTINGS].offset] == 0:
                layers[-1].code = chains.RELU
            is_rounded = False
        elif op.kernel == "activation_forward" and layers and layers[-1].code == chains.LINEAR and not is_rounded:
            layers[-1].code, layers[-1].alpha = op.variant, bound.settings[op.columns[ops.SETTINGS].offset]
        elif op is not copy_out or not is_rounded:
            return None
        last = op.columns[ops.Y].buffer
    return layers
