"""Calling single op kernels and SIMD helpers on memory with guards around it."""

import ctypes

import numpy as np

from nbbp import ops
from nbbp.cpu import kernels

ALL = 1 << 40
EPS = {"float32": np.finfo("float32").eps, "float64": np.finfo("float64").eps}


class Guarded:
    """Numbers with NaN before and behind them (or another guard): what reads too far gets NaN, what writes shows."""

    def __init__(self, values, dtype, guard=np.nan, margin=80):
        values = np.asarray(values, dtype)
        self.buffer = np.full(values.size + 2 * margin, guard, dtype)
        self.inside = slice(margin, margin + values.size)
        self.values = self.buffer[self.inside].reshape(values.shape)
        self.values[...] = values
        self._before = self.buffer.copy()

    @property
    def address(self) -> int:
        return self.values.ctypes.data

    def assert_guards(self) -> None:
        """Nothing outside was written."""
        now, before = self.buffer.copy(), self._before.copy()
        now[self.inside] = before[self.inside] = 0
        assert now.tobytes() == before.tobytes()

    def assert_untouched(self, where) -> None:
        """Nor these numbers inside (a mask or an index of `values`)."""
        before = self._before[self.inside].reshape(self.values.shape)
        assert self.values[where].tobytes() == before[where].tobytes()


def run_kernel(name, dtype, rows, variant=0, columns=(0, ALL), step=0, scratch=0, **settings):
    """Run one op on a tile; `settings` are columns of the op table in lower case: numbers, arrays or `Guarded`."""
    row = np.zeros(ops.N_COLUMNS, np.int64)
    for column, value in settings.items():
        row[getattr(ops, column.upper())] = address_of(value)
    call = kernels.compiled(name, dtype, variant).ctypes
    pointer = row.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
    call(pointer, step, *rows, *columns, address_of(scratch))


def address_of(value) -> int:
    if isinstance(value, Guarded):
        return value.address
    return value.ctypes.data if isinstance(value, np.ndarray) else int(value)
