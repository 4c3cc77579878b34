"""Embedding: gradients of its tables in every plan, and data with a number that is no category."""

import numpy as np
import pytest
import reference
from engine_cases import (
    DTYPES,
    assert_all_near,
    assert_gradients_near_oracle,
    assert_near,
    copies,
    model_of,
    oracle_steps,
    targets_for,
)
from structure_cases import LOSS, PLANS, bits_of_steps, plan_of, take_plan

import nbbp
from nbbp import optimizers
from nbbp.layers import Concat, Dense, Embedding, Residual

#: Categories in columns 0, 2, 3 and 6 of 7.
COUNTS = {0: 12, 2: 3, 3: 200, 6: 1}
APART = Embedding(COUNTS, {0: 4, 2: 1, 3: 70, 6: 17})
SHARED = Embedding(9, 5)
BEHIND = [Dense(6, "tanh"), Dense(3)]


def data_for(batch, layer=APART, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    if layer is SHARED:
        X = random.integers(0, 9, (batch, 7)).astype(dtype)
    else:
        X = random.standard_normal((batch, 7)).astype(dtype)
        for column, count in COUNTS.items():
            X[:, column] = random.integers(0, count, batch)
    return X, targets_for(LOSS, batch, 3, seed)


def planned_model(plan, layers, dtype="float32", optimizer="adam"):
    wide = [Dense(300), Dense(300, "tanh")] if plan == "wide" else []
    return model_of([layers[0], *wide, *layers[1:]], 7, LOSS, dtype, optimizer)


NETWORKS = {
    "tables apart": [APART, *BEHIND],
    "one table": [SHARED, *BEHIND],
    "nothing passes": [Embedding(dict.fromkeys(range(7), 9), 2), *BEHIND],
    "within a concat": [Concat([APART, Dense(4, "relu")], [Dense(3, "tanh")], [SHARED], []), *BEHIND],
    "within a residual": [Residual([SHARED, Dense(7)]), Residual([Dense(4)]), Dense(3)],
    "alone": [Embedding({0: 9}, 1), Dense(3)],
}


def layer_of(name):
    """Whose categories the data must have: those of SHARED are ones of most columns."""
    return APART if name == "tables apart" else SHARED


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_predictions(monkeypatch, name, plan, dtype):
    take_plan(monkeypatch, plan)
    layers = NETWORKS[name]
    if name == "within a concat":
        layers = [Concat([Embedding({0: 9, 3: 9}, {0: 3, 3: 2}), Dense(4, "relu")], *layers[0].chains[1:]), *BEHIND]
    model = planned_model(plan, layers, dtype)
    X, y = data_for(PLANS[plan][1], layer_of(name), dtype)
    assert plan_of(model, len(X)) == plan
    assert_gradients_near_oracle(model, X, y, tolerance=3e-5 if dtype == "float32" else None)
    expected = reference.predict(model.network, copies(model.parameters), X)
    assert_near(model.predict(X), expected, dtype, 2e-5 if dtype == "float32" else None)
    assert_near(model.predict(X[:2]), expected[:2], dtype, 2e-5 if dtype == "float32" else None)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("layer", [APART, SHARED], ids=["apart", "shared"])
@pytest.mark.parametrize("optimizer", [optimizers.AdamW(0.01, weight_decay=0.1), optimizers.Adafactor(0.1)])
def test_steps_and_fit(monkeypatch, plan, layer, optimizer):
    """The last batch is short; a category that no row names still decays."""
    take_plan(monkeypatch, plan)
    n = PLANS[plan][1]
    by_steps, by_fit = (planned_model(plan, [layer, *BEHIND], "float64", optimizer) for _ in range(2))
    X, y = data_for(2 * n + 1, layer, "float64")
    batches = [(X[start : start + n], y[start : start + n], None) for start in range(0, len(X), n)]
    expected = oracle_steps(by_steps, batches)
    for x, wanted, _ in batches:
        by_steps.train_step(x, wanted)
    by_fit.fit(X, y, batch_size=n, shuffle=False, verbose=0)
    assert_all_near(by_steps.parameters, expected)
    assert_all_near(by_fit.parameters, expected)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("optimizer", ["adam", "adafactor"])
@pytest.mark.parametrize("layer", [APART, SHARED], ids=["apart", "shared"])
def test_same_bits_for_any_number_of_threads(monkeypatch, layer, optimizer, plan):
    X, y = data_for(PLANS[plan][1], layer)
    runs = []
    for n_threads in (1, 2, 3):
        take_plan(monkeypatch, plan, n_threads)
        runs.append(bits_of_steps(planned_model(plan, [layer, *BEHIND], optimizer=optimizer), X, y))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("plan", PLANS)
def test_frozen(monkeypatch, plan):
    take_plan(monkeypatch, plan)
    model = planned_model(plan, [Embedding(9, 5, trainable=False), *BEHIND], optimizer=nbbp.AdamW(weight_decay=0.1))
    X, y = data_for(PLANS[plan][1], SHARED)
    assert_gradients_near_oracle(model, X, y, tolerance=3e-5)
    before = model.parameters["0.weight"].tobytes()
    model.train_step(X, y)
    model.fit(X, y, batch_size=2, verbose=0)
    assert model.parameters["0.weight"].tobytes() == before
    assert not model.loss_and_gradients(X, y)[1]["0.weight"].any()


def test_central_differences():
    X, y = data_for(5, dtype="float64")
    assert model_of([APART, *BEHIND], 7, LOSS).check_gradients(X, y).max_error < 1e-6


def test_a_large_table_is_not_kept_once_per_block_of_rows(monkeypatch):
    take_plan(monkeypatch, "partial")
    model = model_of([Embedding(70_000, 2), Dense(3)], 4, LOSS, "float32", "sgd")
    program = model._session.training(1500, False, False).program
    assert sum(program.buffers.values()) < 2.5 * model.network.n_parameters


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_many_categories_as_there_are_exact_numbers(dtype):
    network = nbbp.Sequential([Embedding({1: 1 << 24}, 1, weight_initializer="zeros"), Dense(1)], 2)
    model = nbbp.Model(network, LOSS, "sgd", dtype=dtype)
    last = (1 << 24) - 1
    X = np.array([[0.5, last], [0.5, 0], [0.5, last - 1]])
    table = model.parameters["0.weight_1"][:, 0]
    table[[last, 0, last - 1]] = 1.0, 2.0, 3.0
    model.parameters["1.weight"][:] = [[0.0], [1.0]]
    model.parameters["1.bias"][:] = 0.0
    assert model.predict(X)[:, 0].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="holds 16777216 in row 1, column 1; expected a category 0 … 16777215"):
        model.predict(np.array([[0.5, last], [0.5, last + 1]]))


# data that are none -----------------------------------------------------------------------------------------

WRONG = {"too large": 12, "negative": -1, "fractional": 2.5, "far too large": 1e30}
CALLS = {
    "fit": lambda model, X, y: model.fit(X, y, verbose=0),
    "fit on lists": lambda model, X, y: model.fit(X.tolist(), y.tolist(), verbose=0),
    "fit on batches": lambda model, X, y: model.fit([(X, y)], verbose=0),
    "fit on a generator": lambda model, X, y: model.fit(iter([(X, y)]), verbose=0),
    "validation data": lambda model, X, y: model.fit(X[:3], y[:3], validation_data=(X, y), verbose=0),
    "validation split": lambda model, X, y: model.fit(X, y, validation_split=0.2, verbose=0),
    "train_step": lambda model, X, y: model.train_step(X, y),
    "partial_fit": lambda model, X, y: model.partial_fit(X, y),
    "partial_fit of one": lambda model, X, y: model.partial_fit(X[3], y[3]),
    "loss_and_gradients": lambda model, X, y: model.loss_and_gradients(X, y),
    "evaluate": lambda model, X, y: model.evaluate(X, y),
    "predict": lambda model, X, y: model.predict(X),
    "predict of batches": lambda model, X, y: model.predict(iter([X])),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", CALLS)
def test_no_category(name, wrong):
    """Refused before anything changes, by calls that are quick for other networks too."""
    model = model_of([APART, *BEHIND], 7, LOSS, "float32", "adam")
    X, y = data_for(5)
    y = y.astype(np.float32)
    model.train_step(X, y)
    model.predict(X)
    X[3, 0] = wrong
    before, step = model.parameter_vector.tobytes(), model._session.step
    shown = f"{np.float32(wrong):.0f}" if wrong != 2.5 else "2.5"
    if name == "validation split":  # of which the last fifth is checked by itself
        X[[3, 4]] = X[[4, 3]]
    row = 0 if name in ("validation split", "partial_fit of one") else 3
    with pytest.raises(ValueError, match=rf" holds {shown} in row {row}, column 0; expected a category 0 … 11"):
        CALLS[name](model, X, y)
    assert (model.parameter_vector.tobytes(), model._session.step) == (before, step)


def test_no_category_in_a_dataframe():
    pandas = pytest.importorskip("pandas")
    model = model_of([APART, *BEHIND], 7, LOSS, "float32")
    X, y = data_for(5)
    X[2, 3] = 200
    frame = pandas.DataFrame(X, columns=list("abcdefg"))
    with pytest.raises(ValueError, match=r"X holds 200 in row 2, column 3 \('d'\); expected a category 0 … 199"):
        model.fit(frame, y, verbose=0)


def test_no_category_in_a_file(tmp_path):
    X, y = data_for(5)
    X[4, 6] = 1
    file = np.memmap(tmp_path / "X", np.float32, "w+", shape=X.shape)
    file[:] = X
    model = model_of([APART, *BEHIND], 7, LOSS, "float32")
    before = model.parameter_vector.tobytes()
    for call in (lambda: model.fit(file, y, verbose=0), lambda: model.predict(file), lambda: model.evaluate(file, y)):
        with pytest.raises(ValueError, match="X holds 1 in row 4, column 6; expected the one category 0"):
            call()
    assert model.parameter_vector.tobytes() == before


def test_a_network_without_sizes_stays_without_if_the_data_are_wrong():
    X, y = data_for(5)
    X[1, 2] = 3
    for call in (lambda model: model.train_step(X, y), lambda model: model.fit(X, y, verbose=0)):
        model = nbbp.Model(nbbp.Sequential([APART, *BEHIND]), LOSS)
        with pytest.raises(ValueError, match="in row 1, column 2; expected a category 0 … 2"):
            call(model)
        assert model.network.n_in is None
    with pytest.raises(ValueError, match="Embedding looks up column 6; got samples of 6 features"):
        model.fit(X[:, :6], y, verbose=0)


def test_numbers_that_are_no_category_stay_within_the_table(monkeypatch):
    """Whatever reaches the kernels, they touch nothing else."""
    monkeypatch.setattr("nbbp.validation.first_no_category", lambda *arguments: -1)
    model = model_of([APART, *BEHIND], 7, LOSS, "float32", "adam")
    X, y = data_for(6)
    expected = X.copy()
    X[:4, 3], expected[:4, 3] = [-1e30, 1e30, 200, 7.9], [0, 199, 199, 7]
    assert model.predict(X).tobytes() == model.predict(expected).tobytes()
    for name, values in model.loss_and_gradients(X, y)[1].items():
        assert values.tobytes() == model.loss_and_gradients(expected, y)[1][name].tobytes()


def test_where_it_may_stand():
    for layers, path in ([Dense(2), SHARED], "1"), ([Residual([Dense(2), SHARED])], "0.1"):
        with pytest.raises(ValueError, match=rf"layer {path}: Embedding looks up columns of the data, so it must be"):
            nbbp.Sequential(layers, n_in=2)
    assert Embedding({np.int64(1): np.int32(4)}, np.int64(2)) == Embedding({1: 4}, 2)
    for key in (True, -1, "a", 1.0):
        with pytest.raises(TypeError, match="columns of Embedding must be integers from 0 on"):
            Embedding({key: 3}, 2)


def test_sizes_of_columns_that_are_not_looked_up_are_refused():
    with pytest.raises(ValueError, match="n_out of Embedding names column 1, which n_categories does not"):
        Embedding({0: 3}, {0: 2, 1: 2})


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_behind_a_view_it_looks_up_the_same(precision):
    """Category numbers beyond the digits of bf16 too."""
    X, y = np.random.default_rng(0).integers(0, 1000, (20, 6)), np.arange(20) % 3
    layers = [nbbp.Embedding(1000, 2), nbbp.Dense(3)]
    models = [
        nbbp.Model(nbbp.Sequential([*before, *layers], 6), "crossentropy", precision=precision)
        for before in ([], [nbbp.Flatten()])
    ]
    models[1].parameter_vector[:] = models[0].parameter_vector
    for model, data in zip(models, (X, X.reshape(20, 2, 3)), strict=True):
        model.fit(data, y, epochs=2, batch_size=8, verbose=0)
    np.testing.assert_array_equal(models[0].parameter_vector, models[1].parameter_vector)
