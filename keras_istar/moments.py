"""Hidden states and mask -> moments -> covariance.

Moments of disjoint sets of tokens merge exactly, so batches, encoder layers
and replicas are all joined by `combine`.
"""

from typing import Any
from typing import NamedTuple

from keras import ops

from keras_istar.precision import matmul
from keras_istar.precision import moments_dtype
from keras_istar.token_sums import deviations
from keras_istar.token_sums import sums_about

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

    Args:
        hidden_states: Float tensor of shape `(..., dim)`.
        mask: Optional tensor of shape `(...)`; a token counts where it is true
            or non-zero. Masked tokens may hold anything, NaN included.

    Returns:
        `Moments` of the tokens.
    """
    return union_moments([hidden_states], [mask])


def union_moments(states: list[Tensor], masks: list[Tensor | None]) -> Moments:
    """Moments of the unmasked tokens of several states, as one cloud.

    The same as `combine` of their `token_moments`, but sums of one kind are
    added up before anything else is done with them. Where XLA shards the
    tokens over devices, each kind then travels in one all-reduce: first the
    sums that make the centers, then one matrix and the offsets.

    The gradient keeps only the states, the masks and `(dim,)` vectors for the
    backward pass, which costs one matrix product a state.

    Args:
        states: Float tensors of shape `(..., dim)`.
        masks: For each state, None or a tensor of its shape without `dim`.

    Returns:
        `Moments` of all their tokens.
    """
    flat = [flatten_tokens(*pair) for pair in zip(states, masks, strict=True)]
    counts = ops.stack([_count(*tokens) for tokens in flat])
    per_token = 1.0 / ops.maximum(counts, 1.0)[:, None]
    totals = [ops.sum(deviations(0.0, *tokens), axis=0) for tokens in flat]
    centers = ops.stop_gradient(ops.stack(totals) * per_token)
    tokens, weights = zip(*flat, strict=True)
    products, rests = sums_about(centers, *tokens, *weights)
    offsets = rests * per_token
    # sum (y - r)(y - r)^T = sum y y^T - n r r^T; r is no more than the
    # rounding error of a center, so nothing cancels.
    scaled = ops.sqrt(counts)[:, None] * offsets
    correction = matmul(ops.transpose(scaled), scaled)
    return merge(counts, centers, offsets, products - correction)


def token_center(hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the unmasked tokens to rounding, `(dim,)`, as a constant."""
    tokens = flatten_tokens(hidden_states, mask)
    total = ops.sum(deviations(0.0, *tokens), axis=0)
    return ops.stop_gradient(total / ops.maximum(_count(*tokens), 1.0))


def flatten_tokens(
    hidden_states: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Tokens `(tokens, dim)`, and ones and zeros if there is a mask."""
    tokens = ops.reshape(hidden_states, (-1, hidden_states.shape[-1]))
    if mask is None:
        return tokens, None
    is_real = ops.cast(ops.reshape(mask, (-1,)), "bool")
    return tokens, ops.cast(is_real, moments_dtype(tokens.dtype))


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


def to_float32(moments: Moments) -> Moments:
    """In float32, where the offset takes what the center loses."""
    center = ops.cast(moments.center, "float32")
    lost = moments.center - ops.cast(center, moments.center.dtype)
    parts = moments._replace(center=center, offset=moments.offset + lost)
    return Moments(*(ops.cast(part, "float32") for part in parts))


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


def _count(tokens, weights):
    if weights is None:
        return ops.cast(ops.shape(tokens)[0], moments_dtype(tokens.dtype))
    return ops.sum(weights)
