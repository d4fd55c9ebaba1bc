"""Everything that knows of `tf.distribute`.

On the JAX backend `keras.distribution` shards one global program, in which
sums over tokens are already sums over all devices: nothing is left to do.
"""

import contextlib
import threading

import keras
from keras import ops

from keras_istar import moments
from keras_istar.moments import Moments


def sum_over_replicas(local: Moments) -> Moments:
    """Moments of the tokens of all replicas, the same on each.

    One all-reduce of one tensor. Scatters add up; counts, centers and offsets
    do not, so each replica writes its own into its row of a table that is zero
    elsewhere, and the sum of the tables is the gathered table:

        [ scatter  0      ]   dim rows
        [ centers  counts ]   one row a replica
        [ offsets  0      ]   one row a replica

    The gradient of the sum is the sum of the gradients, which is what every
    replica's share of the loss adds up to.
    """
    context = _replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return local
    import tensorflow as tf

    dim, replicas = local.scatter.shape[-1], context.num_replicas_in_sync
    own_row = ops.one_hot(
        context.replica_id_in_sync_group, replicas, dtype=local.scatter.dtype
    )[:, None]
    table = ops.concatenate(
        [
            ops.pad(local.scatter, ((0, 0), (0, 1))),
            own_row * ops.append(local.center, local.count),
            own_row * ops.append(local.offset, 0.0),
        ]
    )
    table = context.all_reduce(tf.distribute.ReduceOp.SUM, table)
    scatter, centers, offsets = ops.split(table, [dim, dim + replicas])
    return moments.merge(
        centers[:, dim], centers[:, :dim], offsets[:, :dim], scatter[:, :dim]
    )


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """The scope in which new variables can join those of `model`."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


class ReplicaLosses(threading.local):
    """The list of a layer's losses, one for each replica.

    `MirroredStrategy` traces replicas in threads and switches between them at
    every all-reduce. A plain list would collect the losses of all of them.
    """

    def __init__(self):
        self._losses = []

    def extend(self, losses):
        self._losses.extend(losses)

    def clear(self):
        self._losses.clear()

    def __getitem__(self, index):
        return self._losses[index]

    def __iter__(self):
        return iter(self._losses)

    def __len__(self):
        return len(self._losses)


def _replica_context():
    """The replica this code runs in, if there are replicas at all.

    Symbolic calls under `strategy.scope()` run outside of any replica.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    if not tf.distribute.has_strategy():
        return None
    if tf.distribute.in_cross_replica_context():
        return None
    return tf.distribute.get_replica_context()
