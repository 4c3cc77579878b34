"""Which of the paths of nbbp/cuda/paths.py a program takes, by its task, its size and its precision."""

import dataclasses

import numpy as np
import pytest
from mixed_cases import LOSS, model_in

from nbbp import ops, tiling
from nbbp.cuda import chain, chains, launch
from nbbp.cuda.kernels import FORWARD, TRANSPOSED
from nbbp.layers import Dense
from nbbp.programs import training_program

LAYERS = [Dense(6, "relu"), Dense(3)]
PRECISIONS = ("float32", "tf32", "bf16", "fp16")


def launches_of(bound):
    """Names of what a run launches, or a step, without ops that surround the layers."""
    launches = bound.launches if bound._whole_run is None else [bound._whole_run]
    return [launch.name for launch in launches]


@pytest.fixture(params=PRECISIONS)
def session(request):
    return model_in(request.param, LAYERS, "adam", n_in=5, device="cuda")._session


def test_small_chains_train_in_one_block(session):
    """But for 16 bits, whose products are rounded."""
    launches = launches_of(session.training(3, True, False))
    if session.precision in ("float32", "tf32"):
        assert launches == ["train_chain"]
    else:
        assert launches.count("tensor_product") == 5


def test_larger_chains_train_by_tiles_in_float32_and_by_tensor_cores_otherwise(session, monkeypatch):
    monkeypatch.setattr(chain, "MOST_WORK", 0)
    launches = launches_of(session.training(3, True, False))
    if session.precision == "float32":
        assert launches == ["fused_gradient", "update_by_parts"]
    else:
        assert launches.count("tensor_product") == 5
        assert not {"product", "fused_gradient"} & set(launches)


def test_predictions(session):
    launches = launches_of(session.bind(session.prediction(4)))
    if session.precision == "tf32":
        assert [name for name in launches if "product" in name] == ["tensor_product"] * 2
    else:
        assert launches == ["fused_forward" if session.precision == "float32" else "tensor_chain"]


def test_evaluation(session):
    """The layers of float32 in one launch; what comes behind them is an op each."""
    model = model_in(session.precision, LAYERS, "adam", n_in=5, device="cuda")
    model.evaluate(np.zeros((4, 5), np.float32), np.zeros(4, np.int64))
    (bound,) = (bound for key, bound in model._session._bound.items() if key[0] == "evaluate")
    launches = launches_of(bound)
    assert launches.count("fused_forward") == (session.precision == "float32")
    assert launches.count("tensor_product") == (0 if session.precision == "float32" else 2)
    assert launches[-1] == "next_step"


# what is a chain ------------------------------------------------------------------------------------------------------


def program():
    model = model_in("float32", LAYERS, "adam", n_in=5)
    return training_program(model.network, LOSS, model.optimizer, (), 3, True, False, plan=tiling.WHOLE)


def is_chain(program):
    return chains.training_chain(program, np.array(program.settings)) is not None


def is_product(op, layout):
    return op.kernel == "product" and launch.layout_of(op) == layout


@pytest.mark.parametrize("layout", [FORWARD, TRANSPOSED])
def test_products_that_round_their_operands_are_no_chains(layout):
    changed = program()
    assert is_chain(changed)
    number = next(number for number, op in enumerate(changed.ops) if is_product(op, layout))
    changed.ops[number] = dataclasses.replace(changed.ops[number], variant=ops.BF16)
    assert not is_chain(changed)


@pytest.mark.parametrize("layout", [0, 1, 3])
def test_layouts_of_the_cpu_do_not_matter(layout):
    """A product forward is one however the CPU reads its weight; on the way back it means checkpoints, and no chain."""
    changed = program()
    forward = [op for op in changed.ops if is_product(op, FORWARD)]
    for op in forward:
        op.columns[ops.LAYOUT] = layout
    assert len(forward) == 2
    assert is_chain(changed)
    (loss_row,) = changed.loss_rows()
    changed.ops.insert(loss_row + 1, forward[0])
    assert not is_chain(changed)
