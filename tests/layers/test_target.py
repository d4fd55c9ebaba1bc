"""Isotropy to order: targets, clouds and schedules against NumPy."""

import warnings

import keras
import numpy as np
import oracle
import pytest
from keras import ops

import keras_istar

BACKEND = keras.backend.backend()
SHAPE = (4, 6, 5)  # (batch, length, dim)
KINDS = ["union", "per_layer", "centered"]

# Keras on JAX lets nothing but a model assign variables within a call.
needs_eager_state = pytest.mark.skipif(
    BACKEND == "jax", reason="the layer is called without a model"
)


def _states(rng, count=2):
    widths = np.exp(rng.normal(size=SHAPE[-1]))
    return [
        (widths * rng.normal(size=SHAPE) + 3 * i).astype("float32")
        for i in range(count)
    ]


def _clouds(states, kind):
    """The clouds that a layer scores, in NumPy."""
    flat = [np.asarray(x, "float64").reshape(-1, SHAPE[-1]) for x in states]
    if kind == "per_layer":
        return flat
    if kind == "centered":
        flat = [x - x.mean(axis=0) for x in flat]
    return [np.concatenate(flat)]


def _layer(kind="union", **options):
    if kind != "union":
        options[kind] = True
    return keras_istar.IStarRegularization(**options)


def _penalty(layer, states):
    layer(states, training=True)
    return float(layer.losses[0])


@pytest.mark.parametrize("kind", KINDS)
def test_plain_penalty_is_the_mean_over_clouds(rng, kind):
    states = _states(rng)
    layer = _layer(kind, strength=2.0, shrinkage=0.3)
    expected = [oracle.penalty(x, 2.0, 0.3) for x in _clouds(states, kind)]
    assert _penalty(layer, states) == pytest.approx(np.mean(expected), abs=1e-5)


@needs_eager_state
@pytest.mark.parametrize("kind", KINDS)
def test_clouds_are_the_same_of_a_sample_that_is_all(rng, kind):
    states = _states(rng)
    layer = _layer(kind, strength=2.0, shrinkage=0.3, max_tokens=48, seed=1)
    expected = [oracle.penalty(x, 2.0, 0.3) for x in _clouds(states, kind)]
    assert _penalty(layer, states) == pytest.approx(np.mean(expected), abs=1e-5)


@needs_eager_state
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_has_equal_parts_of_each_state(rng, kind):
    layer = _layer(kind, strength=2.0, max_tokens=14, seed=1)
    for gradient in _gradient(layer, _states(rng)):
        has_part = np.any(gradient != 0, axis=-1)
        assert np.count_nonzero(has_part) == 7


@needs_eager_state
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0.1, 0.9, (0.2, 0.3), (0.0, 1.0)])
def test_penalty_is_the_squared_distance_to_the_target(rng, kind, target):
    states = _states(rng)
    layer = _layer(kind, strength=7.0, target=target)
    scores = [oracle.score(oracle.covariance(x)) for x in _clouds(states, kind)]
    nearest = np.clip(scores, *np.broadcast_to(target, 2))
    expected = 7.0 * np.mean((scores - nearest) ** 2)
    assert _penalty(layer, states) == pytest.approx(expected, abs=1e-5)


@needs_eager_state
def test_each_layer_has_a_target_of_its_own(rng):
    states = _states(rng)
    layer = _layer(strength=1.0, target=[0.0, (0.9, 1.0)])
    first, second = [
        oracle.score(oracle.covariance(x)) for x in _clouds(states, "per_layer")
    ]
    expected = (first**2 + (second - 0.9) ** 2) / 2
    assert layer.per_layer
    assert _penalty(layer, states) == pytest.approx(expected, abs=1e-5)


@needs_eager_state
def test_held_score_is_that_of_the_moving_average(rng):
    first, second = _states(rng, 1), _states(rng, 1)
    layer = _layer(strength=3.0, target=0.0, momentum=0.7)
    _penalty(layer, first)
    (a,), (b,) = _clouds(first, "union"), _clouds(second, "union")
    average = 0.7 * oracle.covariance(a) + 0.3 * oracle.covariance(b)
    assert _penalty(layer, second) == pytest.approx(
        3.0 * oracle.score(average) ** 2, abs=1e-5
    )


def _gradient(layer, states):
    """Gradient of the penalty by the states, the layer being called anew."""
    if BACKEND == "torch":
        tensors = [ops.convert_to_tensor(x).requires_grad_() for x in states]
        layer(tensors, training=True)
        layer.losses[0].backward()
        return [x.grad.numpy() for x in tensors]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tensors = [tf.convert_to_tensor(x) for x in states]
        tape.watch(tensors)
        layer(tensors, training=True)
        loss = layer.losses[0]
    return [x.numpy() for x in tape.gradient(loss, tensors)]


@needs_eager_state
@pytest.mark.parametrize("target", [0.0, 0.4, 1.0])
def test_gradient_is_that_of_the_batch_times_the_held_distance(rng, target):
    states = _states(rng, 1)
    layer = _layer(strength=5.0, target=target, shrinkage=0.0)
    cloud = states[0].reshape(-1, SHAPE[-1])
    distance = oracle.score(oracle.covariance(cloud)) - target
    expected = 2 * 5.0 * distance * oracle.score_gradient(cloud)
    (gradient,) = _gradient(layer, states)
    np.testing.assert_allclose(gradient, expected.reshape(SHAPE), atol=1e-5)


@needs_eager_state
def test_no_gradient_within_the_interval(rng):
    layer = _layer(strength=100.0, target=(0.0, 1.0))
    (gradient,) = _gradient(layer, _states(rng, 1))
    np.testing.assert_array_equal(gradient, 0.0)


@needs_eager_state
def test_target_changes_without_a_new_layer(rng):
    states = _states(rng)
    layer = _layer(strength=1.0, target=0.5)
    _penalty(layer, states)
    layer.target = (0.0, 1.0)
    assert _penalty(layer, states) == 0.0
    assert layer.target == (0.0, 1.0)


def _model(layers=1):
    inputs = keras.Input((6, 5))
    x, names = inputs, []
    for i in range(layers):
        names.append(f"hidden_{i}")
        x = keras.layers.Dense(5, name=names[-1])(x)
    outputs = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    return model, names


def _fit(model, rng, epochs=1, steps=30, rate=0.0, callbacks=()):
    x = (rng.normal(size=(8 * steps, 6, 5)) * np.arange(1, 6)).astype("float32")
    model.compile(keras.optimizers.Adam(rate), "mse")
    return model.fit(
        x,
        np.zeros((len(x), 1), "float32"),
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    ).history, x


@pytest.mark.parametrize("target", [0.3, 0.8])
def test_training_ends_at_the_target(rng, target):
    model, layers = _model()
    keras_istar.attach(model, layers, target=target)
    history, x = _fit(model, rng, epochs=8, rate=0.02)
    report = keras_istar.measure(
        model, x, layers, measures=["isoscore"], verbose=0
    )
    assert history["isoscore"][-1] == pytest.approx(target, rel=0.1)
    assert report.rows[-1].values["isoscore"] == pytest.approx(target, rel=0.1)
    assert history["istar_target"] == pytest.approx([target] * 8)


def test_first_steps_say_where_a_relative_target_starts(rng):
    """Nothing moves, so the start is what the model has all along."""
    model, layers = _model(2)
    layer = keras_istar.attach(
        model, layers, target=0.5, relative=True, strength=4.0
    )
    for name in layers:
        model.get_layer(name).kernel.assign(np.eye(5))
    held_at = []
    see = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: held_at.append(
            layer.numbers_in_force()["target"]
        )
    )
    # More isotropic for 6 steps, less for 7, and more up to the end.
    powers = [
        *np.linspace(2, 0.5, 6),
        *np.linspace(1, 3, 7),
        *np.linspace(1, -0.1, 12),
    ]
    widths = [np.arange(1, 6) ** power for power in powers]
    batches = [
        (rng.normal(size=SHAPE) * x / np.linalg.norm(x), np.zeros(SHAPE[0]))
        for x in widths
    ]
    model.compile(keras.optimizers.Adam(0.0), "mse")
    logs = model.fit(
        (batch for batch in batches),
        steps_per_epoch=1,
        epochs=len(powers),
        verbose=0,
        callbacks=[see],
    ).history
    scores = np.array(logs["isoscore"])
    starts = np.maximum.accumulate(scores)
    starts[20:] = starts[19]
    assert 0 < scores[12] < starts[12] < starts[18] < starts[19] < scores[20]
    np.testing.assert_allclose(held_at, starts / 2, rtol=1e-4)
    np.testing.assert_allclose(logs["istar_target"], starts / 2, rtol=1e-4)
    np.testing.assert_allclose(
        logs["istar_penalty"], 4.0 * (scores - starts / 2) ** 2, rtol=1e-4
    )


@needs_eager_state
def test_without_a_start_nothing_is_held(rng):
    """If the first steps have no token, there is no isotropy to relate to."""
    states = _states(rng)
    layer = _layer(target=0.5, relative=True)
    for _ in range(20):
        layer(states, mask=[np.zeros(SHAPE[:2])] * 2, training=True)
    assert _penalty(layer, states) == 0.0
    assert layer.numbers_in_force()["target"] == 0.0


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_start_outlives_a_fit_and_files(rng, per_layer, tmp_path):
    model, layers = _model(2)
    layer = keras_istar.attach(
        model, layers, target=1.0, relative=True, per_layer=per_layer
    )
    _fit(model, rng, steps=20)
    start = layer.numbers_in_force()["target"]
    _fit(model, rng, steps=25)
    assert layer.numbers_in_force()["target"] == start
    model.save_weights(tmp_path / "model.weights.h5")
    again, _ = _model(2)
    resumed = keras_istar.attach(
        again, layers, target=1.0, relative=True, per_layer=per_layer
    )
    again.load_weights(tmp_path / "model.weights.h5")
    assert resumed.numbers_in_force()["target"] == start


def test_slow_averages_are_warned_of():
    with pytest.warns(UserWarning, match="`momentum` should be at most"):
        keras_istar.IStarRegularization(target=0.5, momentum=0.99)


def test_by_default_three_quarters_of_the_isotropy_are_approached(rng):
    model, layers = _model(2)
    layer = keras_istar.attach(model, layers)
    assert (layer.target, layer.relative, layer.strength) == (0.75, True, 1.0)
    assert keras_istar.IStarRegularization(strength=-1.0).target is None


SCHEDULES = {
    "keras": keras.optimizers.schedules.PolynomialDecay(0.8, 4, 0.2),
    "function": lambda step: 0.8 - 0.15 * ops.minimum(step, 4.0),
    "pair": lambda step: (
        0.8 - 0.15 * ops.minimum(step, 4.0),
        0.8 - 0.15 * ops.minimum(step, 4.0),
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_targets_follow_a_schedule(rng, schedule):
    model, layers = _model()
    layer = keras_istar.attach(model, layers, target=schedule)
    history, _ = _fit(model, rng, steps=2, epochs=3)
    mean_of_steps = [[0.8, 0.65], [0.5, 0.35], [0.2, 0.2]]
    assert history["istar_target"] == pytest.approx(
        np.mean(mean_of_steps, axis=1).tolist(), rel=1e-4
    )
    assert layer.numbers_in_force()["target"] == pytest.approx(0.2)


def test_strength_follows_a_schedule_in_every_regularizer(rng):
    model, layers = _model()
    layer = keras_istar.CosineRegularization(
        keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 10.0])
    )
    keras_istar.attach_regularizer(model, layer, layers)
    history, x = _fit(model, rng, steps=3)
    states = np.asarray(model.get_layer(layers[0])(x)).reshape(3, -1, 5)
    units = states / np.linalg.norm(states, axis=-1, keepdims=True)
    pairs = units.shape[1] * (units.shape[1] - 1)
    cosines = [(np.sum(u @ u.T) - len(u)) / pairs for u in units]
    expected = np.mean(np.array([1.0, 1.0, 10.0]) * cosines)
    assert history["cosine_penalty"] == pytest.approx([expected], rel=1e-4)
    assert layer.value_in_force("strength") == 10.0


def test_a_schedule_stays_one(rng):
    model, layers = _model()
    layer = keras_istar.attach(model, layers, target=SCHEDULES["function"])
    for name, value in (("target", 0.5), ("strength", SCHEDULES["function"])):
        before = getattr(layer, name)
        with pytest.raises(ValueError, match=f"`{name}` can only change"):
            setattr(layer, name, value)
        assert getattr(layer, name) is before


@pytest.mark.parametrize("before, after", [(None, 0.3), (0.3, None)])
def test_a_layer_is_made_with_a_target_or_without(before, after):
    layer = keras_istar.IStarRegularization(strength=1.0, target=before)
    with pytest.raises(ValueError, match="`target` must be given when"):
        layer.target = after
    assert layer.target == before


def test_text_says_what_the_target_is_of():
    layer = keras_istar.IStarRegularization(per_layer=True)
    first = str(layer).splitlines()[0]
    assert first.endswith("target=0.75, relative=True, per_layer=True")
    plain = keras_istar.IStarRegularization(strength=1.0)
    assert "=True" not in str(plain)


def test_the_default_acts_from_the_first_step(rng):
    model, layers = _model()
    keras_istar.attach(model, layers)
    history, _ = _fit(model, rng, steps=1)
    score = history["isoscore"][0]
    assert history["istar_penalty"][0] == pytest.approx(
        (score / 4) ** 2, rel=1e-4
    )
    assert score > 0.0


REFUSED = {
    "above one": ({"target": 1.5}, "target"),
    "negative": ({"target": -0.1}, "target"),
    "reversed": ({"target": (0.5, 0.2)}, "target"),
    "text": ({"target": "half"}, "target"),
    "three": ({"target": (0.1, 0.2, 0.3)}, "target"),
    "empty": ({"target": []}, "target"),
    "nan": ({"target": float("nan")}, "target"),
    "negative strength": ({"target": 0.5, "strength": -1.0}, "strength"),
    "negative schedule": (
        {"target": 0.5, "strength": lambda step: step - 1.0},
        "strength",
    ),
    "schedule that falls below 0": (
        {"target": 0.5, "strength": lambda step: 5.0 - 0.1 * step},
        "strength",
    ),
    "relative to nothing": ({"relative": True}, "relative"),
    "centered layers": ({"centered": True, "per_layer": True}, "centered"),
    "schedule of text": ({"target": lambda step: "half"}, "target"),
    "schedule of a list": ({"target": lambda step: [0.1, 0.4]}, "target"),
    "schedule above one": ({"target": lambda step: 2.0 + step}, "target"),
    "broken schedule": ({"strength": lambda: 1.0}, "strength"),
    "no flag": ({"per_layer": 1}, "per_layer"),
}


@pytest.mark.parametrize("options, name", REFUSED.values(), ids=REFUSED)
def test_wrong_targets_are_refused(options, name):
    with pytest.raises(ValueError, match=f"`{name}` (must|can)"):
        keras_istar.IStarRegularization(**options)


def test_a_schedule_may_know_an_end():
    def strength(step):
        if float(step) > 50:
            raise IndexError
        return 2.0

    layer = keras_istar.IStarRegularization(strength=strength, target=0.5)
    assert layer.strength is strength


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_targets_are_in_the_order_of_the_layers(rng, order):
    model, names = _model(2)
    names = [names[i] for i in order]
    layer = keras_istar.attach(
        model, names, strength=1.0, target=[0.0, 1.0], momentum=0.5
    )
    assert list(layer.state_names) == names
    logs, x = _fit(model, rng, steps=1)
    outputs = [model.get_layer(name).output for name in names]
    states = keras.Model(model.inputs, outputs).predict(x, verbose=0)
    first, second = [
        oracle.score(oracle.covariance(state.reshape(-1, 5)))
        for state in states
    ]
    expected = (first**2 + (second - 1.0) ** 2) / 2
    assert logs["istar_penalty"] == [pytest.approx(expected, abs=1e-5)]


def test_a_list_of_another_length_leaves_the_model_alone(rng):
    model, layers = _model(2)
    with pytest.raises(ValueError, match="`target` must be a list with one"):
        keras_istar.attach(model, layers, target=[0.1, 0.2, 0.3])
    layer = keras_istar.attach(model, layers, target=[0.1, 0.2])
    with pytest.raises(ValueError, match="`target` must be a list with one"):
        layer.target = [0.1]
    assert layer.target == [0.1, 0.2]
    with pytest.raises(ValueError, match="`strength` must be at least 0"):
        layer.strength = -1.0
    assert layer.strength == 20.0


@pytest.mark.parametrize(
    "options",
    [
        {"target": (0.1, 0.2), "relative": True},
        {"target": [0.1, (0.2, 0.3)]},
        {"target": 0.5, "centered": True},
        {"target": SCHEDULES["keras"], "strength": SCHEDULES["keras"]},
        {"strength": 2.0, "per_layer": True},
    ],
)
def test_config_and_files_keep_it(rng, options, tmp_path):
    inputs = keras.Input((6, 5))
    states = [keras.layers.Dense(5)(inputs), keras.layers.Dense(5)(inputs)]
    layer = keras_istar.IStarRegularization(**options)
    pooled = keras.layers.GlobalAveragePooling1D()(layer(states))
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _fit(model, rng, steps=21)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded.get_layer(layer.name)
    assert again.per_layer == layer.per_layer
    assert again.relative == layer.relative
    assert again.centered == layer.centered
    assert again.momentum == layer.momentum
    assert again.numbers_in_force() == pytest.approx(layer.numbers_in_force())
    if not callable(layer.target):
        assert again.target == layer.target
    np.testing.assert_array_equal(
        again.shrinkage_covariance, layer.shrinkage_covariance
    )
