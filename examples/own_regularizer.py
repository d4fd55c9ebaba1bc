"""For researchers: write a regularizer of your own in a few lines.

A subclass says what it measures and which loss that makes; attaching, masks,
logging and saving are inherited. This one is the mean squared correlation
between features, close to the covariance term of VICReg. Prints it in the last
epoch with strength 0, which only logs, and with strength 1, which keeps it low.
"""

import keras
import numpy as np
from keras import ops

import keras_istar


@keras.saving.register_keras_serializable(package="my_project")
class Decorrelation(keras_istar.HiddenStateRegularization):
    default_layers = -1  # If `attach_regularizer` is given no layers.
    measure_name = "correlation"  # The key in the logs.

    def measure(self, hidden_states, masks):
        """Mean squared correlation of the features of the last state."""
        tokens = ops.reshape(hidden_states[-1], (-1, self.dim))
        weights = ops.ones_like(tokens[:, :1])
        if masks[-1] is not None:  # Ones for tokens, zeros for padding.
            weights = ops.cast(ops.reshape(masks[-1], (-1, 1)), tokens.dtype)
        mean = ops.sum(weights * tokens, axis=0) / ops.sum(weights)
        centered = weights * (tokens - mean)
        scatter = ops.matmul(ops.transpose(centered), centered)
        variances = ops.diagonal(scatter) + keras.config.epsilon()
        squares = ops.square(scatter) / ops.outer(variances, variances)
        off_diagonal = ops.sum(squares) - ops.sum(ops.diagonal(squares))
        return off_diagonal / (self.dim * (self.dim - 1))

    def loss(self, measure):
        """What the strength multiplies: here the measure itself."""
        return measure


rng = np.random.default_rng(0)
x = rng.normal(size=(1024, 16, 32)) * np.geomspace(1.0, 0.05, 32)
y = x[:, :, :4].mean(axis=(1, 2)) > 0


def train(strength):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 32))
    hidden = keras.layers.Dense(32, "tanh", name="encoder")(inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = keras.layers.Dense(1, "sigmoid")(pooled)
    model = keras.Model(inputs, outputs)
    keras_istar.attach_regularizer(model, Decorrelation(strength), "encoder")
    model.compile(
        keras.optimizers.Adam(3e-3), "binary_crossentropy", metrics=["accuracy"]
    )
    return model.fit(x, y, epochs=8, verbose=0).history


for strength in (0.0, 1.0):
    history = train(strength)
    print(
        f"strength {strength}: "
        f"correlation {history['correlation'][-1]:.3f}, "
        f"accuracy {history['accuracy'][-1]:.3f}"
    )
