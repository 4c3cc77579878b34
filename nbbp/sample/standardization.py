"""Standardisation of a sample: statistics as constants of the machine code, named by a digest of them.

A plan (nbbp/sample/plan.py) holds the name, by which the code is found in the cache again; who writes the code looks
the numbers up here.
"""

import hashlib

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from nbbp.layers import Standardize
from nbbp.network import Sequential
from nbbp.sample.emit import Emitter

_KNOWN: dict[str, tuple[np.ndarray, np.ndarray]] = {}


def named_statistics(network: Sequential, state: np.ndarray) -> str:
    """A name for the statistics of the network's first layer; empty where that is no `Standardize`."""
    if not isinstance(network.layers[0], Standardize):
        return ""
    mean, variance = (own.view(state).copy() for own in network.states[:2])
    inverse = (1 / np.sqrt(variance)).astype(state.dtype)
    name = hashlib.sha256(mean.tobytes() + inverse.tobytes()).hexdigest()
    _KNOWN[name] = mean, inverse
    return name


def standardize(emit: Emitter, name: str, y: ir.Value, x: ir.Value, n: int) -> None:
    """y = (x - mean) · inverse, of n numbers in buffers; their padding is 0 if that of x is finite."""
    mean, inverse = (_constants(emit, values) for values in _KNOWN[name])

    def write(i: int | ir.Value, active: int) -> None:
        centered = emit.builder.fsub(emit.load(x, i), emit.load(mean, i))
        emit.store(emit.builder.fmul(centered, emit.load(inverse, i)), y, i)

    emit.by_register(emit.padded(n), write)


def standardize_backward(emit: Emitter, name: str, d: ir.Value, n: int) -> None:
    """d *= inverse, of n numbers in a buffer."""
    inverse = _constants(emit, _KNOWN[name][1])
    emit.by_register(
        emit.padded(n), lambda i, active: emit.store(emit.builder.fmul(emit.load(d, i), emit.load(inverse, i)), d, i)
    )


def _constants(emit: Emitter, values: np.ndarray) -> ir.Value:
    """Numbers in the read-only data of the code, with zeros behind them up to a whole register."""
    numbers = values.tolist() + [0.0] * (emit.padded(len(values)) - len(values))
    constant = ir.Constant(ir.ArrayType(emit.element, len(numbers)), numbers)
    data = cgutils.global_constant(emit.builder, "statistics", constant)
    data.align = 64
    return emit.builder.bitcast(data, emit.element.as_pointer())
