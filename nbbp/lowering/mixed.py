"""Lowering in mixed precision: 16 bits where numbers are kept, float32 where kernels compute with them.

What a layer gives, and what it keeps for the way back, is rounded to 16 bits when its ops are done; so is the gradient
that a layer hands back. Kernels find all of it in float32 matrices, each rounded in place ("narrow"). In training such
a matrix may be given up when the layer behind it is done, and is as soon as another one of its form wants the memory.
If the way back reads it then, the "narrow" also writes it in 16 bits, from which a "widen" brings it back. Weights and
biases are rounded while a product packs them, so that they need no copy at all. Statistics of norms, losses and the
gradients of parameters stay float32.

P. Micikevicius et al., "Mixed precision training", ICLR 2018.

Legend: as in nbbp/program.py. A matrix's name says which numbers it holds; where they lie changes, and is looked up
when an op is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nbbp import ops, tiling
from nbbp.layers import Custom, Dense, Embedding, Standardize
from nbbp.lowering.base import Lowering, Step, in_phase, padded, way_back
from nbbp.lowering.parameters import LOSS_SCALE
from nbbp.nodes import Node, walk
from nbbp.program import Place, Program, Values

#: The variants of kernels, by the name of the precision.
CODES = {"bf16": ops.BF16, "fp16": ops.FP16}


@dataclass
class MixedProgram(Program):
    """A program whose matrices come and go.

    Attributes
    ----------
    code : int
        The 16-bit format.
    """

    code: int = ops.BF16
    #: By the name of a matrix: itself, whether it has ones, the float32 buffer that holds it now.
    _matrices: dict[str, tuple[Values, bool]] = field(default_factory=dict)
    _resident: dict[str, str] = field(default_factory=dict)
    #: Those of them that may be given up.
    _idle: set[str] = field(default_factory=set)
    #: Matrices that hold numbers not rounded yet; of the others, the op that rounded those which may be kept.
    _changed: set[str] = field(default_factory=set)
    _narrowed: dict[str, int] = field(default_factory=dict)
    #: The 16-bit buffer of those that are kept; such buffers that are free again: numbers, since which op, name.
    _kept: dict[str, str] = field(default_factory=dict)
    _free: list[tuple[int, int, str]] = field(default_factory=list)

    def matrix(self, name: str, width: int, with_one: bool = False) -> Values:
        self._make_room(width, with_one)
        values = super().matrix(name, width, with_one)
        named = replace(values, buffer=f"{name}, matrix {len(self.taken)}")
        self.taken[-1] = named
        self._matrices[named.buffer] = named, with_one
        self._resident[named.buffer] = values.buffer
        return named

    def add(self, kernel: str, variant: Any = 0, **columns: int | Place) -> int:
        if kernel == "product" and columns["w"].buffer == "parameters":
            variant = self.code
            self.scratch = max(self.scratch, tiling.packed_panel(columns["n_in"]) + tiling.PANEL)
        written = columns.get("y")
        if isinstance(written, Place) and written.buffer in self._matrices:
            self._changed.add(written.buffer)
        places = {name: self._found(value) if isinstance(value, Place) else value for name, value in columns.items()}
        return super().add(kernel, variant, **places)

    def _found(self, place: Place) -> Place:
        """Where a place lies now; brings back the matrix that it is in."""
        if place.buffer not in self._matrices:
            return place
        self.fetch(self._matrices[place.buffer][0])
        return replace(place, buffer=self._resident[place.buffer])

    def fetch(self, values: Values) -> None:
        """Bring a matrix back, if it has been given up."""
        name = values.buffer
        self._idle.discard(name)
        if name in self._resident:
            return
        self._make_room(values.width, self._matrices[name][1])
        memory = super().matrix(name, values.width, self._matrices[name][1])
        self.taken.pop()
        self._resident[name] = memory.buffer
        if name not in self._kept:
            self._keep(name)
        columns = {"kept": Place(self._kept[name]), "y": Place(memory.buffer), "y_stride": values.stride}
        super().add("widen", self.code, n_out=values.width, **columns)

    def _make_room(self, width: int, with_one: bool) -> None:
        """Give up an idle matrix of this form, unless memory of this form is free: the oldest, which is read last."""
        if not self._released.get((width, with_one)):
            fits = [n for n in self._idle if (self._matrices[n][0].width, self._matrices[n][1]) == (width, with_one)]
            if fits:
                self._give_up(min(fits, key=list(self._matrices).index))

    def _keep(self, name: str) -> None:
        """Let the op that rounded this matrix write it in 16 bits too."""
        length = padded(self.batch * self._matrices[name][0].stride // 2)  # two of them in a number of the workspace
        row = self._narrowed[name]
        place = next((p for p, (n, since, _) in enumerate(self._free) if n == length and since <= row), None)
        if place is None:
            self._kept[name] = f"{name} in 16 bits"
            self.buffers[self._kept[name]] = length
        else:
            self._kept[name] = self._free.pop(place)[2]
        self.ops[row].columns[ops.KEPT] = Place(self._kept[name])

    def round(self, *matrices: Values, keeps: bool, **more: int | Place) -> None:
        """Ops that round what has changed of these matrices; with `keeps` they can be given up from then on."""
        for name in dict.fromkeys(values.buffer for values in matrices):
            if name not in self._changed:
                continue
            self._changed.remove(name)
            values = self._matrices[name][0]
            columns = {"x": Place(self._resident[name]), "x_stride": values.stride, "n_out": values.width, **more}
            if name in self._kept:
                columns["kept"] = Place(self._kept[name])
            row = super().add("narrow", self.code, **columns)
            if keeps:
                self._narrowed[name] = row

    def leave(self, values: Values) -> None:
        """Let a matrix not be rounded while it holds what it holds now, whatever passes it on."""
        self._changed.discard(values.buffer)

    def rest(self, matrices: Iterable[Values] | None = None, *, keep: Values) -> None:
        """Let these matrices, or all, be given up if they can be brought back; but not `keep`."""
        names = list(self._resident) if matrices is None else dict.fromkeys(values.buffer for values in matrices)
        for name in names:
            is_safe = name in self._narrowed and name not in self._changed
            if name in self._resident and is_safe and name != keep.buffer:
                self._idle.add(name)

    def _give_up(self, name: str) -> None:
        self._idle.discard(name)
        values, with_one = self._matrices[name]
        self._released.setdefault((values.width, with_one), []).append(self._resident.pop(name))

    def release(self, first: int, keep: Sequence[Values], also: Sequence[Values] = ()) -> None:
        kept = {values.buffer for values in keep}
        for name in dict.fromkeys(values.buffer for values in (*self.taken[first:], *also)):
            if name in kept:
                continue
            if name in self._resident:
                self._give_up(name)
            self._narrowed.pop(name, None)
            if name in self._kept:
                in_16_bits = self._kept.pop(name)
                self._free.append((self.buffers[in_16_bits], len(self.ops), in_16_bits))

    def place_of(self, values: Values) -> Values:
        """The matrix by the buffer that holds it now."""
        return replace(values, buffer=self._resident[values.buffer])


class MixedLowering(Lowering):
    """Builds a program in mixed precision; parameters as `Lowering`, and the precision before them."""

    program: MixedProgram

    def __init__(self, precision: str, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.program = MixedProgram(self.program.batch, code=CODES[precision])
        self.is_scaled = precision == "fp16"
        self._came: dict[str, Values] = {}
        self._taken: dict[str, list[Values]] = {}
        self._rounded: dict[str, Place] = {}

    @in_phase("gather")
    def gather(self) -> Values:
        program, nodes = self.program, list(walk(self.network.nodes))
        for node in nodes:
            size = sum(parameter.size for parameter in self.parameters_of(node))
            if isinstance(node.layer, Custom) and size:
                rounded = self._rounded[node.path] = Place(f"rounded parameters {node.path}")
                program.buffers[rounded.buffer] = padded(size)
                with program.labelled(layer=node.path):
                    program.add("round_parameters", program.code, x=self._masters(node), y=rounded, n_out=size)
        x = super().gather()
        # category numbers stay as they are, and what is standardized may be beyond 16 bits
        if any(isinstance(node.layer, (Embedding, Standardize)) for node in nodes):
            program.leave(x)
        else:
            program.round(x, keeps=True)
        return x

    def _masters(self, node: Node) -> Place:
        return Place("parameters", self.offset_of(node))

    def own_parameters(self, node: Node) -> dict[str, int | Place]:
        """Of custom layers the rounded ones; norms compute with what they are."""
        columns = super().own_parameters(node)
        if node.path in self._rounded:
            columns["parameters"] = self._rounded[node.path]
        return columns

    def chain(self, nodes: Sequence[Node], x: Values) -> tuple[Values, list[Step]]:
        program, steps = self.program, []
        for node in nodes:
            first = len(program.taken)
            came = self._came[node.path] = x
            with program.labelled(layer=node.path):
                x, step = self.layer(node, came)
                taken = self._taken[node.path] = program.taken[first:]
                program.round(*taken, x, keeps=True)
            self.monitoring.output(node, x, node.path != self.logits_of)
            if self.trains:
                program.rest([came, *taken], keep=x)
            else:
                program.outputs[node.path] = program.place_of(x)
            steps.append(step)
        return x, steps

    @in_phase("backward")
    def begin_backward(self, d_y: Values) -> None:
        """Scale and round the gradient of the loss."""
        self.program.round(d_y, keeps=False, **({"loss_scale": Place(LOSS_SCALE)} if self.is_scaled else {}))

    def back(self, steps: Sequence[Step], d_y: Values, wants_d_x: bool) -> Values:
        """As `Lowering.back`, but the gradients of a layer's parameters are done with the layer, to free its memory."""
        program, given = self.program, d_y
        for number, wants in way_back([step.node.trains for step in steps], wants_d_x):
            node = steps[number].node
            first, came = len(program.taken), self._came[node.path]
            self.monitoring.gradient(node, d_y)
            with program.labelled(layer=node.path):
                if isinstance(node.layer, Dense) and node.trainable:
                    program.fetch(came)  # before the layer's other ops, so that one phase brings back all it needs
                d_x = steps[number].backward(d_y, wants)
                if wants:
                    program.round(d_x, keeps=False)
            self.flush_layer()
            # what the layer made on its way forward is read by itself and by the layer behind it, which is done
            also = self._taken[node.path] if d_y.buffer == given.buffer else [*self._taken[node.path], d_y]
            program.release(first, keep=(came, d_x), also=also)
            program.rest(keep=came)
            d_y = d_x
        return d_y


def lowering_in(precision: str, *arguments: Any, **keywords: Any) -> Lowering:
    """What builds programs of that precision; arguments as `Lowering`."""
    if precision not in CODES:  # float32, and tf32, of which only products know
        return Lowering(*arguments, **keywords)
    return MixedLowering(precision, *arguments, **keywords)
