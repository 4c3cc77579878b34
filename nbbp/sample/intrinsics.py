"""The sample engine's entry points in jitted code: one intrinsic per pass, which writes it for the plan it is given.

Legend: ``structure`` and ``numbers`` are a plan (nbbp/sample/plan.py), ``like`` is a zero of the model's dtype;
parameters (n_parameters,) and gradient (n_parameters,) are flat; x (n_in,), out and target (n_out,). Arrays of the
parameters' kind are C-contiguous and of the dtype; x and target may be of any real dtype and strided, and target a
number. Lengths are the caller's to check. Nothing is written but what a docstring names.
"""

from collections.abc import Sequence

from llvmlite import ir
from numba import types
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic

from nbbp.cpu import simd
from nbbp.sample.emit import Emitter
from nbbp.sample.network import ROW_WISE, Network, loss_and_output_gradient
from nbbp.sample.update import gradient_sink, update_sink


def literals(entries: types.BaseTuple) -> tuple[int | str, ...]:
    """The values of a tuple of literals."""
    return tuple(entry.literal_value for entry in entries.types)


def require_flat(name: str, array: types.Type, like: types.Float, mutable: bool = True) -> None:
    """Refuse what is no flat array of the dtype, while Numba compiles the call."""
    is_flat = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype == like
    if not is_flat:
        raise NumbaTypeError(f"{name} must be a C-contiguous one-dimensional array of {like}; got {array}")
    if mutable and not array.mutable:
        raise NumbaTypeError(f"{name} is written to, so it must not be read-only; got {array}")


def require_vector(name: str, array: types.Type) -> None:
    """Refuse what is no one-dimensional array of real numbers, while Numba compiles the call."""
    is_real = isinstance(array, types.Array) and isinstance(array.dtype, (types.Float, types.Integer, types.Boolean))
    if not is_real or array.ndim != 1:
        raise NumbaTypeError(f"{name} must be a one-dimensional array of numbers; got {array}")


def data_of(context, builder, array: types.Array, value: ir.Value) -> ir.Value:
    """The address of an array's first element."""
    return context.make_array(array)(context, builder, value).data


def copy_in(buffer, x, n):
    """buffer[0:n] = x[0:n], converted."""
    for i in range(n):
        buffer[i] = x[i]


def vector_in(emit: Emitter, kind: types.Type, value: ir.Value, n: int) -> ir.Value:
    """An array or a number of the caller's, as a buffer of n numbers with zeros behind them."""
    buffer = emit.buffer(n)
    if isinstance(kind, types.Array):
        if kind.layout == "C" and kind.dtype == emit.scalar:
            source = data_of(emit.context, emit.builder, kind, value)
            emit.by_register(n, lambda i, active: emit.store(emit.load(source, i, active), buffer, i))
            return buffer
        emit.call(copy_in, types.void, [emit.pointer, kind, types.int64], [buffer, value, emit.index(n)])
    else:
        emit.builder.store(emit.context.cast(emit.builder, value, kind, emit.scalar), buffer)
    emit.clear_padding(buffer, n)
    return buffer


def begin(context, builder, signature, arguments: Sequence[ir.Value]) -> tuple[Emitter, Network]:
    """The emitter and network of an intrinsic whose arguments begin with structure, numbers, like, parameters."""
    structure, _, like, parameters = signature.args[:4]
    emit = Emitter(context, builder, like)
    flat = data_of(context, builder, parameters, arguments[3])
    return emit, Network(emit, literals(structure), arguments[1], flat)


@intrinsic(prefer_literal=True)
def forward(typing_context, structure, numbers, like, parameters, x, out):
    """out = what the last layer gives."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    require_vector("out", out)
    require_flat("out", out, like)

    def codegen(context, builder, signature, arguments):
        emit, network = begin(context, builder, signature, arguments)
        y = network.forward(vector_in(emit, x, arguments[4], network.n_in), keeps=False)
        emit.copy(data_of(context, builder, out, arguments[5]), y, network.n_out)
        return context.get_dummy_value()

    return types.void(structure, numbers, like, parameters, x, out), codegen


@intrinsic(prefer_literal=True)
def loss_and_gradient(typing_context, structure, numbers, like, parameters, x, target, code, settings, gradient):
    """gradient = d loss / d parameters; gives the loss. `settings` as in `loss_and_output_gradient`."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    require_flat("gradient", gradient, like)

    def codegen(context, builder, signature, arguments):
        emit, network = begin(context, builder, signature, arguments)
        loss, d = _loss(emit, network, signature, arguments)
        network.backward(d, gradient_sink(emit, data_of(context, builder, gradient, arguments[8])), False)
        return loss

    return types.float64(structure, numbers, like, parameters, x, target, code, settings, gradient), codegen


def _loss(emit: Emitter, network: Network, signature, arguments) -> tuple[ir.Value, ir.Value]:
    """Forward pass and loss of an intrinsic whose arguments go on with x, target, code, settings."""
    x, target, code, _ = signature.args[4:8]
    y = network.forward(vector_in(emit, x, arguments[4], network.n_in), keeps=True)
    is_label = isinstance(target, types.Integer) and code.literal_value in ROW_WISE
    if is_label:
        wanted = emit.context.cast(emit.builder, arguments[5], target, types.int64)
    else:
        wanted = vector_in(emit, target, arguments[5], network.n_out)
    return loss_and_output_gradient(emit, code.literal_value, arguments[7], y, network.n_out, wanted, is_label)


@intrinsic(prefer_literal=True)
def train(
    typing_context, structure, numbers, like, parameters, x, target, code, settings,
    rule, groups, group_settings, rule_settings, step, slots,
):  # fmt: skip
    """parameters, slots = one update; gives the loss before it. A loss that is not finite updates nothing."""
    require_flat("parameters", parameters, like)
    require_vector("x", x)
    require_flat("slots", slots, like)

    def codegen(context, builder, signature, arguments):
        emit, network = begin(context, builder, signature, arguments)
        loss, d = _loss(emit, network, signature, arguments)
        infinity = ir.Constant(ir.DoubleType(), float("inf"))
        size = simd.call_llvm(builder, "llvm.fabs.f64", ir.DoubleType(), [loss])
        with builder.if_then(builder.fcmp_ordered("<", size, infinity)):
            sink = update_sink(
                network, rule.literal_value, literals(groups), arguments[10], (rule_settings, arguments[11]),
                arguments[12], data_of(context, builder, slots, arguments[13]),
            )  # fmt: skip
            network.backward(d, sink, False)
        return loss

    kinds = structure, numbers, like, parameters, x, target, code, settings
    return types.float64(*kinds, rule, groups, group_settings, rule_settings, types.int64, slots), codegen


@intrinsic(prefer_literal=True)
def input_gradient(typing_context, structure, numbers, like, parameters, x, output_gradient, out):
    """out (n_in,) = output_gradient · d(what the last layer gives)/dx."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    require_vector("output_gradient", output_gradient)
    require_flat("out", out, like)

    def codegen(context, builder, signature, arguments):
        emit, network = begin(context, builder, signature, arguments)
        network.forward(vector_in(emit, x, arguments[4], network.n_in), keeps=True)
        d_y = vector_in(emit, output_gradient, arguments[5], network.n_out)
        d_x = network.backward(d_y, None, True)
        emit.copy(data_of(context, builder, out, arguments[6]), d_x, network.n_in)
        return context.get_dummy_value()

    return types.void(structure, numbers, like, parameters, x, output_gradient, out), codegen


@intrinsic(prefer_literal=True)
def parameter_gradient(typing_context, structure, numbers, like, parameters, x, output_gradient, gradient):
    """gradient (n_parameters,) = output_gradient · d(what the last layer gives)/d parameters."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    require_vector("output_gradient", output_gradient)
    require_flat("gradient", gradient, like)

    def codegen(context, builder, signature, arguments):
        emit, network = begin(context, builder, signature, arguments)
        network.forward(vector_in(emit, x, arguments[4], network.n_in), keeps=True)
        d_y = vector_in(emit, output_gradient, arguments[5], network.n_out)
        network.backward(d_y, gradient_sink(emit, data_of(context, builder, gradient, arguments[6])), False)
        return context.get_dummy_value()

    return types.void(structure, numbers, like, parameters, x, output_gradient, gradient), codegen


@intrinsic(prefer_literal=True)
def jacobian(typing_context, structure, numbers, like, parameters, x, out):
    """out (n_out, n_in) = d(what the last layer gives)/dx: one backward pass per output."""
    require_flat("parameters", parameters, like, mutable=False)
    require_vector("x", x)
    if not (isinstance(out, types.Array) and out.ndim == 2 and out.layout == "C" and out.dtype == like):
        raise NumbaTypeError(f"out must be a C-contiguous two-dimensional array of {like}; got {out}")

    def codegen(context, builder, signature, arguments):
        emit, network = begin(context, builder, signature, arguments)
        n_in, n_out = network.n_in, network.n_out
        network.forward(vector_in(emit, x, arguments[4], n_in), keeps=True)
        rows = data_of(context, builder, out, arguments[5])
        d_y = emit.buffer(n_out)
        with emit.loop(n_out) as j:
            emit.by_register(n_out, lambda i, active: emit.store(emit.zeros(), d_y, i))
            builder.store(emit.number(1.0), emit.at(d_y, j))
            d_x = network.backward(d_y, None, True)
            emit.copy(emit.at(rows, emit.times(j, n_in)), d_x, n_in)
        return context.get_dummy_value()

    return types.void(structure, numbers, like, parameters, x, out), codegen
