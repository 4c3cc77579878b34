"""NumPy: the same step written by hand, vectorised over the batch, with Adam in place over one flat buffer."""

from __future__ import annotations

import time

import numpy as np

from profiling.cases import BETA_1, BETA_2, EPSILON, LEARNING_RATE, Case

#: Activations in place, and their derivatives as functions of the value.
_ACTIVATE = {"relu": lambda z: np.maximum(z, 0, out=z), "tanh": lambda z: np.tanh(z, out=z)}
_DERIVATIVE = {"relu": lambda value: value > 0, "tanh": lambda value: 1 - value * value}


class NumPy:
    """Forward, softmax crossentropy, backward and Adam in float32; products by the BLAS that NumPy was built with."""

    def __init__(self, n_threads: int) -> None:
        # Its threads are the BLAS's, which the worker's environment has set.
        del n_threads

    @staticmethod
    def version() -> str:
        return f"NumPy {np.__version__}"

    def load(self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
        self.case, self.initial, self.x, self.y = case, parameters, x, y
        self.rows = np.arange(case.batch)
        self._start()

    def _start(self) -> None:
        sizes = [p.size for p in self.initial]
        starts = np.cumsum([0, *sizes])
        self.flat = np.concatenate([p.ravel() for p in self.initial])
        self.gradient, self.first, self.second = (np.zeros_like(self.flat) for _ in range(3))
        views = [[], []]
        for of_all, flat in zip(views, (self.flat, self.gradient), strict=True):
            for p, start, size in zip(self.initial, starts, sizes, strict=False):
                of_all.append(flat[start : start + size].reshape(p.shape))
        self.parameters, self.gradients = views
        self.step = 0

    def _forward(self, x: np.ndarray) -> list[np.ndarray]:
        """What comes into every layer, and the logits."""
        values = [x]
        for i in range(0, len(self.parameters), 2):
            z = values[-1] @ self.parameters[i]
            z += self.parameters[i + 1]
            if i < len(self.parameters) - 2:
                _ACTIVATE[self.case.activation](z)
            values.append(z)
        return values

    def _step(self, x: np.ndarray, y: np.ndarray) -> float:
        *inputs, logits = self._forward(x)
        delta = logits - logits.max(axis=1, keepdims=True)
        picked = delta[self.rows, y]
        np.exp(delta, out=delta)
        total = delta.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - picked))
        delta /= total
        delta[self.rows, y] -= 1
        delta /= len(x)
        for layer in reversed(range(len(inputs))):
            np.matmul(inputs[layer].T, delta, out=self.gradients[2 * layer])
            np.sum(delta, axis=0, out=self.gradients[2 * layer + 1])
            if layer:
                delta = delta @ self.parameters[2 * layer].T
                delta *= _DERIVATIVE[self.case.activation](inputs[layer])
        self._update()
        return loss

    def _update(self) -> None:
        self.step += 1
        self.first += (1 - BETA_1) * (self.gradient - self.first)
        self.second += (1 - BETA_2) * (self.gradient * self.gradient - self.second)
        deviation = np.sqrt(self.second / (1 - BETA_2**self.step))
        deviation += EPSILON
        self.flat -= LEARNING_RATE / (1 - BETA_1**self.step) * self.first / deviation

    def _batch(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(i * self.case.batch, (i + 1) * self.case.batch)
        return self.x[rows], self.y[rows]

    def losses(self, n: int) -> list[float]:
        self._start()
        losses = [self._step(*self._batch(i)) for i in range(n)]
        self._start()
        return losses

    def compile(self, n_steps: int) -> None:
        self.run(min(n_steps, 20))

    def run(self, n_steps: int) -> float:
        begin = time.perf_counter()
        for i in range(n_steps):
            self._step(*self._batch(i))
        return time.perf_counter() - begin

    def outputs(self, n: int) -> list[list[float]]:
        self._start()
        return self._forward(self.x[:n])[-1].tolist()

    def infer(self, batch: int, n_calls: int) -> float:
        x = self.x[:batch]
        begin = time.perf_counter()
        for _ in range(n_calls):
            self._forward(x)
        return time.perf_counter() - begin
