"""nbbp: ``Model.fit`` as a user calls it, with its checks of the data, its shuffle and its gather."""

from __future__ import annotations

import time

import numpy as np

import nbbp
from profiling.cases import (
    BATCH_NORM,
    BETA_1,
    BETA_2,
    DROPOUT,
    DROPOUT_RATE,
    EPSILON,
    LAYER_NORM,
    LEARNING_RATE,
    LOSS_TOLERANCE,
    NORM_EPSILON,
    Case,
)


class Nbbp:
    """``nbbp.Model`` with crossentropy and Adam."""

    def __init__(self, n_threads: int) -> None:
        nbbp.set_num_threads(n_threads)

    @staticmethod
    def version() -> str:
        return f"nbbp {nbbp.__version__}"

    def load(self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
        self.case, self.initial, self.x, self.y = case, parameters, x, y
        self._start()

    @staticmethod
    def _hidden(case: Case, n: int, rate: float) -> list[nbbp.layers.Layer]:
        """A hidden layer of `n` units."""
        if case.layer == DROPOUT:
            return [nbbp.Dense(n, activation=case.activation), nbbp.Dropout(rate)]
        if case.layer in (BATCH_NORM, LAYER_NORM):
            norm = (nbbp.BatchNorm if case.layer == BATCH_NORM else nbbp.LayerNorm)(eps=NORM_EPSILON)
            return [nbbp.Dense(n), norm, nbbp.Activation(case.activation)]
        return [nbbp.Dense(n, activation=case.activation)]

    def _start(self, rate: float = DROPOUT_RATE) -> None:
        *hidden, n_out = self.case.sizes[1:]
        layers = [layer for n in hidden for layer in self._hidden(self.case, n, rate)] + [nbbp.Dense(n_out)]
        self.model = nbbp.Model(
            nbbp.Sequential(layers, n_in=self.case.sizes[0]),
            loss="crossentropy",
            optimizer=nbbp.Adam(learning_rate=LEARNING_RATE, betas=(BETA_1, BETA_2), eps=EPSILON),
            seed=0,
        )
        dense = (values for name, values in self.model.parameters.items() if name.endswith(("weight", "bias")))
        for values, initial in zip(dense, self.initial, strict=True):
            values[...] = initial

    def _batch(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(i * self.case.batch, (i + 1) * self.case.batch)
        return self.x[rows], self.y[rows]

    def losses(self, n: int) -> list[float]:
        """Losses of `n` calls of ``train_step``; ``fit``, which is what is timed, must give their mean."""
        self._start(rate=0.0)
        losses = [float(self.model.train_step(*self._batch(i))) for i in range(n)]
        self._start(rate=0.0)
        rows = n * self.case.batch
        history = self.model.fit(
            self.x[:rows], self.y[:rows], epochs=1, batch_size=self.case.batch, shuffle=False, verbose=0
        )
        if not np.isclose(history["loss"][-1], np.mean(losses), rtol=LOSS_TOLERANCE, atol=0.0):
            raise ValueError(f"fit gives the loss {history['loss'][-1]}, train_step {np.mean(losses)} over {n} steps")
        self._start()
        return losses

    def compile(self, n_steps: int) -> None:
        self.run(n_steps)

    def run(self, n_steps: int) -> float:
        n = n_steps * self.case.batch
        begin = time.perf_counter()
        self.model.fit(self.x[:n], self.y[:n], epochs=1, batch_size=self.case.batch, shuffle=True, verbose=0)
        return time.perf_counter() - begin

    def step_from_python(self, n_calls: int) -> float:
        """Seconds per ``train_step`` called from Python on batches cut beforehand."""
        batches = [self._batch(i) for i in range(n_calls)]
        self.model.train_step(*batches[0])
        begin = time.perf_counter()
        for x, y in batches:
            self.model.train_step(x, y)
        return (time.perf_counter() - begin) / n_calls

    def predict_one(self, n_calls: int) -> float:
        """Seconds per ``predict`` of one sample, from Python."""
        sample = self.x[:1]
        self.model.predict(sample)
        begin = time.perf_counter()
        for _ in range(n_calls):
            self.model.predict(sample)
        return (time.perf_counter() - begin) / n_calls

    def outputs(self, n: int) -> list[list[float]]:
        self._start()
        return self.model.predict(self.x[:n]).tolist()

    def infer(self, batch: int, n_calls: int) -> float:
        x = self.x[:batch]
        self.model.predict(x)
        begin = time.perf_counter()
        for _ in range(n_calls):
            self.model.predict(x)
        return time.perf_counter() - begin

    def fit_digits(self, file: str, seed: int) -> tuple[float, float]:
        """Seconds of a whole fit as `profiling.digits` describes it, and accuracy on the held-out samples."""
        from profiling.digits import BATCH, EPOCHS, HIDDEN

        with np.load(file) as arrays:
            x, y, x_test, y_test = (arrays[name] for name in ("x", "y", "x_test", "y_test"))
        begin = time.perf_counter()
        network = nbbp.Sequential([nbbp.Dense(HIDDEN, activation="relu"), nbbp.Dense(10)], n_in=x.shape[1])
        model = nbbp.Model(network, loss="crossentropy", optimizer=nbbp.Adam(LEARNING_RATE), seed=seed)
        model.fit(x, y, epochs=EPOCHS, batch_size=BATCH, verbose=0)
        seconds = time.perf_counter() - begin
        return seconds, float(np.mean(model.predict(x_test).argmax(axis=1) == y_test))
