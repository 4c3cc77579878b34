"""Networks of layers within layers, and the plans of a step, for the tests that run them all."""

import numpy as np
from engine_cases import features_for, model_of, targets_for

from nbbp import losses, tiling
from nbbp.cpu import engine
from nbbp.layers import Activation, Concat, Custom, Dense, Flatten, Residual
from nbbp.lowering.base import padded

LOSS = losses.MSE()


def twist_forward(parameters, x, y):
    """y = a tanh(x) + b, number by number."""
    n = x.size
    for i in range(n):
        y[i] = parameters[i] * np.tanh(x[i]) + parameters[n + i]


def twist_backward(parameters, x, y, d_y, d_x, gradient):
    n = x.size
    for i in range(n):
        t = np.tanh(x[i])
        d_x[i] = parameters[i] * d_y[i] * (1 - t * t)
        gradient[i] += t * d_y[i]
        gradient[n + i] += d_y[i]


def shapes_of_twist(n_in):
    return {"a": (n_in,), "b": (n_in,)}


#: One object, so that it is compiled once; and it frozen.
TWIST = Custom(twist_forward, twist_backward, parameter_shapes=shapes_of_twist)
FROZEN_TWIST = Custom(TWIST.forward, TWIST.backward, parameter_shapes=shapes_of_twist, trainable=False)

#: Of 5 inputs, all but "ends" with 3 outputs behind them.
NETWORKS = {
    "plain": [Residual([Dense(7, "tanh"), Dense(5)]), Dense(3)],
    "projection": [Residual([Dense(7, "tanh"), Dense(4)]), Dense(3)],
    "behind dense": [Dense(6, "relu"), Residual([Dense(6, "gelu")]), Dense(4), Residual([Dense(4)]), Dense(3)],
    "ends in activation": [Dense(6), Residual([Dense(6), Activation("gelu")]), Dense(3)],
    "projection, ends in activation": [Dense(6), Residual([Dense(4, "tanh")]), Dense(3)],
    "nested": [
        Dense(6),
        Residual([Residual([Dense(6, "tanh")]), Dense(4), Residual([Dense(8, "relu"), Residual([Dense(4)])])]),
        Dense(3),
    ],
    "nested alone": [Dense(6, "tanh"), Residual([Residual([Residual([Dense(6)])])]), Dense(3)],
    "activations around": [
        Activation("tanh"), Residual([Activation("gelu"), Dense(5), Activation("tanh")]), Activation("tanh"),
        Concat([Activation("tanh")], [Dense(2), Activation("relu")]), Activation("softmax"), Dense(3),
    ],
    "activation alone within": [Dense(6), Residual([Activation("tanh")]), Residual([Activation("gelu")]), Dense(3)],
    "nothing within": [Dense(6, "tanh"), Residual([Flatten(), Activation("linear")]), Dense(3)],
    "concat": [Concat([Dense(4, "tanh")], [Dense(4)]), Dense(3)],
    "concat of other widths": [
        Dense(6, "tanh"), Concat([Dense(17, "relu"), Dense(2)], [], [Dense(1, "tanh")], [Residual([Dense(6)])]),
        Dense(3),
    ],
    "concat of nothing": [Dense(6, "tanh"), Concat([], [], [Activation("gelu")]), Dense(3)],
    "concat within": [Residual([Concat([Dense(3, "tanh")], [Dense(2)])]), Residual([Concat([], [Dense(2)])]), Dense(3)],
    "concat in concat": [Concat([Concat([Dense(2)], [Dense(3, "relu"), Dense(2)])], [], [Dense(2)]), Dense(3)],
    "one object twice": [Dense(6), *[Residual([Dense(6, "tanh")])] * 3, Dense(3)],
    "ends": [Dense(6, "tanh"), Concat([Dense(1, "tanh")], [Residual([Dense(2, "relu")])])],
}  # fmt: skip

#: Those that call a function of the user's own for each row, which the third plan does not take.
WITH_CUSTOM = {
    "custom within": [Dense(6, "tanh"), Residual([TWIST, Dense(6, "relu"), TWIST]), Dense(3)],
    "custom around": [TWIST, Concat([TWIST], [Dense(4), TWIST], []), TWIST, Residual([TWIST]), Dense(3)],
}

#: For each plan what leads to it: settings of `nbbp.tiling`, rows of a batch, and a first layer.
PLANS = {
    "alone": ({}, 3, []),
    "partial": ({"_PARTIAL_WORK": 1}, 1500, []),
    "wide": ({}, 70, [Dense(300), Dense(300, "tanh")]),
}


def take_plan(monkeypatch, plan: str, n_threads: int = 1) -> None:
    """Let steps be cut that way and shared among threads whatever their size."""
    for name, value in {"_SHARED_WORK": 0, **PLANS[plan][0]}.items():
        monkeypatch.setattr(tiling, name, value)
    monkeypatch.setattr(engine, "_n_threads", n_threads)


def planned_model(plan: str, layers, n_in: int = 5, dtype: str = "float32", optimizer="adam", **settings):
    """A model whose training step is cut that way for `data_for(plan)`."""
    return model_of([*PLANS[plan][2], *layers], n_in, LOSS, dtype, optimizer, **settings)


def data_for(plan: str, dtype: str = "float32", n_in: int = 5, n_out: int = 3, seed: int = 0):
    batch = PLANS[plan][1]
    return features_for(batch, n_in, dtype, seed), targets_for(LOSS, batch, n_out, seed)


def bits_of_steps(model, x, y, n_steps: int = 3) -> list[bytes]:
    """Everything that training gives: gradients, losses of steps and of `fit`, parameters, predictions."""
    loss, gradients = model.loss_and_gradients(x, y)
    values = [loss, *(model.train_step(x, y) for _ in range(n_steps))]
    history = model.fit(x, y, batch_size=len(x) * 2 // 3, epochs=2, shuffle=False, verbose=0)
    numbers = np.array([*values, *history["loss"], *model.evaluate(x, y).values()])
    arrays = [numbers, *gradients.values(), model.parameter_vector, model.predict(x)]
    assert all(np.isfinite(array).all() for array in arrays)
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


def plan_of(model, batch: int) -> str:
    """Which of the plans the model's steps take, by what its program is like."""
    program = model._session.training(batch, False, False).program
    if len(program.phases) == 2:
        return "alone"
    return "partial" if program.buffers.get("gradient", 0) > padded(model.network.n_parameters) else "wide"
