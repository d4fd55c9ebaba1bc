"""For those who wonder which strength: let KerasTuner search it.

Trains a small model with every strength of a grid, keeps the best epoch of
each, and prints them with their isotropy, by accuracy on validation data. Which
strength is best depends on the data, so search. Needs
`pip install keras-tuner`.
"""

import tempfile

import keras
import keras_tuner
import numpy as np

import keras_istar

rng = np.random.default_rng(0)
x = rng.normal(size=(1024, 16, 32)) * np.geomspace(1.0, 0.05, 32)
y = x[:, :, :4].mean(axis=(1, 2)) > 0
x_train, y_train, x_test, y_test = x[:768], y[:768], x[768:], y[768:]


def build(hp):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 32))
    hidden = keras.layers.Dense(32, "tanh", name="block_1")(inputs)
    hidden = keras.layers.Dense(32, "tanh", name="block_2")(hidden)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = keras.layers.Dense(1, "sigmoid")(pooled)
    model = keras.Model(inputs, outputs)
    # To search a range, take `hp.Float("strength", -1.0, 1.0)` and another
    # tuner, such as `keras_tuner.BayesianOptimization`.
    strength = hp.Choice("strength", [-1.0, 0.0, 0.3, 1.0])
    keras_istar.attach(model, ["block_1", "block_2"], strength=strength)
    model.compile(
        keras.optimizers.Adam(3e-3), "binary_crossentropy", metrics=["accuracy"]
    )
    return model


with tempfile.TemporaryDirectory() as folder:
    tuner = keras_tuner.GridSearch(
        build,
        objective=keras_tuner.Objective("val_accuracy", "max"),
        directory=folder,
    )
    tuner.search(
        x_train,
        y_train,
        validation_data=(x_test, y_test),
        epochs=5,
        callbacks=[keras_istar.IStarCallback(x_test, verbose=0)],
        verbose=0,
    )

trials = tuner.oracle.get_best_trials(num_trials=4)
for trial in trials:
    # KerasTuner keeps the logs of the best epoch.
    (isotropy,) = trial.metrics.get_history("isoscore_union")
    print(
        f"strength {trial.hyperparameters.get('strength')}: "
        f"accuracy {trial.score:.3f}, IsoScore {isotropy.value[0]:.3f}"
    )
print(f"best strength: {trials[0].hyperparameters.get('strength')}")
