"""Isotropy in the logs of models that have no layer of ours."""

import copy
import warnings

import keras
import numpy as np
import oracle
import pytest

import keras_istar
from keras_istar._src.compat import keras_private

LAYERS = ["lower", "upper"]


@pytest.fixture
def data(rng):
    x = (rng.normal(size=(24, 6, 5)) * np.arange(1, 6)).astype("float32")
    return x, np.zeros((24, 1), "float32")


def _model(rate=0.0):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 5))
    lower = keras.layers.Dense(4, "tanh", name="lower")(inputs)
    upper = keras.layers.Dense(4, name="upper")(lower)
    pooled = keras.layers.GlobalAveragePooling1D()(upper)
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def _fit(model, data, monitor, epochs=1):
    return model.fit(
        *data, batch_size=8, epochs=epochs, verbose=0, callbacks=[monitor]
    ).history


def _clouds(model, x):
    lower = np.asarray(model.get_layer("lower")(x))
    upper = np.asarray(model.get_layer("upper")(lower))
    clouds = {"lower": lower.reshape(-1, 4), "upper": upper.reshape(-1, 4)}
    return {**clouds, "union": np.concatenate(list(clouds.values()))}


def test_logs_are_those_of_measure(data):
    model = _model()
    monitor = keras_istar.IsotropyMonitor(
        data[0], LAYERS, measures="all", verbose=0
    )
    history = _fit(model, data, monitor)
    report = keras_istar.measure(model, data[0], LAYERS, verbose=0)
    for row in report.rows:
        for column in ("isoscore", "effective_rank", "mean_norm", "outliers"):
            assert history[f"{column}_{row.layer}"] == pytest.approx(
                [row.values[column]], rel=1e-5
            )
    clouds = _clouds(model, data[0])
    expected = oracle.score(oracle.covariance(clouds["union"]))
    assert history["isoscore_union"] == pytest.approx([expected], abs=1e-5)
    within = sum(
        np.var(clouds[name], axis=0).sum() * len(clouds[name])
        for name in LAYERS
    )
    total = np.var(clouds["union"], axis=0).sum() * len(clouds["union"])
    assert history["between_layers"] == pytest.approx(
        [1 - within / total], abs=1e-5
    )
    assert report.between_layers == pytest.approx(1 - within / total, abs=1e-5)


@pytest.mark.parametrize(
    "measures", [["isoscore"], ["mean_norm"], ["partition_isotropy"]]
)
def test_only_what_is_asked_for_is_logged(data, measures):
    monitor = keras_istar.IsotropyMonitor(
        data[0], LAYERS, measures=measures, verbose=0
    )
    history = _fit(_model(), data, monitor, epochs=2)
    names = {f"{measures[0]}_{x}" for x in (*LAYERS, "union")}
    assert set(history) == {"loss", "between_layers"} | names
    assert all(np.isfinite(history[name]).all() for name in names)


def test_nothing_is_left_in_the_model(data):
    model = _model()
    layers, weights = list(model.layers), model.get_weights()
    nodes = keras_private.nodes(model)
    monitor = keras_istar.IsotropyMonitor(data[0], "upper", verbose=0)
    _fit(model, data, monitor, epochs=2)
    assert list(model.layers) == layers
    assert keras_private.nodes(model) == nodes
    assert not keras_private.attached_layers(model)
    assert len(model.get_weights()) == len(weights)


def test_training_that_fails_leaves_nothing(data):
    model = _model()

    def fail(batch, logs):
        raise RuntimeError("stopped")

    monitor = keras_istar.IsotropyMonitor(data[0], "upper", verbose=0)
    callbacks = [
        monitor,
        keras.callbacks.LambdaCallback(on_train_batch_end=fail),
    ]
    with pytest.raises(RuntimeError, match="stopped"):
        model.fit(*data, verbose=0, callbacks=callbacks)
    assert not keras_private.attached_layers(model)


def test_monitor_sees_the_model_as_it_trains(data):
    model = _model(rate=0.1)
    monitor = keras_istar.IsotropyMonitor(
        data[0], LAYERS, measures=["isoscore"], verbose=0
    )
    history = _fit(model, data, monitor, epochs=3)
    last = oracle.score(oracle.covariance(_clouds(model, data[0])["upper"]))
    assert history["isoscore_upper"][-1] == pytest.approx(last, abs=1e-5)
    assert history["isoscore_upper"][0] != history["isoscore_upper"][-1]


class Flatten(keras.callbacks.Callback):
    """Makes a layer return almost one direction, from some epoch on."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            for name in LAYERS:
                layer = self.model.get_layer(name)
                kernel, bias = layer.get_weights()
                kernel[:, 1:] = 1e-4 * kernel[:, 1:]
                layer.set_weights([kernel, bias])


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (None, "A lower learning rate"),
        ({"strength": -1.0}, "The strength is -1: use a `target`"),
        ({"strength": 0.0}, "The strength is 0, so this is what training"),
        ({"strength": 1.0}, "The strength is 1, so this is what training"),
        ({"target": 0.0}, "Use a higher `target`"),
        ({"target": 0.9}, "is already below the target, 0.9: use a lower"),
        ({"target": 0.9, "per_layer": True}, "Use a higher `target`"),
    ],
)
def test_collapse_is_announced_once(data, options, advice):
    model = _model()
    monitor = keras_istar.IsotropyMonitor(data[0], LAYERS, verbose=0)
    if options is not None:
        keras_istar.attach(model, LAYERS, **options)
        model.compile(keras.optimizers.SGD(0.0), "mse")
        monitor = keras_istar.IStarCallback(data[0], verbose=0)
    with pytest.warns(
        UserWarning, match="are collapsing: the IsoScore of"
    ) as w:
        model.fit(*data, epochs=4, verbose=0, callbacks=[Flatten(2), monitor])
    messages = [str(x.message) for x in w if "collapsing" in str(x.message)]
    assert len(messages) == 1
    assert advice in messages[0]


def test_no_collapse_no_warning(data):
    monitor = keras_istar.IsotropyMonitor(data[0], LAYERS, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _fit(_model(), data, monitor, epochs=2)


def test_states_that_are_not_finite_are_logged_as_such(data):
    bad = data[0].copy()
    bad[0, 0, 0] = np.nan
    monitor = keras_istar.IsotropyMonitor(
        bad, LAYERS, measures=["isoscore", "effective_rank"], verbose=0
    )
    history = _fit(_model(), data, monitor)
    assert np.isnan(history["effective_rank_union"]).all()


def test_copies_share_data_and_are_used_apart(data):
    monitor = keras_istar.IsotropyMonitor(data[0], LAYERS, verbose=0)
    first = _fit(_model(), data, monitor)
    again = copy.deepcopy(monitor)
    assert again.data is monitor.data
    assert _fit(_model(), data, again) == first


def test_callback_logs_measures_of_attached_layers(data):
    model = _model()
    keras_istar.attach(model, LAYERS, strength=0.0)
    model.compile("sgd", "mse")
    callback = keras_istar.IStarCallback(
        data[0], verbose=0, measures=["effective_rank", "average_cosine"]
    )
    history = _fit(model, data, callback)
    assert {"effective_rank_upper", "average_cosine_union"} <= set(history)
    assert "isoscore_upper" not in history


WRONG = {
    "measures": ("measures", ["roundness"]),
    "max_tokens": ("max_tokens", 0),
    "batch_size": ("batch_size", 0),
    "verbose": ("verbose", 2),
    "data": ("data", None),
}


@pytest.mark.parametrize("name, value", WRONG.values(), ids=WRONG)
def test_wrong_arguments(data, name, value):
    arguments = {"data": data[0], name: value}
    with pytest.raises(ValueError, match=f"`{name}` must"):
        keras_istar.IsotropyMonitor(**arguments)


def test_layers_that_are_not_there_are_refused_at_the_start(data):
    monitor = keras_istar.IsotropyMonitor(data[0], "other", verbose=0)
    with pytest.raises(ValueError, match="no layer named"):
        _fit(_model(), data, monitor)


def test_states_that_become_finite_are_measured_from_then_on(data):
    """What was not known at the start cannot have collapsed since."""
    model = _model()
    kernel, bias = model.get_layer("upper").get_weights()
    model.get_layer("upper").set_weights([kernel * np.nan, bias])

    def mend(epoch, logs=None):
        model.get_layer("upper").set_weights([kernel, bias])

    monitor = keras_istar.IsotropyMonitor(data[0], LAYERS, verbose=0)
    mending = keras.callbacks.LambdaCallback(on_epoch_begin=mend)
    history = model.fit(*data, verbose=0, callbacks=[mending, monitor]).history
    assert np.isfinite(history["isoscore_union"]).all()
