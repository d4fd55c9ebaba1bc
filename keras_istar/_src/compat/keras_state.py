"""State of layers that Keras carries along but does not count as weights."""

from typing import Any

import keras


class StateVariable(keras.random.SeedGenerator):
    """A float32 variable that is no weight of the layer that holds it.

    Compiled train steps read and update it on every backend, under every
    strategy, but `weights`, `get_weights`, `set_weights` and `count_params`
    leave it out, and so does whatever is built on them: restoring the best
    weights, averaging weights, legacy `.h5` files. Keras promises that for the
    states of seed generators alone, so this is one by name. Replicas assign
    the same value to it.

    Args:
        name: Name of the variable.
        shape: Its shape.
        value: What it holds at first, one number or an array.

    Attributes:
        state: The `keras.Variable`.
    """

    def __init__(self, name: str, shape: tuple = (), value: Any = 0.0):
        # Not the parent's: that makes a seed.
        self.name = name
        self.state = keras.Variable(
            keras.initializers.Constant(value),
            shape=shape,
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name=name,
        )
