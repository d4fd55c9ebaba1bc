"""Trains on the JAX backend: on one device, or by `keras.distribution` on four.

Arguments: `single`, `data` or `model`; `data_as_gpus` with the choices for
GPUs; or `processes`, the address of the first process, and this process's
index.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from small_models import bert_classifier
from small_models import flat_weights
from small_models import token_batches

import keras_istar
from keras_istar._src.compat import products

BATCH = 8
TARGET = {
    "estimate": False,
    "strength": 3.0,
    "target": 0.9,
    "momentum": 0.8,
    "shrinkage": 0.5,
}


def set_distribution(kind, *place):
    jax.config.update("jax_num_cpu_devices", 2 if place else 4)
    if kind == "processes":
        address, index = place
        keras.distribution.initialize(address, 2, int(index))
    if kind == "data_as_gpus":
        products.is_on_gpu = lambda tokens: True
    if kind in ("data", "data_as_gpus", "processes"):
        # Every process brings its own share of each batch.
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
    elif kind == "model":
        keras.distribution.set_distribution(model_parallel())


def model_parallel():
    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"])
    layout = keras.distribution.LayoutMap(mesh)
    layout["token_embedding/embeddings"] = ("model", None)
    layout[".*(query|key|value)/kernel"] = (None, "model", None)
    layout[".*attention_output/kernel"] = ("model", None, None)
    layout[".*intermediate_dense/kernel"] = (None, "model")
    layout[".*output_dense/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch"
    )


def own_share(arrays):
    """The part of every batch that this process feeds, the same all over."""
    count, index = jax.process_count(), jax.process_index()
    return keras.tree.map_structure(
        lambda array: np.concatenate(
            [
                np.split(array[start : start + BATCH], count)[index]
                for start in range(0, len(array), BATCH)
            ]
        ),
        arrays,
    )


def train(estimate, **options):
    """Ten steps; with Σ_S from the callback if `estimate`."""
    model = bert_classifier()
    layer = keras_istar.attach(model, **options)
    model.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    before = flat_weights(model)
    share = BATCH // jax.process_count()
    tokens, _ = own_share(token_batches(4 * BATCH, BATCH, seed=2))
    callback = keras_istar.IStarCallback(
        tokens, max_tokens=10**6, batch_size=share, verbose=0
    )
    callbacks = [callback] if estimate else []
    x, y = own_share(token_batches(10 * BATCH, BATCH))
    history = model.fit(
        x, y, batch_size=share, shuffle=False, verbose=0, callbacks=callbacks
    ).history
    after = flat_weights(model)
    covariance = keras.ops.convert_to_numpy(layer.shrinkage_covariance)
    return {
        "weights": after,
        "change": after - before,
        "shrinkage_covariance": covariance,
        "sharded_weights": sum(
            not v.value.sharding.is_fully_replicated
            for v in model.trainable_weights
        ),
        **{name: np.array(value) for name, value in history.items()},
    }


def main(output, *arguments):
    set_distribution(*arguments)
    results = {}
    for case, options in (
        ("callback", {"estimate": True, "strength": -3.0}),
        ("target", TARGET),
    ):
        for name, value in train(**options).items():
            results[f"{case}/{name}"] = value
    np.savez(output, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
