"""The sample engine's entry points in jitted code: one intrinsic per pass, which writes it for the plan it is given.

Legend: ``structure`` and ``numbers`` are a plan (nbbp/sample/plan.py), ``like`` is a zero of the model's dtype;
parameters (n_parameters,) and gradient (n_parameters,) are flat; x (n_in,), target (n_out,) or a label. What each may
be is in nbbp/sample/arguments.py. Nothing is written but what a docstring names, and nothing before all is checked.
"""

from collections.abc import Sequence

from llvmlite import ir
from numba import types
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic

from nbbp.cpu import simd
from nbbp.sample import plan
from nbbp.sample.arguments import (
    LABEL,
    check_shape,
    data_of,
    flat_in,
    label_in,
    raise_if,
    require_flat,
    require_target,
    require_vector,
    vector_in,
)
from nbbp.sample.emit import Emitter
from nbbp.sample.network import ROW_WISE, Network, loss_and_output_gradient
from nbbp.sample.update import gradient_sink, update_sink


def literals(entries: types.BaseTuple) -> tuple[int | str, ...] | None:
    """The values of a tuple of literals; None where they are none, as when Numba tries once more after an error."""
    if not all(isinstance(entry, types.Literal) for entry in entries.types):
        return None
    return tuple(entry.literal_value for entry in entries.types)


def begin(context, builder, signature, arguments: Sequence[ir.Value]) -> tuple[Emitter, Network, ir.Value]:
    """Emitter, network and input of an intrinsic whose arguments begin with structure, numbers, like, parameters, x."""
    structure, _, like, parameters, x = signature.args[:5]
    emit, entries = Emitter(context, builder, like), literals(structure)
    flat = flat_in(emit, "parameters", parameters, arguments[3], plan.n_parameters(entries), "of them")
    network = Network(emit, entries, arguments[1], flat)
    return emit, network, vector_in(emit, "x", x, arguments[4], network.n_in, "features")


@intrinsic(prefer_literal=True)
def forward(typing_context, structure, numbers, like, parameters, x, out):
    """out (n_out,) = what the last layer gives."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    require_flat("out", out, like)

    def codegen(context, builder, signature, arguments):
        emit, network, x = begin(context, builder, signature, arguments)
        result = flat_in(emit, "out", out, arguments[5], network.n_out, "outputs")
        emit.copy(result, network.forward(x, keeps=False), network.n_out)
        return context.get_dummy_value()

    return types.void(structure, numbers, like, parameters, x, out), codegen


@intrinsic(prefer_literal=True)
def input_gradient(typing_context, structure, numbers, like, parameters, x, output_gradient, out):
    """out (n_in,) = output_gradient · d(what the last layer gives)/dx."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    require_vector("output_gradient", output_gradient)
    require_flat("out", out, like)

    def codegen(context, builder, signature, arguments):
        emit, network, x = begin(context, builder, signature, arguments)
        d_y = vector_in(emit, "output_gradient", output_gradient, arguments[5], network.n_out, "outputs")
        result = flat_in(emit, "out", out, arguments[6], network.n_in, "features")
        network.forward(x, keeps=True)
        emit.copy(result, network.backward(d_y, None, True), network.n_in)
        return context.get_dummy_value()

    return types.void(structure, numbers, like, parameters, x, output_gradient, out), codegen


@intrinsic(prefer_literal=True)
def backpropagate(typing_context, structure, numbers, like, parameters, x, output_gradient, gradient, out):
    """gradient += output_gradient · d(what the last layer gives)/d parameters; out (n_in,) = the same by x."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    require_vector("output_gradient", output_gradient)
    require_flat("gradient", gradient, like)
    require_flat("out", out, like)

    def codegen(context, builder, signature, arguments):
        emit, network, x = begin(context, builder, signature, arguments)
        d_y = vector_in(emit, "output_gradient", output_gradient, arguments[5], network.n_out, "outputs")
        result = flat_in(emit, "gradient", gradient, arguments[6], network.n_parameters, "parameters")
        d_x = flat_in(emit, "out", out, arguments[7], network.n_in, "features")
        network.forward(x, keeps=True)
        emit.copy(d_x, network.backward(d_y, gradient_sink(emit, result, adds=True), True), network.n_in)
        return context.get_dummy_value()

    return types.void(structure, numbers, like, parameters, x, output_gradient, gradient, out), codegen


@intrinsic(prefer_literal=True)
def jacobian(typing_context, structure, numbers, like, parameters, x, out):
    """out (n_out, n_in) = d(what the last layer gives)/dx: one backward pass per output."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    require_flat("out", out, like, ndim=2)

    def codegen(context, builder, signature, arguments):
        emit, network, x = begin(context, builder, signature, arguments)
        n_in, n_out = network.n_in, network.n_out
        check_shape(emit, "out", out, arguments[5], (n_out, n_in), "derivatives")
        rows, d_y = data_of(emit, out, arguments[5]), emit.buffer(n_out)
        network.forward(x, keeps=True)
        with emit.loop(n_out) as j:
            emit.by_register(n_out, lambda i, active: emit.store(emit.zeros(), d_y, i))
            builder.store(emit.number(1.0), emit.at(d_y, j))
            emit.copy(emit.at(rows, emit.times(j, n_in)), network.backward(d_y, None, True), n_in)
        return context.get_dummy_value()

    return types.void(structure, numbers, like, parameters, x, out), codegen


def target_in(emit: Emitter, network: Network, signature, arguments) -> tuple[ir.Value, bool]:
    """The target of an intrinsic whose arguments go on with target, code: a buffer or a label; is it a label."""
    target, code = signature.args[5:7]
    if isinstance(target, LABEL) and code.literal_value in ROW_WISE:
        return label_in(emit, target, arguments[5], network.n_out), True
    return vector_in(emit, "y", target, arguments[5], network.n_out, "target values"), False


@intrinsic(prefer_literal=True)
def loss_and_gradient(typing_context, structure, numbers, like, parameters, x, target, code, settings, gradient):
    """gradient = d loss / d parameters; gives the loss. `settings` as in `loss_and_output_gradient`."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    require_flat("gradient", gradient, like)
    entries = literals(structure)
    if entries is None:
        return None
    require_target(target, plan.ends(entries)[1], code.literal_value in ROW_WISE)

    def codegen(context, builder, signature, arguments):
        emit, network, x = begin(context, builder, signature, arguments)
        wanted = target_in(emit, network, signature, arguments)
        result = flat_in(emit, "gradient", gradient, arguments[8], network.n_parameters, "parameters")
        y = network.forward(x, keeps=True)
        loss, d = loss_and_output_gradient(emit, code.literal_value, arguments[7], y, network.n_out, *wanted)
        network.backward(d, gradient_sink(emit, result), False)
        return loss

    return types.float64(structure, numbers, like, parameters, x, target, code, settings, gradient), codegen


@intrinsic(prefer_literal=True)
def train(
    typing_context, structure, numbers, like, parameters, x, target, code, settings,
    rule, groups, group_settings, rule_settings, n_slots, step, slots,
):  # fmt: skip
    """parameters, slots (n_slots,) = one update; gives the loss before it. One that is not finite updates nothing."""
    require_flat("parameters", parameters, like)
    require_vector("x", x)
    require_flat("slots", slots, like)
    entries = literals(structure)
    if entries is None:
        return None
    require_target(target, plan.ends(entries)[1], code.literal_value in ROW_WISE)
    if not isinstance(step, types.Integer):
        raise NumbaTypeError(f"step must be an integer, the number of the update from 1; got {step}")

    def codegen(context, builder, signature, arguments):
        emit, network, x = begin(context, builder, signature, arguments)
        wanted = target_in(emit, network, signature, arguments)
        kept = flat_in(emit, "slots", slots, arguments[14], n_slots.literal_value, "of them with its optimizer")
        step = arguments[13]
        raise_if(emit, builder.icmp_signed("<", step, simd.INT64(1)), "steps count from 1")
        # moments that fade away become denormal, which are slow
        state = simd.flush_on(builder) if n_slots.literal_value else None
        y = network.forward(x, keeps=True)
        loss, d = loss_and_output_gradient(emit, code.literal_value, arguments[7], y, network.n_out, *wanted)
        size = simd.call_llvm(builder, "llvm.fabs.f64", ir.DoubleType(), [loss])
        with builder.if_then(builder.fcmp_ordered("<", size, ir.Constant(ir.DoubleType(), float("inf")))):
            rule_line = rule_settings, arguments[11]
            sink = update_sink(network, rule.literal_value, literals(groups), arguments[10], rule_line, step, kept)
            network.backward(d, sink, False)
        if state is not None:
            simd.flush_off(builder, state)
        return loss

    kinds = structure, numbers, like, parameters, x, target, code, settings
    return types.float64(*kinds, rule, groups, group_settings, rule_settings, n_slots, types.int64, slots), codegen
