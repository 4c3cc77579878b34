"""PyTorch, eager and compiled, with its fused Adam. Batches are views of one tensor: no shuffle, copy or loader."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np
import torch

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


class PyTorch:
    """``torch.nn.Sequential`` of Linear and the activation, ``cross_entropy``, ``Adam(fused=True)``."""

    def __init__(self, n_threads: int) -> None:
        torch.set_num_threads(n_threads)

    @staticmethod
    def version() -> str:
        return f"PyTorch {torch.__version__}"

    def load(self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
        self.case, self.initial = case, parameters
        self.x, self.y = torch.from_numpy(x).split(case.batch), torch.from_numpy(y).split(case.batch)
        self._start()

    @staticmethod
    def _hidden(case: Case, linear: torch.nn.Linear, rate: float) -> list[torch.nn.Module]:
        """A hidden layer behind its linear part."""
        activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[case.activation]()
        if case.layer == DROPOUT:
            return [linear, activation, torch.nn.Dropout(rate)]
        norm = {BATCH_NORM: torch.nn.BatchNorm1d, LAYER_NORM: torch.nn.LayerNorm}.get(case.layer)
        return [linear, *([norm(linear.out_features, eps=NORM_EPSILON)] if norm else []), activation]

    def _start(self, rate: float = DROPOUT_RATE) -> None:
        layers: list[torch.nn.Module] = []
        for i in range(len(self.case.sizes) - 1):
            linear = torch.nn.Linear(self.case.sizes[i], self.case.sizes[i + 1])
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(self.initial[2 * i].T.copy()))
                linear.bias.copy_(torch.from_numpy(self.initial[2 * i + 1]))
            is_last = i == len(self.case.sizes) - 2
            layers += [linear] if is_last else self._hidden(self.case, linear, rate)
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=LEARNING_RATE, betas=(BETA_1, BETA_2), eps=EPSILON, fused=True
        )

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def losses(self, n: int) -> list[float]:
        self._start(rate=0.0)
        losses = [self._step(self.x[i], self.y[i]).item() for i in range(n)]
        self._start()
        return losses

    def compile(self, n_steps: int) -> None:
        self.run(min(n_steps, 20))

    def run(self, n_steps: int) -> float:
        begin = time.perf_counter()
        for x, y in zip(self.x[:n_steps], self.y[:n_steps], strict=True):
            self._step(x, y)
        return time.perf_counter() - begin

    def predict_one(self, n_calls: int) -> float:
        """Seconds per prediction of one sample, from Python, with ``inference_mode``."""
        sample = self.x[0][:1]
        with torch.inference_mode():
            self.model(sample)
            begin = time.perf_counter()
            for _ in range(n_calls):
                self.model(sample)
            return (time.perf_counter() - begin) / n_calls

    def outputs(self, n: int) -> list[list[float]]:
        self._start()
        with torch.inference_mode():
            return self.model(torch.cat(self.x)[:n]).tolist()

    def infer(self, batch: int, n_calls: int) -> float:
        x = torch.cat(self.x)[:batch]
        with torch.inference_mode():
            self.model(x)
            begin = time.perf_counter()
            for _ in range(n_calls):
                self.model(x)
            return time.perf_counter() - begin


class PyTorchCompiled(PyTorch):
    """The same with ``torch.compile`` of network and loss together, for fixed shapes; it needs a C++ compiler."""

    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads)
        if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
            raise ImportError("torch.compile needs a C++ compiler")

    def _start(self, rate: float = DROPOUT_RATE) -> None:
        super()._start(rate)
        torch._dynamo.reset()  # of the network before, whose shapes it would go on to guard against
        plain = self.model
        self.model = torch.compile(plain, dynamic=False)
        self.loss_of = torch.compile(lambda x, y: torch.nn.functional.cross_entropy(plain(x), y), dynamic=False)

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(x, y)
        loss.backward()
        self.optimizer.step()
        return loss
