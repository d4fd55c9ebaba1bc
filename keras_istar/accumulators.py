"""Statistics of a stream of hidden states, kept in variables."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import keras
from keras import ops

from keras_istar import moments
from keras_istar.distribution import ReplicaSeedGenerator
from keras_istar.distribution import add_shared_weight
from keras_istar.distribution import sum_over_replicas
from keras_istar.moments import Moments
from keras_istar.moments import Tensor
from keras_istar.observation import HiddenState


class Statistic(Protocol):
    """What is known of a stream of hidden states."""

    def add(self, state: HiddenState) -> None:
        """Takes the hidden states of one batch."""

    def reset(self) -> None:
        """Forgets all of them."""

    def value(self) -> Any:
        """What they amount to."""


class Variables(keras.layers.Layer):
    """Makes the variables of statistics, where Keras can find them."""

    def __init__(self):
        super().__init__(name="statistics")
        self._local = []
        self._seed_generators_made = []

    def shared(self, name: str, shape: tuple) -> keras.Variable:
        """Zeros, to which every replica assigns the same value."""
        return add_shared_weight(self, name, shape)

    def local(self, name: str, shape: tuple) -> keras.Variable:
        """Zeros, of which each replica has its own, see `local_values`."""
        variable = keras.Variable(
            "zeros",
            shape,
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="mean",
            synchronization="on_read",
            name=name,
        )
        self._local.append(variable)
        return variable

    def seed_generator(self, seed: int) -> keras.random.SeedGenerator:
        """Seeds that depend on `seed` and on how many generators there are."""
        generator = ReplicaSeedGenerator(seed + len(self._seed_generators_made))
        self._seed_generators_made.append(generator)
        return generator


class RunningMoments:
    """Moments of all tokens of all replicas.

    Args:
        variables: Object whose `shared(name=..., shape=...)` makes variables.
        dim: Width of the hidden states.

    Attributes:
        count: Variable, the number of tokens so far.
    """

    def __init__(self, variables: Variables, dim: int):
        shapes = {
            "count": (),
            "center": (dim,),
            "offset": (dim,),
            "scatter": (dim, dim),
        }
        self._variables = make_variables(variables.shared, shapes)
        self.count = self._variables[0]

    def value(self) -> Moments:
        # Copies, for what a strategy mirrors is not a tensor.
        return Moments(*(ops.copy(v.value) for v in self._variables))

    def add(self, state: HiddenState) -> None:
        seen = sum_over_replicas(moments.token_moments(*state))
        seen = moments.to_float32(seen)
        assign(self._variables, moments.combine([self.value(), seen]))

    def reset(self) -> None:
        reset(self._variables)


def make_variables(
    make: Callable[..., keras.Variable], shapes: Mapping[str, tuple]
) -> list[keras.Variable]:
    """One variable of each name and shape."""
    return [make(name=name, shape=shape) for name, shape in shapes.items()]


def assign(
    variables: Iterable[keras.Variable], values: Iterable[Tensor]
) -> None:
    """Assigns each variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def reset(variables: Sequence[keras.Variable]) -> None:
    """Assigns zeros."""
    assign(variables, [ops.zeros(variable.shape) for variable in variables])
