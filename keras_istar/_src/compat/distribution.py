"""Replicas under `tf.distribute` and `torch.distributed`.

On the JAX backend `keras.distribution` shards one global program, in which
sums over tokens are already sums over all devices: nothing is left to do.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_istar._src import validation
from keras_istar._src.types import Tensor


def add_replicas(local: Tensor) -> Tensor:
    """Sum of a tensor over all replicas, the same on each; differentiable."""
    replicas = current_replicas()
    return local if replicas is None else replicas.all_reduce(local)


def check_sync(sync: bool) -> bool:
    """Returns the argument `sync`; raises where it could have no effect."""
    sync = validation.check_bool("sync", sync)
    if not sync and keras.distribution.distribution() is not None:
        raise ValueError(
            "`sync` must be True under `keras.distribution`, where all devices "
            "run one program and their tokens are one cloud. "
            f"Received: sync={sync}"
        )
    return sync


class ReplicaSeedGenerator(keras.random.SeedGenerator):
    """Seeds of random numbers that differ from replica to replica."""

    _STRIDE = 1_000_003  # Larger than usual differences between seeds.

    def next(self, ordered: bool = True) -> Tensor:
        seed = super().next(ordered)
        replicas = current_replicas()
        if replicas is None:
            return seed
        index = self._STRIDE * ops.cast(replicas.index, seed.dtype)
        return seed + ops.stack([index, ops.zeros_like(index)])


def local_values(variable: keras.Variable) -> list[np.ndarray]:
    """Values of an `on_read` variable, one for each replica."""
    value = variable.value
    strategy = getattr(value, "distribute_strategy", None)
    if strategy is None or not hasattr(value, "values"):
        values = [value]
    else:
        values = strategy.experimental_local_results(value)
    # Copies: the variable of a replica is not a tensor.
    return [ops.convert_to_numpy(ops.copy(value)) for value in values]


def number_of_replicas(model: keras.Model) -> int:
    """Number of parts into which batches of `model` are divided."""
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is not None:
        return strategy.num_replicas_in_sync
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    return sizes.get(distribution.batch_dim_name, 1)


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """The scope in which new variables can join those of `model`."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def is_chief(model: keras.Model) -> bool:
    """Whether this process is the chief of those that train `model`."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_index() == 0
    if keras.backend.backend() == "torch":
        replicas = _torch_replicas()
        return replicas is None or replicas.index == 0
    strategy = getattr(model, "distribute_strategy", None)
    return strategy is None or strategy.extended.should_save_summary


def add_shared_weight(
    layer: keras.layers.Layer, name: str, shape: tuple = (), value: float = 0.0
) -> keras.Variable:
    """Adds a float32 weight to `layer`; replicas assign it the same value."""
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=keras.initializers.Constant(value),
        dtype="float32",
        trainable=False,
        autocast=False,
        aggregation="only_first_replica",
    )


class Replicas(NamedTuple):
    """The replicas that train together, seen from one of them.

    Attributes:
        index: Which one this is, from 0.
        number: How many there are.
        all_reduce: Differentiable function of a tensor that returns its sum
            over all replicas.
    """

    index: Any
    number: int
    all_reduce: Callable[[Tensor], Tensor]


def current_replicas():
    """The replicas that run this code; None if there are none."""
    if has_strategy():
        return _tensorflow_replicas()
    if keras.backend.backend() == "torch":
        return _torch_replicas()
    return None


def has_strategy() -> bool:
    """Whether this code runs under a strategy of TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def _tensorflow_replicas():
    import tensorflow as tf

    # Symbolic calls under `strategy.scope()` run outside of any replica.
    if tf.distribute.in_cross_replica_context():
        return None
    context = tf.distribute.get_replica_context()
    return Replicas(
        context.replica_id_in_sync_group,
        context.num_replicas_in_sync,
        functools.partial(context.all_reduce, tf.distribute.ReduceOp.SUM),
    )


def _torch_replicas():
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return None
    return Replicas(
        distributed.get_rank(),
        distributed.get_world_size(),
        _make_torch_all_reduce(),
    )


@functools.cache
def _make_torch_all_reduce():
    import torch

    class AllReduce(torch.autograd.Function):
        @staticmethod
        def forward(context, tensor):
            total = tensor.clone()
            torch.distributed.all_reduce(total)
            return total

        @staticmethod
        def backward(context, gradient):
            return AllReduce.apply(gradient)

    return AllReduce.apply
