"""What functions, layers and metrics say to every kind of wrong argument."""

import re

import numpy as np
import pytest
from bad_values import INF
from bad_values import NAN
from bad_values import POINTS
from bad_values import UNKNOWN
from bad_values import no_choices
from bad_values import no_covariances
from bad_values import no_fractions
from bad_values import no_keras_arguments
from bad_values import no_masks
from bad_values import no_points
from bad_values import no_positive_ints
from bad_values import no_reals
from bad_values import no_seeds
from bad_values import no_shrinkage_covariances
from bad_values import no_tensors
from bad_values import no_values_of_covariances
from bad_values import rows
from bad_values import rule
from bad_values import unpacked

import keras_istar


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


STATES = "`hidden_states` must be a tensor `(..., dim)` or a list of them. "
NARROW = "must have a last axis of known size, at least 2. Received: "
MASKS = (
    "`mask` must be one mask or a list with one for each of the 1 "
    "`hidden_states`. Received: "
)
FLOATS = "`hidden_states` must be of one float dtype. Received: dtypes="
SENTENCES = (
    "`embeddings` must have two dimensions, `(batch, dim)`. "
    "Received: embeddings.shape="
)
ISTAR = keras_istar.IStarRegularization
COSINE = keras_istar.CosineRegularization
ISOBN = keras_istar.IsotropicBatchNormalization
CALLS = [
    *[
        (layer, (value,), message)
        for layer in (ISTAR, COSINE)
        for value, message in [
            (None, f"{STATES}Received: hidden_states.shape=None"),
            ([], f"{STATES}Received: hidden_states.shape=None"),
            *[
                (
                    np.ones(shape),
                    f"`hidden_states` {NARROW}hidden_states.shape={shape}",
                )
                for shape in [(4, 1), (4, 0)]
            ],
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
            (UNKNOWN, rule("mask", "a tensor or array of numbers", UNKNOWN)),
            ([POINTS] * 2, f"{MASKS}len(mask)=2"),
            ([], f"{MASKS}len(mask)=0"),
            (1.0, no_masks("hidden_states")[0][1]),
            *no_masks("hidden_states"),
        ]
    ],
    *[
        (ISOBN, (value,), message)
        for value, message in [
            (None, f"{SENTENCES}()"),
            ([], f"{SENTENCES}()"),
            ([POINTS[0], POINTS[0]], f"{SENTENCES}((3, 5), (3, 5))"),
            (POINTS, f"{SENTENCES}(4, 3, 5)"),
            (np.ones(5), f"{SENTENCES}(5,)"),
            (np.ones((4, 1)), f"`embeddings` {NARROW}embeddings.shape=(4, 1)"),
            (
                np.ones((4, 5), "int32"),
                "`embeddings` must be of one float dtype. "
                "Received: dtypes=['int32']",
            ),
        ]
    ],
]


@pytest.mark.parametrize("layer, args, message", CALLS)
def test_wrong_calls_of_layers(layer, args, message):
    layer = layer()
    states, *mask = args
    with pytest.raises(ValueError) as error:
        layer(states, **dict(zip(["mask"], mask, strict=False)), training=True)
    assert without_frame(error) == message
    assert layer.losses == []


def without_frame(error):
    """What was said, without what Keras says around it."""
    text = str(error.value)
    framed = re.search("\x1b\\[1m(.*)\x1b\\[0m", text, re.DOTALL)
    return framed[1] if framed else text


@pytest.mark.parametrize("layer", [ISTAR, COSINE, ISOBN])
@pytest.mark.parametrize("value", ["text", UNKNOWN, 1.0])
def test_what_keras_gives_to_no_layer(layer, value):
    with pytest.raises(ValueError, match="Only input tensors may be passed"):
        layer()(value)


def score_of(**kwargs):
    metric = keras_istar.IsoScore()
    metric.update_state(None, **kwargs)
    return metric.result()


def loss_of(layer, states, mask=None):
    layer(states, mask=mask, training=True)
    return layer.losses[0]


@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e38])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, mask: score_of(y_pred=x, sample_weight=mask),
        lambda x, mask: loss_of(ISTAR(), x, mask),
        lambda x, mask: loss_of(COSINE(), x, mask),
    ],
)
def test_values_that_are_not_finite_show_unless_masked(function, junk):
    points = POINTS.reshape(12, 5).copy()
    points[3, 2] = junk
    is_good = np.arange(12) != 3
    if junk != 1e38:  # Of which cosines are fine.
        assert np.isnan(float(function(points, None)))
    expected = float(function(POINTS.reshape(12, 5)[is_good], None))
    for weight in (1.0, NAN, INF, 1e38):  # Whatever is not zero counts.
        mask = np.where(is_good, weight, 0.0).astype("float32")
        score = float(function(points, mask))
        assert score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("layer", [ISTAR, COSINE, ISOBN])
def test_calls_with_another_width_than_before(layer):
    layer = layer()
    layer(POINTS[0], training=True)
    before = [weight.numpy() for weight in layer.weights]
    with pytest.raises(ValueError, match="width"):
        layer(POINTS[0, :, :3], training=True)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
