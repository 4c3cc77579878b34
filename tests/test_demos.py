"""Every demo runs as a user would start it, in a small setting, prints its result and saves its picture."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMOS = Path(__file__).resolve().parent.parent / "demos"

SMALL = {
    "digits": (["--seeds", "1", "--epochs", "5"], "held-out images read correctly"),
    "worked_examples": (["--updates", "20", "--epochs", "3"], "central diff."),
    "spiral": (["--epochs", "5"], "epoch    5: loss"),
    "vanishing_gradients": (["--layers", "4"], "Xavier (Glorot)"),
    "inside_njit": (["--generations", "3"], "per second per core"),
    "neural_ode": (["--updates", "30"], "against central differences"),
    "online": (["--samples", "1500"], "partial_fit from Python"),
    "regularization": (["--seeds", "1", "--epochs", "3"], "early stopping"),
    "schedules": (["--seeds", "1", "--epochs", "2"], "warm-up, cosine"),
    "resume": (["--epochs", "15"], "killed and resumed"),
    "deep_residual": (["--layers", "6", "--epochs", "2", "--checkpoint-every", "3"], "batch norm, residual"),
    "double_descent": (["--seeds", "1", "--epochs", "20"], "worst width beyond 4 units"),
    "custom_function": (["--seeds", "1", "--epochs", "2"], "def cauchy_derivative(prediction, target):"),
    "cuda_many_networks": (["--networks", "20", "--points", "3"], "hidden: excess kurtosis"),
    "population": (["--size", "12", "--epochs", "2"], "best held-out accuracy"),
    "monitor": (["--layers", "3", "--epochs", "2"], "ReLU, He's weights"),
}


def test_every_demo_is_tested():
    assert {path.stem for path in DEMOS.glob("*.py")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_demo(name, tmp_path):
    pytest.importorskip("matplotlib")
    arguments, printed = SMALL[name]
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(DEMOS.parent)}
    environment |= {"NUMBA_ENABLE_CUDASIM": "1"} if name.startswith("cuda") else {}  # without a GPU
    done = subprocess.run(
        [sys.executable, DEMOS / f"{name}.py", *arguments, "--output", tmp_path],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    picture = tmp_path / f"{name}.png"
    assert f"picture: {picture}" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("custom_function", "--seeds"),
        ("custom_function", "--epochs"),
        ("deep_residual", "--epochs"),
        ("double_descent", "--seeds"),
        ("inside_njit", "--generations"),
        ("neural_ode", "--updates"),
        ("schedules", "--epochs"),
        ("monitor", "--layers"),
        ("monitor", "--epochs"),
        ("population", "--size"),
        ("population", "--epochs"),
    ],
)
@pytest.mark.parametrize("count", ["0", "-1"])
def test_counts_below_1_are_refused(name, option, count, tmp_path):
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(DEMOS.parent)}
    done = subprocess.run(
        [sys.executable, DEMOS / f"{name}.py", option, count, "--output", tmp_path],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        timeout=300,
    )
    assert done.returncode == 2
    assert f"error: {option} must be at least 1" in done.stderr
