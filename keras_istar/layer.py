"""The Keras layer: hidden states -> moments -> covariance -> score -> loss."""

from typing import Any

import keras
from keras import ops

from keras_istar import checks
from keras_istar import moments
from keras_istar.distribution import ReplicaLosses
from keras_istar.distribution import sum_over_replicas
from keras_istar.isotropy import isoscore_from_covariance
from keras_istar.metrics import TrainingMean
from keras_istar.metrics import layers_update_metrics
from keras_istar.moments import Tensor
from keras_istar.observation import current_observer
from keras_istar.sampling import sampled_moments

_DEFAULT_NAME = "i_star_regularization"  # What Keras makes of the class name.


@keras.saving.register_keras_serializable(package="keras_istar")
class IStarRegularization(keras.layers.Layer):
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
    states. `keras.RematScope` skips this layer: it stores nothing that could
    be recomputed.

    Args:
        strength: The paper's λ, any finite number. Positive pushes towards
            isotropy, negative away from it, 0 only logs. May be assigned
            between epochs without retracing.
        shrinkage: The paper's ζ in [0, 1]: 0 is the batch alone, 1 is Σ_S
            alone. May be assigned between epochs without retracing.
        momentum: None, or a number in (0, 1) with which the layer maintains
            Σ_S as an exponential moving average of batch covariances,
            `momentum * Σ_S + (1 - momentum) * Σ`, starting from the first.
        sync: Whether the tokens of all replicas are one cloud, so that training
            on several devices is the same computation as on one. If False,
            every replica scores its own tokens, as the authors' code does; the
            mean of those scores is another, smaller number.
        max_tokens: None for all tokens, or the number to draw at random in
            each step (and replica), in equal parts from each state. Cheaper
            for wide models; Σ_S keeps the score stable.
        seed: Integer seed of that draw.
        **kwargs: `name`, `dtype` and the like, see `keras.layers.Layer`.

    Call arguments:
        hidden_states: Tensor of shape `(batch, length, dim)`, or a list of
            them, one for each encoder layer. Any `(..., dim)` is accepted.
        mask: Optional `(batch, length)` tensor, true or non-zero for tokens
            that count, or a list with one such tensor or None for each state.
            Taken from the Keras masks of the states if not given.
        training: Whether to add the penalty.

    Attributes:
        shrinkage_covariance: Σ_S as a non-trainable float32 weight of shape
            `(dim, dim)`, saved and restored with the model.
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
        strength = checks.check_real("strength", strength)
        shrinkage = checks.check_fraction("shrinkage", shrinkage)
        momentum = checks.check_momentum(momentum)
        if max_tokens is not None:
            max_tokens = checks.check_positive_int("max_tokens", max_tokens)
        # Nothing here is worth recomputing, and a loss added inside of a
        # recomputed function has no gradient.
        with keras.RematScope(mode=None):
            super().__init__(autocast=False, **kwargs)
        self.momentum = momentum
        self.sync = sync
        self.max_tokens = max_tokens
        self.seed = seed
        self.supports_masking = True
        # One name for each state, for logs; `attach` sets the blocks' own.
        self.state_names = None
        self._losses = ReplicaLosses()
        self._strength, self._strength_variable = strength, None
        self._shrinkage, self._shrinkage_variable = shrinkage, None
        self._step = None
        self._score = TrainingMean(self.log_name("isoscore"))
        self._penalty = TrainingMean(self.log_name("istar_penalty"))

    @property
    def strength(self) -> float:
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = checks.check_real("strength", value)
        if self._strength_variable is not None:
            self._strength_variable.assign(self._strength)

    @property
    def shrinkage(self) -> float:
        return self._shrinkage

    @shrinkage.setter
    def shrinkage(self, value: float) -> None:
        self._shrinkage = checks.check_fraction("shrinkage", value)
        if self._shrinkage_variable is not None:
            self._shrinkage_variable.assign(self._shrinkage)

    def build(self, input_shape):
        shapes = _as_list(input_shape, is_leaf=_is_shape)
        for shape in shapes:
            checks.check_width("hidden_states", shape)
        widths = sorted({shape[-1] for shape in shapes})
        if len(widths) > 1:
            raise ValueError(
                "`hidden_states` must all have the same width. "
                f"Received: widths={widths}"
            )
        if self.state_names is None:
            self.state_names = tuple(f"layer_{i}" for i in range(len(shapes)))
        dim = widths[0]
        self.shrinkage_covariance = self._add_state(
            "shrinkage_covariance", shape=(dim, dim)
        )
        self.has_shrinkage_covariance = self._add_state(
            "has_shrinkage_covariance"
        )
        if self.max_tokens is not None:
            self._draws = keras.random.SeedGenerator(self.seed)
        # Variables, so that assigning them needs no new trace.
        self._strength_variable = self._add_state("strength", self._strength)
        self._shrinkage_variable = self._add_state("shrinkage", self._shrinkage)

    def call(self, hidden_states, mask=None, training=None):
        states = _as_list(hidden_states)
        self._score.is_training = self._penalty.is_training = False
        masks = _masks(states, mask)
        observer = current_observer()
        if observer is not None:
            observer.record(self, states, masks)
        if training:
            self._regularize(states, masks)
        return states[-1]

    def _regularize(self, states, masks):
        tokens = moments.combine(
            [
                self._moments(state, state_mask, len(states))
                for state, state_mask in zip(states, masks, strict=True)
            ]
        )
        if self.sync:
            tokens = sum_over_replicas(tokens)
        batch = moments.covariance(tokens)
        target = ops.where(
            self.has_shrinkage_covariance > 0,
            ops.cast(self.shrinkage_covariance, batch.dtype),
            moments.scaled_identity(batch),
        )
        shrinkage = ops.cast(self._shrinkage_variable, batch.dtype)
        strength = ops.cast(self._strength_variable, batch.dtype)
        score = isoscore_from_covariance(
            moments.shrink(batch, target, shrinkage)
        )
        penalty = strength * (1.0 - score)
        if self.momentum is not None:
            self._update_shrinkage_covariance(tokens.count, batch)
        self.add_loss(penalty)
        self._step = (score, penalty)
        if layers_update_metrics():
            self.log_step()

    def _moments(self, state, mask, num_states):
        if self.max_tokens is None:
            return moments.token_moments(state, mask)
        size = max(2, self.max_tokens // num_states)
        return sampled_moments(state, mask, size, self._draws)

    def log_step(self) -> None:
        """Logs the training step that has just been traced, if it was one."""
        if self._step is not None:
            score, penalty = self._step
            self._score.update_state(score)
            self._penalty.update_state(penalty)
            self._score.is_training = self._penalty.is_training = True
            self._step = None  # Nothing may outlive the trace.

    def _update_shrinkage_covariance(self, count, batch):
        """One step of the moving average, skipped where it would be damaged."""
        before = ops.convert_to_tensor(self.shrinkage_covariance)
        has_before = ops.convert_to_tensor(self.has_shrinkage_covariance)
        batch = ops.cast(ops.stop_gradient(batch), before.dtype)
        after = self.momentum * before + (1.0 - self.momentum) * batch
        after = ops.where(has_before > 0, after, batch)
        is_usable = ops.logical_and(count >= 2, ops.all(ops.isfinite(after)))
        self.shrinkage_covariance.assign(ops.where(is_usable, after, before))
        self.has_shrinkage_covariance.assign(
            ops.where(is_usable, 1.0, has_before)
        )

    def log_name(self, quantity: str) -> str:
        """Key in logs for a quantity of this layer."""
        is_default = self.name.startswith(_DEFAULT_NAME)
        return quantity if is_default else f"{self.name}_{quantity}"

    def set_shrinkage_covariance(self, value: Tensor) -> None:
        """Sets Σ_S.

        Args:
            value: Covariance of shape `(dim, dim)`, finite.

        Raises:
            ValueError: If the layer has not been built, or `value` has another
                shape or holds NaN or infinity. Σ_S then stays as it was.
        """
        if not self.built:
            raise ValueError(
                "`set_shrinkage_covariance` needs a built layer: call the "
                f"layer or its model once. Received: layer={self.name!r}"
            )
        value = checks.check_covariance(
            "value", value, self.shrinkage_covariance.shape[0]
        )
        if not bool(ops.all(ops.isfinite(value))):
            raise ValueError(
                "`value` must be finite. Received: NaN or infinity in value"
            )
        self.shrinkage_covariance.assign(value)
        self.has_shrinkage_covariance.assign(1.0)

    def compute_mask(self, inputs, previous_mask):
        # The output is the last input itself, which still carries its mask.
        return None

    def compute_output_shape(self, input_shape):
        return _as_list(input_shape, is_leaf=_is_shape)[-1]

    def compute_output_spec(self, hidden_states, mask=None, training=None):
        states = _as_list(hidden_states)
        _masks(states, mask)
        return keras.KerasTensor(states[-1].shape, dtype=states[-1].dtype)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "strength": self.strength,
                "shrinkage": self.shrinkage,
                "momentum": self.momentum,
                "sync": self.sync,
                "max_tokens": self.max_tokens,
                "seed": self.seed,
            }
        )
        return config

    def save_own_variables(self, store):
        # Settings live in the config; weight files hold what was estimated.
        for variable in self._estimates():
            store[variable.name] = variable

    def load_own_variables(self, store):
        # A file of a model without this layer leaves the estimates alone.
        for variable in self._estimates():
            if variable.name in store.keys():
                variable.assign(store[variable.name])

    def _estimates(self):
        return [self.shrinkage_covariance, self.has_shrinkage_covariance]

    def _add_state(self, name, value=0.0, shape=()):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            trainable=False,
            autocast=False,
            # Every replica computes the same value.
            aggregation="only_first_replica",
        )


def _as_list(value, is_leaf=lambda x: not isinstance(x, (list, tuple))):
    return [value] if is_leaf(value) else list(value)


def _is_shape(value):
    return value is None or not isinstance(value[0], (list, tuple))


def _masks(states, mask):
    """One mask, or None, for each state; raises where a mask does not fit."""
    masks = _as_list(mask)
    if len(masks) == 1:
        masks = masks * len(states)
    if len(masks) != len(states):
        raise ValueError(
            "`mask` must be one mask or a list with one for each of the "
            f"{len(states)} `hidden_states`. Received: len(mask)={len(masks)}"
        )
    for state, state_mask in zip(states, masks, strict=True):
        if state_mask is not None:
            checks.check_mask_shape(
                state_mask.shape, state.shape, "hidden_states"
            )
    return masks
