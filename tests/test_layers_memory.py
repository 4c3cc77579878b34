"""Every layer in a network: nothing is written outside its buffer, and no step allocates."""

import inspect
import json

import numpy as np
import pytest
from test_memory import in_a_process_of_its_own, overruns, samples  # noqa: F401 - a fixture among them

import nbbp
from nbbp.cpu import engine


def layers(width):
    """Every layer there is."""
    return [
        nbbp.Concat([nbbp.Embedding({0: 5}, 3)], [nbbp.Standardize()]), nbbp.Dense(width), nbbp.BatchNorm(),
        nbbp.Activation("relu"), nbbp.Dropout(0.2),
        nbbp.Residual([nbbp.LayerNorm(), nbbp.Dense(width, "gelu"), nbbp.Dense(width), nbbp.StochasticDepth(0.3)]),
        nbbp.RMSNorm(), nbbp.GaussianNoise(0.1), nbbp.Dense(width, "tanh"),
        nbbp.Concat([nbbp.Dense(3, "relu")], [nbbp.BatchNorm(affine=False)], []),
        nbbp.Residual([nbbp.Dense(7), nbbp.Dropout(0.5)]), nbbp.Dense(2),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("kind", ["float32", "float64", "fp16"])
@pytest.mark.parametrize(("width", "batch"), [(1, 1), (17, 7), (16, 300), (64, 33), (300, 40), (512, 64)])
def test_nothing_is_written_outside_its_buffer(width, batch, kind, n_threads, overruns, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engine, "_n_threads", n_threads)
    monkeypatch.setattr("nbbp.tiling._SHARED_WORK", 0)
    monkeypatch.setattr("nbbp.tiling._PARTIAL_WORK", 1)
    dtype, precision = ("float32", kind) if kind == "fp16" else (kind, "float32")
    X, y = samples(2 * batch + 1, 4, 2, dtype)
    X[:, 0] = np.arange(len(X)) % 5
    for optimizer, every in ((nbbp.Adam(clip_norm=1.0, accumulation_steps=2), None), (nbbp.SGD(), 3), ("adafactor", 2)):
        network = nbbp.Sequential(layers(width), 4, every)
        model = nbbp.Model(network, "crossentropy", optimizer, dtype=dtype, precision=precision)
        model.fit(X, y, batch_size=batch, epochs=2, verbose=0)
        model.predict(X)
        model.evaluate(X, y)
        model.train_step(X[:batch], y[:batch])
        model.loss_and_gradients(X, y)
        assert np.isfinite(model.parameter_vector).all()
        del model
        assert overruns() == []


def test_no_step_allocates():
    counts = in_a_process_of_its_own(
        inspect.getsource(layers)
        + """
X, y = random.standard_normal((8_000, 4)).astype("f4"), random.integers(0, 2, 8_000)
X[:, 0] = np.arange(8_000) % 5
optimizer = nbbp.Adam(nbbp.schedules.Cosine(1e-3, steps=1000), clip_norm=1.0, gradient_noise=1e-6)
model = nbbp.Model(nbbp.Sequential(layers(16), 4, 3), "crossentropy", optimizer)
counts = []
for n in (40, 40, 8_000, 40):
    before = rtsys.get_allocation_stats()
    model.fit(X[:n], y[:n], batch_size=4, verbose=0)
    counts.append([now - then for now, then in zip(rtsys.get_allocation_stats(), before)])
print(json.dumps(counts))
""",
        NUMBA_NRT_STATS="1",
    )
    assert counts[1] == counts[2] == counts[3], json.dumps(counts)
    assert 0 < counts[2][0] < 100, "the counter counts"
