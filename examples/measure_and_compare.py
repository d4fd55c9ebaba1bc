"""For those who want to look first: measure a model without changing it.

Measures the hidden states before and after an ordinary training, prints the
report and the differences, writes the reports to files and reads them back.
Training narrows the states, most of all those of the second layer. Needs
`pip install "keras-istar[report]"`.
"""

import keras
import numpy as np

import keras_istar

LAYERS = ["block_1", "block_2"]
MEASURES = ["isoscore", "effective_rank", "average_cosine", "mean_norm"]

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(1024, 16, 32))
y = x[:, :, :4].mean(axis=(1, 2)) > 0

inputs = keras.Input((16, 32))
hidden = keras.layers.Dense(32, "tanh", name="block_1")(inputs)
hidden = keras.layers.Dense(32, "tanh", name="block_2")(hidden)
pooled = keras.layers.GlobalAveragePooling1D()(hidden)
outputs = keras.layers.Dense(1, "sigmoid")(pooled)
model = keras.Model(inputs, outputs, name="classifier")
model.compile(keras.optimizers.Adam(3e-3), "binary_crossentropy")

before = keras_istar.measure(model, x, LAYERS, measures=MEASURES, verbose=0)
before.save("before.json")

model.fit(x, y, epochs=5, verbose=0)
after = keras_istar.measure(model, x, LAYERS, measures=MEASURES, verbose=0)

after.save("after.json")
print(after)

print("\nAfter minus before:")
before = keras_istar.IsotropyReport.load("before.json")
print(before.compare(after).round(3), end="\n\n")

# The numbers themselves, and as a pandas DataFrame.
for old, new in zip(before.rows, after.rows, strict=True):
    scores = f"{old.values['isoscore']:.3f} -> {new.values['isoscore']:.3f}"
    print(f"IsoScore of {new.layer}: {scores}")
narrowest = after.to_frame()["isoscore"].idxmin()
print(f"The least isotropic is {narrowest}.")
