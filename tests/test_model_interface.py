"""The public interface of a model, name by name: what is called how, what comes back, and what belongs to whom."""

import copy
import gc
import inspect
import pickle
import weakref
from collections.abc import Mapping

import numpy as np
import pytest

import nbbp

DTYPES = ("float32", "float64")


def samples(n=60, n_in=4, n_classes=3, dtype="float32"):
    """Features and class labels."""
    random = np.random.default_rng(0)
    return random.standard_normal((n, n_in)).astype(dtype), random.integers(0, n_classes, n)


def classifier(n_in=4, n_classes=3, last="linear", loss="crossentropy", **settings):
    layers = [nbbp.Dense(7, activation="relu"), nbbp.Dense(n_classes, activation=last)]
    return nbbp.Model(nbbp.Sequential(layers, n_in=n_in), loss=loss, **{"metrics": ("accuracy",)} | settings)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def defaults(function):
    """Names of the parameters behind self with their defaults; keyword-only ones have a star."""
    star = inspect.Parameter.KEYWORD_ONLY
    return {
        ("*" if p.kind == star else "") + p.name: p.default
        for p in list(inspect.signature(function).parameters.values())[1:]
    }


NEEDED = inspect.Parameter.empty


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            "__init__",
            {
                "network": NEEDED, "loss": NEEDED, "optimizer": "adam", "metrics": (),
                "*device": "cpu", "*dtype": "float32", "*seed": 0, "*precision": "float32", "*loss_scaling": None,
            },
        ),
        (
            "fit",
            {
                "X": NEEDED, "y": None, "*epochs": 1, "*batch_size": 32, "*validation_data": None,
                "*validation_split": 0.0, "*shuffle": True, "*sample_weight": None, "*class_weight": None,
                "*callbacks": (), "*verbose": "auto", "*resume_from": None, "*augment": None,
            },
        ),
        ("evaluate", {"X": NEEDED, "y": None, "*sample_weight": None}),
        ("predict", {"X": NEEDED}),
        ("predict_proba", {"X": NEEDED}),
        ("train_step", {"x": NEEDED, "y": NEEDED, "sample_weight": None}),
        ("loss_and_gradients", {"x": NEEDED, "y": NEEDED, "sample_weight": None}),
        ("check_gradients", {"x": NEEDED, "y": NEEDED, "*max_per_parameter": 200}),
        ("summary", {}),
    ],
)  # fmt: skip
def test_signatures(method, expected):
    assert defaults(getattr(nbbp.Model, method)) == expected


def test_the_example_of_the_design():
    net = nbbp.Sequential([nbbp.Dense(128, activation="relu"), nbbp.Dense(10)], n_in=784)
    model = nbbp.Model(
        net, loss="crossentropy", optimizer=nbbp.Adam(learning_rate=1e-3), metrics=("accuracy",), device="cpu",
        dtype="float32", seed=0,
    )  # fmt: skip
    X, y = samples(200, 784, 10)
    Xv, yv = samples(50, 784, 10)
    history = model.fit(
        X, y, epochs=2, batch_size=64, validation_data=(Xv, yv), validation_split=0.0, shuffle=True,
        sample_weight=None, class_weight=None, callbacks=(), verbose=0,
    )  # fmt: skip
    assert history.epochs == [1, 2]
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    for series in history.values():
        assert len(series) == 2
        assert all(type(value) is float for value in series)
    assert history["loss"][1] < history["loss"][0]
    assert model.history is history
    assert {name: array.shape for name, array in model.parameters.items()} == {
        "0.weight": (784, 128), "0.bias": (128,), "1.weight": (128, 10), "1.bias": (10,),
    }  # fmt: skip
    assert model.predict(X).shape == (200, 10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_are_views_of_one_aligned_buffer(dtype):
    for seed, n_in in enumerate((1, 3, 4, 17)):
        model = classifier(n_in, dtype=dtype, seed=seed)
        flat = model.parameter_vector
        assert flat.ctypes.data % 64 == 0
        assert flat.dtype == dtype
        assert flat.shape == (sum(array.size for array in model.parameters.values()),)
        place = 0
        for array in model.parameters.values():
            assert np.shares_memory(array, flat)
            assert array.ctypes.data == flat.ctypes.data + place * flat.itemsize
            assert array.flags.c_contiguous
            place += array.size
    X, _ = samples(dtype=dtype, n_in=17)
    before = model.predict(X)
    model.parameters["1.bias"][...] += 1
    np.testing.assert_allclose(model.predict(X), before + 1, rtol=1e-5, atol=1e-6)
    model.parameter_vector[:] = 0
    assert not model.predict(X).any()
    assert not any(array.any() for array in model.parameters.values())
    with pytest.raises(TypeError):
        model.parameters["1.bias"] = np.zeros(3)
    with pytest.raises(AttributeError):
        model.parameter_vector = np.zeros(3)


def test_n_in_may_wait_for_the_first_data():
    X, y = samples()
    for first_use in ("fit", "train_step", "loss_and_gradients"):
        network = nbbp.Sequential([nbbp.Dense(7, activation="relu"), nbbp.Dense(3)])
        waiting = nbbp.Model(network, loss="crossentropy", seed=5)
        assert "not known yet" in waiting.summary()
        for use in (
            lambda model: model.parameters,
            lambda model: model.parameter_vector,
            lambda model: model.predict(X),
            lambda model: model.evaluate(X, y),
            lambda model: model.check_gradients(X, y),
        ):
            with pytest.raises(ValueError, match=r"no parameters yet.*give n_in to Sequential, or call fit"):
                use(waiting)
        ready = classifier(metrics=(), seed=5)
        for model in (waiting, ready):
            model.fit(X, y, verbose=0) if first_use == "fit" else getattr(model, first_use)(X, y)
        np.testing.assert_array_equal(waiting.parameter_vector, ready.parameter_vector)
        assert waiting.network.n_in == 4
        assert "n_in = 4" in waiting.summary()
    assert network.n_in is None, "the caller's description stays as it is"


def test_fit_goes_on_where_the_model_stands():
    X, y = samples()
    once, twice = classifier(seed=2), classifier(seed=2)
    one = once.fit(X, y, epochs=5, verbose=0)
    two = [twice.fit(X, y, epochs=n, verbose=0) for n in (2, 3)]
    np.testing.assert_array_equal(once.parameter_vector, twice.parameter_vector)
    assert one["loss"] == two[0]["loss"] + two[1]["loss"]
    assert two[1].epochs == [1, 2, 3]
    assert twice.history is two[1]
    assert (once.parameter_vector != classifier(seed=3).parameter_vector).any()


def test_validation_split_is_the_last_part():
    X, y = samples()
    weight = np.linspace(0, 2, 60)
    split, given = classifier(), classifier()
    first = split.fit(X, y, epochs=2, validation_split=0.25, sample_weight=weight, verbose=0)
    second = given.fit(
        X[:45], y[:45], epochs=2, validation_data=(X[45:], y[45:], weight[45:]), sample_weight=weight[:45], verbose=0
    )
    assert dict(first) == dict(second)
    np.testing.assert_array_equal(split.parameter_vector, given.parameter_vector)
    assert first["val_loss"][-1] == split.evaluate(X[45:], y[45:], sample_weight=weight[45:])["loss"]


def test_evaluate_is_the_mean_over_the_samples():
    X, y = samples(700)
    model = classifier(metrics=("accuracy", nbbp.metrics.TopKAccuracy(k=2), "mse"))
    logits = model.predict(X).astype(np.float64)
    losses = -np.log(softmax(logits)[np.arange(700), y])
    report = model.evaluate(X, y)
    assert list(report) == ["loss", "accuracy", "top_k_accuracy", "mse"]
    assert all(type(value) is float for value in report.values())
    assert report["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert report["accuracy"] == pytest.approx((logits.argmax(axis=1) == y).mean())
    weight = np.linspace(0, 3, 700)
    weighted = model.evaluate(X, y, sample_weight=weight)
    assert weighted["loss"] == pytest.approx((weight * losses).mean(), rel=1e-5)
    assert weighted["accuracy"] == report["accuracy"]
    summed = classifier(loss=nbbp.losses.Crossentropy(reduction="sum"))
    assert summed.evaluate(X, y)["loss"] == pytest.approx(losses.sum(), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 700])
def test_predict_gives_new_arrays_of_the_models_dtype(n):
    X, _ = samples(n)
    for dtype in DTYPES:
        model = classifier(dtype=dtype)
        first, second = model.predict(X), model.predict(X)
        assert first.shape == (n, 3)
        assert first.dtype == dtype
        assert first.flags.owndata
        assert first.flags.carray
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(first, second)
        for k in range(0, n, 100):  # a sample is what it is, whatever stands beside it
            np.testing.assert_allclose(model.predict(X[k : k + 1])[0], first[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "last", "expected"),
    [
        ("crossentropy", "linear", softmax),
        ("crossentropy", "softmax", lambda p: p),
        ("crossentropy", "log_softmax", np.exp),
        ("nll", "log_softmax", np.exp),
        ("binary_crossentropy", "linear", lambda z: 1 / (1 + np.exp(-z))),
        ("binary_crossentropy", "sigmoid", lambda p: p),
    ],
)
def test_predict_proba(loss, last, expected):
    X, _ = samples(300)
    model = classifier(loss=loss, last=last)
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (300, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected(model.predict(X)), rtol=1e-5, atol=1e-7)
    if loss != "binary_crossentropy":
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "log_cosh", "hinge", "poisson"])
def test_predict_proba_needs_classes(loss):
    with pytest.raises(ValueError, match=f"predict_proba needs a loss over classes; this model's loss is '{loss}'"):
        classifier(loss=loss, metrics=()).predict_proba(samples()[0])


@pytest.mark.parametrize("weight", [None, np.linspace(0, 2, 60)], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_train_step_returns_the_loss_before_its_update(dtype, weight):
    X, y = samples(dtype=dtype)
    model = classifier(dtype=dtype)
    for _ in range(3):
        loss, gradients = model.loss_and_gradients(X, y, weight)
        stepped = model.train_step(X, y, weight)
        assert type(loss) is type(stepped) is float
        assert stepped == pytest.approx(loss, rel=1e-6)
    assert model.evaluate(X, y, sample_weight=weight)["loss"] < loss
    assert isinstance(gradients, Mapping)
    assert {k: (v.shape, v.dtype) for k, v in gradients.items()} == {
        k: (v.shape, v.dtype) for k, v in model.parameters.items()
    }
    assert not any(np.shares_memory(gradient, model.parameter_vector) for gradient in gradients.values())


def test_looking_changes_nothing():
    X, y = samples()
    one, other = classifier(seed=4), classifier(seed=4)
    for model in (one, other):
        model.fit(X, y, epochs=2, verbose=0)
        if model is one:
            model.predict(X)
            model.predict_proba(X)
            model.evaluate(X, y)
            model.loss_and_gradients(X, y)
            model.check_gradients(X, y, max_per_parameter=3)
            model.summary()
            copy.deepcopy(model).fit(X, y, verbose=0)
        model.train_step(X, y)
        model.fit(X, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(one.parameter_vector, other.parameter_vector)


@pytest.mark.parametrize("dtype", DTYPES)
def test_check_gradients(dtype):
    X, y = samples(20)
    check = classifier(dtype=dtype).check_gradients(X, y)
    assert isinstance(check, nbbp.GradientCheck)
    assert list(check) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert check.max_error == max(check.values()) < 1e-7
    assert "0.weight" in repr(check)
    few = classifier(dtype=dtype).check_gradients(X, y, max_per_parameter=5)
    assert len(few.analytic["0.weight"]) == 5
    assert len(few.analytic["1.bias"]) == 3


def test_summary_and_repr():
    model = classifier(optimizer=nbbp.SGD(learning_rate=0.5), seed=9)
    summary = model.summary()
    assert "59" in summary.splitlines()[-1]
    assert "236" in summary.splitlines()[-1]
    assert "472" in classifier(dtype="float64").summary().splitlines()[-1]
    for part in ("Dense(n_out=7", "Crossentropy(", "SGD(learning_rate=0.5", "float32", "seed=9"):
        assert part in repr(model)


def test_a_silent_fit_and_one_with_a_bar(capfd):
    X, y = samples()
    model = classifier()
    model.fit(X, y, validation_split=0.2, verbose=0)  # compiles, which says so once
    capfd.readouterr()
    model.fit(X, y, epochs=3, validation_split=0.2, verbose=0)
    assert capfd.readouterr() == ("", "")
    for verbose in ("auto", 1, True):
        model.fit(X, y, epochs=2, validation_split=0.2, verbose=verbose)
        out, err = capfd.readouterr()
        assert out == ""
        for part in ("epoch 1/2", "epoch 2/2", "48", "loss=", "accuracy=", "val_loss=", "val_accuracy=", "sample/s"):
            assert part in err


def test_a_process_without_a_console(monkeypatch):
    X, y = samples()
    monkeypatch.setattr("sys.stderr", None)
    assert classifier().fit(X, y, epochs=2).epochs == [1, 2]


def test_strict_floating_point_settings_of_the_caller():
    """Under ``np.seterr(all="raise")`` nothing raises that would not without it."""
    X, y = samples()
    tiny = np.full((60, 4), 1e-60)
    with np.errstate(all="raise"):
        model = classifier()
        model.fit(X, y, epochs=2, validation_data=(tiny, y), sample_weight=np.full(60, 1e-50), verbose=0)
        model.predict(tiny)
        model.check_gradients(X, y)
        for _ in range(3):
            model.fit(np.tile(X, (200, 1)), np.tile(y, 200), batch_size=1, verbose=0)  # beta ** step is 0 by then
        regression = classifier(loss="mse", metrics=("rmse",), optimizer=nbbp.SGD(1e30))
        with pytest.raises(nbbp.TrainingDiverged):
            regression.fit(X, np.eye(3)[y], epochs=5, verbose=0)
        with pytest.raises(ValueError, match="too large for float32"):
            model.fit(1e39 * X.astype(np.float64), y, verbose=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_memory_of_its_own(duplicate):
    X, y = samples()
    model = classifier(optimizer=nbbp.Adam(groups={"*.bias": {"learning_rate": 0.1}}))
    model.fit(X, y, epochs=2, verbose=0)
    model.train_step(X, y)
    twin = duplicate(model)
    before = model.parameter_vector.copy()
    one = twin.fit(X, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, before)
    two = model.fit(X, y, epochs=2, verbose=0)
    assert dict(one) == dict(two), "the optimizer's moments, its step and the epoch are copied too"
    np.testing.assert_array_equal(twin.parameter_vector, model.parameter_vector)
    assert twin.parameter_vector.ctypes.data % 64 == 0
    assert np.shares_memory(twin.parameters["1.weight"], twin.parameter_vector)
    waiting = duplicate(nbbp.Model(nbbp.Sequential([nbbp.Dense(3)]), loss="crossentropy"))
    waiting.fit(X, y, verbose=0)


def test_what_a_model_is_made_of_is_fixed():
    model = classifier()
    for name in ("network", "loss", "optimizer", "metrics", "device", "dtype", "seed"):
        with pytest.raises(AttributeError, match=f"{name} cannot be changed.*make another Model"):
            setattr(model, name, getattr(model, name))
    other = classifier(optimizer="sgd", seed=1)
    other.parameter_vector[:] = model.parameter_vector
    X, _ = samples()
    np.testing.assert_array_equal(other.predict(X), model.predict(X))


def test_a_model_that_nobody_needs_is_gone():
    X, y = samples()
    model = classifier()
    model.fit(X, y, verbose=0)
    model.train_step(X, y)
    model.predict(X)
    session = weakref.ref(model._session)
    del model
    gc.collect()
    assert session() is None


def test_parameters_outlive_their_model():
    parameters = classifier().parameters
    gc.collect()
    np.testing.assert_array_equal(parameters["0.weight"], classifier().parameters["0.weight"])
