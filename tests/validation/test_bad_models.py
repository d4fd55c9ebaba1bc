"""What `attach`, `measure` and the callback say to wrong arguments."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from bad_values import DATA
from bad_values import INF
from bad_values import NAN
from bad_values import UNKNOWN
from bad_values import no_choices
from bad_values import no_fractions
from bad_values import no_keras_arguments
from bad_values import no_positive_ints
from bad_values import no_reals
from bad_values import no_seeds
from bad_values import rows
from bad_values import rule
from bad_values import unpacked

import keras_istar

ISTAR = keras_istar.IStarRegularization
COSINE = keras_istar.CosineRegularization
ISOBN = keras_istar.IsotropicBatchNormalization
OPEN = "strictly between 0 and 1"


def make_model():
    """From `(batch, 6, 4)` through `encoder` `(batch, 6, 5)` to a number."""
    inputs = keras.Input((6, 4), name="features")
    hidden = keras.layers.Dense(5, name="encoder")(inputs)
    wide = keras.layers.Dense(7, name="wide")(hidden)
    outputs = keras.layers.Dense(1, name="head")(wide)
    model = keras.Model(inputs, outputs, name="model")
    model.compile("sgd", "mse")
    return model


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


def dataset(x):
    return tf.data.Dataset.from_tensor_slices(x)


NUMBERS = "`data` must hold numbers for the input 'features' of the model. "
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
            *(range(3), {1, 2}, frozenset([1]), dict, np.ndarray, np),
            *(keras.Input((6, 4)), bytearray(b"text")),
        )
    ],
    (
        iter([DATA]),
        "`data` must be iterable more than once, a generator is not. "
        "Received: data of type list_iterator",
    ),
    *[
        (array, f"{FEATURES}Received: shape {array.shape}")
        for array in (
            *(DATA[0, 0], DATA[0], DATA[..., :3], DATA[:, :5]),
            tf.ragged.constant([[1.0], [2.0, 3.0]]),
            tf.sparse.from_dense(DATA.reshape(8, 24)),
        )
    ],
    ({"features": DATA[..., :3]}, f"{FEATURES}Received: shape (8, 6, 3)"),
    (
        {"others": DATA},
        "`data` must have all inputs of the model, ['features']. "
        "Received: keys=['others']",
    ),
    *[
        (dataset(array), f"{FEATURES}Received: shape {shape}")
        for array, shape in [
            (DATA[0, 0], "()"),
            (DATA[0], "(4,)"),
            (DATA, "(6, 4)"),
            (DATA[None, ..., :3], "(8, 6, 3)"),
        ]
    ],
    (
        dataset({"others": DATA}).batch(2),
        "`data` must have all inputs of the model, ['features']. "
        "Received: keys=['others']",
    ),
    (
        (DATA, DATA),
        "`data` must have one array for each of the 1 inputs of the model. "
        "Received: 2 arrays",
    ),
    (
        {"features": DATA, "more": DATA[:3]},
        "`data` must be of one length. Received: lengths=[8, 3]",
    ),
    *[
        (data, f"{NUMBERS}Received: dtype {dtype}")
        for data, dtype in [
            (np.full((8, 6, 4), "a"), "str32"),
            ({"features": np.full((8, 6, 4), b"a")}, "bytes8"),
            (np.full((8, 6, 4), None), "object"),
            (DATA.astype("complex64"), "complex64"),
            (tf.cast(DATA, "complex128"), "complex128"),
            (DATA.astype("datetime64[s]"), "datetime64[s]"),
            (dataset(np.full((1, 8, 6, 4), "a")), "string"),
            (dataset(DATA[None].astype("complex64")), "complex64"),
        ]
    ],
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
    *rows(attach, "sync", no_choices("sync", "True or False")),
    *rows(attach, "max_tokens", no_positive_ints("max_tokens")),
    *rows(attach, "seed", no_seeds()),
    *unpacked(attach, no_keras_arguments()),
    *rows(attach_regularizer, "regularizer", NO_REGULARIZERS),
    *rows(
        lambda model, layers: attach_regularizer(model, COSINE(), layers),
        "layers",
        NO_LAYERS,
    ),
    *rows(
        lambda model, layers: attach_regularizer(model, ISOBN(), layers),
        "layers",
        [
            (
                value,
                "`layers` must be None or the name of a layer that the model "
                "itself calls, once, to make a sentence embedding "
                "`(batch, dim)`. Layers with such outputs are: []. "
                f"Received: layers={value!r}",
            )
            for value in ("all", "encoder", 0, [])
        ],
    ),
    pytest.param(
        keras_istar.detach,
        {},
        "`model` must have been attached before. Received: model='model'",
    ),
    *rows(measure, "layers", NO_LAYERS),
    *rows(measure, "data", NO_DATA + NO_STATES),
    *rows(measure, "metrics", NO_METRICS),
    *rows(measure, "max_tokens", no_positive_ints("max_tokens")),
    *rows(measure, "shrinkage", no_fractions("shrinkage")),
    *rows(
        measure,
        "sample_tokens",
        no_positive_ints("sample_tokens", at_most=100_000),
    ),
    *rows(measure, "batch_size", no_positive_ints("batch_size")),
    *rows(measure, "seed", no_seeds()),
    *rows(measure, "verbose", no_choices("verbose", "0 or 1")),
    *rows(fit, "data", NO_DATA),
    *rows(fit, "max_tokens", no_positive_ints("max_tokens")),
    *rows(
        fit,
        "update_freq",
        no_positive_ints(
            "update_freq", "'start', 'epoch' or a positive integer"
        ),
    ),
    *rows(fit, "batch_size", no_positive_ints("batch_size")),
    *rows(
        fit,
        "log_dir",
        [
            (v, rule("log_dir", "`None` or a path", v))
            for v in (5, b"logs", "", UNKNOWN, True)
        ],
    ),
    *rows(fit, "verbose", no_choices("verbose", "0 or 1")),
]


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.mark.parametrize("function, kwargs, message", MODELS)
def test_wrong_arguments_leave_the_model_alone(
    model, function, kwargs, message
):
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
    for _ in range(2):
        attach_regularizer(model, layer, "pooled")
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
