"""Metrics that a layer logs about its own training steps."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_istar._src import validation
from keras_istar._src.compat.distribution import add_shared_weight
from keras_istar._src.compat.distribution import separate_losses
from keras_istar._src.layers.probe import current_recorder
from keras_istar._src.types import Tensor


def layers_update_metrics() -> bool:
    """Whether a layer may update its metrics in `call`.

    The JAX trainer runs the forward pass without the state of metrics, and
    brings it in only for `Model.compute_loss`.
    """
    return keras.backend.backend() != "jax"


def log_name(layer: keras.layers.Layer, quantity: str) -> str:
    """Key in logs: with the name of the layer, if it was given one.

    Args:
        layer: Layer whose class has a `default_name`, as Keras makes it.
        quantity: What is logged.
    """
    is_default = layer.name.startswith(layer.default_name)
    return quantity if is_default else f"{layer.name}_{quantity}"


def after_compute_loss(model: keras.Model, hook: Callable[[], None]) -> None:
    """Makes `model` call `hook` whenever it has computed its loss."""
    compute_loss = model.compute_loss

    @functools.wraps(compute_loss)
    def compute_loss_and_hook(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        hook()
        return loss

    model.compute_loss = compute_loss_and_hook


def restore_compute_loss(model: keras.Model) -> None:
    """Undoes `after_compute_loss`."""
    vars(model).pop("compute_loss", None)


class TrainingMean(keras.metrics.Mean):
    """Mean over training steps that leaves evaluation logs alone.

    Keras lists the metrics of a layer in the logs of `evaluate` as well, where
    a value that only training produces would show up as `val_<name>: 0.0`.

    Args:
        name: Key in the logs.

    Attributes:
        is_training: Whether the step being traced has updated the metric.
    """

    def __init__(self, name: str):
        super().__init__(name=name, dtype="float32")
        self.is_training = False

    def result(self) -> Any:
        """The mean, or an empty dict of logs if no training step was seen."""
        try:
            # A copy, for a variable of several replicas is not one tensor.
            has_value = bool(ops.copy(self.count.value) > 0)
        except TypeError:  # The value is not known while tracing a step.
            has_value = self.is_training
        return super().result() if has_value else {}


class TunableNumber:
    """Attribute of a layer that can be assigned without tracing anew.

    Reading gives the Python number; traced code takes `layer.number(name)`.

    Args:
        check: Function of the name and a value that returns the number, or
            raises.
    """

    def __init__(self, check: Callable[[str, Any], float]):
        self._check = check

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, layer, owner=None):
        if layer is None:
            return self
        if self._name not in layer._numbers:
            raise AttributeError(self._name)
        return layer._numbers[self._name]

    def __set__(self, layer, value):
        layer._numbers[self._name] = self._check(self._name, value)
        if self._name in layer._number_variables:
            layer._number_variables[self._name].assign(value)


class HiddenStateRegularization(keras.layers.Layer):
    """Adds `strength * loss(measure(hidden states))` to the loss.

    The layer is an identity: it returns its (last) input, keeps Keras masks
    and dtypes, and does nothing outside of training. A subclass says what it
    measures and which loss that makes. Both the measure and the very number
    that entered the loss are logged, under the names the subclass gives.

    Args:
        strength: Factor of the loss, any finite number.
        **kwargs: `name`, `dtype` and the like, see `keras.layers.Layer`.

    Call arguments:
        hidden_states: Tensor of shape `(batch, length, dim)`, or a list.
        mask: Optional `(batch, length)` tensor, or a list with one or None for
            each state. Taken from the Keras masks if not given.
        training: Whether to add the loss.

    Attributes:
        dim: Width of the hidden states, once built.
        state_names: A name for each hidden state, for logs.
    """

    default_layers: str | int = "all"  # For `attach_regularizer`.
    default_name: str  # What Keras makes of the class name.
    measure_name: str
    penalty_name: str
    strength = TunableNumber(validation.check_real)

    def __init__(self, strength: float, **kwargs: Any):
        # Nothing here is worth recomputing, and a loss added inside of a
        # recomputed function has no gradient.
        with keras.RematScope(mode=None), validation.keras_arguments(kwargs):
            super().__init__(autocast=False, **kwargs)
        self._numbers: dict[str, float] = {}
        self._number_variables: dict[str, keras.Variable] = {}
        self.strength = strength
        self.state_names: tuple[str, ...] | None = None
        self.supports_masking = True
        self._step: tuple[Tensor, Tensor] | None = None
        self._measure = TrainingMean(self.log_name(self.measure_name))
        self._penalty = TrainingMean(self.log_name(self.penalty_name))

    def measure(self, states: list[Tensor], masks: list) -> Tensor:
        """Scalar to log, from hidden states and a mask or None for each."""
        raise NotImplementedError

    def loss(self, measured: Tensor) -> Tensor:
        """Scalar that `strength` multiplies."""
        raise NotImplementedError

    def build(self, input_shape: Any) -> None:
        if not input_shape:
            raise ValueError(
                "`hidden_states` must be a tensor `(..., dim)` or a list of "
                f"them. Received: hidden_states.shape={input_shape}"
            )
        shapes = as_list(input_shape, is_leaf=_is_shape)
        for shape in shapes:
            validation.check_width("hidden_states", shape)
        self.dim = shapes[0][-1]
        self._check_widths(shapes)
        if self.state_names is None:
            self.state_names = tuple(f"layer_{i}" for i in range(len(shapes)))
        for name, value in self._numbers.items():
            self._number_variables[name] = add_shared_weight(
                self, name, value=value
            )

    def call(
        self,
        hidden_states: Tensor | list[Tensor],
        mask: Tensor | list[Tensor | None] | None = None,
        training: bool | None = None,
    ) -> Tensor:
        separate_losses(self)
        states = as_list(hidden_states)
        masks = _match_masks(states, mask)
        validation.check_float_dtypes(
            "hidden_states", [x.dtype for x in states]
        )
        self._check_widths([state.shape for state in states])
        self._measure.is_training = self._penalty.is_training = False
        recorder = current_recorder()
        if recorder is not None:
            recorder.record(self, states, masks)
        if training:
            measured = self.measure(states, masks)
            strength = ops.cast(self.number("strength"), measured.dtype)
            penalty = strength * self.loss(measured)
            # Keras adds it to a task loss of this type.
            self.add_loss(ops.cast(penalty, keras.config.floatx()))
            self._step = (measured, penalty)
            if layers_update_metrics():
                self.log_step()
        return states[-1]

    def _check_widths(self, shapes):
        widths = [shape[-1] for shape in shapes]
        if any(width != self.dim for width in widths):
            raise ValueError(
                f"`hidden_states` must all have width {self.dim}. "
                f"Received: widths={widths}"
            )

    def log_step(self) -> None:
        """Logs the training step that has just been traced, if it was one."""
        if self._step is not None:
            measured, penalty = self._step
            self._measure.update_state(measured)
            self._penalty.update_state(penalty)
            self._measure.is_training = self._penalty.is_training = True
            self._step = None  # Nothing may outlive the trace.

    def log_name(self, quantity: str) -> str:
        """Key in logs: with the name of the layer, if it was given one."""
        return log_name(self, quantity)

    def number(self, name: str) -> keras.Variable:
        """The variable behind a `TunableNumber`."""
        return self._number_variables[name]

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        # The output is the last input itself, which still carries its mask.
        return None

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return as_list(input_shape, is_leaf=_is_shape)[-1]

    def compute_output_spec(
        self, hidden_states: Any, mask: Any = None, training: Any = None
    ) -> keras.KerasTensor:
        states = as_list(hidden_states)
        _match_masks(states, mask)
        return keras.KerasTensor(states[-1].shape, dtype=states[-1].dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._numbers}

    def save_own_variables(self, store: Any) -> None:
        # Numbers live in the config; weight files hold what was estimated.
        for variable in self.estimates():
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        # A file of a model without this layer leaves the estimates alone.
        for variable in self.estimates():
            if variable.name in store.keys():
                variable.assign(store[variable.name])

    def estimates(self) -> list[keras.Variable]:
        """Variables to save with the model."""
        return []


def as_list(value, is_leaf=lambda x: not isinstance(x, (list, tuple))):
    return [value] if is_leaf(value) else list(value)


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
