"""For vision: a small vision transformer on images of digits.

`attach` takes every block of a Functional model, and the patches of an image
are its tokens. Prints the names of the states that were taken, accuracy on
held-out images, and the IsoScore of every block without and with the penalty,
which makes them rounder. The images come with `pip install scikit-learn`.
"""

import keras
import keras_hub
import numpy as np
from sklearn.datasets import load_digits

import keras_istar

# 1,797 images of 8 x 8 pixels.
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1) / 16.0
train, test = slice(0, 1400), slice(1400, None)


class AddPositions(keras.layers.Layer):
    """Adds a trained vector for each place in the image."""

    def build(self, input_shape):
        self.positions = self.add_weight(input_shape[1:], "random_normal")

    def call(self, patches):
        return patches + self.positions


def make_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    patches = keras.layers.Conv2D(32, kernel_size=2, strides=2)(inputs)
    hidden = AddPositions()(keras.layers.Reshape((16, 32))(patches))
    for i in range(3):
        hidden = keras_hub.layers.TransformerEncoder(
            intermediate_dim=64,
            num_heads=4,
            normalize_first=True,
            name=f"block_{i}",
        )(hidden)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(inputs, keras.layers.Dense(10, "softmax")(pooled))


for strength in (0.0, 1.0):
    model = make_model()
    layer = keras_istar.attach(model, strength=strength)  # 0 only logs.
    model.compile(
        keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    callback = keras_istar.IStarCallback(images[train], verbose=0)
    history = model.fit(
        images[train],
        labels[train],
        validation_data=(images[test], labels[test]),
        epochs=8,
        callbacks=[callback],
        verbose=0,
    ).history
    if strength == 0.0:
        print("States taken: " + ", ".join(layer.state_names))
    scores = [history[f"isoscore_{name}"][-1] for name in layer.state_names]
    print(f"strength {strength}, accuracy: {history['val_accuracy'][-1]:.3f}")
    print(f"strength {strength}, IsoScore: {np.round(scores, 3).tolist()}")
