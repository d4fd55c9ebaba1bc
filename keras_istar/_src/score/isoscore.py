"""Points or covariance -> IsoScore and IsoScore*."""

from keras import ops

from keras_istar._src.score import moments
from keras_istar._src.score.moments import moments_dtype
from keras_istar._src.types import Tensor
from keras_istar._src.validation import check_covariance
from keras_istar._src.validation import check_points
from keras_istar._src.validation import check_traceable_fraction

# A cloud narrower than this counts as a single point.
_SMALLEST_SPREAD = 1e-36
# Sums of points wider than this may overflow.
_LARGE = 2.0**64


def isoscore(points: Tensor, mask: Tensor | None = None) -> Tensor:
    """IsoScore of a cloud of points: how evenly it fills its dimensions.

    0 means that all variance lies along one direction, 1 that it is the same
    in every direction. With Σ the unbiased covariance of the points,

        IsoScore = (tr(Σ)² / ‖Σ‖_F² − 1) / (dim − 1),

    which is the eigenvalue definition of the paper, expanded. The score does
    not change when the cloud is shifted, scaled or rotated. With fewer points
    than dimensions it mostly measures how few they are: use `isoscore_star`.

    Args:
        points: Tensor of shape `(..., dim)`, `dim` at least 2. Integers are
            read as float32, narrower floats are computed in float32.
        mask: Optional tensor of shape `(...)`; a point counts where it is true
            or non-zero. Masked points may hold anything, NaN included.

    Returns:
        Scalar tensor in [0, 1]. It is 0, with gradient 0, for fewer than two
        points and for points that are all equal, or within 1e-36 of their mean.
        It is NaN if a point that counts holds NaN or infinity.

    Raises:
        ValueError: If `points` has fewer than two dimensions or `dim` < 2, or
            the shape of `mask` is not that of `points` without the last axis.

    Example:

    >>> points = np.random.default_rng(0).normal(size=(10_000, 8))
    >>> round(float(keras_istar.isoscore(points)), 1)
    1.0
    >>> points[:, 0] *= 100.0
    >>> round(float(keras_istar.isoscore(points)), 1)
    0.0

    Reference:
        Rudman et al., "IsoScore: Measuring the Uniformity of Embedding Space
        Utilization", Findings of ACL 2022.
    """
    points, mask = check_points(points, mask)
    points, _ = _standardize(points, mask)
    return unchecked_isoscore(
        moments.covariance(moments.token_moments(points, mask, train=False))
    )


def isoscore_star(
    points: Tensor,
    shrinkage_covariance: Tensor,
    shrinkage: float | Tensor = 0.2,
    mask: Tensor | None = None,
) -> Tensor:
    """IsoScore*, stable for mini-batches smaller than the dimension.

    The score of `isoscore`, computed from the covariance of the points pulled
    towards a stable estimate Σ_S from many points:

        Σ_ζ = (1 − ζ) Σ + ζ Σ_S,        ζ = `shrinkage`.

    Args:
        points: Tensor of shape `(..., dim)`, `dim` at least 2.
        shrinkage_covariance: The stable estimate Σ_S, `(dim, dim)`, in the
            units of `points` squared.
        shrinkage: ζ in [0, 1], a number or a scalar tensor; 0 is the points
            alone, 1 the estimate alone.
        mask: Optional tensor of shape `(...)`; a point counts where it is true
            or non-zero.

    Returns:
        Scalar tensor in [0, 1], 0 where Σ_ζ is zero. Fewer than two points
        count as a cloud of zero covariance. NaN if a point that counts holds
        NaN or infinity.

    Raises:
        ValueError: If `points` has fewer than two dimensions or `dim` < 2, the
            shape of `mask` or `shrinkage_covariance` does not fit `points`,
            `shrinkage_covariance` is not finite, not symmetric, or has a
            variance below 0 on its diagonal, or `shrinkage` is outside [0, 1].
            While a function is traced, values are not known and not checked.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> stable = np.cov(rng.normal(size=(10_000, 64)), rowvar=False)
    >>> batch = rng.normal(size=(8, 64))  # 8 points cannot fill 64 dimensions
    >>> round(float(keras_istar.isoscore(batch)), 1)
    0.1
    >>> round(float(keras_istar.isoscore_star(batch, stable, 0.8)), 1)
    0.7

    Reference:
        Rudman and Eickhoff, "Stable Anisotropic Regularization", ICLR 2024.
    """
    shrinkage = check_traceable_fraction("shrinkage", shrinkage)
    points, mask = check_points(points, mask)
    target = check_covariance(
        "shrinkage_covariance", shrinkage_covariance, points.shape[-1]
    )
    points, spread = _standardize(points, mask)
    seen = moments.token_moments(points, mask, train=False)
    batch = moments.covariance(seen)
    # Bring both matrices to one unit that neither overflows nor underflows:
    # `batch` is in units of spread², `target` in units of 1.
    target = ops.cast(target, batch.dtype)
    width = ops.sqrt(ops.stop_gradient(ops.max(ops.abs(target))))
    unit = ops.maximum(spread, width)
    # The spread of points near the largest float may be infinite.
    batch = batch / ops.square(ops.maximum(width / spread, 1.0))
    target = target / unit / unit
    if not isinstance(shrinkage, float):  # `cast` would round it to float32.
        shrinkage = ops.cast(shrinkage, batch.dtype)
    return unchecked_isoscore(moments.shrink(batch, target, shrinkage))


def isoscore_from_covariance(covariance: Tensor) -> Tensor:
    """IsoScore of a covariance matrix, without its eigenvalues.

        (tr(Σ)² / ‖Σ‖_F² − 1) / (dim − 1)

    tr(Σ)² / ‖Σ‖_F² is the participation ratio, between 1 and `dim`.

    Args:
        covariance: Symmetric positive semi-definite tensor `(dim, dim)`, `dim`
            at least 2, of any scale.

    Returns:
        Scalar tensor in [0, 1]; 0, with gradient 0, for the zero matrix.

    Raises:
        ValueError: If `covariance` is not square, `dim` < 2, or its values are
            not finite, not symmetric, or below 0 on the diagonal. While a
            function is traced, values are not known and not checked.

    Example:

    >>> float(keras_istar.isoscore_from_covariance(np.eye(3)))
    1.0
    >>> float(keras_istar.isoscore_from_covariance(np.diag([2.0, 0.0])))
    0.0
    """
    return unchecked_isoscore(check_covariance("covariance", covariance))


def _standardize(points, mask):
    """Points about their mean in units of the widest deviation, and that unit.

    Neither sums nor squares overflow or vanish, whatever the scale.
    """
    points = ops.cast(points, moments_dtype(points.dtype))
    # Division by a power of two does not round.
    unit = ops.where(_largest(points, mask) > _LARGE, _LARGE, 1.0)
    unit = ops.cast(unit, points.dtype)
    points = points / unit
    points = points - moments.token_center(points, mask)
    spread = _largest(points, mask)
    spread = ops.where(spread > _SMALLEST_SPREAD, spread, 1.0)
    return points / spread, spread * unit


def _largest(points, mask):
    """The largest absolute value in points that count, as a constant."""
    sizes = ops.abs(ops.stop_gradient(points))
    if mask is not None:
        sizes = ops.where(ops.cast(mask, "bool")[..., None], sizes, 0.0)
    return ops.max(sizes, initial=0.0)


def unchecked_isoscore(covariance: Tensor) -> Tensor:
    """IsoScore of a covariance, without checking its values.

    For covariances that training computes itself. They may hold NaN, which must
    not end a training: the score is then NaN.

    Args:
        covariance: Float tensor of shape `(dim, dim)`.

    Returns:
        Scalar tensor in [0, 1], NaN if the covariance is not finite.
    """
    dim = covariance.shape[-1]
    largest = ops.stop_gradient(ops.amax(ops.abs(covariance)))
    is_zero = largest == 0
    one = ops.ones_like(largest)
    covariance = covariance / ops.where(is_zero, one, largest)
    trace = ops.sum(covariance * ops.eye(dim, dtype=covariance.dtype))
    squared_norm = ops.sum(ops.square(covariance))
    participation_ratio = ops.square(trace) / ops.where(
        is_zero, one, squared_norm
    )
    score = (participation_ratio - 1.0) / (dim - 1.0)
    # Rounding may put the value outside of [0, 1], which says nothing about
    # the gradient: only the value is clipped.
    return score + ops.stop_gradient(ops.relu(-score) - ops.relu(score - 1.0))
