import csv
import gc
import warnings

import keras
import numpy as np
import oracle
import pytest

import keras_istar
from keras_istar._src.measure.streaming_pass import StatesPass

only_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="uses tf.data"
)


@pytest.fixture
def data(rng):
    x = (rng.normal(size=(32, 6, 5)) * [1, 2, 3, 4, 5]).astype("float32")
    return x, rng.normal(size=(32, 6, 1)).astype("float32")


def _model(learning_rate=0.05, compile_kwargs=None, **kwargs):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 5))
    lower = keras.layers.Dense(4, name="lower", activation="tanh")(inputs)
    upper = keras.layers.Dense(4, name="upper")(lower)
    model = keras.Model(inputs, keras.layers.Dense(1)(upper))
    layer = keras_istar.attach(
        model, ["lower", "upper"], **({"strength": -1.0} | kwargs)
    )
    optimizer = keras.optimizers.SGD(learning_rate)
    model.compile(optimizer, "mse", **(compile_kwargs or {}))
    return model, layer


def _callback(data, max_tokens=10_000, **kwargs):
    return keras_istar.IStarCallback(data, max_tokens, verbose=0, **kwargs)


def _fit(model, data, callbacks, **kwargs):
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0} | kwargs
    return model.fit(*data, callbacks=callbacks, **kwargs).history


def _clouds(model, x):
    lower = np.asarray(model.get_layer("lower")(x))
    upper = np.asarray(model.get_layer("upper")(lower))
    lower, upper = lower.reshape(-1, 4), upper.reshape(-1, 4)
    return {
        "union": np.concatenate([lower, upper]),
        "lower": lower,
        "upper": upper,
    }


BASELINES = {
    "cosine": keras_istar.CosineRegularization,
    "isobn_isoscore": keras_istar.IsotropicBatchNormalization,
}


@pytest.mark.parametrize("key", BASELINES)
def test_isotropy_of_baselines_in_the_history(rng, key):
    x = (rng.normal(size=(32, 6, 5)) * [1, 2, 3, 4, 5]).astype("float32")
    inputs = keras.Input((6, 5))
    states = keras.layers.Dense(4, name="encoder")(inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(states)
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    layers = "encoder" if key == "cosine" else None
    keras_istar.attach_regularizer(model, BASELINES[key](), layers)
    keras_istar.attach(model, "encoder", strength=0.0)
    model.compile("sgd", "mse")
    history = _fit(model, (x, x[:, 0, :1]), [_callback(x)], epochs=2)
    expected = {"loss", "isoscore", "istar_penalty", key}
    expected |= {"isoscore_union", "isoscore_encoder"}
    expected |= {"cosine_penalty"} if key == "cosine" else set()
    assert set(history) == expected
    assert all(np.all(np.isfinite(history[name])) for name in history)
    assert history["istar_penalty"] == [0.0, 0.0]
    cloud = np.asarray(model.get_layer("encoder")(x)).reshape(-1, 4)
    assert history["isoscore_union"][-1] == pytest.approx(
        oracle.score(oracle.covariance(cloud)), abs=1e-5
    )


def _assert_covariance(layer, cloud):
    np.testing.assert_allclose(
        layer.shrinkage_covariance,
        oracle.covariance(cloud),
        rtol=1e-4,
        atol=1e-5,
    )
    assert float(layer.has_shrinkage_covariance.value) == 1


class Recorder(keras.callbacks.Callback):
    """Σ_S as it is when each epoch begins, and the logs when it ends."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.estimates, self.logs = layer, [], []

    def on_epoch_begin(self, epoch, logs=None):
        assert self.model is not None  # Brings the variables up to date.
        self.estimates.append(self.layer.shrinkage_covariance.numpy())

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


def test_estimate_before_the_first_and_after_every_epoch(data):
    model, layer = _model()
    recorder = Recorder(layer)
    first = oracle.covariance(_clouds(model, data[0])["union"])
    history = _fit(model, data, [_callback(data[0]), recorder], epochs=2)
    np.testing.assert_allclose(recorder.estimates[0], first, rtol=1e-4)
    assert np.max(np.abs(recorder.estimates[1] - first)) > 1e-3
    clouds = _clouds(model, data[0])
    _assert_covariance(layer, clouds["union"])
    for name, cloud in clouds.items():
        assert history[f"isoscore_{name}"][-1] == pytest.approx(
            oracle.score(oracle.covariance(cloud)), abs=1e-5
        )
        assert len(history[f"isoscore_{name}"]) == 2
        assert (
            recorder.logs[1][f"isoscore_{name}"]
            == (history[f"isoscore_{name}"][1])
        )


def test_estimate_enters_the_penalty(data):
    model, _ = _model(learning_rate=0.0, strength=2.0, shrinkage=0.7)
    clouds = _clouds(model, data[0])
    target = oracle.covariance(clouds["union"])
    batch = _clouds(model, data[0][:8])["union"]
    history = _fit(model, [v[:8] for v in data], [_callback(data[0])])
    assert history["istar_penalty"] == pytest.approx(
        [oracle.penalty(batch, 2.0, 0.7, target)], abs=1e-5
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_update_freq_counts_batches(data, steps, monkeypatch):
    model, layer = _model(compile_kwargs={"steps_per_execution": steps})
    callback = _callback(data[0], update_freq=2)
    estimates = []
    monkeypatch.setattr(
        StatesPass, "run", lambda states_pass: estimates.append(1) or {}
    )
    _fit(model, data, [callback], epochs=3, batch_size=4)
    # Once before training, after each of 3 epochs, and within 24 batches
    # whenever an execution completes another two.
    per_epoch = {1: 4, 2: 4, 3: 3}[steps]
    within = sum(
        before // 2 != after // 2
        for epoch in range(3)
        for before, after in zip(
            range(8 * epoch, 8 * epoch + 8, steps),
            [*range(8 * epoch + steps, 8 * epoch + 8, steps), 8 * epoch + 8],
            strict=True,
        )
    )
    assert within == 3 * per_epoch
    assert len(estimates) == 1 + within + 3


def test_estimate_within_an_epoch(data):
    model, layer = _model()
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert self.model is model  # Brings variables up to date on JAX.
            seen.append(layer.shrinkage_covariance.numpy())

    _fit(model, data, [_callback(data[0], update_freq=2), Spy()])
    changed = [np.any(a != b) for a, b in zip(seen, seen[1:], strict=False)]
    assert changed == [True, False, True]


def test_metrics_of_the_epoch_survive_a_pass(data):
    def history(callbacks):
        model, _ = _model(learning_rate=0.0, shrinkage=0.0)
        model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
        return _fit(model, data, callbacks)

    plain = history([])
    observed = history([_callback(data[0], update_freq=1)])
    for name in ("loss", "mae", "isoscore", "istar_penalty"):
        assert observed[name] == pytest.approx(plain[name], rel=1e-6)


def test_pass_leaves_weights_and_random_state_alone(data):
    def fit(callbacks):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((None, 5))
        states = keras.layers.Dense(4, name="encoder")(inputs)
        states = keras.layers.BatchNormalization()(states)
        outputs = keras.layers.Dense(1)(keras.layers.Dropout(0.5)(states))
        model = keras.Model(inputs, outputs)
        keras_istar.attach(model, "encoder", shrinkage=0.0, strength=-1.0)
        model.compile("sgd", "mse")
        _fit(model, data, callbacks, epochs=2, shuffle=True)
        return [w.numpy() for w in model.weights if w.shape != (4, 4)]

    plain = fit([])
    observed = fit([_callback(data[0])])
    for a, b in zip(plain[:-3], observed[:-3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("max_tokens, examples", [(1, 8), (97, 16)])
def test_pass_ends_with_the_batch_that_reaches_max_tokens(
    data, max_tokens, examples
):
    model, layer = _model(learning_rate=0.0)
    callback = _callback(data[0], max_tokens, batch_size=8)
    _fit(model, data, [callback])
    _assert_covariance(layer, _clouds(model, data[0][:examples])["union"])


def test_memory_does_not_depend_on_max_tokens(data):
    def numbers():
        variables = [x for x in gc.get_objects() if type(x) is keras.Variable]
        return sum(int(np.prod(variable.shape)) for variable in variables)

    def held(max_tokens):
        model, _ = _model()
        callback = _callback(data[0], max_tokens)
        callback.set_model(model)
        gc.collect()
        before = numbers()
        callback.on_train_begin()
        gc.collect()
        return numbers() - before

    # For each of two states: count, center, offset, scatter.
    own = 2 * (1 + 4 + 4 + 16)
    assert own <= held(10) == held(10_000) < own + 10  # Losses, of Keras.


def test_fewer_points_are_said_once(data, capsys):
    model, _ = _model()
    callback = keras_istar.IStarCallback(data[0], max_tokens=1000)
    _fit(model, data, [callback], epochs=3)
    assert capsys.readouterr().out == (
        "IStarCallback: `data` holds 384 tokens, fewer than "
        "max_tokens=1,000; all are used.\n"
    )
    _fit(model, data, [_callback(data[0], 1000)])
    assert capsys.readouterr().out == ""


def test_non_finite_estimates_are_not_used(data):
    model, layer = _model()
    bad = data[0].copy()
    bad[0, 0, 0] = np.nan
    callback = _callback(data[0])
    _fit(model, data, [callback])
    good = layer.shrinkage_covariance.numpy()
    callback = _callback(bad)
    message = (
        f"the covariance of layer '{layer.name}' is not finite; the last one"
    )
    with pytest.warns(UserWarning, match=message):
        _fit(model, data, [callback])
    np.testing.assert_array_equal(layer.shrinkage_covariance, good)


@pytest.mark.parametrize("empty", [np.zeros((0, 6, 5)), []])
def test_empty_data_is_refused_at_the_start(data, empty):
    model, _ = _model()
    before = model.get_weights()
    with pytest.raises(ValueError) as error:
        _fit(model, data, [_callback(empty)])
    assert str(error.value) == (
        "`data` must hold at least one example with an unmasked token. "
        f"Received: data of type {type(empty).__name__}, empty"
    )
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_tokens_masked_is_empty(data):
    inputs = keras.Input((6, 5))
    masked = keras.layers.Masking()(inputs)
    states = keras.layers.Dense(4, name="encoder")(masked)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    keras_istar.attach(model, "encoder", strength=-1.0)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`data` must hold at least one"):
        _fit(model, data, [_callback(np.zeros((8, 6, 5)))])


def test_model_without_the_layer(data):
    model, _ = _model()
    keras_istar.detach(model)
    with pytest.raises(ValueError) as error:
        _fit(model, data, [_callback(data[0])])
    assert str(error.value) == (
        "`IStarCallback` needs a model with an `IStarRegularization` layer; "
        "call `keras_istar.attach(model)` first, on the model that is fitted: "
        "one made from the tensors of an attached model does not call its "
        "layer. "
        f"Received: model={model.name!r}"
    )


class LeavesOut(keras.Model):
    """Has a layer that it calls in training alone, or never."""

    def __init__(self, calls_in_training):
        super().__init__()
        self.hidden = keras.layers.Dense(5)
        self.istar = keras_istar.IStarRegularization(strength=1.0)
        self.head = keras.layers.Dense(1)
        self.calls_in_training = calls_in_training

    def call(self, inputs, training=None):
        x = self.hidden(inputs)
        if training and self.calls_in_training:
            x = self.istar(x, training=training)
        return self.head(x)


@pytest.mark.parametrize("calls_in_training", [True, False])
@pytest.mark.parametrize("function", ["fit", "measure"])
@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")
def test_layer_that_is_not_called(rng, calls_in_training, function):
    x = rng.normal(size=(16, 6, 4))
    model = LeavesOut(calls_in_training)
    if calls_in_training:
        model.hidden(x)
        model.istar(model.hidden(x), training=False)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError) as error:
        if function == "measure":
            keras_istar.measure(model, x, verbose=0)
        else:
            model.fit(
                x,
                rng.normal(size=(16, 6, 1)),
                verbose=0,
                callbacks=[_callback(x)],
            )
    assert str(error.value) == (
        f"`model` must call its layer {model.istar.name!r} on hidden states "
        "whenever it runs, in inference too. "
        f"Received: model={model.name!r}, which does not"
    )


def test_generators_are_refused():
    with pytest.raises(ValueError) as error:
        keras_istar.IStarCallback(np.ones((2, 3, 5)) for _ in range(3))
    assert str(error.value) == (
        "`data` must be iterable more than once, a generator is not. "
        "Received: data of type generator"
    )


def test_several_fits_and_models(data):
    callback = _callback(data[0])
    for _ in range(2):
        model, layer = _model()
        for _ in range(2):
            history = _fit(model, data, [callback])
            assert len(history["isoscore_union"]) == 1
            _assert_covariance(layer, _clouds(model, data[0])["union"])


def test_layers_with_momentum_are_only_logged(data):
    model, layer = _model(momentum=0.5)
    without, expected = _model(momentum=0.5)
    history = _fit(model, data, [_callback(data[0])])
    _fit(without, data, [])
    np.testing.assert_allclose(
        layer.shrinkage_covariance, expected.shrinkage_covariance, rtol=1e-5
    )
    assert history["isoscore_union"] == pytest.approx(
        [oracle.score(oracle.covariance(_clouds(model, data[0])["union"]))],
        abs=1e-5,
    )


def test_names_of_several_layers(data):
    inputs = keras.Input((None, 5))
    states = keras.layers.Dense(4)(inputs)
    for name in ("first", "second"):
        states = keras_istar.IStarRegularization(-1.0, name=name)(states)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    model.compile("sgd", "mse")
    history = _fit(model, data, [_callback(data[0])])
    expected = {
        f"{name}_isoscore_{state}"
        for name in ("first", "second")
        for state in ("union", "layer_0")
    }
    assert expected < set(history)


def test_later_callbacks_see_the_scores(data, tmp_path):
    model, _ = _model(learning_rate=0.0)
    history = _fit(
        model,
        data,
        [
            _callback(data[0]),
            keras.callbacks.EarlyStopping("isoscore_union", mode="max"),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        ],
        epochs=9,
    )
    assert len(history["loss"]) == 2  # No gain in the second epoch.
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("isoscore_union", "isoscore_lower", "isoscore_upper"):
        logged = [float(row[name]) for row in rows]
        assert logged == pytest.approx(history[name])


class Killed(Exception):
    pass


@pytest.mark.parametrize("istar_first", [True, False])
def test_restarted_run_ends_like_an_uninterrupted_one(
    data, tmp_path, istar_first
):
    def run(folder, kill_after=None):
        model, layer = _model(strength=2.0, shrinkage=0.5)

        def kill(epoch, logs):
            if epoch == kill_after:
                raise Killed

        callbacks = [
            _callback(data[0]),
            keras.callbacks.BackupAndRestore(tmp_path / folder),
        ]
        callbacks = callbacks if istar_first else callbacks[::-1]
        callbacks.append(keras.callbacks.LambdaCallback(on_epoch_begin=kill))
        _fit(model, data, callbacks, epochs=5)
        return [*model.get_weights(), layer.shrinkage_covariance.numpy()]

    expected = run("whole")
    with pytest.raises(Killed):
        run("killed", kill_after=3)
    for a, b in zip(run("killed"), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def _datasets(x, y):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices
    return {
        "x": dataset(x).batch(8),
        "x, y": dataset((x, y)).batch(8),
        "x, y, weight": dataset((x, y, y[:, 0, 0])).batch(8),
        "infinite": dataset(x).batch(8).repeat(),
    }


@only_tensorflow
@pytest.mark.parametrize("kind", ["x", "x, y", "x, y, weight", "infinite"])
def test_tf_data(data, kind):
    model, layer = _model()
    callback = _callback(_datasets(*data)[kind], max_tokens=32 * 12)
    _fit(model, data, [callback])
    _assert_covariance(layer, _clouds(model, data[0])["union"])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@only_tensorflow
def test_empty_dataset(data):
    model, _ = _model()
    empty = _datasets(*data)["x"].take(0)
    with pytest.raises(ValueError, match="`data` must hold at least one"):
        _fit(model, data, [_callback(empty)])


def test_dict_of_arrays(data):
    keras.utils.set_random_seed(1)
    inputs = {name: keras.Input((None, 5), name=name) for name in "ab"}
    both = keras.layers.Add()(list(inputs.values()))
    states = keras.layers.Dense(4, name="encoder")(both)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    layer = keras_istar.attach(model, "encoder", strength=-1.0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = data
    both = {"a": x, "b": 2 * x}
    _fit(model, (both, y), [_callback(both)])
    cloud = np.asarray(model.get_layer("encoder")(3 * x)).reshape(-1, 4)
    _assert_covariance(layer, cloud)


def test_no_warnings(data):
    model, _ = _model()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _fit(model, data, [_callback(data[0])])


def _raw(texts, labels):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices
    return [
        texts,
        texts.tolist(),
        dataset(texts).batch(4),
        dataset((texts, labels)).batch(4),
    ]


@only_tensorflow
def test_raw_strings(tiny_classifier, sentences):
    texts, labels = sentences
    task = tiny_classifier()
    layer = keras_istar.attach(task, layers=-1, strength=-1.0)
    task.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    x = task.preprocessor(texts)
    states = np.asarray(task.backbone(x)["sequence_output"])
    cloud = states[np.asarray(x["padding_mask"], bool)]
    for data in _raw(texts, labels):
        layer.set_shrinkage_covariance(np.eye(layer.dim))
        history = task.fit(
            texts, labels, verbose=0, callbacks=[_callback(data)]
        ).history
        _assert_covariance(layer, cloud)
        assert history["isoscore_layer_1"] == pytest.approx(
            [oracle.score(oracle.covariance(cloud))], abs=1e-5
        )
