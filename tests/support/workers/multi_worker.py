"""A training loop of one's own under `MultiWorkerMirroredStrategy`.

Without `TF_CONFIG` it is a single worker that sees whole batches. With the
argument `fit` it calls `model.fit` instead and saves the error.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from small_models import bert_classifier
from small_models import flat_weights
from small_models import token_batches

import keras_istar

BATCH, STEPS = 8, 10


def make_model(strategy, **options):
    with strategy.scope():
        model = bert_classifier()
        layer = keras_istar.attach(model, strength=-3.0, **options)
        model.compile(
            keras.optimizers.SGD(0.05),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    return model, layer


def make_step(strategy, model):
    """Function that trains on one batch of this worker; returns the losses."""
    replicas = strategy.num_replicas_in_sync

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            task = keras.losses.sparse_categorical_crossentropy(
                y, logits, from_logits=True
            )
            # Replicas add up: every one brings its share.
            task = keras.ops.sum(task) / BATCH
            penalty = sum(model.losses) / replicas
            loss = task + penalty
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        model.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return tf.stack([loss, penalty])

    @tf.function
    def step(x, y):
        per_replica = strategy.run(replica_step, args=(x, y))
        return strategy.reduce("SUM", per_replica, axis=None)

    return step


def train(strategy, **options):
    model, layer = make_model(strategy, **options)
    before = flat_weights(model)
    step = make_step(strategy, model)
    data = tf.data.Dataset.from_tensor_slices(
        token_batches(STEPS * BATCH, BATCH)
    ).batch(BATCH)
    batches = strategy.experimental_distribute_dataset(data)
    losses = [step(x, y).numpy() for x, y in batches]
    after = flat_weights(model)
    return {
        "weights": after,
        "change": after - before,
        "losses": np.stack(losses),
        "shrinkage_covariance": layer.shrinkage_covariance.numpy(),
        "replicas": strategy.num_replicas_in_sync,
    }


def fit(strategy):
    model, _ = make_model(strategy)
    try:
        model.fit(*token_batches(2 * BATCH, BATCH), verbose=0)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


def main(output, mode):
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = tf.distribute.get_strategy()
    results = fit(strategy) if mode == "fit" else train(strategy, momentum=0.8)
    np.savez(output, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
