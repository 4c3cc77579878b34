"""Every kind of layer in files: within others, frozen, with a state; and files of layers that are made to harm."""

import copy
import dataclasses
import json
import time
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save

import nbbp
from nbbp import description, initializers, persistence
from nbbp.layers import (
    Activation,
    BatchNorm,
    Concat,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GaussianNoise,
    LayerNorm,
    Reshape,
    Residual,
    RMSNorm,
    Standardize,
    StochasticDepth,
)

DENSE = Dense(4, "tanh")
LAYERS = {
    "batch norm": [BatchNorm(0.3, 1e-3, name="first"), DENSE, BatchNorm(affine=False), BatchNorm(trainable=False)],
    "layer norm": [
        DENSE,
        LayerNorm(1e-3),
        LayerNorm(affine=False, trainable=False, name="n"),
        RMSNorm(),
        RMSNorm(1e-2),
    ],
    "random": [Dropout(0.25), DENSE, GaussianNoise(0.5, name="g"), StochasticDepth(0.1, "batch"), StochasticDepth()],
    "residual": [
        Residual([DENSE, Activation("elu", alpha=0.5), Residual([Dense(2), BatchNorm()])], "he_normal", "r", False),
        Residual([Dense(2, trainable=False)], initializers.Uniform(-0.1, 1 / 3)),
    ],
    "concat": [Concat([DENSE, Dense(2)], [], [Concat([BatchNorm()], [Dense(3)], name="in", trainable=False)]), DENSE],
    "one table": [Embedding(7, 3, "glorot_uniform", "e", False), DENSE],
    "tables": [Embedding({0: 4, 2: 1 << 20}, {0: 2, 2: 1}), DENSE],
    "standardized": [Flatten(), Concat([Standardize(name="s")], [Standardize(0.5, (0, 1 / 3, 2))]), DENSE],
    "shapes": [Flatten("f"), DENSE, Reshape((2, -1)), Activation("tanh"), Reshape([4], name="r"), Reshape((2, 2))],
}


def model_of(layers, every=None, **settings):
    return nbbp.Model(nbbp.Sequential(layers, 3, every), "mse", **settings)


def filled(model):
    """With other numbers than the initial ones everywhere."""
    session, random = model._session, np.random.default_rng(2)
    for values in (session.parameters, session.state, *session.slots):
        values[:] = random.standard_normal(len(values))
    session.step, session.epoch = 12, 3
    return model


def arrays_of(model):
    session = model._session
    return [array.tobytes() for array in (session.parameters, session.state, *session.slots)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_come_back(tmp_path, name, every, dtype):
    model = filled(model_of(LAYERS[name], every, dtype=dtype, seed=7))
    model.save(tmp_path / "m")
    loaded = nbbp.load_model(tmp_path / "m")
    assert loaded.network == model.network
    assert hash(loaded.network) == hash(model.network)
    assert repr(loaded.network) == repr(model.network)
    assert arrays_of(loaded) == arrays_of(model)
    assert list(loaded.state) == list(model.state)


def test_every_kind_of_layer_is_there():
    kinds = {
        kind for kind in vars(nbbp.layers).values() if isinstance(kind, type) and issubclass(kind, nbbp.layers.Layer)
    }
    kinds -= {nbbp.layers.Layer, nbbp.layers.Custom, Activation}
    assert kinds == set(description._LAYERS.values())
    for kind in kinds:
        # what a field is kept as, in a file or by a constructor of its own, is decided by its name
        names = {field.name for field in dataclasses.fields(kind)}
        assert ("chains" in names) is (kind is Concat)
        assert ("tables" in names) is (kind is Embedding)
        assert ("layers" in names) is (kind is Residual)


def test_a_state_is_one_more_array(tmp_path):
    model = filled(model_of(LAYERS["batch norm"]))
    model.save(tmp_path / "m")
    with safe_open(tmp_path / "m", framework="np") as file:
        assert np.array_equal(file.get_tensor("state"), model._session.state)
        assert file.get_tensor("state").size == 2 * (3 + 4 + 4)
    model_of([DENSE]).save(tmp_path / "m")
    with safe_open(tmp_path / "m", framework="np") as file:
        assert "state" not in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("name", ["residual of dense", "concat", "tables", "shapes"])
def test_training_goes_on_as_if_uninterrupted(tmp_path, name):
    layers = {
        "residual of dense": [Residual([DENSE, Dense(3, trainable=False)]), Residual([Dense(2)])],
        "concat": [Concat([DENSE], [], [Dense(2, "relu")]), Dense(2)],
        "tables": [Embedding({0: 4, 2: 5}, {0: 2, 2: 1}), DENSE, Dense(2)],
        "shapes": [Flatten(), DENSE, Reshape((2, 2))],
    }[name]
    random = np.random.default_rng(0)
    X = random.integers(0, 4, (20, 3))
    y = random.standard_normal((20, *(nbbp.Sequential(layers, 3).output_shape)))
    model = model_of(layers, 1, optimizer=nbbp.Adam(0.01))
    model.fit(X, y, epochs=2, batch_size=8, verbose=0)
    model.save(tmp_path / "m")
    loaded = nbbp.load_model(tmp_path / "m")
    for one in (model, loaded):
        one.fit(X, y, epochs=2, batch_size=8, verbose=0)
    assert arrays_of(loaded) == arrays_of(model)
    assert loaded.predict(X).tobytes() == model.predict(X).tobytes()


class OwnDense(Dense):
    pass


def test_what_is_no_data_is_named_by_its_path(tmp_path):
    for layers, path in (
        ([Residual([DENSE, OwnDense(3)])], "0.1"),
        ([DENSE, Concat([], [OwnDense(3)])], "1.1.0"),
        ([Residual([Concat([OwnDense(3)], [])])], "0.0.0.0"),
    ):
        with pytest.raises(TypeError, match=rf"layer {path} is OwnDense"):
            model_of(layers).save(tmp_path / "m")


def nested(depth):
    layer = Dense(3)
    for _ in range(depth):
        layer = Residual([layer])
    return layer


def test_as_deep_as_can_be_read_back(tmp_path):
    model_of([nested(description.DEEPEST_LAYER)]).save(tmp_path / "m")
    assert nbbp.load_model(tmp_path / "m").network.layers == (nested(description.DEEPEST_LAYER),)
    with pytest.raises(ValueError, match="the layers are nested too deeply; expected at most 32 levels"):
        model_of([nested(description.DEEPEST_LAYER + 1)]).save(tmp_path / "n")


# what was made to harm ----------------------------------------------------------------------------------------

WHOLE = [
    Residual([DENSE, BatchNorm()]), Concat([Dense(2)], [], [Dropout()]), Reshape((-1,)), StochasticDepth(),
    GaussianNoise(), LayerNorm(), Flatten(),
]  # fmt: skip
HUGE = 1 << 40
RESIDUAL = {"type": "Residual", "weight_initializer": {"name": "Constant", "settings": {"value": 0.0}}}


def rewritten(content, data, **tensors):
    """The file with another description and other arrays."""
    kept = load(content) | tensors
    meta = {"nbbp.format": persistence.FORMAT, "nbbp.model": json.dumps(data), "nbbp.sha256": "0" * 64}
    return save({name: values for name, values in kept.items() if values is not None}, meta)


def changed(data, place, value):
    data = copy.deepcopy(data)
    *way, last = place.split(".")
    inner = data
    for key in way:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[int(last) if isinstance(inner, list) else last] = value
    return data


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m"
    filled(model_of(WHOLE)).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m"
    filled(model_of([*LAYERS["tables"][:1], DENSE])).save(path)
    return path.read_bytes()


def described(content):
    (length,) = np.frombuffer(content[:8], "<u8")
    return json.loads(json.loads(content[8 : 8 + int(length)])["__metadata__"]["nbbp.model"])


def assert_refused(folder, content, message):
    (folder / "m").write_bytes(content)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            nbbp.load_model(folder / "m")
        seconds, (_, peak) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 5
    assert peak < 50e6
    assert len(str(caught.value)) < 2000


def deep(depth):
    data = {"type": "Flatten", "name": None}
    for _ in range(depth):
        data = {**RESIDUAL, "layers": [data], "name": None, "trainable": True}
    return data


FLAT = {"type": "Flatten", "name": None}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("network.checkpoint_every", 0, "checkpoint_every of Sequential must be at least 1"),
        ("network.checkpoint_every", True, "checkpoint_every of Sequential must be an integer"),
        ("network.checkpoint_every", "2", "checkpoint_every of Sequential must be an integer"),
        ("network.n_in", [3], "n_in of the network must be an integer"),
        ("network.layers.0.layers", {}, "the layers of layer 0 must be a list"),
        ("network.layers.0.layers", [], "got no layers"),
        ("network.layers.0.layers", [0], r"layer 0\.0 must be an object whose 'type'"),
        ("network.layers.0.layers.0.type", "Custom", r"layer 0\.0 must be an object whose 'type'"),
        ("network.layers.0.layers.0.n_out", "4", "n_out of Dense must be an integer"),
        ("network.layers.0.layers.1.momentum", 1, "momentum of BatchNorm must be at least 0 and below 1"),
        ("network.layers.0.layers.1.eps", 0, "eps of BatchNorm must be at least"),
        ("network.layers.0.layers.1.affine", 1, "affine of BatchNorm must be True or False"),
        ("network.layers.0.trainable", 1, "trainable of Residual must be True or False"),
        ("network.layers.0.weight_initializer", None, "the weight initializer of layer 0 must be an object"),
        ("network.layers.0.more", None, "layer 0 must be an object with 'type', 'layers'"),
        ("network.layers.1.chains", None, "chains of layer 1 must be a list"),
        ("network.layers.1.chains", [[]], "Concat takes at least two branches"),
        ("network.layers.1.chains", [[], None], r"the layers of layer 1\.1 must be a list"),
        ("network.layers.1.chains", [[]] * 4097, "chains of layer 1 must be a list of at most 4,096"),
        ("network.layers.1.chains", [[], ["Dense"]], r"layer 1\.1\.0 must be an object"),
        ("network.layers.1.branches", [], "layer 1 must be an object with 'type', 'chains'"),
        ("network.layers.1.chains.2.0.rate", 1.0, "rate of Dropout must be at least 0 and below 1"),
        ("network.layers.1.chains.2.0.name", [], "name of Dropout must be a str"),
        ("network.layers.2.shape", 4, "shape of layer 2 must be a list of at most 32"),
        ("network.layers.2.shape", [1] * 33, "shape of layer 2 must be a list of at most 32; got 33"),
        ("network.layers.2.shape", [-1, -1], "shape of Reshape can have one -1"),
        ("network.layers.2.shape", [0], "a size in shape of Reshape must be at least 1"),
        ("network.layers.2.shape", [2.0], "a size in shape of Reshape must be an integer"),
        ("network.layers.2.shape", [HUGE] * 32, "takes samples of"),
        ("network.layers.2.shape", [], "shape of Reshape must be a tuple"),
        ("network.layers.3.mode", "rows", "mode of StochasticDepth must be 'row' or 'batch'"),
        ("network.layers.3.mode", ["row"], "mode of StochasticDepth must be 'row' or 'batch'"),
        ("network.layers.4.stddev", -1.0, "stddev of GaussianNoise must be at least 0"),
        ("network.layers.4.stddev", "1", "stddev of GaussianNoise must be a number"),
        ("network.layers.6", deep(33), "the layers are nested too deeply; expected at most 32 levels"),
        ("network.layers.6", deep(300), "nested too deeply"),
        ("network.layers.6", {**deep(1), "layers": [FLAT] * 4096}, "too many layers; expected at most 4,096 in all"),
        ("network.layers.1.chains", [[FLAT] * 4000] * 10, "too many layers; expected at most 4,096 in all"),
        ("network.layers.0.layers.0.n_out", 1 << 62, r"0\.0\.weight must have the shape \(3, 4611686018427387904\)"),
    ],
)  # fmt: skip
def test_descriptions_with_something_wrong(tmp_path, content, place, value, message):
    assert_refused(tmp_path, rewritten(content, changed(described(content), place, value)), message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "tables of layer 0 must be a list"),
        ([], "must name at least one column"),
        ([[0, 4]], r"tables of layer 0 must be of a column or null.*got \[0, 4\]"),
        ([[0, 4, 2, 1]], "tables of layer 0 must be a list of at most 3"),
        ([[0, 4, True]], "tables of layer 0 must be of a column or null"),
        ([[0.0, 4, 2]], "one table for each column"),
        ([[[0], 4, 2]], "one table for each column"),
        ([[None, 4, 2], [None, 4, 2]], "one table for each column"),
        ([[0, 4, 2], [0, 5, 2]], r"one table for each column, in their order; got the columns \[0, 0\]"),
        ([[2, 4, 2], [0, 5, 2]], r"one table for each column, in their order; got the columns \[2, 0\]"),
        ([[-1, 4, 2]], "columns of Embedding must be integers from 0 on; got -1"),
        ([[3, 4, 2]], "layer 0: Embedding looks up column 3; got samples of 3 features"),
        ([[0, 1 << 25, 2]], "n_categories of Embedding must be at most 16,777,216"),
        ([[0, 4.0, 2]], "n_categories of Embedding must be an integer"),
        ([[0, 4, 0]], "n_out of Embedding must be at least 1"),
        ([[None, 1 << 24, 1 << 60]], r"0\.weight"),
        ([[0, 4, 2]] * 65537, "tables of layer 0 must be a list of at most 65,536"),
    ],
)  # fmt: skip
def test_tables_with_something_wrong(tmp_path, tables, value, message):
    data = changed(described(tables), "network.layers.0.tables", value)
    assert_refused(tmp_path, rewritten(tables, data), message)


@pytest.mark.parametrize(
    ("mean", "variance", "message"),
    [
        (None, 1.0, "Standardize takes both mean and variance, or neither"),
        ([0.0], [1.0], "layer 0: Standardize has statistics of 1 features; got 3"),
        ([0.0, 0.0, 0.0], [1.0, -1.0, 1.0], "number 1 of variance of Standardize must be at least 0 and finite"),
        ([0.0, "0", 0.0], 1.0, "number 1 of mean of Standardize must be a number"),
        ([0.0, True, 0.0], 1.0, "number 1 of mean of Standardize must be a number"),
        ([0.0, None, 0.0], 1.0, "number 1 of mean of Standardize must be a number"),
        ([[0.0, 0.0, 0.0]], 1.0, "mean of Standardize must be one number, or one for each feature"),
        ([[0.0], 0.0], 1.0, "mean of Standardize must be|inhomogeneous"),
        ({"0": 1.0}, 1.0, "mean of Standardize must be a number"),
        ("000", 1.0, "mean of Standardize must be a number"),
        ([], [], "mean of Standardize must be one number, or one for each feature"),
        ([0.0] * 100_000, 1.0, "layer 0: Standardize has statistics of 100000 features; got 3"),
    ],
)
def test_statistics_with_something_wrong(tmp_path, mean, variance, message):
    model = filled(model_of([Standardize(0, 1), DENSE]))
    model.save(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    data = changed(described(content), "network.layers.0.mean", mean)
    assert_refused(tmp_path, rewritten(content, changed(data, "network.layers.0.variance", variance)), message)


def test_more_columns_than_can_be_looked_at(tmp_path, tables):
    data = described(tables)
    data["network"] |= {"n_in": HUGE, "layers": data["network"]["layers"][:1]}
    message = "layer 0: Embedding takes samples of at most 65,536 features; got 1,099,511,627,776"
    assert_refused(tmp_path, rewritten(tables, data), message)
    data["network"]["layers"][0]["tables"] = [[None, 4, 2]]
    assert_refused(tmp_path, rewritten(tables, data), message)


def test_states_that_are_not_those_of_the_network(tmp_path, content):
    data, state = described(content), load(content)["state"]
    for other, message in (
        (None, r"missing \['state'\]"),
        (state[:-1], r"array state must have the shape \(8,\); got \(7,\)"),
        (state[None], r"array state must have the shape \(8,\); got \(1, 8\)"),
        (state.astype("f8"), "array state must be of F32; got F64"),
        (state, "it was altered"),
    ):
        assert_refused(tmp_path, rewritten(content, data, state=other), message)
    altered = bytearray(content)
    altered[content.index(state.tobytes())] ^= 1
    assert_refused(tmp_path, bytes(altered), "it was altered")
    data["network"]["layers"][0]["layers"][1] |= {"type": "LayerNorm"}
    del data["network"]["layers"][0]["layers"][1]["momentum"]
    assert_refused(tmp_path, rewritten(content, data), r"not of it \['state'\]")
