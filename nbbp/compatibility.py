"""What does not go together: a network, a loss and metrics that would run and give nonsense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nbbp.layers.structure import chain_n_out
from nbbp.losses import Loss
from nbbp.metrics import Accuracy, Metric, TopKAccuracy
from nbbp.network import Sequential

__all__ = ["check_parts"]


def check_parts(network: Sequential, loss: Loss, metrics: Sequence[Metric]) -> None:
    """Refuse parts that each are right and together are not.

    Raises
    ------
    ValueError
        nll behind a softmax, two metrics of one name, more top classes than there are, classes of outputs that are no
        row.
    """
    activation = network.last_layer.activation
    if loss.name == "nll" and activation.name == "softmax":
        raise ValueError(
            "the loss 'nll' takes log-probabilities, the last layer gives probabilities (softmax): "
            "use 'log_softmax' there, or the loss 'crossentropy'"
        )
    name, count = Counter(metric.name for metric in metrics).most_common(1)[0] if metrics else ("", 0)
    if count > 1:
        raise ValueError(f"{count} metrics are called {name!r}; a history has one place for each name")
    if network.n_in is not None and len(network.output_shape) > 1:
        for part, takes_rows in ((loss, loss.row_wise), *((metric, _is_over_classes(metric)) for metric in metrics)):
            if takes_rows:
                raise ValueError(
                    f"{part.name!r} takes one output per class, a row for each sample; this network gives samples of "
                    f"shape {network.output_shape}: put Flatten() behind it"
                )
    for metric in metrics:
        n_out = chain_n_out(network.layers) if network.n_in is None else network.n_out
        if isinstance(metric, TopKAccuracy) and n_out is not None and metric.k > n_out:
            raise ValueError(f"top_k_accuracy looks for the top {metric.k} of {n_out} outputs; lower k")


def _is_over_classes(metric: Metric) -> bool:
    return isinstance(metric, (Accuracy, TopKAccuracy))
