"""Properties that hold for any shape, mask, dtype and scale.

    pytest tests/score/test_properties.py --hypothesis-profile random

tries other examples than the usual ones.
"""

import numpy as np
import oracle
import pytest
from hypothesis import assume
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from hypothesis.extra.numpy import arrays
from keras import ops
from strategies import as_tensor
from strategies import clouds
from strategies import fractions
from strategies import masked_clouds
from strategies import rounded
from strategies import strengths
from strategies import units

import keras_istar
from keras_istar._src.score import moments

EPS64 = float(np.finfo("float64").eps)
JUNK = [np.nan, np.inf, -np.inf, 0.0, 6e4]
COUNTS = []


def examples(count):
    """Runs a test on `count` examples, or on fewer if the profile says so."""
    COUNTS.append(count)
    return settings(max_examples=min(count, settings.default.max_examples))


def _eps(dtype):
    return np.finfo("float64" if dtype == "float64" else "float32").eps


def _smallest(dtype):
    return np.finfo("float64" if dtype == "float64" else "float32").tiny


def _tolerance(dtype, tokens, dim):
    """How much the rounding of sums may move a score.

    A sum of n products is off by up to γ = n·eps/2 times the sum of their
    absolutes. That moves tr by γ·tr and ‖Σ‖_F by γ·tr ≤ γ·√dim·‖Σ‖_F, and
    tr²/‖Σ‖_F²/(dim − 1) ≤ 2 by 2·2·γ·(1 + √dim), to first order.
    """
    return 2.0 * (tokens + dim) * (1.0 + np.sqrt(dim)) * _eps(dtype)


def _rounding_tolerance(dtype, points):
    """How much the rounding of the points themselves may move a score.

    It puts each point off by eps/2 of its size, so the deviations X in all by
    ‖E‖_F = ε·‖X‖_F, ε = eps/2·‖points‖_F/‖X‖_F. That moves tr by 2ε·tr and
    ‖Σ‖_F by 2·‖X‖₂·‖E‖_F/(n − 1) ≤ 2ε·√dim·‖Σ‖_F.
    """
    spread = np.linalg.norm(points - points.mean(axis=0))
    dim = points.shape[-1]
    off = _eps(dtype) / 2 * np.linalg.norm(points) / spread
    return 2.0 * 4.0 * off * (1.0 + np.sqrt(dim))


def _underflow_tolerance(points):
    """How much squares that float32 takes for zero may move a score.

    They put entries of the scatter off by n·tiny, so tr and ‖·‖_F by dim times
    that, where ‖·‖_F is no less than its largest entry.
    """
    n, dim = points.shape
    largest = np.max(oracle.covariance(points)) * max(n - 1, 1)
    return 4.0 * dim * n * _smallest("float32") / largest if largest > 0 else 0


def _assert_score(score, covariance, tokens, dtype, tolerance=0.0):
    assert tuple(score.shape) == ()
    assert 0.0 <= float(score) <= 1.0
    tolerance += _tolerance(dtype, tokens, len(covariance))
    tolerance += 1e-12  # The expected score's own rounding.
    # Rounding may have left a covariance an eigenvalue below zero.
    expected = max(oracle.score(covariance), 0.0)
    assert abs(float(score) - expected) <= tolerance


@examples(200)
@given(masked_clouds())
def test_isoscore_is_the_papers(cloud):
    points, mask, dtype = cloud
    score = keras_istar.isoscore(as_tensor(points, dtype), mask)
    chosen = points[mask]
    _assert_score(score, oracle.covariance(chosen), len(chosen), dtype)


@examples(125)
@given(masked_clouds(), fractions, st.integers(-6, 6), st.data())
def test_isoscore_star_is_the_papers(cloud, shrinkage, power, data):
    points, mask, dtype = cloud
    dim = points.shape[-1]
    factor = data.draw(arrays("float64", (dim, dim), elements=units))
    unit = np.max(np.abs(points - points.mean((0, 1)))) or 1.0
    target = (unit * 10.0**power) ** 2 * (factor @ factor.T)
    target = rounded(np.clip(target, -1e37, 1e37), "float32")
    score = keras_istar.isoscore_star(
        as_tensor(points, dtype), target.astype("float32"), shrinkage, mask
    )
    shrunk = oracle.shrunk(points[mask], shrinkage, target)
    assume(not 0 < np.max(shrunk) < 1e-30)  # Of which float32 keeps less.
    _assert_score(score, shrunk, len(points[mask]), dtype)


@examples(100)
@given(clouds(dtypes=["float32"], min_tokens=2), st.integers(-30, 30))
def test_score_of_a_covariance_is_the_papers(cloud, power):
    points, _ = cloud
    cov = oracle.covariance(points.reshape(-1, points.shape[-1]))
    cov = cov / (np.max(cov) or 1.0) * 10.0**power
    cov = rounded(cov, "float32")
    score = keras_istar.isoscore_from_covariance(cov.astype("float32"))
    _assert_score(score, cov, 1, "float32")


@examples(100)
@given(
    array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    st.integers(2, 5),
    st.sampled_from(["int8", "uint8", "int32", "float16", "float32"]),
    st.sampled_from(["bool", "int8", "uint8", "int32", "float32"]),
    st.integers(0, 2**32 - 1),
)
def test_cloud_of_any_shape_is_its_tokens(shape, dim, dtype, mask_dtype, seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 100, size=(*shape, dim)).astype(dtype)
    mask = rng.integers(-1, 2, size=shape).astype(mask_dtype)
    chosen = points[mask != 0].astype("float64")
    expected = oracle.covariance(chosen)
    score = keras_istar.isoscore(points, mask)
    _assert_score(score, expected, len(chosen), "float32")
    points = as_tensor(points, "float32")
    layer = keras_istar.IStarRegularization(1.0, shrinkage=0.0)
    assert layer(points, mask=mask, training=True) is points
    _assert_score(1.0 - layer.losses[0], expected, len(chosen), "float32")
    metric = keras_istar.IsoScore()
    metric.update_state(None, points, mask)
    _assert_score(metric.result(), expected, len(chosen), "float32")


def _moved(points, how, rng):
    dim = points.shape[-1]
    if how == "rotation":
        return points @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    if how == "translation":
        widest = np.max(np.abs(points - points.mean(axis=0)))
        return points + 100.0 * widest * rng.uniform(-1, 1, size=dim)
    if how == "scaling":
        return points * rng.uniform(-9, 9)
    return rng.permutation(points)


@pytest.mark.parametrize(
    "how", ["rotation", "translation", "scaling", "permutation"]
)
@examples(75)
@given(clouds(dtypes=["float32"], furthest=30.0), st.integers(0, 2**32 - 1))
def test_score_is_invariant(how, cloud, seed):
    points, dtype = cloud
    points = points.reshape(-1, points.shape[-1])
    assume(np.any(points != points[0]))
    moved = _moved(points, how, np.random.default_rng(seed))
    before, after = (
        float(keras_istar.isoscore(as_tensor(x, dtype)))
        for x in (points, moved)
    )
    tolerance = 2.0 * _tolerance(dtype, *points.shape)
    tolerance += _rounding_tolerance(dtype, moved)
    assert abs(after - before) <= tolerance


@examples(125)
@given(masked_clouds(), st.sampled_from(JUNK))
def test_masked_is_the_subset(gradient, cloud, junk):
    points, mask, dtype = cloud
    chosen = points[mask]
    points[~mask] = junk
    score, subset = (
        float(keras_istar.isoscore(as_tensor(x, dtype), m))
        for x, m in ((points, mask), (chosen, None))
    )
    assert abs(score - subset) <= 2.0 * _tolerance(dtype, *chosen.shape)
    by_points = gradient(
        lambda x: keras_istar.isoscore(x, mask), as_tensor(points, dtype)
    )
    assert by_points.shape == points.shape
    assert np.all(np.isfinite(by_points.astype("float64")))
    assert not np.any(by_points[~mask])


@examples(100)
@given(masked_clouds(), st.data())
def test_split_moments_equal_whole_moments(cloud, data):
    points, mask, dtype = cloud
    owners = data.draw(
        arrays("int64", points.shape[:2], elements=st.integers(0, 3))
    )
    tensor = as_tensor(points, dtype)
    split = moments.combine(
        [moments.token_moments(tensor, mask & (owners == k)) for k in range(4)]
    )
    _assert_moments(split, points[mask], dtype)
    _assert_moments(moments.token_moments(tensor, mask), points[mask], dtype)


def _assert_moments(actual, points, dtype):
    actual = [ops.convert_to_numpy(x).astype("float64") for x in actual]
    count, center, offset, scatter = actual
    n, dim = points.shape
    assert count == n
    assert scatter.shape == (dim, dim)
    cov = oracle.covariance(points)
    # Of a dimension that hardly varies, the mean is off by its rounding, the
    # oracle's too: by n eps of the largest entry, in each of n deviations.
    rounding = n**1.5 * _eps(dtype) * np.max(np.abs(points), 0, initial=0)
    widths = np.sqrt(np.diag(cov) * max(n - 1, 1)) + rounding
    error = np.abs(scatter - cov * (n - 1) * (n > 1))
    allowed = 2 * (n + 5) * _eps(dtype) * np.outer(widths, widths)
    allowed += np.outer(rounding, rounding) * (dtype == "float64")
    assert np.all(error <= allowed + n * _smallest(dtype))
    if n > 0:
        mean = points.mean(axis=0)
        # The mean that is expected is rounded too, in float64.
        largest = np.max(np.abs(points), axis=0)
        allowed = (n + 5) * _eps(dtype) * widths + n * EPS64 * largest
        error = np.abs(center + offset - mean)
        assert np.all(error <= allowed + 2 * _smallest(dtype))


@examples(150)
@given(
    masked_clouds(),
    strengths,
    fractions,
    st.none() | st.integers(1, 100),
)
def test_layer_is_an_identity_with_the_papers_penalty(
    cloud, strength, shrinkage, max_tokens
):
    points, mask, dtype = cloud
    states = [as_tensor(x[None], dtype) for x in points]
    policy = dtype if "64" in dtype else f"mixed_{dtype}"
    layer = keras_istar.IStarRegularization(
        strength,
        shrinkage,
        max_tokens=max_tokens,
        dtype="float32" if dtype == "float32" else policy,
    )
    output = layer(states, mask=[m[None] for m in mask], training=True)
    assert output is states[-1]
    (penalty,) = layer.losses
    assert 0.0 <= float(penalty) / (np.float32(strength) or 1.0) <= 1.0
    if max_tokens is not None and max_tokens < mask.size:
        return
    chosen = points[mask]
    if not np.any(chosen != chosen[:1]):
        return  # Shrinkage makes a sphere of whatever rounding left.
    expected = oracle.penalty(chosen, strength, shrinkage)
    tolerance = _tolerance("float32", *chosen.shape)
    tolerance += _underflow_tolerance(chosen)
    assert abs(float(penalty) - expected) <= abs(strength) * tolerance


@examples(100)
@given(masked_clouds(), fractions, st.sampled_from(["I-STAR", "CosReg"]))
def test_penalties_have_finite_gradients(gradient, cloud, shrinkage, kind):
    points, mask, dtype = cloud
    layer = {
        "I-STAR": keras_istar.IStarRegularization(1.0, shrinkage),
        "CosReg": keras_istar.CosineRegularization(1.0),
    }[kind]

    def penalty(x):
        layer(x, mask=mask, training=True)
        return layer.losses[0]

    by_points = gradient(penalty, as_tensor(points, dtype))
    assert by_points.shape == points.shape
    assert np.all(np.isfinite(by_points.astype("float64")))
    assert not np.any(by_points[~mask])


@examples(100)
@given(masked_clouds(), st.integers(1, 4))
def test_streamed_metric_is_the_score_of_all(cloud, batch_size):
    points, mask, dtype = cloud
    metric = keras_istar.IsoScore()
    for start in range(0, len(points), batch_size):
        batch = slice(start, start + batch_size)
        metric.update_state(None, as_tensor(points[batch], dtype), mask[batch])
    chosen = points[mask]
    _assert_score(
        metric.result(),
        oracle.covariance(chosen),
        len(chosen),
        "float32",
        _underflow_tolerance(chosen),
    )


@examples(100)
@given(masked_clouds())
def test_cosine_is_the_mean_of_all_pairs(cloud):
    points, mask, dtype = cloud
    layer = keras_istar.CosineRegularization(1.0)
    states = as_tensor(points, dtype)
    assert layer(states, mask=mask, training=True) is states
    chosen = points[mask]
    norms = np.linalg.norm(chosen, axis=-1, keepdims=True)
    units = chosen / np.where(norms > 0, norms, 1.0)
    cosines = units @ units.T
    n, dim = chosen.shape
    expected = (cosines.sum() - np.trace(cosines)) / max(n * (n - 1), 1)
    error = abs(float(layer.losses[0]) - expected)
    # |Σ x̂|² is at most n², and off by (n + dim) eps of that.
    assert error <= 4.0 * (n + dim) * _eps("float32")


@examples(75)
@given(clouds(dtypes=["float32"], furthest=1.0), fractions)
def test_batch_normalization_adds_no_variance(cloud, beta):
    points, dtype = cloud
    points = points.reshape(-1, points.shape[-1])
    layer = keras_istar.IsotropicBatchNormalization(beta=beta)
    embeddings = as_tensor(points, dtype)
    np.testing.assert_array_equal(layer(embeddings), embeddings)
    scaled = rounded(layer(embeddings, training=True), dtype)
    assert np.all(np.isfinite(scaled))
    before, after = (np.trace(oracle.covariance(x)) for x in (points, scaled))
    tolerance = 2.0 * _tolerance(dtype, *points.shape)
    if before > 0:
        tolerance += _rounding_tolerance(dtype, points)
    assert after <= before * (1.0 + tolerance)


def test_there_are_at_least_1000_examples():
    assert sum(COUNTS) >= 1_000
