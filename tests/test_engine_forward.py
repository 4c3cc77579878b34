"""predict, predict_proba, evaluate and the metrics against the oracle."""

import numpy as np
import pytest
import reference
from engine_cases import (
    ALL_ACTIVATIONS,
    ALL_LOSSES,
    DTYPES,
    assert_near,
    copies,
    features_for,
    label,
    model_of,
    small_model,
    targets_for,
)
from scipy import special

from nbbp import losses, metrics
from nbbp.layers import Activation, Dense

#: Around the tiles of 64 rows and the batch of 256 that forward passes take.
SIZES = [1, 2, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1000]
N_CLASSES = 4


def oracle_outputs(model, x, skip_last=False):
    z, a = reference.forward(model.network, copies(model.parameters), x)[-1]
    return z if skip_last else a


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_predict_of_any_size(n, dtype):
    model = small_model("gelu", losses.Crossentropy(), dtype)
    x = features_for(n, 5, dtype)
    expected = oracle_outputs(model, x)
    out = model.predict(x)
    assert out.shape == (n, 3)
    assert out.dtype == dtype
    assert_near(out, expected, dtype)
    # The way that converts and the way that does not: the same bits.
    assert out.tobytes() == model.predict(np.asfortranarray(x)).tobytes() == model.predict(x.tolist()).tobytes()


@pytest.mark.parametrize("n", SIZES)
def test_a_row_is_predicted_alike_wherever_it_stands(n):
    """Whichever tile and batch it falls in, alone or among others: to rounding, as registers may cut rows otherwise."""
    model = small_model("gelu", losses.MSE(), "float32")
    x = features_for(1000, 5, "float32")
    assert_near(model.predict(x[:n]), model.predict(x)[:n], tolerance=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", ALL_ACTIVATIONS, ids=label)
@pytest.mark.parametrize("stands_alone", [False, True])
def test_predict_gives_the_last_activation(last, stands_alone, dtype):
    """The fused losses leave it out of training only."""
    layers = [Dense(7, "tanh"), Dense(3), last] if stands_alone else [Dense(7, "tanh"), Dense(3, last)]
    model = model_of(layers, 5, losses.MSE(), dtype)
    x = features_for(70, 5, dtype)
    assert_near(model.predict(x), oracle_outputs(model, x), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 300])
@pytest.mark.parametrize(
    ("loss", "last", "of_output"),
    [
        (losses.Crossentropy(), "linear", lambda a: special.softmax(a, axis=1)),
        (losses.Crossentropy(), "softmax", lambda a: a),
        (losses.Crossentropy(), "log_softmax", np.exp),
        (losses.NLL(), "log_softmax", np.exp),
        (losses.BinaryCrossentropy(), "linear", special.expit),
        (losses.BinaryCrossentropy(), "sigmoid", lambda a: a),
        (losses.BinaryCrossentropy(), "tanh", special.expit),
    ],
)
def test_predict_proba(loss, last, of_output, n, dtype):
    model = small_model("tanh", loss, dtype, last=last)
    x = features_for(n, 5, dtype)
    probabilities = model.predict_proba(x)
    assert probabilities.dtype == dtype
    assert_near(probabilities, of_output(oracle_outputs(model, x)), dtype)
    if loss.row_wise:
        assert_near(probabilities.sum(axis=1), np.ones(n), dtype)


def test_predict_proba_of_a_loss_without_classes():
    with pytest.raises(ValueError, match="predict_proba needs a loss over classes"):
        small_model("tanh", losses.MSE()).predict_proba(features_for(2, 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_evaluate_of_any_size(loss, n, dtype):
    model = small_model("tanh", loss, dtype)
    x, y = features_for(n, 5, dtype), targets_for(loss, n, 3)
    for weight in (None, np.random.default_rng(3).uniform(0.0, 2.0, n)):
        expected = reference.loss_value(model.network, copies(model.parameters), x, y, loss, weight)
        report = model.evaluate(x, y, sample_weight=weight)
        assert list(report) == ["loss"]
        assert type(report["loss"]) is float
        assert_near(report["loss"], expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_evaluate_is_the_loss_of_one_batch(reduction, dtype):
    loss = losses.Crossentropy(label_smoothing=0.1, reduction=reduction, scale=0.5)
    model = small_model("tanh", loss, dtype)
    x, y = features_for(700, 5, dtype), targets_for(loss, 700, 3)
    assert_near(model.evaluate(x, y)["loss"], model.loss_and_gradients(x, y)[0], tolerance=1e-6)


# --- metrics -------------------------------------------------------------------------------------------------------

#: Losses with last activations, and what their outputs are: "values", "logits" (fused or not), "margins".
METRIC_CASES = {
    "mse": (losses.MSE(), "linear"),
    "mse of tanh": (losses.MSE(), "tanh"),
    "crossentropy": (losses.Crossentropy(), "linear"),
    "crossentropy of softmax": (losses.Crossentropy(), "softmax"),
    "crossentropy of log_softmax": (losses.Crossentropy(), "log_softmax"),
    "nll of log_softmax": (losses.NLL(), "log_softmax"),
    "nll": (losses.NLL(), "linear"),
    "binary": (losses.BinaryCrossentropy(), "linear"),
    "binary of sigmoid": (losses.BinaryCrossentropy(), "sigmoid"),
    "hinge": (losses.Hinge(), "linear"),
}
METRICS = [
    metrics.Accuracy(),
    metrics.BinaryAccuracy(),
    metrics.BinaryAccuracy(threshold=0.8),
    metrics.TopKAccuracy(k=2),
    metrics.MeanAbsoluteError(),
    metrics.MeanSquaredError(),
    metrics.RootMeanSquaredError(),
]


def expected_metric(metric, model, x, y):
    """By the oracle, from what the last layer gives."""
    loss, outputs = model.loss, oracle_outputs(model, x)
    threshold = getattr(metric, "threshold", 0.5)
    if loss.name == "hinge":
        threshold = 0.0
    elif loss.name == "binary_crossentropy" and reference.activation_of(model.network.layers[-1]).name != "sigmoid":
        threshold = special.logit(threshold)
    if loss.row_wise and y.ndim == 1 and metric.name not in ("accuracy", "top_k_accuracy"):
        y = np.eye(outputs.shape[1])[y]
    return reference.metric(metric.name, outputs, y, k=getattr(metric, "k", 5), threshold=threshold)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["hard", "one-hot", "soft"])
@pytest.mark.parametrize("metric", METRICS, ids=str)
@pytest.mark.parametrize("case", METRIC_CASES)
def test_metric(case, metric, kind, dtype):
    loss, last = METRIC_CASES[case]
    if kind != "hard" and not loss.row_wise and loss.name != "binary_crossentropy":
        kind = "hard"
    model = model_of([Dense(7, "tanh"), Dense(N_CLASSES, last)], 5, loss, dtype, metrics=(metric,))
    x, y = features_for(300, 5, dtype), targets_for(loss, 300, N_CLASSES, kind=kind)
    report = model.evaluate(x, y)
    assert list(report) == ["loss", metric.name]
    assert_near(report[metric.name], expected_metric(metric, model, x, y), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", [m for m in METRICS if m.name != "top_k_accuracy"], ids=str)
@pytest.mark.parametrize("case", ["mse", "binary", "binary of sigmoid", "hinge"])
def test_metric_of_a_single_output(case, metric, dtype):
    loss, last = METRIC_CASES[case]
    model = model_of([Dense(7, "tanh"), Dense(1, last)], 5, loss, dtype, metrics=(metric,))
    x, y = features_for(90, 5, dtype), targets_for(loss, 90, 1)
    assert_near(model.evaluate(x, y)[metric.name], expected_metric(metric, model, x, y), dtype)


@pytest.mark.parametrize("case", ["crossentropy of softmax", "binary of sigmoid"])
def test_metrics_of_a_fused_activation_that_stands_alone(case):
    loss, last = METRIC_CASES[case]
    layers = [Dense(7, "tanh"), Dense(N_CLASSES), Activation(last)]
    distinct = [m for m in METRICS if m != metrics.BinaryAccuracy(threshold=0.8)]
    model = model_of(layers, 5, loss, metrics=distinct)
    x, y = features_for(300, 5), targets_for(loss, 300, N_CLASSES)
    report = model.evaluate(x, y)
    for metric in distinct:
        assert_near(report[metric.name], expected_metric(metric, model, x, y))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", METRIC_CASES)
def test_metrics_while_training(case, dtype):
    """With nothing learned, an epoch's metrics are those of an evaluation; and computing them changes no step."""
    loss, last = METRIC_CASES[case]
    chosen = ("accuracy", "binary_accuracy", "mae", "rmse")
    with_metrics, without = (
        model_of([Dense(7, "tanh"), Dense(N_CLASSES, last)], 5, loss, dtype, metrics=names) for names in (chosen, ())
    )
    x, y = features_for(130, 5, dtype), targets_for(loss, 130, N_CLASSES)
    groups = {"*": {"learning_rate": 0.0}}
    frozen = model_of(
        [Dense(7, "tanh"), Dense(N_CLASSES, last)], 5, loss, dtype, metrics=chosen,
        optimizer=type(without.optimizer)(groups=groups),
    )  # fmt: skip
    history = frozen.fit(x, y, batch_size=32, verbose=0)
    expected = frozen.evaluate(x, y)
    for name in ("loss", *chosen):
        assert_near(history[name][0], expected[name], tolerance=1e-6)
    for model in (with_metrics, without):
        model.fit(x, y, batch_size=32, verbose=0)
    assert with_metrics.parameter_vector.tobytes() == without.parameter_vector.tobytes()


def test_weights_count_in_the_loss_and_not_in_the_metrics():
    model = small_model("tanh", losses.Crossentropy(), metrics=("accuracy",))
    x, y = features_for(80, 5), targets_for(model.loss, 80, 3)
    weight = np.random.default_rng(0).uniform(0.0, 4.0, 80)
    plain, weighted = model.evaluate(x, y), model.evaluate(x, y, sample_weight=weight)
    assert plain["accuracy"] == weighted["accuracy"]
    assert plain["loss"] != weighted["loss"]


def test_ties_and_nan_among_outputs():
    """Of equals the first is the largest; a row with NaN is never right."""
    model = model_of([Dense(3)], 3, losses.Crossentropy(), metrics=("accuracy", metrics.TopKAccuracy(k=1)))
    model.parameters["0.weight"][:] = np.eye(3)
    model.parameters["0.bias"][:] = 0.0
    x = np.array([[1.0, 1.0, 0.0]])
    assert model.evaluate(x, [0])["accuracy"] == 1.0
    assert model.evaluate(x, [1])["accuracy"] == 0.0
    assert model.evaluate(x, [1])["top_k_accuracy"] == 1.0
    model.parameters["0.bias"][2] = np.nan
    for target in range(3):
        report = model.evaluate(x, [target])
        assert np.isnan(report["loss"])
        assert report["accuracy"] == report["top_k_accuracy"] == 0.0
