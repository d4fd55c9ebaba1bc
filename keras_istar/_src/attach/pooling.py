"""Pooling: the tokens of an example -> one embedding of it."""

from typing import Any
from typing import Literal

from keras import ops

from keras_istar._src.score.moments import moments_dtype
from keras_istar._src.types import Tensor

Pooling = Literal["mean", "first", "last", "max"] | None

_KINDS = ("mean", "first", "last", "max")


def check_pooling(value: Any) -> None:
    """Raises unless `value` is a kind of pooling or None."""
    if value is not None and (
        not isinstance(value, str) or value not in _KINDS
    ):
        raise ValueError(
            f"`pooling` must be None or one of {list(_KINDS)}. "
            f"Received: pooling={value!r:.200}"
        )


def check_poolable(pooling: Pooling, names: Any, shapes: Any) -> None:
    """Raises where hidden states have no tokens that could be pooled."""
    for name, shape in zip(names, shapes, strict=True):
        if pooling is not None and len(shape) < 3:
            raise ValueError(
                "`pooling` must be None for states that are one embedding of "
                f"each example. Received: pooling={pooling!r}, {name!r} has "
                f"shape {tuple(shape)}"
            )


def pool(
    pooling: Pooling, states: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One embedding of each example, from its unmasked tokens.

    Args:
        pooling: None to keep the tokens; `"mean"` or `"max"` of them in each
            dimension; or the `"first"` or `"last"` of them.
        states: Shape `(batch, length, dim)`, or with several axes of tokens.
        mask: None, or shape `(batch, length)`; true for tokens that count.

    Returns:
        A tuple: embeddings `(batch, dim)`, in float32 or better if they are
        means; and None, or with a mask whether each example has any token,
        `(batch,)`. Without pooling, `states` and `mask`.
    """
    if pooling is None:
        return states, mask
    dim = states.shape[-1]
    states = ops.reshape(states, (ops.shape(states)[0], -1, dim))
    if mask is None:
        return _pool_all(pooling, states), None
    mask = ops.reshape(ops.cast(mask, "bool"), ops.shape(states)[:2])
    has_tokens = ops.any(mask, axis=1)
    if pooling in ("first", "last"):
        steps = ops.arange(ops.shape(mask)[1], dtype="int32")
        if pooling == "first":
            place = ops.argmax(mask, axis=1)
        else:
            place = ops.max(ops.where(mask, steps, 0), axis=1)
        place = ops.cast(place, "int32")[:, None, None]
        taken = ops.take_along_axis(states, place, axis=1)
        return ops.squeeze(taken, axis=1), has_tokens
    mask = mask[:, :, None]
    if pooling == "max":
        lowest = ops.where(mask, states, _lowest(states))
        highest = ops.max(lowest, axis=1)
        return ops.where(has_tokens[:, None], highest, 0.0), has_tokens
    # Padding may hold anything, NaN included.
    tokens = ops.cast(states, moments_dtype(states.dtype))
    total = ops.sum(ops.where(mask, tokens, 0.0), axis=1)
    number = ops.sum(ops.cast(mask, total.dtype), axis=1)
    return total / ops.maximum(number, 1.0), has_tokens


def _pool_all(pooling, states):
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        return states[:, -1]
    if pooling == "max":
        return ops.max(states, axis=1)
    return ops.mean(ops.cast(states, moments_dtype(states.dtype)), axis=1)


def _lowest(states):
    return ops.cast(-float("inf"), states.dtype)
