"""Arrays on the GPU that say so by DLPack alone, and batches that lie there: data without a copy."""

import numpy as np
import pytest
from cuda_cases import assert_same_standing, assert_same_steps, batch_of, twins
from engine_cases import assert_near
from test_cuda_interface import OnDevice

import nbbp
from nbbp import losses
from nbbp.cuda import kernels, memory
from nbbp.device_data import is_on_device
from nbbp.layers import BatchNorm, Dense, Standardize

LAYERS = [Dense(7, "tanh"), BatchNorm(), Dense(3)]
LOSS = losses.Crossentropy()
#: Kinds of memory by their numbers in DLPack.
CPU, CUDA, PINNED, ROCM, MANAGED = 1, 2, 3, 10, 13


class Exported:
    """Memory of the GPU's that another library hands on by DLPack, and in no other way: not even its shape is known."""

    def __init__(self, array, kind=CUDA, number=0):
        self.array, self.device, self.asked = array, (kind, number), []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, **asked):
        self.asked.append(stream)
        return self.array.__dlpack__()


simulated = pytest.mark.skipif(not kernels.SIMULATED, reason="the host's memory is the GPU's on the simulator alone")


@pytest.mark.parametrize(
    ("kind", "is_there"), [(CPU, False), (CUDA, True), (PINNED, False), (ROCM, False), (MANAGED, True)]
)
def test_what_lies_on_the_gpu(kind, is_there):
    assert is_on_device(Exported(np.zeros(3), kind)) == is_there
    assert not is_on_device(np.zeros(3))
    assert not is_on_device([1, 2])


@simulated
def test_nothing_is_copied():
    x = np.arange(6.0).reshape(2, 3)
    exported = Exported(x)
    array = memory.device_array(exported)
    assert memory.address(array) == x.ctypes.data
    assert exported.asked == [1]  # the default stream, for which those that programs run on wait
    assert array.shape == (2, 3)
    assert not memory.device_array(Exported(x[:, ::2])).is_c_contiguous()


@simulated
def test_another_gpu_is_refused():
    model = nbbp.Model(nbbp.Sequential([Dense(3)], n_in=4), LOSS, device="cuda")
    with pytest.raises(ValueError, match="an array lies on GPU 1; expected it on GPU 0"):
        model.predict(Exported(np.ones((2, 4), np.float32), number=1))


def test_views_of_cuda_core_are_described(monkeypatch):
    """Strides are bytes there, and numbers here."""
    view = pytest.importorskip("cuda.core.utils").StridedMemoryView
    x = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    for array, strides in ((x, ((24, 4), None)), (x[:, ::2], ((24, 8),)), (x.T, ((4, 24),))):
        found = memory.interface_of(view.from_dlpack(Exported(array), stream_ptr=1))
        assert found["strides"] in strides
        assert (found["shape"], found["typestr"], found["data"][0]) == (array.shape, "<f4", array.ctypes.data)


@simulated
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_models_take_them(labels):
    models = twins(LAYERS, 5, LOSS, "float32", metrics=("accuracy",))
    x, y = batch_of(models[0], 17, kind=labels)
    weight = np.linspace(0.5, 1.5, 17, dtype=np.float32)
    settings = {"batch_size": 5, "epochs": 2, "verbose": 0}
    models[0].fit(x, y, sample_weight=weight, **settings)
    models[1].fit(Exported(x), Exported(y), sample_weight=Exported(weight), **settings)
    assert_same_standing(*models)
    assert models[1].train_step(Exported(x), Exported(y)) == pytest.approx(models[0].train_step(x, y), rel=1e-5)
    assert_near(models[1].predict(Exported(x)), models[0].predict(x), "float32")
    assert models[1].evaluate(Exported(x), y) == pytest.approx(models[0].evaluate(x, y), rel=1e-5)


@simulated
def test_they_tell_the_size_of_the_network():
    x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    models = [nbbp.Model(nbbp.Sequential([Dense(3)]), LOSS, device=device) for device in ("cpu", "cuda")]
    models[0].fit(x, y, verbose=0)
    models[1].fit(Exported(x), y, verbose=0)
    assert_same_standing(*models)


@pytest.mark.parametrize("kind", [OnDevice, pytest.param(Exported, marks=simulated)])
def test_batches_of_an_iterable_lie_there_too(kind):
    models = twins(LAYERS, 5, LOSS, "float32")
    batches = [batch_of(models[0], n, n) for n in (6, 3, 6)]
    there = [(kind(batches[0][0]), kind(batches[0][1])), batches[1], (kind(batches[2][0]), batches[2][1])]
    weights = {0: 0.5, 1: 2.0, 2: 1.0}
    models[0].fit(batches, epochs=2, class_weight=weights, verbose=0)
    models[1].fit(there, epochs=2, class_weight=weights, verbose=0)
    assert_same_standing(*models)
    outputs = [model.predict(iter(x for x, _ in data)) for model, data in zip(models, (batches, there), strict=True)]
    assert_near(outputs[1], outputs[0], "float32")
    assert_same_steps(*models, batches)


def test_batches_there_for_a_model_on_the_cpu():
    model = nbbp.Model(nbbp.Sequential([Dense(3)], n_in=4), LOSS)
    with pytest.raises(TypeError, match=r"x of batch 0 of X lies on a GPU and this model on the CPU"):
        model.fit([(OnDevice(np.ones((2, 4), np.float32)), np.zeros(2, np.int64))], verbose=0)


def test_statistics_of_data_on_the_gpu():
    models = twins([Standardize(), Dense(3)], 5, LOSS, "float32")
    x, y = batch_of(models[0], 17)
    models[0].fit(x, y, verbose=0)
    models[1].fit(OnDevice(x), y, verbose=0)
    assert_same_standing(*models)
