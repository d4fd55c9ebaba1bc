import keras
import numpy as np
import pytest

import keras_istar
from keras_istar._src.layers.cosine import mean_cosine


def _mean_pairwise_cosine(points):
    """Gao et al. 2019, pair by pair, in float64."""
    points = np.asarray(points, "float64")
    directions = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosines = directions @ directions.T
    off_diagonal = ~np.eye(len(points), dtype=bool)
    return cosines[off_diagonal].mean()


def _penalty(layer, *args, **kwargs):
    layer(*args, training=True, **kwargs)
    (loss,) = layer.losses
    return float(loss)


def test_contract(check_layer, rng):
    check_layer(
        keras_istar.CosineRegularization,
        init={"strength": 2.0, "sync": False, "name": "cosines"},
        x=rng.normal(size=(8, 6, 5)).astype("float32"),
        num_non_trainable=0,
    )


@pytest.mark.parametrize("strength", [1.0, -2.5, 0.0])
@pytest.mark.parametrize("count", [1, 3])
def test_penalty(rng, strength, count):
    states = [rng.normal(1.0, size=(3, 4, 7)) for _ in range(count)]
    layer = keras_istar.CosineRegularization(strength)
    expected = strength * _mean_pairwise_cosine(np.reshape(states, (-1, 7)))
    assert _penalty(layer, states) == pytest.approx(expected, abs=1e-6)


def test_masked_tokens_may_hold_anything(rng):
    states = rng.normal(1.0, size=(4, 5, 6))
    mask = rng.random((4, 5)) < 0.6
    expected = _mean_pairwise_cosine(states[mask])
    states[~mask] = np.nan
    layer = keras_istar.CosineRegularization(1.0)
    assert _penalty(layer, states, mask=mask) == pytest.approx(
        expected, abs=1e-6
    )


def test_gradient_equals_finite_differences(rng, gradient):
    points = rng.normal(0.5, size=(6, 4))

    def function(x):
        layer = keras_istar.CosineRegularization(1.0)
        return layer.measure([x], [None])

    expected = np.zeros_like(points)
    for index in np.ndindex(*points.shape):
        step = np.zeros_like(points)
        step[index] = 1e-6
        expected[index] = (
            _mean_pairwise_cosine(points + step)
            - _mean_pairwise_cosine(points - step)
        ) / 2e-6
    np.testing.assert_allclose(
        gradient(function, points.astype("float32")), expected, atol=1e-5
    )


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_too_few_tokens_have_no_pairs(rng, num_tokens):
    layer = keras_istar.CosineRegularization(1.0)
    mask = np.arange(3)[None] < num_tokens
    penalty = _penalty(layer, rng.normal(size=(1, 3, 4)), mask=mask)
    assert penalty == pytest.approx(0, abs=1e-6)


def test_zero_vectors_have_cosine_zero_and_finite_gradient(gradient):
    points = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]], "float32")

    def function(x):
        return keras_istar.CosineRegularization(1.0).measure([x], [None])

    assert float(function(points)) == pytest.approx(1 / 3)
    assert np.isfinite(gradient(function, points)).all()


def test_sums_of_replicas_add_up(rng):
    points = rng.normal(0.3, size=(10, 4))
    directions = points / np.linalg.norm(points, axis=1, keepdims=True)

    def sums(part):
        return np.array([*part.sum(axis=0), len(part), len(part)])

    total = sums(directions[:3]) + sums(directions[3:])
    assert float(mean_cosine(keras.ops.convert_to_tensor(total))) == (
        pytest.approx(_mean_pairwise_cosine(points), abs=1e-6)
    )


def test_attached_to_the_last_block_and_logged(tiny_classifier, sentences):
    model = tiny_classifier()
    cosine = keras_istar.CosineRegularization(1.0)
    keras_istar.attach_regularizer(model, cosine)
    assert cosine.state_names == ("layer_1",)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    history = model.fit(*sentences, epochs=3, verbose=0).history
    assert history["cosine"] == history["cosine_penalty"]
    assert history["cosine"][-1] < history["cosine"][0]


def test_beside_istar(tiny_bert):
    backbone = tiny_bert()
    keras_istar.attach(backbone, strength=-1.0)
    keras_istar.attach_regularizer(
        backbone, keras_istar.CosineRegularization(1.0)
    )
    with pytest.raises(ValueError, match="`model` is already attached"):
        keras_istar.attach_regularizer(
            backbone, keras_istar.CosineRegularization(2.0)
        )
    keras_istar.detach(backbone)
    assert not backbone.non_trainable_weights


def test_what_is_no_regularizer(tiny_bert):
    with pytest.raises(ValueError, match="`regularizer` must be a layer"):
        keras_istar.attach_regularizer(tiny_bert(), keras.layers.Dense(2))


@pytest.mark.parametrize("scale", [1e-30, 1e-17, 1e-13, 1e19, 1e30])
def test_short_and_long_vectors_have_directions(rng, gradient, scale):
    states = rng.normal(size=(9, 4))

    def penalty(x):
        layer = keras_istar.CosineRegularization(1.0)
        layer(x, training=True)
        return layer.losses[0]

    scaled = (scale * states).astype("float32")
    expected = float(penalty(states.astype("float32")))
    assert float(penalty(scaled)) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(
        gradient(penalty, scaled) * scale,
        gradient(penalty, states.astype("float32")),
        atol=1e-6,
    )
