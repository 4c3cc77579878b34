"""What the tests of callbacks share: a small model, and callbacks that write down and report."""

import numpy as np

import nbbp
from nbbp.callbacks import Callback

random = np.random.default_rng(0)
N = 60
X = random.standard_normal((N, 4)).astype(np.float32)
LABELS = random.integers(0, 3, N)
VALIDATION = random.standard_normal((20, 4)), random.integers(0, 3, 20)


def model_of(optimizer="adam", **settings):
    layers = [nbbp.Dense(8, "tanh"), nbbp.BatchNorm(), nbbp.Dropout(0.2), nbbp.Dense(3)]
    return nbbp.Model(nbbp.Sequential(layers, n_in=4), "crossentropy", optimizer, ["accuracy"], **settings)


def fit(model, *used, epochs=3, **settings):
    settings = {"batch_size": 8, "verbose": 0, "callbacks": list(used)} | settings
    return model.fit(X, LABELS, epochs=epochs, **settings)


def numbers_of(model):
    session = model._session
    return [array.tobytes() for array in (session.parameters, session.state, session.slot_buffer)], session.step


class Diary(Callback):
    """Writes down every call."""

    def __init__(self, name="", every_batches=None, raises=()):
        self.name, self.every_batches, self.raises, self.calls = name, every_batches, raises, []

    def write(self, hook, run, *more):
        self.calls.append((hook, run.epoch, *more))
        if (hook, run.epoch) in self.raises:
            raise OSError(f"{self.name} {hook}")

    def on_train_begin(self, run):
        self.write("train begin", run)

    def on_train_end(self, run):
        self.write("train end", run)

    def on_epoch_begin(self, run):
        self.write("epoch begin", run)

    def on_epoch_end(self, run):
        self.write("epoch end", run)

    def on_batch_begin(self, run):
        self.write("batch begin", run, run.first_batch, run.last_batch)

    def on_batch_end(self, run):
        self.write("batch end", run, run.first_batch, run.last_batch)


def setting(name, values):
    """A callback that puts one value after another into the report."""

    class Setting(Callback):
        def on_epoch_end(self, run):
            run.report[name] = values[run.epoch - 1]

    return Setting()
