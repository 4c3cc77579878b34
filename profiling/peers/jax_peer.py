"""JAX on the CPU: one compiled call per step, and one compiled ``lax.scan`` over all steps.

Adam is written out, which XLA fuses as well as any library's; the state is donated, so that nothing is
copied.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from profiling.cases import BETA_1, BETA_2, EPSILON, LEARNING_RATE, Case


def _loss(parameters: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    for i in range(0, len(parameters), 2):
        x = x @ parameters[i] + parameters[i + 1]
        if i < len(parameters) - 2:
            x = jax.nn.relu(x)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1))


def _step(state: tuple, batch: tuple[jax.Array, jax.Array]) -> tuple[tuple, jax.Array]:
    """One Adam step: ``(parameters, first, second, step), (x, y) -> state, loss``."""
    parameters, first, second, step = state
    loss, gradients = jax.value_and_grad(_loss)(parameters, *batch)
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


_jitted_step = jax.jit(_step, donate_argnums=0)


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

    def _start(self) -> tuple:
        def zeros() -> list[jax.Array]:
            return [jnp.zeros(p.shape, jnp.float32) for p in self.initial]

        return [jnp.array(p) for p in self.initial], zeros(), zeros(), jnp.zeros((), jnp.int32)

    def losses(self, n: int) -> list[float]:
        state, losses = self._start(), []
        for i in range(n):
            state, loss = _jitted_step(state, (self.x[i], self.y[i]))
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
            self.state, _ = _jitted_step(self.state, batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begin


class JaxScan(JaxJit):
    """All steps in one compiled ``lax.scan``."""

    def losses(self, n: int) -> list[float]:
        _, losses = jax.jit(self._scan)(self._start(), (self.x[:n], self.y[:n]))
        return [float(loss) for loss in losses]

    @staticmethod
    def _scan(state: tuple, batches: tuple[jax.Array, jax.Array]) -> tuple[tuple, jax.Array]:
        return jax.lax.scan(_step, state, batches)

    def compile(self, n_steps: int) -> None:
        self.batches = jax.device_put(self.x[:n_steps]), jax.device_put(self.y[:n_steps])
        self.scan = jax.jit(self._scan, donate_argnums=0).lower(self.state, self.batches).compile()

    def run(self, n_steps: int) -> float:
        begin = time.perf_counter()
        self.state, _ = self.scan(self.state, self.batches)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begin
