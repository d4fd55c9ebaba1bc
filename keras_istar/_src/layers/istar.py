"""The I-STAR layer: hidden states -> moments -> covariance -> score -> loss."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_istar._src import validation
from keras_istar._src.compat.distribution import ReplicaSeedGenerator
from keras_istar._src.compat.keras_state import StateVariable
from keras_istar._src.layers.base import HiddenStateRegularization
from keras_istar._src.layers.base import Setting
from keras_istar._src.score import moments
from keras_istar._src.score.isoscore import unchecked_isoscore
from keras_istar._src.score.moments import sum_over_replicas
from keras_istar._src.score.sampling import sampled_moments
from keras_istar._src.types import Tensor


@keras.saving.register_keras_serializable(package="keras_istar")
class IStarRegularization(HiddenStateRegularization):
    """Adds `strength * (1 - IsoScore*)` of the hidden states to the loss.

    The layer is an identity: it returns its (last) input, keeps Keras masks
    and dtypes, has no trainable weight, and outside of training costs nothing
    and adds nothing, so `val_loss` is the task's own loss. While training, all
    unmasked tokens of all states it is given are one cloud of points, across
    all replicas too, and with Σ their covariance the loss grows by

        strength * (1 - IsoScore*(Σ_ζ)),     Σ_ζ = (1 − ζ) Σ + ζ Σ_S,

    where ζ is `shrinkage` and Σ_S the `shrinkage_covariance`, a stable
    estimate from many tokens. `IStarCallback` keeps Σ_S, or the layer itself
    does if `momentum` is given. Until there is one, the layer shrinks towards
    the scaled identity tr(Σ)/dim · I.

    The batch's IsoScore* and the very number that entered the loss are logged
    as `isoscore` and `istar_penalty`; a `name` of your own goes in front of
    them (`<name>_isoscore`). On the JAX backend Keras allows no layer to log
    from its call: there, `attach` makes the model log them.

    Arithmetic is in float32 whatever the compute dtype, in float64 for float64
    states. That type must hold the squares of deviations from the mean: to
    float32, states closer together than 1e-19 are all equal, and of states
    farther apart than 1e18 the penalty is NaN.

    In float16 the gradient of the penalty, about 4 / (tokens · dim) for each
    number, underflows unless the loss is scaled. `compile` does that for a
    model whose own policy is `mixed_float16`; a training loop of one's own
    needs `keras.optimizers.LossScaleOptimizer`.

    `keras.RematScope` skips this layer: it stores nothing that could be
    recomputed. Build the model that calls it outside of the scope, with the
    blocks inside, for Keras differentiates no loss that is added within a
    recomputed model; `attach` sees to that by itself.

    Args:
        strength: The paper's λ, any finite number. Positive pushes towards
            isotropy, negative away from it, 0 only logs. May be assigned
            at any time without retracing.
        shrinkage: The paper's ζ in [0, 1]: 0 is the batch alone, 1 is Σ_S
            alone. May be assigned at any time without retracing.
        momentum: None, or a number in (0, 1) with which the layer maintains
            Σ_S as an exponential moving average of batch covariances,
            `momentum * Σ_S + (1 - momentum) * Σ`, starting from the first.
        sync: Whether the tokens of all replicas are one cloud, so that training
            on several devices is the same computation as on one. If False,
            every replica scores its own tokens, as the authors' code does; the
            mean of those scores is another, smaller number.
        max_tokens: None for all tokens, or the number to draw at random in
            each step (and replica), in equal parts from each state, at least
            two from each. Cheaper where tokens are many. The covariance is
            unbiased, its score reads lower; take several times `dim`. Measured
            on MiniLM (384 wide, 5,000 token vectors a batch, ζ = 0.2): 2,048
            change the score by 2 % and its gradient by 15 %, 512 by 10 % and
            37 %, as root mean squares;
            from one batch to another they differ by 2.5 % and 27 %.
        seed: Seed of that draw, an integer from 0 to 2³¹ − 1.
        **kwargs: `name`, `dtype` and the like, see `keras.layers.Layer`.

    Call arguments:
        hidden_states: Tensor of shape `(batch, length, dim)`, or a list of
            them, one for each encoder layer. Any `(..., dim)` is accepted.
        mask: Optional `(batch, length)` tensor, true or non-zero for tokens
            that count, or a list with one such tensor or None for each state.
            Taken from the Keras masks of the states if not given.
        training: Whether to add the penalty.

    Attributes:
        shrinkage_covariance: Σ_S, a float32 variable of shape `(dim, dim)`.
            Files of the model hold it. It is none of the model's `weights`.
        has_shrinkage_covariance: Whether Σ_S has been set.

    Raises:
        ValueError: If an argument is out of range, or if the states differ in
            width, are narrower than 2, or do not fit the mask.

    Example:

    >>> inputs = keras.Input((None, 16))
    >>> hidden = keras.layers.Dense(8)(inputs)
    >>> hidden = keras_istar.IStarRegularization(strength=-1.0)(hidden)
    >>> outputs = keras.layers.GlobalAveragePooling1D()(hidden)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    >>> model.compile("adam", "mse")
    >>> x, y = np.random.rand(32, 5, 16), np.random.rand(32, 1)
    >>> history = model.fit(x, y, verbose=0).history
    >>> sorted(history)
    ['isoscore', 'istar_penalty', 'loss']

    Reference:
        Rudman and Eickhoff, "Stable Anisotropic Regularization", ICLR 2024.
    """

    measure_name = "isoscore"
    penalty_name = "istar_penalty"
    shrinkage = Setting(validation.check_fraction)

    def __init__(
        self,
        strength: float = -1.0,
        shrinkage: float = 0.2,
        momentum: float | None = None,
        sync: bool = True,
        max_tokens: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(strength, **kwargs)
        self.shrinkage = shrinkage
        self.momentum = validation.check_momentum(momentum)
        self.sync = validation.check_bool("sync", sync)
        self.max_tokens = validation.check_optional_positive_int(
            "max_tokens", max_tokens
        )
        self.seed = None if seed is None else validation.check_seed(seed)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self._shrinkage_covariance = StateVariable(
            "shrinkage_covariance", (self.dim, self.dim)
        )
        self._has_shrinkage_covariance = StateVariable(
            "has_shrinkage_covariance"
        )
        if self.max_tokens is not None:
            self._draws = ReplicaSeedGenerator(self.seed)

    @property
    def shrinkage_covariance(self) -> keras.Variable:
        """Σ_S, a float32 variable `(dim, dim)`."""
        return self._shrinkage_covariance.state

    @property
    def has_shrinkage_covariance(self) -> keras.Variable:
        """1 once Σ_S has been set, 0 before."""
        return self._has_shrinkage_covariance.state

    def measure(self, hidden_states: list[Tensor], masks: list) -> Tensor:
        tokens = self._moments(hidden_states, masks)
        if self.sync:
            tokens = sum_over_replicas(tokens)
        batch = moments.covariance(tokens)
        estimate = ops.convert_to_tensor(self.shrinkage_covariance)
        # An average that is not finite would never become so again.
        has_estimate = ops.logical_and(
            ops.convert_to_tensor(self.has_shrinkage_covariance) > 0,
            ops.all(ops.isfinite(estimate)),
        )
        target = ops.where(
            has_estimate,
            ops.cast(estimate, batch.dtype),
            moments.scaled_identity(batch),
        )
        if self.momentum is not None:
            self._average(
                self.momentum, estimate, has_estimate, tokens.count, batch
            )
        shrinkage = ops.cast(self.setting("shrinkage"), batch.dtype)
        return unchecked_isoscore(moments.shrink(batch, target, shrinkage))

    def loss(self, measure: Tensor) -> Tensor:
        return 1.0 - measure

    def _moments(self, states, masks):
        if self.max_tokens is None:
            return moments.union_moments(states, masks)
        size = max(2, self.max_tokens // len(states))
        return sampled_moments(states, masks, size, self._draws, self.sync)

    def _average(self, momentum, before, has_before, count, batch):
        """One step of the moving average, skipped where it would be damaged."""
        batch = ops.cast(ops.stop_gradient(batch), before.dtype)
        momentum = self.momentum
        after = momentum * before + (1.0 - momentum) * batch
        after = ops.where(has_before, after, batch)
        is_usable = ops.logical_and(count >= 2, ops.all(ops.isfinite(after)))
        self.shrinkage_covariance.assign(ops.where(is_usable, after, before))
        self.has_shrinkage_covariance.assign(
            ops.cast(ops.logical_or(is_usable, has_before), "float32")
        )

    def set_shrinkage_covariance(self, value: Tensor) -> None:
        """Sets Σ_S.

        Args:
            value: Covariance of shape `(dim, dim)`.

        Raises:
            ValueError: If the layer has not been built, or `value` has another
                shape, is not finite, not symmetric, or has a variance below 0
                on its diagonal. Σ_S then stays as it was.
        """
        if not self.built:
            raise ValueError(
                "`set_shrinkage_covariance` needs a built layer: call the "
                f"layer or its model once. Received: layer={self.name!r}"
            )
        value = validation.check_covariance("value", value, self.dim, "float32")
        self.shrinkage_covariance.assign(value)
        self.has_shrinkage_covariance.assign(1.0)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            {
                "shrinkage": self.shrinkage,
                "momentum": self.momentum,
                "sync": self.sync,
                "max_tokens": self.max_tokens,
                "seed": self.seed,
            }
        )
        return config

    def save_own_variables(self, store: Any) -> None:
        for variable in self._estimates():
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        # A file of a model without this layer leaves the estimates alone.
        covariance, flag = self._estimates()
        if covariance.name not in store.keys():
            return
        try:
            self.set_shrinkage_covariance(np.asarray(store[covariance.name]))
        except ValueError as e:
            raise ValueError(
                "`shrinkage_covariance` in a file of weights must be a "
                f"covariance. Received, for layer {self.name!r}: {e}"
            ) from e
        flag.assign(float(np.asarray(store[flag.name]) > 0))

    def _estimates(self):
        """Variables that files hold."""
        return [self.shrinkage_covariance, self.has_shrinkage_covariance]
