"""What takes the place of inline assembly on Numba's simulator: the same functions, in Python, for one thread each.

Instructions of a whole warp exchange what the lanes hold by a table of the block, and wait at the block's barrier in
between; so all warps of a block have to come to them together, which no GPU asks for. A lane meets as many of them as
the others, and writes to another table every second time: it cannot be further ahead, because of the barrier.

Legend: nbbp/cuda/tensor_cores.py, whose maps say what a lane holds; the sums of a product are those of float64, rounded
once, which tensor cores do not promise.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

_WARP = 32


def _exchange(given: Any) -> list:
    """What every lane of the warp gives, by lane."""
    thread = threading.current_thread()  # the simulator's, one for each thread of a block
    number = thread.threadIdx.x
    exchanges = thread._manager.__dict__.setdefault("exchanges", {})
    count = exchanges[number] = exchanges.get(number, 0) + 1
    exchanges[count % 2, number] = given
    thread.syncthreads()
    first = number // _WARP * _WARP
    return [exchanges[count % 2, first + lane] for lane in range(_WARP)]


def _lane() -> int:
    return threading.current_thread().threadIdx.x % _WARP


def _numbers_of_tf32(words: np.ndarray) -> np.ndarray:
    return words.view(np.float32).astype(np.float64)[..., None]


def _numbers_of_bf16(words: np.ndarray) -> np.ndarray:
    pairs = np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], axis=-1)
    return pairs.view(np.float32).astype(np.float64)


def _numbers_of_fp16(words: np.ndarray) -> np.ndarray:
    return words[..., None].view(np.float16).astype(np.float64)


@functools.cache
def _maps() -> tuple[np.ndarray, ...]:
    """Where among the words that lanes hold, six each, those of A (16, 8) and of B's columns (8, 8) are.

    And the rows and the columns of a lane's numbers of C (32, 4).
    """
    from nbbp.cuda import tensor_cores as maps  # which imports this

    a, b = np.zeros((16, 8), np.int64), np.zeros((8, 8), np.int64)
    for lane in range(_WARP):
        for register in range(4):
            a[maps.row_of_a(lane, register), maps.word_of_a(lane, register)] = 6 * lane + register
        for register in range(2):
            b[maps.column_of_b(lane), maps.word_of_b(lane, register)] = 6 * lane + 4 + register
    lanes, registers = np.indices((_WARP, 4))
    return a, b, maps.row_of_c(lanes, registers), maps.column_of_c(lanes, registers)


def _multiplies(numbers_of: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """What multiplies words of a format, each of which `numbers_of` takes apart along a last axis."""

    def multiply(c0, c1, c2, c3, *words):
        a, b, rows, columns = _maps()
        held = np.array(_exchange(words), np.uint32).ravel()
        own = _lane()
        left, right = numbers_of(held[a]).reshape(16, -1), numbers_of(held[b]).reshape(8, -1)
        products = np.einsum("ik,ik->i", left[rows[own]], right[columns[own]])
        return tuple(np.float32(c + product) for c, product in zip((c0, c1, c2, c3), products, strict=True))

    return multiply


multiply_tf32 = _multiplies(_numbers_of_tf32)
multiply_bf16 = _multiplies(_numbers_of_bf16)
multiply_fp16 = _multiplies(_numbers_of_fp16)


def load_matrices(words, index):
    """`ldmatrix`: lane l says where row l % 8 of matrix l // 8 begins, and gets word l % 4 of row l // 4 of each."""
    lane, begins = _lane(), _exchange(int(index))
    if any(begin % 4 for begin in begins):
        raise ValueError(f"rows of matrices begin at multiples of four words; got {begins}")
    return tuple(words[begins[8 * matrix + lane // 4] + lane % 4] for matrix in range(4))


def as_tf32(x):
    """A float32 as a word of tf32: ten bits of the fraction, to nearest, ties away from zero; NaN stays one."""
    bits = np.float32(x).view(np.uint32)
    if np.isnan(x):
        return np.uint32(0x7FFFFFFF)
    magnitude = (int(bits) & 0x7FFFFFFF) + 0x1000 & 0xFFFFE000 if np.isfinite(x) else int(bits) & 0x7FFFFFFF
    return np.uint32(magnitude | int(bits) & 0x80000000)


def pair_of_bf16(high, low):
    """Two float32 as a word of bf16."""
    return np.uint32(_bf16(high) << 16 | _bf16(low))


def _bf16(x) -> int:
    bits = int(np.float32(x).view(np.uint32))
    return 0x7FFF if np.isnan(x) else bits + 0x7FFF + (bits >> 16 & 1) >> 16


def pair_of_fp16(high, low):
    """Two float32 as a word of fp16."""
    with np.errstate(over="ignore"):
        codes = [int(np.float32(x).astype(np.float16).view(np.uint16)) for x in (high, low)]
    return np.uint32(codes[0] << 16 | codes[1])


def widen_bf16(bits):
    """The float32 of these bits."""
    return np.uint32(bits).view(np.float32)


def widen_fp16(half):
    """The float32 that a number of fp16 is."""
    return np.float32(np.uint16(half).view(np.float16))
