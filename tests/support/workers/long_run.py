"""Trains a tiny attached model for 1,280 steps, with a pass every 40.

Arguments: the file to write, the folder of event files. What is saved has one
row for each 80 steps, which are an epoch.
"""

import os
import pathlib
import sys

import keras
import numpy as np

import keras_istar

EPOCHS, STEPS, BATCH = 16, 80, 2


class Traced(keras.layers.Layer):
    """An identity that counts its calls in training and in inference."""

    def __init__(self):
        super().__init__()
        self.calls = np.zeros(2, int)

    def call(self, x, training=None):
        self.calls[0 if training else 1] += 1
        return x


class Recorder(keras.callbacks.Callback):
    def __init__(self, traced, folder):
        super().__init__()
        self.traced, self.folder = traced, pathlib.Path(folder)
        self.columns = {}

    def on_epoch_begin(self, epoch, logs=None):
        self._add("files_before", self._file_sizes())

    def on_train_batch_end(self, batch, logs=None):
        if batch == STEPS - 1:
            self._add("files_within", self._file_sizes())

    def on_epoch_end(self, epoch, logs=None):
        self._add("files_after", self._file_sizes())
        self._add("traces", self.traced.calls.copy())
        self._add("losses", len(self.model.losses))
        self._add("resident", _resident_bytes())

    def _add(self, name, value):
        self.columns.setdefault(name, []).append(value)

    def _file_sizes(self):
        """Number of files and their size in bytes."""
        sizes = [file.stat().st_size for file in self.folder.glob("*")]
        return len(sizes), sum(sizes)


def _resident_bytes():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def main(output, folder):
    keras.utils.set_random_seed(0)
    traced = Traced()
    inputs = keras.Input((4, 3))
    states = keras.layers.Dense(4, name="encoder")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(traced(states)))
    keras_istar.attach(model, "encoder", strength=-1.0)
    model.compile("sgd", "mse")
    x = np.random.normal(size=(STEPS * BATCH, 4, 3)).astype("float32")
    callback = keras_istar.IStarCallback(
        x[:64], update_freq=40, verbose=0, log_dir=folder
    )
    recorder = Recorder(traced, folder)
    traced.calls[:] = 0
    model.fit(
        x,
        np.zeros((len(x), 4, 1)),
        BATCH,
        EPOCHS,
        verbose=0,
        callbacks=[callback, recorder],
    )
    np.savez(output, steps=model.optimizer.iterations, **recorder.columns)


if __name__ == "__main__":
    main(*sys.argv[1:])
