"""Activations and losses of one sample as loops over buffers on the stack: plain functions, compiled into their caller.

Legend: y and d hold n numbers, with padding up to ``n_padded``, in which anything may be written; target (n,). Each
factory closes over an int or a key, so that the formula is compiled in.
"""

from collections.abc import Callable
from functools import cache

from numba import float64

from nbbp.cpu import simd
from nbbp.cpu.loss import smoothed
from nbbp.scalars.activations import activation_derivative, activation_value
from nbbp.scalars.functions import exp, log
from nbbp.scalars.losses import LOSSES, loss_derivative, loss_value

_BINARY = LOSSES["binary_crossentropy"].code


@cache
def activation_forward(code: int | str) -> Callable:
    """f(x)."""

    def activation_forward(x, alpha):
        return activation_value(code, x, alpha)

    return activation_forward


@cache
def activation_backward(code: int | str) -> Callable:
    """d f'(kept); `kept` is what f' is written in."""

    def activation_backward(d, kept, alpha):
        return d * activation_derivative(code, kept, alpha)

    return activation_backward


def softmax_forward(y, x, n, n_padded):
    """y = exp(x - max x) / sum of these."""
    largest = simd.row_maximum(x, n)
    for j in range(n_padded):
        y[j] = exp(x[j] - largest)
    share = type(largest)(1) / simd.row_sum(y, n)
    for j in range(n_padded):
        y[j] *= share


def softmax_backward(d, y, n, n_padded):
    """d = y ∘ (d - <y, d>)."""
    inner = type(d[0])(0)
    for j in range(n):
        inner += y[j] * d[j]
    for j in range(n_padded):
        d[j] = y[j] * (d[j] - inner)


def log_softmax_forward(y, x, n, n_padded):
    """y = x - max x - log(sum exp(x - max x))."""
    largest = simd.row_maximum(x, n)
    for j in range(n_padded):
        y[j] = x[j] - largest
    total = type(largest)(0)
    for j in range(n):
        total += exp(y[j])
    shift = log(total)
    for j in range(n_padded):
        y[j] -= shift


def log_softmax_backward(d, y, n, n_padded):
    """d -= exp(y) · sum d."""
    total = simd.row_sum(d, n)
    for j in range(n_padded):
        d[j] -= exp(y[j]) * total


@cache
def elementwise_loss(code: int | str) -> Callable:
    """The loss of one output, and factor · its derivative."""

    def elementwise_loss(y, target, parameter, factor):
        wanted = smoothed(target, parameter) if code == _BINARY else target
        return loss_value(code, y, wanted, parameter), factor * loss_derivative(code, y, wanted, parameter)

    return elementwise_loss


def sum_of(values, n):
    """The sum of n numbers, in float64."""
    total = float64(0)
    for j in range(n):
        total += float64(values[j])
    return total


def crossentropy_of_label(d, y, label, n, n_padded, smoothing, factor):
    """d = factor (softmax(y) - t), t the smoothed one-hot label; -<t, log softmax(y)>."""
    largest = simd.row_maximum(y, n)
    one = type(largest)(1)
    kept, even = one - smoothing, smoothing / type(largest)(n)
    inner = float64(kept * (y[label] - largest))
    if smoothing != 0:
        for j in range(n):
            inner += float64(even * (y[j] - largest))
    for j in range(n_padded):
        d[j] = exp(y[j] - largest)
    total = simd.row_sum(d, n)
    share = factor / total
    for j in range(n_padded):
        d[j] = d[j] * share - factor * even
    d[label] -= factor * kept
    return float64(log(total)) - inner


def crossentropy_of_target(d, y, target, n, n_padded, smoothing, factor):
    """d = factor (softmax(y) · sum t - t), t the smoothed target; -<t, log softmax(y)>."""
    largest = simd.row_maximum(y, n)
    one = type(largest)(1)
    kept, even = one - smoothing, smoothing / type(largest)(n)
    mass = smoothing + kept * simd.row_sum(target, n)
    inner = float64(0)
    for j in range(n):
        t = kept * target[j] + even
        if t != 0:  # 0 · -inf would be NaN
            inner += float64(t * (y[j] - largest))
    for j in range(n_padded):
        d[j] = exp(y[j] - largest)
    total = simd.row_sum(d, n)
    share = factor * mass / total
    for j in range(n_padded):
        d[j] = d[j] * share - factor * (kept * target[j] + even)
    return float64(log(total)) * float64(mass) - inner


def nll_of_label(d, y, label, n, n_padded, smoothing, factor):
    """d = -factor at the label, else 0; -y[label]."""
    for j in range(n_padded):
        d[j] = type(factor)(0)
    d[label] = -factor
    return -float64(y[label])


def nll_of_target(d, y, target, n, n_padded, smoothing, factor):
    """d = -factor t; -<t, y>."""
    total = float64(0)
    for j in range(n):
        if target[j] != 0:  # 0 · -inf would be NaN
            total += float64(target[j] * y[j])
    for j in range(n_padded):
        d[j] = -factor * target[j]
    return -total
