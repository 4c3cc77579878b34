"""Session: the memory of one model and its bound programs; what `Model` and the epoch loop run.

Legend: a chunk (nbbp/sources.py) is arrays and the order of their rows; losses and metrics come back one number per
row.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbbp import programs, tiling
from nbbp.cpu import entry
from nbbp.cpu.engine import BoundProgram, aligned, get_num_threads
from nbbp.layers import Activation
from nbbp.losses import Loss
from nbbp.lowering.base import PLACE_IN_BATCH, padded
from nbbp.lowering.parameters import LOSS_SCALE, slot_lengths
from nbbp.metrics import Metric
from nbbp.monitored_steps import Monitor, attach_monitor
from nbbp.network import Sequential
from nbbp.optimizers import Optimizer
from nbbp.placement import FORWARD_BATCH, OnHost
from nbbp.precision import LossScaling, scale_memory
from nbbp.program import Program
from nbbp.quick import QuickStep, quick_step
from nbbp.scheduling import Clock
from nbbp.sources import Chunk, Source
from nbbp.standardization import check_known
from nbbp.step_coefficients import StepCoefficients

#: Bound programs kept for batches of other sizes.
_KEPT = 8
#: What a session is made of; everything else can be made anew, or is numbers.
_MADE_OF = ("network", "loss", "optimizer", "metrics", "dtype", "seed", "precision", "loss_scaling")


def _one_at_a_time(method: Callable) -> Callable:
    """Let one of the caller's threads at a time train: they share parameters, slots and the count of steps."""

    @functools.wraps(method)
    def alone(self: Session, *arguments: Any, **keywords: Any) -> Any:
        with self.lock:
            return method(self, *arguments, **keywords)

    return alone


class Session(OnHost):
    """Parameters, optimizer slots and bound programs of a model.

    Parameters
    ----------
    network : Sequential
        With sizes.
    loss, optimizer, metrics, dtype, seed, precision, loss_scaling
        As `nbbp.Model`, normalised.
    parameters : ndarray (n_parameters,), optional
        To begin with; without them the network's initial ones.

    Attributes
    ----------
    parameters : ndarray (n_parameters,)
        The flat buffer, aligned to 64 bytes.
    state : ndarray
        The flat buffer of what layers keep beside their parameters.
    slot_buffer : ndarray
        Everything that the optimizer keeps from step to step.
    slots : list of ndarray
        Views of it, each from a cache line on.
    coefficients : StepCoefficients
        What the optimizer's next steps take.
    monitor : Monitor or None
        Who is to be told of the layers, while somebody is.
    good_parameters : ndarray or None
        The last parameters with a finite loss, while `fit` runs.
    good_state, good_scale : ndarray or None
        The state and the loss scale that go with them.
    step : int
        Training batches so far, which are also the updates unless the optimizer adds up the gradients of several.
    steps_ahead : int
        Quick steps for which coefficients are at hand; 0 after any other update.
    loss_scale : ndarray (5,)
        Of fp16: the scale of the loss's gradient and what its growth goes by (nbbp/precision.py); otherwise empty.
    clock : Clock
        Where the optimizer's schedule stands.
    lock : threading.RLock
        Held while a thread trains.
    watchers : list of nbbp.profiler.Profile
        Who counts the time of every op at the moment.
    """

    def __init__(
        self,
        network: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        metrics: Sequence[Metric],
        dtype: np.dtype,
        seed: int,
        precision: str = "float32",
        loss_scaling: LossScaling | None = None,
        parameters: np.ndarray | None = None,
    ) -> None:
        self.network, self.loss, self.optimizer, self.metrics = network, loss, optimizer, tuple(metrics)
        self.dtype, self.seed, self.step, self.epoch = dtype, seed, 0, 0
        self.precision, self.loss_scaling = precision, loss_scaling
        self.loss_scale = scale_memory(loss_scaling)
        self.clock = Clock(optimizer)
        self.n_out, self.form = network.n_out, network.form
        self.parameters = aligned(network.n_parameters, dtype)
        self.parameters[:] = network.initial_parameters(seed, dtype) if parameters is None else parameters
        self.state = aligned(network.states[-1].stop if network.states else 0, dtype)
        self.state[:] = network.initial_state(dtype)
        lengths = slot_lengths(network, optimizer)
        strides = [padded(n) for n in lengths]
        self.slot_buffer = aligned(sum(strides), dtype)
        self.slots = [self.slot_buffer[sum(strides[:k]) :][:n] for k, n in enumerate(lengths)]
        self.good_parameters = self.good_state = self.good_scale = None
        self._bound: OrderedDict[tuple, BoundProgram] = OrderedDict()
        self.coefficients = StepCoefficients(network, optimizer)
        self.monitor: Monitor | None = None
        self.lock, self.watchers, self.steps_ahead = threading.RLock(), [], 0
        self._making = threading.Lock()
        self.find_short_ways()

    def find_short_ways(self) -> None:
        """Let quick calls from Python look, or look again, whether there is a short way for them."""
        self._quick: QuickStep | None = None
        self._of_this_thread = threading.local()

    # copies -----------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what holds addresses: bound programs are made anew where they are needed."""
        numbers = ("step", "epoch", "clock", "parameters", "state", "slots", "loss_scale")
        return {name: getattr(self, name) for name in (*_MADE_OF, *numbers)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*(state[name] for name in _MADE_OF))
        for name in ("parameters", "state", "loss_scale"):
            getattr(self, name)[:] = state[name]
        self.step, self.epoch, self.clock = state["step"], state["epoch"], state["clock"]
        for slot, values in zip(self.slots, state["slots"], strict=True):
            slot[:] = values

    # programs ---------------------------------------------------------------------------------------------

    def _program(self, key: tuple, make: Callable[[], Program]) -> BoundProgram:
        """The bound program of this key, made when first asked for."""
        with self._making:
            if key in self._bound:
                self._bound.move_to_end(key)
                return self._bound[key]
            while len(self._bound) >= _KEPT:
                self._bound.popitem(last=False)
            self._bound[key] = self.bind(make())
            return self._bound[key]

    def bind(self, program: Program) -> BoundProgram:
        """A program with the model's own buffers."""
        check_known(self.network, self.state)
        buffers = {"parameters": self.parameters, "state": self.state, LOSS_SCALE: self.loss_scale}
        buffers |= {f"slot {k}": slot for k, slot in enumerate(self.slots)}
        if self.good_parameters is not None:
            buffers["good parameters"] = self.good_parameters
        return BoundProgram(program, self.dtype, buffers, self.seed, self.watchers)

    def training(self, batch: int, labels: bool, keeps_good: bool, augment: tuple = ()) -> BoundProgram:
        """The training program for batches of that size, whose rows are augmented."""
        is_monitored = self.monitor is not None and keeps_good

        def make() -> Program:
            metrics = self.metrics if keeps_good else ()
            what = self.network, self.loss, self.optimizer, metrics, batch, labels, keeps_good, self.precision, augment
            program = programs.training_program(*what, plan=self.plan)
            if is_monitored:
                program.monitor_by(programs.training_program(*what, is_monitored=True, plan=self.plan))
            return program

        return self._program(("train", batch, labels, keeps_good, augment, is_monitored), make)

    def begin_fit(self) -> None:
        """Start keeping the last good parameters.

        Raises
        ------
        ValueError
            If there are none: a parameter holds NaN or infinity.
        """
        bad = self.network.first_not_finite(self.parameters)
        if bad is not None:
            raise ValueError(f"parameter {bad} holds NaN or infinity; expected numbers before training")
        if self.good_parameters is None:
            self.good_parameters = aligned(len(self.parameters), self.dtype)
        self.good_parameters[:], self.good_state = self.parameters, self.state.copy()
        self.good_scale = self.loss_scale.copy()

    def restore(self) -> None:
        """Put the last good parameters and state back, and forget the optimizer's moments, which NaN may have reached.

        (Statistics of activations on their way to infinity are finite for a while, and no use to anybody. The loss
        scale has fallen with every batch since, to where no gradient is left of the next run.)
        """
        self.parameters[:], self.state[:] = self.good_parameters, self.good_state
        self.loss_scale[:] = self.good_scale
        for slot in self.slots:
            slot[:] = 0
        self.step, self.steps_ahead, self._quick = 0, 0, None

    def _attach(self, bound: BoundProgram, chunk: Chunk, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Attach a chunk's data and new arrays for its losses and metrics."""
        bound.attach("X", chunk.X)
        bound.attach("target", chunk.y)
        bound.attach("sample weight", chunk.weight)
        bound.attach("order", chunk.order)
        losses = np.empty(n)
        bound.attach("loss values", losses)
        metrics = []
        for number in range(len(self.metrics)):
            metrics.append(np.empty(n))
            bound.attach(f"metric values {number}", metrics[-1])
        return losses, metrics

    def _attach_coefficients(self, bound: BoundProgram, n_steps: int) -> int:
        """Attach the coefficients of the next steps, at least `n_steps`; for how many they last."""
        tables, n_ready = self.coefficients.after(self.step, n_steps, self.clock)
        for name, table in tables.items():
            bound.attach(name, table)
        bound.count_from(self.step)
        return n_ready

    # training ---------------------------------------------------------------------------------------------

    @_one_at_a_time
    def train_chunk(self, chunk: Chunk, batch: int, augment: tuple = ()) -> tuple[np.ndarray, list[np.ndarray]]:
        """Train on every batch of a chunk, in its order; losses (rows,) and metrics [(rows,), …], as weighted."""
        n = len(chunk.order)
        bound = self.training(batch, chunk.has_labels, True, augment)
        n_steps = -(-n // bound.program.batch)
        losses, metrics = self._attach(bound, chunk, n)
        if augment:
            bound.attach(PLACE_IN_BATCH, np.arange(n, dtype=np.int64) % bound.program.batch)
        self._attach_coefficients(bound, n_steps)
        monitored = attach_monitor(self, bound, n_steps)
        state, scale = self.state.copy(), self.loss_scale.copy()
        try:
            bound.run(n)
        finally:  # Ctrl-C is heard when the steps are done
            self.step += n_steps
            self.steps_ahead = 0
        if np.isfinite(losses[:batch]).all():  # as cpu/snapshot.py decides about the parameters
            self.good_state, self.good_scale = state, scale
        if monitored is not None:
            self.monitor.take(*monitored)
        return losses, metrics

    @_one_at_a_time
    def train_batch(self, chunk: Chunk) -> float:
        """One update on a whole chunk as one batch; its loss."""
        n = len(chunk.order)
        bound = self.training(n, chunk.has_labels, False)
        losses, _ = self._attach(bound, chunk, n)
        self._attach_coefficients(bound, 1)
        bound.run(n)
        self.step += 1
        # a quick step may share this program, which now weighs and orders its rows as this chunk does
        self.steps_ahead, self._quick = 0, None
        return self.total(entry.total(losses, 0.0), n)

    def total(self, sum_of_rows: float, n: int) -> float:
        """The loss from the sum of the rows' losses."""
        return sum_of_rows / n if self.loss.reduction == "mean" else sum_of_rows

    def train_quickly(self, x: Any, y: Any) -> float | None:
        """`train_batch` for arrays that need no conversion; None where they do, or are not what they should be."""
        with self.lock:  # here and not around: a wrapper costs as much as all the checks
            quick = self._quick
            if (
                quick is None
                or type(x) is not np.ndarray
                or type(y) is not np.ndarray
                or x.shape != quick.shape_x
                or y.shape != quick.shape_y
                or x.dtype != self.dtype
                or y.dtype != quick.dtype_y
                or not x.flags.carray
                or not y.flags.carray
                or (quick.bound.program.is_shared and quick.bound.n_threads() > 1)
            ):
                quick = self._quick = quick_step(self, x, y)
                if quick is None:
                    return None
                self.steps_ahead = 0  # its program has no coefficients yet
            if self.steps_ahead == 0:
                self.steps_ahead = self._attach_coefficients(quick.bound, 1)
            self.steps_ahead -= 1  # before, so that Ctrl-C never leaves more steps than there are coefficients
            is_fine, total = entry.train_now(
                *quick.arguments, x, y if quick.is_shaped else y.reshape(-1, 1), *quick.more
            )
            if not is_fine:
                self.steps_ahead += 1
                return None
            self.step += 1
            return total / quick.divisor

    def gradients(self, chunk: Chunk) -> tuple[float, np.ndarray]:
        """Loss of a chunk as one batch, and a new array (n_parameters,) with its gradient."""
        n, labels = len(chunk.order), chunk.has_labels
        bound = self._program(
            ("gradient", n, labels),
            lambda: programs.training_program(
                self.network, self.loss, None, (), n, labels, precision=self.precision, plan=self.plan
            ),
        )
        with bound.lock:
            losses, _ = self._attach(bound, chunk, n)
            bound.count_from(self.step)
            bound.run(n)
            gradient = bound.buffer("gradient")[: len(self.parameters)].copy()
            if len(self.loss_scale):
                gradient *= np.float32(1) / self.loss_scale[0]
        return self.total(entry.total(losses, 0.0), n), gradient

    # forward ----------------------------------------------------------------------------------------------

    def evaluate(self, source: Source) -> dict[str, float]:
        """Loss and metrics over a source."""
        total, n_samples, sums = 0.0, 0, np.zeros(len(self.metrics))
        for chunk in self.chunks_of(source):
            n, labels = len(chunk.order), chunk.has_labels
            bound = self._program(
                ("evaluate", labels),
                lambda labels=labels: programs.evaluation_program(
                    self.network, self.loss, self.metrics, self.forward_batch, labels, self.precision
                ),
            )
            with bound.lock:
                losses, metrics = self._attach(bound, chunk, n)
                bound.run(n)
            total, n_samples = sum_of(losses, total), n_samples + n
            sums[:] = [sum_of(values, before) for values, before in zip(metrics, sums, strict=True)]
        return self.report(total, sums, n_samples)

    def report(self, total: float, metric_sums: np.ndarray, n_samples: int) -> dict[str, float]:
        """Loss and metrics by name, from their sums over `n_samples` rows."""
        report = {"loss": self.total(total, n_samples)}
        for metric, metric_sum in zip(self.metrics, metric_sums, strict=True):
            report[metric.name] = metric.finalise(float(metric_sum) / n_samples)
        return report

    def prediction(self, batch: int, also: Activation | None = None, keeps_outputs: bool = False) -> Program:
        """`programs.prediction_program` of this model."""
        return programs.prediction_program(self.network, batch, also, keeps_outputs, self.precision)

    def predict(self, source: Source, also: Activation | None) -> np.ndarray:
        """What the last layer, or `also` behind it, gives for every sample (n, n_out), in the shape of the outputs."""
        bound = self._program(("predict", also), lambda: self.prediction(self.forward_batch, also))
        parts = []
        for chunk in self.chunks_of(source):
            parts.append(np.empty((len(chunk.order), self.network.n_out), self.dtype))
            with bound.lock:
                for name, array in (("X", chunk.X), ("order", chunk.order), ("output", parts[-1])):
                    bound.attach(name, array)
                bound.run(len(chunk.order))
        return self.form.outputs(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def predict_quickly(self, x: np.ndarray) -> np.ndarray | None:
        """`predict` for rows that need no conversion; None where a number in them is not finite, a category, or where
        several threads would be quicker.

        Every thread has a program of its own for it, which costs less than a lock.
        """
        is_shared = len(x) > FORWARD_BATCH and tiling.is_shared(2.0 * len(x) * len(self.parameters))
        if self.form.categories or (is_shared and get_num_threads() > 1):
            return None
        mine = self._of_this_thread
        try:
            _, arguments = mine.prediction
        except AttributeError:
            if self.watchers:
                return None  # the long way is watched
            bound = self.bind(self.prediction(FORWARD_BATCH))
            bound.attach("order", None)
            (gather,), (copy_out,) = bound.program.find("gather"), bound.program.find("copy_out")
            table = bound.table, bound.tiles, bound.phases, FORWARD_BATCH, bound.scratch.ctypes.data
            arguments = (*table, gather, copy_out, np.finfo(self.dtype).max)
            mine.prediction = bound, arguments
        out = np.empty((x.shape[0], self.n_out), self.dtype)
        return self.form.outputs(out) if entry.predict_now(*arguments, x, out) else None


def sum_of(values: np.ndarray, before: float) -> float:
    """`before` and all of these, added one by one as jitted code does; NaN and infinity go in without a warning."""
    return entry.total(values, float(before))
