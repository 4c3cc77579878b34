"""Loads and stores of several numbers at once, which the compiler makes by itself only where it can prove how memory is
aligned.

`read_vector` and `write_vector` move as many numbers as 128 bits hold between an array in a thread's registers, from
number `at` on, and one in global or shared memory, where `place` has to be a multiple of so many numbers; `read_pair`
and `write_pair` move two. Both arrays are of one dtype and lie in one piece. The simulator, which could move any, tells
where memory is not aligned, or not there.
"""

from numba.cuda.extending import intrinsic

from nbbp.cuda.kernels import SIMULATED

#: Bytes of a vector.
BYTES = 16

if SIMULATED:

    def read_vector(registers, at, source, place):
        """registers[at : at + n] = source[place : place + n]."""
        _move(registers, at, source, place, _check(source, place, BYTES // registers.dtype.itemsize))

    def read_pair(registers, at, source, place):
        """registers[at : at + 2] = source[place : place + 2]."""
        _move(registers, at, source, place, _check(source, place, 2))

    def write_vector(target, place, registers, at):
        """target[place : place + n] = registers[at : at + n]."""
        _move(target, place, registers, at, _check(target, place, BYTES // registers.dtype.itemsize))

    def write_pair(target, place, registers, at):
        """target[place : place + 2] = registers[at : at + 2]."""
        _move(target, place, registers, at, _check(target, place, 2))

    def _move(target, at, source, place, n):
        for c in range(n):
            target[at + c] = source[place + c]

    def _check(memory, place, n):
        if place % n or not 0 <= place <= len(memory) - n:
            raise ValueError(f"{n} numbers at {place} of {len(memory)} cannot be moved as one")
        return n

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

    @intrinsic
    def write_pair(typing, target, place, registers, at):
        """target[place : place + 2] = registers[at : at + 2]."""
        return _mover(target, registers, lambda *arguments: _move(*arguments, 2, stores=True))

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
