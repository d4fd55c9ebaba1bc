"""For researchers: write regularizers of your own in a few lines.

A subclass defines what it measures, and the loss; attaching, masks, logging and
saving are inherited, and `self.covariance` is exact on several devices. Prints
what the covariance term of VICReg and the entropy of the spectrum do, with
strength 0, which only logs, and with a higher one.
"""

import keras
import numpy as np
from keras import ops

import keras_istar


@keras.saving.register_keras_serializable(package="my_project")
class Decorrelation(keras_istar.HiddenStateRegularization):
    """Covariance term of VICReg (Bardes et al. 2022): sum of cov_ij² / dim."""

    measure_name = "off_diagonal"  # The key in the logs.

    def measure(self, hidden_states, masks):
        squares = ops.square(self.covariance(hidden_states, masks))
        return (ops.sum(squares) - ops.trace(squares)) / self.dim

    def loss(self, measure):
        return measure  # What the strength multiplies.


@keras.saving.register_keras_serializable(package="my_project")
class SpectralEntropy(keras_istar.HiddenStateRegularization):
    """Entropy of the eigenvalues as shares of their sum, to be made large."""

    measure_name = "entropy"

    def measure(self, hidden_states, masks):
        covariance = self.covariance(hidden_states, masks)
        # The identity keeps equal eigenvalues apart from zero.
        shares = covariance / ops.trace(covariance)
        values = ops.linalg.eigh(shares + 1e-6 * ops.eye(self.dim))[0]
        return -ops.sum(values * ops.log(ops.maximum(values, 1e-12)))

    def loss(self, measure):
        return np.log(self.dim) - measure  # 0 where all are equal.


rng = np.random.default_rng(0)
x = rng.normal(size=(1024, 16, 32)) * np.geomspace(1.0, 0.05, 32)
y = x[:, :, :4].mean(axis=(1, 2)) > 0


def train(regularizer):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 32))
    hidden = keras.layers.Dense(32, "tanh", name="encoder")(inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = keras.layers.Dense(1, "sigmoid")(pooled)
    model = keras.Model(inputs, outputs)
    keras_istar.attach_regularizer(model, regularizer, "encoder")
    model.compile(
        keras.optimizers.Adam(3e-3), "binary_crossentropy", metrics=["accuracy"]
    )
    return model.fit(x, y, epochs=8, verbose=0).history


for kind in (Decorrelation, SpectralEntropy):
    for strength in (0.0, 1.0):
        regularizer = kind(strength)
        history = train(regularizer)
        print(
            f"{kind.__name__} {strength}: "
            f"{kind.measure_name} {history[kind.measure_name][-1]:.3f}, "
            f"accuracy {history['accuracy'][-1]:.3f}"
        )
