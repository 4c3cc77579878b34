"""Parts that each are right and together are not."""

import pytest

import nbbp


def model(last, loss, metrics=()):
    return nbbp.Model(nbbp.Sequential([nbbp.Dense(3, activation=last)], n_in=2), loss=loss, metrics=metrics)


def test_nll_behind_softmax():
    with pytest.raises(
        ValueError, match=r"takes log-probabilities.*use 'log_softmax' there, or the loss 'crossentropy'"
    ):
        model("softmax", "nll")


def test_two_metrics_of_one_name():
    metrics = (nbbp.metrics.TopKAccuracy(k=1), nbbp.metrics.TopKAccuracy(k=2))
    with pytest.raises(ValueError, match="2 metrics are called 'top_k_accuracy'"):
        model("linear", "crossentropy", metrics)


def test_more_top_classes_than_there_are():
    with pytest.raises(ValueError, match="the top 5 of 3 outputs"):
        model("linear", "crossentropy", ("top_k_accuracy",))


@pytest.mark.parametrize("last", ["linear", "log_softmax"])
def test_what_goes_together(last):
    model(last, "nll", ("accuracy", nbbp.metrics.TopKAccuracy(k=3)))
