"""How far a random subset of tokens is from all: `max_tokens`, measured.

Score and gradient of a step differ from those of the step before anyway, for
it sees another batch. The error of a sample is given beside that difference,
both as root mean squares relative to the value itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import classifiers
import keras
import numpy as np
import tensorflow as tf
import text_tasks
from benchmark_models import MINILM
from benchmark_models import TINY
from benchmark_models import batch
from benchmark_models import classifier
from benchmark_report import Ratio
from benchmark_report import Row

import keras_istar

_SHRINKAGE = 0.2


class _Step(NamedTuple):
    score: np.ndarray  # Of shape (1,).
    gradient: np.ndarray  # With respect to the first block's weights.


def run(quick: bool) -> list[Row]:
    """Rows for score and gradient at several sizes of the sample."""
    if quick:
        return _rows("tiny", _random_encoder(), _random_batches(), (8, 16), 2)
    task = classifiers.load_classifier("minilm", 2, sequence_length=48)
    encoder = _encoder(task.backbone, MINILM.layers)
    sizes = (256, 512, 1024, 2048)
    return _rows("MiniLM", encoder, _film_reviews(task), sizes, draws=8)


def _random_encoder():
    return _encoder(classifier(TINY), TINY.layers)


def _encoder(model, layers):
    names = [f"transformer_layer_{i}" for i in range(layers)]
    states = [model.get_layer(name).output for name in names]
    return keras.Model(model.input, states)


def _random_batches():
    x, _ = batch(TINY, examples=4 * TINY.batch)
    return list(tf.data.Dataset.from_tensor_slices(x).batch(TINY.batch))


def _film_reviews(task):
    texts = text_tasks.load("film-reviews", limit=8 * MINILM.batch).train.texts
    data = tf.data.Dataset.from_tensor_slices(texts).batch(MINILM.batch)
    return [task.preprocessor(texts) for texts in data]


def _rows(name, encoder, batches, sizes, draws):
    target, points = _covariance(encoder, batches)
    case = f"{name}, {points // len(batches):,} token vectors a batch"
    whole = _steps(_layer(target), encoder, batches)
    mean = [_Step(*(np.mean(c, axis=0) for c in zip(*whole, strict=True)))]
    between = _errors(whole, mean * len(whole))
    rows = []
    for size in sizes:
        layer = _layer(target, max_tokens=size, seed=0)
        sampled = _steps(layer, encoder, batches * draws)
        errors = _errors(sampled, whole * draws)
        rows += [
            _row(f"{what}, {case}", size, *pair)
            for what, *pair in zip(_Step._fields, errors, between, strict=True)
        ]
    return rows


def _covariance(encoder, batches):
    """Σ_S of all batches, and their number of token vectors."""
    points = np.concatenate(
        [
            state.numpy()[x["padding_mask"].numpy() > 0]
            for x in batches
            for state in encoder(x)
        ]
    )
    return np.cov(points.T), len(points)


def _layer(target, **options):
    layer = keras_istar.IStarRegularization(1.0, _SHRINKAGE, **options)
    layer.build((None, None, len(target)))
    layer.set_shrinkage_covariance(target)
    return layer


def _steps(layer, encoder, batches) -> list[_Step]:
    step = _compiled(layer, encoder)
    return [_Step(*(part.numpy() for part in step(x))) for x in batches]


def _compiled(layer, encoder) -> Callable:
    weights = encoder.get_layer("transformer_layer_0").trainable_variables

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            states = encoder(x)
            layer(states, mask=x["padding_mask"], training=True)
            penalty = layer.losses[-1]
        gradients = tape.gradient(penalty, weights)
        return (
            tf.reshape(1.0 - penalty, (1,)),
            tf.concat([tf.reshape(g, (-1,)) for g in gradients], 0),
        )

    return step


def _errors(steps, references):
    """Differences of score and of gradient, relative root mean squares."""
    return [
        _rms(np.subtract(found, wanted)) / _rms(wanted)
        for found, wanted in zip(
            zip(*steps, strict=True), zip(*references, strict=True), strict=True
        )
    ]


def _rms(vectors):
    return np.sqrt(np.mean(np.square(vectors, dtype="float64")))


def _row(case, size, error, between):
    ratio = error / between
    return Row(
        case,
        f"max_tokens={size:,}",
        100 * error,
        "%",
        "batch to batch",
        100 * between,
        Ratio.of_one(ratio),
    )
