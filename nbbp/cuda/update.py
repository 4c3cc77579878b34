"""Optimizer updates over a stretch of the flat parameter buffer, and the copy of the last good parameters before them.

Legend: a segment [start, stop) of w shares its coefficients (learning rate, decay). `coefficients` holds a line of
``N_COEFFICIENTS`` float64 per step of the run: coupled L2, L1, decoupled multiplier, then what the rule takes
(nbbp/optimizers.py computes them). Whether a batch updates at all: nbbp/cuda/verdict.py.
"""

from numba import cuda

from nbbp import ops
from nbbp.cuda.kernels import ARRAY, DOUBLES, FIRST_STEP, INTEGER, INTEGERS, STEP, kernel
from nbbp.cuda.launch import Binding, binds, flat
from nbbp.cuda.verdict import GRADIENT_FINE, LOSSES_FINE, conditions, is_update, place_among
from nbbp.ops import N_COEFFICIENTS
from nbbp.scalars.dispatch import formula
from nbbp.scalars.updates import UPDATES, penalized_gradient, update_rule

#: How many slots each rule has.
SLOTS = tuple(rule.n_slots for rule in UPDATES.values())


@formula
def coefficients_of(number, values, line):
    """A step's coefficients, of the kernel's dtype: what the gradient is penalized by, and what the rule takes."""
    penalties = number(values[line]), number(values[line + 1]), number(values[line + 2])
    return penalties, (
        number(values[line + 3]), number(values[line + 4]), number(values[line + 5]), number(values[line + 6]),
        number(values[line + 7]), number(values[line + 8]), number(values[line + 9]), number(values[line + 10]),
    )  # fmt: skip


@formula
def update_parameter(rule, n_slots, w, i, g, slot_0, slot_1, slot_2, coefficients):
    """w[i], slots[i] = rule(w[i], g, slots[i]); `rule` and the slots that it has are constants.

    Writes w[i] and those slots' number i.
    """
    (l2, l1, kept), c = coefficients
    parameter, zero = w[i], type(l2)(0)
    if l2 != zero or l1 != zero or kept != type(l2)(1):
        g = penalized_gradient(parameter, g, l2, l1)
        parameter *= kept
    if n_slots == 0:
        w[i], _, _, _ = update_rule(rule, parameter, g, zero, zero, zero, c)
    elif n_slots == 1:
        w[i], slot_0[i], _, _ = update_rule(rule, parameter, g, slot_0[i], zero, zero, c)
    elif n_slots == 2:
        w[i], slot_0[i], slot_1[i], _ = update_rule(rule, parameter, g, slot_0[i], slot_1[i], zero, c)
    else:
        w[i], slot_0[i], slot_1[i], slot_2[i] = update_rule(
            rule, parameter, g, slot_0[i], slot_1[i], slot_2[i], c
        )  # fmt: skip


@kernel(
    INTEGERS, ARRAY, ARRAY, ARRAY, ARRAY, ARRAY, DOUBLES, INTEGER, INTEGER, INTEGERS, INTEGER,
    variants=tuple(range(len(SLOTS))),
)  # fmt: skip
def update(number, variant):
    """w, slots = rule(w, g, slots) over [start, stop); one step of the rule `variant`.

    w, g and slots (n,). Writes w and the slots that the rule has; the others are empty. None of them may overlap.
    """
    n_slots = SLOTS[variant]

    def update(clock, w, g, slot_0, slot_1, slot_2, coefficients, start, stop, verdict, accumulation):
        place = place_among(clock[FIRST_STEP], clock[STEP], accumulation)
        if not is_update(verdict[LOSSES_FINE], verdict[GRADIENT_FINE], place, accumulation):
            return
        of_step = coefficients_of(number, coefficients, clock[STEP] * N_COEFFICIENTS)
        for i in range(start + cuda.grid(1), stop, cuda.gridsize(1)):
            update_parameter(variant, n_slots, w, i, g[i], slot_0, slot_1, slot_2, of_step)

    return update


@kernel(INTEGERS, ARRAY, ARRAY, INTEGER, INTEGERS)
def snapshot(number, variant):
    """y = x (n,) in the first step of a run, if the losses of its batch are finite. Writes y.

    So the copy holds parameters at which the loss was a number, or the finite ones that training began with.
    """

    def snapshot(clock, y, x, n, verdict):
        if clock[STEP] == 0 and verdict[LOSSES_FINE] != 0:
            for i in range(cuda.grid(1), n, cuda.gridsize(1)):
                y[i] = x[i]

    return snapshot


@binds("update")
def bind_update(op: Binding) -> None:
    """One segment of the parameters: an optimizer's rule."""
    n_slots, start, stop = SLOTS[op.variant], op[ops.N_IN], op[ops.N_OUT]
    slots = [op.array(slot) for slot in (ops.SLOT_0, ops.SLOT_1, ops.SLOT_2)]
    slots = slots[:n_slots] + [op.bound.nothing()] * (3 - n_slots)
    op.launch(
        "update", flat(stop - start), op.clock, op.array(ops.W), op.array(ops.X), *slots, op.array(ops.COEFFICIENTS),
        start, stop, *conditions(op), variant=op.variant,
    )  # fmt: skip


@binds("snapshot")
def bind_snapshot(op: Binding) -> None:
    """A copy of the parameters."""
    n = op[ops.N_IN] * op[ops.N_OUT]
    op.launch("snapshot", flat(n), op.clock, op.array(ops.Y), op.array(ops.X), n, op.bound.verdict)
