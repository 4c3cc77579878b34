"""Ctrl-C and SIGKILL, for real: what is left of a run, of its model and of a file that is being written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbbp.history import History

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and forks are POSIX's")

PREAMBLE = """
import json, os, signal, sys, time
import numpy as np
import nbbp
from nbbp.callbacks import Callback, EarlyStopping

random = np.random.default_rng(0)
X, y = random.standard_normal((2000, 16)).astype("f4"), random.integers(0, 10, 2000)


def model_of():
    layers = [nbbp.Dense(32, activation="relu"), nbbp.Dropout(0.1), nbbp.Dense(10)]
    return nbbp.Model(nbbp.Sequential(layers, n_in=16), "crossentropy", metrics=["accuracy"])


"""


def start(code, *arguments):
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    try:
        out, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


INTERRUPTED = """
class Ends(Callback):
    calls = []

    def on_train_begin(self, run):
        print("ready", flush=True)

    def on_epoch_end(self, run):
        run.report["extra"] = run.epoch

    def on_train_end(self, run):
        self.calls.append(run.epoch)


class StopsAt(Callback):
    every_batches = 1

    def __init__(self, step):
        self.step = step

    def on_batch_end(self, run):
        if run.model._session.step == self.step:
            run.stop()


model, ends = model_of(), Ends()
try:
    model.fit(X, y, epochs=10**6, batch_size=64, callbacks=[ends], verbose=int(sys.argv[1]))
except KeyboardInterrupt:
    heard = time.time()
history, session = model.history, model._session
again = model_of()
again.fit(X, y, epochs=10**6, batch_size=64, callbacks=[StopsAt(session.step)], verbose=0)
found = {
    "ended once": len(ends.calls) == 1,
    "epochs": history.epochs == again.history.epochs[: len(history.epochs)] == list(range(1, len(history.epochs) + 1)),
    "completed": len(again.history.epochs) - len(history.epochs) in (0, 1),
    "names": sorted(history) == ["accuracy", "extra", "loss"],
    "whole": [len(history[name]) for name in history] == [len(history.epochs)] * 3,
    "a batch boundary": (model.parameter_vector == again.parameter_vector).all().item(),
    "goes on": model.fit(X, y, epochs=2, verbose=0).epochs == [1, 2],
}
print(json.dumps({"heard": heard, "n": len(history.epochs), **found}))
"""


@pytest.mark.parametrize("verbose", [0, 1])
def test_an_interrupt_ends_at_a_batch_with_history_and_callbacks(verbose):
    """The interrupted model has the bits of one that was stopped after as many batches."""
    process = start(INTERRUPTED, verbose)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.8)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    found = result(process)
    assert found.pop("heard") - sent < 10
    assert found.pop("n") > 0
    assert all(found.values()), found


def test_an_epoch_is_in_the_history_whole_or_not_at_all():
    """Wherever it is interrupted."""

    class Interrupts(float):
        def __new__(cls, countdown):
            number = super().__new__(cls, 1.0)
            number.countdown = countdown
            return number

        def __float__(self):
            self.countdown[0] -= 1
            if self.countdown[0] == 0:
                raise KeyboardInterrupt
            return 1.0

    for count in (1, 2, 3):
        history = History()
        history.record(1, {"loss": 1.0, "mae": 2.0})
        countdown = [count]
        with pytest.raises(KeyboardInterrupt):
            history.record(2, dict.fromkeys(("loss", "mae", "new"), Interrupts(countdown)))
        assert history.epochs == [1]
        assert all(len(series) == 1 for series in history.values())


KILLED = """
path, n_kills = sys.argv[1], int(sys.argv[2])
model = model_of()
numbers = model._session.parameters, *model._session.slots


def fill(k):
    for values in numbers:
        values[:] = k
    model._session.step = k


def save_over_and_over(k):
    while True:
        k += 1
        fill(k)
        model.save(path)


fill(0)
model.save(path)
kept, seen, delays = 0, set(), np.random.default_rng(1).uniform(0, 0.02, n_kills)
for delay in delays:
    before = nbbp.load_model(path)._session.step
    ready, begins = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(begins, b".")
        save_over_and_over(before)
    os.read(ready, 1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(begins)
    session = nbbp.load_model(path)._session  # which refuses anything that is not whole
    assert session.step >= before
    assert all((values == session.step).all() for values in (session.parameters, *session.slots))
    kept += session.step == before
    seen.add(session.step)
left = [name for name in os.listdir(os.path.dirname(path)) if name.endswith(".tmp")]
print(json.dumps({"kept": kept, "seen": len(seen), "left": len(left)}))
"""


@pytest.mark.parametrize("n_kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_process_killed_while_it_saves_leaves_a_whole_file(tmp_path, n_kills):
    """SIGKILL at random moments of a process that saves over and over."""
    found = result(start(KILLED, tmp_path / "m.safetensors", n_kills))
    assert found["seen"] > n_kills // 5, "files are replaced"
    assert found["left"] > 0 or n_kills < 200, "some were killed in the middle of writing"
