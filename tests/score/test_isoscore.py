import functools

import keras
import numpy as np
import oracle
import pytest
from keras import ops

import keras_istar

SPECTRA = ("isotropic", "repeated", "rank_one", "decaying", "two_planes")
FAMILIES = (*SPECTRA, "gaussian", "outlier")
SHAPES = [(2, 2), (5, 2), (5000, 2), (40, 3), (7, 16), (300, 16), (90, 64)]
# Mean in standard deviations, and scale.
PLACES = [(0.0, 1.0), (3.0, 1e-4), (1e2, 1e4), (1e4, 1.0), (1e4, 1e-2)]
SMALL = [
    (family, *shape, *place)
    for i, family in enumerate(FAMILIES)
    for j, shape in enumerate(SHAPES)
    for k, place in enumerate(PLACES)
    if (i + j + k) % 2 == 0
]
LARGE = [
    (family, tokens, 768, *place)
    for family, place in zip(FAMILIES, PLACES + PLACES, strict=False)
    for tokens in (2, 50)
]
LARGE += [
    ("gaussian", 5000, 768, 1e4, 1.0),
    ("outlier", 5000, 768, 3.0, 1e-4),
]


def _spectrum(family, rng, rank):
    """Standard deviations along the principal axes."""
    return {
        "isotropic": np.ones(rank),
        "repeated": rng.choice([1.0, 3.0], size=rank),
        "rank_one": np.eye(rank)[0],
        "decaying": 0.9 ** np.arange(rank),
        "two_planes": np.where(np.arange(rank) < 2, 1.0, 0.05),
    }[family]


@functools.cache
def _directions(tokens, dim):
    """Centered orthonormal columns, and a rotation: exact spectra."""
    rng = np.random.default_rng(tokens + dim)
    rank = min(tokens - 1, dim)
    columns = rng.normal(size=(tokens, rank))
    columns, _ = np.linalg.qr(columns - columns.mean(axis=0))
    rotation, _ = np.linalg.qr(rng.normal(size=(dim, rank)))
    return columns * np.sqrt(tokens - 1), rotation.T


def _cloud(family, tokens, dim, offset=0.0, scale=1.0):
    rng = np.random.default_rng(len(family) + tokens + dim)
    if family in SPECTRA:
        columns, rotation = _directions(tokens, dim)
        points = columns * _spectrum(family, rng, len(rotation)) @ rotation
    else:
        points = rng.normal(size=(tokens, dim))
    if family == "outlier":
        points[:, 0] *= 1e3
    mean = offset * points.std() * rng.choice([-1, 1], size=dim)
    return (scale * (points + mean)).astype("float32")


def _assert_gradient(actual, expected, scale):
    assert actual.shape == expected.shape
    error, size = (actual - expected) * scale, np.abs(expected * scale)
    assert np.linalg.norm(error) <= 1e-4 * np.linalg.norm(size) + 1e-6
    assert np.all(np.abs(error) <= 1e-4 * np.maximum(size, 1.0))


@pytest.mark.parametrize("family, tokens, dim, offset, scale", SMALL + LARGE)
def test_score_and_gradient_are_the_papers(
    gradient, family, tokens, dim, offset, scale
):
    points = _cloud(family, tokens, dim, offset, scale)
    cov = oracle.covariance(points)
    score = float(keras_istar.isoscore(points))
    assert abs(score - oracle.score(cov)) < 1e-5
    _assert_gradient(
        gradient(keras_istar.isoscore, points),
        oracle.score_gradient(points),
        np.sqrt(np.max(np.diag(cov))),
    )


def test_there_are_at_least_100_clouds():
    assert len(SMALL + LARGE) >= 100


@pytest.mark.parametrize("tokens, dim", [(9, 3), (4, 6)])
def test_oracle_gradient_is_the_slope_of_the_eigenvalue_score(rng, tokens, dim):
    points = rng.normal(size=(tokens, dim)) * np.arange(1, dim + 1)
    slopes = np.zeros_like(points)
    for index in np.ndindex(points.shape):
        step = np.zeros_like(points)
        step[index] = 1e-5
        ahead, behind = (
            oracle.score(oracle.covariance(points + s)) for s in (step, -step)
        )
        slopes[index] = (ahead - behind) / 2e-5
    np.testing.assert_allclose(
        oracle.score_gradient(points), slopes, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("family", FAMILIES)
def test_extreme_scales_keep_score_and_gradient(gradient, family, scale):
    points = _cloud(family, 300, 16)
    points *= np.float32(scale) / max(np.abs(points).max(), 1.0)
    score = float(keras_istar.isoscore(points))
    assert abs(score - oracle.score(oracle.covariance(points))) < 1e-5
    actual = gradient(keras_istar.isoscore, points)
    assert np.all(np.isfinite(actual))
    _assert_gradient(
        actual.astype("float64"),
        oracle.score_gradient(points),
        points.std(dtype="float64"),
    )


@pytest.mark.parametrize("size", [1e20, 1e38, 3.4e38])
def test_points_whose_sum_float32_does_not_hold(rng, size):
    points = rng.uniform(-1.0, 1.0, size=(300, 6)) * [1, 1, 1, 0.5, 0.1, 0.01]
    points[:, 0] = abs(points[:, 0])
    expected = oracle.score(oracle.covariance(points))
    points = (size * points).astype("float32")
    assert abs(float(keras_istar.isoscore(points)) - expected) < 1e-5
    # The scale of the points makes that of the target nothing.
    star = keras_istar.isoscore_star(points, np.eye(6, dtype="float32"), 0.5)
    assert abs(float(star) - expected) < 1e-5


@pytest.mark.parametrize(
    "points, mask",
    [
        (np.ones((1, 4)), None),
        (np.full((9, 4), 3.7), None),
        (np.full((9, 4), 1e30), None),
        (np.zeros((9, 4)), None),
        (np.zeros((0, 4)), None),
        (np.random.default_rng(0).normal(size=(9, 4)), np.zeros(9)),
        (np.random.default_rng(0).normal(size=(9, 4)), np.eye(9)[2]),
        (np.full((9, 4), np.nan), np.zeros(9)),
    ],
)
def test_no_spread_scores_zero_with_zero_gradient(gradient, points, mask):
    points = points.astype("float32")

    def function(x):
        return keras_istar.isoscore(x, mask)

    assert float(function(points)) == 0
    by_points = gradient(function, points)
    assert by_points.shape == points.shape
    assert not np.any(by_points)


def test_zero_matrix_scores_zero_with_zero_gradient(gradient):
    zero = np.zeros((4, 4), "float32")
    assert float(keras_istar.isoscore_from_covariance(zero)) == 0
    assert not np.any(gradient(keras_istar.isoscore_from_covariance, zero))
    assert float(keras_istar.isoscore_star(zero, zero)) == 0


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_covariance_of_any_scale(rng, scale):
    cov = oracle.covariance(rng.normal(size=(30, 6)))
    scaled = (cov * scale).astype("float32")
    score = float(keras_istar.isoscore_from_covariance(scaled))
    assert abs(score - oracle.score(cov)) < 1e-5


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e38])
def test_masked_is_the_subset(rng, gradient, junk):
    points = rng.normal(size=(4, 10, 6)).astype("float32")
    mask = rng.random((4, 10)) < 0.5
    points[~mask] = junk
    target = oracle.covariance(rng.normal(size=(50, 6))).astype("float32")

    def masked(x):
        return keras_istar.isoscore_star(x, target, 0.3, mask=mask)

    def subset(x):
        return keras_istar.isoscore_star(x, target, 0.3)

    expected = gradient(subset, points[mask])
    actual = gradient(masked, points)
    assert float(masked(points)) == pytest.approx(
        float(subset(points[mask])), abs=1e-6
    )
    np.testing.assert_allclose(actual[mask], expected, atol=1e-6)
    assert not np.any(actual[~mask])
    assert float(keras_istar.isoscore(points, mask)) == pytest.approx(
        oracle.score(oracle.covariance(points[mask])), abs=1e-5
    )


@pytest.mark.parametrize("shrinkage", [0, 0.2, 0.9, 1])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_star_shrinks_towards_the_target(rng, shrinkage, scale):
    points = (scale * rng.normal(size=(7, 5))).astype("float32")
    target = scale**2 * oracle.covariance(rng.normal(size=(99, 5)) * 3)
    target = target.astype("float32")
    actual = float(keras_istar.isoscore_star(points, target, shrinkage))
    expected = oracle.score(oracle.shrunk(points, shrinkage, target))
    assert actual == pytest.approx(expected, abs=1e-5)


def test_star_of_one_point_is_the_score_of_the_target(rng):
    target = oracle.covariance(rng.normal(size=(50, 4)))
    actual = keras_istar.isoscore_star(np.ones((1, 4)), target, 0.2)
    assert float(actual) == pytest.approx(oracle.score(target), abs=1e-5)


@pytest.mark.parametrize("transform", ["shift", "scale", "rotate", "reorder"])
def test_invariances(rng, transform):
    points = rng.normal(size=(40, 5)) * [1, 2, 3, 4, 5]
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    moved = {
        "shift": points + 100,
        "scale": points * -7,
        "rotate": points @ rotation,
        "reorder": points[::-1, ::-1],
    }[transform]
    assert float(keras_istar.isoscore(moved)) == pytest.approx(
        float(keras_istar.isoscore(points)), abs=1e-5
    )


def test_integers_narrow_floats_and_more_axes(rng):
    points = rng.integers(-9, 9, size=(2, 3, 8, 4))
    expected = oracle.score(oracle.covariance(points.reshape(-1, 4)))
    for dtype in ("int32", "float16", "bfloat16", "float32"):
        score = keras_istar.isoscore(ops.cast(points, dtype))
        assert keras.backend.standardize_dtype(score.dtype) == "float32"
        assert float(score) == pytest.approx(expected, abs=1e-5)


SHORT = (
    "`points` must have at least two dimensions, `(..., dim)`. "
    "Received: points.shape=(3,)"
)
NARROW = (
    "`points` must have a last axis of known size, at least 2. "
    "Received: points.shape=(3, 1)"
)
MASK = (
    "`mask` must have the shape of `points` without its last axis, (3,). "
    "Received: mask.shape=(3, 1)"
)
SQUARE = (
    "`shrinkage_covariance` must be a square matrix `(dim, dim)`. "
    "Received: shrinkage_covariance.shape=(2, 3)"
)
UNFIT = (
    "`shrinkage_covariance` must have shape (2, 2) to fit dim=2. "
    "Received: shrinkage_covariance.shape=(3, 3)"
)
SHRINKAGE = "`shrinkage` must be between 0 and 1. Received: shrinkage=1.5"
COVARIANCE = (
    "`covariance` must be a square matrix `(dim, dim)`. "
    "Received: covariance.shape=(2, 3)"
)
ONE_BY_ONE = (
    "`covariance` must have a last axis of known size, at least 2. "
    "Received: covariance.shape=(1, 1)"
)


@pytest.mark.parametrize(
    "function, args, message",
    [
        ("isoscore", [np.ones(3)], SHORT),
        ("isoscore", [np.ones((3, 1))], NARROW),
        ("isoscore", [np.ones((3, 2)), np.ones((3, 1))], MASK),
        ("isoscore_star", [np.ones(3), np.eye(2)], SHORT),
        ("isoscore_star", [np.ones((3, 2)), np.ones((2, 3))], SQUARE),
        ("isoscore_star", [np.ones((3, 2)), np.eye(3)], UNFIT),
        ("isoscore_star", [np.ones((3, 2)), np.eye(2), 1.5], SHRINKAGE),
        ("isoscore_from_covariance", [np.ones((2, 3))], COVARIANCE),
        ("isoscore_from_covariance", [np.ones((1, 1))], ONE_BY_ONE),
    ],
)
def test_errors_name_the_argument(function, args, message):
    with pytest.raises(ValueError) as error:
        getattr(keras_istar, function)(*args)
    assert str(error.value) == message


def _traced_operations(function, x):
    """Names of all operations of a function and of its gradient."""
    if keras.backend.backend() == "jax":
        import jax

        return str(jax.make_jaxpr(jax.value_and_grad(function))(x))
    import tensorflow as tf

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return value, tape.gradient(value, x)

    graph = step.get_concrete_function(tf.constant(x)).graph.as_graph_def()
    nodes = [*graph.node]
    for inner in graph.library.function:
        nodes += inner.node_def
    return " ".join(node.op for node in nodes)


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch runs eagerly"
)
def test_no_decomposition_is_traced(rng):
    points = rng.normal(size=(10, 4)).astype("float32")
    target = np.eye(4, dtype="float32")
    operations = _traced_operations(
        lambda x: keras_istar.isoscore_star(x, target), points
    ).lower()
    assert "dot_general" in operations or "matmul" in operations
    for name in ("svd", "eig", "cholesky"):
        assert name not in operations
