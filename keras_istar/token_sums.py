"""Sums over the tokens of hidden states, with a gradient that keeps nothing."""

import functools
from typing import Any

from keras import ops

from keras_istar.autodiff import custom_gradient
from keras_istar.gradient_order import after
from keras_istar.gradient_order import last_first
from keras_istar.precision import matmul
from keras_istar.precision import moments_dtype

Tensor = Any  # A tensor of the active Keras backend.


def deviations(
    center: Tensor | float, tokens: Tensor, weights: Tensor | None
) -> Tensor:
    """`tokens - center`, zero where masked: `(tokens, dim)`."""
    difference = ops.cast(tokens, moments_dtype(tokens.dtype)) - center
    return _zero_masked(difference, weights)


def _zero_masked(values, weights):
    if weights is None:
        return values
    return ops.where(weights[:, None] > 0, values, 0.0)


@custom_gradient
def sums_about(centers, *tokens_and_weights):
    """Sums of the outer products of deviations, and of the deviations.

    For the backward pass it keeps what it is given. That pass recomputes the
    deviations and costs one matrix product a state.

    Args:
        centers: `(states, dim)`, constants.
        *tokens_and_weights: For each state `(tokens, dim)`, any float dtype;
            then for each state None, or ones and zeros of shape `(tokens,)`.

    Returns:
        Tensors of shape `(dim, dim)`, over all states, and `(states, dim)`.
    """
    number = centers.shape[0]
    tokens, weights = tokens_and_weights[:number], tokens_and_weights[number:]
    states = list(zip(ops.unstack(centers), tokens, weights, strict=True))
    clouds = [deviations(*state) for state in states]
    products = [matmul(ops.transpose(cloud), cloud) for cloud in clouds]
    totals = [ops.sum(cloud, axis=0) for cloud in clouds]

    def gradient(d_products, d_totals):
        # d (Y^T Y) = dY^T Y + Y^T dY: one product, not the two of autodiff.
        both = d_products + ops.transpose(d_products)
        d_tokens = last_first(
            [
                functools.partial(_state_gradient, both, d_total, *state)
                for state, d_total in zip(
                    states, ops.unstack(d_totals), strict=True
                )
            ],
            before=both,
        )
        return None, *d_tokens, *[None] * number

    return (sum(products[1:], start=products[0]), ops.stack(totals)), gradient


def _state_gradient(both, d_total, center, tokens, weights, before):
    """Gradient of one state's tokens, computed after `before`."""
    if tokens.dtype == both.dtype:
        cloud = deviations(after(before, center), tokens, weights)
    else:
        # Lest the wider copy of the tokens be kept, too.
        cloud = deviations(center, after(before, tokens), weights)
    d_tokens = _zero_masked(matmul(cloud, both) + d_total, weights)
    return ops.cast(d_tokens, tokens.dtype)
