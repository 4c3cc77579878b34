"""Data on their way to the GPU in two pieces of memory by turns, and results on their way back: the same bits, and no
copy that meets another or the steps that read or write what it copies.
"""

import numpy as np
import pytest
from cuda_cases import assert_same_standing, batch_of, twins
from engine_cases import assert_near
from numba import cuda

import nbbp
from nbbp import losses
from nbbp.cuda import engine, kernels, memory, staging
from nbbp.layers import BatchNorm, Dense, Dropout

LAYERS = [Dense(7, "tanh"), BatchNorm(), Dropout(0.2), Dense(3)]
LOSS = losses.Crossentropy()
N_IN = 5


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of one batch of 4 or 6 rows; nothing stays on the GPU."""
    from nbbp.device_session import DeviceSession

    monkeypatch.setattr(staging, "CHUNK_BYTES", 1)
    monkeypatch.setattr(memory, "fits", lambda n_bytes: False)
    monkeypatch.setattr(DeviceSession, "forward_batch", 4)


def fitted(models, data, **settings):
    for model, given in zip(models, data, strict=True):
        model.fit(*given, epochs=2, batch_size=6, verbose=0, **settings)
    return models


# the same numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_data_larger_than_the_gpu(small_chunks, dtype):
    models = twins(LAYERS, N_IN, LOSS, dtype, metrics=("accuracy",), optimizer="adam")
    x, y = batch_of(models[0], 20)
    fitted(models, [(x, y)] * 2, sample_weight=np.linspace(0.5, 1.5, 20), validation_data=(x, y))
    assert_same_standing(*models)
    assert_near(models[1].predict(x), models[0].predict(x), dtype)
    assert models[1].evaluate(x, y) == pytest.approx(models[0].evaluate(x, y), rel=1e-5)


def test_not_a_bit_depends_on_the_chunks(small_chunks, monkeypatch):
    trained = []
    for n_bytes in (1, 1 << 20):
        monkeypatch.setattr(staging, "CHUNK_BYTES", n_bytes)
        model = twins(LAYERS, N_IN, LOSS, "float32", optimizer="adam")[1]
        x, y = batch_of(model, 20)
        history = model.fit(x, y, epochs=2, batch_size=6, verbose=0)
        trained.append((model.parameter_vector.copy(), history["loss"], model.predict(x)))
    for one, other in zip(*trained, strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_and_iterables(small_chunks, tmp_path):
    models = twins(LAYERS, N_IN, LOSS, "float32")
    x, y = batch_of(models[0], 20)
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    mapped[:] = x
    fitted(models, [(mapped, y)] * 2)
    assert_same_standing(*models)
    batches = [(x[:6], y[:6]), (x[6:9], y[6:9]), (x[9:], y[9:], np.arange(11.0))]
    fitted(models, [(batches,)] * 2)
    fitted(models, [(lambda: iter(batches),)] * 2)
    assert_same_standing(*models)
    outputs = [model.predict(part for part in (x[:3], x[3:4], x[4:])) for model in models]
    assert_near(outputs[1], outputs[0], "float32")
    assert_near(models[1].predict(mapped), models[0].predict(x), "float32")


def test_outputs_of_data_that_lie_on_the_gpu(small_chunks):
    from test_cuda_interface import OnDevice

    models = twins(LAYERS, N_IN, LOSS, "float32")
    x, _ = batch_of(models[0], 11)
    assert_near(models[1].predict(OnDevice(x)), models[0].predict(x), "float32")


def test_the_range_test_of_the_learning_rate(small_chunks):
    models = twins([Dense(7, "tanh"), Dense(3)], N_IN, LOSS, optimizer="adam")
    x, y = batch_of(models[0], 20)
    curves = [nbbp.find_learning_rate(model, x, y, steps=6, batch_size=4) for model in models]
    assert_near(curves[1].losses, curves[0].losses)


# what the caller's iterables do ---------------------------------------------------------------------------------------


def test_an_iterable_sees_the_model_as_the_batch_before_left_it(small_chunks):
    """It is asked for its next batch while the GPU computes, and for the model's numbers waits for that."""
    models = twins(LAYERS, N_IN, LOSS)
    x, y = batch_of(models[0], 24)
    seen = {model: [] for model in models}

    def batches(model):
        for first in range(0, 24, 6):
            seen[model].append((model.parameters["0.weight"].copy(), model.predict(x[:3])))
            yield x[first : first + 6], y[first : first + 6]

    for model in models:
        model.fit(batches(model), verbose=0)
    assert_same_standing(*models)
    for expected, actual in zip(*seen.values(), strict=True):
        for one, other in zip(expected, actual, strict=True):
            assert_near(other, one)


@pytest.mark.parametrize("does", ["train_step", "predict"])
def test_what_an_iterable_cannot_do(small_chunks, does):
    model = twins(LAYERS, N_IN, LOSS)[1]
    x, y = batch_of(model, 6)

    def batches():
        for _ in range(3):
            yield (x, y) if does == "train_step" else x
            model.train_step(x, y) if does == "train_step" else model.predict(x)

    with pytest.raises(RuntimeError, match="the model was asked to do the same again, or to train, by the iterable"):
        model.fit(batches(), verbose=0) if does == "train_step" else model.predict(batches())
    assert np.isfinite(model.train_step(x, y))


def test_an_error_waits_for_its_turn(small_chunks):
    """The batches before it have been trained on, as on the CPU."""
    models = twins(LAYERS, N_IN, LOSS)
    x, y = batch_of(models[0], 6)
    for model in models:

        def batches():
            yield x, y
            yield x, y
            yield np.full_like(x, np.nan), y

        with pytest.raises(ValueError, match="x of batch 2 of X holds NaN"):
            model.fit(batches(), verbose=0)
    assert_same_standing(*models)
    assert models[1]._session.step == 2


def test_ctrl_c_is_heard_at_once(small_chunks):
    model = twins(LAYERS, N_IN, LOSS)[1]
    x, y = batch_of(model, 6)

    def batches():
        yield x, y
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(batches(), verbose=0)
    assert model._session.step == 1
    assert np.isfinite(model.train_step(x, y))


# the order of copies and steps ----------------------------------------------------------------------------------------


class Gpu:
    """Copies of a stream of their own, and steps, of which one kind happens when somebody waits for it and no sooner.

    Whoever overwrites what is still read, or reads what has not been written, without having waited, gets wrong
    numbers, which the results show. The default stream waits for the steps, as theirs does for it.
    """

    def __init__(self, monkeypatch, late):
        self.late, self.pending, self.steps, self.record = late, [], [], []
        monkeypatch.setattr(staging.cuda, "event", lambda: Event(self))
        monkeypatch.setattr(staging, "copy_stream", lambda: "copies")
        kind, stream = type(cuda.device_array(1)), type(cuda.stream())
        monkeypatch.setattr(kind, "copy_to_device", self._later(kind.copy_to_device, "up"))
        monkeypatch.setattr(kind, "copy_to_host", self._later(kind.copy_to_host, "down"))
        monkeypatch.setattr(engine.BoundProgram, "_run", self._steps(engine.BoundProgram._run))
        monkeypatch.setattr(stream, "synchronize", lambda stream: self.end_steps())

    def _later(self, copy, name):
        def copying(array, other=None, stream=0):
            if stream != "copies":
                self.end_steps()
                return copy(array, other) if other is not None else copy(array)
            self.record.append(name)
            self.pending.append((name, lambda: copy(array, other)))
            if self.late == "steps":
                self.wait(1)
            return other

        return copying

    def _steps(self, run):
        def launch(*arguments):
            self.end_steps()
            self.record.append("steps")
            self.steps.append(lambda: run(*arguments))
            if self.late == "copies":
                self.end_steps()

        return launch

    def end_steps(self):
        """Let what was launched happen."""
        while self.steps:
            self.steps.pop()()

    def wait(self, n):
        """Let the first `n` copies happen."""
        for name, copy in self.pending[:n]:
            self.record.append(f"{name} done")
            copy()
        del self.pending[:n]


class Event:
    def __init__(self, gpu):
        self.gpu, self.last = gpu, None

    def record(self, stream):
        assert stream == "copies"
        self.last = self.gpu.pending[-1] if self.gpu.pending else None

    def synchronize(self):
        if self.last in self.gpu.pending:
            self.gpu.wait(self.gpu.pending.index(self.last) + 1)


@pytest.fixture(params=["copies", "steps"])
def gpu(request, small_chunks, monkeypatch):
    if not kernels.SIMULATED:
        pytest.skip("copies and steps of the simulator's can be put off")
    return Gpu(monkeypatch, request.param)


def test_everybody_waits_for_what_he_needs(gpu):
    models = twins(LAYERS, N_IN, LOSS, "float32", optimizer="adam")
    x, y = batch_of(models[0], 20)
    fitted(models, [(x, y)] * 2, validation_data=(x, y))
    assert_same_standing(*models)
    assert_near(models[1].predict(x), models[0].predict(x), "float32")
    assert models[1].evaluate(x, y) == pytest.approx(models[0].evaluate(x, y), rel=1e-5)
    assert gpu.pending == gpu.steps == []


def test_iterables_that_look_at_the_model_wait_too(gpu):
    test_an_iterable_sees_the_model_as_the_batch_before_left_it(None)


@pytest.mark.parametrize("lies", ["on the host", "on the GPU"])
def test_batches_may_come_in_the_same_place(gpu, lies):
    """An iterable that fills one array again and again, on the GPU by a stream that waits for nobody."""
    from test_cuda_dlpack import Exported

    models = twins(LAYERS, N_IN, LOSS, "float32", optimizer="adam")
    x, y = batch_of(models[0], 24)

    def batches(model):
        place, labels = np.empty_like(x[:6]), np.empty_like(y[:6])
        for first in range(0, 24, 6):
            place[:], labels[:] = x[first : first + 6], y[first : first + 6]
            on_gpu = lies == "on the GPU" and model.device == "cuda"
            yield (Exported(place), Exported(labels)) if on_gpu else (place, labels)

    for model in models:
        model.fit(batches(model), verbose=0)
    assert_same_standing(*models)


@pytest.mark.parametrize("gpu", ["copies"], indirect=True)
def test_copies_overlap_with_steps(gpu):
    """While a chunk is computed, the next one is sent, and then the results of the one before are fetched."""
    models = twins([Dense(3)], N_IN, LOSS, "float32")
    x, _ = batch_of(models[0], 16)
    assert_near(models[1].predict(x), models[0].predict(x), "float32")
    assert gpu.record == [
        *("up", "up done"),
        *("steps", "up", "down", "up done"),
        *("steps", "up", "down done", "down", "up done"),
        *("steps", "up", "down done", "down", "up done"),
        *("steps", "down done", "down", "down done"),
    ]  # fmt: skip


def test_pinned_memory_is_taken_once(small_chunks, monkeypatch):
    taken = []
    pinned = cuda.pinned_array
    monkeypatch.setattr(staging.cuda, "pinned_array", lambda n, dtype: taken.append(n) or pinned(n, dtype))
    model = twins(LAYERS, N_IN, LOSS, "float32")[1]
    x, y = batch_of(model, 24)
    model.fit(x, y, batch_size=6, verbose=0)
    n_taken = len(taken)
    assert 0 < n_taken <= 4  # features and labels, twice
    model.fit(x, y, batch_size=6, epochs=3, verbose=0)
    assert len(taken) == n_taken
    model.predict(x)
    n_taken = len(taken)
    model.predict(x)
    assert len(taken) == n_taken


def test_graphs_are_kept_for_both_pieces(monkeypatch, op_by_op):
    """Chunks come in two places by turns: each is recorded when it comes again."""
    from test_cuda_graph import Driver

    if not kernels.SIMULATED:
        pytest.skip("the driver is made up")
    places = [0]
    monkeypatch.setattr("nbbp.cuda.engine._address", lambda array: places[0])
    models = twins([Dense(3)], N_IN, LOSS)
    bound = models[1]._session.training(4, True, False)
    driver = bound._driver = Driver()
    monkeypatch.setattr(type(bound.stream), "__int__", lambda stream: 7, raising=False)
    x, y = batch_of(models[0], 4)
    recorded = []
    for places[0] in (1, 2, 1, 2, 1, 2, 3, 2):
        models[1].train_step(x, y)
        recorded.append(driver.calls.count("begin"))
    assert recorded == [0, 0, 1, 2, 2, 2, 2, 2]
