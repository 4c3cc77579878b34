"""Layers that drop: units (dropout) or whole rows (stochastic depth), scaled so that the expected output stays.

Legend: batch rows, N_OUT units, W = N_OUT rounded up to 16. SEED, LAYER and FIRST_STEP + step say which numbers are
drawn, scalars/draws.py how. A mask at KEPT is batch · W bits, bit i of number i = row · W + column, in groups of 128;
tiling.mask_size says how much memory that is, from an address that is a multiple of 8.
Cut by rows, from multiples of 16 on: there a group begins.
"""

from numba import uint16, uint64

from nbbp import ops
from nbbp.cpu import random_simd, simd
from nbbp.cpu.kernels import kernel
from nbbp.scalars.dispatch import formula
from nbbp.scalars.draws import LOW_HALVES, MASK_GROUP, limit_of_rate, padded_width
from nbbp.scalars.philox import STREAM_DEPTH, STREAM_DROPOUT, key_words


@formula
def kept_of_group(group, layer, step, stream, key_low, key_high, limit):
    """Bits of the numbers 0 to 63 and 64 to 127 of a group of a mask: 1 where `is_kept` is true."""
    low, high, tied_low, tied_high = random_simd.compare_group(
        group, layer, step, stream, key_low, key_high, limit >> uint64(16)
    )
    rest = limit & uint64(0xFFFF)
    # one group in five hundred; never for a rate like 1/2 or 1/4
    if (tied_low | tied_high) != 0 and rest != 0:
        rest_low, rest_high, _, _ = random_simd.compare_group(
            group, layer, step, LOW_HALVES + stream, key_low, key_high, rest
        )
        low &= ~tied_low | rest_low
        high &= ~tied_high | rest_high
    return low, high


@formula
def scale_of_rate(rate):
    """1 / (1 - rate)."""
    one = type(rate)(1)
    return one / (one - rate)


@kernel("dropout_forward")
def dropout_forward(zero, variant):
    """Y = X ∘ m / (1 - rate), m one with probability 1 - rate (Srivastava et al., "Dropout", 2014); SETTINGS: rate.

    X, Y (batch, N_OUT), which are the same or do not overlap. Writes Y with its padding up to W, but for the number
    behind the last unit, and m to KEPT, which overlaps neither. What is dropped is 0, were it NaN.
    """

    def dropout_forward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        rate = simd.pointer(op[ops.SETTINGS], zero)[0]
        width = padded_width(op[ops.N_OUT])
        kept = simd.pointer(op[ops.KEPT], uint64(0))
        limit, layer, of_run = limit_of_rate(rate), op[ops.LAYER], op[ops.FIRST_STEP] + step
        key_low, key_high = key_words(op[ops.SEED])
        for group in range(row_start * width // MASK_GROUP, (row_stop * width + MASK_GROUP - 1) // MASK_GROUP):
            low, high = kept_of_group(group, layer, of_run, STREAM_DROPOUT, key_low, key_high, limit)
            kept[2 * group] = low
            kept[2 * group + 1] = high
        factor, n = scale_of_rate(rate), op[ops.N_OUT]
        x = simd.advance(simd.pointer(op[ops.X], zero), row_start * op[ops.X_STRIDE])
        y = simd.advance(simd.pointer(op[ops.Y], zero), row_start * op[ops.Y_STRIDE])
        for r in range(row_start, row_stop):
            behind = y[n]
            bits = simd.advance(simd.pointer(op[ops.KEPT], uint16(0)), r * (width // 16))
            random_simd.keep_row(y, x, bits, factor, n)
            y[n] = behind
            x, y = simd.advance(x, op[ops.X_STRIDE]), simd.advance(y, op[ops.Y_STRIDE])

    return dropout_forward


@kernel("dropout_backward")
def dropout_backward(zero, variant):
    """Y *= m / (1 - rate); Y (batch, N_OUT) the output gradient, m at KEPT from `dropout_forward`; SETTINGS: rate.

    Writes Y with its padding up to W, but for the number behind the last unit.
    """

    def dropout_backward(op, step, row_start, row_stop, column_start, column_stop, scratch):
        factor, n = scale_of_rate(simd.pointer(op[ops.SETTINGS], zero)[0]), op[ops.N_OUT]
        width = padded_width(n)
        for r in range(row_start, row_stop):
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            behind = y[n]
            bits = simd.advance(simd.pointer(op[ops.KEPT], uint16(0)), r * (width // 16))
            random_simd.keep_row(y, y, bits, factor, n)
            y[n] = behind

    return dropout_backward


def _depth(zero, is_backward):
    def stochastic_depth(op, step, row_start, row_stop, column_start, column_stop, scratch):
        settings = simd.pointer(op[ops.SETTINGS], zero)
        rate, is_by_row = settings[0], settings[1] != 0
        limit, layer, of_run = limit_of_rate(rate), op[ops.LAYER], op[ops.FIRST_STEP] + step
        key_low, key_high = key_words(op[ops.SEED])
        factor, n = scale_of_rate(rate), op[ops.N_OUT]
        source, stride = (op[ops.Y], op[ops.Y_STRIDE]) if is_backward else (op[ops.X], op[ops.X_STRIDE])
        drawn, bits = -1, (uint64(0), uint64(0))
        for r in range(row_start, row_stop):
            number = r if is_by_row else 0
            if number // MASK_GROUP != drawn:
                drawn = number // MASK_GROUP
                bits = kept_of_group(drawn, layer, of_run, STREAM_DEPTH, key_low, key_high, limit)
            place = number % MASK_GROUP
            half = bits[0] if place < 64 else bits[1]
            x = simd.advance(simd.pointer(source, zero), r * stride)
            y = simd.advance(simd.pointer(op[ops.Y], zero), r * op[ops.Y_STRIDE])
            behind = y[n]
            if half >> uint64(place % 64) & uint64(1):
                simd.scale_row(y, x, factor, zero, n)
            else:
                for j in range(n):
                    y[j] = zero
            y[n] = behind

    return stochastic_depth


@kernel("stochastic_depth_forward")
def stochastic_depth_forward(zero, variant):
    """Y = X · m / (1 - rate), m one for a row with probability 1 - rate (Huang et al., "Deep Networks with Stochastic
    Depth", 2016); SETTINGS: rate, and 1 for an m of each row (the row is the number of its bit) or 0 for one of all.

    X, Y (batch, N_OUT), which are the same or do not overlap. Writes Y with its padding up to W, but for the number
    behind the last unit. What is dropped is 0, were it NaN.
    """
    return _depth(zero, False)


@kernel("stochastic_depth_backward")
def stochastic_depth_backward(zero, variant):
    """Y *= m / (1 - rate), m drawn once more; otherwise as `stochastic_depth_forward`, with X for Y."""
    return _depth(zero, True)
