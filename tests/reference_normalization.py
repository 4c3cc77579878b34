"""A float64 NumPy oracle of the normalization layers, written for reading.

Legend: x, y and their gradients are (batch, n); gamma and beta (n,) or None, which are 1 and 0. Derivatives follow the
chain rule through the statistics, step by step, as Ioffe and Szegedy write them ("Batch Normalization", 2015, section
3), and not the closed form of the kernels. Running statistics are PyTorch's: the variance is that of a sample.
"""

import numpy as np


def normalized(x, axis, eps):
    """(x - mean) / sqrt(variance + eps) along an axis, the mean, and 1 / sqrt(variance + eps)."""
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=axis, keepdims=True)
    inverse = 1.0 / np.sqrt(((x - mean) ** 2).mean(axis=axis, keepdims=True) + eps)
    return (x - mean) * inverse, mean.squeeze(axis), inverse.squeeze(axis)


def scaled(x, gamma, beta=None):
    """x · gamma + beta."""
    x = x if gamma is None else x * np.asarray(gamma, np.float64)
    return x if beta is None else x + np.asarray(beta, np.float64)


def normalization(x, gamma, beta, axis, eps):
    """y, mean and 1 / deviation of batch norm in training (axis 0) and of layer norm (axis 1)."""
    x_hat, mean, inverse = normalized(x, axis, eps)
    return scaled(x_hat, gamma, beta), mean, inverse


def normalization_backward(d_y, x, gamma, axis, eps):
    """d_x, d_gamma and d_beta."""
    x, d_y = np.asarray(x, np.float64), np.asarray(d_y, np.float64)
    n = x.shape[axis]
    x_hat, _, _ = normalized(x, axis, eps)
    d_x_hat = scaled(d_y, gamma)
    centered = x - x.mean(axis=axis, keepdims=True)
    variance = (centered**2).mean(axis=axis, keepdims=True)
    d_variance = (d_x_hat * centered * -0.5 * (variance + eps) ** -1.5).sum(axis=axis, keepdims=True)
    d_mean = -(d_x_hat / np.sqrt(variance + eps)).sum(axis=axis, keepdims=True)
    d_mean = d_mean + d_variance * (-2.0 * centered).mean(axis=axis, keepdims=True)
    d_x = d_x_hat / np.sqrt(variance + eps) + d_variance * 2.0 * centered / n + d_mean / n
    return d_x, (d_y * x_hat).sum(axis=0), d_y.sum(axis=0)


def running_statistics(running_mean, running_variance, x, momentum):
    """Both after one more batch, which has more than one row."""
    x = np.asarray(x, np.float64)
    mean = (1.0 - momentum) * running_mean + momentum * x.mean(axis=0)
    return mean, (1.0 - momentum) * running_variance + momentum * x.var(axis=0, ddof=1)


def inference(x, running_mean, running_variance, gamma, beta, eps):
    """y of batch norm once its statistics are fixed."""
    x_hat = (np.asarray(x, np.float64) - running_mean) / np.sqrt(np.asarray(running_variance, np.float64) + eps)
    return scaled(x_hat, gamma, beta)


def inference_backward(d_y, running_variance, gamma, eps):
    """d_x of the same."""
    return scaled(d_y / np.sqrt(np.asarray(running_variance, np.float64) + eps), gamma)


def rms_norm(x, gamma, eps):
    """y, and 1 / root of the mean square of each row."""
    x = np.asarray(x, np.float64)
    inverse = 1.0 / np.sqrt((x**2).mean(axis=1) + eps)
    return scaled(x * inverse[:, None], gamma), inverse


def rms_norm_backward(d_y, x, gamma, eps):
    """d_x and d_gamma."""
    x, d_y = np.asarray(x, np.float64), np.asarray(d_y, np.float64)
    mean_square = (x**2).mean(axis=1, keepdims=True) + eps
    d_x_hat = scaled(d_y, gamma)
    d_mean_square = (d_x_hat * x * -0.5 * mean_square**-1.5).sum(axis=1, keepdims=True)
    d_x = d_x_hat / np.sqrt(mean_square) + d_mean_square * 2.0 * x / x.shape[1]
    return d_x, (d_y * x / np.sqrt(mean_square)).sum(axis=0)
