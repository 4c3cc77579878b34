"""Errors say what is wrong, what was expected and what came; afterwards nothing has changed."""

import re

import numpy as np
import pytest

import nbbp

random = np.random.default_rng(0)
X = random.standard_normal((20, 4)).astype(np.float32)
Y = random.integers(0, 3, 20)


def model_of(loss="crossentropy", n_out=3, n_in=4, **settings):
    layers = [nbbp.Dense(5, activation="relu"), nbbp.Dense(n_out)]
    return nbbp.Model(nbbp.Sequential(layers, n_in=n_in), loss=loss, **settings)


def trained(*args, **kwargs):
    """A model whose parameters, moments and step have all moved."""
    model = model_of(*args, **kwargs)
    y = Y if model.loss.name == "crossentropy" else random.standard_normal((20, model.network.n_out)) > 0
    model.fit(X, y, verbose=0)
    model.train_step(X, y)
    return model


def state(model):
    """Everything that training changes, to the bit."""
    session = model._session
    if session is None:
        return None
    return session.parameters.tobytes(), [slot.tobytes() for slot in session.slots], session.step, session.epoch


def with_value(array, place, value, dtype=None):
    array = np.array(array, dtype)
    array[place] = value
    return array


NAN, INF = np.nan, np.inf

#: What is wrong with features (row 7, column 2 of them): the error and its message.
WRONG_FEATURES = {
    "too few": (X[:, :3], ValueError, "X has 3 features per sample; this network takes 4 (X.shape = (20, 3))"),
    "too many": (np.ones((2, 5)), ValueError, "X has 5 features per sample; this network takes 4 (X.shape = (2, 5))"),
    "one sample": (X[0], ValueError, "X has one dimension; this network takes 4 features per sample (X.shape = (4,);"),
    "images": (np.ones((6, 2, 2)), ValueError, "use X.reshape(len(X), -1), which gives 4 features, or put Flatten()"),
    "no sample": (X[:0], ValueError, "X is empty; expected at least one sample (X.shape = (0, 4))"),
    "no feature": (X[:, :0], ValueError, "X is empty; expected at least one sample (X.shape = (20, 0))"),
    "NaN": (with_value(X, (7, 2), NAN), ValueError, "X holds NaN at row 7, column 2; expected finite numbers"),
    "infinity": (with_value(X, (7, 2), INF), ValueError, "X holds inf at row 7, column 2; expected finite numbers"),
    "NaN in float64": (with_value(X, (7, 2), NAN, "f8"), ValueError, "X holds NaN at row 7, column 2"),
    "NaN in a list": (with_value(X, (7, 2), NAN).tolist(), ValueError, "X holds NaN at row 7, column 2"),
    "two NaNs": (with_value(X, ([9, 7], [0, 2]), NAN), ValueError, "X holds NaN at row 7, column 2"),
    "complex": (X + 1j, TypeError, "X is complex (complex64); expected real numbers, such as X.real"),
    "text": (X.astype(str), TypeError, "X has dtype <U32; expected real numbers"),
    "text among objects": (with_value(X, (7, 2), "a", "O"), TypeError, "holds no number at row 7, column 2: 'a' (str)"),
    "dates": (X.astype("M8[s]"), TypeError, "X has dtype datetime64[s]; expected real numbers"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], ValueError, "X is ragged: row 1 has 2 values, row 0 has 4 values"),
    "a name": ("X.npy", TypeError, "X is of type str; expected an array of numbers"),
    "a mapping": ({"a": X}, TypeError, "X is of type dict; expected an array of numbers"),
    "a set": ({1, 2}, TypeError, "X is of type set; expected an array of numbers"),
    "a number": (3.0, TypeError, "X is of type float; expected an array with one row per sample"),
    "an object": (object(), TypeError, "X is of type object; expected an array with one row per sample"),
}  # fmt: skip

#: The same for targets of crossentropy on 3 classes.
WRONG_LABELS = {
    "too large": (with_value(Y, 7, 3), ValueError, "row 7 of y has the label 3; a network with 3 outputs takes"),
    "negative": (with_value(Y, 7, -1), ValueError, "row 7 of y has the label -1; a network with 3 outputs takes"),
    "from one": (Y + 1, ValueError, "; labels count from 0: pass y - 1"),
    "beyond int64": (with_value(Y, 7, 2**64 - 1, "u8"), ValueError, "row 7 of y has the label 18446744073709551615"),
    "fractional": (Y + 0.5, ValueError, "takes whole-number labels 0 to 2, or probabilities of shape (n, 3)"),
    "NaN": (with_value(Y, 7, NAN, "f8"), ValueError, "row 7"),
    "text": (Y.astype(str), TypeError, "y holds text"),
    "missing": (None, TypeError, "y is"),
    "too few": (Y[:-1], ValueError, "X has 20 samples, y has 19; expected as many (y.shape = (19,))"),
    "none": (Y[:0], ValueError, "y is empty; expected one row per sample (y.shape = (0,))"),
    "wrong width": (np.eye(4)[Y], ValueError, "takes labels of shape (n,) or probabilities of shape (n, 3)"),
    "three dimensions": (np.ones((20, 3, 1)), ValueError, "y has shape (20, 3, 1)"),
    "scores": (np.eye(3)[Y] * 5, ValueError, "y holds 5 at row 0, column"),
    "several labels": (np.ones((20, 3)), ValueError, "row 0 of y sums to 3; crossentropy takes rows of probabilities"),
}  # fmt: skip

#: Targets (20, 3) of losses over values.
WRONG_VALUES = {
    "NaN": ("mse", with_value(np.zeros((20, 3)), (7, 2), NAN), "y holds NaN at row 7, column 2; expected finite"),
    "infinity": ("mse", with_value(np.zeros((20, 3)), (7, 2), -INF), "y holds -inf at row 7, column 2"),
    "one column": ("mse", np.zeros(20), "takes targets of shape (n, 3); for class labels use loss='crossentropy'"),
    "no probability": ("binary_crossentropy", with_value(np.zeros((20, 3)), (7, 2), 2),
                       "y holds 2 at row 7, column 2; binary_crossentropy takes targets in [0, 1]"),
    "no side": ("hinge", with_value(np.ones((20, 3)), (7, 2), 0.5),
                "y holds 0.5 at row 7, column 2; hinge takes targets -1 and +1, or 0 and 1 throughout"),
}  # fmt: skip


def named(message):
    """As train_step and its like call their arguments."""
    return re.sub(r"\bX\b", "x", message)


def assert_refused(model, error, message, call):
    before = state(model)
    with pytest.raises(error) as caught:
        call(model)
    assert message in str(caught.value)
    assert state(model) == before


@pytest.mark.parametrize("case", WRONG_FEATURES)
def test_wrong_features(case):
    x, error, message = WRONG_FEATURES[case]
    model = trained()
    assert_refused(model, error, message, lambda model: model.fit(x, Y, verbose=0))
    assert_refused(model, error, message, lambda model: model.evaluate(x, Y))
    assert_refused(model, error, message, lambda model: model.predict(x))
    assert_refused(model, error, message, lambda model: model.predict_proba(x))
    for call in (model.train_step, model.loss_and_gradients, model.check_gradients):
        assert_refused(model, error, named(message), lambda model, call=call: call(x, Y))
    message = message.replace("X", "validation X")
    assert_refused(model, error, message, lambda model: model.fit(X, Y, validation_data=(x, Y), verbose=0))


@pytest.mark.parametrize("case", WRONG_LABELS)
def test_wrong_labels(case):
    y, error, message = WRONG_LABELS[case]
    model = trained()
    if y is not None:
        assert_refused(model, error, message, lambda model: model.fit(X, y, verbose=0))
        assert_refused(model, error, message, lambda model: model.evaluate(X, y))
    for call in (model.train_step, model.loss_and_gradients, model.check_gradients):
        assert_refused(model, error, named(message), lambda model, call=call: call(X, y))
    message = re.sub(r"\b([Xy])\b", r"validation \1", message)
    assert_refused(model, error, message, lambda model: model.fit(X, Y, validation_data=(X, y), verbose=0))


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_values(case):
    loss, y, message = WRONG_VALUES[case]
    model = trained(loss)
    for call in (model.train_step, model.loss_and_gradients, model.evaluate, model.check_gradients):
        assert_refused(model, ValueError, message, lambda model, call=call: call(X, y))
    assert_refused(model, ValueError, message, lambda model: model.fit(X, y, verbose=0))


WRONG_WEIGHTS = {
    "too few": (np.ones(19), ValueError, "has 20 samples, sample_weight has 19; expected as many"),
    "per output": (np.ones((20, 3)), ValueError, "sample_weight has shape (20, 3); expected one per sample"),
    "negative": (with_value(np.ones(20), 7, -1), ValueError, "row 7; weights must be finite and not negative"),
    "NaN": (with_value(np.ones(20), 7, NAN), ValueError, "sample_weight holds NaN at row 7"),
    "a number": (2.0, TypeError, "sample_weight is of type float"),
    "text": ("balanced", TypeError, "sample_weight is of type str"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_wrong_weights(case):
    weight, error, message = WRONG_WEIGHTS[case]
    model = trained()
    for call in (model.fit, model.evaluate):
        options = {"verbose": 0} if call == model.fit else {}
        assert_refused(model, error, message, lambda model, c=call, o=options: c(X, Y, sample_weight=weight, **o))
    for call in (model.train_step, model.loss_and_gradients):
        assert_refused(model, error, message, lambda model, call=call: call(X, Y, weight))


WRONG_SETTINGS = {
    "epochs of 0": ({"epochs": 0}, ValueError, "epochs must be at least 1; got 0"),
    "epochs of 2.0": ({"epochs": 2.0}, TypeError, "epochs must be an integer; got 2.0 (float)"),
    "epochs of True": ({"epochs": True}, TypeError, "epochs must be an integer; got True (bool)"),
    "batch_size of 0": ({"batch_size": 0}, ValueError, "batch_size must be at least 1; got 0"),
    "batch_size of None": ({"batch_size": None}, TypeError, "batch_size must be an integer; got None"),
    "batch_size of '32'": ({"batch_size": "32"}, TypeError, "batch_size must be an integer; got '32' (str)"),
    "verbose of 2": ({"verbose": 2}, ValueError, "verbose must be 'auto', 0 or 1; got 2"),
    "verbose of an array": ({"verbose": X}, ValueError, "verbose must be 'auto', 0 or 1; got array"),
    "shuffle of 'no'": ({"shuffle": "no"}, TypeError, "shuffle must be True or False; got 'no' (str)"),
    "callbacks": ({"callbacks": [print]}, TypeError, "callbacks[0] must be a nbbp.callbacks.Callback; got <built-in"),
    "callbacks of None": ({"callbacks": None}, TypeError, "callbacks must be a list of callbacks; got None"),
    "split of 1": ({"validation_split": 1.0}, ValueError, "validation_split is 1.0; expected a fraction between 0 and"),
    "split below 0": ({"validation_split": -0.2}, ValueError, "validation_split is -0.2; expected a fraction"),
    "split of NaN": ({"validation_split": NAN}, ValueError, "validation_split is nan; expected a fraction"),
    "split of text": ({"validation_split": "0.2"}, ValueError, "validation_split is '0.2'; expected a fraction"),
    "split of None": ({"validation_split": None}, ValueError, "validation_split is None; expected a fraction"),
    "split and data": ({"validation_split": 0.2, "validation_data": (X, Y)}, ValueError, "not both"),
    "data of X alone": ({"validation_data": X}, TypeError, "must be (X, y) or (X, y, sample_weight); got ndarray"),
    "data of text": ({"validation_data": "Xy"}, TypeError, "validation_data must be (X, y)"),
    "data of four": ({"validation_data": (X, Y, None, None)}, TypeError, "validation_data must be (X, y)"),
    "class_weight of a list": ({"class_weight": [1, 2, 3]}, TypeError, "in order: dict(enumerate(class_weight))"),
    "class_weight of text": ({"class_weight": "auto"}, ValueError, "class_weight is 'auto'; expected a mapping"),
    "class_weight of others": ({"class_weight": {3: 1.0}}, ValueError, "names the label 3; the labels are 0 to 2"),
    "class_weight of 1e39": ({"class_weight": {1: 1e39}}, ValueError, "of class 1, a weight too large for float32"),
    "class_weight below 0": ({"class_weight": {1: -1}}, ValueError, "class_weight[1] is -1; expected a finite number"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_SETTINGS)
def test_wrong_settings_of_fit(case):
    settings, error, message = WRONG_SETTINGS[case]
    assert_refused(trained(), error, message, lambda model: model.fit(X, Y, **{"verbose": 0} | settings))


def test_a_validation_part_that_leaves_nothing():
    message = "validation_split=0.9 of 1 samples leaves 0 for training and 1 for validation; both need at least one"
    for_one = {"validation_split": 0.9, "verbose": 0}
    assert_refused(trained(), ValueError, message, lambda model: model.fit(X[:1], Y[:1], **for_one))


def test_a_number_that_float32_cannot_hold():
    x = with_value(X, (7, 2), 1e39, "f8")
    message = "X holds 1e+39 at row 7, column 2, too large for float32 (at most 3.4e+38): scale the data or use dtype="
    for call in (lambda model: model.fit(x, Y, verbose=0), lambda model: model.predict(x)):
        assert_refused(trained(), ValueError, message, call)
    assert np.isfinite(trained(dtype="float64").predict(x)).all()


def test_the_example_of_the_design():
    model = model_of(n_in=784)
    message = "X has 783 features per sample; this network takes 784 (X.shape = (60000, 783))"
    assert_refused(
        model, ValueError, message, lambda model: model.fit(np.zeros((60000, 783), np.uint8), np.zeros(60000))
    )


def test_a_bad_number_in_a_table_names_its_column():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(with_value(X, (7, 2), NAN), columns=list("abcd"), index=range(50, 70))
    message = "X holds NaN at row 7, column 2 ('c'); expected finite numbers"
    assert_refused(trained(), ValueError, message, lambda model: model.fit(table, Y, verbose=0))


WRONG_BATCHES = {
    "NaN": ((with_value(X, (7, 2), NAN), Y), ValueError, "x of batch 2 of X holds NaN at row 7, column 2"),
    "features": ((X[:, :3], Y), ValueError, "x of batch 2 of X has 3 features per sample; this network takes 4"),
    "label": ((X, with_value(Y, 7, 5)), ValueError, "row 7 of y of batch 2 of X has the label 5"),
    "length": ((X, Y[:5]), ValueError, "x of batch 2 of X has 20 samples, y of batch 2 of X has 5"),
    "weight": ((X, Y, -np.ones(20)), ValueError, "sample_weight of batch 2 of X holds -1 at row 0"),
}


@pytest.mark.parametrize("case", WRONG_BATCHES)
def test_a_list_of_batches_is_checked_whole(case):
    bad, error, message = WRONG_BATCHES[case]
    model = trained()
    batches = [(X, Y), (X, Y), bad]
    assert_refused(model, error, message, lambda model: model.fit(batches, verbose=0))
    assert_refused(model, error, message, lambda model: model.evaluate(batches))
    validation = re.sub(r"\bX\b", "validation X", message)
    assert_refused(model, error, validation, lambda model: model.fit(X, Y, validation_data=(batches, None), verbose=0))
    # what comes one by one can only fail when it comes; the model is as after the batches before
    expected = trained()
    for x, y in batches[:2]:
        expected.train_step(x, y)
    with pytest.raises(error, match=re.escape(message)):
        model.fit(iter(batches), verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, expected.parameter_vector)
    model.fit(X, Y, verbose=0)


WRONG_ITERABLES = {
    "y beside batches": (lambda: ([(X, Y)], Y), ValueError, "X is ragged"),
    "y beside a generator": (lambda: (iter([(X, Y)]), Y), TypeError, "so y must come with them"),
    "no batch": (lambda: (iter([]), None), ValueError, "X gave no batch (a generator can be gone through once)"),
    "features alone": (
        lambda: (iter([X]), None),
        TypeError,
        "batch 0 of X is a ndarray; expected (x, y) or (x, y, samp",
    ),
    "numbers": (lambda: (range(5), None), TypeError, "batch 0 of X is a int; expected (x, y)"),
    "four parts": (
        lambda: (iter([(X, Y, None, None)]), None),
        TypeError,
        "batch 0 of X is a tuple of length 4; expected",
    ),
    "a function of nothing": (lambda: (lambda: None, None), TypeError, "X returned NoneType; expected an iterable"),
    "an array alone": (lambda: (X, None), TypeError, "y is None; X is an array, so its targets must be given"),
}


@pytest.mark.parametrize("case", WRONG_ITERABLES)
def test_wrong_iterables(case):
    make, error, message = WRONG_ITERABLES[case]
    assert_refused(trained(), error, message, lambda model: model.fit(*make(), verbose=0))
    assert_refused(trained(), error, message, lambda model: model.evaluate(*make()))


def test_a_generator_lasts_for_one_epoch():
    batches = iter([(X, Y)])
    message = "X is a list_iterator, which can be gone through once, not 2 times (once per epoch)"
    assert_refused(trained(), ValueError, message, lambda model: model.fit(batches, epochs=2, verbose=0))
    assert len(list(batches)) == 1, "it was not touched"
    message = "class_weight='balanced' needs all labels at once, X gives them batch by batch"
    refused = {"class_weight": "balanced", "verbose": 0}
    assert_refused(trained(), ValueError, message, lambda model: model.fit([(X, Y)], **refused))
    message = "validation_split needs arrays; with batches from an iterable pass validation_data instead"
    refused = {"validation_split": 0.5, "verbose": 0}
    assert_refused(trained(), TypeError, message, lambda model: model.fit(iter([(X, Y)]), **refused))


def test_an_error_of_the_callers_own_generator_comes_through():
    def batches():
        yield X, Y
        raise OSError("the disk is gone")

    model = trained()
    with pytest.raises(OSError, match="the disk is gone"):
        model.fit(batches, epochs=2, verbose=0)
    assert np.isfinite(model.evaluate(X, Y)["loss"])
    model.fit(X, Y, verbose=0)


def test_wrong_data_give_a_waiting_model_no_size():
    model = nbbp.Model(nbbp.Sequential([nbbp.Dense(3)]), loss="crossentropy")
    for call in (
        lambda: model.fit(X, Y + 5, verbose=0),
        lambda: model.train_step(X, Y + 5),
        lambda: model.fit([(X, Y), (X, Y + 5)], verbose=0),
        lambda: model.fit(iter([(X, Y)]), verbose=0),
        lambda: model.fit(X[0], Y, verbose=0),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - the messages are tested elsewhere
            call()
        assert model.network.n_in is None
        assert state(model) is None
    model.fit(np.ones((3, 2)), np.zeros(3), verbose=0)
    assert model.network.n_in == 2


WRONG_MODELS = {
    "no network": ({"network": "dense"}, TypeError, "network must be a Sequential; got 'dense' (str)"),
    "no loss": ({"loss": None}, TypeError, "loss must be a name such as 'mse' or a loss; got None (NoneType)"),
    "misspelt loss": (
        {"loss": "crossentropi"},
        ValueError,
        "unknown loss 'crossentropi'. Did you mean 'crossentropy'?",
    ),
    "misspelt optimizer": ({"optimizer": "adm"}, ValueError, "unknown optimizer 'adm'. Did you mean 'adam'?"),
    "optimizer class": ({"optimizer": nbbp.Adam}, TypeError, "such as Adam(); got the class Adam"),
    "misspelt metric": ({"metrics": ["acuracy"]}, ValueError, "unknown metric 'acuracy'. Did you mean 'accuracy'?"),
    "one metric": (
        {"metrics": "accuracy"},
        TypeError,
        "metrics must be a sequence such as ('accuracy',); got 'accuracy'",
    ),
    "no metrics": ({"metrics": None}, TypeError, "metrics must be a sequence such as ('accuracy',); got None"),
    "device": ({"device": "tpu"}, ValueError, "device must be one of 'cpu', 'cuda', 'auto'; got 'tpu'"),
    "half": ({"dtype": "float16"}, ValueError, "dtype must be 'float32' or 'float64'; got 'float16'"),
    "no dtype": ({"dtype": None}, ValueError, "dtype must be 'float32' or 'float64'; got None"),
    "other byte order": ({"dtype": ">f4"}, ValueError, "dtype must be 'float32' or 'float64'; got '>f4'"),
    "negative seed": ({"seed": -1}, ValueError, "seed must be an integer from 0 to 2**63 - 1; got -1"),
    "seed of True": ({"seed": True}, ValueError, "seed must be an integer from 0 to 2**63 - 1; got True"),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_wrong_models(case):
    wrong, error, message = WRONG_MODELS[case]
    network = nbbp.Sequential([nbbp.Dense(3)], n_in=4)
    with pytest.raises(error, match=re.escape(message)):
        nbbp.Model(**{"network": network, "loss": "mse"} | wrong)


@pytest.mark.parametrize("n", [0, -1, 2.0, "2", None, True, np.ones(2)], ids=repr)
def test_wrong_numbers_of_threads(n):
    before = nbbp.get_num_threads()
    with pytest.raises(ValueError, match="the number of threads must be an integer of at least 1; got"):
        nbbp.set_num_threads(n)
    assert nbbp.get_num_threads() == before


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.5, TypeError), (None, TypeError)])
def test_wrong_numbers_of_gradients_to_check(value, error):
    message = "max_per_parameter must be"
    assert_refused(trained(), error, message, lambda model: model.check_gradients(X, Y, max_per_parameter=value))
