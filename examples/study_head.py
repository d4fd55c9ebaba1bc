"""The head of a classifier, trained on the encoder as it is.

The encoder runs once, without dropout; its features then serve for as many
steps as the head needs, which with few examples are many passes.
"""

import math
from typing import Any
from typing import NamedTuple

import classifiers
import keras
import numpy as np
import study_tasks
from study_grid import Run
from study_tasks import Tokens

import keras_istar

_LEARNING_RATE = 5e-3
_MIN_STEPS = 500


class Head(NamedTuple):
    """A trained head.

    Attributes:
        weights: Values of the weights outside of the encoder.
        normalization: Weights of the IsoBN it was trained with, if any.
        scores: Metrics on the test part.
    """

    weights: list[np.ndarray]
    normalization: list[np.ndarray] | None
    scores: dict[str, float]

    def give_to(self, task: Any) -> None:
        """Sets the weights of a classifier to which nothing is attached."""
        weights = _head_weights(task)
        for weight, value in zip(weights, self.weights, strict=True):
            weight.assign(value)


def train(task: Any, train: Tokens, test: Tokens, run: Run) -> Head:
    """Trains the head of a new classifier.

    Args:
        task: The classifier; its head is changed, and IsoBN attached.
        train: Examples to train on.
        test: Examples to score.
        run: With which options; of the method only whether it is IsoBN, which
            the head is trained with, matters.
    """
    features = _first_head_layer(task).input
    encoder = keras.Model(task.inputs, features)
    weights = _head_weights(task)
    normalization = None
    if run.method.regularizer == "isobn":
        normalization = keras_istar.IsotropicBatchNormalization()
        keras_istar.attach_regularizer(task, normalization)
    head = keras.Model(features, task.output)
    _fit(head, _features(encoder, train), train.labels, run)
    found = head.predict(_features(encoder, test), verbose=0)
    return Head(
        [weight.numpy() for weight in weights],
        None if normalization is None else normalization.get_weights(),
        study_tasks.scores(run.task, found, test.labels),
    )


def _fit(model, features, labels, run):
    steps = math.ceil(len(labels) / run.recipe.batch_size)
    epochs = math.ceil(_MIN_STEPS / steps)
    model.compile(
        optimizer=classifiers.optimizer(_LEARNING_RATE, epochs * steps),
        loss=study_tasks.loss(model.output.shape[-1]),
        jit_compile=False,
    )
    model.fit(
        features,
        labels,
        batch_size=run.recipe.batch_size,
        epochs=epochs,
        verbose=0,
        callbacks=[keras.callbacks.TerminateOnNaN(raise_error=True)],
    )


def _features(encoder, tokens):
    return encoder.predict(study_tasks.inference_batches(tokens), verbose=0)


def _first_head_layer(task):
    """The first layer of the task that is neither its input nor its encoder."""
    return next(
        layer
        for layer in task.layers
        if layer is not task.backbone
        and not isinstance(layer, keras.layers.InputLayer)
    )


def _head_weights(task):
    inner = {id(weight) for weight in task.backbone.weights}
    return [weight for weight in task.weights if id(weight) not in inner]
