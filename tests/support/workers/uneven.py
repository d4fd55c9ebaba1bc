"""Passes on three replicas, over data that does not divide among them.

Argument: the file to write.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from mirrored import make_strategy

import keras_istar

KERNEL = np.random.default_rng(5).normal(size=(4, 6)).astype("float32")


def examples(number):
    rng = np.random.default_rng(number)
    return rng.normal(size=(number, 8, 4)).astype("float32")


def batches(x, size):
    return tf.data.Dataset.from_tensor_slices(x).batch(size)


def measured(model, data, **options):
    report = keras_istar.measure(
        model, data, "block", measures=["isoscore"], verbose=0, **options
    )
    return [report.rows[-1].tokens, report.rows[-1].values["isoscore"]]


def main():
    with make_strategy(3).scope():
        inputs = keras.Input((8, 4))
        states = keras.layers.Dense(6, name="block")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(1)(states))
        model.get_layer("block").set_weights([KERNEL, np.zeros(6)])
        keras_istar.attach(model, "block", strength=-1.0)
        model.compile(keras.optimizers.SGD(0.0), "mse")
    results = {
        # Batches of 33, of which the last one is smaller or the only one.
        **{f"array_{n}": measured(model, examples(n)) for n in (2, 35, 67, 96)},
        "array_of_one_batch_32": measured(model, examples(32), batch_size=32),
        "array_batch_size_1": measured(model, examples(7), batch_size=1),
        "dataset_of_10": measured(model, batches(examples(32), 10)),
        "dataset_of_1": measured(model, batches(examples(4), 1)),
    }
    x = examples(66)
    for number in (2, 66, 97):
        callback = keras_istar.IStarCallback(examples(number), verbose=0)
        history = model.fit(
            x, x[:, :, :1], batch_size=33, verbose=0, callbacks=[callback]
        ).history
        results[f"callback_{number}"] = history["isoscore_union"]
    np.savez(sys.argv[1], **results)


if __name__ == "__main__":
    main()
