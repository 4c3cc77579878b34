"""Augmentations that are none, do not fit or fail: said before anything changes."""

import copy
import pickle

import numpy as np
import pytest
from engine_cases import DTYPES, features_for, model_of, targets_for
from numba import njit

import nbbp
from nbbp import Dense, augmentation, losses
from nbbp.augmentation import Augmentation, Custom, Mixup, Noise, Shift, key_of_sample, uniform
from nbbp.callbacks import Callback
from nbbp.cpu import kernels


def halve(row, key):
    for j in range(row.size):
        row[j] *= 0.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Augmentation(), TypeError, "take one of: Shift, Noise, Mixup, Custom"),
        (lambda: Shift((8.0, 8), 1), TypeError, "shape of Shift, each of its numbers, must be an integer; got 8.0"),
        (lambda: Shift((0, 8), 1), ValueError, "must be at least 1; got 0"),
        (lambda: Shift("88", 1), TypeError, "must be an integer; got '88'"),
        (lambda: Shift((), 1), ValueError, r"must be \(height, width\), .* got \(\)"),
        (lambda: Shift((2, 2, 2, 2), 1), ValueError, r"got \(2, 2, 2, 2\)"),
        (lambda: Shift((8, 8), 0), ValueError, "pixels of Shift must be at least 1; got 0"),
        (lambda: Shift((8, 8), 1.5), TypeError, "pixels of Shift must be an integer; got 1.5"),
        (lambda: Shift((8, 8), True), TypeError, "pixels of Shift must be an integer; got True"),
        (lambda: Shift((8, 8), (0, 0)), ValueError, r"must not all be 0; got \(0, 0\)"),
        (lambda: Shift((8, 8), (1, -1)), ValueError, "each of them, must be at least 1; got -1"),
        (lambda: Shift((8, 8), (1, 1, 1)), ValueError, r"or one for each of \(8, 8\); got \(1, 1, 1\)"),
        (lambda: Shift((8, 4), 4), ValueError, r"below the size that is moved, \(8, 4\); got 4"),
        (lambda: Shift((8,), (8,)), ValueError, r"below the size that is moved, \(8,\); got \(8,\)"),
        (lambda: Shift((8, 8), 1, fill="0"), TypeError, "fill of Shift must be a number; got '0'"),
        (lambda: Shift((8, 8), 1, fill=np.nan), ValueError, "fill of Shift must be finite; got nan"),
        (lambda: Noise(0), ValueError, "stddev of Noise must be above 0 and finite; got 0"),
        (lambda: Noise(-1.0), ValueError, "stddev of Noise must be above 0"),
        (lambda: Noise(np.inf), ValueError, "and finite; got inf"),
        (lambda: Noise("0.1"), TypeError, "stddev of Noise must be a number; got '0.1'"),
        (lambda: Mixup(0.0), ValueError, "alpha of Mixup must be above 0"),
        (lambda: Mixup(np.nan), ValueError, "alpha of Mixup must be above 0"),
        (lambda: Mixup(None), TypeError, "alpha of Mixup must be a number; got None"),
        (lambda: Custom(3), TypeError, "function of an augmentation must be a function of row, key; got 3"),
        (lambda: Custom(np.tanh), TypeError, "must be an @njit function or a plain Python one; got <ufunc"),
        (lambda: Custom(lambda row: None), TypeError, r"is called with row, key; <lambda> takes \(row\)"),
        (lambda: Custom(njit(lambda row, key, more: None)), TypeError, r"takes \(row, key, more\)"),
    ],
)
def test_descriptions_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_descriptions():
    assert Shift((8, 8), 1) == Shift([8, 8], (1, 1), 0) != Shift((8, 8), (0, 1))
    assert Shift(19, 3) == Shift((19,), [3])
    assert len({Noise(1), Noise(1.0), Mixup(), Mixup(0.2), Custom(halve), Shift((2, 2, 3), 1)}) == 4
    assert Custom(halve).function.py_func is halve
    for one in (Shift((8, 8), 1, 0.5), Noise(0.1), Mixup(0.3)):
        assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert repr(Mixup(0.3)) == "Mixup(alpha=0.3)"


def test_a_function_can_be_tried_by_itself():
    """As its docstring has it."""

    def darken(row, key):
        factor = 1.0 - 0.5 * uniform(key, 0)
        for j in range(row.size):
            row[j] *= factor

    row = np.ones(3)
    assert Custom(darken).function(row, key_of_sample(0, 0, 0, 0)) is None
    assert 0.5 <= row[0] <= 1.0
    assert row[0] == 1.0 - 0.5 * uniform(key_of_sample(0, 0, 0, 0), 0)


class Heard(Callback):
    """Whether a run has begun."""

    begun = False

    def on_train_begin(self, run):
        self.begun = True


BAD = [
    (3, TypeError, r"augment must be augmentations such as .*, or functions of \(row, key\); got 3 \(int\)"),
    ("mixup", TypeError, r"got 'mixup' \(str\)"),
    (Shift, TypeError, "got the class Shift"),
    ([Noise(0.1), None], TypeError, r"got None \(NoneType\)"),
    (lambda row: None, TypeError, r"is called with row, key; <lambda> takes \(row\)"),
    (Shift((3, 3), 1), ValueError, r"shape of Shift is \(3, 3\), 9 numbers; samples of this network have 6"),
    ([Mixup(), Mixup(0.4)], ValueError, "augment has more than one Mixup; expected at most one"),
    (lambda row, key: row.no_such_thing, TypeError, r"(?s)augmentation 0 does not compile for float.*no_such_thing"),
    ([Noise(0.1), lambda row, key: row * 2], TypeError, "augmentation 1, <lambda>, gives back array.* in place and"),
]  # fmt: skip


def beyond(row, key):
    for j in range(row.size + 1):
        row[j] = 1


@njit
def halve_too(row):
    row *= 0.5


def before_the_row(row, key):
    row[-7] = 1


@njit
def call_beyond(row):
    row[row.size] = 3


BAD += [
    (
        beyond,
        ValueError,
        r"function of augmentation 0, beyond, .* beyond its arrays, which are row \(6,\): are its loops",
    ),
    ([Noise(0.1), before_the_row], ValueError, "augmentation 1, before_the_row, reads or writes beyond"),
    (lambda row, key: call_beyond(row), ValueError, "augmentation 0, <lambda>, reads or writes beyond"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("augment", "error", "message"), BAD)
def test_fit_refuses_before_anything_changes(augment, error, message, dtype):
    X, y = features_for(9, 6, dtype), targets_for(losses.Crossentropy(), 9, 3)
    model = model_of([Dense(3)], 6, "crossentropy", dtype)
    history, before, heard = model.history, model.parameter_vector.copy(), Heard()
    with pytest.raises(error, match=message):
        model.fit(X, y, augment=augment, callbacks=[heard], verbose=0)
    assert model.history is history
    assert not heard.begun
    np.testing.assert_array_equal(model.parameter_vector, before)
    unbuilt = nbbp.Model(nbbp.Sequential([Dense(3)]), "crossentropy", dtype=dtype)
    with pytest.raises(error, match=message):
        unbuilt.fit(X, y, augment=augment, verbose=0)
    assert unbuilt._session is None


def test_networks_and_losses_that_it_is_not_for():
    X = np.zeros((4, 3))
    network = nbbp.Sequential([nbbp.Embedding({1: 5}, 2), Dense(1)], n_in=3)
    with pytest.raises(ValueError, match="this network has an Embedding: column 1 holds categories"):
        nbbp.Model(network, "mse").fit(X, np.zeros(4), augment=Noise(0.1), verbose=0)
    model = nbbp.Model(nbbp.Sequential([Dense(1)], n_in=3), "hinge")
    with pytest.raises(ValueError, match="which the loss 'hinge' does not take; for classes use 'crossentropy' or"):
        model.fit(X, np.array([-1, 1, 1, -1]), augment=Mixup(), verbose=0)
    assert model.fit(X, np.array([-1, 1, 1, -1]), augment=Noise(0.1), verbose=0).epochs == [1]


@pytest.mark.parametrize("nothing", [None, (), []])
def test_none_is_none(nothing):
    X, y = features_for(9, 6), targets_for(losses.Crossentropy(), 9, 3)
    plain, model = (model_of([Dense(3)], 6, "crossentropy") for _ in range(2))
    plain.fit(X, y, verbose=0)
    model.fit(X, y, augment=nothing, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, plain.parameter_vector)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_leaves_nan_and_ends_fit():
    def fails(row, key):
        row[0] = 7
        if uniform(key, 0) > 0.9:
            raise ValueError("a large number")

    X, y = features_for(40, 3), targets_for(losses.MSE(), 40, 2)
    model = model_of([Dense(4, "relu"), Dense(2)], 3, "mse")
    before = model.parameter_vector.copy()
    with pytest.raises(nbbp.TrainingDiverged, match="as it was given: look at what augmentation makes of it"):
        model.fit(X, y, epochs=2, augment=fails, verbose=0)
    np.testing.assert_array_equal(model.parameter_vector, before)


def test_a_function_that_checks_itself_is_not_tried():
    """Its indices are data that the sample of the trial is not like."""

    @njit(boundscheck=True)
    def chosen(row, key):
        row[int(row[0]) - 1900] = 0

    X = np.full((8, 4), 1901.0)
    model = model_of([Dense(1)], 4, "mse", optimizer=nbbp.SGD(1e-12))
    model.fit(X, np.zeros(8), augment=chosen, verbose=0)


def test_a_function_is_compiled_once():
    """Plain or jitted, for two runs, two models and in two places."""
    for function in (lambda row, key: halve_too(row), njit(lambda row, key: halve_too(row))):
        X, y, known = np.ones((8, 3)), np.zeros((8, 1)), set(kernels._compiled)
        for _ in range(2):
            model = model_of([Dense(1)], 3, "mse")
            for _ in range(2):
                model.fit(X, y, augment=[function, Noise(0.1), function], verbose=0)
        assert [name for name, *_ in set(kernels._compiled) - known if name == "augment_row"] == ["augment_row"]


def test_what_users_import():
    for name in augmentation.__all__:
        assert hasattr(augmentation, name)
    assert nbbp.augmentation is augmentation
