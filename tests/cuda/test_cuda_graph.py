"""Steps as graphs, with a driver that is made up: what is recorded, when, and what is launched."""

import types

import numpy as np
import pytest
from cuda_cases import assert_same_standing, batch_of, twins
from engine_cases import label

from nbbp import losses
from nbbp.cuda import graph, kernels
from nbbp.layers import Dense

pytestmark = pytest.mark.skipif(not kernels.SIMULATED, reason="the driver is made up")
LOSS = losses.Crossentropy()


@pytest.fixture(autouse=True)
def _op_by_op(op_by_op):
    """Steps of small chains are no graph."""


class Driver:
    """Records which steps run while a stream records, and runs them on every launch of the graph."""

    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, refuses=None):
        self.recording, self.refuses, self.calls = None, refuses, []

    def _answer(self, name, *found):
        self.calls.append(name)
        return (1 if name == self.refuses else 0, *found)

    def cuStreamBeginCapture(self, stream, mode):
        assert mode == 1
        self.recording = None if self.refuses == "begin" else []
        return self._answer("begin")

    def cuStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        return self._answer("end", recorded)

    def cuGraphInstantiate(self, recorded, flags):
        return self._answer("instantiate", recorded)

    def cuGraphDestroy(self, recorded):
        return self._answer("destroy")

    def cuGraphExecDestroy(self, recorded):
        return self._answer("destroy executable")

    def cuGraphLaunch(self, recorded, stream):
        for step in recorded:
            step()
        return self._answer("launch")

    def recorded(self, step):
        """`step` as it is on a stream: done, or recorded."""

        def launch():
            if self.recording is None:
                step()
            else:
                self.recording.append(step)

        return launch


class Stream:
    def __int__(self):
        return 7


def test_a_graph_runs_what_was_recorded():
    driver, done = Driver(), []
    steps = graph.StepGraph(driver, Stream(), driver.recorded(lambda: done.append(1)), 3)
    assert done == []
    steps.launch()
    steps.launch()
    assert len(done) == 6
    assert driver.calls == ["begin", "end", "instantiate", "destroy", "launch", "launch"]
    del steps
    assert driver.calls[-1] == "destroy executable"


@pytest.mark.parametrize("name", ["begin", "end", "instantiate", "launch"])
def test_what_the_driver_refuses_is_an_error(name):
    driver = Driver(refuses=name)
    with pytest.raises(RuntimeError, match="the CUDA driver refused a graph"):
        graph.StepGraph(driver, Stream(), driver.recorded(lambda: None), 2).launch()
    assert driver.recording is None


def test_a_step_that_fails_ends_the_recording():
    driver = Driver()

    def fails():
        raise ValueError("no kernel")

    with pytest.raises(ValueError, match="no kernel"):
        graph.StepGraph(driver, Stream(), fails, 2)
    assert driver.recording is None


def test_short_runs_are_recorded_when_they_come_again(monkeypatch):
    """Steps of one batch each: the first as it is, the others as a graph, as long as arrays stay where they are."""
    places = [1]
    monkeypatch.setattr("nbbp.cuda.engine._address", lambda array: places[0])
    models = twins([Dense(3)], 3, LOSS)
    bound = models[1]._session.training(4, True, False)
    driver = bound._driver = Driver()
    bound.stream.__class__.__int__ = lambda stream: 7
    bound._step = driver.recorded(bound._step)
    kept, found = {}, bound._place
    bound._place = lambda name, n, dtype: kept.setdefault(name, found(name, n, dtype))
    x, y = batch_of(models[0], 4)
    launches = []
    for step in range(6):
        places[0] = 1 if step < 4 else 2
        assert models[1].train_step(x, y) == pytest.approx(models[0].train_step(x, y))
        launches.append(driver.calls.count("launch"))
    assert launches == [0, 1, 2, 3, 3, 4]
    assert driver.calls.count("begin") == 2
    assert_same_standing(*models)


def test_without_graphs_steps_are_launched_one_by_one(monkeypatch):
    monkeypatch.setattr(graph, "LEAST_STEPS", 6)
    monkeypatch.setattr("nbbp.cuda.engine._address", lambda array: 0)
    models = twins([Dense(3)], 3, LOSS)
    X, y = batch_of(models[0], 31)
    session = models[1]._session
    session.begin_fit()
    bound = session.training(3, True, True)
    bound._driver = Driver(refuses="begin")
    bound.stream.__class__.__int__ = lambda stream: 7
    models[0].fit(X, y, batch_size=3, verbose=0)
    with pytest.warns(RuntimeWarning, match="steps are launched one by one, which is slower: the CUDA driver refused"):
        models[1].fit(X, y, batch_size=3, verbose=0)
    assert_same_standing(*models)


@pytest.mark.parametrize("loss", [LOSS, losses.MSE()], ids=label)
def test_runs_of_many_steps_are_launched_as_graphs(loss, monkeypatch):
    """Two epochs over the same data: recorded once; the rest of a run, and short runs, step by step."""
    monkeypatch.setattr(graph, "STEPS", 4)
    monkeypatch.setattr(graph, "LEAST_STEPS", 6)
    monkeypatch.setattr("nbbp.cuda.engine._address", lambda array: id(array) if array.size else 0)
    models = twins([Dense(3, "tanh"), Dense(2)], 3, loss, optimizer="adam")
    X, y = batch_of(models[0], 31)
    session = models[1]._session
    session.begin_fit()
    bound = session.training(3, loss.row_wise, True)
    driver = bound._driver = Driver()
    bound.stream.__class__.__int__ = lambda stream: 7
    bound._step = driver.recorded(bound._step)
    kept = {}

    def place(name, n, dtype, found=bound._place):
        return kept.setdefault((name, n), found(name, n, dtype))

    bound._place = place
    for model in models:
        model.fit(X, y, epochs=2, batch_size=3, verbose=0)
    assert driver.calls.count("begin") == 2  # four steps, and one
    # of 11 steps, one alone, two graphs of four, two of one; then, as all has run, two of four and three of one
    assert driver.calls.count("launch") == (2 + 2) + (2 + 3)
    assert_same_standing(*models)
    assert models[1].train_step(X[:3], y[:3]) == pytest.approx(models[0].train_step(X[:3], y[:3]))
    assert driver.calls.count("begin") == 2
    np.testing.assert_array_equal(bound.clock.copy_to_host()[1], 11)
