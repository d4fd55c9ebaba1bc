"""The I-STAR layer: hidden states -> moments -> covariance -> score -> loss."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_istar._src import validation
from keras_istar._src.compat.distribution import ReplicaSeedGenerator
from keras_istar._src.compat.distribution import check_sync
from keras_istar._src.compat.distribution import current_replicas
from keras_istar._src.compat.keras_state import StateVariable
from keras_istar._src.layers.base import HiddenStateRegularization
from keras_istar._src.layers.base import Setting
from keras_istar._src.layers.base import as_shapes
from keras_istar._src.layers.target import STEPS_TO_START
from keras_istar._src.layers.target import check_range
from keras_istar._src.layers.target import check_target
from keras_istar._src.layers.target import intervals
from keras_istar._src.layers.target import nearest
from keras_istar._src.layers.target import scheduled_intervals
from keras_istar._src.layers.target import target_config
from keras_istar._src.score import moments
from keras_istar._src.score.isoscore import unchecked_isoscore
from keras_istar._src.score.moments import Moments
from keras_istar._src.score.moments import sum_over_replicas
from keras_istar._src.score.sampling import sampled_moments
from keras_istar._src.types import Schedulable
from keras_istar._src.types import Tensor

# Arguments that traced steps depend on.
_FIXED = (
    "momentum",
    "sync",
    "max_tokens",
    "seed",
    "relative",
    "per_layer",
    "centered",
)
# Values of arguments that the description of a layer leaves out.
_USUAL: dict[str, Any] = {
    "relative": False,
    "per_layer": False,
    "centered": False,
    "momentum": None,
    "max_tokens": None,
    "sync": True,
}
# The momentum of Σ_S with a target, unless one is given. The target holds the
# score of Σ_S, which must not lag behind the model: with 0.99 models collapsed.
_MOMENTUM_OF_TARGET = 0.9
_MOST_MOMENTUM_OF_TARGET = 0.95
_STRENGTH_OF_TARGET = 20.0
# Without a target and a strength, the layer aims at three quarters of the
# isotropy at the start, so gently that no task lost a point by it.
_DEFAULT_TARGET = 0.75
_DEFAULT_STRENGTH = 1.0


@keras.saving.register_keras_serializable(package="keras_istar")
class IStarRegularization(HiddenStateRegularization):
    """Adds `strength * (1 - IsoScore*)` of the hidden states to the loss.

    The layer is an identity: it returns its (last) input, keeps Keras masks
    and dtypes, and has no trainable weight. Outside of training it costs
    nothing and adds nothing, so `val_loss` is the task's own loss. While
    training, all unmasked tokens of all states, from all replicas, form one
    cloud. With Σ its covariance, the loss grows by

        strength * (1 - IsoScore*(Σ_ζ)),     Σ_ζ = (1 − ζ) Σ + ζ Σ_S,

    where ζ is `shrinkage` and Σ_S the `shrinkage_covariance`, a stable
    estimate from many tokens. `IStarCallback` keeps Σ_S, or the layer itself
    does if `momentum` is given. Until there is one, the layer shrinks towards
    the scaled identity tr(Σ)/dim · I.

    With a `target`, the layer moves isotropy to a value, and no further. The
    loss grows by

        strength * (IsoScore − nearest)²,

    where `nearest` is the value of the target that is nearest to the IsoScore:
    within an interval there is no penalty. The IsoScore is that of Σ_S, since
    that of a batch of few tokens reads low; the layer then keeps Σ_S itself,
    with a momentum of 0.9 unless one is given, so that it follows the model
    with a delay. The gradient is that of the batch's IsoScore*. The target is
    for the IsoScore in training, which dropout makes higher: in inference,
    where `IStarCallback` measures, MiniLM ended up to 17 % below its targets,
    on training examples. The mean of `nearest` is logged as `istar_target`.

    Without `target` and `strength`, the target is three quarters of the
    isotropy at the start, approached gently (`strength=1.0`).

    The batch's IsoScore* (with a `target`, the IsoScore of Σ_S) and the number
    that entered the loss are logged as `isoscore` and `istar_penalty`. If the
    layer is given a `name`, the keys begin with it (`<name>_isoscore`). On the
    JAX backend Keras does not let a layer log from its call; there, `attach`
    makes the model log them.

    Without a target, a strength pushes for as long as training lasts, since
    Adam moves by its learning rate even if the strength is small. This is how
    MiniLM ended on all training data (5 seeds, one GPU): accuracy (CoLA:
    Matthews correlation) and, in brackets, IsoScore.

    ======== ============= ============= =============
    strength SST-2         RTE           CoLA
    ======== ============= ============= =============
    −5       0.891 (0.004) 0.534 (0.000) 0.000 (0.001)
    −1       0.892 (0.007) 0.527 (0.001) 0.000 (0.001)
    0        0.892 (0.195) 0.573 (0.257) 0.273 (0.179)
    0.5      0.892 (0.561) 0.531 (0.683) 0.225 (0.477)
    1        0.891 (0.657) 0.533 (0.752) 0.185 (0.575)
    5        0.868 (0.804) 0.496 (0.870) 0.125 (0.731)
    ======== ============= ============= =============

    Arithmetic is in float64 for float64 states and in float32 for all others,
    except that a GPU multiplies deviations of bfloat16 states as bfloat16, into
    float32 (JAX, PyTorch). Squares of deviations from the mean must fit this
    type: in float32, states within 1e-19 of each other count as equal, and the
    penalty of states more than 1e18 apart is NaN.

    In float16 the gradient of the penalty, about 4 / (tokens · dim) for each
    number, underflows unless the loss is scaled. `compile` does that for a
    model whose own policy is `mixed_float16`; a custom training loop needs
    `keras.optimizers.LossScaleOptimizer`.

    `keras.RematScope` skips this layer, which stores nothing that could be
    recomputed. If you call the layer yourself, build the blocks inside of the
    scope and the model outside: Keras does not differentiate a loss that is
    added within a recomputed model. `attach` takes care of that.

    Args:
        strength: The paper's λ, any finite number: positive pushes towards
            isotropy, negative away from it, 0 only logs. With a `target` it is
            at least 0, and 20 by default. It may be assigned at any time
            without tracing anew. Or a schedule, given when the layer is made: a
            `keras.optimizers.schedules.LearningRateSchedule`, or a function of
            the number of training steps so far, a scalar tensor.
        shrinkage: The paper's ζ in [0, 1]: 0 is the batch alone, 1 is Σ_S
            alone. It may be assigned, or be a schedule, like `strength`.
        momentum: None, or a number in (0, 1) with which the layer maintains
            Σ_S as an exponential moving average of batch covariances,
            `momentum * Σ_S + (1 - momentum) * Σ`, starting from the first.
        sync: Whether the tokens of all replicas are one cloud, so that training
            on several devices is the same computation as on one. If False,
            every replica scores its own tokens, as the authors' code does; the
            mean of those scores is another, smaller number. Must be True under
            `keras.distribution`, where all devices run one program.
        max_tokens: None for all tokens, or the number to draw at random in
            each step (and replica), in equal parts from each state, at least
            two from each. This saves time where tokens are many. The covariance
            is unbiased, but its score reads lower; take several times `dim`.
            Measured on MiniLM (384 wide, 5,000 tokens a batch, ζ = 0.2), as
            root mean squares: 2,048 tokens change the score by 2 % and its
            gradient by 15 %, 512 tokens by 10 % and 37 %. From one batch to
            another they differ by 2.5 % and 27 %.
        seed: Seed of that draw, an integer from 0 to 2³¹ − 1.
        target: None, or the IsoScore to hold: a number in [0, 1]; a pair
            `(low, high)`; or a list with one of these for each hidden state,
            which implies `per_layer`. It may be assigned, or be a schedule that
            returns a number or a pair, like `strength`.
        relative: Whether `target` is in multiples of the IsoScore at the start
            of training: with 0.5 the model is to lose half of it, with 1.0 to
            keep it. That IsoScore is the highest of the first 20 steps; the
            penalty acts from the first step.
        per_layer: Whether each hidden state is a cloud of its own, with its own
            Σ_S and `target`. The penalty is the mean over the states. The score
            of one common cloud may reach a target by a change of some states
            alone.
        centered: Whether the mean of each state is subtracted from its tokens
            before they join the common cloud. If not, part of the variance lies
            between the means of the states, and moving these means changes the
            score without changing the shape of any state.
        **kwargs: `name`, `dtype` and the like, see `keras.layers.Layer`.

    Call arguments:
        hidden_states: Tensor of shape `(batch, length, dim)`, or a list of
            them, one for each encoder layer. Any `(..., dim)` is accepted.
        mask: Optional `(batch, length)` tensor, true or non-zero for tokens
            that count, or a list with one such tensor or None for each state.
            Taken from the Keras masks of the states if not given.
        training: Whether to add the penalty.

    Attributes:
        shrinkage_covariance: Σ_S, a float32 variable of shape `(dim, dim)`;
            with `per_layer` one for each state, `(states, dim, dim)`. Files of
            the model hold it, but it is not among the model's `weights`.
        has_shrinkage_covariance: Whether Σ_S has been set.

    Raises:
        ValueError: If an argument is out of range or does not fit the others,
            or if the states differ in width, are narrower than 2, or do not
            fit the mask.

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

    To let a model lose at most half of its isotropy, and gain none:

    >>> layer = keras_istar.IStarRegularization(
    ...     target=(0.5, 1.0), relative=True
    ... )
    >>> layer.target
    (0.5, 1.0)

    Reference:
        Rudman and Eickhoff, "Stable Anisotropic Regularization", ICLR 2024.
    """

    measure_name = "isoscore"
    penalty_name = "istar_penalty"
    strength = Setting(validation.check_real)
    shrinkage = Setting(validation.check_fraction)
    target = Setting(check_target)

    def __init__(
        self,
        strength: Schedulable | None = None,
        shrinkage: Schedulable = 0.2,
        momentum: float | None = None,
        sync: bool = True,
        max_tokens: int | None = None,
        seed: int | None = None,
        target: Any = None,
        relative: bool = False,
        per_layer: bool = False,
        centered: bool = False,
        **kwargs: Any,
    ):
        validation.check_bool("relative", relative)
        if strength is None and target is None and not relative:
            target, relative = _DEFAULT_TARGET, True
            strength = _DEFAULT_STRENGTH
        if strength is None:
            strength = _STRENGTH_OF_TARGET
        super().__init__(strength, **kwargs)
        self.relative = relative
        self.per_layer = validation.check_bool("per_layer", per_layer)
        self.per_layer = per_layer or isinstance(target, list)
        self.centered = validation.check_bool("centered", centered)
        self.shrinkage = shrinkage
        self.target = target
        self.momentum = validation.check_momentum(momentum)
        self.sync = check_sync(sync)
        self.max_tokens = validation.check_optional_positive_int(
            "max_tokens", max_tokens
        )
        self.seed = None if seed is None else validation.check_seed(seed)
        self._check_together()
        if target is not None:
            self.momentum = self.momentum or _MOMENTUM_OF_TARGET
            self.add_logs("istar_target")
            if self.momentum > _MOST_MOMENTUM_OF_TARGET:
                warnings.warn(
                    "`momentum` should be at most "
                    f"{_MOST_MOMENTUM_OF_TARGET} with a `target`: a score that "
                    "lags behind the model makes it swing, or collapse. "
                    f"{validation.see_guide('which-shrinkage')}. "
                    f"Received: momentum={momentum}",
                    stacklevel=2,
                )

    def _check_together(self):
        if self.per_layer and self.centered:
            raise ValueError(
                "`centered` must be False with `per_layer`, whose clouds hold "
                "one layer each. Received: centered=True, per_layer=True"
            )
        if self.relative and self.target is None:
            raise ValueError(
                "`relative` must be False without a `target`, such as "
                "target=0.5. "
                "Received: relative=True, target=None"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        is_fixed = name in _FIXED and getattr(self, "built", False)
        if is_fixed and value != getattr(self, name):
            raise AttributeError(
                f"`{name}` cannot change once the layer is built. Make a new "
                f"layer: `detach(model)`, and attach with `{name}`. "
                f"Received: {name}={value!r:.200}"
            )
        super().__setattr__(name, value)

    def check_setting(self, name: str, value: Any) -> None:
        settings = {**self.settings, name: value}
        target, strength = settings.get("target"), settings["strength"]
        if name == "target":
            before = self.settings.get("target", target)
            if (before is None) != (target is None):
                raise ValueError(
                    "`target` must be given when the layer is made, or not at "
                    "all, as it changes the loss and the logs: "
                    "`detach(model)`, and attach anew. "
                    f"Received: target={target!r:.200}"
                )
            check_range("target", target, self.relative)
            if isinstance(target, list) and not self.per_layer:
                raise ValueError(
                    "`target` must be a number or a pair for a layer of one "
                    f"cloud. Received: target={target!r:.200}"
                )
        if target is None:
            return
        for step, value in validation.sampled_values("strength", strength):
            if value < 0:
                at_step = f", which is {value:g} at step {step:g}"
                raise ValueError(
                    "`strength` must be at least 0 with a `target`, which is "
                    "approached from both sides. "
                    f"Received: strength={strength!r:.200}"
                    f"{at_step if callable(strength) else ''}"
                )

    def setting_values(self, name: str) -> Any:
        if name == "target":
            return intervals(self.target, self.clouds)
        return super().setting_values(name)

    def counts_steps(self) -> bool:
        return super().counts_steps() or self.relative

    def build(self, input_shape: Any) -> None:
        number = len(as_shapes(input_shape)) if self.per_layer else 1
        self.clouds = number
        super().build(input_shape)
        shape = (self.dim, self.dim)
        self._shrinkage_covariance = StateVariable(
            "shrinkage_covariance",
            (number, *shape) if self.per_layer else shape,
        )
        self._has_shrinkage_covariance = StateVariable(
            "has_shrinkage_covariance"
        )
        if self.max_tokens is not None:
            self._draws = ReplicaSeedGenerator(self.seed)
        if self.relative:
            self._start = StateVariable("start", (number,))

    @property
    def shrinkage_covariance(self) -> keras.Variable:
        """Σ_S, a float32 variable, see the class."""
        return self._shrinkage_covariance.state

    @property
    def has_shrinkage_covariance(self) -> keras.Variable:
        """1 once Σ_S has been set, 0 before."""
        return self._has_shrinkage_covariance.state

    def measure(self, hidden_states: list[Tensor], masks: list) -> Tensor:
        clouds = self._clouds(hidden_states, masks)
        batches = [moments.covariance(tokens) for tokens in clouds]
        estimates = self._by_cloud(self.shrinkage_covariance)
        # An average that is not finite would stay so.
        has_estimate = ops.logical_and(
            ops.convert_to_tensor(self.has_shrinkage_covariance) > 0,
            ops.all(
                ops.isfinite(ops.convert_to_tensor(self.shrinkage_covariance))
            ),
        )
        scores = [
            self._shrunk_score(batch, estimate, has_estimate)
            for batch, estimate in zip(batches, estimates, strict=True)
        ]
        averages = batches
        if self.momentum is not None:
            averages = self._average(
                self.momentum, estimates, has_estimate, clouds, batches
            )
        score = self._of_clouds(scores)
        if self.target is None:
            return score
        # The value is the score of the moving average, since that of a batch
        # reads low; the gradient is that of the batch.
        held = ops.stack([unchecked_isoscore(x) for x in averages])
        held = ops.stop_gradient(ops.cast(held, score.dtype))
        self._learn_start(held)
        held = ops.reshape(held, score.shape)
        return score + (held - ops.stop_gradient(score))

    def _shrunk_score(self, batch, estimate, has_estimate):
        """IsoScore* of a batch, shrunk to Σ_S if there is one."""
        goal = ops.where(
            has_estimate,
            ops.cast(estimate, batch.dtype),
            moments.scaled_identity(batch),
        )
        shrinkage = ops.cast(self.setting("shrinkage"), batch.dtype)
        return unchecked_isoscore(moments.shrink(batch, goal, shrinkage))

    def _by_cloud(self, matrices):
        """A list with the matrix of each cloud."""
        matrices = ops.convert_to_tensor(matrices)
        return ops.unstack(matrices) if self.per_layer else [matrices]

    def _of_clouds(self, values):
        """Joins values of clouds, with `per_layer` along an axis of clouds."""
        return ops.stack(values) if self.per_layer else values[0]

    def loss(self, measure: Tensor) -> Tensor:
        if self.target is None:
            return ops.mean(1.0 - measure)
        return ops.mean(ops.square(measure - self._goal(measure)))

    def further_logs(self, measure: Tensor) -> dict[str, Tensor]:
        if self.target is None:
            return {}
        return {"istar_target": ops.mean(self._goal(measure))}

    def _goal(self, score):
        """The value of the target that is nearest to a score, a constant."""
        score = ops.stop_gradient(score)
        bounds = ops.convert_to_tensor(self.setting("target"))
        if self.relative:
            bounds = bounds * ops.convert_to_tensor(self._start.state)[:, None]
        bounds = ops.minimum(ops.relu(bounds), ops.ones_like(bounds))
        bounds = ops.cast(bounds, score.dtype)
        goal = nearest(score, ops.reshape(bounds, (*score.shape, 2)))
        if self.relative:
            is_known = ops.convert_to_tensor(self._start.state) > 0
            is_known = ops.reshape(is_known, score.shape)
            goal = ops.where(is_known, goal, score)
        return goal

    def setting(self, name: str) -> Any:
        value = super().setting(name)
        if name == "target" and callable(self.target):
            return scheduled_intervals(value, self.clouds)
        return value

    def describe(self) -> str:
        first, *rest = super().describe().splitlines()
        usual = dict(_USUAL)
        if self.target is not None:
            usual["momentum"] = _MOMENTUM_OF_TARGET
        chosen = [
            f"{name}={getattr(self, name)}"
            for name, value in usual.items()
            if getattr(self, name) != value
        ]
        return "\n".join([", ".join([first, *chosen]), *rest])

    def numbers_in_force(self) -> dict[str, float]:
        """Settings as numbers at this step; the target in units of IsoScore."""
        names = ("strength", "shrinkage")
        numbers = {name: self.value_in_force(name) for name in names}
        if self.target is None:
            return numbers
        # Copies: a variable that a strategy mirrors is not a tensor.
        bounds = self.target
        if callable(bounds) and self._steps is not None:
            steps = ops.convert_to_tensor(ops.copy(self._steps.state))
            bounds = scheduled_intervals(bounds(steps), self.clouds)
        else:
            bounds = intervals(bounds, self.clouds)
        bounds = np.asarray(ops.convert_to_numpy(bounds), "float64")
        if self.relative:
            bounds *= ops.convert_to_numpy(ops.copy(self._start.state))[:, None]
        low, high = np.clip(bounds, 0.0, 1.0).mean(axis=0).tolist()
        if low == high:
            return {**numbers, "target": low}
        return {**numbers, "target_low": low, "target_high": high}

    def _learn_start(self, scores):
        """Learns the isotropy at the start from scores `(clouds,)` of a step.

        It is the highest of the first steps: the average of few batches reads
        low, and later the penalty may have lowered it.
        """
        if not self.relative or self._steps is None:
            return
        steps = ops.convert_to_tensor(self._steps.state)
        start = ops.convert_to_tensor(self._start.state)
        scores = ops.cast(scores, "float32")
        is_first = steps < STEPS_TO_START
        highest = ops.maximum(start, scores)
        self._start.state.assign(ops.where(is_first, highest, start))

    def _clouds(self, states, masks):
        """Moments of each cloud, of the tokens of all replicas if `sync`."""
        replicas = current_replicas() if self.sync else None
        is_alone = replicas is None or replicas.number == 1
        if self.centered and is_alone and self.max_tokens is None:
            return [moments.union_moments(states, masks, centered=True)]
        if self.per_layer or self.centered:
            pairs = zip(states, masks, strict=True)
            clouds = [
                self._union([x], [mask], len(states)) for x, mask in pairs
            ]
        else:
            clouds = [self._union(states, masks, len(states))]
        if self.sync:
            clouds = sum_over_replicas(*clouds)
        if self.centered:
            clouds = [moments.combine(clouds, centered=True)]
        return clouds

    def _union(self, states, masks, number):
        if self.max_tokens is None:
            return moments.union_moments(states, masks)
        size = max(2, self.max_tokens // number)
        return sampled_moments(states, masks, size, self._draws, self.sync)

    def estimate(self, states: Sequence[Moments]) -> Tensor:
        """Computes Σ_S from moments of the states, shaped like the variable.

        Args:
            states: The moments of the tokens of each state.
        """
        if self.per_layer:
            clouds = list(states)
        else:
            clouds = [moments.combine(list(states), centered=self.centered)]
        return self._of_clouds([moments.covariance(x) for x in clouds])

    def _average(self, momentum, before, has_before, clouds, batches):
        """Takes a step of the moving average; a damaged batch is skipped."""
        after = []
        for old, batch in zip(before, batches, strict=True):
            batch = ops.cast(ops.stop_gradient(batch), old.dtype)
            new = momentum * old + (1.0 - momentum) * batch
            after.append(ops.where(has_before, new, batch))
        is_usable = functools.reduce(
            ops.logical_and,
            [tokens.count >= 2 for tokens in clouds]
            + [ops.all(ops.isfinite(x)) for x in after],
        )
        after = [
            ops.where(is_usable, new, old)
            for new, old in zip(after, before, strict=True)
        ]
        self.shrinkage_covariance.assign(self._of_clouds(after))
        self.has_shrinkage_covariance.assign(
            ops.cast(ops.logical_or(is_usable, has_before), "float32")
        )
        return after

    def set_shrinkage_covariance(self, value: Tensor) -> None:
        """Sets Σ_S.

        Args:
            value: Covariance of shape `(dim, dim)`; with `per_layer` one for
                each hidden state, `(states, dim, dim)`.

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
        parts = [value]
        if self.per_layer:
            value = validation.check_tensor("value", value)
            shape = tuple(self.shrinkage_covariance.shape)
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"`value` must have shape {shape}. "
                    f"Received: value.shape={tuple(value.shape)}"
                )
            parts = ops.unstack(value)
        self.shrinkage_covariance.assign(
            self._of_clouds(
                [
                    validation.check_covariance("value", x, self.dim, "float32")
                    for x in parts
                ]
            )
        )
        self.has_shrinkage_covariance.assign(1.0)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if not callable(self.target):
            config["target"] = target_config(self.target)
        return config | {name: getattr(self, name) for name in _FIXED}

    def state_in_files(self) -> list[keras.Variable]:
        state = super().state_in_files()
        state += [self.shrinkage_covariance, self.has_shrinkage_covariance]
        if self.relative:
            state.append(self._start.state)
        return state

    def load_own_variables(self, store: Any) -> None:
        name = self.shrinkage_covariance.name
        if name in store.keys():
            try:
                self.set_shrinkage_covariance(np.asarray(store[name]))
            except ValueError as e:
                raise ValueError(
                    "`shrinkage_covariance` in a file of weights must fit the "
                    f"layer {self.name!r}. To load all other weights, detach "
                    f"first, or use `skip_mismatch=True`. Received: {e}"
                ) from e
        super().load_own_variables(store)
