"""Activations and losses from formulas, in models: as good as built-in ones, and compiled once."""

import json

import numpy as np
import pytest
from engine_cases import DTYPES, assert_all_near, assert_near, features_for, model_of, targets_for
from formula_cases import ACTIVATIONS_BY_HAND, LOSSES_BY_HAND, quartic, swish
from test_compiling import PREAMBLE, run

import nbbp
from nbbp import autodiff, losses
from nbbp.layers import Activation, Dense

#: As near as a formula by hand comes to a built-in one.
NEAR = {"float32": 2e-6, "float64": 1e-12}


def pair(name, dtype="float64", loss="mse", widths=(17, 3, 1), **settings):
    """A model with a formula by hand, and its twin with the built-in activation."""
    made = []
    for activation in (nbbp.activation(ACTIVATIONS_BY_HAND[name]), Activation(name)):
        layers = [*(Dense(width, activation) for width in widths), activation, Dense(3)]
        made.append(model_of(layers, 5, loss, dtype, **settings))
    return made


# parity --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS_BY_HAND)
def test_an_activation_by_hand_is_as_good_as_the_built_in_one(name, dtype):
    mine, built_in = pair(name, dtype)
    for batch in (1, 3, 17):
        x = 3 * features_for(batch, 5, dtype)
        y = targets_for(losses.MSE(), batch, 3)
        assert_near(mine.predict(x), built_in.predict(x), dtype, NEAR[dtype])
        loss, gradients = mine.loss_and_gradients(x, y)
        expected = built_in.loss_and_gradients(x, y)
        assert loss == pytest.approx(expected[0], rel=NEAR[dtype])
        assert_all_near(gradients, expected[1], dtype, 3 * NEAR[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS_BY_HAND)
def test_far_out_too(name, dtype):
    """On numbers of up to ±1e4 both are finite and the same."""
    for sign in (1, -1):
        x = sign * np.array([[1e4], [300.0], [30.0], [0.9]], dtype)
        outputs = []
        for activation in (nbbp.activation(ACTIVATIONS_BY_HAND[name]), Activation(name)):
            model = nbbp.Model(nbbp.Sequential([Dense(1), activation, Dense(1)], n_in=1), "mae", dtype=dtype)
            model.parameter_vector[:] = [1, 0, 1, 0]
            outputs.append([model.predict(x), model.loss_and_gradients(x, np.full((4, 1), -2e4))[1]["0.weight"]])
        for mine, built_in in zip(*outputs, strict=True):
            np.testing.assert_allclose(mine, built_in, rtol=2e-6 if dtype == "float32" else 1e-12, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES_BY_HAND)
def test_a_loss_by_hand_is_as_good_as_the_built_in_one(name, reduction, dtype):
    built_in = losses.BY_NAME[name](reduction=reduction, scale=0.7)
    mine = nbbp.loss(LOSSES_BY_HAND[name], reduction=reduction, scale=0.7)
    for batch, n_out in ((1, 3), (3, 1), (17, 4)):
        x, y = features_for(batch, 5, dtype), targets_for(built_in, batch, n_out)
        weight = np.linspace(0.5, 2.0, batch)
        results = []
        for loss in (mine, built_in):
            model = model_of([Dense(6, "tanh"), Dense(n_out)], 5, loss, dtype, metrics=("mae",))
            evaluated = model.evaluate(x, y, sample_weight=weight)
            assert set(evaluated) == {"loss", "mae"}
            results.append([*model.loss_and_gradients(x, y, weight), evaluated["loss"], model.train_step(x, y)])
        (loss, gradients, *rest), (expected, expected_gradients, *expected_rest) = results
        np.testing.assert_allclose([loss, *rest], [expected, *expected_rest], rtol=NEAR[dtype])
        assert_all_near(gradients, expected_gradients, dtype, 3 * NEAR[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_goes_the_same_way(dtype):
    x = features_for(200, 5, dtype)
    y = np.sin(x[:, :3]) + 0.1
    models = pair("silu", dtype, loss="mse", optimizer=nbbp.SGD(0.05), metrics=("rmse",))
    models[0] = model_of(models[0].network.layers, 5, nbbp.loss(LOSSES_BY_HAND["mse"]), dtype, nbbp.SGD(0.05))
    histories = [model.fit(x, y, epochs=5, batch_size=32, validation_split=0.2, verbose=0) for model in models]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-4 if dtype == "float32" else 1e-10)
    assert histories[0]["val_loss"][-1] < 0.9 * histories[0]["val_loss"][0]


@pytest.mark.parametrize(
    "formula",
    [
        swish,
        lambda z: np.sin(z),
        lambda z: z + np.sin(3 * z) ** 2 / 3,
        lambda z: np.exp(-(z**2)),
        lambda z: np.sqrt(1 + z**2) - 1,
        lambda z: np.where(z > 0, z, 0.2 * (np.exp(z) - 1)),
        lambda z: 0.7,
    ],
)
def test_gradients_of_other_activations(formula):
    activation = nbbp.activation(formula)
    loss = nbbp.loss(lambda p, t: np.log(1 + (p - t) ** 2))
    model = model_of([Dense(6, activation), Dense(4, activation), Dense(2, activation)], 3, loss)
    x, y = features_for(9, 3), targets_for(losses.MSE(), 9, 2)
    assert model.check_gradients(x, y).max_error < 1e-6


def test_a_derivative_that_is_given_is_the_one_that_is_used():
    right = nbbp.activation(lambda z: z * z, lambda z: 2 * z)
    assert right.derivative_source == nbbp.activation(lambda z: z * z, name="custom").derivative_source.replace(
        "z + z", "z * 2.0"
    )
    wrong = nbbp.activation(lambda z: z * z, lambda z: 3 * z)
    wrong_loss = nbbp.loss(lambda p, t: (p - t) ** 2, lambda p, t: p - t)
    x, y = features_for(9, 3), targets_for(losses.MSE(), 9, 2)
    for activation, loss, error in ((right, "mse", 0.0), (wrong, "mse", 1 / 3), ("tanh", wrong_loss, 1 / 2)):
        found = model_of([Dense(2, activation)], 3, loss).check_gradients(x, y).max_error
        assert found == pytest.approx(error, abs=1e-6)


def test_as_last_layer_and_with_losses_over_classes():
    double = nbbp.activation(lambda z: 2 * z)
    x, y = features_for(20, 3), np.arange(20) % 4
    mine, built_in = (
        model_of([Dense(4), last], 3, "crossentropy", metrics=("accuracy",)) for last in (double, Activation("linear"))
    )
    built_in.parameter_vector[:] = 2 * mine.parameter_vector
    assert_near(mine.predict_proba(x), built_in.predict_proba(x), tolerance=1e-14)
    assert mine.evaluate(x, y) == pytest.approx(built_in.evaluate(x, y))
    labels = mine.predict(x).argmax(axis=1)
    assert mine.evaluate(x, labels)["accuracy"] == 1.0


# names, equality -----------------------------------------------------------------------------------------------------


def test_names():
    assert nbbp.activation(swish).name == "swish"
    assert nbbp.activation(lambda z: z).name == "custom"
    assert nbbp.activation(np.tanh).name == "custom_tanh"
    assert nbbp.activation(swish, name="β swish").name == "β swish"
    assert nbbp.loss(quartic).name == "quartic"
    layers = [Dense(4, nbbp.activation(swish)), Dense(2)]
    model = nbbp.Model(nbbp.Sequential(layers, n_in=3), nbbp.loss(quartic))
    assert "0 Dense  swish" in model.summary()
    with pytest.raises(ValueError, match="the loss 'quartic' on a network with 2 outputs takes targets"):
        model.train_step(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="predict_proba needs a loss over classes; this model's loss is 'quartic'"):
        model.predict_proba(np.zeros((2, 3)))


def test_a_name_like_a_built_in_one_is_not_taken_for_it():
    """An engine that went by names would run relu here."""

    def relu(z):
        return 5 * z

    activation = nbbp.activation(relu)
    assert activation.name == "custom_relu"
    model = nbbp.Model(nbbp.Sequential([Dense(1, activation)], n_in=1), "mse", dtype="float64")
    model.parameter_vector[:] = [1.0, 0.0]
    np.testing.assert_array_equal(model.predict([[-2.0]]), [[-10.0]])


def test_equal_by_content():
    assert nbbp.activation(swish) == nbbp.activation(lambda z: z / (1 + np.exp(z * -1.5)), name="swish")
    assert hash(nbbp.activation(swish)) == hash(nbbp.activation(swish))
    assert nbbp.activation(swish) != nbbp.activation(swish, name="another")
    assert nbbp.activation(lambda z: z * 2) != nbbp.activation(lambda z: z * 3)
    assert nbbp.activation(lambda z: z) != Activation("linear")
    assert nbbp.loss(quartic) == nbbp.loss(quartic)
    assert nbbp.loss(quartic) != nbbp.loss(quartic, scale=2.0)
    assert nbbp.loss(quartic) != nbbp.loss(lambda p, t: (p - t) ** 6, name="quartic")
    assert len({Dense(3, nbbp.activation(swish)), Dense(3, nbbp.activation(swish))}) == 1


def test_they_show_their_formulas():
    activation = nbbp.activation(swish)
    assert repr(activation) == "activation(lambda z: z * sigmoid(z * 1.5), name='swish')"
    assert str(activation) == "swish"
    assert activation.source == "def swish(z):\n    return z * sigmoid(z * 1.5)"
    assert repr(nbbp.loss(lambda p, t: abs(p - t), scale=2.0)) == (
        "loss(lambda prediction, target: abs(prediction - target), name='custom', reduction='mean', scale=2.0)"
    )
    assert nbbp.activation(lambda z: z, name="2 fast!").source.startswith("def _2_fast_(z):")
    assert nbbp.activation(lambda z: z, name="exp").source.startswith("def exp_value(z):")
    namespace = {name: getattr(autodiff, name) for name in autodiff.__all__}
    exec(activation.derivative_source, namespace)
    assert namespace["swish_derivative"](autodiff.Value(0.0)).data == 0.5


# errors --------------------------------------------------------------------------------------------------------------


def with_if(z):
    return z if z > 0 else 0


def long(z):
    for k in range(3000):
        z = np.sin(z) + k
    return z


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nbbp.activation(with_if), TypeError, r"`if`.* cannot decide: use np.where"),
        (lambda: nbbp.activation(3), TypeError, "the activation must be a function of z; got 3"),
        (lambda: nbbp.activation("relu"), TypeError, "the activation must be a function of z; got 'relu'"),
        (lambda: nbbp.activation(quartic), TypeError, r"called with z; quartic takes \(prediction, target\)"),
        (lambda: nbbp.loss(swish), TypeError, r"the loss is called with prediction, target; swish takes \(z\)"),
        (lambda: nbbp.loss(quartic, swish), TypeError, r"the loss's derivative is called with prediction, target"),
        (lambda: nbbp.activation(lambda z: (z, z)), TypeError, "returned a tuple of 2"),
        (lambda: nbbp.activation(lambda z: None), TypeError, "returned NoneType"),
        (lambda: nbbp.activation(long), ValueError, "the activation has 8,999 operations; expected at most 2,000"),
        (lambda: nbbp.activation(swish, name="relu"), ValueError, "'relu' is the name of a built-in activation"),
        (lambda: nbbp.loss(quartic, name="mse"), ValueError, "'mse' is the name of a built-in loss"),
        (lambda: nbbp.activation(swish, name=""), ValueError, "1 to 60 printable characters; got ''"),
        (lambda: nbbp.activation(swish, name="a\nb"), ValueError, "printable"),
        (lambda: nbbp.activation(swish, name=5), TypeError, r"must be a str; got 5 \(int\)"),
        (lambda: nbbp.loss(quartic, reduction="max"), ValueError, "reduction of quartic must be 'mean' or 'sum'"),
        (lambda: nbbp.loss(quartic, scale="big"), TypeError, "scale of quartic must be a number"),
        (lambda: Dense(3, swish), TypeError, r"make an activation of a function with nbbp.activation\(function\)"),
        (lambda: losses.get(quartic), TypeError, r"make a loss of a function with nbbp.loss\(function\)"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_targets_of_a_loss_may_be_any_finite_numbers():
    model = model_of([Dense(1)], 2, nbbp.loss(quartic))
    assert np.isfinite(model.train_step(np.ones((2, 2)), np.array([-1e3, 1e3])))
    with pytest.raises(ValueError, match="y holds NaN at row 1"):
        model.train_step(np.ones((2, 2)), np.array([0.0, np.nan]))


# compiling -----------------------------------------------------------------------------------------------------------

COMPILES = """
X, y = samples()
values = X[:, :3].copy()


def work(activation, loss):
    layers = [nbbp.Dense(5, activation), nbbp.Dense(3)]
    model = nbbp.Model(nbbp.Sequential(layers, n_in=4), loss, metrics=("mae",))
    model.fit(X, values, validation_split=0.2, verbose=0)
    model.evaluate(X, values)
    model.train_step(X, values)
    model.predict(X)
    model.loss_and_gradients(X, values)


work("silu", "mae")
before = set(compiled.names)
compiled.names.clear()
work(nbbp.activation(lambda z: np.sin(z) / (1 + z * z)), nbbp.loss(lambda p, t: np.log(1 + (p - t) ** 2)))
print(json.dumps([sorted(before), sorted(compiled.names)]))
"""


@pytest.mark.slow
def test_a_formula_compiles_its_own_kernels_once_on_a_machine(tmp_path):
    built_in, custom = json.loads(run(PREAMBLE + COMPILES, tmp_path).stdout)
    kernels = {name.rpartition(".")[2] for name in custom if "<locals>" in name}
    assert kernels == {"activation_forward", "activation_backward", "loss", "call"}  # call: what dispatch.py inlines
    functions = {name for name in custom if "<locals>" not in name}
    assert not {"run_alone", "run_tile", "train_now", "product"} & functions
    assert len(built_in) > 20
    done = run(PREAMBLE + COMPILES, tmp_path)
    assert json.loads(done.stdout) == [[], []]
    assert done.stderr == ""
