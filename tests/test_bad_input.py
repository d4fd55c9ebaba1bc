"""What every public name says to every kind of wrong argument."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import keras_istar
from keras_istar.layer_isotropy import LayerIsotropy

NAN, INF = np.nan, np.inf
POINTS = np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32")
DATA = np.random.default_rng(1).normal(size=(8, 6, 4)).astype("float32")


class Unknown:
    """Nothing that anybody expects, of the same text in every process."""

    def __repr__(self):
        return "<unknown>"


UNKNOWN = Unknown()


def make_model():
    """From `(batch, 6, 4)` through `encoder` `(batch, 6, 5)` to a number."""
    inputs = keras.Input((6, 4), name="features")
    hidden = keras.layers.Dense(5, name="encoder")(inputs)
    wide = keras.layers.Dense(7, name="wide")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(wide))
    model.compile("sgd", "mse")
    return model


def rule(argument, text, value):
    return f"`{argument}` must be {text}. Received: {argument}={value!r:.200}"


def no_tensors(argument):
    """Wrong types of a tensor, and what is said of them."""
    values = [
        None,
        "text",
        b"text",
        UNKNOWN,
        len,
        {"a": 1},
        [[1, 2], [3]],
        [[10**400, 1], [2, 3]],
        np.ones((4, 5), "complex64"),
        np.array([["a", "b"], ["c", "d"]]),
        np.array([[1, None], [2, 3]]),
    ]
    text = "a tensor or array of numbers"
    return [(value, rule(argument, text, value)) for value in values]


def no_reals(argument):
    """Wrong types, NaN, infinity and huge numbers."""
    kinds = {
        "a real number": ["1", UNKNOWN, True, 1j, [0.1], np.ones(2), {}],
        "a finite number": [NAN, INF, -INF],
        "a number that float32 can hold": [1e39, -1e39, 10**400],
    }
    return [
        (value, rule(argument, text, value))
        for text, values in kinds.items()
        for value in values
    ]


def no_fractions(argument, text="between 0 and 1", ends=()):
    return no_reals(argument) + [
        (value, rule(argument, text, value)) for value in (-0.1, 1.1, 9, *ends)
    ]


def no_positive_ints(argument, text="a positive integer", at_most=2147483647):
    return [
        (value, rule(argument, text, value))
        for value in ("1", UNKNOWN, True, 1.0, NAN, INF, [1], 0, -1)
    ] + [
        (value, rule(argument, f"at most {at_most}", value))
        for value in (at_most + 1, 10**400)
    ]


def no_seeds():
    text = "an integer from 0 to 2147483647"
    return [
        (value, rule("seed", text, value))
        for value in ("1", UNKNOWN, True, 1.0, NAN, [1], -1, 2**31, 10**400)
    ]


def no_choices(argument, text):
    return [
        (value, rule(argument, text, value))
        for value in ("yes", UNKNOWN, 2, -1, NAN, [1], 10**400)
    ]


def no_points(argument):
    short = f"`{argument}` must have at least two dimensions, `(..., dim)`. "
    narrow = f"`{argument}` must have a last axis of known size, at least 2. "
    return no_tensors(argument) + [
        (array, f"{text}Received: {argument}.shape={np.shape(array)}")
        for text, array in [
            (short, 1.0),
            (short, []),
            (short, np.ones(5)),
            (narrow, np.ones((4, 1))),
            (narrow, np.ones((4, 0))),
        ]
    ]


def no_covariances(argument):
    square = f"`{argument}` must be a square matrix `(dim, dim)`. "
    narrow = f"`{argument}` must have a last axis of known size, at least 2. "
    return no_tensors(argument) + [
        (array, f"{text}Received: {argument}.shape={np.shape(array)}")
        for text, array in [
            (square, 1.0),
            (square, []),
            (square, np.ones(5)),
            (square, np.ones((5, 4))),
            (square, np.ones((5, 5, 5))),
            (narrow, np.ones((1, 1))),
            (narrow, np.ones((0, 0))),
        ]
    ]


def no_shrinkage_covariances(argument):
    fit = f"`{argument}` must have shape (5, 5) to fit dim=5. "
    return no_covariances(argument) + [
        (np.eye(4), f"{fit}Received: {argument}.shape=(4, 4)")
    ]


def no_values_of_covariances(argument):
    finite = f"`{argument}` must be finite. "
    lopsided, negative = np.eye(5), np.diag([2.0, 1.0, 1.0, -0.5, 1.0])
    lopsided[0, 1] = 0.5
    return [
        (value, f"{finite}Received: NaN or infinity in {argument}")
        for value in (np.full((5, 5), NAN), np.diag([1, 1, INF, 1, 1]))
    ] + [
        (
            lopsided,
            f"`{argument}` must be symmetric. Received: {argument}[0, 1]=0.5, "
            f"{argument}[1, 0]=0.0",
        ),
        (
            negative,
            f"`{argument}` must have no variance below 0 on its diagonal. "
            f"Received: {argument}[3, 3]=-0.5",
        ),
    ]


def no_masks(name):
    fit = f"`mask` must have the shape of `{name}` without its last axis, "
    return [
        (np.ones(shape), f"{fit}(4, 3). Received: mask.shape={shape}")
        for shape in [(), (0,), (4,), (3, 4), (4, 3, 5)]
    ]


def no_keras_arguments():
    text = (
        "`**kwargs` must be arguments of `keras.layers.Layer`, such as `name` "
        "and `dtype`. Received: "
    )
    return [
        (kwargs, f"{text}{kwargs!r:.200}")
        for kwargs in [
            {"strenght": 1.0},
            {"autocast": True},
            {"dtype": "float7"},
            {"dtype": 5},
            {"name": 5},
            {"trainable": "yes"},
        ]
    ]


def rows(function, argument, cases):
    """One row of the table for each wrong value of an argument."""
    return [
        pytest.param(
            function, {argument: value}, text, id=f"{argument}-{value!r:.20}"
        )
        for value, text in cases
    ]


def unpacked(function, cases):
    return [pytest.param(function, kwargs, text) for kwargs, text in cases]


def isoscore_star(**kwargs):
    defaults = {"points": POINTS, "shrinkage_covariance": np.eye(5)}
    return keras_istar.isoscore_star(**(defaults | kwargs))


def set_covariance(value):
    layer = keras_istar.IStarRegularization()
    layer.build((None, 5))
    layer.set_shrinkage_covariance(np.eye(5))
    try:
        layer.set_shrinkage_covariance(value)
    finally:
        np.testing.assert_array_equal(layer.shrinkage_covariance, np.eye(5))


def update_metric(**kwargs):
    metric = keras_istar.IsoScore()
    metric.update_state(None, POINTS)
    before = float(metric.result())
    try:
        metric.update_state(None, **({"y_pred": POINTS} | kwargs))
    finally:
        assert float(metric.result()) == before


FUNCTIONS = [
    *rows(keras_istar.isoscore, "points", no_points("points")),
    *rows(
        lambda mask: keras_istar.isoscore(POINTS, mask),
        "mask",
        no_tensors("mask")[1:] + no_masks("points"),
    ),
    *rows(isoscore_star, "points", no_points("points")),
    *rows(
        isoscore_star,
        "shrinkage_covariance",
        no_shrinkage_covariances("shrinkage_covariance")
        + no_values_of_covariances("shrinkage_covariance"),
    ),
    *rows(isoscore_star, "shrinkage", no_fractions("shrinkage")),
    *rows(isoscore_star, "mask", no_tensors("mask")[1:] + no_masks("points")),
    *rows(
        keras_istar.isoscore_from_covariance,
        "covariance",
        no_covariances("covariance") + no_values_of_covariances("covariance"),
    ),
]

OPEN = "strictly between 0 and 1"
LAYERS = [
    *[
        row
        for layer in (
            keras_istar.IStarRegularization,
            keras_istar.CosineRegularization,
        )
        for row in rows(layer, "strength", no_reals("strength"))
        + rows(layer, "sync", no_choices("sync", "True or False"))
        + unpacked(layer, no_keras_arguments())
    ],
    *rows(
        keras_istar.IStarRegularization, "shrinkage", no_fractions("shrinkage")
    ),
    *rows(
        keras_istar.IStarRegularization,
        "momentum",
        no_fractions("momentum", f"`None` or {OPEN}", ends=(0, 1)),
    ),
    *rows(
        keras_istar.IStarRegularization,
        "max_tokens",
        no_positive_ints("max_tokens"),
    ),
    *rows(keras_istar.IStarRegularization, "seed", no_seeds()),
    *rows(
        keras_istar.IsotropicBatchNormalization,
        "momentum",
        no_fractions("momentum", OPEN, ends=(0, 1)),
    ),
    *rows(
        keras_istar.IsotropicBatchNormalization, "beta", no_fractions("beta")
    ),
    *rows(
        keras_istar.IsotropicBatchNormalization,
        "epsilon",
        no_reals("epsilon")
        + [(v, rule("epsilon", "greater than 0", v)) for v in (0, -1.0)],
    ),
    *unpacked(
        keras_istar.IsotropicBatchNormalization,
        [row for row in no_keras_arguments() if "autocast" not in row[0]],
    ),
    *rows(
        set_covariance,
        "value",
        no_shrinkage_covariances("value")
        + no_values_of_covariances("value")
        + [
            (
                np.eye(5) * 1e300,  # More than float32 can hold.
                "`value` must be finite. Received: NaN or infinity in value",
            )
        ],
    ),
]

FIT = "`sample_weight` must have the shape of `y_pred` without its last axis, "
METRIC = [
    *rows(
        keras_istar.IsoScore,
        "name",
        [(v, f"`name` must be text. Received: name={v!r}") for v in (5, b"x")],
    ),
    *rows(
        keras_istar.IsoScore,
        "dtype",
        [
            (v, rule("dtype", "`None` or the name of a float type", v))
            for v in (5, "float7", "int32", UNKNOWN)
        ],
    ),
    *rows(update_metric, "y_pred", no_points("y_pred")),
    *rows(
        update_metric,
        "y_pred",
        [
            (
                np.ones((4, 6)),
                "`y_pred` must keep its width, 5. Received: y_pred of width 6",
            )
        ],
    ),
    *rows(update_metric, "sample_weight", no_tensors("sample_weight")[1:]),
    *rows(
        update_metric,
        "sample_weight",
        [
            (
                np.ones(shape),
                f"{FIT}(4, 3), or leave out last axes of that. "
                f"Received: sample_weight.shape={shape}",
            )
            for shape in [(3,), (0,), (3, 4), (4, 3, 5)]
        ],
    ),
]


@pytest.mark.parametrize(
    "function, kwargs, message", FUNCTIONS + LAYERS + METRIC
)
def test_wrong_arguments(function, kwargs, message):
    with pytest.raises(ValueError) as error:
        function(**kwargs)
    assert str(error.value) == message


NO_TENSORS = "Only input tensors may be passed as positional arguments"  # Keras
STATES = "`hidden_states` must be a tensor `(..., dim)` or a list of them. "
FLOATS = "`hidden_states` must be of one float dtype. Received: dtypes="
SENTENCES = "`embeddings` must have two dimensions, `(batch, dim)`. "
ISTAR = keras_istar.IStarRegularization
COSINE = keras_istar.CosineRegularization
ISOBN = keras_istar.IsotropicBatchNormalization
CALLS = [
    *[
        (layer, (value,), message)
        for layer in (ISTAR, COSINE)
        for value, message in [
            ("text", NO_TENSORS),
            (UNKNOWN, NO_TENSORS),
            (1.0, NO_TENSORS),
            (None, STATES),
            ([], STATES),
            (np.ones((4, 1)), "(4, 1)"),
            (np.ones((4, 0)), "(4, 0)"),
            (np.ones((4, 5), "complex64"), FLOATS + "['complex64']"),
            (np.ones((4, 5), "int32"), FLOATS + "['int32']"),
            (np.ones((4, 5), bool), FLOATS + "['bool']"),
            (
                [POINTS, POINTS.astype("float16")],
                FLOATS + "['float32', 'float16']",
            ),
            (
                [POINTS, POINTS[..., :3]],
                "`hidden_states` must all have width 5. "
                "Received: widths=[5, 3]",
            ),
        ]
    ],
    *[
        (layer, (POINTS, value), message)
        for layer in (ISTAR, COSINE)
        for value, message in [
            ("text", rule("mask", "a tensor or array of numbers", "text")),
            (UNKNOWN, "`mask` must be a tensor or array of numbers."),
            (1.0, "Received: mask.shape=()"),
            ([POINTS] * 2, "Received: len(mask)=2"),
            ([], "Received: len(mask)=0"),
            *[(array, text) for array, text in no_masks("hidden_states")[1:]],
        ]
    ],
    *[
        (ISOBN, (value,), message)
        for value, message in [
            ("text", NO_TENSORS),
            (None, SENTENCES),
            ([], SENTENCES),
            ([POINTS[0], POINTS[0]], SENTENCES),
            (POINTS, SENTENCES),
            (np.ones(5), SENTENCES),
            (np.ones((4, 1)), "Received: embeddings.shape=(4, 1)"),
            (np.ones((4, 5), "int32"), "`embeddings` must be of one float"),
        ]
    ],
]


@pytest.mark.parametrize("layer, args, message", CALLS)
def test_wrong_calls_of_layers(layer, args, message):
    layer = layer()
    states, *mask = args
    with pytest.raises(ValueError) as error:
        layer(states, **dict(zip(["mask"], mask, strict=False)), training=True)
    assert message in str(error.value)
    assert layer.losses == []


@pytest.mark.parametrize("layer", [ISTAR, COSINE, ISOBN])
def test_calls_with_another_width_than_before(layer):
    layer = layer()
    layer(POINTS[0], training=True)
    before = [weight.numpy() for weight in layer.weights]
    with pytest.raises(ValueError, match="width"):
        layer(POINTS[0, :, :3], training=True)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


FIT_MAKES = {"history", "_eval_epoch_iterator"}  # Whatever comes of it.


def snapshot(model):
    """All that a refused call could leave behind."""
    return {
        "config": json.dumps(model.get_config(), sort_keys=True),
        "weights": [weight.numpy().tolist() for weight in model.weights],
        "layers": [id(layer) for layer in model._flatten_layers()],
        "nodes": [
            (id(op), len(op._inbound_nodes), len(op._outbound_nodes))
            for op in model.operations
        ],
        "attributes": set(vars(model)) - FIT_MAKES,
        "graph": {depth: list(x) for depth, x in model._nodes_by_depth.items()},
    }


def attach(model, layers="encoder", **kwargs):
    return keras_istar.attach(model, layers, **kwargs)


def attach_regularizer(model, regularizer, layers="encoder"):
    keras_istar.attach_regularizer(model, regularizer, layers)


def measure(model, data=DATA, layers="encoder", **kwargs):
    defaults = {"metrics": ["isoscore"], "verbose": 0}
    return keras_istar.measure(model, data, layers, **(defaults | kwargs))


def fit(model, **kwargs):
    callback = keras_istar.IStarCallback(**({"data": DATA} | kwargs))
    keras_istar.attach(model, "encoder")
    try:
        model.fit(DATA, DATA[..., :1], verbose=0, callbacks=[callback])
    finally:
        keras_istar.detach(model)


LIST = (
    "`layers` must be 'all', an index, a name, or a list of indices and names."
)
ITEM = "`layers` must hold indices and names of layers. Received: "
NAMES = "Names there are: ['encoder', 'wide', 'head']. Received: layers="
NO_BLOCKS = (
    "`layers` must choose hidden states of the model, which has no encoder "
    f"blocks. {NAMES}"
)
NO_LAYERS = [
    *[(v, f"{LIST} Received: layers={v!r}") for v in (1.5, NAN, [], (), {})],
    *[(v, f"{LIST} Received: layers={v!r}") for v in (b"all", {"encoder"})],
    *[(v, f"{ITEM}{v!r} in layers") for v in (True,)],
    *[([v], f"{ITEM}{v!r} in layers") for v in (None, 0.0, True, [0], b"x")],
    *[(v, NO_BLOCKS + repr(v)) for v in ("all", 0, -1, [7], 10**400)],
    (
        "nowhere",
        "`layers` must choose hidden states of the model, which has no layer "
        f"named ['nowhere']. {NAMES}'nowhere'",
    ),
    (
        "head",
        "`layers` must choose layers with an output `(..., dim)`, dim at least "
        "2. Received: 'head' with output shape (None, 6, 1)",
    ),
    (
        ["encoder", "wide"],
        "`layers` must choose hidden states of one width. "
        "Received: widths={'encoder': 5, 'wide': 7}",
    ),
]

NO_REGULARIZERS = [
    (
        value,
        "`regularizer` must be a layer such as `IStarRegularization`. "
        f"Received: regularizer={value!r}",
    )
    for value in (None, "I-STAR", COSINE, UNKNOWN)
]

METRICS = [
    "isoscore",
    "isoscore_star",
    "participation_ratio",
    "effective_rank",
    "average_cosine",
    "partition_isotropy",
    "top_variance",
    "outliers",
    "mean_norm",
    "twonn",
]
NO_METRICS = [
    (
        value,
        f'`metrics` must be "all" or a list of names out of {METRICS}. '
        f"Received: metrics={value!r:.200}",
    )
    for value in (
        *(None, 5, True, NAN, UNKNOWN, [], "", "isotropy", ["isoscore", 1]),
        *([["isoscore"]], {"isoscore": 1}, np.ones(2), 10**400),
    )
]

FEATURES = "`data` must fit the input 'features' of the model, (None, 6, 4). "
NO_DATA = [
    *[
        (
            value,
            "`data` must be what the model's `fit` takes as `x`: arrays, "
            "nested tuples or dicts of them, a dataset, or strings if the "
            "model is a KerasHub task. "
            f"Received: data of type {type(value).__name__}",
        )
        for value in (
            *(None, "text", b"text", 5, NAN, UNKNOWN, np.float32(1)),
            *(["a", "b"], [1, 2], ("a", DATA), {"features": None}),
        )
    ],
    (
        iter([DATA]),
        "`data` must be iterable more than once, a generator is not. "
        "Received: data of type list_iterator",
    ),
    *[
        (array, f"{FEATURES}Received: shape {array.shape}")
        for array in (DATA[0, 0], DATA[0], DATA[..., :3], DATA[:, :5])
    ],
    (
        (DATA, DATA),
        "`data` must have one array for each of the 1 inputs of the model. "
        "Received: 2 arrays",
    ),
    (
        {"features": DATA, "more": DATA[:3]},
        "`data` must be of one length. Received: lengths=[8, 3]",
    ),
    (
        np.full((8, 6, 4), "a"),
        "`data` must hold numbers for the input 'features' of the model. "
        "Received: dtype <U1",
    ),
]
NO_STATES = [
    (
        DATA[:0],
        "`data` must hold at least two unmasked tokens. "
        "Received: data with 0 in 'encoder'",
    ),
    *[
        (
            DATA * factor,
            "The hidden states of `model` must be finite. Received: NaN or "
            "infinity in {'encoder': '48 of 48 tokens'}",
        )
        for factor in (NAN, INF)
    ],
    (
        DATA * 1e25,
        "The hidden states of `model` must be small enough to be squared in "
        "float32. Received: a covariance that is not in 'encoder'",
    ),
]

MODELS = [
    *rows(attach, "layers", NO_LAYERS),
    *rows(attach, "strength", no_reals("strength")),
    *rows(attach, "shrinkage", no_fractions("shrinkage")),
    *rows(
        attach,
        "momentum",
        no_fractions("momentum", f"`None` or {OPEN}", ends=(0, 1)),
    ),
    *rows(attach, "max_tokens", no_positive_ints("max_tokens")),
    *unpacked(attach, no_keras_arguments()),
    *rows(attach_regularizer, "regularizer", NO_REGULARIZERS),
    *rows(measure, "layers", NO_LAYERS),
    *rows(measure, "data", NO_DATA + NO_STATES),
    *rows(measure, "metrics", NO_METRICS),
    *rows(measure, "max_points", no_positive_ints("max_points")),
    *rows(measure, "shrinkage", no_fractions("shrinkage")),
    *rows(
        measure,
        "sample_points",
        no_positive_ints("sample_points", at_most=100_000),
    ),
    *rows(measure, "batch_size", no_positive_ints("batch_size")),
    *rows(measure, "seed", no_seeds()),
    *rows(measure, "verbose", no_choices("verbose", "0 or 1")),
    *rows(fit, "data", NO_DATA),
    *rows(fit, "max_points", no_positive_ints("max_points")),
    *rows(
        fit,
        "update_freq",
        no_positive_ints("update_freq", "'epoch' or a positive integer"),
    ),
    *rows(fit, "batch_size", no_positive_ints("batch_size")),
    *rows(fit, "verbose", no_choices("verbose", "0 or 1")),
]


@pytest.mark.parametrize("function, kwargs, message", MODELS)
def test_wrong_arguments_leave_the_model_alone(function, kwargs, message):
    model = make_model()
    before = snapshot(model)
    with pytest.raises(ValueError) as error:
        function(model, **kwargs)
    assert str(error.value) == message
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "model",
    [None, "model", UNKNOWN, keras.Model, keras.layers.Dense(2), keras.Model()],
)
@pytest.mark.parametrize(
    "function", [attach, measure, keras_istar.detach, attach_regularizer]
)
def test_what_is_no_functional_model(function, model):
    args = [COSINE()] if function is attach_regularizer else []
    with pytest.raises(ValueError) as error:
        function(model, *args)
    message = str(error.value)
    assert message.startswith("`model` must be a KerasHub task or backbone, or")
    assert message.endswith(f"Received: model of type {type(model).__name__}")


def test_layer_that_another_model_calls():
    model, other = make_model(), make_model()
    layer = attach(other)
    before = snapshot(model), snapshot(other)
    with pytest.raises(ValueError) as error:
        attach_regularizer(model, layer, "wide")
    assert str(error.value) == (
        "`regularizer` must be a layer of its own, which no model calls yet. "
        f"Received: regularizer={layer!r}"
    )
    assert (snapshot(model), snapshot(other)) == before
    assert layer.state_names == ("encoder",)


@pytest.mark.parametrize("make", [ISTAR, COSINE, ISOBN])
def test_detached_layers_may_be_attached_again(make):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(4, name="pooled")(inputs))
    layer = make()
    layers = None if make is ISOBN else "pooled"
    for _ in range(2):
        attach_regularizer(model, layer, layers)
        keras_istar.detach(model)
    assert layer.built


def test_layer_of_another_width():
    model, layer = make_model(), ISTAR()
    layer.build((None, 6, 7))
    before = snapshot(model)
    with pytest.raises(ValueError) as error:
        attach_regularizer(model, layer)
    assert str(error.value) == (
        "`regularizer` must be new, or built for hidden states of width 5. "
        "Received: regularizer of width 7"
    )
    assert snapshot(model) == before


@pytest.fixture(scope="module")
def report():
    return measure(make_model())


NO_PATHS = [
    (v, rule("path", "a path", v)) for v in (None, 5, UNKNOWN, b"x", "")
]


@pytest.mark.parametrize("path, message", NO_PATHS)
@pytest.mark.parametrize("method", ["save", "load"])
def test_what_is_no_path(report, method, path, message):
    with pytest.raises(ValueError) as error:
        getattr(report, method)(path)
    assert str(error.value) == message


@pytest.mark.parametrize("method", ["save", "load"])
def test_paths_that_the_system_refuses(report, method, tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "report.json"):
        with pytest.raises(OSError):
            getattr(report, method)(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [None, "report", UNKNOWN, {"rows": ()}])
def test_what_is_no_report(report, bad):
    with pytest.raises(ValueError) as error:
        report.compare(bad)
    assert str(error.value) == rule("other", "an `IsotropyReport`", bad)


ROW = {
    "layer": "encoder",
    "points": 4,
    "values": {"isoscore": 0.5},
    "spectrum": [1.0] * 5,
    "means": [0.0] * 5,
    "variances": [1.0] * 5,
    "outlier_dimensions": [3],
}
NO_NUMBERS = (None, 5, "text", {}, [None], ["1"], [True], [INF], [[1.0]])
NO_ROWS = [
    *[("layer", v, rule("layer", "text", v)) for v in (None, 5, ["encoder"])],
    *[("points", *case) for case in no_positive_ints("points")[:-2]],
    *[
        ("values", v, rule("values", "a dict of numbers by name", v))
        for v in (
            *(None, 5, ["isoscore"], {"isoscore": None}, {"isoscore": "1"}),
            *({"isoscore": True}, {"isoscore": [0.5]}, {5: 0.5}),
            {"isoscore": 10**400},
        )
    ],
    *[
        (name, v, rule(name, "a list of finite numbers", v))
        for name in ("spectrum", "means", "variances")
        for v in NO_NUMBERS
    ],
    (
        "means",
        [0.0] * 4,
        "`spectrum`, `means` and `variances` must be of one length. "
        "Received: lengths=[5, 4, 5]",
    ),
    *[
        (
            "outlier_dimensions",
            v,
            rule("outlier_dimensions", "a list of integers from 0 to 4", v),
        )
        for v in (None, 3, "3", [5], [-1], [1.0], [True])
    ],
]


@pytest.mark.parametrize("name, value, message", NO_ROWS)
def test_what_is_no_row_of_a_report(name, value, message):
    with pytest.raises(ValueError) as error:
        LayerIsotropy(**(ROW | {name: value}))
    assert str(error.value) == message


NARROW = LayerIsotropy("narrow", 4, {}, [1.0, 1.0], [0, 0], [1, 1], [])
ROWS = "`rows` must be one or more of `dim` numbers, dim=5. Received: rows of "
NO_REPORTS = [
    *[
        (name, v, rule(name, "text", v))
        for name in ("model", "shrinkage_target", "package_version")
        for v in (None, 5, b"x")
    ],
    *[("dim", *case) for case in no_positive_ints("dim")],
    *[("shrinkage", *case) for case in no_fractions("shrinkage")],
    *[
        ("rows", v, rule("rows", "a tuple of LayerIsotropy", v))
        for v in (None, 5, "text", [], (ROW,))
    ],
    ("rows", (), ROWS + "[] numbers"),
    ("rows", (LayerIsotropy(**ROW), NARROW), ROWS + "[5, 2] numbers"),
    (
        "rows",
        (LayerIsotropy(**ROW), LayerIsotropy(**(ROW | {"values": {}}))),
        "`rows` must have the same values. "
        "Received: rows with values=[['isoscore'], []]",
    ),
    *[
        ("notes", v, rule("notes", "a tuple of texts", v))
        for v in (None, "text", ["text"], (5,))
    ],
]


@pytest.mark.parametrize("name, value, message", NO_REPORTS)
def test_what_makes_no_report(report, name, value, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(report, **{name: value})
    assert str(error.value) == message


DAMAGE = [
    {},
    {"rows": 5},
    {"rows": []},
    {"rows": ["row"]},
    {"rows": [{"layer": "encoder"}]},
    {"rows": [{"values": {}}]},
    {"notes": None},
    {"more": 1},
    {"version": "new"},
    {"version": None},
    {"version": True},
    {"version": 0},
    {"model": None},
    {"dim": 4},
    {"dim": "5"},
    {"shrinkage": "0.2"},
    {"shrinkage": 9.0},
    {"notes": "text"},
    {"notes": [5]},
    {"package_version": None},
    *[
        {"rows": [ROW | damage]}
        for damage in (
            {"layer": 5},
            {"points": "4"},
            {"points": 4.0},
            {"values": None},
            {"values": {"isoscore": "1"}},
            {"spectrum": None},
            {"spectrum": [None] * 5},
            {"means": [0.0]},
            {"variances": INF},
            {"outlier_dimensions": [5]},
        )
    ],
    {"rows": [ROW, ROW | {"values": {"isoscore_star": 0.5}}]},
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_are_no_reports(report, damage, tmp_path):
    path = tmp_path / "report.json"
    report.save(path)
    content = json.loads(path.read_text())
    content = content | damage if damage else {"format": content["format"]}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        keras_istar.IsotropyReport.load(path)
    assert str(error.value) == (
        "`path` must be a file that `IsotropyReport.save` has written. "
        f"Received: path={str(path)!r}"
    )


DEEP = b"[" * 100_000
OTHERS = [b"", b"text", b"5", b"[]", b"\xff\x00", DEEP, b'{"a":' * 100_000]


@pytest.mark.parametrize("content", OTHERS, ids=lambda x: repr(x[:9]))
def test_other_files_are_no_reports(content, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="`path` must be a file that"):
        keras_istar.IsotropyReport.load(path)


def test_files_too_deep_to_be_shown(report, tmp_path):
    path = tmp_path / "report.json"
    report.save(path)
    text = path.read_text()
    assert '"model": "functional"' in text
    for depth in range(700, 1000):  # Somewhere there is the limit.
        deep = "[" * depth + "]" * depth
        path.write_text(text.replace('"functional"', deep, 1))
        with pytest.raises(ValueError, match="`path` must be a file that"):
            keras_istar.IsotropyReport.load(path)
