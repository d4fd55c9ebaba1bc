import contextlib
import functools
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_istar
from keras_istar._src.measure.streaming_pass import StatesPass

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="written for the TensorFlow trainer",
)

FAULTS = pathlib.Path(__file__).parents[1] / "support" / "faults"


@pytest.fixture
def data(rng):
    x = rng.normal(size=(32, 6, 5)).astype("float32")
    return x, rng.normal(size=(32, 6, 1)).astype("float32")


def _model(**kwargs):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 5))
    states = keras.layers.Dense(4, name="encoder")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(states))
    layer = keras_istar.attach(
        model, "encoder", **({"strength": -1.0} | kwargs)
    )
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model, layer


def _fit(model, data, callbacks, **kwargs):
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0} | kwargs
    return model.fit(*data, callbacks=callbacks, **kwargs).history


def test_runs_that_are_killed_end_as_if_they_had_not_been():
    pytest.importorskip("tensorboard")
    if not hasattr(os, "fork"):
        pytest.skip("the script forks")
    done = subprocess.run(
        [sys.executable, FAULTS / "kill.py", "--kills", "6", "--seed", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.splitlines()[-1].startswith("6 kills")


class Place(keras.callbacks.Callback):
    """Where training is."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.batch = batch


def test_restarted_runs_make_the_same_passes(data, monkeypatch):
    run = StatesPass.run

    def passes_of_the_last_epoch(**kwargs):
        callback = keras_istar.IStarCallback(data[0], update_freq=3, verbose=0)
        place, passes = Place(), []
        place.epoch = place.batch = None

        def note(states_pass):
            passes.append((place.epoch, place.batch))
            return run(states_pass)

        monkeypatch.setattr(StatesPass, "run", note)
        _fit(_model()[0], data, [callback, place], epochs=3, **kwargs)
        return [batch for epoch, batch in passes if epoch == 2]

    # There are four batches; the epoch ends with a pass.
    assert passes_of_the_last_epoch() == [2, 3]
    assert passes_of_the_last_epoch(initial_epoch=2) == [2, 3]


class Failing(keras.utils.PyDataset):
    """Batches of `x`, of which the third raises once `is_broken`."""

    def __init__(self, x):
        super().__init__()
        self.x, self.is_broken = x, False

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.is_broken and index == 2:
            raise OSError("the disk is on fire")
        return self.x[8 * index : 8 * index + 8]

    def as_tf_data(self):
        import tensorflow as tf

        dataset = tf.data.Dataset.from_generator(
            lambda: (self[i] for i in range(4)),
            output_signature=tf.TensorSpec((8, 6, 5)),
        )
        return dataset.apply(tf.data.experimental.assert_cardinality(4))


@pytest.mark.parametrize("kind", ["PyDataset", "tf.data"])
def test_data_that_raise_within_a_pass(data, kind):
    model, layer = _model()
    dataset = Failing(data[0])
    source = dataset if kind == "PyDataset" else dataset.as_tf_data()
    callback = keras_istar.IStarCallback(source, verbose=0)
    estimates = []

    def break_down(epoch, logs):
        estimates.append(layer.shrinkage_covariance.numpy())
        dataset.is_broken = epoch == 1

    breaker = keras.callbacks.LambdaCallback(on_epoch_begin=break_down)
    # TensorFlow puts it into an error of its own.
    with pytest.raises(Exception, match="OSError: the disk is on fire"):
        _fit(model, data, [callback, breaker], epochs=3)
    assert len(estimates) == 2 and np.any(estimates[0] != estimates[1])
    after = layer.shrinkage_covariance.numpy()
    np.testing.assert_array_equal(after, estimates[-1])
    dataset.is_broken = False
    history = _fit(model, data, [callback])
    assert np.all(np.isfinite(history["isoscore_union"]))


class Poison(Place):
    """Makes activations NaN in the third step of the second epoch."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch)
        if (self.epoch, batch) == (1, 2):
            self.estimate = self.layer.shrinkage_covariance.numpy()
            kernel = self.model.get_layer("encoder").kernel
            kernel.assign(np.nan * kernel)


def _savers(folder):
    """How to save weights, and whether that needs an error at the first NaN."""
    path = folder / "latest.weights.h5"
    checkpoint = functools.partial(
        keras.callbacks.ModelCheckpoint, path, "loss", save_weights_only=True
    )
    return {
        "best": (checkpoint(save_best_only=True), False),
        "newest": (checkpoint(), True),
        "backup": (keras.callbacks.BackupAndRestore(folder), True),
    }


@pytest.mark.filterwarnings("ignore:IStarCallback. the covariance of layer")
@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("kind", ["best", "newest", "backup"])
def test_activations_that_are_not_finite_end_a_run_cleanly(
    data, momentum, kind, tmp_path
):
    model, layer = _model(momentum=momentum)
    poison = Poison(layer)
    saver, raise_error = _savers(tmp_path)[kind]
    callbacks = [
        keras_istar.IStarCallback(data[0], update_freq=1, verbose=0),
        keras.callbacks.TerminateOnNaN(raise_error),
        saver,
        poison,
    ]
    error = pytest.raises(RuntimeError, match="NaN or Inf loss")
    with error if raise_error else contextlib.nullcontext():
        _fit(model, data, callbacks, epochs=5)
    assert (poison.epoch, poison.batch) == (1, 2)
    assert np.any(poison.estimate)
    after = layer.shrinkage_covariance.numpy()
    np.testing.assert_array_equal(after, poison.estimate)
    restored, layer = _model(momentum=momentum)
    restored.load_weights(tmp_path / "latest.weights.h5")
    for weight in restored.weights:
        assert np.all(np.isfinite(weight.numpy()))
    assert np.any(layer.shrinkage_covariance.numpy())


def test_disk_without_room_for_a_report(data, tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "report.json"
    report = keras_istar.measure(_model()[0], data[0], "encoder", verbose=0)
    report.save(path)
    before = path.read_bytes()
    other = keras_istar.measure(_model()[0], data[0] + 1, "encoder", verbose=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError):
            other.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
