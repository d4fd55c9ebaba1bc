"""For newcomers: one line keeps the hidden states of a model isotropic.

Trains the same small classifier twice, without and with a target, and prints
the IsoScore of its two hidden layers. Training alone narrows them; with a
target each is held near an IsoScore of 0.3, at about the same accuracy.
"""

import keras
import numpy as np

import keras_istar

BLOCKS = ["block_1", "block_2"]

# Sequences of 16 tokens with 32 features, the first ones much wider.
rng = np.random.default_rng(0)
x = rng.normal(size=(2048, 16, 32)) * np.geomspace(1.0, 0.05, 32)
y = x[:, :, :4].mean(axis=(1, 2)) > 0
x_train, y_train, x_test, y_test = x[:1536], y[:1536], x[1536:], y[1536:]


def make_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 32))
    hidden = keras.layers.Dense(32, "tanh", name="block_1")(inputs)
    hidden = keras.layers.Dense(32, "tanh", name="block_2")(hidden)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = keras.layers.Dense(1, "sigmoid")(pooled)
    return keras.Model(inputs, outputs)


def isotropy(model):
    """IsoScore of each layer and of both together: 0 is a line, 1 a ball."""
    report = keras_istar.measure(
        model, x_test, BLOCKS, measures=["isoscore"], verbose=0
    )
    return "".join(f"{row.values['isoscore']:9.3f}" for row in report.rows)


print(f"{'IsoScore':18}  block_1  block_2    union accuracy")
print(f"{'before training:':18}{isotropy(make_model())}")

for name, options in {
    "without": {"strength": 0.0},  # Only logs.
    "with a target": {"target": 0.3, "per_layer": True},
}.items():
    model = make_model()

    # The one line.
    keras_istar.attach(model, BLOCKS, **options)

    model.compile(
        keras.optimizers.Adam(1e-3), "binary_crossentropy", metrics=["accuracy"]
    )
    # Adds `isoscore_block_1` and the like to the logs of every epoch.
    callback = keras_istar.IStarCallback(x_train, verbose=0)
    model.fit(x_train, y_train, epochs=5, callbacks=[callback], verbose=0)
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    print(f"{f'{name}:':18}{isotropy(model)}{accuracy:9.3f}")
