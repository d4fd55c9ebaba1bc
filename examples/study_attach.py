"""The regularizers of the study, and the callbacks that go with them."""

from typing import Any

import keras
from command_line import UserError
from study_method import COUNT_PADDING
from study_method import REFRESH_EPOCH
from study_method import REFRESH_NEVER
from study_method import Method

import keras_istar


class IStarRegularizationWithPadding(keras_istar.IStarRegularization):
    """I-STAR that takes padding for tokens, as the authors' code does."""

    def call(self, hidden_states, mask=None, training=None):
        return super().call(hidden_states, mask=None, training=training)


class FirstShrinkageCovariance(keras.callbacks.Callback):
    """Keeps Σ_S as it was before training. Put it after `IStarCallback`."""

    def __init__(self, layer: keras_istar.IStarRegularization):
        super().__init__()
        self._layer = layer

    def on_train_begin(self, logs=None):
        self._first = keras.ops.copy(self._layer.shrinkage_covariance)

    def on_epoch_end(self, epoch, logs=None):
        self._layer.set_shrinkage_covariance(self._first)


class TrainingIsotropy(keras.callbacks.Callback):
    """Logs what `IStarCallback` does of all layers, for any other method."""

    def __init__(self, data: Any, max_points: int):
        super().__init__()
        self._data, self._max_points = data, max_points

    def on_epoch_end(self, epoch, logs=None):
        report = keras_istar.measure(
            self.model,
            self._data,
            max_points=self._max_points,
            metrics="isoscore",
            verbose=0,
        )
        scores = {row.layer: row.values["isoscore"] for row in report.rows}
        logs.update({f"isoscore_{name}": x for name, x in scores.items()})


def attach(task: keras.Model, method: Method) -> keras.layers.Layer | None:
    """Attaches the regularizer of a method and returns it, if it has one.

    Raises:
        UserError: If the model has no such layers.
    """
    if method.regularizer == "none":
        return None
    regularizer = _make_regularizer(method)
    layers = None if method.layers is None else list(method.layers)
    try:
        keras_istar.attach_regularizer(task, regularizer, layers)
    except ValueError as error:
        raise UserError(str(error)) from error
    return regularizer


def _make_regularizer(method):
    if method.regularizer == "cosreg":
        return keras_istar.CosineRegularization(method.strength)
    if method.regularizer == "isobn":
        return keras_istar.IsotropicBatchNormalization()
    is_counted = method.padding == COUNT_PADDING
    make = (
        IStarRegularizationWithPadding
        if is_counted
        else keras_istar.IStarRegularization
    )
    return make(method.strength, method.shrinkage, method.momentum)


def callbacks_for(
    method: Method, regularizer: Any, data: Any, max_points: int
) -> list[keras.callbacks.Callback]:
    """Callbacks that an attached regularizer needs, and that log isotropy.

    Args:
        method: The method.
        regularizer: What `attach` has returned for it.
        data: Training examples, in batches, in any order that stays.
        max_points: Tokens of a pass, counted once in every state.
    """
    if method.regularizer != "istar":
        return [TrainingIsotropy(data, max_points)]
    steps = method.refresh if isinstance(method.refresh, int) else None
    keeper = keras_istar.IStarCallback(
        data, max_points, steps or REFRESH_EPOCH, verbose=0
    )
    if method.refresh != REFRESH_NEVER:
        return [keeper]
    return [keeper, FirstShrinkageCovariance(regularizer)]
