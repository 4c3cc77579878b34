"""Loads and stores of several numbers at once, which the compiler makes by itself only where it can prove how memory is
aligned.

`read_vector` and `write_vector` move n numbers, a constant 1, 2 or 4, between an array in a thread's registers, from
number `at` on, and one in global or shared memory, from number `place` on: by 128 bits, or by as many bits as n numbers
are. So memory has to be aligned to these, and `place` a multiple of as many numbers. Both arrays are of one dtype and
lie in one piece. The simulator, which could move any, tells where memory is not aligned, or not there.
"""

from nbbp.cuda.kernels import SIMULATED
from nbbp.scalars.dispatch import formula

#: Bytes of the longest load and store.
BYTES = 16

if SIMULATED:

    def _read_pair(registers, at, source, place):
        _move(registers, at, source, place, _checked(source, place, 2))

    def _read_quad(registers, at, source, place):
        _move(registers, at, source, place, _checked(source, place, 4))

    def _write_pair(target, place, registers, at):
        _move(target, place, registers, at, _checked(target, place, 2))

    def _write_quad(target, place, registers, at):
        _move(target, place, registers, at, _checked(target, place, 4))

    def _move(target, at, source, place, n):
        for c in range(n):
            target[at + c] = source[place + c]

    def _checked(memory, place, n):
        if place % min(n, BYTES // memory.dtype.itemsize) or not 0 <= place <= memory.size - n:
            raise ValueError(f"{n} numbers at {place} of {memory.size} cannot be moved as one")
        return n

else:
    from llvmlite import ir
    from numba import types
    from numba.cuda.extending import intrinsic
    from numba.cuda.np.arrayobj import make_array

    @intrinsic
    def _read_pair(typing, registers, at, source, place):
        return _mover(registers, source, 2, is_load=True)

    @intrinsic
    def _read_quad(typing, registers, at, source, place):
        return _mover(registers, source, 4, is_load=True)

    @intrinsic
    def _write_pair(typing, target, place, registers, at):
        return _mover(target, registers, 2, is_load=False)

    @intrinsic
    def _write_quad(typing, target, place, registers, at):
        return _mover(target, registers, 4, is_load=False)

    def _mover(target, source, n, is_load):
        """Signature and code of moving `n` numbers as one from `source` to `target`."""

        def move(context, builder, signature, arguments):
            """Those in memory are aligned as a whole, or to 128 bits; those in registers are wherever they are."""
            to, at, come_from, place = arguments
            size = target.dtype.bitwidth // 8
            vector = ir.VectorType(context.get_value_type(target.dtype), n)
            aligned = min(n * size, BYTES)

            def pointer(kind, array, first):
                data = builder.gep(make_array(kind)(context, builder, array).data, [first])
                return builder.bitcast(data, vector.as_pointer(data.type.addrspace))

            moved = builder.load(pointer(source, come_from, place), align=aligned if is_load else size)
            builder.store(moved, pointer(target, to, at), align=size if is_load else aligned)

        return types.void(target, types.int64, source, types.int64), move


@formula
def read_vector(registers, at, source, place, n):
    """registers[at : at + n] = source[place : place + n]."""
    if n == 4:
        _read_quad(registers, at, source, place)
    elif n == 2:
        _read_pair(registers, at, source, place)
    else:
        registers[at] = source[place]


@formula
def write_vector(target, place, registers, at, n):
    """target[place : place + n] = registers[at : at + n]."""
    if n == 4:
        _write_quad(target, place, registers, at)
    elif n == 2:
        _write_pair(target, place, registers, at)
    else:
        target[place] = registers[at]
