"""Formulas as data: compared, pickled, written as JSON, and read back with nothing taken on trust."""

import copy
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from formula_cases import quartic, swish
from hypothesis import given
from hypothesis import strategies as st

import nbbp
from nbbp.formulas import CustomActivation, CustomLoss
from nbbp.layers import Dense


def test_to_data_and_back_through_json():
    activation = nbbp.activation(lambda z: np.where(z > -np.inf, swish(z), np.inf), name="guarded")
    loss = nbbp.loss(quartic, reduction="sum", scale=3.0)
    for made in (activation, loss):
        data = json.loads(json.dumps(made.to_data(), allow_nan=False))
        again = type(made).from_data(data)
        assert again == made
        assert again.formula.value is made.formula.value
        assert again.to_data() == made.to_data()
        assert copy.deepcopy(made) == made
        assert pickle.loads(pickle.dumps(made)) == made


GOOD = nbbp.activation(swish).to_data()


def changed(**parts):
    return {**GOOD, **parts}


Z = ["input", [], 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "must be a dict with name, value, derivative; got NoneType"),
        ({"name": "x"}, r"got \['name'\]"),
        (changed(code="import os"), "must be a dict"),
        (changed(value=3), "value of the activation 'swish' must be a list of nodes; got int"),
        (changed(value=[]), "has 0 nodes; expected 1 to 2,000"),
        (changed(value=[Z] * 2001), "has 2,001 nodes"),
        (changed(value=[Z, ["system", [0], 0]]), "node 1 has the unknown operation 'system'; there are: input, "),
        (changed(value=[Z, [["exp"], [0], 0]]), "unknown operation"),
        (changed(value=[Z, ["exp", [0]]]), r"node 1 is \['exp', \[0\]\]; expected \[operation, arguments, number\]"),
        (changed(value=[Z, "exp"]), "node 1 is 'exp'"),
        (changed(value=[Z, ["exp", [1], 0]]), "node 1 takes 1; expected the position of an earlier node"),
        (changed(value=[Z, ["exp", [-1], 0]]), "node 1 takes -1"),
        (changed(value=[Z, ["exp", [True], 0]]), "node 1 takes True"),
        (changed(value=[Z, ["exp", [0.0], 0]]), "node 1 takes 0.0"),
        (changed(value=[Z, ["exp", [0, 0], 0]]), r"exp takes 1 arguments; got \[0, 0\]"),
        (changed(value=[Z, ["exp", [0], 2]]), "node 1 has the number 2; only inputs and constants"),
        (changed(value=[Z, ["constant", [], float("nan")]]), "expected a finite one"),
        (changed(value=[Z, ["constant", [], "1.0"]]), "has the number '1.0'"),
        (changed(value=[Z, ["constant", [], True]]), "has the number True"),
        (changed(value=[Z, ["constant", [], 10**400]]), "has the number 1"),
        (changed(value=[Z, Z]), "a formula has its input 0 first, once"),
        (changed(value=[["input", [], 1]]), "a formula has its input 0 first"),
        (changed(value=[["constant", [], 1.0]]), "a formula has its input 0 first"),
        (changed(derivative=[Z, ["exp", [5], 0]]), "derivative of the activation 'swish': node 1 takes 5"),
        (changed(name="relu"), "built-in"),
        (changed(name="a" * 61), "1 to 60"),
        (changed(name=5), r"name of the activation must be a str; got 5 \(int\)"),
        (changed(name=["tanh"]), "name of the activation must be a str"),
    ],
)
def test_data_that_is_no_formula(data, message):
    with pytest.raises(ValueError, match=message):
        CustomActivation.from_data(data)


def test_data_of_a_loss_is_checked_too():
    data = nbbp.loss(quartic).to_data()
    with pytest.raises(ValueError, match="inputs 0 to 1 first"):
        CustomLoss.from_data({**data, "value": [Z, ["exp", [0], 0]]})
    with pytest.raises(ValueError, match="reduction"):
        CustomLoss.from_data({**data, "reduction": "os.system"})
    with pytest.raises(ValueError, match="a loss must be a dict"):
        CustomLoss.from_data(GOOD)
    with pytest.raises(ValueError, match="scale of quartic must be a number; got '1'"):
        CustomLoss.from_data({**data, "scale": "1"})
    for scale in (10**400, -(10**400), float("inf")):
        with pytest.raises(ValueError, match="scale of quartic must be finite"):
            CustomLoss.from_data({**data, "scale": scale})
    with pytest.raises(ValueError, match="must be finite"):
        nbbp.losses.MSE(scale=10**400)
    nested = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError, match="recursion"):
        CustomLoss.from_data({**data, "name": nested})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["input", "exp", "constant", "nan", "mean", "relu"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@given(st.data(), st.sampled_from([nbbp.activation(swish), nbbp.loss(quartic)]))
def test_any_other_data_is_a_value_error(drawing, made):
    data = made.to_data()
    for key in drawing.draw(st.sets(st.sampled_from(sorted(data)), min_size=1, max_size=2)):
        data[key] = drawing.draw(JSON)
    try:
        again = type(made).from_data(data)
    except ValueError:
        return
    assert json.dumps(again.to_data())
    value = again.formula.value
    assert isinstance(value(*[np.float64(0.5)] * value.__code__.co_argcount), float)


IN_ANOTHER_PROCESS = """
import pickle, sys
import numpy as np
model = pickle.loads(sys.stdin.buffer.read())
x = np.linspace(-1, 1, 12).reshape(4, 3)
print(model.train_step(x, x[:, :2]))
print(model.predict(x).tolist())
"""


def test_a_model_goes_to_another_process():
    layers = [Dense(4, nbbp.activation(lambda z: np.sin(z) * 2)), Dense(2)]
    model = nbbp.Model(nbbp.Sequential(layers, n_in=3), nbbp.loss(quartic), dtype="float64")
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        input=pickle.dumps(model),
        capture_output=True,
        timeout=300,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    loss, predicted = done.stdout.decode().splitlines()
    x = np.linspace(-1, 1, 12).reshape(4, 3)
    assert float(loss) == model.train_step(x, x[:, :2])
    assert json.loads(predicted) == model.predict(x).tolist()
