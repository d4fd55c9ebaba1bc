"""For JAX on several GPUs or TPUs: `keras.distribution.DataParallel`.

Choose the distribution before the model is built; `attach` and `fit` need no
change. Tokens of all devices are scored together, so four devices give what
one gives: the losses and scores printed for both are equal.
The devices are virtual CPUs here; leave the line out to use all real ones.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np

import keras_istar

# Four devices out of one CPU, before JAX uses it.
jax.config.update("jax_num_cpu_devices", 4)

rng = np.random.default_rng(0)
x = rng.normal(size=(512, 16, 32)) * np.geomspace(1.0, 0.05, 32)
y = x[:, :, :4].mean(axis=(1, 2)) > 0


def train(distribution):
    keras.distribution.set_distribution(distribution)
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
    history = model.fit(
        x,
        y,
        batch_size=32,
        epochs=5,
        callbacks=[keras_istar.IStarCallback(x, verbose=0)],
        verbose=0,
    ).history
    devices = len(model.trainable_weights[0].value.devices())
    return devices, history


for devices, history in train(None), train(keras.distribution.DataParallel()):
    for key in ("loss", "isoscore", "isoscore_block_1", "isoscore_block_2"):
        first, last = history[key][0], history[key][-1]
        print(f"{key}, devices={devices}: {first:.5f} -> {last:.5f}")
