"""The sample engine in other processes: machine code from the cache, and what other processors run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

USE = """
import json
import numpy as np
import nbbp
from numba import njit

layers = [nbbp.Dense(5, activation=nbbp.layers.Activation("elu", alpha=0.3)), nbbp.Dense(3, use_bias=False)]
optimizer = nbbp.AdamW(groups={"0.*": {"learning_rate": 0.1}})
model = nbbp.Model(nbbp.Sequential(layers, n_in=4), nbbp.losses.Crossentropy(label_smoothing=0.1), optimizer)
functions = model.as_njit()
p, x, out = model.parameter_vector.copy(), np.ones(4, "f4"), np.zeros(3, "f4")
functions.predict(p, x, out)
functions.loss_and_gradient(p, x, 1, np.zeros_like(p))
functions.input_gradient(p, x, out, np.zeros(4, "f4"))
functions.jacobian(p, x, np.zeros((3, 4), "f4"))
functions.train_step(p, np.zeros(functions.n_slots, "f4"), 1, x, 1)
names = "predict", "loss_and_gradient", "input_gradient", "jacobian", "train_step"
stats = [getattr(functions, name).stats for name in names]
hits, misses = ([sum(getattr(s, kind).values()) for s in stats] for kind in ("cache_hits", "cache_misses"))
print(json.dumps({"hits": hits, "misses": misses, "p": p.tolist()}))
"""


def run(folder):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        [sys.executable, "-c", USE], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(done.stdout), done.stderr


def test_the_next_process_compiles_nothing(tmp_path):
    first, said = run(tmp_path)
    assert first["misses"] == [1] * 5
    assert "compiling kernels" in said
    n_files = len(list(tmp_path.rglob("*.nbc")))
    second, said = run(tmp_path)
    assert second["hits"] == [1] * 5
    assert second["misses"] == [0] * 5
    assert second["p"] == first["p"]
    assert "compiling" not in said
    assert len(list(tmp_path.rglob("*.nbc"))) == n_files


@pytest.mark.slow
@pytest.mark.parametrize(
    "switches",
    [{"NBBP_VECTOR_BITS": "256"}, {"NBBP_VECTOR_BITS": "128", "NBBP_FLUSH_TO_ZERO": "0"}],
    ids=lambda switches: "-".join(switches.values()),
)
def test_what_other_processors_run(tmp_path, switches):
    """Narrower registers have other tails, and few outputs are narrow at other widths."""
    chosen = "test_every_size or (test_every_activation and tanh) or test_wide_layers or central_differences"
    environment = {**os.environ, **switches, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, "test_sample.py"]
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
