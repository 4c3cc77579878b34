"""The sample engine: a network as functions for the caller's own jitted code, one sample at a time.

The opposite of the batch engine on purpose: sizes, activations, loss and optimizer are constants of the machine code,
so that LLVM writes the network out, keeps a small one in registers, and can inline it into the caller's loop. The
formulas are those of the batch engine.
"""

from nbbp.sample.functions import SampleFunctions

__all__ = ["SampleFunctions"]
