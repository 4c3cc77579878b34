"""CudaFunctions: a network inside kernels of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbp.cuda import functions
from nbbp.layers import Activation, Dense
from nbbp.losses import Loss
from nbbp.lowering.base import last_activation, takes_logits
from nbbp.network import Sequential

__all__ = ["CudaFunctions"]


class CudaFunctions:
    """A network as device functions of one sample, to be called from your own ``@cuda.jit`` kernels.

    They compile with the kernel, for the sizes, activations and loss of this network. They are pure: they read and
    write their arguments and nothing else. Arrays are one-dimensional and of the model's dtype; nothing is checked.
    `scratch` is memory of one thread for n_scratch numbers, such as ``cuda.local.array(n_scratch, float32)``.

    Attributes
    ----------
    predict : ``predict(parameters, x, out, scratch)``
        out (n_out,) = what the last layer gives for x (n_in,).
    loss_and_gradient : ``loss_and_gradient(parameters, x, y, gradient, scratch) -> loss``
        gradient (n_parameters,) = the loss's gradient. y is an int label (crossentropy, nll) or n_out values.
    input_gradient : ``input_gradient(parameters, x, output_gradient, out, scratch)``
        out (n_in,) = the vector-Jacobian product of output_gradient (n_out,) with `predict`.
    backpropagate : ``backpropagate(parameters, x, output_gradient, gradient, out, scratch)``
        The same, and gradient (n_parameters,) *plus* the product with respect to the parameters.
    n_parameters, n_scratch, n_in, n_out : int
    dtype : np.dtype

    Raises
    ------
    ValueError
        If a layer is neither dense nor an activation; the message names it. On asking for `loss_and_gradient`: if the
        loss is nll and the network does not end in log_softmax.

    Examples
    --------
    >>> network = model.as_cuda_device()                                        # doctest: +SKIP
    >>> predict, n = network.predict, network.n_scratch                         # doctest: +SKIP
    >>> @cuda.jit                                                               # doctest: +SKIP
    ... def kernel(parameters, xs, outs):
    ...     i = cuda.grid(1)
    ...     if i < xs.shape[0]:
    ...         predict(parameters, xs[i], outs[i], cuda.local.array(n, float32))
    """

    def __init__(self, network: Sequential, loss: Loss, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        steps = _steps(network, self.dtype)
        self.n_in, self.n_out, self.n_parameters = steps[0].n_in, steps[-1].n_out, network.n_parameters
        self.n_scratch = functions.scratch_size(steps)
        self.predict = _predict(steps)
        self.input_gradient, self.backpropagate = _products(steps)
        self._network, self._loss, self._steps = network, loss, steps

    @property
    def loss_and_gradient(self) -> Any:
        steps, loss, number = self._steps, self._loss, self.dtype.type
        is_fused = takes_logits(self._network, loss)
        if loss.name == "nll" and not is_fused:
            raise ValueError("the loss nll in a kernel needs a network that ends in log_softmax")
        if is_fused and last_activation(self._network).name != "linear":
            steps = steps[:-1]  # the loss takes what comes into it
        code = None if loss.row_wise else loss.formula.code
        is_mean = loss.reduction == "mean"
        step = functions.LossStep(steps[-1].n_out, code, number(loss.parameter), number(loss.scale), is_mean)
        return functions.loss_and_gradient(steps, step, self.n_parameters)


def _steps(network: Sequential, dtype: np.dtype) -> list:
    """The network's products and activations, in their order."""
    offsets = {parameter.name: parameter.offset for parameter in network.parameters}
    steps: list = []
    for node in network.nodes:
        layer = node.layer
        if not isinstance(layer, (Dense, Activation)):
            kind = type(layer).__name__
            raise ValueError(f"as_cuda_device takes dense layers and activations; {node.label} is {kind}")
        if isinstance(layer, Dense):
            bias = offsets[f"{node.path}.bias"] if layer.use_bias else -1
            steps.append(functions.DenseStep(node.n_in, node.n_out, offsets[f"{node.path}.weight"], bias))
        function, width = layer.activation, node.n_out
        if function.formula.row_wise:
            steps.append(functions.RowStep(width, width, function.name == "log_softmax"))
        elif function.name != "linear":
            sees_output = function.formula.derivative_of == "output"
            alpha = dtype.type(function.parameter)
            steps.append(functions.FunctionStep(width, width, function.formula.code, alpha, sees_output))
    return steps


def _predict(steps: list) -> Any:
    ahead, given = functions.forward(steps)
    n_out = steps[-1].n_out

    def predict(parameters, x, out, scratch):
        ahead(parameters, x, scratch)
        for j in range(n_out):
            out[j] = scratch[given + j]

    return functions.device(predict)


def _products(steps: list) -> tuple[Any, Any]:
    """`input_gradient` and `backpropagate`."""
    ahead, _ = functions.forward(steps)
    back, slope, end = functions.backpropagation(steps, False)
    back_with_gradient, _, _ = functions.backpropagation(steps, True)
    n_in, n_out = steps[0].n_in, steps[-1].n_out

    def input_gradient(parameters, x, output_gradient, out, scratch):
        ahead(parameters, x, scratch)
        for j in range(n_out):
            scratch[slope + j] = output_gradient[j]
        back(parameters, x, scratch, scratch)
        for i in range(n_in):
            out[i] = scratch[end + i]

    def backpropagate(parameters, x, output_gradient, gradient, out, scratch):
        ahead(parameters, x, scratch)
        for j in range(n_out):
            scratch[slope + j] = output_gradient[j]
        back_with_gradient(parameters, x, scratch, gradient)
        for i in range(n_in):
            out[i] = scratch[end + i]

    return functions.device(input_gradient), functions.device(backpropagate)
