"""The cosine regularizer (CosReg), a baseline of the paper."""

from typing import Any

import keras
from keras import ops

from keras_istar._src.compat.distribution import add_replicas
from keras_istar._src.compat.distribution import check_sync
from keras_istar._src.layers.base import HiddenStateRegularization
from keras_istar._src.score import moments
from keras_istar._src.score.moments import moments_dtype
from keras_istar._src.types import Tensor

# A token narrower than this is the zero vector to float32.
_SMALLEST_ENTRY = 1e-36


@keras.saving.register_keras_serializable(package="keras_istar")
class CosineRegularization(HiddenStateRegularization):
    """Adds `strength * mean pairwise cosine` of the hidden states to the loss.

    This is CosReg. With x̂ the unmasked tokens of all replicas scaled to length
    one, and n their number, the loss grows by

        strength * 1/(n(n − 1)) Σ_{i≠j} x̂_i·x̂_j
            = strength * (‖Σ x̂_i‖² − Σ ‖x̂_i‖²) / (n(n − 1)),

    in O(n · dim). A positive strength spreads the directions of the tokens; it
    moves their mean towards zero and hardly changes the shape of the cloud,
    which is what IsoScore* measures.

    Otherwise the layer is an identity, like `IStarRegularization`. The mean
    cosine and the number that entered the loss are logged as `cosine` and
    `cosine_penalty`.

    Args:
        strength: Any finite number, 1 in the paper.
        sync: Whether the tokens of all replicas are one cloud. Must be True
            under `keras.distribution`.
        **kwargs: `name`, `dtype` and the like, see `keras.layers.Layer`.

    Call arguments:
        hidden_states: Tensor of shape `(batch, length, dim)`, or a list of
            them; the paper takes only that of the last layer.
        mask: Optional `(batch, length)` tensor, or a list.
        training: Whether to add the penalty.

    Raises:
        ValueError: As `IStarRegularization` does.

    Example:

    >>> layer = keras_istar.CosineRegularization(strength=1.0)
    >>> states = np.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    >>> _ = layer(states, training=True)
    >>> round(float(layer.losses[0]), 4)  # One of three pairs is parallel.
    0.3333

    Reference:
        Gao et al., "Representation Degeneration Problem in Training Natural
        Language Generation Models", ICLR 2019.
    """

    default_layers = -1
    measure_name = "cosine"
    penalty_name = "cosine_penalty"

    def __init__(self, strength: float = 1.0, sync: bool = True, **kwargs: Any):
        super().__init__(strength, **kwargs)
        self.sync = check_sync(sync)

    def measure(self, hidden_states: list[Tensor], masks: list) -> Tensor:
        sums = sum(map(_direction_sums, hidden_states, masks))
        return mean_cosine(add_replicas(sums) if self.sync else sums)

    def loss(self, measure: Tensor) -> Tensor:
        return measure

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sync": self.sync}


def mean_cosine(sums: Tensor) -> Tensor:
    """Mean cosine of all pairs of tokens, from their `_direction_sums`."""
    total, squares, count = sums[:-2], sums[-2], sums[-1]
    pairs = moments.at_least_one(count * (count - 1.0))
    return (ops.sum(ops.square(total)) - squares) / pairs


def _direction_sums(states, mask):
    """Σ x̂, Σ ‖x̂‖² and n in one tensor `(dim + 2,)`, additive over tokens.

    A zero vector has no direction; it counts as a token of cosine 0.
    """
    tokens, weights = moments.flatten_tokens(states, mask)
    tokens = ops.cast(tokens, moments_dtype(tokens.dtype))
    if weights is None:
        weights = ops.ones_like(tokens[:, 0])
    tokens = ops.where(weights[:, None] > 0, tokens, 0.0)
    # In units of the widest entry no square over- or underflows, nor does the
    # gradient of the root. The unit is a constant: directions do not depend on
    # it. `initial` is for a batch without any token.
    widest = ops.max(ops.abs(tokens), -1, keepdims=True, initial=0.0)
    is_zero = widest <= _SMALLEST_ENTRY
    unit = ops.stop_gradient(ops.where(is_zero, 1.0, widest))
    tokens = ops.where(is_zero, 0.0, tokens / unit)
    squared_norms = ops.sum(ops.square(tokens), axis=-1, keepdims=True)
    directions = tokens * ops.rsqrt(ops.where(is_zero, 1.0, squared_norms))
    squares = ops.sum(ops.where(is_zero, 0.0, 1.0))
    return ops.concatenate(
        [
            ops.sum(directions, axis=0),
            ops.cast(ops.stack([squares, ops.sum(weights)]), directions.dtype),
        ]
    )
