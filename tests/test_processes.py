"""Forks, threads, signals and the end of the process: a model can be used wherever Python can."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import nbbp
from nbbp.cpu import engine

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and forks are POSIX's")

PREAMBLE = """
import json
import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np

import nbbp

random = np.random.default_rng(0)
X, y = random.standard_normal((2000, 64)).astype("f4"), random.integers(0, 10, 2000)


def model_of(seed=0, width=300, **settings):
    layers = [nbbp.Dense(width, activation="relu"), nbbp.Dense(10)]
    return nbbp.Model(nbbp.Sequential(layers, n_in=64), "crossentropy", seed=seed, metrics=("accuracy",))


def trained(seed=0, width=300, n_threads=2):
    nbbp.set_num_threads(n_threads)
    model = model_of(seed, width)
    model.fit(X, y, epochs=2, batch_size=500, verbose=0)
    return model.parameter_vector


"""


def start(code):
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    """What the process prints at last, as JSON; it must end, and well."""
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def model_of(seed=0, width=64, n_in=16, loss="crossentropy"):
    layers = [nbbp.Dense(width, activation="relu"), nbbp.Dense(10)]
    return nbbp.Model(nbbp.Sequential(layers, n_in=n_in), loss, seed=seed, metrics=("accuracy",))


def samples(n=600, n_in=16):
    random = np.random.default_rng(0)
    return random.standard_normal((n, n_in)).astype(np.float32), random.integers(0, 10, n)


@POSIX
def test_a_forked_child_can_train():
    code = """
expected = trained()
child = os.fork()
if child == 0:
    fine = bool((trained() == expected).all())
    os._exit(0 if fine else 3)
for _ in range(1000):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        break
    time.sleep(0.1)
else:
    os.kill(child, signal.SIGKILL)
print(json.dumps([ended == child, os.waitstatus_to_exitcode(status), bool((trained() == expected).all())]))
"""
    assert result(start(code)) == [True, 0, True]


@pytest.mark.parametrize("method", [pytest.param("fork", marks=POSIX), "spawn"])
def test_a_pool_of_processes_takes_models(method, tmp_path):
    """A model travels to a worker process and comes back trained."""
    script = tmp_path / "script.py"
    script.write_text(
        PREAMBLE
        + f"""
def train(model):
    model.fit(X, y, epochs=2, batch_size=500, verbose=0)
    return model


if __name__ == "__main__":
    expected = [trained(seed) for seed in (0, 1)]
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        models = pool.map(train, [model_of(seed) for seed in (0, 1)])
    same = [bool((model.parameter_vector == e).all()) for model, e in zip(models, expected)]
    print(json.dumps([same, [len(model.history.epochs) for model in models]]))
""",
        encoding="utf-8",
    )
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[True, True], [2, 2]]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_threads_that_train_models_of_their_own(n_threads, monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", n_threads)
    monkeypatch.setattr("nbbp.tiling._SHARED_WORK", 0)
    X, y = samples()

    def train(seed):
        model = model_of(seed, 300)
        model.fit(X, y, epochs=3, batch_size=200, verbose=0)
        for _ in range(20):
            model.train_step(X[:50], y[:50])
        return model.parameter_vector

    expected = [train(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for came, right in zip(pool.map(train, range(4)), expected, strict=True):
                np.testing.assert_array_equal(came, right)


def test_threads_that_ask_for_more_and_more_threads(monkeypatch):
    """The team grows while others are at work with the smaller one."""
    monkeypatch.setattr("nbbp.tiling._SHARED_WORK", 0)
    X, y = samples(1000)
    expected = model_of(0, 300)
    expected.fit(X, y, batch_size=500, verbose=0)

    def train(n_threads):
        monkeypatch.setattr(engine, "_n_threads", n_threads)
        model = model_of(0, 300)
        model.fit(X, y, batch_size=500, verbose=0)
        return model.parameter_vector

    for _ in range(5):
        monkeypatch.setattr(engine, "_pool", None)
        with ThreadPoolExecutor(5) as pool:
            for came in pool.map(train, (2, 3, 4, 5, 6)):
                np.testing.assert_array_equal(came, expected.parameter_vector)


def test_threads_that_use_one_model():
    """As a server does: predictions of any size at the same time, while another thread trains another model."""
    X, y = samples(20_000)
    model = model_of()
    sizes = (1, 2, 200, 20_000)
    right = [model.predict(X[:n]) for n in sizes]
    sure = model.predict_proba(X[:200])
    report = model.evaluate(X[:500], y[:500])
    gradient = model.loss_and_gradients(X[:100], y[:100])[1]["0.weight"]

    def use(k):
        for _ in range(200 if k < 3 else 10):
            if k < 4:
                np.testing.assert_array_equal(model.predict(X[: sizes[k]]), right[k])
            elif k == 4:
                np.testing.assert_array_equal(model.predict_proba(X[:200]), sure)
                assert model.evaluate(X[:500], y[:500]) == report
            elif k == 5:
                np.testing.assert_array_equal(model.loss_and_gradients(X[:100], y[:100])[1]["0.weight"], gradient)
            else:
                model_of(1).fit(X[:1000], y[:1000], verbose=0)

    with ThreadPoolExecutor(9) as pool:
        for future in [pool.submit(use, k) for k in (0, 0, 1, 2, 3, 3, 4, 5, 6)]:
            future.result()


def test_threads_that_train_one_model_take_turns():
    X, y = samples(64)
    model = model_of()
    before = model.evaluate(X, y)["loss"]

    def step(k):
        for _ in range(300):
            model.train_step(X[: 8 << k], y[: 8 << k], np.ones(8 << k) if k == 2 else None)

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(step, k) for k in range(3)]:
            future.result()
    assert model._session.step == 900
    assert np.isfinite(model.parameter_vector).all()
    assert model.evaluate(X, y)["loss"] < before


def test_the_first_use_in_two_threads_at_once():
    """Nothing is loaded yet when both need every kernel."""
    code = """
start = threading.Barrier(3)
results = {}


def train(seed):
    start.wait()
    results[seed] = trained(seed % 2, 32, 1)


threads = [threading.Thread(target=train, args=(seed,)) for seed in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps([len(results), bool((results[0] == results[2]).all()), bool((results[0] == trained(0, 32, 1)).all())]))
"""
    assert result(start(code)) == [3, True, True]


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("verbose", [0, 1])
@pytest.mark.parametrize(("width", "n_threads"), [(16, 1), (1024, 2)])
def test_an_interrupt_leaves_a_usable_model(width, n_threads, verbose):
    """Ctrl-C while an endless fit runs: heard within seconds, nobody writes on, and the model goes on from there."""
    code = f"""
nbbp.set_num_threads({n_threads})
model = model_of(width={width})
model.fit(X, y, batch_size=64, verbose=0)
before = model.parameter_vector.copy()
print("ready", flush=True)
try:
    model.fit(X, y, epochs=10**6, batch_size=64, verbose={verbose})
except KeyboardInterrupt:
    heard = time.time()
after = model.parameter_vector.copy()
history = model.history
time.sleep(0.2)
print(json.dumps({{
    "heard": heard,
    "moved": bool((after != before).any()),
    "still": bool((after == model.parameter_vector).all()),
    "finite": bool(np.isfinite(after).all()),
    "epochs": len(history.epochs),
    "in step": [len(history[name]) for name in history] == [len(history.epochs)] * 2,
    "counted": model._session.step >= 32 * len(history.epochs),
    "goes on": len(model.fit(X, y, epochs=2, batch_size=64, verbose=0).epochs) == 2,
    "predicts": model.predict(X).shape == (2000, 10),
    "steps": bool(np.isfinite(model.train_step(X[:64], y[:64]))),
}}))
"""
    process = start(code)
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    found = result(process)
    assert found.pop("heard") - sent < 10, "a second on a quiet machine"
    assert found.pop("epochs") >= (1 if width == 16 else 0)
    assert all(found.values()), found


@POSIX
@pytest.mark.slow
def test_interrupts_at_any_moment():
    """Three hundred of them, anywhere in fit and its preparations."""
    code = """
def interrupt(delay):
    time.sleep(delay)
    if waiting.is_set():
        os.kill(os.getpid(), signal.SIGINT)


waiting = threading.Event()
interrupted = 0
model = model_of(width=128)
delays = random.uniform(0, 0.01, 300)
for k, delay in enumerate(delays):
    nbbp.set_num_threads(1 + k % 3)
    if k % 20 == 0:
        model = model_of(seed=k, width=128)
    waiting.set()
    thread = threading.Thread(target=interrupt, args=(delay,))
    try:
        thread.start()
        try:
            model.fit(X, y, epochs=20, batch_size=100 + k % 7, verbose=0)
        finally:
            waiting.clear()
        thread.join()
    except KeyboardInterrupt:
        interrupted += 1
        thread.join()
    after = model.parameter_vector.copy()
    assert np.isfinite(after).all()
    assert np.isfinite(model.evaluate(X, y)["loss"])
    assert (after == model.parameter_vector).all()
report = model.fit(X, y, epochs=3, verbose=0)
print(json.dumps([interrupted, bool(np.isfinite(report["loss"]).all())]))
"""
    interrupted, fine = result(start(code))
    assert interrupted > 100
    assert fine


def test_the_end_of_the_process_waits_for_nobody():
    """Threads of a team sleep between runs; the process ends while they do, and while a daemon thread trains."""
    code = """
trained()
thread = threading.Thread(target=lambda: model_of().fit(X, y, epochs=10**6, verbose=0), daemon=True)
thread.start()
time.sleep(0.3)
print(json.dumps(threading.active_count()))
"""
    begin = time.monotonic()
    assert result(start(code)) >= 2
    assert time.monotonic() - begin < 60


def test_threads_asked_for_and_taken(monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", None)
    if hasattr(os, "sched_getaffinity"):
        assert nbbp.get_num_threads() == len(os.sched_getaffinity(0))
    for n in (3, np.int64(2), 1):
        nbbp.set_num_threads(n)
        assert nbbp.get_num_threads() == n
        assert type(nbbp.get_num_threads()) is int
    X, y = samples()
    before = threading.active_count()
    model_of().fit(X, y, verbose=0)
    assert threading.active_count() == before, "one thread needs no team"
