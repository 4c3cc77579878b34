"""Loads and stores of several numbers at once, which the compiler makes by itself only where it can prove how memory is
aligned.

`read_vector` and `write_vector` move as many numbers as 128 bits hold between an array in a thread's registers, from
number `at` on, and one in global or shared memory, where `place` has to be a multiple of so many numbers; `read_pair`
moves two. Both arrays are of one dtype and lie in one piece.
"""

from numba.cuda.extending import intrinsic

from nbbp.cuda.kernels import SIMULATED

#: Bytes of a vector.
BYTES = 16

if SIMULATED:

    def read_vector(registers, at, source, place):
        """registers[at : at + n] = source[place : place + n]."""
        for c in range(BYTES // registers.dtype.itemsize):
            registers[at + c] = source[place + c]

    def read_pair(registers, at, source, place):
        """registers[at : at + 2] = source[place : place + 2]."""
        for c in range(2):
            registers[at + c] = source[place + c]

    def write_vector(target, place, registers, at):
        """target[place : place + n] = registers[at : at + n]."""
        for c in range(BYTES // registers.dtype.itemsize):
            target[place + c] = registers[at + c]

else:
    from llvmlite import ir
    from numba import types
    from numba.cuda.np.arrayobj import make_array

    @intrinsic
    def read_vector(typing, registers, at, source, place):
        """registers[at : at + n] = source[place : place + n]."""
        n = _length(source)
        return _mover(registers, source, lambda *arguments: _move(*arguments, n))

    @intrinsic
    def read_pair(typing, registers, at, source, place):
        """registers[at : at + 2] = source[place : place + 2]."""
        return _mover(registers, source, lambda *arguments: _move(*arguments, 2))

    @intrinsic
    def write_vector(typing, target, place, registers, at):
        """target[place : place + n] = registers[at : at + n]."""
        n = _length(target)
        return _mover(target, registers, lambda *arguments: _move(*arguments, n, stores=True))

    def _length(array):
        return BYTES * 8 // array.dtype.bitwidth

    def _mover(target, source, make):
        return types.void(target, types.int64, source, types.int64), make

    def _move(context, builder, signature, arguments, n, stores=False):
        """`n` numbers as one: those in memory are aligned as a whole, those in registers are wherever they are."""
        to, _, come_from, _ = signature.args
        size = to.dtype.bitwidth // 8
        vector = ir.VectorType(context.get_value_type(to.dtype), n)

        def pointer(kind, array, place):
            first = builder.gep(make_array(kind)(context, builder, array).data, [place])
            return builder.bitcast(first, vector.as_pointer())

        target, at, source, place = arguments
        moved = builder.load(pointer(come_from, source, place), align=size if stores else n * size)
        builder.store(moved, pointer(to, target, at), align=n * size if stores else size)
