"""The roofline in its smallest setting, the costs that it reckons with, and the floors that follow from them."""

import dataclasses
import json

import numpy as np
import pytest

from nbbp import ops
from nbbp.program import Op, Place
from profiling import op_costs, roofline, roofline_picture, single_ops
from profiling.cases import Case
from profiling.op_costs import Cost

SMALL = Case((5, 7, 4, 3), 6, 8, 1.0)


def test_costs_of_products_are_those_of_their_operands():
    columns = {ops.N_IN: 7, ops.N_OUT: 4, ops.X: Place("x")}
    for contracts in (0, 1):
        cost = op_costs.cost(Op("product", 0, {**columns, ops.CONTRACTS_ROWS: contracts}), 6, 48)
        assert cost == Cost(2 * 6 * 7 * 4, 4 * (6 * 7 + 6 * 4 + 7 * 4), 4 * (6 * 7 + 6 * 4 + 7 * 4))
    adam = op_costs.cost(Op("update", 0, {ops.N_IN: 10, ops.N_OUT: 20, ops.SLOT_STRIDE: 8}), 6, 48)
    assert adam == Cost(13 * 80, 7 * 4 * 80, 4 * 4 * 80)
    gather = op_costs.cost(Op("gather", 0, {ops.N_OUT: 5}), 6, 48)
    assert gather == Cost(0, 4 * 6 * 5 * 2 + 8 * 6, 4 * 6 * 5 + 4 * 48 * 5)


def test_every_op_of_a_step_has_a_name_and_a_cost():
    training = roofline.Training(SMALL)
    program = training.bound.program
    found = op_costs.groups(program)
    assert list(found) == [
        "gather", "forward 1", "forward 2", "forward 3", "crossentropy", "input gradient 3",
        "weight gradient 3", "input gradient 2", "weight gradient 2", "weight gradient 1", "Adam",
    ]  # fmt: skip
    assert sorted(row for rows in found.values() for row in rows) == list(range(len(program.ops)))
    costs = {name: op_costs.total(program, rows, len(training.x)) for name, rows in found.items()}
    assert costs["forward 2"].flops == costs["input gradient 2"].flops == 2 * 6 * 7 * 4
    assert costs["weight gradient 1"].flops == 2 * 6 * (5 + 1) * 7  # the bias is a row
    assert costs["Adam"].flops == 13 * SMALL.n_parameters


def test_a_weight_gradient_over_many_rows_is_one_too():
    training = roofline.Training(Case((300, 300, 3), 256, 8, 1.0))
    program = training.bound.program
    rows = op_costs.groups(program)["weight gradient 1"]
    assert {program.ops[row].kernel for row in rows} == {"deep_product"}
    assert op_costs.total(program, rows, len(training.x)).flops == 2 * 256 * (300 + 1) * 300


def test_panels_of_a_wide_weight_are_one_product():
    training = roofline.Training(Case((300, 256, 3), 4, 8, 1.0))
    program = training.bound.program
    rows = op_costs.groups(program)["weight gradient 1"]
    assert len(rows) == 4
    expected = Cost(2 * 4 * 301 * 256, *[4 * (4 * 301 + 4 * 256 + 301 * 256)] * 2)
    assert op_costs.total(program, rows, 32) == expected


def test_chosen_ops_run_alone_in_their_tiles():
    training = roofline.Training(SMALL)
    bound = training.bound
    [row] = op_costs.groups(bound.program)["forward 2"]
    forward = bound.program.ops[row].columns
    x = single_ops.inside(bound, forward[ops.X].buffer, 7)
    y = single_ops.inside(bound, forward[ops.Y].buffer, 4)
    x[:], y[:] = np.random.default_rng(0).standard_normal((6, 7)), np.nan
    before = training.session.parameters.copy()
    bound.tiles, bound.phases = single_ops.only(bound, [row])
    bound.run(6)
    weight, bias = before[42:70].reshape(7, 4), before[70:74]
    np.testing.assert_allclose(y, np.maximum(x @ weight + bias, 0), rtol=1e-5, atol=1e-6)
    assert training.session.parameters.tobytes() == before.tobytes()


def test_a_network_that_trains_otherwise_is_not_timed(monkeypatch):
    monkeypatch.setattr(roofline, "reference_losses", lambda *arguments: [1.0] * roofline.VALIDATION_STEPS)
    with pytest.raises(AssertionError, match="5-7-4-3"):
        roofline.Training(SMALL)


def results():
    op = {"microseconds": 10.0, "flops": 1e5, "traffic": 1e3, "footprint": 1e3}
    return {
        "sgemm": {"SciPy": 50.0, "JAX": 100.0},
        "bandwidth": {"1000": {"copy": 1e11, "add": 5e10}, "100000": {"copy": 1e9, "add": 1e10}},
        "caches": {"L1": 2000, "L2": 20_000},
        "networks": {
            "one": {"step": 30.0, "ops": {"forward 1": op, "forward 2": {**op, "microseconds": 12.0}}},
            "two": {"step": 20.0, "ops": {"Adam": {**op, "flops": 10.0, "traffic": 1e4, "footprint": 1e4}}},
        },
    }


def test_the_floor_is_the_longer_of_arithmetic_and_memory():
    measured = results()
    one, two = measured["networks"]["one"]["ops"], measured["networks"]["two"]["ops"]
    assert roofline.floor(measured, one["forward 1"]) == (pytest.approx(1.0), "arithmetic")
    least, limit = roofline.floor(measured, two["Adam"])
    assert least == pytest.approx(1e6 * 1e4 / 10**10.5)  # half-way between the two sizes, on both logarithmic scales
    assert limit == "L2"
    rates = roofline_picture.levels(measured)
    assert tuple(rates) == ("L1", "L2", "memory")
    at = [np.sqrt(1000 * 2000), np.sqrt(2000 * 20_000), 100_000]  # on a line from 1e11 at 1000 to 1e10 at 100,000
    np.testing.assert_allclose(list(rates.values()), [1e11 * (1000 / size) ** 0.5 for size in at])


def test_the_furthest_from_the_floor_are_of_different_kinds():
    assert roofline.furthest(results()) == [("two", "Adam"), ("one", "forward 2")]
    text = roofline.table({**results(), **roofline.question.conditions()})
    assert "| one: forward 2 | 12.0 | 1.00 | 12.00× | arithmetic | 8.33 | 0.0833 | 36.7 % |" in text
    assert "2. one, forward 2: 12.0 µs, 12.00 times its floor of 1.00 µs (arithmetic)" in text


def test_bandwidth_of_both_loops():
    rates = roofline.bandwidth(1 << 16, 0.01)
    assert set(rates) == {"copy", "add"}
    assert all(1e9 < rate < 1e13 for rate in rates.values())


def test_smallest_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(roofline.machine, "sgemm_rates", lambda n_threads: {"SciPy": 100.0})
    monkeypatch.setattr(roofline, "NETWORKS", (dataclasses.replace(SMALL, n_steps=3000),))
    monkeypatch.setattr(roofline, "QUICK", (0,))
    monkeypatch.setattr(roofline, "QUICK_SIZES", (1 << 14, 1 << 17))
    assert roofline.main(["--quick", "--output", str(tmp_path)]) == 0
    measured = json.loads((tmp_path / "roofline.json").read_text(encoding="utf-8"))
    ops_of_step = measured["networks"][SMALL.name]["ops"]
    step = measured["networks"][SMALL.name]["step"]
    assert all(0 < op["microseconds"] < step for op in ops_of_step.values())
    assert f"| {SMALL.name}: Adam |" in capsys.readouterr().out
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
