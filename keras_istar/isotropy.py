"""Covariance -> isotropy score."""

from keras import ops

from keras_istar.moments import Tensor


def isoscore_from_covariance(covariance: Tensor) -> Tensor:
    """`keras_istar.isoscore_from_covariance`, of values that nobody checks.

    Training and estimation score covariances of their own, which may well be
    NaN: it is not for the score to end a training.

    Args:
        covariance: Float tensor of shape `(dim, dim)`.

    Returns:
        Scalar tensor in [0, 1], NaN if the covariance is not finite.
    """
    dim = covariance.shape[-1]
    largest = ops.stop_gradient(ops.max(ops.abs(covariance)))
    is_zero = largest == 0
    covariance = covariance / ops.where(is_zero, 1.0, largest)
    trace = ops.sum(covariance * ops.eye(dim, dtype=covariance.dtype))
    squared_norm = ops.sum(ops.square(covariance))
    participation_ratio = ops.square(trace) / ops.where(
        is_zero, 1.0, squared_norm
    )
    score = (participation_ratio - 1.0) / (dim - 1.0)
    # Rounding may put the value outside of [0, 1], which says nothing about
    # the gradient: only the value is clipped.
    return score + ops.stop_gradient(ops.clip(score, 0.0, 1.0) - score)
