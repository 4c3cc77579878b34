"""Lowering of activation checkpointing: parts of a network that go forward twice, and share their memory.

The network is cut into parts of `checkpoint_every` layers. Going forward, only what comes into a part is kept. On the
way back a part goes forward again, into memory that the part behind it has released, and then back; the last part goes
forward once. Nothing is computed differently, so that every number is the same to the bit: random numbers depend on the
step alone, and states are left alone the second time.

T. Chen, B. Xu, C. Zhang, C. Guestrin, "Training deep nets with sublinear memory cost", 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nbbp.lowering.base import Lowering, Step, in_phase, last_path, way_back
from nbbp.nodes import Node
from nbbp.program import Values


@dataclass(frozen=True)
class Part:
    """Layers between two checkpoints.

    Attributes
    ----------
    nodes : sequence of Node
    x : Values
        What came in.
    first : int
        The first of the program's matrices that its ops asked for.
    steps : list of Step or None
        Of the last part, which goes forward once.
    """

    nodes: Sequence[Node]
    x: Values
    first: int
    steps: list[Step] | None


def forward(lowering: Lowering, x: Values, ends: bool) -> tuple[Values, list[Part]]:
    """The ops of every layer; what the last one gives (or its logits, if it does not end with its activation)."""
    nodes = lowering.network.nodes
    lowering.logits_of = None if ends else last_path(lowering.network)
    every = lowering.network.checkpoint_every or len(nodes)
    parts = []
    for start in range(0, len(nodes), every):
        chosen = nodes[start : start + every]
        x = replace(x, is_free=x.is_free and not (lowering.trains and start))
        is_last = start + every >= len(nodes)
        first = len(lowering.program.taken)
        y, steps = lowering.chain(chosen, x)
        parts.append(Part(chosen, x, first, steps if is_last else None))
        if lowering.trains and not is_last:
            lowering.program.release(first, keep=(y,))
        x = y
    return x, parts


@in_phase("backward")
def backward(lowering: Lowering, parts: Sequence[Part], d_y: Values) -> None:
    """The ops of the way back, and of the parameters' gradients."""
    program = lowering.program
    for number, wants_d_x in way_back([any(node.trains for node in part.nodes) for part in parts], False):
        part = parts[number]
        lowering.enter(part.nodes)
        first, steps = part.first, part.steps
        if steps is None:
            first = len(program.taken)
            keeps_state, lowering.keeps_state = lowering.keeps_state, True
            with program.labelled(phase="forward again"):
                _, steps = lowering.chain(part.nodes, part.x)
            lowering.keeps_state = keeps_state
        d_x = lowering.back(steps, d_y, wants_d_x)
        lowering.flush()
        program.release(first, keep=(d_x,), also=(d_y, part.x) if number else ())
        d_y = d_x
    lowering.flush()  # of a network that is frozen as a whole, what goes forward
