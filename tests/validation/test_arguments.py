"""What is said of wrong arguments: a table of functions and bad values.

Of every bad value the error must name the argument in backticks and show what
was received; and whatever the function works on must be as it was.
"""

import contextlib
import functools
import re
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_istar
from keras_istar._src.validation import see_guide

ISTAR = keras_istar.IStarRegularization
COSINE = keras_istar.CosineRegularization
ISOBN = keras_istar.IsotropicBatchNormalization
NAN, INF, HUGE = np.nan, np.inf, 10**400
POINTS = np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32")
DATA = np.random.default_rng(1).normal(size=(8, 6, 4)).astype("float32")
TEXTS = ["a good film", "the plot is bad", "fine", "not very good"]


class Unknown:
    """Nothing that anybody expects."""

    def __repr__(self):
        return "<unknown>"


UNKNOWN = Unknown()


class Bad(NamedTuple):
    """A bad value, and a piece of text that shows it."""

    value: Any
    piece: str


def pieces(value):
    """What may show a value: itself, its first item, its type or its shape."""
    yield repr(value)[:100]
    yield f"of type {type(value).__name__}"
    if isinstance(value, list) and value:
        yield f"{value[0]!r} in "
    if isinstance(value, (int, float, list, np.ndarray)) and value is not HUGE:
        with contextlib.suppress(ValueError):  # Of rows that differ in length.
            yield f"shape={np.shape(value)}"
            yield f"shape {np.shape(value)}"


def check(function, kwargs, argument, bad):
    """Asserts that `function` refuses a bad value of an argument."""
    value, *expected = bad if isinstance(bad, Bad) else (bad,)
    wrong = {argument: value}
    if argument == "kwargs":
        argument, wrong = "**kwargs", value
    with pytest.raises(ValueError) as error:
        function(**{**kwargs, **wrong})
    rule, found, received = without_frame(error).partition("Received: ")
    assert f"`{argument}`" in rule and found, (value, str(error.value))
    assert any(x in received for x in expected or pieces(value)), (
        value,
        str(error.value),
    )


def without_frame(error):
    """What was said, without what Keras says around it."""
    text = str(error.value)
    framed = re.search("\x1b\\[1m(.*)\x1b\\[0m", text, re.DOTALL)
    return framed[1] if framed else text


NO_REALS = [None, "1", UNKNOWN, True, 1j, [0.1], np.ones(2), {}]
NO_REALS += [NAN, INF, -INF, 1e39, -1e39, HUGE]
NO_FRACTIONS = [*NO_REALS, -0.1, 1.1, 9]
NO_OPEN_FRACTIONS = [*NO_FRACTIONS[1:], 0, 1]  # Some of them may be None.
NO_STATES = [
    *(Bad(None, "shape=None"), Bad([], "shape=None")),
    *(np.ones((4, 1)), np.ones((4, 0))),
    Bad(np.ones((4, 5), "complex64"), "dtypes=['complex64']"),
    Bad(np.ones((4, 5), "int32"), "dtypes=['int32']"),
    Bad(np.ones((4, 5), bool), "dtypes=['bool']"),
    Bad([POINTS, POINTS.astype("float16")], "['float32', 'float16']"),
    Bad([POINTS, POINTS[..., :3]], "widths=[5, 3]"),
]
NO_COUNTS = ["1", UNKNOWN, True, 1.0, 0.5, NAN, INF, [1], 0, -1, 2**31, HUGE]
NO_SEEDS = ["1", UNKNOWN, True, 1.0, NAN, [1], -1, 2**31, HUGE]
NO_CHOICES = ["yes", UNKNOWN, 2, -1, NAN, [1], HUGE]
NO_TENSORS = [
    *("text", b"text", UNKNOWN, len, {"a": 1}),
    *([[1, 2], [3]], [[HUGE, 1], [2, 3]], [object()]),
    np.ones((4, 5), "complex64"),
    np.array([["a", "b"], ["c", "d"]]),
    np.array([[1, None], [2, 3]]),
    keras.Input((5,), name="symbolic"),
    tf.sparse.from_dense([[1.0, 0.0], [0.0, 1.0]]),
]
NO_POINTS = [None, *NO_TENSORS, 1.0, []]
NO_POINTS += [np.ones(shape) for shape in [(5,), (4, 1), (4, 0)]]
NO_MASKS = [np.ones(shape) for shape in [(), (0,), (4,), (3, 4), (4, 3, 5)]]
LOPSIDED = np.eye(5)
LOPSIDED[0, 1] = 0.5
NO_COVARIANCES = [
    *(None, *NO_TENSORS, 1.0, []),
    *map(np.ones, [(5,), (5, 4), (5, 5, 5), (1, 1), (0, 0)]),
    Bad(np.full((5, 5), NAN), "NaN or infinity in"),
    Bad(np.diag([1, 1, INF, 1, 1]), "NaN or infinity in"),
    Bad(LOPSIDED, "[0, 1]=0.5"),
    Bad(np.diag([2.0, 1.0, 1.0, -0.5, 1.0]), "[3, 3]=-0.5"),
]
NO_TARGETS = [*NO_COVARIANCES, np.eye(4)]
NO_LAYER_OPTIONS = [
    *({"strenght": 1.0}, {"dtype": "float7"}, {"dtype": 5}),
    *({"name": 5}, {"trainable": "yes"}),
]
NO_INTERVALS = [
    *("half", UNKNOWN, True, 1j, NAN, INF, -INF, -0.1, HUGE, {}, [], ()),
    *((0.5,), (0.1, 0.2, 0.3), (0.5, 0.2), (-0.1, 0.2), (0.1, NAN)),
    *((0.1, HUGE), ("0", "1"), (False, True), {"low": 0.1}, np.ones(2)),
    *([None], [0.1, "0"], [[0.1, 0.2]], [(0.5, 0.2)]),
]
ABOVE_ONE = [1.1, (0.2, 1.1), [0.2, 1.1]]
NO_FLAGS = [None, *NO_CHOICES, 1, 0]
NO_POOLING = [5, True, b"mean", "median", "", UNKNOWN, NAN, ["mean"], len]
NO_MASK_SOURCES = [
    *(5, True, b"features", "nowhere", UNKNOWN, NAN, ["features"], {}),
    *({"features": "0"}, {"features": True}, {"features": 0, "more": 0}),
    *({5: 0}, {"nowhere": 0}, np.ones((8, 6))),
]
NO_PATHS = [5, b"logs", "", UNKNOWN, True, ["logs"]]
NO_TEXT = [None, 5, b"x", ["encoder"]]

NO_LAYERS = [
    *(1.5, NAN, [], (), {}, b"all", {"encoder"}, True),
    *([None], [0.0], [True], [[0]], [b"x"]),
    *("all", 0, -1, [7], HUGE),  # There are no blocks.
    *("nowhere", ["nowhere"], "head"),
    Bad(["encoder", "wide"], "{'encoder': 5, 'wide': 7}"),
]
NO_MEASURES = [
    *(None, 5, True, NAN, UNKNOWN, [], "", "isotropy", ["isoscore", 1]),
    *([["isoscore"]], {"isoscore": 1}, np.ones(2), HUGE),
]
NO_MODELS = [
    *(None, "model", UNKNOWN, keras.Model, keras.layers.Dense(2)),
    keras.Model(),
]


def dataset(x):
    return tf.data.Dataset.from_tensor_slices(x)


NO_DATA = [
    *(None, "text", b"text", 5, NAN, UNKNOWN, np.float32(1)),
    *(["a", "b"], [1, 2], ("a", DATA), {"features": None}),
    *(range(3), {1, 2}, frozenset([1]), dict, np.ndarray, np),
    keras.Input((6, 4)),
    Bad(tf.ragged.constant([[1.0], [2.0, 3.0]]), "shape (2, None)"),
    Bad(tf.sparse.from_dense(DATA.reshape(8, 24)), "shape (8, 24)"),
    bytearray(b"text"),
    iter([DATA]),
    *(DATA[0, 0], DATA[0], DATA[..., :3], DATA[:, :5]),
    Bad({"features": DATA[..., :3]}, "shape (8, 6, 3)"),
    Bad({"others": DATA}, "keys=['others']"),
    Bad(dataset(DATA[0, 0]), "shape ()"),
    Bad(dataset(DATA[0]), "shape (4,)"),
    Bad(dataset(DATA), "shape (6, 4)"),
    Bad(dataset(DATA[None, ..., :3]), "shape (8, 6, 3)"),
    Bad(dataset({"others": DATA}).batch(2), "keys=['others']"),
    Bad((DATA, DATA), "2 arrays"),
    Bad({"features": DATA, "more": DATA[:3]}, "lengths=[8, 3]"),
    Bad(np.full((8, 6, 4), "a"), "dtype str32"),
    Bad({"features": np.full((8, 6, 4), b"a")}, "dtype bytes8"),
    Bad(np.full((8, 6, 4), None), "dtype object"),
    Bad(DATA.astype("complex64"), "dtype complex64"),
    Bad(tf.cast(DATA, "complex128"), "dtype complex128"),
    Bad(DATA.astype("datetime64[s]"), "dtype datetime64[s]"),
    Bad(dataset(np.full((1, 8, 6, 4), "a")), "dtype string"),
    Bad(dataset(DATA[None].astype("complex64")), "dtype complex64"),
]


@functools.cache
def shared_model():
    """From `(batch, 6, 4)` through `encoder` `(batch, 6, 5)` to a number."""
    inputs = keras.Input((6, 4), name="features")
    hidden = keras.layers.Dense(5, name="encoder")(inputs)
    wide = keras.layers.Dense(7, name="wide")(hidden)
    outputs = keras.layers.Dense(1, name="head")(wide)
    model = keras.Model(inputs, outputs, name="model")
    model.compile("sgd", "mse")
    model.fit(DATA, DATA[..., :1], verbose=0)
    return model


# What `fit` makes anew.
MADE = {"history", "_eval_epoch_iterator"}


def state_of_model(model=None, besides=MADE):
    """All that a refused call could leave behind."""
    model = model or shared_model()
    return (
        [attributes_of(part, besides) for part in [model, *model.operations]],
        [weight.numpy().tolist() for weight in model.weights],
    )


def attributes_of(thing, besides):
    return {
        name: contents_of(value)
        for name, value in vars(thing).items()
        if name not in besides
    }


def contents_of(value):
    """Plain values, and the identity of others, in lists and dicts of these."""
    if isinstance(value, dict):
        return {key: contents_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [contents_of(item) for item in value]
    is_plain = value is None or isinstance(value, (bool, float, int, str))
    return value if is_plain else id(value)


def attach(**kwargs):
    keras_istar.attach(**({"model": shared_model()} | kwargs))
    keras_istar.detach(shared_model())


def attach_regularizer(make):
    def attach_new(**kwargs):
        arguments = {"model": shared_model(), "regularizer": make()} | kwargs
        keras_istar.attach_regularizer(**arguments)
        keras_istar.detach(shared_model())

    return attach_new


def measure(**kwargs):
    keras_istar.measure(**({"model": shared_model(), "verbose": 0} | kwargs))


def fit(data):
    callback = keras_istar.IStarCallback(data, verbose=0)
    keras_istar.attach(shared_model(), "encoder", strength=0.0)
    shared_model().optimizer.learning_rate = 0.0
    try:
        shared_model().fit(DATA, DATA[..., :1], verbose=0, callbacks=[callback])
    finally:
        keras_istar.detach(shared_model())


def fit_monitored(**kwargs):
    monitor = keras_istar.IsotropyMonitor(**({"verbose": 0} | kwargs))
    shared_model().optimizer.learning_rate = 0.0
    shared_model().fit(DATA, DATA[..., :1], verbose=0, callbacks=[monitor])


def call(layer, argument):
    def call_new(mask=None, **states):
        new = layer()
        try:
            masks = {} if mask is None else {"mask": mask}
            new(states[argument], training=True, **masks)
        except ValueError:
            assert new.losses == []
            raise

    return call_new


@functools.cache
def built_layer():
    layer = ISTAR()
    layer.build((None, 5))
    layer.set_shrinkage_covariance(np.eye(5))
    return layer


@functools.cache
def metric():
    metric = keras_istar.IsoScore()
    metric.update_state(None, POINTS)
    return metric


ROW = {
    "layer": "encoder",
    "tokens": 4,
    "values": {"isoscore": 0.5},
    "spectrum": [1.0] * 5,
    "means": [0.0] * 5,
    "variances": [1.0] * 5,
    "outlier_dimensions": [3],
}
REPORT = {
    "model": "functional",
    "dim": 5,
    "rows": (keras_istar.LayerIsotropy(**ROW),),
    "shrinkage": 0.2,
    "shrinkage_target": "a target",
}
NO_NUMBERS = [None, 5, "text", {}, [None], ["1"], [True], [INF], [[1.0]]]


def row_with(**changes):
    return keras_istar.LayerIsotropy(**(ROW | changes))


NARROW = row_with(spectrum=[1], means=[0], variances=[1], outlier_dimensions=[])


class Row(NamedTuple):
    """A function, arguments that are right, and bad values by argument.

    `watch` returns what must be the same after a refused call.
    """

    name: str
    function: Callable
    right: dict[str, Any]
    watch: Callable[[], Any]
    bad: dict[str, list]


def row(name, function, right, /, watch=lambda: None, **bad):
    return Row(name, function, right, watch, bad)


ATTACHED = {"layers": "encoder"}
ALREADY = Bad(shared_model(), "model='model'")  # Attached, or not.
REPORTED = keras_istar.IsotropyReport(**REPORT)
TABLE = [
    row(
        "isoscore",
        keras_istar.isoscore,
        {"points": POINTS},
        points=NO_POINTS,
        mask=NO_TENSORS + NO_MASKS,
    ),
    row(
        "isoscore_star",
        keras_istar.isoscore_star,
        {"points": POINTS, "shrinkage_covariance": np.eye(5)},
        points=NO_POINTS,
        mask=NO_TENSORS + NO_MASKS,
        shrinkage_covariance=NO_TARGETS,
        shrinkage=NO_FRACTIONS,
    ),
    row(
        "isoscore_from_covariance",
        keras_istar.isoscore_from_covariance,
        {"covariance": np.eye(5)},
        covariance=NO_COVARIANCES,
    ),
    row(
        "IStarRegularization",
        ISTAR,
        {"strength": 1.0},
        strength=NO_REALS[1:],
        shrinkage=NO_FRACTIONS,
        momentum=NO_OPEN_FRACTIONS,
        sync=[None, *NO_CHOICES],
        max_tokens=NO_COUNTS,
        seed=NO_SEEDS,
        target=[*NO_INTERVALS, *ABOVE_ONE],
        relative=[*NO_FLAGS, True],  # To nothing.
        per_layer=NO_FLAGS,
        centered=NO_FLAGS,
        kwargs=[*NO_LAYER_OPTIONS, {"autocast": True}],
    ),
    row(
        "IStarRegularization with a target",
        ISTAR,
        {"target": (0.2, 0.4)},
        strength=[*NO_REALS[1:], -1.0],
    ),
    row(
        "IStarRegularization with a relative target",
        ISTAR,
        {"target": (0.5, 1.5), "relative": True},
        target=NO_INTERVALS,
    ),
    row(
        "IStarRegularization per layer",
        ISTAR,
        {"strength": 1.0, "per_layer": True},
        centered=[True],
    ),
    row(
        "CosineRegularization",
        COSINE,
        {"strength": 1.0},
        strength=NO_REALS,
        sync=[None, *NO_CHOICES],
        kwargs=[*NO_LAYER_OPTIONS, {"autocast": True}],
    ),
    row(
        "IsotropicBatchNormalization",
        ISOBN,
        {"momentum": 0.5},
        momentum=[None, *NO_OPEN_FRACTIONS],
        beta=NO_FRACTIONS,
        epsilon=[*NO_REALS, 0, -1.0],
        kwargs=NO_LAYER_OPTIONS,
    ),
    *[
        row(
            f"call of {layer.__name__}",
            call(layer, "hidden_states"),
            {"hidden_states": POINTS},
            hidden_states=NO_STATES,
            mask=[
                *("text", UNKNOWN, 1.0, *NO_MASKS),
                Bad([POINTS] * 2, "len(mask)=2"),
                Bad([], "len(mask)=0"),
            ],
        )
        for layer in (ISTAR, COSINE)
    ],
    row(
        "call of IsotropicBatchNormalization",
        call(ISOBN, "embeddings"),
        {"embeddings": POINTS[0]},
        embeddings=[
            Bad(None, "shape=()"),
            Bad([], "shape=()"),
            Bad([POINTS[0], POINTS[0]], "((3, 5), (3, 5))"),
            *(POINTS, np.ones(5), np.ones((4, 1))),
            Bad(np.ones((4, 5), "int32"), "dtypes=['int32']"),
        ],
    ),
    row(
        "set_shrinkage_covariance",
        lambda value: built_layer().set_shrinkage_covariance(value),
        {"value": np.eye(5)},
        lambda: [weight.numpy().tolist() for weight in built_layer().weights],
        value=[*NO_TARGETS, Bad(np.eye(5) * 1e300, "NaN or infinity")],
    ),
    row(
        "IsoScore",
        keras_istar.IsoScore,
        {"name": "score", "dtype": "float32"},
        name=[None, 5, b"x"],
        dtype=[5, "float7", "int32", UNKNOWN],
    ),
    row(
        "update_state",
        lambda **kwargs: metric().update_state(None, **kwargs),
        {"y_pred": POINTS},
        lambda: float(metric().result()),
        y_pred=[*NO_POINTS, Bad(np.ones((4, 6)), "y_pred of width 6")],
        sample_weight=[
            *NO_TENSORS,
            *map(np.ones, [(3,), (0,), (3, 4), (4, 3, 5)]),
        ],
    ),
    row(
        "attach",
        attach,
        ATTACHED,
        state_of_model,
        model=NO_MODELS,
        layers=NO_LAYERS,
        strength=NO_REALS[1:],
        shrinkage=NO_FRACTIONS,
        momentum=NO_OPEN_FRACTIONS,
        mask=NO_MASK_SOURCES,
        target=[*NO_INTERVALS, *ABOVE_ONE, [0.1, 0.2]],
        pooling=NO_POOLING,
        sync=NO_CHOICES,
        max_tokens=NO_COUNTS,
        seed=NO_SEEDS,
        relative=NO_FLAGS,
        per_layer=NO_FLAGS,
        centered=NO_FLAGS,
        kwargs=NO_LAYER_OPTIONS[1:-1],
    ),
    row(
        "attach_regularizer",
        attach_regularizer(COSINE),
        ATTACHED,
        state_of_model,
        model=NO_MODELS,
        layers=NO_LAYERS,
        regularizer=[None, "I-STAR", COSINE, UNKNOWN],
        mask=NO_MASK_SOURCES,
        pooling=NO_POOLING,
    ),
    row(
        "attach_regularizer of IsoBN",
        attach_regularizer(ISOBN),
        {},
        state_of_model,
        model=[*NO_MODELS, ALREADY],
        layers=["all", "encoder", 0, []],
    ),
    row(
        "detach",
        keras_istar.detach,
        {},
        state_of_model,
        model=[*NO_MODELS, ALREADY],
    ),
    row(
        "measure",
        measure,
        {"data": DATA, "layers": "encoder", "measures": "isoscore"},
        state_of_model,
        model=NO_MODELS,
        data=[*NO_DATA, Bad(DATA[:0], "data with 0 in 'encoder'")],
        layers=NO_LAYERS,
        measures=NO_MEASURES,
        max_tokens=NO_COUNTS,
        shrinkage=NO_FRACTIONS,
        sample_tokens=[*NO_COUNTS, 100_001],
        batch_size=NO_COUNTS,
        seed=NO_SEEDS,
        verbose=NO_CHOICES,
        mask=NO_MASK_SOURCES,
        pooling=NO_POOLING,
    ),
    row(
        "IStarCallback",
        keras_istar.IStarCallback,
        {"data": DATA},
        data=[iter([DATA])],
        measures=NO_MEASURES,
        max_tokens=NO_COUNTS,
        update_freq=[*NO_COUNTS, "batch"],
        batch_size=NO_COUNTS,
        log_dir=NO_PATHS,
        verbose=NO_CHOICES,
    ),
    row(
        "IsotropyMonitor",
        keras_istar.IsotropyMonitor,
        {"data": DATA},
        data=[iter([DATA])],
        measures=NO_MEASURES,
        max_tokens=NO_COUNTS,
        batch_size=NO_COUNTS,
        verbose=NO_CHOICES,
        log_dir=NO_PATHS,
        pooling=NO_POOLING,
    ),
    row(
        "fit with an IsotropyMonitor",
        fit_monitored,
        {"data": DATA, "layers": "encoder"},
        lambda: state_of_model(besides=MADE | {"train_function"}),
        data=NO_DATA,
        layers=NO_LAYERS,
        mask=NO_MASK_SOURCES,
    ),
    row(
        "fit",
        fit,
        {"data": DATA},
        lambda: state_of_model(besides=MADE | {"train_function"}),
        data=NO_DATA,
    ),
    row(
        "LayerIsotropy",
        keras_istar.LayerIsotropy,
        ROW,
        layer=NO_TEXT,
        tokens=[x for x in NO_COUNTS if x != 2**31],
        values=[
            *(None, 5, ["isoscore"], {"isoscore": None}, {5: 0.5}),
            *({"isoscore": "1"}, {"isoscore": True}, {"isoscore": [0.5]}),
            {"isoscore": HUGE},
        ],
        spectrum=NO_NUMBERS,
        means=[*NO_NUMBERS, Bad([0.0] * 4, "lengths=[5, 4, 5]")],
        variances=NO_NUMBERS,
        outlier_dimensions=[None, 3, "3", [5], [-1], [1.0], [True]],
    ),
    row(
        "IsotropyReport",
        keras_istar.IsotropyReport,
        REPORT,
        model=NO_TEXT,
        shrinkage_target=NO_TEXT,
        package_version=NO_TEXT,
        dim=NO_COUNTS,
        shrinkage=NO_FRACTIONS,
        rows=[
            *(None, 5, "text", [], (ROW,)),
            Bad((), "rows of [] numbers"),
            Bad((row_with(), NARROW), "rows of [5, 1] numbers"),
            Bad((row_with(), row_with(values={})), "[['isoscore'], []]"),
        ],
        notes=[None, "text", ["text"], (5,)],
    ),
    row(
        "compare",
        REPORTED.compare,
        {"other": REPORTED},
        other=[None, "report", UNKNOWN, {"rows": ()}],
    ),
    row("save", REPORTED.save, {}, path=[None, *NO_PATHS]),
    row("load", REPORTED.load, {}, path=[None, *NO_PATHS]),
]


@pytest.mark.parametrize(
    "row, argument",
    [
        pytest.param(row, argument, id=f"{row.name}-{argument}")
        for row in TABLE
        for argument in row.bad
    ],
)
def test_bad_values_are_refused_and_change_nothing(row, argument):
    before = row.watch()
    for bad in row.bad[argument]:
        check(row.function, row.right, argument, bad)
        assert row.watch() == before, bad


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name) for row in TABLE if row.right]
)
def test_what_is_right_is_taken(row):
    row.function(**row.right)


SAMPLES = [
    (
        lambda: ISTAR(shrinkage=1.5),
        "`shrinkage` must be between 0 and 1. Received: shrinkage=1.5",
    ),
    (
        lambda: ISTAR(strength="1"),
        "`strength` must be a real number. Received: strength='1'",
    ),
    (
        lambda: ISTAR(strength=INF),
        "`strength` must be a finite number. Received: strength=inf",
    ),
    (
        lambda: ISTAR(momentum=0),
        "`momentum` must be `None` or strictly between 0 and 1. "
        "Received: momentum=0",
    ),
    (
        lambda: ISTAR(strenght=1.0),
        "`**kwargs` must be arguments of `keras.layers.Layer`, such as `name` "
        "and `dtype`. Received: {'strenght': 1.0}",
    ),
    (
        lambda: keras_istar.IStarCallback(DATA, update_freq=0),
        "`update_freq` must be 'start', 'epoch' or a positive integer. "
        "Received: update_freq=0",
    ),
    (
        lambda: keras_istar.isoscore(POINTS, np.ones((4, 4))),
        "`mask` must have the shape of `points` without its last axis, "
        "(4, 3). Received: mask.shape=(4, 4)",
    ),
    (
        lambda: keras_istar.isoscore_from_covariance(LOPSIDED),
        "`covariance` must be symmetric. Received: covariance[0, 1]=0.5, "
        "covariance[1, 0]=0.0",
    ),
    (
        lambda: measure(data=DATA[:, :5], layers="encoder"),
        "`data` must fit the input 'features' of the model, (None, 6, 4); a "
        "dataset must come in batches. Received: shape (8, 5, 4)",
    ),
    (
        lambda: measure(data=DATA, layers="nowhere"),
        "`layers` must choose hidden states of the model, which has no layer "
        "named ['nowhere']. Names there are: ['encoder', 'wide', 'head']. "
        f"{see_guide('which-layers')}. Received: layers='nowhere'",
    ),
]


@pytest.mark.parametrize("function, message", SAMPLES)
def test_form_of_the_message(function, message):
    with pytest.raises(ValueError) as error:
        function()
    assert str(error.value) == message


def measure_task(task, data):
    keras_istar.measure(task, data, measures="isoscore", verbose=0)


def fit_task(task, data):
    callback = keras_istar.IStarCallback(data, verbose=0)
    keras_istar.attach(task)
    task.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    try:
        task.fit(TEXTS, np.arange(4) % 2, verbose=0, callbacks=[callback])
    finally:
        keras_istar.detach(task)


NO_TEXTS = [
    Bad(["a b", None], "None in data"),
    Bad(["a b", NAN], "nan in data"),
    *([1, 2], [["a"], ["b", "c"]]),
    Bad((TEXTS, [*TEXTS[:3], 5]), "5 in data"),
    Bad({"text": [*TEXTS, b"fine", ()]}, "() in data"),
    Bad({"text": TEXTS}, "of type dict"),
    Bad((TEXTS, TEXTS[:3]), "lengths=[4, 3]"),
    *("a b", b"a b", None, 5, {"a b"}, range(3), list),
    *(np.arange(4), np.ones((4, 3), "float32"), np.array([TEXTS])),
    Bad(np.array(["a b", None]), "shape (2,) and dtype object"),
    Bad({"token_ids": np.ones((2, 8), "int32")}, "(2, 8) and dtype int32"),
    Bad(dataset(TEXTS), "shape () and dtype string"),
    Bad(dataset(np.arange(4)).batch(2), "shape (None,) and dtype int64"),
    Bad(dataset((TEXTS, TEXTS)), "shape () and dtype string"),
    Bad(
        tf.data.Dataset.from_generator(
            lambda: [TEXTS, TEXTS[:2]],
            output_signature=tf.TensorSpec(None, "string"),
        ),
        "shape <unknown> and dtype string",
    ),
]


@pytest.mark.parametrize(
    "function, no_texts", [(measure_task, NO_TEXTS), (fit_task, NO_TEXTS[::7])]
)
def test_data_that_are_no_texts(tiny_classifier, function, no_texts):
    task = tiny_classifier()
    weights = [weight.numpy() for weight in task.weights]
    attributes = set(vars(task)), set(vars(task.backbone))
    for bad in no_texts:
        check(functools.partial(function, task), {}, "data", bad)
        if function is measure_task:
            assert (set(vars(task)), set(vars(task.backbone))) == attributes
    for weight, value in zip(task.weights, weights, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("index", [2, [0, -3]])
def test_indices_of_blocks_that_are_not_there(tiny_classifier, index):
    bad = Bad(index, f"{np.ravel(index)[-1]} in layers")
    check(keras_istar.attach, {"model": tiny_classifier()}, "layers", bad)


@pytest.mark.parametrize("make", [ISTAR, COSINE, ISOBN])
@pytest.mark.parametrize("value", ["text", UNKNOWN, 1.0])
def test_what_keras_gives_to_no_layer(make, value):
    with pytest.raises(ValueError, match="Only input tensors may be passed"):
        make()(value)


@pytest.mark.parametrize("make", [ISTAR, COSINE, ISOBN])
def test_calls_with_another_width_than_before(make):
    layer = make()
    layer(POINTS[0], training=True)
    before = [weight.numpy() for weight in layer.weights]
    with pytest.raises(ValueError, match="width"):
        layer(POINTS[0, :, :3], training=True)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_layers_that_another_model_calls():
    inputs = keras.Input((6, 4))
    other = keras.Model(inputs, keras.layers.Dense(5, name="dense")(inputs))
    layer = keras_istar.attach(other, "dense")
    before = state_of_model(), state_of_model(other)
    with pytest.raises(ValueError, match="`regularizer`.* no model calls yet"):
        keras_istar.attach_regularizer(shared_model(), layer, "wide")
    assert (state_of_model(), state_of_model(other)) == before
    assert layer.state_names == ("dense",)


def test_layer_of_another_width():
    layer = ISTAR()
    layer.build((None, 6, 7))
    before = state_of_model()
    with pytest.raises(ValueError, match="`regularizer`.* of width 7"):
        keras_istar.attach_regularizer(shared_model(), layer, "encoder")
    assert state_of_model() == before


@pytest.mark.parametrize("make", [ISTAR, COSINE, ISOBN])
def test_detached_layers_may_be_attached_again(make):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(4, name="pooled")(inputs))
    layer = make()
    for _ in range(2):
        keras_istar.attach_regularizer(model, layer, "pooled")
        keras_istar.detach(model)
    assert layer.built


def test_attach_names_its_own_arguments():
    with pytest.raises(TypeError, match="`attach` takes.*'strength'.*lam"):
        keras_istar.attach(shared_model(), lam=1.0)
