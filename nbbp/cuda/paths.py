"""Which path a program takes on the GPU: the first that is made for it, of

    path                   programs                                  launches      precision             in
    one block              small chains of dense layers that train   1 a run       float32, float64,     chain.py
                                                                                   tf32 (as float32)
    registers of a warp    narrow chains that predict                1 a run       bf16, fp16            tensor_chain.py
    tiles of rows          chains up to 256 wide: prediction         1 a run       float32, float64      fused.py
                           training                                  2 a step
                           evaluation: the layers, then the ops      1 a step, …
                           behind them
    op by op               all                                       1 or 2 an op  all                   launch.py

A chain's path is taken before the ops' because it spares launches and trips to memory; where its own estimates say
that this does not pay, or a format is not its, the next one is asked. Within the last path a product has three ways
(nbbp/cuda/dense.py): tensor cores if the precision has a format of theirs and never otherwise, cuBLAS if it is large
and the library there, or nbbp's own kernel.

Each path says by itself which sizes it is for: this module knows what a path may compute in, and the order.
"""

from __future__ import annotations

from typing import Any

from nbbp.cuda.chain_programs import chain_launch
from nbbp.cuda.fused_programs import bind_forward, bind_step, prediction_launch
from nbbp.cuda.launch import Binding, Launch, launch_of
from nbbp.cuda.mixed import roundings_of_products
from nbbp.cuda.tensor_chain import tensor_chain_launch
from nbbp.cuda.tensor_cores import TF32


def whole_run(bound: Any) -> Launch | None:
    """The launch that does all steps of a run, whose number comes in the place `N_STEPS` of its arguments; or None.

    Parameters
    ----------
    bound : nbbp.cuda.engine.BoundProgram
        Which has everything but a workspace.
    """
    if bound.format == 0:
        return chain_launch(bound) or prediction_launch(bound)
    if bound.format == TF32:  # a block that waits for memory gains nothing by rounding
        return chain_launch(bound)
    return tensor_chain_launch(bound)


def bind_steps(bound: Any) -> None:
    """Add the launches of a step to a bound program's, the last of which moves the clock on."""
    if bound.format == 0 and bind_step(bound):
        return
    bound.make_workspace()
    rest = bind_forward(bound) if bound.format == 0 else bound.program.ops
    roundings = roundings_of_products(rest)
    for row, op in enumerate(rest):
        if row not in roundings.values():
            Binding(bound, op, rounds=row in roundings).bind()
    bound.launches.append(launch_of(bound, "next_step", ((1,), (1,)), [bound.clock]))
