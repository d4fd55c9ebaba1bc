"""Moments of hidden states, estimated from a random subset of their tokens."""

import keras
from keras import ops

from keras_istar import moments
from keras_istar.autodiff import custom_gradient
from keras_istar.moments import Moments
from keras_istar.moments import Tensor


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
    drawn, is_real = _draw(weights, size, seed)
    sample = moments.token_moments(_take(tokens, drawn, is_real), is_real)
    count, k = ops.sum(weights), ops.maximum(sample.count, 1.0)
    share = count / ops.maximum(total, 1.0)
    wanted = (count - 1.0) - (count / k - 1.0) * (1.0 - share)
    growth = ops.maximum(wanted, 0.0) / ops.maximum(k - 1.0, 1.0)
    return sample._replace(count=count, scatter=growth * sample.scatter)


def _draw(weights, size, seed):
    """Indices of `size` tokens, and whether each stands for a real token.

    Every token gets a random key and masked ones the lowest; the highest keys
    win. Padding makes up for fewer tokens than `size`.
    """
    number = ops.shape(weights)[0]
    if isinstance(number, int):
        size = min(size, max(number, 1))
    else:  # A tensor: TensorFlow will know when it runs or compiles.
        size = ops.minimum(size, ops.maximum(number, 1))
    keys = keras.random.uniform(ops.shape(weights), dtype="float32", seed=seed)
    keys = ops.where(weights > 0, keys, -1.0)
    keys = ops.concatenate([keys, -ops.ones((size,), "float32")])
    highest, drawn = ops.top_k(keys, size)
    is_real = highest >= 0
    return ops.where(is_real, drawn, 0), is_real


def _take(tokens, drawn, is_real):
    """`tokens[drawn]`, differentiated by taking, too.

    Autodiff would scatter rows into zeros, which XLA does one by one on a CPU,
    with a copy of them all for each. Only their places are scattered here.
    """
    num_tokens, size = ops.shape(tokens)[0], ops.shape(drawn)[0]
    # Row of the sample that holds a token, counted from 1; 0 if none does.
    rows = ops.scatter(
        ops.where(is_real, drawn, num_tokens)[:, None],
        ops.arange(1, size + 1, dtype="int32"),
        (num_tokens + 1,),
    )[:num_tokens]

    @custom_gradient
    def take(tokens):
        def gradient(d_sample):
            none = ops.zeros_like(d_sample[:1])
            return (ops.take(ops.concatenate([none, d_sample]), rows, axis=0),)

        return (ops.take(tokens, drawn, axis=0),), gradient

    return take(tokens)[0]
