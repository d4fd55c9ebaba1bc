"""Isotropic batch normalization (IsoBN), a baseline of the paper."""

from typing import Any

import keras
from keras import ops

from keras_istar._src import validation
from keras_istar._src.compat import train_steps
from keras_istar._src.compat.distribution import add_shared_weight
from keras_istar._src.compat.replica_losses import separate_losses
from keras_istar._src.layers.base import TrainingMean
from keras_istar._src.layers.base import default_prefix
from keras_istar._src.score import moments
from keras_istar._src.score.isoscore import unchecked_isoscore
from keras_istar._src.score.moments import sum_over_replicas
from keras_istar._src.types import Tensor


@keras.saving.register_keras_serializable(package="keras_istar")
class IsotropicBatchNormalization(keras.layers.Layer):
    """Scales dimensions so that sentence embeddings become more isotropic.

    This is IsoBN. From moving averages of the standard deviations σ and the
    covariances Σ of the embeddings, over all replicas, it takes

        ρ_ij = clip(Σ_ij / (σ_i σ_j), −1, 1)        correlations
        γ_i = 1/dim Σ_j ρ_ij²                       how shared dimension i is
        θ_i = (γ_i σ_i + ε)^(−β)

    and multiplies the embeddings by θ, rescaled to keep the total variance:

        √( Σ_i Σ_ii / (Σ_i Σ_ii θ_i² + ε) ) · θ.

    No gradient flows through the statistics. The moving averages start from the
    first batch; before it, the layer is an identity. The IsoScore of the scaled
    embeddings, whose covariance is θ_i Σ_ij θ_j, is logged in training as
    `isobn_isoscore`; on the JAX backend, only for layers that
    `attach_regularizer` has attached.

    Args:
        momentum: Share of the old value in the moving averages, in (0, 1); one
            minus the paper's α.
        beta: Strength of the scaling, 0 for none, 1 for the full one.
        epsilon: Positive number that bounds the scale of narrow dimensions.
        **kwargs: `name`, `dtype` and the like, see `keras.layers.Layer`.

    Call arguments:
        embeddings: Tensor of shape `(batch, dim)`.
        training: Whether to update the moving averages first.

    Returns:
        Tensor of shape `(batch, dim)`.

    Raises:
        ValueError: If an argument is out of range, or the embeddings are not of
            rank 2, not of a float type, or change their width.

    Example:

    >>> layer = keras_istar.IsotropicBatchNormalization()
    >>> embeddings = np.random.default_rng(0).normal(size=(256, 4))
    >>> embeddings[:, 0] *= 10.0
    >>> scaled = keras.ops.convert_to_numpy(layer(embeddings, training=True))
    >>> bool(scaled[:, 0].std() / scaled[:, 1].std() < 10.0)
    True

    Reference:
        Zhou et al., "IsoBN: Fine-Tuning BERT with Isotropic Batch
        Normalization", AAAI 2021, arXiv 2005.02178.
    """

    default_name = "isotropic_batch_normalization"

    def __init__(
        self,
        momentum: float = 0.95,
        beta: float = 0.5,
        epsilon: float = 1e-3,
        **kwargs: Any,
    ):
        with validation.keras_arguments(kwargs):
            super().__init__(**kwargs)
        self.momentum = validation.check_open_fraction("momentum", momentum)
        self.beta = validation.check_fraction("beta", beta)
        self.epsilon = validation.check_positive("epsilon", epsilon)
        self.supports_masking = True
        self._isoscore = TrainingMean(f"{default_prefix(self)}isobn_isoscore")

    def build(self, input_shape: Any) -> None:
        sizes = tuple(input_shape or ())
        if len(sizes) != 2 or any(isinstance(x, (list, tuple)) for x in sizes):
            raise ValueError(
                "`embeddings` must have two dimensions, `(batch, dim)`. "
                f"Received: embeddings.shape={sizes}"
            )
        validation.check_width("embeddings", sizes)
        self.dim = dim = sizes[-1]
        self.moving_deviation = add_shared_weight(
            self, "moving_deviation", (dim,)
        )
        self.moving_covariance = add_shared_weight(
            self, "moving_covariance", (dim, dim)
        )
        self.has_statistics = add_shared_weight(self, "has_statistics")

    def call(self, embeddings: Tensor, training: bool | None = None) -> Tensor:
        validation.check_float_dtypes("embeddings", [embeddings.dtype])
        if embeddings.shape[-1] != self.dim:
            raise ValueError(
                f"`embeddings` must keep their width, {self.dim}. "
                f"Received: embeddings.shape={tuple(embeddings.shape)}"
            )
        self._isoscore.is_training = False
        if training:
            # `_update` waits for the other replicas.
            separate_losses(self)
            self._update(embeddings)
            score = self._scaled_isoscore()
            train_steps.log_call(
                lambda _: self._isoscore.record(score), self._isoscore
            )
        return embeddings * ops.cast(self.scale(), embeddings.dtype)

    def scale(self) -> Tensor:
        """θ, rescaled, of shape `(dim,)`; all ones before any training."""
        deviation = ops.convert_to_tensor(self.moving_deviation)
        covariance = ops.convert_to_tensor(self.moving_covariance)
        return ops.where(
            ops.convert_to_tensor(self.has_statistics) > 0,
            isotropic_scale(deviation, covariance, self.beta, self.epsilon),
            1.0,
        )

    def _scaled_isoscore(self):
        scale = self.scale()
        covariance = ops.convert_to_tensor(self.moving_covariance)
        return unchecked_isoscore(covariance * scale[:, None] * scale[None, :])

    def _update(self, embeddings):
        (tokens,) = sum_over_replicas(
            moments.token_moments(ops.stop_gradient(embeddings))
        )
        # The paper divides by n, not by n - 1.
        covariance = tokens.scatter / moments.at_least_one(tokens.count)
        deviation = ops.sqrt(variances(covariance))
        is_first = ops.convert_to_tensor(self.has_statistics) == 0
        # A single embedding has no variance and says nothing about the model.
        is_usable = ops.logical_and(
            tokens.count > 1, ops.all(ops.isfinite(covariance))
        )
        for variable, now in (
            (self.moving_deviation, deviation),
            (self.moving_covariance, covariance),
        ):
            before = ops.convert_to_tensor(variable)
            now = ops.cast(now, before.dtype)
            after = self.momentum * before + (1.0 - self.momentum) * now
            after = ops.where(is_first, now, after)
            variable.assign(ops.where(is_usable, after, before))
        self.has_statistics.assign(
            ops.where(
                is_usable, 1.0, ops.convert_to_tensor(self.has_statistics)
            )
        )

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "beta": self.beta,
            "epsilon": self.epsilon,
        }


def isotropic_scale(
    deviation: Tensor, covariance: Tensor, beta: float, epsilon: float
) -> Tensor:
    """θ̄ `(dim,)` from σ `(dim,)` and Σ `(dim, dim)`, see the class above."""
    products = deviation[:, None] * deviation[None, :]
    # A dimension without variance correlates with none.
    correlation = ops.where(
        products > 0, covariance / ops.where(products > 0, products, 1.0), 0.0
    )
    correlation = ops.clip(correlation, -1.0, 1.0)
    sharing = ops.mean(ops.square(correlation), axis=1)
    scale = ops.power(sharing * deviation + epsilon, -beta)
    variance = variances(covariance)
    total = ops.sum(variance)
    scaled_total = ops.sum(variance * ops.square(scale))
    kept = scale * ops.sqrt(total / (scaled_total + epsilon))
    # Without any variance there is nothing to even out.
    return ops.where(total > 0, kept, 1.0)


def variances(covariance: Tensor) -> Tensor:
    """Diagonal `(dim,)`; values that rounding made negative become 0."""
    return ops.maximum(ops.diagonal(covariance), 0.0)
