"""How far a random subset of tokens is from all: `max_tokens`, measured.

Score and gradient of a step differ from those of the step before anyway, for
it sees another batch. The error of a sample is given beside that difference,
both as root mean squares relative to the value itself.
"""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_istar
from benchmarks import models
from benchmarks.report import Row
from benchmarks.report import number_row

_SHRINKAGE = 0.2
_BETWEEN = "batch to batch"


def rows(device: str, tiny: bool) -> list[Row]:
    """Rows for score and gradient at several sizes of the sample."""
    if tiny:
        encoder = models.TINY
        x, _ = models.batch(encoder, examples=4 * encoder.batch)
        data = tf.data.Dataset.from_tensor_slices(x).batch(encoder.batch)
        model = models.classifier(encoder)
        name, sizes, draws = "tiny", (8, 16), 2
    else:
        encoder = models.MINILM
        model, data = _pretrained(encoder.batch)
        name, sizes, draws = "MiniLM", (256, 512, 1024, 2048), 8
    names = [f"transformer_layer_{i}" for i in range(encoder.layers)]
    states = [model.get_layer(name).output for name in names]
    model = keras.Model(model.input, states)
    return _rows(name, model, list(data), sizes, draws)


def _pretrained(batch_size):
    """MiniLM, and film reviews as it reads them."""
    sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
    from finetuning import classifiers
    from finetuning import data

    task = classifiers.load_classifier("minilm", 2, sequence_length=48)
    texts = data.load("film-reviews", limit=8 * batch_size).train.texts
    data = tf.data.Dataset.from_tensor_slices(texts).batch(batch_size)
    return task.backbone, data.map(task.preprocessor)


def _rows(name, model, batches, sizes, draws):
    target, tokens = _covariance(model, batches)
    case = f"{name}, {tokens // len(batches):,} token vectors a batch"
    whole = _steps(_layer(target), model, batches)
    means = [np.mean(steps, axis=0, keepdims=True) for steps in whole]
    between = _percents(whole, means)
    found = []
    for size in sizes:
        layer = _layer(target, max_tokens=size, seed=0)
        sampled = _steps(layer, model, batches * draws)
        every = [np.tile(steps, (draws, 1)) for steps in whole]
        side = f"max_tokens={size:,}"
        for what, *errors in zip(
            ("score", "gradient"),
            _percents(sampled, every),
            between,
            strict=True,
        ):
            values = dict(zip((side, _BETWEEN), errors, strict=True))
            found.append(
                number_row(f"{what}, {case}", values, side, _BETWEEN, "%")
            )
    return found


def _covariance(model, batches):
    """Σ_S of all batches, and their number of token vectors."""
    points = np.concatenate(
        [
            state.numpy()[x["padding_mask"].numpy() > 0]
            for x in batches
            for state in model(x)
        ]
    )
    return np.cov(points.T), len(points)


def _layer(target, **options):
    layer = keras_istar.IStarRegularization(1.0, _SHRINKAGE, **options)
    layer.build((None, None, len(target)))
    layer.set_shrinkage_covariance(target)
    return layer


def _steps(layer, model, batches):
    """Scores `(steps, 1)`, and gradients of the first block's weights."""
    weights = model.get_layer("transformer_layer_0").trainable_variables

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            states = model(x)
            layer(states, mask=x["padding_mask"], training=True)
            penalty = layer.losses[-1]
        gradients = tape.gradient(penalty, weights)
        return (
            tf.reshape(1.0 - penalty, (1,)),
            tf.concat([tf.reshape(g, (-1,)) for g in gradients], 0),
        )

    return [np.stack(parts) for parts in zip(*map(step, batches), strict=True)]


def _percents(found, wanted):
    """Differences of score and of gradient, relative root mean squares."""
    return [
        100 * _rms(f - w) / _rms(w) for f, w in zip(found, wanted, strict=True)
    ]


def _rms(vectors):
    return np.sqrt(np.mean(np.square(vectors, dtype="float64")))
