"""scikit-learn's MLPClassifier: ``partial_fit`` over many batches, one epoch of its own loop."""

from __future__ import annotations

import time
import warnings

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from profiling.cases import BETA_1, BETA_2, EPSILON, LEARNING_RATE, Case


class ScikitLearn:
    """``MLPClassifier(solver="adam", alpha=0)``. Two classes become one logistic output there."""

    def __init__(self, n_threads: int) -> None:
        # Its threads are the BLAS's, which the worker's environment has set.
        del n_threads

    @staticmethod
    def version() -> str:
        return f"scikit-learn {sklearn.__version__}"

    def load(self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
        self.case, self.initial, self.x, self.y = case, parameters, x, y
        self._start()

    def _start(self) -> None:
        self.model = MLPClassifier(
            hidden_layer_sizes=self.case.sizes[1:-1],
            activation=self.case.activation,
            solver="adam",
            alpha=0.0,
            batch_size=self.case.batch,
            learning_rate_init=LEARNING_RATE,
            beta_1=BETA_1,
            beta_2=BETA_2,
            epsilon=EPSILON,
            shuffle=False,
            random_state=0,
        )
        # The first call makes the arrays; then the given parameters replace its own, and Adam starts afresh.
        n_classes = self.case.sizes[-1]
        batch = self.case.batch
        self.model.partial_fit(self.x[:batch], self.y[:batch], classes=np.arange(n_classes))
        del self.model._optimizer
        initial = list(self.initial)
        if n_classes == 2:
            initial[-2] = initial[-2][:, 1:] - initial[-2][:, :1]
            initial[-1] = initial[-1][1:] - initial[-1][:1]
        for i in range(len(self.case.sizes) - 1):
            self.model.coefs_[i][...] = initial[2 * i]
            self.model.intercepts_[i][...] = initial[2 * i + 1]

    def losses(self, n: int) -> list[float]:
        """Losses of `n` steps; of one where there are two classes: Adam differs on one logit and on two."""
        self._start()
        losses = []
        for i in range(1 if self.case.sizes[-1] == 2 else n):
            rows = slice(i * self.case.batch, (i + 1) * self.case.batch)
            self.model.partial_fit(self.x[rows], self.y[rows])
            losses.append(float(self.model.loss_))
        return losses

    def compile(self, n_steps: int) -> None:
        self.model.set_params(shuffle=True)
        self.run(min(n_steps, 20))

    def run(self, n_steps: int) -> float:
        n = n_steps * self.case.batch
        begin = time.perf_counter()
        self.model.partial_fit(self.x[:n], self.y[:n])
        return time.perf_counter() - begin

    def outputs(self, n: int) -> list[list[float]]:
        self._start()
        return self.model.predict_log_proba(self.x[:n]).tolist()

    def infer(self, batch: int, n_calls: int) -> float:
        x = self.x[:batch]
        begin = time.perf_counter()
        for _ in range(n_calls):
            self.model.predict_proba(x)
        return time.perf_counter() - begin

    def fit_digits(self, file: str, seed: int) -> tuple[float, float]:
        """Seconds of a whole fit as `profiling.digits` describes it, and accuracy on the held-out samples."""
        from profiling.digits import BATCH, EPOCHS, HIDDEN

        with np.load(file) as arrays:
            x, y, x_test, y_test = (arrays[name] for name in ("x", "y", "x_test", "y_test"))
        model = MLPClassifier(
            hidden_layer_sizes=(HIDDEN,),
            alpha=0.0,
            batch_size=BATCH,
            learning_rate_init=LEARNING_RATE,
            max_iter=EPOCHS,
            n_iter_no_change=EPOCHS + 1,
            random_state=seed,
        )
        begin = time.perf_counter()
        with warnings.catch_warnings():
            # It warns that it has not converged; it has trained for as many epochs as it was asked to.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        seconds = time.perf_counter() - begin
        return seconds, float(model.score(x_test, y_test))
