"""Small networks: all steps of a run in one launch of one block, which never goes back to the host.

A step of a small network is a few thousand multiplications, less than the launches take that would spread it over a
GPU. So the threads of one block do it together, waiting for each other between layers, and go on to the next step: no
launch, no trip of an activation to another multiprocessor, and no gradient in memory, because the thread that has
summed a weight's gradient applies the optimizer's rule to it at once.

It takes chains of dense layers with elementwise activations, with any elementwise loss or crossentropy, any rule but
Adafactor's, and nothing between gradient and update (nbbp/cuda/chain_programs.py says which programs are such). Sizes
are numbers in a table, so that a new network compiles nothing unless its activations, loss and rule come together for
the first time. The order of every sum over inputs, outputs and rows is that of plain loops.

Legend: layer l has n_in inputs and n_out outputs; out (batch, n_out) is what it gives, seen what its activation's
derivative is written in (out itself, or its input), slope the gradient of the loss with respect to its input.
"""

import numpy as np
from numba import cuda

from nbbp.cuda.kernels import (
    ARRAY,
    DOUBLES,
    INTEGER,
    INTEGERS,
    N_SAMPLES,
    NUMBER,
    SIMULATED,
    STEP,
    kernel,
)
from nbbp.cuda.lanes import larger
from nbbp.cuda.update import SLOTS, coefficients_of, update_parameter
from nbbp.ops import N_COEFFICIENTS
from nbbp.scalars.activations import ACTIVATIONS, activation_derivative, activation_value
from nbbp.scalars.dispatch import formula
from nbbp.scalars.functions import exp, log
from nbbp.scalars.losses import LOSSES, loss_derivative, loss_value
from nbbp.scalars.updates import UPDATES

#: Threads of the block.
THREADS = 4 if SIMULATED else 256
#: Weights times rows of the largest step that one block takes: an estimate, not measured on a GPU yet.
MOST_WORK = 1 << 18
#: What the table says of a layer; places are numbers into the workspace, or the parameters. FUNCTION: which of the two
#: activations (2: none); GROUP: which of the two tables of coefficients (-1: frozen).
N_IN, N_OUT, WEIGHT, BIAS, FUNCTION, OUT, SEEN, SLOPE, WEIGHT_GROUP, BIAS_GROUP = range(10)
N_COLUMNS = 10
NO_FUNCTION = 2
_BINARY = LOSSES["binary_crossentropy"].code
_CROSSENTROPY = "crossentropy"
_RELU_AND_GELU = ACTIVATIONS["relu"].code, ACTIVATIONS["gelu"].code
#: Of all that there are: each kind of loss, and rules of no slot, two and three.
_VARIANTS = tuple(
    (LOSSES[loss].code if loss != _CROSSENTROPY else loss, UPDATES[rule].code, *_RELU_AND_GELU)
    for loss, rule in (
        (_CROSSENTROPY, "adam"), ("mse", "adam"), ("binary_crossentropy", "sgd"), ("mse", "rmsprop_centered_momentum"),
    )
)  # fmt: skip


@formula
def product_of_row(w, weight, n_in, n_out, bias, x, source):
    """bias + the sum over i of x[source + i] · w[weight + i · n_out]; `bias` is the place of one, or negative."""
    total = w[bias] if bias >= 0 else type(w[weight])(0)
    for i in range(n_in):
        total += x[source + i] * w[weight + i * n_out]
    return total


@formula
def loss_of_classes(workspace, d, given, n, stride, label, target, wanted_at, smoothing, factor):
    """The crossentropy of a row of n logits, in float64, and factor times its gradient to the row at d.

    The logits lie in the workspace from `given` on, `stride` apart, as the gradient will; the label, or where it is -1
    a row of probabilities, is smoothed as in nbbp/cuda/crossentropy.py.
    """
    number = type(factor)
    zero, one = number(0), number(1)
    largest, mass, sum_of, total = workspace[given], zero, zero, 0.0
    kept, even = one - smoothing, smoothing / number(n)
    for j in range(1, n):
        largest = larger(workspace[given + j * stride], largest)
    for j in range(n):
        value = workspace[given + j * stride] - largest
        sum_of += exp(value)
        if label >= 0:
            wanted = even + (kept if j == label else zero)
        else:
            wanted = even + kept * target[wanted_at + j]
        mass += wanted
        workspace[d + j * stride] = wanted
        if wanted != zero:  # 0 · -inf would be NaN
            total -= np.float64(wanted * value)
    if label >= 0:
        mass = one
    share = factor * mass / sum_of
    for j in range(n):
        value = workspace[given + j * stride] - largest
        workspace[d + j * stride] = share * exp(value) - factor * workspace[d + j * stride]
    return total + np.float64(log(sum_of)) * np.float64(mass)


@formula
def gradient_of_bias(workspace, slope, n_out, n_rows):
    """The sum over the rows of the slopes of an output, the first of which lies at `slope`."""
    total = type(workspace[slope])(0)
    for r in range(n_rows):
        total += workspace[slope + r * n_out]
    return total


@formula
def gradient_of_weight(workspace, slope, n_out, source, n_in, n_rows):
    """The sum over the rows of an input, from `source` on, times the slope of an output, from `slope` on."""
    total = type(workspace[slope])(0)
    for r in range(n_rows):
        total += workspace[source + r * n_in] * workspace[slope + r * n_out]
    return total


@formula
def gradient_of_first(workspace, slope, n_out, x, i, n_in, order, start, n_rows):
    """The same for input i of the data, whose rows are the run's from `start` on."""
    total = type(workspace[slope])(0)
    for r in range(n_rows):
        source = order[start + r] if order.size > 0 else start + r
        total += x[source * n_in + i] * workspace[slope + r * n_out]
    return total


@kernel(
    INTEGERS, INTEGER, INTEGER, INTEGERS, INTEGER, ARRAY, ARRAY, ARRAY, INTEGERS, ARRAY, INTEGERS, ARRAY, DOUBLES,
    NUMBER, NUMBER, INTEGER, ARRAY, ARRAY, ARRAY, ARRAY, DOUBLES, DOUBLES, ARRAY,
    variants=_VARIANTS,
)  # fmt: skip
def train_chain(number, variant):
    """`n_steps` steps on the run's rows of x (n, n_in), from the clock's step on, which it moves. One block.

    `variant`: the loss, the rule, both activations. Writes the parameters w, the slots, row_values, the workspace and,
    in the run's first step, `good` unless it is empty. As in nbbp/cuda/crossentropy.py one of target and labels is
    empty.
    """
    loss, rule, first_code, second_code = variant
    n_slots, is_classes, is_binary = SLOTS[rule], loss == _CROSSENTROPY, loss == _BINARY
    code = 0 if is_classes else loss  # what is not compiled needs a code all the same
    zero, one, half, infinity = number(0), number(1), number(0.5), np.inf

    def train_chain(
        clock, batch, n_steps, table, n_layers, alphas, workspace, x, order, target, labels, weights, row_values,
        parameter, scale, is_mean, w, slot_0, slot_1, slot_2, coefficients_0, coefficients_1, good,
    ):  # fmt: skip
        thread, n_samples, begin = cuda.threadIdx.x, clock[N_SAMPLES], clock[STEP]
        last = (n_layers - 1) * N_COLUMNS
        n_classes = table[last + N_OUT]
        lowest = n_layers  # the first layer that training changes; below it nobody wants a gradient
        for layer in range(n_layers - 1, -1, -1):
            if table[layer * N_COLUMNS + WEIGHT_GROUP] >= 0 or table[layer * N_COLUMNS + BIAS_GROUP] >= 0:
                lowest = layer
        for step in range(begin, begin + n_steps):
            start = step * batch
            n_rows = min(batch, n_samples - start)

            for layer in range(n_layers):
                at = layer * N_COLUMNS
                n_in, n_out, function = table[at + N_IN], table[at + N_OUT], table[at + FUNCTION]
                for e in range(thread, n_rows * n_out, THREADS):
                    r, j = e // n_out, e % n_out
                    weight, bias = table[at + WEIGHT] + j, table[at + BIAS]
                    bias = bias + j if bias >= 0 else bias
                    if layer == 0:
                        source = order[start + r] if order.size > 0 else start + r
                        z = product_of_row(w, weight, n_in, n_out, bias, x, source * n_in)
                    else:
                        source = table[at - N_COLUMNS + OUT] + r * n_in
                        z = product_of_row(w, weight, n_in, n_out, bias, workspace, source)
                    workspace[table[at + SEEN] + e] = z
                    if function == 0:
                        z = activation_value(first_code, z, alphas[layer])
                    elif function == 1:
                        z = activation_value(second_code, z, alphas[layer])
                    workspace[table[at + OUT] + e] = z
                cuda.syncthreads()

            bad, function, alpha = 0, table[last + FUNCTION], alphas[n_layers - 1]
            for r in range(thread, n_rows, THREADS):  # a row a thread
                source = order[start + r] if order.size > 0 else start + r
                row_weight = weights[source] if weights.size > 0 else one
                given, d = table[last + OUT] + r * n_classes, table[last + SLOPE] + r * n_classes
                if is_classes:
                    label = labels[source] if labels.size > 0 else -1
                    factor = row_weight * (scale / number(n_rows if is_mean != 0 else 1))
                    total = loss_of_classes(
                        workspace, d, given, n_classes, 1, label, target, source * n_classes, parameter, factor
                    )
                    total *= np.float64(row_weight * scale)
                else:
                    factor, total = row_weight * scale / number(n_classes * n_rows if is_mean != 0 else 1), 0.0
                    for j in range(n_classes):
                        wanted = target[source * n_classes + j]
                        if is_binary:
                            wanted = wanted * (one - parameter) + parameter * half
                        total += np.float64(loss_value(code, workspace[given + j], wanted, parameter))
                        workspace[d + j] = factor * loss_derivative(code, workspace[given + j], wanted, parameter)
                    total *= np.float64(row_weight) * (np.float64(scale) / (n_classes if is_mean != 0 else 1))
                row_values[start + r] = total
                if not abs(total) < infinity:
                    bad = 1
                seen = table[last + SEEN] + r * n_classes
                for j in range(n_classes):
                    if function == 0:
                        workspace[d + j] *= activation_derivative(first_code, workspace[seen + j], alpha)
                    elif function == 1:
                        workspace[d + j] *= activation_derivative(second_code, workspace[seen + j], alpha)
            bad = cuda.syncthreads_or(bad)
            if bad != 0:
                continue  # a batch whose loss is not finite updates nothing
            if step == 0 and good.size > 0:
                for p in range(thread, good.size, THREADS):
                    good[p] = w[p]
                cuda.syncthreads()

            line = step * N_COEFFICIENTS
            for layer in range(n_layers - 1, lowest - 1, -1):
                at = layer * N_COLUMNS
                n_in, n_out, slope = table[at + N_IN], table[at + N_OUT], table[at + SLOPE]
                if layer > lowest:  # the gradient goes back, before the weights change
                    below = at - N_COLUMNS
                    function, alpha, seen = table[below + FUNCTION], alphas[layer - 1], table[below + SEEN]
                    for e in range(thread, n_rows * n_in, THREADS):
                        r, i = e // n_in, e % n_in
                        weight, back = table[at + WEIGHT] + i * n_out, zero
                        for j in range(n_out):
                            back += workspace[slope + r * n_out + j] * w[weight + j]
                        if function == 0:
                            back *= activation_derivative(first_code, workspace[seen + e], alpha)
                        elif function == 1:
                            back *= activation_derivative(second_code, workspace[seen + e], alpha)
                        workspace[table[below + SLOPE] + e] = back
                    cuda.syncthreads()
                n_own = (n_in + (1 if table[at + BIAS] >= 0 else 0)) * n_out
                for e in range(thread, n_own, THREADS):  # a weight or a bias a thread
                    i, j = e // n_out, e % n_out
                    p, group = table[at + WEIGHT] + e, table[at + WEIGHT_GROUP]
                    if i == n_in:
                        p, group = table[at + BIAS] + j, table[at + BIAS_GROUP]
                    if group < 0:
                        continue
                    if i == n_in:
                        g = gradient_of_bias(workspace, slope + j, n_out, n_rows)
                    elif layer == 0:
                        g = gradient_of_first(workspace, slope + j, n_out, x, i, n_in, order, start, n_rows)
                    else:
                        source = table[at - N_COLUMNS + OUT] + i
                        g = gradient_of_weight(workspace, slope + j, n_out, source, n_in, n_rows)
                    of_step = coefficients_of(number, coefficients_0 if group == 0 else coefficients_1, line)
                    update_parameter(rule, n_slots, w, p, g, slot_0, slot_1, slot_2, of_step)
            cuda.syncthreads()
        if thread == 0:
            clock[STEP] = begin + n_steps

    return train_chain
