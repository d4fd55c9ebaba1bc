"""Attaching and detaching after a train step was traced, even within `fit`."""

import warnings

import keras
import numpy as np
import pytest

import keras_istar

HOOKS = [
    "on_train_begin",
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_epoch_end",
]


@pytest.fixture
def data(rng):
    x = rng.normal(size=(32, 6, 4)).astype("float32")
    return x, np.zeros((32, 1), "float32")


def make_encoder():
    inputs = keras.Input((6, 4))
    hidden = keras.layers.Dense(5, name="block")(inputs)
    outputs = keras.layers.Dense(5, name="last")(hidden)
    return keras.Model(inputs, outputs, name="encoder")


def make_functional():
    encoder = make_encoder()
    inputs = keras.Input((6, 4))
    pooled = keras.layers.GlobalAveragePooling1D()(encoder(inputs))
    return encoder, keras.Model(inputs, keras.layers.Dense(1)(pooled))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.encoder = make_encoder()
        self.pooling = keras.layers.GlobalAveragePooling1D()
        self.head = keras.layers.Dense(1)

    def call(self, inputs, training=None):
        return self.head(self.pooling(self.encoder(inputs, training=training)))


def make_subclassed():
    model = Subclassed()
    return model.encoder, model


def fit(model, data, **kwargs):
    return model.fit(*data, verbose=0, **kwargs).history


def is_penalized(logs):
    """Whether 1000 * (1 - IsoScore*) of an untrained layer is in the loss."""
    return logs["loss"][-1] > 100.0


@pytest.mark.parametrize("make", [make_functional, make_subclassed])
def test_part_of_a_model_that_was_trained(make, data):
    encoder, model = make()
    model.compile("sgd", "mse")
    assert not is_penalized(fit(model, data))
    keras_istar.attach(encoder, "block", strength=1000.0)
    callback = keras_istar.IStarCallback(data[0], verbose=0)
    logs = fit(model, data, callbacks=[callback])
    assert is_penalized(logs)
    assert "isoscore" in logs
    keras_istar.detach(encoder)
    logs = fit(model, data)
    assert not is_penalized(logs)
    assert set(logs) == {"loss"}
    assert not {"train_step", "compute_loss"} & set(vars(model))


@pytest.mark.parametrize("hook", HOOKS)
def test_within_fit(data, hook):
    _, model = make_functional()
    model.compile("sgd", "mse")
    steps = [
        lambda: keras_istar.attach(model, "encoder/block", strength=1000.0),
        lambda: keras_istar.detach(model),
    ]

    class Once(keras.callbacks.Callback):
        def __init__(self, step):
            super().__init__()
            setattr(self, hook, self.run)
            self.step = step

        def run(self, *args, **kwargs):
            step, self.step = self.step, lambda: None
            step()

    for step, is_expected in zip(steps, (True, False), strict=True):
        once = Once(step)
        logs = fit(model, data, epochs=3, batch_size=8, callbacks=[once])
        assert is_penalized(logs) == is_expected
        assert np.isfinite(logs["loss"]).all()


def test_callback_rests_once_its_layer_is_detached(data):
    _, model = make_functional()
    keras_istar.attach(model, "encoder/block", strength=1000.0)
    model.compile("sgd", "mse")

    class Detach(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                keras_istar.detach(self.model)

    callback = keras_istar.IStarCallback(data[0], verbose=0)
    logs = fit(model, data, epochs=3, callbacks=[callback, Detach()])
    assert len(logs["isoscore_union"]) == 1
    assert not is_penalized(logs)


@pytest.mark.parametrize("update_freq", ["epoch", 2, "start"])
def test_callback_goes_on_with_a_layer_attached_anew(data, update_freq):
    _, model = make_functional()
    keras_istar.attach(model, "encoder/block", strength=1000.0)
    model.compile("sgd", "mse")
    attached = []

    class Anew(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                keras_istar.detach(self.model)
                attached.append(
                    keras_istar.attach(self.model, "encoder/last", strength=0)
                )

    callback = keras_istar.IStarCallback(
        data[0], update_freq=update_freq, verbose=0
    )
    callbacks = [callback, Anew()]
    logs = fit(model, data, epochs=3, batch_size=8, callbacks=callbacks)
    epochs = 0 if update_freq == "start" else 3
    assert len(logs.get("isoscore_union", [])) == epochs
    assert len(logs.get("isoscore_block", [])) == min(epochs, 1)
    assert len(logs.get("isoscore_last", [])) == max(epochs - 1, 0)
    (layer,) = attached
    shrinkage_covariance = np.asarray(layer.shrinkage_covariance)
    assert np.trace(shrinkage_covariance) > 0


def test_callback_goes_on_with_the_layer_that_is_left(data):
    encoder, model = make_functional()
    keras_istar.attach(encoder, "block", strength=1.0, name="inner")
    keras_istar.attach(model, "encoder", strength=1.0, name="outer")
    model.compile("sgd", "mse")

    class Detach(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                keras_istar.detach(encoder)

    callback = keras_istar.IStarCallback(data[0], verbose=0)
    logs = fit(model, data, epochs=3, callbacks=[callback, Detach()])
    assert len(logs["inner_isoscore_union"]) == 1
    assert len(logs["outer_isoscore_union"]) == 3


def call_of(encoder):
    inputs = keras.Input((6, 4))
    return inputs, keras.layers.Dense(1)(encoder(inputs))


def tensors_of(encoder):
    return encoder.input, keras.layers.Dense(1, name="head")(encoder.output)


def test_model_made_from_tensors_of_the_attached_one(data):
    encoder = make_encoder()
    keras.Model(*tensors_of(encoder))
    pattern = r"\['head'\] were called on tensors of 'encoder'.*attach to it"
    with pytest.warns(UserWarning, match=pattern):
        keras_istar.attach(encoder, "block")
    regularizer = keras_istar.CosineRegularization()
    with pytest.warns(UserWarning, match=r"\['head'\]"):
        keras_istar.attach_regularizer(encoder, regularizer, "block")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("head", ["float32", "mixed_bfloat16"])
def test_casts_that_keras_leaves_are_no_models(head):
    inputs = keras.Input((6, 4))
    hidden = keras.layers.Dense(3, dtype="mixed_float16", name="block")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, dtype=head)(hidden))
    assert keras_istar.attach(model, "block").dim == 3
    keras_istar.detach(model)
    cast = keras.ops.cast(model.output, "float32")
    keras.layers.Dense(1)(cast)
    with pytest.warns(UserWarning, match="were called on tensors of"):
        keras_istar.attach(model, "block")


@pytest.mark.parametrize("is_attached", [False, True])
def test_model_that_calls_the_attached_one(data, is_attached):
    encoder = make_encoder()
    keras.Model(encoder.input, encoder.layers[1].output)
    model = keras.Model(*call_of(encoder))
    assert keras.Model(encoder.input, encoder(encoder.input))
    if is_attached:
        keras_istar.attach_regularizer(
            model, keras_istar.CosineRegularization(), "encoder/block"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keras_istar.attach(encoder, "block")


def test_evaluate_and_predict_go_on(data):
    _, model = make_functional()
    model.compile("sgd", "mse")
    before = model.evaluate(*data, verbose=0), model.predict(data[0], verbose=0)
    keras_istar.attach(model, "encoder/block", strength=1000.0)
    loss, *_ = np.atleast_1d(model.evaluate(*data, verbose=0))
    np.testing.assert_allclose(loss, before[0], rtol=1e-6)
    np.testing.assert_allclose(
        model.predict(data[0], verbose=0), before[1], rtol=1e-6
    )


class Untold(Subclassed):
    def call(self, inputs):
        return self.head(self.pooling(self.encoder(inputs)))


class NotPassedOn(Subclassed):
    def call(self, inputs, training=None):
        return self.head(self.pooling(self.encoder(inputs)))


@pytest.mark.parametrize("kind", [Untold, NotPassedOn])
def test_model_that_is_not_told_whether_it_trains(kind, data):
    model = kind()
    keras_istar.attach(model.encoder, "block", strength=1000.0)
    model.compile("sgd", "mse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logs = fit(model, data)
    has_warned = any(
        "adds no penalty, as it is not told whether the model trains"
        in str(warning.message)
        for warning in caught
    )
    # TensorFlow remembers it for layers below; where it does not, or on JAX:
    assert has_warned != is_penalized(logs)
    if kind is Untold or keras.backend.backend() == "jax":
        assert has_warned


def test_sequential_model_keeps_its_layers(data):
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            keras.layers.Dense(5, name="block"),
            keras.layers.GlobalAveragePooling1D(),
        ]
    )
    keras_istar.attach(model, "block", strength=1000.0)
    keras_istar.measure(model, data[0], "block", verbose=0)
    changes = (
        lambda: model.add(keras.layers.Dense(1)),
        lambda: model.pop(),
        lambda: model.build((None, 6, 4)),
    )
    for change in changes:
        with pytest.raises(ValueError) as error:
            change()
        assert str(error.value) == (
            "`model` cannot gain or lose layers while it is attached: call "
            "`detach(model)` first, and attach anew. "
            f"Received: model={model.name!r}"
        )
    keras_istar.detach(model)
    model.add(keras.layers.Dense(1))
    keras_istar.attach(model, "block", strength=1000.0)
    model.compile("sgd", "mse")
    assert is_penalized(fit(model, data))


def test_sequential_model_keeps_its_layers_with_a_normalization(rng):
    layers = [keras.Input((16,)), keras.layers.Dense(16), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    normalization = keras_istar.IsotropicBatchNormalization()
    keras_istar.attach_regularizer(model, normalization)
    with pytest.raises(ValueError, match="cannot gain or lose layers"):
        model.add(keras.layers.Dense(1))
    keras_istar.detach(model)
    model.add(keras.layers.Dense(1))
    assert model.output_shape == (None, 1)


def test_predict_and_evaluate_follow_a_normalization(rng):
    inputs = keras.Input((16,))
    embedding = keras.layers.Dense(16)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(embedding))
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(32, 16)), rng.normal(size=(32, 1))

    def results():
        outputs = model.predict(x, verbose=0)
        loss, *_ = np.atleast_1d(model.evaluate(x, y, verbose=0))
        return np.append(outputs, loss)

    before = results()
    normalization = keras_istar.IsotropicBatchNormalization()
    keras_istar.attach_regularizer(model, normalization)
    normalization(x * np.geomspace(1.0, 30.0, 16), training=True)
    while_attached = results()
    assert not np.isclose(while_attached[-1], before[-1], rtol=1e-3)
    assert not np.allclose(while_attached[:-1], before[:-1], rtol=1e-3)
    keras_istar.detach(model)
    np.testing.assert_allclose(results(), before, rtol=1e-5, atol=1e-6)


def test_steps_are_traced_once_over_several_fits(data):
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, inputs, training=None):
            if training:
                traces.append(training)
            return inputs

    inputs = keras.Input((6, 4))
    hidden = keras.layers.Dense(5, name="block")(inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(Counting()(hidden))
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    keras_istar.attach(model, "block", strength=1.0)
    model.compile("sgd", "mse")
    counts = []
    for _ in range(3):
        callback = keras_istar.IStarCallback(data[0], verbose=0)
        fit(model, data, batch_size=8, callbacks=[callback])
        counts.append(len(traces))
    assert counts[0] == counts[1] == counts[2] > 0


@pytest.mark.parametrize("function", ["fit", "measure"])
def test_attached_part_of_a_model_that_has_not_been_called(data, function):
    model = Subclassed()
    layer = keras_istar.attach(model.encoder, "block", strength=1000.0)
    model.compile("sgd", "mse")
    if function == "measure":
        report = keras_istar.measure(model, data[0], verbose=0)
        assert report.rows[0].tokens == data[0].shape[0] * data[0].shape[1]
        return
    callback = keras_istar.IStarCallback(data[0], verbose=0)
    logs = fit(model, data, callbacks=[callback])
    assert is_penalized(logs)
    assert float(layer.has_shrinkage_covariance.value) == 1.0
    assert 0.0 < logs["isoscore_union"][0] < 1.0
