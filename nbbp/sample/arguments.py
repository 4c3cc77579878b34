"""What a caller may hand to the sample engine: types checked while Numba compiles the call, lengths when it runs.

Legend: a flat array is one-dimensional, C-contiguous and of the model's dtype, and is read and written in place; a
vector is one-dimensional, of float32, float64, integers or bools, may be strided, and is copied to the stack.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError

from nbbp.cpu import simd
from nbbp.sample.emit import Emitter

#: Types of a class label.
LABEL = (types.Integer, types.Boolean)


def require_flat(name: str, array: types.Type, like: types.Float, mutable: bool = True, ndim: int = 1) -> None:
    """Refuse the type of what is no flat array (or, with `ndim` 2, no matrix) of the dtype."""
    shape = "one-dimensional" if ndim == 1 else "two-dimensional"
    is_flat = isinstance(array, types.Array) and array.ndim == ndim and array.layout == "C" and array.dtype == like
    if not is_flat:
        raise NumbaTypeError(f"{name} must be a C-contiguous {shape} array of {like}; got {array}")
    if mutable and not array.mutable:
        raise NumbaTypeError(f"{name} is written to, so it must not be read-only; got {array}")


def require_vector(name: str, array: types.Type) -> None:
    """Refuse the type of what is no one-dimensional array of real numbers."""
    if not _is_vector(array):
        raise NumbaTypeError(
            f"{name} must be a one-dimensional array of float32, float64, integers or bools; got {array}"
        )


def _is_vector(array: types.Type) -> bool:
    return isinstance(array, types.Array) and array.ndim == 1 and _is_real(array.dtype)


def _is_real(number: types.Type) -> bool:
    return number in (types.float32, types.float64) or isinstance(number, LABEL)


def require_target(target: types.Type, n_out: int, takes_labels: bool) -> None:
    """Refuse the type of what is no target: a label, a vector, or for one output a number."""
    if _is_vector(target):
        return
    if isinstance(target, LABEL) if takes_labels else _is_real(target) and n_out == 1:
        return
    takes = (
        "an integer label, or a one-dimensional array of probabilities" if takes_labels else "a one-dimensional array"
    )
    raise NumbaTypeError(f"y must be {takes} of {n_out} numbers; got {target}")


def raise_if(emit: Emitter, condition: ir.Value, message: str) -> None:
    """Leave the caller with a ValueError where the condition holds."""
    with cgutils.if_unlikely(emit.builder, condition):
        emit.context.call_conv.return_user_exc(emit.builder, ValueError, (message,))


def check_shape(
    emit: Emitter, name: str, kind: types.Array, value: ir.Value, shape: tuple[int, ...], what: str
) -> None:
    """Raise unless an array has this shape; `what` it counts."""
    array = emit.context.make_array(kind)(emit.context, emit.builder, value)
    lengths = cgutils.unpack_tuple(emit.builder, array.shape, count=len(shape))
    wanted = f"{shape[0]} {what}" if len(shape) == 1 else f"an array {shape} of {what}"
    for length, n in zip(lengths, shape, strict=True):
        differs = emit.builder.icmp_signed("!=", length, simd.INT64(n))
        raise_if(emit, differs, f"{name} has the wrong length; this network takes {wanted}")


def flat_in(emit: Emitter, name: str, kind: types.Array, value: ir.Value, n: int, what: str) -> ir.Value:
    """The address of a flat array of n numbers, after a check that it has so many."""
    check_shape(emit, name, kind, value, (n,), what)
    return data_of(emit, kind, value)


def data_of(emit: Emitter, array: types.Array, value: ir.Value) -> ir.Value:
    """The address of an array's first element."""
    return emit.context.make_array(array)(emit.context, emit.builder, value).data


def vector_in(emit: Emitter, name: str, kind: types.Type, value: ir.Value, n: int, what: str) -> ir.Value:
    """A vector or a number of the caller's, as a buffer of n numbers with zeros behind them."""
    buffer = emit.buffer(n)
    if not isinstance(kind, types.Array):
        emit.builder.store(emit.context.cast(emit.builder, value, kind, emit.scalar), buffer)
        emit.clear_padding(buffer, n)
        return buffer
    check_shape(emit, name, kind, value, (n,), what)
    if kind.layout == "C" and kind.dtype == emit.scalar:
        source = data_of(emit, kind, value)
        emit.by_register(n, lambda i, active: emit.store(emit.load(source, i, active), buffer, i))
    else:
        emit.call(_copy_in, types.void, [emit.pointer, kind, types.int64], [buffer, value, emit.index(n)])
        emit.clear_padding(buffer, n)
    return buffer


def _copy_in(buffer, x, n):
    """buffer[0:n] = x[0:n], converted."""
    for i in range(n):
        buffer[i] = x[i]


def label_in(emit: Emitter, kind: types.Integer, value: ir.Value, n_out: int) -> ir.Value:
    """A label as int64, after a check that there is such a class."""
    label = emit.context.cast(emit.builder, value, kind, types.int64)
    outside = emit.builder.icmp_unsigned(">=", label, simd.INT64(n_out))
    raise_if(emit, outside, f"y is no label of this network; it takes 0 to {n_out - 1}")
    return label
