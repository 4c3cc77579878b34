"""No float64 arithmetic in float32 kernels but where it is meant; dtypes of results; NaN and infinity stay visible."""

import re
from collections import Counter

import numpy as np
import pytest
from engine_cases import ALL_ACTIVATIONS, ALL_LOSSES, DTYPES, features_for, label, model_of, small_model, targets_for
from numba.core.caching import NullCache

import nbbp
from nbbp import compiling, losses
from nbbp.cpu import kernels
from nbbp.layers import Activation, Dense

# --- machine code --------------------------------------------------------------------------------------------------

#: How kernels ask whether losses, which are float64, are finite.
FINITE = {"fsub", "fcmp", "vector fcmp", "call fabs", "vector call fabs", "call is.fpclass", "vector call is.fpclass"}
#: What a float32 kernel may do with float64 numbers, as LLVM names it ("vector" where over many numbers at once), and
#: why. Not listed: nothing. A gradient computed in float64 would show as a vector of it, or as one that is rounded
#: ("fptrunc").
ALLOWED = {
    "loss": (
        {"fpext", "vector fpext", "fadd", "vector fadd", "fmul", "fdiv", "sitofp"},
        "terms are added up in float64; a row's sum is multiplied by weight · scale and divided by the outputs",
    ),
    "crossentropy": (
        {"fpext", "vector fpext", "fadd", "vector fadd", "fsub", "fneg", "fmul", "fptrunc"},
        "terms are added up in float64; a row's sum is multiplied by weight · scale; a largest logit waits in a result",
    ),
    "nll": (
        {"fpext", "vector fpext", "fadd", "vector fadd", "fneg", "fmul"},
        "terms are added up in float64; a row's sum is multiplied by weight · scale",
    ),
    "metric": (
        {"fpext", "vector fpext", "fadd", "vector fadd", "fmul", "vector fmul", "fdiv", "call fabs", "vector call fabs"}
        | {"sitofp", "uitofp", "vector uitofp"},
        "errors are squared and added up in float64, sides counted; a row's sum is divided by its outputs",
    ),
    "update": (
        {"fptrunc", "vector fptrunc", *FINITE},
        "coefficients are read as float64 and rounded (a switch perhaps compared); are the losses and the norm finite?",
    ),
    "adafactor": (
        {"fpext", "vector fpext", "fadd", "vector fadd", "fmul", "vector fmul", "fdiv", "fcmp", "sitofp", "fptrunc"}
        | {"uitofp", "call sqrt", *FINITE},
        "squares are added up in float64; means, clipping and step size are numbers of a row or a whole parameter",
    ),
    "prepare_gradient": (
        {"vector fpext", "fpext", "vector fmul", "fmul", "vector fadd", "fadd", *FINITE},
        "squares are added up in float64; are the losses finite?",
    ),
    "finish_gradient": (
        {"fpext", "fadd", "vector fadd", "fmul", "fdiv", "call sqrt", "call pow", "fcmp", "sitofp", "fptrunc", *FINITE},
        "squares are added up in float64; the norm, the factor by which it clips and the spread of noise are numbers",
    ),
    **dict.fromkeys(
        ("dropout_forward", "stochastic_depth_forward", "stochastic_depth_backward"),
        ({"fpext", "fmul", "fadd", "fcmp", "fptosi"}, "the rate becomes an integer, once a call"),
    ),
    **dict.fromkeys(
        ("embedding_forward", "embedding_backward"),
        ({"fpext", "fcmp", "sitofp"}, "a category is compared with how many there are"),
    ),
    **dict.fromkeys(
        ("monitor_rows", "monitor_before", "monitor_after", "monitor_record"),
        (
            {"fpext", "vector fpext", "fadd", "vector fadd", "fsub", "vector fsub", "fmul", "vector fmul", "fdiv"}
            | {"fcmp", "sitofp", "uitofp", "vector uitofp", "call sqrt"},
            "statistics are added up in float64; they are numbers of a row, a tile or a layer, and not trained with",
        ),
    ),
    "snapshot": (FINITE, "asks whether losses, which are float64, are finite"),
    "update_loss_scale": (FINITE, "asks whether sums of squares, which are float64, are finite"),
    **dict.fromkeys(
        ("dropout_forward", "stochastic_depth_forward", "stochastic_depth_backward"),
        ({"fpext", "fmul", "fadd", "fcmp", "fptosi"}, "a rate becomes a limit of random integers, once for a tile"),
    ),
}
#: Instructions that move numbers and compute nothing.
MOVES = (
    "load", "store", "phi", "select", "bitcast", "getelementptr", "insertelement", "extractelement", "shufflevector",
    "insertvalue", "extractvalue", "inttoptr", "ret", "define", "declare",
)  # fmt: skip


def llvm_of(name: str, dtype: str, variant: int, monkeypatch) -> str:
    """The optimized LLVM IR of a kernel, compiled anew if it came from the cache, which keeps machine code only."""
    kernel = kernels.compiled(name, dtype, variant)
    if kernel.cache_hits:
        monkeypatch.setattr(compiling, "_cache_of", lambda function: NullCache())
        kernel = kernels._factories[name][0](np.dtype(dtype).type(0), variant)
    text = kernel.inspect_llvm()
    assert "\ndefine " in text
    return text


def float64_work(text: str) -> Counter:
    """How often which instruction takes or gives float64 numbers."""
    found: Counter = Counter()
    for line in text.splitlines():
        match = re.match(r"\s*(?:%\S+ = )?(?:tail |notail |musttail )?(\w+) (.*)", line)
        if match is None or match[1] in MOVES or "double" not in match[2]:
            continue
        kind = match[1]
        if kind == "call":
            callee = re.search(r"@\"?([\w.$]+)\"?\(", match[2])[1]
            if callee.startswith(("llvm.masked.", "llvm.lifetime", "llvm.memcpy", "llvm.memset")):
                continue
            kind = "call " + re.sub(r"\.v?\d*f64.*", "", callee.removeprefix("llvm."))
            if kind == "call vector.reduce.fadd":
                kind = "vector fadd"
        found[("vector " if " x double>" in match[2] and not kind.startswith("vector") else "") + kind] += 1
    return found


@pytest.mark.parametrize(("name", "dtype", "variant"), list(kernels.everything("float32")))
def test_float32_kernel_computes_in_float32(name, dtype, variant, monkeypatch):
    allowed, reason = ALLOWED.get(name, (set(), "nothing here needs float64"))
    found = float64_work(llvm_of(name, dtype, variant, monkeypatch))
    assert set(found) <= allowed, f"float64 in the float32 kernel {name!r}: {dict(found)}; meant: {reason}"
    if name == "crossentropy":
        assert found["fptrunc"] <= 2, "a row's largest logit is the only number to be rounded"


def test_the_scan_finds_float64_arithmetic(monkeypatch):
    """Where it is known to be, and not where numbers are only moved."""
    by_hand = "  %a = fmul double %x, %y\n  %b = tail call fast <8 x double> @llvm.sqrt.v8f64(<8 x double> %z)\n"
    assert float64_work(by_hand) == {"fmul": 1, "vector call sqrt": 1}
    moved = "define void @f() {\n  %1 = load double, ptr %p\n  store double %1, ptr %q\n  ret void\n}\n"
    assert not float64_work(moved)
    assert {"fmul", "fsub"} & set(float64_work(llvm_of("softmax_backward", "float64", 0, monkeypatch)))


def test_every_exception_is_a_kernel():
    assert set(ALLOWED) <= {name for name, _, _ in kernels.everything("float32")}
    assert all(len(reason) > 20 for _, reason in ALLOWED.values())


# --- dtypes of results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["float32", "float64", "int16", "float16"])
def test_every_public_array_has_the_dtype_of_the_model(dtype, given):
    loss = losses.Crossentropy()
    model = small_model("tanh", loss, dtype, metrics=("accuracy",))
    x, y = (4 * features_for(70, 5)).astype(given), targets_for(loss, 70, 3)
    history = model.fit(x, y, epochs=2, verbose=0, validation_split=0.2)
    arrays = [model.predict(x), model.predict_proba(x), model.predict(x.astype(dtype)), model.parameter_vector]
    loss_value, gradients = model.loss_and_gradients(x, y)
    arrays += [*model.parameters.values(), *gradients.values()]
    assert {array.dtype.name for array in arrays} == {dtype}
    assert all(array.flags.c_contiguous for array in arrays)
    numbers = [loss_value, model.train_step(x, y), *model.evaluate(x, y).values()]
    numbers += [value for name in ("loss", "accuracy", "val_loss", "val_accuracy") for value in history[name]]
    assert {type(number) for number in numbers} == {float}


def test_memory_of_a_float32_model_is_float32():
    """Parameters, optimizer slots, and the workspaces of all its programs."""
    model = small_model("tanh", losses.Crossentropy(), "float32", "adam")
    x, y = features_for(9, 5, "float32"), targets_for(model.loss, 9, 3)
    model.fit(x, y, verbose=0)
    model.predict(x)
    session = model._session
    arrays = [session.parameters, session.good_parameters, *session.slots]
    for bound in session._bound.values():
        arrays += [bound.workspace, bound.scratch, bound.settings]
    assert {array.dtype.name for array in arrays} == {"float32"}


def test_float32_numbers_are_those_of_float32():
    """A product of float32 numbers that float64 would have kept: the digits show which it was."""
    model = model_of([Dense(1)], 1, losses.MSE(), "float32")
    third = np.float32(1 / 3)
    model.parameters["0.weight"][:], model.parameters["0.bias"][:] = third, 0.0
    assert model.predict(np.array([[third]], np.float32))[0, 0] == third * third
    assert model.predict([[1 / 3]])[0, 0] == third * third


# --- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["0.weight", "0.bias", "1.weight", "1.bias"])
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_nan_in_a_parameter_reaches_the_output(activation, where, dtype):
    model = model_of([Dense(20, activation), Dense(20, activation)], 5, losses.MSE(), dtype)
    model.parameters[where].reshape(-1)[-1] = np.nan
    for n in (1, 70):
        out = model.predict(features_for(n, 5, dtype))
        # A unit's NaN is a number of its own column, and of every column behind a softmax or another layer.
        columns = slice(None) if activation.row_wise or where[0] == "0" else slice(-1, None)
        assert np.isnan(out[:, columns]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=label)
def test_nan_in_a_parameter_reaches_loss_and_gradients(loss, dtype):
    model = small_model("relu", loss, dtype)
    model.parameters["2.bias"][0] = np.nan
    x, y = features_for(6, 5, dtype), targets_for(loss, 6, 3)
    value, gradients = model.loss_and_gradients(x, y)
    assert np.isnan(value)
    # What the targets alone decide stays a number: nll's gradient does not see its predictions, hinge's but their side.
    assert loss.name in ("nll", "hinge") or np.isnan(gradients["2.bias"][0])
    assert np.isnan(model.evaluate(x, y)["loss"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("activation", "below", "above"),
    [
        ("linear", -np.inf, np.inf),
        ("relu", 0.0, np.inf),
        (Activation("leaky_relu", negative_slope=0.5), -np.inf, np.inf),
        ("elu", -1.0, np.inf),
        ("sigmoid", 0.0, 1.0),
        ("tanh", -1.0, 1.0),
        ("softplus", 0.0, np.inf),
        ("hard_tanh", -1.0, 1.0),
        ("hard_sigmoid", 0.0, 1.0),
        ("softsign", -1.0, 1.0),
    ],
    ids=str,
)
def test_infinity_in_a_bias(activation, below, above, dtype):
    model = model_of([Dense(2, activation)], 3, losses.MSE(), dtype)
    model.parameters["0.bias"][:] = [-np.inf, np.inf]
    np.testing.assert_array_equal(model.predict(features_for(4, 3, dtype)), [[below, above]] * 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_is_infinite_and_fit_says_so(dtype):
    model = small_model("linear", losses.MSE(), dtype, nbbp.optimizers.SGD(1e30))
    x, y = features_for(6, 5, dtype), targets_for(model.loss, 6, 3)
    with pytest.raises(nbbp.TrainingDiverged, match="turned"):
        model.fit(x, y, epochs=50, verbose=0)
    assert np.isfinite(model.parameter_vector).all()
    assert np.isfinite(model.evaluate(x, y)["loss"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS, ids=label)
def test_large_finite_numbers_stay_finite_through_every_activation(activation, dtype):
    model = model_of([Dense(4, activation)], 2, losses.MSE(), dtype)
    model.parameters["0.weight"][:] = [[1e4, -1e4, 1e4, 0.0], [1e4, 1e4, -1e4, 1e4]]
    x = np.array([[1.0, 1.0], [-1.0, 1.0], [0.5, -0.5]], dtype)
    assert np.isfinite(model.predict(x)).all()
    loss, gradients = model.loss_and_gradients(x, np.zeros((3, 4)))
    assert np.isfinite(loss)
    assert all(np.isfinite(values).all() for values in gradients.values())
