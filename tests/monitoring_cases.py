"""What the tests of the Monitor share: networks of every kind of layer, optimizers, and a run."""

import numpy as np
from callback_cases import numbers_of
from structure_cases import FROZEN_TWIST, TWIST

import nbbp
from nbbp.layers import Activation, Concat, Dense, Dropout, Residual

LAYERS = {
    "norms": [
        Dense(17, "tanh"), nbbp.BatchNorm(), Dense(3, "relu"), nbbp.LayerNorm(), Dense(8), nbbp.RMSNorm(), Dense(3),
    ],
    "random": [Dense(9, "relu"), Dropout(0.3), Residual([Dense(9, "silu"), nbbp.StochasticDepth(0.2)]), Dense(3)],
    "structure": [Concat([Dense(4, "elu")], [Dense(1)], []), Residual([Dense(10, "gelu")]), Dense(3, "softmax")],
    "frozen": [Dense(6, "relu"), Dense(7, "sigmoid", trainable=False), Dense(5), Dense(3, trainable=False)],
    "all frozen": [Dense(6, "relu", trainable=False), Dense(3, trainable=False)],
    "custom": [TWIST, Dense(6, "tanh"), FROZEN_TWIST, Dense(3)],
    "activations": [Activation("tanh"), Dense(6), Activation("relu"), Activation("linear"), Dense(3)],
    "one": [Dense(3)],
    "no bias": [Dense(300, "relu", use_bias=False), Dense(300, use_bias=False), Dense(3)],
}  # fmt: skip
OPTIMIZERS = {
    "adam": nbbp.Adam(0.01),
    "adafactor": nbbp.Adafactor(0.05),
    "clipped": nbbp.SGD(0.1, momentum=0.9, clip_norm=0.5),
    "accumulated": nbbp.AdamW(0.01, accumulation_steps=3, clip_value=0.1, gradient_noise=0.01),
}


def trained(layers, monitor, optimizer="adam", *, n_in=5, batch=16, rows=100, epochs=2, **settings):
    """Bytes of all that training changes, and its history, with a monitor or without."""
    every = settings.pop("checkpoint_every", None)
    network = nbbp.Sequential(layers, n_in=n_in, checkpoint_every=every)
    model = nbbp.Model(network, "crossentropy", OPTIMIZERS.get(optimizer, optimizer), ("accuracy",), **settings)
    features = np.random.default_rng(1).standard_normal((rows, n_in))
    labels = np.random.default_rng(2).integers(0, network.n_out, rows)
    callbacks = [] if monitor is None else [monitor]
    history = model.fit(features, labels, epochs=epochs, batch_size=batch, verbose=0, callbacks=callbacks)
    return [*numbers_of(model), dict(history)]
