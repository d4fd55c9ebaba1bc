"""Methods as layers of a model, and the callbacks that they need."""

from collections.abc import Sequence
from typing import Any

import keras

import keras_istar
from finetuning.command_line import UserError
from finetuning.settings import COUNT_PADDING
from finetuning.settings import REFRESH_EPOCH
from finetuning.settings import REFRESH_NEVER
from finetuning.settings import Method


class IStarRegularizationWithPadding(keras_istar.IStarRegularization):
    """I-STAR that counts padding as tokens, as the authors' code does."""

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


def attach(
    task: keras.Model, method: Method, layers: Sequence[int | str]
) -> keras.layers.Layer | None:
    """Attaches the layer of a method to a model.

    If the method is not I-STAR, a layer of strength 0 is attached too, which
    logs isotropy and adds nothing.

    Args:
        task: The model.
        method: The method.
        layers: The states that this layer of strength 0 is given.

    Returns:
        The layer of the method, None if it has none.

    Raises:
        UserError: If options of the method do not fit each other, or the model
            has no such layers.
    """
    try:
        layer = _make_layer(method)
        if layer is not None:
            own = None if method.layers is None else list(method.layers)
            keras_istar.attach_regularizer(task, layer, own)
        if not isinstance(layer, keras_istar.IStarRegularization):
            keras_istar.attach(task, list(layers), strength=0.0)
    except ValueError as error:
        raise UserError(str(error)) from error
    return layer


def _make_layer(method):
    if method.regularizer == "cosreg":
        return keras_istar.CosineRegularization(method.strength)
    if method.regularizer == "isobn":
        return keras_istar.IsotropicBatchNormalization()
    if method.regularizer == "none":
        return None
    is_counted = method.padding == COUNT_PADDING
    make = (
        IStarRegularizationWithPadding
        if is_counted
        else keras_istar.IStarRegularization
    )
    return make(
        method.strength,
        method.shrinkage,
        method.momentum,
        target=method.target,
        relative=method.relative,
        per_layer=method.per_layer,
    )


def callbacks_for(
    method: Method, layer: Any, data: Any, max_tokens: int, **options: Any
) -> list[keras.callbacks.Callback]:
    """The callbacks that keep Σ_S and log isotropy.

    Args:
        method: The method.
        layer: What `attach` has returned for it.
        data: Training examples, in batches, in any order that stays.
        max_tokens: Tokens of a pass, counted once in every state.
        **options: Further arguments of `IStarCallback`.
    """
    steps = method.refresh if isinstance(method.refresh, int) else None
    keeper = keras_istar.IStarCallback(
        data, max_tokens, steps or REFRESH_EPOCH, **options
    )
    if method.refresh != REFRESH_NEVER:
        return [keeper]
    return [keeper, FirstShrinkageCovariance(layer)]


def detach(task: keras.Model, layer: keras.layers.Layer | None) -> None:
    """Leaves a plain model that answers as before.

    Args:
        task: The model, to which something is attached.
        layer: What `attach` has returned for it.
    """
    is_scaled = isinstance(layer, keras_istar.IsotropicBatchNormalization)
    keras_istar.detach(task, fold=is_scaled)
