"""Trains on the PyTorch backend: alone, or as one of several processes.

Arguments: none; or the address of the first process, the number of processes
and this process's index. The loop is the one of the Keras guide to distributed
training with PyTorch: a Keras model in `DistributedDataParallel`.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from small_models import flat_weights

import keras_istar
from keras_istar._src.score import moments

BATCH, STEPS, LENGTH = 8, 10, 6


def make_model(sync=True, momentum=0.8):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((LENGTH, 8))
    mask = keras.Input((LENGTH,), name="padding_mask", dtype="bool")
    hidden = keras.layers.Dense(12, "tanh", name="first")(inputs)
    hidden = keras.layers.Dense(12, "tanh", name="second")(hidden)
    outputs = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = keras.layers.Dense(1)(outputs)
    model = keras.Model([inputs, mask], outputs)
    layer = keras_istar.attach(
        model,
        layers=["first", "second"],
        strength=-2.0,
        momentum=momentum,
        sync=sync,
    )
    return model, layer


def make_data():
    rng = np.random.default_rng(0)
    examples = BATCH * STEPS
    x = rng.standard_normal((examples, LENGTH, 8)) * np.linspace(0.2, 2, 8)
    y = rng.standard_normal((examples, 1))
    lengths = LENGTH - np.arange(examples) % BATCH // 2
    mask = np.arange(LENGTH) < lengths[:, None]
    return x.astype("float32"), mask, y.astype("float32")


def train(index, count, sync):
    model, layer = make_model(sync)
    parallel = model
    if count > 1:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
    before = flat_weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    share = BATCH // count
    penalties = []
    for step in range(STEPS):
        start = step * BATCH + index * share
        x, mask, y = (
            torch.from_numpy(array[start : start + share])
            for array in make_data()
        )
        prediction = parallel([x, mask], training=True)
        (penalty,) = model.losses
        loss = torch.nn.functional.mse_loss(prediction, y) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        penalties.append(penalty.item())
    after = flat_weights(model)
    return {
        "weights": after,
        "change": after - before,
        "penalties": np.array(penalties),
        "shrinkage_covariance": keras.ops.convert_to_numpy(
            layer.shrinkage_covariance
        ),
    }


def estimate(index, count):
    """The callback in a `fit` of each process on its share of the data."""
    model, layer = make_model(momentum=None)
    model.compile("sgd", "mse")
    x, mask, y = (np.split(array, count)[index] for array in make_data())
    callback = keras_istar.IStarCallback(
        [x, mask], max_tokens=10**6, batch_size=BATCH, verbose=0
    )
    callback.set_model(model)
    callback.on_train_begin()
    return keras.ops.convert_to_numpy(layer.shrinkage_covariance)


def fit():
    """IsoScore in the first and the last epoch of a `fit`."""
    model, _ = make_model()
    model.compile(keras.optimizers.SGD(0.05), "mse")
    x, mask, y = make_data()
    history = model.fit([x, mask], y, epochs=5, verbose=0).history
    return history["isoscore"][0], history["isoscore"][-1]


def main(output, address=None, count=1, index=0):
    count, index = int(count), int(index)
    if address is not None:
        torch.distributed.init_process_group(
            "gloo", f"tcp://{address}", rank=index, world_size=count
        )
    results = {"callback": estimate(index, count)}
    if count == 1:
        results["score_before_and_after"] = fit()
    for sync in (True, False):
        for name, value in train(index, count, sync).items():
            results[f"{'sync' if sync else 'no_sync'}/{name}"] = value
    moments._sums_for_training = moments._sums  # noqa: SLF001
    for name, value in train(index, count, sync=True).items():
        results[f"autodiff/{name}"] = value
    np.savez(output, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
