"""nbbp.profile: the same bits, every op named, shares that sum to one, and nothing paid by who does not ask."""

import contextlib
import copy
import os
import subprocess
import sys
from pathlib import Path

import mixed_cases
import numpy as np
import pytest
from engine_cases import features_for, targets_for
from structure_cases import NETWORKS, PLANS, TWIST, WITH_CUSTOM, bits_of_steps, data_for, planned_model, take_plan

import nbbp
from nbbp import losses, plotting, profile_drawing, programs
from nbbp.cpu import counting, engine, entry
from nbbp.nodes import walk

ROOT = Path(__file__).resolve().parents[1]
PHASES = {
    "gather", "forward", "forward again", "loss", "metrics", "backward", "weight gradients", "update", "output",
}  # fmt: skip
LAYERS = [nbbp.Dense(7, "tanh"), nbbp.BatchNorm(), nbbp.Dropout(0.2), nbbp.Residual([nbbp.Dense(7)]), nbbp.Dense(3)]


def small_model(**settings):
    """A classifier of 5 features and 3 classes whose sizes its data give."""
    return nbbp.Model(nbbp.Sequential(LAYERS), "crossentropy", metrics=("accuracy",), **settings)


def small_data(n=20):
    return features_for(n, 5, "float32"), targets_for(losses.Crossentropy(), n, 3)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", ["nested", "custom within"])
def test_same_bits_as_without(monkeypatch, plan, name, n_threads):
    take_plan(monkeypatch, plan, n_threads)
    layers = {**NETWORKS, **WITH_CUSTOM}[name]
    expected = bits_of_steps(planned_model(plan, layers), *data_for(plan))
    model = planned_model(plan, layers)
    with nbbp.profile(model) as report:
        assert bits_of_steps(model, *data_for(plan)) == expected
    assert report.steps == {"training": 3 + 2 * 2, "gradients": 1, "evaluation": report.steps["evaluation"]} | {
        "prediction": report.steps["prediction"]
    }


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("plan", mixed_cases.PLANS)
def test_same_bits_in_mixed_precision(monkeypatch, plan, precision):
    mixed_cases.take_plan(plan, monkeypatch)
    x, y = mixed_cases.data_for(70)
    models = [mixed_cases.model_in(precision, [nbbp.Dense(300, "tanh"), nbbp.Dense(3)], "adam") for _ in range(2)]
    with nbbp.profile(models[0]) as report:
        models[0].fit(x, y, batch_size=32, verbose=0)
    models[1].fit(x, y, batch_size=32, verbose=0)
    assert models[0].parameter_vector.tobytes() == models[1].parameter_vector.tobytes()
    assert {op.kernel for op in report.ops} > {"narrow", "product", "update"}


def test_report_of_everything_a_model_does():
    model, (x, y) = small_model(), small_data()
    with nbbp.profile(model) as report:
        assert (report.ops, report.seconds, str(report)) == ((), 0, "nothing has run")
        model.fit(x, y, batch_size=8, epochs=2, validation_data=(x, y), verbose=0)
        for _ in range(3):
            model.train_step(x[:8], y[:8])
        model.predict(x[:1])
        model.loss_and_gradients(x, y)
    assert report.steps == {"training": 2 * 3 + 3, "evaluation": 2, "prediction": 1, "gradients": 1}
    assert {op.task for op in report.ops} == set(report.steps)
    for task in report.steps:
        for by in ("phase", "layer", "kernel"):
            assert sum(report.shares(by, task).values()) == pytest.approx(1.0)
        assert sum(op.share for op in report.ops if op.task == task) == pytest.approx(1.0)
    assert list(report.shares("phase")) == [
        "gather", "forward", "loss", "metrics", "backward", "weight gradients", "update",
    ]  # fmt: skip
    assert list(report.shares("phase", "prediction")) == ["gather", "forward", "output"]
    (update,) = (op for op in report.ops if op.kernel == "update")
    assert (update.phase, update.layer, update.calls) == ("update", "network", 9)
    product = next(op for op in report.ops if (op.task, op.layer) == ("training", "3.0 Dense"))
    assert (product.phase, product.kernel, product.calls) == ("forward", "product", 9)
    assert all(op.calls and op.seconds >= 0 for op in report.ops)
    assert 0 < report.seconds == pytest.approx(sum(op.seconds for op in report.ops))
    text = str(report)
    assert "training: 9 steps" in text
    assert "gradients: 1 step of" in text
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    "layer",
    [
        nbbp.Dense(300, "gelu"),
        nbbp.Dense(4, trainable=False),
        nbbp.Activation("softmax"),
        nbbp.BatchNorm(),
        nbbp.LayerNorm(),
        nbbp.RMSNorm(),
        nbbp.Dropout(0.3),
        nbbp.StochasticDepth(0.3),
        nbbp.GaussianNoise(0.1),
        nbbp.Residual([nbbp.Dense(4, "tanh")]),
        nbbp.Concat([nbbp.Dense(4)], [nbbp.LayerNorm()], []),
        nbbp.Flatten(),
        nbbp.Embedding({0: 4, 3: 5}, 2),
        TWIST,
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_op_of_every_layer_has_a_phase_and_a_layer(layer):
    ends = [nbbp.Dense(3, "tanh")]
    network = nbbp.Sequential([layer, *ends], n_in=6)
    loss = losses.MSE()
    for optimizer in (nbbp.Adam(clip_norm=1.0), nbbp.Adafactor(), None):
        made = [programs.training_program(network, loss, optimizer, (), 40, False, True)]
        made.append(programs.evaluation_program(network, loss, (), 40, False))
        made.append(programs.prediction_program(network, 40))
        paths = {node.path for node in walk(network.nodes)}
        for program in made:
            assert program.task in ("training", "gradients", "evaluation", "prediction")
            for op in program.ops:
                assert op.phase in PHASES
                of_a_layer = op.phase in ("forward", "backward") or (op.kernel, op.phase) == (
                    "product", "weight gradients",
                )  # fmt: skip
                assert op.layer in paths if of_a_layer else op.layer in ("", *paths)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_checkpointing_shows_what_it_costs(precision):
    layers = [nbbp.Dense(8, "tanh") for _ in range(6)]
    network = nbbp.Sequential([*layers, nbbp.Dense(3)], n_in=5, checkpoint_every=2)
    program = programs.training_program(network, losses.MSE(), nbbp.SGD(), (), 4, False, precision=precision)
    again = [op for op in program.ops if op.phase == "forward again"]
    assert {op.layer for op in again} == {"0", "1", "2", "3", "4", "5"}
    assert {op.layer for op in program.ops if op.phase == "forward"} == {"0", "1", "2", "3", "4", "5", "6"}
    updates = [op.layer for op in program.ops if op.kernel == "update"]
    assert updates == (["6", "4 to 5", "2 to 3", "0 to 1"] if len(updates) > 1 else [""])


def test_nothing_is_counted_but_within(monkeypatch):
    """Without, the loop that runs is the one that knows of no counter, and short calls go their short ways."""
    model, (x, y) = small_model(), small_data()
    called = []

    def recorded(name, loop):
        return lambda *arguments: called.append(name) or loop(*arguments)

    loops = {"run_alone": engine, "run_counted": counting, "train_now": entry, "predict_now": entry}
    for name, module in loops.items():
        monkeypatch.setattr(module, name, recorded(name, getattr(module, name)))

    def calls_of_everything():
        called.clear()
        model.fit(x, y, verbose=0)
        model.train_step(x, y)
        model.predict(x[:1])
        return list(called)

    plain = ["run_alone", "train_now", "predict_now"]
    assert calls_of_everything() == plain
    with nbbp.profile(model):
        assert calls_of_everything() == ["run_counted"] * 3
    assert calls_of_everything() == plain


def test_time_in_ops_is_that_of_the_run():
    """Of a step long enough; what the clock sees beside the ops is a call from Python for each run."""
    x, y = np.ones((256, 512), "float32"), np.zeros(256, np.int64)
    model = nbbp.Model(nbbp.Sequential([nbbp.Dense(512), nbbp.Dense(10)], n_in=512), "crossentropy")
    with nbbp.profile(model) as report:
        for _ in range(20):
            model.train_step(x, y)
    assert 0.5 * report.elapsed < report.seconds < 1.001 * report.elapsed
    assert 0 < report.overhead < 1000


def test_what_cannot_be_profiled():
    model = small_model()
    with pytest.raises(TypeError, match="profile takes a Model"), nbbp.profile(model.network):
        pass
    with nbbp.profile(model), pytest.raises(RuntimeError, match="already"), nbbp.profile(model):
        pass
    model.fit(*small_data(), verbose=0)
    with nbbp.profile(model) as report, pytest.raises(RuntimeError, match="already"), nbbp.profile(model):
        pass
    with pytest.raises(ValueError, match="'phase', 'layer' or 'kernel'; got 'width'"):
        report.shares("width")
    with pytest.raises(ValueError, match="'training' in this profile; what has run: nothing"):
        report.shares("phase")
    with pytest.raises(ValueError, match="nothing to draw"):
        report.plot()


def test_a_copy_of_a_profiled_model_is_not_profiled():
    model, (x, y) = small_model(), small_data()
    model.fit(x, y, verbose=0)
    with nbbp.profile(model) as report:
        twin = copy.deepcopy(model)
        twin.fit(x, y, verbose=0)
    assert report.steps == {}
    with nbbp.profile(twin):
        pass


@pytest.mark.parametrize("plan", PLANS)
def test_monitored_steps_are_counted(monkeypatch, plan):
    """A `Monitor` sees the same numbers, and what it costs has a phase of its own."""
    take_plan(monkeypatch, plan)
    seen = []
    for profiles in (False, True):
        model, monitor = planned_model(plan, NETWORKS["nested"]), nbbp.callbacks.Monitor(every=2)
        x, y = data_for(plan)
        with nbbp.profile(model) if profiles else contextlib.nullcontext() as report:
            model.fit(x, y, batch_size=len(x) // 2, epochs=3, shuffle=False, verbose=0, callbacks=[monitor])
        seen.append([monitor[quantity].tobytes() for quantity in monitor.quantities])
    assert seen[0] == seen[1]
    assert len(monitor.updates) >= 3
    looks = [op for op in report.ops if op.phase == "monitoring"]
    assert {op.kernel for op in looks} == {"monitor_rows", "monitor_before", "monitor_after", "monitor_record"}
    records = [op for op in looks if op.kernel == "monitor_record"]
    assert [op.calls for op in records] == [len(monitor.updates)] * len(monitor.layers)


def test_an_error_ends_the_profile():
    model, (x, y) = small_model(), small_data()
    report = fail_while_profiled(model, x, y)
    model.train_step(x, y)
    assert report.steps == {"training": 1}
    with nbbp.profile(model):
        pass


def fail_while_profiled(model, x, y):
    """A profile in which a step was made and another one refused."""
    with pytest.raises(ValueError, match="features"), nbbp.profile(model) as report:  # noqa: PT012 - both steps count
        model.train_step(x, y)
        model.train_step(x[:, :2], y)
    return report


def test_names_stand_out_from_their_bars():
    pytest.importorskip("matplotlib")
    assert profile_drawing._ink_on(profile_drawing.COLOURS["weight gradients"]) == plotting.INK
    assert profile_drawing._ink_on(profile_drawing.COLOURS["forward"]) == "white"
    assert profile_drawing._ink_on(profile_drawing._lighter(profile_drawing.COLOURS["forward"], 0.42)) == plotting.INK


def test_picture_shows_phases_and_ops(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    model, (x, y) = small_model(), small_data()
    with nbbp.profile(model) as report:
        model.fit(x, y, validation_data=(x, y), verbose=0)
    figure = report.plot(tmp_path / "new" / "profile.png")
    assert (tmp_path / "new" / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title(loc="left").partition(":")[0] for axes in figure.axes] == ["training", "evaluation"]
    for axes, task in zip(figure.axes, report.steps, strict=True):
        chosen = [op for op in report.ops if op.task == task]
        phases = [bar for bar in axes.patches if bar.get_y() > 0.5]
        drawn = [bar for bar in axes.patches if bar.get_y() < 0.5]
        assert len(phases) == len({op.phase for op in chosen})
        microseconds = [1e6 * op.seconds / report.steps[task] for op in chosen]
        in_order = [cost for _, _, group in profile_drawing.grouped(chosen) for cost in group]
        assert sorted(bar.get_width() for bar in drawn) == pytest.approx(sorted(microseconds))
        assert len(in_order) == len(drawn)
        ends = [bar.get_x() + bar.get_width() for bar in phases]
        assert ends[-1] == pytest.approx(sum(microseconds))
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {op.phase for op in report.ops}
    plt.close(figure)


def test_plain_clock_instead_of_the_counter():
    """What processors other than x86-64 and ARM64 take: a nanosecond is a tick."""
    code = (
        "import time; from nbbp.cpu import counting; counting.now()\n"
        "begin = time.perf_counter_ns(), counting.now(); time.sleep(0.02)\n"
        "print((counting.now() - begin[1]) / (time.perf_counter_ns() - begin[0]))"
    )
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "PYTHONPATH": paths, "NBBP_CYCLE_COUNTER": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    per_nanosecond = float(done.stdout)
    assert per_nanosecond == pytest.approx(1.0, rel=0.05) or sys.platform == "win32"
