"""For machines with several GPUs: train under `MirroredStrategy`.

Build, attach and compile in the scope of the strategy; `fit` does the rest.
The tokens of all replicas are scored together, so two devices give what one
gives with the whole batch: the losses and scores printed for both are equal.
The devices are virtual CPUs here; leave their names out to use all GPUs.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

import keras_istar

# Two devices out of one CPU, before TensorFlow uses it.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

rng = np.random.default_rng(0)
x = rng.normal(size=(512, 16, 32)) * np.geomspace(1.0, 0.05, 32)
y = (x[:, :, :4].mean(axis=(1, 2)) > 0).astype("int32")


def train(strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((16, 32))
        hidden = keras.layers.Dense(32, "tanh", name="block_1")(inputs)
        hidden = keras.layers.Dense(32, "tanh", name="block_2")(hidden)
        pooled = keras.layers.GlobalAveragePooling1D()(hidden)
        outputs = keras.layers.Dense(1, "sigmoid")(pooled)
        model = keras.Model(inputs, outputs)
        keras_istar.attach(model, ["block_1", "block_2"], strength=1.0)
        model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    # The batch size is that of all devices together.
    return model.fit(
        x,
        y,
        batch_size=32,
        epochs=5,
        callbacks=[keras_istar.IStarCallback(x, verbose=0)],
        verbose=0,
    ).history


one = train(tf.distribute.get_strategy())
two = train(tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]))
for key in ("loss", "isoscore", "isoscore_block_1", "isoscore_block_2"):
    for devices, history in ("one device", one), ("two devices", two):
        first, last = history[key][0], history[key][-1]
        print(f"{key} on {devices}: {first:.5f} -> {last:.5f}")
