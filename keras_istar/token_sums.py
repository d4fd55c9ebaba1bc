"""Sums over the tokens of hidden states, with a gradient that keeps nothing."""

from typing import Any

import keras
from keras import ops

from keras_istar.autodiff import custom_gradient
from keras_istar.precision import matmul
from keras_istar.precision import moments_dtype

Tensor = Any  # A tensor of the active Keras backend.

# On JAX, XLA orders operations to save memory, and gradients may be sharded: to
# wait for one, devices would have to exchange a piece of it.
_ONE_AFTER_THE_OTHER = keras.backend.backend() != "jax"


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
        d_tokens = []
        before = both
        # The last state first, as the model wants them, and one at a time:
        # deviations of all states at once would be the peak of a train step.
        for state, d_total in zip(
            reversed(states), reversed(ops.unstack(d_totals)), strict=True
        ):
            d_tokens.insert(0, _state_gradient(before, both, d_total, *state))
            if _ONE_AFTER_THE_OTHER:
                before = d_tokens[0]
        return None, *d_tokens, *[None] * number

    return (sum(products[1:], start=products[0]), ops.stack(totals)), gradient


def _state_gradient(before, both, d_total, center, tokens, weights):
    """Gradient of one state's tokens, computed after `before`."""
    if tokens.dtype == both.dtype:
        cloud = deviations(_after(before, center), tokens, weights)
    else:
        # Lest the wider copy of the tokens be kept, too.
        cloud = deviations(center, _after(before, tokens), weights)
    d_tokens = _zero_masked(matmul(cloud, both) + d_total, weights)
    return ops.cast(d_tokens, tokens.dtype)


def _after(gradient, value):
    """`value`, made to depend on `gradient`.

    Otherwise a compiler finds what is computed from it in the forward pass as
    well, and keeps that instead. A NaN in the gradient would come out anyway.
    """
    first = ops.sum(gradient[:1, :1])  # There may be no row.
    return ops.where(ops.isnan(first), ops.cast(first, value.dtype), value)
