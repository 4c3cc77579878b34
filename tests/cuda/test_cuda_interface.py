"""The public interface on the GPU: where numbers are, and when; moving, saving, copying; data that lie there."""

import copy
import pickle

import numpy as np
import pytest
from cuda_cases import assert_same_standing, assert_same_steps, batch_of, twins
from engine_cases import assert_near, label

import nbbp
from nbbp import losses, optimizers
from nbbp.cuda.memory import Memory, Mirrored
from nbbp.layers import BatchNorm, Dense, Dropout, Embedding

LAYERS = [Dense(7, "tanh"), BatchNorm(), Dropout(0.2), Dense(3)]
LOSS = losses.Crossentropy()


class OnDevice:
    """An array on a GPU of another library's, which NumPy cannot read."""

    def __init__(self, array):
        from numba import cuda

        self._memory = cuda.to_device(array)
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    @property
    def __cuda_array_interface__(self):
        inner = getattr(self._memory, "__cuda_array_interface__", None)
        return inner or self._memory._ary.__array_interface__  # the simulator's have none


# where numbers are ----------------------------------------------------------------------------------------------------


def test_a_buffer_is_copied_where_it_has_changed():
    host = np.arange(3.0)
    buffer = Mirrored(host)
    device = buffer.device
    device.copy_to_device(np.zeros(3))
    buffer.to_device()
    np.testing.assert_array_equal(device.copy_to_host(), 0)  # unchanged on the host: nothing is sent
    host[1] = 7
    buffer.to_device()
    np.testing.assert_array_equal(device.copy_to_host(), [0, 7, 2])
    device.copy_to_device(np.ones(3))
    np.testing.assert_array_equal(buffer.to_host(), [0, 7, 2])  # nobody said that the device's had changed
    buffer.was_written()
    np.testing.assert_array_equal(buffer.to_host(), 1)
    host[:] = np.nan
    buffer.to_device()
    np.testing.assert_array_equal(device.copy_to_host(), np.nan)


def test_data_stay_on_the_gpu_while_they_are_kept():
    memory, x = Memory(), np.arange(6.0).reshape(3, 2)
    assert not memory.keeps("X")
    memory.keep_data(True)
    assert memory.keeps("X")
    assert not memory.keeps("order")
    assert memory.data(x) is memory.data(x)
    np.testing.assert_array_equal(memory.data(x).copy_to_host(), x.ravel())
    first = memory.data(x)
    for _ in range(20):  # batches of an iterable: what lies there is bounded
        memory.data(np.zeros(3))
    assert len(memory._kept) <= 8
    assert memory.data(x) is not first
    memory.keep_data(False)
    assert not memory.keeps("X")


def test_data_that_change_between_calls_are_sent_again():
    models = twins(LAYERS, 5, LOSS)
    x, y = batch_of(models[0], 3)
    for _ in range(2):
        assert_near(models[1].predict(x), models[0].predict(x))
        assert_same_steps(*models, [(x, y)])
        x *= 0.5
        y[:] = y[::-1].copy()


def test_parameters_are_up_to_date_when_asked_for():
    models = twins(LAYERS, 5, LOSS, optimizer="adam")
    x, y = batch_of(models[0], 17)
    view = models[1].parameters["0.weight"]
    before = view.copy()
    models[1].train_step(x, y)
    models[1].parameters  # noqa: B018 - asks
    assert (view != before).any()
    np.testing.assert_array_equal(view, models[1].parameters["0.weight"])
    models[0].train_step(x, y)
    assert_same_standing(*models)
    assert models[1].parameter_vector is models[1].parameter_vector


def test_views_are_up_to_date_behind_fit():
    models = twins(LAYERS, 5, LOSS, optimizer="adam")
    x, y = batch_of(models[0], 17)
    view, state = models[1].parameters["0.weight"], models[1].state["1.running_mean"]
    for model in models:
        model.fit(x, y, batch_size=5, verbose=0)
    assert_near(view, models[0].parameters["0.weight"])
    assert_near(state, models[0].state["1.running_mean"])


def test_what_is_written_into_parameters_counts():
    models = twins(LAYERS, 5, LOSS)
    x, y = batch_of(models[0], 3)
    for model in models:
        model.train_step(x, y)
        model.parameters["0.weight"][:] = 0.25
        model.state["1.running_mean"][:] = -1
        model.parameter_vector[-1] = 2
    assert_near(models[1].predict(x), models[0].predict(x))
    assert_same_steps(*models, [(x, y)])


def test_what_would_be_lost_is_refused():
    """A view from before a step is written, while the step's numbers are on the GPU alone."""
    models = twins(LAYERS, 5, LOSS)
    x, y = batch_of(models[0], 3)
    view = models[1].parameters["0.weight"]
    models[1].train_step(x, y)
    view[:] = 1
    with pytest.raises(RuntimeError, match=r"the parameters of this model were written on the host while the GPU had"):
        models[1].train_step(x, y)
    models[1].parameters["0.weight"][:] = 1
    models[1].train_step(x, y)


# moving, saving, copying ----------------------------------------------------------------------------------------------


def test_a_model_moves_with_everything_that_it_is():
    models = twins(LAYERS, 5, LOSS, optimizer=optimizers.Adam(0.01, accumulation_steps=2))
    batches = [batch_of(models[0], n, n) for n in (5, 3, 17)]
    for x, y in batches:
        models[0].train_step(x, y)
        models[1].train_step(x, y)
        models[1].to("cpu" if models[1].device == "cuda" else "cuda")
    assert_same_steps(*models, batches)
    assert models[1].device == "cpu"
    assert models[1].to("auto") is models[1]
    assert models[1].device == "cuda"
    assert "device='cuda'" in repr(models[1])


def test_a_model_without_sizes_moves_too():
    models = [nbbp.Model(nbbp.Sequential([Dense(3)]), LOSS, device="cpu") for _ in range(2)]
    models[1].to("cuda")
    x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    for model in models:
        model.fit(x, y, verbose=0)
    assert_same_standing(*models)


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "file"])
def test_copies_go_on(way, tmp_path):
    models = twins(LAYERS, 5, LOSS, optimizer="adam")
    batch = batch_of(models[0], 5)
    assert_same_steps(*models, [batch])
    if way == "file":
        models[1].save(tmp_path / "model.safetensors")
        twin = nbbp.load_model(tmp_path / "model.safetensors")
        assert twin.device == "cpu"
        twin.to("cuda")
    else:
        twin = copy.deepcopy(models[1]) if way == "deepcopy" else pickle.loads(pickle.dumps(models[1]))
    assert twin.device == "cuda"
    assert_same_steps(models[0], twin, [batch])
    models[1].train_step(*batch)
    assert_same_standing(models[0], models[1])


def test_a_run_goes_on_from_a_file(tmp_path):
    models = twins(LAYERS, 5, LOSS, optimizer="adam")
    X, y = batch_of(models[0], 20)
    settings = {"batch_size": 8, "verbose": 0}
    for model in models:
        model.fit(X, y, epochs=1, **settings)
    models[1].save(tmp_path / "half.safetensors")
    twin = twins(LAYERS, 5, LOSS, optimizer="adam")[1]
    models[0].fit(X, y, epochs=1, **settings)
    twin.fit(X, y, epochs=2, resume_from=tmp_path / "half.safetensors", **settings)
    assert_same_standing(models[0], twin)


def test_calls_that_take_other_ways_on_the_cpu():
    """partial_fit, check_gradients and the range test of the learning rate."""
    models = twins([Dense(7, "tanh"), Dense(3)], 5, LOSS, optimizer="adam")
    x, y = batch_of(models[0], 5)
    expected, actual = (model.partial_fit(x, y) for model in models)
    assert actual == pytest.approx(expected, rel=1e-9)
    assert_same_standing(*models)
    assert models[1].check_gradients(x, y, max_per_parameter=5).max_error < 1e-5
    curves = [nbbp.find_learning_rate(model, x, y, steps=6, batch_size=4) for model in models]
    assert_near(curves[1].losses, curves[0].losses)


def test_outputs_of_more_rows_than_go_forward_at_a_time(monkeypatch):
    from nbbp.device_session import DeviceSession

    monkeypatch.setattr(DeviceSession, "forward_batch", 4)
    models = twins(LAYERS, 5, LOSS, metrics=("accuracy",))
    x, y = batch_of(models[0], 11)
    assert_near(models[1].predict(x), models[0].predict(x))
    assert models[1].evaluate(x, y) == pytest.approx(models[0].evaluate(x, y))


# data that lie on the GPU ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [LOSS, losses.MSE(), losses.Hinge(), losses.BinaryCrossentropy()], ids=label)
def test_arrays_on_the_gpu_are_data(loss):
    models = twins([Dense(7, "tanh"), Dense(3)], 5, loss, "float32", metrics=("accuracy",) if loss is LOSS else ())
    x, y = batch_of(models[0], 17)
    y = np.ascontiguousarray(y if loss.row_wise else y.astype(np.float32))
    gpu_x, gpu_y = OnDevice(x), OnDevice(y)
    weight = np.linspace(0.5, 1.5, 17)
    settings = {"batch_size": 5, "epochs": 2, "verbose": 0}
    models[0].fit(x, y, sample_weight=weight, **settings)
    models[1].fit(gpu_x, gpu_y, sample_weight=OnDevice(weight), **settings)
    assert_same_standing(*models)
    assert models[1].train_step(gpu_x, gpu_y) == pytest.approx(models[0].train_step(x, y), rel=1e-5)
    assert models[1].train_step(gpu_x, y) == pytest.approx(models[0].train_step(x, y), rel=1e-5)
    assert_near(models[1].predict(gpu_x), models[0].predict(x), "float32")
    assert models[1].evaluate(gpu_x, gpu_y) == pytest.approx(models[0].evaluate(x, y), rel=1e-5)


def test_soft_and_balanced_targets_on_the_gpu():
    models = twins([Dense(3)], 5, LOSS)
    x, y = batch_of(models[0], 9, kind="soft")
    assert models[1].train_step(OnDevice(x), OnDevice(y)) == pytest.approx(models[0].train_step(x, y))
    labels = np.argmax(y, axis=1)
    models[0].fit(x, labels, class_weight="balanced", verbose=0)
    models[1].fit(OnDevice(x), OnDevice(labels), class_weight="balanced", verbose=0)
    assert_same_standing(*models)


def test_features_on_the_gpu_tell_the_size_of_the_network():
    models = [nbbp.Model(nbbp.Sequential([Dense(3)]), LOSS, device=device) for device in ("cpu", "cuda")]
    x, y = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    models[0].fit(x, y, verbose=0)
    models[1].fit(OnDevice(x), OnDevice(y), verbose=0)
    assert_same_standing(*models)


def _with(x, place, value):
    x = x.copy()
    x[place] = value
    return x


X = np.ones((6, 4), np.float32)
WRONG = {
    "NaN": (_with(X, (2, 3), np.nan), None, ValueError, "x holds NaN at row 2, column 3; expected finite numbers"),
    "infinity": (_with(X, (0, 1), -np.inf), None, ValueError, "x holds -inf at row 0, column 1"),
    "dtype": (X.astype(float), None, TypeError, "x on the GPU is of float64; expected the model's dtype, float32"),
    "shape": (np.ones((6, 5), np.float32), None, ValueError, r"x has the shape \(6, 5\); this network takes \(n, 4\)"),
    "row": (np.ones(4, np.float32), None, ValueError, r"x has the shape \(4,\); this network takes"),
    "label": (X, np.array([0, 1, 2, 3, 0, 0]), ValueError, "y holds 3 at row 3; expected labels 0 … 2"),
    "sums": (X, np.full((6, 3), 0.5, np.float32), ValueError, "sum"),
    "length": (X, np.array([0, 1]), ValueError, "y has 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_on_the_gpu(case):
    x, y, error, message = WRONG[case]
    model = nbbp.Model(nbbp.Sequential([Dense(3)], n_in=4), LOSS, device="cuda")
    before = model.parameter_vector.copy()
    with pytest.raises(error, match=message):
        model.train_step(OnDevice(x), OnDevice(np.zeros(6, np.int64) if y is None else y))
    np.testing.assert_array_equal(model.parameter_vector, before)


def test_a_number_on_the_gpu_that_is_no_category():
    model = nbbp.Model(nbbp.Sequential([Embedding({1: 3}, 2), Dense(3)], n_in=2), LOSS, device="cuda")
    x = np.array([[0.5, 2], [0.5, 1.5], [0.5, 3]], np.float32)
    with pytest.raises(ValueError, match=r"x holds 1\.5 at row 1, column 1; expected a category 0 … 2"):
        model.train_step(OnDevice(x), np.zeros(3, np.int64))


def test_data_on_the_gpu_for_a_model_on_the_cpu():
    model = nbbp.Model(nbbp.Sequential([Dense(3)], n_in=4), LOSS)
    with pytest.raises(TypeError, match=r"X lies on a GPU and this model on the CPU: .* model.to\('cuda'\)"):
        model.fit(OnDevice(X), np.zeros(6, np.int64))


# refusals -------------------------------------------------------------------------------------------------------------


def test_populations_are_on_the_cpu():
    with pytest.raises(ValueError, match="a population trains on the device 'cpu'"):
        nbbp.Population(nbbp.Sequential([Dense(3)], n_in=4), LOSS, size=2, device="cuda")


def test_the_counters_are_of_the_cpu():
    model = nbbp.Model(nbbp.Sequential([Dense(3)], n_in=4), LOSS, device="cuda")
    match = r"expected device='cpu'\. There, NVIDIA Nsight Systems .* profiling/cuda\.py"
    with pytest.raises(NotImplementedError, match=match), nbbp.profile(model):
        pass
    with nbbp.profile(model.to("cpu")) as report:
        model.predict(np.ones((2, 4), np.float32))
    assert report.ops
