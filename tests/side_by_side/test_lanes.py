"""Clouds of lanes, and the term that a method adds to their loss."""

import numpy as np
import pytest
from side_by_side.methods import Method
from side_by_side.methods import parse_method

jax = pytest.importorskip("jax")
pytest.importorskip("keras_hub")

from side_by_side import lanes  # noqa: E402

_CLOUDS = 5  # The union, that without means, and three layers.
_START = np.array([0.3, 0.25, 0.4, 0.2, 0.1])
_INFERENCE = 0.9 * _START


def test_covariances_of_clouds(rng):
    states = rng.normal(size=(3, 2, 6, 4)) + rng.normal(size=(3, 1, 1, 4))
    mask = np.arange(6) < np.array([[6], [4]])
    covariances, share = lanes.cloud_covariances(
        list(states.astype("float32")), mask
    )
    layers = [state[mask] for state in states]
    centered = [x - x.mean(axis=0) for x in layers]
    expected = [
        np.cov(np.concatenate(layers).T),
        np.cov(np.concatenate(centered).T),
        *(np.cov(x.T) for x in layers),
    ]
    np.testing.assert_allclose(covariances, expected, rtol=1e-5, atol=1e-6)
    within = sum(np.square(x).sum() for x in centered)
    total = np.trace(expected[0]) * (3 * mask.sum() - 1)
    np.testing.assert_allclose(share, 1 - within / total, rtol=1e-5)


def test_loss_of_the_task(rng):
    logits, numbers = rng.normal(size=(5, 3)), rng.normal(size=5)
    labels = np.array([2.0, 0.0, 1.0, 1.0, 2.0])
    chosen = np.exp(logits[np.arange(5), labels.astype(int)])
    expected = -np.log(chosen / np.exp(logits).sum(axis=1)).mean()
    loss = lanes.task_loss(False, logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    loss = lanes.task_loss(True, logits[:, :1], numbers)
    expected = np.square(logits[:, 0] - numbers).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("of", ["", ",centered", ",per_layer"])
@pytest.mark.parametrize("target", ["0.5x", "0.2..0.35", "0.3", "0.2..2x"])
def test_term_pulls_like_the_squared_distance(rng, of, target):
    method = parse_method(f"istar:target={target}{of}")
    lane = lanes.make_lane(method, 0, _START, _INFERENCE, 100)
    weights = lanes.cloud_weights(method.of, _CLOUDS)
    unit = _START if method.is_relative else np.ones(_CLOUDS)

    def squared_distance(scores):
        nearest = jax.numpy.clip(scores, method.low * unit, method.high * unit)
        return 20.0 * (weights * (scores - nearest) ** 2).sum()

    scores = rng.uniform(0.05, 0.6, _CLOUDS).astype("float32")
    np.testing.assert_allclose(
        _slopes(lane, scores, step=7.0),
        jax.grad(squared_distance)(scores),
        rtol=1e-5,
        atol=1e-6,
    )


def test_plain_term_is_the_published_one(rng):
    lane = lanes.make_lane(Method(-0.5), 0, _START, _INFERENCE, 100)
    scores = rng.uniform(size=_CLOUDS).astype("float32")
    # strength * (1 - score) of the union.
    expected = np.eye(_CLOUDS)[0] * 0.5
    np.testing.assert_allclose(_slopes(lane, scores), expected, rtol=1e-6)


def _slopes(lane, scores, running_scores=None, step=0.0):
    """The gradient of the term with respect to the score of each cloud."""
    running = scores if running_scores is None else running_scores
    gradient = jax.grad(lanes.added_term, argnums=2)
    return gradient(lane, step, scores, running)


def test_error_may_be_that_of_the_running_score():
    running = np.full(_CLOUDS, 0.25, "float32")
    scores = np.full(_CLOUDS, 0.9, "float32")
    for error, held in {"running": 0.25, "batch": 0.9}.items():
        method = parse_method(f"istar:target=0.3,strength=10,error={error}")
        lane = lanes.make_lane(method, 0, _START, _INFERENCE, 100)
        slopes = _slopes(lane, scores, running)
        expected = [2 * 10 * (held - 0.3), 0, 0, 0, 0]
        np.testing.assert_allclose(slopes, expected, rtol=1e-5)


def test_score_can_be_that_of_inference():
    method = parse_method("istar:target=0.27,strength=1,at=inference")
    lane = lanes.make_lane(method, 0, _START, _INFERENCE, 100)
    # 0.3 with dropout is 0.27 without.
    scores = np.full(_CLOUDS, 0.3, "float32")
    np.testing.assert_allclose(_slopes(lane, scores), 0.0, atol=1e-6)


def test_target_moves_to_its_value():
    method = parse_method("istar:target=0.5x,strength=1,ramp=0.5")
    lane = lanes.make_lane(method, 0, _START, _INFERENCE, 100)
    scores = np.full(_CLOUDS, 0.3, "float32")
    slopes = [
        _slopes(lane, scores, step=step)[0] for step in (0.0, 25.0, 50.0, 99.0)
    ]
    # The union starts at 0.3, and the target is 0.15 after half of the steps.
    np.testing.assert_allclose(slopes, [0, 0.15, 0.3, 0.3], atol=1e-6)
