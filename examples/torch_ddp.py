"""For PyTorch on several GPUs: `DistributedDataParallel` in your own loop.

Add `sum(model.losses)` to the loss and let every process run the same steps.
Tokens of all processes are scored together, so two processes give what one
gives: the numbers printed for both are equal. Needs PyTorch. The processes use
the CPU here; for GPUs, take "nccl" and move model and batches to `rank`.
"""

import os
import socket

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch

import keras_istar

BATCH, STEPS = 32, 60  # The batch is that of all processes together.


def train(rank, processes, port=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 32))
    hidden = keras.layers.Dense(32, "tanh", name="block_1")(inputs)
    hidden = keras.layers.Dense(32, "tanh", name="block_2")(hidden)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    # The callback needs `fit`; momentum keeps the stable covariance here.
    keras_istar.attach(
        model, ["block_1", "block_2"], strength=1.0, momentum=0.9
    )

    parallel = model
    if processes > 1:
        torch.distributed.init_process_group(
            "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes
        )
        parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss_function = torch.nn.BCEWithLogitsLoss()

    rng = np.random.default_rng(0)
    scores = []
    for _ in range(STEPS):
        x = rng.normal(size=(BATCH, 16, 32)) * np.geomspace(1.0, 0.05, 32)
        y = x[:, :, :4].mean(axis=(1, 2), keepdims=True)[:, 0] > 0
        # Every process takes its own examples of the batch.
        x = torch.tensor(x[rank::processes], dtype=torch.float32)
        y = torch.tensor(y[rank::processes], dtype=torch.float32)
        logits = parallel(x, training=True)
        penalty = sum(model.losses)
        loss = loss_function(logits, y) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scores.append(1.0 - penalty.item())  # The strength is 1.

    norm = sum(weight.square().sum() for weight in model.parameters()).sqrt()
    if rank == 0:
        name = f"processes={processes}"
        print(f"isoscore, {name}: {scores[0]:.5f} -> {scores[-1]:.5f}")
        print(f"norm of the weights, {name}: {norm.item():.5f}", flush=True)
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    train(rank=0, processes=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free_port = server.getsockname()[1]
    torch.multiprocessing.spawn(train, args=(2, free_port), nprocs=2)
