"""The base class of regularizers: penalty, settings and logs of a layer."""

import collections
import inspect
import re
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_istar._src import validation
from keras_istar._src.compat import keras_private
from keras_istar._src.compat import train_steps
from keras_istar._src.compat.keras_state import StateVariable
from keras_istar._src.compat.replica_losses import separate_losses
from keras_istar._src.layers.attachment import Attachment
from keras_istar._src.layers.probe import SILENT
from keras_istar._src.layers.probe import current_recorder
from keras_istar._src.score import moments
from keras_istar._src.types import Schedulable
from keras_istar._src.types import Tensor


class Setting:
    """Attribute of a layer that can be assigned without tracing anew.

    Reading gives what was assigned: a number, or a schedule, which is a
    function of the number of training steps so far. Traced code reads
    `layer.setting(name)`. That is not a weight: only an assignment changes it.

    Args:
        check: Function of the name and a value that returns the value, or
            raises.
    """

    def __init__(self, check: Callable[[str, Any], Any]):
        self.check = check

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, layer, owner=None):
        if layer is None:
            return self
        try:
            return layer.settings[self._name]
        except KeyError:
            raise AttributeError(self._name) from None

    def __set__(self, layer, value):
        if callable(value):
            first = validation.check_schedule(self._name, value, self.check)
        else:
            first = value = self.check(self._name, value)
        layer.check_setting(self._name, first)
        layer.assign_setting(self._name, value)


class TrainingMean(keras.metrics.Mean):
    """Mean over training steps that only its layer updates.

    Keras lists the metrics of a layer in the logs of `evaluate` as well, where
    a value that only training produces would show up as `val_<name>: 0.0`. So
    the result is empty if there was no training step.

    Args:
        name: Key in the logs.

    Attributes:
        is_training: Whether the step being traced has updated the metric.
    """

    def __init__(self, name: str):
        super().__init__(name=name, dtype="float32")
        self.is_training = False

    def add_variable(
        self,
        shape: tuple,
        initializer: Any,
        dtype: str | None = None,
        aggregation: str = "sum",
        name: str | None = None,
    ) -> keras.Variable:
        """As of any metric, but never cast to what a layer computes in."""
        return keras.Variable(
            initializer,
            shape=shape,
            dtype=dtype,
            trainable=False,
            autocast=False,
            aggregation=aggregation,
            synchronization="on_read",
            name=name,
        )

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: train steps of users pass labels to every metric."""

    def record(self, value: Tensor, is_new_step: bool = True) -> None:
        """Adds a value; values of one step add up."""
        self.total.assign(self.total + ops.cast(value, self.dtype))
        # With `self.count + 1.0`, PyTorch would copy the number to a GPU.
        self.count.assign(self.count.value + float(is_new_step))
        self.is_training = True

    def reset_state(self) -> None:
        """Begins an epoch, or a pass of evaluation."""
        train_steps.forget_gradients()
        super().reset_state()

    def result(self) -> Any:
        """The mean, or an empty dict of logs if no training step was seen."""
        # Most train steps, of whatever model, end with results of metrics.
        train_steps.tell_of_no_gradient()
        try:
            # A copy, for a variable of several replicas is not one tensor.
            has_value = bool(ops.copy(self.count.value) > 0)
        except TypeError:  # The value is not known while tracing a step.
            has_value = self.is_training
        return super().result() if has_value else {}


class HiddenStateRegularization(keras.layers.Layer):
    """Adds `strength * loss(measure(hidden states))` to the loss.

    The base class of regularizers. The layer is an identity: it returns its
    (last) input, keeps Keras masks and dtypes, and does nothing outside of
    training. A subclass defines `measure` and `loss`. Both the measure and the
    number that entered the loss are logged, as `measure_name` and
    `penalty_name`. If the layer was given a name, the keys begin with it. If a
    model has several layers of a class without names, the keys begin with the
    name of the model that each is attached to.

    Args:
        strength: Factor of the loss, any finite number. It may be assigned at
            any time without tracing anew. It is not a weight of the model, so
            loading or restoring weights does not change it. Or a schedule,
            given when the layer is made: a
            `keras.optimizers.schedules.LearningRateSchedule`, or a function of
            the number of training steps so far, a scalar tensor, that uses
            operations of `keras.ops`.
        **kwargs: `name`, `dtype` and the like, see `keras.layers.Layer`.

    Call arguments:
        hidden_states: Tensor of shape `(batch, length, dim)`, or a list.
        mask: Optional `(batch, length)` tensor, or a list with one or None for
            each state. Taken from the Keras masks if not given.
        training: Whether to add the loss.

    Attributes:
        dim: Width of the hidden states, once built.
        state_names: A name for each hidden state, for logs.
        owner_name: Name of the model that holds the states, once attached.

    Example:

    The covariance term of VICReg, Σ_{i≠j} Σ_ij² / dim:

    >>> class Decorrelation(keras_istar.HiddenStateRegularization):
    ...     measure_name = "off_diagonal"
    ...
    ...     def measure(self, hidden_states, masks):
    ...         squares = ops.square(self.covariance(hidden_states, masks))
    ...         return (ops.sum(squares) - ops.trace(squares)) / self.dim
    ...
    ...     def loss(self, measure):
    ...         return measure
    >>> layer = Decorrelation(strength=0.5)
    >>> states = np.array([[[0.0, 0.0], [2.0, 2.0]]], "float32")
    >>> _ = layer(states, training=True)  # All four covariances are 2.
    >>> float(layer.losses[0])  # 0.5 * (4 + 4) / 2
    2.0
    """

    default_layers: str | int = "all"  # For `attach_regularizer`.
    measure_name = "measure"
    penalty_name = ""  # By default, `<measure_name>_penalty`.
    strength = Setting(validation.check_real)

    def __init__(self, strength: Schedulable = 1.0, **kwargs: Any):
        # Nothing here is worth recomputing, and a loss that is added inside of
        # a recomputed function has no gradient: what such a function does not
        # return is a constant to the outside, on every backend.
        with keras.RematScope(mode=None), validation.keras_arguments(kwargs):
            super().__init__(autocast=False, **kwargs)
        self.settings: dict[str, Any] = {}
        self._steps: StateVariable | None = None
        self._setting_variables: dict[str, StateVariable] = {}
        self._models: weakref.WeakSet[keras.Model] = weakref.WeakSet()
        self.strength = strength
        self.state_names: tuple[str, ...] | None = None
        self.owner_name: str | None = None
        self.attachment: Attachment | None = None
        self.supports_masking = True
        self._prefix = default_prefix(self)
        self._has_warned = False
        self._expects_masks = False
        self._takes_mask = "mask" in inspect.signature(self.call).parameters
        self._means: dict[str, TrainingMean] = {}
        penalty_name = self.penalty_name or f"{self.measure_name}_penalty"
        self.add_logs(self.measure_name, penalty_name)

    def measure(self, hidden_states: list[Tensor], masks: list) -> Tensor:
        """Computes the measure of hidden states, which is logged.

        Args:
            hidden_states: Tensors of shape `(batch, length, dim)`.
            masks: For each of them, None or a mask `(batch, length)`.

        Returns:
            A scalar, or a number for each of several clouds; the logs receive
            the mean.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `measure`."
        )

    def loss(self, measure: Tensor) -> Tensor:
        """Computes the scalar that `strength` multiplies.

        Args:
            measure: What `measure` has returned.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `loss`."
        )

    def covariance(self, hidden_states: list[Tensor], masks: list) -> Tensor:
        """Covariance of all unmasked tokens of all states, for `measure`.

        Tokens of all replicas are one cloud: a penalty computed from this is
        the same on several devices as on one. In float32 or better; backward,
        it costs one matrix product a state.

        Args:
            hidden_states: As `measure` is given them.
            masks: As `measure` is given them.

        Returns:
            Unbiased covariance `(dim, dim)`; zero for fewer than two tokens.
        """
        tokens = moments.union_moments(hidden_states, masks)
        (tokens,) = moments.sum_over_replicas(tokens)
        return moments.covariance(tokens)

    def further_logs(self, measure: Tensor) -> dict[str, Tensor]:
        """Further scalars to log, by names that `add_logs` was given."""
        return {}

    def build(self, input_shape: Any) -> None:
        if not input_shape:
            raise ValueError(
                "`hidden_states` must be a tensor `(..., dim)` or a list of "
                f"them. Received: hidden_states.shape={input_shape}"
            )
        shapes = as_shapes(input_shape)
        for shape in shapes:
            validation.check_width("hidden_states", shape)
        self.dim = shapes[0][-1]
        self._check_widths(shapes)
        if self.state_names is None:
            self.state_names = tuple(f"layer_{i}" for i in range(len(shapes)))
        for name, value in self.settings.items():
            if _kind(value) == "numbers":
                values = np.asarray(self.setting_values(name), "float32")
                self._setting_variables[name] = StateVariable(
                    name, values.shape, values
                )
        if self.counts_steps():
            self._steps = StateVariable("steps")

    def setting_values(self, name: str) -> Any:
        """Numbers that traced code takes for a setting, of fixed shape."""
        return self.settings[name]

    def counts_steps(self) -> bool:
        """Whether the layer needs to know how many steps it has trained."""
        return any(callable(value) for value in self.settings.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        # Keras would look for masks that later layers may have removed.
        if len(args) != 1 or kwargs.get("mask") is not None:
            return super().__call__(*args, **kwargs)
        states = as_list(args[0])
        if any(isinstance(x, keras.KerasTensor) for x in states):
            outputs = super().__call__(*args, **kwargs)
            for state in states:
                keras_private.keep_masks(state)
                if keras_private.keras_mask(state) is not None:
                    self._expects_masks = True
            return outputs
        if self._takes_mask and all(hasattr(x, "shape") for x in states):
            masks = [keras_private.kept_mask(x) for x in states]
            if kwargs.get("training"):
                self._warn_of_lost_masks(states, masks)
            if any(mask is not None for mask in masks):
                kwargs["mask"] = masks
        return super().__call__(*args, **kwargs)

    def call(
        self,
        hidden_states: Tensor | list[Tensor],
        mask: Tensor | list[Tensor | None] | None = None,
        training: bool | None = None,
    ) -> Tensor:
        recorder = current_recorder()
        if recorder is SILENT:
            return as_list(hidden_states)[-1]
        separate_losses(self)
        states = as_list(hidden_states)
        masks = _match_masks(states, mask)
        validation.check_float_dtypes(
            "hidden_states", [x.dtype for x in states]
        )
        self._check_widths([state.shape for state in states])
        self.rest()
        if recorder is not None:
            recorder.record(self, states, masks)
        elif training is None:
            self.warn_of_no_training()
        if training:
            self._add_penalty(states, masks)
        return states[-1]

    def rest(self) -> None:
        """Notes that this pass logs nothing, unless its step has logged."""
        means = list(self._means.values())
        # A train step may run the model once more, in inference.
        if not train_steps.has_logged(means[0]):
            for mean in means:
                mean.is_training = False
            train_steps.note_rest(self._warn_of_rest)

    def _add_penalty(self, states, masks):
        model = train_steps.calling_model(self)
        if model is not None:
            name_logs(model)
        measured = self.measure(states, masks)
        strength = ops.cast(self.setting("strength"), measured.dtype)
        penalty = strength * self.loss(measured)
        further = self.further_logs(measured)
        # Keras adds it to a task loss of this type.
        entered = ops.cast(penalty, keras.config.floatx())
        if self.settings["strength"] != 0:  # Else the layer only logs.
            entered = train_steps.watch_gradient(
                entered, self._warn_of_no_gradient
            )
        is_first_call = not self.losses
        measure_mean, penalty_mean, *_ = self._means.values()
        is_new_step = is_first_call and not train_steps.has_logged(measure_mean)
        self.add_loss(entered)

        def log(is_first_call):
            measure_mean.record(ops.mean(measured))
            penalty_mean.record(penalty, is_first_call)
            for name, value in further.items():
                self._means[name].record(value)

        is_heard = train_steps.log_call(
            log, measure_mean, is_first_call, entered
        )
        if self._steps is not None and is_new_step:
            self._steps.state.assign(self._steps.state.value + 1.0)
        if is_heard:
            return
        if keras_private.loses_losses():
            self._warn(
                "adds no penalty here: `stateless_call` drops losses unless "
                "it is called with `return_losses=True`."
            )
        elif keras_private.is_called_again(self):
            self._warn(
                "is called several times in a step. On JAX, Keras keeps only "
                "the penalty of the last call: give `fit` an `IStarCallback`, "
                "which sees to it that all of them count."
            )

    def warn_of_no_training(self) -> None:
        """Warns if the model that calls does not say whether it trains."""
        call = "this layer: `self.layer(x, training=training)`"
        if self.attachment is not None:
            call = "the attached model: `self.encoder(x, training=training)`"
        if not keras_private.knows_training(self):
            self._warn(
                "adds no penalty, as it is not told whether the model trains. "
                "Give `call` of the model a `training` argument, "
                "`def call(self, inputs, training=None)`, and pass it on to "
                f"{call}."
            )

    def _warn_of_lost_masks(self, states, masks):
        shapes = [tuple(x.shape)[:-1] for x in states]
        masked = [shapes[i] for i, x in enumerate(masks) if x is not None]
        unmasked = [
            i
            for i, shape in enumerate(shapes)
            if masks[i] is None and None not in shape and shape in masked
        ]
        if self._expects_masks and not masked:
            unmasked = list(range(len(states)))
        if unmasked:
            self._warn(
                f"counts all tokens of the hidden states {unmasked}, counted "
                "from 0, which have no Keras mask, although padding is known. "
                "Layers such as `MultiHeadAttention` remove the masks of their "
                "inputs. Call this layer with `mask`."
            )

    def _warn_of_rest(self):
        self._warn(
            "adds no penalty: `train_step` calls the model in inference only. "
            "Call it with `training=True`."
        )

    def _warn_of_no_gradient(self):
        advice = "add `sum(self.losses)` to the loss after each call"
        if train_steps.is_needed():
            advice += (
                ", or, in a `train_step`, what `stateless_call(..., "
                "return_losses=True)` returns"
            )
        self._warn(
            "adds a penalty that trains nothing. Either all layers before the "
            "hidden states are frozen; or the model that is fitted has a "
            "`train_step` or `compute_loss` of its own that leaves the penalty "
            f"out: {advice}."
        )

    def _warn(self, what):
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{type(self).__name__} {self.name!r} {what}", stacklevel=2
            )

    def check_setting(self, name: str, value: Any) -> None:
        """Raises where a setting does not fit the others.

        Args:
            name: Name of the setting.
            value: Its new value; of a schedule, the first one.
        """

    def assign_setting(self, name: str, value: Any) -> None:
        """Puts a setting in force, even in the middle of an epoch.

        Raises:
            ValueError: If the layer is built and the setting, as it was or as
                it is to be, is not numbers.
            RuntimeError: If variables cannot be assigned at this moment.
        """
        variable = self._setting_variables.get(name)
        if self.built and not (
            _kind(value) == _kind(self.settings[name]) == "numbers"
        ):
            raise ValueError(
                f"`{name}` can only change from numbers to numbers once the "
                "layer is built: train steps may have been traced for what it "
                f"was, {self.settings[name]!r:.200}. Make a new layer: "
                f"`detach(model)`, and attach with `{name}`. "
                f"Received: {name}={value!r:.200}"
            )
        before = self.settings.get(name)
        self.settings[name] = value
        if variable is None:
            return
        try:
            values = np.asarray(self.setting_values(name), "float32")
            for model in list(self._models):
                train_steps.sync(model)
            if not keras_private.has_value(variable.state):
                raise RuntimeError(
                    f"`{name}` cannot be assigned here, within an epoch on the "
                    "JAX backend. Read `self.model` of a callback first, which "
                    "brings the model up to date, or assign it between epochs. "
                    f"Received: {name}={value!r}"
                )
            variable.state.assign(values)
        except Exception:
            self.settings[name] = before
            raise

    def join(self, model: keras.Model) -> None:
        """Makes settings reach train steps of `model` within an epoch."""
        self._models.add(model)

    def setting(self, name: str) -> Any:
        """The tensor or variable behind a `Setting`, for traced code."""
        if name in self._setting_variables:
            return self._setting_variables[name].state
        assert self._steps is not None
        return self.settings[name](ops.convert_to_tensor(self._steps.state))

    def value_in_force(self, name: str) -> float:
        """The number that a scalar `Setting` stands for at this step."""
        value = self.settings[name]
        if not callable(value):
            return value
        steps = 0.0 if self._steps is None else ops.copy(self._steps.state)
        return float(value(ops.convert_to_tensor(steps)))

    def add_logs(self, *names: str) -> None:
        """Makes the layer log quantities of these names."""
        for name in names:
            self._means[name] = TrainingMean(self.log_name(name))

    # Not a property: Keras looks for weights in what properties return.
    def joined_models(self) -> list[keras.Model]:
        """Models that `join` was told of."""
        return list(self._models)

    @property
    def default_name(self) -> str:
        """The name that Keras gives to a layer of this class by default."""
        return _snake_case(type(self))

    def log_name(self, quantity: str) -> str:
        """Key of a quantity of this layer in the logs."""
        return self._prefix + quantity

    def set_log_prefix(self, prefix: str) -> None:
        """Makes keys in the logs begin with a prefix."""
        self._prefix = prefix
        for name, mean in self._means.items():
            mean.name = self.log_name(name)

    def _check_widths(self, shapes):
        widths = [shape[-1] for shape in shapes]
        if any(width != self.dim for width in widths):
            raise ValueError(
                f"`hidden_states` must all have width {self.dim}. "
                f"Received: widths={widths}"
            )

    def describe(self) -> str:
        """Says in text what this layer does, and to which hidden states."""
        settings = ", ".join(
            f"{name}={_setting_text(value)}"
            for name, value in self.settings.items()
            if value is not None
        )
        lines = [f"{type(self).__name__} {self.name!r}: {settings}"]
        if self.attachment is not None:
            if keras_private.is_in_use(self):
                lines.append(self.attachment.describe())
        elif self.state_names is not None:
            names = ", ".join(self.state_names)
            lines.append(f"called by hand on {names}, dim={self.dim}")
        return "\n".join(lines)

    def __str__(self):
        return self.describe()

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        # The output is the last input itself, which still carries its mask.
        return None

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return as_shapes(input_shape)[-1]

    def compute_output_spec(
        self, hidden_states: Any, mask: Any = None, training: Any = None
    ) -> keras.KerasTensor:
        states = as_list(hidden_states)
        _match_masks(states, mask)
        return keras.KerasTensor(states[-1].shape, dtype=states[-1].dtype)

    def get_config(self) -> dict[str, Any]:
        settings = {
            name: keras.saving.serialize_keras_object(value)
            if callable(value)
            else value
            for name, value in self.settings.items()
        }
        return {**super().get_config(), **settings}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "HiddenStateRegularization":
        schedules = {
            name: keras.saving.deserialize_keras_object(value)
            for name, value in config.items()
            if isinstance(getattr(cls, name, None), Setting)
            and isinstance(value, dict)
            and "class_name" in value
        }
        return super().from_config({**config, **schedules})

    def state_in_files(self) -> list[keras.Variable]:
        """Variables that files hold. Settings live in the config."""
        return [] if self._steps is None else [self._steps.state]

    def save_own_variables(self, store: Any) -> None:
        for variable in self.state_in_files():
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        # A file of a model without this layer leaves them alone.
        for variable in self.state_in_files():
            if variable.name in store.keys():
                variable.assign(np.asarray(store[variable.name]))


def name_logs(model: keras.Model) -> None:
    """Gives each regularizer in a model log keys of its own.

    One regularizer of a class keeps the plain keys, unless it was given a name
    of its own. Several that were given none are told apart by the model that
    each is attached to, and by their order.
    """
    regularizers = keras_private.find_layers(model, HiddenStateRegularization)
    by_default = [x for x in regularizers if not default_prefix(x)]
    alike = collections.defaultdict(list)
    for layer in by_default:
        alike[layer.measure_name].append(layer)
    for layer in regularizers:
        if layer not in by_default:
            layer.set_log_prefix(default_prefix(layer))
    for layers in alike.values():
        labels = [layer.owner_name or layer.default_name for layer in layers]
        for i, (layer, label) in enumerate(zip(layers, labels, strict=True)):
            if labels.count(label) > 1:
                label = f"{label}_{labels[:i].count(label)}"
            layer.set_log_prefix(f"{label}_" if len(layers) > 1 else "")


def default_prefix(layer: keras.layers.Layer) -> str:
    """Start of keys in the logs: the name of a layer, if it was given one."""
    by_default = re.fullmatch(rf"{_snake_case(type(layer))}(_\d+)?", layer.name)
    return "" if by_default else f"{layer.name}_"


def _kind(value):
    """Kind of a setting, which cannot change once the setting is traced."""
    if value is None:
        return "none"
    return "schedule" if callable(value) else "numbers"


def _setting_text(value):
    if isinstance(value, float):
        return f"{value:g}"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return str(value)


def _snake_case(kind):
    """The name of a class in the form that Keras uses for layers."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind.__name__)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def as_list(value, is_leaf=lambda x: not isinstance(x, (list, tuple))):
    return [value] if is_leaf(value) else list(value)


def as_shapes(value: Any) -> list:
    """Shapes of hidden states, from one of them or a list."""
    return as_list(value, is_leaf=_is_shape)


def _is_shape(value):
    return value is None or not isinstance(value[0], (list, tuple))


def _match_masks(states, mask):
    """One mask, or None, for each state; raises where a mask does not fit."""
    masks = as_list(mask)
    if len(masks) == 1:
        masks = masks * len(states)
    if len(masks) != len(states):
        raise ValueError(
            "`mask` must be one mask or a list with one for each of the "
            f"{len(states)} `hidden_states`. Received: len(mask)={len(masks)}"
        )
    for state, state_mask in zip(states, masks, strict=True):
        if state_mask is not None:
            if not hasattr(state_mask, "shape"):
                state_mask = validation.check_tensor("mask", state_mask)
            validation.check_mask_shape(
                state_mask.shape, state.shape, "hidden_states"
            )
    return masks
