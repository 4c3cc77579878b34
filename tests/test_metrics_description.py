"""Metrics as descriptions; what their kernels compute is tested with the kernels."""

import math
import pickle

import pytest

from nbbp import metrics


def test_names_and_quantities():
    codes = {name: metrics.get(name).code for name in metrics.BY_NAME}
    assert codes == {
        "accuracy": metrics.RIGHT_CLASS,
        "binary_accuracy": metrics.RIGHT_SIDES,
        "top_k_accuracy": metrics.IN_TOP_K,
        "mae": metrics.ABSOLUTE_ERROR,
        "mse": metrics.SQUARED_ERROR,
        "rmse": metrics.SQUARED_ERROR,
    }
    assert all(metrics.get(name).name == name for name in metrics.BY_NAME)
    labelled = {name for name, metric in metrics.BY_NAME.items() if metric.needs_labels}
    assert labelled == {"accuracy", "binary_accuracy", "top_k_accuracy"}


def test_accuracy_of_one_output_is_binary():
    assert metrics.Accuracy().code_for(1) == metrics.BinaryAccuracy().code
    assert metrics.Accuracy().parameter == metrics.BinaryAccuracy().parameter
    assert metrics.Accuracy().code_for(2) == metrics.Accuracy().code
    assert metrics.MeanSquaredError().code_for(1) == metrics.MeanSquaredError().code


def test_only_the_root_finishes_its_mean():
    finished = {name: metrics.get(name).finalise(0.25) for name in metrics.BY_NAME}
    assert finished.pop("rmse") == 0.5
    assert set(finished.values()) == {0.25}
    assert math.isnan(metrics.RootMeanSquaredError().finalise(math.nan))


def test_parameters():
    assert metrics.TopKAccuracy().parameter == 5.0
    assert metrics.TopKAccuracy(k=3).parameter == 3.0
    assert metrics.BinaryAccuracy(threshold=0.3).parameter == 0.3
    assert metrics.MeanSquaredError().parameter == 0.0


def test_threshold_of_logits_is_where_the_sigmoid_takes_the_threshold():
    assert metrics.threshold_of_logits(0.5) == 0.0
    assert 1.0 / (1.0 + math.exp(-metrics.threshold_of_logits(0.3))) == pytest.approx(0.3)


def test_descriptions_are_values():
    metric = metrics.TopKAccuracy(3)
    assert metric == metrics.TopKAccuracy(k=3)
    assert hash(metric) == hash(metrics.TopKAccuracy(k=3))
    assert pickle.loads(pickle.dumps(metric)) == metric
    assert metrics.get(metric) is metric


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: metrics.TopKAccuracy(0), ValueError, "k of top_k_accuracy must be at least 1; got 0"),
        (
            lambda: metrics.TopKAccuracy(1.5),
            TypeError,
            "k of top_k_accuracy must be an integer; got 1.5 (float)",
        ),
        (lambda: metrics.BinaryAccuracy(1.0), ValueError, "must lie between 0 and 1; got 1.0"),
        (lambda: metrics.BinaryAccuracy(math.nan), ValueError, "must lie between 0 and 1; got nan"),
        (
            lambda: metrics.BinaryAccuracy("half"),
            TypeError,
            "threshold of binary_accuracy must be a number; got 'half'",
        ),
        (lambda: metrics.get("acuracy"), ValueError, "unknown metric 'acuracy'. Did you mean 'accuracy'?"),
        (lambda: metrics.get("xyzzy"), ValueError, f"There are: {', '.join(metrics.BY_NAME)}."),
        (lambda: metrics.get(metrics.Accuracy), TypeError, "such as Accuracy(); got the class Accuracy"),
        (
            lambda: metrics.get(3),
            TypeError,
            "metric must be a name such as 'accuracy' or a metric; got 3 (int)",
        ),
        (lambda: metrics.Metric(), TypeError, "take one of: accuracy, binary_accuracy"),
    ],
)
def test_refusals_say_what_was_expected_and_what_came(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
