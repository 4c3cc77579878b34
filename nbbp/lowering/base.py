"""Lowering: writes the ops of a network, forward and back, into a program.

Each kind of layer has one function that lowers it, registered with `lowers`; it adds the layer's forward ops and gives
its output with a `Step`: how the gradient comes back through it.

Legend: as in nbbp/program.py. x and y are what comes into a layer and what goes out, d_x and d_y the gradients of the
loss with respect to them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nbbp.layers import Activation
from nbbp.losses import Loss
from nbbp.lowering.monitoring import Unmonitored
from nbbp.network import Sequential
from nbbp.nodes import Node, Parameter, walk
from nbbp.program import PADDING, Place, Program, Values

#: Workspace buffers of targets and weights that an augmentation made, and the caller's number of each row in there.
MIXED_TARGETS, MIXED_WEIGHTS, PLACE_IN_BATCH = "mixed targets", "mixed weights", "place in batch"

_LOWERED: dict[type, Callable] = {}


def lowers(kind: type) -> Callable:
    """Register ``lower(lowering, node, x, ends) -> (y, step)`` for a kind of layer.

    `ends` is False where the layer's activation is left to the loss.
    """

    def register(lower: Callable) -> Callable:
        _LOWERED[kind] = lower
        return lower

    return register


def in_phase(phase: str) -> Callable:
    """Decorate ``f(lowering, …)``: the ops that it adds belong to this phase of a step."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def labelled(lowering: Lowering, *arguments: Any, **keywords: Any) -> Any:
            with lowering.program.labelled(phase=phase):
                return function(lowering, *arguments, **keywords)

        return labelled

    return decorate


@dataclass(frozen=True)
class Step:
    """A layer of the forward pass, for the way back.

    Attributes
    ----------
    node : Node
    backward : callable
        ``backward(d_y, wants_d_x) -> d_x``: adds the ops; what it gives matters only if it is wanted.
    on_d_y : {"overwrites", "reads", "passes"}
        What these ops do with d_y: change it, leave it and give another matrix, or give it back as it is.
    """

    node: Node
    backward: Callable[[Values, bool], Values]
    on_d_y: str


def passes(node: Node, x: Values) -> tuple[Values, Step]:
    """A layer that does nothing."""
    return x, Step(node, lambda d_y, wants_d_x: d_y, "passes")


@dataclass(frozen=True)
class WeightGradient:
    """A weight's gradient that is still to be computed, as a product of these two over the rows of the batch."""

    node: Node
    x: Values
    d_y: Values


@dataclass(frozen=True)
class OwnGradient:
    """A gradient of all of a layer's parameters that the layer's own ops have written to a buffer of its own.

    In partial gradients, each of `rows` rows of the batch, `stride` numbers apart.
    """

    node: Node
    buffer: str
    rows: int
    stride: int


@dataclass(frozen=True)
class Partials:
    """How a step's gradient is divided.

    Attributes
    ----------
    rows : int
        Rows of the batch that share a partial gradient.
    are_apart : bool
        Whether the gradients that layers' own ops write lie in buffers of their own, not in "gradient".
    """

    rows: int
    are_apart: bool = False


class Lowering:
    """Builds one program; its methods append ops in the order in which they run.

    Parameters
    ----------
    network : Sequential
        With sizes.
    batch : int
    partials : Partials, optional
        Of training; without them the program only goes forward, as layers do in prediction.
    keeps_state : bool
        Whether the layers' states stay as they are.
    keeps_outputs : bool
        Whether every layer's output stays, for somebody to look at.
    is_mean : bool
        Whether the loss of a batch is the mean over its rows, not their sum.

    Attributes
    ----------
    program : Program
    logits_of : str or None
        Path of the layer whose activation is left to the loss.
    pending : list of WeightGradient and OwnGradient
        What remains to be done for the parameters' gradients.
    part : sequence of Parameter
        Those whose gradient "gradient" holds: all of the network's, or of a part at a time (`by_parts`).
    gradient_stride : int
        Numbers from one partial gradient to the next.
    flush : callable
        Does it. Called when the gradient has come back, or between parts of the network if memory is to be used again.
    flush_layer : callable
        Does as much of it as can be done within a part, for who wants memory back sooner.
    augment : callable
        ``augment(x) -> x``: adds the ops that change the rows of a batch before the network sees them, if any.
    mixes_targets : bool
        Whether they have made targets and weights too.
    is_scaled : bool
        Whether the gradient comes back multiplied by a loss scale.
    monitoring : Unmonitored
        What adds the ops that look on.
    """

    mixes_targets = is_scaled = False

    def __init__(
        self,
        network: Sequential,
        batch: int,
        partials: Partials | None = None,
        keeps_state: bool = False,
        keeps_outputs: bool = False,
        is_mean: bool = True,
    ) -> None:
        self.network, self.partials, self.keeps_outputs = network, partials, keeps_outputs
        self.logits_of: str | None = None
        self.program = Program(batch)
        self.keeps_state, self.is_mean = keeps_state, is_mean
        self.pending: list[WeightGradient | OwnGradient] = []
        self.augment: Callable[[Values], Values] = lambda x: x
        self.flush: Callable[[], None] = self.pending.clear
        self.flush_layer: Callable[[], None] = self.pending.clear
        self.offsets = {parameter.name: parameter.offset for parameter in network.parameters}
        self._parameters: dict[str, list[Parameter]] = {}
        for parameter in network.parameters:
            self._parameters.setdefault(parameter.layer, []).append(parameter)
        self.part: Sequence[Parameter] = network.parameters
        self.by_parts, self.gradient_stride = False, padded(network.n_parameters)
        self.state_offsets = {state.name: state.offset for state in network.states}
        self.monitoring = Unmonitored()

    @property
    def trains(self) -> bool:
        """Whether layers act as in training."""
        return self.partials is not None

    # forward ---------------------------------------------------------------------------------------------------------

    @in_phase("gather")
    def gather(self) -> Values:
        n_in, program = self.network.n_in, self.program
        x = self.free(program.matrix("input", n_in, with_one=True), unless=True)
        program.add(
            "gather",
            x=Place("X"), x_stride=n_in, y=Place(x.buffer), y_stride=x.stride, order=Place("order"), n_out=n_in,
        )  # fmt: skip
        return self.augment(x)

    def layer(self, node: Node, x: Values) -> tuple[Values, Step]:
        """The ops of one layer; its output, or its logits if its activation is left to the loss, and its step."""
        kind = next(kind for kind in type(node.layer).__mro__ if kind in _LOWERED)
        return _LOWERED[kind](self, node, x, node.path != self.logits_of)

    def chain(self, nodes: Sequence[Node], x: Values) -> tuple[Values, list[Step]]:
        """The ops of layers one after the other."""
        steps = []
        for node in nodes:
            with self.program.labelled(layer=node.path):
                x, step = self.layer(node, x)
            steps.append(step)
            self.program.outputs[node.path] = x
            self.monitoring.output(node, x, node.path != self.logits_of)
        return x, steps

    def output(self, node: Node, x: Values) -> Values:
        """Where an elementwise layer writes: in place, where nobody reads what came in."""
        if x.is_free:
            return x
        return self.free(self.program.matrix(f"layer {node.path}", x.width, with_one=True))

    def free(self, y: Values, *, unless: bool = False) -> Values:
        """A layer's output that its way back does not read (unless it does, in training)."""
        return replace(y, is_free=not (unless and self.trains) and not self.keeps_outputs)

    # backward --------------------------------------------------------------------------------------------------------

    def begin_backward(self, d_y: Values) -> None:
        """What is to be done to the gradient of the loss before it goes back: nothing."""

    def back(self, steps: Sequence[Step], d_y: Values, wants_d_x: bool) -> Values:
        """The ops of the way back through a chain, as far as anyone wants a gradient; d_x where it is wanted.

        The gradients of a layer's parameters are done with the layer: what they read is still in the caches, and the
        memory of gradients between the layers is free again.
        """
        given = d_y
        for number, wants in way_back([step.node.trains for step in steps], wants_d_x):
            self.monitoring.gradient(steps[number].node, d_y)
            with self.program.labelled(layer=steps[number].node.path):
                d_x = steps[number].backward(d_y, wants)
            self.flush_layer()
            if d_x.buffer != d_y.buffer != given.buffer:
                self.program.release(len(self.program.taken), keep=(), also=(d_y,))
            d_y = d_x
        return d_y

    def own_gradient(self, node: Node, is_whole: bool = False) -> dict[str, int | Place]:
        """Columns that say where a layer's own ops write its parameters' gradient; none of them for a frozen layer.

        `is_whole` for ops that see all rows of a batch at once.
        """
        size = sum(parameter.size for parameter in self.parameters_of(node))
        if not size or not node.trainable:
            return {}
        rows = self.program.batch if is_whole else self.partials.rows
        if not self.partials.are_apart:
            place = self.gradient_at(self.offset_of(node))
            return {"gradient": place, "slot_rows": rows, "slot_stride": self.gradient_stride}
        name = f"gradient {node.path}"
        stride = padded(size)
        self.program.buffers[name] = -(-self.program.batch // rows) * stride
        self.pending.append(OwnGradient(node, name, rows, stride))
        return {"gradient": Place(name), "slot_rows": rows, "slot_stride": stride}

    # parameters ------------------------------------------------------------------------------------------------------

    def gradient_at(self, offset: int) -> Place:
        """Where in "gradient" the gradient of the parameters from `offset` on begins."""
        return Place("gradient", offset - self.part[0].offset)

    def enter(self, nodes: Sequence[Node]) -> None:
        """Let these outermost layers be the part of the network whose gradient "gradient" holds, if it is divided."""
        if self.by_parts:
            self.part = [parameter for node in nodes for parameter in self.parameters_within(node)]

    def divide(self, parts: Iterable[Sequence[Node]]) -> None:
        """Let "gradient" hold the gradient of one of these parts at a time."""
        self.by_parts = True
        sizes = [sum(own.size for node in nodes for own in self.parameters_within(node)) for nodes in parts]
        self.gradient_stride = padded(max(sizes))

    def parameters_within(self, node: Node) -> list[Parameter]:
        """The parameters of a layer and of the layers within it."""
        return [parameter for inner in walk((node,)) for parameter in self.parameters_of(inner)]

    def parameters_of(self, node: Node) -> list[Parameter]:
        """A layer's own parameters."""
        return self._parameters.get(node.path, [])

    def offset_of(self, node: Node) -> int:
        """Where a layer's own parameters begin in the flat buffer; 0 if it has none."""
        own = self.parameters_of(node)
        return own[0].offset if own else 0

    def own_parameters(self, node: Node) -> dict[str, int | Place]:
        """Columns of a layer's parameters, which lie one behind the other."""
        size = sum(parameter.size for parameter in self.parameters_of(node))
        return {"parameters": Place("parameters", self.offset_of(node)), "n_parameters": size}


def way_back(trains: Sequence[bool], wants_d_x: bool) -> Iterator[tuple[int, bool]]:
    """The layers, or parts of a network, that the gradient comes back through, the last first.

    `trains` says which of them training changes; each comes by its position, with whether its d_x is wanted.
    """
    first = trains.index(True) if True in trains else len(trains)
    for number in reversed(range(0 if wants_d_x else first, len(trains))):
        yield number, wants_d_x or number > first


def operands(x: Values, y: Values) -> dict[str, int | Place]:
    """Columns of what an op reads and what it writes, of equal width."""
    return {
        "x": Place(x.buffer), "x_stride": x.stride, "y": Place(y.buffer), "y_stride": y.stride, "n_out": y.width,
    }  # fmt: skip


def takes_logits(network: Sequential, loss: Loss) -> bool:
    """Whether the last activation is part of the loss and left out of training."""
    return loss.fuses(last_activation(network))


def last_activation(network: Sequential) -> Activation:
    """The activation that the network ends with."""
    return network.last_layer.activation


def last_path(network: Sequential) -> str:
    """Path of the layer that this activation belongs to."""
    return next(node.path for node in reversed(network.nodes) if node.layer is network.last_layer)


def padded(n: int) -> int:
    """`n` rounded up to whole vector registers."""
    return -(-n // PADDING) * PADDING
