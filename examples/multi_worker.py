"""For several machines with TensorFlow: a training loop of your own.

Keras 3 cannot `fit` under `MultiWorkerMirroredStrategy`, but a loop trains.
This file starts two workers on one machine, unless `TF_CONFIG` is set, as on
several machines. Prints isotropy, which rises, and weights equal on both.
"""

import json
import os
import socket
import subprocess
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

import keras_istar

BATCH, STEPS = 32, 200  # The batch is that of all workers together.


def train():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((16, 32))
        hidden = keras.layers.Dense(32, "tanh", name="encoder")(inputs)
        pooled = keras.layers.GlobalAveragePooling1D()(hidden)
        model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(pooled))
        # The callback needs `fit`; `momentum` takes its place.
        keras_istar.attach(model, "encoder", strength=1.0, momentum=0.9)
        optimizer = keras.optimizers.Adam(3e-3)

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            task = keras.losses.binary_crossentropy(y, model(x, training=True))
            # Replicas are added up, so each gives its share of the mean.
            penalty = sum(model.losses) / strategy.num_replicas_in_sync
            loss = tf.reduce_sum(task) / BATCH + penalty
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return penalty

    @tf.function
    def step(x, y):
        penalties = strategy.run(replica_step, args=(x, y))
        return strategy.reduce("SUM", penalties, axis=None)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * BATCH, 16, 32)) * np.geomspace(1.0, 0.05, 32)
    y = x[:, :, :4].mean(axis=(1, 2))[:, None] > 0
    data = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y))
    batches = strategy.experimental_distribute_dataset(data.batch(BATCH))
    scores = [1.0 - step(x, y) for x, y in batches]  # The strength is 1.
    worker = strategy.cluster_resolver.task_id
    print(f"isoscore on worker {worker}: {scores[0]:.3f} -> {scores[-1]:.3f}")
    norm = tf.linalg.global_norm(model.trainable_weights)
    print(f"norm of the weights on worker {worker}: {norm:.5f}")


def start_worker(index, addresses):
    task = {"type": "worker", "index": index}
    config = json.dumps({"cluster": {"worker": addresses}, "task": task})
    command = [sys.executable, __file__]
    return subprocess.Popen(command, env=os.environ | {"TF_CONFIG": config})


if __name__ == "__main__":
    if "TF_CONFIG" in os.environ:
        train()
    else:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in servers]
        for server in servers:
            server.close()  # Leaves the port to a worker.
        workers = [start_worker(index, addresses) for index in range(2)]
        sys.exit(sum(worker.wait() != 0 for worker in workers))  # Failures.
