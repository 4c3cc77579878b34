"""Augmentation by NumPy alone: what a run trains on, with the random numbers that nbbp/scalars/sampling.py tells of."""

import numpy as np
from reference_random import NOISE, normals, philox, places

from nbbp.augmentation import Custom, Mixup, Noise, Shift
from nbbp.scalars.philox import permutation

#: First stream of augmentations, from one to the next, and from uniforms to integers to normals.
FIRST_STREAM, NEXT_AUGMENTATION, UNIFORMS, INTEGERS, NORMALS = 16, 16, 0, 1, 2
WHOLE_BATCH = 2**32 - 1


def words(block, sample, step, number, kind, seed):
    """Four words for each of the samples."""
    return philox([block, sample, step, FIRST_STREAM + NEXT_AUGMENTATION * number + kind], seed)


def uniforms(i, sample, step, number, seed):
    """Uniform number i of each sample: 27 and 26 bits of two words."""
    high, low = words(i // 2, sample, step, number, UNIFORMS, seed)[2 * (i % 2) :][:2]
    return ((high >> np.uint64(5)) * 2.0**26 + (low >> np.uint64(6))) * 2.0**-53


def integers(i, n, sample, step, number, seed):
    """Integer i of each sample, below n."""
    return (words(i // 4, sample, step, number, INTEGERS, seed)[i % 4] * np.uint64(n) >> np.uint64(32)).astype(int)


def normals_of_samples(i, sample, step, number, seed):
    """Normal number i of each sample (Box and Muller)."""
    a, b, c, d = words(i // 2, sample, step, number, NORMALS, seed)
    u, v = (((x >> np.uint64(5)) * 2.0**26 + (y >> np.uint64(6))) * 2.0**-53 for x, y in ((a, b), (c, d)))
    return np.sqrt(-2.0 * np.log1p(-u)) * (np.cos if i % 2 == 0 else np.sin)(2.0 * np.pi * v)


def shares(alpha, sample, step, number, seed):
    """The part that each sample keeps: T / sqrt(2 alpha + T²), T of Student's law, moved from (-1, 1) to (0, 1)."""
    a, b, _, _ = words(0, sample, step, number, UNIFORMS, seed)
    u = (a >> np.uint64(1) | np.uint64(1)).astype(np.float32).astype(np.float64) * 2.0**-31
    v = b.astype(np.float32).astype(np.float64) * 2.0**-32
    t = np.sqrt(2.0 * alpha * np.expm1(np.minimum(-np.log(u) / alpha, 80.0))) * np.cos(2.0 * np.pi * v)
    return 0.5 + 0.5 * t / np.sqrt(2.0 * alpha + t * t)


def partners(n, step, number, seed):
    """The partner of each of n samples."""
    distance = integers(0, n - 1, np.array([WHOLE_BATCH]), step, number, seed)[0] + 1 if n > 1 else 0
    return (np.arange(n) + distance) % n


def moved(image, down, right, fill):
    """An image (height, width, channels) moved, pixel by pixel."""
    result = np.full_like(image, fill)
    height, width = image.shape[:2]
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                result[i + down, j + right] = image[i, j]
    return result


def shifted(x, shape, pixels, fill, step, number, seed):
    """Rows x (n, n_in) as images of that shape, each moved by its own distances."""
    if len(shape) == 1:
        shape, pixels = (1, *shape), (0, *pixels)
    samples = np.arange(len(x))
    down, right = (integers(axis, 2 * most + 1, samples, step, number, seed) - most for axis, most in enumerate(pixels))
    images = x.reshape(len(x), *shape[:2], -1)
    return np.array([moved(*one, fill) for one in zip(images, down, right, strict=True)]).reshape(x.shape)


def augmented(augment, x, y, weight, step, seed):
    """A batch (n, n_in), its targets (n, n_out) and its weights (n,) after all augmentations, in float64."""
    x, y, weight = (np.asarray(array, np.float64) for array in (x, y, weight))
    samples = np.arange(len(x))
    for number, one in enumerate(augment):
        if isinstance(one, Shift):
            x = shifted(x, one.shape, one.pixels, one.fill, step, number, seed)
        elif isinstance(one, Noise):
            x = x + one.stddev * normals(places(*x.shape), seed, 2**32 - 1 - number, step, NOISE)
        elif isinstance(one, Custom):
            x = x.copy()
            for row, sample in zip(x, samples, strict=True):
                stream = FIRST_STREAM + NEXT_AUGMENTATION * number
                one.function.py_func(row, tuple(np.uint64(word) for word in (seed, sample, step, stream)))
        elif isinstance(one, Mixup):
            share, other = shares(one.alpha, samples, step, number, seed), partners(len(x), step, number, seed)
            x, y, weight = ((share * array.T + (1.0 - share) * array[other].T).T for array in (x, y, weight))
    return x, y, weight


def batches(augment, X, y, weight, batch, epochs, seed):
    """What `fit` trains on, with a new order in every epoch: (x, y, weight) of each batch."""
    step = 0
    for epoch in range(epochs):
        order = permutation(len(X), seed, epoch)
        for start in range(0, len(X), batch):
            rows = order[start : start + batch]
            yield augmented(augment, X[rows], y[rows], weight[rows], step, seed)
            step += 1
