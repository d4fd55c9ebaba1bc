"""Moments of hidden states, estimated from a random subset of their tokens."""

import keras
from keras import ops

from keras_istar import moments
from keras_istar.moments import Moments
from keras_istar.moments import Tensor

_KEY_BITS = 24  # What float32 tells apart between 0 and 1.


def sampled_moments(
    states: list[Tensor],
    masks: list[Tensor | None],
    size: int,
    seed: keras.random.SeedGenerator,
) -> Moments:
    """Unbiased moments of several states, from a random subset of their tokens.

    `size` unmasked tokens of each state are drawn without replacement. Over
    the draws, mean and covariance have those of all unmasked tokens of all
    states as their expectation. Shapes depend on `size` and on those of the
    states alone, as a TPU needs; the cost is that of the tokens drawn.

    Args:
        states: Float tensors of shape `(..., dim)`.
        masks: For each state, None or a tensor of its shape without `dim`.
        size: Number of tokens to draw from each. All are used if there are no
            more.
        seed: Source of randomness; advances with every call.

    Returns:
        `Moments` that count all unmasked tokens, not only those drawn.
    """
    flat = [_flatten(*pair) for pair in zip(states, masks, strict=True)]
    total = sum(ops.sum(weights) for _, weights in flat)
    return moments.combine(
        [
            _sample(tokens, weights, total, size, seed)
            for tokens, weights in flat
        ]
    )


def _flatten(states, mask):
    if mask is None:
        mask = ops.ones(ops.shape(states)[:-1], "bool")
    return moments.flatten_tokens(states, mask)


def _sample(tokens, weights, total, size, seed):
    """Moments of one state, such that their union with others is unbiased.

    With S the covariance of all n tokens, the scatter (k - 1) S of a sample of
    k should become (n - 1) S. But the mean of the sample is off by a variance
    of (1/k - 1/n) S, so that `combine` adds n (1 - n/N) times that, where N is
    the number of tokens in the union: so much less is needed here.
    """
    places, is_real = _draw(weights, size, seed)
    sample = moments.token_moments(ops.take(tokens, places, axis=0), is_real)
    count, k = ops.sum(weights), ops.maximum(sample.count, 1.0)
    share = count / ops.maximum(total, 1.0)
    wanted = (count - 1.0) - (count / k - 1.0) * (1.0 - share)
    growth = ops.maximum(wanted, 0.0) / ops.maximum(k - 1.0, 1.0)
    return sample._replace(count=count, scatter=growth * sample.scatter)


def _draw(weights, size, seed):
    """Places of `size` tokens, and whether each stands for a real token.

    Every token gets a random key, and the lowest ones win. What is left over
    where there are fewer tokens than `size` stands for none.
    """
    number = ops.shape(weights)[0]
    if isinstance(number, int):
        size = min(size, number)
    else:  # A tensor: TensorFlow will know when it runs or compiles.
        size = ops.minimum(size, number)
    keys = keras.random.uniform(ops.shape(weights), dtype="float32", seed=seed)
    keys = ops.where(weights > 0, keys, 1.0)
    is_drawn = keys <= _key_of_rank(keys, size)
    ranks = ops.cumsum(ops.cast(is_drawn, "int32"))
    # Equal keys may be more than there is room for.
    is_drawn = ops.logical_and(is_drawn, ranks <= size)
    places = ops.scatter(
        ops.where(is_drawn, ranks, 0)[:, None],
        ops.arange(number, dtype="int32"),
        (size + 1,),
    )[1:]
    num_drawn = ops.sum(ops.cast(is_drawn, "int32"))
    return places, ops.arange(size) < num_drawn


def _key_of_rank(keys, rank):
    """The `rank`-th lowest of keys in [0, 1), or more if there are not so many.

    By bisection: with a sort among its operations, XLA on a CPU compiles the
    random numbers of all dropout layers to slow code, and a train step takes
    several times as long.
    """
    highest = ops.zeros((), "float32")
    for bit in range(1, _KEY_BITS + 1):
        higher = highest + 2.0**-bit
        num_lower = ops.sum(ops.cast(keys < higher, "int32"))
        highest = ops.where(num_lower < rank, higher, highest)
    return highest
