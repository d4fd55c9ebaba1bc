import keras
import numpy as np
import oracle
import pytest

import keras_istar

TENSORFLOW = keras.backend.backend() == "tensorflow"
only_tensorflow = pytest.mark.skipif(
    not TENSORFLOW, reason="a feature of the TensorFlow trainer"
)


@pytest.fixture
def data(rng):
    x = (rng.normal(size=(32, 6, 5)) * [1, 2, 3, 4, 5]).astype("float32")
    return x, rng.normal(size=(32, 6, 1)).astype("float32")


def _model(**kwargs):
    """Inputs -> a Dense layer, the states -> a Dense layer, the task."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 5))
    states = keras.layers.Dense(4, name="encoder")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    layer = keras_istar.attach(
        model, "encoder", **({"strength": -1.0} | kwargs)
    )
    return model, layer


def _states(model, x):
    return np.asarray(model.get_layer("encoder")(x)).reshape(-1, 4)


def _fit(model, x, y, **kwargs):
    return model.fit(x, y, shuffle=False, verbose=0, **kwargs).history


def test_logs_are_the_numbers_that_entered_the_loss(data):
    x, y = data
    model, _ = _model(strength=-2.0, shrinkage=0.3)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    task = model.evaluate(x, y, verbose=0)
    history = _fit(model, x, y, batch_size=16, epochs=2)
    expected = [
        oracle.penalty(_states(model, x[i : i + 16]), -2.0, 0.3)
        for i in (0, 16)
    ]
    assert history["istar_penalty"] == pytest.approx([np.mean(expected)] * 2)
    score = 1 + np.mean(expected) / 2
    assert history["isoscore"] == pytest.approx([score] * 2, abs=1e-6)
    assert history["loss"] == pytest.approx(
        [task + np.mean(expected)] * 2, rel=1e-5
    )


def test_strength_0_trains_to_the_weights_of_a_plain_model(data):
    weights = []
    for is_attached in (True, False):
        model, _ = _model(strength=0.0)
        if not is_attached:
            keras_istar.detach(model)
        model.compile(keras.optimizers.Adam(0.05), "mse")
        history = _fit(model, *data, batch_size=8, epochs=3)
        assert ("isoscore" in history) == is_attached
        weights.append([v.numpy() for v in model.trainable_weights])
    for attached, plain in zip(*weights, strict=True):
        np.testing.assert_array_equal(attached, plain)


def test_validation_is_the_tasks_alone(data):
    x, y = data
    model, _ = _model()
    model.compile("sgd", "mse")
    history = _fit(model, x, y, epochs=2, validation_data=(x, y))
    logged = {"loss", "val_loss", "isoscore", "istar_penalty"}
    assert set(history) == logged
    outputs = model.predict(x, verbose=0)
    expected = np.mean((outputs - y) ** 2)
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-5)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert set(logs) == {"loss"}


def test_one_step_of_descent(data):
    x, y = data
    model, _ = _model(strength=3.0, shrinkage=0.0)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    plain, layer = _model()
    keras_istar.detach(plain)
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    kernel = plain.get_layer("encoder").kernel.numpy()
    by_states = -3.0 * oracle.score_gradient(_states(plain, x))
    for m in (model, plain):
        _fit(m, x, y, batch_size=32)
    step = (
        model.get_layer("encoder").kernel.numpy()
        - plain.get_layer("encoder").kernel.numpy()
    )
    assert step.shape == kernel.shape
    expected = -0.1 * x.reshape(-1, 5).T @ by_states
    np.testing.assert_allclose(step, expected, rtol=1e-3, atol=1e-6)


def test_settings_change_between_epochs_without_a_trace(data):
    x, y = data
    model, layer = _model(strength=1.0, shrinkage=0.0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    traces = []
    encoder = model.get_layer("encoder")
    encoder.activation = lambda x: traces.append(1) or x
    settings = [(1.0, 0.0), (-4.0, 0.0), (2.0, 0.5), (0.0, 1.0)]

    def assign(epoch, logs):
        layer.strength, layer.shrinkage = settings[epoch]

    assigning = keras.callbacks.LambdaCallback(on_epoch_begin=assign)
    penalties = _fit(
        model, x, y, batch_size=32, epochs=4, callbacks=[assigning]
    )["istar_penalty"]
    states = _states(model, x)
    traces.pop()  # That of the line above.
    expected = [oracle.penalty(states, *setting) for setting in settings]
    assert penalties == pytest.approx(expected, abs=1e-5)
    before = len(traces)
    _fit(model, x, y, batch_size=32)
    assert len(traces) == before


def test_momentum_in_fit(data):
    x, y = data
    model, layer = _model(momentum=0.6)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    _fit(model, x, y, batch_size=8)
    batches = [_states(model, x[i : i + 8]) for i in range(0, 32, 8)]
    average = oracle.covariance(batches[0])
    for batch in batches[1:]:
        average = 0.6 * average + 0.4 * oracle.covariance(batch)
    np.testing.assert_allclose(
        layer.shrinkage_covariance, average, rtol=1e-4, atol=1e-5
    )


def _weights_after(data, compile_kwargs, **kwargs):
    model, layer = _model(strength=2.0, **kwargs)
    model.compile(**({"optimizer": "sgd", "loss": "mse"} | compile_kwargs))
    history = _fit(model, *data, batch_size=8, epochs=2)
    return [*model.get_weights(), np.array(history["istar_penalty"])]


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize(
    "compile_kwargs",
    [
        {"jit_compile": True},
        {"steps_per_execution": 2},
        {"steps_per_execution": 4, "jit_compile": True},
        {"run_eagerly": True},
    ],
)
def test_ways_to_run_a_step_agree(data, compile_kwargs, momentum):
    plain = _weights_after(data, {"jit_compile": False}, momentum=momentum)
    other = _weights_after(data, compile_kwargs, momentum=momentum)
    for a, b in zip(plain, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_accumulation_averages_the_penaltys_gradient(data):
    x, y = data
    x, y = x[:8].repeat(2, axis=0), y[:8].repeat(2, axis=0)
    x, y = (np.concatenate([v[::2], v[1::2]]) for v in (x, y))
    accumulating = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    twice = _weights_after((x, y), {"optimizer": accumulating})
    once = _weights_after(
        (x[:8], y[:8]), {"optimizer": keras.optimizers.SGD(0.1)}
    )
    for a, b in zip(twice, once, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(data, dtype):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 5))
    states = keras.layers.Dense(4, name="encoder", dtype=dtype)(inputs)
    outputs = keras.layers.Dense(1, dtype=dtype)(states)
    model = keras.Model(inputs, outputs)
    layer = keras_istar.attach(model, "encoder", strength=1.0, shrinkage=0.0)
    optimizer = keras.optimizers.SGD(0.0)
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse")
    x, y = data
    (penalty,) = _fit(model, x, y, batch_size=32)["istar_penalty"]
    narrow = np.asarray(
        keras.ops.cast(model.get_layer("encoder")(x), "float32")
    )
    expected = oracle.penalty(narrow.reshape(-1, 4), 1.0, 0.0)
    assert penalty == pytest.approx(expected, abs=2e-3)
    assert layer.shrinkage_covariance.dtype == "float32"


@only_tensorflow
@pytest.mark.parametrize("floatx", ["float32", "float64"])
def test_float64_model(data, request, floatx):
    if floatx == "float64":  # That of the task loss.
        request.getfixturevalue("floatx64")
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 5), dtype="float64")
    states = keras.layers.Dense(4, name="encoder", dtype="float64")(inputs)
    outputs = keras.layers.Dense(1, dtype="float64")(states)
    model = keras.Model(inputs, outputs)
    keras_istar.attach(model, "encoder", strength=1.0, momentum=0.5)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = (v.astype("float64") for v in data)
    callback = keras_istar.IStarCallback(x, max_tokens=100, verbose=0)
    history = _fit(model, x, y, batch_size=32, callbacks=[callback])
    expected = oracle.penalty(_states(model, x), 1.0)
    assert history["istar_penalty"] == pytest.approx([expected], abs=1e-6)


def _by_hand(x, y, mode):
    """A model that calls a layer built for rematerialization."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 5))
    with keras.RematScope(mode=mode):
        states = keras.layers.Dense(4, activation="tanh")(inputs)
        states = keras_istar.IStarRegularization(2.0, 0.1)(states)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    model.compile("sgd", "mse", run_eagerly=True)
    _fit(model, x, y, batch_size=8)
    return model.get_weights()


@pytest.mark.parametrize("mode", ["full", "activations"])
def test_layers_built_for_rematerialization(data, mode):
    recomputed, stored = _by_hand(*data, mode), _by_hand(*data, None)
    for a, b in zip(recomputed, stored, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def _attached(x, y, mode, strength):
    """A model that was itself built for rematerialization."""
    keras.utils.set_random_seed(1)
    with keras.RematScope(mode=mode):
        inputs = keras.Input((None, 5))
        states = keras.layers.Dense(4, activation="tanh", name="encoder")
        head = keras.layers.Dense(1)
        model = keras.Model(inputs, head(states(inputs)))
    keras_istar.attach(model, "encoder", strength=strength)
    model.compile("sgd", "mse", run_eagerly=True)
    _fit(model, x, y, batch_size=8)
    return model.get_weights()


@pytest.mark.parametrize("mode", ["full", "activations"])
def test_model_built_for_rematerialization(data, mode):
    recomputed = _attached(*data, mode, 2.0)
    stored = _attached(*data, None, 2.0)
    for a, b in zip(recomputed, stored, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    unregularized = _attached(*data, mode, 0.0)
    assert np.max(np.abs(recomputed[0] - unregularized[0])) > 1e-3


def test_detached_model_recomputes_again(data):
    calls = []

    def counting(x):
        calls.append(1)
        return keras.ops.tanh(x)

    with keras.RematScope(mode="full"):
        inputs = keras.Input((None, 5))
        states = keras.layers.Dense(4, activation=counting, name="encoder")
        model = keras.Model(inputs, keras.layers.Dense(1)(states(inputs)))

    def calls_in_a_step():
        calls.clear()
        model.compile("sgd", "mse", run_eagerly=True)
        _fit(model, *data, batch_size=32)
        return len(calls)

    before = calls_in_a_step()
    keras_istar.attach(model, "encoder", strength=0.0)
    assert calls_in_a_step() < before
    keras_istar.detach(model)
    assert calls_in_a_step() == before


def test_backbone_built_for_rematerialization(tiny_bert, rng):
    x = {
        "token_ids": rng.integers(1, 9, size=(8, 6)),
        "segment_ids": np.zeros((8, 6), int),
        "padding_mask": np.ones((8, 6), int),
    }

    def weights(mode):
        keras.utils.set_random_seed(1)
        with keras.RematScope(mode=mode):
            backbone = tiny_bert()
        states = backbone(backbone.input)["sequence_output"]
        model = keras.Model(backbone.input, keras.layers.Dense(1)(states))
        keras_istar.attach(model, strength=2.0)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        history = _fit(model, x, np.ones((8, 6, 1)))
        assert history["istar_penalty"][0] > 0.1
        return model.get_weights()

    # Keras cannot recompute all of a backbone in a graph of TensorFlow.
    for a, b in zip(weights("activations"), weights(None), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_keras_file_keeps_everything(data, tmp_path):
    x, y = data
    inputs = keras.Input((None, 5))
    states = keras.layers.Dense(4)(inputs)
    states = keras_istar.IStarRegularization(-1.0, momentum=0.5)(states)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    model.compile("sgd", "mse")
    _fit(model, x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(loaded.layers[2].shrinkage_covariance.numpy())
    expected = _fit(model, x, y, epochs=2)["loss"]
    assert _fit(loaded, x, y, epochs=2)["loss"] == pytest.approx(
        expected, rel=1e-5
    )


@only_tensorflow
def test_export_gives_the_same_outputs(data, tmp_path):
    import tensorflow as tf

    x, y = data
    model, _ = _model()
    model.compile("sgd", "mse")
    _fit(model, x, y)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(
        served.serve(x), model.predict(x, verbose=0), atol=1e-6
    )


def test_subclassed_model_calls_the_layer_by_hand(data):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dense(4)
            self.second = keras.layers.Dense(4)
            self.istar = keras_istar.IStarRegularization(2.0)
            self.head = keras.layers.Dense(1)

        def call(self, x, training=None):
            first = self.first(x)
            second = self.second(first)
            states = self.istar([first, second], training=training)
            return self.head(states)

    x, y = data
    model = Model()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    (loss,) = _fit(model, x, y, batch_size=32)["loss"]
    first = np.asarray(model.first(x))
    cloud = np.concatenate([first, np.asarray(model.second(first))])
    task = model.evaluate(x, y, verbose=0)
    expected = task + oracle.penalty(cloud.reshape(-1, 4), 2.0)
    assert loss == pytest.approx(expected, rel=1e-5)
