"""Layers that normalise: BatchNorm over the batch, LayerNorm and RMSNorm over each sample.

Their gain is called gamma and their shift beta, as in the papers; optimizers decay neither unless told to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from nbbp import initializers
from nbbp.layers.base import Layer, check_name, check_switches, number_in

__all__ = ["BatchNorm", "LayerNorm", "RMSNorm"]


_LEAST_EPS = 2.0**-126


class _Normalization(Layer):
    """What the layers below share: eps, and gamma and beta unless they are not `affine`."""

    kinds: ClassVar[tuple[str, ...]] = ("gamma", "beta")

    def __post_init__(self) -> None:
        # a smaller one would be flushed to zero in float32, and a column of one number divide by nothing
        object.__setattr__(self, "eps", number_in(f"eps of {type(self).__name__}", self.eps, _LEAST_EPS))
        check_switches(self, "affine", "trainable")
        check_name(self)

    @property
    def has_parameters(self) -> bool:
        return self.affine

    def parameter_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.kinds, (n_in,)) if self.affine else {}

    def initializer(self, kind: str, shape: tuple[int, ...]) -> Any:
        return initializers.get("ones" if kind in ("gamma", "running_variance") else "zeros")


@dataclass(frozen=True)
class BatchNorm(_Normalization):
    """Batch normalisation: ``output = gamma · (x - mean) / sqrt(variance + eps) + beta``, column by column.

    In training mean and variance are those of the batch; its running statistics, which prediction and evaluation use,
    follow them: ``running = (1 - momentum) · running + momentum · batch``, with the batch's unbiased variance, as in
    PyTorch. Ioffe and Szegedy, "Batch normalization", ICML 2015.

    Shapes: x, output (batch, n), gamma, beta (n,); state running_mean, running_variance (n,).

    A batch of one sample has no variance: its output is beta, and the running statistics stay as they are.

    Parameters
    ----------
    momentum : float, default 0.1
        Share of the new batch in the running statistics, in [0, 1). (Keras calls 1 minus this the momentum.)
    eps : float, default 1e-5
        Added to the variance; at least 2**-126.
    affine : bool, default True
        Whether there are gamma and beta.
    name : str, optional
        For the summary only.
    trainable : bool, default True
        False freezes it whole: gamma and beta stay, and training too normalises by the running statistics, which stay.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    affine: bool = True
    name: str | None = None
    trainable: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "momentum", number_in("momentum of BatchNorm", self.momentum, 0.0, 1.0))
        super().__post_init__()

    def state_shapes(self, n_in: int) -> dict[str, tuple[int, ...]]:
        return {"running_mean": (n_in,), "running_variance": (n_in,)}


@dataclass(frozen=True)
class LayerNorm(_Normalization):
    """Layer normalisation: ``output = gamma · (x - mean) / sqrt(variance + eps) + beta``, sample by sample.

    Mean and biased variance are those of the sample's numbers, in training and prediction alike. Ba, Kiros and Hinton,
    "Layer normalization", 2016.

    Shapes: x, output (batch, n), gamma, beta (n,).

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the variance; at least 2**-126.
    affine : bool, default True
        Whether there are gamma and beta.
    name : str, optional
        For the summary only.
    trainable : bool, default True
        False freezes gamma and beta.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    eps: float = 1e-5
    affine: bool = True
    name: str | None = None
    trainable: bool = True


@dataclass(frozen=True)
class RMSNorm(_Normalization):
    """Root mean square normalisation: ``output = gamma · x / sqrt(mean(x²) + eps)``, sample by sample.

    Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019.

    Shapes: x, output (batch, n), gamma (n,).

    Parameters
    ----------
    eps : float, default 1e-6
        Added to the mean square; at least 2**-126.
    affine : bool, default True
        Whether there is gamma.
    name : str, optional
        For the summary only.
    trainable : bool, default True
        False freezes gamma.

    Raises
    ------
    TypeError, ValueError
        For what cannot be a layer; the message says what was expected and what came.
    """

    eps: float = 1e-6
    affine: bool = True
    name: str | None = None
    trainable: bool = True

    kinds: ClassVar[tuple[str, ...]] = ("gamma",)
