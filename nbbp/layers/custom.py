"""A layer from two functions of the user's own, compiled into the step like a built-in one."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numba import njit
from numba.core.dispatcher import Dispatcher

from nbbp import initializers
from nbbp.layers.base import Layer, check_name, check_switches, positive_integer

__all__ = ["Custom"]

#: Parameters of one layer, at most: each draws its first numbers from a random stream of its own.
_MOST_PARAMETERS = 16

_FORWARD = ("parameters", "x", "y")
_BACKWARD = ("parameters", "x", "y", "d_y", "d_x", "gradient")


@dataclass(frozen=True, init=False, repr=False)
class Custom(Layer):
    """A layer that is a pair of jitted functions, for one sample each.

    Every array is flat, of the model's dtype. `forward` writes all of y. `backward` writes all of d_x and *adds* to
    gradient, which holds the sum over the samples. They may be called for several samples at the same time, so they
    must not write anything else. An exception in them is printed and leaves NaN, which ends `fit`. They are compiled in
    every process. A copy in another process needs `parameter_shapes` that can be pickled, which a lambda cannot.

    Nothing checks indices in a step. Instead each function is called once, before a model first runs it, on a sample of
    numbers between 0 and 1 with its indices checked: where one is out of bounds a ValueError gives the sizes of all
    arrays. (Functions that it calls are checked for what they write near its arrays; other exceptions may be due to the
    sample and are passed over.) A function of ``@njit(boundscheck=True)`` checks itself in every step, which costs
    time, and is not tried: so may be one whose indices are data that this sample is not like.

    Parameters
    ----------
    forward : callable
        ``forward(parameters, x, y)``: an ``@njit`` function, or a plain one that becomes one. x (n_in,), y (n_out,),
        parameters (n_parameters,): those of this layer one behind the other, each row-major; empty if there are none.
    backward : callable
        ``backward(parameters, x, y, d_y, d_x, gradient)``: d_y (n_out,) and d_x (n_in,) are the derivatives of the loss
        by y and x, gradient (n_parameters,) that by the parameters. `nbbp.Model.check_gradients` finds mistakes in it.
    n_out : int, optional
        Outputs per sample; without it as many as inputs.
    parameter_shapes : mapping of str to tuple of int, or callable of n_in that gives one, optional
        Name and shape of each parameter; the model calls them by position and name, "1.scale".
    parameter_initializers : mapping of str to str or initializer, optional
        First numbers of parameters; of the others they are "glorot_uniform" for matrices and zeros for the rest.
    name : str, optional
        For tables and messages.
    trainable : bool, default True
        False freezes its parameters.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.

    Examples
    --------
    >>> def forward(parameters, x, y):
    ...     for i in range(x.size):
    ...         y[i] = parameters[i] * x[i]
    >>> def backward(parameters, x, y, d_y, d_x, gradient):
    ...     for i in range(x.size):
    ...         d_x[i] = parameters[i] * d_y[i]
    ...         gradient[i] += x[i] * d_y[i]
    >>> scale = Custom(forward, backward, parameter_shapes=lambda n_in: {"scale": (n_in,)},
    ...                parameter_initializers={"scale": "ones"}, name="scale")
    >>> scale.parameter_shapes(3)
    {'scale': (3,)}
    """

    forward: Dispatcher
    backward: Dispatcher
    n_out: int | None
    shapes: tuple[tuple[str, tuple[int, ...]], ...] | Callable | None
    initializers: tuple[tuple[str, Callable], ...]
    name: str | None
    trainable: bool

    def __init__(
        self,
        forward: Callable,
        backward: Callable,
        n_out: int | None = None,
        *,
        parameter_shapes: Mapping[str, tuple[int, ...]] | Callable | None = None,
        parameter_initializers: Mapping[str, Any] | None = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None:
        if not (parameter_shapes is None or callable(parameter_shapes)):
            parameter_shapes = _checked_shapes(parameter_shapes)
        given = {} if parameter_initializers is None else parameter_initializers
        if not isinstance(given, Mapping):
            raise TypeError(f"parameter_initializers of Custom must be a mapping from names; got {given!r}")
        if isinstance(parameter_shapes, tuple):
            _check_initialized(given, dict(parameter_shapes))
        fields = {
            "forward": jitted(forward, "forward of Custom", _FORWARD),
            "backward": jitted(backward, "backward of Custom", _BACKWARD),
            "n_out": None if n_out is None else positive_integer("n_out of Custom", n_out),
            "shapes": parameter_shapes,
            "initializers": tuple((key, initializers.get(value)) for key, value in given.items()),
            "name": name,
            "trainable": trainable,
        }
        for attribute, value in fields.items():
            object.__setattr__(self, attribute, value)
        check_name(self)
        check_switches(self, "trainable")

    def __repr__(self) -> str:
        functions = f"{self.forward.py_func.__name__}, {self.backward.py_func.__name__}"
        return f"Custom({functions}, n_out={self.n_out}, name={self.name!r})"

    @property
    def has_parameters(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.shapes)

    def width(self, n_in: int) -> int:
        """Outputs per sample."""
        return n_in if self.n_out is None else self.n_out

    def parameter_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of this layer, in the order they lie in the flat buffer."""
        shapes = self.shapes or ()
        found = dict(_checked_shapes(shapes(n_in)) if callable(shapes) else shapes)
        _check_initialized(dict(self.initializers), found)
        return found

    def initializer(self, kind: str, shape: tuple[int, ...]) -> Callable:
        """What a parameter of that name and shape starts from."""
        default = "glorot_uniform" if len(shape) > 1 else "zeros"
        return dict(self.initializers).get(kind) or initializers.get(default)


def jitted(function: Any, what: str, arguments: tuple[str, ...]) -> Dispatcher:
    """A function of the user's own that can be called with these arguments, compiled if it is not yet.

    Raises
    ------
    TypeError
        If it is no such function; the message calls it `what`.
    """
    if not callable(function):
        expected = f"a function of {', '.join(arguments)}"
        raise TypeError(f"{what} must be {expected}; got {function!r} ({type(function).__name__})")
    if not isinstance(function, Dispatcher):
        if not inspect.isfunction(function):
            came = f"{function!r} ({type(function).__name__})"
            raise TypeError(f"{what} must be an @njit function or a plain Python one; got {came}")
        function = njit(error_model="numpy")(function)
    try:
        inspect.signature(function.py_func).bind(*arguments)
    except TypeError:
        signature = inspect.signature(function.py_func)
        called = f"{what} is called with {', '.join(arguments)}"
        raise TypeError(f"{called}; {function.py_func.__name__} takes {signature}") from None
    return function


def _check_initialized(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Only parameters may have initializers."""
    for name in given:
        if name not in shapes:
            there = f"it has {', '.join(map(repr, shapes)) or 'none'}"
            raise ValueError(
                f"parameter_initializers of Custom has {name!r}, which is no parameter of the layer; {there}"
            )


def _checked_shapes(shapes: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes as a tuple of pairs."""
    expected = "parameter_shapes of Custom must map names to shapes, as {'scale': (n_in,)}"
    if not isinstance(shapes, Mapping):
        raise TypeError(f"{expected}; got {shapes!r} ({type(shapes).__name__})")
    if len(shapes) > _MOST_PARAMETERS:
        raise ValueError(f"a layer has at most {_MOST_PARAMETERS} parameters; got {len(shapes)}")
    checked = []
    for name, shape in shapes.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{expected}; got the name {name!r}")
        try:
            numbers = tuple(map(operator.index, shape))
        except TypeError:
            raise TypeError(f"{expected}; got {shape!r} for {name!r}") from None
        if not numbers or min(numbers) < 1:
            raise ValueError(f"{expected}, of at least one number each; got {shape!r} for {name!r}")
        checked.append((name, numbers))
    return tuple(checked)
