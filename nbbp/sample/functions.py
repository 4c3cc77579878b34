"""Functions of one network: factories that make them, and the object that holds them.

A factory closes over numbers, strings and tuples of them and over nothing else, which is what Numba's cache on disk
goes by: the next process that asks for the same network finds its machine code there. The short passes are inlined into
the caller's loop, which saves handing over arrays; the long ones are called, so that a caller does not grow by them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from nbbp.compiling import jit
from nbbp.layers import Activation, Dense, Standardize
from nbbp.losses import Loss
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.sample import intrinsics, plan
from nbbp.sample.network import ROW_WISE
from nbbp.sample.standardization import named_statistics
from nbbp.standardization import check_known

__all__ = ["SampleFunctions", "why_no_training"]

#: Numbers of a sample's activations that may lie on the stack: that of a thread on macOS is 512 KiB.
_MOST_ON_STACK = 1 << 15


#: One set of functions for each plan; typed, because a zero of float32 equals one of float64.
_kept = lru_cache(maxsize=256, typed=True)


@_kept
def make_predict(structure, numbers, like) -> Callable:
    """`SampleFunctions.predict` of a plan."""

    @jit(forceinline=True)
    def predict(parameters, x, out):
        intrinsics.forward(structure, numbers, like, parameters, x, out)

    return predict


@_kept
def make_input_gradient(structure, numbers, like) -> Callable:
    """`SampleFunctions.input_gradient` of a plan."""

    @jit(forceinline=True)
    def input_gradient(parameters, x, output_gradient, out):
        intrinsics.input_gradient(structure, numbers, like, parameters, x, output_gradient, out)

    return input_gradient


@_kept
def make_backpropagate(structure, numbers, like) -> Callable:
    """`SampleFunctions.backpropagate` of a plan."""

    @jit()
    def backpropagate(parameters, x, output_gradient, gradient, out):
        intrinsics.backpropagate(structure, numbers, like, parameters, x, output_gradient, gradient, out)

    return backpropagate


@_kept
def make_jacobian(structure, numbers, like) -> Callable:
    """`SampleFunctions.jacobian` of a plan."""

    @jit()
    def jacobian(parameters, x, out):
        intrinsics.jacobian(structure, numbers, like, parameters, x, out)

    return jacobian


@_kept
def make_loss_and_gradient(structure, numbers, like, code, settings) -> Callable:
    """`SampleFunctions.loss_and_gradient` of a plan."""

    @jit()
    def loss_and_gradient(parameters, x, y, gradient):
        return intrinsics.loss_and_gradient(structure, numbers, like, parameters, x, y, code, settings, gradient)

    return loss_and_gradient


@_kept
def make_train_step(
    structure, numbers, like, code, settings, rule, groups, group_settings, rule_settings, n_slots
) -> Callable:
    """`SampleFunctions.train_step` of a plan."""

    @jit()
    def train_step(parameters, slots, step, x, y):
        return intrinsics.train(
            structure, numbers, like, parameters, x, y, code, settings,
            rule, groups, group_settings, rule_settings, n_slots, step, slots,
        )  # fmt: skip

    return train_step


@_kept
def make_checked_train_step(
    structure, numbers, like, code, settings, rule, groups, group_settings, rule_settings, n_slots, low, high
) -> Callable:
    """A `train_step` for calls from Python, which looks at each number and says whether all was fine.

    Features must be finite, target values in [low, high].
    """
    is_row_wise, n_out = code in ROW_WISE, plan.ends(structure)[1]
    largest = np.finfo(like.dtype).max

    @jit()
    def checked_train_step(parameters, slots, step, x, y):
        is_fine = True
        for i in range(len(x)):
            is_fine &= abs(x[i]) <= largest
        if is_row_wise:
            is_fine &= 0 <= y < n_out
        else:
            for j in range(n_out):
                is_fine &= low <= y[j] <= high
        if not is_fine:
            return False, np.nan
        loss = intrinsics.train(
            structure, numbers, like, parameters, x, y, code, settings,
            rule, groups, group_settings, rule_settings, n_slots, step, slots,
        )  # fmt: skip
        return True, loss

    return checked_train_step


def why_no_training(network: Sequential, optimizer: Optimizer) -> str | None:
    """What the sample engine cannot do when it trains this network by this optimizer; None where it can do it all."""
    if optimizer.schedule is not None:
        schedule = type(optimizer.schedule).__name__
        return f"train_step of as_njit has one learning rate; the optimizer's follows a schedule, {schedule}"
    if optimizer.prepares_gradient:
        name = optimizer.gradient_settings[0]
        return f"train_step of as_njit takes gradients as they are; the optimizer has {name}={getattr(optimizer, name)}"
    for parameter in network.parameters:
        if not parameter.trainable:
            return f"train_step of as_njit trains every layer; layer {parameter.layer} is frozen"
    return None


class SampleFunctions:
    """A network as `@njit` functions of one sample, to be called from your own jitted code, or from Python.

    They compile when first called, for the sizes, activations, loss and optimizer of this network, and are kept on
    disk. They are pure: they read and write their arguments and nothing else, allocate nothing, and may be called from
    any number of threads and inside ``prange``. Gradients and losses are those of a batch of one.

    Arrays are one-dimensional; parameters, slots, gradients and results are C-contiguous (``float32[::1]`` in a
    signature of yours) and of the model's dtype; x and y may be strided, of float32, float64, integers or bools.
    Lengths are checked and NaN is not: what comes in goes through. Results may be written over what was read: x and out
    may be the same array. Mean and variance of a `Standardize` are constants: what they are when this is made.

    Attributes
    ----------
    predict : ``predict(parameters, x, out)``
        out (n_out,) = what the last layer gives for x (n_in,).
    loss_and_gradient : ``loss_and_gradient(parameters, x, y, gradient) -> loss``
        gradient (n_parameters,) = the loss's gradient. y is an int label (crossentropy, nll), n_out values, or one
        number where n_out is 1; hinge takes -1 and +1.
    input_gradient : ``input_gradient(parameters, x, output_gradient, out)``
        out (n_in,) = the vector-Jacobian product of output_gradient (n_out,) with `predict`.
    backpropagate : ``backpropagate(parameters, x, output_gradient, gradient, out)``
        The same, and gradient (n_parameters,) *plus* the product with respect to the parameters: for losses of your own
        over many steps, policy gradients, adjoint equations.
    jacobian : ``jacobian(parameters, x, out)``
        out (n_out, n_in) = the derivative of each output with respect to each input.
    train_step : ``train_step(parameters, slots, step, x, y) -> loss``
        One update by the model's optimizer; the loss before it. slots (n_slots,) is what the optimizer keeps, zeros
        before the first step; `step` is the number of the update, counted from 1. A loss that is not finite updates
        nothing. Asking for it raises ValueError where the model has frozen layers, or an optimizer that clips, adds
        noise to or adds up gradients.
    n_parameters, n_slots, n_in, n_out : int
    dtype : np.dtype

    Notes
    -----
    A function of yours that Numba caches (``cache=True``) keeps the network that it was compiled with, because Numba
    does not look into what it calls: after a change of the network, delete its cache or leave it uncached.

    Examples
    --------
    >>> functions = model.as_njit()                                             # doctest: +SKIP
    >>> predict = functions.predict                                             # doctest: +SKIP
    >>> @njit                                                                   # doctest: +SKIP
    ... def simulate(parameters, state, action, n_steps):
    ...     for _ in range(n_steps):
    ...         predict(parameters, state, action)
    ...         advance(state, action)
    """

    def __init__(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, dtype: np.dtype, state: np.ndarray
    ) -> None:
        reason = self.why_not(network)
        if reason is not None:
            raise ValueError(f"{reason}: train and predict with the model itself")
        check_known(network, state)
        statistics = named_statistics(network, state)
        structure, trained = plan.structure(network, statistics), plan.structure(network, statistics, loss)
        numbers, like = plan.numbers(network), np.dtype(dtype).type(0)
        self.dtype = np.dtype(dtype)
        self.n_in, self.n_out = plan.ends(structure)
        self.n_parameters = plan.n_parameters(structure)
        self.n_slots = plan.n_slots(structure, optimizer)
        self.predict = make_predict(structure, numbers, like)
        self.input_gradient = make_input_gradient(structure, numbers, like)
        self.backpropagate = make_backpropagate(structure, numbers, like)
        self.jacobian = make_jacobian(structure, numbers, like)
        learning = trained, numbers, like, plan.loss_code(network, loss), plan.loss_settings(loss, self.n_out)
        self.loss_and_gradient = make_loss_and_gradient(*learning)
        groups, group_settings = plan.update_groups(network, optimizer)
        rule_settings = tuple(map(float, optimizer.rule_settings))
        learning += optimizer.rule, groups, group_settings, rule_settings, self.n_slots
        self._learning, self._train_step = learning, make_train_step(*learning)
        self._why_no_training = why_no_training(network, optimizer)

    @property
    def train_step(self) -> Callable:
        if self._why_no_training is not None:
            raise ValueError(
                f"{self._why_no_training}: train with the model itself, or apply the gradient of loss_and_gradient "
                "in code of your own"
            )
        return self._train_step

    def checked_train_step(self, low: float, high: float) -> Callable:
        """`train_step` for calls from Python: gives (whether all numbers are fine, loss), target values in [low, high].

        A sample that is not fine changes nothing.
        """
        return make_checked_train_step(*self._learning, low, high)

    @staticmethod
    def why_not(network: Sequential) -> str | None:
        """What the sample engine cannot do of this network; None where it can do it all."""
        for index, layer in enumerate(network.layers):
            if not isinstance(layer, (Activation, Dense, Standardize)):
                return (
                    "as_njit takes dense layers and activations, and Standardize in front of them; "
                    f"layer {index} is {type(layer).__name__}"
                )
        on_stack = plan.most_on_stack(plan.structure(network))
        if on_stack > _MOST_ON_STACK:
            return (
                f"as_njit keeps the activations of a sample on the stack, at most {_MOST_ON_STACK:,} numbers; this "
                f"network has {on_stack:,}"
            )
        return None

    def __repr__(self) -> str:
        sizes = f"n_in={self.n_in}, n_out={self.n_out}, n_parameters={self.n_parameters}"
        return f"SampleFunctions({sizes}, dtype={self.dtype.name!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "the functions of as_njit are compiled for one process; pickle the model and call as_njit again"
        )
