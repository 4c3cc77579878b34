"""Layers from the user's own functions: right gradients, any place, any number of threads, errors that say where."""

import copy
import pickle
import re

import numpy as np
import pytest
from engine_cases import DTYPES, assert_all_near, assert_near, copies, features_for, model_of, targets_for
from numba import njit

import nbbp
from nbbp import Custom, Dense, losses, tiling
from nbbp.divergence import TrainingDiverged
from nbbp.layers import Activation


@njit
def scale_forward(parameters, x, y):
    """y = scale · x + shift."""
    n = x.size
    for i in range(n):
        y[i] = parameters[i] * x[i] + parameters[n + i]


def scale_backward(parameters, x, y, d_y, d_x, gradient):
    n = x.size
    for i in range(n):
        d_x[i] = parameters[i] * d_y[i]
        gradient[i] += x[i] * d_y[i]
        gradient[n + i] += d_y[i]


def scale(**settings):
    shapes = {"parameter_shapes": lambda n_in: {"scale": (n_in,), "shift": (n_in,)}}
    return Custom(scale_forward, scale_backward, **shapes, **{"parameter_initializers": {"scale": "ones"}} | settings)


def mixing_forward(parameters, x, y):
    """y = x · weight with two outputs more than half the inputs, as a dense layer without a bias."""
    for j in range(y.size):
        total = x[0] * 0
        for i in range(x.size):
            total += x[i] * parameters[i * y.size + j]
        y[j] = total


def mixing_backward(parameters, x, y, d_y, d_x, gradient):
    for i in range(x.size):
        total = x[0] * 0
        for j in range(y.size):
            total += parameters[i * y.size + j] * d_y[j]
            gradient[i * y.size + j] += x[i] * d_y[j]
        d_x[i] = total


def mixing(n_out):
    return Custom(mixing_forward, mixing_backward, n_out, parameter_shapes=lambda n_in: {"weight": (n_in, n_out)})


def norm_forward(parameters, x, y):
    """y = x / |x|, without parameters."""
    length = np.sqrt(np.sum(x * x) + x[0] * 0 + np.float32(1e-6))
    for i in range(x.size):
        y[i] = x[i] / length


def norm_backward(parameters, x, y, d_y, d_x, gradient):
    length = np.sqrt(np.sum(x * x) + np.float32(1e-6))
    along = np.sum(d_y * y)
    for i in range(x.size):
        d_x[i] = (d_y[i] - y[i] * along) / length


norm = Custom(norm_forward, norm_backward, name="norm")


def networks():
    """Networks with custom layers in every place."""
    return {
        "between": [Dense(7, "tanh"), scale(), Dense(2)],
        "first": [scale(), Dense(4, "tanh"), Dense(2)],
        "last": [Dense(4, "tanh"), mixing(2)],
        "alone": [mixing(2)],
        "without parameters": [Dense(4), norm, Dense(2)],
        "first, without parameters": [norm, Dense(2)],
        "several": [scale(), norm, Dense(4, "relu"), mixing(6), Activation("tanh"), scale(), mixing(2)],
    }


@pytest.mark.parametrize("place", networks())
def test_gradients(place):
    model = model_of(networks()[place], 5, "mse")
    x, y = features_for(11, 5), targets_for(losses.MSE(), 11, 2)
    check = model.check_gradients(x, y)
    assert check.max_error < 1e-6
    assert len(check) == len(model.parameters)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 17, 300])
def test_a_dense_layer_by_hand_is_as_good_as_the_built_in_one(batch, dtype):
    x, y = features_for(batch, 5, dtype), targets_for(losses.Crossentropy(), batch, 3)
    made = []
    for layers in ([Dense(6, "tanh"), mixing(4), Dense(3)], [Dense(6, "tanh"), Dense(4, use_bias=False), Dense(3)]):
        made.append(model_of(layers, 5, "crossentropy", dtype, "adam", metrics=("accuracy",)))
    mine, built_in = made
    np.testing.assert_array_equal(mine.parameter_vector, built_in.parameter_vector)
    assert_near(mine.predict(x), built_in.predict(x), dtype)
    assert mine.evaluate(x, y) == pytest.approx(built_in.evaluate(x, y), rel=1e-5)
    loss, gradients = mine.loss_and_gradients(x, y)
    expected, expected_gradients = built_in.loss_and_gradients(x, y)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert_all_near(gradients, expected_gradients, dtype)
    for model in made:
        model.fit(x, y, epochs=3, batch_size=100, verbose=0)
    assert_near(mine.parameter_vector, built_in.parameter_vector, dtype, 1e-3 if dtype == "float32" else 1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adafactor"])
def test_wide_networks_give_the_same_bits_on_any_number_of_threads(optimizer):
    x, y = features_for(700, 300, "float32"), targets_for(losses.MSE(), 700, 2)
    layers = [Dense(300, "silu"), scale(), Dense(250, "relu"), norm, Dense(2)]
    found = []
    before = nbbp.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            nbbp.set_num_threads(n_threads)
            model = model_of(layers, 300, "mse", "float32", optimizer)
            model.fit(x, y, epochs=2, batch_size=500, verbose=0)
            found.append((model.parameter_vector.tobytes(), model.loss_and_gradients(x, y)[1]["1.scale"].tobytes()))
    finally:
        nbbp.set_num_threads(before)
    assert found[0] == found[1] == found[2]
    assert np.isfinite(model.parameter_vector).all()
    assert tiling.plan([(300, 300), (300, 250)], 500) == tiling.WIDE, "without custom layers it would be cut by columns"


def test_partial_gradients_add_up():
    """A batch of several blocks of rows, the last one short, against the mean over single samples."""
    x, y = features_for(333, 3), targets_for(losses.MSE(), 333, 2)
    model = model_of([Dense(4, "tanh"), scale(), Dense(2)], 3, "mse")
    _, gradients = model.loss_and_gradients(x, y)
    each = [model.loss_and_gradients(x[r : r + 1], y[r : r + 1])[1] for r in range(len(x))]
    mean = {name: np.mean([one[name] for one in each], axis=0) for name in gradients}
    assert_all_near(gradients, mean, tolerance=1e-12)


def test_names_shapes_and_first_numbers():
    network = nbbp.Sequential([Dense(4), scale(name="gain"), mixing(3), norm], n_in=5)
    names = [parameter.name for parameter in network.parameters]
    assert names == ["0.weight", "0.bias", "1.scale", "1.shift", "2.weight"]
    assert (network.n_out, network.widths, network.n_parameters) == (3, (4, 4, 3, 3), 24 + 8 + 12)
    model = nbbp.Model(network, "mse")
    np.testing.assert_array_equal(model.parameters["1.scale"], np.ones(4))
    np.testing.assert_array_equal(model.parameters["1.shift"], np.zeros(4))
    assert model.parameters["2.weight"].std() > 0.1
    assert re.search(r"1 gain +linear +\(batch, 4\) +8 +32", model.summary())
    assert re.search(r"3 norm +linear +\(batch, 3\) +0 +0", model.summary())
    with pytest.raises(ValueError, match="give n_in to Sequential"):
        nbbp.Sequential([scale()]).n_out  # noqa: B018
    assert "(batch, ?)" in nbbp.Sequential([scale(), Dense(2)]).summary()
    assert nbbp.Sequential([scale(), Dense(2), norm]).n_out == 2
    assert nbbp.Sequential([scale()]).build(3).n_out == 3


def test_optimizers_have_groups_of_its_parameters():
    groups = {"1.scale": {"learning_rate": 0.0}, "*.shift": {"learning_rate": 10.0}}
    layers = [Dense(4, "tanh"), scale(), Dense(2)]
    model = model_of(layers, 3, "mse", optimizer=nbbp.SGD(0.1, groups=groups))
    before = copies(model.parameters)
    x, y = features_for(9, 3), targets_for(losses.MSE(), 9, 2)
    _, gradients = model.loss_and_gradients(x, y)
    model.train_step(x, y)
    np.testing.assert_array_equal(model.parameters["1.scale"], before["1.scale"])
    assert_near(model.parameters["1.shift"], before["1.shift"] - 10 * gradients["1.shift"], tolerance=1e-12)
    assert_near(model.parameters["0.weight"], before["0.weight"] - 0.1 * gradients["0.weight"], tolerance=1e-12)


def test_a_wrong_backward_is_found():
    def forgetful(parameters, x, y, d_y, d_x, gradient):
        for i in range(x.size):
            d_x[i] = d_y[i]
            gradient[i] += x[i] * d_y[i]
            gradient[x.size + i] += d_y[i]

    shapes = {"parameter_shapes": lambda n_in: {"scale": (n_in,), "shift": (n_in,)}}
    model = model_of([Dense(4), Custom(scale_forward, forgetful, **shapes), Dense(2)], 3, "mse")
    check = model.check_gradients(features_for(9, 3), targets_for(losses.MSE(), 9, 2))
    assert check["0.weight"] > 0.01
    assert check["1.scale"] < 1e-6


def test_the_engine_is_not_compiled_again():
    from nbbp.cpu import kernels, run

    x, y = features_for(9, 3, "float32"), targets_for(losses.MSE(), 9, 2)
    model_of([Dense(4), scale(), Dense(2)], 3, "mse", "float32").fit(x, y, verbose=0)
    known, signatures = set(kernels._compiled), len(run.run_alone.signatures)
    another = Custom(
        lambda parameters, x, y: scale_forward(parameters, x, y),
        scale_backward,
        parameter_shapes=lambda n_in: {"scale": (n_in,), "shift": (n_in,)},
    )
    model_of([Dense(4), another, another, Dense(2)], 3, "mse", "float32").fit(x, y, verbose=0)
    new = set(kernels._compiled) - known
    assert {name for name, _, _ in new} <= {"custom_forward", "custom_backward"}
    assert len(new) == 2, "one of each, for a layer that stands in two places"
    assert len(run.run_alone.signatures) == signatures


# copies --------------------------------------------------------------------------------------------------------------


def test_copies():
    layer = scale()
    model = model_of([Dense(4, "tanh"), layer, Dense(2)], 3, "mse")
    x, y = features_for(9, 3), targets_for(losses.MSE(), 9, 2)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model_of([Dense(4), norm, Dense(2)], 3, "mse")))):
        assert np.isfinite(again.train_step(x, y))
    again = copy.deepcopy(model)
    assert again.network == model.network
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert hash(layer) == hash(copy.copy(layer))
    assert scale() != mixing(2)


# errors --------------------------------------------------------------------------------------------------------------


def does_not_compile(parameters, x, y):
    y[0] = x.no_such_thing


def test_functions_that_do_not_compile_name_their_layer():
    x, y = np.zeros((1, 3)), np.zeros((1, 2))
    model = nbbp.Model(
        nbbp.Sequential([Dense(3), Custom(does_not_compile, norm_backward, name="warp"), Dense(2)], n_in=3), "mse"
    )
    with pytest.raises(TypeError, match=r"(?s)the forward function of layer 1 \('warp'\) .* float32:.*no_such_thing"):
        model.predict(x)
    backward = njit(lambda parameters, x, y, d_y, d_x, gradient: x.no_such_thing)
    network = nbbp.Sequential([Dense(3), Custom(norm_forward, backward), Dense(2)], n_in=3)
    model = nbbp.Model(network, "mse", dtype="float64")
    assert model.predict(x).shape == (1, 2)
    with pytest.raises(TypeError, match="the backward function of layer 1 does not compile for float64"):
        model.train_step(x, y)


def fails(parameters, x, y):
    if x[0] > 0:
        raise ValueError("this x is above 0")
    y[:] = x + parameters


def fails_backward(parameters, x, y, d_y, d_x, gradient):
    if x[0] > 0:
        raise ValueError("this x is above 0")
    d_x[:] = d_y
    gradient[:] += d_y


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_an_exception_leaves_nan_and_ends_fit(direction):
    shift = {"parameter_shapes": lambda n_in: {"shift": (n_in,)}}

    def passes(parameters, x, y):
        y[:] = x + parameters

    layer = (
        Custom(fails, fails_backward, **shift) if direction == "forward" else Custom(passes, fails_backward, **shift)
    )
    layers = [layer, Dense(2)]
    x, y = features_for(40, 3), targets_for(losses.MSE(), 40, 2)
    model = model_of(layers, 3, "mse")
    before = model.parameter_vector.copy()
    with pytest.raises(TrainingDiverged, match="layer 0"):
        model.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, before)
    assert np.isnan(model.loss_and_gradients(x, y)[1]["0.shift"]).all()
    fine = x[x[:, 0] <= 0]
    assert np.isfinite(model.train_step(fine, y[: len(fine)]))


def test_what_forward_does_not_write_is_nan():
    half = Custom(lambda parameters, x, y: None, norm_backward)
    model = model_of([Dense(3), half], 2, "mse")
    assert np.isnan(model.predict(features_for(4, 2))).all()


TWO = (norm_forward, norm_backward)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Custom(3, norm_backward),
            TypeError,
            "forward of Custom must be a function of parameters, x, y; got 3",
        ),
        (lambda: Custom(norm_forward, "backward"), TypeError, "backward of Custom must be a function of parameters"),
        (
            lambda: Custom(np.tanh, norm_backward),
            TypeError,
            "must be an @njit function or a plain Python one; got <ufunc",
        ),
        (lambda: Custom(norm_backward, norm_backward), TypeError, r"called with parameters, x, y; norm_backward takes"),
        (
            lambda: Custom(norm_forward, njit(norm_forward)),
            TypeError,
            "backward of Custom is called with .*gradient; norm",
        ),
        (lambda: Custom(*TWO, 0), ValueError, "n_out of Custom"),
        (lambda: Custom(*TWO, 2.5), TypeError, "n_out of Custom must be an integer"),
        (lambda: Custom(*TWO, name=""), TypeError, "name of Custom"),
        (lambda: Custom(*TWO, parameter_shapes=[3]), TypeError, r"must map names to shapes, .*; got \[3\] \(list\)"),
        (lambda: Custom(*TWO, parameter_shapes={"a b": (3,)}), ValueError, "got the name 'a b'"),
        (lambda: Custom(*TWO, parameter_shapes={"a": 3}), TypeError, "got 3 for 'a'"),
        (lambda: Custom(*TWO, parameter_shapes={"a": (0, 2)}), ValueError, r"got \(0, 2\) for 'a'"),
        (lambda: Custom(*TWO, parameter_shapes={"a": ()}), ValueError, r"got \(\) for 'a'"),
        (
            lambda: Custom(*TWO, parameter_shapes={f"a{k}": (1,) for k in range(17)}),
            ValueError,
            "at most 16 parameters",
        ),
        (lambda: Custom(*TWO, parameter_shapes=lambda n: 3).parameter_shapes(2), TypeError, "must map names to shapes"),
        (
            lambda: Custom(*TWO, parameter_shapes={"a": (1,)}, parameter_initializers={"b": "ones"}),
            ValueError,
            "has 'b', which is no parameter",
        ),
        (
            lambda: nbbp.Sequential([scale(parameter_initializers={"scal": "ones"})], n_in=3).n_parameters,
            ValueError,
            "has 'scal', which is no parameter of the layer; it has 'scale', 'shift'",
        ),
        (lambda: Custom(*TWO, parameter_initializers="ones"), TypeError, "must be a mapping from names; got 'ones'"),
        (
            lambda: Custom(*TWO, parameter_shapes={"a": (1,)}, parameter_initializers={"a": "onse"}),
            ValueError,
            "unknown initializer 'onse'",
        ),
        (
            lambda: nbbp.Sequential([norm]),
            ValueError,
            "got only: Custom",
        ),
        (
            lambda: nbbp.Sequential([Custom(*TWO, parameter_shapes=lambda n_in: {})], n_in=2).n_parameters,
            ValueError,
            "there is nothing to train",
        ),
        (lambda: nbbp.Sequential([norm, norm, Dense(2)]), ValueError, "layers 0 and 1 are both named 'norm'"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
