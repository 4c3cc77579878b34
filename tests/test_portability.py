"""What other processors run, taken here by switch: narrower vectors, and no flush to zero."""

import os
import subprocess
import sys

import numpy as np
import pytest

TRAIN = """
import sys
import numpy as np
import nbbp

random = np.random.default_rng(0)
X = random.standard_normal((150, 19)).astype({dtype!r})
y = random.integers(0, 5, 150)
layers = [nbbp.Dense(33, activation="gelu"), nbbp.Dense(70, activation="relu"), nbbp.Dense(5)]
model = nbbp.Model(nbbp.Sequential(layers, n_in=19), loss="crossentropy", dtype={dtype!r}, metrics=("accuracy",))
history = model.fit(X, y, epochs=2, batch_size=32, verbose=0)
np.savez(sys.argv[1], parameters=model.parameter_vector, loss=history["loss"], predictions=model.predict(X))
"""


def trained(folder, dtype, **switches):
    """What a process of its own, with a cache of its own, makes of the same training."""
    name = "-".join([dtype, *switches.values()])
    environment = {**os.environ, **switches, "NUMBA_CACHE_DIR": str(folder / f"cache-{name}")}
    if not switches:  # what this session has compiled already will do
        environment["NUMBA_CACHE_DIR"] = os.environ.get("NUMBA_CACHE_DIR", "")
    out = folder / f"{name}.npz"
    command = [sys.executable, "-c", TRAIN.format(dtype=dtype), str(out)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    return np.load(out)


# float32 with AVX2's width and without flush to zero, float64 with the narrowest: each switch and dtype once
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "switch", "tolerance"),
    [
        # sums are added in another order; Adam's first steps turn a last-bit difference of a tiny gradient into more
        ("float32", {"NBBP_VECTOR_BITS": "256"}, 1e-4),
        ("float64", {"NBBP_VECTOR_BITS": "128"}, 1e-12),
        ("float32", {"NBBP_FLUSH_TO_ZERO": "0"}, 1e-6),
    ],
    ids=str,
)
def test_other_paths_give_the_same_answers(tmp_path, dtype, switch, tolerance):
    expected, came = trained(tmp_path, dtype), trained(tmp_path, dtype, **switch)
    for name in ("loss", "predictions", "parameters"):
        np.testing.assert_allclose(came[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_unknown_width_is_refused():
    environment = {**os.environ, "NBBP_VECTOR_BITS": "1024"}
    command = [sys.executable, "-c", "import nbbp"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode != 0
    assert "NBBP_VECTOR_BITS must be 128, 256 or 512; got '1024'" in process.stderr
