"""The libraries that ``profiling/cuda.py`` times on a GPU, each behind the same few calls.

PyTorch's batches, and JAX's, are views of arrays that lie on the GPU; Adam is the library's fused one, or written out
where XLA fuses it. tf32 is off but where a row is of it; bf16 is PyTorch's autocast, and none of JAX's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import nbbp
from profiling.cases import BETA_1, BETA_2, EPSILON, LEARNING_RATE, Case

#: Times a matrix product and a copy are repeated to find the rates of the GPU.
_PROBES = 20


class Peer:
    """A library; see the methods. An ImportError or RuntimeError in `__init__` means that it is not to be had."""

    name = ""

    def load(
        self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray, precision: str = "float32"
    ) -> None:
        """Take initial parameters and data, to the GPU; `precision` as `nbbp.Model`."""
        raise NotImplementedError

    def losses(self, n: int) -> list[float]:
        """Losses of the first `n` batches in order, one step each, from the initial parameters."""
        raise NotImplementedError

    def compile(self, n_steps: int) -> None:
        """Make ready to time: a run that is not timed."""
        self.run(n_steps)

    def run(self, n_steps: int) -> float:
        """Seconds of `n_steps` steps."""
        raise NotImplementedError

    def predict(self) -> float:
        """Seconds of a forward pass over all samples that were loaded."""
        raise NotImplementedError

    def forget(self) -> None:
        """Give the GPU's memory back."""


def timed(work: Callable[[], Any]) -> float:
    """Seconds between device events around `work`, at whose end the device is idle; the clock's on the simulator."""
    from numba import cuda

    from nbbp.cuda.kernels import SIMULATED

    if SIMULATED:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    begin, end = cuda.event(), cuda.event()
    cuda.synchronize()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end)


class Nbbp(Peer):
    """``Model.fit`` on arrays that lie on the GPU."""

    name = "nbbp"

    def __init__(self) -> None:
        nbbp.Model(nbbp.Sequential([nbbp.Dense(1)], n_in=1), "mse", device="cuda")  # raises where there is no GPU

    def load(
        self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray, precision: str = "float32"
    ) -> None:
        from numba import cuda

        from nbbp.cuda.kernels import SIMULATED

        self.case, self.initial, self.precision = case, parameters, precision
        self.host = x, y
        self.x, self.y = (x, y) if SIMULATED else (cuda.to_device(x), cuda.to_device(y))
        self._start()

    def _start(self) -> None:
        *hidden, n_out = self.case.sizes[1:]
        layers = [nbbp.Dense(n, activation="relu") for n in hidden] + [nbbp.Dense(n_out)]
        optimizer = nbbp.Adam(learning_rate=LEARNING_RATE, betas=(BETA_1, BETA_2), eps=EPSILON)
        network = nbbp.Sequential(layers, n_in=self.case.sizes[0])
        self.model = nbbp.Model(network, "crossentropy", optimizer, device="cuda", precision=self.precision)
        for values, initial in zip(self.model.parameters.values(), self.initial, strict=True):
            values[...] = initial

    def losses(self, n: int) -> list[float]:
        b, (x, y) = self.case.batch, self.host
        return [self.model.train_step(x[i * b : (i + 1) * b], y[i * b : (i + 1) * b]) for i in range(n)]

    def run(self, n_steps: int) -> float:
        n = n_steps * self.case.batch
        return timed(lambda: self.model.fit(self.x[:n], self.y[:n], batch_size=self.case.batch, verbose=0))

    def predict(self) -> float:
        return timed(lambda: self.model.predict(self.x))

    def forget(self) -> None:
        del self.model, self.x, self.y


class Torch(Peer):
    """Eager; its subclasses compile the step, or record it."""

    name = "torch-eager"

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        self.torch = torch
        self._take("float32")

    def _take(self, precision: str) -> None:
        """Compute in that precision from here on."""
        if precision not in ("float32", "tf32", "bf16"):
            raise RuntimeError(f"{precision} is not compared")
        torch, self.precision = self.torch, precision
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"

    def _autocast(self) -> Any:
        """The context of a forward pass."""
        return self.torch.autocast("cuda", self.torch.bfloat16, enabled=self.precision == "bf16")

    def load(
        self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray, precision: str = "float32"
    ) -> None:
        torch = self.torch
        self._take(precision)
        self.case, self.initial = case, parameters
        self.all_x = torch.from_numpy(x).cuda()
        self.x, self.y = self.all_x.split(case.batch), torch.from_numpy(y).cuda().split(case.batch)
        self._start()

    def _start(self) -> None:
        torch = self.torch
        layers: list[Any] = []
        for n_in, n_out in zip(self.case.sizes[:-1], self.case.sizes[1:], strict=True):
            layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers[:-1]).cuda()
        with torch.no_grad():
            for values, initial in zip(self.net.parameters(), self.initial, strict=True):
                values.copy_(torch.from_numpy(initial.T if initial.ndim == 2 else initial))
        settings = {"lr": LEARNING_RATE, "betas": (BETA_1, BETA_2), "eps": EPSILON}
        self.adam = torch.optim.Adam(self.net.parameters(), fused=True, capturable=True, **settings)
        self.call = self._forward_and_backward

    def _forward_and_backward(self, x: Any, y: Any) -> Any:
        with self._autocast():
            loss = self.torch.nn.functional.cross_entropy(self.net(x), y)
        loss.backward()
        return loss

    def step(self, x: Any, y: Any) -> Any:
        """One optimizer step; the loss before it."""
        self.adam.zero_grad(set_to_none=True)
        loss = self.call(x, y)
        self.adam.step()
        return loss

    def losses(self, n: int) -> list[float]:
        return [float(self.step(x, y).detach()) for x, y in zip(self.x[:n], self.y[:n], strict=True)]

    def run(self, n_steps: int) -> float:
        return self._events(lambda: [self.step(x, y) for x, y in zip(self.x, self.y, strict=True)][:0])

    def _events(self, work: Callable[[], Any]) -> float:
        cuda = self.torch.cuda
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda.synchronize()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)

    def predict(self) -> float:
        with self.torch.no_grad(), self._autocast():
            self.net(self.all_x)
            return self._events(lambda: self.net(self.all_x))

    def forget(self) -> None:
        del self.net, self.adam, self.x, self.y, self.all_x, self.call
        self.torch.cuda.empty_cache()


class TorchCompiled(Torch):
    """``torch.compile(mode="max-autotune")`` around forward and loss, as its documentation has it."""

    name = "torch-compile"

    def _start(self) -> None:
        super()._start()
        net, cross_entropy = self.net, self.torch.nn.functional.cross_entropy
        forward = self.torch.compile(lambda x, y: cross_entropy(net(x), y), mode="max-autotune")

        def call(x: Any, y: Any) -> Any:
            with self._autocast():
                loss = forward(x, y)
            loss.backward()
            return loss

        self.call = call


class TorchGraph(Torch):
    """The whole step recorded in a CUDA graph, which copies each batch to where the graph reads it."""

    name = "torch-graph"

    def _start(self) -> None:
        super()._start()
        self.graph = None

    def _record(self) -> None:
        torch = self.torch
        self.static_x, self.static_y = self.x[0].clone(), self.y[0].clone()
        before = [values.detach().clone() for values in self.net.parameters()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().step(self.static_x, self.static_y)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        self.adam.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self.loss = self._forward_and_backward(self.static_x, self.static_y)
            self.adam.step()
        with torch.no_grad():  # begin anew: the steps that warmed up have been made
            for values, first in zip(self.net.parameters(), before, strict=True):
                values.copy_(first)
            for state in self.adam.state.values():
                for value in state.values():
                    value.zero_()

    def step(self, x: Any, y: Any) -> Any:
        if self.graph is None:
            self._record()
        self.static_x.copy_(x)
        self.static_y.copy_(y)
        self.graph.replay()
        return self.loss

    def forget(self) -> None:
        self.graph = None
        super().forget()


class Jax(Peer):
    """One compiled call per step, or with `scans` one for all of them; from ``profiling/peers/jax_peer.py``."""

    name, scans = "jax-jit", False

    def __init__(self) -> None:
        import jax

        if jax.default_backend() != "gpu":
            raise RuntimeError("JAX finds no GPU")
        from profiling.peers.jax_peer import JaxJit, JaxScan

        self.jax, self.peer = jax, (JaxScan if self.scans else JaxJit)(1)

    def load(
        self, case: Case, parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray, precision: str = "float32"
    ) -> None:
        names = {"float32": "highest", "tf32": "tensorfloat32"}
        if precision not in names:
            raise RuntimeError(f"{precision} is compared with PyTorch alone")
        self.jax.config.update("jax_default_matmul_precision", names[precision])
        self.case = case
        self.peer.load(case, parameters, x, y)

    def losses(self, n: int) -> list[float]:
        return self.peer.losses(n)

    def compile(self, n_steps: int) -> None:
        self.peer.compile(n_steps)

    def run(self, n_steps: int) -> float:
        return self.peer.run(n_steps)

    def predict(self) -> float:
        raise RuntimeError("prediction is compared with PyTorch alone")


class JaxScan(Jax):
    """All steps in one ``lax.scan``."""

    name, scans = "jax-scan", True


PEERS = {peer.name: peer for peer in (Nbbp, Torch, TorchCompiled, TorchGraph, Jax, JaxScan)}


def installed(names: Sequence[str]) -> list[Peer]:
    """The peers that can be had; the others are named on stderr."""
    found = []
    for name in names:
        try:
            found.append(PEERS[name]())
        except Exception as error:
            print(f"{name}: left out: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def rates(precision: str = "float32") -> tuple[float, float] | None:
    """Operations per second of the best matrix product, in that precision, and bytes per second of a copy (read and
    written); None without torch.
    """
    try:
        peer = Torch()
    except (ImportError, RuntimeError):
        return None
    peer._take(precision)
    torch = peer.torch
    kind, best = torch.bfloat16 if precision == "bf16" else torch.float32, 0.0
    for n in (4096, 8192):
        a, b = (torch.randn(n, n, device="cuda", dtype=kind) for _ in range(2))
        a @ b
        best = max(best, 2.0 * n**3 / min(peer._events(lambda a=a, b=b: a @ b) for _ in range(_PROBES)))
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    seconds = min(peer._events(lambda: target.copy_(source)) for _ in range(_PROBES))
    return best, 2.0 * source.numel() * source.element_size() / seconds


def conditions(peers: Sequence[Peer], found: dict[str, tuple[float, float] | None]) -> str:
    """The GPU, versions and rates, by their precisions, in one paragraph."""
    import importlib.metadata

    from nbbp.diagnostics import cuda_devices

    packages = ("nbbp", "numba", "numba-cuda", "torch", "jax")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    measured = "".join(
        f" Products in {precision} {pair[0] / 1e12:.1f} TFLOP/s, copies {pair[1] / 1e9:.0f} GB/s."
        for precision, pair in found.items()
        if pair
    )
    return f"{cuda_devices()}; {', '.join(versions)}.{measured} Times are minima of {', '.join(p.name for p in peers)}."
