"""For authors of subclassed models: call the regularizer in your own `call`.

`attach` works on Functional models and KerasHub; elsewhere, make the layer
yourself and give it the hidden states and `training`. Prints what the callback
logs: the IsoScore of both layers rises from the first epoch to the last.
"""

import keras
import numpy as np

import keras_istar


class Classifier(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(32, "tanh")
        self.second = keras.layers.Dense(32, "tanh")
        self.istar = keras_istar.IStarRegularization(strength=1.0)
        self.pooling = keras.layers.GlobalAveragePooling1D()
        self.head = keras.layers.Dense(1, "sigmoid")

    def call(self, inputs, training=None):
        first = self.first(inputs)
        second = self.second(first)
        # Returns the last state unchanged, and adds its penalty to the loss
        # while training.
        second = self.istar([first, second], training=training)
        return self.head(self.pooling(second))


keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(1024, 16, 32)) * np.geomspace(1.0, 0.05, 32)
y = x[:, :, :4].mean(axis=(1, 2)) > 0

model = Classifier()
model(x[:1])  # Makes the weights, which the callback needs.
model.compile(
    keras.optimizers.Adam(1e-3), "binary_crossentropy", metrics=["accuracy"]
)
callback = keras_istar.IStarCallback(x, verbose=0)
history = model.fit(x, y, epochs=8, callbacks=[callback], verbose=0).history

# `layer_0` is the first state in the list that `istar` is given.
for key in ("isoscore_layer_0", "isoscore_layer_1", "accuracy"):
    print(f"{key}: {history[key][0]:.3f} -> {history[key][-1]:.3f}")
