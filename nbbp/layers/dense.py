"""Dense: a fully connected layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nbbp import initializers
from nbbp.layers.activation import Activation
from nbbp.layers.base import Layer, check_name, check_switches, positive_integer

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Layer):
    """A fully connected layer: ``output = activation(x @ weight + bias)``.

    Shapes: x (batch, n_in), weight (n_in, n_out), bias (n_out,), output (batch, n_out). ``n_in`` is not the
    layer's own: it comes from the layer before, or from the network.

    Parameters
    ----------
    n_out : int
        Number of outputs, at least 1.
    activation : str or Activation, default "linear"
        Kept as an `Activation`. "linear" is the identity.
    use_bias : bool, default True
    weight_initializer, bias_initializer : str or initializer
        A name or an object that ``nbbp.initializers.get`` knows; kept as the object.
    name : str, optional
        For the summary only; parameters are named by the layer's position.
    trainable : bool, default True
        False freezes the weight and the bias: training leaves them as they are.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    n_out: int
    activation: str | Activation = "linear"
    use_bias: bool = True
    weight_initializer: Any = "glorot_uniform"
    bias_initializer: Any = "zeros"
    name: str | None = None
    trainable: bool = True

    def __post_init__(self) -> None:
        activation = self.activation
        if isinstance(activation, str):
            activation = Activation(activation)
        elif not isinstance(activation, Activation):
            hint = "; make an activation of a function with nbbp.activation(function)" if callable(activation) else ""
            raise TypeError(
                "activation of Dense must be a name such as 'relu' or an Activation ('linear' is the "
                f"identity); got {activation!r} ({type(activation).__name__}){hint}"
            )
        check_switches(self, "use_bias", "trainable")
        check_name(self)
        object.__setattr__(self, "n_out", positive_integer("n_out of Dense", self.n_out))
        object.__setattr__(self, "activation", activation)
        object.__setattr__(self, "weight_initializer", initializers.get(self.weight_initializer))
        object.__setattr__(self, "bias_initializer", initializers.get(self.bias_initializer))

    @property
    def has_parameters(self) -> bool:
        return True

    def parameter_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of this layer, in the order they lie in the flat buffer."""
        shapes: dict[str, tuple[int, ...]] = {"weight": (n_in, self.n_out)}
        if self.use_bias:
            shapes["bias"] = (self.n_out,)
        return shapes

    def width(self, n_in: int) -> int:
        """Outputs per sample, whatever comes in."""
        return self.n_out

    def initializer(self, kind: str, shape: tuple[int, ...]) -> Any:
        """What the weight or the bias starts from."""
        return getattr(self, f"{kind}_initializer")
