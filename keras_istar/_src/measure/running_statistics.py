"""Running statistics of a stream of hidden states, kept in variables."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Protocol

import keras
import numpy as np
from keras import ops

from keras_istar._src.compat.distribution import ReplicaSeedGenerator
from keras_istar._src.compat.distribution import add_shared_weight
from keras_istar._src.compat.distribution import local_values
from keras_istar._src.layers.probe import HiddenState
from keras_istar._src.score import moments
from keras_istar._src.score.moments import Moments
from keras_istar._src.score.moments import sum_over_replicas
from keras_istar._src.types import Tensor


class RunningStatistic(Protocol):
    """A statistic of a stream of hidden states, updated batch by batch."""

    def add(self, state: HiddenState) -> None:
        """Adds the hidden states of one batch."""

    def reset(self) -> None:
        """Forgets all of them."""

    def value(self) -> Any:
        """Returns the statistic of all states that were added."""


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
        # Copies: a variable that a strategy mirrors is not a tensor.
        return Moments(*(ops.copy(v.value) for v in self._variables))

    def add(self, state: HiddenState) -> None:
        (seen,) = sum_over_replicas(moments.token_moments(*state))
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


class Directions(NamedTuple):
    """Lengths and directions of tokens, additive over sets of tokens.

    Attributes:
        norm_sum: Sum of the Euclidean norms.
        unit_sum: Sum of the tokens scaled to length 1, shape `(dim,)`.
        num_nonzero: Number of tokens that are not the zero vector.
        num_nonfinite: Number of tokens with NaN or infinity in them.
    """

    norm_sum: float
    unit_sum: np.ndarray
    num_nonzero: int
    num_nonfinite: int


class RunningDirections:
    """`Directions` of all tokens of all replicas.

    Args:
        variables: Object that makes the variables.
        dim: Width of the hidden states.
    """

    def __init__(self, variables: Variables, dim: int):
        shapes = {
            "norm_sum": (),
            "unit_sum": (dim,),
            "num_nonzero": (),
            "num_nonfinite": (),
        }
        self._variables = make_variables(variables.local, shapes)

    def value(self) -> Directions:
        norm_sum, unit_sum, *counts = (
            np.sum(local_values(variable), axis=0, dtype="float64")
            for variable in self._variables
        )
        return Directions(float(norm_sum), unit_sum, *map(int, counts))

    def add(self, state: HiddenState) -> None:
        seen = _directions(*_flatten(*state))
        totals = [variable.value for variable in self._variables]
        assign(self._variables, map(ops.add, totals, seen))

    def reset(self) -> None:
        reset(self._variables)


class RunningSample:
    """A uniform random sample of the tokens, of bounded size.

    Every token draws a number, and the `size` tokens with the largest numbers
    stay. So every set of `size` tokens is equally likely, however the stream is
    cut into batches and spread over replicas.

    Args:
        variables: Object that makes the variables.
        dim: Width of the hidden states.
        size: Number of tokens to keep.
        seed: Seed; the same seed, stream and devices give the same sample.
    """

    def __init__(self, variables: Variables, dim: int, size: int, seed: int):
        self._size = size
        # Numbers drawn are in [1, 2): 0 is a free place.
        self._numbers = variables.local(name="sample_numbers", shape=(size,))
        self._tokens = variables.local(name="sample", shape=(size, dim))
        self._seed_generator = variables.seed_generator(seed)

    def value(self) -> np.ndarray:
        """The sample, `(tokens, dim)`, in random order."""
        numbers = np.concatenate(local_values(self._numbers))
        tokens = np.concatenate(local_values(self._tokens))
        kept = np.argsort(-numbers, kind="stable")[: self._size]
        return tokens[kept[numbers[kept] > 0]]

    def add(self, state: HiddenState) -> None:
        tokens, weights = _flatten(*state)
        drawn = keras.random.uniform(
            ops.shape(weights), 1.0, 2.0, "float32", seed=self._seed_generator
        )
        drawn = ops.where(weights > 0, drawn, 0.0)
        numbers, kept = ops.top_k(
            ops.concatenate([self._numbers.value, drawn]), self._size
        )
        candidates = ops.concatenate([self._tokens.value, tokens])
        self._numbers.assign(numbers)
        self._tokens.assign(ops.take(candidates, kept, axis=0))

    def reset(self) -> None:
        reset([self._numbers])


class TokenStatistics(NamedTuple):
    """Statistics of a stream of tokens.

    Attributes:
        moments: Their `Moments`.
        directions: Their `Directions`, if asked for.
        sample: Some of them, `(tokens, dim)`, if asked for.
    """

    moments: Moments
    directions: Any = None
    sample: Any = None


class RunningTokenStatistics:
    """`TokenStatistics` of all tokens of all replicas.

    Args:
        variables: Object that makes the variables.
        dim: Width of the hidden states.
        sample_size: Number of tokens to sample; 0 for no sample.
        seed: Seed of the sample.

    Attributes:
        count: Variable, the number of tokens so far.
    """

    def __init__(
        self, variables: Variables, dim: int, sample_size: int, seed: int
    ):
        moments_part = RunningMoments(variables, dim)
        self.count = moments_part.count
        self._parts: list[RunningStatistic] = [
            moments_part,
            RunningDirections(variables, dim),
        ]
        if sample_size > 0:
            self._parts.append(RunningSample(variables, dim, sample_size, seed))

    def value(self) -> TokenStatistics:
        return TokenStatistics(*(part.value() for part in self._parts))

    def add(self, state: HiddenState) -> None:
        for part in self._parts:
            part.add(state)

    def reset(self) -> None:
        for part in self._parts:
            part.reset()


def unite(
    parts: Sequence[TokenStatistics],
    sample_size: int,
    seed: int,
    centered: bool = False,
) -> TokenStatistics:
    """`TokenStatistics` of the union of disjoint streams.

    Its sample takes from each part as many tokens as a uniform sample of all
    tokens would; `seed` decides how many.

    Args:
        parts: Statistics of the streams.
        sample_size: Number of tokens to sample; 0 for no sample.
        seed: Decides the sample.
        centered: Whether the mean of each stream is subtracted from its tokens.
    """
    directions = None
    if parts[0].directions is not None:
        norm_sums, unit_sums, *counts = zip(
            *(part.directions for part in parts), strict=True
        )
        directions = Directions(
            sum(norm_sums), np.sum(unit_sums, axis=0), *map(sum, counts)
        )
    return TokenStatistics(
        moments.combine([part.moments for part in parts], centered),
        directions,
        _united_sample(parts, sample_size, seed) if sample_size > 0 else None,
    )


def _united_sample(parts, sample_size, seed):
    counts = [int(part.moments.count) for part in parts]
    shares = np.random.default_rng(seed).multivariate_hypergeometric(
        counts, min(sample_size, sum(counts)), method="marginals"
    )
    return np.concatenate(
        [part.sample[:n] for part, n in zip(parts, shares, strict=True)]
    )


def _flatten(states, mask):
    """Tokens `(tokens, dim)` and 1 or 0 for each, in float32."""
    tokens = ops.cast(ops.reshape(states, (-1, states.shape[-1])), "float32")
    if mask is None:
        return tokens, ops.ones(ops.shape(tokens)[:1])
    return tokens, ops.cast(
        ops.cast(ops.reshape(mask, (-1,)), "bool"), "float32"
    )


def _directions(tokens, weights):
    tokens = ops.where(weights[:, None] > 0, tokens, 0.0)
    widest = ops.max(ops.abs(tokens), axis=-1)
    # In units of the widest entry no square over- or underflows.
    scaled = tokens / ops.where(widest > 0, widest, 1.0)[:, None]
    norms = ops.sqrt(ops.sum(ops.square(scaled), axis=-1))
    units = scaled / ops.where(norms > 0, norms, 1.0)[:, None]
    return Directions(
        norm_sum=ops.sum(norms * widest),
        unit_sum=ops.sum(units, axis=0),
        num_nonzero=_count(widest > 0),
        num_nonfinite=_count(
            ops.any(ops.logical_not(ops.isfinite(tokens)), axis=-1)
        ),
    )


def _count(condition):
    return ops.sum(ops.cast(condition, "float32"))
