"""What the study does with a task: subsets, tokens, batches, scores."""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from scipy import stats
from sklearn import metrics
from text_tasks import Examples

_ACCURACY_AND_F1 = ("accuracy", "f1")
_METRICS = {
    "cola": ("matthews",),
    "mrpc": _ACCURACY_AND_F1,
    "qqp": _ACCURACY_AND_F1,
    "stsb": ("pearson", "spearman"),
}
_INFERENCE_BATCH_SIZE = 64


class Tokens(NamedTuple):
    """Examples as the encoder takes them, and their labels.

    Attributes:
        inputs: Arrays of shape `(examples, length)` by name.
        labels: Of shape `(examples,)`.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray

    def first(self, count: int) -> "Tokens":
        """The first examples, all if there are fewer."""
        inputs = {name: array[:count] for name, array in self.inputs.items()}
        return Tokens(inputs, self.labels[:count])

    def by_length(self) -> "Tokens":
        """The examples in the order of their lengths, which saves padding."""
        order = np.argsort(_lengths(self.inputs), kind="stable")
        inputs = {name: array[order] for name, array in self.inputs.items()}
        return Tokens(inputs, self.labels[order])


def subset(examples: Examples, limit: int | None, seed: int) -> Examples:
    """Examples drawn at random; those of a lower limit come first."""
    size = len(examples.labels)
    chosen = np.random.default_rng(seed).permutation(size)[:limit]
    labels = [examples.labels[i] for i in chosen]
    if isinstance(examples.texts, tuple):
        texts = tuple([x[i] for i in chosen] for x in examples.texts)
    else:
        texts = [examples.texts[i] for i in chosen]
    return Examples(texts, labels)


def first(examples: Examples, limit: int | None) -> Examples:
    """The first examples, the same in every run."""
    texts = examples.texts
    if isinstance(texts, tuple):
        texts = tuple(column[:limit] for column in texts)
    else:
        texts = texts[:limit]
    return Examples(texts, examples.labels[:limit])


def tokenize(preprocessor: Any, examples: Examples) -> Tokens:
    """Arrays from texts, by the preprocessor of a KerasHub classifier."""
    texts, labels = examples
    is_pair = isinstance(texts, tuple)
    texts = tuple(map(tf.constant, texts)) if is_pair else tf.constant(texts)
    inputs, _ = preprocessor(texts, tf.constant(labels))
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    return Tokens(arrays, np.asarray(labels))


def training_batches(
    tokens: Tokens, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Batches in an order of their own in every epoch, given by the seed."""
    size = len(tokens.labels)
    data = tf.data.Dataset.from_tensor_slices(tuple(tokens))
    return data.shuffle(size, seed=seed).batch(batch_size).map(_trim)


def inference_batches(tokens: Tokens) -> tf.data.Dataset:
    """Batches in the given order."""
    data = tf.data.Dataset.from_tensor_slices(tuple(tokens))
    return data.batch(_INFERENCE_BATCH_SIZE).map(_trim)


def _trim(inputs, labels):
    """Cuts a batch to its longest example: the rest is padding."""
    length = tf.reduce_max(_lengths(inputs))
    return {name: array[:, :length] for name, array in inputs.items()}, labels


def _lengths(inputs):
    mask = inputs["padding_mask"]
    if isinstance(mask, np.ndarray):
        return mask.astype("int32").sum(axis=-1)
    return tf.reduce_sum(tf.cast(mask, "int32"), axis=-1)


def loss(num_outputs: int) -> str | keras.losses.Loss:
    """The loss of classes from their logits, or of one number."""
    if num_outputs == 1:
        return "mse"
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def scores(
    task: str, outputs: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """The metrics of GLUE for a task, by name.

    `score` is their mean, as in the table of GLUE. Of outputs that are all
    equal, correlations are 0, as scikit-learn has it for Matthews'.

    Args:
        task: Name of the task; those that GLUE has not get accuracy.
        outputs: Logits `(examples, classes)`, or numbers `(examples, 1)`.
        labels: Of shape `(examples,)`.

    Raises:
        RuntimeError: If an output is not finite.
    """
    if not np.all(np.isfinite(outputs)):
        raise RuntimeError("the model's outputs are not finite")
    names = _METRICS.get(task, ("accuracy",))
    one_output = outputs.shape[-1] == 1
    answers = outputs[:, 0] if one_output else np.argmax(outputs, axis=-1)
    values = {name: float(_METRIC[name](labels, answers)) for name in names}
    return {"score": float(np.mean(list(values.values()))), **values}


def _correlation(function):
    def correlate(labels, answers):
        is_constant = np.ptp(answers) == 0 or np.ptp(labels) == 0
        return 0.0 if is_constant else function(labels, answers).statistic

    return correlate


_METRIC = {
    "accuracy": metrics.accuracy_score,
    "f1": metrics.f1_score,
    "matthews": metrics.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}
