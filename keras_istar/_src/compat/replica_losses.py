"""A list of losses for each replica, and so for each thread."""

import threading
from collections.abc import MutableSequence

import keras

from keras_istar._src.compat import keras_private
from keras_istar._src.compat.distribution import has_strategy


def separate_losses(layer: keras.layers.Layer) -> None:
    """Gives every replica its own list of losses, in all layers of the model.

    `MirroredStrategy` traces replicas in threads and switches between them at
    every all-reduce. If replicas shared a list, losses of some would be lost
    and those of others counted twice, for every layer of the model. TensorFlow
    1 had the same problem
    (https://github.com/tensorflow/tensorflow/issues/23056). Remove when Keras
    keeps a list of losses for each thread.

    Args:
        layer: Layer that is being called, on its own or by a model.
    """
    if has_strategy():
        keras_private.replace_losses(layer, ReplicaLosses)


class ReplicaLosses(threading.local, MutableSequence):
    """A list of losses with separate items in each thread, empty at first."""

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
