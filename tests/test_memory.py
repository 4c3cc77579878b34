"""Memory: nothing is written outside its buffer, no step allocates, and what is resident is what the design allows."""

import gc
import json
import os
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest

import nbbp
from nbbp import augmentation, optimizers, sources
from nbbp.cpu import engine

ROOT = Path(__file__).resolve().parents[1]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
GUARD = 1 << 20
PATTERN = 0xA5


def model_of(widths, n_in, optimizer="adam", dtype="float32", activation="relu", **settings):
    layers = [nbbp.Dense(width, activation=activation) for width in widths[:-1]]
    network = nbbp.Sequential([*layers, nbbp.Dense(widths[-1])], n_in=n_in)
    return nbbp.Model(network, "crossentropy", optimizer, **{"dtype": dtype, "metrics": ("accuracy",)} | settings)


def samples(n, n_in, n_classes, dtype="float32"):
    random = np.random.default_rng(0)
    return random.standard_normal((n, n_in)).astype(dtype), random.integers(0, n_classes, n)


@pytest.fixture
def overruns(monkeypatch):
    """A function that names every buffer of an engine with something written before its start or behind its end."""
    guarded = []

    def aligned(n, dtype):
        size = n * np.dtype(dtype).itemsize
        raw = np.full(size + 2 * GUARD + 64, PATTERN, np.uint8)
        start = GUARD - (raw.ctypes.data + GUARD) % 64 + 64
        inside = raw[start : start + size]
        inside[:] = 0
        caller = sys._getframe(1)
        guarded.append((f"{caller.f_code.co_name}, line {caller.f_lineno}, of {n} {np.dtype(dtype)}", raw, start, size))
        return inside.view(dtype)

    monkeypatch.setattr(engine, "aligned", aligned)
    monkeypatch.setattr("nbbp.session.aligned", aligned)

    def found():
        names = [
            name
            for name, raw, start, size in guarded
            if (raw[:start] != PATTERN).any() or (raw[start + size :] != PATTERN).any()
        ]
        guarded.clear()
        return names

    return found


def last_is_one(row, key):
    row[row.size - 1] = 1


NETWORKS = {
    "tiny": ((1,), 1, 1),
    "one sample": ((16, 16, 2), 4, 1),
    "short rows": ((17, 31, 3), 5, 7),
    "several blocks of rows": ((64, 64, 10), 64, 300),
    "wide": ((300, 77, 3), 129, 100),
    "wide and wider": ((512, 300, 260), 256, 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("kind", ["float32", "float64", "bf16", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_written_outside_its_buffer(name, kind, n_threads, overruns, monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", n_threads)
    monkeypatch.setattr("nbbp.tiling._SHARED_WORK", 0)
    widths, n_in, batch = NETWORKS[name]
    dtype, precision = ("float32", kind) if kind in ("bf16", "fp16") else (kind, "float32")
    X, y = samples(2 * batch + 1, n_in, widths[-1], dtype)
    for optimizer, activation in (("adam", "relu"), ("adafactor", "gelu"), ("sgd", "softmax")):
        model = model_of(widths, n_in, optimizer, dtype, activation, precision=precision)
        model.fit(X, y, batch_size=batch, epochs=2, validation_split=0.3, verbose=0)
        shift = [augmentation.Shift((n_in,), n_in - 1)] if n_in > 1 else []
        augment = [*shift, augmentation.Noise(0.1), last_is_one, augmentation.Mixup()]
        model.fit(X, y, batch_size=batch, augment=augment, verbose=0)
        model.predict(X)
        model.predict(X[:3])
        model.predict_proba(X)
        model.evaluate(X, y)
        model.train_step(X[:batch], y[:batch])
        model.train_step(X[:batch], y[:batch], np.ones(batch))
        model.loss_and_gradients(X, y)
        del model
        assert overruns() == []


def test_a_single_step_keeps_nothing():
    model = model_of((16, 16, 2), 4)
    x, y = samples(32, 4, 2)
    for _ in range(2000):
        model.train_step(x, y)
        model.predict(x[:1])
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(2048):  # coefficients are computed for some hundred steps at a time: whole rounds of them
            model.train_step(x, y)
            model.predict(x[:1])
        first, _ = tracemalloc.get_traced_memory()
        for _ in range(4096):
            model.train_step(x, y)
            model.predict(x[:1])
        last, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert abs(last - first) < 4096
    assert peak < 1 << 20


def test_fit_copies_no_data():
    """Beside the order of the samples and their losses there is nothing of the data's size."""
    X, y = samples(20_000, 256, 4)
    model = model_of((8, 4), 256)
    model.fit(X, y, verbose=0)
    model.predict(X)
    model.evaluate(X, y)
    tracemalloc.start()
    try:
        model.fit(X, y, epochs=3, verbose=0)
        model.evaluate(X, y)
        _, training = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        out = model.predict(X)
        _, prediction = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert X.nbytes == 20_480_000
    assert training < 1 << 20
    assert prediction < training + out.nbytes + (1 << 18)


def test_data_are_let_go():
    """What a model has been trained and used on is freed when the caller frees it."""
    model = model_of((16, 2), 4)
    uses = (
        lambda X, y: model.fit(X, y, sample_weight=np.ones(300), validation_data=(X, y), verbose=0),
        lambda X, y: model.fit([(X, y)], verbose=0),
        lambda X, y: model.evaluate(X, y),
        lambda X, y: model.predict(X),
        lambda X, y: model.predict_proba(X),
        lambda X, y: model.predict(X[:3]),
        lambda X, y: model.train_step(X, y),
        lambda X, y: model.train_step(X, y, np.ones(300)),
        lambda X, y: model.loss_and_gradients(X, y),
    )
    for use in uses:
        X, y = samples(300, 4, 2)
        kept = weakref.ref(X), weakref.ref(y)
        use(X, y)
        del X, y
        assert kept[0]() is kept[1]() is None
    X, y = samples(300, 4, 2)  # and while it is used it is there, whatever happened before
    model.fit(X.astype(np.float64), y.tolist(), epochs=3, verbose=0)


def test_a_file_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1 << 20)
    X, y = samples(10_000, 1000, 4)
    file = np.memmap(tmp_path / "X", np.float32, "w+", shape=X.shape)
    file[:] = X
    model = model_of((8, 4), 1000)
    model.fit(X, y, batch_size=64, verbose=0)
    tracemalloc.start()
    try:
        model.fit(file, y, batch_size=64, epochs=2, verbose=0)
        model.predict(file)
        model.evaluate(file, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20, "of 40 MB"


def test_batches_of_many_sizes_keep_few_programs():
    model = model_of((16, 16, 2), 4)
    X, y = samples(300, 4, 2)
    for n in range(1, 301, 3):
        model.train_step(X[:n], y[:n])
        model.loss_and_gradients(X[:n], y[:n])
    assert len(model._session._bound) <= 8


def test_workspace_is_what_the_layers_need():
    """Outputs of every layer and their gradients, a row for each sample of a batch, little more."""
    for widths, n_in, batch in (((1024, 1024, 1024), 1024, 256), ((64, 64, 64, 10), 64, 128), ((16, 16, 2), 4, 32)):
        model = model_of(widths, n_in, metrics=())
        model.fit(*samples(batch, n_in, widths[-1]), batch_size=batch, verbose=0)
        (bound,) = model._session._bound.values()
        rows = [n_in, *widths, *widths]
        padded = sum((width // 16 + 2) * 16 for width in rows)
        gradient = model.parameter_vector.size + 64 if "gradient" in bound.program.buffers else 0
        assert bound.workspace.size <= batch * padded + gradient
        assert bound.workspace.ctypes.data % 64 == 0
        wide = max(rows) >= 1024
        assert wide == ("gradient" not in bound.program.buffers), "a wide layer's gradient exists in tiles only"


def test_optimizers_keep_no_more_than_they_say():
    for name, optimizer in optimizers.BY_NAME.items():
        model = model_of((16, 3), 4, optimizer())
        slots = model._session.slots
        if name == "adafactor":
            assert sum(slot.size for slot in slots) == 4 + 16 + 16 + 16 + 3 + 3
        else:
            assert [slot.size for slot in slots] == [model.parameter_vector.size] * optimizer().n_slots


def in_a_process_of_its_own(code, **variables):
    """What `code` prints as JSON, in a process that finds this package and the session's cache."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        env={**os.environ, "PYTHONPATH": paths, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PREAMBLE = """
import json
import threading
import time

import numpy as np
from numba.core.runtime import rtsys

import nbbp


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def model_of(widths, n_in, precision="float32"):
    layers = [nbbp.Dense(width, activation="relu") for width in widths[:-1]]
    network = nbbp.Sequential([*layers, nbbp.Dense(widths[-1])], n_in=n_in)
    return nbbp.Model(network, "crossentropy", "adam", metrics=("accuracy",), precision=precision)


random = np.random.default_rng(0)
"""


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_no_step_of_fit_allocates(precision):
    """Numba counts what jitted code allocates: as much for a hundred steps as for sixteen thousand."""
    counts = in_a_process_of_its_own(
        f"PRECISION = {precision!r}"
        """
X, y = random.standard_normal((16_000, 4)).astype("f4"), random.integers(0, 2, 16_000)
model = model_of((16, 16, 2), 4, PRECISION)
counts = []
for n in (100, 100, 16_000, 100):
    before = rtsys.get_allocation_stats()
    model.fit(X[:n], y[:n], batch_size=1, verbose=0)
    counts.append([now - then for now, then in zip(rtsys.get_allocation_stats(), before)])
print(json.dumps(counts))
""",
        NUMBA_NRT_STATS="1",
    )
    assert counts[1] == counts[2] == counts[3]
    allocated, freed, _, _ = counts[2]
    assert 0 < allocated < 100, "the counter counts"
    assert abs(allocated - freed) <= 1


@LINUX
@pytest.mark.slow
def test_resident_memory_is_flat():
    growth = in_a_process_of_its_own(
        """
model = model_of((16, 16, 2), 4)
x, y = random.standard_normal((32, 4)).astype("f4"), random.integers(0, 2, 32)
X, Y = random.standard_normal((200_000, 4)).astype("f4"), random.integers(0, 2, 200_000)
growth = {}
for _ in range(2000):
    model.train_step(x, y)
start = resident()
for _ in range(10_000):
    model.train_step(x, y)
growth["train_step"] = resident() - start
for _ in range(2):
    model.fit(X, Y, epochs=2, verbose=0)
start = resident()
for _ in range(10):
    model.fit(X, Y, epochs=2, verbose=0)
growth["fit"] = resident() - start
for _ in range(2000):
    model.predict(x)
start = resident()
for _ in range(10_000):
    model.predict(x)
growth["predict"] = resident() - start
print(json.dumps(growth))
"""
    )
    print(growth)
    assert all(value <= 256 << 10 for value in growth.values()), growth


@LINUX
@pytest.mark.slow
def test_a_wide_network_trains_within_four_buffers_and_two_workspaces():
    """1024-1024-1024-1024 at batch 256, on two threads: parameters, moments and what is kept for divergence."""
    measured = in_a_process_of_its_own(
        """
nbbp.set_num_threads(2)
X, y = random.standard_normal((1024, 1024)).astype("f4"), random.integers(0, 1024, 1024)
first = model_of((512, 512, 512), 512)  # loads the kernels, and touches what Python and NumPy keep
first.fit(np.ascontiguousarray(X[:600, :512]), y[:600] % 512, batch_size=256, verbose=0)
del first
start = resident()
peak = start
running = True


def watch():
    global peak
    while running:
        peak = max(peak, resident())
        time.sleep(0.002)


thread = threading.Thread(target=watch)
thread.start()
model = model_of((1024, 1024, 1024), 1024)
model.fit(X, y, epochs=3, batch_size=256, verbose=0)
running = False
thread.join()
(bound,) = model._session._bound.values()
print(json.dumps({
    "growth": resident() - start, "peak": peak - start, "parameters": model.parameter_vector.nbytes,
    "workspace": bound.workspace.nbytes,
}))
"""
    )
    print({name: f"{value / 2**20:.1f} MiB" for name, value in measured.items()})
    allowed = 4 * measured["parameters"] + 2 * measured["workspace"]
    assert measured["peak"] <= allowed
    assert measured["growth"] <= allowed
    assert measured["workspace"] <= 256 * 8 * (1024 + 32) * 4
