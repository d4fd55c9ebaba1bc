import pydoc

import keras
import numpy as np
import oracle
import pytest
from keras import ops

import keras_istar
from keras_istar._src.compat import keras_private

BACKEND = keras.backend.backend()
SHAPE = (4, 6, 5)  # (batch, length, dim)


def _states(rng, count=1, shape=SHAPE):
    widths = np.exp(rng.normal(size=shape[-1]))
    return [
        (widths * rng.normal(size=shape) + i).astype("float32")
        for i in range(count)
    ]


def _penalty(layer, *args, **kwargs):
    layer(*args, training=True, **kwargs)
    (loss,) = layer.losses
    assert loss.shape == ()
    return float(loss)


@pytest.fixture
def distribution(monkeypatch):
    """That of JAX, which other backends only seem to have."""
    if BACKEND == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        yield
        keras.distribution.set_distribution(None)
    else:
        monkeypatch.setattr(keras.distribution, "distribution", object)
        yield


@pytest.mark.parametrize(
    "kind",
    [keras_istar.IStarRegularization, keras_istar.CosineRegularization],
)
def test_devices_of_one_program_cannot_score_apart(distribution, kind):
    with pytest.raises(ValueError, match="`sync` must be True under"):
        kind(sync=False)
    assert kind(sync=True).sync


def test_contract(check_layer, rng):
    init = {"strength": 2.0, "shrinkage": 0.3, "momentum": 0.9}
    if BACKEND == "jax":  # Nothing but a model may assign variables there.
        init["momentum"] = None
    check_layer(
        keras_istar.IStarRegularization,
        init=init | {"name": "isotropy"},
        x=rng.normal(size=(8, 6, 5)).astype("float32"),
        num_non_trainable=0,
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("strength, shrinkage", [(-1, 0.2), (3.5, 0), (0, 1)])
def test_penalty_of_one_cloud(rng, count, strength, shrinkage):
    states = _states(rng, count)
    layer = keras_istar.IStarRegularization(strength, shrinkage)
    output = layer(states if count > 1 else states[0], training=True)
    np.testing.assert_array_equal(output, states[-1])
    cloud = np.concatenate(states).reshape(-1, SHAPE[-1])
    assert float(layer.losses[0]) == pytest.approx(
        oracle.penalty(cloud, strength, shrinkage), abs=1e-5
    )


@pytest.mark.parametrize("shrinkage", [0.0, 0.4, 1.0])
def test_penalty_shrinks_towards_the_given_covariance(rng, shrinkage):
    (states,) = _states(rng)
    target = oracle.covariance(rng.normal(size=(50, 5)) * np.arange(1, 6))
    layer = keras_istar.IStarRegularization(1.0, shrinkage)
    layer.build(SHAPE)
    layer.set_shrinkage_covariance(target)
    assert float(layer.has_shrinkage_covariance.value) == 1
    np.testing.assert_allclose(layer.shrinkage_covariance, target, rtol=1e-6)
    assert _penalty(layer, states) == pytest.approx(
        oracle.penalty(states.reshape(-1, 5), 1.0, shrinkage, target), abs=1e-5
    )


@pytest.mark.parametrize("masked", ["all alike", "one each", "some none"])
def test_masked_tokens_do_not_count(rng, masked):
    states = _states(rng, 3)
    masks = [rng.random(SHAPE[:2]) < 0.6 for _ in states]
    if masked == "all alike":
        masks = [masks[0]] * 3
    if masked == "some none":
        masks[1] = np.ones(SHAPE[:2], bool)
    for state, mask in zip(states, masks, strict=True):
        state[~mask] = np.nan
    argument = {
        "all alike": masks[0],
        "one each": [mask.astype("int32") for mask in masks],
        "some none": [masks[0], None, masks[2]],
    }[masked]
    layer = keras_istar.IStarRegularization(strength=-1.0)
    assert _penalty(layer, states, mask=argument) == pytest.approx(
        oracle.penalty(oracle.unmasked(states, masks)), abs=1e-5
    )


def test_keras_masks_count_and_are_kept(rng):
    tokens = rng.integers(0, 3, size=SHAPE[:2])
    embedded = keras.layers.Embedding(3, 5, mask_zero=True)(tokens)
    layer = keras_istar.IStarRegularization(strength=-1.0)
    output = layer(embedded, training=True)
    mask = keras_private.keras_mask(output)
    np.testing.assert_array_equal(mask, tokens != 0)
    cloud = ops.convert_to_numpy(embedded)[tokens != 0]
    assert float(layer.losses[0]) == pytest.approx(
        oracle.penalty(cloud), abs=1e-5
    )


def test_keras_masks_pass_through_a_functional_model(rng):
    tokens = rng.integers(0, 3, size=(8, 6))
    inputs = keras.Input((6,), dtype="int32")
    embedded = keras.layers.Embedding(3, 5, mask_zero=True)(inputs)
    regularized = keras_istar.IStarRegularization(strength=-1.0)(embedded)
    pooled = keras.layers.GlobalAveragePooling1D()
    model = keras.Model(inputs, [embedded, pooled(regularized)])
    states, means = model.predict(tokens, verbose=0)
    weights = (tokens != 0)[..., None]
    expected = (states * weights).sum(1) / np.maximum(weights.sum(1), 1)
    np.testing.assert_allclose(means, expected, atol=1e-6)


@pytest.mark.parametrize("training", [False, None])
def test_inference_is_the_identity_and_adds_nothing(rng, training):
    states = [ops.convert_to_tensor(state) for state in _states(rng, 2)]
    layer = keras_istar.IStarRegularization(-1.0, momentum=0.5)
    assert layer(states, training=training) is states[-1]
    assert layer.losses == []
    assert not np.any(layer.shrinkage_covariance.numpy())


def test_task_gradient_passes_unchanged(rng, gradient):
    (states,) = _states(rng)
    weights = rng.normal(size=SHAPE).astype("float32")
    layer = keras_istar.IStarRegularization(strength=-1.0)
    task = gradient(
        lambda x: ops.sum(layer(x, training=True) * weights), states
    )
    np.testing.assert_array_equal(task, weights)


def test_penalty_gradient(rng, gradient):
    (states,) = _states(rng)
    layer = keras_istar.IStarRegularization(strength=-2.0, shrinkage=0.0)

    def penalty(x):
        layer(x, training=True)
        return layer.losses[0]

    expected = 2.0 * oracle.score_gradient(states.reshape(-1, 5))
    np.testing.assert_allclose(
        gradient(penalty, states), expected.reshape(SHAPE), atol=1e-5
    )


@pytest.mark.skipif(BACKEND == "jax", reason="assigns outside of a model")
def test_momentum_is_an_average_of_batch_covariances(rng):
    layer = keras_istar.IStarRegularization(1.0, 0.5, momentum=0.7)
    average = None
    for _ in range(4):
        (states,) = _states(rng)
        cloud = states.reshape(-1, 5)
        expected = oracle.penalty(cloud, 1.0, 0.5, average)
        assert _penalty(layer, states) == pytest.approx(expected, abs=1e-5)
        cov = oracle.covariance(cloud)
        average = cov if average is None else 0.7 * average + 0.3 * cov
        np.testing.assert_allclose(
            layer.shrinkage_covariance, average, rtol=1e-4, atol=1e-5
        )


@pytest.mark.skipif(BACKEND == "jax", reason="assigns outside of a model")
@pytest.mark.parametrize("useless", ["not finite", "one token"])
def test_momentum_skips_useless_batches(rng, useless):
    first, second = _states(rng, 2)
    layer = keras_istar.IStarRegularization(-1.0, momentum=0.7)
    mask = np.ones(SHAPE[:2], bool)
    if useless == "one token":
        mask[:] = np.arange(24).reshape(4, 6) == 3
    else:
        second = second * np.inf
    layer(second, mask=mask, training=True)
    assert float(layer.has_shrinkage_covariance.value) == 0
    layer(first, training=True)
    before = layer.shrinkage_covariance.numpy()
    assert np.any(before)
    layer(second, mask=mask, training=True)
    np.testing.assert_array_equal(layer.shrinkage_covariance, before)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_narrow_policies_compute_in_float32(rng, dtype):
    narrow = ops.cast(300 * _states(rng)[0], dtype.removeprefix("mixed_"))
    layer = keras_istar.IStarRegularization(1.0, dtype=dtype)
    output = layer(narrow, training=True)
    assert output.dtype == narrow.dtype
    (loss,) = layer.losses
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    cloud = ops.convert_to_numpy(ops.cast(narrow, "float32")).reshape(-1, 5)
    assert float(loss) == pytest.approx(oracle.penalty(cloud, 1.0), abs=1e-5)


@pytest.mark.skipif(BACKEND == "jax", reason="float64 is off by default")
def test_float64_computes_in_float64(rng, floatx64):
    states = rng.normal(size=SHAPE) + 1e7
    layer = keras_istar.IStarRegularization(1.0, dtype="float64")
    layer(ops.convert_to_tensor(states, "float64"), training=True)
    (loss,) = layer.losses
    assert keras.backend.standardize_dtype(loss.dtype) == "float64"
    expected = oracle.penalty(states.reshape(-1, 5), 1.0)
    assert float(loss) == pytest.approx(expected, abs=1e-8)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="uses a gradient tape")
def test_a_table_of_embeddings_may_be_a_state(rng):
    import tensorflow as tf

    table = keras.Variable(rng.normal(size=(40, 6)).astype("float32"))
    slopes = []
    for states in (table, table.value):
        layer = keras_istar.IStarRegularization()
        with tf.GradientTape() as tape:
            layer(states, training=True)
            (penalty,) = layer.losses
        slopes.append(tape.gradient(penalty, table.value))
    assert np.any(slopes[0])
    np.testing.assert_array_equal(*slopes)


def test_no_token_is_no_error(rng):
    (states,) = _states(rng)
    layer = keras_istar.IStarRegularization(strength=-1.0)
    assert _penalty(layer, states, mask=np.zeros(SHAPE[:2])) == -1.0


def test_settings_may_be_assigned(rng):
    (states,) = _states(rng)
    layer = keras_istar.IStarRegularization(strength=-1.0)
    layer.strength, layer.shrinkage = 2.0, 0.5
    layer.build(SHAPE)
    layer.strength = 3.0
    assert _penalty(layer, states) == pytest.approx(
        oracle.penalty(states.reshape(-1, 5), 3.0, 0.5), abs=1e-5
    )
    config = layer.get_config()
    assert (config["strength"], config["shrinkage"]) == (3.0, 0.5)


@pytest.mark.parametrize("name", ["momentum", "per_layer", "max_tokens"])
def test_what_a_built_layer_depends_on_cannot_change(rng, name):
    layer = keras_istar.IStarRegularization(strength=1.0)
    setattr(layer, name, getattr(layer, name))
    layer(rng.normal(size=(4, 3, 2)), training=True)
    before = getattr(layer, name)
    with pytest.raises(AttributeError) as error:
        setattr(layer, name, 3)
    assert str(error.value) == (
        f"`{name}` cannot change once the layer is built. Make a new layer: "
        f"`detach(model)`, and attach with `{name}`. Received: {name}=3"
    )
    assert getattr(layer, name) == before


def test_log_names():
    default = keras_istar.IStarRegularization(strength=-1.0)
    assert default.log_name("isoscore") == "isoscore"
    named = keras_istar.IStarRegularization(-1.0, name="upper")
    assert named.log_name("isoscore") == "upper_isoscore"


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"strength": "1"}, "`strength` must be a real number. Received: "
         "strength='1'"),
        ({"strength": True}, "`strength` must be a real number. Received: "
         "strength=True"),
        ({"strength": np.inf}, "`strength` must be a finite number. "
         "Received: strength=inf"),
        ({"shrinkage": 1.5}, "`shrinkage` must be between 0 and 1. "
         "Received: shrinkage=1.5"),
        ({"shrinkage": -0.1}, "`shrinkage` must be between 0 and 1. "
         "Received: shrinkage=-0.1"),
        ({"momentum": 1}, "`momentum` must be `None` or strictly between 0 "
         "and 1. Received: momentum=1"),
        ({"momentum": 0.0}, "`momentum` must be `None` or strictly between 0 "
         "and 1. Received: momentum=0.0"),
    ],
)  # fmt: skip
def test_constructor_errors(kwargs, message):
    with pytest.raises(ValueError) as error:
        keras_istar.IStarRegularization(**kwargs)
    assert str(error.value) == message


def test_refused_settings_change_nothing():
    layer = keras_istar.IStarRegularization(-1.0, 0.2)
    with pytest.raises(ValueError, match="`strength` must be a finite"):
        layer.strength = np.nan
    with pytest.raises(ValueError, match="`shrinkage` must be between"):
        layer.shrinkage = 2
    assert (layer.strength, layer.shrinkage) == (-1.0, 0.2)


@pytest.mark.parametrize(
    "shapes, mask_shape, message",
    [
        ([(2, 3, 1)], None, "`hidden_states` must have a last axis of known "
         "size, at least 2. Received: hidden_states.shape=(2, 3, 1)"),
        ([(2, 3, 4), (2, 3, 6)], None, "`hidden_states` must all have width "
         "4. Received: widths=[4, 6]"),
        ([(2, 3, 4)], (2, 4), "`mask` must have the shape of `hidden_states` "
         "without its last axis, (2, 3). Received: mask.shape=(2, 4)"),
    ],
)  # fmt: skip
def test_call_errors(shapes, mask_shape, message):
    mask = None if mask_shape is None else np.ones(mask_shape)
    with pytest.raises(ValueError) as error:
        keras_istar.IStarRegularization(strength=-1.0)(
            [np.ones(shape, "float32") for shape in shapes], mask=mask
        )
    assert message in str(error.value)


def test_numbers_are_seen_by_help():
    text = pydoc.render_doc(keras_istar.IStarRegularization)
    assert "Setting" in text


def test_wrong_number_of_masks(rng):
    with pytest.raises(ValueError) as error:
        keras_istar.IStarRegularization(strength=-1.0)(
            _states(rng, 3), mask=[np.ones(SHAPE[:2])] * 2
        )
    assert (
        "`mask` must be one mask or a list with one for each of the 3 "
        "`hidden_states`. Received: len(mask)=2" in str(error.value)
    )


@pytest.mark.parametrize(
    "value, message",
    [
        (np.eye(4), "`value` must have shape (5, 5) to fit dim=5. "
         "Received: value.shape=(4, 4)"),
        (np.ones((5, 3)), "`value` must be a square matrix `(dim, dim)`. "
         "Received: value.shape=(5, 3)"),
        (np.diag([1, 1, 1, 1, np.nan]), "`value` must be finite. "
         "Received: NaN or infinity in value"),
    ],
)  # fmt: skip
def test_refused_covariance_leaves_the_last_one(value, message):
    layer = keras_istar.IStarRegularization(-1.0, name="iso")
    with pytest.raises(ValueError) as error:
        layer.set_shrinkage_covariance(np.eye(5))
    assert str(error.value) == (
        "`set_shrinkage_covariance` needs a built layer: call the layer or "
        "its model once. Received: layer='iso'"
    )
    layer.build(SHAPE)
    layer.set_shrinkage_covariance(np.eye(5))
    with pytest.raises(ValueError) as error:
        layer.set_shrinkage_covariance(value)
    assert str(error.value) == message
    np.testing.assert_array_equal(layer.shrinkage_covariance, np.eye(5))


def test_layer_called_by_hand_says_so_and_names_schedules(rng):
    def falling(step):
        return -1.0 / (1.0 + step)

    layer = keras_istar.IStarRegularization(strength=falling, shrinkage=0.25)
    layer(_states(rng, count=2))
    assert str(layer) == (
        f"IStarRegularization {layer.name!r}: strength=falling, "
        "shrinkage=0.25\n"
        "called by hand on layer_0, layer_1, dim=5"
    )


def test_description_shows_arguments_that_are_not_the_usual_ones():
    layer = keras_istar.IStarRegularization(
        target=0.3, per_layer=True, momentum=0.8, max_tokens=500, sync=False
    )
    assert str(layer).endswith(
        "target=0.3, per_layer=True, momentum=0.8, max_tokens=500, sync=False"
    )
    for usual in ({"target": 0.3}, {"strength": -1.0}):
        assert "momentum" not in str(keras_istar.IStarRegularization(**usual))


def test_covariances_of_layers_are_one_for_each(rng):
    layer = keras_istar.IStarRegularization(1.0, per_layer=True)
    layer(_states(rng, count=2))
    layer.set_shrinkage_covariance(np.stack([np.eye(5)] * 2))
    with pytest.raises(ValueError) as error:
        layer.set_shrinkage_covariance(2.0 * np.eye(5))
    assert str(error.value) == (
        "`value` must have shape (2, 5, 5). Received: value.shape=(5, 5)"
    )
    np.testing.assert_array_equal(
        layer.shrinkage_covariance, np.stack([np.eye(5)] * 2)
    )


def test_targets_of_layers_need_a_cloud_for_each(rng):
    layer = keras_istar.IStarRegularization(target=0.3)
    layer(_states(rng, count=2))
    with pytest.raises(ValueError) as error:
        layer.target = [0.3, 0.1]
    assert str(error.value) == (
        "`target` must be a number or a pair for a layer of one cloud. "
        "Received: target=[0.3, 0.1]"
    )
    assert layer.target == 0.3
