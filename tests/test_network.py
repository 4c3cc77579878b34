"""Sequential: sizes, names and places of parameters, initial numbers, summary, refusals."""

import pickle

import numpy as np
import pytest

from nbbp.layers import Activation, Dense
from nbbp.network import Sequential


def three_layers(n_in=4):
    return Sequential([Dense(5, "relu"), Dense(3, use_bias=False), Dense(2, "softmax")], n_in=n_in)


def test_parameters_lie_one_after_the_other():
    net = three_layers()
    assert [(p.name, p.shape, p.offset, int(p.layer)) for p in net.parameters] == [
        ("0.weight", (4, 5), 0, 0),
        ("0.bias", (5,), 20, 0),
        ("1.weight", (5, 3), 25, 1),
        ("2.weight", (3, 2), 40, 2),
        ("2.bias", (2,), 46, 2),
    ]
    assert [p.stop for p in net.parameters] == [p.offset for p in net.parameters[1:]] + [net.n_parameters]
    assert [p.size for p in net.parameters] == [20, 5, 15, 6, 2]
    assert (net.n_in, net.n_out, net.n_parameters) == (4, 2, 48)


def test_view_is_the_same_memory():
    net = three_layers()
    flat = np.arange(48.0)
    bias = net.parameters[1].view(flat)
    assert bias.tolist() == [20.0, 21.0, 22.0, 23.0, 24.0]
    net.parameters[0].view(flat)[1, 2] = -1.0
    assert flat[7] == -1.0


def test_build_gives_a_sized_network_and_leaves_this_one():
    net = three_layers(n_in=None)
    assert net.n_in is None
    assert net.n_out == 2
    built = net.build(np.int32(4))
    assert built == three_layers()
    assert type(built.n_in) is int
    assert net.n_in is None
    assert built.build(4) is built
    for unknown in (lambda: net.parameters, lambda: net.n_parameters, lambda: net.initial_parameters(0)):
        with pytest.raises(ValueError, match=r"give n_in to Sequential, or call build\(n_in\)"):
            unknown()


def test_networks_are_values():
    net = three_layers()
    assert net == three_layers()
    assert hash(net) == hash(three_layers())
    assert net != three_layers(n_in=5)
    assert pickle.loads(pickle.dumps(net)) == net
    assert Sequential(layer for layer in net.layers).layers == net.layers


@pytest.mark.parametrize("dtype", ["float32", np.float64])
def test_initial_parameters(dtype):
    net = three_layers()
    flat = net.initial_parameters(7, dtype)
    assert flat.shape == (48,)
    assert flat.dtype == dtype
    assert flat.flags.c_contiguous
    for p in net.parameters:
        assert np.array_equal(p.view(flat), p.initializer(p.shape, 7, p.stream, dtype))
    assert np.array_equal(flat, net.initial_parameters(np.int64(7), dtype))
    assert not np.array_equal(flat, net.initial_parameters(8, dtype))
    assert not net.parameters[1].view(flat).any()
    # glorot_uniform: within sqrt(6 / (n_in + n_out)).
    weight = net.parameters[0].view(flat)
    assert 0.0 < np.abs(weight).max() <= np.sqrt(6.0 / 9.0) + 1e-7


def test_initial_float32_is_float64_rounded():
    net = three_layers()
    assert np.array_equal(net.initial_parameters(1), net.initial_parameters(1, "float64").astype(np.float32))


def test_each_parameter_has_a_stream_of_its_own_that_other_layers_do_not_move():
    net = three_layers()
    assert len({p.stream for p in net.parameters}) == len(net.parameters)
    with_bias = Sequential([Dense(5, "relu"), Dense(3), Dense(2, "softmax")], n_in=4)
    streams = {p.name: p.stream for p in with_bias.parameters}
    assert all(streams[p.name] == p.stream for p in net.parameters)


def test_initializers_are_held_to_shape_and_finite_numbers():
    def flat_weight(shape, seed, stream, dtype):
        return np.zeros(np.prod(shape), dtype)

    def broken(shape, seed, stream, dtype):
        return np.full(shape, np.inf, dtype)

    with pytest.raises(ValueError, match=r"initializer of 0.weight .* gave shape \(6,\); expected \(3, 2\)"):
        Sequential([Dense(2, weight_initializer=flat_weight)], n_in=3).initial_parameters(0)
    with pytest.raises(ValueError, match=r"initializer of 0.bias .* not finite"):
        Sequential([Dense(2, bias_initializer=broken)], n_in=3).initial_parameters(0)


def test_summary():
    layers = [Dense(128, Activation("leaky_relu", negative_slope=0.2)), Dense(10, name="head")]
    assert Sequential(layers, n_in=784).summary().splitlines() == [
        "Sequential, n_in = 784",
        "-" * 82,
        "Layer    Activation                      Output shape  Parameters  Bytes (float32)",
        "-" * 82,
        "0 Dense  leaky_relu(negative_slope=0.2)  (batch, 128)     100,480          401,920",
        "1 head   linear                          (batch, 10)        1,290            5,160",
        "-" * 82,
        "Total                                                     101,770          407,080",
    ]
    assert Sequential(layers, n_in=784).summary("float64").splitlines()[-1].split() == [
        "Total",
        "101,770",
        "814,160",
    ]


def test_summary_without_n_in_says_what_it_cannot_know():
    lines = three_layers(n_in=None).summary().splitlines()
    assert lines[0] == "Sequential, n_in = not known yet"
    assert lines[4].split()[-2:] == ["?", "?"]
    assert lines[5].split()[-2:] == ["15", "60"]
    assert lines[-1].split() == ["Total", "?", "?"]


LIST_EXPECTED = "Sequential takes a list of layers, such as [Dense(16, activation='relu'), Dense(2)]; "


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Sequential([]), ValueError, LIST_EXPECTED + "got no layers"),
        (lambda: Sequential("relu"), TypeError, LIST_EXPECTED + "got 'relu' (str)"),
        (lambda: Sequential(Dense(2)), TypeError, LIST_EXPECTED + "got Dense(n_out=2"),
        (lambda: Sequential(None), TypeError, LIST_EXPECTED + "got None (NoneType)"),
        (lambda: Sequential({"a": Dense(2)}), TypeError, LIST_EXPECTED + "got {'a'"),
        (
            lambda: Sequential([Dense(2), "relu"]),
            TypeError,
            "element 1 is 'relu' (str); did you mean Activation('relu'), or Dense(n_out, activation='relu')?",
        ),
        (
            lambda: Sequential([Activation("relu")]),
            ValueError,
            "Sequential takes at least one layer with parameters, such as Dense(2); got only: Activation",
        ),
        (lambda: Sequential([Dense]), TypeError, "(type); Dense is a class: call it"),
        (lambda: Sequential([64, 10]), TypeError, "element 0 is 64 (int); did you mean Dense(64)?"),
        (lambda: Sequential([None]), TypeError, LIST_EXPECTED + "element 0 is None (NoneType)"),
        (
            lambda: Sequential([Dense(2, name="a"), Dense(2, name="a")]),
            ValueError,
            "layers 0 and 1 are both named 'a'",
        ),
        (lambda: three_layers(0), ValueError, "n_in of Sequential must be at least 1; got 0"),
        (lambda: three_layers(-4), ValueError, "n_in of Sequential must be at least 1; got -4"),
        (lambda: three_layers(4.0), TypeError, "n_in of Sequential must be an integer; got 4.0 (float)"),
        (lambda: three_layers("4"), TypeError, "n_in of Sequential must be an integer; got '4' (str)"),
        (
            lambda: three_layers().build(3),
            ValueError,
            "this network takes 4 features per sample; build was given 3",
        ),
        (
            lambda: three_layers().build("4"),
            TypeError,
            "n_in of Sequential must be an integer; got '4' (str)",
        ),
        (
            lambda: three_layers().initial_parameters(0.5),
            TypeError,
            "seed must be an integer; got 0.5 (float)",
        ),
        (
            lambda: three_layers().initial_parameters(2**63),
            ValueError,
            "seed must fit a signed 64-bit integer",
        ),
        (
            lambda: three_layers().initial_parameters(0, "float16"),
            ValueError,
            "'float32' or 'float64'; got 'float16'",
        ),
        (lambda: three_layers().initial_parameters(0, None), ValueError, "'float32' or 'float64'; got None"),
        (
            lambda: three_layers().summary("big"),
            ValueError,
            "dtype must be 'float32' or 'float64'; got 'big'",
        ),
    ],
)
def test_refusals_say_what_was_expected_and_what_came(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
