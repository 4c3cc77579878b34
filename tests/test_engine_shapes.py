"""Dense networks of any shape, as they come: against the oracle, and with the same bits whoever runs them.

Widths and batches lie around what sends a product its own way: few outputs, few rows, many rows that lie far apart,
whole registers and panels.
"""

import numpy as np
import pytest
from engine_cases import (
    assert_all_near,
    assert_gradients_near_oracle,
    features_for,
    model_of,
    oracle_steps,
    targets_for,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nbbp import losses, optimizers, tiling
from nbbp.cpu import engine
from nbbp.layers import Activation, Dense

WIDTHS = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 63, 64, 65, 127, 128, 255, 256, 257, 260, 300]))
BATCHES = st.one_of(st.integers(1, 17), st.sampled_from([63, 64, 65, 127, 191, 192, 193, 194, 257, 321]))
LAYERS = st.one_of(
    st.builds(Dense, WIDTHS, st.sampled_from(["relu", "relu", "linear", "tanh"]), use_bias=st.booleans(),
              trainable=st.booleans()),
    st.just(Activation("relu")),
)  # fmt: skip
NETWORKS = st.tuples(st.lists(LAYERS, max_size=4), st.integers(1, 6), st.sampled_from(["linear", "relu"]))
LOSSES = st.sampled_from([losses.MSE(), losses.Crossentropy(), losses.Crossentropy(label_smoothing=0.1)])
OPTIMIZERS = st.sampled_from([optimizers.SGD(0.1, momentum=0.9), optimizers.Adam(0.01), optimizers.Adafactor(0.05)])
#: Every way of cutting a step, shared among threads whatever its size.
CUTS = st.sampled_from([{}, {"_PARTIAL_WORK": 1}, {"_WIDE_WEIGHTS": 0, "_TILE_WORK": 1e3}])
#: Rows that lie far apart, and enough of them: the packed products over rows, in front of few outputs.
DEEP = [Dense(300, "relu"), Activation("relu"), Dense(260, "relu")], 3, "linear"


def case(network, n_in, loss, optimizer="sgd"):
    hidden, n_out, last = network
    if loss.row_wise:
        n_out, last = max(n_out, 2), "linear"
    return model_of([*hidden, Dense(n_out, last)], n_in, loss, "float64", optimizer)


def data(model, rows):
    n_in, n_out = model.network.n_in, model.network.n_out
    return features_for(rows, n_in), targets_for(model.loss, rows, n_out)


def cut_and_shared(patch, cut, n_threads):
    for name, value in {"_SHARED_WORK": 0, **cut}.items():
        patch.setattr(tiling, name, value)
    patch.setattr(engine, "_n_threads", n_threads)


@settings(max_examples=60)
@given(NETWORKS, WIDTHS, BATCHES, LOSSES, CUTS)
@example(DEEP, 257, 321, losses.Crossentropy(), {})
@example(DEEP, 257, 321, losses.MSE(), {"_PARTIAL_WORK": 1})
@example(DEEP, 257, 3, losses.MSE(), {})
def test_gradients(network, n_in, batch, loss, cut):
    with pytest.MonkeyPatch.context() as patch:
        cut_and_shared(patch, cut, 1)
        model = case(network, n_in, loss)
        x, y = data(model, batch)
        assert_gradients_near_oracle(model, x, y, np.random.default_rng(batch).uniform(0.5, 2.0, batch))


@settings(max_examples=40)
@given(NETWORKS, WIDTHS, BATCHES, LOSSES, OPTIMIZERS, CUTS)
@example(DEEP, 257, 194, losses.Crossentropy(), optimizers.Adam(0.01), {})
@example(DEEP, 257, 194, losses.Crossentropy(), optimizers.Adafactor(0.05), {})
def test_steps_with_a_short_last_batch_on_any_threads(network, n_in, batch, loss, optimizer, cut):
    bits = []
    for n_threads in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            cut_and_shared(patch, cut, n_threads)
            model = case(network, n_in, loss, optimizer)
            x, y = data(model, batch + batch // 3 + 1)
            if n_threads == 1:
                expected = oracle_steps(model, [(x[:batch], y[:batch], None), (x[batch:], y[batch:], None)])
            if any(parameter.trainable for parameter in model.network.parameters):
                model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
            assert_all_near(model.parameters, expected, tolerance=1e-8)  # of moments that are nearly nothing
            bits.append(model.parameter_vector.tobytes() + model.predict(x).tobytes())
    assert bits[0] == bits[1]
