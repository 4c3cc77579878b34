"""Learning a stream one sample at a time."""

import copy
import pickle

import numpy as np
import pytest
from engine_cases import ALL_LOSSES, ALL_OPTIMIZERS, DTYPES, assert_near, label, model_of, one_sample, small_model

import nbbp
from nbbp.layers import Dense
from nbbp.losses import MSE, Crossentropy


def learn_both_ways(model, samples):
    """Losses and parameters of `partial_fit` and of `train_step` on batches of one."""
    twin = copy.deepcopy(model)
    losses, expected = [], []
    for x, y, batch_x, batch_y in samples:
        losses.append(model.partial_fit(x, y))
        expected.append(twin.train_step(batch_x, batch_y))
    assert_near(losses, expected, model.dtype.name)
    assert_near(
        model.parameter_vector,
        twin.parameter_vector,
        model.dtype.name,
        {"float32": 1e-4, "float64": 1e-9}[model.dtype.name],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_every_loss(loss, dtype):
    last = "log_softmax" if loss.name == "nll" else "linear"
    model = small_model("tanh", loss, dtype, "adam", last=last)
    learn_both_ways(model, [one_sample(model, seed) for seed in range(5)])


@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS, ids=label)
def test_every_optimizer_and_steps_of_batches_between(optimizer):
    model = small_model("tanh", MSE(), "float64", optimizer)
    twin = copy.deepcopy(model)
    for seed in range(8):
        x, y, batch_x, batch_y = one_sample(model, seed)
        # the two engines share parameters, slots and the count of steps
        if seed % 4 == 3:
            model.train_step(np.repeat(batch_x, 3, axis=0), np.repeat(batch_y, 3, axis=0))
            twin.train_step(np.repeat(batch_x, 3, axis=0), np.repeat(batch_y, 3, axis=0))
        assert_near(model.partial_fit(x, y), twin.train_step(batch_x, batch_y))
    assert_near(model.parameter_vector, twin.parameter_vector, tolerance=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_any_kind(dtype):
    model = small_model("tanh", Crossentropy(), dtype, "adam")
    x, y, _, _ = one_sample(model)
    x = np.round(4 * x)
    start = copy.deepcopy(model)
    expected = None
    one_hot = np.eye(3)[y]
    for given_x, given_y in (
        (x, y), (x, np.int64(y)), (x, np.int32(y)), (x.tolist(), y), (x.astype("int64"), y), (x[None], np.array([y])),
        (np.repeat(x, 2)[::2], y), (x, one_hot), (x, one_hot.tolist()),
    ):  # fmt: skip
        model = copy.deepcopy(start)
        for _ in range(3):
            loss = model.partial_fit(given_x, given_y)
        expected = loss if expected is None else expected
        assert_near(loss, expected, dtype)


def test_one_output_takes_a_number():
    model = model_of([Dense(4, "tanh"), Dense(1)], 2, MSE(), "float32", "adam")
    other = copy.deepcopy(model)
    for _ in range(3):
        losses = model.partial_fit(np.ones(2, "f4"), 0.5), other.partial_fit(np.ones(2, "f4"), np.array([0.5], "f4"))
    assert_near(*losses, "float32")


def test_several_samples_are_learnt_one_after_the_other():
    model = small_model("tanh", Crossentropy(), "float32", "adam")
    other = copy.deepcopy(model)
    samples = [one_sample(model, seed) for seed in range(6)]
    loss = model.partial_fit(np.stack([x for x, *_ in samples]), [y for _, y, *_ in samples])
    losses = [other.partial_fit(x, y) for x, y, *_ in samples]
    assert_near(loss, np.mean(losses), "float32")
    assert_near(model.parameter_vector, other.parameter_vector, "float32", 1e-5)


def test_sizes_come_with_the_first_sample():
    model = nbbp.Model(nbbp.Sequential([Dense(3)]), "crossentropy")
    model.partial_fit(np.ones(7), 2)
    assert model.network.n_in == 7


def test_a_copy_learns_by_itself():
    model = small_model("tanh", Crossentropy(), "float32", "adam")
    x, y, _, _ = one_sample(model)
    model.partial_fit(x, y)
    model.partial_fit(x, y)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = model.parameter_vector.copy()
        loss = other.partial_fit(x, y)
        np.testing.assert_array_equal(model.parameter_vector, before)
        again = copy.deepcopy(model)
        assert_near(loss, again.partial_fit(x, y), "float32")


def test_every_sample_takes_the_quick_way():
    """Also the first one, and those of a copy, whose dtype is another object."""
    for model in (small_model("tanh", MSE(), "float32", "adam"), copy.deepcopy(small_model("tanh", MSE(), "float32"))):
        x, y, _, _ = one_sample(model)
        model._one_batch = None  # where the long way begins
        model.partial_fit(x, y)
        model.partial_fit(x, y)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [("y", 7, "row 2 of y has the label 7"), ("x", np.nan, "row 2.*NaN|NaN.*row 2")],
)
def test_of_several_samples_all_are_checked_before_one_is_learnt(where, value, message):
    model = small_model("tanh", Crossentropy(), "float32", "adam")
    x, y = np.ones((4, 5), "f4"), np.array([0, 1, 2, 0])
    model.partial_fit(x[0], 0)
    before = model.parameter_vector.copy()
    (x if where == "x" else y)[2] = value
    with pytest.raises(ValueError, match=message):
        model.partial_fit(x, y)
    np.testing.assert_array_equal(model.parameter_vector, before)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"x": np.ones(4, "f4")}, "x has 4 features per sample; this network takes 5"),
        ({"x": np.array([1, 2, np.nan, 4, 5], "f4")}, "NaN"),
        ({"y": 3}, "label 3"),
        ({"y": -1}, "label -1"),
        ({"y": 2**63}, "label 9223372036854775808"),
        ({"y": 0.5}, "0.5"),
        ({"x": np.ones((2, 5), "f4")}, "2 samples"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_first", [True, False])
def test_bad_samples_change_nothing(bad, message, is_first):
    model = small_model("tanh", Crossentropy(), "float32", "adam")
    x, y, _, _ = one_sample(model)
    if not is_first:
        model.partial_fit(x, y)
        model.partial_fit(x, y)
    before = model.parameter_vector.copy()
    given = {"x": x, "y": y} | bad
    with pytest.raises(ValueError, match=message):
        model.partial_fit(**given)
    np.testing.assert_array_equal(model.parameter_vector, before)
