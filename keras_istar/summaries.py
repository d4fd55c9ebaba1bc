"""What is left of a stream of hidden states for the measures of isotropy.

Moments are summed over replicas at every batch. Of what is only wanted at the
end, every replica keeps its own until it is read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_istar import accumulators
from keras_istar import moments
from keras_istar.accumulators import RunningMoments
from keras_istar.accumulators import Statistic
from keras_istar.accumulators import Variables
from keras_istar.distribution import local_values
from keras_istar.moments import Moments
from keras_istar.observation import HiddenState


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
        variables: What makes the variables.
        dim: Width of the hidden states.
    """

    def __init__(self, variables: Variables, dim: int):
        shapes = {
            "norm_sum": (),
            "unit_sum": (dim,),
            "num_nonzero": (),
            "num_nonfinite": (),
        }
        self._variables = accumulators.make_variables(variables.local, shapes)

    def value(self) -> Directions:
        norm_sum, unit_sum, *counts = (
            np.sum(local_values(variable), axis=0, dtype="float64")
            for variable in self._variables
        )
        return Directions(float(norm_sum), unit_sum, *map(int, counts))

    def add(self, state: HiddenState) -> None:
        seen = _directions(*_flatten(*state))
        totals = [variable.value for variable in self._variables]
        accumulators.assign(self._variables, map(ops.add, totals, seen))

    def reset(self) -> None:
        accumulators.reset(self._variables)


class RunningSample:
    """A uniform random sample of the tokens, of bounded size.

    Every token draws a number, and the `size` tokens with the largest numbers
    stay. So every set of `size` tokens is equally likely, however the stream is
    cut into batches and spread over replicas.

    Args:
        variables: What makes the variables.
        dim: Width of the hidden states.
        size: Number of tokens to keep.
        seed: The same seed, stream and devices give the same sample.
    """

    def __init__(self, variables: Variables, dim: int, size: int, seed: int):
        self._size = size
        # Numbers drawn are in [1, 2): 0 is a free place.
        self._numbers = variables.local(name="sample_numbers", shape=(size,))
        self._points = variables.local(name="sample", shape=(size, dim))
        self._seed_generator = variables.seed_generator(seed)

    def value(self) -> np.ndarray:
        """The sample, `(points, dim)`, in random order."""
        numbers = np.concatenate(local_values(self._numbers))
        points = np.concatenate(local_values(self._points))
        kept = np.argsort(-numbers, kind="stable")[: self._size]
        return points[kept[numbers[kept] > 0]]

    def add(self, state: HiddenState) -> None:
        tokens, weights = _flatten(*state)
        drawn = keras.random.uniform(
            ops.shape(weights), 1.0, 2.0, "float32", seed=self._seed_generator
        )
        drawn = ops.where(weights > 0, drawn, 0.0)
        numbers, kept = ops.top_k(
            ops.concatenate([self._numbers.value, drawn]), self._size
        )
        points = ops.concatenate([self._points.value, tokens])
        self._numbers.assign(numbers)
        self._points.assign(ops.take(points, kept, axis=0))

    def reset(self) -> None:
        accumulators.reset([self._numbers])


class Summary(NamedTuple):
    """What is left of a stream of tokens.

    Attributes:
        moments: Their `Moments`.
        directions: Their `Directions`.
        sample: Some of them, `(points, dim)`, if asked for.
    """

    moments: Moments
    directions: Directions
    sample: np.ndarray | None = None


class RunningSummary:
    """`Summary` of all tokens of all replicas.

    Args:
        variables: What makes the variables.
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
        self._parts: list[Statistic] = [
            moments_part,
            RunningDirections(variables, dim),
        ]
        if sample_size > 0:
            self._parts.append(RunningSample(variables, dim, sample_size, seed))

    def value(self) -> Summary:
        return Summary(*(part.value() for part in self._parts))

    def add(self, state: HiddenState) -> None:
        for part in self._parts:
            part.add(state)

    def reset(self) -> None:
        for part in self._parts:
            part.reset()


def unite(parts: Sequence[Summary], sample_size: int, seed: int) -> Summary:
    """`Summary` of the union of disjoint streams.

    Its sample takes from each part what a uniform sample of all tokens would,
    decided by `seed`.
    """
    norm_sums, unit_sums, *counts = zip(
        *(part.directions for part in parts), strict=True
    )
    return Summary(
        moments.combine([part.moments for part in parts]),
        Directions(
            sum(norm_sums), np.sum(unit_sums, axis=0), *map(sum, counts)
        ),
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
