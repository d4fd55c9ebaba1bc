"""Moments of hidden states, estimated from a random subset of their tokens."""

import functools

import keras
from keras import ops

from keras_istar._src.compat.distribution import add_replicas
from keras_istar._src.compat.gradients import after
from keras_istar._src.compat.gradients import custom_gradient
from keras_istar._src.compat.gradients import last_first
from keras_istar._src.score import moments
from keras_istar._src.score.moments import Moments
from keras_istar._src.types import Tensor

_DIGITS = 6  # Of a key, to the base 16: what float32 tells apart in [0, 1).


def sampled_moments(
    states: list[Tensor],
    masks: list[Tensor | None],
    size: int,
    seed: keras.random.SeedGenerator,
    sync: bool = True,
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
        sync: Whether the moments of all replicas will be added up.

    Returns:
        `Moments` that count all unmasked tokens, not only those drawn.
    """
    flat = [_flatten(*pair) for pair in zip(states, masks, strict=True)]
    total = sum(ops.sum(weights) for _, weights in flat)
    if sync:
        total = add_replicas(total)
    return moments.combine(
        [
            _sample([flat[i] for i in places], total, size, seed)
            for places in _alike(states, masks)
        ]
    )


def _flatten(states, mask):
    if mask is None:
        mask = ops.ones(ops.shape(states)[:-1], "bool")
    return moments.flatten_tokens(states, mask)


def _alike(states, masks):
    """Places of the states that share a mask, hence a number of tokens.

    Lengths may be unknown in a graph, so that states without a mask are alike
    only if their shapes say so.
    """
    groups: dict[object, list[int]] = {}
    for place, (state, mask) in enumerate(zip(states, masks, strict=True)):
        shape = tuple(state.shape)
        key = shape if None not in shape else place
        groups.setdefault(key if mask is None else id(mask), []).append(place)
    return groups.values()


def _sample(flat, total, size, seed):
    """Moments of states that share their weights.

    With S the covariance of all n tokens of a state, the scatter (k - 1) S of
    a sample of k should become (n - 1) S. But the mean of the sample is off by
    a variance of (1/k - 1/n) S, so that merging adds n (1 - n/N) times that,
    where N is the number of tokens in the union: so much less is needed here.
    """
    weights = flat[0][1]
    places, is_real = _draw(len(flat), weights, size, seed)
    samples = _rows_at(places, *[tokens for tokens, _ in flat])
    samples = ops.cast(samples, weights.dtype)
    samples = ops.where(is_real[..., None], samples, 0.0)
    num_drawn = ops.sum(ops.cast(is_real[0], weights.dtype))
    k = ops.maximum(num_drawn, 1.0)
    centers = ops.stop_gradient(ops.sum(samples, axis=1) / k)
    deviations = ops.where(is_real[..., None], samples - centers[:, None], 0.0)
    count = ops.sum(weights)
    share = count / ops.maximum(total, 1.0)
    wanted = (count - 1.0) - (count / k - 1.0) * (1.0 - share)
    growth = ops.maximum(wanted, 0.0) / ops.maximum(k - 1.0, 1.0)
    # About means that are zero, the scatters of all states are one.
    scatter = moments.token_moments(deviations, is_real).scatter
    return moments.merge(
        count * ops.ones((len(flat),), count.dtype),
        centers,
        ops.sum(deviations, axis=1) / k,
        growth * scatter,
    )


def _gradient_of_rows(arguments, d_rows):
    places, *tokens = arguments
    number = len(tokens)
    d_tokens = last_first(
        [
            functools.partial(_scattered, d_own, own, ops.shape(x)[0])
            for d_own, own, x in zip(
                ops.unstack(d_rows, num=number),
                ops.unstack(places, num=number),
                tokens,
                strict=True,
            )
        ]
    )
    return None, *d_tokens


@custom_gradient(_gradient_of_rows)
def _rows_at(places, *tokens):
    """Rows of each state at its own places, `(states, size, dim)`.

    Backward, a few rows become all tokens of a state, one state at a time.
    """
    places = ops.unstack(places, num=len(tokens))
    rows = [
        ops.take(*pair, axis=0) for pair in zip(tokens, places, strict=True)
    ]
    return ops.stack(rows)


def _scattered(rows, places, number, before):
    """Zeros `(number, dim)` with `rows` at their places, after `before`."""
    return [ops.segment_sum(after(before, rows), places, number)]


def _draw(number, weights, size, seed):
    """Places of `size` tokens, and whether each stands for a real token.

    Every token gets a random key, and the lowest ones win. What is left over
    where there are fewer tokens than `size` stands for none.

    Returns:
        Tensors of shape `(number, size)`, drawn independently of each other.
    """
    tokens = ops.shape(weights)[0]
    if isinstance(tokens, int):
        size = min(size, tokens)
    else:  # A tensor: TensorFlow will know when it runs or compiles.
        size = ops.minimum(size, tokens)
    keys = keras.random.uniform((number, tokens), dtype="float32", seed=seed)
    keys = ops.where(weights > 0, keys, 1.0)
    is_drawn = keys <= _key_of_rank(keys, size)
    ranks = ops.cumsum(ops.cast(is_drawn, "int32"), axis=1)
    # Equal keys may be more than there is room for.
    is_drawn = ops.logical_and(is_drawn, ranks <= size)
    # A table for each draw, behind a place for the tokens that were not drawn.
    slots = ops.where(is_drawn, ranks, 0)
    slots = slots + (size + 1) * ops.arange(number, dtype="int32")[:, None]
    places = ops.broadcast_to(
        ops.arange(tokens, dtype="int32"), ops.shape(keys)
    )
    table = ops.scatter(
        ops.reshape(slots, (-1, 1)),
        ops.reshape(places, (-1,)),
        (number * (size + 1),),
    )
    places = ops.reshape(table, (number, size + 1))[:, 1:]
    num_drawn = ops.sum(ops.cast(is_drawn, "int32"), axis=1)
    return places, ops.arange(size) < num_drawn[:, None]


def _key_of_rank(keys, rank):
    """In each row, the `rank`-th lowest of keys in [0, 1), `(rows, 1)`.

    It is more if there are not so many. Found digit by digit: with a sort
    among its operations, XLA on a CPU compiles the random numbers of all
    dropout layers to slow code, and a train step takes several times as long.
    """
    found = ops.zeros((keys.shape[0], 1), "float32")
    for place in range(1, _DIGITS + 1):
        unit = 16.0**-place
        higher = found + unit * ops.arange(1, 16, dtype="float32")
        is_lower = keys[:, :, None] < higher[:, None, :]
        num_lower = ops.sum(ops.cast(is_lower, "int32"), axis=1)
        digit = ops.sum(
            ops.cast(num_lower < rank, "float32"), axis=1, keepdims=True
        )
        found = found + unit * digit
    return found
