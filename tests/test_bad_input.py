"""Whatever is thrown at a model: a result, or a ValueError or TypeError of nbbp's own, and then nothing has changed."""

import decimal
import fractions
import traceback
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nbbp
from nbbp.augmentation import Mixup, Noise, Shift

N_IN, N_CLASSES = 4, 3
PACKAGE = Path(nbbp.__file__).parent

random = np.random.default_rng(0)
X = random.standard_normal((6, N_IN)).astype(np.float32)
LABELS = random.integers(0, N_CLASSES, 6)


def make(loss):
    n_out = 1 if loss == "binary_crossentropy" else N_CLASSES
    layers = [nbbp.Dense(5, activation="relu"), nbbp.Dense(n_out)]
    model = nbbp.Model(nbbp.Sequential(layers, n_in=N_IN), loss=loss, metrics=("accuracy",))
    y = LABELS if loss == "crossentropy" else LABELS[:, None] % 2 if n_out == 1 else np.eye(3)[LABELS]
    model.fit(X, y, verbose=0)
    return model


MODELS = {loss: make(loss) for loss in ("crossentropy", "mse", "binary_crossentropy")}
START = {loss: model.parameter_vector.copy() for loss, model in MODELS.items()}


def state(model):
    session = model._session
    return session.parameters.tobytes(), [slot.tobytes() for slot in session.slots], session.step, session.epoch


def attempt(loss, call, reads_later=False):
    """`call` a model; None where it refuses, after making sure that it did so on purpose and nothing has changed.

    What `reads_later`, between epochs, may find something wrong when the model has trained already.
    """
    model = MODELS[loss]
    model.parameter_vector[:] = START[loss]
    before = state(model)
    try:
        return call(model)
    except nbbp.TrainingDiverged:
        assert np.isfinite(model.parameter_vector).all()
    except (ValueError, TypeError) as error:
        assert_on_purpose(error)
        assert reads_later or state(model) == before
    return None


def assert_on_purpose(error):
    """Raised by a line of nbbp's own that says so, not by what NumPy or Python stumble over."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert PACKAGE in Path(last.filename).parents, f"not nbbp's own error: {error!r}"
    assert last.line.startswith("raise"), f"not raised on purpose: {error!r}"
    assert len(str(error)) > 10


class Strange:
    """Looks like a sequence of numbers from afar."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        raise KeyError(index)

    def __iter__(self):
        return iter("abc")


class Unreadable:
    def __array__(self, *args, **kwargs):
        raise RuntimeError("cannot be read")


class OddShape:
    shape = ("a", None)
    dtype = "float32"
    ndim = 2


def named(strategy, name):
    """The same strategy under a short name: Hypothesis prints strategies whole, and these are long."""

    @st.composite
    def draw_it(draw):
        return draw(strategy)

    draw_it.__name__ = name
    return draw_it()


NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.sampled_from([np.float32(1), np.int8(1), np.float64("nan"), np.bool_(True), np.datetime64(0, "s"), 10**400]),
)
SCALARS = st.one_of(st.none(), NUMBERS, st.text(max_size=4), st.binary(max_size=4))
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner), max_leaves=12)
DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.unicode_string_dtypes(max_len=3),
    hnp.byte_string_dtypes(max_len=3),
    hnp.datetime64_dtypes(),
    hnp.array_dtypes(hnp.floating_dtypes(), max_size=2),
)
ANY_ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
OBJECTS = st.one_of(
    NESTED,
    ANY_ARRAYS,
    hnp.arrays(object, hnp.array_shapes(max_dims=2, max_side=4), elements=SCALARS),
    st.dictionaries(st.text(max_size=2), NUMBERS, max_size=3),
    st.sets(st.integers(), max_size=3),
    st.binary(max_size=20).map(memoryview),
    st.binary(max_size=20).map(bytearray),
    st.builds(object),
    st.sampled_from([Strange(), Unreadable(), OddShape(), int, dict, np, NotImplemented, ..., range(6), slice(3)]),
    NESTED.map(lambda value: lambda: value),
    st.lists(NESTED, max_size=3).map(lambda values: (value for value in values)),
    ANY_ARRAYS.map(lambda values: lambda: iter([values])),
)

OBJECTS = named(OBJECTS, "objects")

REAL = st.one_of(
    st.floats(-10, 10, width=32), st.floats(width=32), st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf, 3e38, 1e-45])
)


@np.errstate(over="ignore")
def laid_out(values, dtype, layout):
    return layout(values.astype(dtype))


#: Nearly right: a matrix with now and then a wrong width, number, dtype or layout.
FEATURES = st.builds(
    laid_out,
    hnp.arrays(np.float32, st.tuples(st.sampled_from([6] * 5 + [0, 1, 5]), st.sampled_from([N_IN] * 5 + [0, 1, 5])),
               elements=REAL, fill=st.just(0.5)),
    st.sampled_from(["f4", "f4", "f8", ">f4", "f2", "O"]),
    st.sampled_from([lambda a: a, lambda a: a[::-1], np.asfortranarray, lambda a: a.tolist(), lambda a: a[None]]),
)  # fmt: skip
LENGTHS = st.sampled_from([6] * 6 + [0, 1, 5, 7])
TARGETS = st.one_of(
    hnp.arrays(st.sampled_from(["i8", "i4", "u1", "u8", "f4", "f8", "?"]), LENGTHS, elements=st.integers(0, 1)),
    LENGTHS.flatmap(lambda n: hnp.arrays(np.int64, n, elements=st.integers(-1, 3))),
    hnp.arrays(np.float32, st.tuples(LENGTHS, st.integers(0, 4)), elements=REAL),
    st.permutations(range(6)).map(lambda order: np.eye(N_CLASSES, dtype=np.float32)[LABELS[order]]),
    hnp.arrays(np.float32, st.tuples(LENGTHS, st.just(1)), elements=st.integers(0, 1)),
)
WEIGHTS = st.one_of(st.none(), st.none(), hnp.arrays(np.float32, LENGTHS, elements=REAL), OBJECTS)
COUNTS = st.one_of(st.integers(-2, 8), st.sampled_from([10**9, 10**30, np.int32(3), np.uint8(2), 2.0, "2", None, True]))
LOSSES = st.sampled_from(list(MODELS))
ANY_X = named(st.one_of(FEATURES, FEATURES, OBJECTS), "any_x")
ANY_Y = named(st.one_of(TARGETS, TARGETS, OBJECTS), "any_y")


@settings(max_examples=600)
@given(LOSSES, ANY_X)
def test_predict(loss, x):
    for name in ("predict", "predict_proba"):
        if loss == "mse" and name == "predict_proba":
            continue
        again = state(MODELS[loss])
        out = attempt(loss, lambda model, name=name: getattr(model, name)(x))
        assert state(MODELS[loss])[1:] == again[1:]
        if out is not None:
            assert out.shape == (len(x) if hasattr(x, "__len__") else len(out), MODELS[loss].network.n_out)
            assert out.dtype == np.float32


@settings(max_examples=600)
@given(LOSSES, ANY_X, ANY_Y, WEIGHTS)
def test_evaluate(loss, x, y, weight):
    before = START[loss].tobytes(), *state(MODELS[loss])[1:]
    report = attempt(loss, lambda model: model.evaluate(x, y, sample_weight=weight))
    assert state(MODELS[loss]) == before
    assert report is None or list(report) == ["loss", "accuracy"]


@settings(max_examples=600)
@given(LOSSES, ANY_X, ANY_Y, WEIGHTS)
@example("crossentropy", X, np.array([0, 1, 2, 0, 1, 3]), None)
@example("crossentropy", X, np.array([0, 1, 2, 0, 1, -1]), None)
@example("mse", X, np.full((6, 3), np.nan, np.float32), None)
@example("crossentropy", np.full((6, 4), np.inf, np.float32), LABELS, None)
@example("crossentropy", X[:0], LABELS[:0], None)
def test_single_steps(loss, x, y, weight):
    attempt(loss, lambda model: model.train_step(x, y, weight))
    before = START[loss].tobytes(), *state(MODELS[loss])[1:]
    result = attempt(loss, lambda model: model.loss_and_gradients(x, y, weight))
    assert state(MODELS[loss]) == before
    if result is not None:
        assert [g.shape for g in result[1].values()] == [p.shape for p in MODELS[loss].parameters.values()]


@settings(max_examples=600)
@given(LOSSES, ANY_X, ANY_Y, WEIGHTS, COUNTS, COUNTS, st.booleans())
def test_fit(loss, x, y, weight, batch_size, epochs, shuffle):
    if type(epochs) is int and epochs > 8:
        epochs = 2  # all right, but nobody waits for it
    options = {"batch_size": batch_size, "epochs": epochs, "shuffle": shuffle, "verbose": 0}
    history = attempt(loss, lambda model: model.fit(x, y, sample_weight=weight, **options))
    assert history is None or history.epochs == list(range(1, int(epochs) + 1))


AUGMENTATIONS = st.lists(
    st.one_of(st.sampled_from([Noise(0.1), Noise(1e300), Mixup(), Shift((N_IN,), 1), Shift((2, 2), 1)]), OBJECTS),
    max_size=3,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": OBJECTS,
        "epochs": st.one_of(st.integers(-3, 3), NESTED.filter(lambda value: not isinstance(value, int))),
        "validation_data": st.one_of(OBJECTS, st.tuples(ANY_X, ANY_Y), st.tuples(ANY_X, ANY_Y, WEIGHTS)),
        "validation_split": st.one_of(OBJECTS, st.floats(-1, 2)),
        "shuffle": OBJECTS,
        "sample_weight": OBJECTS,
        "class_weight": st.one_of(OBJECTS, st.dictionaries(st.integers(-2, 4) | st.floats(), NUMBERS, max_size=3)),
        "callbacks": OBJECTS.filter(lambda value: not isinstance(value, Strange)),
        "verbose": OBJECTS.filter(
            lambda value: not isinstance(value, (int, float, complex, str, decimal.Decimal, fractions.Fraction))
        ),
        "augment": st.one_of(OBJECTS, AUGMENTATIONS),
    },
)


@settings(max_examples=600)
@given(OPTIONS)
def test_options_of_fit(options):
    validation = options.get("validation_data")
    batches = validation[0] if isinstance(validation, (tuple, list)) and validation else None
    reads_later = callable(batches) or hasattr(batches, "__iter__")
    attempt("crossentropy", lambda model: model.fit(X, LABELS, **{"verbose": 0} | options), reads_later)


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(st.just((X, LABELS)), st.tuples(ANY_X, ANY_Y), st.tuples(ANY_X, ANY_Y, WEIGHTS), OBJECTS), max_size=4
    )
)
def test_lists_of_batches(batches):
    attempt("crossentropy", lambda model: model.fit(batches, verbose=0))
    attempt("crossentropy", lambda model: model.evaluate(batches))


@settings(max_examples=300)
@given(ANY_X, ANY_Y)
def test_a_model_that_waits_for_its_size(x, y):
    model = nbbp.Model(nbbp.Sequential([nbbp.Dense(N_CLASSES)]), loss="crossentropy")
    try:
        model.fit(x, y, verbose=0)
    except nbbp.TrainingDiverged:
        pass
    except (ValueError, TypeError):
        assert model._session is None
        with pytest.raises(ValueError, match="no parameters yet"):
            model.predict(X)


@settings(max_examples=300)
@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("network", "loss", "optimizer", "metrics", "device", "dtype", "seed"), OBJECTS)
    )
)
def test_descriptions(wrong):
    right = {"network": MODELS["mse"].network, "loss": "mse"}
    try:
        nbbp.Model(**right | wrong)
    except (ValueError, TypeError) as error:
        assert_on_purpose(error)
