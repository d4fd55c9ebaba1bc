"""What a layer keeps and logs, whatever Keras does to its model."""

import warnings

import h5py
import keras
import numpy as np
import oracle
import pytest

import keras_istar

BACKEND = keras.backend.backend()
jax_only = pytest.mark.skipif(BACKEND != "jax", reason="of the JAX backend")


def build(make=keras.Model, **options):
    inputs = keras.Input((8, 4))
    hidden = keras.layers.Dense(6, activation="tanh", name="block")(inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    return make(inputs, keras.layers.Dense(1)(pooled), **options)


def attached(strength=1.0, **options):
    model = build()
    layer = keras_istar.attach(model, "block", strength=strength, **options)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model, layer


class ByHand(keras.Model):
    def __init__(self):
        super().__init__()
        self.block = keras.layers.Dense(6)
        self.istar = keras_istar.IStarRegularization(1.0)
        self.head = keras.layers.Dense(1)

    def call(self, inputs, training=None):
        hidden = self.istar(self.block(inputs), training=training)
        return self.head(keras.ops.mean(hidden, axis=1))


class Silent(ByHand):
    def call(self, inputs):
        hidden = self.istar(self.block(inputs))
        return self.head(keras.ops.mean(hidden, axis=1))


@pytest.fixture
def x(rng):
    return rng.normal(size=(32, 8, 4)).astype("float32")


@pytest.fixture
def y(x):
    return x[:, 0, :1]


def logs_of(model, x, y, **options):
    options = {"batch_size": len(y), "verbose": 0, **options}
    history = model.fit(x, y, **options).history
    return {key: values[-1] for key, values in history.items()}


def strength_in_force(logs):
    return logs["istar_penalty"] / (1 - logs["isoscore"])


def star(states):
    return oracle.score(oracle.shrunk(states.reshape(-1, 6), 0.2))


def plain(states):
    return oracle.score(oracle.covariance(states.reshape(-1, 6)))


def states_of(model, x):
    block = model.get_layer("block").output
    return keras.Model(model.input, block).predict(x, verbose=0)


# Settings are not weights.


@pytest.mark.parametrize("is_trained", [False, True])
def test_weights_of_another_model_leave_settings_alone(x, y, is_trained):
    source, _ = attached(strength=-1.0)
    model, layer = attached(strength=5.0)
    if is_trained:
        model.fit(x, y, verbose=0)
    model.set_weights(source.get_weights())
    assert layer.strength == 5.0
    logs = logs_of(model, x, y)
    np.testing.assert_allclose(strength_in_force(logs), 5.0, rtol=1e-5)


def test_restored_weights_leave_a_schedule_alone(x, y):
    model, layer = attached(strength=1.0)

    class Schedule(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            layer.strength = 1.0 + epoch

    stopping = keras.callbacks.EarlyStopping(
        "loss", patience=1, restore_best_weights=True
    )
    model.fit(x, y, epochs=4, verbose=0, callbacks=[Schedule(), stopping])
    expected = layer.strength
    assert expected > 1.0
    np.testing.assert_allclose(
        strength_in_force(logs_of(model, x, y)), expected, rtol=1e-5
    )


def test_averaged_weights_leave_settings_alone(x, y):
    model, layer = attached(strength=2.0)
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
    callback = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
    layer.strength = 3.0
    model.compile(keras.optimizers.SGD(0.0), "mse")
    np.testing.assert_allclose(
        strength_in_force(logs_of(model, x, y)), 3.0, rtol=1e-5
    )


@pytest.mark.parametrize("through_callback", [True, False])
def test_a_change_within_an_epoch_is_obeyed(x, y, through_callback):
    model, layer = attached(strength=1.0)

    class Schedule(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if through_callback:
                (found,) = [
                    x
                    for x in self.model.layers + [layer]
                    if isinstance(x, keras_istar.IStarRegularization)
                ]
                found.strength = float(batch)
            else:
                layer.strength = float(batch)

    logs = logs_of(
        model, x, y, batch_size=8, shuffle=False, callbacks=[Schedule()]
    )
    states = states_of(model, x).reshape(4, 8, 8, 6)
    expected = np.mean([i * (1 - star(s)) for i, s in enumerate(states)])
    np.testing.assert_allclose(logs["istar_penalty"], expected, rtol=1e-5)
    assert layer.strength == 3.0


@jax_only
def test_a_change_that_would_be_lost_is_refused(x, y):
    """A layer by hand knows no model that it could bring up to date."""

    model = ByHand()
    model.compile("sgd", "mse")
    model.fit(x, y, verbose=0)
    layer, refusals = model.istar, []

    def change(batch, logs=None):
        try:
            layer.strength = 2.0
        except RuntimeError as e:
            refusals.append(str(e))

    callback = keras.callbacks.LambdaCallback(on_train_batch_begin=change)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[callback])
    assert len(refusals) == 3  # Before the first batch it is obeyed.
    assert "`strength`" in refusals[0] and "strength=2.0" in refusals[0]


# Lists of weights.


def test_attaching_leaves_lists_of_weights_alone(x, y):
    model = build()
    weights, number = model.get_weights(), model.count_params()
    prediction = model.predict(x, verbose=0)
    keras_istar.attach(model, "block", momentum=0.9, strength=-1.0)
    assert len(model.weights) == len(weights)
    assert model.count_params() == number
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    model.set_weights(weights)
    np.testing.assert_array_equal(model.predict(x, verbose=0), prediction)


@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_attached_models_with_nested_models_are_saved(ending, tmp_path, x):
    inner = build()
    inputs = keras.Input((8, 4))
    model = keras.Model(inputs, inner(inputs))
    keras_istar.attach(model, "block", strength=-1.0)
    path = tmp_path / f"model.{ending}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the legacy format.
        model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )


# The covariance in files.


@pytest.fixture
def saved(tmp_path, x, y):
    model, layer = attached()
    callback = keras_istar.IStarCallback(x, verbose=0)
    model.fit(x, y, verbose=0, callbacks=[callback])
    path = str(tmp_path / "model.weights.h5")
    model.save_weights(path)
    return path, np.array(layer.shrinkage_covariance.value)


def test_covariance_comes_back_from_a_file(saved):
    path, expected = saved
    model, layer = attached()
    model.load_weights(path)
    np.testing.assert_array_equal(layer.shrinkage_covariance.value, expected)
    assert float(layer.has_shrinkage_covariance.value) == 1.0


@pytest.mark.parametrize(
    "spoil, rule",
    [
        (lambda c: np.full_like(c, np.nan), "finite"),
        (lambda c: c * np.inf, "finite"),
        (lambda c: c + np.triu(np.ones_like(c), 1), "symmetric"),
        (lambda c: -c, "below 0"),
    ],
)
def test_damaged_covariance_is_refused(saved, spoil, rule):
    path, covariance = saved

    def overwrite(_, item):
        if getattr(item, "shape", None) == (6, 6):
            item[...] = spoil(covariance)

    with h5py.File(path, "r+") as file:
        file.visititems(overwrite)
    model, layer = attached()
    with pytest.raises(ValueError, match=rule) as error:
        model.load_weights(path)
    assert layer.name in str(error.value)
    assert float(layer.has_shrinkage_covariance.value) == 0.0


def test_a_moving_average_that_is_not_finite_starts_again(x, y):
    model, layer = attached(momentum=0.9)
    model.fit(x, y, verbose=0)
    layer.shrinkage_covariance.assign(np.full((6, 6), np.nan))
    model.fit(x, y, batch_size=32, verbose=0)
    np.testing.assert_allclose(
        layer.shrinkage_covariance.value,
        oracle.covariance(states_of(model, x).reshape(-1, 6)),
        rtol=1e-4,
        atol=1e-6,
    )


# Keys in the logs.


def test_members_of_one_model_log_under_their_names(x, y):
    members = [build(name="query"), build(name="document")]
    layers = [
        keras_istar.attach(member, "block", strength=s)
        for member, s in zip(members, (1.0, -1.0), strict=True)
    ]
    inputs = keras.Input((8, 4))
    average = keras.layers.Average()([m(inputs) for m in members])
    model = keras.Model(inputs, average)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    callback = keras_istar.IStarCallback(x, verbose=0)
    logs = logs_of(model, x, y, callbacks=[callback])
    task = np.mean((model.predict(x, verbose=0) - y) ** 2)
    penalties = []
    for member, layer in zip(members, layers, strict=True):
        score = star(states_of(member, x))
        penalties.append(layer.strength * (1 - score))
        name = member.name
        # The callback has set Σ_S to the covariance itself.
        expected = plain(states_of(member, x))
        for key in (f"{name}_isoscore", f"{name}_isoscore_union"):
            np.testing.assert_allclose(logs[key], expected, rtol=1e-4)
    entered = logs["loss"] - task
    logged = logs["query_istar_penalty"] + logs["document_istar_penalty"]
    np.testing.assert_allclose(logged, entered, rtol=1e-4, atol=1e-6)
    assert "isoscore" not in logs
    # One of them alone keeps the plain keys.
    members[0].compile(keras.optimizers.SGD(0.0), "mse")
    assert set(logs_of(members[0], x, y)) == {
        "isoscore",
        "istar_penalty",
        "loss",
    }


@pytest.mark.parametrize(
    "name, prefix",
    [
        (None, ""),
        ("i_star_regularization", ""),
        ("i_star_regularization_7", ""),
        ("i_star_regularization_of_mine", "i_star_regularization_of_mine_"),
        ("mine", "mine_"),
    ],
)
def test_keys_begin_with_a_name_that_was_given(name, prefix, x, y):
    model, _ = attached(name=name)
    assert set(logs_of(model, x, y)) == {
        f"{prefix}isoscore",
        f"{prefix}istar_penalty",
        "loss",
    }


def test_penalties_of_a_model_called_twice_add_up(x, y):
    member = build()
    keras_istar.attach(member, "block", strength=-1.0)
    pair = [keras.Input((8, 4)), keras.Input((8, 4))]
    difference = keras.layers.Subtract()([member(i) for i in pair])
    model = keras.Model(pair, difference)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    if BACKEND == "jax":
        # Keras shows layers on JAX to the model that was attached alone.
        callbacks = [keras_istar.IStarCallback([x, x], verbose=0)]
    else:
        callbacks = []
    second = x * np.array([5, 1, 0.1, 0.1], "float32")
    task = np.mean((model.predict([x, second], verbose=0) - y) ** 2)
    logs = logs_of(model, [x, second], y, callbacks=callbacks)
    np.testing.assert_allclose(
        logs["istar_penalty"], logs["loss"] - task, rtol=1e-4
    )


# A layer that is called by hand.


def test_a_model_that_does_not_say_that_it_trains(x, y):
    model = Silent()
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="`training`") as seen:
        model.fit(x, y, epochs=2, verbose=0)
    assert len([w for w in seen if "penalty" in str(w.message)]) == 1


@pytest.mark.filterwarnings("error")
def test_a_model_that_says_that_it_trains_passes_it_on(x, y):
    model = ByHand()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    loss = logs_of(model, x, y)["loss"]
    task = np.mean((model.predict(x, verbose=0) - y) ** 2)
    hidden = keras.ops.convert_to_numpy(model.block(x))
    np.testing.assert_allclose(loss - task, 1 - star(hidden), rtol=1e-4)


def test_callback_on_a_model_that_has_not_been_built(x, y):
    model = ByHand()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    callback = keras_istar.IStarCallback(x, verbose=0)
    logs = logs_of(model, x, y, callbacks=[callback])
    hidden = keras.ops.convert_to_numpy(model.block(x))
    expected = plain(hidden)
    np.testing.assert_allclose(logs["isoscore_union"], expected, rtol=1e-4)
    np.testing.assert_allclose(logs["isoscore"], expected, rtol=1e-4)


# JAX outside of `fit`.


def _stateless_step(model, x, **options):
    trainable = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    return model.stateless_call(trainable, others, x, training=True, **options)


@jax_only
@pytest.mark.parametrize("is_compiled", [True, False])
def test_nothing_outlives_a_loop_of_ones_own(x, y, is_compiled):
    import jax

    model, _ = attached()
    model.fit(x, y, verbose=0)
    expected = np.mean((model.predict(x, verbose=0) - y) ** 2)

    def step(x):
        return _stateless_step(model, x, return_losses=True)[2]

    with jax.checking_leaks():
        losses = (jax.jit(step) if is_compiled else step)(x)
    np.testing.assert_allclose(losses[0], 1 - star(states_of(model, x)), 1e-4)
    seen = model.evaluate(x, y, verbose=0, return_dict=True)
    assert set(seen) == {"loss"}
    np.testing.assert_allclose(seen["loss"], expected, rtol=1e-5)


@jax_only
def test_compute_loss_within_a_gradient_of_ones_own(x, y):
    import jax

    model, _ = attached()
    model.fit(x, y, verbose=0)
    expected = np.mean((model.predict(x, verbose=0) - y) ** 2)

    @jax.jit
    def gradient(trainable, others, x, y):
        def loss(trainable):
            y_pred, _, losses = model.stateless_call(
                trainable, others, x, training=True, return_losses=True
            )
            return model.compute_loss(x, y, y_pred) + sum(losses)

        return jax.value_and_grad(loss)(trainable)

    trainable = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    loss, _ = gradient(trainable, others, x, y)
    penalty = 1 - star(states_of(model, x))
    np.testing.assert_allclose(loss, expected + penalty, rtol=1e-5)
    seen = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


@jax_only
def test_losses_that_nobody_takes_are_announced(x):
    model, _ = attached()
    with pytest.warns(UserWarning, match="return_losses=True"):
        _stateless_step(model, x)


@jax_only
def test_eager_training_call_then_evaluation(x, y):
    model, _ = attached()
    model(x, training=True)
    np.testing.assert_allclose(
        float(model.losses[0]), 1 - star(states_of(model, x)), rtol=1e-4
    )
    assert set(model.evaluate(x, y, verbose=0, return_dict=True)) == {"loss"}


def test_detaching_gives_back_a_loss_of_ones_own(x, y):
    model = build()

    def own(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(y - y_pred)) + 100.0

    model.compute_loss = own
    keras_istar.attach(model, "block", strength=-1.0)
    keras_istar.detach(model)
    assert model.compute_loss is own
    model.compile("sgd", "mse")
    task = np.mean((model.predict(x, verbose=0) - y) ** 2)
    np.testing.assert_allclose(
        model.evaluate(x, y, verbose=0), task + 100.0, rtol=1e-5
    )


def test_detaching_through_an_outer_model_leaves_nothing():
    inner = build()
    before = set(vars(inner))
    keras_istar.attach(inner, "block", strength=-1.0)
    inputs = keras.Input((8, 4))
    outer = keras.Model(inputs, inner(inputs))
    keras_istar.detach(outer)
    assert set(vars(inner)) == before
