"""Which device a model is on, and what is said where there is no CUDA."""

import importlib.util
import sys
import types

import numba
import pytest

import nbbp
from nbbp import placement
from nbbp.layers import Dense

MISSING = "numba-cuda is not installed"


@pytest.fixture
def _no_simulator(monkeypatch):
    monkeypatch.setattr(numba.config, "ENABLE_CUDASIM", 0)


@pytest.fixture
def _without_numba_cuda(monkeypatch, _no_simulator):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba_cuda" else find(name))


@pytest.fixture
def numba_cuda(monkeypatch, _no_simulator):
    """numba-cuda as it would be there; what it says of a GPU is set by the test."""
    gpu = types.SimpleNamespace(compute_capability=(9, 0))
    present = types.SimpleNamespace(is_available=lambda: True, cuda_error=lambda: None, get_current_device=lambda: gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "numba.cuda", present)
    monkeypatch.setattr(numba, "cuda", present, raising=False)
    return present


def model(device):
    return nbbp.Model(nbbp.Sequential([Dense(3)], n_in=2), "mse", device=device)


@pytest.mark.usefixtures("_without_numba_cuda")
def test_without_numba_cuda_the_error_says_how_to_install_it():
    expected = r'cannot be used: numba-cuda is not installed. pip install "nbbp\[cu12\]" .* "nbbp\[cu13\]"'
    with pytest.raises(RuntimeError, match=expected):
        model("cuda")
    on_cpu = model("cpu")
    with pytest.raises(RuntimeError, match=expected):
        on_cpu.to("cuda")
    assert on_cpu.device == "cpu"
    assert on_cpu.to("cpu") is on_cpu


@pytest.mark.usefixtures("_without_numba_cuda")
def test_auto_is_the_cpu_where_there_is_no_cuda():
    assert model("auto").device == "cpu"
    assert model("cpu").to("auto").device == "cpu"


def test_a_gpu_that_cannot_be_used_is_told(numba_cuda):
    assert placement.why_no_cuda() is None
    numba_cuda.is_available = lambda: False
    assert "finds no GPU and driver that it can use. nvidia-smi" in placement.why_no_cuda()
    numba_cuda.cuda_error = lambda: "driver too old"
    assert "(driver too old)" in placement.why_no_cuda()

    def fails():
        raise OSError("libcuda.so.1")

    numba_cuda.is_available = fails
    assert "(OSError: libcuda.so.1)" in placement.why_no_cuda()
    assert placement.checked_device("auto") == "cpu"


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_precisions_of_tensor_cores_want_a_gpu_that_has_them(numba_cuda, precision):
    for device in ("cuda", "auto"):
        assert placement.checked_device(device, precision) == "cuda"
    numba_cuda.get_current_device().compute_capability = (7, 5)
    expected = f"precision '{precision}' needs a GPU of compute capability 8.0 or newer; this one has 7.5"
    with pytest.raises(ValueError, match=expected):
        placement.checked_device("cuda", precision)
    assert placement.checked_device("cuda", "float32") == "cuda"


def test_auto_takes_the_cpu_for_what_the_gpu_does_not_have(numba_cuda):
    numba_cuda.get_current_device().compute_capability = (7, 5)
    assert placement.checked_device("auto", "bf16") == "cpu"
    assert placement.checked_device("auto") == "cuda"
    with pytest.raises(ValueError, match="precision 'tf32' is one of CUDA's tensor cores; the CPU has"):
        placement.checked_device("auto", "tf32")


@pytest.mark.parametrize("device", ["gpu", "CUDA", None, 0])
def test_devices_that_there_are_not(device):
    with pytest.raises(ValueError, match="device must be one of 'cpu', 'cuda', 'auto'; got"):
        model(device)
