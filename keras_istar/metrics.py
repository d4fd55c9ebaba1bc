"""Metrics that a layer logs about its own training steps."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


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
