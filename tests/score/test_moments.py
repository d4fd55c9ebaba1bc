import keras
import numpy as np
import oracle
import pytest
from keras import ops

from keras_istar._src.score import moments


def _cloud(rng, tokens, dim, offset=0.0):
    spread = np.exp(rng.normal(size=dim))
    mean = offset * spread * rng.choice([-1, 1], size=dim)
    return (mean + spread * rng.normal(size=(tokens, dim))).astype("float32")


def _relative_error(actual, expected):
    actual = ops.convert_to_numpy(actual).astype("float64")
    assert actual.shape == expected.shape
    width = np.sqrt(np.diag(expected))
    return np.max(np.abs(actual - expected) / np.outer(width, width))


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("tokens, dim", [(2, 3), (50, 8), (3000, 16)])
def test_covariance_is_unbiased_and_centered(rng, tokens, dim, offset):
    points = _cloud(rng, tokens, dim, offset)
    seen = moments.token_moments(points)
    assert float(seen.count) == tokens
    mean = np.asarray(seen.center, "float64") + np.asarray(seen.offset)
    spread = points.std(axis=0, dtype="float64")
    assert np.max(np.abs(mean - points.mean(0, "float64")) / spread) < 1e-5
    expected = oracle.covariance(points)
    assert _relative_error(moments.covariance(seen), expected) < 1e-5


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("sizes", [[500, 500], [1, 2, 497, 500], [20] * 50])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_order_and_split_do_not_matter(rng, offset, sizes, one_by_one):
    points = _cloud(rng, 1000, 6, offset)
    groups = np.split(rng.permutation(1000), np.cumsum(sizes)[:-1])
    parts = [moments.token_moments(points[group]) for group in groups]
    if one_by_one:
        total = parts[0]
        for part in parts[1:]:
            total = moments.combine([total, part])
    else:
        total = moments.combine(parts)
    assert float(total.count) == 1000
    expected = oracle.covariance(points)
    assert _relative_error(moments.covariance(total), expected) < 1e-5


def test_union_without_means_is_that_of_centered_states(rng):
    states = [_cloud(rng, 30, 5, 3.0), _cloud(rng, 70, 5, -3.0)]
    mask = np.arange(70) < 50
    seen = moments.union_moments(states, [None, mask], centered=True)
    parts = [states[0], states[1][:50]]
    centered = np.concatenate(
        [x - x.mean(axis=0, dtype="float64") for x in parts]
    )
    assert float(seen.count) == 80
    assert _relative_error(seen.scatter, centered.T @ centered) < 1e-5
    np.testing.assert_array_equal(seen.center + seen.offset, np.zeros(5))


def test_groups_far_apart_combine(rng):
    groups = [_cloud(rng, 20, 4, offset) for offset in (0.0, 50.0, 1e3)]
    total = moments.combine([moments.token_moments(g) for g in groups])
    expected = oracle.covariance(np.concatenate(groups))
    assert _relative_error(moments.covariance(total), expected) < 1e-5


def test_empty_parts_change_nothing(rng):
    points = _cloud(rng, 30, 4, 1e3)
    full = moments.token_moments(points)
    empty = moments.token_moments(points * np.nan, np.zeros(30))
    assert float(empty.count) == 0
    for parts in ([empty, full], [full, empty], [empty, full, empty]):
        for actual, expected in zip(moments.combine(parts), full, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-6)
    for value in moments.combine([empty, empty]):
        assert not np.any(ops.convert_to_numpy(value))


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_masked_tokens_may_hold_anything(rng, gradient, junk, dtype):
    states = _cloud(rng, 24, 5).reshape(4, 6, 5)
    mask = rng.random((4, 6)) < 0.6
    states[~mask] = junk
    mask_tensor = mask.astype(dtype)
    weights = rng.normal(size=(5, 5)).astype("float32")

    def function(x):
        scatter = moments.token_moments(x, mask_tensor).scatter
        return ops.sum(scatter * weights)

    expected = oracle.covariance(states[mask]) * (mask.sum() - 1)
    actual = moments.token_moments(states, mask_tensor)
    np.testing.assert_allclose(actual.scatter, expected, rtol=1e-4, atol=1e-4)
    deviations = states[mask] - states[mask].mean(axis=0)
    by_states = gradient(function, states)
    assert not np.any(by_states[~mask])
    np.testing.assert_allclose(
        by_states[mask], deviations @ (weights + weights.T), atol=1e-4
    )


def test_gradient_reaches_the_mean_of_each_part(rng, gradient):
    points = _cloud(rng, 12, 3)
    weights = rng.normal(size=(3, 3)).astype("float32")

    def function(x):
        parts = [moments.token_moments(x[:5]), moments.token_moments(x[5:])]
        return ops.sum(moments.covariance(moments.combine(parts)) * weights)

    deviations = points - points.mean(axis=0)
    np.testing.assert_allclose(
        gradient(function, points),
        deviations @ (weights + weights.T) / 11,
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_states_are_summed_in_float32(rng, dtype):
    narrow = ops.cast(_cloud(rng, 2000, 4), dtype)
    expected = oracle.covariance(
        ops.convert_to_numpy(ops.cast(narrow, "float32"))
    )
    seen = moments.token_moments(narrow)
    assert {str(ops.convert_to_numpy(x).dtype) for x in seen} == {"float32"}
    assert _relative_error(moments.covariance(seen), expected) < 1e-5


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has float64 off by default"
)
def test_float64_stays_float64(rng):
    points = rng.normal(size=(50, 4)) + 1e6
    seen = moments.covariance(moments.token_moments(points))
    assert ops.convert_to_numpy(seen).dtype == "float64"
    assert _relative_error(seen, oracle.covariance(points)) < 1e-9


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has float64 off by default"
)
def test_float32_keeps_the_mean_as_a_sum(rng):
    points = 1e3 + rng.normal(size=(5, 3))
    seen = moments.to_float32(
        moments.token_moments(ops.convert_to_tensor(points))
    )
    for part in seen:
        assert keras.backend.standardize_dtype(part.dtype) == "float32"
    mean = np.asarray(seen.center, "float64") + np.asarray(seen.offset)
    np.testing.assert_allclose(mean, points.mean(axis=0), rtol=1e-13)


def test_fewer_than_two_tokens_have_no_spread(rng):
    points = _cloud(rng, 3, 4, 10.0)
    for mask in ([0, 0, 0], [0, 1, 0]):
        seen = moments.token_moments(points, np.array(mask))
        assert not np.any(ops.convert_to_numpy(moments.covariance(seen)))


def test_shrink_and_scaled_identity(rng):
    cov = oracle.covariance(_cloud(rng, 20, 3)).astype("float32")
    target = np.diag([1.0, 2.0, 3.0]).astype("float32")
    np.testing.assert_allclose(
        moments.shrink(cov, target, 0.3), 0.7 * cov + 0.3 * target, rtol=1e-6
    )
    np.testing.assert_allclose(
        moments.scaled_identity(ops.convert_to_tensor(cov)),
        np.trace(cov) / 3 * np.eye(3),
        rtol=1e-6,
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_state_without_tokens_changes_no_gradient(rng, gradient, place):
    first = _cloud(rng, 7, 4)
    scales = ops.convert_to_tensor(rng.normal(size=(4, 4)).astype("float32"))

    def weighted(states):
        union = moments.union_moments(states, [None] * len(states))
        return ops.sum(scales * moments.covariance(union))

    def with_empty(x):
        states = [x, 2.0 * x + 1.0]
        states.insert(place, ops.zeros((0, 4)) * ops.sum(x))
        return weighted(states)

    expected = gradient(lambda x: weighted([x, 2.0 * x + 1.0]), first)
    assert np.max(np.abs(expected)) > 0.1
    np.testing.assert_allclose(
        gradient(with_empty, first), expected, rtol=1e-5, atol=1e-6
    )
