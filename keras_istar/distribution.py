"""Everything that knows of `tf.distribute`.

On the JAX backend `keras.distribution` shards one global program, in which
sums over tokens are already sums over all devices: nothing is left to do.
"""

import contextlib
import threading
from collections.abc import MutableSequence

import keras
from keras import ops

from keras_istar import functional_graph
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


def separate_losses(layer: keras.layers.Layer) -> None:
    """Gives every replica its own lists of losses, in the model at work.

    `MirroredStrategy` traces replicas in threads and switches between them at
    every all-reduce. Lists that replicas share would lose the losses of some
    and count those of others twice, whichever layer they come from.

    Args:
        layer: Layer that is being called, by a model perhaps.
    """
    if _has_strategy():
        functional_graph.replace_losses(layer, ReplicaLosses)


class ReplicaLosses(threading.local, MutableSequence):
    """A list of losses, another one in each thread, empty at first."""

    def __init__(self):
        self._losses = []

    def __getitem__(self, index):
        return self._losses[index]

    def __setitem__(self, index, value):
        self._losses[index] = value

    def __delitem__(self, index):
        del self._losses[index]

    def __len__(self):
        return len(self._losses)

    def __reduce__(self):
        return list, (list(self),)

    def insert(self, index, value):
        self._losses.insert(index, value)


def _has_strategy():
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def _replica_context():
    """The replica this code runs in, if there are replicas at all.

    Symbolic calls under `strategy.scope()` run outside of any replica.
    """
    if not _has_strategy():
        return None
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context():
        return None
    return tf.distribute.get_replica_context()
