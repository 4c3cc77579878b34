"""What Python's operators and the methods of numbers do to numbers that remember how they came about."""

from typing import Any

from nbbp.scalars import operations as op

__all__ = ["Operators"]


class Operators:
    """A number under operators, methods and functions; what they do is `_apply`, which subclasses define.

    Comparisons give conditions: numbers that are 1 or 0, for `where`. ``&``, ``|`` and ``~`` combine conditions.
    """

    __slots__ = ()

    def _apply(self, code: int, *arguments: Any) -> Any:
        """The result of an operation on numbers of this class and plain ones; NotImplemented for anything else."""
        raise NotImplementedError

    def __add__(self, other: Any) -> Any:
        return self._apply(op.ADD, self, other)

    def __radd__(self, other: Any) -> Any:
        return self._apply(op.ADD, other, self)

    def __sub__(self, other: Any) -> Any:
        return self._apply(op.SUBTRACT, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._apply(op.SUBTRACT, other, self)

    def __mul__(self, other: Any) -> Any:
        return self._apply(op.MULTIPLY, self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._apply(op.MULTIPLY, other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._apply(op.DIVIDE, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._apply(op.DIVIDE, other, self)

    def __pow__(self, other: Any) -> Any:
        return self._apply(op.POWER, self, other)

    def __rpow__(self, other: Any) -> Any:
        return self._apply(op.POWER, other, self)

    def __neg__(self) -> Any:
        return self._apply(op.NEGATIVE, self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self._apply(op.ABSOLUTE, self)

    def __lt__(self, other: Any) -> Any:
        return self._apply(op.LESS, self, other)

    def __le__(self, other: Any) -> Any:
        return self._apply(op.LESS_EQUAL, self, other)

    def __gt__(self, other: Any) -> Any:
        return self._apply(op.LESS, other, self)

    def __ge__(self, other: Any) -> Any:
        return self._apply(op.LESS_EQUAL, other, self)

    def __eq__(self, other: object) -> Any:
        return self._apply(op.EQUAL, self, other)

    def __ne__(self, other: object) -> Any:
        same = self._apply(op.EQUAL, self, other)
        return same if same is NotImplemented else ~same

    __hash__ = None

    def __and__(self, other: Any) -> Any:
        return self._apply(op.MULTIPLY, self, other)

    def __or__(self, other: Any) -> Any:
        return self._apply(op.MAXIMUM, self, other)

    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> Any:
        return self._apply(op.EQUAL, self, 0.0)

    def __float__(self) -> float:
        raise TypeError(
            f"float() would lose how this {type(self).__name__} came about; math.exp and its like call it: "
            "use np.exp and its like"
        )

    __int__ = __float__

    def exp(self) -> Any:
        return self._apply(op.EXP, self)

    def log(self) -> Any:
        return self._apply(op.LOG, self)

    def tanh(self) -> Any:
        return self._apply(op.TANH, self)

    def relu(self) -> Any:
        return self._apply(op.RELU, self)

    def sigmoid(self) -> Any:
        return self._apply(op.SIGMOID, self)

    def sqrt(self) -> Any:
        return self._apply(op.SQRT, self)

    def sin(self) -> Any:
        return self._apply(op.SIN, self)

    def cos(self) -> Any:
        return self._apply(op.COS, self)

    def expm1(self) -> Any:
        return self._apply(op.EXPM1, self)

    def log1p(self) -> Any:
        return self._apply(op.LOG1P, self)

    def erf(self) -> Any:
        return self._apply(op.ERF, self)

    def softplus(self) -> Any:
        return self._apply(op.SOFTPLUS, self)

    def sign(self) -> Any:
        return self._apply(op.SIGN, self)
