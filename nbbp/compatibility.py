"""What does not go together: a network, a loss and metrics that would run and give nonsense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nbbp.losses import Loss
from nbbp.metrics import Metric, TopKAccuracy
from nbbp.network import Sequential

__all__ = ["check_parts"]


def check_parts(network: Sequential, loss: Loss, metrics: Sequence[Metric]) -> None:
    """Refuse parts that each are right and together are not.

    Raises
    ------
    ValueError
        nll behind a softmax, two metrics of one name, more top classes than there are.
    """
    activation = network.layers[-1].activation
    if loss.name == "nll" and activation.name == "softmax":
        raise ValueError(
            "the loss 'nll' takes log-probabilities, the last layer gives probabilities (softmax): "
            "use 'log_softmax' there, or the loss 'crossentropy'"
        )
    name, count = Counter(metric.name for metric in metrics).most_common(1)[0] if metrics else ("", 0)
    if count > 1:
        raise ValueError(f"{count} metrics are called {name!r}; a history has one place for each name")
    for metric in metrics:
        if isinstance(metric, TopKAccuracy) and metric.k > network.n_out:
            raise ValueError(f"top_k_accuracy looks for the top {metric.k} of {network.n_out} outputs; lower k")
