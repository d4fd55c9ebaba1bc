"""What checks of arguments let pass, and what they make of it."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_istar
from keras_istar._src import validation


def covariance(rng, dtype="float32", dim=64):
    """From 40 points, multiplied in `dtype`."""
    points = ops.cast(rng.normal(size=(40, dim)) * np.arange(1, dim + 1), dtype)
    return ops.matmul(ops.transpose(points), points) / 39


@pytest.mark.parametrize("value", [1, 2.5, -3, np.float32(0.5), np.int64(4)])
def test_real_numbers_become_floats(value):
    checked = validation.check_real("x", value)
    assert type(checked) is float
    assert checked == value


def test_ends_of_ranges():
    assert [validation.check_fraction("x", v) for v in (0, 1, 0.5)] == [
        0,
        1,
        0.5,
    ]
    for value in (-1e-9, 1.0001):
        with pytest.raises(ValueError, match="`x` must be between 0 and 1"):
            validation.check_fraction("x", value)
    assert validation.check_momentum(None) is None
    assert validation.check_momentum(0.5) == 0.5
    assert type(validation.check_positive_int("n", np.int32(3))) is int


@pytest.mark.parametrize(
    "mask_shape, shape, fits",
    [
        ((2, 3), (2, 3, 4), True),
        ((None, 3), (2, 3, 4), True),
        ((2, 3), (None, None, 4), True),
        ((2,), (2, 3, 4), False),
        ((3, 2), (2, 3, 4), False),
        ((2, 3, 4), (2, 3, 4), False),
    ],
)
def test_mask_shapes(mask_shape, shape, fits):
    if fits:
        validation.check_mask_shape(mask_shape, shape, "points")
        return
    with pytest.raises(ValueError) as error:
        validation.check_mask_shape(mask_shape, shape, "points")
    assert str(error.value) == (
        "`mask` must have the shape of `points` without its last axis, "
        f"{shape[:-1]}. Received: mask.shape={mask_shape}"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_covariances_pass_with_the_rounding_of_their_dtype(rng, dtype):
    matrix = covariance(rng, dtype, dim=8)
    rounding = 4e-3 if dtype != "float32" else 3e-5
    noise = rounding * rng.uniform(-1, 1, size=(8, 8)) * float(ops.max(matrix))
    matrix = ops.cast(ops.cast(matrix, "float32") + noise, dtype)
    checked = validation.check_covariance("covariance", matrix, 8)
    assert checked.shape == (8, 8)
    assert keras.backend.standardize_dtype(checked.dtype) == dtype


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1.0, 1e38])
def test_covariances_pass_at_any_scale(scale):
    matrix = np.array([[2.0, 1.0], [1.0, 3.0]], "float32") * np.float32(scale)
    score = float(keras_istar.isoscore_from_covariance(matrix))
    assert 0.0 <= score <= 1.0


def test_a_variance_may_be_below_zero_by_rounding():
    matrix = np.diag([1.0, -1e-7])
    checked = validation.check_covariance("covariance", matrix, dim=2)
    np.testing.assert_allclose(ops.convert_to_numpy(checked), matrix)


def compiled(function, *arguments):
    """What a function returns when it is traced."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)(*arguments)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)(*arguments)
    pytest.skip("PyTorch runs eagerly")


@pytest.mark.parametrize("entry, symmetric", [(np.nan, False), (9.0, True)])
def test_traced_values_are_not_looked_at(rng, entry, symmetric):
    points = ops.cast(rng.normal(size=(9, 4)), "float32")
    matrix = np.eye(4, dtype="float32")
    matrix[0, 1] = entry
    matrix = ops.convert_to_tensor(matrix)
    for function, arguments in (
        (keras_istar.isoscore_from_covariance, [matrix]),
        (keras_istar.isoscore_star, [points, matrix]),
    ):
        score = float(compiled(function, *arguments))
        assert 0 <= score <= 1 if symmetric else np.isnan(score)


def test_gradient_of_a_checked_covariance(rng, gradient):
    matrix = ops.convert_to_numpy(covariance(rng, dim=6))
    by_entry = gradient(keras_istar.isoscore_from_covariance, matrix)
    # The score does not change with the scale.
    assert np.sum(by_entry * matrix) == pytest.approx(0, abs=1e-6)
    assert np.any(np.abs(by_entry) * matrix.max() > 1e-2)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_points_that_are_not_finite_have_no_score(rng, junk, dtype):
    points = rng.normal(size=(9, 4)).astype(dtype)
    points[3, 2] = junk
    assert np.isnan(float(keras_istar.isoscore(points)))
    assert np.isnan(float(keras_istar.isoscore_star(points, np.eye(4))))
    mask = np.arange(9) != 3
    assert 0 < float(keras_istar.isoscore(points, mask)) < 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -5, 0.1])
def test_whatever_is_not_zero_in_a_mask_counts(rng, value):
    points = rng.normal(size=(9, 4)).astype("float32")
    mask = np.where(np.arange(9) < 6, value, 0.0)
    score = float(keras_istar.isoscore(points, mask))
    assert score == pytest.approx(float(keras_istar.isoscore(points[:6])))


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_training_scores_what_is_not_finite_and_goes_on(rng, run_eagerly):
    inputs = keras.Input((4,))
    states = keras.layers.Dense(4)(inputs)
    hidden = keras_istar.IStarRegularization(strength=-1.0)(states)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    x = np.full((8, 4), np.nan, "float32")
    history = model.fit(x, x[:, :1], verbose=0).history
    assert np.isnan(history["loss"]).all()


def score_of(**kwargs):
    metric = keras_istar.IsoScore()
    metric.update_state(None, **kwargs)
    return metric.result()


def loss_of(layer, states, mask=None):
    layer(states, mask=mask, training=True)
    return layer.losses[0]


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, mask: score_of(y_pred=x, sample_weight=mask),
        lambda x, mask: loss_of(
            keras_istar.IStarRegularization(strength=-1.0), x, mask
        ),
        lambda x, mask: loss_of(keras_istar.CosineRegularization(), x, mask),
    ],
)
def test_values_that_are_not_finite_show_unless_masked(rng, function, junk):
    good = rng.normal(size=(12, 5)).astype("float32")
    points = good.copy()
    points[3, 2] = junk
    is_good = np.arange(12) != 3
    if junk != 1e38:  # Of which cosines are fine.
        assert np.isnan(float(function(points, None)))
    expected = float(function(good[is_good], None))
    for weight in (1.0, np.nan, np.inf, 1e38):  # Whatever is not zero counts.
        mask = np.where(is_good, weight, 0.0).astype("float32")
        score = float(function(points, mask))
        assert score == pytest.approx(expected, abs=1e-5)
