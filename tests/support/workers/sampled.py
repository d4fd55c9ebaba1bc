"""Draws tokens on two replicas of a `MirroredStrategy`, many times."""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import tensorflow as tf
from mirrored import make_strategy

import keras_istar

REPLICAS, DIM = 2, 3
LATEST = 1e-12  # The moving average is the covariance of the last draw.


def main(output, examples, steps):
    """Saves the tokens, and of each step covariance and places drawn."""
    tokens = np.random.default_rng(0).normal(size=(REPLICAS, examples, DIM))
    tokens *= [3.0, 1.0, 0.5]
    strategy = make_strategy(REPLICAS)
    with strategy.scope():
        layer = keras_istar.IStarRegularization(
            -1.0, momentum=LATEST, max_tokens=5, seed=1
        )
        layer.build((None, DIM))
    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(
            tokens[context.replica_id_in_sync_group], "float32"
        )
    )

    def step(states):
        with tf.GradientTape() as tape:
            tape.watch(states)
            layer(states, training=True)
            penalty = layer.losses[-1]
        gradient = tf.convert_to_tensor(tape.gradient(penalty, states))
        return tf.reduce_any(gradient != 0, axis=-1)

    run = tf.function(lambda: strategy.run(step, args=(values,)))
    drawn, covariances = [], []
    for _ in range(steps):
        drawn.append(
            [x.numpy() for x in strategy.experimental_local_results(run())]
        )
        covariances.append(layer.shrinkage_covariance.numpy())
    np.savez(output, tokens=tokens, drawn=drawn, covariances=covariances)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
