"""What an op of a training step cannot do without: its operations, and the bytes that it reads and writes.

Both follow from the op's columns (nbbp/ops.py) and the batch. Operations are additions, multiplications, divisions,
roots and comparisons, as the formulas have them; bytes are those of every operand once, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nbbp import ops
from nbbp.program import Op, Place, Program

NUMBER = 4
LABEL = 8
#: Operations per number: comparison and multiplication; maximum, shift, exponential (a polynomial of degree 6 and its
#: range reduction, 20), sum, scale and shift; Adam as nbbp/scalars/updates.py has it.
RELU_BACKWARD, CROSSENTROPY, ADAM = 2, 25, 13


@dataclass(frozen=True)
class Cost:
    """Of one op, or of several that belong together.

    Attributes
    ----------
    flops : float
        Floating-point operations.
    traffic : float
        Bytes read and bytes written.
    footprint : float
        Bytes of memory that are touched: what has to be in a cache for the traffic to stay there.
    """

    flops: float
    traffic: float
    footprint: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.traffic + other.traffic, self.footprint + other.footprint)


def _gather(columns: dict, batch: int, n_samples: int) -> Cost:
    size = batch * columns[ops.N_OUT] * NUMBER
    # the rows of a batch come from anywhere in the data of the run
    return Cost(0.0, 2 * size + batch * LABEL, size + n_samples * columns[ops.N_OUT] * NUMBER)


def _product(columns: dict, batch: int, n_samples: int) -> Cost:
    n_in, n_out = columns[ops.N_IN], columns[ops.N_OUT]
    size = (batch * (n_in + n_out) + n_in * n_out) * NUMBER  # of these one is written, whichever way it contracts
    return Cost(2.0 * batch * n_in * n_out, size, size)


def _activation_backward(columns: dict, batch: int, n_samples: int) -> Cost:
    n = batch * columns[ops.N_OUT]
    return Cost(RELU_BACKWARD * n, 3 * n * NUMBER, 2 * n * NUMBER)


def _crossentropy(columns: dict, batch: int, n_samples: int) -> Cost:
    n = batch * columns[ops.N_OUT]
    return Cost(CROSSENTROPY * n, 2 * n * NUMBER + 2 * batch * LABEL, 2 * n * NUMBER + 2 * batch * LABEL)


def _update(columns: dict, batch: int, n_samples: int) -> Cost:
    n = (columns[ops.N_OUT] - columns[ops.N_IN]) * columns[ops.SLOT_STRIDE]
    return Cost(ADAM * n, 7 * n * NUMBER, 4 * n * NUMBER)  # gradient, parameter and two moments; all but one written


_COSTS: dict[str, Callable[[dict, int, int], Cost]] = {
    "gather": _gather,
    "product": _product,
    "deep_product": _product,
    "activation_backward": _activation_backward,
    "crossentropy": _crossentropy,
    "update": _update,
}


def cost(op: Op, batch: int, n_samples: int) -> Cost:
    """Of one op in a step of a run over so many samples."""
    return _COSTS[op.kernel](op.columns, batch, n_samples)


def groups(program: Program) -> dict[str, list[int]]:
    """The rows of a training step's ops by what they do: panels of one weight belong together, and all updates."""
    found: dict[str, list[int]] = {}
    n_layers = len({op.columns[ops.Y].buffer for op in program.ops if _is_forward(op)})
    places = {op.columns[ops.X].buffer: number for number, op in enumerate(filter(_is_forward, program.ops), 1)}
    backs = iter(range(n_layers, 1, -1))
    for row, op in enumerate(program.ops):
        if op.kernel not in ("product", "deep_product"):
            name = {"activation_backward": "rectifier gradient", "update": "Adam"}.get(op.kernel, op.kernel)
        elif op.columns.get(ops.CONTRACTS_ROWS):
            name = f"weight gradient {places[op.columns[ops.X].buffer]}"
        elif _is_forward(op):
            name = f"forward {places[op.columns[ops.X].buffer]}"
        else:
            name = f"input gradient {next(backs)}"
        found.setdefault(name, []).append(row)
    return found


def _is_forward(op: Op) -> bool:
    return op.kernel == "product" and isinstance(op.columns.get(ops.BIAS), Place)


def total(program: Program, rows: Iterable[int], n_samples: int) -> Cost:
    """The cost of these ops; what panels of one product share is counted once."""
    chosen = [program.ops[row] for row in rows]
    result = Cost(0.0, 0.0, 0.0)
    for op in chosen:
        result += cost(op, program.batch, n_samples)
    if chosen[0].columns.get(ops.CONTRACTS_ROWS):
        again = (len(chosen) - 1) * program.batch * chosen[0].columns[ops.N_IN] * NUMBER
        result += Cost(0.0, -again, -again)
    return result
