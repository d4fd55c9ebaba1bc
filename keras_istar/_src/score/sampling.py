"""Moments of hidden states, estimated from a random subset of their tokens."""

import functools

import keras
from keras import ops

from keras_istar._src.compat.custom_gradients import after
from keras_istar._src.compat.custom_gradients import custom_gradient
from keras_istar._src.compat.custom_gradients import last_first
from keras_istar._src.compat.distribution import add_replicas
from keras_istar._src.score import moments
from keras_istar._src.score.moments import Moments
from keras_istar._src.types import Tensor

_DIGITS = 6  # Hexadecimal, of a key: what float32 tells apart in [0, 1).


def sampled_moments(
    states: list[Tensor],
    masks: list[Tensor | None],
    size: int,
    seed: keras.random.SeedGenerator,
    sync: bool = True,
) -> Moments:
    """Unbiased moments of several states, from a random subset of their tokens.

    `size` unmasked tokens of each state are drawn without replacement. The
    expectations of mean and covariance over the draws are those of all unmasked
    tokens of all states. Shapes depend only on `size` and on the shapes of the
    states, as a TPU needs; the cost is that of the tokens drawn.

    Args:
        states: Float tensors of shape `(..., dim)`.
        masks: For each state, None or a tensor of its shape without `dim`.
        size: Number of tokens to draw from each state. A state with fewer
            tokens gives all of them.
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

    Lengths may be unknown in a graph. States without a mask are alike only if
    their shapes are known and equal.
    """
    groups: dict[object, list[int]] = {}
    for place, (state, mask) in enumerate(zip(states, masks, strict=True)):
        shape = tuple(state.shape)
        key = shape if None not in shape else place
        groups.setdefault(key if mask is None else id(mask), []).append(place)
    return groups.values()


def _sample(flat, total, size, seed):
    """Moments of states that share their weights.

    Let S be the covariance of all n tokens of a state, and N the number of
    tokens in the union. The scatter of a sample of k tokens, (k - 1) S on
    average, is scaled up to (n - 1) S, less what merging adds by chance: the
    mean of the sample has the variance (1/k - 1/n) S, and merging adds it
    n (1 - n/N) times.
    """
    weights = flat[0][1]
    slots, places, is_real = _draw(len(flat), weights, size, seed)
    samples = _rows_at(slots, places, *[tokens for tokens, _ in flat])
    samples = ops.cast(samples, weights.dtype)
    samples = ops.where(is_real[..., None], samples, 0.0)
    num_drawn = ops.sum(ops.cast(is_real[0], weights.dtype))
    k = moments.at_least_one(num_drawn)
    centers = ops.stop_gradient(ops.sum(samples, axis=1) / k)
    deviations = ops.where(is_real[..., None], samples - centers[:, None], 0.0)
    count = ops.sum(weights)
    share = count / moments.at_least_one(total)
    wanted = (count - 1.0) - (count / k - 1.0) * (1.0 - share)
    growth = ops.maximum(wanted, 0.0) / moments.at_least_one(k - 1.0)
    # Deviations of all states are about zero: one product sums the scatters.
    scatter = moments.token_moments(deviations, is_real).scatter
    return moments.merge(
        count * ops.ones((len(flat),), count.dtype),
        centers,
        ops.sum(deviations, axis=1) / k,
        growth * scatter,
    )


def _gradient_of_rows(arguments, d_rows):
    slots, _, *tokens = arguments
    number = len(tokens)
    d_rows = ops.pad(d_rows, ((0, 0), (1, 0), (0, 0)))  # Slot 0 has zeros.
    d_tokens = last_first(
        [
            functools.partial(_rows_in_slots, *one)
            for one in zip(
                ops.unstack(d_rows, num=number),
                ops.unstack(slots, num=number),
                strict=True,
            )
        ]
    )
    return None, None, *d_tokens


@custom_gradient(_gradient_of_rows)
def _rows_at(slots, places, *tokens):
    """Rows of each state at its own places, `(states, size, dim)`.

    The gradient has zeros for all other tokens. It takes a row for each token,
    where autodiff would add rows to zeros, which XLA writes first, and for all
    states at once.
    """
    places = ops.unstack(places, num=len(tokens))
    rows = [
        ops.take(*pair, axis=0) for pair in zip(tokens, places, strict=True)
    ]
    return ops.stack(rows)


def _rows_in_slots(rows, slots, before):
    """The row in the slot of each token, computed after `before`."""
    return [ops.take(after(before, rows), slots, axis=0)]


def _draw(number, weights, size, seed):
    """Draws `size` tokens and puts them in slots, in their order.

    Every token gets a random key, and the tokens with the lowest keys are
    drawn. If there are fewer tokens than `size`, the places left over stand for
    no token.

    Returns:
        For each of `number` independent draws, the slot of every token, counted
        from 1, or 0 if it was not drawn, `(number, tokens)`; then the place of
        the token in each slot, and whether the slot is filled, both of shape
        `(number, size)`.
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
    # Equal keys could draw more than `size` tokens.
    is_drawn = ops.logical_and(is_drawn, ranks <= size)
    slots = ops.where(is_drawn, ranks, 0)
    # A table for each draw; its place 0 is for tokens that were not drawn.
    starts = (size + 1) * ops.arange(number, dtype="int32")[:, None]
    places = ops.broadcast_to(
        ops.arange(tokens, dtype="int32"), ops.shape(keys)
    )
    # Each other slot has one token. `ops.scatter` is a loop on PyTorch.
    table = ops.segment_sum(
        ops.reshape(places, (-1,)),
        ops.reshape(starts + slots, (-1,)),
        number * (size + 1),
    )
    places = ops.reshape(table, (number, size + 1))[:, 1:]
    num_drawn = ops.sum(ops.cast(is_drawn, "int32"), axis=1)
    return slots, places, ops.arange(size) < num_drawn[:, None]


def _key_of_rank(keys, rank):
    """The `rank`-th lowest key of each row, `(rows, 1)`; keys are in [0, 1).

    If a row has fewer keys, the result is larger than all of them. It is found
    digit by digit, not by a sort: XLA on a CPU compiles a train step with a
    sort so that the random numbers of all dropout layers are slow, and the step
    takes several times as long. Remove when a sort does not slow down dropout.
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
