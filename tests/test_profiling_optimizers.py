"""The measurement of optimizers in its smallest setting; every update is held against the oracle first."""

import json

import numpy as np
import pytest

import nbbp
from nbbp.cpu import engine
from nbbp.optimizers import BY_NAME
from profiling import optimizers


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch):
    monkeypatch.setattr(engine, "_n_threads", engine._n_threads)
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(optimizers, "QUICK_SIZES", {"L2 cache": 1 << 12, "main memory": 1 << 13})
    monkeypatch.setattr(optimizers, "SECONDS", 0.01)
    monkeypatch.setattr(optimizers, "_NUMBERS_PER_RUN", 1 << 14)
    assert optimizers.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "optimizers.json").read_text(encoding="utf-8"))
    for measured in results["sizes"].values():
        assert list(measured["rows"]) == list(optimizers.OPTIMIZERS)
        for row in measured["rows"].values():
            assert row["floor"] == pytest.approx(row["bytes"] / measured["gigabytes_per_second"])
            assert row["times"]["nbbp"]["minimum"] > 0
    text = capsys.readouterr().out
    assert "main memory, 8,192 parameters" in text
    assert "| Adafactor | 20 |" in text
    assert (tmp_path / "optimizers.png").read_bytes().startswith(b"\x89PNG")


def test_every_optimizer_of_the_package_is_measured():
    assert {optimizer.name for optimizer, *_ in optimizers.OPTIMIZERS.values()} == set(BY_NAME)


def test_bytes_are_gradient_parameter_and_moments():
    sizes = {label: optimizers.least_bytes(optimizer) for label, (optimizer, *_) in optimizers.OPTIMIZERS.items()}
    assert (sizes["SGD"], sizes["SGD, momentum"], sizes["Adam"], sizes["Adafactor"]) == (12, 20, 28, 20)


def test_a_wrong_update_is_not_timed():
    random = np.random.default_rng(0)
    weight, gradient = random.normal(size=(2, 3, 17)).astype(np.float32)
    update = optimizers.Ours(nbbp.Adam(), weight, gradient, optimizers.N_COMPARED)
    after = update.one_by_one()
    optimizers.validate(after, nbbp.Adam(), weight, gradient)
    with pytest.raises(AssertionError):
        optimizers.validate(after, nbbp.Adam(1.1e-3), weight, gradient)
    with pytest.raises(AssertionError):
        optimizers.validate(weight, nbbp.Adam(), weight, gradient)
