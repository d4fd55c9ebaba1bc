"""Hidden states and mask -> moments -> covariance.

Moments of disjoint sets of tokens merge exactly, so batches, encoder layers
and replicas are all joined by `combine`.
"""

import functools
import math
from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_istar._src.compat.custom_gradients import after
from keras_istar._src.compat.custom_gradients import anew
from keras_istar._src.compat.custom_gradients import custom_gradient
from keras_istar._src.compat.custom_gradients import last_first
from keras_istar._src.compat.distribution import current_replicas
from keras_istar._src.compat.products import gradients_at_once
from keras_istar._src.compat.products import matmul
from keras_istar._src.compat.products import product_dtype
from keras_istar._src.compat.products import states_at_once
from keras_istar._src.compat.products import sum_of_outer_products
from keras_istar._src.types import Tensor


def moments_dtype(dtype: Any) -> str:
    """float64 for float64 states, float32 for every narrower type."""
    is_double = keras.backend.standardize_dtype(dtype) == "float64"
    return "float64" if is_double else "float32"


def _zero_masked(values, weights):
    if weights is None:
        return values
    zero = ops.zeros((), values.dtype)  # PyTorch would copy a number to a GPU.
    return ops.where(weights[..., None] > 0, values, zero)


def _joined(states, at_once):
    """Joins neighboring states that are alike, as many as can be `at_once`.

    Returns for each group the places of its states, their tokens, and their
    weights or None: `(tokens, dim)` and `(tokens,)` for a single state, else
    `(states, tokens, dim)` and `(states, tokens)`.
    """
    groups: list[list[int]] = []
    last = None
    for place, (tokens, weights) in enumerate(states):
        kind = tokens.dtype, tuple(tokens.shape), weights is None
        if kind != last or len(groups[-1]) == at_once(tokens):
            groups.append([])
        groups[-1].append(place)
        last = kind
    joined = []
    for places in groups:
        tokens, weights = zip(*(states[i] for i in places), strict=True)
        has_weights = weights[0] is not None
        joined.append(
            (places, _stack(tokens), _stack(weights) if has_weights else None)
        )
    return joined


def _stack(values):
    return values[0] if len(values) == 1 else ops.stack(values)


def _unstack(values, number):
    return [values] if number == 1 else [*ops.unstack(values, number)]


def _rows(table, places):
    """Rows of some states, to broadcast to their tokens, or the one for all."""
    if table.shape[0] == 1:
        return table
    return _stack([table[place : place + 1] for place in places])


def _deviations(center, tokens, weights):
    """`tokens - center`, zero where masked, in the type of the product."""
    values = ops.cast(tokens, center.dtype) - center
    return ops.cast(_zero_masked(values, weights), product_dtype(tokens))


def _total(tokens, weights):
    wide = ops.cast(tokens, moments_dtype(tokens.dtype))
    return _sum_of_rows(_zero_masked(wide, weights))


def _sum_of_rows(values):
    return ops.sum(values, axis=tuple(range(len(values.shape) - 1)))


def _pairs(tokens_and_weights):
    number = len(tokens_and_weights) // 2
    tokens, weights = tokens_and_weights[:number], tokens_and_weights[number:]
    return [*zip(tokens, weights, strict=True)]


def _sums(centers, *tokens_and_weights):
    states = _pairs(tokens_and_weights)
    has_rests = _has_rests(states)
    products, rests = [], []
    for places, tokens, weights in _joined(states, states_at_once):
        cloud = _deviations(_rows(centers, places), tokens, weights)
        products.append(sum_of_outer_products(cloud))
        if has_rests:
            rests += _rests(cloud, centers, len(places))
    if not has_rests:
        return _add(products)
    if centers.shape[0] == 1:
        rests = [_add(rests)]
    return _add(products), ops.stack(rests)


def _has_rests(states):
    """Whether some deviations are no narrower than the sums of them."""
    return any(product_dtype(x) == moments_dtype(x.dtype) for x, _ in states)


def _rests(cloud, centers, number):
    """Sums of joined deviations, one for all or one for each state.

    They are zero, but for the rounding of the centers.
    """
    wide = ops.cast(cloud, centers.dtype)
    if centers.shape[0] == 1:
        return [_sum_of_rows(wide)]
    return _unstack(ops.sum(wide, axis=-2), number)


def _add(values):
    return sum(values[1:], start=values[0])


def _gradient_of_sums(arguments, d_product, d_rests=None):
    centers, *tokens_and_weights = arguments
    # d (Y^T Y) = dY^T Y + Y^T dY: one product, not the two of autodiff.
    both = d_product + ops.transpose(d_product)
    joined = _joined(_pairs(tokens_and_weights), gradients_at_once)
    d_tokens = last_first(
        [
            functools.partial(_gradient_of_tokens, both, d_rests, centers, *one)
            for one in joined
        ],
        before=both,
    )
    return None, *d_tokens, *[None] * len(d_tokens)


def _gradient_of_tokens(
    both, d_rests, centers, places, tokens, weights, before
):
    """Gradients of joined states, computed after `before`."""
    center, dtype = _rows(centers, places), tokens.dtype
    both = ops.cast(both, product_dtype(tokens))
    both, center, tokens, weights = anew((both, center, tokens, weights))
    if dtype == center.dtype:
        center = after(before, center)
    else:
        # Otherwise the wider copy of the tokens would be kept as well.
        tokens = after(before, tokens)
    d_tokens = matmul(_deviations(center, tokens, weights), both)
    if d_rests is not None:
        d_tokens = _zero_masked(d_tokens + _rows(d_rests, places), weights)
    return _unstack(ops.cast(d_tokens, dtype), len(places))


_sums_for_training = custom_gradient(_gradient_of_sums)(_sums)


def sums_about(
    centers: Tensor, *tokens_and_weights: Tensor | None, train: bool
) -> tuple[Tensor, Tensor | None]:
    """Sums of the outer products of deviations, and of the deviations.

    Args:
        centers: `(1, dim)` for all states, or `(states, dim)`. In the gradient
            they count as constants.
        *tokens_and_weights: For each state `(tokens, dim)`, any float dtype;
            then for each state None, or ones and zeros of shape `(tokens,)`.
        train: If true, only the arguments are kept for the backward pass, which
            recomputes the deviations and costs one matrix product a state. If
            false, autodiff keeps the deviations and takes two products, but
            forward mode works as well: custom gradients have no `jax.jvp`.
            PyTorch always does as if true.

    Returns:
        Tensors of shape `(dim, dim)`, over all states, and of the shape of
        `centers`, over the states of each center. The latter is None if all
        deviations are rounded to a narrower type for the product: their sums
        would not tell how far the centers are from the means.
    """
    if train or keras.backend.backend() == "torch":
        sums = _sums_for_training(centers, *tokens_and_weights)
    else:
        sums = _sums(centers, *tokens_and_weights)
    return sums if isinstance(sums, tuple) else (sums, None)


class Moments(NamedTuple):
    """First two moments of a set of tokens.

    The mean is kept as the unevaluated sum `center + offset`: hidden states
    have dimensions whose mean is thousands of times their spread, and a single
    float32 would round away the digits that merging needs.

    Attributes:
        count: Number of tokens, shape `()`.
        center: A constant near the mean, shape `(dim,)`. Carries no gradient.
        offset: Mean minus `center`, shape `(dim,)`; zero where deviations are
            rounded more than the center is.
        scatter: Sum over tokens of the outer products of their deviations from
            the mean, shape `(dim, dim)`.
    """

    count: Tensor
    center: Tensor
    offset: Tensor
    scatter: Tensor


def token_moments(
    hidden_states: Tensor, mask: Tensor | None = None, *, train: bool = True
) -> Moments:
    """Moments of the unmasked tokens, in float32 or better.

    Args:
        hidden_states: Float tensor of shape `(..., dim)`.
        mask: Optional tensor of shape `(...)`; a token counts where it is true
            or non-zero. Masked tokens may hold anything, NaN included.
        train: How to differentiate, see `sums_about`.

    Returns:
        `Moments` of the tokens.
    """
    return union_moments([hidden_states], [mask], train=train)


def union_moments(
    states: list[Tensor],
    masks: list[Tensor | None],
    *,
    train: bool = True,
    centered: bool = False,
) -> Moments:
    """Moments of the unmasked tokens of several states, as one cloud.

    Equal to `combine` of their `token_moments`. But all deviations are from one
    center, so that sums of one kind can be added up first. Where XLA shards the
    tokens over devices, each kind then travels in one all-reduce: first the sum
    that makes the center, then the matrix and, if it is needed, the offset.

    With `train`, only the states, the masks and the centers are kept for the
    backward pass, which costs one matrix product a state.

    Args:
        states: Float tensors of shape `(..., dim)`.
        masks: For each state, None or a tensor of its shape without `dim`.
        train: How to differentiate, see `sums_about`.
        centered: Whether the mean of each state is subtracted from its tokens.

    Returns:
        `Moments` of all their tokens.
    """
    flat = [flatten_tokens(*pair) for pair in zip(states, masks, strict=True)]
    parts = flat
    if not centered:
        parts = [tokens for _, *tokens in _joined(flat, states_at_once)]
    counts = [_count(*tokens) for tokens in parts]
    totals = [_total(*tokens) for tokens in parts]
    if not centered:
        counts, totals = [_add(counts)], [_add(totals)]
    counts = ops.stack(counts)
    per_token = 1.0 / at_least_one(counts)[:, None]
    means = ops.stack(totals) * per_token
    centers = ops.stop_gradient(means)
    tokens, weights = zip(*flat, strict=True)
    # Rests tell a second derivative how the centers move with the tokens.
    about = centers if _has_rests(flat) else means
    scatter, rests = sums_about(about, *tokens, *weights, train=train)
    if rests is None:
        offsets = means - centers  # Zero, with the gradient of the mean.
    else:
        offsets = rests * per_token
        # sum (y - r)(y - r)^T = sum y y^T - n r r^T; r is no more than the
        # rounding error of a center, so nothing cancels.
        scatter = scatter - _add(
            [rests[i][:, None] * offsets[i] for i in range(len(totals))]
        )
    if centered:
        return _without_means(counts, scatter)
    return Moments(counts[0], centers[0], offsets[0], scatter)


def token_center(hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the unmasked tokens to rounding, `(dim,)`, as a constant."""
    tokens = flatten_tokens(hidden_states, mask)
    total = _total(*tokens)
    return ops.stop_gradient(total / at_least_one(_count(*tokens)))


def flatten_tokens(
    hidden_states: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Tokens `(tokens, dim)`, and ones and zeros if there is a mask."""
    tokens = ops.reshape(hidden_states, (-1, hidden_states.shape[-1]))
    if mask is None:
        return tokens, None
    is_real = ops.cast(ops.reshape(mask, (-1,)), "bool")
    return tokens, ops.cast(is_real, moments_dtype(tokens.dtype))


def combine(parts: list[Moments], centered: bool = False) -> Moments:
    """Moments of the union of disjoint sets of tokens.

    Args:
        parts: `Moments` of the sets, in any order; empty sets are allowed.
        centered: Whether the mean of each set is subtracted from its tokens.

    Returns:
        `Moments` of all their tokens.
    """
    if len(parts) == 1 and not centered:
        return parts[0]
    counts, centers, offsets, scatters = zip(*parts, strict=True)
    scatter = sum(scatters[1:], start=scatters[0])
    if centered:
        return _without_means(ops.stack(counts), scatter)
    return merge(
        ops.stack(counts), ops.stack(centers), ops.stack(offsets), scatter
    )


def _without_means(counts, scatter):
    """Moments of sets of tokens whose means are zero, with their scatter."""
    zero = ops.zeros_like(scatter[0])
    return Moments(ops.sum(counts), zero, zero, scatter)


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
    # An empty part has no mean and no weight: any finite value will do.
    means = ops.where(
        counts[:, None] > 0, (centers - center) + offsets, 0.0
    )  # about `center`
    offset = ops.sum(counts[:, None] * means, axis=0) / at_least_one(count)
    spread = ops.sqrt(counts)[:, None] * (means - offset)
    between = matmul(ops.transpose(spread), spread)
    return Moments(count, center, offset, scatter + between)


def sum_over_replicas(*clouds: Moments) -> list[Moments]:
    """Moments of the tokens of all replicas, the same on each.

    One all-reduce of one tensor. Scatters add up; counts, centers and offsets
    do not, so each replica writes its own into its row of a table that is zero
    elsewhere, and the sum of the tables is the gathered table, for each cloud:

        [ scatter  0      ]   dim rows
        [ centers  counts ]   one row a replica
        [ offsets  0      ]   one row a replica

    The gradient of the sum is the sum of the gradients of all replicas. It is
    exact if every replica's loss has the weight 1 / replicas: Keras and
    PyTorch's `DistributedDataParallel` see to that.

    Args:
        *clouds: `Moments` of this replica's tokens in clouds of one width.

    Returns:
        `Moments` of each cloud.
    """
    replicas = current_replicas()
    if replicas is None or replicas.number == 1:
        return list(clouds)
    dim = clouds[0].scatter.shape[-1]
    own_row = ops.one_hot(
        replicas.index, replicas.number, dtype=clouds[0].scatter.dtype
    )[:, None]
    tables = []
    for local in clouds:
        tables += [
            ops.pad(local.scatter, ((0, 0), (0, 1))),
            own_row * ops.append(local.center, local.count),
            own_row * ops.append(local.offset, 0.0),
        ]
    table = replicas.all_reduce(ops.concatenate(tables))
    rows = dim + 2 * replicas.number
    summed = []
    for i in range(len(clouds)):
        scatter, centers, offsets = ops.split(
            table[i * rows : (i + 1) * rows], [dim, dim + replicas.number]
        )
        summed.append(
            merge(
                centers[:, dim],
                centers[:, :dim],
                offsets[:, :dim],
                scatter[:, :dim],
            )
        )
    return summed


def to_float32(moments: Moments) -> Moments:
    """Casts moments to float32; the offset takes what the center loses."""
    center = ops.cast(moments.center, "float32")
    lost = moments.center - ops.cast(center, moments.center.dtype)
    parts = moments._replace(center=center, offset=moments.offset + lost)
    return Moments(*(ops.cast(part, "float32") for part in parts))


def covariance(moments: Moments) -> Tensor:
    """Unbiased covariance `(dim, dim)`; zero for fewer than two tokens."""
    return moments.scatter / at_least_one(moments.count - 1.0)


def shrink(covariance: Tensor, target: Tensor, shrinkage: Tensor) -> Tensor:
    """`(1 - shrinkage) * covariance + shrinkage * target`, the paper's Σ_ζ."""
    return (1.0 - shrinkage) * covariance + shrinkage * target


def scaled_identity(covariance: Tensor) -> Tensor:
    """`tr(covariance) / dim * I`, the isotropic matrix of the same trace."""
    dim = covariance.shape[-1]
    identity = ops.eye(dim, dtype=covariance.dtype)
    return ops.sum(covariance * identity) / dim * identity


def _count(tokens, weights):
    if weights is not None:
        return ops.sum(weights)
    number = math.prod(ops.shape(tokens)[:-1])
    dtype = moments_dtype(tokens.dtype)
    if isinstance(number, int):  # On a GPU, PyTorch waits for a cast number.
        return number * ops.ones((), dtype)
    return ops.cast(number, dtype)


def at_least_one(values: Tensor) -> Tensor:
    """The larger of each value and 1."""
    return ops.maximum(values, ops.ones_like(values))
