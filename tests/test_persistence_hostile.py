"""Files that are no models, not whole, altered or made to harm: a ValueError, soon and without memory."""

import copy
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
from formula_cases import quartic, swish
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as read
from safetensors.numpy import save as write

import nbbp
from nbbp import description, persistence


def saved_model():
    layers = [nbbp.Dense(4, nbbp.activation(swish)), nbbp.Activation("elu", alpha=0.5), nbbp.Dense(2)]
    optimizer = nbbp.Adam(groups={"*.bias": {"l1": 0.1}})
    model = nbbp.Model(nbbp.Sequential(layers, n_in=3), nbbp.loss(quartic), optimizer, ["mse"])
    for values in (model.parameter_vector, *model._session.slots):
        values[:] = np.linspace(-1, 1, len(values))
    return model


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m.safetensors"
    saved_model().save(path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.safetensors"


def header_of(content):
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def with_header(header, data=b""):
    """A file of any header."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def described(content):
    return json.loads(header_of(content)["__metadata__"]["nbbp.model"])


def rewritten(content, text=None, tensors=None, **metadata):
    """The file with another description and other arrays, and the digest that belongs to them."""
    text = text if isinstance(text, str) else json.dumps(text or described(content))
    tensors = tensors or read(content)
    parameters = [name for name in tensors if not name.startswith("optimizer")]
    slots = sorted(set(tensors) - set(parameters))
    arrays = [tensors[name].ravel() for name in (*sorted(parameters, key=order), *slots)]
    digest = persistence._digest(text, *arrays)
    parts = {"nbbp.format": persistence.FORMAT, "nbbp.model": text, "nbbp.sha256": digest}
    return write(tensors, parts | metadata)


def order(name):
    """As they lie in the flat buffer."""
    index, kind = name.split(".")
    return int(index), ("weight", "bias").index(kind)


@contextmanager
def quickly():
    """Neither seconds nor megabytes."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        yield
        seconds, (_, peak) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 5
    assert peak < 50e6


def assert_refused(path, content, message=""):
    path.write_bytes(content)
    with quickly(), pytest.raises(ValueError, match=message) as caught:
        nbbp.load_model(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


def state(model):
    arrays = (model.parameter_vector, *model._session.slots)
    return repr(model), model._session.step, model._session.epoch, [array.tobytes() for array in arrays]


def test_rewriting_is_what_saving_does(path, content):
    path.write_bytes(rewritten(content))
    assert state(nbbp.load_model(path)) == state(saved_model())


def test_no_model_at_all(path, tmp_path, content):
    assert_refused(path, b"", "no safetensors file")
    assert_refused(path, pickle.dumps({"0.weight": [1.0]}), "no safetensors file")
    assert_refused(path, bytes(1000), "cannot be loaded")
    assert_refused(path, b"PK" * 500, "no safetensors file")
    assert_refused(path, content + b"\0", "no safetensors file")
    assert_refused(path, write({"0.weight": np.ones(3)}), "but not of a model of nbbp")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", pickle.dumps(3))
    assert_refused(path, path.read_bytes(), "no safetensors file")
    with pytest.raises(ValueError, match="is no file"):
        nbbp.load_model(tmp_path)


def test_cut_short_anywhere(path, content):
    for stop in np.linspace(0, len(content) - 1, 300).astype(int):
        path.write_bytes(content[:stop])
        with pytest.raises(ValueError, match="no safetensors file"):
            nbbp.load_model(path)


def test_altered_anywhere(path, content):
    random, expected = np.random.default_rng(0), state(saved_model())
    n_header = len(content) - sum(array.nbytes for array in read(content).values())
    refused = 0
    for trial in range(1500):
        altered = bytearray(content)
        position = random.integers(n_header if trial % 2 else len(content))
        altered[position] ^= 1 << random.integers(8) if trial % 3 else random.integers(1, 256)
        path.write_bytes(altered)
        try:
            assert state(nbbp.load_model(path)) == expected
        except ValueError:
            refused += 1
    assert refused > 1400


def test_altered_numbers_are_noticed(path, content):
    for position in (1, 100, 300):
        altered = bytearray(content)
        altered[-position] ^= 1
        assert_refused(path, altered, "it was altered")


HUGE = 1 << 40


def test_huge_shapes_cost_nothing(path, content):
    entry = {"dtype": "F32", "shape": [HUGE, HUGE], "data_offsets": [0, 4 << 60]}
    assert_refused(path, with_header({"0.weight": entry}), "no safetensors file")
    assert_refused(path, struct.pack("<Q", 1 << 62) + b"{}", "no safetensors file")
    data = described(content)
    data["network"]["n_in"] = HUGE
    assert_refused(path, rewritten(content, data), r"0\.weight must have the shape \(1099511627776, 4\); got \(3, 4\)")
    data = described(content)
    data["network"]["layers"][2]["n_out"] = 1 << 62
    assert_refused(path, rewritten(content, data), r"2\.weight must have the shape \(4, 4611686018427387904\)")


def test_arrays_that_are_not_those_of_the_network(path, content):
    arrays = read(content)
    bias = arrays["2.bias"]
    changes = [
        ({"2.bias": bias.astype("f8")}, r"array 2\.bias must be of F32; got F64"),
        ({"2.bias": bias.view("i4")}, r"array 2\.bias must be of F32; got I32"),
        ({"2.bias": bias[:1]}, r"array 2\.bias must have the shape \(2,\); got \(1,\)"),
        ({"2.bias": bias[None]}, r"must have the shape \(2,\); got \(1, 2\)"),
        ({"2.bias": bias * np.float32(np.nan)}, r"parameter 2\.bias holds NaN or infinity"),
        ({"optimizer.slot 1": bias}, r"optimizer\.slot 1 must have the shape \(26,\); got \(2,\)"),
        ({"optimizer.slot 2": bias}, r"missing \[\], not of it \['optimizer.slot 2'\]"),
        ({"2.more": bias}, r"not of it \['2.more'\]"),
    ]
    text = header_of(content)["__metadata__"]["nbbp.model"]
    for change, message in changes:
        parameters = arrays | change
        if "finite" not in message and "NaN" not in message:
            altered = write(parameters, {"nbbp.format": persistence.FORMAT, "nbbp.model": text, "nbbp.sha256": ""})
        else:
            altered = rewritten(content, tensors=parameters)
        assert_refused(path, altered, message)
    del arrays["2.bias"]
    assert_refused(path, rewritten(content, tensors=arrays), r"missing \['2.bias'\], not of it \[\]")


def test_metadata(path, content):
    assert_refused(
        path, rewritten(content, **{"nbbp.format": "1"}), "its format is '1'; this version of nbbp reads '2'"
    )
    assert_refused(path, rewritten(content, **{"nbbp.format": "1" * 10000}), "its format is")
    assert_refused(path, rewritten(content, more="x"), "got more, nbbp.format")
    assert_refused(path, rewritten(content, **{"nbbp.sha256": "0" * 64}), "it was altered")
    assert_refused(
        path, write(read(content), {"nbbp.format": persistence.FORMAT}), "its metadata must be nbbp.format, nbbp.model"
    )
    numbers = {**header_of(content), "__metadata__": {"nbbp.format": 1}}
    assert_refused(path, with_header(numbers), "no safetensors file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[" * 1_000_000, "nested too deeply"),
        ('{"a":' * 500_000, "nested too deeply"),
        (" " * (description.LARGEST_TEXT + 1), "expected at most 4,194,304"),
        ("NaN", "holds NaN; expected finite numbers"),
        ("-Infinity", "holds -Infinity"),
        ("9" * 1_000_000, "an integer of 1,000,000 digits"),
        ('{"seed": 1, "seed": 2}', r"has a key twice among \['seed'\]"),
        ("[]", r"must be an object with 'network', 'loss', .*; got \[\]"),
        ("{}", "got one with no keys"),
        ("null", "got None"),
    ],
    ids=lambda text: text[:12],
)
def test_text_that_is_no_description(path, content, text, message):
    assert_refused(path, rewritten(content, text), message)


SYSTEM = [["input", [], 0], ["system", [0], 0]]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("version", 1, "must be an object with"),
        ("network", [], "the network must be an object"),
        ("network.n_in", None, "n_in of the network must be an integer; got None"),
        ("network.n_in", True, "n_in of the network must be an integer; got True"),
        ("network.n_in", 3.0, "n_in of the network must be an integer; got 3.0"),
        ("network.n_in", 0, "n_in of Sequential must be at least 1"),
        ("network.layers", {}, "the layers must be a list of at most 4,096"),
        ("network.layers", [], "got no layers"),
        ("network.layers", [0] * 4097, "at most 4,096; got 4,097"),
        ("network.layers.2", "Dense", "layer 2 must be an object whose 'type' is one of 'Dense', 'BatchNorm'"),
        ("network.layers.2.type", "Custom", "layer 2 must be an object"),
        ("network.layers.2.type", "__class__", "layer 2 must be an object"),
        ("network.layers.2.type", ["Dense"], "layer 2 must be an object"),
        ("network.layers.2.__class__", 3, "layer 2 must be an object with 'type', 'n_out'"),
        ("network.layers.2.n_out", 2.0, "n_out of Dense must be an integer"),
        ("network.layers.2.n_out", -1, "n_out of Dense must be at least 1"),
        ("network.layers.2.use_bias", 1, "use_bias of Dense must be True or False"),
        ("network.layers.2.name", 3, "name of Dense must be a str"),
        ("network.layers.2.activation", "relu", "activation of layer 2 must be an object with 'name', 'settings'"),
        ("network.layers.2.activation.name", "relo", "unknown activation 'relo'. Did you mean 'relu'"),
        ("network.layers.2.activation.name", "a" * 1_000_000, "unknown activation"),
        ("network.layers.2.activation.name", ["relu"], "must be a string"),
        ("network.layers.2.activation.settings.alpha", 1.0, "activation of layer 2 must be an object with no keys"),
        ("network.layers.1.activation.settings.alpha", "1.0", "alpha of layer 1 must be a number; got '1.0'"),
        ("network.layers.1.activation.settings.alpha", -1.0, "finite and not negative"),
        ("network.layers.1.activation.settings.alpha", 10**30, "an integer of 31 digits"),
        ("network.layers.0.activation.formula.value", SYSTEM, "the unknown operation 'system'; there are: input"),
        ("network.layers.0.activation.formula.derivative", [], "has 0 nodes"),
        ("network.layers.0.activation.formula.name", "relu", "the name of a built-in activation"),
        ("network.layers.0.activation.formula.name", None, "name of the activation must be a str"),
        ("network.layers.0.activation.formula.code", "import os", "must be a dict"),
        ("network.layers.0.activation.more", 1, "activation of layer 0 must be an object with 'formula'; got"),
        ("network.layers.0.weight_initializer", "zeros", "the weight initializer of layer 0 must be an object"),
        ("network.layers.0.weight_initializer.name", "Initializer", "unknown weight initializer of layer 0"),
        ("network.layers.0.weight_initializer.settings.scale", "1", "scale of VarianceScaling must be a number"),
        ("network.layers.0.weight_initializer.settings.fan", {}, "fan of VarianceScaling must be one of"),
        ("loss", "mse", "the loss must be an object"),
        ("loss", {"name": "os.system", "settings": {}}, "unknown loss 'os.system'"),
        ("loss", {"name": "mse", "settings": {"reduction": "mean"}}, "settings of the loss 'mse' must be an object"),
        ("loss", {"name": "mse", "settings": {"reduction": "max", "scale": 1}}, "reduction of mse must be"),
        ("loss", {"name": "mse", "settings": {"reduction": "sum", "scale": "1"}}, "scale of mse must be a number"),
        ("loss.formula.scale", None, "scale of quartic must be a number"),
        ("loss.formula.reduction", ["mean"], "reduction of quartic must be"),
        ("loss.formula.value", SYSTEM, "value of the loss 'quartic'"),
        ("optimizer.name", "Optimizer", "unknown optimizer 'Optimizer'"),
        ("optimizer.settings.learning_rate", 0, "learning_rate of Adam must be above 0"),
        ("optimizer.settings.betas", [0.9], "betas of Adam must be two numbers"),
        ("optimizer.settings.amsgrad", 0, "amsgrad of Adam must be True or False"),
        ("optimizer.settings.groups", {"*": {"eps": 1}}, "groups of Adam: .* sets 'eps'"),
        ("optimizer.settings.groups", {"*": []}, "groups of Adam must be a mapping"),
        ("optimizer.settings.groups", {f"{k}": {} for k in range(100_000)}, "has 100,000 groups; expected at most"),
        ("optimizer.settings._", 1, "settings of the optimizer 'adam' must be an object"),
        ("metrics", {}, "the metrics must be a list"),
        ("metrics", ["mse"], "the metric must be an object"),
        ("metrics", [{"name": "mse", "settings": {}}] * 2, "2 metrics are called 'mse'"),
        ("metrics", [{"name": "top_k_accuracy", "settings": {"k": HUGE}}], "lower k"),
        ("dtype", "float16", "dtype must be 'float32' or 'float64'; got 'float16'"),
        ("dtype", ["float32"], "dtype must be"),
        ("dtype", "float64", "array 0.weight must be of F64; got F32"),
        ("seed", -1, "seed must be an integer from 0"),
        ("seed", 1 << 63, "seed must be an integer from 0 to 9223372036854775807; got"),
        ("step", True, "step must be an integer"),
        ("step", 1 << 62, "step must be an integer from 0 to 281474976710655; got"),
        ("epoch", 1.5, "epoch must be an integer"),
        ("precision", "fp8", "precision must be one of 'float32', 'tf32'"),
        ("precision", ["bf16"], "precision must be one of"),
        ("precision", "fp16", "the loss scaling must be an object with 'initial'"),
        ("loss_scaling", {}, "the loss scaling must be an object with 'initial'"),
        ("loss_scale", [1.0, 0], "loss_scale must be null without loss scaling"),
    ],
)  # fmt: skip
def test_descriptions_with_something_wrong(path, content, place, value, message):
    assert_refused(path, rewritten(content, changed(described(content), place, value)), message)


def test_a_number_that_is_none_in_float64(path, content):
    text = json.dumps(described(content)).replace('"scale": 1.0', '"scale": 1e999')
    assert_refused(path, rewritten(content, text), "must be finite")


def changed(data, place, value):
    """The data with another value at a place such as "network.layers.2.type"."""
    data = copy.deepcopy(data)
    *way, last = place.split(".")
    inner = data
    for key in way:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[int(last) if isinstance(inner, list) else last] = value
    return data


def places(data, place=""):
    """Every place in the data but for the nodes of formulas, which tests/test_formula_data.py has."""
    if place:
        yield place[1:]
    if isinstance(data, (dict, list)) and not place.endswith(("value", "derivative")):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            if "*" not in str(key):
                yield from places(value, f"{place}.{key}")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["relu", "Dense", "", "["]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "settings", "[b-a]"]), inner),
    max_leaves=8,
)


@given(st.data())
def test_anything_anywhere_is_a_value_error_or_a_description(content, data):
    whole = described(content)
    place = data.draw(st.sampled_from(sorted(places(whole))))
    value = data.draw(ANYTHING)
    try:
        made = description.from_text(json.dumps(changed(whole, place, value)))
    except ValueError:
        return
    assert description.from_text(description.to_text(made)) == made


def test_patterns_of_groups_are_data_too(path, content):
    for pattern in ("[", "[b-a]", "(" * 5000, "[!]", "*a" * 2000, "\\", "\ud800"):
        whole = changed(described(content), "optimizer.settings.groups", {pattern: {"l1": 0.5}})
        path.write_bytes(rewritten(content, whole))
        with quickly():
            assert list(nbbp.load_model(path).optimizer.groups) == [pattern]
