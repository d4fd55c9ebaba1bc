"""Hidden states and mask -> moments -> covariance.

Moments of disjoint sets of tokens merge exactly, so batches, encoder layers
and replicas are all joined by `combine`.
"""

from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_istar.precision import matmul

Tensor = Any  # A tensor of the active Keras backend.


class Moments(NamedTuple):
    """First two moments of a set of tokens.

    The mean is kept as the unevaluated sum `center + offset`: hidden states
    have dimensions whose mean is thousands of times their spread, and a single
    float32 would round away the digits that merging needs.

    Attributes:
        count: Number of tokens, shape `()`.
        center: A constant near the mean, shape `(dim,)`. Carries no gradient.
        offset: Mean minus `center`, shape `(dim,)`.
        scatter: Sum over tokens of the outer products of their deviations from
            the mean, shape `(dim, dim)`.
    """

    count: Tensor
    center: Tensor
    offset: Tensor
    scatter: Tensor


def token_moments(hidden_states: Tensor, mask: Tensor | None = None) -> Moments:
    """Moments of the unmasked tokens, in float32 or better.

    The gradient keeps only `hidden_states`, the mask and `(dim,)` vectors for
    the backward pass, which costs one matrix product.

    Args:
        hidden_states: Float tensor of shape `(..., dim)`.
        mask: Optional tensor of shape `(...)`; a token counts where it is true
            or non-zero. Masked tokens may hold anything, NaN included.

    Returns:
        `Moments` of the tokens.
    """
    tokens, weights = flatten_tokens(hidden_states, mask)
    center = _center(tokens, weights)
    joint = _scatter_and_offset(tokens, weights, center)
    return Moments(ops.sum(weights), center, joint[-1], joint[:-1])


def token_center(hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the unmasked tokens to rounding, `(dim,)`, as a constant."""
    return _center(*flatten_tokens(hidden_states, mask))


def flatten_tokens(
    hidden_states: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens `(tokens, dim)` and their weights `(tokens,)`, ones and zeros."""
    tokens = ops.reshape(hidden_states, (-1, hidden_states.shape[-1]))
    dtype = moments_dtype(tokens.dtype)
    if mask is None:
        return tokens, ops.ones((ops.shape(tokens)[0],), dtype)
    counted = ops.cast(ops.reshape(mask, (-1,)), "bool")
    return tokens, ops.cast(counted, dtype)


def combine(parts: list[Moments]) -> Moments:
    """Moments of the union of disjoint sets of tokens.

    Args:
        parts: `Moments` of the sets, in any order; empty sets are allowed.

    Returns:
        `Moments` of all their tokens.
    """
    if len(parts) == 1:
        return parts[0]
    counts, centers, offsets, scatters = zip(*parts, strict=True)
    scatter = sum(scatters[1:], start=scatters[0])
    return merge(
        ops.stack(counts), ops.stack(centers), ops.stack(offsets), scatter
    )


def merge(
    counts: Tensor, centers: Tensor, offsets: Tensor, scatter: Tensor
) -> Moments:
    """Like `combine`, from stacked parts and the sum of their scatters.

    With m_k the mean of part k and m that of the union, the parallel-axis
    theorem gives

        scatter = sum_k scatter_k + sum_k n_k (m_k - m) (m_k - m)^T.

    Args:
        counts: Tokens in each part, shape `(parts,)`.
        centers: Shape `(parts, dim)`.
        offsets: Shape `(parts, dim)`.
        scatter: Sum of the parts' scatters, shape `(dim, dim)`.

    Returns:
        `Moments` of the union.
    """
    count = ops.sum(counts)
    largest = ops.one_hot(
        ops.argmax(counts), ops.shape(counts)[0], dtype=counts.dtype
    )
    # A selection, not a product: no rounding, whatever the matmul precision.
    center = ops.stop_gradient(ops.sum(largest[:, None] * centers, axis=0))
    # An empty part has no mean, and no weight: any finite value will do.
    means = ops.where(
        counts[:, None] > 0, (centers - center) + offsets, 0.0
    )  # about `center`
    offset = ops.sum(counts[:, None] * means, axis=0) / ops.maximum(count, 1.0)
    spread = ops.sqrt(counts)[:, None] * (means - offset)
    between = matmul(ops.transpose(spread), spread)
    return Moments(count, center, offset, scatter + between)


def covariance(moments: Moments) -> Tensor:
    """Unbiased covariance `(dim, dim)`; zero for fewer than two tokens."""
    return moments.scatter / ops.maximum(moments.count - 1.0, 1.0)


def shrink(covariance: Tensor, target: Tensor, shrinkage: Tensor) -> Tensor:
    """`(1 - shrinkage) * covariance + shrinkage * target`, the paper's Σ_ζ."""
    return (1.0 - shrinkage) * covariance + shrinkage * target


def scaled_identity(covariance: Tensor) -> Tensor:
    """`tr(covariance) / dim * I`, the isotropic matrix of the same trace."""
    dim = covariance.shape[-1]
    identity = ops.eye(dim, dtype=covariance.dtype)
    return ops.sum(covariance * identity) / dim * identity


def moments_dtype(dtype: Any) -> str:
    """float64 for float64 states, float32 for every narrower type."""
    is_double = keras.backend.standardize_dtype(dtype) == "float64"
    return "float64" if is_double else "float32"


def _center(tokens, weights):
    total = ops.sum(_centered(tokens, weights, 0.0), axis=0)
    return ops.stop_gradient(total / ops.maximum(ops.sum(weights), 1.0))


def _centered(tokens, weights, center):
    """`tokens - center`, zero where masked: `(tokens, dim)`."""
    tokens = ops.cast(tokens, weights.dtype)
    return ops.where(weights[:, None] > 0, tokens - center, 0.0)


@ops.custom_gradient
def _scatter_and_offset(tokens, weights, center):
    """Scatter about the mean, and below it the mean about `center`.

    One tensor, because the PyTorch backend differentiates no more.

    Args:
        tokens: `(tokens, dim)`, any float dtype.
        weights: `(tokens,)`, ones and zeros.
        center: `(dim,)`, a constant.

    Returns:
        Tensor of shape `(dim + 1, dim)`.
    """
    count = ops.maximum(ops.sum(weights), 1.0)
    deviations = _centered(tokens, weights, center)
    offset = ops.sum(deviations, axis=0, keepdims=True) / count
    # sum (y - r)(y - r)^T = sum y y^T - n r r^T; r is no more than the
    # rounding error of `center`, so nothing cancels.
    scatter = matmul(ops.transpose(deviations), deviations)
    scatter = scatter - count * ops.transpose(offset) * offset

    def gradient(*args, upstream=None):
        upstream = args[0] if upstream is None else upstream
        d_scatter, d_offset = upstream[:-1], upstream[-1]
        # d scatter = sum dx (x - m)^T + (x - m) dx^T. The term in dm vanishes
        # because deviations from the mean sum to zero.
        deviations = _centered(tokens, weights, center) - offset
        d_tokens = matmul(deviations, d_scatter + ops.transpose(d_scatter))
        d_tokens = ops.where(
            weights[:, None] > 0, d_tokens + d_offset / count, 0.0
        )
        return (
            ops.cast(d_tokens, tokens.dtype),
            ops.zeros_like(weights),
            ops.zeros_like(center),
        )

    return ops.concatenate([scatter, offset]), gradient
