"""State of layers that Keras carries along but does not count as weights."""

from typing import Any

import keras


class StateVariable(keras.random.SeedGenerator):
    """A float32 variable that its layer does not count as a weight.

    Compiled train steps read and update it on every backend, under every
    strategy. `weights`, `get_weights`, `set_weights` and `count_params` leave
    it out, and so do the features built on them: restoring the best weights,
    averaging weights, legacy `.h5` files. Keras treats only the states of seed
    generators this way, so this class derives from `SeedGenerator`. Remove when
    Keras has such variables itself. Replicas assign the same value to it.

    Args:
        name: Name of the variable.
        shape: Its shape.
        value: Initial value, one number or an array.

    Attributes:
        state: The `keras.Variable`.
    """

    def __init__(self, name: str, shape: tuple = (), value: Any = 0.0):
        # Not `super().__init__()`, which makes a seed.
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
