"""Moments of hidden states, estimated from a random subset of their tokens."""

import keras
from keras import ops

from keras_istar import moments
from keras_istar.moments import Moments
from keras_istar.moments import Tensor


def sampled_moments(
    hidden_states: Tensor,
    mask: Tensor | None,
    size: int,
    seed: keras.random.SeedGenerator,
) -> Moments:
    """Unbiased moments from `size` unmasked tokens, drawn without replacement.

    The mean and the covariance of the subset have the mean and the covariance
    of all unmasked tokens as their expectation. Shapes depend on `size` alone,
    as a TPU needs; the cost is that of `size` tokens.

    Args:
        hidden_states: Float tensor of shape `(..., dim)`.
        mask: Optional tensor of shape `(...)`.
        size: Number of tokens to draw. All are used if there are no more.
        seed: Source of randomness; advances with every call.

    Returns:
        `Moments` that count all unmasked tokens, not only those drawn.
    """
    if mask is None:
        mask = ops.ones(ops.shape(hidden_states)[:-1], "bool")
    tokens, weights = moments.flatten_tokens(hidden_states, mask)
    drawn, is_real = _draw(weights, size, seed)
    sample = moments.token_moments(ops.take(tokens, drawn, axis=0), is_real)
    count = ops.sum(weights)
    # Covariances are equal in expectation, hence scatters of n and k tokens
    # are as n - 1 to k - 1.
    growth = ops.maximum(count - 1.0, 0.0) / ops.maximum(
        sample.count - 1.0, 1.0
    )
    return sample._replace(count=count, scatter=growth * sample.scatter)


def _draw(weights, size, seed):
    """Indices of `size` tokens, and whether each stands for a real token.

    Every token gets a random key and masked ones the lowest; the highest keys
    win. Padding makes up for fewer tokens than `size`.
    """
    keys = keras.random.uniform(ops.shape(weights), dtype="float32", seed=seed)
    keys = ops.where(weights > 0, keys, -1.0)
    keys = ops.concatenate([keys, -ops.ones((size,), "float32")])
    highest, drawn = ops.top_k(keys, size)
    is_real = highest >= 0
    return ops.where(is_real, drawn, 0), is_real
