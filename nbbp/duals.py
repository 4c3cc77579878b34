"""Dual numbers: forward mode."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbbp.arithmetic import Arithmetic, is_number
from nbbp.cpu.graph import evaluate_dual

__all__ = ["Dual", "derivative"]


@dataclass(frozen=True, eq=False, slots=True)
class Dual(Arithmetic):
    """A number with its derivative by some input (forward mode): what is computed from duals has both.

    Attributes
    ----------
    value : float
    derivative : float
        1 for the input itself, 0 for what does not depend on it.
    """

    value: float
    derivative: float = 0.0

    def _apply(self, code: int, *arguments: Any) -> Any:
        values, derivatives = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        for k, x in enumerate(arguments):
            if isinstance(x, Dual):
                values[k], derivatives[k] = float(x.value), float(x.derivative)
            elif is_number(x):
                values[k] = float(x)
            else:
                return NotImplemented
        return Dual(*evaluate_dual(code, *values, *derivatives))

    def __bool__(self) -> bool:
        return self.value != 0.0


def derivative(function: Callable, x: float) -> tuple[float, float]:
    """Differentiate a function of one number by forward mode.

    Parameters
    ----------
    function : callable
        Takes one number and returns one.
    x : float

    Returns
    -------
    value, derivative : float

    Raises
    ------
    TypeError
        The function does not return a number.
    """
    result = function(Dual(float(x), 1.0))
    if is_number(result):
        return float(result), 0.0
    if not isinstance(result, Dual):
        raise TypeError(f"a function to differentiate returns one number; this one returned {type(result).__name__}")
    return result.value, result.derivative
