"""For those who watch trainings: isotropy in TensorBoard.

Trains a model with two strengths, each with event files of its own in
`logs`. `IStarCallback(..., log_dir=...)` writes scores, spectra and a figure
after every epoch, the stock callback of Keras the losses and metrics. Prints
the final scores and the command that shows all of it in a browser.
"""

import keras
import numpy as np

import keras_istar

rng = np.random.default_rng(0)
x = rng.normal(size=(1024, 16, 32)) * np.geomspace(1.0, 0.05, 32)
y = x[:, :, :4].mean(axis=(1, 2)) > 0


def train(strength):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 32))
    hidden = keras.layers.Dense(32, "tanh", name="block_1")(inputs)
    hidden = keras.layers.Dense(32, "tanh", name="block_2")(hidden)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = keras.layers.Dense(1, "sigmoid")(pooled)
    model = keras.Model(inputs, outputs)
    keras_istar.attach(model, ["block_1", "block_2"], strength=strength)
    model.compile(
        keras.optimizers.Adam(1e-3), "binary_crossentropy", metrics=["accuracy"]
    )
    log_dir = f"logs/strength {strength}"
    callbacks = [
        # First, so that those after it see the scores in the logs.
        keras_istar.IStarCallback(x, verbose=0, log_dir=log_dir),
        keras.callbacks.TensorBoard(log_dir),
    ]
    return model.fit(x, y, epochs=5, callbacks=callbacks, verbose=0).history


for strength in (0.0, 1.0):
    history = train(strength)
    print(
        f"strength {strength}: "
        f"IsoScore of block_1 {history['isoscore_block_1'][-1]:.3f}, "
        f"of block_2 {history['isoscore_block_2'][-1]:.3f}"
    )
print("To see them, run: tensorboard --logdir logs")
