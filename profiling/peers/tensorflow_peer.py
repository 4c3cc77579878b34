"""TensorFlow: a Keras model in one ``tf.function``, compiled by XLA, per step or prediction."""

from __future__ import annotations

import os
import time

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from profiling.cases import BETA_1, BETA_2, EPSILON, LEARNING_RATE, Case


class TensorFlow:
    """``keras.Sequential`` of Dense, sparse crossentropy and Adam; the batches lie in TensorFlow's memory already."""

    def __init__(self, n_threads: int) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(n_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)

    @staticmethod
    def version() -> str:
        return f"TensorFlow {tf.__version__}"

    def load(self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
        self.case, self.initial, self.x, self.y = case, parameters, x, y
        self._start()

    def _start(self) -> None:
        *hidden, n_out = self.case.sizes[1:]
        layers = [tf.keras.layers.Dense(n, activation=self.case.activation) for n in hidden]
        layers += [tf.keras.layers.Dense(n_out)]
        self.model = tf.keras.Sequential([tf.keras.Input((self.case.sizes[0],)), *layers])
        self.model.set_weights(self.initial)
        optimizer = tf.keras.optimizers.Adam(LEARNING_RATE, beta_1=BETA_1, beta_2=BETA_2, epsilon=EPSILON)
        optimizer.build(self.model.trainable_variables)
        crossentropy = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model = self.model

        @tf.function(jit_compile=True)
        def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = crossentropy(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        @tf.function(jit_compile=True)
        def predict(x: tf.Tensor) -> tf.Tensor:
            return model(x, training=False)

        self.step, self.predict = step, predict

    def _batch(self, i: int) -> tuple[tf.Tensor, tf.Tensor]:
        rows = slice(i * self.case.batch, (i + 1) * self.case.batch)
        return tf.constant(self.x[rows]), tf.constant(self.y[rows])

    def losses(self, n: int) -> list[float]:
        self._start()
        losses = [float(self.step(*self._batch(i))) for i in range(n)]
        self._start()
        return losses

    def compile(self, n_steps: int) -> None:
        self.batches = [self._batch(i) for i in range(n_steps)]
        self.run(min(n_steps, 20))

    def run(self, n_steps: int) -> float:
        begin = time.perf_counter()
        for batch in self.batches[:n_steps]:
            loss = self.step(*batch)
        loss.numpy()
        return time.perf_counter() - begin

    def outputs(self, n: int) -> list[list[float]]:
        self._start()
        return self.predict(tf.constant(self.x[:n])).numpy().tolist()

    def infer(self, batch: int, n_calls: int) -> float:
        x = tf.constant(self.x[:batch])
        self.predict(x)
        begin = time.perf_counter()
        for _ in range(n_calls):
            self.predict(x).numpy()
        return time.perf_counter() - begin
