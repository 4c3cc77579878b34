"""JAX on the CPU: one compiled call per step, and one compiled ``lax.scan`` over all steps.

Adam is written out, which XLA fuses as well as any library's; the state is donated, so that nothing is
copied.
"""

from __future__ import annotations

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from profiling.cases import (
    BATCH_NORM,
    BETA_1,
    BETA_2,
    DROPOUT,
    DROPOUT_RATE,
    EPSILON,
    LAYER_NORM,
    LEARNING_RATE,
    NORM_EPSILON,
    Case,
)


def _hidden(case: Case, z: jax.Array, norms: list[jax.Array], key: jax.Array | None) -> jax.Array:
    """A hidden layer behind its linear part; without a key, dropout lets everything pass."""
    axis = {BATCH_NORM: 0, LAYER_NORM: 1}.get(case.layer)
    if axis is not None:
        mean, variance = z.mean(axis, keepdims=True), z.var(axis, keepdims=True)
        z = norms[0] * (z - mean) * jax.lax.rsqrt(variance + NORM_EPSILON) + norms[1]
    z = {"relu": jax.nn.relu, "tanh": jnp.tanh}[case.activation](z)
    if case.layer == DROPOUT and key is not None:
        z = jnp.where(jax.random.bernoulli(key, 1.0 - DROPOUT_RATE, z.shape), z / (1.0 - DROPOUT_RATE), 0.0)
    return z


def _logits(parameters: list[jax.Array], x: jax.Array, case: Case, key: jax.Array | None = None) -> jax.Array:
    weights = next((i for i, p in enumerate(parameters) if i % 2 == 0 and p.ndim == 1), len(parameters))
    keys = [None] * weights if key is None else jax.random.split(key, weights)
    for i in range(0, weights, 2):
        x = x @ parameters[i] + parameters[i + 1]
        if i < weights - 2:
            x = _hidden(case, x, parameters[weights + i : weights + i + 2], keys[i])
    return x


def _loss(parameters: list[jax.Array], x: jax.Array, y: jax.Array, case: Case, key: jax.Array | None) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(_logits(parameters, x, case, key))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, y[:, None], axis=1))


def _step(state: tuple, batch: tuple[jax.Array, jax.Array], case: Case, drops: bool) -> tuple[tuple, jax.Array]:
    """One Adam step: ``(parameters, first, second, step), (x, y) -> state, loss``."""
    parameters, first, second, step = state
    key = jax.random.fold_in(jax.random.key(0), step) if drops else None
    loss, gradients = jax.value_and_grad(_loss)(parameters, *batch, case, key)
    step = step + 1
    correction_1 = 1.0 - BETA_1 ** step.astype(jnp.float32)
    correction_2 = 1.0 - BETA_2 ** step.astype(jnp.float32)
    first = [BETA_1 * m + (1.0 - BETA_1) * g for m, g in zip(first, gradients, strict=True)]
    second = [BETA_2 * v + (1.0 - BETA_2) * g * g for v, g in zip(second, gradients, strict=True)]
    parameters = [
        p - LEARNING_RATE * (m / correction_1) / (jnp.sqrt(v / correction_2) + EPSILON)
        for p, m, v in zip(parameters, first, second, strict=True)
    ]
    return (parameters, first, second, step), loss


_jitted_logits = jax.jit(_logits, static_argnums=2)
_jitted_step = jax.jit(_step, static_argnums=(2, 3), donate_argnums=0)


class JaxJit:
    """One ``jax.jit`` call per step; the batches lie on the device already."""

    def __init__(self, n_threads: int) -> None:
        # XLA's threads are as many as the cores and the environment that the worker has set.
        del n_threads

    @staticmethod
    def version() -> str:
        return f"JAX {jax.__version__}"

    def load(self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
        self.case, self.initial = case, parameters
        self.x = x.reshape(-1, case.batch, case.sizes[0])
        self.y = y.reshape(-1, case.batch).astype(np.int32)
        self.state = self._start()

    @property
    def _drops(self) -> bool:
        return self.case.layer == DROPOUT

    def _start(self) -> tuple:
        parameters = [jnp.array(p) for p in self.initial]
        if self.case.layer in (BATCH_NORM, LAYER_NORM):  # gains and shifts lie behind the weights
            parameters += [filled(width) for width in self.case.sizes[1:-1] for filled in (jnp.ones, jnp.zeros)]
        # zeros from NumPy: JAX would compile a program for each shape
        zeros = ([jnp.array(np.zeros(p.shape, np.float32)) for p in parameters] for _ in range(2))
        return parameters, *zeros, jnp.array(np.zeros((), np.int32))

    def losses(self, n: int) -> list[float]:
        state, losses = self._start(), []
        for i in range(n):
            state, loss = _jitted_step(state, (self.x[i], self.y[i]), self.case, False)
            losses.append(float(loss))
        return losses

    def compile(self, n_steps: int) -> None:
        self.batches = [
            (jax.device_put(x), jax.device_put(y)) for x, y in zip(self.x[:n_steps], self.y[:n_steps], strict=True)
        ]
        self.run(min(n_steps, 20))

    def run(self, n_steps: int) -> float:
        begin = time.perf_counter()
        for batch in self.batches[:n_steps]:
            self.state, _ = _jitted_step(self.state, batch, self.case, self._drops)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begin

    def outputs(self, n: int) -> list[list[float]]:
        return _jitted_logits(self._start()[0], self.x.reshape(-1, self.case.sizes[0])[:n], self.case).tolist()

    def infer(self, batch: int, n_calls: int) -> float:
        parameters, x = self.state[0], jax.device_put(self.x.reshape(-1, self.case.sizes[0])[:batch])
        _jitted_logits(parameters, x, self.case).block_until_ready()
        begin = time.perf_counter()
        for _ in range(n_calls):
            _jitted_logits(parameters, x, self.case).block_until_ready()
        return time.perf_counter() - begin


class JaxScan(JaxJit):
    """All steps in one compiled ``lax.scan``."""

    def load(self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
        super().load(case, parameters, x, y)
        self.scan, self.batches = None, (self.x[:0], self.y[:0])

    def losses(self, n: int) -> list[float]:
        """Losses of `n` steps: the first of the scan that is timed, if it is compiled already and drops nothing."""
        scan, batches = self.scan, self.batches
        if len(batches[1]) < n or self._drops:
            scan, batches = jax.jit(partial(self._scan, drops=False)), (self.x[:n], self.y[:n])
        return np.asarray(scan(self._start(), batches)[1])[:n].tolist()

    def _scan(self, state: tuple, batches: tuple[jax.Array, jax.Array], drops: bool) -> tuple[tuple, jax.Array]:
        return jax.lax.scan(partial(_step, case=self.case, drops=drops), state, batches)

    def compile(self, n_steps: int) -> None:
        self.batches = jax.device_put(self.x[:n_steps]), jax.device_put(self.y[:n_steps])
        scan = partial(self._scan, drops=self._drops)
        self.scan = jax.jit(scan, donate_argnums=0).lower(self.state, self.batches).compile()

    def run(self, n_steps: int) -> float:
        begin = time.perf_counter()
        self.state, _ = self.scan(self.state, self.batches)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begin
